"""Run git-re-basin, whose `src` is on the path, on the models of the command line."""

import json

import exchange
import jax
import numpy as np

jax.tree_map = jax.tree.map  # as it was called when git-re-basin was written

import utils  # noqa: E402
import weight_matching as peer  # noqa: E402

SEEDS = range(10)


class Visits:
    """Return the random orders of NumPy's generator, as ours draws them, in place of those of JAX."""

    def __init__(self, names, seed):
        self.names, self.generator = names, np.random.default_rng([0, seed])

    def permutation(self, key, number):
        """Return the places of the sorted names, shuffled."""
        return [self.names.index(sorted(self.names)[place]) for place in self.generator.permutation(number)]


def matched(pair):
    spec = peer.permutation_spec_from_axes_to_perm({k: tuple(v) for k, v in json.loads(str(pair["spec"])).items()})
    a, b = ({name: jax.numpy.asarray(x) for name, x in pair[key].items()} for key in "ab")
    found = {}
    for seed in SEEDS:
        peer.random = Visits(list(spec.perm_to_axes), seed)
        orders = peer.weight_matching(jax.random.key(seed), spec, a, b, silent=True)
        permuted = {name: np.asarray(x) for name, x in peer.apply_permutation(spec, orders, b).items()}
        found[str(seed)] = {"weights": permuted, "objective": objective(pair, permuted)}
    return found


def objective(pair, permuted):
    """Sum the products of what is permuted."""
    moved = [name for name, axes in json.loads(str(pair["spec"])).items() if any(axes)]
    return sum(np.vdot(pair["a"][name].astype(np.float64), permuted[name].astype(np.float64)) for name in moved)


def between(path, pair):
    return {name: np.asarray(x) for name, x in path(0.3, pair["a"], pair["b"]).items()}


CASES = {
    "weight matching, MLP": lambda m: matched(m["MLP"]),
    "weight matching, ResNet": lambda m: matched(m["ResNet"]),
    "linear path": lambda m: between(utils.lerp, m["MLP"]),
    "spherical path": lambda m: between(utils.slerp, m["MLP"]),
}

if __name__ == "__main__":
    exchange.answer(CASES)
