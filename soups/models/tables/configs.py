"""Compare what the configuration of a folder says of its network with what an architecture computes."""

import os
import pathlib

from soups.formats.text import read_json
from soups.models.architectures import Architecture

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}  # ours for theirs


def config_problems(path, wanted: Architecture) -> list[str]:
    """List the activation, epsilon, mean and std that a folder's files state and the architecture has otherwise.

    Read are config.json and preprocessor_config.json of Hugging Face, config.json of timm and open_clip_config.json,
    where they are there; a file alone says nothing. One that is no JSON object is a ValueError.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        return []
    ours = {"mean": wanted.mean, "std": wanted.std}
    if hasattr(wanted.features, "activation"):
        ours |= {"activation": wanted.features.activation, "norm_epsilon": wanted.features.norm_epsilon}
    return [
        f"  ~ {file} says {what} {said}, but {wanted.name} has {ours[what]}"
        for file, what, said in _statements(folder, wanted)
        if what in ours and not _equal(said, ours[what])
    ]


def _statements(folder, wanted):
    if config := _read(folder / "open_clip_config.json"):
        preprocess, quick = config.get("preprocess_cfg", {}), config.get("model_cfg", {}).get("quick_gelu", False)
        yield "open_clip_config.json", "activation", "quick_gelu" if quick else "gelu"
        yield from _given("open_clip_config.json", preprocess, {"mean": "mean", "std": "std"})
    elif config := _read(folder / "config.json"):
        if wanted.family in ("clip", "huggingface"):
            inner = config.get("vision_config", config)
            # their defaults, where a configuration is silent
            activation, epsilon = ("quick_gelu", 1e-5) if wanted.family == "clip" else ("gelu", 1e-12)
            activation = inner.get("hidden_act", activation)
            yield "config.json", "activation", ACTIVATIONS.get(activation, activation)
            yield "config.json", "norm_epsilon", inner.get("layer_norm_eps", epsilon)
        yield from _given("config.json", config.get("pretrained_cfg", {}), {"mean": "mean", "std": "std"})
    if config := _read(folder / "preprocessor_config.json"):
        yield from _given("preprocessor_config.json", config, {"image_mean": "mean", "image_std": "std"})


def _given(file, config, names):
    return [(file, ours, config[theirs]) for theirs, ours in names.items() if theirs in config]


def _read(path):
    return read_json(path) if os.path.lexists(path) else {}


def _equal(said, ours):
    if isinstance(ours, tuple):
        return isinstance(said, list) and len(said) == len(ours) and all(map(_equal, said, ours))
    if isinstance(ours, float):
        return isinstance(said, int | float) and abs(said - ours) <= 1e-6 * abs(ours)
    return said == ours
