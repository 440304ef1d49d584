"""Average members with fixed weights, all at once or one after the other."""

from __future__ import annotations

from collections.abc import Mapping

from numpy.typing import ArrayLike

from soups import arguments, arrays, tree
from soups.engine import Recipe
from soups.names import check_name
from soups.recipes.declare import Inputs, method, python_only


@method(takes_complex=True, title="uniform soup")
def uniform(inputs: Inputs) -> Recipe:
    """Average all members with equal weights: the uniform soup.

    θ = (1/K) Σ_i θ_i in float32 or wider, cast once to the members' dtypes.

        soup = soups.uniform(members)  # a list of trees, {name: tree}, or a soups.Pool, which is streamed

    Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
    inference time", 2022, arXiv 2203.05482.
    """
    return Recipe(lambda part, _: arrays.mean_of(part.leaves), propagates=True)


@method(per_member=("weights",), takes_complex=True, title="weighted average")
def linear(inputs: Inputs, *, weights: ArrayLike = 1.0, normalize: bool = True) -> Recipe:
    """Average members with weights: the uniform soup where all are 1.

    θ = Σ_i w_i θ_i, divided by Σ_i w_i, which must not be zero, with `normalize`.

    Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
    inference time", 2022, arXiv 2203.05482.
    """
    shares = arguments.shares(weights) if normalize else weights
    return Recipe(lambda part, _: arrays.mix(part.leaves, shares), propagates=True)


@method(members=(1, 1), per_member=("scale",), takes_complex=True, title="passthrough")
def passthrough(inputs: Inputs, *, scale: float = 1.0) -> Recipe:
    """Copy the only member, times a scale."""
    return Recipe(lambda part, _: part.leaves[0] * arrays.scalar(scale[0], part.leaves[0]), propagates=True)


@python_only("is linear here, with --weight for each member and --normalize false")
def weighted(
    members: arguments.Members, weights: ArrayLike | Mapping[str, ArrayLike], *, keep_first: str | None = None
) -> tree.Tree:
    """Average members with the given weights, which need not sum to one.

    θ = Σ_i w_i θ_i. `weights`: one float for each member, or a mapping from some members' names to floats.
    """
    members = arguments.as_mapping(members)
    if isinstance(weights, Mapping):
        weights = {check_name(str(name), members, "member"): weight for name, weight in weights.items()}
        chosen = list(weights)
        members = members.select(chosen) if hasattr(members, "select") else {name: members[name] for name in chosen}
    return linear(members, weights=weights, normalize=False, keep_first=keep_first)


@python_only("follows one training run: use soups.running_mean in Python")
def running_mean(mean: tree.Tree, member: tree.Tree, count: ArrayLike) -> tree.Tree:
    """Take one more member into the mean of `count` ≥ 0 members.

    m + (θ − m) / (count + 1), in the dtype of `mean` or float32 if that is narrower, for in fewer bits it would stand
    still: start from any member (under `scan` from `tree.widen(first)`) and end with `tree.cast_like`. Over
    the weights along one training run this is stochastic weight averaging (SWA).

    Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018, arXiv 1803.05407.
    """
    count, mean = arguments.check_within("count", count, "[0, inf)"), tree.widen(mean)
    return tree.lerp(mean, tree.cast_like(member, mean), 1.0 / (count + 1.0), labels=("mean", "member"))


@python_only("follows one training run: use soups.ema in Python")
def ema(average: tree.Tree, params: tree.Tree, decay: ArrayLike) -> tree.Tree:
    """Move an exponential average of the weights by one step.

    m ← decay · m + (1 − decay) · θ, in float32 or wider as `running_mean`; `decay` in [0, 1], 0 forgets everything.

        average = jax.jit(soups.ema)(average, params, 0.999)  # after each step of training

    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
    """
    decay, average = arguments.setting(decay, 0.0, "decay"), tree.widen(average)
    return tree.lerp(average, tree.cast_like(params, average), 1.0 - decay, labels=("average", "params"))
