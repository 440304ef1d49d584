"""Anyone's members are measured and cooked, and nothing is done twice or believed of other members."""

import json

import jax
import numpy as np
import pytest

import soups
from soups import report
from soups.data import array_source
from soups.studies import cook, kitchen
from soups.studies.cook import _examples

KERNEL = np.zeros((10, 3), np.float32)
NOT_FINITE = np.where(np.arange(8)[:, None] < 5, np.zeros(10), np.inf)
RECIPES = ["uniform", "greedy", "learned", "wise_ft", "ensemble", ("ties", {"density": 0.3})]


def network(params, inputs):
    """Return the logits of a linear classifier."""
    return inputs @ params["kernel"] + params["bias"][None]


@pytest.fixture(scope="module")
def kit():
    """Return base, members and splits of a noisy linear problem."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(10, 3)).astype(np.float32)
    base = {"kernel": 0.5 * kernel, "bias": np.zeros(3, np.float32)}

    def around(leaf):
        return leaf + 0.4 * rng.normal(size=leaf.shape).astype(np.float32)

    def split(number, noise=0.0):
        inputs = rng.normal(size=(number, 10)).astype(np.float32)
        labels = (inputs @ kernel + rng.normal(size=(number, 3))).argmax(axis=1)
        return inputs + noise * rng.normal(size=inputs.shape).astype(np.float32), labels

    members = {f"m{index}": jax.tree.map(around, base) for index in range(4)}
    return base, members, {"held_out": split(90), "test": split(120), "shifts": {"noisy": split(60, 1.0)}}


@pytest.fixture(scope="module")
def cooked(kit, tmp_path_factory):
    """Return a folder in which all was cooked, and the results."""
    base, members, splits = kit
    folder = tmp_path_factory.mktemp("cooked")
    return folder, cook(members, network, workdir=folder, base=base, recipes=RECIPES, **splits)


def accuracy(params, split):
    inputs, labels = split
    logits = inputs.astype(np.float64) @ params["kernel"].astype(np.float64) + params["bias"]
    return float((logits.argmax(axis=1) == labels).mean())


def test_a_split_comes_in_any_form():
    images, labels = np.zeros((3, 2, 2, 1), np.uint8), np.arange(3)
    for form in ((images, labels), {"image": images, "label": labels}, array_source(images, labels)):
        found = _examples("test", form)
        assert found.images is images and found.labels.tolist() == [0, 1, 2] and found.class_groups is None


def test_rows_are_what_numpy_finds(cooked, kit):
    folder, results = cooked
    _, members, splits = kit
    rows = {row["name"]: row["metrics"] for row in results["rows"] if row["group"] != "curve"}
    weights = members | {"uniform soup": {k: np.mean([m[k] for m in members.values()], axis=0) for k in members["m0"]}}
    weights["ties, density = 0.3"] = soups.ties(members, base=kit[0], density=0.3)
    for name, params in weights.items():
        assert rows[name]["held_out"]["accuracy"] == accuracy(params, splits["held_out"]), name
        assert rows[name]["test"]["accuracy"] == accuracy(params, splits["test"]), name
        assert rows[name]["shift_mean"]["accuracy"] == accuracy(params, splits["shifts"]["noisy"]), name
    best = max(accuracy(member, splits["held_out"]) for member in members.values())
    assert rows["best member"]["held_out"]["accuracy"] == best
    assert rows["greedy soup"]["held_out"]["accuracy"] >= best
    assert report.load_results(folder) == results  # whole, as the functions of `soups.report` take them
    assert "greedy soup" in (folder / "report.html").read_text()
    assert list(soups.Pool(folder / "soups")) == ["uniform_soup", "greedy_soup", "learned_soup", "ties_density_=_0.3"]


def test_the_same_call_computes_nothing_again(cooked, kit, undrawn):
    folder, results = cooked
    base, members, splits = kit
    before = {path: path.stat().st_mtime_ns for part in ("logits", "soups") for path in (folder / part).rglob("*.npy")}
    again = cook(members, network, workdir=folder, base=base, recipes=RECIPES, **splits)
    after = {path: path.stat().st_mtime_ns for part in ("logits", "soups") for path in (folder / part).rglob("*.npy")}
    assert again["rows"] == results["rows"] and before == after


def test_several_devices_find_what_one_finds(cooked, kit, mesh, tmp_path, undrawn):
    base, members, splits = kit
    results = cook(members, network, workdir=tmp_path, base=base, recipes=["greedy"], mesh=mesh, **splits)
    alone = {row["name"]: row for row in cooked[1]["rows"]}
    for row in results["rows"]:
        found = {split: values["accuracy"] for split, values in row["metrics"].items()}
        assert found == {split: values["accuracy"] for split, values in alone[row["name"]]["metrics"].items()}
    assert results["histories"]["0"]["greedy soup"] == cooked[1]["histories"]["0"]["greedy soup"]


@pytest.mark.parametrize("changed", ["member", "held_out", "network", "base"])
def test_what_changed_under_the_same_name_is_cooked_anew(kit, tmp_path, changed, undrawn):
    base, members, splits = kit
    recipes = ["uniform", "greedy", ("task_arithmetic", {"scale": 0.5})]
    cook(members, network, workdir=tmp_path, base=base, recipes=recipes, **splits)
    if changed == "member":
        members = members | {"m1": jax.tree.map(lambda leaf: -leaf, members["m1"])}
    if changed == "held_out":
        splits = splits | {"held_out": (splits["held_out"][0], (splits["held_out"][1] + 1) % 3)}
    if changed == "base":
        base = jax.tree.map(lambda leaf: 3 * leaf, base)
    other = (lambda params, inputs: network(params, -inputs)) if changed == "network" else network
    found = cook(members, other, workdir=tmp_path, base=base, recipes=recipes, **splits)
    fresh = cook(members, other, workdir=tmp_path / "fresh", base=base, recipes=recipes, **splits)
    assert found["rows"] == fresh["rows"]


@pytest.mark.parametrize("recipe", ["learned", "learned_per_leaf"])
def test_a_learned_soup_goes_on_after_its_last_step_to_the_bit(kit, tmp_path, recipe, undrawn, monkeypatch):
    _, members, splits = kit
    whole = cook(members, network, workdir=tmp_path / "whole", recipes=[recipe], **splits)
    taken, real = [], kitchen.counted

    def cut(batches, *rest):
        for number, batch in enumerate(real(batches, *rest)):
            if number == 3 and len(taken) == 3:
                raise KeyboardInterrupt
            taken.append(number)
            yield batch

    monkeypatch.setattr(kitchen, "counted", cut)
    with pytest.raises(KeyboardInterrupt):
        cook(members, network, workdir=tmp_path / "killed", recipes=[recipe], **splits)
    (journal,) = (tmp_path / "killed" / "journals").glob("learned_soup*.jsonl")
    assert len(json.loads(journal.read_text().splitlines()[-1])["losses"]) == 3
    again = cook(members, network, workdir=tmp_path / "killed", recipes=[recipe], **splits)
    assert again["rows"] == whole["rows"] and again["histories"] == whole["histories"]


def test_a_pool_without_shifts_or_base_leaves_out_what_is_not_finite(kit, tmp_path, undrawn):
    _, members, splits = kit
    pool = soups.Pool(tmp_path / "pool")
    for name, member in members.items():
        pool.add(name, member)
    pool.add("broken", jax.tree.map(lambda leaf: leaf * np.nan, members["m0"]))
    pool.add("too large", jax.tree.map(lambda leaf: np.full_like(leaf, 3e38), members["m0"]))
    results = cook(pool, network, workdir=tmp_path, held_out=splits["held_out"], test=splits["test"])
    assert [row["name"] for row in results["rows"] if row["group"] == "member"] == list(members)
    assert [member["status"] for member in results["members"]["0"]] == ["ok"] * 4 + ["non-finite", "outputs not finite"]
    left = "left out of every soup, because weights or outputs are not finite: broken, too large"
    assert results["notes"] == [left]
    assert pool.metrics("m0")["test"] == accuracy(members["m0"], splits["test"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipes": ["unifrom"]}, "unknown recipe 'unifrom'.*did you mean 'uniform'"),
        ({"recipes": ["ties", "wise_ft"], "base": None}, "ties needs a base, base= .*\nwise_ft needs a base"),
        ({"recipes": [("ties", {"densty": 0.5})]}, "ties has no setting 'densty'.*did you mean 'density'"),
        ({"recipes": ["uniform", "uniform"]}, "'uniform' is asked for twice"),
        ({"recipes": [("learned", {"epoch": 5})]}, "learned has no setting 'epoch'.*did you mean 'epochs'"),
        ({"recipes": [("learned", {"epochs": 0})]}, "learned: epochs must be above 0, not 0"),
        ({"recipes": [("learned", {"batch_size": 1.5})]}, "learned: batch_size must be a whole number, not 1.5"),
        ({"recipes": [("greedy", {"order": 5})]}, "greedy has no settings: give its name alone"),
        ({"recipes": [("wise_ft", {})], "base": None}, "wise_ft needs a base"),
        ({"recipes": {"mean": "uniform", "average": "uniform"}}, "'average' is asked for twice"),
        *[
            ({"recipes": {title: ("ties", {})}}, f"a recipe cannot be called '{title}', the name of another row")
            for title in ("best member", "base", "uniform soup", "ensemble", "learned soup", "WiSE-FT, α = 0.5")
        ],
        *[({"recipes": {title: "ties"}}, "titles of recipes must be printable text") for title in ("", " ", "a\nb")],
        ({"recipes": {"a b": "ties", "a_b": lambda members: 0}}, "'a b' and 'a_b' would have one name in the pool"),
        ({"recipes": [lambda: 0]}, r"lambda is called as lambda\(members\), but takes \(\): too many"),
        ({"metrics": {"accuracy", "nll"}}, "metrics must be a list of names, or a mapping .*, not {"),
        ({"recipes": [3]}, "unknown recipe 3: a recipe is a name"),
        ({"recipes": 3}, "recipes must be a list of names, .* not 3"),
        ({"seed": 1.5}, "seed must be a whole number, not 1.5"),
        ({"seed": -1}, r"seed must be in \[0, 4294967295\], not -1"),
        ({"batch_size": "8"}, "batch_size must be a whole number, not '8'"),
        ({"shifts": {3: (np.zeros((2, 10)), [0, 1])}}, "names of members and shifts must be printable text, not 3"),
        ({"shifts": "far"}, "shifts must be a mapping from names to test sets, not a str"),
        ({"recipes": []}, "no recipes were asked for"),
        ({"shifts": {"test": (np.zeros((2, 10)), [0, 1])}}, "a shift cannot be called 'test'"),
        ({"test": np.zeros(3)}, r"test must be a pair \(inputs, labels\), .*, not a ndarray"),
        ({"recipes": "unifrom"}, "unknown recipe 'unifrom'.*did you mean 'uniform'"),
        ({"recipes": [("ties", {"density": 5})]}, r"ties: density must be in \(0, 1\], not 5"),
        ({"recipes": ["fisher"]}, r"fisher takes more than members: call it in a function\(members\)"),
        ({"base": {"kernel": KERNEL}}, "structure from the members .*:\n.*the base: bias is missing"),
        ({"base": {"kernel": np.full_like(KERNEL, np.nan), "bias": np.zeros(3, np.float32)}}, "base: kernel"),
        ({"test": (np.zeros((0, 10)), np.zeros(0, int))}, "test: the dataset cannot be evaluated: it has no examples"),
        ({"held_out": (NOT_FINITE, np.zeros(8, int))}, "held_out: inputs hold NaN or infinity, first in example 5"),
        ({"test": (NOT_FINITE, np.zeros(8, int))}, "test: inputs hold NaN or infinity, first in example 5"),
        ({"shifts": {"far": (NOT_FINITE, np.zeros(8, int))}}, "far: inputs hold NaN or infinity, first in example 5"),
        ({"held_out": (np.zeros((64, 10)), np.zeros(5, int))}, "held_out: the dataset .*: 64 images have 5 labels"),
        ({"shifts": {"far": (np.zeros((2, 10)), ["a", "b"])}}, "far: labels must be integers"),
        ({"test": (np.zeros((2, 10)), np.zeros((2, 1)))}, r"test: labels .*float64 of shape \(2, 1\); .*metrics="),
    ],
)
def test_what_users_do_wrong_is_one_clear_error_before_anything_is_measured(kit, tmp_path, changes, message):
    base, members, splits = kit
    with pytest.raises(ValueError, match=message):
        cook(members, network, workdir=tmp_path / "run", **{"base": base, **splits, **changes})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            lambda members: {"m0": members["m0"]},
            "two members whose weights and outputs are finite, but only 1 of 1 are",
        ),
        (lambda members: [members["m0"], {"kernel": members["m0"]["kernel"]}], "member 1: bias is missing"),
        (
            lambda members: {"m0": members["m0"], "m1": {n: x.astype(np.float16) for n, x in members["m1"].items()}},
            "member m1: .* has dtype float16 instead of float32",
        ),
        (lambda members: {}, "no members were given"),
        (lambda members: {1: members["m0"], 2: members["m1"]}, "names of members .* must be printable text, not 1"),
        (lambda members: {"a\ud800": members["m0"]}, "printable text, not 'a.ud800'"),
        (lambda members: members["m0"], "members must be trees, but .* are arrays"),
    ],
)
def test_members_that_do_not_fit_are_named(kit, tmp_path, members, message):
    base, trees, splits = kit
    with pytest.raises(ValueError, match=message):
        cook(members(trees), network, workdir=tmp_path, base=base, **splits)


def test_a_pool_that_is_not_there_is_named(kit, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there is no pool at {tmp_path / 'nopool'}"):
        cook(soups.Pool(tmp_path / "nopool"), network, workdir=tmp_path, **kit[2])


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("run/soups", "the workdir .*soups is a pool: choose another workdir"),
        ("run", "the pool of the members is where soups would be kept, .*soups: choose another workdir"),
    ],
)
def test_a_workdir_that_would_be_the_members_pool_is_refused(kit, tmp_path, workdir, message):
    pool = soups.Pool(tmp_path / "run" / "soups")
    for name, member in kit[1].items():
        pool.add(name, member)
    with pytest.raises(ValueError, match=message):
        cook(pool, network, workdir=tmp_path / workdir, **kit[2])
    assert list(soups.Pool(pool.path)) == [*kit[1]] and not pool.metrics("m0")


@pytest.mark.parametrize(
    ("apply_fn", "message"),
    [
        (None, "apply_fn must be a function .*, not a NoneType"),
        (lambda params: params, "held_out: apply_fn is called as .*positional argument"),
        (lambda params, inputs: inputs @ params["kernel"].T, "apply_fn on an input of held_out failed: .*TypeError"),
        (lambda params, inputs: (inputs, inputs), r"apply_fn must give logits \[B, C\], not a tuple"),
        (
            lambda params, inputs: network(params, inputs)[:, :2],
            "held_out: the network gives 2 .* labels need at least 3",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_named(kit, tmp_path, apply_fn, message):
    _, members, splits = kit
    with pytest.raises(ValueError, match=message):
        cook(members, apply_fn, workdir=tmp_path, **splits)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (lambda members: None, "recipe 'mine' failed: .*must return weights or a soups.Soup, not a NoneType"),
        (lambda: None, r"mine is called as mine\(members\), but takes \(\)"),
        (lambda members: {"kernel": members["m0"]["kernel"]}, "its weights: bias is missing"),
    ],
)
def test_a_function_that_makes_no_soup_is_named(kit, tmp_path, recipe, message):
    _, members, splits = kit
    with pytest.raises(ValueError, match=message):
        cook(members, network, workdir=tmp_path, recipes={"mine": recipe}, **splits)


def test_one_recipe_needs_no_list(kit, tmp_path, undrawn):
    _, members, splits = kit
    found = [
        [row["name"] for row in cook(members, network, workdir=tmp_path, recipes=one, **splits)["rows"]]
        for one in ("uniform", ["uniform"])
    ]
    assert found[0] == found[1] and "uniform soup" in found[0]


def test_learned_soups_take_settings(kit, tmp_path, undrawn):
    _, members, splits = kit
    recipes = [("learned", {"epochs": 2, "batch_size": 30}), ("learned_per_leaf", {"learning_rate": 0.1})]
    found = cook(members, network, workdir=tmp_path, recipes=recipes, **splits)["histories"]["0"]
    titles = ["learned, epochs = 2, batch_size = 30", "learned_per_leaf, learning_rate = 0.1"]
    assert {title: len(found[title]) for title in titles} == dict(zip(titles, [6, 5], strict=True))
    record = soups.Pool(tmp_path / "soups").record("learned_epochs_=_2_batch_size_=_30")["metadata"]
    assert record["origin"]["settings"].items() >= {"epochs": 2, "batch_size": 30, "learning_rate": 0.05}.items()


def test_examples_that_choose_and_judge_are_named(kit, tmp_path, undrawn, capsys):
    _, members, splits = kit
    inputs, labels = splits["held_out"]
    mixed = np.concatenate([splits["test"][0], inputs[:30]]), np.concatenate([splits["test"][1], labels[:30]])
    noisy = inputs[:5], (labels[:5] + 1) % 3  # with other labels they are others
    shifts = {"night": (inputs[3:5], labels[3:5]), "noisy": noisy}
    options = {"workdir": tmp_path, "recipes": ["uniform"], "held_out": splits["held_out"]}
    results = cook(members, network, test=mixed, shifts=shifts, **options)
    said = "examples of {} are also in held_out, which chooses the soups: the scores on {} are inflated by that"
    notes = [f"30 of 150 {said.format('test', 'test')}", f"2 of 2 {said.format('night', 'night')}"]
    assert results["notes"] == notes == report.load_results(tmp_path)["notes"]
    assert "\n".join(notes) in capsys.readouterr().out.partition("soups · ")[0]  # before the work
    for given in ({"test": (inputs[::-1], labels[::-1])}, {"test": mixed, "shifts": {"test2": (inputs, labels)}}):
        with pytest.raises(ValueError, match=r"test2? has the very examples of held_out: .*split_indices"):
            cook(members, network, **options | given)


def test_a_member_that_spoils_the_soup_is_named(kit, tmp_path, undrawn):
    _, members, splits = kit
    far = {"kernel": -30 * members["m0"]["kernel"], "bias": members["m0"]["bias"]}
    results = cook(members | {"far": far}, network, workdir=tmp_path, recipes=["uniform"], **splits)
    (note,) = results["notes"]
    assert note.startswith(
        "worse than the mean member on held-out data: uniform soup; soups.diagnose would leave out far: "
    )
    assert "; m" not in note
    assert cook(members, network, workdir=tmp_path / "fine", recipes=["uniform"], **splits)["notes"] == []


@pytest.mark.parametrize("given", [{"test": "pixels"}, {"shifts": {"night": "pixels"}}])
def test_images_of_floats_up_to_255_are_an_error(kit, tmp_path, given):
    images = np.random.default_rng(0).uniform(0, 255, (8, 4, 4, 1)).astype(np.float32)
    fine, labels = {"held_out": (images / 255, np.arange(8) % 2)}, np.arange(8) % 2
    fine["test"] = images[::-1] / 255, labels
    wrong = {name: (images, labels) if one == "pixels" else {"night": (images, labels)} for name, one in given.items()}
    members = {name: {"kernel": np.full((16, 2), seed, np.float32)} for seed, name in enumerate("ab")}
    with pytest.raises(ValueError, match=r"(test|night): images are floats up to 255, .* or give a preprocess"):
        cook(members, lambda p, x: x.reshape(len(x), -1) @ p["kernel"], workdir=tmp_path, **fine | wrong)


def test_members_that_count_twice_and_a_base_among_them_are_named(kit, tmp_path, undrawn, capsys):
    base, members, splits = kit
    pool = soups.Pool(tmp_path / "pool")
    for name, member in {"start": base, "copy": members["m0"], **members}.items():
        pool.add(name, member, base=None if name == "start" else "start")
    notes = ["members with the same weights, each of which counts: copy, m0", "the base counts as a member: start"]
    results = cook(pool, network, workdir=tmp_path / "a", recipes=["uniform"], **splits)
    assert results["notes"] == notes and capsys.readouterr().out.count(notes[0]) == 2  # first, and below the table
    given = members | {"copy": members["m0"], "start": base}
    notes[0] = notes[0].replace("copy, m0", "m0, copy")
    assert cook(given, network, workdir=tmp_path / "b", base=base, recipes=["uniform"], **splits)["notes"] == notes
