"""List the methods that merge members of different tasks, each with what it needs, stores and lets one choose."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import soups
from soups import recipes, tree
from soups.models import gram_fn
from soups.models.many_heads import ManyHeads, stacked

Batch = Mapping[str, Any]
Trunks = tree.Tree | Mapping[str, tree.Tree]  # one for all tasks, or one for each by its name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kit:
    """Hold what is merged and the examples that methods may use.

    Attributes:
        networks: the functions of the network.
        base: the trunk that all members were fine-tuned from.
        fixed: the rest of the network, which is the same in all of them.
        members: their trunks, by task.
        heads: their heads, by task.
        few: some training examples of each task, {"image": float32 [n, H, W, 1] or by name, "label": int32 [n]}.
        unlabelled: for each task batches of its training inputs.
        held_out: batches of all tasks' held-out examples, as `ManyHeads.joint_loss` takes them without the heads.
        score: from a trunk to the mean accuracy on held-out data.
        seed: of random methods.
    """

    networks: ManyHeads
    base: tree.Tree
    members: Mapping[str, tree.Tree]
    heads: Mapping[str, tree.Tree]
    few: Mapping[str, Batch]
    unlabelled: Mapping[str, Sequence[Any]]
    held_out: Sequence[Batch]
    score: Callable[[tree.Tree], float]
    seed: int
    fixed: tree.Tree = dataclasses.field(default_factory=dict)


class Merged(NamedTuple):
    """Hold a trunk, or one for each task, and the masks that it was made with."""

    trunks: Trunks
    masks: Mapping[str, tree.Tree] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """State a merging method.

    Attributes:
        title: its name for people.
        family: what it is listed with.
        merge: from a kit, what was prepared, and its settings to `Merged` or a trunk.
        settings: the names of the settings that a config may list values of.
        with_default: those of them that it may leave out.
        prepare: measures from a kit what does not depend on the settings.
        labelled, unlabelled: which examples it takes beside those that choose its settings: "few", "train" (of all
            tasks), "held_out", or "" for none.
        dense: how many trunks it stores.
        masked: whether it stores a mask for each task.
        members: how many it merges; None: any number.
    """

    title: str
    family: str
    merge: Callable[..., Merged | tree.Tree]
    settings: tuple[str, ...] = ()
    with_default: frozenset[str] = frozenset()
    prepare: Callable[[Kit], Any] = lambda kit: None
    labelled: str = ""
    unlabelled: str = ""
    dense: int = 1
    masked: bool = False
    members: int | None = None


def why_not(method: Method, number: int) -> str:
    """Say why a method does not apply to this number of members; "" if it does."""
    if method.members in (None, number):
        return ""
    return f"merges exactly {method.members} members, but there are {number}"


# --- From the weights alone -------------------------------------------------------------------------------------------


def _declared(name, *, title="", family="task vectors", **fixed):
    """Merge members, with the base where it is needed or may be, by a method with its declared title and settings."""
    function, method = getattr(soups, name), recipes.METHODS[name]
    settings = tuple(setting for setting in method.defaults if setting not in fixed and setting != "seed")

    def merge(kit, _, **chosen):
        base = {} if method.base == "none" else {"base": kit.base}
        seed = {"seed": kit.seed} if "seed" in method.defaults else {}
        return function(kit.members, **base, **seed, **fixed, **chosen)

    low, high = method.members
    of_settings = {"settings": settings, "with_default": frozenset(settings)}
    members = low if low == high else None
    return Method(title=title or method.title, family=family, merge=merge, members=members, **of_settings)


def _average(function, title, *settings, **options):
    """Merge with a function of the kit."""

    def merge(kit, _, **chosen):
        return function(kit, **chosen)

    return Method(title=title, family="averages", merge=merge, settings=settings, **options)


def _by_length(kit):
    """Weigh each member by 1 / |τ|, so that no task moves the average farther than another."""
    weights = np.array([1.0 / tree.norm(tree.sub(member, kit.base)) for member in kit.members.values()])
    return soups.weighted(kit.members, list(weights / weights.sum()))


def _matrices(name):
    """Merge kernels [in, heads, features] as the matrices [in, heads · features] that they are."""
    whole = _declared(name, family="spectral", only=".*kernel")

    def merge(kit, _, **chosen):
        members = {task: _as_matrices(member) for task, member in kit.members.items()}
        matrices = dataclasses.replace(kit, members=members, base=_as_matrices(kit.base))
        return jax.tree.map(lambda leaf, like: leaf.reshape(like.shape), whole.merge(matrices, _, **chosen), kit.base)

    return dataclasses.replace(whole, merge=merge)


def _as_matrices(trunk):
    def reshape(name, leaf):
        return leaf.reshape(len(leaf), -1) if re.fullmatch(".*/(query|key|value)/kernel", name) else leaf

    return tree.map_with_names(reshape, trunk)


# --- A trunk for each task --------------------------------------------------------------------------------------------


def _tall(kit, _, threshold):
    masks = soups.tall_masks(kit.members, base=kit.base, threshold=threshold)
    total = soups.task_arithmetic(kit.members, base=kit.base, scale=1.0)
    trunks = {
        task: jax.tree.map(lambda b, t, m: np.where(m, t, b), kit.base, total, mask) for task, mask in masks.items()
    }
    return Merged(trunks, masks)


def _emr(kit, _):
    elected = soups.emr(kit.members, base=kit.base)
    trunks = {task: soups.emr_restore(elected, task, base=kit.base) for task in kit.members}
    return Merged(trunks, elected.masks)


# --- With examples ----------------------------------------------------------------------------------------------------


def _fisher(estimator, title):
    def prepare(kit):
        return {task: _information(kit, task, estimator) for task in kit.members}

    def merge(kit, fishers, normalize):
        return soups.fisher(kit.members, fishers, normalize=normalize, floor=1e-12)

    labels = {"labelled": "few"} if estimator == "empirical" else {"unlabelled": "few"}
    return Method(title=title, family="with examples", merge=merge, settings=("normalize",), prepare=prepare, **labels)


def _information(kit, task, estimator):
    few, params = kit.few[task], {**kit.fixed, **kit.members[task], "head": kit.heads[task]}
    options = {"empirical": {"labels": few["label"]}, "sampled": {"key": jax.random.key(kit.seed)}}.get(estimator, {})
    found = soups.fisher_information(kit.networks.logits, params, few["image"], estimator=estimator, **options)
    return jax.device_get({name: found[name] for name in kit.base})


def _grams(kit):
    networks, only = kit.networks, "|".join(f"{re.escape(name)}/.*" for name in kit.base)
    measure = gram_fn(networks.single, only=only, mean=networks.mean, std=networks.std)
    return {
        task: lambda trunk, task=task: jax.device_get(
            measure({**kit.fixed, **trunk, "head": kit.heads[task]}, [kit.few[task]["image"]])
        )
        for task in kit.members
    }


def _regmean(kit, grams, alpha):
    return soups.regmean(kit.members, grams, alpha=alpha)


def _regmean_pp(kit, grams_of, alpha):
    blocks = [name for name in kit.base.get("Transformer", ()) if name.startswith("encoderblock")]
    begin = [f"{name}/.*" for name in kit.base if not blocks or name == "embedding"]
    groups = begin + [f"Transformer/{name}/.*" for name in sorted(blocks, key=lambda name: (len(name), name))]
    return soups.regmean_pp(kit.members, grams_of, groups=groups, alpha=alpha)


def _adamerging(title, per, density=1.0):
    def merge(kit, _, **chosen):
        batches = {
            task: [{"image": images, "head": kit.heads[task], "fixed": kit.fixed} for images in kit.unlabelled[task]]
            for task in kit.members
        }
        vectors = {task: tree.sub(member, kit.base) for task, member in kit.members.items()}
        soup = soups.adamerge(
            vectors if density == 1.0 else agreeing(vectors, density),
            base=kit.base,
            apply_fn=kit.networks.task_logits,
            batches=batches,
            per=per,
            **chosen,
        )
        return soup.params

    settings = ("steps", "learning_rate", "initial")
    return Method(title=title, family="with examples", merge=merge, settings=settings, unlabelled="train")


def agreeing(vectors: Mapping[str, tree.Tree], density: float) -> dict[str, tree.Tree]:
    """Trim task vectors as TIES does, and keep of each what has the elected sign."""
    trim, zero = soups.trim(density, surplus=1), jax.tree.map(np.zeros_like, next(iter(vectors.values())))
    trimmed = {task: soups.combine_task_vectors([vector], base=zero, sparsify=trim) for task, vector in vectors.items()}
    total = jax.tree.map(lambda *leaves: sum(leaves), *trimmed.values())
    return {
        task: jax.tree.map(lambda v, t: np.where(v * t > 0, v, np.zeros_like(v)), vector, total)
        for task, vector in trimmed.items()
    }


def _localize(kit, _, **chosen):
    masks = {
        task: soups.localize(
            kit.networks.task_loss,
            [{**kit.few[task], "head": kit.heads[task], "fixed": kit.fixed}],
            base=kit.base,
            member=member,
            **chosen,
        )
        for task, member in kit.members.items()
    }
    return Merged(soups.stitch(kit.members, masks, base=kit.base), masks)


def _localize_dataless(kit, _, density):
    masks = {t: soups.localize_dataless(member, base=kit.base, density=density) for t, member in kit.members.items()}
    return Merged(soups.stitch(kit.members, masks, base=kit.base), masks)


def _learned(per, title):
    def learn(kit, learning_rate, epochs):
        heads = stacked(kit.heads)
        batches = ({**batch, "head": heads, "fixed": kit.fixed} for _ in range(epochs) for batch in kit.held_out)
        return soups.learned(kit.members, kit.networks.joint_loss, batches, per=per, learning_rate=learning_rate).params

    return _average(learn, title, "learning_rate", "epochs", labelled="held_out")


_AVERAGES = ("multislerp", "karcher", "geometric_median", "model_stock")
_VECTORS = ("dare", "della", "breadcrumbs", "magmax", "sce", "pcb", "ram", "ram_plus", "consensus")
METHODS = {
    "uniform": _declared("uniform", family="averages"),
    "weighted": _average(_by_length, "weighted by 1/|τ|"),
    "greedy": _average(lambda kit: soups.greedy(kit.members, kit.score).params, "greedy soup", labelled="held_out"),
    "learned": _learned("model", "learned soup"),
    "learned_per_leaf": _learned("leaf", "learned soup, per leaf"),
    "slerp": _declared("nuslerp", family="averages"),
    **{name: _declared(name, family="averages") for name in _AVERAGES},
    "task_arithmetic": _declared("task_arithmetic"),
    "ties": _declared("ties"),
    "ties_per_tensor": _declared("ties", title="TIES, per tensor", scope="leaf"),
    **{name: _declared(name) for name in _VECTORS},
    "dare_ties": _declared("dare", title="DARE-TIES", elect=True),
    **{name: _matrices(name) for name in ("tsv_merge", "iso_c", "wudi")},
    "fisher_exact": _fisher("exact", "Fisher, exact"),
    "fisher_sampled": _fisher("sampled", "Fisher, sampled"),
    "fisher_empirical": _fisher("empirical", "Fisher, empirical"),
    "fisher_batch": _fisher("batch", "Fisher, batch"),
    "regmean": Method(
        title="RegMean",
        family="with examples",
        merge=_regmean,
        settings=("alpha",),
        prepare=lambda kit: {task: measure(kit.members[task]) for task, measure in _grams(kit).items()},
        unlabelled="few",
    ),
    "regmean_pp": Method(
        title="RegMean++",
        family="with examples",
        merge=_regmean_pp,
        settings=("alpha",),
        prepare=_grams,
        unlabelled="few",
    ),
    "adamerging": _adamerging("AdaMerging, task-wise", "member"),
    "adamerging_per_leaf": _adamerging("AdaMerging, layer-wise", "leaf"),
    "adamerging_pp": _adamerging("AdaMerging++, layer-wise", "leaf", density=0.2),
    "localize_dataless": Method(
        title="Localize-and-Stitch, dataless",
        family="masks",
        merge=_localize_dataless,
        settings=("density",),
    ),
    "localize_and_stitch": Method(
        title="Localize-and-Stitch",
        family="masks",
        merge=_localize,
        settings=("density", "epochs", "learning_rate", "l1_strength"),
        labelled="few",
    ),
    "tall_masks": Method(
        title="TALL masks", family="trunk for each task", merge=_tall, settings=("threshold",), dense=2, masked=True
    ),
    "emr": Method(title="EMR", family="trunk for each task", merge=_emr, dense=2, masked=True),
}
