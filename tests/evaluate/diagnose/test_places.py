"""Where members lie: norms and cosines in float64, copies, other starts, outliers, modules."""

import itertools
import math
import tracemalloc

import jax
import numpy as np
import pytest
from findings import flat, kinds, the

from soups import tree
from soups.evaluate import geometry
from soups.evaluate.diagnose import diagnose
from soups.pool import Pool


def moved(base, *steps):
    """Add (task vector, scale) pairs to a base."""
    vectors, scales = zip(*steps, strict=True)

    def leaf(start, *parts):
        return (start + sum(s * part for s, part in zip(scales, parts, strict=True))).astype(start.dtype)

    return jax.tree.map(leaf, base, *vectors)


# --- Angles and norms ---


def task_vectors(members, base):
    return [flat(member) - flat(base) for member in members.values()]


@pytest.mark.parametrize("block", [1 << 21, 64])
def test_norms_and_cosines_with_a_base_equal_float64(base, family, monkeypatch, block):
    monkeypatch.setattr(geometry, "_ROWS_TIMES_BLOCK", block)
    found = diagnose(family, base=base)
    vectors = task_vectors(family, base)
    assert found.reference == "base"
    for i, a in enumerate(vectors):
        norm = math.sqrt(sum(x * x for x in a))
        assert found.norms[i] == pytest.approx(norm, rel=1e-12)
        assert found.relative_norms[i] == pytest.approx(norm / math.sqrt(sum(x * x for x in flat(base))), rel=1e-12)
        for j, b in enumerate(vectors):
            assert found.cosines[i, j] == pytest.approx(a @ b / math.sqrt((a @ a) * (b @ b)), rel=1e-10, abs=1e-13)


def test_norms_and_cosines_without_a_base_equal_float64(family):
    found = diagnose(family)
    vectors = [flat(member) for member in family.values()]
    assert found.reference == "members"
    for i, a in enumerate(vectors):
        distances = sorted(np.linalg.norm(a - b) for j, b in enumerate(vectors) if j != i)
        assert found.norms[i] == pytest.approx(distances[2], rel=1e-10)
        assert found.relative_norms[i] == pytest.approx(distances[2] / np.linalg.norm(np.mean(vectors, 0)), rel=1e-10)
        for j, b in enumerate(vectors):
            assert found.cosines[i, j] == pytest.approx(a @ b / math.sqrt((a @ a) * (b @ b)), rel=1e-10)


def test_tiny_task_vectors_are_not_lost_in_rounding(nets, base):
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), base)
    members = {name: nets.near(wide, 1e-9) for name in "abc"}
    a, b, _ = task_vectors(members, wide)
    found = diagnose(members, base=wide)
    assert found.norms[0] == pytest.approx(np.linalg.norm(a), rel=1e-9)
    assert found.cosines[0, 1] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-6)


def test_complex_and_scalar_leaves_count_as_numbers():
    base = {"w": np.complex64([1 + 1j, 2]), "scale": np.float32(1)}
    members = [{"w": np.complex64([1 + 4j, 6]), "scale": np.float32(1)}, {"w": base["w"], "scale": np.float32(3)}]
    np.testing.assert_allclose(diagnose(members, base=base).norms, [5, 2], rtol=1e-12)


def test_modules_tell_what_moved(rng, base):
    task = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), base)
    stretched = {"Dense_0": 0.01, "Dense_1": 0.3, "head": 0.05}
    members = {}
    for name in "abc":
        task = {m: jax.tree.map(lambda x, s=s: s * rng.normal(size=x.shape), base[m]) for m, s in stretched.items()}
        members[name] = moved(base, (task, 1.0))
    found = {module["name"]: module for module in diagnose(members, base=base).modules}
    assert list(found) == ["Dense_0", "Dense_1", "head"]
    vectors = {m: [flat(p[m]) - flat(base[m]) for p in members.values()] for m in found}
    total = sum(v @ v for module in vectors.values() for v in module)
    for name, module in found.items():
        norms = [np.linalg.norm(v) for v in vectors[name]]
        assert module["drift"] == pytest.approx(np.median(norms) / np.linalg.norm(flat(base[name])), rel=1e-10)
        assert module["share"] == pytest.approx(sum(n**2 for n in norms) / total, rel=1e-10)
        kernels = [p[name]["kernel"].astype(np.float64).ravel() for p in members.values()]
        pairs = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.combinations(kernels, 2)]
        assert module["cosine"] == pytest.approx(np.median(pairs), rel=1e-10)
    assert (
        "is in Dense_1; relative to its own norm Dense_1 moved most" in the(diagnose(members, base=base), "drift").what
    )


def test_modules_lie_below_what_all_names_share(base, family):
    wrapped = {name: {"params": {"net": member}} for name, member in family.items()}
    found = diagnose(wrapped, base={"params": {"net": base}})
    assert [module["name"] for module in found.modules] == ["Dense_0", "Dense_1", "head"]


def test_a_pool_in_little_memory(rng, nets, tmp_path):
    pool = Pool(tmp_path / "pool")
    base = {"w": rng.normal(size=(1000, 1000)).astype(np.float32)}
    members = {name: nets.near(base) for name in "abc"}
    for name, member in members.items():
        pool.add(name, member)
    expected = diagnose(members, base=base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "_ROWS_TIMES_BLOCK", 1 << 16)
        tracemalloc.start()
        found = diagnose(pool, base=base)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 6e6  # three members are 12 MB, 24 MB in float64
    np.testing.assert_allclose(found.cosines, expected.cosines, rtol=1e-10)
    assert found.verdict == "average"


# --- Copies ---


def test_exact_copies(base, family):
    members = {"m0": family["m0"], "again": jax.tree.map(np.copy, family["m0"]), **family, "third": family["m0"]}
    for settings in ({"base": base}, {}):
        found = diagnose(members, **settings)
        assert found.leave_out == {"again": "it is an exact copy of m0", "third": "it is an exact copy of m0"}
        assert the(found, "copy").members == ("again", "third") and "near copy" not in kinds(found)
    assert diagnose([base, base], base=None).verdict == "do not average"


def test_near_copies(nets, base, family):
    family["m2_again"] = nets.near(family["m2"], 1e-4)
    for settings in ({"base": base}, {}):
        found = diagnose(family, **settings)
        assert the(found, "near copy").members == ("m2", "m2_again")
        assert found.verdict == "average"
    # the same direction, but farther: only a base shows it
    family["m2_again"] = moved(base, (tree.sub(family["m2"], base), 1.5))
    assert the(diagnose(family, base=base), "near copy").members == ("m2", "m2_again")
    assert "near copy" not in kinds(diagnose(family))


# --- Other starts ---


def test_one_member_of_another_start(nets, base, family):
    members = {"other": nets.near(nets.new()), **family}
    for settings in ({"base": base}, {}):
        found = diagnose(members, **settings)
        assert found.verdict == "average some" and list(found.leave_out) == ["other"]
        assert "another start" in found.leave_out["other"] and "soups.align" in the(found, "start").advice


def test_the_base_decides_between_two_families(nets, base):
    elsewhere = nets.new()
    members = {f"{name}{i}": nets.near(b) for name, b, n in (("a", base, 2), ("b", elsewhere, 3)) for i in range(n)}
    assert diagnose(members).keep == ["b0", "b1", "b2"]
    assert diagnose(members, base=base).keep == ["a0", "a1"]
    assert diagnose(members, base=elsewhere).keep == ["b0", "b1", "b2"]


def test_independent_members(nets):
    members = [nets.new() for _ in range(4)]
    for settings in ({}, {"base": nets.new()}, {"base": nets.near(members[0])}):
        found = diagnose(members, **settings)
        assert found.verdict == "align first" and found.keep == [] and found.leave_out == {}
        assert the(found, "start").severity == "problem" and len(the(found, "start").members) == 4


def test_constant_vectors_do_not_hide_another_start(nets):
    # the scales of normalisation layers are ones in every network: only the kernels tell
    members = [{**nets.new(), "LayerNorm_0": {"scale": np.ones(5000, np.float32)}} for _ in range(2)]
    found = diagnose(members)
    assert found.cosines[0, 1] > 0.8 and found.verdict == "align first"


# --- Outliers ---


def test_a_member_far_off(nets, base, family):
    family["far"] = nets.near(base, 0.7)
    for settings in ({"base": base}, {}):
        found = diagnose(family, **settings)
        assert list(found.leave_out) == ["far"] and "as far as the median member" in found.leave_out["far"]
    of_three = diagnose({name: family[name] for name in ("m0", "m1", "far")})
    assert list(of_three.leave_out) == ["far"]


def test_an_unusual_norm(nets, base, family):
    for step in (3 * 0.1, 0.1 / 4):
        found = diagnose({**family, "odd": nets.near(base, step)}, base=base)
        finding = the(found, "outlier")
        assert finding.members == ("odd",) and finding.severity == "warning" and "moved much farther" in finding.what
        assert found.verdict == "average"
    trifle = {**family, "odd": nets.near(base, 1.4 * 0.1)}
    assert "outlier" not in kinds(diagnose(trifle, base=base))


def test_an_unusual_direction(nets, base):
    shared = tree.sub(nets.near(base), base)
    members = {f"m{i}": moved(nets.near(base, 0.1 / 2), (shared, 1.0)) for i in range(6)}
    members["alone"] = nets.near(base)
    found = diagnose(members, base=base)
    assert the(found, "outlier").members == ("alone",) and "points elsewhere" in the(found, "outlier").what
    assert "against" not in kinds(found) and found.verdict == "average"


def test_a_member_against_the_others(base, family):
    others = [(tree.sub(member, base), -0.4) for member in family.values()]
    family["against"] = moved(base, *others)
    found = diagnose(family, base=base)
    assert the(found, "against").members == ("against",)  # and not the others, whose mean it turns round
    assert the(found, "against").severity == "warning"
    assert "against" not in kinds(diagnose(family))


def test_chance_in_few_dimensions_is_no_outlier(rng):
    for _ in range(20):
        base = {"w": 20 + rng.normal(size=(2, 8)).astype(np.float32)}
        members = [{"w": base["w"] + rng.normal(size=(2, 8)).astype(np.float32)} for _ in range(6)]
        assert not kinds(diagnose(members, base=base)) & {"against", "outlier"}


@pytest.mark.parametrize(
    ("pairs", "left"),
    [
        ([], [0, 1, 2, 3]),
        ([(0, 1)], [0, 1, 2, 3]),
        ([(0, 1), (0, 2)], [1, 2, 3]),
        ([(0, 2), (0, 3), (1, 2), (1, 3)], [0, 1]),
        ([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)], [2, 3]),
        (list(itertools.combinations(range(4), 2)), [0]),
    ],
)
def test_who_lies_together(pairs, left):
    apart = np.zeros((4, 4), bool)
    for i, j in pairs:
        apart[i, j] = apart[j, i] = True
    assert geometry.together(apart) == left
    assert geometry.together(np.zeros((0, 0), bool)) == []
    # one wrong pair among three: each is apart from half of the others, which is not most
    assert geometry.together(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)) == [0, 1, 2]


# --- Modules drawn anew ---


def test_heads_drawn_anew_for_each_member(nets, base, family):
    members = {name: {**member, "head": nets.new()["head"]} for name, member in family.items()}
    finding = the(diagnose(members), "drawn anew")
    assert finding.severity == "warning" and finding.what.endswith("in: head")
    no_head = {key: value for key, value in base.items() if key != "head"}
    assert the(diagnose(members, base=no_head), "drawn anew").what.endswith("in: head")
    # zero in the base: trained from there, not drawn
    zero = {**base, "head": jax.tree.map(np.zeros_like, base["head"])}
    assert "drawn anew" not in kinds(diagnose(members, base=zero))
