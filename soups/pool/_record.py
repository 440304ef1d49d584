"""Seal what a pool writes with a digest, and read it back with every type checked."""

import json
import pathlib
import re
from typing import TypeVar

import numpy as np

from soups.formats.tensors import CheckpointError, checked_nbytes
from soups.formats.text import parse_json, read_bytes
from soups.formats.zarr import holds
from soups.names import shown
from soups.pool._paths import texts
from soups.state import seal, unseal
from soups.stores import StorePath

AnyPath = TypeVar("AnyPath", pathlib.Path, StorePath)
MEMBERS = "members"
_LARGEST = 1 << 31  # bytes of one file: the manifests of old pools had all members in one
_DIGEST = re.compile(r"[0-9a-f]{32}")
_PLACE = re.compile(MEMBERS + r"/[A-Za-z0-9_=-]+")
_KEYS = {"key", "index", "attribute", "child"}


class PoolCorruptionError(CheckpointError):
    """Say that the bytes on disk are not those that were written; the file is named."""


def sealed(fields: dict) -> bytes:
    """Return a JSON object, a line for each field, that begins with the digest of all that follows."""
    # one line for each member or field: quick to write and to read, and still something a person can look through
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items())
    return seal(lines.encode() + b"}\n")


def unsealed(file: pathlib.Path | StorePath) -> str:
    """Return the JSON object of a file, without its first field, the digest, which is compared."""
    try:
        return "{" + unseal(read_bytes(file, limit=_LARGEST), file).decode("ascii", "replace")
    except ValueError as error:
        raise PoolCorruptionError(str(error)) from error


def parsed(text: str, file: pathlib.Path | StorePath) -> dict:
    """Return the object in an unsealed text."""
    try:
        return parse_json(text, file)
    except CheckpointError as error:
        raise PoolCorruptionError(str(error)) from error


def name_of(text: str, file: pathlib.Path | StorePath) -> str:
    """Return the member's name, the first field of an unsealed record, without reading the rest."""
    name = parsed(text.partition("\n")[0].removesuffix(",") + "}", file).get("name")
    if not isinstance(name, str) or not name:
        raise PoolCorruptionError(f"{file} is not a record of a pool: it does not begin with a name")
    return name


def checked(record, file: pathlib.Path | StorePath) -> dict:
    """Return a member's record if it is what this library writes."""
    try:
        _check(record)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        problem = f"it has no field {error}" if isinstance(error, KeyError) else error
        raise PoolCorruptionError(f"{file} is not a record of a pool: {problem}") from error
    return record


def directory(pool: AnyPath, relative: str) -> AnyPath:
    """Return the directory of a member, the one door to it for reading, removing and sweeping."""
    if not _PLACE.fullmatch(relative):
        raise PoolCorruptionError(f"{pool}: a member must lie in {MEMBERS}/NAME, not in {shown(relative)!r}")
    no_link(pool / MEMBERS)
    return no_link(pool / relative)


def no_link(place: AnyPath) -> AnyPath:
    """Return a place within a pool."""
    if place.is_symlink():
        raise PoolCorruptionError(f"{place} is a symbolic link, which a pool must not contain")
    return place


def check_file(name: str) -> None:
    """Raise a ValueError unless a name is that of a file inside a member."""
    inside = not {"", ".", ".."} & set(name.split("/")) and "\0" not in name
    _require(inside, f"{shown(name)} is not the path of a file inside the member")


def _check(record):
    _require(isinstance(record, dict), "it is not a JSON object")
    _require(isinstance(record["path"], str) and _PLACE.fullmatch(record["path"]), "its path is not members/NAME")
    _require(record["status"] in ("ok", "non-finite"), "its status is neither ok nor non-finite")
    _require(record["base"] is None or isinstance(record["base"], str), "its base is not text")
    _require(isinstance(record["created"], str), "its created is not text")
    for field in ("metadata", "metrics", "versions", "leaves", "files"):
        _require(isinstance(record[field], dict), f"its {field} is not a JSON object")
    _require(_is_digest(record["digest"]), "its digest is not 32 hexadecimal digits")
    for file, digest in record["files"].items():
        _require(_is_digest(digest), f"the digest of {shown(file)} is not 32 hexadecimal digits")
        check_file(file)
    for name, leaf in record["leaves"].items():
        _check_leaf(name, leaf)
    bad = record["nonfinite_leaves"]
    _require(
        isinstance(bad, list) and record["leaves"].keys() >= set(bad),
        "its nonfinite_leaves are not a list of its leaves",
    )
    _require(record["status"] == ("non-finite" if bad else "ok"), "its status contradicts its nonfinite_leaves")
    _check_places(record)


def _check_leaf(name, leaf):
    where = f"leaf {shown(name)}"
    keys = leaf["keys"]
    _check_keys(keys, where)
    _require("/".join(texts(keys)) == name, f"{where} has the keys of another leaf")
    _require(isinstance(leaf["dtype"], str) and isinstance(leaf["shape"], list), f"{where} has no dtype or no shape")
    dtype = np.dtype(leaf["dtype"])
    _require(dtype.name == leaf["dtype"] and holds(dtype), f"{where} has dtype {shown(leaf['dtype'])}")
    checked_nbytes(tuple(leaf["shape"]), dtype, where)
    _require(_is_digest(leaf["digest"]), f"the digest of {where} is not 32 hexadecimal digits")
    stored = leaf.get("stored") if "stored" in leaf or not all(isinstance(k, str) for k in keys) else name
    _require(isinstance(stored, str) and stored, f"{where} has no name on disk")


def _check_keys(keys, where):
    _require(isinstance(keys, list) and keys, f"{where} has no keys")
    for key in keys:
        typed = isinstance(key, dict) and len(key) == 1 and set(key) <= _KEYS
        plain = typed and isinstance(next(iter(key.values())), (str, int, float, type(None)))
        _require(isinstance(key, str) or plain, f"{where} has a key of an unknown form")


def _check_places(record):
    """Refuse a leaf that is also the container of others, which no tree has."""
    places = [tuple(texts(leaf["keys"])) for leaf in record["leaves"].values()]
    for place in record.get("empty", ()):
        _check_keys(place["keys"], "an empty place")
        _require(place["kind"] in ("None", "container"), "an empty place is neither None nor a container")
        places.append(tuple(texts(place["keys"])))
    taken = set(places)
    for place in places:
        inside = [place[:depth] for depth in range(1, len(place)) if place[:depth] in taken]
        _require(not inside, f"{shown('/'.join(place))} lies inside a leaf")
    _require(len(taken) == len(places), "two leaves have the same keys")


def _is_digest(value):
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _require(fine, problem):
    if not fine:
        raise ValueError(problem)
