"""Run the study of merged language models, small, on a random Llama and a random GPT-2, and run it wrongly."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from soups import Pool, tree
from soups.formats import write_safetensors
from soups.models import decoder_of, import_weights
from soups.plugins import load_plugin
from soups.report import load_results
from soups.studies import language_models

ROOT = pathlib.Path(__file__).parents[2]
CHOICES = ROOT / "tests" / "evaluate" / "recorded" / "choices"
WORDS = ["river", "stone", "cloud", "seven", "garden", "orange"]
METHODS = {
    "uniform": {},
    "greedy": {},
    "task_arithmetic": {"scale": [0.5, 1.0]},
    "slerp": {},
    "iso_c": {"scale": [1.0]},
}


def write_llama(folder, vocabulary=318, width=16):
    """Write a random Llama of one block by Hugging Face's names, with the tokenizer of the recorded network."""
    folder.mkdir()
    shapes = {"model.embed_tokens": (vocabulary, width), "model.norm": (width,)}
    block = {"self_attn.q_proj": (16, width), "self_attn.k_proj": (8, width), "self_attn.v_proj": (8, width)}
    block |= {"self_attn.o_proj": (width, 16), "mlp.up_proj": (24, width), "mlp.gate_proj": (24, width)}
    block |= {"mlp.down_proj": (width, 24), "input_layernorm": (width,), "post_attention_layernorm": (width,)}
    shapes |= {f"model.layers.0.{name}": shape for name, shape in block.items()}
    rng = np.random.default_rng(0)
    made = {
        f"{name}.weight": rng.normal(size=shape) / np.sqrt(shape[-1]) + (len(shape) == 1)
        for name, shape in shapes.items()
    }
    write_safetensors(folder / "model.safetensors", {name: leaf.astype(np.float32) for name, leaf in made.items()})
    config = {"model_type": "llama", "hidden_size": width, "num_hidden_layers": 1, "intermediate_size": 24}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    config |= {"vocab_size": vocabulary, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copyfile(CHOICES / "model" / name, folder / name)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Return a folder with all files, and a random Llama."""
    folder, rng = tmp_path_factory.mktemp("language"), np.random.default_rng(0)

    def some(count):
        return " ".join(rng.choice(WORDS, count))

    items = [{"instruction": some(3), "input": "", "output": some(2)} for _ in range(12)]
    (folder / "alpaca_data.json").write_text(json.dumps(items))
    for name, count in {"train": 20, "test": 6}.items():
        rows = [f"{some(3)} {n}?,{some(1)},{some(2)},{some(1)} x,B" for n in range(count)]
        (folder / f"arc_{name}.csv").write_text("\n".join(rows))
    shutil.copytree(CHOICES / "mmlu", folder / "MMLU")
    shutil.copytree(folder / "MMLU" / "dev", folder / "MMLU" / "val")
    for file in (folder / "MMLU" / "val").iterdir():
        file.rename(file.with_name(file.name.replace("_dev", "_val")))
    rows = [
        f"a,b,{some(2)} {n}?,{some(1)} yes,{some(1)} yes; {some(2)} too,{some(2)} no; {some(1)} never,x"
        for n in range(20)
    ]
    header = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source"
    (folder / "TruthfulQA.csv").write_text("\n".join([header, *rows]))
    write_llama(folder / "llama")
    return folder


def small(data_dir, **changes):
    """Return the config of the study as the command line hands it over, small."""
    path = ROOT / "configs" / "text" / "language_models.py"
    config = load_plugin(path).get_config()
    config.data_dir, config.model.start, config.model.length = str(data_dir), str(data_dir / "llama"), 32
    config.model.max_length = 96
    config.tasks.science.update(train=("arc_train.csv",), test=("arc_test.csv",))
    config.tasks.truthfulness.test = "TruthfulQA.csv"
    config.finetune.update(learning_rate=3e-3, batch_size=4, rank=2)
    config.evaluate.update(batch_size=16, most_train=8, most_held_out=4, most_test=6)
    return json.loads(json.dumps(config.to_dict())) | {"methods": METHODS, "only": None} | changes


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """Return a finished run."""
    workdir = tmp_path_factory.mktemp("run") / "language"
    language_models.run(small(data_dir), workdir)
    return workdir


TASKS = ("instructions", "science", "truthfulness")


def test_rows_are_the_base_the_members_and_all_that_is_merged_of_them(finished):
    results = load_results(finished)
    rows = {row["name"]: row for row in results["rows"]}
    singles = [f"member of {task}" for task in TASKS]
    merges = ["uniform soup", "greedy soup", "task arithmetic", "Iso-C"]
    assert list(rows) == ["base", "individual members", *singles, "multi-task learning", *merges]
    for row in rows.values():
        scores = [row["metrics"][task]["accuracy"] for task in TASKS]
        assert row["metrics"]["test"]["accuracy"] == pytest.approx(np.mean(scores))
        for task, score in zip(TASKS, language_models.SCORES.values(), strict=True):
            assert row["metrics"][task]["accuracy"] == row["metrics"][task][score]
            assert row["metrics"][task][f"{score}_stderr"] >= 0
    own = rows["individual members"]["metrics"]
    assert all(own[task] == rows[f"member of {task}"]["metrics"][task] for task in TASKS)
    assert own["test"]["normalised"] == 1.0
    assert results["facts"]["Tasks"]["science"] == {"train": 8, "score": "acc_norm"}


def test_members_are_whole_networks_that_differ_from_the_base_where_they_were_trained(finished, data_dir):
    pool = Pool(finished / "pool")
    base = tree.flatten(import_weights(data_dir / "llama", decoder_of(data_dir / "llama")))
    assert set(pool) == {f"seed0_{task}" for task in TASKS}
    for name in pool:
        member = tree.flatten(pool[name])
        moved = {leaf for leaf in member if not np.array_equal(member[leaf], base[leaf])}
        place = "Transformer/encoderblock_0/MultiHeadDotProductAttention_0"
        assert member.keys() == base.keys() and moved == {f"{place}/query/kernel", f"{place}/value/kernel"}
        assert np.isfinite(pool.record(name)["metadata"]["losses"]).all()


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_was_stopped_goes_on(finished, data_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    before = (copy / "results.json").read_text()
    Pool(copy / "pool").remove("seed0_science")
    for name in ("baselines", "method_iso_c"):
        (copy / "stages" / f"seed0_{name}.json").unlink()
    (copy / "results.json").unlink()
    language_models.run(small(data_dir), copy)
    rows = [{**row, "cost": None} for row in json.loads(before)["rows"]]
    assert [{**row, "cost": None} for row in load_results(copy)["rows"]] == rows


@pytest.mark.usefixtures("undrawn")
def test_gpt2_is_trained_whole_by_the_same_config(data_dir, tmp_path):
    config = small(data_dir, joint=False, only=["uniform"])
    config["model"]["start"], config["finetune"]["mode"] = str(CHOICES / "model"), "full"
    config["tasks"].pop("instructions")
    language_models.run(config, tmp_path / "run")
    rows = {row["name"]: row["metrics"] for row in load_results(tmp_path / "run")["rows"]}
    assert list(rows) == ["base", "individual members", "member of science", "member of truthfulness", "uniform soup"]
    pool, base = Pool(tmp_path / "run" / "pool"), import_weights(CHOICES / "model", decoder_of(CHOICES / "model"))
    moved = tree.norm(tree.sub(pool["seed0_science"], base))
    assert (
        moved > 0
        and (pool["seed0_science"]["position_embedding"]["embedding"] != base["position_embedding"]["embedding"]).any()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"fisher_exact": {"normalize": [True]}}}, "unknown method for language models, .* 'fisher_exact'"),
        ({"only": ["ties"]}, "unknown method of config.only 'ties'"),
        ({"tasks": {"science": {}}}, "config.tasks must have at least two of: instructions, science, truthfulness"),
        ({"tasks": {"poetry": {}, "science": {}}}, "unknown task of language models 'poetry'"),
        ({"methods": {}}, "the config has no methods"),
    ],
)
def test_other_configs_are_errors(data_dir, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        language_models.run(small(data_dir, **changes), tmp_path / "run")


def test_other_ways_of_training_and_empty_splits_are_errors(data_dir, tmp_path):
    config = small(data_dir)
    config["finetune"]["mode"] = "prefix"
    with pytest.raises(ValueError, match=r"unknown config.finetune.mode 'prefix'; there are: full, lora"):
        language_models.run(config, tmp_path / "run")
    config = small(data_dir)
    config["evaluate"]["most_test"] = 0
    with pytest.raises(ValueError, match="task 'instructions' has nothing for test"):
        language_models.run(config, tmp_path / "other")


def test_other_data_under_the_same_name_are_refused(finished, data_dir, tmp_path):
    other, copy = tmp_path / "data", tmp_path / "copy"
    shutil.copytree(data_dir, other)
    shutil.copytree(finished, copy)
    config = json.loads((copy / "config.json").read_text())
    (data_dir / "arc_test.csv").write_text((other / "arc_test.csv").read_text().replace("river", "lake"))
    try:
        with pytest.raises(ValueError, match="was made with other data under the same name"):
            language_models.run(small(data_dir), copy)
    finally:
        shutil.copyfile(other / "arc_test.csv", data_dir / "arc_test.csv")
    assert json.loads((copy / "config.json").read_text()) == config
