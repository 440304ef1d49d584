"""Compare what the configuration of a folder says of its network with what an architecture computes."""

import os
import pathlib

from soups.formats.text import read_json
from soups.models.architectures import HF_ACTIVATIONS, Architecture
from soups.models.decoder_sizes import KINDS, decoder_fields, is_gguf

OF_TEXT = ("bert", "roberta", "deberta-v2", "t5")
#: what DeBERTa-v3 computes, of all that its kin may
OF_DEBERTA = {"relative_attention": True, "share_att_key": True, "pos_att_type": ["c2p", "p2c"]}
OF_DEBERTA |= {"position_biased_input": False, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 0}


def config_problems(path, wanted: Architecture) -> list[str]:
    """List the activation, epsilon, mean, std and more that a folder's files state and the architecture has otherwise.

    Read are config.json and preprocessor_config.json of Hugging Face, config.json of timm and open_clip_config.json,
    where they are there; a file alone says nothing. One that is no JSON object is a ValueError.
    """
    folder = pathlib.Path(path)
    if wanted.family in KINDS:
        return _of_decoder(folder, wanted)
    if not folder.is_dir():
        return []
    ours = {"mean": wanted.mean, "std": wanted.std}
    if hasattr(wanted.features, "activation"):
        ours |= {"activation": wanted.features.activation, "norm_epsilon": wanted.features.norm_epsilon}
    ours |= _of_align(wanted) if wanted.family == "align" else {}
    ours |= _of_text(wanted) if wanted.family in OF_TEXT else {}
    return [
        f"  ~ {file} says {what} {said}, but {wanted.name} has {ours[what]}"
        for file, what, said in _statements(folder, wanted)
        if what in ours and not _equal(said, ours[what])
    ]


def _of_text(wanted) -> dict:
    """Return what the shapes of an encoder's weights do not tell."""
    encoder = wanted.features
    if wanted.family == "t5":
        ours = {"model_type": "t5", "num_heads": encoder.num_heads, "d_kv": encoder.head_dim}
        ours |= {"feed_forward_proj": "gated-gelu" if encoder.gated else "relu", "layer_norm_epsilon": 1e-6}
        return ours | {"relative_attention_max_distance": encoder.distance, "scale_decoder_outputs": not encoder.gated}
    ours = {"model_type": wanted.family, "num_attention_heads": encoder.num_heads, "is_decoder": False}
    ours |= {"tie_word_embeddings": True} if encoder.mlm else {}
    if encoder.buckets is None:
        offset = encoder.position_offset
        ours |= {"pad_token_id": offset - 1} if offset else {}  # their positions begin behind it
        return ours | {"position_embedding_type": "absolute"}
    pooler = {} if encoder.representation_size is None else {"pooler_hidden_act": encoder.pooler_activation}
    # below 1 it is the largest position
    distance = {"max_relative_positions": encoder.context_length, "max_position_embeddings": encoder.context_length}
    return ours | OF_DEBERTA | pooler | distance | {"position_buckets": encoder.buckets}


def _of_align(wanted) -> dict:
    """Return what the shapes of ALIGN's weights do not tell, of both towers."""
    image, text = wanted.features, wanted.text
    plan = {"kernel_sizes": "size", "strides": "stride", "expand_ratios": "expansion", "out_channels": "width"}
    ours = {f"vision_config.{said}": [getattr(stage, name) for stage in image.plan] for said, name in plan.items()}
    ours |= {"vision_config.width_coefficient": image.width_multiplier, "vision_config.hidden_act": "swish"}
    ours |= {"vision_config.depthwise_padding": list(image.symmetric), "vision_config.pooling_type": "mean"}
    ours |= {"vision_config.batch_norm_eps": 1e-3, "text_config.num_attention_heads": text.num_heads}
    return ours | {"text_config.hidden_act": text.activation, "text_config.layer_norm_eps": text.norm_epsilon}


def _of_decoder(path, wanted):
    """Compare all that a folder or a GGUF file states; sizes are compared with the shapes too."""
    if not is_gguf(path) and not os.path.lexists(path / "config.json"):
        return []
    kind, said = decoder_fields(path)
    if kind != wanted.family:
        return [f"  ~ {path.name} says that it is a {kind}, but {wanted.name} is a {wanted.family}"]
    model = wanted.features
    ours = {name: getattr(model, name) for name in said}
    if kind == "llama":
        ours |= {"num_kv_heads": model.num_kv_heads or model.num_heads}
        ours |= {"head_dim": model.head_dim or model.width // model.num_heads}
    return [
        f"  ~ {path.name} says {what} {found}, but {wanted.name} has {ours[what]}"
        for what, found in said.items()
        if not _equal(found, ours[what])
    ]


def _statements(folder, wanted):
    if config := _read(folder / "open_clip_config.json"):
        preprocess, quick = config.get("preprocess_cfg", {}), config.get("model_cfg", {}).get("quick_gelu", False)
        yield "open_clip_config.json", "activation", "quick_gelu" if quick else "gelu"
        yield from _given("open_clip_config.json", preprocess, {"mean": "mean", "std": "std"})
    elif config := _read(folder / "config.json"):
        if wanted.family in ("clip", "huggingface", *OF_TEXT) and wanted.family != "t5":
            inner = config.get("vision_config", config)
            # their defaults, where a configuration is silent
            activation, epsilon = ("quick_gelu", 1e-5) if wanted.family == "clip" else ("gelu", 1e-12)
            activation = inner.get("hidden_act", activation)
            yield "config.json", "activation", HF_ACTIVATIONS.get(activation, activation)
            yield "config.json", "norm_epsilon", inner.get("layer_norm_eps", epsilon)
        if wanted.family == "align":
            parts = {part: config.get(part, {}) for part in ("vision_config", "text_config")}
            flat = {f"{part}.{name}": value for part, said in parts.items() for name, value in said.items()}
            yield from _given("config.json", flat, dict(zip(*[_of_align(wanted)] * 2, strict=True)))
        if wanted.family in OF_TEXT:
            fields = _of_text(wanted)
            yield from _given("config.json", _plain(config), dict(zip(fields, fields, strict=True)))
        yield from _given("config.json", config.get("pretrained_cfg", {}), {"mean": "mean", "std": "std"})
    if config := _read(folder / "preprocessor_config.json"):
        yield from _given("preprocessor_config.json", config, {"image_mean": "mean", "image_std": "std"})


def _plain(config):
    """Return a configuration in which what may be said in several ways, of DeBERTa or T5, is said in one."""
    if (
        config.get("model_type") == "t5"
    ):  # logits of the embeddings are scaled; version 5 of transformers says so itself
        scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
        config = config | {"scale_decoder_outputs": scaled}
    kinds = config.get("pos_att_type")
    if isinstance(kinds, str | list):
        config = config | {"pos_att_type": sorted(kinds.split("|") if isinstance(kinds, str) else map(str, kinds))}
    if isinstance(said := config.get("max_relative_positions"), int) and said < 1:
        config = {name: value for name, value in config.items() if name != "max_relative_positions"}
    return config


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
