"""State what the tensors of a file become: the building blocks of the tables.

Every function gives {name of a tensor: Part}. A weight that two tensors give is their sum. What a part does to its
tensor is a view (transpose, reshape, slice), so that nothing of a mapped file is read before its use.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from soups.models.architectures import Architecture


@dataclasses.dataclass(frozen=True)
class Part:
    """Say of a tensor which shape it must have and, by name, which weights it gives and how."""

    shape: tuple[int, ...]
    gives: Mapping[str, Callable[[np.ndarray], np.ndarray]]


Table = dict[str, Part]
COUNTERS = r".*\.num_batches_tracked"  # of torch's BatchNorm, which ours does without


class BlockNames(NamedTuple):
    """Name the modules of a transformer block.

    `attention`: the modules of query, key and value, or the weight and the bias in which all three are stacked.
    """

    first_norm: str
    attention: tuple[str, ...]
    out: str
    second_norm: str
    first_dense: str
    second_dense: str


def as_it_is(name: str, shape: tuple[int, ...], ours: str) -> Table:
    """Take a tensor as it is."""
    return {name: Part(shape, {ours: lambda tensor: tensor})}


def norm(name: str, ours: str, width: int) -> Table:
    """Take a LayerNorm."""
    return as_it_is(f"{name}.weight", (width,), f"{ours}/scale") | as_it_is(f"{name}.bias", (width,), f"{ours}/bias")


def matrix(name: str, ours: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Table:
    """Take a weight [outputs, inputs] as a kernel [*inputs, *outputs]."""
    shape = (math.prod(outputs), math.prod(inputs))
    return {name: Part(shape, {ours: lambda weight: weight.T.reshape(*inputs, *outputs)})}


def linear(name: str, ours: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Table:
    """Take a linear layer with a bias."""
    bias = {f"{name}.bias": Part((math.prod(outputs),), {f"{ours}/bias": lambda bias: bias.reshape(outputs)})}
    return matrix(f"{name}.weight", f"{ours}/kernel", inputs, outputs) | bias


def convolution(name: str, ours: str, size: int, inputs: int, outputs: int) -> Table:
    """Take a square convolution without bias, [outputs, inputs, size, size], as a kernel [size, size, in, out]."""
    return {name: Part((outputs, inputs, size, size), {ours: lambda weight: weight.transpose(2, 3, 1, 0)})}


def batch_norm(name: str, ours: str, width: int) -> Table:
    """Take a BatchNorm with its statistics; `ours` is its place in the collections "params" and "batch_stats"."""
    named = {"weight": "params/{}/scale", "bias": "params/{}/bias"}
    named |= {"running_mean": "batch_stats/{}/mean", "running_var": "batch_stats/{}/var"}
    parts = [as_it_is(f"{name}.{theirs}", (width,), place.format(ours)) for theirs, place in named.items()]
    return parts[0] | parts[1] | parts[2] | parts[3]


def conv_norm(conv: str, norm: str, ours: str, size: int, inputs: int, outputs: int) -> Table:
    """Take a convolution and its BatchNorm; a depthwise one has kernels of one input."""
    kernel = convolution(f"{conv}.weight", f"params/{ours}/conv/kernel", size, inputs, outputs)
    return kernel | batch_norm(norm, f"{ours}/norm", outputs)


def class_and_positions(name: str, shape: tuple[int, ...]) -> Table:
    """Take position embeddings [..., 1 + T, D], whose first is added to the class token once and for all."""
    batch = (1, *shape[-2:])
    gives = {"cls": lambda rows: rows.reshape(batch)[:, :1], "pos_embedding": lambda rows: rows.reshape(batch)[:, 1:]}
    return {name: Part(shape, gives)}


def class_token(name: str, shape: tuple[int, ...]) -> Table:
    """Take the class token."""
    return {name: Part(shape, {"cls": lambda token: token.reshape(1, 1, -1)})}


def tower(arch: Architecture, token, positions, patches, block, names: BlockNames, last, lead=()) -> Table:
    """Take what all image transformers have; `lead`: the axes of size one before the shape of the embeddings."""
    model, width = arch.features, arch.features.width
    patches_of_image = (arch.image_size // model.patch_size) ** 2
    return (
        class_token(token, (*lead, *lead, width))
        | class_and_positions(positions, (*lead, 1 + patches_of_image, width))
        | convolution(patches, "embedding/kernel", model.patch_size, 3, width)
        | encoder(block, names, model.depth, width, model.mlp_dim, model.num_heads)
        | norm(last, "Transformer/encoder_norm", width)
    )


def encoder(name: str, names: BlockNames, depth: int, width: int, mlp_dim: int, num_heads: int) -> Table:
    """Take the blocks of a transformer; the name of a block is `name` with its number put in."""
    table = {}
    for index in range(depth):
        ours, theirs = f"Transformer/encoderblock_{index}", name.format(index)
        mlp = f"{ours}/MlpBlock_0"
        attention = f"{ours}/MultiHeadDotProductAttention_0"
        heads = (num_heads, width // num_heads)
        table |= norm(f"{theirs}.{names.first_norm}", f"{ours}/LayerNorm_0", width)
        table |= _attention([f"{theirs}.{one}" for one in names.attention], attention, width, heads)
        table |= linear(f"{theirs}.{names.out}", f"{attention}/out", heads, (width,))
        table |= norm(f"{theirs}.{names.second_norm}", f"{ours}/LayerNorm_1", width)
        table |= linear(f"{theirs}.{names.first_dense}", f"{mlp}/Dense_0", (width,), (mlp_dim,))
        table |= linear(f"{theirs}.{names.second_dense}", f"{mlp}/Dense_1", (mlp_dim,), (width,))
    return table


def _attention(names, ours, width, heads):
    parts = [f"{ours}/{one}" for one in ("query", "key", "value")]
    if len(names) == 3:
        each = [linear(name, part, (width,), heads) for name, part in zip(names, parts, strict=True)]
        return each[0] | each[1] | each[2]
    (weight, bias), parts = names, list(enumerate(parts))
    kernels = {f"{part}/kernel": lambda w, i=i: w.reshape(3, *heads, -1)[i].transpose(2, 0, 1) for i, part in parts}
    biases = {f"{part}/bias": lambda b, i=i: b.reshape(3, *heads)[i] for i, part in parts}
    return {weight: Part((3 * width, width), kernels), bias: Part((3 * width,), biases)}
