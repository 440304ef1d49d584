"""Compare the tokens of tokenizers of encoders and decoders with those of transformers, text by text.

    python scripts/benchmarks/parity_text_tokenizer.py [--peers PYTHON] [--out FILE] [--record FILE]

10,000 texts in nine groups (`peers/clip_texts.py`), alone and in pairs, cut at their begin and at their end. The word
pieces are those of all-MiniLM-L6-v2, from its package, as tokenizer.json and as vocab.txt, in small letters and not.
The byte pairs are trained on these texts, as vocab.json with merges.txt, of RoBERTa's kind and of GPT-2's; so are the
pieces of SentencePiece, as T5 and DeBERTa have them, in spiece.model and spm.model, which are compared with that
library itself, and in the tokenizer.json that transformers make of them. The byte pairs of SmolLM2 come out of the GGUF
file of its package, if it is installed, against its tokenizer.json, which cuts off each digit. A text is equal if
tokens, mask and segments are. To SentencePiece the names of special tokens are text, to transformers and here they are
tokens: these 100 texts are left out there. Texts with a lone surrogate, which has no UTF-8, are left out. `--forms`
chooses some forms, and `--record` writes small cases for the tests instead.
"""

import argparse
import base64
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile

import _common
import numpy as np
import parity_encoders
import parity_models
from peers import clip_texts
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from soups.formats import gguf
from soups.models.pretrained import SMOLLM2, minilm_folder, smollm2_file
from soups.models.text_tokenizer import text_tokenizer

THEIR_PIECES = pathlib.Path(__file__).parent / "peers" / "theirs_sentencepiece.py"
THEIRS = pathlib.Path(__file__).parent / "peers" / "theirs_text_tokenizer.py"
SIDES = {"begin": "right", "end": "left"}
# texts or pairs, length, truncation, and what stays
SETTINGS = {
    "texts": (False, 64, "longest_first", "begin"),
    "texts, their ends": (False, 24, "longest_first", "end"),
    "pairs": (True, 48, "longest_first", "begin"),
    "pairs, their ends": (True, 48, "longest_first", "end"),
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# in code points: a no-break space, a ligature, a wide letter
RULES = ("00A0\t0020", "FB01\t0066 0069", "FF21\t0041", "FF42\t0062")
OF_DECODERS = ["<|endoftext|>", "<|im_start|>"]
OF_ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def main():
    """Tokenize everything with both, print the table, write the record; fail if something differs."""
    options = _options()
    python = options.peers or parity_models.install(pathlib.Path(options.venv).absolute(), parity_encoders.REQUIREMENTS)
    with tempfile.TemporaryDirectory(prefix="tokens_") as folder:
        folder = pathlib.Path(folder)
        if options.record:
            return record_cases(pathlib.Path(options.record), python, folder, options.forms)
        texts = some_texts()
        pairs = byte_pairs(texts, 3000)
        forms = written(folder, _word_pieces_of(minilm_folder() / "tokenizer.json"), *pairs)
        forms = {"tokenizer.json": ("BertTokenizer", minilm_folder())} | forms | unigrams(folder, texts, python)
        if importlib.util.find_spec(SMOLLM2):
            del forms["digits"]
            forms["GGUF"] = (*digits(folder / "smollm2", *in_gguf(smollm2_file())), smollm2_file())
        forms = {name: forms[name] for name in options.forms or forms}
        rows, version = compare(texts, forms, python, folder)
    columns = ["vocabulary", "what", "texts", "equal"]
    _common.table("texts with the same tokens", columns, [[row[one] for one in columns] for row in rows])
    record = {"benchmark": "parity_text_tokenizer", "what": __doc__.splitlines()[0], "rows": rows}
    _common.write(options.out, record | {"peers": {"transformers": version}, "machine": _common.machine()})
    if failed := [f"{row['vocabulary']} ({row['what']})" for row in rows if row["equal"] != row["texts"]]:
        sys.exit(f"not equal: {', '.join(failed)}")


def compare(texts, forms, python, folder):
    """Return a row for each form of a vocabulary and each setting, and the peer's version.

    A form is a kind of tokenizer, the peer's folder, and where ours differs its path.
    """
    keys = [(form, what) for form, (kind, *_) in forms.items() for what in settings_of(kind)]
    texts_of = {form: texts[:-100] if kind == "SentencePiece" else texts for form, (kind, *_) in forms.items()}
    theirs, version = ask(
        [job(*forms[form][:2], texts_of[form], *SETTINGS[what]) for form, what in keys], python, folder
    )
    rows = []
    for (form, what), expected in zip(keys, theirs, strict=True):
        _, length, truncation, keep = SETTINGS[what]
        given = job(*forms[form][:2], texts_of[form], *SETTINGS[what])
        tokenize = text_tokenizer(forms[form][-1], length=length, truncation=truncation, keep=keep)
        found, width = tokenize.encode(given["texts"], given["second"]).inputs, expected["tokens"].shape[1]
        assert not found["mask"][:, width:].any()
        same = [(found[name][:, :width] == expected[name]) | (expected["mask"] == 0) for name in ("tokens", "segments")]
        same.append(found["mask"][:, :width] == expected["mask"])
        equal = int(np.all(same, axis=(0, 2)).sum())
        rows.append({"vocabulary": form, "what": what, "texts": len(given["texts"]), "equal": equal})
        print(rows[-1], flush=True)
    return rows, version


def settings_of(kind):
    """Return the names of the settings that a kind of tokenizer is compared in."""
    return [what for what, (paired, *_) in SETTINGS.items() if not (paired and kind == "SentencePiece")]


def job(kind, folder, texts, paired, length, truncation, keep):
    """State what the peer shall do."""
    second = [*texts[1:], texts[0]] if paired else None
    settings = {"length": length, "truncation": truncation, "side": SIDES[keep]}
    return {"kind": kind, "folder": str(folder), "texts": texts, "second": second, **settings}


def ask(jobs, python, folder):
    """Return the peer's arrays for each job, and its version."""
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    subprocess.run([python, str(THEIRS), str(folder / "jobs.json"), str(folder / "out.npz")], check=True)
    with np.load(folder / "out.npz") as made:
        names = ("tokens", "mask", "segments")
        return [{name: made[f"{n}_{name}"] for name in names} for n in range(len(jobs))], str(made["version"])


def some_texts():
    """Return 10,000 texts, among them some with the names of special tokens."""
    texts = whole(text for seed in range(2) for group in clip_texts.groups(seed).values() for text in group)
    special = [*SPECIAL, *OF_ROBERTA, *OF_DECODERS]
    named = [f"{text} {special[at % len(special)]}{special[at % 7]}, {text}" for at, text in enumerate(texts[:100])]
    return [*texts[:9900], *named]


def whole(texts):
    """Return the texts that are not empty and have a form in UTF-8."""
    return [text for text in texts if text.strip() and not any("\ud800" <= c <= "\udfff" for c in text)]


# --- Vocabularies ---


def written(folder, pieces, numbers, merges):
    """Write vocabularies in the forms of Hugging Face; give their kind of tokenizer and folder."""
    made = {}
    for name, lower in {"vocab.txt": True, "vocab.txt, cased": False}.items():
        made[name] = ("BertTokenizer", folder / f"pieces_{lower}")
        made[name][1].mkdir()
        (made[name][1] / "vocab.txt").write_text("\n".join([*pieces, ""]), encoding="utf-8")
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower}
        (made[name][1] / "tokenizer_config.json").write_text(json.dumps(settings))
    made["vocab.json, merges.txt"] = ("RobertaTokenizer", folder / "pairs")
    (folder / "pairs").mkdir()
    (folder / "pairs" / "vocab.json").write_text(json.dumps(numbers), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (folder / "pairs" / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    # as in RoBERTa's published tokenizer; where nothing is said, version 5 of transformers leaves the blank before it
    mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False}
    settings = {"tokenizer_class": "RobertaTokenizer", "mask_token": mask | {"single_word": False, "special": True}}
    (folder / "pairs" / "tokenizer_config.json").write_text(json.dumps(settings))
    tokens = [*OF_DECODERS, *(token for token in _in_order(numbers) if token not in OF_ROBERTA)]
    made["GPT-2"] = ("GPT2Tokenizer", folder / "gpt2")
    (folder / "gpt2").mkdir()
    numbers = {token: number for number, token in enumerate(tokens)}
    (folder / "gpt2" / "vocab.json").write_text(json.dumps(numbers), encoding="utf-8")
    (folder / "gpt2" / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    settings = {"tokenizer_class": "GPT2Tokenizer", "pad_token": OF_DECODERS[0]}
    (folder / "gpt2" / "tokenizer_config.json").write_text(json.dumps(settings))
    return made | {"digits": digits(folder / "digits", tokens, [list(pair) for pair in merges], OF_DECODERS)}


def digits(folder, tokens, merges, special):
    """Write the tokenizer.json of SmolLM2 for a vocabulary; give the peer's kind of tokenizer, and the folder."""
    folder.mkdir()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    cut = [{"type": "Digits", "individual_digits": True}, level]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": tokens.index(token), "content": token} | flags for token in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cut},
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {token: at for at, token in enumerate(tokens)}, "merges": merges},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": special[0], "eos_token": special[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return "PreTrainedTokenizerFast", folder


def in_gguf(file):
    """Return the tokens, the merges and the special tokens of a GGUF file."""
    names = [f"tokenizer.ggml.{name}" for name in ("tokens", "merges", "token_type")]
    found = gguf.read_arrays(file, names)
    tokens, merges, kinds = (found[name] for name in names)
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == "3"]
    return tokens, [pair.split(" ") for pair in merges], special


def unigrams(folder, texts, python, count=2000, rules=()):
    """Let the peer train vocabularies of SentencePiece; give their kind of tokenizer and folder."""
    ordinary = [text for text in texts if len(text) < 2000 and max(text) < "\u0250"]
    (folder / "texts.json").write_text(json.dumps(ordinary), encoding="utf-8")
    subprocess.run([python, str(THEIR_PIECES), str(folder / "texts.json"), str(folder), str(count), *rules], check=True)
    forms = {"spiece.model": ("SentencePiece", folder / "t5"), "spm.model": ("SentencePiece", folder / "deberta")}
    made = {"t5": ("T5Tokenizer", "tokenizer.json, T5"), "deberta": ("DebertaV2Tokenizer", "tokenizer.json, DeBERTa")}
    return forms | {name: (kind, folder / f"{form}_json") for form, (kind, name) in made.items() if not rules}


def byte_pairs(texts, merges):
    """Train a vocabulary of RoBERTa's kind; give its numbers and its merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"initial_alphabet": alphabet, "special_tokens": OF_ROBERTA, "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=len(alphabet) + 5 + merges, **options))
    made = json.loads(tokenizer.to_str())["model"]
    return made["vocab"], [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in made["merges"]]


def word_pieces(texts, count):
    """Train a vocabulary of BERT's kind; give its tokens in order."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    options = {"special_tokens": SPECIAL, "limit_alphabet": 100, "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=count, **options))
    return _in_order(tokenizer.get_vocab())


def _word_pieces_of(path):
    return _in_order(Tokenizer.from_file(str(path)).get_vocab())


def _in_order(numbers):
    return sorted(numbers, key=numbers.get)


# --- The small cases of the tests ---


def record_cases(path, python, folder, only=None, each=4):
    """Train tiny vocabularies, and write them with the peer's tokens of some texts of each group."""
    groups = clip_texts.groups(seed=1)
    texts = whole(text for group in groups.values() for text in group)
    pieces, (numbers, merges) = word_pieces(texts, 400), byte_pairs(texts, 150)
    chosen = whole(text for name, group in groups.items() for text in group[:each] if name != "special tokens")
    rules = folder / "rules.tsv"
    rules.write_text("\n".join(RULES) + "\n")
    forms = written(folder, pieces, numbers, merges)
    if not {*(only or ("all",))} <= forms.keys():
        forms |= unigrams(folder, texts, python, 600, [str(rules)])
    forms = {name: forms[name] for name in only or [name for name in forms if name not in ("GPT-2", "digits")]}
    keys = [(form, what) for form, (kind, *_) in forms.items() for what in settings_of(kind)]
    theirs, version = ask([job(*forms[form][:2], chosen, *SETTINGS[what]) for form, what in keys], python, folder)
    cases = []
    for (form, what), expected in zip(keys, theirs, strict=True):
        rows = [
            " ".join(map(str, row[mask == 1])) for row, mask in zip(expected["tokens"], expected["mask"], strict=True)
        ]
        cases.append({"form": form, "settings": SETTINGS[what], "tokens": rows})
        cases[-1]["second"] = expected["segments"].sum(axis=1).tolist()
    source = f"transformers {version}; python scripts/benchmarks/parity_text_tokenizer.py --record"
    record = {"source": source, "texts": chosen, "cases": cases, "pieces": pieces}
    record |= {"pairs": _in_order(numbers), "merges": [" ".join(pair) for pair in merges]}
    for form in ("spiece.model", "spm.model"):
        record[form] = base64.b64encode((forms[form][1] / form).read_bytes()).decode()
    path.write_text(json.dumps(record, ensure_ascii=True, indent=0) + "\n")


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", help="interpreter of an environment that has transformers")
    parser.add_argument("--venv", default="runs/venvs/encoders", help="else where it is installed")
    parser.add_argument("--out", default="runs/benchmarks/parity_text_tokenizer.json")
    parser.add_argument("--forms", nargs="+", help="of vocabularies; default: all")
    parser.add_argument("--record", metavar="FILE", help="write the cases of the tests instead")
    return parser.parse_args()


if __name__ == "__main__":
    main()
