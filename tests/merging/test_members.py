"""Test which models patterns, pools and conditions choose."""

import os

import numpy as np
import pytest

import soups
from soups.cli import main
from soups.formats import open_checkpoint, write_safetensors
from soups.merging.members import chosen_members

RATES = {"b0": 1e-4, "b1": 3e-4, "c0": 1e-3, "c1": 3e-3}


@pytest.fixture(autouse=True, scope="module")
def place(tmp_path_factory):
    """Work in a folder with runs, two pools of members that know how they were trained, and names like patterns."""
    before, root = os.getcwd(), tmp_path_factory.mktemp("place")
    os.chdir(root)
    for name in ("runs/1/model", "runs/2/model", "runs/[ab]/model", "runs/2/ckpt@ema", "base+v2", "loras/x", "loras/y"):
        os.makedirs(name)
        write_safetensors(f"{name}/model.safetensors", {"w": np.float32([len(name)])})
    pool = soups.Pool("sweep/pool")
    for index, (name, rate) in enumerate(RATES.items()):
        metadata = {
            "config": {"learning_rate": rate, "seed": index, "layer": {"seed": 7}},
            "kind": name[0],
            "ok": index > 1,
        }
        pool.add(name, {"w": np.float32([index])}, metadata, metrics={"held_out": {"accuracy": 0.9 - rate}})
    pool.add("nan", {"w": np.float32([np.nan])})
    soups.Pool("runs/3/pool").add("best*", {"w": np.float32([5])}, {"seed": None})
    soups.Pool("empty/pool").add("nan", {"w": np.float32([np.inf])})
    yield
    os.chdir(before)


def of_pool(*names):
    return [f"sweep/pool:{name}" for name in names]


@pytest.mark.parametrize(
    ("words", "models"),
    [
        (["runs/1/model", "nowhere", "org/name@main"], ["runs/1/model", "nowhere", "org/name@main"]),
        (["runs/*/model"], ["runs/1/model", "runs/2/model", "runs/[ab]/model"]),
        (["runs/[ab]/model"], ["runs/[ab]/model"]),  # what is there goes before what the pattern would mean
        (["runs/?/model", "runs/1/*"], ["runs/1/model", "runs/2/model"]),  # each once
        (["runs/1/model", "runs/1/model"], ["runs/1/model", "runs/1/model"]),  # but what is named twice is meant twice
        (["**/model"], ["runs/1/model", "runs/2/model", "runs/[ab]/model"]),
        (["sweep/pool"], of_pool(*RATES)),
        (["sweep/pool:c*", "sweep/pool:b1"], of_pool("c0", "c1", "b1")),
        (["sweep/pool:nan"], of_pool("nan")),  # named: to be refused where it is opened
        (["runs/*/pool"], ["runs/3/pool:best*"]),
        (["**/pool:[bc]*"], ["runs/3/pool:best*", *of_pool(*RATES)]),
        (["runs/3/pool:best*"], ["runs/3/pool:best*"]),
        (["runs/*/ckpt@ema"], ["runs/2/ckpt@ema"]),
        (["runs/?/model@tree"], ["runs/1/model@tree", "runs/2/model@tree"]),
        (["base+v2+loras/*"], ["base+v2+loras/x", "base+v2+loras/y"]),
        (["runs/1/mod*+loras/x"], ["runs/1/model+loras/x"]),
    ],
    ids=str,
)
def test_words_choose(words, models):
    assert chosen_members(words)[0] == models


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (["learning_rate<1e-3"], ["b0", "b1"]),
        (["learning_rate <= 0.001"], ["b0", "b1", "c0"]),
        (["config.learning_rate>3e-4"], ["c0", "c1"]),
        (["metadata.config.seed!=1"], ["b0", "c0", "c1"]),
        (["kind=c"], ["c0", "c1"]),
        (["kind == 'c'", "accuracy>0.898"], ["c0"]),
        (["kind != 'a=b'", 'kind="b"'], ["b0", "b1"]),
        (["kind>b"], ["c0", "c1"]),
        (["ok=true"], ["c0", "c1"]),
        (["ok!=True"], ["b0", "b1"]),
        (["metrics.held_out.accuracy>=0.8997"], ["b0", "b1"]),
    ],
    ids=str,
)
def test_conditions_choose(where, names):
    found, notes = chosen_members(["sweep/pool"], where)
    assert found == of_pool(*names)
    assert notes[0] == "left out, because they hold NaN or infinity: sweep/pool:nan"
    assert all(name in notes[1] for name in RATES if name not in names)


def test_null_is_a_value():
    assert chosen_members(["runs/3/pool"], ["seed=null"])[0] == ["runs/3/pool:best*"]


@pytest.mark.parametrize(
    ("words", "where", "message"),
    [
        (["nothing/*/model"], [], "nothing matches 'nothing/*/model'"),
        (["*:a*"], [], "nothing matches '*:a*'"),
        (["sweep/pool:d*"], [], "nothing matches 'sweep/pool:d*'; sweep/pool has: b0, b1, c0, c1, nan"),
        (["empty/pool"], [], "nothing matches 'empty/pool' but members that hold NaN or infinity: empty/pool:nan"),
        (["\x1b*"], [], r"nothing matches '\x1b*'"),
        (["hf://a/*"], [], "is a URL"),
        (["a\0*"], [], "is not a path"),
        (["x" * 300 + "*"], [], "is too long"),
        (["sweep/pool"], ["learning_rate"], "--where takes a name, one of <= >= != == < > =, and a value"),
        (["sweep/pool"], ["learning_rate<"], "or 'name=\"a=b\"', not 'learning_rate<'"),
        (["sweep/pool"], ["<1"], "--where takes a name"),
        (["sweep/pool"], ["__import__('os')"], "--where takes a name"),
        (["sweep/pool"], ["1<learning_rate<2"], "--where takes a name"),
        (
            ["sweep/pool"],
            ["lerning_rate<1"],
            "no member has 'lerning_rate' (did you mean 'learning_rate'?); there are: ",
        ),
        (["sweep/pool"], ["x<1"], "config.learning_rate, config.seed, config.layer.seed, kind, ok, held_out.accuracy"),
        (["sweep/pool"], ["seed<1"], "seed may mean metadata.config.seed or metadata.config.layer.seed: write more"),
        (["sweep/pool"], ["kind=z"], "kind=z holds for none of 4 members; metadata.kind is b, c"),
        (["sweep/pool"], ["kind>3"], "holds for none of 4 members"),
        (["sweep/pool", "runs/1/model"], ["kind=b"], "metadata and metrics: runs/1/model is not a member of a pool"),
    ],
    ids=str,
)
def test_what_cannot_be_chosen_is_explained(words, where, message):
    with pytest.raises(ValueError) as error:
        chosen_members(words, where)
    assert message in str(error.value)


def test_merge_takes_what_is_chosen(tmp_path, capsys):
    words = ["merge", "--method", "linear", "--members", "sweep/pool", "--where", "learning_rate<1e-3", "seed_=1"]
    assert main([*words[:-1], "--weight", "1", "2", "--out", str(tmp_path / "out")]) == 0
    assert "left out, because they hold NaN or infinity: sweep/pool:nan" in capsys.readouterr().out
    np.testing.assert_allclose(open_checkpoint(tmp_path / "out").read("w"), np.float32([(0 + 2 * 1) / 3]))
    assert main(["merge", "--verify", str(tmp_path / "out")]) == 0
    assert main(["merge", "recipe.yml", "out", "--where", "seed=1"]) == 2
    assert "settings belong in the recipe file: models" in capsys.readouterr().err
