"""Compare the tokens of CLIP's tokenizer with those of open_clip and transformers, text by text.

    python scripts/benchmarks/parity_tokenizer.py [--venvs FOLDER] [--out FILE] [--record FILE]

10,000 texts in nine groups (`peers/clip_texts.py`), texts with the names of special tokens, and every assigned code
point of Unicode, with OpenAI's vocabulary from the package of open_clip. All 10,000 and every code point must be equal
to open_clip's, which cleans text as OpenAI does, and the three forms of the vocabulary must give the same. Transformers
cleans text in other ways; "on clean text" are the texts that came out of our cleaning and that it would not change
again: there, what is left of the work must be equal. Code points count as assigned if Python's own tables know them: of
younger ones the library `regex`, with which open_clip splits words, may know that they are letters and ours may not.

Each peer runs in a virtual environment of its own, which the first run makes. --record writes the small cases of the
tests instead.
"""

import argparse
import functools
import gzip
import json
import pathlib
import subprocess
import sys
import tempfile

import _common
import numpy as np
from peers import clip_texts
from tokenizers import Regex, Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

from soups.models import clip_tokenizer as ours

THEIRS = pathlib.Path(__file__).parent / "peers" / "theirs_clip_tokenizer.py"
OPEN_CLIP = ("torch==2.13.0", "open_clip_torch==3.3.0", "transformers==4.57.6", "ftfy==6.3.1")
VERSION_5 = ("transformers==5.23.0",)
# the variant: its environment, what it needs, and in what it differs
PEERS = {
    "open_clip": ("open_clip", OPEN_CLIP, "nothing"),
    "slow": ("open_clip", OPEN_CLIP, "HTML only as far as ftfy unescapes it"),
    "slow without ftfy": ("open_clip", OPEN_CLIP, "no ftfy, no HTML; no control characters; Han letters set apart"),
    "fast": ("open_clip", OPEN_CLIP, "no ftfy, no HTML; lower case letter by letter; 'ſ is not 's; no lone surrogates"),
    "version 5": ("transformers_5", VERSION_5, "as fast"),
}
BESIDE = "special tokens"  # what they do with these each of them decides differently


def main():
    """Tokenize everything with everyone, print the table, write the record; fail if something that must be is not."""
    options = _options()
    pythons = {name: _environment(options.venvs / venv, needs) for name, (venv, needs, _) in PEERS.items()}
    published = pathlib.Path(_run(pythons["open_clip"], THEIRS, "show").strip())
    if options.record:
        return record_cases(options.record, pythons["open_clip"])
    with tempfile.TemporaryDirectory(prefix="tokens_") as folder:
        folder = pathlib.Path(folder)
        forms = write_forms(published, folder)
        theirs = functools.partial(ask, pythons=pythons, forms=forms, folder=folder)
        rows = compare(clip_texts.groups(), forms, theirs)
        characters = clip_texts.every_character()
        equal = int(_equal(ours.clip_tokenizer(published)(characters), theirs("open_clip", characters)).sum())
    show(rows)
    print(f"every assigned code point, texts of 12: {equal} of {len(characters)} equal to open_clip")
    record = {"benchmark": "parity_tokenizer", "what": __doc__.splitlines()[0], "peers": PEERS, "rows": rows}
    record |= {"every character": {"texts": len(characters), "equal": equal}, "machine": _common.machine()}
    _common.write(options.out, record)
    failed = [f"{row['group']} ({row['peer']})" for row in rows if not row["as stated"]]
    if failed or equal != len(characters):
        sys.exit(f"not as stated: {', '.join(failed) or 'every code point'}")


def compare(groups, forms, theirs):
    """Return a row for each peer and group: how many texts are equal, as they are and once cleaned."""
    tokenize = {name: ours.clip_tokenizer(path) for name, path in forms.items()}
    texts = [text for group in groups.values() for text in group]
    mine = tokenize["published"](texts)
    for name, other in tokenize.items():
        if not _equal(mine, other(texts)).all():
            sys.exit(f"the vocabulary as {name} gives other tokens than OpenAI's file")
    clean = [ours.clean(text) for text in texts]
    stable = np.array([ours.clean(text) == text for text in clean])
    long_s = np.array(["'ſ" in text for text in clean])
    ends = np.cumsum([len(group) for group in groups.values()])
    rows = []
    for peer in PEERS:
        alike = stable & ~long_s if peer in ("fast", "version 5") else stable
        columns = _equal(mine, theirs(peer, texts)), alike, alike & _equal(mine, theirs(peer, clean))
        for group, *parts in zip(groups, *(np.split(column, ends[:-1]) for column in columns), strict=True):
            equal, cleaned, cleaned_equal = (int(part.sum()) for part in parts)
            counts = {"texts": len(parts[0]), "equal": equal, "clean": cleaned, "clean and equal": cleaned_equal}
            rows.append({"peer": peer, "group": group, **counts, "as stated": _as_stated(peer, group, counts)})
    return rows


def _as_stated(peer, group, counts):
    if group == BESIDE or peer == "slow without ftfy":
        return True
    return counts["clean"] == counts["clean and equal"] and (peer != "open_clip" or counts["texts"] == counts["equal"])


def show(rows):
    """Print a table with a line for each group and the counts of equal texts of each peer."""
    lines = {}
    for row in rows:
        line = lines.setdefault(row["group"], [row["group"], row["texts"]])
        line.append(f"{row['equal']}, {row['clean and equal']}/{row['clean']}")
    _common.table("equal texts as they are, and of the clean ones", ["group", "texts", *PEERS], list(lines.values()))
    for peer, (_, _, difference) in PEERS.items():
        print(f"{peer} does otherwise: {difference}")


# --- The peers and their vocabulary ---


def write_forms(published, folder):
    """Write OpenAI's vocabulary in the forms of Hugging Face; give the path of each form."""
    numbers, merges = ours._read(published)
    hugging_face = folder / "hugging_face"
    hugging_face.mkdir()
    (hugging_face / "vocab.json").write_text(json.dumps(numbers))
    (hugging_face / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]), encoding="utf-8")
    (hugging_face / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    whole = folder / "tokenizer.json"
    Tokenizer(BPE(numbers, merges, end_of_word_suffix=ours.LAST)).save(str(whole))
    return {"published": published, "vocab.json": hugging_face, "tokenizer.json": whole}


def ask(peer, texts, pythons, forms, folder):
    """Return the peer's tokens [N, 77]."""
    vocabulary = forms["published" if peer == "open_clip" else "vocab.json"]
    given, out = folder / "texts.json", folder / "tokens.npy"
    given.write_text(json.dumps(texts))
    _run(pythons[peer], THEIRS, peer, vocabulary, given, out)
    return np.load(out)


def _environment(folder, requirements):
    python = folder.absolute() / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *requirements], check=True)
    return python


def _run(*command):
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


def _equal(mine, theirs):
    return (mine == theirs).all(axis=1)


# --- The small cases of the tests ---


def record_cases(path, python, merges=300, each=10):
    """Train a tiny vocabulary, and write it with open_clip's tokens of some texts of each group."""
    groups = clip_texts.groups(seed=1)
    groups.pop(BESIDE)
    pairs = train([text for group in groups.values() for text in group], merges)
    with tempfile.TemporaryDirectory(prefix="tokens_") as folder:
        folder = pathlib.Path(folder)
        tiny = folder / ours.PUBLISHED
        # no line end at the end: open_clip would make a token of it
        tiny.write_bytes(gzip.compress("\n".join(["#version: 0.2", *map(" ".join, pairs)]).encode()))
        texts = [text for group in groups.values() for text in group[:each]]
        tokens = ask("open_clip", texts, {"open_clip": python}, {"published": tiny}, folder)
    cases = [[text, " ".join(map(str, np.trim_zeros(row, "b")))] for text, row in zip(texts, tokens, strict=True)]
    source = f"{OPEN_CLIP[1]}, {OPEN_CLIP[3]}; python scripts/benchmarks/parity_tokenizer.py --record"
    record = {"source": source, "merges": [" ".join(pair) for pair in pairs], "cases": cases}
    _common.write(path, record)


def train(texts, merges):
    """Return the merges of a byte-pair encoding of these texts."""
    tokenizer = Tokenizer(BPE(end_of_word_suffix=ours.LAST))
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.Split(Regex(ours.WORDS), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    alphabet = as_bytes.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + merges,
        initial_alphabet=alphabet,
        end_of_word_suffix=ours.LAST,
        show_progress=False,
    )
    tokenizer.train_from_iterator([ours.clean(text) for text in texts], trainer)
    made = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(pair) for pair in made[:merges]]


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venvs", type=pathlib.Path, default=pathlib.Path("runs/venvs"), help="where the peers are")
    parser.add_argument("--out", default="runs/benchmarks/parity_tokenizer.json")
    parser.add_argument("--record", metavar="FILE", help="write the cases of the tests instead")
    return parser.parse_args()


if __name__ == "__main__":
    main()
