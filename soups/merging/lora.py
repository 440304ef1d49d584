"""Read references to models, "model" and "model+lora", and add low-rank adapters of PEFT to their models."""

import collections
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from soups import tree
from soups.files import any_path
from soups.formats import Checkpoint, open_checkpoint
from soups.formats.hub import cached_model, how_to_complete, local_note, not_cached, pinned
from soups.formats.tensors import leaf_of, listed
from soups.formats.text import read_json
from soups.formats.view import View
from soups.merging import ties
from soups.merging.adapter_names import find_tensors, sort_parts
from soups.merging.comparing import kind_of
from soups.merging.sources import MODEL_FILES, split_pool
from soups.names import bounded, pattern, shown
from soups.stores import Copies, StorePath, is_store, store_path

CONFIG, FILES = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
_LINEAR, _EMBEDDING = ("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")
# modules of GPT-2 and its kin, whose weights are stored as [inputs, outputs]; others have Linear of the same names
_CONV1D = ("c_attn", "q_attn", "c_proj", "c_fc")
_WIDENING = ("c_attn", "c_fc")  # of them, those with more outputs than inputs
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
    """Return a reference as text: "path" or "path+lora", also from the nested mappings that mergekit prints.

    Raises:
        ValueError: no reference.
    """
    model, adapter = value, None
    if isinstance(model, Mapping):
        adapter = model.get("lora")
        model = model.get("model", model)
        model, adapter = _with_revision(model), _with_revision(adapter)
    if not isinstance(model, str) or not model or not isinstance(adapter, str | None):
        raise ValueError(f"{where}: a model must be a path, or path+lora, not {value!r}")
    return f"{model}+{adapter}" if adapter else model


def _with_revision(value):
    if not isinstance(value, Mapping) or "path" not in value:
        return value
    path, revision = value["path"], value.get("revision")
    return f"{path}@{revision}" if revision and not os.path.exists(str(path)) else path  # folders have one revision


def split_reference(model: str) -> tuple[str, str | None]:
    """Return the paths of a model and its adapter; a path that exists, or a member of a pool, may have "+" itself."""
    path, _, adapter = model.rpartition("+")
    if not path or re.search(":(?!//)", model):
        return model, None
    if not is_store(adapter) and (store_path(model) if is_store(model) else pathlib.Path(model)).exists():
        return model, None
    return path, adapter


def local_notes(model: str) -> list[str]:
    """Return notes on the parts of a reference that are local paths, where the hub has models of their names."""
    path, adapter = split_reference(model)
    return local_note(path) if adapter is None else local_notes(path) + local_note(adapter)


def absolute_reference(model: str) -> str:
    """Return a reference that opens the same model from any directory; what is not a path stays as it is.

    A model of the hub has its commit, org/name@COMMIT, which is the same on every machine.
    """
    path, adapter = split_reference(model)
    if adapter is not None:
        found = cached_model(adapter)
        found = found if is_store(found) else pinned(found) or os.path.abspath(found)
        return f"{absolute_reference(path)}+{found}"
    path = cached_model(path)
    if is_store(path):
        return path
    if snapshot := pinned(path):
        return snapshot
    for place in (path, split_pool(path)[0], path.rpartition("@")[0]):  # a path, POOL:MEMBER, or PATH@TREE
        if place and os.path.exists(place):
            return f"{os.path.abspath(place)}{path[len(place) :]}"
    return path


def open_with_lora(model: str, open_model) -> Checkpoint | View:
    """Open a model by its reference; with an adapter the tensors that it changes are W + s B A.

    s = α / r, or α / √r for rank-stabilised adapters; B A [outputs, inputs] with B [outputs, r] and A [r, inputs],
    transposed for embeddings and for layers that are stored as [inputs, outputs], as GPT-2's are: what fits the weight
    decides, not the adapter's `fan_in_fan_out`, which PEFT sets for each layer anew. r of each matrix is that of A, α
    that of the adapter's `alpha_pattern` or its `lora_alpha`. Convolutions: as matrices [outputs, inputs · width ·
    height]. In float32 or wider. What the adapter saves whole takes the place of the model's tensor. Several adapters,
    "model+lora+lora", add.

    Raises:
        FileNotFoundError: no such model or adapter.
        ValueError: an adapter where a model is meant; an adapter that is not a LoRA, or has options that change this
            formula, which are named; matrices that fit no tensor of the model or several, lack their other half, or
            have other shapes or another rank than the config says; a square matrix that fits both ways; an adapter
            without tensors; several parts that would change the same tensor, all of them in one message.
        CheckpointError: as `open_checkpoint` and `read_json`.

    Hu et al., "LoRA: low-rank adaptation of large language models", 2021, arXiv 2106.09685; Kalajdzievski, "A rank
    stabilization scaling factor for fine-tuning with LoRA", 2023, arXiv 2312.03732.
    """
    path, adapter = split_reference(model)
    if adapter is None:
        return _open_whole(path, open_model)
    checkpoint = open_with_lora(path, open_model)
    folder, copies = any_path(cached_model(adapter)), None
    if isinstance(folder, StorePath):
        copies, sizes = Copies(), folder.sizes()
        copies.fill({file.relative_to(folder): file for file in sizes}, sizes)
        folder = copies.folder
    config, matrices = _config(folder), _open_adapter(folder)
    changes, notes = _changes(checkpoint, matrices, config, adapter)
    changed = {name: checkpoint.leaves[name] for name in changes}
    sizes = {**checkpoint.sizes, **matrices.sizes, folder / CONFIG: (folder / CONFIG).stat().st_size}

    def make(name, copies=copies):  # which live as long as the model
        return changes[name](checkpoint.read(name))

    return View(checkpoint, changed, make, sizes, tuple(notes))


def _open_whole(path, open_model):
    found = cached_model(path)
    if is_store(found):
        return open_model(found)
    folder = pathlib.Path(found)
    if folder.name in FILES:
        folder = path = folder.parent
    if os.path.lexists(folder / CONFIG) and not any(os.path.lexists(folder / name) for name in MODEL_FILES):
        of = _config(folder).get("base_model_name_or_path")
        which = f"; it was trained on {shown(of)}" if isinstance(of, str) and of else ""
        raise ValueError(f"{path} is an adapter: give MODEL+{path}, with the model that it belongs to{which}")
    return open_model(found)


def _config(folder):
    path = folder / CONFIG
    if not os.path.lexists(path):
        hint = not_cached(str(folder)) or how_to_complete(folder)
        raise FileNotFoundError(f"no {CONFIG} in {folder}: a LoRA must be a folder that PEFT wrote{hint}")
    config = read_json(path)
    if (kind := config.get("peft_type")) != "LORA":
        raise ValueError(
            f"{path}: peft_type must be 'LORA', not {kind!r:.200}: merge this adapter into its model first"
        )
    if wrong := [what for name, what in _PLAIN.items() if config.get(name)]:
        raise ValueError(f"{path}: {', '.join(wrong)}: not supported; merge this adapter into its model first")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and re.match("pissa|olora|corda|loftq|lora_ga", start, re.IGNORECASE):
        raise ValueError(
            f"{path}: init_lora_weights {start!r:.200} changes the model that the adapter belongs to, "
            "so adding it to the original is wrong: merge this adapter into its model first"
        )
    _check_numbers(config, path)
    return config


def _check_numbers(config, path):
    alphas, ranks = (config.get(name) or {} for name in ("alpha_pattern", "rank_pattern"))
    for name, patterns in (("alpha_pattern", alphas), ("rank_pattern", ranks)):
        if not isinstance(patterns, dict):
            raise ValueError(f"{path}: {name} must map names of modules to numbers, not {patterns!r:.200}")
        for module in patterns:
            pattern(module, f"{path}: a name in {name}")
    for alpha in [config.get("lora_alpha"), *alphas.values()]:
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < 1e9:
            raise ValueError(f"{path}: lora_alpha must be a number, not {alpha!r:.200}")
    for name in ("use_rslora", "fan_in_fan_out"):
        if not isinstance(config.get(name), bool | None):
            raise ValueError(f"{path}: {name} must be true or false, not {config[name]!r:.200}")


def _open_adapter(folder):
    for name in FILES:
        if os.path.lexists(folder / name):
            return open_checkpoint(folder / name)
    raise FileNotFoundError(f"{folder} holds neither {' nor '.join(FILES)}{how_to_complete(folder)}")


def _changes(checkpoint, matrices, config, adapter):
    """Return for each tensor that changes a function from its old array to the new one, and notes for the user."""
    lines, notes, changes = [], [], {}
    pairs, whole = sort_parts([*matrices.leaves, *matrices.aliases], lines)
    if not (pairs or whole or lines):
        lines.append("  - it holds no tensors")
    tied = {**checkpoint.aliases, **ties.left_out_head(checkpoint)}
    known = {**{leaf: leaf for leaf in checkpoint.leaves}, **tied}
    targets = find_tensors([*map(_weight, pairs), *whole.values()], known, str(checkpoint.path), lines)
    places = _places(checkpoint, matrices, pairs, whole, targets, lines)
    turned = _Turned(checkpoint, matrices, pairs, targets, bool(config.get("fan_in_fan_out")))
    for target, (modules, saved) in places.items():
        parts = [*modules, *saved]
        names = [alias for alias, kept in tied.items() if kept == target]
        if len(parts) > 1 and not (modules and saved and _carries(saved[0], whole, modules[0])):
            why = f", which the model ties to {listed(names)}: untie the model first" if names else ""
            lines.append(f"  = {' and '.join(map(shown, parts[:4]))} would all change {shown(target)}{why}")
            continue
        if saved and target in getattr(checkpoint, "changed", ()):
            lines.append(f"  = {shown(saved[0])} is saved whole, but another adapter changes {shown(target)} too")
        kinds = _matrices(modules[0], pairs, matrices, checkpoint.leaves[target], lines) if modules else None
        swap = bool(kinds) and turned(modules[0], kinds, lines)
        scale = _scale(config, modules[0], leaf_of(matrices, kinds[0]).shape[0], lines) if kinds else 0
        changes[target] = _changing(matrices, saved, kinds, scale, swap)
        if names:
            notes.append(
                f"{adapter}: {shown(parts[0])} changes both {shown(target)} and {listed(names)}, which are tied"
            )
    if lines:
        raise ValueError(f"{adapter} does not fit {checkpoint.path}:\n{bounded(lines)}")
    return changes, notes


def _carries(stored, whole, module):
    """Say whether a tensor is the weight below a module's matrices, and no copy that PEFT would use in its place."""
    return whole[stored] == _weight(module) and ".modules_to_save." not in stored


def _weight(module):
    return f"{module}.weight"


def _places(checkpoint, matrices, pairs, whole, targets, lines):
    """Return {tensor of the model: ([modules with matrices], [tensors saved whole])} of what the adapter changes."""
    places = collections.defaultdict(lambda: ([], []))
    for module in pairs:
        if target := targets.get(_weight(module)):
            places[target][0].append(module)
    for stored, name in whole.items():
        if target := targets.get(name):
            places[target][1].append(stored)
    for target, (modules, saved) in places.items():
        if any([_misfit(checkpoint, matrices, stored, target, lines) for stored in saved]):
            saved.clear()
        if len(modules) + len(saved) > 1:
            own = {_weight(module) for module in modules}
            saved[:] = _distinct(checkpoint.read(target), matrices, saved, [x for x in saved if whole[x] in own])
    return {target: parts for target, parts in places.items() if any(parts)}


def _misfit(checkpoint, matrices, stored, target, lines):
    leaf, its = leaf_of(matrices, stored), checkpoint.leaves[target]
    saved, own = leaf.shape, its.shape
    if kind_of(leaf) != kind_of(its):
        lines.append(f"  ~ {shown(stored)} has dtype {leaf.dtype} instead of {its.dtype}")
        return True
    if saved == own:
        return False
    hint = ""
    if saved and own and saved[1:] == own[1:] and saved[0] > own[0]:
        hint = f": the adapter was trained with {saved[0] - own[0]} more tokens; give the model as many rows first"
    lines.append(f"  ~ {shown(stored)} has shape {list(saved)} instead of {list(own)}{hint}")
    return True


def _distinct(array, matrices, saved, own):
    """Leave out what is saved as the model has it, and what is saved twice; of the modules' own tensors one is kept."""
    kept = own[:1]
    for stored in [stored for stored in saved if stored not in kept]:
        others = [array, *map(matrices.read, kept)]
        if not any(_equal(matrices.read(stored), other) for other in others):
            kept.append(stored)
    return kept


def _equal(a, b, rows=1 << 12):
    return all(np.array_equal(_wide(a[at : at + rows]), _wide(b[at : at + rows])) for at in range(0, len(a), rows))


def _matrices(module, pairs, matrices, weight, lines):
    """Return the names of A and B of a module, or None where one is missing or they do not fit its weight."""
    kinds = _EMBEDDING if any(kind in pairs[module] for kind in _EMBEDDING) else _LINEAR
    if set(pairs[module]) != set(kinds):
        lines.append(f"  - {shown(module)} has {', '.join(sorted(pairs[module]))}, not both of {', '.join(kinds)}")
        return None
    leaves = [weight, *(leaf_of(matrices, pairs[module][kind]) for kind in kinds)]
    if any(kind_of(leaf) != "float" for leaf in leaves):
        dtypes = ", ".join(str(leaf.dtype) for leaf in leaves)
        lines.append(f"  ~ {shown(module)}: weight, A and B must hold real floats, not {dtypes}")
        return None
    shape, a, b = (leaf.shape for leaf in leaves)
    linear = len(a) == len(b) == len(shape) == 2 and shape in [(a[1], b[0]), (b[0], a[1])][: 1 + (kinds == _LINEAR)]
    convolution = len(a) > 2 and kinds == _LINEAR and (b[:1] + a[1:], b[2:]) == (shape, (1,) * (len(a) - 2))
    if not (linear or convolution) or b[1] != a[0] or not a[0]:
        lines.append(f"  ~ {shown(module)}: B {list(b)} times A {list(a)} does not fit the weight {list(shape)}")
        return None
    return tuple(pairs[module][kind] for kind in kinds)


@dataclasses.dataclass(frozen=True)
class _Turned:
    """Say whether a module's weight is stored as [inputs, outputs], so that it takes the transpose of B A."""

    checkpoint: Checkpoint
    matrices: Checkpoint
    pairs: dict
    targets: dict
    flag: bool

    def __call__(self, module, names, lines):
        shape = self.checkpoint.leaves[self.targets[_weight(module)]].shape
        a, b = (leaf_of(self.matrices, name).shape for name in names)
        kind = module.rpartition(".")[2]
        if len(a) > 2 or a[1] != b[0]:
            return shape != b[:1] + a[1:]
        if names[0] == self.pairs[module].get("lora_embedding_A"):
            return True
        if not self.flag and kind not in _CONV1D:
            return False
        seen = self._seen(_CONV1D if kind in _CONV1D else (kind,))
        if len(seen) == 1 or (not seen and self.flag and kind in _CONV1D):
            return seen != {False}
        lines.append(
            f"  ? {shown(module)}: B A fits the square weight {list(shape)} in both directions, and nothing says "
            "whether it is stored as [inputs, outputs]: merge this adapter into its model first"
        )
        return False

    def _seen(self, kinds):
        """Return how the weights of modules of these names are stored, by those that are not square."""
        return {*self._of_adapter(kinds), *self._of_model(kinds)}

    def _of_adapter(self, kinds):
        for module, found in self.pairs.items():
            target = self.targets.get(_weight(module))
            if target and module.rpartition(".")[2] in kinds and set(found) == set(_LINEAR):
                a, b = (leaf_of(self.matrices, found[kind]).shape for kind in _LINEAR)
                if len(a) == len(b) == 2 and a[1] != b[0]:
                    yield self.checkpoint.leaves[target].shape == (a[1], b[0])

    def _of_model(self, kinds):
        widening = [kind for kind in _WIDENING if kind in kinds]
        for name, leaf in self.checkpoint.leaves.items():
            if any(name.endswith(f".{kind}.weight") for kind in widening) and len(leaf.shape) == 2:
                inputs, outputs = sorted(leaf.shape)
                yield from [leaf.shape == (inputs, outputs)] * (inputs != outputs)


def _changing(matrices, saved, names, scale, turned):
    """Return the function from a tensor of the model to what the adapter makes of it."""

    def change(weight):
        weight = _wide(matrices.read(saved[0]) if saved else weight)
        if names is None:
            return weight
        a, b = (_wide(matrices.read(name)) for name in names)
        product = b.reshape(-1, a.shape[0]) @ a.reshape(a.shape[0], -1)
        product *= product.dtype.type(scale)
        return weight + (product.T if turned else product).reshape(weight.shape)

    return change


def _scale(config, module, rank, lines):
    said = _of_pattern(config, "rank_pattern", module, config.get("r", rank))
    if said != rank:
        why = f"but {CONFIG} says {said!r:.200}: they do not belong together"
        lines.append(f"  ~ {shown(module)} has matrices of rank {rank}, {why}")
    alpha = _of_pattern(config, "alpha_pattern", module, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_pattern(config, name, module, default):
    patterns = config.get(name) or {}
    return next((patterns[x] for x in patterns if re.match(rf"(.*\.)?({x})$", module)), default)


def _wide(array):
    return tree.widen_leaves([array])[0] if tree.is_float(array) else np.asarray(array)
