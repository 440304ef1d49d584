"""Call the library as its users do, for a type checker to read; what it must refuse stands behind `type: ignore`.

`--warn-unused-ignores` makes an error of what it does not refuse.
"""

import numpy as np

import soups
from soups import tree
from soups.evaluate import Diagnosis, accuracy, barrier
from soups.formats import Checkpoint, open_checkpoint, write_safetensors
from soups.recipes import Inputs, Recipe, Soup, method
from soups.train import fit

members = [{"w": np.ones((8, 4), np.float32)} for _ in range(3)]
base = {"w": np.zeros((8, 4), np.float32)}
named = dict(zip("abc", members, strict=True))


def score(params: tree.Tree) -> float:
    return -float(tree.norm(params))


def soups_of_members() -> None:
    soups.uniform(members)
    soups.uniform(soups.Pool("pool"))
    soups.weighted(named, {"a": 0.5, "b": 0.5})
    soups.ties(named, base=base, density={"a": 0.2, "b": 0.3, "c": 0.4}, scale=0.8)
    soups.dare(members, base=base, density=[0.1, 0.2, 0.3], seed=1)
    soups.wise_ft(members[0], base=base, alpha=np.float32(0.5))
    soups.combine_task_vectors(members, base=base, sparsify=soups.trim(0.3), elect=True)
    soups.fisher(members, named, weights=[1.0, 2.0, 3.0])
    soups.evolve(soups.linear, members, score)

    soups.ties(members)  # type: ignore[call-arg]
    soups.ties(members, base=base, densty=0.2)  # type: ignore[call-arg]
    soups.ties(members, base=base, density="all")  # type: ignore[arg-type]
    soups.uniform(3)  # type: ignore[arg-type]
    soups.unifrom(members)  # type: ignore[attr-defined]


def soups_that_are_selected() -> tuple[float, list[str]]:
    greedy: Soup = soups.greedy(members, score)
    learned = soups.learned(members, lambda params, batch, key: params["w"].sum(), [np.zeros(1)])
    soups.greedy(members)  # type: ignore[call-arg]
    return learned.score or 0.0, greedy.ingredients  # type: ignore[return-value]


def pools_and_files() -> str:
    pool = soups.Pool("pool", must_exist=True)
    record = pool.add("a", members[0], {"learning_rate": 1e-3})
    write_safetensors("a.safetensors", members[0])
    there: Checkpoint = open_checkpoint("a.safetensors")
    pool.add("b", {"w": there.read("w")})
    pool.add(members[0])  # type: ignore[call-arg, arg-type]
    return f"{record['digest']} {pool.names[0]}"


def what_is_measured() -> float:
    diagnosis: Diagnosis = soups.diagnose(members, base=base, evaluate=score)
    barrier(score, members[0], members[1])
    soups.diagnose(members, base=base, max_members="all")  # type: ignore[arg-type]
    return accuracy(np.zeros((2, 3)), [0, 1]) + len(diagnosis.keep)


def training() -> tree.Tree:
    return fit(lambda params, batch, key: params["w"].sum(), base, np.zeros((8, 2)), batch_size=2, steps=3)["params"]


@method(base="required", summary="the base plus the signs of the task vectors")
def sign_sum(inputs: Inputs, *, scale: float = 0.01) -> Recipe:
    return Recipe(lambda part, measured: part.base + scale * sum(part.xp.sign(vector) for vector in part.vectors))


def algebra() -> tree.Tree:
    vectors = [tree.sub(member, base) for member in members]
    cosine = float(tree.cosine(vectors[0], vectors[1]))
    tree.lerp(base, members[0])  # type: ignore[call-arg]
    return tree.add_scaled(base, tree.mean(vectors), cosine)
