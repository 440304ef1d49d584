"""Test the training step and its loop against formulas written out in NumPy."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soups import models, tree
from soups.train import Classification, Training, fit, training_step
from soups.train.classification import soft_targets
from soups.train.step import cpu_options, jit_step, learning_rate

BATCH, CLASSES, CLIP = 8, 3, 0.5
PROBE_RULES = (("trunk/.*", 0.0), (".*", 1.0))
NUM_STEPS = 8
EMA_DECAY, SWA_START = 0.8, 0.45  # SWA takes in the weights after steps 3 to 7


def two_layers(params, images, key):
    """Return the logits x A W + b: a network whose gradient fits in three lines of NumPy."""
    hidden = images.reshape(len(images), -1) @ params["trunk"]["kernel"]
    return hidden @ params["head"]["kernel"] + params["head"]["bias"][None], params


def decayed_sgd(learning_rate=1e-3, weight_decay=0.0, mask=None):
    return optax.chain(optax.add_decayed_weights(weight_decay, mask=mask), optax.sgd(learning_rate))


LOSS = Classification(two_layers, CLASSES)
SGD = Training(
    loss=LOSS,
    optimizer=decayed_sgd,
    learning_rate_rules=(("trunk/.*", 0.25), (".*", 1.0)),
    clip_norm=CLIP,
)
PROBE = Training(
    loss=LOSS,
    learning_rate_rules=PROBE_RULES,
    clip_norm=1e6,
    ema_decay=EMA_DECAY,
    swa_start=SWA_START,
)


def hyperparameters(**given):
    off = () if given.get("augment_operations") else LOSS.optional
    completed = SGD.hyperparameters | given | {"num_steps": NUM_STEPS}
    return {name: value for name, value in completed.items() if name not in off}


def first_state(training, params):
    return training.begin(params, training.numbers(training.hyperparameters))


def make_params(rng, scale=1.0):
    shapes = {"head": {"bias": (CLASSES,), "kernel": (5, CLASSES)}, "trunk": {"kernel": (16, 5)}}
    draw = lambda shape: (scale * rng.normal(size=shape)).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


def make_batch(rng):
    images = rng.integers(0, 256, (BATCH, 4, 4, 1), np.uint8)
    return {"image": images, "label": rng.integers(0, CLASSES, BATCH).astype(np.int32)}


@pytest.fixture(scope="session")
def sgd_step():
    """Return the jitted step of plain gradient descent."""
    return jax.jit(functools.partial(training_step, SGD))


@pytest.fixture(scope="session")
def probe():
    """Return a linear probe whose step refuses to be compiled twice."""
    traced_once = chex.assert_max_traces(two_layers, n=1)
    return dataclasses.replace(PROBE, loss=dataclasses.replace(LOSS, train_apply=traced_once))


# --- The oracle ---


def double(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def oracle_loss(params, batch, smoothing=0.0):
    """Return the mean cross-entropy of `two_layers` and its gradient."""
    x = batch["image"].reshape(BATCH, -1) / 255.0
    targets = (1 - smoothing) * np.eye(CLASSES)[batch["label"]] + smoothing / CLASSES
    hidden = x @ params["trunk"]["kernel"]
    logits = hidden @ params["head"]["kernel"] + params["head"]["bias"]
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    residual = (np.exp(log_probs) - targets) / BATCH
    grads = {
        "head": {"bias": residual.sum(0), "kernel": hidden.T @ residual},
        "trunk": {"kernel": x.T @ residual @ params["head"]["kernel"].T},
    }
    return -(targets * log_probs).sum(1).mean(), grads


def oracle_norm(grads):
    return np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(grads)))


def oracle_rate(step, num_steps, warmup, peak):
    if step < warmup:
        return peak * min((step + 1) / warmup, 1.0)
    return peak * (1 + np.cos(np.pi * (step - warmup) / (num_steps - warmup))) / 2


def oracle_sgd(params, grads, rate, decay):
    """Descend along the clipped gradient; kernels decay, and the trunk moves a quarter as fast."""
    grads = jax.tree.map(lambda leaf: leaf * min(1.0, CLIP / oracle_norm(grads)), grads)

    def moved(name, leaf, grad):
        multiplier = 0.25 if name.startswith("trunk") else 1.0
        return leaf - rate * multiplier * (grad + decay * leaf * name.endswith("kernel"))

    return tree.map_with_names(moved, params, grads)


def assert_close(actual, expected, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), actual, expected)


# --- Rate and targets ---


@pytest.mark.parametrize(("num_steps", "warmup"), [(20, 5.0), (10, 0.0), (7, 2.5), (11, 1.1), (3, 3.0), (1, 0.1)])
def test_learning_rate_is_warm_up_and_half_cosine(num_steps, warmup):
    rates = [learning_rate(step, num_steps, warmup, 0.3) for step in range(num_steps)]
    expected = [oracle_rate(step, num_steps, warmup, 0.3) for step in range(num_steps)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-8)
    assert max(rates) <= np.float32(0.3)


def test_soft_targets_of_labels_and_of_probabilities(rng):
    labels = np.array([2, 0, 1, 2], np.int32)
    expected = 0.9 * np.eye(3)[labels] + 0.1 / 3
    np.testing.assert_allclose(soft_targets(jnp.asarray(labels), 3, 0.1), expected, rtol=1e-6)
    probabilities = rng.dirichlet(np.ones(3), 4).astype(np.float32)
    np.testing.assert_array_equal(soft_targets(jnp.asarray(probabilities), 3, 0.0), probabilities)
    smoothed = soft_targets(jnp.asarray(probabilities), 3, 0.3)
    np.testing.assert_allclose(smoothed, 0.7 * probabilities + 0.1, rtol=1e-6)


# --- One step ---


@pytest.mark.parametrize(("scale", "clipped"), [(0.1, False), (2.0, True)])
def test_a_step_is_clipped_gradient_descent_with_rules(rng, sgd_step, scale, clipped):
    params, batch = make_params(rng, scale), make_batch(rng)
    hp = hyperparameters(learning_rate=0.2, weight_decay=0.1, label_smoothing=0.2, warmup_fraction=0.5)
    state, loss = sgd_step(first_state(SGD, params), batch, hp)
    expected_loss, grads = oracle_loss(double(params), batch, smoothing=0.2)
    assert (oracle_norm(grads) > CLIP) == clipped
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    rate = oracle_rate(0, NUM_STEPS, 0.5 * NUM_STEPS, 0.2)
    assert_close(state["params"], oracle_sgd(double(params), grads, rate, decay=0.1))
    assert int(state["step"]) == 1
    assert state["averages"] == {}


def test_soft_labels_are_targets(rng, sgd_step):
    params, batch = make_params(rng), make_batch(rng)
    hp = hyperparameters(learning_rate=0.1)
    hard, hard_loss = sgd_step(first_state(SGD, params), batch, hp)
    soft = batch | {"label": np.eye(CLASSES, dtype=np.float32)[batch["label"]]}
    state, loss = sgd_step(first_state(SGD, params), soft, hp)
    np.testing.assert_allclose(loss, hard_loss, rtol=1e-6)
    assert_close(state["params"], hard["params"])


def test_a_step_is_pure_to_the_bit(rng, sgd_step):
    params, batch = make_params(rng), make_batch(rng)
    hp = hyperparameters(learning_rate=0.1, mixup=0.5, augment_operations=2, augment_magnitude=9.0, seed=5)
    state = first_state(SGD, params)
    first, second = sgd_step(state, batch, hp), sgd_step(state, batch, hp)
    chex.assert_trees_all_equal(first, second)


def test_seed_and_step_draw_anew(rng, sgd_step):
    params, batch = make_params(rng), make_batch(rng)
    state = first_state(SGD, params)
    losses = [
        float(sgd_step(state | {"step": jnp.int32(step)}, batch, hyperparameters(seed=seed, mixup=0.5))[1])
        for seed in (0, 1)
        for step in (0, 1)
    ]
    assert len(set(losses)) == 4


def test_sharpness_aware_gradient_is_taken_at_the_worst_point_nearby(rng):
    training = dataclasses.replace(SGD, sam=True)
    params, batch = make_params(rng, 0.1), make_batch(rng)
    hp = hyperparameters(learning_rate=0.1, sam_radius=0.5, warmup_fraction=0.0)
    state, loss = jax.jit(functools.partial(training_step, training))(first_state(training, params), batch, hp)
    expected_loss, grads = oracle_loss(double(params), batch)
    norm = oracle_norm(grads)
    there = jax.tree.map(lambda leaf, grad: leaf + 0.5 * grad / norm, double(params), grads)
    _, grads_there = oracle_loss(there, batch)
    assert abs(oracle_norm(grads_there) / norm - 1) > 0.05  # else this test could not tell the two apart
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)  # the reported loss is that of the weights themselves
    assert_close(state["params"], oracle_sgd(double(params), grads_there, 0.1, decay=0.0))


def test_warm_up_in_steps_stands_instead_of_the_fraction(rng, sgd_step):
    params, batch = make_params(rng), make_batch(rng)
    hp = hyperparameters(learning_rate=0.2, warmup_fraction=1.0, warmup_steps=3)
    _, grads = oracle_loss(double(params), batch)
    for step in (1, 5):
        state, _ = sgd_step(first_state(SGD, params) | {"step": jnp.int32(step)}, batch, hp)
        assert_close(
            state["params"], oracle_sgd(double(params), grads, oracle_rate(step, NUM_STEPS, 3, 0.2), decay=0.0)
        )


# --- A batch in parts ---


@pytest.mark.parametrize("sam", [False, True])
def test_parts_of_a_batch_make_the_step_of_the_whole(rng, sam):
    params, batch = make_params(rng, 0.3), make_batch(rng)
    hp = hyperparameters(learning_rate=0.2, mixup=0.5, label_smoothing=0.1, sam_radius=0.5 * sam, warmup_fraction=0.0)
    states = []
    for parts in (1, 4):
        training = dataclasses.replace(SGD, sam=sam, accumulate=parts)
        states.append(jax.jit(functools.partial(training_step, training))(first_state(training, params), batch, hp))
    (whole, whole_loss), (parted, loss) = states
    np.testing.assert_allclose(loss, whole_loss, rtol=1e-6)
    assert_close(parted, whole)
    assert np.abs(parted["params"]["head"]["kernel"] - params["head"]["kernel"]).max() > 1e-3


def test_parts_hand_on_their_statistics_and_draw_their_own_keys(rng):
    def network(params, images, key):
        logits, _ = two_layers(params["params"], images, key)
        seen = params["batch_stats"]
        seen = {"mean": 0.5 * seen["mean"] + images.mean(), "draws": seen["draws"] + jax.random.uniform(key)}
        return logits, {"params": params["params"], "batch_stats": seen}

    statistics = {"mean": np.float32(0), "draws": np.float32(0)}
    params = {"params": make_params(rng), "batch_stats": statistics}
    training = Training(loss=Classification(network, CLASSES), accumulate=2)
    batch, seen = make_batch(rng), []
    step = jax.jit(functools.partial(training_step, training))
    for seed in (0, 1):
        state, _ = step(first_state(training, params), batch, hyperparameters(seed=seed))
        seen.append(state["params"]["batch_stats"])
    means = [batch["image"][start::2].mean() / 255 for start in (0, 1)]
    np.testing.assert_allclose(seen[0]["mean"], 0.5 * means[0] + means[1], rtol=1e-5)
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 3)[2]
    np.testing.assert_allclose(seen[0]["draws"], sum(map(jax.random.uniform, jax.random.split(key, 2))), rtol=1e-6)
    assert seen[0]["draws"] != seen[1]["draws"]


@pytest.mark.parametrize("rules", [None, ((r"head/.*", 1.0), (".*", 0.5))])
def test_statistics_of_a_network_within_a_larger_tree_are_not_trained(rules):
    trunk = {"params": {"w": np.float32(1)}, "batch_stats": {"var": np.float32(0.5)}}

    def loss(params, batch, key):
        inner = params["trunk"]
        seen = jax.lax.rsqrt(inner["batch_stats"]["var"]) * inner["params"]["w"] * params["head"]["w"]
        return (batch["image"].mean() * seen - 3) ** 2

    training = Training(loss=loss, optimizer=optax.sgd, learning_rate_rules=rules)
    start = {"trunk": trunk, "head": {"w": np.float32(2)}}
    values = training.numbers(
        {"learning_rate": 0.1, "num_steps": 2, "warmup_fraction": 0.0, "warmup_steps": 0, "seed": 0}
    )
    after, _ = training.step(training.begin(start, values), {"image": np.ones((2, 1), np.float32)}, values)
    after = jax.device_get(after["params"])
    assert after["trunk"]["batch_stats"]["var"] == 0.5
    assert after["trunk"]["params"]["w"] != 1 and after["head"]["w"] != 2


def test_parts_must_divide_the_batch(rng):
    training = dataclasses.replace(SGD, accumulate=3)
    params = make_params(rng)
    with pytest.raises(ValueError, match="a batch of 8 cannot be cut into accumulate=3 equal parts"):
        step = functools.partial(training_step, training)
        jax.eval_shape(step, first_state(training, params), make_batch(rng), hyperparameters())


# --- Narrow arithmetic, wide weights ---


def test_a_step_is_a_program_for_gpus_and_tpus():
    arch = models.architecture("clip-vit-mini")
    apply_fn = arch.train_apply_fn(CLASSES, dtype=jnp.bfloat16, remat=True)
    loss = Classification(apply_fn, CLASSES)
    training = Training(loss=loss, clip_norm=1.0, sam=True, accumulate=2, ema_decays=(0.9,))
    state = training.abstract_state(arch.abstract(CLASSES))
    images = jax.ShapeDtypeStruct((4, arch.image_size, arch.image_size, 3), jnp.uint8)
    batch = {"image": images, "label": jax.ShapeDtypeStruct((4,), jnp.int32)}
    step = jax.jit(functools.partial(training_step, training))
    exported = jax.export.export(step, platforms=["cuda", "tpu"])(
        state, batch, training.numbers(hyperparameters(mixup=0.4))
    )
    products = [line for line in exported.mlir_module().splitlines() if "dot_general" in line]
    assert sum("bf16" in line for line in products) > len(products) / 2


def test_in_bfloat16_weights_gradients_and_moments_stay_float32(rng):
    model = models.ViT(num_classes=CLASSES, patch_size=2, width=8, depth=1, mlp_dim=16, num_heads=2, dtype=jnp.bfloat16)
    params = jax.eval_shape(lambda key: models.init(model, key, (4, 4, 1)), jax.random.key(0))
    seen = []

    def watched(learning_rate, weight_decay, mask):
        adam = optax.adamw(learning_rate, weight_decay=weight_decay, mask=mask)

        def update(grads, state, params):
            seen.extend(leaf.dtype for leaf in jax.tree.leaves(grads))
            return adam.update(grads, state, params)

        return optax.GradientTransformation(adam.init, update)

    loss = Classification(models.train_apply_fn(model), CLASSES)
    training = Training(loss=loss, optimizer=watched, accumulate=2, sam=True)
    state = training.abstract_state(params)
    hp = hyperparameters(sam_radius=0.1)
    program, after = jax.make_jaxpr(functools.partial(training_step, training), return_shape=True)(
        state, make_batch(rng), hp
    )
    products = [line for line in str(program).splitlines() if "dot_general" in line]
    assert sum(":bf16[" in line for line in products) > 20
    assert set(seen) == {jnp.dtype(jnp.float32)}
    assert jax.tree.map(lambda leaf: leaf.dtype, after[0]) == jax.tree.map(lambda leaf: leaf.dtype, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(after[0]["params"])} == {jnp.dtype(jnp.float32)}


# --- A whole trajectory ---


@pytest.fixture(scope="session")
def trajectory(probe):
    """Return start weights, batches, hyper-parameters and the state after each step of a linear probe, on the host."""
    rng = np.random.default_rng(3)
    params, batches = make_params(rng), [make_batch(rng) for _ in range(NUM_STEPS)]
    hp = hyperparameters(learning_rate=0.05, weight_decay=0.3, warmup_fraction=0.25)
    state, states = first_state(PROBE, params), []
    for batch in batches:
        state, _ = probe.step(state, batch, PROBE.numbers(hp))
        states.append(jax.device_get(state))
    return params, batches, hp, states


def test_adamw_decays_kernels_only(trajectory):
    params, batches, hp, states = trajectory
    head = double(params)["head"]
    moments = {name: [np.zeros_like(leaf), np.zeros_like(leaf)] for name, leaf in head.items()}
    for step, batch in enumerate(batches):
        grads = oracle_loss({"head": head, "trunk": double(params)["trunk"]}, batch)[1]["head"]
        rate = oracle_rate(step, NUM_STEPS, 0.25 * NUM_STEPS, hp["learning_rate"])
        for name, grad in grads.items():
            first, second = moments[name]
            first[:], second[:] = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
            unbiased = (first / (1 - 0.9 ** (step + 1))) / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
            decay = hp["weight_decay"] if name == "kernel" else 0.0
            head[name] = head[name] - rate * (unbiased + decay * head[name])
        assert_close(states[step]["params"]["head"], head, atol=1e-5)


def test_frozen_leaves_do_not_change_by_a_bit(trajectory):
    params, _, _, states = trajectory
    for state in states:
        np.testing.assert_array_equal(state["params"]["trunk"]["kernel"], params["trunk"]["kernel"])
    assert np.abs(states[-1]["params"]["head"]["kernel"] - params["head"]["kernel"]).max() > 0.01


def test_a_linear_probe_has_optimizer_state_for_the_head_only(rng):
    params = make_params(rng)
    state = first_state(PROBE, params)["optimizer"]
    moments = [name for name in tree.names(state) if "/mu/" in name or "/nu/" in name]
    assert len(moments) == 4
    assert all("/head/" in name for name in moments)
    assert tree.count(state) == 2 * tree.count(params["head"]) + 1  # two moments, and the count of steps


def test_ema_follows_the_trajectory(trajectory):
    params, _, _, states = trajectory
    average = double(params)
    for state in states:
        now = double(state["params"])
        average = jax.tree.map(lambda a, b: EMA_DECAY * a + (1 - EMA_DECAY) * b, average, now)
        assert_close(state["averages"]["ema"], average)


def test_swa_averages_the_end_of_the_trajectory(trajectory):
    _, _, _, states = trajectory
    start = int(SWA_START * NUM_STEPS)
    for step, state in enumerate(states):
        seen = [double(state["params"]) for state in states[min(start, step) : step + 1]]
        assert_close(state["averages"]["swa"], jax.tree.map(lambda *leaves: np.mean(leaves, 0), *seen))


def test_several_emas_follow_at_once(trajectory):
    params, batches, hp, states = trajectory
    training = dataclasses.replace(PROBE, ema_decays=(EMA_DECAY, 0.5))
    several = fit(training, params, batches, hyperparameters=hp)["averages"]
    assert list(several) == ["ema", "swa", "ema_0.8", "ema_0.5"]
    assert_close(several["ema_0.8"], states[-1]["averages"]["ema"])
    assert_close(several["swa"], states[-1]["averages"]["swa"])
    faster = double(params)
    for now in states:
        faster = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, faster, double(now["params"]))
    assert_close(several["ema_0.5"], faster)


# --- The loop ---


def test_fit_takes_the_steps_one_by_one(trajectory, probe):
    params, batches, hp, states = trajectory
    seen = []
    made = fit(probe, params, batches, hyperparameters=hp, on_step=lambda *step: seen.append(step))
    chex.assert_trees_all_equal(jax.device_get(made["params"]), states[-1]["params"])
    chex.assert_trees_all_equal(jax.device_get(made["averages"]), states[-1]["averages"])
    assert [index for index, _ in seen] == list(range(NUM_STEPS))
    np.testing.assert_array_equal(made["losses"], np.float32([loss for _, loss in seen]))
    assert seen[0][1] == pytest.approx(oracle_loss(double(params), batches[0])[0], rel=1e-5)


def test_fit_leaves_the_start_weights_alone(trajectory, probe):
    params, batches, hp, _ = trajectory
    on_device = jax.tree.map(jnp.asarray, params)
    first = fit(probe, on_device, batches, hyperparameters=hp)
    second = fit(probe, on_device, batches, hyperparameters=hp)
    chex.assert_trees_all_equal(on_device, params)
    chex.assert_trees_all_equal(first, second)


def test_the_step_donates_its_state(trajectory, probe):
    params, batches, hp, _ = trajectory
    state = first_state(PROBE, jax.tree.map(jnp.asarray, params))
    probe.step(state, batches[0], PROBE.numbers(hp))
    assert state["params"]["head"]["kernel"].is_deleted()


def test_other_hyperparameters_need_no_other_compilation(trajectory, probe):
    params, batches, _, _ = trajectory
    others = {"learning_rate": 1, "weight_decay": 0, "mixup": 0.3}
    for hp in (others, {"seed": np.int64(7), "label_smoothing": np.float64(0.1)}):
        fit(probe, params, batches, steps=np.int64(2), hyperparameters=hp)


def test_batches_that_end_early_are_an_error(trajectory, probe):
    params, batches, hp, _ = trajectory
    with pytest.raises(ValueError, match=f"batches ended after 3 of {NUM_STEPS} steps"):
        fit(probe, params, batches[:3], hyperparameters=hp)


# --- BatchNorm ---


@pytest.fixture(scope="session")
def convnet():
    """Return a network with BatchNorm and its weights."""
    model = models.ConvNet(num_classes=CLASSES, widths=(4,))
    return model, models.init(model, jax.random.key(0), (4, 4, 1))


def test_a_step_of_a_network_with_batchnorm_is_compiled_with_options_of_its_own(monkeypatch, convnet):
    asked, (_, params) = [], convnet
    monkeypatch.setattr("soups.train.step.cpu_options", asked.append)
    step = jit_step(lambda state, batch: (state, batch))
    for weights in (params["params"], [jnp.zeros(2)], params):
        step({"params": jax.tree.map(jnp.copy, weights)}, jnp.float32(0))
    assert asked == [False, True]
    monkeypatch.undo()
    assert cpu_options(True) is None


def test_batch_statistics_move_without_being_trained(rng, convnet):
    model, params = convnet
    rules = ((models.head_rule(params), 1.0), (".*", 0.0))
    loss = Classification(models.train_apply_fn(model), CLASSES)
    training = Training(loss=loss, learning_rate_rules=rules)
    batch = make_batch(rng)
    step = jax.jit(functools.partial(training_step, training))
    state, _ = step(first_state(training, params), batch, hyperparameters(learning_rate=0.1))
    images = jnp.asarray(batch["image"], jnp.float32) / 255.0
    conv_only = model.apply(params, images, train=True, mutable=["batch_stats"])[1]["batch_stats"]
    assert_close(state["params"]["batch_stats"], conv_only)
    assert tree.norm(tree.sub(state["params"]["batch_stats"], params["batch_stats"])) > 1e-3
    frozen = {name: leaf for name, leaf in tree.flatten(params["params"]).items() if not name.startswith("head")}
    moved = tree.flatten(state["params"]["params"])
    chex.assert_trees_all_equal({name: moved[name] for name in frozen}, frozen)
    assert np.abs(moved["head/kernel"]).max() > 0


def test_batch_statistics_have_no_optimizer_state_whatever_the_rules(convnet):
    model, params = convnet
    training = Training(loss=Classification(models.train_apply_fn(model), CLASSES))
    state = first_state(training, params)["optimizer"]
    assert not any("batch_stats" in name for name in tree.names(state))
    assert tree.count(state) == 2 * tree.count(params["params"]) + 1
