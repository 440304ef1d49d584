"""Ask a masked language model: templates that turn texts into prompts with a mask, and words that stand for classes.

Gao et al., "Making pre-trained language models better few-shot learners", 2021, arXiv 2012.15723.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from soups.data.lengths import round_up
from soups.lazy import extra
from soups.models.architectures import Architecture
from soups.models.text_encoder import MaskedLanguageHead, TextEncoder
from soups.models.text_tokenizer import Encoded, TextTokenizer
from soups.names import count_of, few, refuse
from soups.tree import Tree

with extra("text"):
    from tokenizers import Tokenizer

_PARTS = re.compile(r"( ?\{[^{}]*\})")
_TEXTS = ("first", "second")


class Prompt(NamedTuple):
    """State how a task is asked.

    `template`: of "{first}", "{second}" for pairs, "{mask}" once, and words between them. Before a "?" the first text
    loses its last character; the second begins with a small letter; a blank before a text belongs to its first word.

    `words`: the word that stands for each class, by the class's name.
    """

    template: str
    words: Mapping[str, str]


_SENTIMENT = Prompt("{first} It was{mask}.", {"0": "terrible", "1": "great"})
_FOLLOWS = {"entailment": "Yes", "not_entailment": "No"}
_NLI = Prompt("{first}?{mask}, {second}", {"contradiction": "No", "entailment": "Yes", "neutral": "Maybe"})
_SAME = Prompt("{first}{mask}, {second}", {"0": "No", "1": "Yes"})
_TOPICS = ("Description", "Entity", "Expression", "Human", "Location", "Number")
#: how the tasks of LM-BFF are asked, by the names of their folders in small letters
PROMPTS = {
    **dict.fromkeys(("sst-2", "cr", "mr", "mpqa"), _SENTIMENT),
    "subj": Prompt("{first} This is{mask}.", {"0": "subjective", "1": "objective"}),
    "cola": Prompt("{first} This is{mask}.", {"0": "incorrect", "1": "correct"}),
    "trec": Prompt("{mask}: {first}", {str(number): word for number, word in enumerate(_TOPICS)}),
    **dict.fromkeys(("mnli", "snli"), _NLI),
    **dict.fromkeys(("qnli", "rte"), _NLI._replace(words=_FOLLOWS)),
    **dict.fromkeys(("mrpc", "qqp"), _SAME),
}
#: the most tokens of the first text, where LM-BFF has a limit
LIMITS = dict.fromkeys(("mr", "cr", "mpqa", "subj", "trec", "mnli"), 110) | {"rte": 240}


@dataclasses.dataclass(frozen=True, eq=False)
class PromptTokenizer:
    """Turn texts into prompts: `ask(texts)`, or `ask(texts, second)` for a template of pairs.

        tokenize = text_tokenizer("roberta-base", "roberta-base-mlm", length=256)
        ask = PromptTokenizer(tokenize, PROMPTS["rte"], limit=LIMITS["rte"])
        inputs = ask(premises, hypotheses)                       # {"tokens", "mask", "segments"}

    Rows are the start token, the template with the texts in it, each part tokenized alone, and the end token. Of a row
    that is longer than the tokenizer allows the end is kept, whatever stands at its beginning.

    Attributes:
        tokenize: the tokenizer of the network, whose length is the most tokens of a row.
        prompt: the template and the words.
        limit: the most tokens of the first text, whose beginning is kept.

    Raises:
        ValueError: a template without "{mask}" or "{first}", with one of them twice or another field; when called:
            second texts for a template without them, or none for one with them; a row whose mask was cut off.
    """

    tokenize: TextTokenizer
    prompt: Prompt
    limit: int | None = None

    def __post_init__(self):
        fields = [part.strip(" {}") for part in self._parts if "{" in part]
        known = ["mask", *_TEXTS]
        wrong = [f"{{{name}}} is not a field" for name in fields if name not in known]
        wrong += [f"{{{name}}} is there twice" for name in known if fields.count(name) > 1]
        wrong += [f"{{{name}}} is missing" for name in known[:2] if name not in fields]
        refuse(f"the template {self.prompt.template!r} must have the fields {{first}}, {{mask}}, {{second}}", wrong)

    @property
    def _parts(self):
        return [part for part in _PARTS.split(self.prompt.template) if part]

    def __call__(self, texts: Sequence[str], second: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return {"tokens", "mask", "segments"}, each [N, T], as `TextTokenizer` does; segments are 0."""
        return self.encode(texts, second).inputs

    def encode(self, texts: Sequence[str], second: Sequence[str] | None = None) -> Encoded:
        """Return the inputs with the number of rows that were cut."""
        if ("{second}" in self.prompt.template) is not (second is not None):
            wanted, given = ("pairs", "texts alone") if second is None else ("texts alone", "pairs")
            raise ValueError(f"the template {self.prompt.template!r} is for {wanted}, but the task has {given}")
        special, length = self.tokenize.special, self.tokenize.length
        pairs = [(one, None) for one in texts] if second is None else list(zip(texts, second, strict=True))
        whole = [[special["start"], *self._row(*pair), special["end"]] for pair in pairs]
        rows = [row[-length:] for row in whole]
        if lost := [index for index, row in enumerate(rows) if row.count(special["mask"]) != 1]:
            raise ValueError(
                f"{count_of(len(lost), 'prompt')} of {len(rows)}, the first is number {lost[0]}, must have one mask: "
                f"of more than {length} tokens the beginning is cut off, and a text must not hold the mask's token"
            )
        longest = max(map(len, rows))
        shape = (len(rows), min(round_up(longest), length))
        tokens = np.full(shape, special["padding"], np.int32)
        mask = np.arange(shape[1])[None] < np.array([len(row) for row in rows])[:, None]
        tokens[mask] = np.concatenate(rows)
        cut = sum(len(row) > length for row in whole)
        return Encoded({"tokens": tokens, "mask": mask, "segments": np.zeros(shape, np.int32)}, cut)

    def _row(self, first: str, second: str | None) -> list[int]:
        found, parts = [], self._parts
        for part, after in zip(parts, [*parts[1:], ""], strict=True):
            name, blank = part.strip(" {}") if "{" in part else "", " " if part.startswith(" ") else ""
            if name == "mask":
                found.append(self.tokenize.special["mask"])
            elif name == "first":
                found += self._ids(blank + (first[:-1] if after.startswith("?") else first))[: self.limit]
            elif name == "second":
                found += self._ids(blank + second[:1].lower() + second[1:])
            else:
                found += self._ids(part)
        return found

    def _ids(self, text: str) -> list[int]:
        return self._uncut.encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def _uncut(self):
        copy = Tokenizer.from_str(self.tokenize.tokenizer.to_str())
        copy.no_truncation()
        return copy

    def word_ids(self, class_names: Sequence[str]) -> list[int]:
        """Return the token of the word of each class, with a blank before it.

        Raises:
            ValueError: classes without a word; words that are not one token, or unknown; two classes with one token.
        """
        words = self.prompt.words
        if missing := [name for name in class_names if name not in words]:
            raise ValueError(f"the prompt has no words for the classes {few(missing)}, only for {few(words)}")
        found = {name: self._ids(f" {words[name]}") for name in class_names}
        unknown = self.tokenize.special["unknown"]
        refuse(
            "each class needs a word that is one token",
            [
                f"{words[name]!r} of class {name!r} is {'unknown' if ids == [unknown] else f'{len(ids)} tokens'}"
                for name, ids in found.items()
                if len(ids) != 1 or ids == [unknown]
            ],
        )
        tokens = [ids[0] for ids in found.values()]
        if len(set(tokens)) < len(tokens):
            raise ValueError(f"two classes have the same word: {few(words[name] for name in class_names)}")
        return tokens


# --- Networks ---------------------------------------------------------------------------------------------------------


class AtMask(nn.Module):
    """Return what a masked language model makes of the mask: the features whose products with words are their logits.

    `encoder`: the model without its head, all tokens of it; `mask_token`: the number of the mask. The names of the
    weights are those of the model with its head, of which "mlm/bias" is not used; "head" is linear: see `word_head`.
    """

    encoder: TextEncoder
    mask_token: int
    num_classes: int | None = None

    def setup(self):
        nn.share_scope(self, self.encoder)
        self.mlm = MaskedLanguageHead(self.encoder.activation, self.encoder.norm_epsilon)
        if self.num_classes is not None:
            self.head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)

    def __call__(self, inputs: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
        """Map prompts to features [B, D] at the first mask, or with classes to logits [B, num_classes]."""
        x_BxTxD = self.encoder(inputs, train)
        place_B = jnp.argmax(inputs["tokens"] == self.mask_token, axis=1)
        x_BxD = self.mlm(jnp.take_along_axis(x_BxTxD, place_B[:, None, None], axis=1), None)[:, 0]
        return x_BxD if self.num_classes is None else self.head(x_BxD)


def at_mask(arch: Architecture, tokenize: TextTokenizer) -> Architecture:
    """Return an architecture that ends at the mask, from one of a masked language model, such as "roberta-base-mlm".

    A ValueError for one without the head of pre-training.
    """
    if not getattr(arch.features, "mlm", False):
        raise ValueError(
            f"{arch.name} has no head for masked words: take the architecture {arch.name}-mlm, if it is one"
        )
    encoder = arch.features.clone(mlm=False, pool_type=None, num_classes=None)
    return dataclasses.replace(arch, features=AtMask(encoder, tokenize.special["mask"]))


def word_head(params: Tree, words: Sequence[int]) -> Tree:
    """Return the linear head whose logits are the scores of these tokens at the mask.

    Args:
        params: of the masked language model.
        words: the token of each class, as `PromptTokenizer.word_ids` gives them.
    """
    rows = np.asarray(words)
    kernel = np.asarray(params["token_embedding"]["embedding"])[rows].T
    return {"kernel": np.ascontiguousarray(kernel), "bias": np.asarray(params["mlm"]["bias"])[rows]}
