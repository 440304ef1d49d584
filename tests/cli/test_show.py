"""Test what is printed: escapes, tables, sizes and progress."""

import pytest

from soups.cli.show import advance, amount, parse_size


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1530, "1.53 kB"), (2.5e6, "2.5 MB"), (1e9, "1 GB"), (3e15, "3e+03 TB")],
)
def test_amounts(number, text):
    assert amount(number) == text


@pytest.mark.parametrize(("text", "size"), [("2GB", 2e9), ("1.5 mb", 1.5e6), ("300kB", 3e5), ("77", 77), ("1TB", 1e12)])
def test_sizes(text, size):
    assert parse_size(text) == size


def test_a_large_merge_shows_how_far_it_is(capsys):
    with advance("merging", 2 * 10**8) as more:
        for _ in range(200):
            more(10**6)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20 and lines[-1].startswith("merging: 200/200 MB")
