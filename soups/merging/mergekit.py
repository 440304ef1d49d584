"""Declare the methods of mergekit, by its names and as it does them: renames and defaults over this library's recipes.

Per tensor, weights before the election of signs, L1 norms restored. A parameter `lambda_` is called lambda in recipes.
"""

from __future__ import annotations

import functools
import inspect

from soups.engine import Recipe
from soups.recipes import METHODS
from soups.recipes.declare import MANY, REQUIRED, Inputs, Method, method
from soups.recipes.sparsify import KEEP_ALL, Sparsifier, drop, magprune, outliers, trim
from soups.recipes.task_vectors import combine_task_vectors

MERGEKIT: dict[str, Method] = {}

_declare = functools.partial(method, registry=MERGEKIT)
_IDLE = {"int8_mask": "masks are made block after block and never held"}


# --- Averages and arcs ---


@_declare(per_member=("weight",), takes_complex=True)
def _linear(inputs: Inputs, *, weight, normalize: bool = True) -> Recipe:
    return METHODS["linear"].recipe(inputs, weights=weight, normalize=normalize)


@_declare(base="first", members=(1, 1), single=True)
def _slerp(inputs: Inputs, *, t) -> Recipe:
    return METHODS["slerp"].recipe(inputs, t=t, parallel=0.9995)


@_declare(base="optional", members=(2, 2), per_member=("weight",))
def _nuslerp(inputs: Inputs, *, weight, nuslerp_flatten: bool = True, nuslerp_row_wise: bool = False) -> Recipe:
    rows = "column" if nuslerp_row_wise else "row"
    return METHODS["nuslerp"].recipe(inputs, weights=weight, scope="leaf" if nuslerp_flatten else rows)


@_declare(base="optional", members=(2, MANY), per_member=("weight",))
def _multislerp(inputs: Inputs, *, weight, normalize_weights: bool = True, eps: float = 1e-8) -> Recipe:
    return METHODS["multislerp"].recipe(inputs, weights=weight, normalize=normalize_weights, epsilon=eps)


@_declare(members=(2, MANY))
def _karcher(inputs: Inputs, *, max_iter: int = 10, tol: float = 1e-5) -> Recipe:
    return METHODS["karcher"].recipe(inputs, iterations=max_iter, tolerance=tol, least=tol)


@_declare(base="required", members=(2, MANY))
def _model_stock(inputs: Inputs, *, filter_wise: bool = False) -> Recipe:
    return METHODS["model_stock"].recipe(inputs, scope="row" if filter_wise else "leaf")


@_declare(members=(1, 1), per_member=("scale",), takes_complex=True)
def _passthrough(inputs: Inputs, *, scale: float = 1.0) -> Recipe:
    return METHODS["passthrough"].recipe(inputs, scale=scale)


@_declare(base="required", idle=_IDLE)
def _sce(inputs: Inputs, *, select_topk: float = 1.0, int8_mask: bool = False) -> Recipe:
    return METHODS["sce"].recipe(inputs, select_topk=select_topk)


@_declare(base="required", members=(1, 1))
def _nearswap(inputs: Inputs, *, t) -> Recipe:
    return METHODS["nearswap"].recipe(inputs, t=t)


@_declare(base="required", members=(1, 1))
def _arcee_fusion(inputs: Inputs) -> Recipe:
    return METHODS["arcee_fusion"].recipe(inputs)


@_declare(base="required")
def _ram(inputs: Inputs, *, epsilon: float = 1e-5) -> Recipe:
    return METHODS["ram"].recipe(inputs, epsilon=epsilon)


@_declare(base="required")
def _ramplus_tl(inputs: Inputs, *, epsilon: float = 1e-5, r: float = 0.1, alpha: float = 0.2) -> Recipe:
    return METHODS["ram_plus"].recipe(inputs, epsilon=epsilon, rescale=r, limit=alpha)


# --- Task vectors ---


def _task_vectors(name, sparsifier, *, elect, normalize, rescale, **own):
    """Declare a method of task vectors, which all have the same settings but for `own`, those of a member alone.

    `sparsifier(density, rescale, seed, *own)`: densities that keep nothing, or all, are no errors in mergekit. Without
    one the density has no effect.
    """
    defaults = {"weight": REQUIRED, "density": 1.0, **own, "normalize": normalize, "rescale": rescale}
    defaults |= {"lambda_": 1.0, "seed": 0, "int8_mask": False}

    def recipe(inputs, *, weight, density, normalize, rescale, lambda_, seed, int8_mask, **of_member) -> Recipe:
        def sparse(share, *more):
            if share >= 1 or not sparsifier:
                return KEEP_ALL
            return _ZERO if share <= 0 else sparsifier(share, rescale, seed, *more)

        further = list(zip(*of_member.values(), strict=True)) or [()] * inputs.number
        chosen = [sparse(share, *more) for share, more in zip(density, further, strict=True)]
        settings = {"elect": elect, "normalize": normalize, "scale": lambda_, "tie": "positive", "scope": "leaf"}
        return combine_task_vectors.recipe(inputs, sparsify=chosen, weights=weight, **settings)

    parameters = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d) for n, d in defaults.items()]
    recipe.__signature__ = inspect.Signature([inspect.Parameter("inputs", _POSITIONAL), *parameters])
    complete = {"base": "required", "per_member": ("weight", "density", *own), "idle": _IDLE}
    recipe.__name__ = name
    _declare(takes_complex=name == "task_arithmetic", **complete)(recipe)


_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
_ZERO = Sparsifier(lambda part, index, _: part.xp.zeros_like(part.leaves[index]))


def _drop(share, rescale, seed):
    return drop(share, seed=seed, rescale="norm" if rescale else None)


def _magprune(share, rescale, seed, epsilon):
    return magprune(share, epsilon, seed=seed, rescale="norm" if rescale else None)


def _crumbs(share, rescale, seed, gamma):
    return outliers(share, gamma, rescale=rescale, fewer=True)


_task_vectors("task_arithmetic", None, elect=False, normalize=False, rescale=False)
_task_vectors("ties", lambda share, rescale, _: trim(share, rescale=rescale), elect=True, normalize=True, rescale=False)
_task_vectors("dare_linear", _drop, elect=False, normalize=False, rescale=True)
_task_vectors("dare_ties", _drop, elect=True, normalize=False, rescale=True)
_task_vectors("breadcrumbs", _crumbs, elect=False, normalize=False, rescale=False, gamma=0.01)
_task_vectors("breadcrumbs_ties", _crumbs, elect=True, normalize=False, rescale=False, gamma=0.01)
_task_vectors("della", _magprune, elect=True, normalize=True, rescale=True, epsilon=0.15)
_task_vectors("della_linear", _magprune, elect=False, normalize=False, rescale=True, epsilon=0.15)
