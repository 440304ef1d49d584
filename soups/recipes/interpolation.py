"""Walk between two sets of weights."""

from __future__ import annotations

from soups import arguments, tree
from soups.engine import Recipe
from soups.names import pattern
from soups.recipes.declare import Inputs, method, python_only


@python_only("is wise_ft here, or slerp on the arc")
def interpolate(a: tree.Tree, b: tree.Tree, *, t, path: str = "linear") -> tree.Tree:
    """Return the weights at `t` on the path from `a` (t = 0) to `b` (t = 1).

    `path`: "linear", (1 − t) a + t b, or "spherical", on the arc between the two as long vectors. `t` may lie outside
    [0, 1]: that extrapolates.

    Raises:
        ValueError: an unknown path, or mismatched structures.
    """
    t = arguments.setting(t, 0.0, "t")
    if path == "linear":
        return tree.lerp(a, b, t)
    if path == "spherical":
        return tree.slerp(a, b, t)
    raise ValueError(f"path must be 'linear' or 'spherical', not {path!r}")


def wise_ft(
    member: tree.Tree, *, base: tree.Tree, alpha=0.5, only: str = ".*", keep_first: str | None = None
) -> tree.Tree:
    """Interpolate from the base to a fine-tuned member (WiSE-FT).

    (1 − α) θ_base + α θ_member for the leaves whose name matches the regex `only`; all others are the member's, which
    helps when the base has no such head. The paper recommends α = 0.5 when nothing is known about the target.

    Raises:
        ValueError: mismatched structures in the interpolated part; `only` that matches no leaf.

    Wortsman et al., "Robust fine-tuning of zero-shot models", 2021, arXiv 2109.01903.
    """
    if only != ".*":
        ours, theirs = tree.flatten(member), tree.flatten(base)
        chosen = pattern(only, "only")
        mixed = [name for name in ours if chosen.fullmatch(name) and name in theirs]
        missing = [name for name in ours if chosen.fullmatch(name) and name not in theirs]
        if missing:  # as for whole trees
            tree.check_same_structure([{name: ours[name] for name in [*mixed, *missing]}, theirs], ["member", "base"])
        base = tree.map_with_names(lambda name, leaf: theirs[name] if name in mixed else leaf, member)
    return _wise_ft(member, base=base, alpha=alpha, only=only, keep_first=keep_first)


@method(
    base="required",
    members=(1, 1),
    single=True,
    takes_complex=True,
    title="WiSE-FT",
    summary="straight line from the base (alpha = 0) to the member (alpha = 1)",
    paper="Wortsman et al. 2021, 2109.01903",
)
def _wise_ft(inputs: Inputs, *, alpha=0.5, only: str = ".*") -> Recipe:
    chosen = pattern(only, "only")

    def merge(part, _):
        if not chosen.fullmatch(part.name):
            return part.leaves[0]
        return part.base + tree.scalar(alpha, part.base) * part.vector(0)

    return Recipe(merge)
