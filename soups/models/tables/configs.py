"""Compare what the configuration of a folder says of its network with what an architecture computes."""

import os
import pathlib

from soups.formats.text import read_json
from soups.models.architectures import HF_ACTIVATIONS, Architecture

OF_TEXT = ("bert", "roberta")
# what the shapes of the weights do not tell
OF_TEXT_FIELDS = ("model_type", "num_attention_heads", "is_decoder", "position_embedding_type", "tie_word_embeddings")
OF_TEXT_FIELDS += ("pad_token_id",)


def config_problems(path, wanted: Architecture) -> list[str]:
    """List the activation, epsilon, mean, std and more that a folder's files state and the architecture has otherwise.

    Read are config.json and preprocessor_config.json of Hugging Face, config.json of timm and open_clip_config.json,
    where they are there; a file alone says nothing. One that is no JSON object is a ValueError.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        return []
    ours = {"mean": wanted.mean, "std": wanted.std}
    if hasattr(wanted.features, "activation"):
        ours |= {"activation": wanted.features.activation, "norm_epsilon": wanted.features.norm_epsilon}
    if wanted.family in OF_TEXT:
        ours |= {"model_type": wanted.family, "num_attention_heads": wanted.features.num_heads, "is_decoder": False}
        ours |= {"position_embedding_type": "absolute"}
        ours |= {"tie_word_embeddings": True} if wanted.features.mlm else {}
        offset = wanted.features.position_offset
        ours |= {"pad_token_id": offset - 1} if offset else {}  # their positions begin behind it
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
        if wanted.family in ("clip", "huggingface", *OF_TEXT):
            inner = config.get("vision_config", config)
            # their defaults, where a configuration is silent
            activation, epsilon = ("quick_gelu", 1e-5) if wanted.family == "clip" else ("gelu", 1e-12)
            activation = inner.get("hidden_act", activation)
            yield "config.json", "activation", HF_ACTIVATIONS.get(activation, activation)
            yield "config.json", "norm_epsilon", inner.get("layer_norm_eps", epsilon)
        if wanted.family in OF_TEXT:
            yield from _given("config.json", config, dict(zip(OF_TEXT_FIELDS, OF_TEXT_FIELDS, strict=True)))
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
