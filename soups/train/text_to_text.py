"""The loss of networks that write the word of a class."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from soups import tree
from soups.data import pair_of


@dataclasses.dataclass(frozen=True, eq=False)
class TextToText:
    """Measure a network by the words that it writes for classes: the mean cross-entropy of their tokens.

        words = label_words(tokenize, task.class_names)
        loss = TextToText(architecture("t5-small").train_apply_fn(None, dropout=0.1), words)

    A batch is {"image": inputs by name, "label": int [B]} or a pair of both. The network is given "decoder_tokens"
    besides, and gives the logits of the next token [B, U, V], see `soups.models.T5`.

    Attributes:
        train_apply: from weights, inputs and key to logits, or to (logits, weights with their updated statistics).
        words: integers [C, U], the tokens of each class with its end token, behind it −1.

    Raises:
        ValueError: what are no words. In training: labels that are no classes.
    """

    train_apply: Callable[[tree.Tree, Any, jax.Array], Any]
    words: np.ndarray

    def __post_init__(self):
        self._begun()  # refuses what are no words

    def check(self, batch: Any, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs and the labels of a batch, or of all data in memory; a ValueError if they do not fit."""
        inputs, labels = pair_of(batch, "a batch", others=True)
        if not isinstance(inputs, Mapping):
            raise ValueError(f"inputs must be arrays by name, as from a tokenizer, not a {type(inputs).__name__}")
        if not hasattr(labels, "dtype") or not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim != 1:
            found = f"{labels.dtype} {list(labels.shape)}" if hasattr(labels, "dtype") else type(labels).__name__
            raise ValueError(f"labels must be whole numbers [B], not {found}")
        if getattr(labels, "is_fully_addressable", True) and not isinstance(labels, jax.core.Tracer) and labels.size:
            low, high = np.min(labels), np.max(labels)
            if not 0 <= low <= high < len(self.words):
                raise ValueError(f"labels must be 0 to {len(self.words) - 1}, but they go from {low} to {high}")
        return {"image": inputs, "label": labels}

    def _begun(self):
        from soups.models.t5 import decoder_tokens  # which needs Flax

        return decoder_tokens(self.words)

    def __call__(self, params: tree.Tree, batch: Mapping[str, Any], key: jax.Array) -> tuple[jax.Array, tree.Tree]:
        """Return the mean cross-entropy of the words' tokens, and the weights with updated statistics."""
        words_BxU = jnp.asarray(self.words)[batch["label"]]
        started_BxU = jnp.asarray(self._begun())[batch["label"]]
        result = self.train_apply(params, {**batch["image"], "decoder_tokens": started_BxU}, key)
        logits, updated = result if isinstance(result, tuple) else (result, params)
        counted_BxU = words_BxU >= 0
        of_token = optax.softmax_cross_entropy_with_integer_labels
        losses_BxU = of_token(logits.astype(jnp.float32), jnp.maximum(words_BxU, 0))
        return jnp.where(counted_BxU, losses_BxU, 0.0).sum() / counted_BxU.sum(dtype=jnp.float32), updated
