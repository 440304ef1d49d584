"""Learn the mixing weights of a soup by gradient descent."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from soups import arguments, arrays, tree
from soups.journal import Journal, content_digest
from soups.lazy import jax
from soups.names import check_name
from soups.recipes import _mixing
from soups.recipes.declare import check_real, python_only
from soups.recipes.soup import Soup, digests


@python_only("needs held-out data and a loss: use soups.learned in Python")
def learned(
    members: arguments.Members,
    loss: Callable[[tree.Tree, Any, jax.Array], jax.Array],
    batches: Iterable[Any],
    *,
    per: str = "model",
    learning_rate: float = 0.05,
    dtype: DTypeLike | None = None,
    journal: str | os.PathLike | None = None,
) -> Soup:
    """Mix members with softmax weights and a temperature that minimise a held-out loss: the learned soup.

    min over a and β of E_batch loss(Σ_i softmax(a)_i θ_i, batch, β), by AdamW without decay, starting from the uniform
    soup and β = 1. The gradient of a weight is an inner product, dL/dα_i = <dL/dθ, θ_i>, so one backward pass to the
    mixed weights is enough: the device holds one model and its gradient, and the members stay where they are, on the
    host, in the files of a pool, or sharded over devices.

    Args:
        loss: gives the mean loss of weights on a batch, with the logits multiplied by the temperature β.
        batches: the held-out batches, in order, one step each; repeat them for more epochs.
        per: "model" for one weight for each member, "leaf" for one for each leaf and member.
        learning_rate: of the weights a and of β; the published code uses 0.05 for 5 epochs.
        dtype: of the mixed weights, for the loss and as they are returned, such as "float32" where members are kept in
            bfloat16. Default: that of the members.
        journal: a file for the state after the last step; the same call goes on from it after a crash, to the bit, and
            passes over the batches that were used.

    Returns:
        A soup whose history has the loss of every step; with per="leaf" `ingredients` holds the mean over the leaves.

    Raises:
        ValueError: no batches, or one array in their place; a negative learning rate; a loss that takes other
            arguments, or does not return a finite number; a journal that was written with other members, settings or
            batches, or with more batches than are given.

    Wortsman et al., "Model soups", 2022, arXiv 2203.05482, appendix I.
    """
    check_name(per, ("model", "leaf"), "value of per")
    learning_rate = arguments.check_within("learning_rate", learning_rate, "(0, inf)")
    arguments.check_takes("loss", loss, "params, batch, temperature")
    arguments.check_batches(batches)
    members = arguments.as_mapping(members)
    names = list(members)
    trees = [members[name] for name in names]
    dtype = None if dtype is None else jax.numpy.dtype(dtype)
    recipe = {"per": per, "learning_rate": learning_rate}
    log = Journal(journal, {"recipe": "learned", **recipe, "dtype": str(dtype)}, members=members)
    tree.check_usable({f"member {name}": member for name, member in zip(names, trees, strict=True)})
    tree.check_copied(trees)
    check_real("learned", tree.flatten(trees[0]))
    rows = 1 if per == "model" else len(tree.names(trees[0]))
    variables = {"mixing": np.ones((rows, len(names)), np.float32), "temperature": np.float32(1.0)}
    mix = functools.partial(_mixing.by_rows, functools.partial(_mixed, dtype), trees)
    variables, history = _descend(variables, trees, mix, loss, batches, learning_rate, log)
    weights = _softmax(variables["mixing"])
    return Soup(
        params=mix(weights),
        recipe={"name": "learned", **recipe, "num_steps": len(history)},
        ingredients={name: float(weight) for name, weight in zip(names, weights.mean(0), strict=True)},
        history=history,
        leaf_weights=None if per == "model" else _mixing.by_leaf(weights, trees[0], names),
        temperature=float(variables["temperature"]),
        digests=digests(members, names),
    )


def _mixed(dtype, column, row):
    if not tree.is_float(column[0]):
        return column[0]
    return arrays.mix(tree.widen_leaves(column), row).astype(column[0].dtype if dtype is None else dtype)


def _descend(variables, trees, mix, loss, batches, learning_rate, log):
    import optax  # takes a third of a second to import

    optimizer = optax.adamw(learning_rate, weight_decay=0.0)
    gradient = jax.jit(_float_gradient(loss))
    update = _mixing.stepping(optimizer)
    variables, state, history, seen = _restored(log, variables, optimizer.init(variables))
    for batch in _unused(batches, len(history), seen):
        weights = _softmax(variables["mixing"])
        value, leaf_grads, temperature_grad = gradient(mix(weights), batch, variables["temperature"])
        if not np.isfinite(value):
            raise ValueError(
                f"the loss is {float(value)} at step {len(history)}: lower the learning rate, or check the batch"
            )
        products = _mixing.gradient(leaf_grads, trees, len(weights))
        del leaf_grads  # else the device would hold them beside those of the next step
        mixing_grad = weights * (products - (weights * products).sum(1, keepdims=True))  # through the softmax
        variables, state = update({"mixing": mixing_grad, "temperature": temperature_grad}, state, variables)
        history.append(float(value))
        leaves = jax.device_get(jax.tree.leaves((variables, state)))
        seen = content_digest((seen, batch)) if log.on_disk else ""
        kept = {"losses": history, "batches": seen, "state": [leaf.tolist() for leaf in leaves]}
        log.keep(kept)  # floats in JSON lose no bit
    if not history:
        raise ValueError("no batches were given: the learned soup needs held-out data")
    return jax.device_get(variables), history


def _restored(log, variables, state):
    """Return variables, optimizer state, losses and the digest of the batches that a killed run had, else the first."""
    kept = log.newest()
    if kept is None:
        return variables, state, [], ""
    leaves, structure = jax.tree.flatten((variables, state))
    leaves = [np.asarray(kept, leaf.dtype) for kept, leaf in zip(kept["state"], leaves, strict=True)]
    return *jax.tree.unflatten(structure, leaves), kept["losses"], kept["batches"]


def _unused(batches, used, seen):
    """Return the batches after the first `used` ones, which are those of the digest `seen`."""
    batches = iter(batches)
    given, again = 0, ""
    for batch in itertools.islice(batches, used):
        given, again = given + 1, content_digest((again, batch))
    if given < used:
        raise ValueError(
            f"the journal has {used} steps, but only {given} batches were given: give all, or remove the journal"
        )
    if again != seen:
        raise ValueError(
            f"the {used} steps of the journal used other batches, or another order of them: remove the journal"
        )
    return batches


def _float_gradient(loss):
    def gradient(params, batch, temperature):
        floats, rest = tree.split_floats(params)

        def of_floats(floats, temperature):
            return arguments.check_loss(loss(tree.combine(floats, rest), batch, temperature))

        value, (grads, temperature_grad) = jax.value_and_grad(of_floats, argnums=(0, 1))(floats, temperature)
        return value, grads, temperature_grad

    return gradient


def _softmax(mixing):
    exponentials = np.exp(mixing - np.max(mixing, axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True), np.float32)
