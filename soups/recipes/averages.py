"""Average members with fixed weights, all at once or one after the other."""

from collections.abc import Mapping, Sequence

from soups import arguments, tree
from soups.names import check_name


def uniform(members: arguments.Members) -> tree.Tree:
    """Average all members with equal weights: the uniform soup.

    θ = (1/K) Σ_i θ_i in float32 or wider, cast once to the members' dtypes. `members`: a sequence of trees, a mapping
    from names to trees, or a pool, which is then streamed from disk. Under `jit`, `vmap` and `pmap` and on sharded
    arrays as outside.

    Raises:
        ValueError: no members, other structures, NaN or infinity, integer leaves that differ.

    Wortsman et al., "Model soups", 2022, arXiv 2203.05482.
    """
    return arguments.merge(arguments.as_mapping(members), tree.mean)


def weighted(members: arguments.Members, weights: Sequence[float] | Mapping[str, float]) -> tree.Tree:
    """Average members with the given weights, which need not sum to one.

    θ = Σ_i w_i θ_i. `weights`: one float for each member, or a mapping from some members' names to floats.

    Raises:
        ValueError: as `uniform`; not one weight for each member; a weight for a member that is not there.
    """
    members = arguments.as_mapping(members)
    if isinstance(weights, Mapping):
        names = [check_name(name, members, "member") for name in weights]
        members = members.select(names) if hasattr(members, "select") else {name: members[name] for name in names}
        weights = list(weights.values())
    if len(weights) != len(members):
        raise ValueError(f"{len(members)} members need {len(members)} weights, but {len(weights)} were given")
    return arguments.merge(members, lambda trees: tree.weighted_sum(trees, weights))


def running_mean(mean: tree.Tree, member: tree.Tree, count) -> tree.Tree:
    """Take one more member into the mean of `count` members.

    m + (θ − m) / (count + 1), in the dtype of `mean` or float32 if that is narrower, for in fewer bits it would stand
    still: start from any member (under `scan` from `tree.widen(first)`) and end with `tree.cast_like`. Over
    the weights along one training run this is stochastic weight averaging (SWA).

    Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018, arXiv 1803.05407.
    """
    mean = tree.widen(mean)
    return tree.lerp(mean, tree.cast_like(member, mean), 1.0 / (count + 1.0))


def ema(average: tree.Tree, params: tree.Tree, decay) -> tree.Tree:
    """Move an exponential average of the weights by one step.

    m ← decay · m + (1 − decay) · θ, in float32 or wider as `running_mean`; `decay` in [0, 1], 0 forgets everything.

    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
    """
    average = tree.widen(average)
    return tree.lerp(average, tree.cast_like(params, average), 1.0 - decay)
