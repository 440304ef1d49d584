"""Read the vocabularies of SentencePiece, spiece.model and spm.model, without its library."""

import struct
from typing import NamedTuple

from soups.formats.protobuf import fields
from soups.lazy import extra

with extra("text"):
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

UNIGRAM, CONTROL, USER_DEFINED = 1, 3, 4
BYTE_FALLBACK, MODEL_TYPE, UNK_ID = 35, 3, 40  # fields of trainer_spec
CHARSMAP, DUMMY_PREFIX, REMOVE_SPACES = 2, 3, 4  # fields of normalizer_spec
EXTRA_IDS = 100  # the tokens that T5 puts in the place of what it shall write


class Pieces(NamedTuple):
    """Hold a vocabulary of SentencePiece: pieces with scores and types, and what is done to texts before."""

    pieces: list[tuple[str, float]]
    types: list[int]
    unknown: int
    byte_fallback: bool
    charsmap: bytes
    dummy_prefix: bool
    remove_spaces: bool


def read_pieces(content: bytes) -> Pieces:
    """Return what a model of SentencePiece holds; a ValueError for damage, and for one that is not Unigram's."""
    pieces, types, trainer, normalizer = [], [], {}, {}
    for number, value in fields(content):
        if number == 1:
            piece = dict(fields(value))
            pieces.append((piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0]))
            types.append(piece.get(3, 1))
        elif number == 2:
            trainer = dict(fields(value))
        elif number == 3:
            normalizer = dict(fields(value))
    if not pieces:
        raise ValueError("it holds no pieces")
    if trainer.get(MODEL_TYPE, UNIGRAM) != UNIGRAM:
        raise ValueError("only its Unigram vocabularies are read: give tokenizer.json")
    options = (bool(normalizer.get(DUMMY_PREFIX, 1)), bool(normalizer.get(REMOVE_SPACES, 1)))
    fallback, charsmap = bool(trainer.get(BYTE_FALLBACK, 0)), normalizer.get(CHARSMAP, b"")
    return Pieces(pieces, types, trainer.get(UNK_ID, 0), fallback, charsmap, *options)


def unigram_tokenizer(content: bytes) -> Tokenizer:
    """Return the tokenizer of T5, or of DeBERTa-v3, from its model of SentencePiece.

    A vocabulary with [CLS] is DeBERTa's, which gets [MASK]; one with </s> is T5's, which gets <extra_id_99> to
    <extra_id_0>. A ValueError for others, and as `read_pieces`.
    """
    model = read_pieces(content)
    made = Tokenizer(Unigram(model.pieces, model.unknown, model.byte_fallback))
    steps = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_spaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    made.normalizer = normalizers.Sequence(steps)
    scheme = "always" if model.dummy_prefix else "never"
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    numbers = {piece: number for number, (piece, _) in enumerate(model.pieces)}
    named = [piece for (piece, _), kind in zip(model.pieces, model.types, strict=True) if kind == CONTROL]
    made.add_special_tokens([model.pieces[model.unknown][0], *named])
    own = [piece for (piece, _), kind in zip(model.pieces, model.types, strict=True) if kind == USER_DEFINED]
    made.add_tokens([AddedToken(piece, normalized=False) for piece in own])
    if {"[CLS]", "[SEP]"} <= numbers.keys():
        made.add_special_tokens(["[MASK]"])
        pair = "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
        ends = [("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])]
        made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", pair, ends)
    elif "</s>" in numbers:
        made.add_special_tokens([f"<extra_id_{index}>" for index in reversed(range(EXTRA_IDS))])
        ends = [("</s>", numbers["</s>"])]
        made.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", ends)
    else:
        raise ValueError("it has neither [CLS] and [SEP] nor </s>: give tokenizer.json")
    return made
