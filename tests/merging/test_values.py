"""Test the values of parameters: scalars, gradients, filters."""

import numpy as np
import pytest

from soups.merging.values import Place, check, is_constant, resolve, stacked


@pytest.mark.parametrize("value", [0.5, 3, True, "leaf"])
def test_a_scalar_holds_everywhere(value):
    assert resolve(value, Place("a.b", 0.7)) is value
    assert is_constant(value) and not is_constant([value])


@pytest.mark.parametrize("depth", [0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("values", [[0.3], [0, 1], [0.0, 0.5, 0.3, 0.7, 1.0]])
def test_a_gradient_is_linear_between_values_spread_evenly(values, depth):
    expected = np.interp(depth, np.linspace(0, 1, len(values)), values) if len(values) > 1 else values[0]
    assert resolve(values, Place("x", depth)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("values", "kind"), [([True, False], bool), ([1, 0], bool), (["leaf", "model"], str)])
def test_a_gradient_of_booleans_or_text_is_the_entry_before_the_place(values, kind):
    first, last = values
    assert [resolve(values, Place("x", depth), kind) for depth in (0.0, 0.4, 0.9, 1.0)] == [first, first, first, last]
    assert resolve([first, last, first], Place("x", 0.7), kind) == last


def test_a_gradient_of_whole_numbers_is_linear_and_rounded_down():
    found = [resolve([1, 5], Place("x", depth), int) for depth in (0.0, 0.4, 0.5, 0.9, 1.0)]
    assert found == [1, 2, 3, 4, 5] and {type(value) for value in found} == {int}


def test_whole_numbers_may_be_written_with_a_point():
    assert type(resolve(5.0, Place("x"), int)) is int


FILTERS = [
    {"filter": "self_attn", "value": [0.0, 1.0]},
    {"filter": "mlp", "value": 0.25},
    {"filter": "mlp.up", "value": 99.0},  # the first that applies holds
]


@pytest.mark.parametrize(
    ("name", "default", "expected"),
    [("l.self_attn.q", 0.5, 0.75), ("l.mlp.up", 0.5, 0.25), ("norm", 0.5, 0.5), ("norm", None, None)],
)
@pytest.mark.parametrize("star", [{}, {"filter": "*"}, {"filter": None}])
def test_the_first_filter_that_is_part_of_the_name_holds(name, default, expected, star):
    rules = FILTERS + ([] if default is None else [{**star, "value": default}])
    assert resolve(rules, Place(name, 0.75)) == expected


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("l.0.block_sparse_moe.experts.1.w1.weight", "l.0.mlp.experts.gate_up_proj"),
        ("l.0.block_sparse_moe.experts.1.w2.weight", "l.0.mlp.experts.down_proj"),
        ("l.0.mlp.experts.12.gate_proj.weight", "l.0.mlp.experts.gate_up_proj"),
        ("l.0.mlp.experts.12.down_proj.weight", "l.0.mlp.experts.down_proj"),
        ("l.0.block_sparse_moe.gate.weight", "l.0.mlp.gate.weight"),
        ("l.0.mlp.gate_proj.weight", "l.0.mlp.gate_proj.weight"),
    ],
)
def test_filters_know_experts_by_mergekits_names(stored, name):
    assert stacked(stored) == name
    assert resolve([{"filter": name, "value": 1}, {"value": 2}], Place(stored)) == 1
    assert resolve([{"filter": stored, "value": 1}, {"value": 2}], Place(stored)) == 1


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *[(1, float), (0.5, float), ([0, 0.5, 1], float), (3, int), (3.0, int), (True, bool), ("leaf", str)],
        *[(1.0, bool), (0, bool), (1, bool), ([{"filter": "a", "value": [0.0, 1]}, {"value": 2}], float)],
    ],
)
def test_good_values_pass(value, kind):
    check(value, "ties.density", kind)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("0.5", float, "w must be a number, not '0.5'"),
        (True, float, "w must be a number, not True"),
        (10**400, float, "w must be finite, not 1000"),
        (10**400, int, "w must be a whole number, not 1000"),
        (float("inf"), int, "w must be a whole number, not inf"),
        ("x" * 10**6, float, r"w must be a number, not 'x{199}\.\.\.$"),
        ({"filter": "a", "value": 1}, float, "w must be a number, not {"),
        (None, float, "w must be a number, not None"),
        (0.5, int, "w must be a whole number, not 0.5"),
        (2, bool, "w must be true or false, not 2"),
        ("yes", bool, "w must be true or false, not 'yes'"),
        (1, str, "w must be text, not 1"),
        (float("nan"), float, "w must be finite, not nan"),
        ([0.5, float("inf")], float, "w must be finite, not inf"),
        ([], float, "w is an empty list"),
        ([[1.0]], float, "w is a list of lists"),
        ([0.5, {"value": 1}], float, "w mixes numbers with filters"),
        ([{"filter": "a", "value": "b"}], float, r"w\[a\] must be a number, not 'b'"),
        ([{"filter": "a"}], float, "w: a filter without a value"),
        ([{"filter": 3, "value": 1}], float, "w: a filter must be part of a tensor's name, not 3"),
        ([{"filters": "a", "value": 1}], float, "w: a filter has the fields 'filter' and 'value', not 'filters'"),
    ],
)
def test_bad_values_are_named(value, kind, message):
    with pytest.raises(ValueError, match=message):
        check(value, "w", kind)
