"""The loss of language models: the cross-entropy of each next token."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soups import tree

_PARTS = "tokens", "mask", "learned"


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Measure a network by how well it foretells tokens: a loss for `soups.train.fit` and `soups.train.sweep`.

        loss = NextToken(arch.train_apply_fn(None))
        made = fit(loss, start, answer_rows(tokenize.numbers, pairs, end=0, length=128), batch_size=8, epochs=3)

    A batch is {"tokens": int [B, T], "mask": bool [B, T], "learned": bool [B, T]}: the mean of −log p over all tokens
    that are learned, each behind those before it; the first of a row has none. Padding is seen by no token.

    Attributes:
        train_apply: from weights, inputs and key to logits [B, T, V], or to (logits, weights).
    """

    train_apply: Callable[[tree.Tree, Mapping[str, jax.Array], jax.Array], Any]

    def check(self, batch: Any, hyperparameters: Mapping[str, Any]) -> Any:
        """Return a batch, or all data in memory; a ValueError for what are no rows of tokens with their masks."""
        if not isinstance(batch, Mapping):
            raise ValueError(f"a batch of a language model must be a mapping, not a {type(batch).__name__}")
        if missing := [name for name in _PARTS if not hasattr(batch.get(name), "dtype")]:
            raise ValueError(f"a batch of a language model needs tokens, mask and learned, and lacks {missing[0]}")
        kinds = {name: (batch[name].dtype, list(batch[name].shape)) for name in _PARTS}
        (of_tokens, shape), *masks = kinds.values()
        whole = jnp.issubdtype(of_tokens, jnp.integer) and len(shape) == 2
        if not whole or any(dtype.kind != "b" or other != shape for dtype, other in masks):
            found = ", ".join(f"{name} {dtype} {other}" for name, (dtype, other) in kinds.items())
            raise ValueError(f"tokens must be whole numbers [B, T], mask and learned booleans [B, T], not {found}")
        tokens = batch["tokens"]
        known = not isinstance(tokens, jax.core.Tracer) and getattr(tokens, "is_fully_addressable", True)
        if known and tokens.size and (low := np.min(tokens, where=batch["mask"], initial=0)) < 0:
            raise ValueError(f"tokens must be at least 0, but one is {low}: set mask and learned False there")
        return batch

    def __call__(
        self, params: tree.Tree, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tree.Tree]:
        """Return the mean loss and the weights; a ValueError for a batch or logits of another kind."""
        self.check(batch, {})
        result = self.train_apply(params, {name: batch[name] for name in ("tokens", "mask")}, key)
        logits_BxTxV, updated = result if isinstance(result, tuple) else (result, params)
        if logits_BxTxV.shape[:-1] != batch["tokens"].shape:
            wrong = f"{list(logits_BxTxV.shape)} for tokens {list(batch['tokens'].shape)}"
            raise ValueError(f"a language model gives logits for each token, not {wrong}")
        logits_BxTxV = logits_BxTxV[:, :-1].astype(jnp.float32)
        chosen_BxT = jnp.take_along_axis(logits_BxTxV, batch["tokens"][:, 1:, None], axis=-1)[..., 0]
        learned_BxT = (batch["learned"] & batch["mask"])[:, 1:]
        losses_BxT = jnp.where(learned_BxT, jax.nn.logsumexp(logits_BxTxV, axis=-1) - chosen_BxT, 0.0)
        return losses_BxT.sum() / jnp.maximum(learned_BxT.sum().astype(jnp.float32), 1.0), updated
