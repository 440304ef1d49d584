"""Understand config.json: compare those of the models, and make that of the output."""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from soups.formats.text import read_json
from soups.names import few, shown

FILE = "config.json"
# no sum of models that differ here means anything; keys of the same meaning have many names
_KIND = ("model_type", "architecture", "_class_name")
_HEADS = re.compile(
    r"(^|_)(n_?|num_)?(heads?|kv_heads?|(query|attention)_groups|group_num)(_kv|_dim|_size)?$|^(d_kv|kv_channels)$"
)
_ACTIVATION = re.compile(
    r"(^|_)act(ivation)?(_fn|_func|_function|_layer)?$|non_?linearity$|^(feed_forward_proj|afn|is_gated_act)$"
)
_LABELS = ("id2label", "label2id", "label_names", "num_labels", "num_classes", "problem_type")
# functions of several names; the last three differ by rounding only
_SAME = {"swish": "silu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh"}
_SAME |= {"gelu_pytorch_tanh": "gelu_tanh"}
# bookkeeping, settings of a run, and what headers, slices and the tokenizer say themselves
_IGNORED = re.compile(
    r"_name_or_path|transformers_version|_commit_hash|use_cache|(torch_)?dtype|torchscript|model_name|unsloth_\w+|"
    r"output_(attentions|hidden_states)|(use_)?return_dict|gradient_checkpointing|finetuning_task|tf_legacy_loss|"
    r"_?attn_implementation\w*|_experts_implementation|use_bfloat16|pretraining_tp|initializer_\w+|vocab_size|"
    r"num_(hidden_|decoder_)?layers|n_layers?|(en|de)coder_layers|(max|min)_length|do_sample|temperature|top_[kp]|"
    r"num_(beams|beam_groups)|(repetition|length|diversity)_penalty|no_repeat_ngram_size|early_stopping"
)
_IGNORED_PARTS = ("task_specific_params", "quantization_config", "compression_config")
_MISSING = (None, "", [], {})


def folder_of(checkpoint: Any) -> pathlib.Path:
    """Return the folder in which a model's other files lie."""
    path = pathlib.Path(checkpoint.path)
    return path if path.is_dir() else path.parent


def read_config(folder: pathlib.Path) -> dict[str, Any] | None:
    """Return the config.json of a folder; None without one.

    Raises:
        CheckpointError: as `read_json`.
    """
    return read_json(folder / FILE) if os.path.lexists(folder / FILE) else None


def differing_configs(configs: Mapping[str, Mapping | None]) -> tuple[list[str], list[str]]:
    """Compare the configs of models with the first one, and return why a sum means nothing, and notes on the rest."""
    flat = {id(config): _flat(config) for config in configs.values() if config is not None}
    known = {model: flat[id(config)] for model, config in configs.items() if config is not None}
    if not known:
        return [], []
    (first, reference), *others = known.items()
    wrong, notes = [], []
    for model, config in others:
        lines, settings = _compared(config, reference) if config is not reference else ([], [])
        wrong += [f"  ~ {model}: {line}, as {first} has it" for line in lines]
        if settings:
            notes.append(f"the config of {model} has {few(settings)}; the output has that of {first}")
    if without := [model for model in configs if model not in known]:
        notes.append(f"no config.json to compare with that of {first}: {few(without)}")
    return wrong, notes


def _flat(config, path=""):
    """Return the settings by their paths, those of parts too, with the names of today."""
    found = {}
    for name, value in config.items():
        if isinstance(value, dict) and name not in _LABELS:
            found |= _flat(value, f"{path}{name}.") if name not in _IGNORED_PARTS else {}
        elif not _IGNORED.fullmatch(name):
            full = f"{path}{name}".replace("rope_parameters.rope_theta", "rope_theta")
            full = full.replace("rope_parameters.", "rope_scaling.")
            found[re.sub(r"rope_scaling\.type$", "rope_scaling.rope_type", full)] = value
    return found


def _compared(config, reference):
    """Return what makes a sum meaningless, and which other settings differ."""
    wrong, settings = [], []
    for path in dict.fromkeys([*reference, *config]):
        one, other = config.get(path), reference.get(path)
        if one == other or all(value in (*_MISSING, "default") or value is False for value in (one, other)):
            continue
        known = one not in _MISSING and other not in _MISSING
        line = _meaningless(path, one, other) if known else ""
        if line:
            wrong.append(f"{shown(path)} {line}")
        elif line is not None:
            settings.append(f"{shown(path)} {_brief(one)} instead of {_brief(other)}")
    return wrong, settings


def _meaningless(path, one, other):
    """Return how a setting differs if that makes a sum meaningless, "" if it does not, None if it does not differ."""
    *parts, name = path.split(".")
    if name in ("id2label", "label2id", "label_names"):
        return _labels(name, one, other)
    if any(map(_ACTIVATION.search, [*parts, name])):
        one, other = (_SAME.get(_label(value), _label(value)) for value in (one, other))
        return f"is {_brief(one)} instead of {_brief(other)}" if one != other else None
    if name == "architectures":
        families = _family(one), _family(other)
        return f"are of {_brief(one)} instead of {_brief(other)}" if families[0] != families[1] else ""
    heads = _HEADS.search(name) and all(isinstance(value, int | list) and value is not True for value in (one, other))
    if name in (*_KIND, *_LABELS) or heads:
        return f"is {_brief(one)} instead of {_brief(other)}"
    return ""


def _labels(name, one, other):
    one, other = _by_number(name, one), _by_number(name, other)
    if one is None or other is None:
        return "is not a mapping between numbers and labels" if one is not other else ""
    if len(one) != len(other):
        return f"has {len(one)} labels instead of {len(other)}"
    if different := sorted(number for number in one if _label(one[number]) != _label(other.get(number))):
        named = all(not re.fullmatch(r"label_\d+", _label(labels.get(n))) for labels in (one, other) for n in different)
        at = different[0]
        pair = f"{_brief(one[at])} instead of {_brief(other.get(at))}"
        return f"has other labels for {len(different)} of its numbers, {shown(at)} is {pair}" if named else ""
    return None if one == other else ""


def _by_number(name, labels):
    """Return labels by the text of their numbers; None for what is neither mapping nor list."""
    if isinstance(labels, list):
        return {str(number): label for number, label in enumerate(labels)}
    if not isinstance(labels, dict):
        return None
    pairs = ((number, label) for label, number in labels.items()) if name == "label2id" else labels.items()
    return {str(number): label for number, label in pairs}


def _label(value):
    return str(value).casefold()


def _family(architectures):
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else str(architectures)
    return re.split(r"For[A-Z]|Model|LMHead|DoubleHeads|Encoder|Decoder|With[A-Z]", re.sub("^(Flax|TF)", "", name))[0]


def _brief(value):
    if value in _MISSING:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return shown(text if len(text) <= 60 else f"{text[:60]}...")
