"""Average the weights along one training run, with decays so close to one that float32 would not move."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from soups import tree


def start(params: tree.Tree, decays: Sequence[float]) -> dict[str, Any]:
    """Return the state of several exponential averages before the first step: {"start": θ₀, "moved": one d a decay}."""
    wide = jax.tree.map(jnp.copy, tree.widen(params))
    return {"start": wide, "moved": tuple(jax.tree.map(jnp.zeros_like, wide) for _ in decays)}


def follow(drifts: Mapping[str, Any], params: tree.Tree, decays: Sequence[float]) -> dict[str, Any]:
    """Move the averages by one step: d ← d + (1 − β) ((θ − θ₀) − d), so that m = θ₀ + d is the average.

    At β = 0.9999999 a step moves m by less than half its last bit, and in float32 it would stay where it began for
    ever; d is as small as its own steps, and keeps them.
    """
    drift = tree.sub(tree.widen(params), drifts["start"])
    moved = [tree.lerp(moved, drift, 1.0 - decay) for moved, decay in zip(drifts["moved"], decays, strict=True)]
    return {"start": drifts["start"], "moved": tuple(moved)}


def kinds_of(training: Any) -> list[str]:
    """Return the names of the averages that a `soups.train.Training` makes."""
    kept = {"ema": training.ema_decay, "swa": training.swa_start}
    return [name for name, setting in kept.items() if setting is not None] + list(map(_name_of, training.ema_decays))


def averages(state: Mapping[str, Any], decays: Sequence[float] = (), *, unbiased: bool = False) -> dict[str, tree.Tree]:
    """Return the averages that a training state holds, by name: "ema", "swa", and "ema_0.999" for each of `decays`.

    Args:
        state: of `soups.train.training_step` after t steps; all its arrays are float32 or wider.
        decays: `ema_decays` of its `Training`.
        unbiased: take the weight β^t of the start weights out of the averages of `decays`: θ₀ + d / (1 − β^t), the
            mean of the trajectory alone. Without it an average with β = 0.9999999 has moved a five-hundredth of the
            way after 20,000 steps: it is WiSE-FT of the unbiased one with α = 1 − β^t.
    """
    named = dict(state["averages"])
    for decay, moved in zip(decays, state["drifts"]["moved"] if decays else (), strict=True):
        scale = 1.0
        if unbiased and decay:  # 1 − β^t, precisely also where β is next to 1
            scale = -1.0 / jnp.expm1(jnp.maximum(state["step"], 1).astype(jnp.float32) * math.log(decay))
        named[_name_of(decay)] = _moved(state["drifts"]["start"], moved, scale)
    return named


def _name_of(decay):
    return f"ema_{decay}"


_moved = jax.jit(tree.add_scaled)  # traced, so that the averages of a run that diverged are no error
