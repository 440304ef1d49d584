"""Describe the small experiment without steps that take long: SAM, trajectories, random heads, figures."""

import importlib.util
import pathlib

_SMALL = pathlib.Path(__file__).with_name("small_config.py")


def get_config():
    """Leave steps of small_config.py out; the others give the rows that they give there."""
    spec = importlib.util.spec_from_file_location("small", _SMALL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    with config.unlocked():
        for section in ("sam", "trajectory", "random_head", "figures"):
            del config[section]
    return config
