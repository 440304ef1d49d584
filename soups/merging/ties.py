"""Say which tensors of a model are one by its class, as heads and embeddings of Hugging Face's models are."""

import pathlib
import re
from collections.abc import Mapping

from soups.formats import CheckpointError, Tensors
from soups.formats.text import read_json

_EMBEDDING = re.compile(r"(?:.*\.)?(?:embed_tokens|wte|shared|word_embeddings|embed_in)\.weight")
_HEAD = re.compile(
    r"(?:.*\.)?(?:lm_head|lm_head\.decoder|generator_lm_head|predictions\.decoder|embed_out|proj_out"
    r"|(?:encoder|decoder)\.embed_tokens)\.weight"
)
_BIAS = re.compile(r"(?P<head>.*\b(?:lm_head|predictions))\.(?:decoder\.)?bias")
_TIE = "tie_word_embeddings"
HEADS = ("lm_head.weight", "language_model.lm_head.weight", "embed_out.weight")


def by_class(one: str, other: str) -> bool:
    """Say whether a model's class takes two tensors for one, so that its files need to hold only one of them."""
    if any(_HEAD.fullmatch(a) and _EMBEDDING.fullmatch(b) for a, b in ((one, other), (other, one))):
        return True
    biases = [_BIAS.fullmatch(name) for name in (one, other)]
    return all(biases) and biases[0]["head"] == biases[1]["head"]


def of_config(checkpoint: Tensors) -> Mapping[str, str]:
    """Return {head: embedding} of a Hugging Face model whose files hold no head, and which has none of its own.

    Its library leaves such a head out without a note, and `tie_word_embeddings` out of config.json where it is true.
    """
    embeddings = [name for name in checkpoint.leaves if _EMBEDDING.fullmatch(name)]
    there = {*checkpoint.leaves, *checkpoint.aliases}
    config = _config(checkpoint)
    if len(embeddings) != 1 or any(head in there for head in HEADS) or not config or _said(config) is False:
        return {}
    return {HEADS[0]: embeddings[0]}


def denied(checkpoint: Tensors) -> bool:
    """Say whether config.json beside a checkpoint says that head and embedding are two tensors."""
    return _said(_config(checkpoint)) is False


def _said(config: Mapping) -> bool | None:
    parts = [config, *(part for part in map(config.get, ("text_config", "llm_config")) if isinstance(part, dict))]
    return next((part[_TIE] for part in parts if isinstance(part.get(_TIE), bool)), None)


def _config(checkpoint):
    folder = pathlib.Path(checkpoint.path)
    file = (folder if folder.is_dir() else folder.parent) / "config.json"
    try:
        return read_json(file) if file.is_file() else {}
    except CheckpointError:  # said where the config is used
        return {}
