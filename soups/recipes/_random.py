"""Draw random numbers that depend on the place of an element alone, not on chunks, threads, devices or order."""

from __future__ import annotations

import numpy as np
import xxhash

from soups.lazy import jnp

CHUNK = 2**16  # numbers that the host draws at a time
_PLACES = np.arange(CHUNK, dtype=np.uint32)


def uniform(seed: int, name: str, part, shape: tuple[int, ...]):
    """Return float32 numbers in [0, 1) for the elements of a part, one stream for each seed and name.

    Element j gets 24 bits of an integer hash of j and of the hashed seed, name and leaf: the same numbers from NumPy
    and from JAX, wherever the part begins.
    """
    return (_bits(seed, name, part, shape) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def below(probability: float, seed: int, name: str, part, shape: tuple[int, ...]):
    """Say for each element whether its number is below `probability`, to 32 bits."""
    return _bits(seed, name, part, shape) < np.uint32(min(round(probability * 2**32), 2**32 - 1))


def _bits(seed, name, part, shape):
    stream, size = xxhash.xxh3_128_digest(f"{seed}/{name}/{part.name}".encode()), int(np.prod(shape))
    if part.xp is np:
        return _on_host(stream, part.start, size).reshape(shape)
    if part.start % 2**32 + size > 2**32:
        raise ValueError(f"leaf {part.name}: a part must not cross element {2**32}")
    return _hash(_key(stream, part.start), jnp.arange(size, dtype=np.uint32).reshape(shape))


def _key(stream, start):
    words, (high, low) = np.frombuffer(stream, np.uint32), divmod(start, 2**32)
    return np.array([words[0], (int(words[1]) + high * 0x9E3779B1) % 2**32, words[2], low], np.uint32)


def _hash(key, place):
    # keys before and after the first scrambling: no two streams are one, shifted
    return _second(key, _mix((place + key[3]) ^ key[0]))


def _second(key, x):
    x += key[1]
    x = _mix(x)
    x ^= key[2]
    return x


def _mix(x):
    """Scramble 32 bits, NumPy's in place: the finalizer of MurmurHash3 (Appleby, 2011), a bijection."""
    x ^= x >> np.uint32(16)
    return _multiplied(x)


def _multiplied(x):
    word = np.uint32
    x *= word(0x85EBCA6B)
    x ^= x >> word(13)
    x *= word(0xC2B2AE35)
    x ^= x >> word(16)
    return x


def _on_host(stream, start, size):
    numbers, done = np.empty(size, np.uint32), 0
    while done < size:
        # a block is small enough for the cache and does not cross element 2**32, where the key changes
        first = (start + done) % CHUNK
        number = min(size - done, CHUNK - first)
        key, x = _key(stream, start + done - first), numbers[done : done + number]
        # within a chunk the places have the same upper half: the first steps of the hash are one
        upper = key[3] ^ key[0]
        np.bitwise_xor(_PLACES[first : first + number], upper ^ (upper >> np.uint32(16)), out=x)
        _second(key, _multiplied(x))
        done += number
    return numbers
