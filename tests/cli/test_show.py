"""Test what is printed: escapes, tables, sizes and progress."""

import itertools
import re

import pytest

from soups import progress
from soups.cli.show import advance, amount, complain, parse_size, printable, say, table, tell


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1530, "1.53 kB"), (2.5e6, "2.5 MB"), (1e9, "1 GB"), (3e15, "3e+03 TB")],
)
def test_amounts(number, text):
    assert amount(number) == text


@pytest.mark.parametrize(("text", "size"), [("2GB", 2e9), ("1.5 mb", 1.5e6), ("300kB", 3e5), ("77", 77), ("1TB", 1e12)])
def test_sizes(text, size):
    assert parse_size(text) == size


def test_a_large_merge_shows_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", itertools.count(0, 2).__next__)  # 2 s pass with each look at it
    with advance("merging", 2 * 10**8) as more:
        for _ in range(200):
            more(10**6)
    lines = capsys.readouterr().out.splitlines()
    seconds = [int(re.search(r"(\d+) s, ", line)[1]) for line in lines]
    assert all(later - earlier >= 5 for earlier, later in itertools.pairwise(seconds[:-1]))
    assert 5 < len(lines) < 10 and lines[-1].startswith("merging: 200/200 MB")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("model.layers.0", "model.layers.0"),
        ("θ é 重み", "θ é 重み"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b2J\x07\x7f", r"\x9b2J\x07\x7f"),
        ("a\rb\tc\nd", r"a\rb\tc\nd"),
        ("\u202etxt.exe\u2028", r"\u202etxt.exe\u2028"),
        ("\udcff.pt", r"\xff.pt"),  # a byte of a file's name that is not UTF-8
        ("\ud800", r"\ud800"),
    ],
)
def test_what_would_steer_a_terminal_is_escaped(name, shown, capsys):
    assert printable(name) == shown
    complain("soups merge", f"{name!s} is extra".replace("\n", " "))
    say(f"{name!s}".replace("\n", " "))
    table(name, ("leaf", name), [(name, 1)])
    out, err = capsys.readouterr()
    assert shown.replace(r"\n", " ") in out.splitlines()[0] and shown.replace(r"\n", " ") in err
    assert out.count(shown) >= 3
    assert all(line.isprintable() for line in (out + err).splitlines())


def test_lines_of_a_message_stay_lines(capsys):
    complain("soups", "cannot merge:\n  a\x1b is missing")
    assert capsys.readouterr().err == "soups: cannot merge:\n  a\\x1b is missing\n"


@pytest.mark.parametrize("width", [20, 80, 200])
def test_a_table_is_as_wide_as_its_content_and_never_wider_than_the_terminal(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [("short", 1, "words that go on and on and on, as far as a line of a table can be" * 2), ("x" * 300, 23, "")]
    table("a title of many words that is longer than most", ("name", "MB", "what"), rows, ("MB",))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    cells = "".join(line[: line.find(" ")] if " " in line else line for line in lines)
    assert cells.count("x") == 300  # nothing is cut off


def test_columns_are_aligned(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    table("sizes", ("name", "MB"), [("a", 1), ("long", 230)], ("MB",))
    assert capsys.readouterr().out == "sizes\nname   MB\n----  ---\na       1\nlong  230\n"


@pytest.mark.parametrize("text", ["", "GB", "2 GiB", "-1GB", "1e3", "1.2.3", "٣GB", "nan"])
def test_what_is_no_size_is_named(text):
    with pytest.raises(ValueError, match="is not a size; 2GB is one, with B, kB, MB, GB, TB"):
        parse_size(text)


def test_what_is_no_terminal_gets_each_row_and_sentence_in_one_line(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    words = "words that go on and on, as far as a line can be " * 5
    table("two names", ("name", "what"), [("a" * 200, words), ("b", "")])
    tell(words)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() for line in lines[:2]] == ["two names", "name"]
    assert lines[3] == f"{'a' * 200}  {words}".rstrip() and lines[4] == "b" and lines[5:] == [words]
