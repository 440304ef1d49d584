"""Run sd-mecha on the models of the command line; for the interpreter that it is installed in."""

import logging

import exchange
import numpy as np
import sd_mecha
import torch
from sd_mecha.extensions.builtin.merge_methods import linear, ties

MEMBERS = ("a", "b", "c")
DROP, SPREAD = 0.7, 0.2


def node(tree):
    return sd_mecha.model({name: torch.from_numpy(array.copy()) for name, array in tree.items()})


def nodes(family, members=MEMBERS):
    return [node(family[name]) for name in members]


def run(recipe, dtype):
    merged = sd_mecha.merge(recipe, merge_dtype=dtype, output_dtype=dtype, strict_merge_space=None, threads=0)
    return {name: tensor.numpy() for name, tensor in merged.items()}


def dtype_of(family):
    return torch.from_numpy(next(iter(family["a"].values()))).dtype


def of_members(method, family, members=MEMBERS, **settings):
    return run(method(*nodes(family, members), **settings), dtype_of(family))


def of_task_vectors(method, family, members=MEMBERS, alpha=1.0, **settings):
    base = node(family["base"])
    deltas = [linear.subtract(member, base) for member in nodes(family, members)]
    return run(linear.add_difference(base, method(*deltas, **settings), alpha=alpha), dtype_of(family))


def difference(models):
    a, b, c = nodes(models["plain"])
    return run(linear.add_difference(a, linear.subtract(b, c), alpha=0.75), dtype_of(models["plain"]))


def factors(models, method=ties.dropout, **settings):
    settings = {"probability": DROP, "seed": 0, **settings}
    return of_task_vectors(method, models["large"], ["a"], **settings)["x"] / models["large"]["a"]["x"]


def tenth(models, part):
    """Return the factors of the smallest or the largest tenth of the magnitudes after DELLA."""
    found = factors(models, ties.ties_sum_with_dropout, della_eps=SPREAD, k=1.0, apply_stock=True)
    order, count = np.argsort(np.abs(models["large"]["a"]["x"])), len(found) // 10
    return found[order[:count] if part == "smallest" else order[-count:]]


CASES = {
    "weighted sum": lambda m: of_members(linear.weighted_sum, m["plain"], "ab", alpha=0.25),
    "n-average": lambda m: of_members(linear.n_average, m["plain"]),
    "add difference": difference,
    "SLERP, members of one length": lambda m: of_members(linear.slerp, m["equal"], "ab", alpha=0.25),
    "SLERP, halfway": lambda m: of_members(linear.slerp, m["plain"], "ab", alpha=0.5),
    "SLERP": lambda m: of_members(linear.slerp, m["plain"], "ab", alpha=0.25),
    "TIES, votes by sums": lambda m: of_task_vectors(ties.ties_sum, m["plain"], alpha=0.75, k=0.25, vote_sgn=True),
    "TIES, votes by sums, k n not whole": lambda m: of_task_vectors(ties.ties_sum, m["plain"], k=0.2, vote_sgn=True),
    "TIES, votes by sums, exact ties": lambda m: of_task_vectors(ties.ties_sum, m["tied"], k=0.25, vote_sgn=True),
    "TIES": lambda m: of_task_vectors(ties.ties_sum, m["plain"], k=0.25),
    "TIES with DARE, nothing dropped": lambda m: of_task_vectors(
        ties.ties_sum_with_dropout, m["plain"], probability=0.0, k=0.25, vote_sgn=True, apply_stock=True
    ),
    "TIES with DARE, nothing dropped, its default": lambda m: of_task_vectors(
        ties.ties_sum_with_dropout, m["plain"], "ab", probability=0.0, k=0.25, vote_sgn=True
    ),
    "dropout, nothing dropped": lambda m: of_task_vectors(ties.dropout, m["plain"], probability=0.0, alpha=0.5),
    "model stock, two members": lambda m: of_task_vectors(ties.model_stock, m["plain"], "ab"),
    "model stock, three members": lambda m: of_task_vectors(ties.model_stock, m["plain"]),
    "geometric median, ten steps": lambda m: of_members(ties.geometric_median, m["plain"], maxiter=10),
    "geometric median": lambda m: of_members(ties.geometric_median, m["plain"]),
    "share of elements that DARE keeps": lambda m: {"value": np.mean(factors(m) != 0)},
    "mean factor of an element in DARE": lambda m: {"value": np.mean(factors(m))},
    "share of the smallest tenth that DELLA keeps": lambda m: {"value": np.mean(tenth(m, "smallest") != 0)},
    "share of the largest tenth that DELLA keeps": lambda m: {"value": np.mean(tenth(m, "largest") != 0)},
    "mean factor of the smallest tenth in DELLA": lambda m: {"value": np.mean(tenth(m, "smallest"))},
}

if __name__ == "__main__":
    logging.disable()
    exchange.answer(CASES)
