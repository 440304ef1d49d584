"""Build the training step: one pure function from state and batch to state."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from soups import tree
from soups.arguments import check_loss
from soups.recipes import ema, running_mean
from soups.train import checks, trajectory

STATISTICS = "batch_stats"  # the collection beside "params" that Flax's BatchNorm moves without a gradient


def adamw(
    learning_rate: ArrayLike = 1e-3, weight_decay: ArrayLike = 0.0, mask: Any = None
) -> optax.GradientTransformation:
    """Return AdamW, with no decay unless it is asked for."""
    return optax.adamw(learning_rate, weight_decay=weight_decay, mask=mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """State what all members of a sweep have in common; `soups.train.checks.training` refuses what is wrong of it.

    A loss and an optimizer that is a function are given those of a member's hyper-parameters that they take by name,
    as numbers that may be traced; `loss(params, batch, key, *, temperature=1.0)` makes `temperature` one. The optimizer
    gets as `learning_rate` the scheduled rate of the step (see `learning_rate`), as `mask` the leaves that decay.

    Attributes:
        loss: from weights, batch and key to a number, or to (a number, the weights with their moved statistics). It may
            have `prepare(batch, keys, ...)`, which is called once for each batch with two keys, before the batch is cut
            into parts; `check(batch, hyperparameters)`, which returns what it takes of a batch or refuses it; and
            `optional`, the names of hyper-parameters that it is not given where they are 0 in all members. See
            `soups.train.Classification`.
        optimizer: an optax transformation, or a function of hyper-parameters that makes one, such as optax.sgd.
        learning_rate_rules: multipliers by name, first match wins; 0 freezes: no gradient, no optimizer state. By
            default all leaves are trained. Integers and keys never are, nor statistics ("batch_stats" beside "params").
        decay_rules: which leaves decay, by name; by default those of two or more axes whose names end in kernel, or are
            weight or w.
        clip_norm: global norm that gradients are clipped to; None clips nothing.
        sam: take the gradient at the worst point within `sam_radius`; twice the cost.
        ema_decay, swa_start: average the trajectory; SWA begins after this fraction of the steps.
        ema_decays: more exponential averages at once, which also keep decays such as 0.9999999; see
            `soups.train.trajectory.averages`.
        accumulate: parts that a batch is cut into, one after the other, with the memory of one. The step is that of the
            whole batch, which is prepared before; only BatchNorm sees the parts.
    """

    loss: Callable[..., Any]
    optimizer: optax.GradientTransformation | Callable[..., optax.GradientTransformation] = adamw
    learning_rate_rules: tuple[tuple[str, float], ...] | None = None
    decay_rules: tuple[tuple[str, bool], ...] | None = None
    clip_norm: float | None = None
    sam: bool = False
    ema_decay: float | None = None
    swa_start: float | None = None
    ema_decays: tuple[float, ...] = ()
    accumulate: int = 1

    def __post_init__(self):
        checks.training(self)

    @functools.cached_property
    def takers(self) -> dict[str, dict[str, Any]]:
        """Return the hyper-parameters that the loss, its `prepare` and the optimizer take, with their defaults."""
        prepare = getattr(self.loss, "prepare", None)
        return {
            "loss": checks.takes(self.loss, skip=3),
            "prepare": checks.takes(prepare, skip=2) if prepare else {},
            "optimizer": {} if checks.is_transformation(self.optimizer) else checks.takes(self.optimizer),
        }

    @functools.cached_property
    def hyperparameters(self) -> dict[str, Any]:
        """Return all hyper-parameters that a member may have, with their defaults."""
        found = dict(checks.RUN)
        for taken in self.takers.values():
            found |= taken
        return found

    @functools.cached_property
    def begin(self) -> Callable[..., dict[str, Any]]:
        """Return `init_state` of this training, compiled once for all members that begin with the same shapes."""
        return jax.jit(functools.partial(init_state, self))

    @functools.cached_property
    def step(self) -> Callable[..., Any]:
        """Return `training_step` of this training with its state donated, compiled once for all members."""
        return jit_step(functools.partial(training_step, self))

    @functools.cached_property
    def programs(self) -> dict[Any, Callable[..., Any]]:
        """Return the programs of whole members that were made, by mode and mesh, for the next sweep as well."""
        return {}

    @functools.cached_property
    def dtypes(self) -> dict[str, Any]:
        """Return the dtype that every hyper-parameter always has, so that other values mean no other compilation."""
        whole = {name: isinstance(value, int | np.integer) for name, value in self.hyperparameters.items()}
        return {name: np.int32 if integer else np.float32 for name, integer in whole.items()}

    def numbers(self, hyperparameters: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return hyper-parameters as the compiled programs take them."""
        return {name: np.asarray(value, self.dtypes[name]) for name, value in hyperparameters.items()}

    def trained(self, params: tree.Tree) -> tree.Tree:
        """Return the leaves that are trained; a ValueError for rules that do not fit the names."""
        return tree.split_by(matched(self, params)[0], params)[0]

    def decays(self, params: tree.Tree) -> list[bool]:
        """Return for each trained leaf whether it decays; a ValueError for rules that do not fit the names."""
        return jax.tree.leaves(matched(self, params)[1])

    def abstract_state(self, params: tree.Tree) -> dict[str, Any]:
        """Return the state as jax.ShapeDtypeStructs."""
        return jax.eval_shape(functools.partial(init_state, self), params, self.example)

    @property
    def example(self) -> dict[str, np.ndarray]:
        """Return hyper-parameters of the dtypes that all members' have."""
        example = {name: 1 if value is checks.REQUIRED else value for name, value in self.hyperparameters.items()}
        return self.numbers(example)


FIELDS = tuple(field.name for field in dataclasses.fields(Training))


def jit_step(step: Callable, **options) -> Callable:
    """Compile a step with its state donated, on a CPU with the options for the network whose weights the state has.

    `of(state)` is the function of `jax.jit`, one for all states of the same kind of network; `lower` is its own.
    """

    @functools.cache
    def compiled(statistics):
        return jax.jit(step, donate_argnums=0, compiler_options=cpu_options(statistics), **options)

    def run(state, *rest):
        return run.of(state)(state, *rest)

    run.of = lambda state: compiled(_has_statistics(state["params"]))
    run.lower = lambda state, *rest: run.of(state).lower(state, *rest)
    return run


def _has_statistics(params):
    if not isinstance(params, Mapping) or STATISTICS in params:
        return isinstance(params, Mapping)
    return "params" not in params and any(map(_has_statistics, params.values()))


@functools.cache
def cpu_options(statistics: bool) -> dict[str, str] | None:
    """Return the options of XLA with which steps are compiled on a CPU; `statistics`: the network has BatchNorms."""
    # On a CPU XLA hands reductions to a library too, which made a small ViT's step 1.4 times slower than fusing them
    # (scripts/benchmarks/train_step_torch.py). The sums over a batch in the gradients of BatchNorm and of depthwise
    # convolutions need the library: without it a step of EfficientNet-Lite0 takes six times as long. The option is
    # experimental: a version without it does without.
    if statistics or jax.default_backend() != "cpu":
        return None
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(np.float32(0)).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


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


def init_state(training: Training, params: tree.Tree, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state before the first step: weights, optimizer state of the trainable leaves, averages.

    All of them are copies, so that a step may be given the state to keep (donated) and `params` live on.
    """
    hp = _arrays(training, hyperparameters)
    rates, mask = matched(training, params)
    trainable, _ = tree.split_by(rates, params)
    optimizer = _optimizer(training, hp, _rate(hp, 0), mask)
    with jax.numpy_dtype_promotion("standard"):
        optimizer_state = optimizer.init(trainable)
    state = {"params": jax.tree.map(jnp.copy, params), "optimizer": optimizer_state, "step": jnp.int32(0)}
    averaged = {"ema": training.ema_decay, "swa": training.swa_start}
    floats, rest = _floats(params)
    state["averages"] = {
        name: jax.tree.map(jnp.copy, tree.combine(tree.widen(floats), rest))
        for name, setting in averaged.items()
        if setting is not None
    }
    if training.ema_decays:
        state["drifts"] = trajectory.start(floats, training.ema_decays)
    return state


def training_step(
    training: Training, state: Mapping[str, Any], batch: tree.Tree, hyperparameters: Mapping[str, Any]
) -> tuple[dict[str, Any], jax.Array]:
    """Take one step and return the new state and the mean loss of the batch. Pure; jit it and donate the state.

    `state`: from `init_state` or the last step; `batch`: what the loss takes, with an axis of examples first in all
    leaves; `hyperparameters`: all of `training.hyperparameters`, "num_steps" among them, numbers or traced.

    A batch that cannot be cut into `accumulate` equal parts, a loss that is not one number, and other weights than it
    was given are a ValueError.
    """
    hp, step = _arrays(training, hyperparameters), state["step"]
    key = jax.random.fold_in(jax.random.key(hp["seed"]), step)
    first_key, second_key, loss_key = jax.random.split(key, 3)
    taken = {who: {name: hp[name] for name in names if name in hp} for who, names in training.takers.items()}
    if hasattr(training.loss, "prepare"):
        batch = training.loss.prepare(batch, (first_key, second_key), **taken["prepare"])
    rates, mask = matched(training, state["params"])
    trainable, frozen = tree.split_by(rates, state["params"])

    def of_part(trainable, frozen, batch, key):
        def loss_of(trainable):
            params = tree.combine(trainable, frozen)
            loss, updated = _loss(training.loss(params, batch, key, **taken["loss"]), params)
            return loss, tree.split_by(rates, updated)[1]

        return jax.value_and_grad(loss_of, has_aux=True)(trainable)

    def gradient(trainable):
        return _accumulated(of_part, training.accumulate, trainable, frozen, batch, loss_key)

    (loss, moved_frozen), grads = gradient(trainable)
    extra = {"value": loss, "grad": grads, "value_fn": lambda trainable: gradient(trainable)[0][0]}
    if training.sam:
        grads = gradient(_worst_nearby(trainable, grads, hp["sam_radius"]))[1]
    if training.clip_norm is not None:
        grads, _ = optax.clip_by_global_norm(training.clip_norm).update(grads, optax.EmptyState())
    optimizer = _optimizer(training, hp, _rate(hp, step), mask)
    multipliers, _ = tree.split_by(rates, rates)
    moved, optimizer_state = _moved(optimizer, grads, state["optimizer"], trainable, multipliers, extra)
    params = tree.combine(moved, moved_frozen)  # BatchNorm statistics move without a gradient
    averages = _observe(training, state["averages"], params, step, hp["num_steps"])
    after = {"params": params, "optimizer": optimizer_state, "step": step + 1, "averages": averages}
    if training.ema_decays:
        after["drifts"] = trajectory.follow(state["drifts"], _floats(params)[0], training.ema_decays)
    return after, loss


def matched(training: Training, params: tree.Tree) -> tuple[tree.Tree, tree.Tree]:
    """Return the learning-rate multipliers as a tree, and the decay mask with None where a leaf is frozen.

    A ValueError for rules that do not fit the names, if no leaf is trained, and for a collection beside "params" that
    no rule speaks of.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    named = {_name(path): leaf for path, leaf in leaves}
    rates = _rates(training.learning_rate_rules, named)
    if training.decay_rules is None:
        ends = {name: name.endswith("kernel") or name.rpartition("/")[2] in ("weight", "w") for name in named}
        decays = {name: leaf.ndim > 1 and ends[name] for name, leaf in named.items()}
    else:
        decays = tree.match(named, training.decay_rules)
    rates, decays = (structure.unflatten([values[_name(path)] for path, _ in leaves]) for values in (rates, decays))
    return rates, tree.split_by(rates, decays)[0]


def _name(path):
    """Return the name of a leaf, where it is in a box, such as Flax's Partitioned and Variable, that of the box."""
    boxed = isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value" if path else False
    return jax.tree_util.keystr(path[:-1] if boxed else path, simple=True, separator="/")


def _rates(rules, named):
    tops = {name.partition("/")[0] for name in named}
    # beside "params" at the top, or of a network within a larger tree
    holders = {head for head, found, _ in (f"/{name}".partition("/params/") for name in named) if found}
    statistics = [name for name in named if f"/{name}".startswith(tuple(f"{head}/{STATISTICS}/" for head in holders))]
    if rules is None:
        if "params" in tops and (other := sorted(tops - {"params", STATISTICS})):
            raise ValueError(
                f'beside "params" there is {", ".join(map(repr, other))}: say with learning_rate_rules what is '
                f'trained, such as (("{other[0]}/.*", 0.0), (".*", 1.0))'
            )
        rates = dict.fromkeys(named, 1.0)
    else:
        rates = tree.match(named, rules)
    rates |= dict.fromkeys(statistics, 0.0)
    rates |= {name: 0.0 for name, leaf in named.items() if not tree.is_float(leaf)}
    if not any(rates.values()):
        raise ValueError("no leaf is trained: learning_rate_rules freeze all of them, or none holds floats")
    return rates


def _loss(result, params):
    loss, updated = result if isinstance(result, tuple) and len(result) == 2 else (result, params)
    check_loss(loss)
    old, new = jax.tree.leaves(params), jax.tree.leaves(updated)
    kinds = [[(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves] for leaves in (old, new)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            "a loss returns a number, or (a number, all weights with their moved statistics); what it returned second "
            f"has {len(new)} leaves such as {tree.names(updated)[:3]}, the weights {len(old)}: {tree.names(params)[:3]}"
        )
    return loss, jax.tree.unflatten(jax.tree.structure(params), new)  # a network may return other containers


def _arrays(training, hyperparameters):
    dtypes = training.dtypes | {"num_steps": jnp.float32}
    return {name: jnp.asarray(value, dtypes[name]) for name, value in hyperparameters.items()}


def _rate(hp, step):
    """Return the scheduled rate of a step, None where the optimizer takes none."""
    if "learning_rate" not in hp:
        return None
    warmup = jnp.where(hp["warmup_steps"] > 0, hp["warmup_steps"], hp["warmup_fraction"] * hp["num_steps"])
    return learning_rate(step, hp["num_steps"], warmup, hp["learning_rate"])


def _optimizer(training, hp, rate, mask):
    if checks.is_transformation(training.optimizer):
        return training.optimizer
    given = {name: rate if name == "learning_rate" else hp[name] for name in training.takers["optimizer"]}
    if checks.takes_mask(training.optimizer):
        given["mask"] = mask
    made = training.optimizer(**given)
    if not checks.is_transformation(made):
        raise ValueError(f"optimizer must make an optax transformation, but it makes a {type(made).__name__}")
    return made


def _moved(optimizer, grads, state, trainable, multipliers, extra):
    # optax mixes Python floats with integer counts, which a program with strict promotion would refuse
    with jax.numpy_dtype_promotion("standard"):
        state = _current(state, lambda: optimizer.init(trainable))
        updates, state = optax.with_extra_args_support(optimizer).update(grads, state, trainable, **extra)
        updates = jax.tree.map(lambda multiplier, update: multiplier * update, multipliers, updates)
        return optax.apply_updates(trainable, updates), state


def _current(state, fresh):
    """Put this step's hyper-parameters where optax.inject_hyperparams keeps those of the first step."""

    def injected(node):
        return hasattr(node, "hyperparams")

    def renewed(old, new):
        if not injected(old):
            return old
        return old._replace(hyperparams=new.hyperparams, inner_state=_current(old.inner_state, lambda: new.inner_state))

    if not any(map(injected, jax.tree.leaves(state, is_leaf=injected))):
        return state
    return jax.tree.map(renewed, state, fresh(), is_leaf=injected)


def _accumulated(of_part, count, trainable, frozen, batch, key):
    """Return (mean loss, frozen leaves after the batch) and the mean gradient over `count` parts of the batch."""
    if count == 1:
        return of_part(trainable, frozen, batch, key)

    def take(carry, part):
        frozen, sums = carry
        (loss, frozen), grads = of_part(trainable, frozen, *part)
        return (frozen, jax.tree.map(lambda total, new: total + new.astype(total.dtype), sums, (loss, grads))), None

    parts = (jax.tree.map(lambda leaf: _parts(leaf, count), batch), jax.random.split(key, count))
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
    floats, rest = _floats(params)
    observed = {}
    if "ema" in averages:
        observed["ema"] = tree.combine(ema(_floats(averages["ema"])[0], floats, training.ema_decay), rest)
    if "swa" in averages:
        seen = jnp.maximum(step.astype(jnp.float32) - jnp.floor(training.swa_start * num_steps), 0.0)
        # before the start it just follows
        observed["swa"] = tree.combine(running_mean(_floats(averages["swa"])[0], floats, seen), rest)
    return observed


def _floats(params):
    """Split into (floats, all else), which is never averaged."""
    return tree.split_by(jax.tree.map(tree.is_float, params), params)
