"""Follow docs/updatable.md as a reader would: contributions arrive, one is refused, the released soup grows."""

import pathlib

import pages

from soups import Pool

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "updatable.md"
GROWN = ["add01", "add23", "add45", "add67", "add89"]


def test_the_page_is_followed(tmp_path, monkeypatch, quick_start, capsys):
    monkeypatch.chdir(tmp_path)
    shell, names = pages.environment(tmp_path, quick_start), {"__name__": "reader"}
    printed = {}
    for title, text in pages.sections(PAGE).items():
        commands = pages.follow(text, title, names, shell)
        printed[title] = commands, capsys.readouterr().out
    assert printed["The first contribution"][0].endswith("released 1: add01\n")
    refused = printed["The others"][1].splitlines()
    assert len(refused) == 2 and refused[0] == "'careless67' is not added, for certificates do not hold:"
    assert refused[1].startswith("  'careless67': all digits is ") and "must be at least 82 (release 3: " in refused[1]
    pool = Pool("pool")
    assert pool.names == GROWN
    for number, release in enumerate(pool.releases, 1):
        record = pool.releases.record(release)
        assert list(record["metadata"]["ingredients"]) == GROWN[:number]
        assert len(record["metrics"]) == 1 + number  # of all, and of each ingredient
    assert pool.releases.names == ["1", "2", "3", "4", "5"]
    base, grown = (names["pool"].releases.metrics(number)["all digits"] for number in ("1", "5"))
    assert grown > base
    commands, broken = printed["The history"]
    assert "5 releases" in " ".join(commands.split()) and "wrote again, which is release 2 bit for bit" in commands
    assert commands.count("release 5: ") == commands.count(": holds") == 6
    assert broken.startswith("no soup is released, for certificates do not hold:\n  the soup of 'add01', ")
