"""Test that hostile pickles are refused by name, execute nothing, and take neither memory nor time."""

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import re
import struct
import time
import tracemalloc
import types

import numpy as np
import pytest

from soups.formats import CheckpointError, UnsafeCheckpointError, open_checkpoint
from soups.formats.torch_pickle import memory_for, unpickle


def load(body, protocol=2):
    """Unpickle an opcode string."""
    return unpickle(memoryview(b"\x80" + bytes([protocol]) + body + b"."), "x.pt")[0]


# --- Code ---


class Attack:
    """Run a command when a trusting reader unpickles it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_a_command_is_not_run(protocol, container, tmp_path, make):
    marker = tmp_path / "marker"
    attack = pickle.dumps({"weight": Attack(os.system, f"touch {marker}")}, protocol)
    if container == "zip":
        path = make.write_zip(tmp_path / "x.pt", attack, {})
    else:
        path = make.write_legacy(tmp_path / "x.pt", attack, {})
    # the text opcodes of protocols 0 and 1 are refused before they name anything
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as error:
        open_checkpoint(path)
    assert not marker.exists()
    if protocol > 1:
        assert error.type is UnsafeCheckpointError and "'posix.system'" in str(error.value)
    pickle.loads(attack)
    assert marker.exists()  # the attack is a real one


def test_a_pickle_that_is_code_from_its_first_byte(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(pickle.dumps(Attack(os.system, f"touch {tmp_path / 'marker'}"), 2))
    with pytest.raises(UnsafeCheckpointError, match=r"refused to load the global 'posix\.system'"):
        open_checkpoint(path)
    assert not (tmp_path / "marker").exists()


GLOBALS = [
    ("os", "system"),
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("__builtin__", "exec"),
    ("subprocess", "Popen"),
    ("torch", "load"),
    ("torch", "FloatStorage.__class__"),
    ("torch.storage", "_load_from_bytes"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("torch.nn.modules.linear", "Linear"),
    ("torch.jit._pickle", "restore_type_tag"),
    ("__torch__", "Network"),
    ("argparse", "ArgumentParser"),
    ("numpy.core.multiarray", "fromfile"),
    ("numpy", "load"),
    ("pathlib", "os.system"),
    ("_codecs", "decode"),
    ("builtins", "type"),
    ("__builtin__", "open"),
    ("collections", "OrderedDict.__init__"),
    ("functools", "partial"),
    ("soups.files", "replace_file"),
    ("", ""),
]


@pytest.mark.parametrize(("module", "name"), GLOBALS)
@pytest.mark.parametrize("call", [b"", b")R", b")\x81", b"}b"])
def test_globals_are_refused_by_name(module, name, call, make):
    message = re.escape(f"x.pt: refused to load the global '{module}.{name}'")
    with pytest.raises(UnsafeCheckpointError, match=message):
        load(make.global_of(module, name) + call)
    with pytest.raises(UnsafeCheckpointError, match=message):
        load(make.text(module) + make.text(name) + b"\x93" + call, 4)


CALLS = {
    "of a dict": (lambda make: b"})R", "a call of a dict"),
    "of a string": (lambda make: make.text("eval") + b")R", "a call of a str"),
    "of a dtype": (lambda make: make.global_of("torch", "float32") + b")R", "a call of a "),
    "of a storage's class": (lambda make: make.global_of("torch", "FloatStorage") + b")R", "a call of a StorageType"),
    "of a tensor": (
        lambda make: make.tensor(make.storage("FloatStorage", "0", 6), (6,), (1,)) + b")R",
        "a call of a Tensor",
    ),
    "of what a call gave": (lambda make: make.global_of("torch", "Size") + b")R)R", "a call of a tuple"),
    "without a tuple": (lambda make: make.global_of("torch", "Size") + b"]R", "a call of a Function"),
    "a state for a function": (lambda make: make.global_of("torch", "Size") + b"}b", "a state for a Function"),
    "a state for a list": (lambda make: b"]}b", "a state for a list"),
    "a state for a storage": (lambda make: make.storage("FloatStorage", "0", 6) + b"}b", "a state for a Storage"),
}


@pytest.mark.parametrize("case", CALLS)
def test_only_stand_ins_are_called_or_get_a_state(case, make):
    body, message = CALLS[case]
    with pytest.raises(UnsafeCheckpointError, match=message):
        load(body(make))


@pytest.mark.parametrize(
    "code", [b"i", b"o", b"P", b"\x82\x01", b"\x83\0\0", b"\x84\0\0\0\0", b"\x97", b"\x98", b"\x92", b"d", b"l"]
)
def test_opcodes_that_torch_does_not_write_are_refused(code):
    with pytest.raises(CheckpointError, match=rf"opcode 0x{code[0]:02x} at byte 3 of the pickle"):
        load(b"}" + code)


IDENTITIES = {
    "no tuple": lambda make: make.text("storage"),
    "no storage": lambda make: make.tuple_of(make.text("module"), *[b"N"] * 4),
    "a dtype as kind": lambda make: make.tuple_of(make.global_of("torch", "uint8"), *[b"N"] * 4),
    "no class": lambda make: make.tuple_of(make.text("storage"), make.text("FloatStorage"), *[make.text("0")] * 3),
    "too short": lambda make: make.tuple_of(make.text("storage")),
    "a number as key": lambda make: make.storage("FloatStorage", "0", 6)[:-1].replace(make.text("0"), b"K\x01"),
    "a string as size": lambda make: make.storage("FloatStorage", "0", 6)[:-1].replace(make.integer(6), make.text("6")),
    "a negative size": lambda make: make.storage("FloatStorage", "0", -6)[:-1],
    "an absurd size": lambda make: make.storage("FloatStorage", "0", 1 << 62)[:-1],
    "a view": lambda make: make.storage("FloatStorage", "0", 6, b")")[:-1],
    "no dtype": lambda make: make.storage("TypedStorage", "0", 6)[:-1],
}


@pytest.mark.parametrize("case", IDENTITIES)
def test_persistent_ids_are_storages(case, make):
    with pytest.raises(CheckpointError, match=r"x\.pt: (a persistent id that is not|storage '0' (has|is))"):
        load(IDENTITIES[case](make) + b"Q")


ARGUMENTS = {
    "a tensor of nothing": (b"NK\x00)))\x89}t", "_rebuild_tensor_v2"),
    "too few": (b"t", "_rebuild_tensor_v2"),
    "too many": (b"K\x00" * 40 + b"t", "_rebuild_tensor"),
    "a parameter of a number": (b"K\x00\x89}t", "_rebuild_parameter"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_are_checked(case, make):
    arguments, function = ARGUMENTS[case]
    with pytest.raises(CheckpointError, match=rf"torch\._utils\.{function} is called with arguments that torch"):
        load(make.global_of("torch._utils", function) + b"(" + arguments + b"R")


@pytest.mark.parametrize("body", [b"K\x01\x85", b"]K\x01a\x85", b"]]a\x85", b"K\x01K\x02\x86"])
def test_arguments_of_mappings_are_checked(body, make):
    with pytest.raises(CheckpointError, match=r"collections\.OrderedDict is called with arguments that torch"):
        load(make.global_of("collections", "OrderedDict") + body + b"R")


# --- Memory and time ---

DAMAGED = {
    "an empty stack": b"R",
    "an empty tuple": b"K\x01\x87",
    "no mark": b"u",
    "what lies before a mark": b"}K\x01(K\x01s",
    "a lone key": b"}(K\x01u",
    "a memo that is not there": b"h\x07",
    "a string that is not there": b"X\xff\xff\xff\xff",
    "a long string that is not there": b"\x8d" + struct.pack("<Q", 1 << 62),
    "bytes that are not there": b"\x8e" + struct.pack("<Q", 1 << 62),
    "no UTF-8": b"X\x01\0\0\0\xff",
    "a global without an end": b"c" + b"x" * 2000,
    "nothing": b"",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_pickles_are_an_error(case):
    with pytest.raises(CheckpointError, match=r"x\.pt: the pickle is damaged at its byte"):
        load(DAMAGED[case])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"}r\xff\xff\xff\xff", "memo entry 4294967295 before opcode 3"),
        (b"\x8b\xff\xff\xff\x7f", "an integer of 2147483647 bytes"),
        (b"}(\x8a\x09" + b"\xff" * 8 + b"\x01Nu", "an item of a dict under a key of type int"),
        (b"}N}s", "an item of a dict under a key of type NoneType"),
        (b"]K\x01K\x01s", "an item of a list under a key of type str"),
        (b"}K\x01a", "elements of a dict"),
        (b"\x80\x06", "pickle protocol 6"),
        (b"\x80\x01", "pickle protocol 1"),
        (b"}(K\x01NX\x01\0\0\x001Nu", "two items under the key '1'"),
    ],
)
def test_absurd_values_are_refused(body, message):
    with pytest.raises(CheckpointError, match=message):
        load(body)


def test_no_memory_is_taken_for_what_is_only_announced():
    tracemalloc.start()
    try:
        for body in (b"}r\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f", b"\x8e\0\0\0\0\0\x01\0\0", b"\x8b\xff\xff\xff\x7f"):
            with pytest.raises(CheckpointError):
                load(body)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_key_that_takes_for_ever_to_hash_is_not_hashed():
    nested = b"N" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(90))
    with pytest.raises(CheckpointError, match="under a key of type tuple"):
        load(b"}(" + nested + b"Nu")


@pytest.mark.parametrize("leaf", [b"}", b"K\x01", None])
def test_mappings_that_double_at_every_level_end(leaf, tmp_path, make, floats):
    body = leaf or make.tensor(make.storage("FloatStorage", "0", 6), (6,), (1,))
    for level in range(28):
        first = b"q" + bytes([level])
        body = b"}(" + make.text("a") + body + first + make.text("b") + b"h" + bytes([level]) + b"u"
    path = make.write_zip(tmp_path / "x.pt", make.pickled(body), {"0": floats[1]})
    with pytest.raises(
        CheckpointError, match=r"mappings inside each other, with more names than the size of the file allows"
    ):
        open_checkpoint(path)


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_what_holds_itself_ends(container, tmp_path, make):
    def check(body, message):
        if container == "zip":
            path = make.write_zip(tmp_path / "x.pt", make.pickled(body), {})
        else:
            path = make.write_legacy(tmp_path / "x.pt", make.pickled(body), {})
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(path)

    check(b"}q\0" + make.text("a") + b"h\0s", "hold")
    check(make.mapping({"a": b"]q\0h\0a"}), "holds no tensors")
    check(b"}" + (make.text("a") + b"}") * 40 + b"s" * 40, "contain themselves, or are nested deeper than 32")


def test_deep_nesting_is_no_recursion():
    value = load(b"N" + b"\x85" * 50_000)
    assert type(value) is tuple
    value = load(b"]" * 50_000 + b"a" * 49_999)
    assert type(value) is list


def test_there_is_a_limit_of_opcodes_and_bytes(monkeypatch):
    monkeypatch.setattr("soups.formats.torch_pickle.MAX_STEPS", 1000)
    monkeypatch.setattr("soups.formats.torch_pickle.MAX_PICKLE", 5000)
    load(b"N" * 998)
    with pytest.raises(CheckpointError, match="a pickle of more than 1000 opcodes"):
        load(b"N" * 1000)
    with pytest.raises(CheckpointError, match=r"damaged at its byte .*, or longer than 5000 bytes"):
        load(b"X\xff\xff\0\0" + b"x" * 0xFFFF)


def many_calls(make, function, items):
    return b"](" + items + b"eq\0" + (make.global_of(*function) + b"h\0\x85R") * 1000


def many_shapes(make):
    storage = make.storage("FloatStorage", "0", 6) + b"q\1"
    call = b"h\2(h\1K\0h\0h\0tR"
    return (
        b"]("
        + b"K\1" * 64
        + b"eq\0"
        + storage
        + make.global_of("torch._utils", "_rebuild_tensor")
        + b"q\2"
        + call * 5000
    )


AMPLIFYING = {
    "lists": lambda make: b"]" * 25_000,
    "mappings": lambda make: b"}" * 25_000,
    "tuples": lambda make: b"N" + b"\x85" * 25_000,
    "marks": lambda make: b"(" * 25_000,
    "sets": lambda make: b"\x8f" * 25_000,
    "frozen sets": lambda make: b"(\x91" * 12_500,
    "a memo": lambda make: b"N" + b"\x94" * 25_000,
    "copies of a list": lambda make: many_calls(make, ("torch", "Size"), b"N" * 1000),
    "copies of a mapping": lambda make: many_calls(
        make, ("collections", "OrderedDict"), b"".join(make.text(str(i)) + b"N\x86" for i in range(1000))
    ),
    "small mappings": lambda make: make.text("a") + b"q\0" + b"}h\0Ns" * 7500,
    "copies of a shape": many_shapes,
}
OTHERS = {
    "objects": lambda make: make.global_of("argparse", "Namespace") + b"q\0" + b"h\0)\x81" * 7500,
    "called objects": lambda make: make.global_of("argparse", "Namespace") + b"q\0" + b"h\0)R" * 7500,
    "integers": lambda make: b"M\xff\xff" * 25_000,
    "floats": lambda make: b"G" + b"\1" * 8 + (b"G" + b"\1" * 8) * 7500,
    "globals": lambda make: make.global_of("uuid", "UUID") * 2500,
    "a mapping": lambda make: b"}(" + b"".join(make.text(str(i)) + b"N" for i in range(7500)) + b"u",
    "wide characters": lambda make: (make.text("\U0001f600" + "a" * 1000)) * 25,
}


@pytest.mark.parametrize("case", AMPLIFYING)
def test_values_take_no_more_memory_than_their_bytes_allow(case, make, monkeypatch):
    monkeypatch.setattr("soups.formats.torch_pickle.ALLOWANCE", 1 << 18)
    body = AMPLIFYING[case](make)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"x\.pt: values of more than \d+ bytes in \d+ bytes of pickle"):
            load(body)
        assert tracemalloc.get_traced_memory()[1] < 1.25 * memory_for(len(body))
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("case", OTHERS)
def test_values_within_their_bounds_take_what_is_counted(case, make, monkeypatch):
    monkeypatch.setattr("soups.formats.torch_pickle.ALLOWANCE", 1 << 15)
    body = OTHERS[case](make)
    tracemalloc.start()
    try:
        load(body)
        assert tracemalloc.get_traced_memory()[1] < 1.25 * memory_for(len(body))
    finally:
        tracemalloc.stop()


def test_shapes_have_few_dimensions(make):
    long = b"](" + b"K\1" * 65 + b"eq\0" + make.storage("FloatStorage", "0", 6) + b"q\1"
    with pytest.raises(CheckpointError, match="a tensor of 65 dimensions, more than 64"):
        load(long + make.global_of("torch._utils", "_rebuild_tensor") + b"(h\1K\0h\0h\0tR")


def test_names_take_no_more_memory_than_the_file_allows(tmp_path, make, floats, monkeypatch):
    monkeypatch.setattr("soups.formats.torch_pickle.ALLOWANCE", 1 << 20)
    # a long name before a thousand others, fifty times: 50 MB of names
    leaf = make.tensor(make.storage("FloatStorage", "0", 6), (6,), (1,))
    inner = make.mapping({str(i): leaf if i == 0 else b"N" for i in range(1000)}) + b"q\0"
    outer = b"}(" + b"".join(make.text(f"{i:0900d}") + b"h\0" for i in range(50)) + b"u"
    path = make.write_zip(tmp_path / "x.pt", make.pickled(inner + outer), {"0": floats[1]})
    tracemalloc.start()
    try:
        with pytest.raises(
            CheckpointError, match="mappings inside each other, with more names than the size of the file allows"
        ):
            open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 1.25 * memory_for(path.stat().st_size)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("file", ["zip.pt", "legacy.pt", "training.pt", "script.pt"])
def test_what_torch_writes_is_far_from_the_bounds(file, monkeypatch):
    monkeypatch.setattr("soups.formats.torch_pickle.ALLOWANCE", 1000)
    monkeypatch.setattr("soups.formats.torch_pickle.FACTOR", 48)
    assert open_checkpoint(pathlib.Path(__file__).parent / "data" / file).leaves


# --- What lies beside weights ---

CODECS = b"c_codecs\nencode\nX\x02\0\0\0abX\x06\0\0\0latin1\x86R"
BESIDE = {
    "a Namespace": pickle.dumps(argparse.Namespace(lr=0.1, betas=(0.9, 0.99), path=pathlib.PurePosixPath("a")), 2),
    "a SimpleNamespace": pickle.dumps(types.SimpleNamespace(a=1), 2),
    "a path": pickle.dumps(pathlib.PosixPath("/tmp/x"), 2),
    "a path of Windows": b"\x80\x02cpathlib\nWindowsPath\nX\x01\0\0\0a\x85R.",
    "a path of Python 3.13": b"\x80\x02cpathlib._local\nPosixPath\nX\x01\0\0\0a\x85R.",
    "a counter": pickle.dumps(collections.Counter({30: 1, 60: 2}), 2),
    "a defaultdict": pickle.dumps(collections.defaultdict(list, {"a": [1], "b": []}), 2),
    "a defaultdict of numbers": pickle.dumps(collections.defaultdict(int, {"a": 1}), 2),
    "a defaultdict of texts": pickle.dumps(collections.defaultdict(str, {"a": "b"}), 2),
    "classes of Python 2": b"\x80\x02(c__builtin__\nlong\nc__builtin__\nunicode\nt.",
    "a range": pickle.dumps(range(3), 2),
    "constants": pickle.dumps((..., NotImplemented), 2),
    "a time": pickle.dumps(time.gmtime(0), 2),
    "torch's version": b"\x80\x02ctorch.torch_version\nTorchVersion\nX\1\0\0\x002\x85\x81.",
    "a layout": b"\x80\x02ctorch.serialization\n_get_layout\nX\1\0\0\0s\x85R.",
    "a history of mmengine": b"\x80\x02cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81}X\1\0\0\0aNsb.",
    "a set": pickle.dumps({1, "a"}, 2),
    "a frozenset": pickle.dumps(frozenset({1, (2, 3)}), 2),
    "a set, protocol 4": pickle.dumps({1, "a"}, 4),
    "a frozenset, protocol 4": pickle.dumps(frozenset({1, (2, 3)}), 4),
    "bytes": pickle.dumps(b"\xff\0a", 2),
    "bytes, protocol 3": pickle.dumps(b"\xff\0a", 3),
    "a bytearray": pickle.dumps(bytearray(b"\xffab"), 2),
    "a bytearray, protocol 5": pickle.dumps(bytearray(b"\xffab"), 5),
    "a complex number": pickle.dumps(1 + 2j, 2),
    "a string of Python 2": b"\x80\x02U\x02\xff\xfe.",
    "a date": pickle.dumps(datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC), 2),
    "a time span": pickle.dumps(datetime.timedelta(1), 2),
    "a deque": pickle.dumps(collections.deque([1, 2], 3), 2),
    "a scalar": pickle.dumps(np.float64(1.5), 2),
    "a scalar of NumPy 1": pickle.dumps(np.float32(1.5), 2).replace(b"numpy._core", b"numpy.core"),
    "a dtype": pickle.dumps(np.dtype(">f4"), 2),
    "a state of random numbers": pickle.dumps(np.random.RandomState(0).get_state(), 2),
    "a class": b"\x80\x02c__builtin__\nlist\n.",
    "a class as a key": b"\x80\x02}cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n}X\1\0\0\0aNss.",
    "settings of Lightning": b"\x80\x02cpytorch_lightning.utilities.parsing\nAttributeDict\n)\x81}X\1\0\0\0aNsb.",
    "settings of OmegaConf": b"\x80\x02comegaconf.dictconfig\nDictConfig\n)\x81}X\1\0\0\0aNsb.",
}


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("case", BESIDE)
def test_what_lies_beside_weights_is_passed_over_and_named(case, wrapped, container, tmp_path, make, floats):
    content = BESIDE[case]
    leaf = make.tensor(make.storage("FloatStorage", "0", 6), (6,), (1,))
    items = {"weights": make.mapping({"w": leaf}) if wrapped else leaf, "b\x1beside": content[2:-1]}
    body = make.pickled(make.mapping({"state_dict" if k == "weights" and wrapped else k: v for k, v in items.items()}))
    if container == "zip":
        path = make.write_zip(tmp_path / "x.pt", body, {"0": floats[1]})
    else:
        path = make.write_legacy(tmp_path / "x.pt", body, {"0": (6, floats[1])})
    checkpoint = open_checkpoint(path)
    name = "w" if wrapped else "weights"
    assert list(checkpoint.leaves) == [name] and checkpoint.read(name).tolist() == floats[0].tolist()
    assert r"'b\x1beside" in checkpoint.notes[-1]


HOLDING = {
    "a Namespace": b"cargparse\nNamespace\n)\x81}X\1\0\0\0a%sb",
    "a Namespace, deep": b"cargparse\nNamespace\n)\x81}X\1\0\0\0a](}X\1\0\0\0b(%stsesb",
    "a SimpleNamespace": b"ctypes\nSimpleNamespace\n)R}X\1\0\0\0a%ssb",
    "a set": b"c__builtin__\nset\n](%se\x85R",
    "a set, protocol 4": b"\x8f(%s\x90",
    "a frozenset, protocol 4": b"(%s\x91",
    "a deque": b"ccollections\ndeque\n)\x81(%se",
    "settings of Lightning": b"cpytorch_lightning.utilities.parsing\nAttributeDict\n)\x81(X\1\0\0\0a%su",
    "an array": b"cnumpy.core.multiarray\n_reconstruct\n(%stR",
    "a list by its class": b"c__builtin__\nlist\n(](%setR",
}


@pytest.mark.parametrize("what", ["tensor", "storage"])
@pytest.mark.parametrize("case", HOLDING)
def test_a_tensor_on_what_is_passed_over_is_an_error(case, what, tmp_path, make, floats):
    storage = make.storage("FloatStorage", "0", 6)
    leaf = make.tensor(storage, (6,), (1,))
    body = HOLDING[case].replace(b"a%sb", b"a%ssb") % (leaf if what == "tensor" else storage)
    path = make.write_zip(tmp_path / "x.pt", make.pickled(make.mapping({"w": leaf, "x": body})), {"0": floats[1]})
    with pytest.raises(
        CheckpointError, match=r"x\.pt: a tensor lies behind an object that is not read \(one of .*\); save"
    ):
        open_checkpoint(path)


def test_weights_in_a_list_have_no_names(tmp_path, make, floats):
    leaf = make.tensor(make.storage("FloatStorage", "0", 6), (6,), (1,))
    for name, found in (("layers", None), ("optimizer_states", ["w"]), ("cuda_rng_state", ["w"])):
        mapping = make.mapping({"w": leaf, name: b"](" + make.mapping({"v": leaf}) + leaf + b"e"})
        path = make.write_zip(tmp_path / "x.pt", make.pickled(mapping), {"0": floats[1]})
        if found:
            assert list(open_checkpoint(path).leaves) == found
            continue
        with pytest.raises(CheckpointError, match="'layers' has tensors in a list, without names: save a state_dict"):
            open_checkpoint(path)
        assert open_checkpoint(path, ".").notes == ("left out of x.pt: 'layers'",)


def test_trees_in_the_names_of_tensors(tmp_path, make, floats):
    leaf = make.tensor(make.storage("FloatStorage", "0", 6), (6,), (1,))
    names = ("model.fc.w", "optimizer.fc.w.exp_avg", "optimizer.fc.w.step")
    path = make.write_zip(tmp_path / "x.pt", make.pickled(make.mapping(dict.fromkeys(names, leaf))), {"0": floats[1]})
    with pytest.raises(CheckpointError, match=r"holds the state of an optimizer: 'optimizer.fc.w.exp_avg'; choose"):
        open_checkpoint(path)
    assert list(open_checkpoint(path, "model").leaves) == ["fc.w"]
    assert list(open_checkpoint(path, "model/fc").leaves) == ["w"]
    with pytest.raises(CheckpointError, match=r"has no tree 'ema'; there are: 'model', 'optimizer'"):
        open_checkpoint(path, "ema")


@pytest.mark.parametrize("body", [b"ccollections\ndefaultdict\n]\x85R", b"ccollections\nCounter\n](K\1K\2e\x85R"])
def test_arguments_of_counters_and_defaultdicts_are_checked(body):
    with pytest.raises(CheckpointError, match=r"collections\.\w+ is called with arguments that torch"):
        load(body)


def test_weights_in_a_defaultdict(tmp_path, make, floats):
    leaf = make.tensor(make.storage("FloatStorage", "0", 6), (6,), (1,))
    body = b"ccollections\ndefaultdict\nc__builtin__\ndict\n\x85R(" + make.text("w") + leaf + b"u"
    path = make.write_zip(tmp_path / "x.pt", make.pickled(body), {"0": floats[1]})
    assert open_checkpoint(path).read("w").tolist() == floats[0].tolist()


def test_only_objects_of_inert_classes_are_made(make):
    for body in (
        b"ccollections\nOrderedDict\n)\x81",
        b"ctorch\nSize\n)\x81",
        b"})\x81",
        b"cargparse\nNamespace\n]\x81",
    ):
        with pytest.raises(UnsafeCheckpointError, match="an object of a class that is not known to be inert"):
            load(body)


@pytest.mark.parametrize("value", ["Namespace", "scalar"])
def test_a_file_of_nothing_but_settings(value, tmp_path, make):
    body = {"Namespace": BESIDE["a Namespace"][2:-1], "scalar": make.mapping({"a": BESIDE["a scalar"][2:-1]})}[value]
    path = make.write_zip(tmp_path / "x.pt", make.pickled(body), {})
    with pytest.raises(
        CheckpointError, match=r"holds (a 'argparse\.Namespace', not tensors|no tensors by name, only 'a')"
    ):
        open_checkpoint(path)


def test_deep_records_are_no_recursion():
    body = b"cargparse\nNamespace\nq\0N" + b"\x85q\1h\0h\1R" * 50_000
    assert load(body).name == "argparse.Namespace"
