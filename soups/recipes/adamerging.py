"""Learn how much of each task vector to add, from inputs without labels."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from soups import arguments, arrays, tree
from soups.lazy import jax, jit, jnp
from soups.names import check_name
from soups.recipes import _mixing
from soups.recipes.declare import check_real, python_only
from soups.recipes.soup import Soup, digests

ApplyFn = Callable[[tree.Tree, Any], Any]


@python_only("needs inputs of each task: use soups.adamerging in Python")
def adamerging(
    members: arguments.Members,
    *,
    base: tree.Tree,
    apply_fn: ApplyFn | Sequence[ApplyFn] | Mapping[str, ApplyFn],
    batches: Sequence[Iterable[Any]] | Mapping[str, Iterable[Any]],
    per: str = "member",
    steps: int = 500,
    learning_rate: float = 1e-3,
    initial: float = 0.3,
    clip: bool = True,
) -> Soup:
    """Add task vectors with the coefficients at which the predictions on unlabelled inputs are most certain.

    θ(λ) = θ_base + Σ_k λ_k τ_k with τ_k = θ_k − θ_base, or with per="leaf" θ_l = θ_base,l + Σ_k λ_{k,l} τ_{k,l};
    min over λ of Σ_k E_{x of task k} H(softmax(apply_fn_k(θ(λ), x))), H(p) = −Σ_c p_c log p_c, by Adam. The gradient of
    a coefficient is an inner product, dL/dλ_k = <dL/dθ, τ_k>: the device holds one model and its gradients, whatever
    the number of members, which stay where they are.

    Args:
        members: one fine-tuned network for each task.
        apply_fn: gives the logits [B, C] of weights on inputs, with a fixed head; one for all tasks or one for each.
        batches: for each member the batches of inputs of its task, one for each step (the published code takes two of
            16); gone through again when they end.
        per: "member" for one coefficient for each member, "leaf" for one for each leaf and member, which is better.
        learning_rate: of Adam with its usual constants.
        clip: use min(max(λ, 0), 1), as the published code does.

    Returns:
        A soup whose `ingredients` are the coefficients (with per="leaf" their means over the leaves, `leaf_weights`
        holding them all), and whose history has the sum of the tasks' mean entropies at every step.

    Raises:
        ValueError: a task without batches, or with one array in their place; a setting out of range; logits that are
            not [B, C]; an entropy that is not finite.

    Yang et al., "AdaMerging: Adaptive model merging for multi-task learning", 2023, arXiv 2310.02575.
    """
    settings = _settings(per, steps, learning_rate, initial, clip)
    members = arguments.as_mapping(members)
    trees = {"base": base, **{f"member {name}": members[name] for name in members}}
    tree.check_usable(trees)
    vectors = {name: tree.sub(trees[f"member {name}"], base) for name in members}
    return _merge(vectors, base, apply_fn, batches, {"name": "adamerging", **settings}, digests(members, members))


@python_only("needs inputs of each task: use soups.adamerge in Python")
def adamerge(
    task_vectors: Sequence[tree.Tree] | Mapping[str, tree.Tree],
    *,
    base: tree.Tree,
    apply_fn: ApplyFn | Sequence[ApplyFn] | Mapping[str, ApplyFn],
    batches: Sequence[Iterable[Any]] | Mapping[str, Iterable[Any]],
    per: str = "member",
    steps: int = 500,
    learning_rate: float = 1e-3,
    initial: float = 0.3,
    clip: bool = True,
) -> Soup:
    """Merge as `adamerging` does, from task vectors, which may have been changed before.

    AdaMerging++ is this on task vectors that TIES has trimmed to the largest 20 % and to the elected signs.
    `task_vectors`: trees with the names and shapes of `base`, in any float dtypes. All else is as in `adamerging`.

    Yang et al., "AdaMerging: Adaptive model merging for multi-task learning", 2023, arXiv 2310.02575.
    """
    settings = _settings(per, steps, learning_rate, initial, clip)
    vectors = arguments.as_mapping(task_vectors)
    trees = {"base": base, **{f"task vector {name}": vector for name, vector in vectors.items()}}
    tree.check_usable(trees, dtypes=False)
    return _merge(vectors, base, apply_fn, batches, {"name": "adamerge", **settings}, {})


def _settings(per, steps, learning_rate, initial, clip):
    check_name(per, ("member", "leaf"), "value of per")
    steps = arguments.check_within("steps", steps, "[1, inf)", whole=True)
    learning_rate = arguments.check_within("learning_rate", learning_rate, "(0, inf)")
    initial = arguments.check_within("initial", initial, "[0, 1]" if clip else "(-inf, inf)")
    return {"per": per, "steps": steps, "learning_rate": learning_rate, "initial": initial, "clip": clip}


def _merge(vectors, base, apply_fn, batches, recipe, digests):
    for weights in (base, *vectors.values()):
        check_real(recipe["name"], tree.flatten(weights))
    apply_fns = arguments.per_member(apply_fn, vectors, "apply_fns")
    for function in apply_fns:
        arguments.check_takes("apply_fn", function, "params, inputs")
    tasks = batches if isinstance(batches, Mapping) else arguments.check_batches(batches)
    tasks = dict(zip(vectors, arguments.per_member(tasks, vectors, "batches"), strict=True))
    streams = [_forever(arguments.check_batches(task), name) for name, task in tasks.items()]
    names, number = list(vectors), len(tree.names(base))
    rows = 1 if recipe["per"] == "member" else number
    start = np.full((rows, len(names)), recipe["initial"], np.float32)
    coefficients, history = _descend(start, list(vectors.values()), base, apply_fns, streams, recipe)
    return Soup(
        params=_mix(base, list(vectors.values()), coefficients),
        recipe=recipe,
        ingredients={name: float(value) for name, value in zip(names, coefficients.mean(0), strict=True)},
        history=history,
        leaf_weights=_mixing.by_leaf(coefficients, base, names) if recipe["per"] == "leaf" else None,
        digests=digests,
    )


def _descend(raw, vectors, base, apply_fns, streams, recipe):
    import optax  # takes a third of a second to import

    optimizer = optax.adam(recipe["learning_rate"])
    update, state, history = _mixing.stepping(optimizer), optimizer.init(raw), []
    for step in range(recipe["steps"]):
        value, products = _entropy_and_products(base, vectors, _clipped(raw, recipe), apply_fns, streams)
        if not np.isfinite(value):
            raise ValueError(f"the entropy is {value} at step {step}: lower the learning rate, or check the batches")
        if recipe["clip"]:
            products = np.where((raw >= 0) & (raw <= 1), products, np.float32(0))
        raw, state = jax.device_get(update(products, state, raw))
        history.append(value)
    return _clipped(raw, recipe), history


def _clipped(raw, recipe):
    return np.clip(raw, 0, 1) if recipe["clip"] else raw


def _entropy_and_products(base, vectors, coefficients, apply_fns, streams):
    params, total, grads = _mix(base, vectors, coefficients), 0.0, None
    # task after task, so that the activations of one are on the device
    for apply_fn, stream in zip(apply_fns, streams, strict=True):
        value, grads = _add_task(apply_fn, params, next(stream), grads)
        total += float(value)
    return total, _mixing.gradient(grads, vectors, len(coefficients))


@jit(static_argnums=0, donate_argnums=3)
def _add_task(apply_fn, params, inputs, so_far):
    """Return the mean entropy of one task, and its gradient added to those so far."""
    floats, rest = tree.split_floats(params)

    def entropy(floats):
        logits = apply_fn(tree.combine(floats, rest), inputs)
        arguments.check_logits(logits)
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        return -jnp.mean(jnp.sum(jnp.exp(log_probs) * log_probs, axis=1))

    value, grads = jax.value_and_grad(entropy)(floats)
    grads = tree.widen(grads)
    return value, grads if so_far is None else jax.tree.map(jnp.add, so_far, grads)


def _mix(base, vectors, coefficients):
    def added(column, row):
        if not tree.is_float(column[0]):
            return column[0]
        start, *wide = tree.widen_leaves(column)
        return (start + arrays.mix(wide, row)).astype(column[0].dtype)

    return _mixing.by_rows(added, [base, *vectors], coefficients)


def _forever(batches: Iterable[Any], name: str) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                f"no batches for task {name}: the list is empty, or an iterator that is exhausted: give a list"
            )
