"""Make small checkpoints with layers, and merge them."""

import json
import pathlib
import types

import numpy as np
import pytest
import yaml

from soups import merging
from soups.formats import open_checkpoint, write_safetensors
from soups.merging.record import record
from soups.plugins import load_plugin

ROOT = pathlib.Path(__file__).parents[2]
LAYERS = 3


def shapes(layers=LAYERS, vocabulary=10):
    """Return the shapes of a small language model by name."""
    inner = {"self_attn.q_proj.weight": (6, 6), "mlp.up_proj.weight": (8, 6), "norm.bias": (6,), "norm.gate": ()}
    return (
        {"model.embed_tokens.weight": (vocabulary, 6)}
        | {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in inner.items()}
        | {"model.norm.weight": (6,), "lm_head.weight": (vocabulary, 6)}
    )


def tensors(seed, dtype=np.float32, **sizes):
    """Return a base (seed 0) or weights near it, with one tensor of integers."""
    base, rng = np.random.default_rng(0), np.random.default_rng(seed)
    made = {}
    for name, shape in shapes(**sizes).items():
        start, step = base.normal(size=shape), 0.3 * rng.normal(size=shape) if seed else 0.0
        made[name] = np.asarray(start + step).astype(dtype)
    return made | {"model.position_ids": np.arange(4)}


def write_model(folder, leaves, config=None, tokenizer='{"a": 0}'):
    """Write a folder as Hugging Face has it."""
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", leaves)
    config = {"num_hidden_layers": LAYERS, "torch_dtype": "float32", "dtype": "float32"} if config is None else config
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer)
    return folder


def read(folder):
    """Return the arrays of a checkpoint."""
    checkpoint = open_checkpoint(folder)
    return {name: np.array(checkpoint.read(name)) for name in checkpoint.leaves}


def plan(recipe, **options):
    """Plan a recipe given as a dict, with paths for models."""
    text = recipe if isinstance(recipe, str) else yaml.safe_dump(plain(recipe), sort_keys=False)
    return merging.plan(merging.parse_recipe(text, **options), open_checkpoint)


def merge(recipe, out, *, seed=0, files=False, **options):
    """Merge into a folder and give the arrays that it holds."""
    made = plan(recipe, seed=seed)
    merging.merge_to_folder(made, out, files=merging.folder_files(made) if files else None, **options)
    return read(out)


def card(made):
    """Return the card of a plan, as it is if nothing went in."""
    return merging.folder_files(made)["README.md"](record(made, {}))


def content(folder):
    """Return the bytes of all files of a folder."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def near(merged, expected):
    """Compare to 1e-6 of the largest element."""
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, pathlib.Path) else value


@pytest.fixture(scope="session")
def small():
    """Return the functions of this file."""
    return types.SimpleNamespace(**{name: value for name, value in globals().items() if not name.startswith("_")})


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Return the paths of the folders "base", "a", "b" and "c"."""
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(root / name, tensors(seed)) for seed, name in enumerate(["base", "a", "b", "c"])}


@pytest.fixture(scope="session")
def trees(models):
    """Return the tensors of floats of each model."""
    result = {}
    for name, path in models.items():
        checkpoint = open_checkpoint(path)
        result[name] = {n: np.array(checkpoint.read(n)) for n in checkpoint.leaves if n != "model.position_ids"}
    return result


@pytest.fixture
def run(models, tmp_path):
    """Return a function that merges by a recipe; models are named by their letters."""

    def run_merge(method, members="abc", *, base="base", vocabulary="mergekit", parameters=None, **of_members):
        recipe = {
            "merge_method": method,
            "vocabulary": vocabulary,
            "models": [
                {"model": models[x], "parameters": {name: values[x] for name, values in of_members.items()}}
                for x in members
            ],
            "parameters": parameters or {},
        }
        recipe |= {"base_model": models[base]} if base else {}
        merged = merge(recipe, tmp_path / "out")
        np.testing.assert_array_equal(merged.pop("model.position_ids"), np.arange(4))
        return merged

    return run_merge


@pytest.fixture
def linear_of(tmp_path):
    """Return a function that writes models of the tensors given for each, and their linear recipe, in this order."""

    def make(*models, config=None, **fields):
        paths = []
        for index, leaves in enumerate(models):
            paths.append(write_model(tmp_path / f"m{index}", leaves, {} if config is None else config))
        return {
            "merge_method": "linear",
            "models": [{"model": x, "parameters": {"weight": 1}} for x in paths],
            **fields,
        }

    return make


@pytest.fixture
def write_lora(tmp_path):
    """Return a function that writes an adapter of rank 1 for a square weight."""

    def write(module, size):
        folder = tmp_path / "lora"
        folder.mkdir()
        start, row = f"base_model.model.{module}", np.ones((1, size), np.float32)
        matrices = {f"{start}.lora_A.weight": row, f"{start}.lora_B.weight": row.T.copy()}
        write_safetensors(folder / "adapter_model.safetensors", matrices)
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
        return folder

    return write


@pytest.fixture(scope="session")
def torch_bytes():
    """Return the functions that write torch files byte by byte."""
    return load_plugin(ROOT / "tests" / "formats" / "conftest.py")


@pytest.fixture
def write_torch(torch_bytes):
    """Return a function that writes a torch file; `tied` maps further names to the tensors that they share."""

    def write(path, leaves, tied=None):
        kinds = {np.dtype(np.float32): "FloatStorage", np.dtype(np.int64): "LongStorage"}
        keys = {name: str(index) for index, name in enumerate(leaves)}

        def pushed(name):
            array = leaves[name]
            strides = tuple(stride // array.itemsize for stride in np.zeros_like(array, order="C").strides)
            storage = torch_bytes.storage(kinds[array.dtype], keys[name], array.size)
            return torch_bytes.tensor(storage, array.shape, strides)

        names = {name: name for name in leaves} | (tied or {})
        pickle = torch_bytes.pickled(torch_bytes.mapping({name: pushed(kept) for name, kept in names.items()}))
        return torch_bytes.write_zip(path, pickle, {keys[name]: array.tobytes() for name, array in leaves.items()})

    return write
