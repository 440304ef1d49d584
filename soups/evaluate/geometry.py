"""Measure where members lie in weight space: one pass over all weights, block by block, in float64."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from soups import tree

# Iglewicz and Hoaglin's limit for the robust z-score
OUTLIER_Z = 3.5
_ROWS_TIMES_BLOCK = 1 << 21  # 16 MB of float64, however many members there are


@dataclasses.dataclass(frozen=True)
class Gram:
    """Hold the inner products of v_1, …, v_K and r: [K + 1, K + 1], with v_i = θ_i − r for a reference r.

    Deviations are multiplied, not weights: |θ_i − r|² taken as a difference of two large products would be rounding.
    """

    matrix: np.ndarray

    def __add__(self, other: "Gram") -> "Gram":
        return Gram(self.matrix + other.matrix)

    @property
    def deviations(self) -> np.ndarray:
        """Return <v_i, v_j>: [K, K]."""
        return self.matrix[:-1, :-1]

    @property
    def weights(self) -> np.ndarray:
        """Return <θ_i, θ_j> = <v_i, v_j> + <v_i, r> + <v_j, r> + <r, r>: [K, K]."""
        along = self.matrix[:-1, -1]
        return self.deviations + along[:, None] + along[None, :] + self.matrix[-1, -1]

    @property
    def norms(self) -> np.ndarray:
        """Return |v_i|: [K]."""
        return np.sqrt(np.diag(self.deviations))

    @property
    def reference(self) -> float:
        """Return |r|."""
        return float(np.sqrt(self.matrix[-1, -1]))

    @property
    def distances(self) -> np.ndarray:
        """Return |θ_i − θ_j|: [K, K]."""
        squares = np.diag(self.deviations)
        return np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * self.deviations, 0))

    def select(self, indices: Sequence[int]) -> "Gram":
        """Return the inner products of some members only."""
        rows = [*indices, len(self.matrix) - 1]
        return Gram(self.matrix[np.ix_(rows, rows)])


def measure(
    members: Sequence[tree.Tree], base: tree.Tree | None, modules: Mapping[str, str]
) -> dict[str, tuple[Gram, Gram]]:
    """Return for each module the inner products over its matrices and over its other leaves.

    The reference is the base, or without one the mean of the members. `modules`: the module of each float leaf to look
    at, which all have in one shape. One leaf of each member is on the host at a time, and a block of it in float64.
    """
    flat = [tree.flatten(member) for member in members]
    start = None if base is None else tree.flatten(base)
    empty = Gram(np.zeros((len(flat) + 1,) * 2))
    found = {}
    for name, module in modules.items():
        origin = None if start is None else _vector(start[name])
        gram = _leaf([_vector(member[name]) for member in flat], origin)
        matrices, rest = found.get(module, (empty, empty))
        is_matrix = flat[0][name].ndim > 1
        found[module] = (matrices + gram, rest) if is_matrix else (matrices, rest + gram)
    return found


def modules_of(leaves: Sequence[str]) -> dict[str, str]:
    """Return each leaf its module: the first part of its name after what all names begin with."""
    parts = [name.split("/") for name in leaves]
    depth = 0
    while parts and all(len(p) > depth + 1 for p in parts) and len({p[depth] for p in parts}) == 1:
        depth += 1
    return {name: p[depth] for name, p in zip(leaves, parts, strict=True)}


def _leaf(vectors, origin):
    block = max(1, _ROWS_TIMES_BLOCK // (len(vectors) + 1))
    matrix = np.zeros((len(vectors) + 1,) * 2)
    for begin in range(0, vectors[0].size, block):
        rows = np.stack([np.asarray(vector[begin : begin + block], np.float64) for vector in vectors])
        reference = rows.mean(axis=0) if origin is None else np.asarray(origin[begin : begin + block], np.float64)
        rows = np.concatenate([rows - reference, reference[None]])
        matrix += rows @ rows.T
    return Gram(matrix)


def _vector(leaf):
    vector = np.asarray(leaf).reshape(-1)
    return vector.view(vector.real.dtype) if np.iscomplexobj(vector) else vector


# --- Statistics of a few numbers ---


def cosines(gram: np.ndarray) -> np.ndarray:
    """Return <a_i, a_j> / (|a_i| |a_j|): [K, K], 0 where one of them is zero."""
    lengths = np.sqrt(np.diag(gram))
    product = np.outer(lengths, lengths)
    return np.clip(np.divide(gram, product, out=np.zeros_like(gram), where=product > 0), -1, 1)


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """Return what stands off the diagonal, row by row: [K, K − 1]."""
    count = len(matrix)
    return matrix[~np.eye(count, dtype=bool)].reshape(count, max(count - 1, 0))


def spread(gram: Gram, has_base: bool) -> np.ndarray:
    """Return how far each member moved: |θ_i − base|, without a base its median distance to the others: [K].

    Not the distance to the mean: one member far off would carry the mean with it. Of two middle distances the smaller
    counts, so that of three members one far off does not make the others look far too.
    """
    if has_base:
        return gram.norms
    distances = np.sort(off_diagonal(gram.distances), axis=1)
    count = distances.shape[1]
    return distances[:, (count - 1) // 2] if count else np.zeros(len(distances))


def robust_z(values: np.ndarray) -> np.ndarray:
    """Return 0.6745 (x − median) / MAD, infinite where the median deviation is zero and x is not the median.

    Iglewicz and Hoaglin, "How to detect and handle outliers", 1993.
    """
    away = values - np.median(values)
    mad = np.median(np.abs(away))
    if mad == 0:
        return np.where(away == 0, 0.0, np.copysign(np.inf, away))
    return 0.6745 * away / mad


def agreement_with_others(cosine: np.ndarray) -> np.ndarray:
    """Return the cosine of each direction with the mean of the other unit directions, from their cosines: [K].

    <u_i, s_i> / |s_i| with s_i = Σ_{j≠i} u_j; all lengths count alike, so that a long task vector does not decide.
    """
    count = len(cosine)
    products = cosine.sum(axis=1) - np.diag(cosine)
    squares = [cosine[np.ix_(others, others)].sum() for others in (np.arange(count) != i for i in range(count))]
    lengths = np.sqrt(np.maximum(squares, 0))
    return np.divide(products, lengths, out=np.zeros(count), where=lengths > 1e-12)


def together(apart: np.ndarray) -> list[int]:
    """Return the indices of members that lie together: drop whoever is apart from most of the rest, the worst first.

    `apart`: bool [K, K], symmetric. Ends when nobody left is apart from more than half of the others; in a tie the one
    listed later is dropped. A single wrong pair among many, from noise, drops nobody.
    """
    left = list(range(len(apart)))
    while len(left) > 1:
        share = apart[np.ix_(left, left)].sum(axis=1) / (len(left) - 1)
        if share.max() <= 0.5:
            break
        left.pop(int(np.flatnonzero(share == share.max())[-1]))
    return left
