"""Declare a method as a user does, in a file of their own: the contract and the command take it like any other."""

from soups.engine import sum_over
from soups.recipes import Inputs, Recipe, method


@method(base="required", per_member=("weights",), title="sign mean")
def sign_mean(inputs: Inputs, *, weights=1.0, scale=1.0) -> Recipe:
    """Move each element by the mean magnitude of its leaf's task vectors."""

    def vectors(part):
        return [part.vector(index) for index in range(inputs.number)]

    def measure(parts):
        total = sum_over(parts, lambda part: sum(part.xp.sum(part.xp.abs(vector)) for vector in vectors(part)))
        return scale * total / max(1, inputs.number * sum(part.leaves[0].size for part in parts()))

    def merge(part, mean):
        total = sum(weight * vector for weight, vector in zip(weights, vectors(part), strict=True))
        return part.base + mean.astype(part.base.dtype) * part.xp.sign(total)

    return Recipe(merge, measure)
