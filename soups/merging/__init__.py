"""Merge checkpoints on disk, of any size and format: recipe files, plans from headers, streaming."""

import importlib

# what is here, by the file that it is imported from when it is first used
_ROOMS = {
    "folder": ("folder_files", "folder_notes"),
    "job": ("Job",),
    "methods": ("ELSEWHERE", "REQUIRED", "find_method", "methods_of"),
    "places": ("check_place",),
    "planning": ("Plan", "plan"),
    "recipe_file": ("parse_recipe", "read_recipe"),
    "run": (
        *("THREADS", "merge_to_folder", "merge_to_orbax", "merge_to_pool"),
        *("plan_again", "read_record", "verify_output"),
    ),
    "sharded": ("leaf_sharding", "merge_sharded", "merged_leaves"),
    "sources": ("open_model",),
    "yaml_text": ("load_yaml",),
}
_ROOM = {name: room for room, names in _ROOMS.items() for name in names}
__all__ = sorted(_ROOM)


def __getattr__(name: str):
    if name not in _ROOM:
        raise AttributeError(f"module 'soups.merging' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"soups.merging.{_ROOM[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
