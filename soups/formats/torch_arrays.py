"""Read the NumPy arrays that lie among the tensors of a torch file: their numbers stand in the pickle itself."""

import re

import numpy as np

from soups.formats import npz
from soups.formats.tensors import CheckpointError, checked_nbytes
from soups.formats.torch_globals import Function, Record

_MAKERS = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}  # the old and the new place of NumPy
_MAKERS |= {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}


def is_array(item: object) -> bool:
    """Say whether a value of a pickle is a NumPy array; one of text, dates or objects is none here."""
    return type(item) is Record and item.name in _MAKERS and not re.match("[|<>=]?[SUaMmO]", _described(item)[0])


def read_array(record: Record, where: str) -> np.ndarray:
    """Return an array of a pickle, in the order of bytes of this machine."""
    kind, shape, fortran, content = _described(record)
    stored = npz.number(kind, where)
    nbytes = checked_nbytes(shape, stored, where)
    content = _bytes(content)
    if content is None or len(content) != nbytes:
        raise CheckpointError(f"{where} is an array of {len(content or b'')} bytes; its shape and dtype make {nbytes}")
    return npz.decoded(content, stored, shape, fortran)


def _described(record):
    """Return the kind of an array's elements, its shape, whether the order is Fortran's, and what holds its bytes."""
    match record.parts:
        case [Function(name="numpy.ndarray"), _, _, (_, tuple(shape), dtype, bool(fortran), content)]:
            return _kind(dtype), shape, fortran, content
        case [content, dtype, tuple(shape), "C" | "F" as order]:
            return _kind(dtype), shape, order == "F", content
    return "of an array that is damaged", (), False, None


def _kind(dtype):
    match dtype:
        case Record(name="numpy.dtype", parts=[str(kind), _, _, (_, str(order), None, None, *_)]) if kind[:1] != "V":
            return order + kind
    return "of records"


def _bytes(content):
    match content:
        case bytes():
            return content
        case str():  # of Python 2, whose strings were bytes
            return content.encode()
        case Record(name="_codecs.encode", parts=[str(text), "latin1"]):
            return text.encode("latin1", "ignore")  # what is left out is missed by its length
        case Record(name="builtins.bytes", parts=[]):
            return b""
    return None
