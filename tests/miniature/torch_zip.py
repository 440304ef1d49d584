"""Write a state dict as torch.save does, without torch: a zip archive of a pickle and the raw bytes of each tensor."""

import pathlib
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

_STORAGES = {"float32": b"FloatStorage", "float16": b"HalfStorage", "int64": b"LongStorage"}
_PREFIX = "archive/"
_ALIGNMENT = 64  # torch pads the extra field of each entry until its bytes begin at a multiple


def write_state_dict(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> pathlib.Path:
    """Write {name: tensor} as an OrderedDict of contiguous tensors, each with a storage of its own.

    Raises:
        KeyError: a dtype other than float32, float16 and int64.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    items = b"".join(_string(name) + _tensor(str(key), array) for key, (name, array) in enumerate(arrays.items()))
    ordered_dict = b"ccollections\nOrderedDict\n)R"
    with zipfile.ZipFile(path, "w") as archive:
        _write(archive, "data.pkl", b"\x80\x02" + ordered_dict + b"(" + items + b"u.")
        _write(archive, "byteorder", b"little")
        for key, array in enumerate(arrays.values()):
            _write(archive, f"data/{key}", array.tobytes())
        _write(archive, "version", b"3\n")
    return path


def _tensor(key, array):
    """Pickle a call of torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)."""
    kind = b"ctorch\n" + _STORAGES[array.dtype.name] + b"\n"
    storage = _tuple(_string("storage"), kind, _string(key), _string("cpu"), _integer(array.size)) + b"Q"
    strides = [stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides]
    shape, strides = (_tuple(*map(_integer, numbers)) for numbers in (array.shape, strides))
    arguments = _tuple(storage, _integer(0), shape, strides, b"\x89", b"ccollections\nOrderedDict\n)R")
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def _string(text):
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _integer(number):
    return b"J" + struct.pack("<i", number)


def _tuple(*items):
    return b"(" + b"".join(items) + b"t"


def _write(archive, name, content):
    entry = zipfile.ZipInfo(_PREFIX + name)  # its date is fixed, so the same tensors give the same file
    begin = archive.fp.tell() + 30 + len(entry.filename) + 4
    padding = -begin % _ALIGNMENT
    entry.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    archive.writestr(entry, content)
