"""List the merging methods by name: in this library's words, as published, and in mergekit's, as mergekit does them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from soups import tree
from soups.recipes import spherical
from soups.recipes.consensus import consensus_recipe, pcb_recipe, sce_recipe
from soups.recipes.differences import arcee_fusion_recipe, magmax_recipe, nearswap_recipe, ram_plus_recipe, ram_recipe
from soups.recipes.leafwise import Recipe
from soups.recipes.sparsify import KEEP_ALL, Sparsifier, drop, magprune, outliers, trim
from soups.recipes.spectral import iso_c_recipe, tsv_merge_recipe, wudi_recipe
from soups.recipes.task_vectors import task_vector_recipe

REQUIRED = object()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """State how a recipe file's settings become a recipe.

    Attributes:
        build: from the settings of each member (one dict each) and those of the merge to the recipe.
        of_member: settings that each member has, with their defaults; REQUIRED has none.
        of_merge: settings of the whole merge, with their defaults.
        base: "required", "optional", "none", or "first": then the base is the first of the members.
        members: smallest and largest number of members, the base not counted.
        summary: one line.
        paper: authors, year and arXiv id.
    """

    build: Callable[[list[dict[str, Any]], dict[str, Any], bool], Recipe]
    of_member: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    of_merge: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    base: str = "none"
    members: tuple[int, int] = (1, 10**6)
    summary: str = ""
    paper: str = ""


def _weights(members):
    return [member["weight"] for member in members]


def linear_recipe(weights, normalize: bool) -> Recipe:
    """Give the recipe Σ_i w_i θ_i, divided by Σ_i w_i with `normalize`."""
    if normalize and abs(sum(weights)) < 1e-8:
        raise ValueError(f"weights that sum to zero cannot be normalized: {list(weights)}")
    shares = [weight / sum(weights) if normalize else weight for weight in weights]
    return Recipe(lambda part, _: tree.mix(part.leaves, shares))


def passthrough_recipe(scale=1.0) -> Recipe:
    """Give the recipe that copies its only member, times a scale."""
    return Recipe(lambda part, _: part.leaves[0] * tree.scalar(scale, part.leaves[0]))


# --- as published ---


def _published(sparsifier: Callable[[dict, dict, int], Sparsifier], elect=None, scope="model"):
    def build(members, settings, _):
        return task_vector_recipe(
            len(members),
            [sparsifier(member, settings, index) for index, member in enumerate(members)],
            _weights(members),
            settings.get("elect", False) if elect is None else elect,
            settings.get("normalize", settings.get("elect", False) if elect is None else elect),
            settings["scale"],
            "majority",
            settings.get("scope", scope),
        )

    return build


PUBLISHED = {
    "linear": Method(
        build=lambda members, s, _: linear_recipe(_weights(members), s["normalize"]),
        of_member={"weight": 1.0},
        of_merge={"normalize": True},
        summary="weighted average of the members: the uniform soup where all weights are 1",
        paper="Wortsman et al. 2022, 2203.05482",
    ),
    "slerp": Method(
        build=lambda members, s, _: spherical.slerp_recipe(s["t"], s["scope"], parallel=1 - 1e-6),
        of_merge={"t": REQUIRED, "scope": "leaf"},
        base="first",
        members=(1, 1),
        summary="arc from the base (t = 0) to the member (t = 1)",
        paper="Shoemake 1985",
    ),
    "nuslerp": Method(
        build=lambda members, s, base: spherical.nuslerp_recipe(len(members), _weights(members), base, s["scope"]),
        of_member={"weight": 1.0},
        of_merge={"scope": "leaf"},
        base="optional",
        members=(2, 2),
        summary="arc between two members, or their task vectors",
        paper="Shoemake 1985",
    ),
    "multislerp": Method(
        build=lambda members, s, base: spherical.multislerp_recipe(len(members), _weights(members), base, s["scope"]),
        of_member={"weight": 1.0},
        of_merge={"scope": "leaf"},
        base="optional",
        summary="mean direction times mean length",
    ),
    "karcher": Method(
        build=lambda members, s, base: spherical.karcher_recipe(len(members), base, s["scope"], s["iterations"]),
        of_merge={"scope": "leaf", "iterations": 10},
        base="optional",
        summary="Karcher mean of the directions times mean length",
        paper="Karcher 1977",
    ),
    "geometric_median": Method(
        build=lambda members, s, _: spherical.geometric_median_recipe(
            len(members), _weights(members), s["scope"], s["iterations"]
        ),
        of_member={"weight": 1.0},
        of_merge={"scope": "leaf", "iterations": 100},
        summary="smallest sum of distances to the members; one odd member hardly counts",
        paper="Weiszfeld 1937",
    ),
    "model_stock": Method(
        build=lambda members, s, _: spherical.model_stock_recipe(len(members), s["scope"]),
        of_merge={"scope": "leaf"},
        base="required",
        members=(2, 10**6),
        summary="from the base towards the mean, as far as the members' angles say",
        paper="Jang et al. 2024, 2403.19522",
    ),
    "task_arithmetic": Method(
        build=_published(lambda m, s, i: KEEP_ALL, elect=False),
        of_member={"weight": 1.0},
        of_merge={"scale": 0.3},
        base="required",
        summary="base plus scaled sum of task vectors; a negative scale forgets",
        paper="Ilharco et al. 2022, 2212.04089",
    ),
    "ties": Method(
        build=_published(lambda m, s, i: trim(m["density"], surplus=1), elect=True),
        of_member={"weight": 1.0, "density": 0.2},
        of_merge={"scale": 1.0, "normalize": True, "scope": "model"},
        base="required",
        summary="trim task vectors, elect signs, average those that agree",
        paper="Yadav et al. 2023, 2306.01708",
    ),
    "dare": Method(
        build=_published(lambda m, s, i: drop(m["density"], seed=s["seed"])),
        of_member={"weight": 1.0, "density": 0.1},
        of_merge={"scale": 1.0, "elect": False, "seed": 0},
        base="required",
        summary="drop elements of the task vectors at random, rescale, add",
        paper="Yu et al. 2023, 2311.03099",
    ),
    "della": Method(
        build=_published(lambda m, s, i: magprune(m["density"], m["epsilon"], seed=s["seed"]), elect=True),
        of_member={"weight": 1.0, "density": 0.7, "epsilon": 0.07},
        of_merge={"scale": 1.1, "seed": 0},
        base="required",
        summary="drop small elements of each row more often, elect signs, average",
        paper="Deep et al. 2024, 2406.11617",
    ),
    "breadcrumbs": Method(
        build=_published(lambda m, s, i: outliers(m["density"], m["gamma"]), elect=False, scope="leaf"),
        of_member={"weight": 1.0, "density": 0.9, "gamma": 0.01},
        of_merge={"scale": 0.3},
        base="required",
        summary="leave out the largest and the smallest elements of each task vector, add the others",
        paper="Davari and Belilovsky 2023, 2312.06795",
    ),
    "sce": Method(
        build=lambda members, s, _: sce_recipe(len(members), s["select_topk"]),
        of_merge={"select_topk": 1.0},
        base="required",
        summary="keep where members vary most, weigh members by their energy there, elect signs",
        paper="Wan et al. 2024, 2408.07990",
    ),
    "consensus": Method(
        build=lambda members, s, _: consensus_recipe(len(members), s["threshold"], s["votes"], s["scale"]),
        of_merge={"threshold": 0.4, "votes": 2, "scale": 0.3},
        base="required",
        summary="keep what several members need by their TALL masks",
        paper="Wang et al. 2024, 2405.07813",
    ),
    "pcb": Method(
        build=lambda members, s, _: pcb_recipe(len(members), s["density"], s["scale"], s["scope"]),
        of_merge={"density": 0.1, "scale": 1.0, "scope": "model"},
        base="required",
        summary="let parameters compete within and between members",
        paper="Du et al. 2024, 2410.02396",
    ),
    "magmax": Method(
        build=lambda members, s, _: magmax_recipe(len(members), s["scale"]),
        of_merge={"scale": 0.5},
        base="required",
        summary="for each element the task vector of the largest magnitude",
        paper="Marczak et al. 2024, 2407.06322",
    ),
    "ram": Method(
        build=lambda members, s, _: ram_recipe(len(members), s["epsilon"]),
        of_merge={"epsilon": 1e-5},
        base="required",
        summary="for each element the mean of the members that changed it",
    ),
    "tsv_merge": Method(
        build=lambda members, s, _: tsv_merge_recipe(len(members), s["scale"], s["only"]),
        of_merge={"scale": 1.0, "only": ".*"},
        base="required",
        summary="add the leading singular directions of each member, made orthogonal",
        paper="Gargiulo et al. 2024, 2412.00081",
    ),
    "iso_c": Method(
        build=lambda members, s, _: iso_c_recipe(len(members), s["scale"], s["only"]),
        of_merge={"scale": 1.0, "only": ".*"},
        base="required",
        summary="sum of the task matrices with all singular values alike",
        paper="Marczak et al. 2025, 2502.04959",
    ),
    "wudi": Method(
        # files keep matrices as [outputs, inputs]
        build=lambda members, s, _: wudi_recipe(
            len(members), s["steps"], s["learning_rate"], s["scale"], s["only"], "last"
        ),
        of_merge={"steps": 300, "learning_rate": 1e-5, "scale": 1.0, "only": ".*"},
        base="required",
        summary="the task matrix that disturbs each member's own least, by gradient descent without data",
        paper="Cheng et al. 2025, 2503.08099",
    ),
    "passthrough": Method(
        build=lambda members, s, _: passthrough_recipe(members[0]["scale"]),
        of_member={"scale": 1.0},
        members=(1, 1),
        summary="copy one member",
    ),
}


# --- as mergekit does them under the same names: per tensor, weights before the election, L1 norms restored ---


def _mergekit(sparsifier, elect):
    def build(members, settings, _):
        sparsifiers = [
            ZERO if m["density"] <= 0 else KEEP_ALL if m["density"] >= 1 else sparsifier(m, settings) for m in members
        ]
        return task_vector_recipe(
            len(members),
            sparsifiers,
            _weights(members),
            elect,
            settings["normalize"],
            settings["lambda"],
            "positive",
            "leaf",
        )

    return build


ZERO = Sparsifier(lambda part, index, _: part.xp.zeros_like(part.leaves[index]))


def _task_vector_method(sparsifier, elect, normalize, rescale, **of_member):
    return Method(
        build=_mergekit(sparsifier, elect),
        of_member={"weight": REQUIRED, "density": 1.0, **of_member},
        of_merge={"normalize": normalize, "rescale": rescale, "lambda": 1.0, "seed": 0, "int8_mask": False},
        base="required",
    )


def _norm(settings):
    return "norm" if settings["rescale"] else None


def _trim(m, s):
    return trim(m["density"], rescale=s["rescale"])


def _drop(m, s):
    return drop(m["density"], seed=s["seed"], rescale=_norm(s))


def _magprune(m, s):
    return magprune(m["density"], m["epsilon"], seed=s["seed"], rescale=_norm(s))


def _outliers(m, s):
    # what is kept goes before what is left out at the top, where the two fractions are more than one
    density, gamma = m["density"], m["gamma"]
    outliers(density, gamma)  # complains now of what cannot be

    def measure(parts, index):
        size = sum(part.leaves[index].size for part in parts())
        top = min(int(gamma * size), size - int(density * size))
        fitting = outliers(density, (top + 0.5) / (size + 0.5), rescale=s["rescale"])
        return fitting, fitting.measure(parts, index)

    return Sparsifier(lambda part, index, seen: seen[0].apply(part, index, seen[1]), measure)


def _multislerp(members, settings, has_base):
    weights = _weights(members)
    recipe = spherical.multislerp_recipe(len(members), weights, has_base, "leaf")
    total = 1.0 if settings["normalize_weights"] else sum(weights)
    return dataclasses.replace(recipe, measure=lambda parts: total * recipe.measure(parts))


MERGEKIT = {
    "linear": Method(
        build=lambda members, s, _: linear_recipe(_weights(members), s["normalize"]),
        of_member={"weight": REQUIRED},
        of_merge={"normalize": True},
    ),
    "slerp": Method(
        build=lambda members, s, _: spherical.slerp_recipe(s["t"]),
        of_merge={"t": REQUIRED},
        base="first",
        members=(1, 1),
    ),
    "nuslerp": Method(
        build=lambda members, s, base: spherical.nuslerp_recipe(len(members), _weights(members), base, "leaf"),
        of_member={"weight": REQUIRED},
        base="optional",
        members=(2, 2),
    ),
    "multislerp": Method(
        build=_multislerp,
        of_member={"weight": REQUIRED},
        of_merge={"normalize_weights": True, "eps": 1e-8},
        base="optional",
        members=(2, 10**6),
    ),
    "karcher": Method(
        build=lambda members, s, base: spherical.karcher_recipe(len(members), False, "leaf", s["max_iter"]),
        of_merge={"max_iter": 10, "tol": 1e-5},
        members=(2, 10**6),
    ),
    "model_stock": Method(
        build=lambda members, s, _: spherical.model_stock_recipe(len(members), "leaf"),
        base="required",
        members=(2, 10**6),
    ),
    "task_arithmetic": _task_vector_method(lambda m, s: KEEP_ALL, False, False, False),
    "ties": _task_vector_method(_trim, True, True, False),
    "dare_linear": _task_vector_method(_drop, False, False, True),
    "dare_ties": _task_vector_method(_drop, True, False, True),
    "breadcrumbs": _task_vector_method(_outliers, False, False, False, gamma=0.01),
    "breadcrumbs_ties": _task_vector_method(_outliers, True, False, False, gamma=0.01),
    "della": _task_vector_method(_magprune, True, True, True, epsilon=0.15),
    "della_linear": _task_vector_method(_magprune, False, False, True, epsilon=0.15),
    "sce": Method(
        build=lambda members, s, _: sce_recipe(len(members), s["select_topk"]),
        of_merge={"select_topk": 1.0, "int8_mask": False},
        base="required",
    ),
    "nearswap": Method(
        build=lambda members, s, _: nearswap_recipe(len(members), s["t"]),
        of_merge={"t": REQUIRED},
        base="required",
        members=(1, 1),
    ),
    "arcee_fusion": Method(
        build=lambda members, s, _: arcee_fusion_recipe(len(members)), base="required", members=(1, 1)
    ),
    "ram": Method(
        build=lambda members, s, _: ram_recipe(len(members), s["epsilon"]),
        of_merge={"epsilon": 1e-5},
        base="required",
    ),
    "ramplus_tl": Method(
        build=lambda members, s, _: ram_plus_recipe(len(members), s["epsilon"], s["r"], s["alpha"]),
        of_merge={"epsilon": 1e-5, "r": 0.1, "alpha": 0.2},
        base="required",
    ),
    "passthrough": Method(
        build=lambda members, s, _: passthrough_recipe(members[0]["scale"]), of_member={"scale": 1.0}, members=(1, 1)
    ),
}

VOCABULARIES = {"published": PUBLISHED, "mergekit": MERGEKIT}
