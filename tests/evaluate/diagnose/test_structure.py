"""What members are made of: each finding for a case that is made to have it."""

import jax
import ml_dtypes
import numpy as np
import pytest
from findings import check_keep, flat, kinds, the

from soups import tree, uniform
from soups.evaluate.diagnose import diagnose
from soups.pool import Pool

# --- What members are made of ---


def test_a_renamed_leaf(nets, base, family):
    family["typo"] = {("Dens_0" if key == "Dense_0" else key): value for key, value in nets.near(base).items()}
    found = diagnose(family, base=base)
    assert found.verdict == "average some" and list(found.leave_out) == ["typo"]
    finding = the(found, "structure")
    assert finding.severity == "problem" and finding.members == ("typo",)
    assert "did you mean 'Dense_0/bias'?" in finding.what and "give them the others' names" in finding.advice
    assert np.isnan(found.norms[-1]) and np.isfinite(found.norms[:-1]).all()
    check_keep(found, family)


def test_groups_of_other_structures(nets, base, family):
    deeper = [{**nets.near(base), "Dense_2": {"kernel": np.ones((16, 16), np.float32)}} for _ in range(2)]
    members = [*deeper, *family.values(), {"w": np.ones(3, np.float32)}]
    found = diagnose(members)
    assert list(found.leave_out) == ["0", "1", "8"]
    first, second = [finding for finding in found.findings if finding.kind == "structure"]
    assert first.members == ("0", "1") and "Dense_2/kernel is extra" in first.what
    assert second.members == ("8",) and "Dense_0/bias is missing" in second.what and "more" in second.what
    assert second.advice == "only members of one architecture can be averaged"


@pytest.mark.parametrize(("rename", "head"), [("head", None), ("top", "top/.*")])
def test_another_head(nets, base, family, rename, head):
    family["five"] = {**nets.near(base), "head": nets.new(classes=5)["head"]}
    members = {n: {rename if key == "head" else key: v for key, v in m.items()} for n, m in family.items()}
    found = diagnose(members, head=head)
    finding = the(found, "head")
    assert finding.members == ("five",) and "has shape (5,) instead of (3,)" in finding.what
    assert "soups.tree.partition" in finding.advice
    assert found.leave_out.keys() == {"five"}
    if head:
        assert "structure" in kinds(diagnose(members))


def test_all_heads_differ_but_the_trunks_can_be_averaged(nets, base):
    members = [{**nets.near(base), "head": nets.new(classes=count)["head"]} for count in (2, 3, 4)]
    assert diagnose(members).verdict == "do not average"
    trunks = [tree.partition(member, "head/.*")[1] for member in members]
    assert diagnose(trunks).verdict == "average"


def test_other_dtypes(nets, base, family):
    family["half"] = jax.tree.map(lambda leaf: leaf.astype(np.float16), nets.near(base))
    found = diagnose(family)
    finding = the(found, "dtypes")
    assert finding.members == ("half",) and "float16 instead of float32" in finding.what
    assert "precision" not in kinds(found)
    check_keep(found, family)


def test_other_containers(family):
    odd = dict(family["m1"])
    odd["Dense_0"] = list(odd["Dense_0"].values())
    assert "structure" in kinds(diagnose([*family.values(), odd]))


def test_half_precision(base, family):
    half = {n: jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), m) for n, m in family.items()}
    finding = the(diagnose(half), "precision")
    assert finding.severity == "note" and finding.what == "6 of 6 leaves are bfloat16"
    assert "float32" in finding.advice


@pytest.mark.parametrize("odd", [{"a": "b"}, 3.5, {"w": np.array(["x"])}, {}, {"w": 1.0}])
def test_what_is_no_tree_of_arrays(family, odd):
    found = diagnose({**family, "odd": odd})
    assert the(found, "no arrays").members == ("odd",)
    assert list(found.leave_out) == ["odd"]


def test_non_finite_members(base, family):
    family["m2"]["head"]["bias"][1] = np.nan
    family["m4"]["Dense_1"]["kernel"][0, 0] = np.inf
    found = diagnose(family, base=base)
    assert found.leave_out == {
        "m2": "it holds NaN or infinity in head/bias",
        "m4": "it holds NaN or infinity in Dense_1/kernel",
    }
    assert the(found, "non-finite").severity == "problem"
    check_keep(found, family)


def test_integer_leaves_that_differ(family):
    counters = {"m0": 7, "m1": 7, "m2": 9, "m3": 7, "m4": 7, "m5": 7}
    members = {name: {**member, "step": np.int32(counters[name])} for name, member in family.items()}
    found = diagnose(members)
    assert the(found, "integers").what == "integer or boolean leaves differ: step"
    assert list(found.leave_out) == ["m2"]
    check_keep(found, members)
    assert "integers" not in kinds(diagnose({n: {**m, "step": np.int32(7)} for n, m in family.items()}))
    all_differ = [{**member, "step": np.int32(index)} for index, member in enumerate(family.values())]
    assert diagnose(all_differ).verdict == "do not average"


def test_running_statistics(base, family, accuracy):
    stats = {"BatchNorm_0": {"mean": np.ones(16, np.float32), "var": 9e3 * np.ones(16, np.float32)}}
    members = {name: {**member, "batch_stats": stats} for name, member in family.items()}
    found = diagnose(members, base=base)
    finding = the(found, "statistics")
    assert finding.severity == "warning" and "soups.models.reestimate_batch_stats" in finding.advice
    assert "2 leaves" in finding.what and found.verdict == "average"
    # they say nothing of where members lie
    np.testing.assert_array_equal(found.norms, diagnose(family, base=base).norms)
    measured = the(diagnose(members, evaluate=accuracy), "statistics")
    assert "barriers look too high" in measured.advice


@pytest.mark.parametrize("name", ["batch_stats/ema/w", "ema/w", "params/norm/running_var", "params/norm/mean"])
def test_what_counts_as_statistics(family, name):
    outer, *middle, last = name.split("/")
    inner = {last: np.ones(2, np.float32)}
    inner = {middle[0]: inner} if middle else inner
    members = {}
    for member, weights in family.items():
        tree_of = {"params": dict(weights)}
        tree_of.setdefault(outer, {}).update(inner)
        members[member] = tree_of
    assert name in the(diagnose(members), "statistics").what
    if name.startswith("batch_stats"):  # without a collection "params", as in this library's pools
        members = {member: {**weights, outer: inner} for member, weights in family.items()}
        assert name in the(diagnose(members), "statistics").what
    assert "statistics" not in kinds(diagnose({member: {"params": w} for member, w in family.items()}))


def test_a_corrupted_member_of_a_pool(base, family, tmp_path):
    pool = Pool(tmp_path / "pool")
    for name, member in family.items():
        pool.add(name, member)
    pool.add("diverged", jax.tree.map(lambda leaf: leaf * np.nan, base))
    directory = pool.path / pool.record("m3")["path"]
    largest = max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[-1] ^= 1
    largest.write_bytes(content)
    found = diagnose(pool, base=base)
    assert the(found, "unreadable").members == ("m3",) and "does not have the bytes" in found.leave_out["m3"]
    assert the(found, "non-finite").members == ("diverged",)
    assert list(found.leave_out) == ["m3", "diverged"]
    uniform(pool.select(found.keep))


# --- The base ---


def test_a_member_that_is_the_base(base, family):
    family["start"] = jax.tree.map(np.copy, base)
    found = diagnose(family, base=base)
    assert the(found, "base member").members == ("start",) and list(found.leave_out) == ["start"]
    assert "base member" not in kinds(diagnose(family))


def test_a_base_of_no_use(base, family):
    broken = jax.tree.map(np.copy, base)
    broken["head"]["kernel"][0, 0] = np.nan
    for wrong, what in (({"w": np.ones(3, np.float32)}, "shares no leaf"), (broken, "infinity in head/kernel")):
        found = diagnose(family, base=wrong)
        assert what in the(found, "base").what and the(found, "base").severity == "warning"
        assert found.reference == "members" and found.verdict == "average"


def test_a_base_with_another_head(nets, base, family):
    other = {**base, "head": nets.new(classes=9)["head"]}
    found = diagnose(family, base=other)
    assert "head/bias, head/kernel" in the(found, "base").what
    trunk = [np.concatenate([flat(m["Dense_0"]), flat(m["Dense_1"])]) for m in (base, family["m0"])]
    assert found.norms[0] == pytest.approx(np.linalg.norm(trunk[1] - trunk[0]), rel=1e-10)
    assert "drawn anew" not in kinds(found)


def test_a_wrong_base(nets, family):
    found = diagnose(family, base=nets.new())
    assert "not like the base" in the(found, "base").what
    assert found.verdict == "average" and not found.leave_out
