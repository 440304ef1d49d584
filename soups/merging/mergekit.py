"""List the methods of mergekit, by its names and as it does them.

Per tensor, weights before the election of signs, L1 norms restored.
"""

from soups.merging.method import REQUIRED, Method, linear_recipe, passthrough_recipe, weights_of
from soups.recipes import spherical
from soups.recipes.consensus import sce_recipe
from soups.recipes.differences import arcee_fusion_recipe, nearswap_recipe, ram_plus_recipe, ram_recipe
from soups.recipes.sparsify import KEEP_ALL, Sparsifier, drop, magprune, outliers, trim
from soups.recipes.task_vectors import task_vector_recipe

_IDLE = {"int8_mask": "masks are made block after block and never held"}


def _mergekit(sparsifier, elect):
    def build(members, settings, _):
        sparsifiers = [
            _ZERO if m["density"] <= 0 else KEEP_ALL if m["density"] >= 1 else sparsifier(m, settings) for m in members
        ]
        return task_vector_recipe(
            len(members),
            sparsifiers,
            weights_of(members),
            elect,
            settings["normalize"],
            settings["lambda"],
            "positive",
            "leaf",
        )

    return build


_ZERO = Sparsifier(lambda part, index, _: part.xp.zeros_like(part.leaves[index]))


def _task_vector_method(sparsifier, elect, normalize, rescale, **of_member):
    return Method(
        build=_mergekit(sparsifier, elect),
        of_member={"weight": REQUIRED, "density": 1.0, **of_member},
        of_merge={"normalize": normalize, "rescale": rescale, "lambda": 1.0, "seed": 0, "int8_mask": False},
        idle=_IDLE,
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


def _nuslerp(members, settings, has_base):
    rows = "column" if settings["nuslerp_row_wise"] else "row"
    scope = "leaf" if settings["nuslerp_flatten"] else rows
    return spherical.nuslerp_recipe(len(members), weights_of(members), has_base, scope)


def _multislerp(members, s, has_base):
    return spherical.multislerp_recipe(
        len(members), weights_of(members), has_base, "leaf", normalize=s["normalize_weights"], epsilon=s["eps"]
    )


def _karcher(members, s, _):
    return spherical.karcher_recipe(len(members), False, "leaf", s["max_iter"], tolerance=s["tol"], least=s["tol"])


def _model_stock(members, s, _):
    return spherical.model_stock_recipe(len(members), "row" if s["filter_wise"] else "leaf")


MERGEKIT = {
    "linear": Method(
        build=lambda members, s, _: linear_recipe(weights_of(members), s["normalize"]),
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
        build=_nuslerp,
        of_member={"weight": REQUIRED},
        of_merge={"nuslerp_flatten": True, "nuslerp_row_wise": False},
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
        build=_karcher,
        of_merge={"max_iter": 10, "tol": 1e-5},
        members=(2, 10**6),
    ),
    "model_stock": Method(
        build=_model_stock,
        of_merge={"filter_wise": False},
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
        idle=_IDLE,
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
