"""State what a study needs of a network, of whatever library it is made."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from soups.models import functional
from soups.models.head import replace_head
from soups.models.nnx import from_nnx, nnx_train_apply_fn
from soups.tree import Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Hold a classifier as pure functions of its weights; inputs are float32 images in [0, 1].

        Network.of(Net(10), start=weights, head="Dense_1/.*")      # a Linen module with weights of yours
        Network.of(model)                                          # an NNX module, which begins as it is
        Network(init=lambda key, image_shape: weights, apply=apply, train_apply=train_apply)  # functions

    Attributes:
        init: `init(key, image_shape) -> params`, what members start from: drawn with the key, or weights of yours.
        apply: `apply(params, inputs) -> logits [B, C]`, in evaluation mode.
        train_apply: `train_apply(params, inputs, key) -> logits` in training mode, or (logits, params) with moved
            statistics. Default: `apply`, for networks without dropout and BatchNorm.
        head: a regex for the names of the head's kernel and bias, for linear probes. Default: that of `head_rule`.
    """

    init: Callable[[jax.Array, Sequence[int]], Tree]
    apply: Callable[[Tree, jax.Array], jax.Array]
    train_apply: Callable[[Tree, jax.Array, jax.Array], Any] | None = None
    head: str | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module | nnx.Module,
        *,
        start: Tree | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        head: str | None = None,
        frozen_statistics: bool = False,
    ) -> "Network":
        """Return a module as a network, which starts from the given weights; else a Linen module from fresh ones.

        `mean` and `std` normalise inputs as in `soups.models.apply_fn`, and `frozen_statistics` is that of
        `soups.models.train_apply_fn`, with the same errors.
        """
        options = {"frozen_statistics": frozen_statistics}
        if isinstance(model, nnx.Module):
            apply, own = from_nnx(model, mean, std)
            start, train_apply = own if start is None else start, nnx_train_apply_fn(model, mean, std, **options)
        else:
            apply = functional.apply_fn(model, mean, std)
            train_apply = functional.train_apply_fn(model, mean, std, **options)

        def init(key, image_shape):
            return functional.init(model, key, image_shape) if start is None else start

        return cls(init=init, apply=apply, train_apply=train_apply, head=head)

    def trained(self, params: Tree, inputs: jax.Array, key: jax.Array) -> Any:
        """Return the logits in training mode, or (logits, params) with moved statistics."""
        return self.apply(params, inputs) if self.train_apply is None else self.train_apply(params, inputs, key)

    def check(self, image_shape: Sequence[int], num_classes: int, *, probed: bool = False) -> None:
        """See, without computing, that the network turns images into one logit for each class.

        `probed`: it is to have a head that `replace_head` replaces. A ValueError for logits of another shape, another
        head, BatchNorm that no `train_apply` trains; what the network itself raises goes through.
        """
        key = jax.random.key(0)
        params = jax.eval_shape(lambda key: self.init(key, tuple(image_shape)), key)
        if self.train_apply is None and "batch_stats" in params:
            raise ValueError("the weights have 'batch_stats', so the network needs a train_apply, which moves them")
        images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
        logits = jax.eval_shape(self.apply, params, images)
        trained = jax.eval_shape(self.trained, params, images, key)
        for made, mode in [(logits, ""), (trained[0] if isinstance(trained, tuple) else trained, " in training mode")]:
            if getattr(made, "shape", None) != (2, num_classes):
                found = list(made.shape) if hasattr(made, "shape") else f"a {type(made).__name__}"
                raise ValueError(f"2 images {list(images.shape)} give logits [2, {num_classes}]{mode}, not {found}")
        if probed:
            jax.eval_shape(lambda params: replace_head(params, None, num_classes, head=self.head), params)
