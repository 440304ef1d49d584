"""Test what is said before a run and after it, from a config's section "about"."""

import math

import pytest

from soups.cli import about

ABOUT = {"shows": "It shows soups.", "minutes": 4, "rows": ["a"], "command": "bash run.sh", "next": ["docs/own.md"]}


@pytest.mark.parametrize(
    ("seeds", "time"),
    [
        (1, "This takes about 4 minutes on two idle cores."),
        (10, "This takes about 40 minutes on two idle cores for 10 seeds; what is finished is not repeated."),
        (25, "This takes about 100 minutes on two idle cores for 25 seeds; what is finished is not repeated."),
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


@pytest.mark.parametrize(
    ("minutes", "time"), [(0.5, "0.5 minutes"), (1, "1 minute"), (2.25, "2.2 minutes"), (99.6, "100 minutes")]
)
def test_time_is_rounded(minutes, time):
    assert about.opening({"about": {"minutes": minutes}}) == [f"This takes about {time} on two idle cores."]


@pytest.mark.parametrize("seeds", ["3", True, 0, (1, 2)])
def test_seeds_that_the_study_will_refuse_are_left_to_it(seeds):
    config = {"about": ABOUT, "seeds": seeds}
    assert about.opening(config)[0] == "This takes about 4 minutes on two idle cores."
    assert about.closing(config) == ["", "What to try next:", "  docs/own.md"]


def test_more_seeds_are_not_proposed_to_a_config_that_has_no_such_field():
    assert about.closing({"about": ABOUT}) == ["", "What to try next:", "  docs/own.md"]


def test_a_config_without_it_says_nothing():
    assert about.opening({"seeds": 3}) == about.closing({}) == []
    about.check({})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("soups", "config.about must be a section"),
        ({"show": ""}, "config.about.show is unknown .did you mean 'shows'"),
        ({"rows": "best member"}, "config.about.rows cannot be 'best member'"),
        ({"rows": ("a", 1)}, r"config.about.rows cannot be \('a', 1\)"),
        ({"next": [None]}, r"config.about.next cannot be \[None\]"),
        *(({"minutes": x}, f"config.about.minutes cannot be {x}") for x in (math.nan, math.inf, -1, 0, True)),
        ({"command": "bash 'run.sh"}, "config.about.command cannot be .*: No closing quotation"),
    ],
)
def test_what_it_cannot_be_is_named(section, message):
    with pytest.raises(ValueError, match=message):
        about.check({"about": section})
