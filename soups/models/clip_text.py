"""Turn tokens into the features that CLIP or ALIGN compares with those of images."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
from numpy.typing import ArrayLike

from soups.files import PathLike
from soups.formats.tensors import nested
from soups.models.architectures import Architecture, architecture
from soups.models.tables.configs import config_problems
from soups.models.tables.layouts import TEXT_LAYOUTS
from soups.models.tables.reading import convert, find_layout, mismatches, open_tensors
from soups.models.text_encoder import TextEncoder
from soups.models.text_tower import TextTower as TextTower
from soups.tree import Tree


def text_tower(arch: str | Architecture) -> TextTower | TextEncoder:
    """Return the text tower of an architecture; a ValueError where it has none."""
    wanted = architecture(arch)
    tower = wanted.text
    if tower is None:
        raise ValueError(f"architecture {wanted.name!r} has no text tower: only those of CLIP and ALIGN have one")
    return tower


def text_features(params: Tree, tokens: ArrayLike | Mapping[str, ArrayLike], *, arch: str | Architecture) -> jax.Array:
    """Return features [B, D] in float32, not normalised; `params`: of `import_text_tower`.

    `tokens`: of CLIP integers [B, T], T <= 77, of ALIGN {"tokens", "mask"}, as `text_tokenizer` gives them.
    """
    vocabulary_size = params["token_embedding"]["embedding"].shape[0]
    return text_tower(arch).clone(vocabulary_size=vocabulary_size).apply({"params": params}, tokens)


def import_text_tower(path: PathLike, arch: str | Architecture) -> Tree:
    """Read the weights of the text tower of a CLIP or ALIGN with OpenAI's, open_clip's or Hugging Face's names.

    Files, laziness and errors are as in `soups.models.import_weights`; the image tower is left out. The vocabulary's
    size is the file's.
    """
    wanted, tower = architecture(arch), text_tower(arch)
    tensors = open_tensors(path)
    layout = find_layout(tensors, TEXT_LAYOUTS, wanted, path)
    vocabulary_size = tensors[layout.sign].shape[0] if tensors[layout.sign].ndim else 0
    table = layout.table(dataclasses.replace(wanted, text=tower.clone(vocabulary_size=vocabulary_size)))
    if problems := mismatches(tensors, table, layout.left_out) + config_problems(path, wanted):
        raise ValueError(f"{path} does not hold the text tower of {wanted.name}:\n" + "\n".join(problems))
    return nested(convert(tensors, table))


def check_vocabulary(tokenizer: Callable, where: PathLike, params: Tree, weights: PathLike) -> None:
    """Raise a ValueError if a tokenizer of CLIP has other tokens than the rows that its text tower has for them."""
    # the end token has the last number; a row that is not there would be read as the last one without a word
    tokens, rows = int(tokenizer([""]).max()) + 1, params["token_embedding"]["embedding"].shape[0]
    if tokens != rows:
        raise ValueError(f"the vocabulary in {where} has {tokens} tokens, but {weights} has {rows}")


def import_temperature(path: PathLike) -> float:
    """Return the temperature of a CLIP or ALIGN file: cosines are divided by it before a softmax.

    ALIGN's files hold it, those of CLIP its negative logarithm, `logit_scale`. A ValueError for files without either.
    """
    tensors = open_tensors(path)
    for name in ("temperature", "logit_scale", "model.logit_scale"):
        if name in tensors and tensors[name].size == 1:
            number = float(tensors[name].reshape(()))
            return number if name == "temperature" else math.exp(-number)
    raise ValueError(f"{path} has no temperature: a single number named temperature or logit_scale is needed")
