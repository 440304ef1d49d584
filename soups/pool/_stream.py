"""Merge members leaf by leaf from their files, in the memory of the result and a few blocks."""

import concurrent.futures
import math
from collections.abc import Callable, Sequence

import numpy as np
import xxhash

from soups.pool._member import THREADS, Member, as_bytes, blocks
from soups.pool._paths import is_float
from soups.tree import Tree


def merge_leaves(members: Sequence[Member], function: Callable, *, whole_leaves: bool) -> dict[str, np.ndarray]:
    """Give the merged leaves by name; see `Pool.merge_leaves`."""
    _check_copied_leaves(members)
    leaves = members[0].record["leaves"]
    largest_first = sorted(leaves, key=lambda leaf: -math.prod(leaves[leaf]["shape"]))
    merge = _merge_whole if whole_leaves else _merge_in_blocks
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        futures = {leaf: threads.submit(_merge_checked, members, leaf, merge, function) for leaf in largest_first}
        try:
            return {leaf: futures[leaf].result() for leaf in leaves}
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _check_copied_leaves(members):
    leaves = members[0].record["leaves"]
    copied = [leaf for leaf in leaves if not is_float(leaves[leaf]["dtype"])]
    different = [leaf for leaf in copied if len({member.record["leaves"][leaf]["digest"] for member in members}) > 1]
    if different:
        raise ValueError(
            "integer and boolean leaves are copied, not averaged, so they must be identical in all members; "
            f"these differ: {', '.join(different)}"
        )


def _merge_checked(members, leaf, merge, function):
    arrays = [member.map(leaf) for member in members]
    try:
        return merge(members, leaf, arrays, function)
    except Exception:
        # corrupted numbers may have been what the function did not like: then that is what must be said
        _check_whole(members, leaf, arrays)
        raise


def _merge_in_blocks(members, leaf, arrays, function):
    flat = [array.reshape(-1) for array in arrays]
    hashes = [xxhash.xxh3_128() for _ in flat]
    merged = None
    for block in blocks(flat[0].size):
        parts = [array[block] for array in flat]
        # hashed while the block is on its way into the cache anyway
        for hash_, part in zip(hashes, parts, strict=True):
            hash_.update(as_bytes(part))
        result = _merged_leaf(function([{leaf: part} for part in parts]), leaf)
        if result.shape != parts[0].shape:
            raise ValueError(
                f"merging leaf {leaf} in blocks gave shape {result.shape} for a block of shape {parts[0].shape}: "
                "a function that is not element-wise needs whole_leaves=True"
            )
        merged = np.empty(flat[0].shape, result.dtype) if merged is None else merged
        merged[block] = result
    for member, hash_ in zip(members, hashes, strict=True):
        member.check_leaf(leaf, hash_.hexdigest())
    return merged.reshape(arrays[0].shape)


def _merge_whole(members, leaf, arrays, function):
    _check_whole(members, leaf, arrays)
    return _merged_leaf(function([{leaf: array} for array in arrays]), leaf)


def _merged_leaf(result: Tree, leaf: str) -> np.ndarray:
    if not isinstance(result, dict) or list(result) != [leaf]:
        raise ValueError(f"merging leaf {leaf} must give {{{leaf!r}: array}}, not {result!r:.200}")
    return np.asarray(result[leaf])


def _check_whole(members, leaf, arrays):
    for member, array in zip(members, arrays, strict=True):
        member.check_leaf(leaf, xxhash.xxh3_128_hexdigest(as_bytes(array)))
