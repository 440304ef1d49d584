"""Test that the command cooks anyone's pool on anyone's data, goes on, and says in one line what it cannot do."""

import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from miniature import tensors

import soups
from soups.cli import cook, main
from soups.models.architectures import architecture
from soups.report import figures, load_results

MODEL = """
import flax.linen as nn

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)

net = Net()

def halves(members):
    return next(iter(members.values()))

def broken(params, inputs):
    raise KeyError("no such layer")
"""
DATA = """
import numpy as np

rng = np.random.default_rng(0)
kernel = rng.normal(size=(10, 3))

def split(number):
    inputs = rng.normal(size=(number, 10)).astype(np.float32)
    return inputs, (inputs @ kernel).argmax(axis=1)

test, dark = split(60), split(60)

def held_out():
    inputs, labels = split(50)
    return {"image": inputs, "label": labels}

def wrong():
    return np.load("nowhere.npy")
"""
RECIPES = "uniform,greedy,wise_ft,ensemble,ties:density=[0.2,0.3,0.4,0.5],own_model:halves,dare,della,karcher"
WORDS = {"--apply": "own_model:net", "--held-out": "own_data:held_out", "--test": "own_data:test"}
WORDS |= {"--base": "start", "--shift": "dark=own_data:dark", "--recipes": RECIPES, "--workdir": "out"}


@pytest.fixture
def room(tmp_path, monkeypatch):
    """Return a folder with a pool of a start and four members, and modules with their network and data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(figures, "PLANS", dict(list(figures.PLANS.items())[:1]))
    rng, pool = np.random.default_rng(1), soups.Pool("pool")
    for number, name in enumerate(["start", "a", "b", "c", "d"]):
        kernel = rng.normal(size=(10, 3)).astype(np.float32)
        pool.add(name, {"Dense_0": {"kernel": kernel, "bias": np.full(3, number, np.float32)}})
    (tmp_path / "own_model.py").write_text(MODEL)
    (tmp_path / "own_data.py").write_text(DATA)
    return tmp_path


@pytest.fixture
def command(room, capsys):
    """Return a function that runs the command with changed options, and gives its exit code and what it printed."""

    def run(*more, pool="pool", **changes):
        words = WORDS | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        given = [word for option, value in words.items() if value is not None for word in (option, value)]
        with jax.numpy_rank_promotion("allow"):  # as on a user's machine
            code = main(["cook", pool, *given, *more])
        return code, *capsys.readouterr()

    return run


def test_soups_of_anyones_pool_and_network(command, room):
    code, out, err = command()
    assert (code, err) == (0, "") and out.splitlines()[0] == "start is the base and not a member"
    results, lines = load_results("out"), out.splitlines()
    accuracy = {row["name"]: row["metrics"]["test"]["accuracy"] for row in results["rows"]}
    test = importlib.import_module("own_data").test
    members = {name: member["Dense_0"] for name, member in soups.Pool("pool").items() if name != "start"}
    mean = {leaf: np.mean([member[leaf] for member in members.values()], axis=0) for leaf in ("kernel", "bias")}
    for name, weights in {**members, "uniform soup": mean, "halves": members["a"]}.items():
        assert accuracy[name] == np.mean((test[0] @ weights["kernel"] + weights["bias"]).argmax(1) == test[1]), name
    titles = {"base", "greedy soup", "ensemble", "ties, density = [0.2, 0.3, 0.4, 0.5]", "dare", "della", "karcher"}
    assert titles <= accuracy.keys() and "start" not in accuracy and results["splits"]["dark"]["role"] == "shift"
    # a short table, and where the rest is
    begin = next(number for number, line in enumerate(lines) if "─" in line) + 1
    rows = lines[begin : next(number for number, line in enumerate(lines) if number > begin and not line.strip())]
    assert len(rows) == 10 and max(map(len, lines[begin - 3 : begin + 10])) <= 80
    assert any(line.split("  ")[0].strip() == "greedy soup" for line in rows) and "more rows" in " ".join(out.split())
    assert "Report: out/report.html" in lines
    # nothing is made twice
    made = {
        path: path.stat().st_mtime_ns for part in ("logits", "soups") for path in (room / "out" / part).rglob("*.npy")
    }
    assert command("--quiet", base="pool:start") == (0, "out/report.html\n", "") and made  # the same, by its other name
    assert made == {path: path.stat().st_mtime_ns for path in made}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"apply": "own_modl:net"}, "--apply 'own_modl:net': no module 'own_modl' in .*did you mean 'own_model'"),
        ({"apply": "own_model:nett"}, "there is no function 'nett' in .*own_model.py .did you mean 'net'"),
        ({"apply": "own_model:Net"}, "--apply own_model:Net is a class: name a module that is made of it, or apply_fn"),
        ({"apply": "own_model:broken"}, "no such layer"),
        ({"apply": None}, "does not say of what architecture 'a' is: give --apply"),
        ({"held_out": "own_data"}, "unknown --held-out 'own_data': name your own as 'module:function'"),
        ({"held_out": "own_data:heldout"}, "there is no 'heldout' in .*own_data.py .did you mean 'held_out'"),
        ({"held_out": "own_data:nope"}, "there is no 'nope' in .*own_data.py(?!.*did you mean)"),  # not the module np
        ({"test": "own_data:wrong"}, "--test 'own_data:wrong' failed: .*own_data.py, line 18: FileNotFoundError"),
        ({"test": "own_data:kernel"}, "test must be a pair"),
        ({"shift": "dark"}, "--shift dark: a name is needed, as in --shift night=my_data:night"),
        ({"shift": "test=own_data:dark"}, "a shift cannot be called 'test'"),
        ({"base": "strat"}, "--base strat is not a member of .*pool, and no checkpoint at strat"),
        ({"base": None}, "wise_ft needs a base, base= .--base.: the weights .*\nties needs a base"),
        ({"recipes": "unifrom"}, "unknown recipe 'unifrom'.*did you mean 'uniform'"),
        ({"recipes": "halves:density"}, "no module 'halves'"),
        ({"recipes": "learned:epochs"}, "learned:epochs: setting 'epochs' needs a value"),
        ({"recipes": "learned:epochs=many"}, "learned: epochs must be a finite number, not 'many'"),
        ({"recipes": "ties:density=0.2:scale"}, "setting 'scale' needs a value, as in ties:scale=0.2"),
        ({"recipes": "ties:density"}, "ties:density: setting 'density' needs a value, as in ties:density=0.2"),
        ({"recipes": "ties:=1"}, "'=1' is not a setting, as in ties:density=0.2"),
        ({"recipes": "ties:density=[0.2"}, "--recipes ties:density=.0.2: density is not YAML"),
        ({"recipes": "ties:densty=1"}, "ties has no setting 'densty' .did you mean 'density'"),
        ({"metrics": "acuracy"}, "unknown metric 'acuracy' .did you mean 'accuracy'"),
        ({"loss": "own_data:dark"}, "--loss 'own_data:dark': there is no function 'dark'"),
        ({"batch_size": "0"}, "batch_size must be at least 1"),
        ({"seed": "-1"}, "seed must be in .0, 4294967295., not -1"),
        ({"workdir": "own_data.py"}, "the workdir .*own_data.py is a file: choose another workdir"),
        ({"workdir": "own_data.py/run"}, "run lies in .*own_data.py, which is a file: choose another workdir"),
        ({"workdir": "hf://bucket/out"}, "is a URL: give a local path"),
        ({"workdir": "pool"}, "the workdir .*pool is a pool: choose another workdir, such as .*cooked"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(command, room, changes, message):
    code, out, err = command(**changes)
    assert (code, out) in ((2, ""), (2, "start is the base and not a member\n")) and not (room / "out").exists()
    assert err.startswith("soups cook: ") and "Traceback" not in err
    assert re.search(message, err, re.DOTALL)


def test_recipes_are_parted_by_spaces_or_commas(command):
    words = ("--recipes", "uniform", "ties:density=0.2", "dare,wise_ft")
    err = command(*words, recipes=None, base=None)[2]
    assert [line.partition(" needs a base")[0] for line in err.splitlines()] == ["soups cook: ties", "dare", "wise_ft"]


def test_one_shift_is_given_once(command):
    assert "--shift dark is given twice" in command("--shift", "dark=own_data:dark")[2]


def test_the_network_is_that_of_the_pool(room):
    arch, pool = architecture("clip-vit-mini"), soups.Pool("clips")
    for seed, name in enumerate("ab"):
        weights = tensors.random_weights(arch.abstract(5), np.random.default_rng(seed))
        pool.add(name, weights, {"arch": "clip-vit-mini"})
    apply = cook._apply_fn(pool, None)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    assert jax.eval_shape(apply, pool.structure, images).shape == (2, 5)
    pool.add("c", weights, {"arch": "clip-vit-b32"})
    with pytest.raises(ValueError, match="'a' is clip-vit-mini, 'c' is clip-vit-b32: give --apply"):
        cook._apply_fn(soups.Pool("clips"), None)
    with pytest.raises(ValueError, match="differ in structure from clip-vit-b32"):
        cook._apply_fn(soups.Pool("clips").select(["c"]), None)
    with pytest.raises(ValueError, match="has no members"):
        cook._apply_fn(soups.Pool("nowhere"), None)
