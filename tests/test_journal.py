"""Test that a journal goes on from what is whole and refuses what is damaged."""

import json

import pytest

from soups.journal import Journal

RECORDS = [{"kind": "candidate", "member": f"m{index}", "score": 0.1 * index, "accepted": True} for index in range(3)]


def written(path):
    journal = Journal(path, {"recipe": "greedy"})
    for record in RECORDS:
        journal.write(record)
    return path.read_bytes()


def replayed(path):
    journal = Journal(path, {"recipe": "greedy"})
    return [journal.replay("candidate", record["member"]) for record in RECORDS]


def test_what_was_written_is_replayed(tmp_path):
    written(tmp_path / "j")
    assert replayed(tmp_path / "j") == RECORDS


def test_a_journal_without_checksums_is_read(tmp_path):
    lines = [{"recipe": "greedy"}, *RECORDS]
    (tmp_path / "j").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert replayed(tmp_path / "j") == RECORDS


def test_a_flip_anywhere_is_an_error_with_the_path_or_changes_nothing(tmp_path):
    content = written(tmp_path / "j")
    for place in range(len(content)):
        for bit in (1, 16, 128):
            damaged = bytearray(content)
            damaged[place] ^= bit
            (tmp_path / "j").write_bytes(bytes(damaged))
            try:
                found = replayed(tmp_path / "j")
            except ValueError as error:
                assert str(tmp_path / "j") in str(error), error
            else:  # in the name of the checksum, or in the end of the last line, which is then as if it was cut off
                pairs = zip(found, RECORDS, strict=True)
                assert all(a is None or a.items() >= b.items() for a, b in pairs), (place, bit)


@pytest.mark.parametrize("line", ["[1]", "null", "{", "[" * 100_000, '{"kind": "candidate"}x', "\\ud800"])
def test_a_line_that_is_no_record_is_named(line, tmp_path):
    (tmp_path / "j").write_text(json.dumps({"recipe": "greedy"}) + f"\n{line}\n")
    with pytest.raises(ValueError, match=r"line 2 of journal .*j is damaged"):
        replayed(tmp_path / "j")
