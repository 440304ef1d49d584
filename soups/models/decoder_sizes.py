"""Read from the files of a decoder which network they are of: config.json of Hugging Face, or the header of a GGUF."""

import pathlib
from collections.abc import Mapping
from typing import Any

from soups.formats.gguf import read_header
from soups.formats.text import read_json
from soups.names import check_name

KINDS = ("gpt2", "llama")
HF_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}
#: what makes a Llama of the fields of GPT-2
LLAMA = {"rms_norm": True, "gated": True, "use_bias": False, "activation": "silu"}
_SIZES = {
    "gpt2": {
        "width": "n_embd",
        "depth": "n_layer",
        "num_heads": "n_head",
        "context_length": "n_positions",
        "vocabulary_size": "vocab_size",
    },
    "llama": {
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "mlp_dim": "intermediate_size",
        "num_heads": "num_attention_heads",
        "context_length": "max_position_embeddings",
        "vocabulary_size": "vocab_size",
    },
}
_IN_GGUF = {
    "width": "embedding_length",
    "depth": "block_count",
    "mlp_dim": "feed_forward_length",
    "num_heads": "attention.head_count",
    "context_length": "context_length",
}
# settings that change the formula: what they must be
_PLAIN = {
    "gpt2": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    "llama": {"attention_bias": False, "mlp_bias": False, "rope_scaling": None},
}


def is_gguf(path: pathlib.Path) -> bool:
    """Say whether a path is a GGUF file."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def decoder_fields(path: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """Return the kind of a decoder, one of `KINDS`, and the fields of `soups.models.Decoder` that its files state.

    Raises:
        FileNotFoundError: a folder without a config.json.
        ValueError: another kind of network, a size that is missing, or a setting that is not computed, all of them
            listed.
    """
    if is_gguf(path):
        return _of_gguf(path)
    file = path / "config.json" if path.is_dir() else path.with_name("config.json")
    return _of_config(read_json(file), file)


def _of_config(config, file):
    kind = check_name(config.get("model_type"), KINDS, f"model_type in {file}")
    fields = _whole({ours: config.get(theirs) for ours, theirs in _SIZES[kind].items()}, _SIZES[kind], file)
    plain = _PLAIN[kind]
    if wrong := [f"{name} is {config[name]!r}" for name, value in plain.items() if config.get(name, value) != value]:
        raise ValueError(f"{file} describes a decoder that is not supported: {', '.join(wrong)}")
    activation = str(
        config.get("activation_function", "gelu_new") if kind == "gpt2" else config.get("hidden_act", "silu")
    )
    fields["activation"] = HF_ACTIVATIONS.get(activation, activation)
    if kind == "gpt2":
        inner = config.get("n_inner")
        fields |= {"mlp_dim": 4 * fields["width"] if inner is None else inner}
        return kind, fields | {"norm_epsilon": config.get("layer_norm_epsilon", 1e-5), "tied": _tied(config, True)}
    rope = config.get("rope_parameters") or {}
    plain = {"rope_type": "default", "partial_rotary_factor": 1.0}
    if wrong := [f"{name} is {rope[name]!r}" for name, value in plain.items() if rope.get(name, value) != value]:
        raise ValueError(f"{file} describes a decoder that is not supported: {', '.join(wrong)}")
    fields |= {"rope_theta": float(config.get("rope_theta", rope.get("rope_theta", 10000.0)))}
    fields |= {"num_kv_heads": config.get("num_key_value_heads") or fields["num_heads"]}
    fields |= {"head_dim": config.get("head_dim") or fields["width"] // fields["num_heads"]}
    return kind, LLAMA | fields | {"norm_epsilon": config.get("rms_norm_eps", 1e-6), "tied": _tied(config, False)}


def _tied(config: Mapping[str, Any], default: bool) -> bool:
    return bool(config.get("tie_word_embeddings", default))


def _of_gguf(path):
    header = read_header(path, dequantise=True)
    said, names = header.metadata, {leaf.name: leaf for leaf in header.leaves}
    kind = check_name(said.get("general.architecture"), ("llama",), f"general.architecture in {path}")
    given = {ours: _integer(said.get(f"llama.{theirs}")) for ours, theirs in _IN_GGUF.items()}
    embedding = names.get("token_embd.weight")
    given["vocabulary_size"] = embedding.shape[0] if embedding and len(embedding.shape) == 2 else None
    wanted = {ours: f"llama.{theirs}" for ours, theirs in _IN_GGUF.items()} | {"vocabulary_size": "token_embd.weight"}
    fields = _whole(given, wanted, path)
    scaled = [name for name in said if name.startswith("llama.rope.scaling") and said[name] != "none"]
    if scaled := [*scaled, *(name for name in names if name == "rope_freqs.weight")]:
        raise ValueError(f"{path} describes a decoder that is not supported: it has {', '.join(scaled)}")
    heads, size = fields["num_heads"], _integer(said.get("llama.attention.key_length"))
    fields |= {"num_kv_heads": _integer(said.get("llama.attention.head_count_kv")) or heads}
    fields |= {"head_dim": size or fields["width"] // heads, "tied": "output.weight" not in names}
    fields |= {"rope_theta": float(said.get("llama.rope.freq_base", 10000.0))}
    return kind, LLAMA | fields | {"norm_epsilon": float(said.get("llama.attention.layer_norm_rms_epsilon", 1e-6))}


def _integer(text):
    return int(text) if text is not None and text.isdecimal() else None


def _whole(fields, theirs, where):
    if wrong := [theirs[name] for name, value in fields.items() if type(value) is not int or value < 1]:
        raise ValueError(f"{where} must give these as whole numbers of at least 1: {', '.join(wrong)}")
    return fields
