"""Build multilayer perceptrons."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype


class MLP(nn.Module):
    """Classify inputs of any shape with dense layers and ReLU, then a head.

    `widths`: the units of each hidden layer. The head starts at zero. Parameters are float32; the hidden layers compute
    in `dtype`, the head in float32.
    """

    num_classes: int
    widths: Sequence[int] = (512, 512, 512)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Map inputs [B, ...] of floats, flattened to [B, D], to logits [B, num_classes] in float32."""
        x_BxD = inputs.reshape(inputs.shape[0], -1)
        for index, width in enumerate(self.widths):
            x_BxD = nn.relu(nn.Dense(width, dtype=self.dtype, name=f"layer_{index}")(x_BxD))
        head = nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=nn.initializers.zeros, name="head")
        return head(x_BxD)
