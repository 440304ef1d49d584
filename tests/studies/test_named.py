"""Test that a config names tasks and networks of the library or of a user's own, and what these must be."""

import sys
import textwrap

import jax
import numpy as np
import pytest
from flax import linen as nn

from soups.data import Dataset, Task
from soups.models.architectures import architecture
from soups.plugins import importable
from soups.studies import finetune_and_soup
from soups.studies.named import architecture_of, network_of, task_of
from soups.studies.study import Workdir

OWN = """
import flax.linen as nn, jax.numpy as jnp, numpy as np
from soups.data import Dataset, Task
from soups.models import Network
from soups.models.architectures import Architecture

CLASSES = ("a", "b", "c")

def dataset(seed, size=6):
    images = np.random.default_rng(seed).integers(0, 256, (9, size, size, 1))
    return Dataset(images.astype(np.uint8), (np.arange(9) % 3).astype(np.int32), CLASSES)

def task(seed, *, size=6):
    return Task("own", CLASSES, dataset(seed, size), dataset(100, size), dataset(200, size), {})

def with_pretraining():
    return task(1), {"train": dataset(300)}

def other_pretraining():
    return task(1), dataset(300, 5)

def arrays():
    return np.zeros(3), np.zeros(3)

def fails(rate):
    return {}["a"]

def misfits():
    return Task("own", ("a", "b"), dataset(1), dataset(1), dataset(1), {})

def undecoded():
    class Lazy:
        class_names = CLASSES
        def __len__(self): return 3
        def __getitem__(self, i): return {"image": np.zeros((6, 6, 1), np.uint8), "label": i}
    return Task("own", CLASSES, Lazy(), dataset(100), dataset(200), {})

class Net(nn.Module):
    num_classes: int
    width: int = 4
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(x)

def headed(num_classes):
    return Network.of(Net(num_classes), head="Dense_1/.*")

def functions(num_classes, image_shape):
    weights = {"w": np.full((np.prod(image_shape), num_classes), 0.5, np.float32)}
    return Network(init=lambda key, shape: weights, apply=lambda params, x: x.reshape(len(x), -1) @ params["w"])

def itself():
    return Net

def five():
    return Net(5)

def broken(num_classes):
    def apply(params, inputs):
        return inputs @ params["w"]
    return Network(init=lambda key, shape: {"w": np.zeros((7, num_classes))}, apply=apply)

def train_broken(num_classes):
    one = functions(num_classes, (6, 6, 1))
    return Network(init=one.init, apply=one.apply, train_apply=lambda params, x, key: (x, params))

class Features(nn.Module):
    num_classes: int | None
    dtype: object = None

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x.reshape(len(x), -1))
        return x if self.num_classes is None else nn.Dense(self.num_classes, name="head")(x)

def tiny(width=4, network=Features(None)):
    return Architecture("tiny", "timm", 6, (0.5,) * 3, (0.5,) * 3, width, network)

def wide():
    return tiny(5)

def without_fields():
    return tiny(network=Net(None))

def empty():
    return {}
"""


def line_of(text):
    return 1 + next(number for number, line in enumerate(OWN.splitlines()) if text in line)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Yield a user's folder, which is searched for modules."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_room.py").write_text(textwrap.dedent(OWN))
    (folder / "own_fails.py").write_text("import own_room\n\nraise RuntimeError('not today')\n")
    (folder / "own_slip.py").write_text("x = (\n")
    with importable(folder):
        yield folder


@pytest.fixture(scope="module")
def task():
    """Return a user's task."""
    return task_of("own_room:task", seed=3, data_dir=None)[0]


def test_a_task_of_ones_own_is_given_the_seed_and_its_settings(task):
    assert isinstance(task, Task) and task.train.images.shape == (9, 6, 6, 1)
    other, pretraining = task_of({"name": "own_room:task", "size": 7}, seed=4, data_dir=None)
    assert other.test.images.shape == (9, 7, 7, 1) and pretraining is None
    again, _ = task_of("own_room:task", seed=3, data_dir="unused")
    np.testing.assert_array_equal(again.train.images, task.train.images)
    pretraining = task_of("own_room:with_pretraining", seed=0, data_dir=None)[1]
    assert isinstance(pretraining, Dataset)


def test_registered_names_are_those_of_the_library(task):
    small = {"patch_size": 3, "width": 4, "depth": 1, "mlp_dim": 4, "num_heads": 1, "pool_type": "gap"}
    network = network_of(small, task, probed=True)
    assert "head" in jax.eval_shape(lambda key: network.init(key, (6, 6, 1)), jax.random.key(0))
    for name, fields in {"mlp": {"widths": (4,)}, "convnet": {"widths": (4,)}, "resnet": {"blocks": (1,)}}.items():
        network_of({"name": name, **fields}, task, probed=True)


@pytest.mark.parametrize("name", ["own_room:Net", "own_room:headed", "own_room:functions"])
def test_a_network_of_ones_own_gives_logits(task, name):
    network = network_of(name, task, probed=name.endswith("headed"))
    params = network.init(jax.random.key(0), (6, 6, 1))
    inputs = np.ones((2, 6, 6, 1), np.float32)
    trained = network.trained(params, inputs, jax.random.key(1))
    logits = trained[0] if isinstance(trained, tuple) else trained
    np.testing.assert_allclose(logits, network.apply(params, inputs), rtol=1e-6)
    if name.endswith("functions"):
        np.testing.assert_allclose(logits, np.full((2, 3), 18.0), rtol=1e-6)


CHOICES = "; there are: digits, glyphs, or your own as 'module:function'"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("digit", f"unknown config.task 'digit' (did you mean 'digits'?){CHOICES}"),
        (3, f"unknown config.task 3{CHOICES}"),
        (None, f"unknown config.task None{CHOICES}"),
        (":task", f"unknown config.task ':task'{CHOICES}"),
        ("own_room:", f"unknown config.task 'own_room:'{CHOICES}"),
        ("own_rom:task", f"or installed (did you mean 'own_room'?){CHOICES}"),
        ("own_room.inner:task", "no module 'own_room.inner' in"),
        ("own_room:tsak", f"own_room.py (did you mean 'task'?){CHOICES}"),
        ("own_room:CLASSES", "there is no function 'CLASSES' in"),
        ("own_fails:task", "own_fails.py, line 3: RuntimeError: not today"),
        ("own_slip:task", "own_slip.py, line 1: SyntaxError"),
        (".own_room:task", "config.task '.own_room:task' failed: TypeError"),
        ({"name": "own_room:fails", "rate": 1}, "config.task 'own_room:fails' failed: "),
        ({"name": "own_room:fails", "rate": 1}, f"own_room.py, line {line_of('{}[')}: KeyError: 'a'"),
        ("own_room:fails", "- config.task: rate is missing"),
        ("own_room:misfits", "the sets of task 'own' do not fit together:\n  train "),
        ({"name": "own_room:task", "siez": 3}, "+ config.task: siez is extra (did you mean 'size'?)"),
        ({"image_siz": 8}, "+ config.task: image_siz is extra (did you mean 'image_size'?)"),
        ("own_room:arrays", "must return a soups.data.Task, or a pair of one and {'train': Dataset}"),
        ("own_room:dataset", "not Dataset"),
        ("own_room:undecoded", "train is a Lazy whose images are not decoded: soups.data.decode"),
        ("own_room:other_pretraining", "images to pre-train on are [5, 5, 1], not [6, 6, 1]"),
    ],
)
def test_a_task_that_does_not_fit_is_named(section, message):
    with pytest.raises(ValueError) as error:
        task_of(section, seed=0, data_dir=None)
    assert message in str(error.value)


def test_an_architecture_is_one_of_the_library_or_what_a_function_returns():
    assert architecture_of("clip-vit-mini") == architecture("clip-vit-mini")
    assert architecture_of("own_room:tiny").name == "tiny"
    for reference, message in {
        "clip-vit-mni": "unknown architecture 'clip-vit-mni'.*did you mean 'clip-vit-mini'",
        "bert-base-cased": "config.arch 'bert-base-cased' takes texts, where images are given",
        "own_room:dataset": "config.arch: seed is missing",
        "own_room:nothing": "there is no function 'nothing' in .*own_room.py",
        "own_room:Net": "num_classes is missing",
        "own_room:empty": "must return a soups.models.architectures.Architecture, not a dict",
        "own_room:wide": r"config.arch 'own_room:wide': feature_dim is 5, but the features are \[1, 4\]",
        "own_room:without_fields": "config.arch 'own_room:without_fields' failed: .*dtype",
    }.items():
        with pytest.raises(ValueError, match=message):
            architecture_of(reference)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            "vti",
            "unknown config.model 'vti' (did you mean 'vit'?); there are: convnet, efficientnet_lite0, glyph_vit, "
            "mlp, resnet, vit",
        ),
        ({"name": "own_room:Net", "widht": 3}, "+ config.model: widht is extra (did you mean 'width'?)"),
        ("own_room:itself", "must return a Linen module or a soups.models.Network, not a Net itself"),
        ("own_room:dataset", "config.model: seed is missing"),
        ("own_room:arrays", "must return a Linen module or a soups.models.Network, not a tuple"),
        ("own_room:five", "2 images [2, 6, 6, 1] give logits [2, 3], not [2, 5]"),
        ("own_room:broken", "config.model 'own_room:broken' failed: "),
        ("own_room:broken", f"own_room.py, line {line_of('inputs @')}: TypeError: dot_general requires"),
        ("own_room:train_broken", "give logits [2, 3] in training mode, not [2, 6, 6, 1]"),
        ("own_room:Net", "these weights have no module named 'head', only Dense_0, Dense_1: give a regex for yours"),
    ],
)
def test_a_network_that_does_not_fit_is_named(task, section, message):
    with pytest.raises(ValueError) as error:
        network_of(section, task, probed=True)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"pretrain": {"learning_rate": 0.1, "epochs": 1}},
            "the task has no images to pre-train on",
        ),
        ({"probe": {"learning_rate": 0.1, "epochs": 1}}, "these weights have no module named 'head'"),
        ({"sweep": {"members": 2, "learning_rate": 0.1, "epochs": (1, 2)}}, "config.sweep.learning_rate must be two"),
        (
            {"sweep": {"members": 1, "learning_rate": (0.1, 0.2), "epochs": (1, 2)}},
            "must be a whole number, at least 2",
        ),
        ({"sam": {"raduis": 0.1}}, "sam.raduis is unknown (did you mean 'sam.radius'?)"),
    ],
)
def test_a_study_of_ones_own_data_is_checked_before_long_work(tmp_path, changed, message):
    sweep = {"members": 2, "learning_rate": (0.1, 0.2), "epochs": (1, 2)}
    config = {"study": "finetune_and_soup", "name": "own", "task": "own_room:task", "model": "own_room:Net"}
    config |= {"finetune": {"batch_size": 3}, "sweep": sweep} | changed
    with pytest.raises(ValueError) as error:
        finetune_and_soup.run(config, tmp_path / "run")
    assert message in str(error.value)
    assert not (tmp_path / "run" / "bases").exists()
    Workdir(tmp_path / "run", {"name": "mended"})


def other_data(own, monkeypatch):
    before = own.dataset
    monkeypatch.setattr(own, "dataset", lambda seed, size=6: before(seed + (seed == 200), size))  # the test set alone


def other_network(own, monkeypatch):
    class Net(own.Net):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.num_classes)(nn.tanh(nn.Dense(self.width)(x.reshape(len(x), -1))))

    monkeypatch.setattr(own, "Net", Net)


@pytest.mark.parametrize(
    ("change", "message"),
    [(other_data, "was made with other data under"), (other_network, "with another network under")],
)
def test_what_has_changed_under_its_name_is_not_gone_on_with(tmp_path, monkeypatch, change, message):
    config = {"name": "own", "task": "own_room:task", "model": "own_room:Net", "finetune": {"batch_size": 3}}

    def begin():
        return finetune_and_soup.run.scenes(config, Workdir(tmp_path, config))

    def start():
        begin()[0].bases.add("seed0_start", {"w": np.ones(2)})

    begin()
    start()
    begin()
    change(sys.modules["own_room"], monkeypatch)
    with pytest.raises(ValueError, match=message):
        begin()
