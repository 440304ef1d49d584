"""Draw random numbers that depend on the place of an element alone, not on chunks, threads, devices or order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xxhash

from soups.arrays import namespace
from soups.lazy import jnp

_WORD = np.uint32


def below(probabilities: Sequence, seed: int, name: str, part, shape: tuple[int, ...]) -> list:
    """Return a mask [shape] for each probability in (0, 1], a number or a float32 array [shape].

    It holds for the elements of a part whose numbers are below the probability. That of element j is (`first_bits` +
    `further_bits`) / 256, so that only one in 256 elements needs the further ones.
    """
    first = first_bits(seed, name, part, shape)
    return [_below(probability, first, seed, name, part) for probability in probabilities]


def _below(probability, first, seed, name, part):
    scaled = np.float32(256) * (np.float32(probability) if isinstance(probability, float) else probability)
    xp = namespace([scaled])
    whole = xp.maximum(xp.ceil(scaled) - np.float32(1), np.float32(0))
    limit, rest = whole.astype(np.uint8), scaled - whole
    if xp is np and rest.ndim == 0 and rest == 1:
        return first <= limit
    mask, undecided = first < limit, first == limit
    if part.xp is not np:
        return mask | (undecided & (further_bits(seed, name, part, _places(part, first.shape)) < rest))
    places = np.flatnonzero(undecided)
    rest = rest.reshape(-1)[places] if rest.ndim else rest
    mask = np.asarray(mask)  # that of a scalar was a number
    mask.reshape(-1)[places] = further_bits(seed, name, part, places) < rest
    return mask


def first_bits(seed: int, name: str, part, shape: tuple[int, ...]):
    """Return for each element of a part an integer from 0 to 255, one stream for each seed and name.

    Element j gets byte j % 4 of an integer hash of j // 4 and of the hashed seed, name and leaf: the same from NumPy
    and from JAX, wherever the part begins.
    """
    key, start = _key(seed, name, part), part.start
    if part.xp is not np:
        place = _places(part, shape) + _WORD(start % 2**32)
        words = _hash(key, start >> 34, (place >> _WORD(2)) + _WORD((start >> 32) % 4 << 30))
        return (words >> (place % _WORD(4) * _WORD(8))).astype(np.uint8)
    end = start + math.prod(shape)
    words = _hashes(key, start // 4, -(-end // 4))
    return words.view(np.uint8)[start % 4 :][: end - start].reshape(shape)


def further_bits(seed: int, name: str, part, places):
    """Return for some elements, given by their places in the part in order, float32 numbers in [0, 1) of 24 bits."""
    key, start = _key(seed, f"{name}+", part), part.start
    if part.xp is np:
        places = places + start
        high = start >> 32 if (places[-1:] >> 32 == start >> 32).all() else places >> 32
        bits = _hash(key, high, places.astype(np.uint32))
    else:
        bits = _hash(key, start >> 32, places + _WORD(start % 2**32))
    return (bits >> _WORD(8)).astype(np.float32) * np.float32(2**-24)


def _places(part, shape):
    size = math.prod(shape)
    if part.start % 2**32 + size > 2**32:
        raise ValueError(f"leaf {part.name}: a part must not cross element {2**32}")
    return jnp.arange(size, dtype=np.uint32).reshape(shape)


def _key(seed, name, part):
    return np.frombuffer(xxhash.xxh3_128_digest(f"{seed}/{name}/{part.name}".encode()), np.uint32)


def _hashes(key, start, end):
    """Return the hashes of NumPy's places in a row."""
    high, low = divmod(start, 2**32)
    if (border := (high + 1) << 32) < end:
        return np.concatenate([_hashes(key, start, border), _hashes(key, border, end)])
    return _hash(key, high, np.arange(low, low + end - start, dtype=np.uint32))


def _hash(key, high, low):
    """Return 32 bits for places of 64, given by their halves; NumPy's lower ones are overwritten."""
    # keys before and after the first scrambling: no two streams are one, shifted
    low ^= key[0]
    low = _mix(low)
    low += _WORD((int(key[1]) + high * 0x9E3779B1) % 2**32)
    low = _mix(low)
    low ^= key[2]
    return low


def _mix(x):
    """Scramble 32 bits, NumPy's in place: the finalizer of MurmurHash3 (Appleby, 2011), a bijection."""
    x ^= x >> _WORD(16)
    x *= _WORD(0x85EBCA6B)
    x ^= x >> _WORD(13)
    x *= _WORD(0xC2B2AE35)
    x ^= x >> _WORD(16)
    return x
