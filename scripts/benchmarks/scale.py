"""Plan soups of large members by formulas, and measure each formula on a small case.

    python scripts/benchmarks/scale.py [--out FILE]

Prints the tables of docs/scale.md: what a formula says of a small encoder beside what was counted there (evaluations,
reads, bytes of arrays, FLOPs of the compiled programs), then bytes, seconds and dollars of greedy and learned soups,
Fisher and RegMean of 72 members with 7 B weights on 256 TPU v5e and on 64 H100. What is assumed stands in `CLUSTERS`
and `WORK`; nothing of the plans was run.
"""

import argparse
import dataclasses
import functools
import importlib
import pathlib
from collections.abc import Mapping

import _common
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import soups
from soups.models.vit import Encoder

_of_fisher = importlib.import_module("soups.recipes.fisher")  # where a function of this name hides it
MEMBERS, WEIGHTS, SIZE = 72, 7e9, 2  # members, weights of each, bytes of a weight (bfloat16)
#: widths of the inputs of the linear layers in a block of a 7 B decoder, with those of their outputs, and its blocks
LAYERS, BLOCKS = [(4096, 4096)] * 4 + [(4096, 11008)] * 2 + [(11008, 4096)], 32
USE = 0.4  # of the peak, by matrix products


@dataclasses.dataclass(frozen=True)
class Cluster:
    """State what a cluster has: all numbers but the first two are a chip's, `storage` a host's bytes a second."""

    chips: int
    hosts: int
    flops: float
    memory: float
    bandwidth: float
    dollars: float  # an hour
    storage: float


CLUSTERS = {
    "256 TPU v5e": Cluster(256, 64, 197e12, 16e9, 819e9, 1.2, 1e9),
    "64 H100": Cluster(64, 8, 989e12, 80e9, 3.35e12, 3.0, 4e9),
}
#: tokens of the held-out set, of a step of a learned soup, for a member's Fisher information and its Gram matrices
WORK = {"held_out": 1e6, "step": 65_536, "steps": 200, "fisher": 512_000, "gram": 256_000}


# --- Formulas: of members M, weights N, their bytes S, tokens T -------------------------------------------------------


def evaluations(members: int) -> int:
    """Return how often a greedy soup evaluates: each member, then each candidate but the first."""
    return 2 * members - 1


def greedy_reads(members: int) -> int:
    """Return how often a greedy soup reads a member: for its own score, and when it is tried."""
    return 2 * members


def forward(weights: float, tokens: float) -> float:
    """Return the FLOPs of a forward pass, without attention: a product and a sum for each weight and token."""
    return 2 * weights * tokens


def learned_step(members: int, weights: float, tokens: float) -> float:
    """Return the FLOPs of a step: forward, backward to the weights, a mixture, and an inner product for each member."""
    return 3 * forward(weights, tokens) + 4 * members * weights


def fisher_flops(weights: float, tokens: float) -> float:
    """Return the FLOPs of the sampled Fisher information: a forward pass to draw labels, then forward and backward."""
    return 4 * forward(weights, tokens)


def gram_size(layers) -> float:
    """Return the elements of the Gram matrices of linear layers (in, out)."""
    return sum(inputs**2 for inputs, _ in layers)


def gram_flops(weights: float, layers, tokens: float) -> float:
    """Return the FLOPs of measuring them: a forward pass, and an outer product of the inputs of each layer."""
    return forward(weights, tokens) + 2 * gram_size(layers) * tokens


def solve_flops(members: int, layers) -> float:
    """Return the FLOPs of RegMean's solution: G W of each member, a Cholesky factor, and two triangular solutions."""
    return sum(2 * members * i**2 * o + i**3 / 3 + 2 * i**2 * o for i, o in layers)


# --- Small cases ------------------------------------------------------------------------------------------------------

WIDTH, DEPTH, TOKENS, SMALL = 64, 2, 32, 5
SMALL_LAYERS = ([(WIDTH, WIDTH)] * 4 + [(WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]) * DEPTH


class Counting(Mapping):
    """Count how often members are read."""

    def __init__(self, members):
        self._members, self.reads = members, 0

    def __getitem__(self, name):
        self.reads += 1
        return self._members[name]

    def __iter__(self):
        return iter(self._members)

    def __len__(self):
        return len(self._members)


def flops(function, *arguments) -> float:
    """Return the FLOPs that the compiler counts."""
    cost = jax.jit(function).lower(*arguments).compile().cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["flops"])


@functools.cache
def small_cases() -> dict[str, tuple[float, float]]:
    """Return for each formula what it says of a small encoder, and what was counted."""
    model = Classifier()
    inputs = jnp.zeros((1, TOKENS, WIDTH))
    params = [model.init(jax.random.key(seed), inputs)["params"] for seed in range(SMALL)]
    weights = sum(leaf.size for leaf in jax.tree.leaves(params[0]) if leaf.ndim > 1)
    all_weights = sum(leaf.size for leaf in jax.tree.leaves(params[0]))
    found = {"weights of the layers": (sum(i * o for i, o in SMALL_LAYERS), weights)}

    def apply_fn(params, inputs):
        return model.apply({"params": params}, inputs)

    def loss(params, inputs):
        return jax.nn.logsumexp(apply_fn(params, inputs))

    found["FLOPs, forward"] = forward(weights, TOKENS), flops(apply_fn, params[0], inputs)
    found["FLOPs, forward and backward"] = (
        3 * forward(weights, TOKENS),
        flops(jax.value_and_grad(loss), params[0], inputs),
    )
    sampled = lambda params, inputs, key: _of_fisher._sum_of_squares(  # noqa: E731
        apply_fn, "sampled", params, inputs, jnp.zeros(1, jnp.int32), jnp.ones(1), jnp.zeros(1, jnp.int32), key
    )
    found["FLOPs, Fisher"] = fisher_flops(weights, TOKENS), flops(sampled, params[0], inputs, jax.random.key(0))
    fisher = soups.fisher_information(apply_fn, params[0], inputs, estimator="sampled", key=jax.random.key(0))
    found["bytes, Fisher"] = 4 * all_weights, sum(leaf.nbytes for leaf in jax.tree.leaves(fisher))

    counted, calls = Counting({f"m{i}": one for i, one in enumerate(params)}), []
    soups.greedy(counted, lambda params: calls.append(1) or float(-len(calls)))
    found["evaluations, greedy"] = evaluations(SMALL), len(calls)
    found["reads, greedy"] = greedy_reads(SMALL), counted.reads

    grams = soups.models.gram_fn(model)(params[0], [inputs])
    found["bytes, Gram matrices"] = 4 * gram_size(SMALL_LAYERS), sum(gram.nbytes for gram in grams.values())
    outer = lambda x: x.T @ x  # noqa: E731
    some = jnp.zeros((TOKENS, WIDTH))
    found["FLOPs, a Gram matrix"] = 2 * WIDTH**2 * TOKENS, flops(outer, some)
    mixing = flops(lambda trees, row: soups.weighted(trees, weights=row), params, jnp.ones(SMALL) / SMALL)
    products = flops(lambda a, trees: [soups.tree.dot(a, one) for one in trees], params[0], params)
    found["FLOPs, mixture and inner products"] = 4 * SMALL * all_weights, mixing + products
    return found


class Classifier(nn.Module):
    """Apply an encoder, and take the first outputs of the mean token for logits, so that all weights are its own."""

    @nn.compact
    def __call__(self, inputs):
        """Map tokens [B, T, D] to logits [B, 4]."""
        return Encoder(DEPTH, 4 * WIDTH, 4)(inputs).mean(1)[:, :4]


# --- Plans ------------------------------------------------------------------------------------------------------------


def plans(cluster: Cluster) -> dict[str, tuple[float, float]]:
    """Return for each step of each method the bytes that go from or to storage, and the seconds that it takes."""
    member, layers = WEIGHTS * SIZE, LAYERS * BLOCKS
    stored = lambda count: count / (cluster.hosts * cluster.storage)  # noqa: E731
    computed = lambda count: count / (cluster.chips * cluster.flops * USE)  # noqa: E731
    moved = lambda count: count / (cluster.chips * cluster.bandwidth)  # noqa: E731
    everything, found = MEMBERS * member, {}

    def step(name, read, compute=0.0, move=0.0):
        found[name] = read, stored(read) + computed(compute) + moved(move)

    step("uniform: read all, write one", everything + member, 2 * MEMBERS * WEIGHTS)
    reads = greedy_reads(MEMBERS) * member
    step("greedy: evaluate and try", reads, evaluations(MEMBERS) * forward(WEIGHTS, WORK["held_out"]))
    step("learned: read all", everything)
    step(
        f"learned: {WORK['steps']} steps",
        0.0,
        WORK["steps"] * learned_step(MEMBERS, WEIGHTS, WORK["step"]),
        WORK["steps"] * 2 * everything,  # the mixture and the inner products read all members
    )
    information = MEMBERS * 4 * WEIGHTS
    step("Fisher: measure", everything + information, MEMBERS * fisher_flops(WEIGHTS, WORK["fisher"]))
    step("Fisher: merge", everything + information + member, 5 * MEMBERS * WEIGHTS)
    grams = MEMBERS * 4 * gram_size(layers)
    step("RegMean: measure", everything + grams, MEMBERS * gram_flops(WEIGHTS, layers, WORK["gram"]))
    # float32 products at the highest precision are six passes of bfloat16
    step("RegMean: solve", everything + grams + member, 6 * solve_flops(MEMBERS, layers))
    return found


def tables() -> tuple[str, str]:
    """Return both tables of the page: the formulas on small cases, and the plans."""
    lines = ["| formula | says | counted | ratio |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {say:,.0f} | {seen:,.0f} | {seen / say:.2f} |" for name, (say, seen) in small_cases().items()
    ]
    heads = [f"{name} | dollars" for name in CLUSTERS]
    plan = [f"| step | TB of storage | {' | '.join(heads)} |", "|---|---|" + "---|---|" * len(CLUSTERS)]
    by_cluster = {name: plans(cluster) for name, cluster in CLUSTERS.items()}
    for step, (read, _) in next(iter(by_cluster.values())).items():
        cells = [f"{read / 1e12:.2f}" if read else "0"]
        for name, cluster in CLUSTERS.items():
            seconds = by_cluster[name][step][1]
            cells += [f"{seconds:,.0f} s", f"{seconds / 3600 * cluster.chips * cluster.dollars:,.2f}"]
        plan.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines), "\n".join(plan)


def main() -> None:
    """Print the tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/benchmarks/scale.json"))
    options = parser.parse_args()
    print(*tables(), sep="\n\n")
    if np.any([abs(seen / say - 1) > 0.5 for say, seen in small_cases().values()]):
        raise SystemExit("a formula is off by more than a half")
    found = {name: list(pair) for name, pair in small_cases().items()}
    plan = {name: plans(cluster) for name, cluster in CLUSTERS.items()}
    _common.write(options.out, {"small_cases": found, "plans": plan, "machine": _common.machine()})


if __name__ == "__main__":
    main()
