"""Declare the permutation symmetries of the built-in networks, for `soups.recipes.rebasin`."""

import itertools
from collections.abc import Callable

from flax import linen as nn

from soups.models.convnet import ConvNet
from soups.models.functional import as_variables, in_mode
from soups.models.mlp import MLP
from soups.models.resnet import ResNet
from soups.models.vit import ViT
from soups.recipes.permutation import Spec, spec_from_rules
from soups.tree import Tree


def permutation_spec(model: nn.Module, params: Tree, *, residual: bool = True) -> Spec:
    """Return the permutation spec of a built-in network with weights `params`.

    MLP: the units of each hidden layer. ConvNet: the channels of each convolution, with their BatchNorm. ResNet: the
    channels inside each block, and the residual stream of each stage. ViT: the hidden units of each MLP, the heads of
    each attention, the representation and CLIP's projection before the head, and the one residual stream. The elements
    inside an attention head are not permuted, nor is what a network without a head gives, its features.
    `residual=False` leaves the residual streams as they are.

    A module of another class has a method `permutation_rules(residual)`, which gives rules as those of
    `soups.recipes.permutation.spec_from_rules`; without it, and for weights of another network, there is a ValueError.
    """
    if hasattr(model, "permutation_rules"):
        return spec_from_rules(params, _with_collections(model.permutation_rules(residual), params))
    for kind, rules in RULES.items():
        if isinstance(model, kind):
            return spec_from_rules(params, _with_collections(rules(model, residual), params))
    known = ", ".join(kind.__name__ for kind in RULES)
    raise ValueError(
        f"there is no permutation spec for {type(model).__name__}, only for {known}: "
        "write one with soups.recipes.permutation.spec_from_rules, or give the module a method permutation_rules"
    )


def unit_activations(model: nn.Module) -> Callable:
    """Return `activations(params, inputs) -> {permutation: [..., units]}`, after the nonlinearity.

    Of an MLP or a ConvNet, or any network whose outermost modules but "head" bear the names of the permutations and are
    followed by a ReLU, if they do not end with one.
    """
    module, flags = in_mode(model, train=False)

    def outermost(module, _):
        return len(module.path) == 1 and module.name != "head"

    def activations(params, inputs):
        options = {"capture_intermediates": outermost, "mutable": ["intermediates"], **flags}
        _, state = module.apply(as_variables(params), inputs, **options)
        # relu of what is past a relu changes nothing
        return {name: nn.relu(found["__call__"][0]) for name, found in state["intermediates"].items()}

    return activations


def _with_collections(rules, params):
    # weights with state are {"params": ..., "batch_stats": ...}
    if "params" not in params:
        return rules
    return [(rf"(?:params|batch_stats)/(?:{pattern})", axes) for pattern, axes in rules]


def _mlp(model, residual):
    return _chain([f"layer_{index}" for index in range(len(model.widths))], _dense)


def _convnet(model, residual):
    stages = range(len(model.widths))
    return _chain([f"stage_{stage}_{index}" for stage in stages for index in range(model.depth)], _conv_norm)


def _chain(layers, rules_of):
    rules = [rules_of(layer, before, layer) for before, layer in zip([None, *layers], layers, strict=False)]
    return [*itertools.chain(*rules), *_dense("head", layers[-1] if layers else None, None)]


def _resnet(model, residual):
    streams = [f"stage_{stage}" if residual else None for stage in range(len(model.blocks))]
    stream = streams[0]
    rules = _conv_norm("stem", None, stream)
    for stage, count in enumerate(model.blocks):
        for index in range(count):
            block = f"stage_{stage}_{index}"
            rules += _conv_norm(f"{block}/first", stream, block)
            rules += _conv_norm(f"{block}/second", block, streams[stage])
            if stage > 0 and index == 0:
                rules += _conv_norm(f"{block}/shortcut", stream, streams[stage])
            stream = streams[stage]
    return rules + _dense("head", stream, None)


def _vit(model, residual):
    after = {"pre_logits": model.representation_size, "projection": model.projection_size, "head": model.num_classes}
    after = [name for name, width in after.items() if width is not None]
    stream = "stream" if residual and after else None
    rules = [
        (r"embedding/kernel", (None, None, None, stream)),
        (r"pos_embedding|cls|MAPHead_0/probe", (None, None, stream)),
        (r".*(?:LayerNorm_\d|encoder_norm|pre_norm)/(?:scale|bias)", (stream,)),
        (r"(.*Attention_0)/(?:query|key|value)/kernel", (stream, r"\1", None)),
        (r"(.*Attention_0)/(?:query|key|value)/bias", (r"\1", None)),
        (r"(.*Attention_0)/out/kernel", (r"\1", None, stream)),
        (r".*Attention_0/out/bias", (stream,)),
        *_dense(r"(.*MlpBlock_0)/Dense_0", stream, r"\1"),
        *_dense(r"(.*MlpBlock_0)/Dense_1", r"\1", stream),
    ]
    if model.embedding_bias:
        rules.append((r"embedding/bias", (stream,)))
    features = stream
    for name in after:
        before, features = features, None if name == after[-1] else name
        rules += _dense(name, before, features)[: 1 if name == "projection" else 2]  # which has no bias
    return rules


def _dense(name, inputs, outputs):
    return [(f"{name}/kernel", (inputs, outputs)), (f"{name}/bias", (outputs,))]


def _conv_norm(name, inputs, outputs):
    return [
        (f"{name}/conv/kernel", (None, None, inputs, outputs)),
        (f"{name}/norm/(?:scale|bias|mean|var)", (outputs,)),
    ]


RULES = {MLP: _mlp, ConvNet: _convnet, ResNet: _resnet, ViT: _vit}
