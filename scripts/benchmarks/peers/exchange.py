"""Carry nested dicts of arrays from one interpreter to another. NumPy alone: the peers' interpreters read this too."""

import sys

import numpy as np


def read(path):
    """Return the nested dict of arrays that `write` wrote."""
    nested = {}
    with np.load(path) as arrays:
        for name in arrays.files:
            *path, last = name.split("|")
            place = nested
            for key in path:
                place = place.setdefault(key, {})
            place[last] = arrays[name]
    return nested


def write(path, nested):
    """Write a nested dict of arrays."""
    with open(path, "wb") as file:
        np.savez(file, **flatten(nested))


def flatten(nested, above=""):
    """Return {"key|key|key": array}."""
    flat = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{above}{key}|") if isinstance(value, dict) else {f"{above}{key}": np.asarray(value)}
    return flat


def answer(cases):
    """Run the peer's side: for each pair of files on the command line read the models and write what each case gives.

    A case that fails gives {"error": the message}.
    """
    for source, target in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        models, results = read(source), {}
        for name, case in cases.items():
            try:
                results[name] = case(models)
            except Exception as error:
                results[name] = {"error": f"{type(error).__name__}: {error}"}
        write(target, results)
