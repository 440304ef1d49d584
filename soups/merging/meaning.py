"""Refuse sums of tensors that do not mean the same, however well their shapes agree, before anything is read."""

import functools
import re
from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np

from soups import tree
from soups.formats.tensors import leaf_of
from soups.merging.adapter_names import is_factor
from soups.merging.config import differing_configs, folder_of, read_config
from soups.merging.job import Job
from soups.merging.vocabulary import differing_vocabularies
from soups.names import MOST, bounded, count_of, shown

# what GPTQ, AWQ, bitsandbytes, compressed-tensors, ModelOpt, torchao, HQQ and others store beside, or as, their codes
_CODES = re.compile(
    r"(^|[._/:])(qweight|qzeros|g_idx|weight_(packed|compressed|bitmask|zero_point|g_idx|format|(\w+_)?scale(_inv|_2)?)|"
    r"((in|out)put|act(ivation)?|kv|[qkv]|pre_quant|(weight|input)_global)_scale(_ub)?|input_zero_point|w[ct]?scales?|"
    r"qscale_(act|weight)|(nested_)?(absmax|quant_map)|SCB|W_q|Qidxs(_\w+)?|trellis|B_24|scaled_fp8|comfy_quant|"
    r"packed_weight|_amax|qdata|quantized_weight_\w+)$"
    r"|_scale_inv$|\.quant_state\.|_packed_params|_qdata$|weight\._(data|scale|shift)$"
)
# whole numbers that are codes if this lies beside them, with their number of axes: Marlin, bitmasks, SpQR, VPTQ
_BESIDE = {"B": ("s", 2), "bitmask": ("compressed", 2), "dense_weights": ("col_vals", 1)}
_BESIDE |= {"indices": ("centroids.weight", 3)}
_LAST = re.compile(r"[^./:]*$")  # part of a name
_SETTINGS = ("quantization_config", "compression_config", "quantization", "quantize_config")
_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "qmodel.pt")  # beside config.json


def check_meaning(job: Job, checkpoints: Mapping) -> list[str]:
    """Return notes on how the models' configs differ where their sum keeps its meaning.

    Raises:
        ValueError: unless `job.insist`: everything that makes the sum meaningless, such as quantised models, different
            numbers of heads, labels, kinds of model or activations, factors of adapters, or, without a rule for the
            tokenizer, different vocabularies. Always: a config or tokenizer that cannot be read.
    """
    read = functools.cache(read_config)  # many members may lie in one folder
    configs = {model: read(folder_of(checkpoint)) for model, checkpoint in checkpoints.items()}
    lines = [_quantised(model, checkpoint, configs[model] or {}) for model, checkpoint in checkpoints.items()]
    lines += [_factors(model, checkpoint) for model, checkpoint in checkpoints.items()]
    wrong = list(filter(None, lines))
    differing, notes = differing_configs(configs)
    wrong += differing
    if job.tokenizer is None:
        lines, more = differing_vocabularies(checkpoints)
        wrong, notes = wrong + lines, notes + more
    if wrong and not job.insist:
        raise ValueError(
            "the tensors of these models mean different things, so their sum means nothing:\n"
            f"{bounded(wrong)}\nto merge them all the same: --insist, or insist: true in the recipe"
        )
    return [f"merged because of insist, although {line.strip(' ~')}" for line in wrong] + notes


def widest(dtypes: Iterable[np.dtype]) -> np.dtype:
    """Return the narrowest dtype that holds all of these dtypes' numbers exactly: float32 for bfloat16 and float16."""
    return functools.reduce(_promoted, dtypes)


def mixed_dtypes(outputs: Iterable, checkpoints: Mapping) -> list[str]:
    """Return a note on the tensors that have other dtypes in other models."""
    mixed = []
    for output in outputs:
        pairs = output.sources if output.recipe else ()
        found = {model: leaf.dtype for model, tensor in pairs if (leaf := leaf_of(checkpoints[model], tensor))}
        if len(set(found.values())) > 1:
            mixed.append((output, found))
    if not mixed:
        return []
    output, found = mixed[0]
    each = ", ".join(f"{dtype} in {model}" for model, dtype in list(found.items())[:MOST])
    return [
        f"of {count_of(len(mixed), 'tensor')} the models have different dtypes, such as {shown(output.name)}: {each}; "
        f"written as {output.dtype}"
    ]


def _promoted(one, other):
    if 1 in (one.itemsize, other.itemsize) and one.itemsize != other.itemsize:
        return max(one, other, key=lambda dtype: dtype.itemsize)  # each of 16 bits holds all of 8
    if one != other and one.name.startswith("float8") and other.name.startswith("float8"):
        return np.dtype(ml_dtypes.bfloat16)
    try:
        return np.promote_types(one, other)
    except TypeError:  # bfloat16 and float16
        return np.dtype(np.float32)


def _quantised(model, checkpoint, config):
    """Return a line that says how a model is quantised; none for floats of 8 bits without scales."""
    leaves, folder = checkpoint.leaves, folder_of(checkpoint)
    scales = _scales(leaves)
    codes = [name for name, leaf in leaves.items() if _is_code(name, leaf, leaves, scales)]
    reasons = [f"its config.json has {setting}" for setting in _settings(config)[:1]]
    reasons += [f"{name} lies in its folder" for name in _FILES if (folder / name).exists()][:1]
    reasons += [f"{len(codes)} of its tensors are codes or their scales, such as {shown(codes[0])}"] if codes else []
    return f"  ~ {model} is quantised: {'; '.join(reasons)}: dequantise it first" if reasons else ""


def _factors(model, checkpoint):
    """Return a line that says that a model is an adapter; none if it is none."""
    factor = next(filter(is_factor, checkpoint.leaves), None)
    return factor and (
        f"  ~ {model} holds factors of an adapter, such as {shown(factor)}, whose mean is not that of what they add: "
        "give MODEL+DIR with the folder that PEFT wrote, or merge each adapter into its model first"
    )


def _settings(config):
    found = []
    for name, value in config.items():
        if name in _SETTINGS and value:
            method = value.get("quant_method") if isinstance(value, dict) else None
            found.append(f"a {name}" + (f" of {shown(str(method))}" if method else ""))
        elif isinstance(value, dict):
            found += _settings(value)
    return found


def _is_code(name, leaf, leaves, scales):
    if not name.endswith((".weight", ".bias")) and _CODES.search(name):  # these two are most names
        return True
    if name.endswith((".scales", ".zeros")) and f"{name.rpartition('.')[0]}.weight" not in leaves:
        return True  # of codes that are not there
    start = _LAST.search(name).start()
    other, axes = _BESIDE.get(name[start:], ("", 0))
    beside_them = f"{name[:start]}{other}" in leaves and len(leaf.shape) == axes
    if beside_them and (name.endswith("indices") or not tree.is_float(leaf)):  # VPTQ may keep its as floats
        return True
    if leaf.dtype == bool or (tree.is_float(leaf) and leaf.dtype.itemsize > 1):
        return False
    beside = scales.get(name, set()) | scales.get(name[: max(start - 1, 0)], set())
    # floats of 8 bits beside others of the same dtype were cast, all of them
    if leaf.dtype.itemsize == 1 and beside - {leaf.dtype}:
        return True
    # whole numbers; masks are none
    named = re.search(r"(weight|kernel|_blocks)$", name[start:])
    return not tree.is_float(leaf) and len(leaf.shape) > 1 and named is not None


def _scales(leaves):
    """Return the dtypes of what is called a scale, by the module that it is in and by the tensor that it is of."""
    found = {}
    for name, leaf in leaves.items():
        start = _LAST.search(name).start()
        if scale := re.search("scale|amax", name[start:]):
            # at the top there is no module
            for place in {name[: max(start - 1, 0)], name[: start + scale.start()].rstrip("._:/")} - {""}:
                found.setdefault(place, set()).add(leaf.dtype)
    return found
