"""Walk from one set of weights to another: along a line, or from the base to the mean."""

from __future__ import annotations

from numpy.typing import ArrayLike

from soups import arguments, arrays, tree
from soups.engine import Recipe
from soups.names import check_name, pattern
from soups.recipes._gram import cosines_of, gram_recipe, length_of, lengths_of
from soups.recipes.declare import MANY, Inputs, method, python_only


@python_only("is wise_ft here, or slerp on the arc")
def interpolate(a: tree.Tree, b: tree.Tree, *, t: ArrayLike, path: str = "linear") -> tree.Tree:
    """Return the weights at `t` on the path from `a` (t = 0) to `b` (t = 1).

    `path`: "linear", (1 − t) a + t b, or "spherical", on the arc between the two as long vectors. `t` may lie outside
    [0, 1]: that extrapolates.
    """
    check_name(path, ("linear", "spherical"), "path")
    t = arguments.setting(t, 0.0, "t")
    return tree.lerp(a, b, t) if path == "linear" else tree.slerp(a, b, t)


def _with_leaves_of(member, base, settings):
    if settings["only"] == ".*":
        return base
    ours, theirs, only = tree.flatten(member), tree.flatten(base), pattern(settings["only"], "only")
    mixed = [name for name in ours if only.fullmatch(name)]
    if any(name not in theirs for name in mixed):
        tree.check_same_structure([{name: ours[name] for name in mixed}, theirs], ["member", "base"], dtypes=False)
    return tree.map_with_names(lambda name, leaf: theirs[name] if only.fullmatch(name) else leaf, member)


@method(base="required", members=(1, 1), single=True, takes_complex=True, complete=_with_leaves_of, title="WiSE-FT")
def wise_ft(inputs: Inputs, *, alpha: ArrayLike = 0.5, only: str = ".*") -> Recipe:
    """Interpolate from the base (alpha = 0) to a fine-tuned member (alpha = 1): WiSE-FT.

    (1 − α) θ_base + α θ_member for the leaves whose name matches the regex `only`; all others are the member's, which
    helps when the base has no such head. The paper recommends α = 0.5 when nothing is known about the target.

        robust = soups.wise_ft(member, base=base, alpha=0.5, only="trunk/.*")

    Raises:
        ValueError: leaves that `only` selects but that differ in name or shape; `only` that matches no leaf.

    Wortsman et al., "Robust fine-tuning of zero-shot models", 2021, arXiv 2109.01903.
    """
    chosen = pattern(only, "only")

    def merge(part, _):
        if not chosen.fullmatch(part.name):
            return part.leaves[0]
        return part.base + arrays.scalar(alpha, part.base) * part.vector(0)

    return Recipe(merge)


@method(base="required", members=(2, MANY), title="model stock")
def model_stock(inputs: Inputs, *, scope: str = "leaf") -> Recipe:
    """Move from the base towards the mean of the members as far as their angles say.

    θ = t mean(θ_i) + (1 − t) θ_base, t = K cos / (1 + (K − 1) cos), cos the mean of the cosines between all pairs of
    task vectors; t = 0 where the divisor is below 1e-6. `scope`: one t for each "leaf", for the "model", or for each
    "row" (along the last axis).

    Jang et al., "Model Stock: all we need is just a few fine-tuned models", 2024, arXiv 2403.19522.
    """
    number = inputs.number

    def coefficients(xp, gram, products, epsilon):
        cosines, lengths = cosines_of(xp, gram), lengths_of(xp, gram)
        diagonal = xp.diagonal(cosines, axis1=-2, axis2=-1)
        mean = (xp.sum(cosines, axis=(-2, -1)) - xp.sum(diagonal, axis=-1)) / (number * (number - 1))
        # |Σ_i u_i|² / K, which loses no digits where the directions u_i cancel; one of zeros counts as orthogonal
        square = length_of(xp, products, 1 / lengths) ** 2
        divisor = (square + xp.sum((diagonal < 0.5).astype(gram.dtype), axis=-1)) / number
        t = arrays.ratio(xp, number * mean, divisor, divisor >= 1e-6)
        return xp.stack([t / number] * number, axis=-1)

    return gram_recipe(coefficients, True, scope, ("model", "leaf", "row"))
