"""List the methods of this library for recipe files and the command line: what their papers say, with their defaults.

All of them need nothing but checkpoints; `ELSEWHERE` says of the others what they need.
"""

import re
from collections.abc import Callable

from soups import tree
from soups.engine import Recipe
from soups.merging.method import REQUIRED, Method, linear_recipe, passthrough_recipe, weights_of
from soups.recipes import spherical
from soups.recipes.consensus import consensus_recipe, pcb_recipe, sce_recipe
from soups.recipes.differences import arcee_fusion_recipe, magmax_recipe, nearswap_recipe, ram_plus_recipe, ram_recipe
from soups.recipes.fisher import check_alpha, fisher_recipe
from soups.recipes.regmean import regmean_recipe
from soups.recipes.sparsify import KEEP_ALL, Sparsifier, drop, magprune, outliers, trim
from soups.recipes.spectral import iso_c_recipe, tsv_merge_recipe, wudi_recipe
from soups.recipes.task_vectors import task_vector_recipe


def _task_vectors(sparsifier: Callable[[dict, dict], Sparsifier], elect=None, scope="model"):
    def build(members, settings, _):
        return task_vector_recipe(
            len(members),
            [sparsifier(member, settings) for member in members],
            weights_of(members),
            settings.get("elect", False) if elect is None else elect,
            settings.get("normalize", settings.get("elect", False) if elect is None else elect),
            settings["scale"],
            "majority",
            settings.get("scope", scope),
        )

    return build


def _wise_ft(_members, settings, _):
    alpha, chosen = settings["alpha"], re.compile(settings["only"])

    def merge(part, _):
        if not chosen.fullmatch(part.name):
            return part.leaves[0]
        return tree.lerp({part.name: part.base}, {part.name: part.leaves[0]}, alpha)[part.name]

    return Recipe(merge)


def _stitch(members, settings, _):
    """Keep the largest elements of each task vector; where several members keep one, take their mean."""
    chosen = re.compile(settings["only"])
    sparsifiers = [trim(member["density"]) for member in members]

    def measure(parts):
        def seen():
            return (part for part in parts() if chosen.fullmatch(part.name))

        thresholds = [sparsifier.measure(seen, index)[0] for index, sparsifier in enumerate(sparsifiers)]
        return [0.0 if threshold is None else threshold for threshold in thresholds]

    def merge(part, thresholds):
        if not chosen.fullmatch(part.name):
            return part.base
        vectors = [part.vector(index) for index in range(len(part.leaves))]
        gates = [(part.xp.abs(x) >= least).astype(x.dtype) for x, least in zip(vectors, thresholds, strict=True)]
        total = tree.sum_in_order([gate * vector for gate, vector in zip(gates, vectors, strict=True)])
        return part.base + total / part.xp.maximum(tree.sum_in_order(gates), 1)

    return Recipe(merge, measure, scope="model")


def _fisher(members, s, _):
    favored = [member["favor"] for member in members]
    return fisher_recipe(len(members), weights_of(members), s["floor"], favored, s["normalize"])


def _fisher_interpolate(_members, s, _):
    check_alpha(s["alpha"])
    return fisher_recipe(2, [1.0 - s["alpha"], s["alpha"]], s["floor"], normalize=s["normalize"])


PUBLISHED = {
    "linear": Method(
        build=lambda members, s, _: linear_recipe(weights_of(members), s["normalize"]),
        of_member={"weight": 1.0},
        of_merge={"normalize": True},
        summary="weighted average of the members: the uniform soup where all weights are 1",
        paper="Wortsman et al. 2022, 2203.05482",
    ),
    "wise_ft": Method(
        build=_wise_ft,
        of_merge={"alpha": 0.5, "only": ".*"},
        base="required",
        members=(1, 1),
        summary="straight line from the base (alpha = 0) to the member (alpha = 1)",
        paper="Wortsman et al. 2021, 2109.01903",
    ),
    "fisher": Method(
        build=_fisher,
        of_member={"weight": 1.0, "fisher": REQUIRED, "favor": False},
        of_merge={"floor": 1e-6, "normalize": False},
        files=("fisher",),
        summary="average in which each parameter counts by its Fisher information, a checkpoint for each member",
        paper="Matena and Raffel 2021, 2111.09832",
    ),
    "fisher_interpolate": Method(
        build=_fisher_interpolate,
        of_member={"fisher": REQUIRED},
        of_merge={"base_fisher": REQUIRED, "alpha": 0.5, "floor": 1e-6, "normalize": False},
        files=("base_fisher", "fisher"),
        base="first",
        members=(1, 1),
        summary="wise_ft in which each parameter counts by its Fisher information",
        paper="Matena and Raffel 2021, 2111.09832",
    ),
    "regmean": Method(
        build=lambda members, s, _: regmean_recipe(weights_of(members), s["alpha"], s["inputs"]),
        of_member={"weight": 1.0, "grams": REQUIRED},
        of_merge={"alpha": 0.9, "inputs": "last"},
        files=("grams",),
        grams=True,
        summary="linear layers by least squares on each member's inputs, of which it needs the Gram matrices",
        paper="Jin et al. 2022, 2212.09849",
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
        build=lambda members, s, base: spherical.nuslerp_recipe(len(members), weights_of(members), base, s["scope"]),
        of_member={"weight": 1.0},
        of_merge={"scope": "leaf"},
        base="optional",
        members=(2, 2),
        summary="arc between two members, or their task vectors",
        paper="Shoemake 1985",
    ),
    "multislerp": Method(
        build=lambda members, s, base: spherical.multislerp_recipe(len(members), weights_of(members), base, s["scope"]),
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
            len(members), weights_of(members), s["scope"], s["iterations"]
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
        build=_task_vectors(lambda m, s: KEEP_ALL, elect=False),
        of_member={"weight": 1.0},
        of_merge={"scale": 0.3},
        base="required",
        summary="base plus scaled sum of task vectors; a negative scale forgets",
        paper="Ilharco et al. 2022, 2212.04089",
    ),
    "ties": Method(
        build=_task_vectors(lambda m, s: trim(m["density"], surplus=1), elect=True),
        of_member={"weight": 1.0, "density": 0.2},
        of_merge={"scale": 1.0, "normalize": True, "scope": "model"},
        base="required",
        summary="trim task vectors, elect signs, average those that agree",
        paper="Yadav et al. 2023, 2306.01708",
    ),
    "dare": Method(
        build=_task_vectors(lambda m, s: drop(m["density"], seed=s["seed"])),
        of_member={"weight": 1.0, "density": 0.1},
        of_merge={"scale": 1.0, "elect": False, "seed": 0},
        base="required",
        summary="drop elements of the task vectors at random, rescale, add",
        paper="Yu et al. 2023, 2311.03099",
    ),
    "della": Method(
        build=_task_vectors(lambda m, s: magprune(m["density"], m["epsilon"], seed=s["seed"]), elect=True),
        of_member={"weight": 1.0, "density": 0.7, "epsilon": 0.07},
        of_merge={"scale": 1.1, "seed": 0},
        base="required",
        summary="drop small elements of each row more often, elect signs, average",
        paper="Deep et al. 2024, 2406.11617",
    ),
    "breadcrumbs": Method(
        build=_task_vectors(lambda m, s: outliers(m["density"], m["gamma"]), elect=False, scope="leaf"),
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
        paper="Yuan et al. 2026, 2601.13572",
    ),
    "ram_plus": Method(
        build=lambda members, s, _: ram_plus_recipe(len(members), s["epsilon"], s["rescale"], s["limit"], s["scope"]),
        of_merge={"epsilon": 1e-5, "rescale": 0.1, "limit": 0.2, "scope": "leaf"},
        base="required",
        summary="ram that enlarges what one member alone changed, the more it shares with others",
        paper="Yuan et al. 2026, 2601.13572",
    ),
    "nearswap": Method(
        build=lambda members, s, _: nearswap_recipe(len(members), s["t"]),
        of_merge={"t": 1e-4},
        base="required",
        members=(1, 1),
        summary="from the base to the member by at most t in each element",
    ),
    "arcee_fusion": Method(
        build=lambda members, s, _: arcee_fusion_recipe(len(members)),
        base="required",
        members=(1, 1),
        summary="the base, with the member's differences that are outliers of importance",
    ),
    "localize_and_stitch": Method(
        build=_stitch,
        of_member={"density": 0.05},
        of_merge={"only": ".*"},
        base="required",
        summary="put the elements that moved most in each member into the base: the variant without data",
        paper="He et al. 2024, 2408.13656",
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

# what is a method of this library, but not one that makes a model from checkpoints alone: the end of a sentence
ELSEWHERE = {
    "adamerging": "needs inputs of each task: use soups.adamerging in Python",
    "align": "comes before a merge: --align SPEC with any method",
    "ema": "follows one training run: use soups.ema in Python",
    "emr": "gives weights for each task and not one model: use soups.emr in Python",
    "evolve": "needs a function that evaluates weights: use soups.evolve in Python",
    "greedy": "needs a function that evaluates weights: use soups.greedy in Python",
    "interpolate": "is wise_ft here, or slerp on the arc",
    "learned": "needs held-out data and a loss: use soups.learned in Python",
    "localize": "needs examples of each task: use soups.localize in Python, or localize_and_stitch, which needs none",
    "rebasin": "comes before a merge: --align SPEC with any method",
    "regmean_pp": "needs the networks to measure inputs with: use soups.regmean_pp in Python",
    "stitch": "needs a mask for each member: use soups.stitch in Python, or localize_and_stitch",
    "tall_masks": "gives masks and not a model: use soups.tall_masks in Python, or consensus",
    "uniform": "is linear here, with all weights 1",
    "weighted": "is linear here, with --weight for each member and normalize false",
}
