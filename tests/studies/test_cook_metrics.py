"""What is cooked need not be classes: numbers, several labels, any metric; and networks with BatchNorm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soups
from soups.evaluate import Metric, mae, mean_average_precision, mse
from soups.recipes.declare import METHODS
from soups.studies import cook


def line(params, inputs):
    """Return one number for each example, of inputs that are a mapping."""
    return inputs["x"] @ params["kernel"] + params["bias"][None]


def squares(outputs, targets):
    """Return the mean squared error of a batch."""
    return jnp.square(outputs[:, 0] - targets).mean()


@pytest.fixture(scope="module")
def numbers():
    """Return base, members and splits of a noisy problem whose targets are numbers."""
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(6, 1)).astype(np.float32)
    base = {"kernel": 0.3 * kernel, "bias": np.zeros(1, np.float32)}

    def split(number):
        inputs = rng.normal(size=(number, 6)).astype(np.float32)
        return {"x": inputs}, (inputs @ kernel)[:, 0] + 0.1 * rng.normal(size=number).astype(np.float32)

    def around():
        return {"kernel": kernel + 0.5 * rng.normal(size=(6, 1)).astype(np.float32), "bias": base["bias"]}

    members = {f"m{index}": around() for index in range(4)}
    return base, members, {"held_out": split(60), "test": split(80), "shifts": {"other": split(40)}}


def error(params, split, metric=mse):
    inputs, targets = split
    return metric(inputs["x"].astype(np.float64) @ params["kernel"].astype(np.float64) + params["bias"], targets)


def test_soups_of_a_regression_are_chosen_by_the_least_error_and_reported(numbers, tmp_path, monkeypatch):
    base, members, splits = numbers
    options = {"base": base, "metrics": ["mse", "r2"], "loss": squares, **splits}
    results = cook(members, line, workdir=tmp_path, **options)
    rows = {row["name"]: row for row in results["rows"] if row["group"] != "curve"}
    errors = {name: error(member, splits["held_out"]) for name, member in members.items()}
    for name, member in members.items():
        for split in ("held_out", "test"):
            np.testing.assert_allclose(rows[name]["metrics"][split]["mse"], error(member, splits[split]), rtol=1e-5)
    assert results["metric"] == "mse" and not results["metrics"] and not results["curves"]
    for name, best in (("best member", min(errors, key=errors.get)), ("worst member", max(errors, key=errors.get))):
        assert rows[name]["ingredients"] == {best: 1.0}
    scores = [step["score"] for step in results["histories"]["0"]["greedy soup"] if step["accepted"]]
    assert scores[0] == rows["best member"]["metrics"]["held_out"]["mse"] and scores == sorted(scores, reverse=True)
    assert rows["greedy soup"]["metrics"]["held_out"]["mse"] == min(scores)
    path = [row["metrics"]["held_out"]["mse"] for row in results["rows"] if "alpha" in row.get("of", {})]
    assert rows["WiSE-FT, α by held-out"]["metrics"]["held_out"]["mse"] == min(path)
    uniform = error({k: np.mean([m[k] for m in members.values()], axis=0) for k in base}, splits["held_out"])
    np.testing.assert_allclose(rows["uniform soup"]["metrics"]["held_out"]["mse"], uniform, rtol=1e-5)
    # of a linear network the ensemble is the uniform soup
    np.testing.assert_allclose(rows["ensemble"]["metrics"]["held_out"]["mse"], uniform, rtol=1e-4)
    assert rows["learned soup"]["metrics"]["held_out"]["mse"] < uniform and rows["learned soup"]["temperature"] == 1
    assert not any("wins" in row or "classes" in row for row in results["rows"])
    assert "held-out MSE" in (tmp_path / "report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    monkeypatch.setattr("soups.report.write_report", lambda directory: [])
    again = cook(members, line, workdir=tmp_path, **options)
    assert again["rows"] == results["rows"] and before == {path: path.stat().st_mtime_ns for path in before}


def far_off(limit):
    return Metric(lambda outputs, targets: (np.abs(outputs[:, 0] - targets) > limit).mean(), "min")


@pytest.mark.parametrize("changed", [(far_off(0.5), far_off(1.5)), (Metric(mse, "max"), Metric(mse, "min"))])
def test_another_metric_of_the_same_name_chooses_anew(numbers, tmp_path, undrawn, changed):
    _, members, splits = numbers
    for place, own in enumerate(changed):
        options = {"metrics": {"far off": own, "mae": mae}, "recipes": ["greedy", "ensemble"], **splits}
        found = cook(members, line, workdir=tmp_path, **options)
        fresh = cook(members, line, workdir=tmp_path / str(place), **options)
        assert found["rows"] == fresh["rows"] and found["histories"] == fresh["histories"]
        better = {"max": "higher", "min": "lower"}[own.mode]
        assert found["metrics"] == {"far off": {"title": "far off", "better": better}}


def strict(outputs, targets):
    """Return an error of numbers above 0 alone, as scikit-learn measures logarithms."""
    if not (np.isfinite(outputs).all() and (outputs > 0).all()):
        raise ValueError("outputs must be positive")
    return np.abs(np.log(outputs[:, 0]) - targets).mean()


@pytest.mark.parametrize("own", [strict, lambda outputs, targets: outputs[:, 0].argmax() / 1000])
def test_a_metric_of_a_users_own_gets_what_the_network_gives_and_never_nan(numbers, tmp_path, undrawn, own):
    _, members, splits = numbers
    with_broken = members | {"steep": {"kernel": np.full((6, 1), 3e38, np.float32), "bias": np.zeros(1, np.float32)}}
    options = {"metrics": {"mine": Metric(own, "min")}, "recipes": ["greedy", "ensemble"], **splits}
    found = cook(with_broken, lambda params, x: jnp.exp(line(params, x)), workdir=tmp_path, **options)
    assert [member["status"] for member in found["members"]["0"]] == ["ok"] * 4 + ["outputs not finite"]
    assert "steep" not in found["rows"][0]["ingredients"]
    if own is strict:
        with pytest.raises(ValueError, match=r"metric 'mine' on held_out failed: .*outputs must be positive"):
            cook(members, line, workdir=tmp_path / "other", **options)


def test_what_no_report_can_show_is_none_and_does_not_end_the_run(numbers, tmp_path, undrawn):
    _, members, splits = numbers
    far = members | {"far": jax.tree.map(lambda leaf: leaf * np.float32(1e20), members["m0"])}
    same_sign = Metric(lambda outputs, targets: ((outputs[:, 0] > 0) == (targets > 0)).mean(), "max")
    found = cook(far, line, workdir=tmp_path, metrics={"sign": same_sign, "mse": mse}, recipes=["uniform"], **splits)
    rows = {row["name"]: row["metrics"]["test"]["mse"] for row in found["rows"]}
    assert rows["far"] is None and rows["uniform soup"] is None
    assert rows["m0"] == pytest.approx(error(members["m0"], splits["test"]), rel=1e-5)
    found = cook(far, line, workdir=tmp_path, metrics=["mse"], recipes=["uniform"], **splits)
    assert [row["name"] for row in found["rows"] if row["group"] == "member"] == list(members)


def test_a_pool_keeps_its_accuracy_beside_another_metric(numbers, tmp_path, undrawn):
    _, members, splits = numbers
    pool = soups.Pool(tmp_path / "pool")
    for name, member in members.items():
        pool.add(name, member, metrics={"held_out": 0.5, "test": 0.25})
    cook(pool, line, workdir=tmp_path / "run", metrics=["mse"], recipes=["uniform"], **splits)
    known = pool.metrics("m1")
    assert (known["held_out"], known["test"]) == (0.5, 0.25)
    assert known["held_out mse"] == pytest.approx(error(members["m1"], splits["held_out"]), rel=1e-5)


def test_integers_have_no_ensemble(numbers, tmp_path, undrawn):
    _, members, splits = numbers

    def sides(params, inputs):
        return (line(params, inputs)[:, 0] > 0).astype(jnp.int32)

    splits = {name: (splits[name][0], (splits[name][1] > 0).astype(np.int32)) for name in ("held_out", "test")}
    found = cook(members, sides, workdir=tmp_path, metrics=["exact_match", "f1"], **splits)
    titles = {row["name"] for row in found["rows"]}
    assert "greedy soup" in titles and not [title for title in titles if "ensemble" in title]
    with pytest.raises(ValueError, match="ensemble needs outputs that are floats"):
        cook(members, sides, workdir=tmp_path, metrics=["exact_match"], recipes=["ensemble"], **splits)


def test_several_labels_are_measured_by_average_precision(tmp_path, undrawn):
    rng = np.random.default_rng(2)
    kernel = rng.normal(size=(6, 4)).astype(np.float32)
    members = [{"kernel": kernel + rng.normal(size=kernel.shape).astype(np.float32)} for _ in range(3)]
    splits = {}
    for name in ("held_out", "test"):
        inputs = rng.normal(size=(50, 6)).astype(np.float32)
        splits[name] = inputs, (inputs @ kernel > 0.5).astype(np.int32)
    options = {"metrics": ["map", "micro_f1"], **splits}
    results = cook(members, lambda params, x: x @ params["kernel"], workdir=tmp_path, **options)
    rows = {row["name"]: row["metrics"]["test"]["map"] for row in results["rows"] if row["group"] == "member"}
    for name, member in enumerate(members):
        wanted = mean_average_precision(splits["test"][0] @ member["kernel"], splits["test"][1])
        np.testing.assert_allclose(rows[str(name)], wanted, rtol=1e-12)
    assert "learned soup" not in {row["name"] for row in results["rows"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": None}, "held_out: labels must be integers .*; give metrics= for targets that are not classes"),
        ({"metrics": ["msee"]}, "unknown metric 'msee'.*did you mean 'mse'"),
        ({"metrics": {"mine": lambda outputs, targets: 0.0}}, "a higher or a lower 'mine' is better"),
        (
            {"metrics": {"mine": Metric(lambda outputs: 0.0, "min")}},
            r"metrics\['mine'\] is called as .*\(outputs, targets\)",
        ),
        ({"metrics": ["map"]}, "metric 'map' on held_out failed: .*targets of several labels"),
        ({"recipes": ["learned"]}, r"learned needs loss=, a function \(outputs, targets\), for other metrics"),
        ({"loss": lambda outputs: 0.0}, r"loss is called as loss\(outputs, targets\)"),
        (
            {"loss": lambda outputs, targets: outputs[:, 0] - targets},
            "loss failed: .*must return one float, .* not float32",
        ),
        ({"reestimate": 3}, r"reestimate must be a function reestimate\(params\), not a int"),
    ],
)
def test_what_does_not_fit_is_one_clear_error_before_anything_is_measured(numbers, tmp_path, changes, message):
    base, members, splits = numbers
    with pytest.raises(ValueError, match=message):
        cook(members, line, workdir=tmp_path / "run", **{"base": base, "metrics": ["mse"], **splits, **changes})
    assert not (tmp_path / "run").exists()


# --- Settings of members ----------------------------------------------------------------------------------------------

PER_MEMBER = [
    (name, key) for name, method in METHODS.items() for key in method.per_member if not (method.beside or method.single)
]


@pytest.mark.parametrize(("name", "key"), PER_MEMBER)
@pytest.mark.parametrize("values", [[1.0, 1.0], {"m0": 1.0, "m9": 1.0}])
def test_settings_that_do_not_fit_the_members_are_told_before_all_work(numbers, tmp_path, name, key, values):
    base, members, splits = numbers
    options = {"base": base, "metrics": ["mse"], "recipes": [(name, {key: values})], **splits}
    with pytest.raises(
        ValueError, match=f"{name}: ({key} must be given by the names|4 members need 4 values of {key})"
    ):
        cook(members, line, workdir=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_settings_of_members_that_are_left_out_are_left_out(numbers, tmp_path, undrawn):
    base, members, splits = numbers
    with_broken = {"broken": jax.tree.map(lambda leaf: leaf * np.nan, members["m0"])} | members
    recipes = {"in order": ("linear", {"weights": [9.0, 1.0, 2.0, 3.0, 4.0]})}
    names = ["broken", "m0", "m1", "m2", "m3"]
    recipes["by name"] = "linear", {"weights": dict(zip(names, [9.0, 1.0, 2.0, 3.0, 4.0], strict=True))}
    cook(with_broken, line, workdir=tmp_path, base=base, metrics=["mse"], recipes=recipes, **splits)
    for name in ("in_order", "by_name"):
        wanted = np.average([m["kernel"].astype(np.float64) for m in members.values()], axis=0, weights=[1, 2, 3, 4])
        np.testing.assert_allclose(soups.Pool(tmp_path / "soups")[name]["kernel"], wanted, rtol=1e-5)


# --- BatchNorm --------------------------------------------------------------------------------------------------------


def normed(params, inputs):
    """Return the logits of a network whose inputs are normalised by statistics that it holds."""
    stats = params["batch_stats"]
    hidden = inputs @ params["params"]["kernel"]
    return (hidden - stats["mean"][None]) * params["params"]["scale"][None] / jnp.sqrt(stats["var"] + 1e-3)[None]


def test_every_soup_gets_statistics_of_its_own_and_other_data_makes_it_anew(tmp_path, undrawn):
    rng = np.random.default_rng(3)
    kernel = rng.normal(size=(5, 3)).astype(np.float32)
    inputs = rng.normal(size=(90, 5)).astype(np.float32)
    labels = (inputs @ kernel).argmax(1)

    def measuring(data):
        def reestimate(params):
            hidden = data @ params["params"]["kernel"]
            return {**params, "batch_stats": {"mean": hidden.mean(0), "var": hidden.var(0)}}

        return reestimate

    def member(_):
        own = kernel + 0.8 * rng.normal(size=kernel.shape).astype(np.float32)
        return measuring(inputs)({"params": {"kernel": own, "scale": np.ones(3, np.float32)}, "batch_stats": {}})

    members = {f"m{index}": member(index) for index in range(3)}
    recipes = ["uniform", "greedy", ("linear", {"weights": [1.0, 2.0, 3.0]}), lambda m: soups.uniform(m)]
    recipes = {"uniform": "uniform", "greedy": "greedy", "linear": recipes[2], "own": recipes[3]}
    for part in (inputs[:40], inputs[40:]):  # in one folder: what was kept of other statistics is not believed
        options = {"held_out": (inputs, labels), "test": (inputs[:60], labels[:60]), "recipes": recipes}
        found = cook(members, normed, workdir=tmp_path, reestimate=measuring(part), **options)
        kept = soups.Pool(tmp_path / "soups")
        for name in ("uniform_soup", "greedy_soup", "linear"):
            hidden = part @ kept[name]["params"]["kernel"]
            np.testing.assert_allclose(kept[name]["batch_stats"]["mean"], hidden.mean(0), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(kept[name]["batch_stats"]["var"], hidden.var(0), rtol=1e-5)
        rows = {row["name"]: row["metrics"] for row in found["rows"] if row["group"] == "main"}
        assert rows["own"] == rows["uniform soup"]


@pytest.mark.parametrize(
    ("reestimate", "message"),
    [
        (lambda params: params["batch_stats"], ".*KeyError: 'batch_stats'"),
        (lambda params: {"kernel": params["kernel"]}, "(?s:.*)its weights: bias is missing"),
        (lambda params: {**params, "bias": params["kernel"]}, r"(?s:.*)its weights: bias has shape \(6, 1\)"),
        (lambda params: None, "(?s:.*)its weights"),
    ],
)
def test_a_reestimate_that_fails_is_named(tmp_path, numbers, reestimate, message):
    _, members, splits = numbers
    with pytest.raises(ValueError, match="reestimate failed: " + message):
        cook(members, line, workdir=tmp_path, metrics=["mse"], reestimate=reestimate, **splits)


# --- Tokens -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens():
    """Return a network of 3 x 7 logits an example, its members, and splits some of whose targets do not count."""
    rng = np.random.default_rng(3)

    def split(number):
        targets = np.where(rng.random((number, 3)) < 0.2, -100, rng.integers(0, 7, (number, 3)))
        return rng.normal(size=(number, 3, 4)).astype(np.float32), targets

    members = {f"m{index}": {"kernel": rng.normal(size=(4, 7)).astype(np.float32)} for index in range(3)}
    return lambda params, inputs: inputs @ params["kernel"], members, {"held_out": split(40), "test": split(50)}


TOKENS = ["token_nll", "token_accuracy"]


def test_of_tokens_a_part_of_the_outputs_is_kept_and_the_rows_are_the_same(tokens, tmp_path, undrawn):
    network, members, splits = tokens
    options = {"metrics": TOKENS, "batch_size": 20, **splits}
    whole = cook(members, network, workdir=tmp_path / "whole", **options)
    part = cook(members, network, workdir=tmp_path / "part", keep=soups.evaluate.token_scores, **options)
    expected = {r["name"] + str(r.get("of")): r for r in whole["rows"] if "ensemble" not in r["name"]}
    found = {row["name"] + str(row.get("of")): row for row in part["rows"]}
    assert found.keys() == expected.keys() and len(expected) < len(whole["rows"])
    for name, row in found.items():
        assert row["ingredients"] == expected[name]["ingredients"]
        for split in ("held_out", "test"):
            for metric in TOKENS:
                wanted = expected[name]["metrics"][split][metric]
                np.testing.assert_allclose(row["metrics"][split][metric], wanted, rtol=1e-5)
    kept = [np.load(path, allow_pickle=False) for path in (tmp_path / "part" / "logits").iterdir()]
    assert kept and {leaf.shape for one in kept for leaf in one.values()} == {(40, 3), (50, 3)}
    again = cook(members, network, workdir=tmp_path / "part", keep=soups.evaluate.token_scores, **options)
    assert again["rows"] == part["rows"]


def test_a_part_of_the_outputs_of_one_member_that_is_not_finite_leaves_it_out(tokens, tmp_path, undrawn):
    network, members, splits = tokens
    broken = {"kernel": np.full((4, 7), 3e38, np.float32)}
    options = {"metrics": TOKENS, "recipes": "uniform", "keep": soups.evaluate.token_scores, **splits}
    results = cook(members | {"broken": broken}, network, workdir=tmp_path, **options)
    assert [one["status"] for one in results["members"]["0"]] == ["ok"] * 3 + ["outputs not finite"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipes": ["uniform", "ensemble"]}, "ensemble needs outputs without keep="),
        ({"keep": lambda outputs: outputs}, r"keep is called as keep\(outputs, targets\)"),
        ({"keep": lambda outputs, targets: outputs[..., :2] @ targets}, "keep on outputs and targets of held_out"),
        ({"keep": lambda outputs, targets: outputs.argmax(-1)}, "metric 'token_nll' on held_out failed: .*need logits"),
        ({"metrics": None}, "metrics of classes need whole logits .* leave out keep="),
    ],
)
def test_a_part_that_does_not_fit_is_an_error_before_anything_is_measured(tokens, tmp_path, changes, message):
    network, members, splits = tokens
    options = {"metrics": TOKENS, "keep": soups.evaluate.token_scores, **splits, **changes}
    with pytest.raises(ValueError, match=message):
        cook(members, network, workdir=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
