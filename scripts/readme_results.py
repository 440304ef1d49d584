"""Keep the results of a run of several seeds, and write what the README says of them.

    python scripts/readme_results.py collect runs/digits     # into docs/results/digits-py311.json, by its interpreter
    python scripts/readme_results.py collect runs/digits --figures      # and its figures into docs/figures
    python scripts/readme_results.py write                   # README.md and docs/results/README.md

A claim is written as one only where its 95 % interval over the seeds excludes its bound in the results of every
interpreter, and there are two at least; else the README says that no effect can be claimed, with the numbers.
"""

import argparse
import math
import pathlib
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from soups import report, state
from soups.report import results as files
from soups.report.tables import Spread, format_gain, format_number, format_spread, row_named, rows_table

ROOT = pathlib.Path(__file__).resolve().parents[1]
KEPT, FIGURES = ROOT / "docs" / "results", ROOT / "docs" / "figures"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
METRICS = ("accuracy", "nll", "ece")
COMMAND = "bash scripts/quickstart.sh --config.seeds=10 --config.random_head.members=16"
SHOWN = {
    "scatter": "Accuracy on the shifts against test accuracy",
    "number_of_models": "Gain over the best member so far against the number of members",
    "loss_plane": "Held-out error in the plane through the start and two members",
}
Runs = Mapping[str, Mapping[str, Any]]  # results by interpreter, as "Python 3.11"


class Claim(NamedTuple):
    """State what may be claimed: that a row's gain over another lies above (or below) a bound, in points."""

    text: str
    row: str
    split: str  # "test" or "shift"
    over: str = "best member"
    bound: float = 0.0
    above: bool = True


CLAIMS = [
    Claim("in distribution the greedy soup is better than the best member", "greedy soup", "test"),
    Claim("on the shifts the greedy soup is better than the best member", "greedy soup", "shift"),
    Claim("in distribution the uniform soup is better than the best member", "uniform soup", "test"),
    Claim("on the shifts the uniform soup is better than the best member", "uniform soup", "shift"),
    Claim("in distribution the learned soup is better than the best member", "learned soup", "test"),
    Claim("on the shifts the learned soup is better than the best member", "learned soup", "shift"),
    Claim("in distribution the ensemble is better than the greedy soup", "ensemble", "test", "greedy soup"),
    Claim("on the shifts the ensemble is better than the uniform soup", "ensemble", "shift", "uniform soup"),
    Claim(
        "in distribution members from the linear probe are better than the same from a random head",
        "mean member",
        "test",
        "random head mean member",
    ),
    Claim(
        "on the shifts members from the linear probe are better than the same from a random head",
        "mean member",
        "shift",
        "random head mean member",
    ),
    Claim(
        "on the shifts the uniform soup of members from the probe is better than that of the same from a random head",
        "uniform soup",
        "shift",
        "random head uniform soup",
    ),
]


class Bar(NamedTuple):
    """State what was demanded before anything was measured: a mean gain, an interval above 0 and nearly every sign.

    `not_below`: only that it is not below the best member.
    """

    row: str
    split: str
    least: float
    not_below: bool = False


BARS = [
    Bar("greedy soup", "test", 0.5),
    Bar("greedy soup", "shift", 1.5),
    Bar("uniform soup", "test", 0.0, not_below=True),
    Bar("uniform soup", "shift", 2.0),
]
_WHERE = {"test": "in distribution", "shift": "on the mean of the shifts"}


def trimmed(results: Mapping[str, Any], command: str = COMMAND) -> dict[str, Any]:
    """Return of results what the README needs: the main rows of every seed on held-out data, test and the shifts."""
    splits = {s: results["splits"][s] for role, s in files.summary_splits(results).items() if role != "train"}
    rows = []
    for row in files.rows_of(results, "main"):
        kept = {part: row[part] for part in ("seed", "name", "kind", "group")}
        found = {split: row["metrics"][split] for split in splits}
        kept["metrics"] = {s: {name: one[name] for name in METRICS if name in one} for s, one in found.items()}
        kept["num_ingredients"] = row.get("num_ingredients", len(row.get("ingredients", ())))
        rows.append(kept | {"cost": {"inference": row.get("cost", {}).get("inference", 1)}})
    same = ("schema", "experiment", "created", "config", "versions", "device", "seeds")
    named = {s: {part: one[part] for part in ("role", "examples", "title") if part in one} for s, one in splits.items()}
    own = {s: {"title": files.title_of(results, s)} for s in splits}
    return {part: results[part] for part in same} | {
        "splits": {split: named[split] | own[split] for split in splits},
        "rows": rows,
        "facts": {"run": {"command": command}},
    }


def load(folder: pathlib.Path = KEPT) -> dict[str, dict]:
    """Return the results that are kept, by interpreter."""
    runs = {}
    for path in sorted(folder.glob("digits-py*.json")):
        results = report.load_results(path)
        runs[f"Python {'.'.join(results['versions']['python'].split('.')[:2])}"] = results
    return runs


def gain(results: Mapping, row: str, split: str, over: str = "best member") -> Spread:
    """Return the gain of a row over another, seed by seed, as a fraction."""
    found = row_named(rows_table(results | {"reference": over}), row)
    if found is None or not found.gain:
        raise ValueError(f"the results have no {row!r} and {over!r} in the same seeds")
    return found.gain[files.summary_splits(results)[split]]


def holds(found: Spread, bound: float, above: bool = True) -> bool:
    """Say whether an interval lies beyond a bound in points; none is known of a single seed."""
    low, high = (100 * (found.mean + side * found.half) for side in (-1, 1))
    return low > bound if above else high < bound


def told(found: Spread) -> str:
    """Write a gain in points with its interval, and in how many seeds it has the sign of its mean."""
    sign = 1 if found.mean > 0 else -1
    right = sum(sign * value > 0 for value in found.values)
    return f"{format_gain(found, files.METRICS['accuracy'])} ({right} of {len(found.values)} seeds)"


def sentence(claim: Claim, runs: Runs) -> str:
    """Write a claim where it holds on every interpreter, that the contrary holds, or that nothing can be claimed."""
    found = {name: gain(results, claim.row, claim.split, claim.over) for name, results in runs.items()}
    numbers = "; ".join(f"{told(one)} on {name}" for name, one in found.items())
    several = len(runs) > 1

    def all_hold(above):
        return several and all(holds(one, claim.bound, above) for one in found.values())

    if all_hold(claim.above):
        return f"{claim.text[0].upper()}{claim.text[1:]}: {numbers}."
    if all_hold(not claim.above):
        return f"It does not hold that {claim.text}, but the contrary: {numbers}."
    return f"It is not shown that {claim.text}; no effect can be claimed: {numbers}."


def reached(bar: Bar, found: Spread) -> bool:
    """Say whether a gain is what was demanded."""
    right = sum(value >= 0 if bar.not_below else value > 0 for value in found.values)
    enough = 100 * found.mean >= bar.least and right >= math.ceil(0.9 * len(found.values))
    return enough and (bar.not_below or holds(found, 0.0))


def bar_sentence(bar: Bar, runs: Runs) -> str:
    """Say whether a bar is reached on every interpreter, with the numbers."""
    found = {name: gain(results, bar.row, bar.split) for name, results in runs.items()}
    done = len(runs) > 1 and all(reached(bar, one) for one in found.values())
    wanted = "not below the best member" if bar.not_below else f"at least +{bar.least:g} points"
    numbers = "; ".join(f"{told(one)} on {name}" for name, one in found.items())
    return f"{bar.row.capitalize()} {_WHERE[bar.split]} {wanted}: **{'reached' if done else 'missed'}**, {numbers}"


# --- Tables -----------------------------------------------------------------------------------------------------------


def table(heads: Iterable[str], body: Iterable[Iterable[str]]) -> list[str]:
    """Write a table of Markdown."""
    heads = list(heads)
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *body)]


def _cell(found: Spread | None, signed=False):
    if found is None:
        return "–"
    text = format_spread(found, 100, sign="+" if signed else "").replace("±", "± ")
    if not signed:
        return text
    right = sum((1 if found.mean > 0 else -1) * value > 0 for value in found.values)
    return f"{text} ({right}/{len(found.values)})" if any(found.values) else "0"


def main_table(runs: Runs) -> list[str]:
    """Lay out every row: levels of the first interpreter, gains of all."""
    results = next(iter(runs.values()))
    splits = files.summary_splits(results)
    shown = [role for role in ("test", "shift") if role in splits]
    heads, body = [""], []
    for role in shown:
        heads += [
            f"{files.title_of(results, splits[role])} %",
            *(f"gain, {name.removeprefix('Python ')}" for name in runs),
        ]
    for row in rows_table(results):
        line = [row.name]
        for role in shown:
            theirs = (one if row_named(rows_table(one), row.name) else None for one in runs.values())
            gains = (one and gain(one, row.name, role) for one in theirs)
            line += [_cell(row.metrics[splits[role]]["accuracy"]), *(_cell(one, signed=True) for one in gains)]
        passes = format_number(row.cost["inference"].mean, digits=0)
        body.append([*line, _cell(row.metrics[splits["test"]].get("ece")), passes])
    return table([*heads, "ECE %", "passes"], body)


def seed_tables(runs: Runs) -> list[str]:
    """Lay out the gains of every row, seed by seed, of each interpreter on test and on the shifts."""
    lines = []
    for name, results in runs.items():
        splits = files.summary_splits(results)
        for role in (role for role in ("test", "shift") if role in splits):
            body = []
            for row in rows_table(results):
                if row.name == results["reference"]:
                    continue
                found = gain(results, row.name, role)
                values = dict(zip(row.seeds, found.values, strict=True))
                each = (format_number(values.get(seed, math.nan), 100, sign="+") for seed in results["seeds"])
                body.append([row.name, *each, told(found)])
            heads = ["", *(f"seed {seed}" for seed in results["seeds"]), "mean, 95 % interval"]
            lines += [f"## {name}: {files.title_of(results, splits[role])}", "", *table(heads, body), ""]
    return lines


# --- Pages ------------------------------------------------------------------------------------------------------------


def _versions(results):
    return ", ".join(
        f"{name} {results['versions'][name]}" for name in ("python", "jax", "flax") if name in results["versions"]
    )


def block(runs: Runs) -> str:
    """Write the README's results: table, claims, bars and figures."""
    first, results = next(iter(runs.items()))
    seeds, about = len(results["seeds"]), results["config"].get("about", {})
    examples = results["splits"][files.summary_splits(results)["test"]].get("examples", 0)
    lines = [
        f"`{results['facts']['run']['command']}`, {results['device']}. {about.get('shows', '')}".strip(),
        "",
        f"Mean ± half of the 95 % interval (Student's t) over {seeds} seeds, each with a split, a sweep and an order "
        f"of its own; levels are those of {first}. *Gain*: points over the best member of the same seed by held-out "
        f"accuracy, on {' and '.join(runs)}, and in how many seeds it has this sign. *Passes*: forward passes for a "
        f"prediction. A seed has {examples:,} test images. Seed by seed: [docs/results](docs/results/README.md).",
        "",
        *main_table(runs),
        "",
        "What these seeds say (a claim needs a 95 % interval that excludes its bound on both interpreters):",
        "",
        *(f"* {sentence(claim, runs)}" for claim in CLAIMS),
        "",
        "What was demanded before, with an interval above 0 and the right sign in nine of ten seeds:",
        "",
        *(f"* {bar_sentence(bar, runs)}." for bar in BARS),
        "",
    ]
    for name, title in SHOWN.items():
        if (FIGURES / f"{name}.png").exists():
            lines += [f"![{title}](docs/figures/{name}.png)", ""]
    return "\n".join(lines[:-1])


def seeds_page(runs: Runs) -> str:
    """Write the page of every gain, seed by seed."""
    made = (f"{name}: {_versions(one)}, {one['device']}, {one['created']}" for name, one in runs.items())
    return "\n".join(
        [
            "# Gains over the best member, seed by seed",
            "",
            "In points, over the best member by held-out accuracy of the same seed. Written by `python "
            "scripts/readme_results.py write` from the files beside it, which `soups.report` reads.",
            "",
            *(f"* {line}" for line in made),
            "",
            *seed_tables(runs),
        ]
    )


def updated(readme: str, runs: Runs) -> str:
    """Return the README with the results of these runs; as it is where there are none."""
    if not runs:
        return readme
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{block(runs)}\n{END}", readme, flags=re.DOTALL)


def collect(options) -> None:
    """Keep the results of a run, and its figures."""
    results = report.load_results(options.run)
    if len(results["seeds"]) < 2:
        raise ValueError(f"{options.run} has one seed: intervals need several")
    version = "".join(results["versions"]["python"].split(".")[:2])
    KEPT.mkdir(exist_ok=True)
    place = KEPT / f"digits-py{version}.json"
    state.write(place, trimmed(results, options.command))
    print(place.relative_to(ROOT))
    for name in SHOWN if options.figures else ():
        made = pathlib.Path(options.run) / "figures" / f"{name}.png"
        print(shutil.copyfile(made, FIGURES / f"{name}.png").relative_to(ROOT))


def write(options) -> None:
    """Write the README's results and the page of every seed."""
    runs = load()
    if len(runs) < 2:
        raise ValueError(f"{KEPT} needs results of two interpreters, not of {len(runs)}")
    page = ROOT / "README.md"
    page.write_text(updated(page.read_text(encoding="utf-8"), runs), encoding="utf-8")
    (KEPT / "README.md").write_text(seeds_page(runs), encoding="utf-8")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("collect", help="keep the results of a run")
    one.add_argument("run", metavar="RUN", help="its directory")
    one.add_argument("--command", default=COMMAND, help="what made it; default: %(default)s")
    one.add_argument("--figures", action="store_true", help="keep its figures too")
    one.set_defaults(do=collect)
    commands.add_parser("write", help="write the pages").set_defaults(do=write)
    options = parser.parse_args()
    try:
        options.do(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
