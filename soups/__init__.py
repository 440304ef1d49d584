"""Average the weights of fine-tuned networks: pools, soups and what is measured on them.

What a user calls is one import away; each name is imported when it is first used.
"""

import importlib

__version__ = "0.1.0"
__all__ = [
    "Diagnosis",
    "NonFiniteError",
    "Pool",
    "PoolCorruptionError",
    "Soup",
    "__version__",
    "activation_matching",
    "adamerge",
    "adamerging",
    "align",
    "arcee_fusion",
    "breadcrumbs",
    "check_function_unchanged",
    "combine_task_vectors",
    "consensus",
    "cook",
    "dare",
    "della",
    "diagnose",
    "drop",
    "ema",
    "emr",
    "emr_restore",
    "evolve",
    "fisher",
    "fisher_information",
    "fisher_interpolate",
    "geometric_median",
    "greedy",
    "greedy_speculative",
    "interpolate",
    "iso_c",
    "karcher",
    "learned",
    "linear",
    "localize",
    "localize_and_stitch",
    "localize_dataless",
    "magmax",
    "magprune",
    "mask_overlap",
    "merge",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "outliers",
    "passthrough",
    "pcb",
    "permute",
    "ram",
    "ram_plus",
    "rebasin",
    "recipes",
    "regmean",
    "regmean_pp",
    "running_mean",
    "sce",
    "slerp",
    "sparsify",
    "spec_from_rules",
    "stitch",
    "straight_through_matching",
    "tall_masks",
    "task_arithmetic",
    "ties",
    "tree",
    "trim",
    "tsv_merge",
    "uniform",
    "weight_matching",
    "weighted",
    "wise_ft",
    "wudi",
]

# where what is listed comes from, if not from soups.recipes; rooms of the house are imported by their names
_ROOMS = {
    "Diagnosis": "soups.evaluate",
    "NonFiniteError": "soups.tree",
    "diagnose": "soups.evaluate",
    "Pool": "soups.pool",
    "PoolCorruptionError": "soups.pool",
    "merge": "soups.pool",
    "cook": "soups.studies",
}
_MODULES = {"sparsify": "soups.recipes.sparsify", "rebasin": "soups.recipes.rebasin"}
_PACKAGES = (
    "data",
    "engine",
    "evaluate",
    "finetune",
    "formats",
    "merging",
    "models",
    "pool",
    "recipes",
    "report",
    "studies",
    "tree",
)


def __getattr__(name: str):
    if name in _MODULES or name in _PACKAGES:
        return importlib.import_module(_MODULES.get(name, f"soups.{name}"))
    if name in __all__:
        value = getattr(importlib.import_module(_ROOMS.get(name, "soups.recipes")), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'soups' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
