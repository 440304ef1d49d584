"""Train a small CLIP, probe it, and fine-tune it a dozen times: the pool of the published soups, in small."""

import functools
import json
import pathlib

import jax
import numpy as np
from miniature import layouts, pictures, tensors, torch_zip

from soups.data import decode
from soups.data.imagenet.protocol import templates
from soups.data.sources import folder_source
from soups.data.transforms import center_crop, compose, from_pil, resize_shorter, to_channels
from soups.models.architectures import Architecture, architecture
from soups.models.clip_text import import_text_tower, text_features
from soups.models.clip_tokenizer import clip_tokenizer
from soups.models.zero_shot import zero_shot_head
from soups.train import Classification, Training, fit, search, step

ARCH = "clip-vit-mini"
MEMBERS = 12
COPIES = {5: 4}  # of the published models, 5 is 4 again
BATCH = 32
TEMPLATES = 8  # of the 80
RIDGE, PROBE_SCALE = 0.1, 10.0  # the second turns what regression gives, 0 to 1, into logits


def write_clip(folder: pathlib.Path, drawer: layouts.Drawer, seed: int) -> tuple[dict, dict[str, np.ndarray]]:
    """Write a vocabulary and a CLIP in OpenAI's names; give its image tower as weights, its text tower as tensors.

    The text tower is random and stays so. The image tower learns to give the pictures of a class the features of its
    texts, in all the styles, from digits that no other set has.
    """
    network, rng = architecture(ARCH), np.random.default_rng([seed, 1])
    vocabulary = _write_vocabulary(folder)
    (folder / "classes.txt").write_text("\n".join(layouts.CLASS_NAMES) + "\n")
    text = tensors.text_tensors(vocabulary, network.text.width, network.text.depth, network.feature_dim, rng)
    start = tensors.random_weights(network.abstract(len(layouts.CLASSES)), rng)
    path = torch_zip.write_state_dict(folder / "untrained.pt", tensors.clip_tensors(start, text))
    start["head"] = _zero_shot_head(path)
    path.unlink()
    # few pictures and few epochs, so that fine-tuning has something to add; the head may move, for then this is the
    # compiled step of the members, and at this rate it hardly does
    settings = {"learning_rate": 2e-3, "weight_decay": 0.05, "epochs": 3, "seed": seed}
    (trained,) = _fine_tuned(network, start, _pretraining_pictures(network, drawer), [settings])
    torch_zip.write_state_dict(folder / f"{ARCH}.pt", tensors.clip_tensors(trained, text))
    return trained, text


def write_members(folder: pathlib.Path, data: pathlib.Path, start: dict, text: dict, seed: int) -> None:
    """Write model_0.pt, the linear probe, model_1.pt to model_11.pt, fine-tuned from it, and their hyper-parameters."""
    network = architecture(ARCH)
    train = _training_images(network, data)
    probe = start | {"head": _probe(network, start, train)}
    drawn = _random_search(seed)
    results = _fine_tuned(network, probe, train, [_ours(hparams, index) for index, hparams in drawn.items()])
    members = dict(zip(drawn, results, strict=True))
    members = {0: probe} | members | {copy: members[own] for copy, own in COPIES.items()}
    drawn |= {copy: drawn[own] for copy, own in COPIES.items()}
    for index, params in sorted(members.items()):
        torch_zip.write_state_dict(folder / f"model_{index}.pt", tensors.classifier_tensors(params, text))
    information = {"model_0": {"info": "LP initialization"}} | {f"model_{i}": drawn[i] for i in sorted(drawn)}
    (folder / "hparam_info.json").write_text(json.dumps(information))


# --- Training ---


def _fine_tuned(network: Architecture, start, train, settings):
    """Yield the weights after each of the fine-tunings; all of them share one compiled step."""
    training = _training(network.name)
    for setting in settings:
        yield jax.device_get(fit(training, start, train, batch_size=BATCH, hyperparameters=setting)["params"])


@functools.cache
def _training(name):
    count = len(layouts.CLASSES)
    training = Training(loss=Classification(architecture(name).train_apply_fn(count), count), clip_norm=1.0)
    # compiling takes as long as half of the steps: less of it makes no step slower
    options = {"xla_backend_optimization_level": 1}
    compiled = jax.jit(functools.partial(step.training_step, training), donate_argnums=0, compiler_options=options)
    vars(training)["step"] = compiled
    return training


def _random_search(seed):
    """Draw hyper-parameters in the names of the published hparam_info.json, by index of the member.

    Augmentation and mixup are weaker than published: with so few steps more of them makes no better members.
    """
    drawn = search.random(
        MEMBERS,
        seed,
        aug=lambda rng: f"rand-m{rng.integers(1, 10)}-n{rng.integers(0, 3)}" if rng.uniform() < 1 / 2 else None,
        wd=search.log_uniform(1e-4, 0.5),
        lr=search.log_uniform(3e-4, 3e-3),
        mix=search.zero_or(0.5, search.uniform(0.0, 0.5)),
        smoothing=search.zero_or(0.5, search.uniform(0.0, 0.25)),
        epochs=search.integers(4, 6),
    )
    return {index: hparams for index, hparams in enumerate(drawn) if index and index not in COPIES}


def _ours(hparams, index):
    magnitude, operations = (hparams["aug"] or "rand-m0-n0").removeprefix("rand-m").split("-n")
    return {
        "learning_rate": hparams["lr"],
        "weight_decay": hparams["wd"],
        "mixup": hparams["mix"],
        "label_smoothing": hparams["smoothing"],
        "epochs": hparams["epochs"],
        "augment_magnitude": float(magnitude),
        "augment_operations": int(operations),
        "seed": index,
    }


def _probe(network, start, train):
    """Return the head that is the ridge regression from features to classes: closed, and the same on every machine."""
    weights = {name: part for name, part in start.items() if name != "head"}
    features = jax.jit(network.apply_fn(None))(weights, train["image"].astype(np.float32) / 255)
    features, classes = np.asarray(features, np.float64), np.eye(len(layouts.CLASSES))[train["label"]]
    mean = features.mean(axis=0)
    centred = features - mean
    ridge = centred.T @ centred + RIDGE * np.eye(network.feature_dim)
    kernel = PROBE_SCALE * np.linalg.solve(ridge, centred.T @ (classes - classes.mean(axis=0)))
    return {"kernel": kernel.astype(np.float32), "bias": (-mean @ kernel).astype(np.float32)}


# --- Images and texts ---


def _transform(network):
    return compose(resize_shorter(network.image_size), center_crop(network.image_size), to_channels(3))


def _training_images(network, data):
    """Read the training images that are not held out."""
    kept = np.flatnonzero(np.load(data / "imagenet_98_idxs.npy") == 0)
    train = decode(folder_source(data / "imagenet" / "train"), _transform(network), indices=kept)
    return {"image": train.images, "label": train.labels}


def _pretraining_pictures(network, drawer):
    transform, images, labels = _transform(network), [], []
    for again, look in enumerate(pictures.LOOKS):
        for label in range(len(layouts.CLASSES)):
            found = [transform(from_pil(image)) for image in drawer.images("pretraining", label, look, again)]
            images += found
            labels += [label] * len(found)
    return {"image": np.stack(images), "label": np.array(labels, np.int32)}


def _zero_shot_head(path):
    tower = import_text_tower(path, ARCH)
    embed = jax.jit(lambda tokens: text_features(tower, tokens, arch=ARCH))
    return zero_shot_head(embed, clip_tokenizer(path.parent), layouts.CLASS_NAMES, templates()[:TEMPLATES])


def _write_vocabulary(folder):
    """Write a vocabulary of bytes and of the words in the names of the classes, and give its size."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = []
    for word in sorted({word for name in layouts.CLASS_NAMES for word in name.split()}):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        merges += [("".join(parts[:index]), parts[index]) for index in range(1, len(parts))]
    merges = list(dict.fromkeys(merges))
    symbols = sorted(ByteLevel.alphabet())
    joined = map("".join, merges)
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *joined, "<|startoftext|>", "<|endoftext|>"]
    tokens = list(dict.fromkeys(tokens))
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return len(tokens)
