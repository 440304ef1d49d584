"""Run the study of soups on tasks of texts, small, as users do, and run it wrongly."""

import importlib.util
import json
import pathlib
import shutil

import numpy as np
import pytest

from soups import Pool
from soups.report import load_results
from soups.studies import glue_soups

ROOT = pathlib.Path(__file__).parents[2]
WEIGHTS = ROOT / "tests" / "models" / "recorded" / "models" / "transformers-MiniLM-minilm-l6"
GOOD, BAD = ["good", "fine", "great"], ["bad", "poor", "dull"]
OTHERS = ["film", "book", "a", "the", "was", "so", "and", "very"]


def lines_of(count, names, rng):
    """Draw lines of a task whose class is that of one of their words."""
    for number in range(count):
        words = rng.choice(OTHERS, rng.integers(1, 5)).tolist()
        words.insert(rng.integers(len(words)), rng.choice([GOOD, BAD][number % 2]))
        yield f"{' '.join(words)} {number}\t{names[number % 2]}"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Return a folder with two tasks and an encoder."""
    folder, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    for task, names in {"cola": "01", "films": ("yes", "no")}.items():
        (folder / task).mkdir()
        for split, count in {"train": 40, "test": 24}.items():
            lines = list(lines_of(count, names, rng))
            if task == "cola":
                lines = [f"x\t{label}\t\t{text}" for text, label in (line.split("\t") for line in lines)]
            name = "dev" if (task, split) == ("cola", "test") else split
            (folder / task / f"{name}.tsv").write_text("\n".join([*lines, ""]))
    shutil.copytree(WEIGHTS, folder / "encoder")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *OTHERS]
    (folder / "encoder" / "vocab.txt").write_text("\n".join([*pieces, ""]))
    (folder / "encoder" / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return folder


def small(data_dir, **changes):
    """Return the config of the study as the command line hands it over, small."""
    spec = importlib.util.spec_from_file_location("glue_soups_config", ROOT / "configs" / "text" / "glue_soups.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.data_dir, config.tasks = str(data_dir), ("cola", "films")
    config.model.arch, config.model.start, config.model.length = None, str(data_dir / "encoder"), 8
    config.splits.shots = 6
    config.sweep.update(members=2, learning_rate=(0.01, 0.03), batch_sizes=(4,), epochs=(2, 3))
    config.probe.update(strengths=(0.1,), max_iterations=5)
    config = json.loads(json.dumps(config.to_dict()))
    del config["learned"], config["wise_ft"]
    return config | changes


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """Return a finished run."""
    workdir = tmp_path_factory.mktemp("run") / "glue"
    glue_soups.run(small(data_dir), workdir)
    return workdir


def test_rows_are_those_of_the_paper_and_means_over_the_tasks(finished):
    results = load_results(finished)
    rows = {row["name"]: row["metrics"] for row in results["rows"]}
    assert list(rows) == [
        *("linear probe", "best member", "mean member", "worst member"),
        *("uniform soup", "greedy soup", "ensemble", "greedy ensemble"),
    ]
    for metrics in rows.values():
        for whole, parts in (("test", ["cola", "films"]), ("held_out", ["cola, held-out", "films, held-out"])):
            assert metrics[whole]["score"] == pytest.approx(np.mean([metrics[part]["score"] for part in parts]))
        assert metrics["films"]["score"] == metrics["films"]["accuracy"]
    assert any(metrics["cola"]["score"] != metrics["cola"]["accuracy"] for metrics in rows.values())
    assert results["facts"]["Tasks"]["cola"]["over-long texts"] == 0


def test_members_of_a_task_start_from_one_head_and_leave_the_embeddings(finished):
    bases, pool = Pool(finished / "films_bases"), Pool(finished / "films_pool")
    probe, members = bases["seed0_probe"], [pool[name] for name in pool]
    assert len(members) == 2 and probe["head"]["kernel"].shape == (8, 2)
    for name in pool:
        assert pool.record(name)["metadata"]["base"] == bases.digest("seed0_probe")
        np.testing.assert_array_equal(pool[name]["token_embedding"]["embedding"], probe["token_embedding"]["embedding"])
        assert np.any(pool[name]["head"]["kernel"] != probe["head"]["kernel"])


def test_a_finished_run_is_not_repeated(finished, data_dir):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*pool/**/*") if path.is_file()}
    rows = load_results(finished)["rows"]
    glue_soups.run(small(data_dir), finished)
    assert load_results(finished)["rows"] == rows
    assert {path: path.stat().st_mtime_ns for path in before if path.suffix != ".json"}.items() <= before.items()


def test_the_score_of_mrpc_is_the_mean_of_accuracy_and_f1():
    logits, labels = np.eye(2, dtype=np.float32)[[1, 1, 0, 0]], np.array([1, 0, 0, 1])
    assert glue_soups.mrpc_score(logits, labels) == pytest.approx((0.5 + 0.5) / 2)
    assert glue_soups.mrpc_score(logits, np.array([1, 1, 1, 0])) == pytest.approx((0.75 + 0.8) / 2)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("sweep", {"members": 1}, "config.sweep.members must be at least 2"),
        ("sweep", {"learning_rate": 1e-3}, "config.sweep.learning_rate must be two positive numbers"),
        ("sweep", {"batch_sizes": [0]}, r"config.sweep.batch_sizes must be whole numbers of at least 1, not \(0,\)"),
        ("model", {"arch": "vit-b16"}, "config.model.arch 'vit-b16' is no encoder that classifies texts"),
        (
            "model",
            {"arch": "bert-base-cased", "start": None},
            "must say where the weights and the tokenizer of bert-base",
        ),
        ("model", {"arch": "minilm-l6"}, "does not hold the weights of minilm-l6"),
        ("splits", {"shots": 30}, "30 shots need 60 examples of each class"),
    ],
)
def test_configs_that_cannot_run_are_errors(data_dir, tmp_path, section, changes, message):
    config = small(data_dir)
    config[section] |= changes
    with pytest.raises(ValueError, match=message):
        glue_soups.run(config, tmp_path / "run")


def test_other_texts_of_the_same_name_are_an_error(finished, data_dir):
    path = data_dir / "films" / "test.tsv"
    before = path.read_text()
    try:
        path.write_text(before.replace("good", "bad"))
        with pytest.raises(ValueError, match="was made with other data under the same name: use another workdir"):
            glue_soups.run(small(data_dir), finished)
    finally:
        path.write_text(before)


def test_tasks_are_named_once(data_dir, tmp_path):
    with pytest.raises(ValueError, match=r"config\.tasks must name folders, each once"):
        glue_soups.run(small(data_dir, tasks=["films", "films"]), tmp_path / "run")
