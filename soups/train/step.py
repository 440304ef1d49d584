"""Build the training step: one pure function from state and batch to state."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from soups import tree
from soups.recipes import _optimizer, ema, running_mean
from soups.train import trajectory
from soups.train.augment import mixup, rand_augment

TrainApply = Callable[[tree.Tree, jax.Array, jax.Array], tuple[jax.Array, tree.Tree]]

# what a member's hyper-parameters are where nothing else is said
HYPERPARAMETERS = {
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "augment_operations": 0,
    "augment_magnitude": 0.0,
    "sam_radius": 0.0,
    "warmup_fraction": 0.1,
    "warmup_steps": 0,  # above 0 it stands instead of the fraction
    "epochs": 1.0,
    "seed": 0,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """State what all members of a sweep have in common.

    Attributes:
        train_apply: gives logits [B, classes] and the weights with their updated statistics, from weights, inputs, key.
        num_classes: of the targets.
        preprocess: from uint8 images to inputs in [0, 1].
        optimizer: from learning rate, weight decay and decay mask, the first two traced, to an optax transformation.
        learning_rate_rules: multipliers by name, first match wins; 0 freezes: no gradient, no optimizer state.
        decay_rules: which leaves decay, by name.
        clip_norm: global norm that gradients are clipped to.
        sam: take the gradient at the worst point within `sam_radius`; twice the cost.
        ema_decay, swa_start: average the trajectory; SWA begins after this fraction of the steps.
        ema_decays: more exponential averages at once, which also keep decays such as 0.9999999; see
            `soups.train.trajectory.averages`.
        accumulate: parts that a batch is cut into, one after the other, with the memory of one. The step is that of the
            whole batch, since images are transformed and mixed before; only BatchNorm sees the parts.

    Raises:
        ValueError: fewer than one part, a decay of `ema_decays` that is not in [0, 1) or stands there twice.
    """

    train_apply: TrainApply
    num_classes: int
    preprocess: Callable[[jax.Array], jax.Array] = lambda images: images.astype(jnp.float32) / 255.0
    optimizer: Callable[..., optax.GradientTransformation] = lambda learning_rate, weight_decay, mask: optax.adamw(
        learning_rate, weight_decay=weight_decay, mask=mask
    )
    learning_rate_rules: tuple[tuple[str, float], ...] = ((".*", 1.0),)
    decay_rules: tuple[tuple[str, bool], ...] = ((".*kernel", True), (".*", False))
    clip_norm: float = 1.0
    sam: bool = False
    ema_decay: float | None = None
    swa_start: float | None = None
    ema_decays: tuple[float, ...] = ()
    accumulate: int = 1

    def __post_init__(self):
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, not {self.accumulate}")
        if wrong := [decay for decay in self.ema_decays if not 0 <= decay < 1]:
            raise ValueError(f"ema_decays must be at least 0 and below 1, not {wrong[0]}")
        if len(set(self.ema_decays)) < len(self.ema_decays):
            raise ValueError(f"ema_decays names a decay twice: {self.ema_decays}")

    @functools.cached_property
    def begin(self) -> Callable[[tree.Tree], dict[str, Any]]:
        """Return `init_state` of this training, compiled once for all members that begin with the same shapes."""
        return jax.jit(functools.partial(init_state, self))


def learning_rate(step, num_steps, warmup_steps, peak):
    """Return the rate at `step`: linear warm-up to `peak`, then a half cosine to zero at `num_steps`.

    step < warmup: peak min((step + 1) / warmup, 1); else peak (1 + cos(π (step − warmup) / (num_steps − warmup))) / 2.
    `warmup` need not be a whole number. All may be traced.

    Loshchilov and Hutter, "SGDR", 2016, arXiv 1608.03983.
    """
    step, num_steps, warmup_steps = (jnp.asarray(x, jnp.float32) for x in (step, num_steps, warmup_steps))
    warmup = jnp.minimum((step + 1.0) / jnp.maximum(warmup_steps, 1.0), 1.0)
    progress = (step - warmup_steps) / jnp.maximum(num_steps - warmup_steps, 1.0)
    return peak * jnp.where(step < warmup_steps, warmup, 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0))))


def init_state(training: Training, params: tree.Tree) -> dict[str, Any]:
    """Return the state before the first step: weights, optimizer state of the trainable leaves, averages.

    All of them are copies, so that a step may be given the state to keep (donated) and `params` live on.
    """
    rates, mask = _matched(training, params)
    trainable, _ = _split(rates, params)
    state = {
        "params": _copy(params),
        "optimizer": training.optimizer(0.0, 0.0, mask).init(trainable),
        "step": jnp.int32(0),
    }
    averaged = {"ema": training.ema_decay, "swa": training.swa_start}
    state["averages"] = {name: _copy(tree.widen(params)) for name, setting in averaged.items() if setting is not None}
    if training.ema_decays:
        state["drifts"] = trajectory.start(params, training.ema_decays)
    return state


def training_step(
    training: Training, state: Mapping[str, Any], batch: Mapping[str, jax.Array], hyperparameters: Mapping[str, Any]
) -> tuple[dict[str, Any], jax.Array]:
    """Take one step and give the new state and the mean loss of the batch. Pure; jit it and donate the state.

    Args:
        training: what is fixed at compile time.
        state: from `init_state` or the last step.
        batch: "image" uint8 [B, H, W, C] and "label" int32 [B], or float targets [B, classes] under "label".
        hyperparameters: those of `HYPERPARAMETERS`, and "num_steps"; numbers or traced.

    Raises:
        ValueError: a batch that cannot be cut into `accumulate` equal parts.
    """
    hp, step = _arrays(hyperparameters), state["step"]
    key = jax.random.fold_in(jax.random.key(hp["seed"]), step)
    augment_key, mixup_key, model_key = jax.random.split(key, 3)
    images = training.preprocess(batch["image"])
    images = rand_augment(augment_key, images, hp["augment_operations"], hp["augment_magnitude"])
    targets = soft_targets(batch["label"], training.num_classes, hp["label_smoothing"])
    images, targets = mixup(mixup_key, images, targets, hp["mixup"])
    rates, mask = _matched(training, state["params"])
    trainable, frozen = _split(rates, state["params"])

    def of_part(trainable, frozen, images, targets, key):
        def loss_of(trainable):
            logits, updated = training.train_apply(tree.combine(trainable, frozen), images, key)
            return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets).mean(), _split(rates, updated)[1]

        return jax.value_and_grad(loss_of, has_aux=True)(trainable)

    def gradient(trainable):
        return _accumulated(of_part, training.accumulate, trainable, frozen, images, targets, model_key)

    (loss, moved_frozen), grads = gradient(trainable)
    if training.sam:
        grads = gradient(_worst_nearby(trainable, grads, hp["sam_radius"]))[1]
    warmup = jnp.where(hp["warmup_steps"] > 0, hp["warmup_steps"], hp["warmup_fraction"] * hp["num_steps"])
    rate = learning_rate(step, hp["num_steps"], warmup, hp["learning_rate"])
    grads, _ = optax.clip_by_global_norm(training.clip_norm).update(grads, optax.EmptyState())
    optimizer = training.optimizer(rate, hp["weight_decay"], mask)
    multipliers, _ = _split(rates, rates)
    moved, optimizer_state = _optimizer.apply(optimizer, grads, state["optimizer"], trainable, multipliers)
    params = tree.combine(moved, moved_frozen)  # BatchNorm statistics move without a gradient
    averages = _observe(training, state["averages"], params, step, hp["num_steps"])
    after = {"params": params, "optimizer": optimizer_state, "step": step + 1, "averages": averages}
    if training.ema_decays:
        after["drifts"] = trajectory.follow(state["drifts"], params, training.ema_decays)
    return after, loss


def soft_targets(labels: jax.Array, num_classes: int, label_smoothing) -> jax.Array:
    """Return targets [B, classes], (1 − s) onehot + s / classes; float labels are targets already, smoothed alike."""
    targets = labels if jnp.issubdtype(labels.dtype, jnp.floating) else jax.nn.one_hot(labels, num_classes)
    return targets * (1.0 - label_smoothing) + label_smoothing / num_classes


def _accumulated(of_part, count, trainable, frozen, images, targets, key):
    """Return (mean loss, frozen leaves after the batch) and the mean gradient over `count` parts of the batch."""
    if count == 1:
        return of_part(trainable, frozen, images, targets, key)

    def take(carry, part):
        frozen, sums = carry
        (loss, frozen), grads = of_part(trainable, frozen, *part)
        return (frozen, jax.tree.map(lambda total, new: total + new.astype(total.dtype), sums, (loss, grads))), None

    parts = (_parts(images, count), _parts(targets, count), jax.random.split(key, count))
    zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), tree.widen(trainable)))
    (frozen, sums), _ = jax.lax.scan(take, (frozen, zeros), parts)
    loss, grads = jax.tree.map(lambda total: total / count, sums)
    return (loss, frozen), tree.cast_like(grads, trainable)


def _parts(batch, count):
    """Cut [B, ...] into [count, B / count, ...]; a device that holds rows of the batch has some of each part."""
    if len(batch) % count:
        raise ValueError(f"a batch of {len(batch)} cannot be cut into accumulate={count} equal parts")
    return jnp.swapaxes(batch.reshape(len(batch) // count, count, *batch.shape[1:]), 0, 1)


def _worst_nearby(trainable, grads, radius):
    """Return θ + ρ g / |g|, where sharpness-aware minimisation takes its gradient.

    Foret et al., "Sharpness-aware minimization for efficiently improving generalization", 2020, arXiv 2010.01412.
    """
    norm = optax.tree.norm(grads)
    return jax.tree.map(lambda p, g: p + radius * g / (norm + 1e-12), trainable, grads)


def _observe(training, averages, params, step, num_steps):
    observed = {}
    if "ema" in averages:
        observed["ema"] = ema(averages["ema"], params, training.ema_decay)
    if "swa" in averages:
        seen = jnp.maximum(step.astype(jnp.float32) - jnp.floor(training.swa_start * num_steps), 0.0)
        observed["swa"] = running_mean(averages["swa"], params, seen)  # before the start it just follows
    return observed


def _copy(params):
    return jax.tree.map(jnp.copy, params)


def _matched(training, params):
    """Return the learning-rate multipliers as a tree, and the decay mask with None where a leaf is frozen."""
    rates = tree.match(params, training.learning_rate_rules)
    if "params" in params:  # all beside it is state, such as BatchNorm statistics, and never trained
        frozen = {name: jax.tree.map(lambda _: 0.0, state) for name, state in params.items() if name != "params"}
        rates = {**rates, **frozen}
    return rates, _split(rates, tree.match(params, training.decay_rules))[0]


def _split(rates, params):
    """Split into (trainable, frozen)."""
    trainable = jax.tree.map(lambda rate, leaf: leaf if rate else None, rates, params)
    return trainable, jax.tree.map(lambda rate, leaf: None if rate else leaf, rates, params)


def _arrays(hyperparameters):
    integers = ("seed", "augment_operations")
    return {n: jnp.asarray(v, jnp.int32 if n in integers else jnp.float32) for n, v in hyperparameters.items()}
