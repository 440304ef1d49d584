"""Draw random numbers that depend on the place of an element alone, not on chunks, threads, devices or order."""

from __future__ import annotations

import functools

import numpy as np
import xxhash

from soups.lazy import jax, jnp

CHUNK = 2**17  # numbers that the host draws at a time


def uniform(seed: int, name: str, part, shape: tuple[int, ...]):
    """Give float32 numbers in [0, 1) for the elements of a part, one stream for each seed and name.

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
    return _hash(_key(stream, part.start), shape)


def _key(stream, start):
    words, (high, low) = np.frombuffer(stream, np.uint32), divmod(start, 2**32)
    return np.array([words[0], (int(words[1]) + high * 0x9E3779B1) % 2**32, words[2], low], np.uint32)


def _hash(key, shape):
    place = jnp.arange(int(np.prod(shape)), dtype=np.uint32).reshape(shape) + key[3]
    # keys before and after the first scrambling: no two streams are one, shifted
    return _mix(_mix(place ^ key[0]) + key[1]) ^ key[2]


def _mix(x):
    """Scramble 32 bits: the finalizer of MurmurHash3 (Appleby, 2011), a bijection."""
    word = np.uint32
    x = (x ^ (x >> word(16))) * word(0x85EBCA6B)
    x = (x ^ (x >> word(13))) * word(0xC2B2AE35)
    return x ^ (x >> word(16))


def _on_host(stream, start, size):
    first = start - start % CHUNK
    chunks = [_chunk(stream, chunk) for chunk in range(first, max(start + size, first + 1), CHUNK)]
    whole = np.concatenate(chunks) if len(chunks) > 1 else chunks[0]
    return whole[start - first : start - first + size]


@functools.lru_cache(maxsize=32)
def _chunk(stream, start):
    # the parts of a leaf come one after the other, and a call costs more than the work
    return np.asarray(_program()(_key(stream, start)))


@functools.cache
def _program():
    """Compile the hash of a chunk for the host: one loop where NumPy has twenty."""
    with jax.default_device(_host()):
        return jax.jit(lambda key: _hash(key, (CHUNK,))).lower(jax.ShapeDtypeStruct((4,), np.uint32)).compile()


def _host():
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was told to use an accelerator alone
        return jax.local_devices()[0]
