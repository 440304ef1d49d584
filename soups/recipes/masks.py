"""Keep one task vector for several members, with a mask for each."""

from typing import Any, NamedTuple

from soups import arguments, arrays, tree
from soups.lazy import jax
from soups.names import check_name
from soups.recipes.consensus import needed
from soups.recipes.declare import check_real, python_only


@python_only("gives masks and not a model: use soups.tall_masks in Python, or consensus")
def tall_masks(members: arguments.Members, *, base: tree.Tree, threshold: float = 0.4) -> dict[str, tree.Tree]:
    """Find for each member where the summed task vectors serve it (TALL masks).

    m_i = [|τ_i| ≥ λ_i |τ − τ_i|], τ = Σ_j τ_j: boolean trees by the members' names; False in integer leaves. θ_base +
    m_i ⊙ τ is then close to member i. `threshold`: λ, one or one for each member; the paper searches 0.2, 0.3, … 0.6
    for each task on held-out data.

    Wang et al., "Localizing task information for improved model merging and compression", 2024, arXiv 2405.07813.
    """
    members, trees = _checked("tall_masks", members, base)
    own = arguments.per_member(threshold, members, "thresholds")
    thresholds = [arguments.setting(one, 0.0, "threshold") for one in own]

    def masks(start, *leaves):
        vectors = _task_vectors(start, leaves)
        return needed(vectors, arrays.sum_in_order(vectors), thresholds)

    found = _map_floats(masks, lambda leaf: tree.namespace([leaf]).zeros(leaf.shape, bool), base, trees)

    def of(index):
        return jax.tree.map(lambda _, own: own[index] if isinstance(own, list) else own, base, found)

    return {name: of(index) for index, name in enumerate(members)}


class Elected(NamedTuple):
    """Hold what `emr` makes of the members; a pytree."""

    unified: tree.Tree  #: the elected task vector τ_uni, in float32 or wider; zeros in integer leaves
    masks: dict[str, tree.Tree]  #: a boolean tree for each member, by name
    rescalers: dict[str, Any]  #: a number for each member, by name


@python_only("gives weights for each task and not one model: use soups.emr in Python")
def emr(members: arguments.Members, *, base: tree.Tree) -> Elected:
    """Elect one task vector, with a mask and a rescaler for each member (EMR-Merging); see `emr_restore`.

    τ_uni = γ ⊙ max over {i: sign τ_i = γ} of |τ_i|, γ = sign(Σ_i τ_i); M_i = [τ_i ⊙ τ_uni > 0]; λ_i = Σ |τ_i| /
    Σ |M_i ⊙ τ_uni| over all elements of the model, as the paper has it; 0 for a member that equals the base.

    Huang et al., "EMR-Merging: tuning-free high-performance model merging", 2024, arXiv 2405.17461.
    """
    members, trees = _checked("emr", members, base)
    unified = _map_floats(lambda start, *leaves: _elect(_task_vectors(start, leaves)), _zeros, base, trees)
    masks, rescalers = {}, {}
    for name, member in zip(members, trees, strict=True):
        vector = _map_floats(lambda start, leaf: _task_vectors(start, [leaf])[0], _zeros, base, [member])
        masks[name] = jax.tree.map(lambda v, u: v * u > 0, vector, unified)
        before, after = _l1_norm(vector), _l1_norm(_masked(unified, masks[name]))
        rescalers[name] = arrays.ratio(tree.namespace([after]), before, after, after > 0)
    return Elected(unified, masks, rescalers)


def emr_restore(merged: Elected, member: str | int, *, base: tree.Tree) -> tree.Tree:
    """Make the weights for one member's task: θ_base + λ_i M_i ⊙ τ_uni, in the dtypes of the base (EMR-Merging).

    `member`: its name, or its number if the members were a sequence. Integer leaves are those of the base.

    Huang et al., "EMR-Merging: tuning-free high-performance model merging", 2024, arXiv 2405.17461.
    """
    name = check_name(str(member), merged.masks, "member")
    vector = _masked(merged.unified, merged.masks[name])
    return tree.add_scaled(base, vector, merged.rescalers[name], labels=("base", f"task vector {name}"))


def _checked(name, members, base):
    members = arguments.as_mapping(members)
    trees = [members[name] for name in members]
    labels = [*(f"member {name}" for name in members), "base"]
    tree.check_usable(dict(zip(labels, [*trees, base], strict=True)), dtypes=False)
    tree.check_copied(trees)
    for weights in (base, *trees):
        check_real(name, tree.flatten(weights))
    return list(members), trees


def _task_vectors(base, leaves):
    *wide, start = tree.widen_leaves([*leaves, base])
    return [leaf - start for leaf in wide]


def _map_floats(function, otherwise, base, trees):
    return jax.tree.map(
        lambda start, *leaves: function(start, *leaves) if tree.is_float(start) else otherwise(start), base, *trees
    )


def _zeros(leaf):
    return tree.namespace([leaf]).zeros_like(leaf)


def _elect(vectors):
    xp, total = tree.namespace(vectors), arrays.sum_in_order(vectors)
    sign = xp.sign(total)
    largest = xp.zeros_like(total)
    for vector in vectors:
        largest = xp.maximum(largest, vector * sign)
    return sign * largest


def _masked(vector, mask):
    return jax.tree.map(lambda leaf, kept: leaf * kept.astype(leaf.dtype), vector, mask)


def _l1_norm(vector):
    sums = [tree.namespace([leaf]).sum(abs(leaf)) for leaf in jax.tree.leaves(vector) if tree.is_float(leaf)]
    return arrays.sum_in_order(sums)
