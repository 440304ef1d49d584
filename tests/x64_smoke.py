"""Run what a user would under JAX_ENABLE_X64=1, and say of each thing whether it works."""

import sys
import tempfile
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import optax

import soups
from soups.evaluate import Evaluator
from soups.recipes import METHODS
from soups.train import Classification, fit, lp_ft, sweep

RNG = np.random.default_rng(0)
DATA = {"image": RNG.integers(0, 256, (12, 4, 4, 1), np.uint8), "label": np.arange(12) % 3}
START = {
    "trunk": {"kernel": RNG.normal(size=(16, 4)).astype(np.float32)},
    "head": {"kernel": np.zeros((4, 3), np.float32), "bias": np.zeros(3, np.float32)},
}
RATE = {"learning_rate": 0.1}
ALL = RATE | {"augment_operations": 2, "augment_magnitude": 9.0, "mixup": 0.2, "label_smoothing": 0.1}


def features(params, inputs):
    """Apply the trunk."""
    return jnp.tanh(inputs.reshape(len(inputs), -1) @ params["trunk"]["kernel"])


def network(params, inputs, key=None):
    """Apply trunk and head; with a key drop features out."""
    hidden = features(params, inputs)
    if key is not None:
        hidden = hidden * jax.random.bernoulli(key, 0.9, hidden.shape)
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


LOSS, TAKEN = Classification(network, 3), {"batch_size": 4}
evaluate = Evaluator(network, DATA)


def members(dtype=np.float32):
    """Return three members with heads that are not zero."""
    rng = np.random.default_rng(1)
    return [jax.tree.map(lambda leaf: (leaf + 0.1 * rng.normal(size=leaf.shape)).astype(dtype), START) for _ in "abc"]


def kept(tree, dtype=np.float32):
    """See that all weights are finite and of the dtype that they had."""
    for name, leaf in soups.tree.flatten(tree).items():
        assert leaf.dtype == dtype and np.isfinite(leaf).all(), f"{name} is {leaf.dtype}: {leaf}"


def _fit():
    settings = {"ema_decay": 0.9, "swa_start": 0.5, "ema_decays": (0.99,), "clip_norm": 1.0, "hyperparameters": ALL}
    with tempfile.TemporaryDirectory() as folder:
        made, again = (fit(LOSS, START, DATA, steps=2, directory=folder, **settings, **TAKEN) for _ in "ab")
    kept({name: made[name] for name in ("params", "averages", "losses")})
    jax.tree.map(np.testing.assert_array_equal, made, again)


def _fit_double():
    settings = {"sam": True, "optimizer": optax.sgd, "hyperparameters": RATE | {"sam_radius": 0.05}}
    wide = jax.tree.map(np.float64, START)
    kept(fit(LOSS, wide, DATA, steps=2, **settings, **TAKEN)["params"], np.float64)


def _sweep():
    mesh = jax.make_mesh((2,), ("pool",), axis_types=(jax.sharding.AxisType.Auto,))
    for first, mode in ((ALL, {"mode": "map"}), (RATE, {"mesh": mesh})):
        rows = [first | {"seed": 0, "num_steps": 2}, RATE | {"seed": 1, "num_steps": 3}]
        with tempfile.TemporaryDirectory() as folder:
            pool = soups.Pool(f"{folder}/pool")
            kept(soups.uniform(sweep(LOSS, START, DATA, rows, pool, evaluate=evaluate, **mode, **TAKEN)))


def _lp_ft():
    made = lp_ft(LOSS, START, DATA, head="head", probe={"strengths": (1.0,)}, features=features, epochs=1, **TAKEN)
    kept([made["params"], made["probe"]])


def _evaluate():
    found = evaluate(START)
    assert found["accuracy"] == 1 / 3 and abs(found["nll"] - np.log(3)) < 1e-6
    assert evaluate.logits(START).dtype == np.float32
    assert Evaluator(network, DATA, width=2).many(members())[0] == evaluate(members()[0])


def _select():
    def loss(params, batch, temperature):
        logits = network(params, batch["image"] / np.float32(255)) * temperature
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    kept(soups.greedy(members(), evaluate, metric="accuracy").params)
    kept(soups.learned(members(), loss, [DATA] * 2, per="leaf").params)


def _pool():
    for dtype in (np.float32, np.float64):
        with tempfile.TemporaryDirectory() as folder:
            pool = soups.Pool(f"{folder}/pool")
            pool.add("a", members(dtype)[0])
            kept([pool["a"], pool.load("a", like=members(dtype)[0])], dtype)


def _merge():
    for dtype in (np.float32, np.float64):
        base = jax.tree.map(dtype, START)
        for name in ("linear", "task_arithmetic", "ties")[: 3 if dtype is np.float32 else 2]:
            options = {} if name == "linear" else {"base": base}
            host, device = (METHODS[name](kind, **options) for kind in (members(dtype), jax.device_put(members(dtype))))
            kept([host, device], dtype)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), host, device)


CASES = [_fit, _fit_double, _sweep, _lp_ft, _evaluate, _select, _pool, _merge]

if __name__ == "__main__":
    assert jnp.zeros(()).dtype == np.float64, "JAX_ENABLE_X64=1 was not given"
    for case in CASES:
        try:
            case()
            print(f"{case.__name__} works")
        except Exception:
            print(f"{case.__name__}: {traceback.format_exc()}", file=sys.stderr)
