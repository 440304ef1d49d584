"""Healthy members are called so, bad ones are no error, and a verdict keeps its word."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from findings import check_keep, kinds, the

from soups.evaluate.diagnose import diagnose
from soups.pool import Pool

# --- Healthy members ---


def test_a_healthy_family(base, family, accuracy):
    for settings, expected in (
        ({"base": base}, {"drift"}),
        ({}, {"drift", "no base"}),
        ({"base": base, "evaluate": accuracy}, {"drift", "soup"}),
    ):
        diagnosis = diagnose(family, **settings)
        assert diagnosis.verdict == "average"
        assert kinds(diagnosis) == expected
        assert {finding.severity for finding in diagnosis.findings} == {"note"}
        assert diagnosis.leave_out == {} and diagnosis.keep == list(family)
        check_keep(diagnosis, family)


def test_a_list_and_jax_arrays(base, family):
    members = [jax.tree.map(jnp.asarray, member) for member in family.values()]
    found = diagnose(members, base=jax.tree.map(jnp.asarray, base))
    assert found.names == ("0", "1", "2", "3", "4", "5")
    np.testing.assert_allclose(found.cosines, diagnose(family, base=base).cosines, rtol=1e-12, atol=1e-15)


# --- Verdicts and errors ---


def test_one_member_is_nothing_to_average(base, accuracy):
    for settings in ({}, {"base": base}, {"evaluate": accuracy}):
        found = diagnose([base], **settings)
        assert found.verdict == "do not average" and the(found, "few").severity == "problem"


def test_nothing_usable_is_a_verdict_and_no_error(base):
    members = {"a": jax.tree.map(lambda leaf: leaf * np.nan, base), "b": {"w": "text"}}
    found = diagnose(members, base=base, evaluate=lambda p: 1.0)
    assert found.verdict == "do not average" and found.leave_out.keys() == {"a", "b"}
    assert found.scores is None and np.isnan(found.cosines).all()
    assert "few" in kinds(found)


def test_the_record_and_the_report(nets, base, family, accuracy):
    family["[bold]odd[/bold]"] = jax.tree.map(lambda leaf: leaf * np.nan, base)
    family["a member with a name that is much too long for a table " * 2] = nets.near(base)
    for found in (diagnose(family), diagnose(family, base=base, evaluate=accuracy)):
        record = json.loads(json.dumps(found.record(), allow_nan=False))
        assert record["verdict"] == "average some" and record["cosines"][6][0] is None
        assert record["findings"][0].keys() == {"severity", "kind", "what", "members", "advice"}
        text = str(found)
        assert text.startswith("AVERAGE SOME: average 7 of 8 members.")
        assert max(map(len, text.splitlines())) <= 100
        assert "[bold]odd[/bold]: it holds NaN" in text and "Leave out" in text and "Problems" in text
    table = text[text.index("Members\n") :].splitlines()
    assert any(line.startswith("  [bold]odd[/bold] ") and line.endswith("out") for line in table)
    assert "Score of the uniform soup" in text and "How far the modules moved, relative to the base" in text
    many = {f"run_{index:03}": nets.near(base) for index in range(60)}
    text = str(diagnose({**many, "far": nets.near(base, 1.0)}, base=base))
    table = text[text.index("Members\n") :].splitlines()
    assert "… and 37 more" in text and len(text.splitlines()) < 60
    assert table[3].startswith("  far ")  # those to leave out are never cut off


@pytest.mark.parametrize("empty", [[], {}])
def test_no_members_is_an_error(empty):
    with pytest.raises(ValueError, match="no members were given"):
        diagnose(empty)


def test_errors(family, tmp_path):
    with pytest.raises(ValueError, match="no members were given"):
        diagnose(Pool(tmp_path / "empty"))
    for wrong in (3, "members", iter([])):
        with pytest.raises(ValueError, match=r"members must be a sequence or mapping of trees|no members were given"):
            diagnose(wrong)
    with pytest.raises(ValueError, match="mode must be 'max' or 'min', not 'maximum'"):
        diagnose(family, mode="maximum")
    with pytest.raises(ValueError, match="metric='accuracy' was given, but no evaluate"):
        diagnose(family, metric="accuracy")
    with pytest.raises(ValueError, match=r"unknown metric 'acuracy' \(did you mean 'accuracy'\?\)"):
        diagnose(family, evaluate=lambda p: {"accuracy": 1.0}, metric="acuracy", mode="max")
    with pytest.raises(ValueError, match=r"a higher or a lower 'acuracy' is better \(did you mean 'accuracy'\?\)"):
        diagnose(family, evaluate=lambda p: {"accuracy": 1.0}, metric="acuracy")
    for settings in ({"max_members": 1}, {"points": 0}):
        with pytest.raises(ValueError, match="at least 2 and points at least 1"):
            diagnose(family, **settings)
    with pytest.raises(ValueError, match=r"head must be a regular expression, not '\('"):
        diagnose(family, head="(")
    with pytest.raises(
        ValueError, match=r"head='haed/kernel' does not match the whole name of any leaf.*'head/kernel'"
    ):
        diagnose(family, head="haed/kernel")


def test_an_evaluate_that_never_scores_is_an_error(family):
    def broken(params):
        raise ValueError("shapes do not fit")

    with pytest.raises(ValueError, match="no score for any member: shapes do not fit"):
        diagnose(family, evaluate=broken)
    with pytest.raises(ValueError, match="no score for any member"):
        diagnose(family, evaluate=lambda p: math.nan)
