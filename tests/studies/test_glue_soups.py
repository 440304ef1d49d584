"""Run the study of soups on tasks of texts, small, as users do, and run it wrongly."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import scipy
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing

from soups import Pool
from soups.data import load_text_task
from soups.data.texts import TextDataset
from soups.models.architectures import encoder_of
from soups.models.text_tokenizer import text_tokenizer
from soups.plugins import load_plugin
from soups.report import load_results
from soups.studies import glue_soups
from soups.studies.study import Workdir
from soups.studies.text_ways import mrpc_score, read_texts, words_of

ROOT = pathlib.Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "models" / "recorded" / "models"
WEIGHTS, T5 = RECORDED / "transformers-MiniLM-minilm-l6", RECORDED / "transformers-T5-t5-base"
GOOD, BAD = ["good", "fine", "great"], ["bad", "poor", "dull"]
OTHERS = ["film", "book", "a", "the", "was", "so", "and", "very"]


def lines_of(count, names, rng):
    """Draw lines of a task whose class is that of one of their words."""
    for number in range(count):
        words = rng.choice(OTHERS, rng.integers(1, 5)).tolist()
        words.insert(rng.integers(len(words)), rng.choice([GOOD, BAD][number % 2]))
        yield f"{' '.join(words)} {number}\t{names[number % 2]}"


def write_similarities(folder, rng):
    """Write pairs as STS-B has them, whose score counts the good words of both."""
    names = ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score")
    folder.mkdir()
    for split, count in {"train": 40, "dev": 24}.items():
        lines = ["\t".join(names)]
        for number in range(count):
            texts = [" ".join([*rng.choice([*GOOD, *BAD], 2), *rng.choice(OTHERS, 2)]) for _ in range(2)]
            score = 1.25 * sum(word in GOOD for text in texts for word in text.split())
            lines.append("\t".join([str(number), *"abcdef", *texts, f"{score:.3f}"]))
        (folder / f"{split}.tsv").write_text("\n".join([*lines, ""]))


def write_t5(folder):
    """Write a tiny T5 with a tokenizer of its own."""
    shutil.copytree(T5, folder)
    names = [*GOOD, *BAD, "cola", "films", "sentence", "acceptable", "un", "yes", "no", ""]
    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{name}" for name in names), "acceptable", ":"]
    tokenizer = Tokenizer(Unigram([(piece, -2.0) for piece in pieces], 2))
    tokenizer.add_special_tokens(pieces[:3])
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


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
    write_similarities(folder / "sts-b", rng)
    write_t5(folder / "t5")
    shutil.copytree(WEIGHTS, folder / "encoder")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *OTHERS]
    (folder / "encoder" / "vocab.txt").write_text("\n".join([*pieces, ""]))
    (folder / "encoder" / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return folder


def small(data_dir, **changes):
    """Return the config of the study as the command line hands it over, small."""
    config = load_plugin(ROOT / "configs" / "text" / "glue_soups.py").get_config()
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


def test_t5_writes_the_words_of_classes(data_dir, tmp_path):
    config = small(data_dir)
    config["model"] |= {"start": str(data_dir / "t5"), "frozen": "token_embedding/.*", "length": 16, "dropout": 0.0}
    config["sweep"] |= {"learning_rate": [0.05, 0.1], "epochs": [6, 6]}
    glue_soups.run(config, tmp_path)
    results = load_results(tmp_path)
    rows = {row["name"]: row["metrics"] for row in results["rows"]}
    assert "start weights" in rows and "linear probe" not in rows and "greedy soup" in rows
    assert rows["start weights"]["films"]["accuracy"] < rows["best member"]["films, held-out"]["accuracy"]
    bases, pool = Pool(tmp_path / "cola_bases"), Pool(tmp_path / "cola_pool")
    start, member = bases["seed0_probe"], pool[next(iter(pool))]
    assert "head" not in start and start.keys() == member.keys()
    np.testing.assert_array_equal(start["token_embedding"]["embedding"], member["token_embedding"]["embedding"])
    assert (start["decoder"]["norm"]["scale"] != member["decoder"]["norm"]["scale"]).any()


def test_t5_reads_tasks_as_it_was_taught_them():
    one = TextDataset(["a", "b"], np.int32([0, 1]), ("0", "1"))
    two = dataclasses.replace(one, second=["c", "d"])
    assert read_texts("CoLA", one) == ["cola sentence: a", "cola sentence: b"]
    assert read_texts("SST-2", one)[0] == "sst2 sentence: a"
    assert read_texts("MRPC", two)[0] == "mrpc sentence1: a sentence2: c"
    assert read_texts("QNLI", two)[1] == "qnli question: b sentence: d"
    assert read_texts("MNLI", two)[0] == "mnli hypothesis: c premise: a"
    assert read_texts("Mine", two)[0] == "mine sentence1: a sentence2: c"
    assert words_of("MRPC", ("0", "1"), True) == ["not_equivalent", "equivalent"]
    assert words_of("RTE", ("entailment", "not_entailment"), True) == ["entailment", "not_entailment"]
    with pytest.raises(ValueError, match="task RTE has 1 texts in a line, but T5 reads sentence1, sentence2"):
        read_texts("RTE", one)


def test_numbers_are_predicted_and_scored_by_their_ranks(data_dir, tmp_path):
    config = small(data_dir, tasks=["sts-b"], splits={"held_out": 0.4}, learned=dict(learning_rate=0.1, epochs=1))
    config["learned"]["batch_size"] = 8
    config["sweep"] |= {"learning_rate": [0.005, 0.01]}
    glue_soups.run(config, tmp_path)
    results = load_results(tmp_path)
    rows = {row["name"]: row["metrics"]["test"] for row in results["rows"]}
    assert {"linear probe", "greedy soup", "learned soup", "ensemble", "greedy ensemble"} <= rows.keys()
    assert all(metrics.keys() == {"score", "pearson", "mse"} for metrics in rows.values())
    assert results["facts"]["Tasks"]["sts-b"]["classes"] == "numbers" and results["metric"] == "score"
    members = Pool(tmp_path / "sts-b_pool")
    assert members[next(iter(members))]["head"]["kernel"].shape == (8, 1)
    # an ensemble is the mean of the numbers
    outputs = scores_of(tmp_path, data_dir, members)
    expected = scipy.stats.spearmanr(np.mean([*outputs.values()], axis=0), scores_in(data_dir)).statistic
    assert rows["ensemble"]["score"] == pytest.approx(expected, abs=1e-6)


def scores_in(data_dir):
    lines = (data_dir / "sts-b" / "dev.tsv").read_text().splitlines()[1:]
    return [float(line.rpartition("\t")[2]) for line in lines]


def scores_of(workdir, data_dir, members):
    """Return what each member says of the test pairs."""
    arch = encoder_of(data_dir / "encoder", pool_type="mean")
    data = load_text_task(data_dir / "sts-b", held_out=0.4).test
    inputs = text_tokenizer(data_dir / "encoder", arch, length=8)(data.texts, data.second)
    apply = jax.jit(arch.apply_fn(1))
    return {name: np.asarray(apply(members[name], inputs))[:, 0] for name in members}


def test_tasks_of_numbers_and_of_classes_share_the_score_alone(data_dir, tmp_path):
    config = small(data_dir, tasks=["sts-b", "films"], splits={"held_out": 0.4})
    (scene,) = glue_soups._scenes(config, Workdir(tmp_path, config))
    assert {name: [*way.metrics] for name, way in scene.ways.items()} == {"sts-b": ["score"], "films": ["score"]}
    config["model"] |= {"start": str(data_dir / "t5")}
    with pytest.raises(ValueError, match="writes the words of classes, but the labels of sts-b are numbers"):
        glue_soups._scenes(config, Workdir(tmp_path / "t5", config))


def test_the_score_of_mrpc_is_the_mean_of_accuracy_and_f1():
    logits, labels = np.eye(2, dtype=np.float32)[[1, 1, 0, 0]], np.array([1, 0, 0, 1])
    assert mrpc_score(logits, labels) == pytest.approx((0.5 + 0.5) / 2)
    assert mrpc_score(logits, np.array([1, 1, 1, 0])) == pytest.approx((0.75 + 0.8) / 2)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("sweep", {"members": 1}, "config.sweep.members must be at least 2"),
        ("sweep", {"learning_rate": 1e-3}, "config.sweep.learning_rate must be two positive numbers"),
        ("sweep", {"batch_sizes": [0]}, r"config.sweep.batch_sizes must be whole numbers of at least 1, not \(0,\)"),
        ("model", {"arch": "vit-b16"}, "config.model.arch 'vit-b16' is not an encoder of texts"),
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
