"""Draw random numbers that depend on the place of an element alone, not on chunks, threads, devices or order."""

import numpy as np
import xxhash


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
    xp = part.xp
    words = np.frombuffer(xxhash.xxh3_128_digest(f"{seed}/{name}/{part.name}".encode()), np.uint32)
    size = int(np.prod(shape))
    high, low = divmod(part.start, 2**32)
    if low + size > 2**32:
        raise ValueError(f"leaf {part.name}: a part must not cross element {2**32}")
    # keys before and after the first scrambling: no two streams are one, shifted
    place = xp.arange(size, dtype=np.uint32).reshape(shape) + np.uint32(low)
    mixed = _mix(place ^ words[0]) + np.uint32((int(words[1]) + high * 0x9E3779B1) % 2**32)
    return _mix(mixed) ^ words[2]


def _mix(x):
    """Scramble 32 bits: the finalizer of MurmurHash3 (Appleby, 2011), a bijection."""
    word = np.uint32
    x = (x ^ (x >> word(16))) * word(0x85EBCA6B)
    x = (x ^ (x >> word(13))) * word(0xC2B2AE35)
    return x ^ (x >> word(16))
