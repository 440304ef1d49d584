"""Walk between two sets of weights."""

from soups import tree


def interpolate(a: tree.Tree, b: tree.Tree, *, t, path: str = "linear") -> tree.Tree:
    """Give the weights at `t` on the path from `a` (t = 0) to `b` (t = 1).

    `path`: "linear", (1 − t) a + t b, or "spherical", on the arc between the two as long vectors. `t` may lie outside
    [0, 1]: that extrapolates.

    Raises:
        ValueError: another path, or other structures.
    """
    if path == "linear":
        return tree.lerp(a, b, t)
    if path == "spherical":
        return tree.slerp(a, b, t)
    raise ValueError(f"path must be 'linear' or 'spherical', not {path!r}")


def wise_ft(member: tree.Tree, *, base: tree.Tree, alpha=0.5, only: str = ".*") -> tree.Tree:
    """Interpolate from the base to a fine-tuned member (WiSE-FT).

    (1 − α) θ_base + α θ_member for the leaves whose name matches the regex `only`; all others are the member's, which
    helps when the base has no such head. The paper recommends α = 0.5 when nothing is known about the target.

    Raises:
        ValueError: other structures in the interpolated part.

    Wortsman et al., "Robust fine-tuning of zero-shot models", 2021, arXiv 2109.01903.
    """
    mixed_names = tree.names(tree.select(member, only))
    flat_base, flat_member = tree.flatten(base), tree.flatten(member)
    mine = {name: flat_member[name] for name in mixed_names}
    theirs = {name: leaf for name, leaf in flat_base.items() if name in mine or only == ".*"}
    tree.check_same_structure([mine, theirs], ["member", "base"])
    mixed = tree.lerp(theirs, mine, alpha)
    return tree.map_with_names(lambda name, leaf: mixed.get(name, leaf), member)
