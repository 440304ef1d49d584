"""Map files into memory without keeping them open, and hash them."""

import ctypes
import errno
import functools
import mmap
import os
import pathlib

import numpy as np
import xxhash

from soups.stores import StorePath

_FAILED = ctypes.c_void_p(-1).value


def mapped(path: str | os.PathLike | StorePath, size: int) -> np.ndarray:
    """Return the bytes of a file, read-only, without reading them yet; those of an object of a store are read.

    It must have `size` of them, at least one: reading a map beyond the end of its file would kill the process.
    """
    if isinstance(path, StorePath):
        content, status = path.read_with_status()
        if status.st_size != size:
            raise ValueError(f"{path} has {status.st_size} bytes instead of {size}")
        read = np.frombuffer(content, np.uint8)
        read.flags.writeable = False
        return read
    descriptor = os.open(path, os.O_RDONLY)
    try:
        actual = os.fstat(descriptor).st_size
        if actual != size:
            raise ValueError(f"{path} has {actual} bytes instead of {size}")
        if os.name == "nt":  # no C library to load, and no small limit of open files either
            return np.frombuffer(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ), np.uint8)
        return np.asarray(_Mapping(descriptor, size, path))
    finally:
        os.close(descriptor)


def hash_files(*paths: pathlib.Path | StorePath) -> str:
    """Return the XXH3 (128 bits, hexadecimal) of the bytes of files, one after the other.

    Raises:
        FileNotFoundError: no file is there; a pipe, which would be waited for, is none.
    """
    digest = xxhash.xxh3_128()
    for path in paths:
        if isinstance(path, StorePath):
            digest.update(path.read_with_status()[0])
            continue
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        size = path.stat().st_size
        digest.update(mapped(path, size) if size > 1 << 16 else path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _system():
    # Python's mmap keeps a descriptor open for every mapping, and a few mapped members with hundreds of leaves would
    # use up the usual limit of 1024. The system's own mmap needs none.
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library


class _Mapping:
    # NumPy keeps an object with this interface alive as long as there is a view of its memory
    def __init__(self, descriptor, size, path):
        self._address = _system().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        self._size = size
        if self._address == _FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        readonly = True
        self.__array_interface__ = {"data": (self._address, readonly), "shape": (size,), "typestr": "|u1", "version": 3}

    def __del__(self):
        if self._address != _FAILED:
            _system().munmap(self._address, self._size)
