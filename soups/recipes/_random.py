"""Draw random numbers that depend on the place of an element alone, not on chunks, threads, devices or order."""

import numpy as np
import xxhash


def uniform(seed: int, name: str, part, shape: tuple[int, ...]):
    """Give float32 numbers in [0, 1) for the elements of a part, one stream for each seed and name.

    Element j gets 24 bits of an integer hash of j and of the hashed seed, name and leaf: the same numbers from NumPy
    and from JAX, wherever the part begins.
    """
    xp = part.xp
    words = np.frombuffer(xxhash.xxh3_128_digest(f"{seed}/{name}/{part.name}".encode()), np.uint32)
    size = int(np.prod(shape))
    high, low = divmod(part.start, 2**32)
    if low + size > 2**32:
        raise ValueError(f"leaf {part.name}: a part must not cross element {2**32}")
    place = xp.arange(size, dtype=np.uint32).reshape(shape) + xp.uint32(low)
    bits = _mix(place ^ xp.uint32(words[0])) + xp.uint32(words[1]) + xp.uint32(high * 0x9E3779B1 % 2**32)
    bits = _mix(_mix(bits) ^ xp.uint32(words[2]))
    return (bits >> xp.uint32(8)).astype(np.float32) * xp.float32(2**-24)


def _mix(x):
    """Scramble 32 bits: the finalizer of MurmurHash3 (Appleby, 2011), a bijection."""
    word = np.uint32
    x = (x ^ (x >> word(16))) * word(0x85EBCA6B)
    x = (x ^ (x >> word(13))) * word(0xC2B2AE35)
    return x ^ (x >> word(16))
