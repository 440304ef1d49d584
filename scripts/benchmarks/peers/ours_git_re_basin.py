"""State what is compared with git-re-basin: weight matching in the same order of visits must give the same weights."""

import json

import jax
import numpy as np
from peers.case import FLOAT32, Case

import soups
from soups.models import MLP, ResNet, permutation_spec

COMMIT = "ef40098257ab97243930eba737d6dcb8edd5863e"
VERSION = COMMIT[:7]
SOURCE = "https://github.com/samuela/git-re-basin"
REQUIREMENTS = ()
SEEDS = range(10)
MODELS = {"MLP": (MLP(5, (32, 24, 16)), (1, 12)), "ResNet": (ResNet(5, (1, 1, 1), 0.5), (1, 8, 8, 3))}


def make_models(dtype):
    """Draw two networks of each kind, with the spec of its permutations."""
    rng, pairs = np.random.default_rng(0), {}
    for name, (model, shape) in MODELS.items():
        drawn = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, np.float32))["params"]
        leaves = soups.tree.flatten(drawn)
        pair = {key: {leaf: rng.normal(size=x.shape).astype(dtype) for leaf, x in leaves.items()} for key in "ab"}
        pairs[name] = pair | {"spec": np.asarray(json.dumps(permutation_spec(model, drawn)))}
    return pairs


def _matched(pair):
    spec, found = json.loads(str(pair["spec"]), object_hook=_with_tuples), {}
    for seed in SEEDS:
        matching = soups.weight_matching(pair["a"], pair["b"], spec, key=jax.random.key(seed))
        permuted = soups.permute(pair["b"], matching.permutations, spec)
        found[str(seed)] = {"weights": permuted, "objective": matching.history[-1]}
    return found


def _with_tuples(spec):
    return {name: tuple(axes) for name, axes in spec.items()}


def _between(pair, path):
    return soups.interpolate(pair["a"], pair["b"], t=0.3, path=path)


CASES = [
    Case("weight matching, MLP", lambda m: _matched(m["MLP"]), dtypes=FLOAT32),
    Case("weight matching, ResNet", lambda m: _matched(m["ResNet"]), dtypes=FLOAT32),
    Case("linear path", lambda m: _between(m["MLP"], "linear"), dtypes=FLOAT32),
    Case("spherical path", lambda m: _between(m["MLP"], "spherical"), dtypes=FLOAT32),
]
STATISTICS = []
