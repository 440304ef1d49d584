"""Run the study of merging encoders of many tasks, small, with both kinds of heads; run it wrongly."""

import jax
import numpy as np
import pytest
from small_texts import ENCODERS, MARKS, small_config, write_tasks

from soups import Pool, models
from soups.models.many_heads import split_head
from soups.models.prompts import word_head
from soups.models.text_tokenizer import text_tokenizer
from soups.report import load_results
from soups.studies import localize_and_stitch
from soups.studies.text_tasks import TRAINED

METHODS = {
    "uniform": {},
    "ties": {"density": [0.2], "scale": [1.0]},
    "regmean": {"alpha": [0.9]},
    "adamerging_per_leaf": {"steps": [2], "learning_rate": [1e-2], "initial": [0.3]},
    "localize_dataless": {"density": [0.1]},
    "localize_and_stitch": {"density": [0.1], "epochs": [1], "learning_rate": [1e5], "l1_strength": [1.0]},
    "emr": {},
}
PROMPTS = {
    task: {"template": "{first} it was{mask}.", "words": {mark: mark for mark in marks}}
    for task, marks in MARKS.items()
}


def small(data_dir, heads="linear", **changes):
    config = small_config("localize_and_stitch", data_dir, heads)
    config["joint"] = {"learning_rates": [1e-2], "batch_size": 2}
    config["examples"] = {"few": 6, "batch_size": 3}
    config["methods"] = METHODS
    if heads == "prompts":
        config["prompts"], config["only"] = PROMPTS, ["uniform", "localize_and_stitch"]
        config["finetune"]["head_rate"] = 0.0
    return config | changes


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Return a folder with the tasks and encoders."""
    return write_tasks(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """Return a finished run with linear heads."""
    workdir = tmp_path_factory.mktemp("run") / "linear"
    localize_and_stitch.run(small(data_dir), workdir)
    return workdir


def rows_of(workdir):
    return {row["name"]: row for row in load_results(workdir)["rows"]}


def test_rows_are_baselines_and_methods_and_claims_compare_them(finished):
    rows, results = rows_of(finished), load_results(finished)
    assert list(rows)[:4] == [
        "base with the members' heads",
        "linear probes of the base",
        "individual members",
        "multi-task learning",
    ]
    assert list(rows)[4:] == [
        *("uniform soup", "TIES", "RegMean", "AdaMerging, layer-wise"),
        *("Localize-and-Stitch, dataless", "Localize-and-Stitch", "EMR"),
    ]
    test = {name: row["metrics"]["test"]["accuracy"] for name, row in rows.items()}
    held_out = {name: row["metrics"]["held_out"]["accuracy"] for name, row in rows.items()}
    claims = {claim["title"]: claim["value"] for claim in results["claims"]}
    title = "Localize-and-Stitch > multi-task learning"
    assert claims[title] == pytest.approx(test["Localize-and-Stitch"] - test["multi-task learning"])
    best = max((name for name in list(rows)[4:-1]), key=held_out.get)
    found = claims["the merge that is best on held-out data > multi-task learning"]
    assert found == pytest.approx(test[best] - test["multi-task learning"])
    assert results["facts"]["Tasks"]["sizes"] == {
        "classes": ["big", "equal", "small"],
        "train": 30,
        "over-long texts": 0,
    }


def test_only_the_trunk_is_kept_and_a_merge_follows_from_it(finished, data_dir):
    pool, merged = Pool(finished / "pool"), Pool(finished / "merged")
    members = [pool[f"seed0_{task}"] for task in MARKS]
    assert set(members[0]) == {"Transformer", "head"}
    means = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *(split_head(one)[0] for one in members))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), merged["seed0_uniform"], means)
    arch = models.encoder_of(data_dir / "linear", pool_type="mean")
    params = models.import_weights(data_dir / "linear", arch)
    sizes = sum(leaf.size for name in TRAINED if name in params for leaf in jax.tree.leaves(params[name]))
    assert load_results(finished)["facts"]["Trunk"] == {"parameters": sizes, "bytes": 4 * sizes}


def test_a_row_is_what_the_whole_network_gives(finished, data_dir):
    arch = models.encoder_of(data_dir / "linear", pool_type="mean")
    params = models.import_weights(data_dir / "linear", arch)
    trunk, pool = Pool(finished / "merged")["seed0_uniform"], Pool(finished / "pool")
    tokenize = text_tokenizer(data_dir / "linear", arch, length=8)
    lines = [line.split("\t") for line in (data_dir / "films" / "test.tsv").read_text().splitlines()]
    order = np.random.default_rng(0).permutation(24)[:20]
    inputs = tokenize([lines[row][0] for row in order])
    labels = np.array([("bad", "good").index(lines[row][1]) for row in order])
    head = {name: leaf[..., :2] for name, leaf in pool["seed0_films"]["head"].items()}
    logits = jax.jit(arch.apply_fn(2))({**params, **trunk, "head": head}, inputs)
    accuracy = rows_of(finished)["uniform soup"]["metrics"]["films"]["accuracy"]
    assert accuracy == pytest.approx(np.mean(np.argmax(logits, 1) == labels))


def test_multi_task_learning_costs_what_the_members_cost(finished):
    rows, joint = rows_of(finished), Pool(finished / "joint")
    # 4 steps of 6 examples for each of 3 tasks, and 12 steps of 2 for each of 3 tasks
    assert joint.record("seed0_joint_0")["metadata"]["config"]["steps"] == 12
    labelled = {name: row["cost"]["labelled"] for name, row in rows.items()}
    assert labelled["multi-task learning"] == labelled["individual members"] == 90
    assert labelled["Localize-and-Stitch"] == 18


def test_prompts_are_scored_at_the_mask_by_heads_that_stay(data_dir, tmp_path, undrawn):
    localize_and_stitch.run(small(data_dir, "prompts"), tmp_path / "prompts")
    rows, pool = rows_of(tmp_path / "prompts"), Pool(tmp_path / "prompts" / "pool")
    assert [*rows][4:] == ["uniform soup", "Localize-and-Stitch"]
    arch = models.encoder_of(data_dir / "prompts", mlm=True)
    params = models.import_weights(data_dir / "prompts", arch)
    vocabulary = (data_dir / "prompts" / "vocab.txt").read_text().split("\n")
    expected = word_head(params, [vocabulary.index(word) for word in ("no", "yes")])
    head = pool["seed0_moods"]["head"]
    np.testing.assert_array_equal(head["kernel"][:, :2], expected["kernel"])
    np.testing.assert_array_equal(head["bias"][:2], expected["bias"])
    assert rows["zero-shot prompts"]["metrics"] == rows["base with the members' heads"]["metrics"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["films"]}, "config.tasks must name at least two folders, each once"),
        ({"only": ["tise"]}, "unknown method of config.only 'tise'"),
        ({"heads": "prompt"}, "config.heads 'prompt'"),
        ({"model": {"arch": "roberta-base", "start": None}}, "must say where the weights and the tokenizer of roberta"),
        ({"model": {"arch": "vit-b16"}}, "config.model.arch 'vit-b16' is not an encoder of texts"),
    ],
)
def test_configs_that_cannot_run_are_errors(data_dir, tmp_path, changes, message):
    config = small(data_dir)
    changed = {name: config[name] | one if isinstance(one, dict) else one for name, one in changes.items()}
    with pytest.raises(ValueError, match=message):
        localize_and_stitch.run(config | changed, tmp_path / "run")


def test_tasks_without_prompts_and_heads_that_do_not_fit_the_network_are_errors(data_dir, tmp_path):
    config = small(data_dir, "prompts")
    with pytest.raises(ValueError, match=r"task 'films' has no prompt: give config\.prompts\.films a template"):
        localize_and_stitch.run(config | {"prompts": {}}, tmp_path / "run")
    named = config["model"] | {"arch": "bert-base-uncased-mlm"}
    with pytest.raises(ValueError, match="does not hold the weights"):
        localize_and_stitch.run(config | {"model": named}, tmp_path / "run")
    assert set(ENCODERS) == {"linear", "prompts"}
