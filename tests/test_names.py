"""Test messages about names: the name that may be meant, and differences of thousands of names in a few lines."""

import difflib

import pytest

from soups import names


def layers(number, prefix="", suffix=".weight"):
    return [f"{prefix}model.layers.{i}.self_attn.{part}_proj{suffix}" for i in range(number // 4) for part in "qkvo"]


# --- One name ---


def test_a_known_name_is_given_back():
    assert names.check_name("ties", ["linear", "ties"], "method") == "ties"


def test_an_unknown_name_is_an_error_with_the_closest_and_with_all_if_few():
    with pytest.raises(ValueError, match=r"unknown method 'tise' \(did you mean 'ties'\?\); there are: linear, ties$"):
        names.check_name("tise", ["ties", "linear"], "method")
    many = [f"method_{letter * 9}" for letter in "abcdefghijklmnopqrstuvw"]
    with pytest.raises(ValueError, match=r"unknown method 'method_ccccccccd' \(did you mean 'method_ccccccccc'\?\)$"):
        names.check_name("method_ccccccccd", many, "method")


@pytest.mark.parametrize("known", [["ties", "linear"], {"ties": 1, "linear": 2}, iter(["ties", "linear"])], ids=type)
@pytest.mark.parametrize("name", [3, None, ("a",), 1.5, ["ties"], {}])
def test_what_is_no_text_is_an_error_in_words_too(name, known):
    with pytest.raises(ValueError, match="unknown method"):
        names.check_name(name, known, "method")


def test_a_mapping_is_looked_into_and_not_gone_through():
    class Known(dict):
        def __iter__(self):
            raise AssertionError("each check would cost as much as there are names")

    assert names.check_name("ties", Known(ties=1), "method") == "ties"


def test_what_is_nothing_like_any_is_not_meant():
    assert names.did_you_mean("zzzz", ["ties", "linear"]) == "" == names.did_you_mean("zzzz", [])


@pytest.mark.parametrize(
    "slip",
    [
        "odel.layers.77.self_attn.q_proj.weight",
        "model.layers.77.self_atn.q_proj.weight",
        "model.layers.77.self_attn.q_proj.weigth",
    ],
)
def test_the_closest_of_many_is_found_wherever_the_slip_is(slip):
    known = layers(20_000)
    assert names.did_you_mean(slip, known) == " (did you mean 'model.layers.77.self_attn.q_proj.weight'?)"


# --- Two sets of names ---


def test_each_missing_and_extra_name_has_a_line_with_what_may_be_meant():
    assert names.differences(["norm.weight", "bias"], ["norm.wieght", "zzz"], "b") == [
        "  - b: norm.weight is missing (did you mean 'norm.wieght'?)",
        "  - b: bias is missing",
        "  + b: norm.wieght is extra (did you mean 'norm.weight'?)",
        "  + b: zzz is extra",
    ]
    assert names.differences([], []) == []
    assert names.differences(["a"], []) == ["  - a is missing"]


@pytest.mark.parametrize(
    ("old", "new", "how"),
    [
        ("", "module.", "begin with 'module.'"),
        ("module.", "", "do not begin with 'module.'"),
        ("transformer.", "text.trunk.", "begin with 'text.trunk.' instead of 'transformer.'"),
    ],
)
def test_another_prefix_is_one_line(old, new, how):
    lines = names.differences(layers(800, old), layers(800, new), "b")
    first = "model.layers.0.self_attn.q_proj.weight"
    assert lines == [f"  ~ b: 800 names {how}, such as {new}{first} for {old}{first}"]


def test_another_suffix_is_one_line():
    lines = names.differences(layers(800), layers(800, suffix="/kernel"))
    first = "model.layers.0.self_attn.q_proj"
    assert lines == [
        f"  ~ 800 names end with '/kernel' instead of '.weight', such as {first}/kernel for {first}.weight"
    ]


def test_what_differs_otherwise_beside_another_prefix_is_listed():
    lines = names.differences([*layers(80), "head.bias"], [*layers(80, "module."), "step"], "b")
    assert len(lines) == 3 and lines[0].startswith("  ~ b: 80 names begin with 'module.', such as")
    assert lines[1:] == ["  - b: head.bias is missing", "  + b: step is extra"]


def test_a_name_that_could_be_several_is_paired_with_none():
    lines = names.differences(["a.x.w", "b.x.w", "a.y.w", "b.y.w"], ["x.w", "y.w"])
    assert [line[:3] for line in lines] == ["  -"] * 4 + ["  +"] * 2


@pytest.mark.parametrize(
    "other",
    [
        layers(6000, "module."),
        layers(6000, suffix=".kernel"),
        [f"{name}x{i}" for i, name in enumerate(layers(6000))],
        [],
    ],
    ids=["prefix", "suffix", "each in its own way", "all missing"],
)
def test_of_many_names_few_are_compared_and_few_are_printed(other, monkeypatch):
    compared, match = [], difflib.get_close_matches

    def counted(name, candidates, n, cutoff):
        compared.append(len(candidates))
        return match(name, candidates, n, cutoff)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    text = names.bounded(names.differences(layers(6000), other, "b"))
    assert len(compared) <= names.MOST and max(compared, default=0) <= 2 * names.MOST
    assert len(text.splitlines()) <= names.MOST + 1


def test_hostile_names_are_neither_compared_nor_printed_as_they_are():
    lines = names.differences(["a" * 10**6, "." * 10**6, "\x1b[31mred"], ["a" * 10**6 + "b"])
    assert max(map(len, lines)) < 250 and r"\x1b[31mred" in "".join(lines) and "\x1b" not in "".join(lines)
    assert "did you mean" not in "".join(lines)


def test_bounded_counts_what_it_leaves_out():
    assert names.bounded(["a", "b", "c"], 2) == "a\nb\n  ... and 1 more"
    assert names.bounded(["a", "b"], 2) == "a\nb"
