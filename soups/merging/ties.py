"""Say which tensors of a model are one by its class, as heads and embeddings of Hugging Face's models are."""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

from soups.formats import CheckpointError, Tensors
from soups.formats.tensors import leaf_of, listed
from soups.formats.view import View
from soups.merging.config import folder_of, read_config
from soups.names import shown

_TIE = "tie_word_embeddings"
_EMBEDDINGS = ("embed_tokens", "wte", "shared", "word_embeddings", "embed_in")
_HEADS = (
    *("lm_head", "lm_head.decoder", "generator_lm_head", "predictions.decoder", "embed_out", "proj_out"),
    *("encoder.embed_tokens", "decoder.embed_tokens"),
)
_BIAS = re.compile(r"(?P<head>.*\b(?:lm_head|predictions))\.(?:decoder\.)?bias")
_ROWS = 1 << 12  # that are compared at a time


def by_class(one: str, other: str) -> bool:
    """Say whether a model's class takes two tensors for one, so that its files need to hold only one of them."""
    if any(_is_head(a) and _is_embedding(b) for a, b in ((one, other), (other, one))):
        return True
    biases = [_BIAS.fullmatch(name) for name in (one, other)]
    return all(biases) and biases[0]["head"] == biases[1]["head"]


def is_stated(checkpoint: Tensors, alias: str, kept: str) -> bool:
    """Say whether the file itself says that two tensors are tied; in torch's they may share elements by chance."""
    return checkpoint.leaves[kept].file.suffix == ".safetensors" or checkpoint.metadata.get(alias) == kept


def left_out_head(checkpoint: Tensors) -> dict[str, str]:
    """Return {head: embedding} where a folder with a config holds no head, unless the config says they are two."""
    embeddings = [name for name in checkpoint.leaves if _is_embedding(name)]
    if len(embeddings) != 1 or any(map(_is_head, _names(checkpoint))) or _denies(checkpoint) is not False:
        return {}
    return {"lm_head.weight": embeddings[0]}


def written_out(checkpoint: Tensors, also: Callable[[str], bool] = lambda alias: False) -> Tensors:
    """Return a model with the ties of its class alone; what else shares its elements in a torch file is not tied.

    `also`: says of which names the ties are no more, as where layers are cut.
    """
    denied = _denies(checkpoint) if checkpoint.aliases else None
    own = {
        alias: dataclasses.replace(checkpoint.leaves[kept], name=alias)
        for alias, kept in checkpoint.aliases.items()
        if also(alias) or not (is_stated(checkpoint, alias, kept) or (by_class(alias, kept) and not denied))
    }
    if not own:
        return checkpoint
    notes = [f"{checkpoint.path}: tied in the file, but written separately: {listed(own, 5)}"]
    return View(checkpoint, own, checkpoint.read, checkpoint.sizes, notes)


def share_heads(models: Mapping[str, Tensors]) -> dict[str, Tensors]:
    """Return the models, of which those without a head that others have take their embedding for it.

    They do if their config does not deny it; without a config, if head and embedding are the same in all others, which
    are then read and compared.
    """
    names = {model: _names(checkpoint) for model, checkpoint in models.items()}
    partly = set().union(*names.values()) - set.intersection(*names.values())
    result = dict(models)
    for head in sorted(filter(_is_head, partly)):
        having = [checkpoint for model, checkpoint in models.items() if head in names[model]]
        for model in [model for model in models if head not in names[model]]:
            found = [name for name in result[model].leaves if by_class(head, name) and _is_embedding(name)]
            denied = _denies(models[model])
            if len(found) == 1 and not denied and (denied is False or all(same(x, head, found[0]) for x in having)):
                notes = [f"{model} has no {shown(head)}: {shown(found[0])} is used for it"]
                checkpoint = result[model]
                result[model] = View(checkpoint, {}, checkpoint.read, checkpoint.sizes, notes, {head: found[0]})
    return result


def same(checkpoint: Tensors, one: str, other: str) -> bool:
    """Say whether two tensors of a model hold the same bits; they are read unless they are tied."""
    if checkpoint.aliases.get(one, one) == checkpoint.aliases.get(other, other):
        return True
    leaves = [leaf_of(checkpoint, name) for name in (one, other)]
    if None in leaves or len({(leaf.shape, leaf.dtype) for leaf in leaves}) > 1:
        return False
    a, b = (np.asarray(checkpoint.read(name)) for name in (one, other))
    parts = range(0, len(a), _ROWS) if a.ndim else ()
    return all(a[at : at + _ROWS].tobytes() == b[at : at + _ROWS].tobytes() for at in parts) and (a.ndim > 0 or a == b)


def _is_embedding(name, ends=tuple(f".{module}.weight" for module in _EMBEDDINGS)):
    return f".{name}".endswith(ends)


def _is_head(name, ends=tuple(f".{module}.weight" for module in _HEADS)):
    return f".{name}".endswith(ends)


def _names(checkpoint):
    return {*checkpoint.leaves, *checkpoint.aliases}


def _denies(checkpoint):
    """Say whether config.json says that head and embedding are two tensors; None without a config."""
    try:
        config = read_config(folder_of(checkpoint))
    except CheckpointError:  # said where the config is used
        config = None
    if config is None:
        return None
    parts = [config, *(part for part in map(config.get, ("text_config", "llm_config")) if isinstance(part, dict))]
    # Hugging Face leaves out what is so by default
    return next((not part[_TIE] for part in parts if isinstance(part.get(_TIE), bool)), False)
