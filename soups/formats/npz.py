"""Read NumPy's .npz files, of which plain members are mapped and compressed ones unpacked when read, and write them."""

import math
import os
import pathlib
import re
import zipfile
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from soups.files import cannot_write, sync_folder, unfinished
from soups.formats.archive import data_offset, read_entries, unpack
from soups.formats.tensors import CheckpointError, Header, Leaf, UnsafeCheckpointError, checked_nbytes, map_file, short
from soups.names import bounded, shown

MAX_HEADER = 10_000  # bytes, as NumPy has it
PREFIX = 12  # bytes at most before the header
LONGEST = 65_000  # bytes of a name, of which a zip archive holds a few more
_NUMBER = re.compile("[|<>=]?([?]|b1|[iu][1248]|f[248]|c8|c16|V2)")
_ENTRY = r"(?:'(descr)' : ('[^']{0,20}')|'(fortran_order)' : (True|False)|'(shape)' : (\([0-9L, ]*\)))(?: ,)? "


def read_header(path: pathlib.Path) -> Header:
    """Return what an .npz file holds, without reading a tensor; members of text are no weights.

    Two raw bytes are bfloat16, as NumPy saves it.
    """
    with path.open("rb") as file:
        entries = read_entries(file, path).values()
        names = {entry.orig_filename: entry.orig_filename.removesuffix(".npy") for entry in entries}
        found = {
            name: _leaf(name, file, entry, path)
            for entry in entries
            if (name := names[entry.orig_filename]) != entry.orig_filename
        }
        size = file.seek(0, os.SEEK_END)
    leaves = [leaf for leaf in found.values() if leaf is not None]
    ignored = [name for name in names.values() if found.get(name) is None]
    if not leaves:
        raise CheckpointError(f"{path} is an archive that holds no arrays of numbers")
    return Header(leaves, size, ignored=ignored)


def _leaf(name, file, entry, path):
    where = f"{path}: {short(name)}"
    start = data_offset(file, entry, path, packed=True)
    file.seek(start)
    content = file.read(min(entry.compress_size, 2 * MAX_HEADER))
    packed = entry.compress_type != zipfile.ZIP_STORED
    if packed:
        content = unpack(content, entry, min(entry.file_size, MAX_HEADER + PREFIX), path)
    length, text = _header(content, where)
    array = _described(text, where)
    if array is None:
        return None
    stored, shape, fortran = array
    nbytes = checked_nbytes(shape, stored, where)
    if length + nbytes != entry.file_size:
        raise CheckpointError(f"{where} has {entry.file_size - length} bytes; its shape and dtype make {nbytes}")
    dtype = _dtype(stored)
    if packed or stored.newbyteorder("=") != stored:
        size = file.seek(0, os.SEEK_END)

        def load(index):
            return _load(path, size, entry, start, array)[index]

        # what is unpacked is joined from blocks
        return Leaf(name, shape, dtype, path, None, nbytes, load=load, making=2 * nbytes)
    if not fortran or not nbytes:
        return Leaf(name, shape, dtype, path, start + length, nbytes)
    strides = tuple(stored.itemsize * math.prod(shape[:axis]) for axis in range(len(shape)))
    return Leaf(name, shape, dtype, path, None, nbytes, (start + length, strides))


def _header(content, where):
    """Return how many bytes lie before an array's own, and the text that describes it."""
    version = content[6:7]
    if content[:6] != b"\x93NUMPY" or version not in (b"\1", b"\2", b"\3"):
        raise CheckpointError(f"{where} is not an array in NumPy's format")
    begin = 10 if version == b"\1" else PREFIX
    end = begin + int.from_bytes(content[8:begin], "little")
    if end > min(len(content), MAX_HEADER + begin):
        raise CheckpointError(f"{where} has a header of {end - begin} bytes: damaged, or more than {MAX_HEADER}")
    return end, content[begin:end].decode("latin-1")


def _described(header, where):
    """Return dtype, shape, and whether the order is Fortran's; None for what is no number."""
    text = " ".join(re.findall(r"'[^']*'|\w+|\S", header, re.ASCII))
    found = dict(filter(None, entry) for entry in re.findall(_ENTRY, text))
    if not re.fullmatch(rf"\{{ (?:{_ENTRY}){{3}}\}}", text) or len(found) < 3:
        raise CheckpointError(f"{where} has a header that does not describe a plain array: {short(text)}")
    kind, sizes = found["descr"].strip("'"), [size.strip() for size in found["shape"].strip("()").split(",")]
    if re.fullmatch(r"[|<>=]?O\d?", kind):
        raise UnsafeCheckpointError(f"{where} holds pickled objects, which could run code; save its arrays by name")
    if re.fullmatch(r"[|<>=]?[SUaMm]\d*(\[\w+\])?", kind):
        return None
    if not all(re.fullmatch("([0-9]{1,20}L?)?", size) for size in sizes):  # longer ones take time to convert
        raise CheckpointError(f"{where} has a shape whose sizes are not 64-bit integers")
    shape = tuple(int(size.rstrip("L")) for size in sizes if size)
    return number(kind, where), shape, found["fortran_order"] == "True"


def check_npz(dtypes: Mapping[str, np.dtype]) -> None:
    """Raise a ValueError that lists the names and dtypes that an .npz file cannot hold, if some are such."""
    lines = [f"  {shown(name)}: {problem}" for name, dtype in dtypes.items() if (problem := _unwritable(name, dtype))]
    if lines:
        raise ValueError(f"tensors that an .npz file cannot hold:\n{bounded(lines)}")


def write_npz(path: str | os.PathLike, leaves: Mapping[str, np.ndarray]) -> pathlib.Path:
    """Write arrays by name as `numpy.savez` does, under another name, see the file to the disk, and rename it.

    bfloat16 is two raw bytes, as big_vision has it. The bytes are the same whenever the arrays are.

    Raises:
        ValueError: as `check_npz`.
        OSError: the disk is full or cannot be written to; the file is named.
    """
    check_npz({name: leaf.dtype for name, leaf in leaves.items()})
    path = pathlib.Path(path)
    fresh = unfinished(path)
    try:
        with open(fresh, "xb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, leaf in leaves.items():
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                        raw = leaf.view("V2") if leaf.dtype == ml_dtypes.bfloat16 else leaf
                        np.lib.format.write_array(entry, raw, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        fresh.unlink(missing_ok=True)
    return path


def _unwritable(name, dtype):
    if not name.isprintable() or len(name.encode()) > LONGEST:
        return f"a name there is printable, and of at most {LONGEST:,} bytes"
    known = dtype == ml_dtypes.bfloat16 or (dtype.kind != "V" and _NUMBER.fullmatch(dtype.str))
    return "" if known else f"dtype {dtype}"


def number(kind: str, where: str) -> np.dtype:
    """Return the dtype of plain numbers that NumPy writes as `kind`, such as "<f4"."""
    if not _NUMBER.fullmatch(kind):
        raise CheckpointError(f"{where} has a dtype that cannot be read, {short(kind)}; save it as plain numbers")
    return np.dtype(kind)


def decoded(content: bytes, stored: np.dtype, shape: tuple[int, ...], fortran: bool) -> np.ndarray:
    """Return the array of the last bytes of `content`, read-only and in the order of bytes of this machine."""
    array = np.frombuffer(content, stored, offset=len(content) - math.prod(shape) * stored.itemsize)
    dtype = _dtype(stored)
    array = array.view(dtype) if stored.kind == "V" else array.astype(dtype, copy=False)
    array.flags.writeable = False
    return array.reshape(shape, order="F" if fortran else "C")


def _dtype(stored):
    return np.dtype(ml_dtypes.bfloat16) if stored.kind == "V" else stored.newbyteorder("=")


def _load(path, size, entry, start, array):
    content = memoryview(map_file(path, size))[start : start + entry.compress_size]
    if entry.compress_type != zipfile.ZIP_STORED:
        content = unpack(content, entry, entry.file_size, path)
    return decoded(content, *array)
