"""Test reading TorchScript archives: two of torch 2.13, those written by hand as older ones are, and hostile ones."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest

from soups import tree
from soups.formats import CheckpointError, UnsafeCheckpointError, open_checkpoint
from soups.models.architectures import architecture
from soups.models.clip_text import import_text_tower
from soups.models.import_weights import import_weights
from soups.models.tables import clip

DATA = pathlib.Path(__file__).parent / "data"  # made by torch 2.13; the code in them is blanked


@pytest.fixture
def leaf(make):
    """Push a tensor of six elements."""
    return make.tensor(make.storage("FloatStorage", "0", 6), (6,), (1,))


@pytest.fixture
def refused(tmp_path, make, floats):
    """Check that an archive of this pickle is refused with this message, which names the file."""

    def check(body, message, error=CheckpointError):
        path = make.write_script(tmp_path / "x.pt", body, {"0": floats[1]})
        with pytest.raises(error, match=f"{re.escape(str(path))}.*{message}") as raised:
            open_checkpoint(path)
        assert raised.type is error

    return check


# --- Archives made by torch ---


@pytest.mark.parametrize(
    ("file", "plain"), [("script", {f"{m}.plain" for m in ("blocks.0", "blocks.1", "again")}), ("trace", set())]
)
def test_reads_the_state_dict_of_what_torch_wrote(file, plain):
    checkpoint = open_checkpoint(DATA / f"{file}.pt")
    with np.load(DATA / f"{file}.npz") as expected:
        # a tensor that is an attribute alone looks like a buffer
        assert {*checkpoint.leaves, *checkpoint.aliases} == set(expected) | plain
        for name, values in expected.items():
            read = checkpoint.read(name)
            assert read.dtype == values.dtype and read.shape == values.shape
            np.testing.assert_array_equal(read, values)


def test_shared_modules_and_tensors_are_aliases_and_settings_are_named_once():
    checkpoint = open_checkpoint(DATA / "script.pt")
    again = {f"again.{name}": f"blocks.1.{name}" for name in ("count", "plain", "linear.weight")}
    assert checkpoint.aliases == {"scales.0": "tied"} | again
    settings = ["training", "_is_full_backward_hook", "sizes", "table", "label", "nothing", "tensors", "pair"]
    settings += ["bias", "_size"]
    assert checkpoint.notes == (f"left out of script.pt: {', '.join(map(repr, settings))}",)


# --- Archives made by hand ---


def test_settings_of_all_kinds_are_no_tensors(tmp_path, make, floats, leaf):
    def tagged(tag, value):
        return make.global_of("torch.jit._pickle", tag) + b"(" + value + b"tR"

    typed = {f"build_{kind}list": b"]" + leaf + b"a" for kind in ("int", "tensor", "double", "bool")}
    settings = {
        "training": b"\x88",
        "none": b"N",
        "number": make.integer(1 << 40),
        "text": make.text("x"),
        "pair": leaf + b"N\x86",
        "dict": make.mapping({"inner": leaf}),
        "tagged": tagged("restore_type_tag", make.mapping({"inner": leaf}) + make.text("Dict[str, Tensor]")),
        "device": make.global_of("torch", "device") + make.text("cuda:0") + b"\x85R",
    } | {tag: tagged(tag, value) for tag, value in typed.items()}
    part = make.module_of({"weight": leaf} | settings, "nn.Linear")
    body = make.module_of({"model": part, "empty": make.module_of({})} | settings)
    checkpoint = open_checkpoint(make.write_script(tmp_path / "x.pt", body, {"0": floats[1]}))
    # "model" is a part here, not what a training script put the weights under
    assert list(checkpoint.leaves) == ["model.weight"] and checkpoint.aliases == {}
    np.testing.assert_array_equal(checkpoint.read("model.weight"), floats[0])
    assert checkpoint.notes == (f"left out of x.pt: {', '.join(map(repr, settings))}",)


def test_the_layout_of_older_archives(tmp_path, make, floats):
    storage = make.storage("FloatStorage", "0", 6, b"N").replace(make.text("cpu"), make.text("cuda:0"))
    body = make.module_of({"weight": make.tensor(storage, (2, 3), (3, 1))}, "___torch_mangle_7.Linear")
    archive = {"prefix": "ViT-B-32/", "byteorder": None, "more": ["constants.pkl", "extra/model.json"]}
    path = make.write_zip(tmp_path / "x.pt", make.pickled(body), {"0": floats[1]}, **archive)
    checkpoint = open_checkpoint(path)
    np.testing.assert_array_equal(checkpoint.read("weight"), floats[0].reshape(2, 3))


def openai_clip(arch, rng):
    """Return random tensors in float16 of both towers, and the numbers that OpenAI keeps beside them."""
    table = clip.openai_image(arch) | clip.openai_text(arch)
    tensors = {name: rng.normal(size=part.shape).astype(np.float16) for name, part in table.items()}
    tensors["logit_scale"] = np.float16(4.6)
    return tensors | dict.fromkeys(("input_resolution", "context_length", "vocab_size"), np.int64(20))


def test_openai_s_archive_gives_what_its_state_dict_gives(tmp_path, make, rng):
    arch = architecture("clip-vit-mini")
    arch = dataclasses.replace(arch, text=arch.text.clone(vocabulary_size=20))
    tensors, storages, pushed, parts = openai_clip(arch, rng), {}, {}, {}
    for key, (name, tensor) in enumerate(tensors.items()):
        storages[str(key)] = tensor.tobytes()
        storage = make.storage({"e": "HalfStorage", "l": "LongStorage"}[tensor.dtype.char], str(key), tensor.size)
        strides = [stride // tensor.itemsize for stride in tensor.strides]
        pushed[name] = make.tensor(storage, tensor.shape, strides)
        *modules, last = name.split(".")
        part = parts
        for module in modules:
            part = part.setdefault(module, {})
        part[last] = pushed[name]

    def module(part):
        inner = {name: module(x) if type(x) is dict else x for name, x in part.items()}
        return make.module_of({"training": b"\x89"} | inner)

    script = make.write_script(tmp_path / "script.pt", module(parts), storages, byteorder=None)
    state_dict = make.write_zip(tmp_path / "state_dict.pt", make.pickled(make.mapping(pushed)), storages)
    for read in (import_weights, import_text_tower):
        found, expected = tree.flatten(read(script, arch)), tree.flatten(read(state_dict, arch))
        assert list(found) == list(expected) and {x.dtype for x in found.values()} == {np.dtype(np.float32)}
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)
    np.testing.assert_array_equal(import_weights(script, arch)["projection"]["kernel"], tensors["visual.proj"])


# --- What is refused ---

GLOBALS = [
    *[("os", "system"), ("builtins", "eval"), ("torch", "load"), ("torch.jit", "load")],
    *[("torch.jit._pickle", "build_tensor_from_id"), ("torch.jit._pickle", "restore_type_tag.__globals__")],
    *[("__torch__x", "Network"), ("x.__torch__", "Network"), ("__torch", "Network"), ("", "__torch__"), ("", "")],
]


@pytest.mark.parametrize(("module", "name"), GLOBALS)
@pytest.mark.parametrize("call", [b")R", b")\x81}b"])
def test_other_globals_are_refused_by_name(module, name, call, make, refused):
    body = make.module_of({"a": make.global_of(module, name) + call})
    refused(body, re.escape(f"refused to load the global '{module}.{name}'"), UnsafeCheckpointError)


NETWORK = b"c__torch__\nNetwork\n"
UNSAFE = {
    "an object of a dict": b"})\x81",
    "an object of a Function": b"ccollections\nOrderedDict\n)\x81",
    "an object of a StorageType": b"ctorch\nFloatStorage\n)\x81",
    "an object of a Module": NETWORK + b")\x81)\x81",
    "an object of '__torch__.Network' is made with arguments": NETWORK + b"K\x01\x85\x81",
    "an object of '__torch__.Network' is made with": NETWORK + b"]\x81",
    "a call of a Class": NETWORK + b")R",
    "a call of a Module": NETWORK + b")\x81)R",
    "a state for a Class": NETWORK + b"}b",
    "a state for a dict": b"}}b",
    "a state for a list": b"]}b",
    "a state for a Function": b"ccollections\nOrderedDict\n}b",
    "a state for a NoneType": b"N}b",
}


@pytest.mark.parametrize("message", UNSAFE)
def test_only_classes_make_objects_and_only_objects_get_a_state(message, make, refused):
    refused(make.module_of({"a": UNSAFE[message]}), message, UnsafeCheckpointError)


def test_a_state_that_only_code_can_read_is_refused(make, refused, leaf):
    for state in (b"N", leaf, leaf + b"\x85", b"]" + leaf + b"a", NETWORK + b")\x81"):
        refused(make.module_of({"a": NETWORK + b")\x81" + state + b"b"}), "has a state of its own making")
    tagged = b"ctorch.jit._pickle\nrestore_type_tag\n}" + make.text("Dict[str, Tensor]") + b"\x86R"
    refused(NETWORK + b")\x81" + tagged + b"b", "has a state of its own making")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"}", "is a TorchScript archive, but of a dict instead of a module"),
        (NETWORK, "is a TorchScript archive, but of a Class instead of a module"),
        (NETWORK + b")\x81", "holds no tensors by name"),
        (NETWORK + b")\x81}b", "holds no tensors by name"),
        (NETWORK + b")\x81}b}b", "two states for one object of '__torch__.Network'"),
        (NETWORK + b")\x81X\x01\0\0\0aNs", "an item of a Module under a key of type str"),
        (NETWORK + b")\x81}N" + NETWORK + b"sb", "an item of a dict under a key of type NoneType"),
        (b")\x81", "the pickle is damaged at its byte"),
        (NETWORK + b"\x81", "the pickle is damaged at its byte"),
        (b"}b", "the pickle is damaged at its byte"),
        (b"c__torch__\n" + b"x" * 2000, "the pickle is damaged at its byte"),
        (b"c__torch__\n\xff\n", "the pickle is damaged at its byte"),
    ],
)
def test_refuses_other_objects(body, message, refused):
    refused(body, message)


def test_a_class_or_an_object_is_no_storage_or_dtype(make, refused):
    for stranger in (NETWORK, NETWORK + b")\x81}b"):
        identity = make.storage("FloatStorage", "0", 6).replace(make.global_of("torch", "FloatStorage"), stranger)
        refused(make.module_of({"a": identity}), "a persistent id that is not a storage's")
        refused(make.module_of({"a": make.tensor(stranger, (6,), (1,))}), "is called with arguments that torch")


def test_objects_that_hold_themselves_or_each_other_end(make, refused, leaf):
    own = b"q\0}" + make.text("a") + b"h\0sb"
    refused(b"N" * 100 + NETWORK + b")\x81" + own, "modules that contain themselves, or are nested deeper than 32")
    deep, double = leaf, leaf
    for _ in range(40):
        deep = make.module_of({"a": deep})
    refused(deep, "modules that contain themselves, or are nested deeper than 32")
    for level in range(28):
        memo = bytes([level])
        double = make.module_of({"a": double + b"q" + memo, "b": b"h" + memo})
    refused(double, r"modules inside each other, with more names than")
    refused(make.module_of({"x" * 1001: leaf}), "a name of more than 1000 characters")
    refused(make.module_of({"a": make.module_of({"b": leaf}), "a.b": leaf}), "two tensors are named 'a.b'")


def test_there_is_a_limit_of_opcodes(make, refused, leaf, monkeypatch):
    monkeypatch.setattr("soups.formats.torch_pickle.MAX_STEPS", 1000)
    refused(NETWORK + b"q\0" + b"h\0)\x81" * 400, "a pickle of more than 1000 opcodes")


def test_a_module_in_another_file_is_refused(tmp_path, make, floats, leaf):
    body = make.pickled(make.module_of({"weight": leaf}))
    zipped = make.write_zip(tmp_path / "x.pt", body, {"0": floats[1]})  # without constants.pkl
    legacy = make.write_legacy(tmp_path / "y.pt", body, {"0": (6, floats[1])})
    for path in (zipped, legacy):
        with pytest.raises(UnsafeCheckpointError, match=r"refused to load the global '__torch__\.Network'"):
            open_checkpoint(path)
