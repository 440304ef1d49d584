"""Say which published fine-tunes are good starts, from the tables of IBM's model recycling.

    git clone https://github.com/IBM/model-recycling
    python scripts/model_recycling.py model-recycling/results/*_table.csv

A table has a row for each model of one architecture: the mean score, that of a linear probe on MNLI, and what 36 tasks
score after fine-tuning from it; the first row is the pre-trained model. Rows that were not measured on all tasks are
left out, and so are rows whose task columns are permuted: their correlation with the first row is below 0.9.
"""

import argparse
import pathlib
import sys

import numpy as np

from soups.evaluate import gains, rank_by_score, regret, spearman, split_half
from soups.formats.text import numbered_rows

PROBE, FIRST_TASK, CLEAN = "mnli_lp", 4, 0.9
TOP = 5
#: what is printed of a table: names, and how
COLUMNS = {
    "models": "d",
    "tested": "d",
    "permuted": "d",
    "spearman": ".2f",
    "top by probe": ".2f",
    "top": ".2f",
    "regret": ".2f",
    "split half": ".2f",
    "improved": "d",
    "better %": ".0f",
}


def read(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return the scores of the pre-trained model [T] and of the tested ones [M, T], their probes [M], and all models.

    A ValueError names a file that is not such a table.
    """
    header, *rows = (row for _, row in numbered_rows(pathlib.Path(path).read_text(encoding="utf-8")))
    if header[1:FIRST_TASK] != ["model_name", "avg", PROBE] or len(header) < FIRST_TASK + 2:
        raise ValueError(f"{path}: its columns must be '', model_name, avg, {PROBE} and tasks, not {header[:6]}")
    try:
        numbers = np.array([[float(cell) if cell else np.nan for cell in row[FIRST_TASK - 1 :]] for row in rows])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    base, models = numbers[0, 1:], numbers[1:]
    if not np.isfinite(base).all():
        raise ValueError(f"{path}: its first row must be the pre-trained model, with the scores of all tasks")
    tested = models[np.isfinite(models).all(axis=1)]
    return base, tested[:, 1:], tested[:, 0], len(models)


def measure(path: str) -> dict[str, float]:
    """Return the numbers of a table, by the names in COLUMNS.

    "spearman": of the probe and the mean gain; "top", "top by probe": the mean gain of the best models by themselves,
    and by the probe; "regret": of the first by the probe; "split half": see `soups.evaluate.split_half`; "improved":
    the tasks on which the best model is better than the pre-trained one; "better %": of all that were tested.
    """
    base, scores, probes, models = read(path)
    clean = np.array([np.corrcoef(own, base)[0, 1] >= CLEAN for own in scores], bool)
    if clean.sum() < TOP:
        raise ValueError(
            f"{path}: {clean.sum()} models have all scores in the columns of their tasks; {TOP} are needed"
        )
    gained = gains(scores[clean], base)
    mean = dict(enumerate(gained.mean(axis=1).tolist()))
    by_probe, best = rank_by_score(dict(enumerate(probes[clean].tolist()))), rank_by_score(mean)
    return {
        "models": models,
        "tested": len(scores),
        "permuted": int((~clean).sum()),
        "spearman": spearman(probes[clean], gained.mean(axis=1)),
        "top by probe": float(np.mean([mean[name] for name in by_probe[:TOP]])),
        "top": float(np.mean([mean[name] for name in best[:TOP]])),
        "regret": regret({(name,): gain for name, gain in mean.items()}, (by_probe[0],)),
        "split half": split_half(gained),
        "improved": int((gained[best[0]] > 0).sum()),
        # means over tasks are those of permuted rows too
        "better %": 100 * float((scores.mean(axis=1) > base.mean()).mean()),
    }


def main(words: list[str] | None = None) -> int:
    """Print a line for each table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", metavar="TABLE.csv", help="results/<base>_table.csv")
    paths = parser.parse_args(words).tables
    try:
        found = {pathlib.Path(path).name.removesuffix("_table.csv"): measure(path) for path in paths}
    except (ValueError, OSError) as error:
        print(f"model_recycling.py: {error}", file=sys.stderr)
        return 2
    print("\t".join(["base", *COLUMNS]))
    for name, own in found.items():
        print("\t".join([name, *(format(own[column], how) for column, how in COLUMNS.items())]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
