"""Build 15 tasks of texts from packages that pip and npm give: build_text_tasks.py FOLDER [--packages FOLDER].

FOLDER gets TASK/train.tsv, val.tsv and test.tsv, lines "text<TAB>label", in shares of 60, 20 and 20 %:

* tweets, amazon, film, news: whether people rate a snippet positive or negative (vaderSentiment's source package, MIT);
  those rated between -0.5 and 0.5 are left out;
* source: which of these four a snippet is from, 1,500 of each;
* phones, imdb, yelp: whether a sentence of a review is positive (sentiment, MIT);
* order, reversed, shuffled, length, contains, phrase, longer: what form a snippet of 8 to 16 words has, 1,200 of each,
  as tasks that probe encoders ask it (Conneau et al., 2018, arXiv 1805.01070): whether its halves were swapped, its
  words reversed or shuffled, how many there are; and of pairs, text<TAB>text<TAB>label, whether the first, a word or
  three words in a row, is in the second, and which of two snippets has more words.

Texts that appear twice are taken once. The packages are fetched, or found in the folder that is given, and compared
with the digests below. The same command writes the same files.
"""

import argparse
import hashlib
import html
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping

import numpy as np

from soups.data.splits import split_indices
from soups.files import made_folder, replace_file

VADER = "vaderSentiment-3.3.2.tar.gz", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
SENTIMENT = "sentiment-5.0.2.tgz", "89302eb03d2005d03b214fe65814bb48adb7d3c42c8ca80bdee6a3ecb7e4480f"
COMMANDS = {
    VADER: (
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        ":all:",
        "vaderSentiment==3.3.2",
    ),
    SENTIMENT: ("npm", "pack", "--silent", "sentiment@5.0.2"),
}
SNIPPETS = {"tweets": "tweets", "amazon": "amazonReviewSnippets", "film": "movieReviewSnippets"}
SNIPPETS |= {"news": "nytEditorialSnippets"}
SENTENCES = {"phones": "amazon", "imdb": "imdb", "yelp": "yelp"}
NEUTRAL, OF_SOURCE = 0.5, 1500
OF_FORM, FEWEST, MOST, OF_PAIR = 1200, 8, 16, 8  # snippets of a task, their words, and those of a pair's second text
LENGTHS = {"8-9": 9, "10-11": 11, "12-13": 13, "14-16": 16}
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
LARGEST = 64 << 20  # bytes of a file in a package
Examples = dict[str, str]  # labels by text


def main(arguments: list[str] | None = None) -> int:
    """Write the tasks, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", help="the folder to fill")
    parser.add_argument("--packages", metavar="FOLDER", help="where the packages are; default: they are fetched")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            given = None if options.packages is None else pathlib.Path(options.packages)
            packages = {name: package(name, digest, given, scratch) for name, digest in COMMANDS}
            tasks = {**snippets(packages[VADER[0]]), **sentences(packages[SENTIMENT[0]])}
            tasks |= forms([text for name in SNIPPETS for text in tasks[name]])
        for name, examples in tasks.items():
            print(f"{name}: {write(pathlib.Path(options.folder) / name, examples)}")
    except (ValueError, OSError, tarfile.TarError, subprocess.CalledProcessError) as error:
        print(f"build_text_tasks.py: {error}", file=sys.stderr)
        return 2
    return 0


def package(name: str, digest: str, folder: pathlib.Path | None, scratch: str) -> bytes:
    """Return the bytes of a package, fetched unless a folder is given; a ValueError for another digest."""
    if folder is None:
        folder = pathlib.Path(scratch)
        subprocess.run(COMMANDS[name, digest], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
    content = (folder / name).read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != digest:
        raise ValueError(f"{folder / name} has the SHA-256 {found}, not {digest}")
    return content


def file_of(content: bytes, name: str) -> bytes:
    """Return a file of a packed archive; a ValueError if it is not there."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        member = next((one for one in archive if one.name == name), None)
        if member is None or not member.isfile() or member.size > LARGEST:
            raise ValueError(f"the package has no file {name}")
        return archive.extractfile(member).read()


def snippets(content: bytes) -> dict[str, Examples]:
    """Return the tasks of snippets that people rated from -4 to 4."""
    inner = file_of(content, f"{VADER[0].removesuffix('.tar.gz')}/additional_resources/hutto_ICWSM_2014.tar.gz")
    tasks, sources = {}, {}
    for task, name in SNIPPETS.items():
        lines = file_of(inner, f"hutto_ICWSM_2014/{name}_GroundTruth.txt").split(b"\n")
        rated = [decoded(line).split("\t") for line in lines if line.count(b"\t") == 2]
        found = {clean(words): float(rating) for _, rating, words in rated if clean(words)}
        tasks[task] = {
            words: "positive" if rating > 0 else "negative" for words, rating in found.items() if abs(rating) >= NEUTRAL
        }
        some = split_indices(len(found), {"some": min(OF_SOURCE, len(found))}, seed=0)["some"]
        words = list(found)
        sources |= {words[row]: task for row in some if words[row] not in sources}
    return tasks | {"source": sources}


def sentences(content: bytes) -> dict[str, Examples]:
    """Return the tasks of sentences from reviews."""
    tasks = {}
    for task, name in SENTENCES.items():
        entries = json.loads(file_of(content, f"package/test/fixtures/{name}.json"))
        labelled = [one for one in entries if one and isinstance(one.get("text"), str) and one.get("class") in (0, 1)]
        texts = {clean(one["text"]): ("negative", "positive")[one["class"]] for one in labelled}
        tasks[task] = {text: label for text, label in texts.items() if text}
    return tasks


def forms(texts: Iterable[str]) -> dict[str, Examples]:
    """Return the tasks of what form a text has; each is drawn by a seed of its own."""
    fit = sorted({text for text in texts if FEWEST <= len(text.split()) <= MOST})
    tasks = {}
    for seed, (name, make) in enumerate(FORMS.items()):
        random, found = np.random.default_rng(seed), {}
        for row in random.permutation(len(fit)):
            other = fit[random.integers(len(fit))].split()
            text, label = make(fit[row].split(), other, bool(random.integers(2)), random)
            if label and text not in found:
                found[text] = label
            if len(found) == OF_FORM:
                break
        tasks[name] = found
    return tasks


def _order(words, other, yes, random):
    half = len(words) // 2
    return " ".join(words[half:] + words[:half] if yes else words), "swapped" if yes else "kept"


def _reversed(words, other, yes, random):
    return " ".join(words[::-1] if yes else words), "reversed" if yes else "kept"


def _shuffled(words, other, yes, random):
    return " ".join(random.permutation(words) if yes else words), "shuffled" if yes else "kept"


def _length(words, other, yes, random):
    return " ".join(words), next(name for name, most in LENGTHS.items() if len(words) <= most)


def _contains(words, other, yes, random):
    words = words[:OF_PAIR]
    there = {word.lower() for word in words}
    among = [word for word in (words if yes else other) if word.isalpha() and (yes or word.lower() not in there)]
    word = among[random.integers(len(among))].lower() if among else ""
    return f"{word}\t{' '.join(words)}", ("yes" if yes else "no") if word else ""


def _phrase(words, other, yes, random):
    words = words[:OF_PAIR]
    among = words if yes else other
    at = random.integers(len(among) - 2)
    part, whole = " ".join(among[at : at + 3]), " ".join(words)
    there = f" {part} " in f" {whole} "
    return f"{part}\t{whole}", ("yes" if yes else "no") if there is yes else ""


def _longer(words, other, yes, random):
    few = random.integers(3, OF_PAIR)
    short, long = other[:few], words[: random.integers(few + 1, OF_PAIR + 1)]
    pair = (long, short) if yes else (short, long)
    return "\t".join(map(" ".join, pair)), "first" if yes else "second"


FORMS = {"order": _order, "reversed": _reversed, "shuffled": _shuffled, "length": _length}
FORMS |= {"contains": _contains, "phrase": _phrase, "longer": _longer}


def decoded(line: bytes) -> str:
    """Return the text of a line: some files are in UTF-8, others in Latin-1."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


def clean(text: str) -> str:
    """Return a text with single blanks and without the codes of HTML."""
    return " ".join(html.unescape(text).split())


def write(folder: pathlib.Path, examples: Mapping[str, str]) -> str:
    """Write the splits of a task, each with the classes in their shares, and say how many examples they have."""
    texts, labels = list(examples), list(examples.values())
    numbers = np.array([sorted(set(labels)).index(label) for label in labels])
    parts = split_indices(numbers, {name: share for name, share in SHARES.items() if name != "train"}, seed=0)
    parts["train"] = np.setdiff1d(np.arange(len(texts)), np.concatenate(list(parts.values())))
    made_folder(folder)
    for name, rows in parts.items():
        replace_file(folder / f"{name}.tsv", _lines(f"{texts[row]}\t{labels[row]}" for row in rows))
    return ", ".join(f"{len(parts[name])} {name}" for name in SHARES) + f", {len(set(labels))} classes"


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


if __name__ == "__main__":
    sys.exit(main())
