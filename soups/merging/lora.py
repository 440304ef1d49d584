"""Read references to models, "model" and "model+lora", and add low-rank adapters of PEFT to their models."""

import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from soups import tree
from soups.formats import Checkpoint, CheckpointError, open_checkpoint
from soups.formats.view import View
from soups.merging.hub import cached_model, how_to_download
from soups.names import did_you_mean

CONFIG, FILES = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_PART = re.compile(r"(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B)(\.weight)?$")
# settings of PEFT that change the formula: what they must be, and what is then not supported
_PLAIN = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "lora_bias": "biases of the low-rank matrices",
    "target_parameters": "adapters of parameters without a module",
    "trainable_token_indices": "single trained tokens",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
}


def model_reference(value: Any, where: str) -> str:
    """Give a reference as text: "path" or "path+lora", also from the nested mappings that mergekit prints.

    Raises:
        ValueError: no reference.
    """
    model, adapter = value, None
    if isinstance(model, Mapping):
        adapter = model.get("lora")
        model = model.get("model", model)
        model, adapter = _with_revision(model), _with_revision(adapter)
    if not isinstance(model, str) or not model or not isinstance(adapter, str | None):
        raise ValueError(f"{where}: a model is a path, or path+lora, not {value!r}")
    return f"{model}+{adapter}" if adapter else model


def _with_revision(value):
    if not isinstance(value, Mapping) or "path" not in value:
        return value
    return f"{value['path']}@{value['revision']}" if value.get("revision") else value["path"]


def split_reference(model: str) -> tuple[str, str | None]:
    """Give the paths of a model and of its adapter; a path that exists, or a member of a pool, may have "+" itself."""
    if "+" not in model or ":" in model or pathlib.Path(model).exists():
        return model, None
    path, _, adapter = model.rpartition("+")
    return path, adapter


def open_with_lora(model: str, open_model) -> Checkpoint | View:
    """Open a model by its reference; with an adapter the tensors that it changes are W + s B A.

    s = α / r, or α / √r for rank-stabilised adapters; B A [outputs, inputs] with B [outputs, r] and A [r, inputs],
    transposed for embeddings and for layers that are stored as [inputs, outputs] (`fan_in_fan_out`); r of each matrix
    is that of A, α that of the adapter's `alpha_pattern` or its `lora_alpha`. Convolutions: as matrices [outputs,
    inputs · width · height]. In float32 or wider. What the adapter saves whole takes the place of the model's tensor.

    Raises:
        FileNotFoundError: no such model or adapter.
        ValueError: an adapter of another kind than LoRA, or with what changes this formula, by name; matrices without
            a tensor in the model, without their other half, or of other shapes, all of them in one message.
        CheckpointError: as `open_checkpoint`.

    Hu et al., "LoRA: low-rank adaptation of large language models", 2021, arXiv 2106.09685; Kalajdzievski, "A rank
    stabilization scaling factor for fine-tuning with LoRA", 2023, arXiv 2312.03732.
    """
    path, adapter = split_reference(model)
    try:
        checkpoint = open_model(cached_model(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}{how_to_download(path)}") from error
    if adapter is None:
        return checkpoint
    adapter = cached_model(adapter)
    config, matrices = _config(pathlib.Path(adapter)), _open_adapter(pathlib.Path(adapter))
    changes = _changes(checkpoint, matrices, config, adapter)
    changed = {name: checkpoint.leaves[name] for name in changes}
    sizes = {**checkpoint.sizes, **matrices.sizes, **_size(pathlib.Path(adapter) / CONFIG)}

    def make(name):
        return changes[name](checkpoint.read(name))

    return View(checkpoint, changed, make, sizes)


def _config(folder):
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no {CONFIG} in {folder}: a LoRA is a folder that PEFT wrote")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ValueError(f"{path}: peft_type must be 'LORA', not {kind!r}: merge this adapter into its model first")
    if wrong := [what for name, what in _PLAIN.items() if config.get(name)]:
        raise ValueError(f"{path}: {', '.join(wrong)}: not supported; merge this adapter into its model first")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and re.match("pissa|olora|corda|loftq|lora_ga", start, re.IGNORECASE):
        raise ValueError(
            f"{path}: init_lora_weights {start!r} changes the model that the adapter belongs to, "
            "so adding it to the original is wrong: merge this adapter into its model first"
        )
    for alpha in [config.get("lora_alpha"), *(config.get("alpha_pattern") or {}).values()]:
        if not isinstance(alpha, int | float):
            raise ValueError(f"{path}: lora_alpha must be a number, not {alpha!r}")
    return config


def _open_adapter(folder):
    for name in FILES:
        if (folder / name).is_file():
            return open_checkpoint(folder / name)
    raise FileNotFoundError(f"{folder} holds neither {' nor '.join(FILES)}")


def _size(path):
    return {path: path.stat().st_size}


def _changes(checkpoint, matrices, config, adapter):
    """Give for each tensor that changes a function from its old array to the new one."""
    pairs, whole, lines = {}, {}, []
    for stored in matrices.leaves:
        name = stored.removeprefix(_PREFIX)
        if found := _PART.match(name):
            pairs.setdefault(found["module"], {})[found["kind"]] = stored
        elif "lora_" in name:
            lines.append(f"  ? {stored}: not supported")
        else:
            whole[name] = stored
    changes = {}
    for module, parts in pairs.items():
        name = _find(checkpoint, f"{module}.weight", lines)
        if name and _fits(checkpoint.leaves[name].shape, module, parts, matrices, config, lines):
            changes[name] = _adding(matrices, parts, config, module)
    for wanted, stored in whole.items():
        name = _find(checkpoint, wanted, lines)
        if name and matrices.leaves[stored].shape != checkpoint.leaves[name].shape:
            shapes = list(matrices.leaves[stored].shape), list(checkpoint.leaves[name].shape)
            lines.append(f"  ~ {stored} has shape {shapes[0]} instead of {shapes[1]}")
        elif name:
            changes[name] = lambda _, stored=stored: _wide(matrices.read(stored))
    if lines:
        raise ValueError(f"{adapter} does not fit {checkpoint.path}:\n" + "\n".join(lines))
    return changes


def _find(checkpoint, name, lines):
    """Give the model's name of a tensor, which may lack modules around it, as it does for a language model's trunk."""
    known = {**{leaf: leaf for leaf in checkpoint.leaves}, **checkpoint.aliases}
    found = [known[name]] if name in known else sorted({known[x] for x in known if name.endswith(f".{x}")})
    if len(found) != 1:
        lines.append(f"  - {checkpoint.path} has no tensor {name}{did_you_mean(name, known)}")
        return None
    return found[0]


def _fits(shape, module, parts, matrices, config, lines):
    kinds = ("lora_embedding_A", "lora_embedding_B") if "lora_embedding_A" in parts else ("lora_A", "lora_B")
    if set(parts) != set(kinds):
        lines.append(f"  - {module} has {', '.join(sorted(parts))}, not both of {', '.join(kinds)}")
        return False
    a, b = (matrices.leaves[parts[kind]].shape for kind in kinds)
    swapped = kinds[0] == "lora_embedding_A" or config.get("fan_in_fan_out")
    rows = shape[1:] + shape[:1] if swapped else shape
    plain = len(a) == len(b) == 2 and (b[0], a[1]) == rows
    convolution = len(a) > 2 and not swapped and a[1:] == shape[1:] and b == (shape[0], a[0], *[1] * (len(a) - 2))
    if not (plain or convolution) or b[1] != a[0]:
        lines.append(f"  ~ {module}: B {list(b)} times A {list(a)} does not fit the weight {list(shape)}")
        return False
    return True


def _adding(matrices, parts, config, module):
    embedding = "lora_embedding_A" in parts
    kinds = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")

    def add(weight):
        a, b = (_wide(matrices.read(parts[kind])) for kind in kinds)
        rank = a.shape[0]
        scale = _alpha(config, module) / (math.sqrt(rank) if config.get("use_rslora") else rank)
        product = b.reshape(-1, rank) @ a.reshape(rank, -1)
        product *= product.dtype.type(scale)
        if embedding or config.get("fan_in_fan_out"):
            product = product.T
        return _wide(weight) + product.reshape(weight.shape)

    return add


def _alpha(config, module):
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return alpha
    return config["lora_alpha"]


def _wide(array):
    return tree.widen_leaves([array])[0] if tree.is_float(array) else np.asarray(array)
