"""Tokenize the texts of a JSON file with open_clip or transformers; for the interpreter that they are installed in.

    theirs_clip_tokenizer.py VARIANT VOCABULARY TEXTS.json OUT.npy

`VOCABULARY`: OpenAI's file for open_clip, a folder of Hugging Face for the others; "show" prints where open_clip's is.
The ids after the end of a text are zeros in OUT, whatever the variant pads with; a text that it refuses is a row of −1.
"""

import importlib.metadata
import importlib.util
import json
import sys

import numpy as np

LENGTH = 77


def open_clip_file(name):
    """Return a file of the installed open_clip; its package needs more libraries than its tokenizer does."""
    files = importlib.metadata.files("open_clip_torch")
    return next(file for file in files if file.name == name and file.parent.name == "open_clip").locate()


def open_clip(vocabulary):
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", open_clip_file("tokenizer.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tokenizer = module.SimpleTokenizer(vocabulary)
    return lambda text: tokenizer([text], context_length=LENGTH).numpy()[0]


def transformers_class(name):
    def make(vocabulary):
        import transformers

        tokenizer = getattr(transformers, name).from_pretrained(vocabulary)

        def tokenize(text):
            made = tokenizer(text, max_length=LENGTH, padding="max_length", truncation=True)
            return np.asarray(made["input_ids"]) * np.asarray(made["attention_mask"])

        return tokenize

    return make


def without_ftfy(make):
    def hidden(vocabulary):
        sys.modules["ftfy"] = None
        return make(vocabulary)

    return hidden


VARIANTS = {
    "open_clip": open_clip,
    "slow": transformers_class("CLIPTokenizer"),
    "slow without ftfy": without_ftfy(transformers_class("CLIPTokenizer")),
    "fast": transformers_class("CLIPTokenizerFast"),
    "version 5": transformers_class("CLIPTokenizer"),
}


def rows(tokenize, texts):
    for text in texts:
        try:
            yield tokenize(text)
        except (TypeError, ValueError):  # a lone surrogate has no UTF-8
            yield np.full(LENGTH, -1)


if __name__ == "__main__":
    if sys.argv[1:] == ["show"]:
        print(open_clip_file("bpe_simple_vocab_16e6.txt.gz"))
    else:
        variant, vocabulary, texts, out = sys.argv[1:]
        with open(texts, encoding="utf-8") as file:
            np.save(out, np.stack([*rows(VARIANTS[variant](vocabulary), json.load(file))]).astype(np.int32))
