"""Turn the codes of quantised GGUF tensors into numbers, as ggml does: blocks of codes with one scale for each."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Code(NamedTuple):
    """Say how numbers are coded: how many a block has, of how many bytes, and what gives float32 [blocks, values]."""

    values: int
    nbytes: int
    numbers: Callable[[np.ndarray], np.ndarray]


def decoded(code: Code, stored: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the float32 numbers of a tensor's bytes, uint8 [blocks · code.nbytes]."""
    return code.numbers(stored.reshape(-1, code.nbytes)).reshape(shape)


def _half(blocks, at):
    """Return the float16 at a byte of each block, float32 [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed):
    """Return the low halves of all bytes, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth_bits(blocks, at):
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, at : at + 4]), axis=1, bitorder="little")
    return bits << np.uint8(4)


def _q4_0(blocks):
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks):
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks):
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)
    return _half(blocks, 0) * (codes.astype(np.float32) - 16)


def _q5_1(blocks):
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return _half(blocks, 0) * codes.astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks):
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)


def _q4_k(blocks):
    packed = blocks[:, 4:16].reshape(-1, 3, 4)  # 8 scales and 8 offsets of 6 bits
    low, offsets, high = packed[:, 0], packed[:, 1], packed[:, 2]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    offsets = np.concatenate([offsets & 63, (high >> 4) | ((offsets >> 6) << 4)], axis=1)
    scales, offsets = _half(blocks, 0) * scales.astype(np.float32), _half(blocks, 2) * offsets.astype(np.float32)
    codes = blocks[:, 16:].reshape(-1, 4, 1, 32)
    codes = np.concatenate([codes & 15, codes >> 4], axis=2).reshape(-1, 8, 32).astype(np.float32)
    return (scales[..., None] * codes - offsets[..., None]).reshape(-1, 256)


def _q6_k(blocks):
    low, high = blocks[:, :128].reshape(-1, 2, 1, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = (high >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    codes = (low | (high << 4)).astype(np.float32) - 32
    scales = _half(blocks, 208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    return (scales[..., None] * codes.reshape(-1, 16, 16)).reshape(-1, 256)


#: by the name of the kind
CODES = {
    "Q4_0": Code(32, 18, _q4_0),
    "Q4_1": Code(32, 20, _q4_1),
    "Q5_0": Code(32, 22, _q5_0),
    "Q5_1": Code(32, 24, _q5_1),
    "Q8_0": Code(32, 34, _q8_0),
    "Q4_K": Code(256, 144, _q4_k),
    "Q6_K": Code(256, 210, _q6_k),
}
