"""Test what is said before a run and after it, from a config's section "about"."""

import pytest

from soups.cli import about

ABOUT = {"shows": "It shows soups.", "minutes": 4, "rows": ["a"], "command": "bash run.sh", "next": ["docs/own.md"]}


@pytest.mark.parametrize(
    ("seeds", "time"),
    [
        (1, "This takes about 4 minutes on two idle cores."),
        (10, "This takes about 40 minutes on two idle cores for 10 seeds; what is finished is not repeated."),
        (45, "This takes about 3.0 hours on two idle cores for 45 seeds; what is finished is not repeated."),
    ],
)
def test_time_scales_with_the_seeds(seeds, time):
    assert about.opening({"about": ABOUT, "seeds": seeds}) == [time, "It shows soups."]


def test_more_seeds_are_proposed_by_a_command_that_a_shell_reads():
    changes = ["--config.data_dir=my data", "--config.seeds=2", "--workdir=there"]
    _, _, command, last = about.closing({"about": ABOUT, "seeds": 2}, changes)
    assert command.startswith("  bash run.sh '--config.data_dir=my data' --workdir=there --config.seeds=10   #")
    assert last == "  docs/own.md"
    assert about.closing({"about": ABOUT, "seeds": 10}) == ["", "What to try next:", "  docs/own.md"]


def test_a_config_without_it_says_nothing():
    assert about.opening({"seeds": 3}) == about.closing({}) == []
    about.check({})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("soups", "config.about must be a section"),
        ({"show": ""}, "config.about.show is unknown .did you mean 'shows'"),
        ({"rows": "best member"}, "config.about.rows cannot be 'best member'"),
    ],
)
def test_what_it_cannot_be_is_named(section, message):
    with pytest.raises(ValueError, match=message):
        about.check({"about": section})
