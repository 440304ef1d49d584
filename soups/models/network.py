"""State what a study needs of a network, of whatever library it is made."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from soups.models import functional
from soups.models.head import replace_head
from soups.tree import Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Hold a classifier as pure functions of its weights; inputs are float32 images in [0, 1].

        Network.of(Net(10), start=weights, head="Dense_1/.*")      # a Linen module with weights of yours
        Network(init=lambda key, image_shape: weights, apply=apply)       # functions, such as those of from_nnx

    Attributes:
        init: `init(key, image_shape) -> params`, what members start from: drawn with the key, or weights of yours.
        apply: `apply(params, inputs) -> logits [B, C]`, in evaluation mode.
        train_apply: `train_apply(params, inputs, key) -> logits` in training mode, or (logits, params) with moved
            statistics. Default: `apply`.
        head: a regex for the names of the head's kernel and bias, for linear probes. Default: that of `head_rule`.
    """

    init: Callable[[jax.Array, Sequence[int]], Tree]
    apply: Callable[[Tree, jax.Array], jax.Array]
    train_apply: Callable[[Tree, jax.Array, jax.Array], Any] | None = None
    head: str | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        start: Tree | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        head: str | None = None,
    ) -> "Network":
        """Return a Linen module as a network, which starts from the given weights or from fresh ones.

        `mean` and `std` normalise inputs as in `soups.models.apply_fn`, with the same errors.
        """
        return cls(
            init=lambda key, shape: functional.init(model, key, shape) if start is None else start,
            apply=functional.apply_fn(model, mean, std),
            train_apply=functional.train_apply_fn(model, mean, std),
            head=head,
        )

    def trained(self, params: Tree, inputs: jax.Array, key: jax.Array) -> Any:
        """Return the logits in training mode, or (logits, params) with moved statistics."""
        return self.apply(params, inputs) if self.train_apply is None else self.train_apply(params, inputs, key)

    def check(self, image_shape: Sequence[int], num_classes: int, *, probed: bool = False) -> None:
        """See, without computing, that the network turns images into one logit for each class.

        `probed`: it is to have a head that `replace_head` replaces.

        Raises:
            ValueError: logits of another shape, another head; what the network itself raises goes through.
        """
        key = jax.random.key(0)
        params = jax.eval_shape(lambda key: self.init(key, tuple(image_shape)), key)
        images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
        logits = jax.eval_shape(self.apply, params, images)
        trained = jax.eval_shape(self.trained, params, images, key)
        for made, mode in [(logits, ""), (trained[0] if isinstance(trained, tuple) else trained, " in training mode")]:
            if getattr(made, "shape", None) != (2, num_classes):
                found = list(made.shape) if hasattr(made, "shape") else f"a {type(made).__name__}"
                raise ValueError(f"2 images {list(images.shape)} give logits [2, {num_classes}]{mode}, not {found}")
        if probed:
            jax.eval_shape(lambda params: replace_head(params, None, num_classes, head=self.head), params)
