"""Test that whatever enters training is checked, in every entry point, before any work."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from soups import Pool
from soups.data import array_source
from soups.train import Classification, Lanes, Training, fit, fit_workers, lp_ft, sweep
from soups.train.loop import prepared, run

CLASSES, BATCH = 3, 4
NUMBERS = {"learning_rate": 0.1, "num_steps": 2}


def network(params, inputs, key):
    """Apply one layer."""
    return inputs.reshape(len(inputs), -1) @ params["head"]["kernel"]


TRAINING = Training(loss=Classification(network, CLASSES))
START = {"head": {"kernel": np.ones((4, CLASSES), np.float32)}}
DATA = {"image": np.zeros((8, 2, 2, 1), np.uint8), "label": np.arange(8) % CLASSES}


def batches(data):
    """Return the data as two batches, if they are not batches."""
    if isinstance(data, list):
        return data
    halves = (slice(0, BATCH), slice(BATCH, None))
    return [{name: array[half] for name, array in data.items()} for half in halves]


def on_a_mesh(training, params, data, member):
    mesh = jax.make_mesh((1, 2), ("pool", "data"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:2])
    feed, members = prepared(training, params, lambda *_: batches(data), {"a": member}, None)
    run(Lanes(training, params, mesh=mesh), params, members, feed)


ENTRIES = {
    "fit on arrays": lambda t, p, data, member: fit(t, p, data, batch_size=BATCH, hyperparameters=member),
    "fit on batches": lambda t, p, data, member: fit(t, p, batches(data), hyperparameters=member),
    "lp_ft": lambda t, p, data, member: lp_ft(t, p, data, head="head", probe=member, batch_size=BATCH),
    "lanes": on_a_mesh,
    "sweep of arrays": lambda t, p, data, member: sweep(t, p, data, [member], batch_size=BATCH),
    "sweep in the loop": lambda t, p, data, member: sweep(t, p, data, [member], batch_size=BATCH, mode="sequential"),
    "sweep of batches": lambda t, p, data, member: sweep(t, p, lambda index, count: batches(data), [member]),
    "sweep in lockstep": lambda t, p, data, member: sweep(t, p, data, [member], batch_size=BATCH, mode="vmap"),
}


@pytest.fixture(params=ENTRIES)
def enter(request):
    """Return one of the entry points."""
    return ENTRIES[request.param]


HYPERPARAMETERS = [
    ({"learning_rat": 0.1}, "unknown hyper-parameter 'learning_rat' .did you mean 'learning_rate'"),
    ({"learning_rate": -0.1}, "learning_rate must be at least 0, not -0.1"),
    ({"learning_rate": np.nan}, "learning_rate must be a finite number, not nan"),
    ({"learning_rate": "big"}, "learning_rate must be a finite number, not 'big'"),
    ({"learning_rate": "1e-2"}, "learning_rate must be a finite number, not '1e-2'"),
    ({"weight_decay": -1}, "weight_decay must be at least 0, not -1"),
    ({"label_smoothing": 2}, r"label_smoothing must be in \[0, 1\], not 2"),
    ({"mixup": -0.2}, "mixup must be at least 0, not -0.2"),
    ({"warmup_fraction": 3}, r"warmup_fraction must be in \[0, 1\], not 3"),
    ({"warmup_steps": -1}, "warmup_steps must be at least 0, not -1"),
    ({"seed": 1.5}, "seed must be a whole number, not 1.5"),
    ({"seed": 2**31}, r"seed must be in \[0, 2147483647\], not 2147483648"),
    ({"seed": True}, "seed must be a whole number, not True"),
    ({"epochs": 0}, "epochs must be above 0, not 0"),
    ({"num_steps": -3}, "num_steps must be at least 1, not -3"),
    ({"augment_operations": 3}, r"augment_operations must be in \[0, 2\], not 3"),
    ({"augment_operations": 0.5}, "augment_operations must be a whole number, not 0.5"),
    ({"augment_magnitude": 21}, r"augment_magnitude must be in \[0, 20\], not 21"),
    ({"learning_rate": 1e39}, r"learning_rate=1e\+39 is larger than float32 can hold"),
    ({"num_steps": 2**40}, "num_steps=1099511627776 is larger than int32 can hold"),
    ({"epochs": 3}, "num_steps=2 and epochs=3 both say how long to train: give one of them"),
    ({"warmup_steps": 1, "warmup_fraction": 0.5}, "both say how long to warm up: give one of them"),
    ({"sam_radius": 0.1}, r"Training\(sam=False\) does not fit sam_radius=0.1"),
]


@pytest.mark.parametrize(("given", "message"), HYPERPARAMETERS)
def test_hyperparameters(enter, given, message):
    with pytest.raises(ValueError, match=message):
        enter(TRAINING, START, DATA, NUMBERS | given)


def test_a_fraction_is_no_value_of_a_whole_number(enter):
    def loss(params, batch, key, *, power=2):
        return (params["head"]["kernel"] ** power).mean()

    with pytest.raises(ValueError, match=r"power must be a whole number, as its default 2 is, not 1\.5"):
        enter(Training(loss=loss), START, DATA, NUMBERS | {"power": 1.5})


SOFT = np.eye(CLASSES, dtype=np.float32)[DATA["label"]]
FLOATS = dataclasses.replace(TRAINING, loss=Classification(network, CLASSES, preprocess=None))
BAD_DATA = [
    (
        TRAINING,
        {"inputs": DATA["image"], "label": DATA["label"]},
        r"(?s)keys of a batch must be .*image.*inputs",
    ),
    (TRAINING, DATA | {"label": DATA["label"] + 1}, "labels must be 0 to 2, but they go from 1 to 3"),
    (TRAINING, DATA | {"label": DATA["label"] - 1}, "labels must be 0 to 2, but they go from -1 to 1"),
    (TRAINING, DATA | {"label": np.full((8, CLASSES), np.nan, np.float32)}, "targets must be finite"),
    (
        TRAINING,
        DATA | {"label": DATA["label"] / 1.0},
        r"give labels.astype\(int\), .* float64 \[\d\]",
    ),
    (TRAINING, DATA | {"label": np.ones((8, 4), np.float32)}, r"targets must be \[N, 3\], not float32 \[\d, 4\]"),
    (
        TRAINING,
        DATA | {"label": DATA["label"][:, None]},
        r"logits are \[4, 3\], but the labels make targets \[4, 1, 3\]",
    ),
    *[
        (TRAINING, DATA | {"label": targets}, f"sum to 1 in each row, but one sums to {total}: where an example has")
        for targets, total in (
            (2 * SOFT, 2),
            (0 * SOFT, 0),
            (np.ones_like(SOFT), 3),
            (SOFT.astype(np.float16) / 2, 0.5),
        )
    ],
    *[
        (FLOATS, DATA | {name: DATA[name].astype(kind)}, f"{name} has dtype .*: programs take arrays of numbers alone")
        for name in DATA
        for kind in (object, str, "datetime64[s]", "V4")
    ],
    (TRAINING, DATA | {"label": DATA["label"] > 0}, "labels must be whole numbers, or float targets, not bool"),
    (TRAINING, DATA | {"image": DATA["image"] / np.float32(255)}, "images must be bytes .* not float32"),
    (
        TRAINING,
        DATA | {"image": np.full((8, 4, 4, 1), 200.0)},
        r"give images.astype\(np.uint8\), for these go up",
    ),
    (FLOATS, DATA, "bytes .* would enter the network without being divided"),
    (TRAINING, DATA | {"label": DATA["label"].astype(">i4")}, r"label has the byte order .*astype\('int32'\)"),
    (TRAINING, DATA | {"label": np.ma.masked_less(DATA["label"], 1)}, "label is a masked array: leave out what is"),
]


@pytest.mark.parametrize(("training", "data", "message"), BAD_DATA)
def test_data(enter, training, data, message):
    with pytest.raises(ValueError, match=message):
        enter(training, START, data, NUMBERS)


@pytest.mark.parametrize("form", ["pair", "dataset"])
def test_data_in_any_form(enter, form, rng):
    make = (lambda data: tuple(data.values())) if form == "pair" else lambda data: array_source(*data.values())
    images = {"image": rng.integers(0, 256, (8, 2, 2, 1), np.uint8), "label": DATA["label"]}
    in_batches = enter in (ENTRIES["fit on batches"], ENTRIES["lanes"], ENTRIES["sweep of batches"])
    given = list(map(make, batches(images))) if in_batches else make(images)
    found, expected = (enter(TRAINING, START, data, NUMBERS) for data in (given, images))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("given", [{"augment_operations": 1}, {"mixup": 0.1}])
def test_what_only_suits_images(enter, given):
    tokens = {"image": np.zeros((8, 4), np.int32), "label": DATA["label"]}
    with pytest.raises(ValueError, match=r"only (images \[B, H, W, C\] can be augmented|inputs that are floats)"):
        enter(FLOATS, START, tokens, NUMBERS | given)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"head": {"kernel": 1.0}}, "head/kernel is a float"),
        ({"head": {"kernel": np.ones((4, 3), np.int32)}}, "no leaf is trained"),
        (
            {"head": {"kernel": np.full((4, 3), "1")}},
            "head/kernel has dtype <U1: programs take arrays of numbers alone",
        ),
        (
            {"head": {"kernel": np.ones((4, 3), "float8_e4m3fn")}},
            "less than 16 bits cannot be trained:\n  head/kernel is",
        ),
        ({"head": {"kernel": np.ones((4, 3), ">f4")}}, "head/kernel has the byte order of other machines"),
        ({"head": {"kernel": np.ma.ones((4, 3), np.float32)}}, "head/kernel is a masked array"),
        (
            {"params": {"head": START["head"]}, "lora": {"a": np.ones(2, np.float32)}},
            "(beside .params. there is 'lora'|none of the leaves is below 'head')",
        ),
    ],
)
def test_weights(enter, params, message):
    with pytest.raises(ValueError, match=message):
        enter(TRAINING, params, DATA, NUMBERS)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("place", ["start weights", "data"])
def test_nan_and_infinity(enter, place, value):
    data = DATA | {"image": np.zeros((8, 4), np.float32)}
    params = {"head": {"kernel": START["head"]["kernel"].copy()}}
    (params["head"]["kernel"] if place == "start weights" else data["image"])[2, 1] = value
    if place == "data" and enter in (ENTRIES["fit on batches"], ENTRIES["lanes"], ENTRIES["sweep of batches"]):
        return  # streamed data are not read ahead
    named = "head/kernel of the start weights" if place == "start weights" else "image of the data"
    with pytest.raises(ValueError, match=rf"NaN or infinity, with which training would fail, in\n  {named}$"):
        enter(FLOATS, params, data, NUMBERS)


def test_the_head_of_lp_ft_is_a_place_or_a_regex():
    made = [lp_ft(TRAINING, START, DATA, head=head, probe=NUMBERS, batch_size=BATCH) for head in ("head", "head/.*")]
    jax.tree.map(np.testing.assert_array_equal, *made)


@pytest.mark.parametrize("place", ["a_file", "a_file/below", "/proc/x"])
def test_a_directory_that_cannot_be(place, tmp_path):
    (tmp_path / "a_file").touch()
    with pytest.raises(OSError, match=r"cannot write /proc/x: |must be a folder, but .*a_file is a file"):
        fit(TRAINING, START, DATA, batch_size=BATCH, directory=tmp_path / place)


def test_a_probe_on_features_looks_for_nan_too():
    start = {"head": {"kernel": np.full((4, CLASSES), np.nan, np.float32)}}
    with pytest.raises(ValueError, match="head/kernel of the start weights"):
        lp_ft(TRAINING, start, DATA, head="head", probe={}, features=network, batch_size=BATCH)


def test_divergence_is_said(caplog, capsys):
    given = {"batch_size": BATCH, "optimizer": optax.sgd}

    def explodes(params, batch, key):
        return (1e30 * params["head"]["kernel"] ** 3).sum()

    made = fit(explodes, START, DATA, hyperparameters={"learning_rate": 1e30, "num_steps": 2}, **given)
    assert not np.isfinite(made["params"]["head"]["kernel"]).all()
    assert caplog.messages == ["the training diverged: NaN or infinity in head/kernel"]
    sweep(explodes, START, DATA, [{"learning_rate": 1e30, "num_steps": 2}], **given)
    assert "member_00: loss -inf at the last of 2 steps, diverged, and no soup will take it" in capsys.readouterr().out


def sizes(**changed):
    return lambda: fit(TRAINING, START, DATA | changed, batch_size=BATCH)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            sizes(label=DATA["label"][:7]),
            "the arrays of the data have different numbers of examples: {'image': 8, 'label': 7}",
        ),
        (sizes(label=np.float32(1)), "arrays with one row for each example; these are not: label"),
        (
            sizes(label=DATA["label"].tolist()),
            "label/1, label/2 and 5 more: make arrays of the lists label",
        ),
        (
            lambda: fit(TRAINING, START, (DATA["image"], [0] * 8), batch_size=4),
            "of the lists 1 with numpy.asarray",
        ),
        (sizes(**{name: array[:0] for name, array in DATA.items()}), "the data are empty"),
        (lambda: fit(TRAINING, START, DATA), "data in memory need a batch_size"),
        (lambda: fit(TRAINING, START, DATA, batch_size=4, steps=1, epochs=1), "both say how long to train"),
        (lambda: fit(TRAINING, START, DATA, batch_size=9), "between 1 and 8 examples .all there are., not 9"),
        (lambda: fit(TRAINING, START, DATA, batch_size=2.5), "batch_size must be a whole number, not 2.5"),
        (lambda: fit(TRAINING, START, DATA, batch_size=4.0), "batch_size must be an integer, not 4.0"),
        (lambda: fit(TRAINING, START, DATA, batch_size=4, save_every=4.0), "save_every must be an integer, not 4.0"),
        (lambda: fit(TRAINING, START, DATA, batch_size=4, momentum=0.9), "unknown setting, which a hyper-parameter"),
        (lambda: fit(TRAINING, START, "images.npz", batch_size=4), "data must be arrays, .* not 'images.npz'"),
        (lambda: sweep(TRAINING, START, None, [{}], batch_size=4), "data must be arrays, .* not None"),
        (lambda: fit(TRAINING, START, lambda: batches(DATA)), "not a function, which only a sweep takes"),
        (sizes(label=None), "images and labels of a batch must be arrays, not a NoneType"),
        (lambda: fit(TRAINING, START, batches(DATA), batch_size=4), "batches were given, which have a size already"),
        (
            lambda: fit(TRAINING, START, list(DATA.values()), batch_size=4),
            "a list of arrays could be batches or the parts",
        ),
        (lambda: fit(TRAINING, START, DATA, batch_size=4, hyperparameters={"num_steps": 0}), "num_steps must be"),
        (lambda: fit(TRAINING, START, iter(batches(DATA))), "batches that have no length need a number of steps"),
        (lambda: sweep(TRAINING, START, batches(DATA), [{}]), "a sweep needs a function"),
        (lambda: sweep(TRAINING, START, DATA, [{}, {"seed": 0}], batch_size=4), r"members \[0, 1\] are the same"),
        (lambda: sweep(TRAINING, START, DATA, {}, batch_size=4), "members must be a list of dicts, .* not {}"),
        (lambda: sweep(TRAINING, START, DATA, [3], batch_size=4), "members must be a list of dicts, .* not 3"),
        (
            lambda: sweep(TRAINING, START, DATA, [{}], "here", batch_size=4),
            r"pool must be a pool: give soups.Pool\('here'",
        ),
        (
            lambda: sweep(TRAINING, START, DATA, [{}], averages={"ema": "here"}, batch_size=4),
            r"averages\['ema'\] must be a pool: give soups.Pool\('here'",
        ),
        *[
            (lambda given=given: sweep(TRAINING, START, DATA, [{}, {"seed": 1}], **{"batch_size": 4} | given), message)
            for given, message in [
                ({"names": "ab"}, "names must be a list with one for each member, not 'ab'"),
                ({"names": ["a", "a"]}, "several members would have one name: a"),
                ({"names": ["a"]}, "2 members need 2 names, but 1 were given"),
                ({"names": ["a", 1]}, "a member's name must be a non-empty printable string, not 1"),
                ({"metadata": [1]}, "metadata must be a dict, not list"),
                ({"metadata": {"of": set()}}, "metadata must be something that JSON can hold"),
                ({"base": 3}, "base must be the name or the digest of weights, not 3"),
                ({"evaluate": 3}, r"evaluate must be a function evaluate\(params\), not a int"),
                ({"evaluate": lambda: 1.0}, r"evaluate is called as evaluate\(params\), but takes \(\)"),
                ({"on_member": 3}, r"on_member must be a function on_member\(name, result"),
                ({"averages": [1]}, "averages must be a mapping from their names to pools"),
                ({"averages": {"ema": Pool("p")}}, r"averages\['ema'\] needs a setting that averages: ema_decay"),
                ({"averages": {"emo": Pool("p")}, "ema_decay": 0.9}, "unknown average 'emo' .did you mean 'ema'"),
                ({"averages": {"ema": Pool("p")}, "ema_decay": 0.9, "pool": Pool("p")}, "must be different pools"),
                ({"mesh": "pool"}, "mesh must be a jax.sharding.Mesh, not a str"),
            ]
        ],
        *[
            (
                lambda call=call, given=given: call(TRAINING, START, DATA, **{"batch_size": 4, "steps": 2} | given),
                message,
            )
            for call in (fit, functools.partial(fit_workers, workers=2))
            for given, message in [
                ({"epochs": 1}, "steps=2 and epochs=1 both say how long to train"),
                ({"hyperparameters": [1]}, r"hyperparameters must be a mapping, not \[1\]"),
                ({"on_step": 3}, "on_step must be a function on_step"),
                ({"hyperparameters": {"seed": "a"}}, "seed must be a whole number, not 'a'"),
            ]
        ],
        (lambda: fit(TRAINING, START, DATA, batch_size=4, on_checkpoint=3), "on_checkpoint must be a function"),
        (lambda: fit(TRAINING, START, DATA, batch_size=4, mesh="data"), "mesh must be a jax.sharding.Mesh, not a str"),
        (lambda: fit(TRAINING, START, DATA, batch_size=4, shardings="data"), "shardings must be as param_shardings"),
        (lambda: fit(TRAINING, START, DATA, batch_size=4, epochs=1e38), r"epochs are 2e\+38 steps, more than can be"),
        (
            lambda: fit(TRAINING, jax.eval_shape(lambda: START), DATA, batch_size=4),
            "no checkpoint to go on from, so start weights must be arrays; these are not: head/kernel",
        ),
        (
            lambda: fit_workers(TRAINING, START, DATA, 2, batch_size=4, exchange=5),
            "exchange must be a soups.train.Exchange, not 5",
        ),
        (lambda: sweep(TRAINING, START, DATA, [], batch_size=4), "a sweep needs at least one member"),
        (
            lambda: sweep(TRAINING, START, DATA, [{}], batch_size=4, members_per_program=2),
            "members_per_program is for mode \"vmap\", but the mode is 'map': leave it out",
        ),
        (
            lambda: sweep(TRAINING, START, DATA, [{}], batch_size=4, mode="vmap", members_per_program=0),
            "members_per_program must be at least 1, not 0",
        ),
        (
            lambda: sweep(TRAINING, START, DATA, [{}], batch_size=4, mode="pmap"),
            "unknown mode 'pmap'",
        ),
        (
            lambda: sweep(TRAINING, START, DATA, [{}], batch_size=4, mode="sharded"),
            'mesh with an axis "pool", not None',
        ),
        (
            lambda: sweep(TRAINING, START, DATA, [{}], batch_size=4, mesh=jax.make_mesh((8,), ("data",))),
            'mesh with an axis "pool", not',
        ),
        (lambda: sweep(TRAINING, START, lambda *_: [], [{}], mode="map"), "mode='map' needs data in memory"),
        (lambda: lp_ft(TRAINING, START, DATA, head="top", probe={}, batch_size=4), "none of the leaves is below 'top'"),
        (
            lambda: lp_ft(TRAINING, START, DATA, head=0, probe={}, batch_size=4),
            "head must be a string and probe a",
        ),
        (
            lambda: lp_ft(TRAINING, START, DATA, head="head", probe={"strength": 1}, features=network, batch_size=4),
            "unknown setting of a probe on features 'strength' .did you mean 'strengths'",
        ),
        (
            lambda: lp_ft(lambda *_: 0.0, START, DATA, head="head", probe={}, features=network, batch_size=4),
            "a probe on features needs a soups.train.Classification",
        ),
        (lambda: Classification(network, 1), "num_classes must be a whole number, at least 2, not 1"),
    ],
)
def test_sizes_and_kinds(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": 3}, r"loss must be a function loss\(params, batch, key\), not a int"),
        ({"optimizer": "adam"}, "optimizer must be an optax transformation, or a function .* not a str"),
        ({"clip_norm": -1}, "clip_norm must be above 0, not -1"),
        ({"ema_decay": 1.5}, r"ema_decay must be in \[0, 1\), not 1.5"),
        ({"swa_start": 5}, r"swa_start must be in \[0, 1\), not 5"),
        ({"ema_decays": (0.9, 1.0)}, r"ema_decays must be in \[0, 1\), not 1.0"),
        ({"ema_decays": (0.9, 0.9)}, "ema_decays names a decay twice"),
        ({"sam": "yes"}, "sam must be True or False, not 'yes'"),
        ({"learning_rate_rules": {".*": 1.0}}, "learning_rate_rules must be a sequence of pairs"),
        ({"learning_rate_rules": iter([(".*", 1.0)])}, "learning_rate_rules must be a sequence of pairs"),
        ({"decay_rules": ".*"}, "decay_rules must be a sequence of pairs, not '.*'"),
        ({"accumulate": 0}, "accumulate must be at least 1, not 0"),
        ({"accumulate": 1.5}, "accumulate must be a whole number, not 1.5"),
        ({"accumulate": 2.0}, "accumulate must be an integer, not 2.0"),
        ({"ema_decays": 0.9}, r"ema_decays must be a sequence, such as \(0.99, 0.999\), not 0.9"),
        ({"decay_rules": ((".*", "no"),)}, "decay_rules must be pairs .regex, True or False., not"),
        ({"learning_rate_rules": ((".*", -1.0),)}, "learning_rate_rules must be pairs"),
        (
            {"optimizer": optax.sgd(0.1), "decay_rules": ((".*", True),)},
            "decay_rules cannot change a finished optimizer",
        ),
    ],
)
def test_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TRAINING, **settings)
    with pytest.raises(ValueError, match=message):
        fit(**{"loss": TRAINING.loss, "optimizer": optax.sgd} | settings, params=START, data=DATA, batch_size=BATCH)


@pytest.mark.parametrize(
    ("settings", "member", "message"),
    [
        ({"optimizer": optax.adam(1e-3)}, {"learning_rate": 0.1}, "the optimizer is a finished transformation"),
        ({"optimizer": lambda: None}, {}, "optimizer must make an optax transformation, but it makes a NoneType"),
        ({"optimizer": optax.sgd}, {}, "the loss or the optimizer needs a number for learning_rate"),
        ({"optimizer": optax.adamw}, {"learning_rate": 0.1, "b2": np.inf}, "b2 must be a finite number, not inf"),
        (
            {"decay_rules": ((".*", False),)},
            {"weight_decay": 0.1},
            "no trained leaf decays: choose some by decay_rules",
        ),
        ({"learning_rate_rules": (("heat/.*", 1.0), (".*", 0.0))}, {}, "rule 'heat/.*' matches no leaf"),
        ({"learning_rate_rules": ((".*", 0.0),)}, {}, "no leaf is trained: learning_rate_rules freeze all"),
    ],
)
def test_settings_and_hyperparameters_together(settings, member, message):
    with pytest.raises(ValueError, match=message):
        fit(TRAINING.loss, START, DATA, batch_size=BATCH, hyperparameters=member, **settings)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda params, batch, key: params["head"]["kernel"].sum(0),
            r"a loss must return one float, .* not float32\[3\]",
        ),
        (lambda params, batch, key: (params["head"]["kernel"].sum(), {"accuracy": 1}), "what it returned second has 1"),
    ],
)
def test_what_a_loss_returns(loss, message):
    with pytest.raises(ValueError, match=message):
        fit(loss, START, DATA, batch_size=BATCH, optimizer=optax.sgd(0.1))
