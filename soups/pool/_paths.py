"""Name the leaves of any pytree by their key paths, and put leaves back into dicts or into the caller's structure."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes as ml_dtypes  # NumPy knows the dtype names "bfloat16" and "float8_..." from then on
import numpy as np
import xxhash

from soups.formats.zarr import holds
from soups.names import bounded, shown
from soups.tree import Tree

_LONGEST = 200  # bytes of a folder's name, of which file systems allow 255, and Orbax adds to them while it writes
_UNSAFE = re.compile("[%/.\\\\\0-\x1f\x7f-\x9f]")
_HALF = re.compile("[\ud800-\udfff]")
_ORBAX = {"_METADATA", "_sharding", "array_metadatas", "d"}  # names that Orbax uses beside the leaves


@dataclasses.dataclass(frozen=True)
class Flat:
    """Hold a tree's arrays by name, the typed key path of each, and those of the places that are empty.

    A key is a string where it is a dict's, else {"key": a dict's other key}, {"index": of a sequence}, {"attribute":
    of a class} or {"child": of another container}. The names join the keys with "/".
    """

    arrays: dict[str, Any]
    keys: dict[str, list]
    empty: list[dict]


def flatten(tree: Tree, what: str) -> Flat:
    """Flatten any pytree of arrays."""
    import jax

    try:
        pairs = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_empty)[0]
    except (ValueError, TypeError) as error:  # such as a dict whose keys cannot be sorted
        raise ValueError(f"{what} cannot be stored: {error!s:.500}") from error
    flat, problems = Flat({}, {}, []), []
    for path, leaf in pairs:
        keys = [_key(entry) for entry in path]
        name = "/".join(texts(keys))
        if not keys:
            problems.append(f"the tree itself is a {type(leaf).__name__}, not a container of named arrays")
        elif _is_empty(leaf):
            flat.empty.append({"keys": keys, "kind": "None" if leaf is None else "container"})
        elif problem := _problem(name, keys, leaf, flat):
            problems.append(f"{shown(name)} {problem}")
        else:
            flat.arrays[name], flat.keys[name] = leaf, keys
    if not problems and not any(array.size for array in flat.arrays.values()):
        problems.append("it does not hold a single number")
    if problems:
        lines = bounded([f"  {problem}" for problem in problems])
        raise ValueError(f"{what} cannot be stored: a tree of arrays of numbers is needed\n{lines}")
    return flat


def texts(keys: Iterable) -> list[str]:
    """Return the keys of a path as they stand in a name."""
    return [key if isinstance(key, str) else str(next(iter(key.values()))) for key in keys]


def exact_name(keys: Iterable) -> str:
    """Join keys so that other keys never give the same name: a "/" within a key is written with a backslash."""
    return "/".join(text.replace("\\", "\\\\").replace("/", "\\/") for text in texts(keys))


def stored_name(keys: Iterable) -> str:
    """Join keys to the name on disk, unique and safe: "/", "." and control characters in a key are percent-encoded."""
    safe = "/".join(_UNSAFE.sub(_percent, text) or "%" for text in texts(keys))
    if len(safe.encode()) <= _LONGEST and safe not in _ORBAX:
        return safe
    return f"%{xxhash.xxh3_128_hexdigest(safe.encode())}"


def by_exact_name(tree: Tree) -> dict[str, Any]:
    """Return the leaves of any pytree by their exact names, in the order of its flattening."""
    import jax

    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {exact_name(map(_key, path)): leaf for path, leaf in pairs}


def _is_empty(node):
    return node is None or (isinstance(node, (Mapping, list, tuple)) and not node)


def _key(entry):
    import jax

    match entry:
        case jax.tree_util.DictKey(key=key):
            if isinstance(key, str):
                return str(key)
            return {"key": key if isinstance(key, (int, float)) or key is None else str(key)}
        case jax.tree_util.SequenceKey(idx=index):
            return {"index": index}
        case jax.tree_util.GetAttrKey(name=name):
            return {"attribute": name}
        case _:
            return {"child": getattr(entry, "key", str(entry))}


def _problem(name, keys, leaf, flat):
    import jax

    if name in flat.arrays:
        return f"is the name of two leaves, at {flat.keys[name]} and at {keys}"
    if _HALF.search(name):
        return "is not valid text: it holds half a surrogate pair"
    if not isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
        module = type(leaf).__module__.partition(".")[0]
        kind = f"{'' if module == 'builtins' else module + '.'}{type(leaf).__name__}"
        if isinstance(leaf, (bool, int, float, complex)):
            return f"is a {kind}, not an array: numpy.asarray makes it one"
        return f"is a {kind}, not an array"
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return "is a PRNG key: store its numbers, jax.random.key_data(key)"
    return "" if holds(leaf.dtype) else f"has dtype {leaf.dtype}: only numbers and booleans can be stored"


def _percent(match):
    return "".join(f"%{byte:02X}" for byte in match[0].encode())
