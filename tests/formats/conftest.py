"""Write checkpoints byte by byte, from the descriptions of their formats and without this library or torch."""

import json
import struct
import types
import zipfile

import numpy as np
import pytest

MAGIC = 0x1950A86A20F9469CFC6C


def safetensors_bytes(entries, data=b"", metadata=None, length=None):
    """Return a safetensors file: `entries` maps names to (dtype, shape, begin, end), or is the header itself."""
    header = entries
    if not isinstance(entries, bytes):
        items = {
            name: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
            for name, (dtype, shape, begin, end) in entries.items()
        }
        header = json.dumps(({"__metadata__": metadata} if metadata else {}) | items).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


# --- Pickles, opcode by opcode ---


def text(string):
    """Push a string."""
    return b"X" + struct.pack("<I", len(string.encode())) + string.encode()


def integer(value):
    """Push an integer."""
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def tuple_of(*items):
    """Push a tuple."""
    return b"(" + b"".join(items) + b"t"


def global_of(module, name):
    """Push a global."""
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def storage(kind, key, count, *view):
    """Push a storage."""
    return tuple_of(text("storage"), global_of("torch", kind), text(key), text("cpu"), integer(count), *view) + b"Q"


def tensor(storage, shape, strides, offset=0, function="_rebuild_tensor_v2", more=()):
    """Push a tensor."""
    hooks = global_of("collections", "OrderedDict") + b")R"
    sizes = tuple_of(*map(integer, shape)), tuple_of(*map(integer, strides))
    extra = (b"\x89", hooks) if function != "_rebuild_tensor" else ()
    arguments = tuple_of(storage, integer(offset), *sizes, *extra, *more)
    return global_of("torch._utils", function) + arguments + b"R"


def mapping(items):
    """Push a dict."""
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def module_of(items, name="Network"):
    """Push an object of a class of a TorchScript archive."""
    return global_of("__torch__", name) + b")\x81" + mapping(items) + b"b"


def pickled(body):
    """Make a pickle of one value."""
    return b"\x80\x02" + body + b"."


# --- torch's containers ---


def write_zip(
    path, pickle, storages, *, byteorder=b"little", prefix="archive/", compression=zipfile.ZIP_STORED, more=()
):
    """Write torch's zip format."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{prefix}data.pkl", pickle)
        if byteorder is not None:
            archive.writestr(f"{prefix}byteorder", byteorder)
        for key, content in storages.items():
            archive.writestr(f"{prefix}data/{key}", content)
        for name in more:
            archive.writestr(f"{prefix}{name}", b"")
    return path


def write_script(path, body, storages, **kwargs):
    """Write what torch.jit.save does, without the code."""
    return write_zip(path, pickled(body), storages, more=["constants.pkl"], **kwargs)


def write_legacy(path, pickle, storages, *, little_endian=True, magic=MAGIC):
    """Write torch's older format; `storages` maps keys to (count, bytes)."""
    system = mapping({"little_endian": b"\x88" if little_endian else b"\x89"})
    keys = b"](" + b"".join(text(key) for key in storages) + b"e"
    content = pickled(integer(magic)) + pickled(integer(1001)) + pickled(system) + pickle + pickled(keys)
    content += b"".join(struct.pack("<q", count) + data for count, data in storages.values())
    path.write_bytes(content)
    return path


@pytest.fixture(scope="session")
def make():
    """Return the functions of this file."""
    return types.SimpleNamespace(**{name: value for name, value in globals().items() if name.isidentifier()})


@pytest.fixture(scope="session")
def floats():
    """Return six numbers and their bytes."""
    values = np.arange(6, dtype=np.float32)
    return values, values.tobytes()
