"""Run fine-tunings: the streamed loop, and the whole loop as one program."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soups import tree
from soups.data import batch_indices
from soups.names import check_name
from soups.train.augment import MAX_OPERATIONS
from soups.train.sharding import gathered
from soups.train.step import HYPERPARAMETERS, Training, init_state, training_step
from soups.train.trajectory import averages


def complete(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what a member's hyper-parameters leave out.

    Raises:
        ValueError: a name that is not one of `HYPERPARAMETERS`, with the closest one; no epochs; more augmentation
            operations than there are; negative warm-up steps; a seed that is not in 0..2³¹−1.
    """
    for name in hyperparameters:
        check_name(name, HYPERPARAMETERS, "hyper-parameter")
    completed = HYPERPARAMETERS | dict(hyperparameters)
    if not completed["epochs"] > 0:
        raise ValueError(f"epochs must be positive, not {completed['epochs']}")
    if completed["augment_operations"] not in range(MAX_OPERATIONS + 1):
        raise ValueError(f"augment_operations must be 0 to {MAX_OPERATIONS}, not {completed['augment_operations']}")
    if not completed["warmup_steps"] >= 0:
        raise ValueError(f"warmup_steps must not be negative, got {completed['warmup_steps']}")
    if not 0 <= completed["seed"] < 2**31:
        raise ValueError(f"a seed must be in 0..2**31 - 1, got {completed['seed']}")
    return completed


def num_steps(hyperparameters: Mapping[str, Any], num_examples: int, batch_size: int) -> int:
    """Count the steps of a member: epochs times examples over batch size, rounded up."""
    return math.ceil(hyperparameters["epochs"] * num_examples / batch_size)


def finetune(
    training: Training,
    params: tree.Tree,
    batches: Iterable[Mapping[str, Any]],
    hyperparameters: Mapping[str, Any],
    *,
    step: Callable | None = None,
    on_step: Callable[[int, jax.Array], None] = lambda index, loss: None,
) -> dict[str, Any]:
    """Fine-tune one member batch by batch and give its final state.

    Args:
        training: what is fixed at compile time.
        params: the start weights; not donated.
        batches: "num_steps" or more with "image" and "label", from `soups.data.loader` or arrays, sharded or not.
        hyperparameters: as for `training_step`, with "num_steps".
        step: the jitted step of an earlier call, so that several members share one compilation.
        on_step: called after each step is dispatched, with its index and its loss, which may still be computing.

    Raises:
        ValueError: an unknown hyper-parameter, or fewer batches than steps.
    """
    total, iterator = int(hyperparameters["num_steps"]), iter(batches)
    given = {name: value for name, value in hyperparameters.items() if name != "num_steps"}
    hyperparameters = typed(complete(given) | {"num_steps": total})
    step = step or jit_step(training)
    state = training.begin(params)
    # DO NOT CHANGE THE ORDER OF OPERATIONS: the batch of a step, its key and its rate all follow from the step's index.
    for index in range(total):
        batch = next(iterator, None)
        if batch is None:
            raise ValueError(f"the batches ended after {index} of {total} steps")
        state, loss = step(state, {"image": batch["image"], "label": batch["label"]}, hyperparameters)
        on_step(index, loss)
    return state


def jit_step(training: Training, shardings: tuple | None = None) -> Callable:
    """Compile the training step with its state donated.

    `shardings`: of the state, the batch and all else, from `soups.train.sharding.step_shardings`.
    """

    placed = {}
    if shardings is not None:
        of_state, of_batch, of_rest = shardings
        training = dataclasses.replace(training, train_apply=gathered(training.train_apply, of_state["params"]))
        placed = {"in_shardings": (of_state, of_batch, of_rest), "out_shardings": (of_state, of_rest)}

    def step(state, batch, hyperparameters):
        return training_step(training, state, batch, hyperparameters)

    return jax.jit(step, donate_argnums=0, compiler_options=_cpu_options(), **placed)


@functools.cache
def _cpu_options() -> dict[str, str] | None:
    # On a CPU XLA hands reductions to a library too, which made a small ViT's step 1.4 times slower than fusing them
    # (scripts/benchmarks/train_step_torch.py). The option is experimental: a version without it does without.
    if jax.default_backend() != "cpu":
        return None
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(np.float32(0)).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


def finetune_program(
    training: Training, data: Mapping[str, jax.Array], constrain: Callable[[Any], Any] = lambda batch: batch
) -> Callable:
    """Return a function that runs a whole fine-tuning as one traceable program.

    The function takes weights, hyper-parameters with "num_steps" and batch indices [max_steps, B] into `data` ("image"
    uint8 [N, H, W, C], "label" [N]), and gives {"params", "averages", "losses" [max_steps]}; losses past the last step
    are zero. It may be mapped: every member then runs its own number of steps.
    """

    def run(params, hyperparameters, indices):
        def body(carry):
            state, losses = carry
            index = state["step"]
            batch = constrain({name: array[indices[index]] for name, array in data.items()})
            state, loss = training_step(training, state, batch, hyperparameters)
            return state, losses.at[index].set(loss)

        carry = (init_state(training, params), jnp.zeros(indices.shape[0]))
        last = jnp.asarray(hyperparameters["num_steps"], jnp.int32)
        state, losses = jax.lax.while_loop(lambda carry: carry[0]["step"] < last, body, carry)
        return {"params": state["params"], "averages": averages(state, training.ema_decays), "losses": losses}

    return run


def typed(hyperparameters: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return every hyper-parameter the dtype it always has, so that other values never mean another compilation."""
    integer = ("seed", "augment_operations", "num_steps")
    return {n: np.asarray(value, np.int32 if n in integer else np.float32) for n, value in hyperparameters.items()}


def member_indices(hyperparameters: Mapping[str, Any], num_examples: int, batch_size: int) -> np.ndarray:
    """Return the order of a member's examples, int32 [num_steps, B]: shuffled anew in each epoch by its seed."""
    steps = num_steps(hyperparameters, num_examples, batch_size)
    return batch_indices(num_examples, batch_size, steps, int(hyperparameters["seed"]))
