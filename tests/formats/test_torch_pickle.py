"""Test that hostile pickles are refused by name, execute nothing, and take neither memory nor time."""

import os
import pickle
import re
import struct
import tracemalloc

import pytest

from soups.formats import CheckpointError, UnsafeCheckpointError, open_checkpoint
from soups.formats.torch_pickle import unpickle


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
    ("numpy.core.multiarray", "_reconstruct"),
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
    "code", [b"i", b"o", b"P", b"\x82\x01", b"\x83\0\0", b"\x84\0\0\0\0", b"\x97", b"\x98", b"\x92", b"\x90", b"\x81"]
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
    with pytest.raises(CheckpointError, match=rf"torch\._utils\.{function} is called with other arguments"):
        load(make.global_of("torch._utils", function) + b"(" + arguments + b"R")


@pytest.mark.parametrize("body", [b"K\x01\x85", b"]K\x01a\x85", b"]]a\x85", b"K\x01K\x02\x86"])
def test_arguments_of_mappings_are_checked(body, make):
    with pytest.raises(CheckpointError, match=r"collections\.OrderedDict is called with other arguments"):
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
    with pytest.raises(CheckpointError, match=r"mappings that hold each other, or more than \d+ entries"):
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
    check(b"}" + (make.text("a") + b"}") * 40 + b"s" * 40, "hold themselves, or deeper than 32")


def test_deep_nesting_is_no_recursion():
    value = load(b"N" + b"\x85" * 300_000)
    assert type(value) is tuple
    value = load(b"]" * 100_000 + b"a" * 99_999)
    assert type(value) is list


def test_there_is_a_limit_of_opcodes_and_bytes(monkeypatch):
    monkeypatch.setattr("soups.formats.torch_pickle.MAX_STEPS", 1000)
    monkeypatch.setattr("soups.formats.torch_pickle.MAX_PICKLE", 5000)
    load(b"N" * 998)
    with pytest.raises(CheckpointError, match="a pickle of more than 1000 opcodes"):
        load(b"N" * 1000)
    with pytest.raises(CheckpointError, match=r"damaged at its byte .*, or longer than 5000 bytes"):
        load(b"X\xff\xff\0\0" + b"x" * 0xFFFF)


@pytest.mark.parametrize("function", ["torch.Size", "collections.OrderedDict"])
def test_one_long_list_is_not_the_argument_of_many_calls(function, make, monkeypatch):
    monkeypatch.setattr("soups.formats.torch_pickle.MAX_STEPS", 10_000)
    pairs = b"".join(make.text(str(i)) + b"N\x86" for i in range(1000))
    call = make.global_of(*function.rsplit(".", 1)) + b"h\0\x85R"
    body = b"](" + pairs + b"eq\0"
    assert len(load(body + call * 5)) == 1000
    with pytest.raises(CheckpointError, match="calls with more than 10000 arguments"):
        load(body + call * 15)
