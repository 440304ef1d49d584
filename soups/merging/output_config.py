"""Make the output's config.json from the base's: layers, dtype and vocabulary are those that were written."""

import collections
import itertools
import re
from collections.abc import Mapping
from typing import Any

from soups.merging import stacks
from soups.merging.config import folder_of, read_config
from soups.merging.planning import Plan
from soups.names import shown

_DTYPE = ("torch_dtype", "dtype")
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_transformer_layers", "depth")
_DECODER, _ENCODER = ("decoder_layers", "num_decoder_layers"), ("encoder_layers", "num_encoder_layers")
# what parts of a model are called, in the names of tensors and in those of sub-configs
_ROLES = (("vision", "visual", "image"), ("text", "language", "llm"), ("audio", "speech"), ("encoder",), ("decoder",))
_NUMBERS = re.compile(r"_layers$|layers?_(ids|indices|idxs?)$|_(idxs|indexes|indices)$")  # lists of layers' numbers
_NO_NUMBERS = ("no_rope_layers", "out_indices")
# lists that may happen to be as long as there are layers
_NOT_OF_LAYERS = re.compile(
    r"_ids?$|tokens$|^keys_to|^image_|pinpoints$|languages?$|label|^(architectures|hidden_sizes|depths|out_features|"
    r"out_indices|stage_names|patch_size|mrope_section)$"
)
_PERIOD = re.compile(r"(pattern|_step|_interval|_period|_freq|every_n_layers)$")
_FIRST = re.compile(r"^(first_k_\w+|max_window_layers)$")


def output_config(config: Mapping[str, Any], plan: Plan) -> tuple[dict[str, Any], list[str]]:
    """Return the base's config as the output needs it, and notes on what follows its layers or cannot.

    The number of layers and what is listed for each layer change in the part of the config that is of the stack that
    slices cut; an entry for a layer is that of the first source of the layer.

    Raises:
        CheckpointError: another model's config cannot be read.
    """
    patched, notes = _with_dtype(config, plan), []
    if rows := plan.tokenizer.rows if plan.tokenizer else 0:
        for part in (patched, patched.get("text_config")):
            if isinstance(part, dict) and "vocab_size" in part:
                part["vocab_size"] = rows
    for stack, origin in stacks.output_layers(plan.job, plan.checkpoints).items():
        configs = {
            model: read_config(folder_of(plan.checkpoints[model])) or {}
            for model in dict.fromkeys(m for m, _ in origin)
        }
        first = plan.checkpoints[plan.job.models[0]]
        count = stacks.count_layers(first.leaves).get(stack, 0)
        for at, part in enumerate(parts := _parts(patched, stack)):
            own = {model: dict(enumerate(_parts(found, stack))).get(at, {}) for model, found in configs.items()}
            _follow(part, origin, own, count, notes)
        if not any([_count(part, stack, len(origin), count) for part in parts]):
            notes.append(
                f"config.json says nothing of the number of layers of {shown(stack)}: it has {len(origin)} now"
            )
    return patched, list(dict.fromkeys(notes))


def _with_dtype(config, plan):
    sizes = collections.Counter()
    for output in plan.outputs:
        if output.recipe is not None:
            sizes[str(output.dtype)] += output.size
    dtype = sizes.most_common(1)[0][0] if sizes else None

    def changed(part):
        made = {name: changed(value) if isinstance(value, dict) else value for name, value in part.items()}
        return made | {name: dtype for name in _DTYPE if name in part and dtype}

    return changed(config)


def _parts(config, stack):
    """Return the parts of a config that describe a stack: several if an older copy is kept beside one."""
    for word in re.split(r"[./_]", stack.lower()):
        for role in _ROLES:
            if word in role and (found := _named(config, role)):
                return found
    if any(name in config for name in _COUNTS):
        return [config]
    return _named(config, _ROLES[1]) or [config]


def _named(config, role):
    return [value for name, value in config.items() if isinstance(value, dict) and _is_of(name, role)]


def _is_of(name, role):
    return any(word in role for word in name.lower().split("_"))


def _count(part, stack, layers, before):
    """Write the number of layers, and return whether there was a place for it."""
    words = re.split(r"[./_]", stack.lower())
    generic = [name for name in _COUNTS if type(part.get(name)) is int]
    if "decoder" in words and any(name in part for name in _DECODER):
        names = [name for name in _DECODER if name in part]
    elif part.get("is_encoder_decoder") and "num_layers" in generic:
        # T5 counts the encoder's layers, and the decoder's are as many unless it says otherwise
        if "decoder" not in words:
            part.setdefault("num_decoder_layers", before)
        names = ["num_decoder_layers"] if "decoder" in words else generic
    else:
        names = generic + [name for name in _ENCODER if name in part and "encoder" in words]
    part |= dict.fromkeys(names, layers)
    return bool(names)


def _follow(part, origin, own, count, notes):
    """Change what a config lists by layer: an entry for each, or the numbers of some."""
    for name, value in list(part.items()):
        if _lists_numbers(name, value):
            follows = all(_lists_numbers(name, config.get(name)) for config in own.values())
            made = [at for at, (model, layer) in enumerate(origin) if follows and layer in own[model][name]]
        elif _lists_layers(name, value, count):
            lists = {model: config.get(name) for model, config in own.items()}
            follows = all(type(lists[model]) is type(value) and layer < len(lists[model]) for model, layer in origin)
            made = [lists[model][layer] for model, layer in origin] if follows else value
            made = "".join(made) if follows and isinstance(value, str) else made
        else:
            if _moves(name, value, part, origin):
                notes.append(
                    f"config.json: {shown(name)} {value!s:.40} goes by the numbers of layers, which changed: check it"
                )
            continue
        if not follows:
            notes.append(f"config.json: {shown(name)} cannot follow the layers, for not all models have it: check it")
        elif made != value:
            part[name] = made
            notes.append(f"config.json: {shown(name)} follows the layers")


def _lists_numbers(name, value):
    numbers = isinstance(value, list) and all(type(number) is int for number in value)
    rising = numbers and all(a < b for a, b in itertools.pairwise(value))
    return bool(rising and _NUMBERS.search(name) and name not in _NO_NUMBERS)


def _lists_layers(name, value, count):
    if isinstance(value, str):
        return name.endswith("pattern") and len(value) == count
    return isinstance(value, list) and len(value) == count > 0 and not _NOT_OF_LAYERS.search(name)


def _moves(name, value, part, origin):
    """Return whether a rule that goes by the number of a layer says another thing of one that moved."""
    # GPT-Neo's pairs of a pattern and how often it repeats, Gemma 3n's last layers
    if name in ("attention_types", "num_kv_shared_layers") and value:
        return True
    if name == "block_types" and isinstance(value, list) and value:  # RecurrentGemma's period
        return any((at - layer) % len(value) for at, (_, layer) in enumerate(origin))
    if isinstance(value, dict) and not any(_is_of(name, role) for role in _ROLES):  # Kimi Linear counts from 1 there
        return any(numbers and _lists_numbers(key, numbers) for key, numbers in value.items())
    if type(value) is not int or value < 1 or "layer_types" in part:
        return False
    if _FIRST.search(name):
        used = name != "max_window_layers" or part.get("use_sliding_window")
        return bool(used) and any((layer < value) != (at < value) for at, (_, layer) in enumerate(origin))
    return bool(_PERIOD.search(name)) and any((at - layer) % value for at, (_, layer) in enumerate(origin))
