"""Average the weights of fine-tuned networks: pools, soups and what is measured on them.

What a user calls is one import away; each name is imported when it is first used.
"""

import importlib

__version__ = "0.1.0"
# what is one import away, by the module that it comes from; rooms of the house are imported by their names
_FROM = {
    "soups.evaluate": ["Diagnosis", "diagnose"],
    "soups.pool": ["Pool", "PoolCorruptionError", "merge"],
    "soups.studies": ["cook"],
    "soups.tree": ["NonFiniteError"],
    "soups.recipes": [
        "Soup", "activation_matching", "adamerge", "adamerging", "align", "arcee_fusion", "breadcrumbs",
        "check_function_unchanged", "combine_task_vectors", "consensus", "dare", "della", "drop", "ema", "emr",
        "emr_restore", "evolve", "fisher", "fisher_information", "fisher_interpolate", "geometric_median", "greedy",
        "greedy_speculative", "interpolate", "iso_c", "karcher", "learned", "linear", "localize",
        "localize_and_stitch", "localize_dataless", "magmax", "magprune", "mask_overlap", "model_stock", "multislerp",
        "nearswap", "nuslerp", "outliers", "passthrough", "pcb", "permute", "ram", "ram_plus", "regmean",
        "regmean_pp", "running_mean", "sce", "slerp", "spec_from_rules", "stitch", "straight_through_matching",
        "tall_masks", "task_arithmetic", "ties", "trim", "tsv_merge", "uniform", "weight_matching", "weighted",
        "wise_ft", "wudi"],
}  # fmt: skip
_ROOM = {name: room for room, names in _FROM.items() for name in names}
_MODULES = {"sparsify": "soups.recipes.sparsify", "rebasin": "soups.recipes.rebasin"}
_PACKAGES = (
    "data", "engine", "evaluate", "finetune", "formats", "merging", "models", "pool", "recipes", "report", "studies",
    "train", "tree")  # fmt: skip
__all__ = sorted(["__version__", "recipes", "tree", *_MODULES, *_ROOM])


def __getattr__(name: str):
    if name in _MODULES or name in _PACKAGES:
        return importlib.import_module(_MODULES.get(name, f"soups.{name}"))
    if name in _ROOM:
        value = getattr(importlib.import_module(_ROOM[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'soups' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
