"""Keep the results of runs of the default experiment, and write what the README says of them.

    python scripts/readme_results.py collect runs/digits     # into docs/digits/py311.json, by its interpreter
    python scripts/readme_results.py collect runs/digits --figures      # and its figures into docs/figures
    python scripts/readme_results.py write                   # README.md and docs/digits/README.md

The runs are of configs/digits.py, on two interpreters with ten seeds each, and none in common, so that the second is a
replication. A claim is written as one only where its 95 % interval over the seeds excludes 0 in the results of both;
else the README says that no effect can be claimed, with the numbers.
"""

import argparse
import hashlib
import json
import math
import pathlib
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from soups import report, state
from soups.cli.run import read_config
from soups.report import results as files
from soups.report.tables import Spread, format_gain, format_number, format_spread, row_named, rows_table

ROOT = pathlib.Path(__file__).resolve().parents[1]
KEPT, FIGURES = ROOT / "docs" / "digits", ROOT / "docs" / "figures"
CONFIG = "configs/digits.py"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
METRICS = ("accuracy", "ece")
SEEDS = 10  # of a run, at least
CHANGES = ("seeds", "first_seed", "random_head.members")  # fields of the config that runs may change
APART = ("first_seed", "data_dir")  # fields that the runs need not share
#: title of a figure, and whether it shows the first seed alone
SHOWN = {
    "scatter": ("Accuracy on the shifts against test accuracy", False),
    "number_of_models": ("Gain over the best member so far against the number of members", False),
    "loss_plane": ("Held-out error in the plane through the linear probe and two members", True),
}
Runs = Mapping[str, Mapping[str, Any]]  # results by interpreter, as "Python 3.11"


class Claim(NamedTuple):
    """State what may be claimed: that a row is better than another."""

    text: str
    row: str
    split: str  # "test" or "shift"
    over: str = "best member"


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
    """State what was demanded of these runs before they were made: a mean gain in points, and nearly every sign.

    It was set after trials with other networks; the ranges of the sweep were chosen in trials with other draws of
    images and another pre-training, which configs/digits.py tells of. A gain must have an interval above 0 too, but
    not where a row need only be `not_below` the best member.
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


def command_of(results: Mapping[str, Any]) -> str:
    """Return the command that makes results, by what their config changes of configs/digits.py.

    A ValueError if it changes, lacks or has besides anything but what `CHANGES` names.
    """
    there, here = _flat(results["config"]), _flat(read_config(str(ROOT / CONFIG)))
    changed = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
    if wrong := [name for name in changed if name not in CHANGES or name not in there]:
        raise ValueError(f"the config of the results differs from {CONFIG} in {', '.join(wrong)}")
    version = ".".join(results["versions"]["python"].split(".")[:2])
    words = (f" --config.{name}={there[name]}" for name in CHANGES if name in changed)
    return f"PYTHON=python{version} bash scripts/quickstart.sh{''.join(words)}"


def _flat(config, prefix=""):
    """Return the fields of a config by their whole names, as JSON has them, without what results do not depend on."""
    found = {}
    for name, value in json.loads(json.dumps(config)).items():
        whole = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{whole}.")
        elif whole != "data_dir" and not whole.startswith("about."):
            found[whole] = value
    return found


def check_run(results: Mapping[str, Any]) -> None:
    """Raise a ValueError for results that are not those of one experiment, interpreter and enough seeds."""
    if results["experiment"] != "digits":
        raise ValueError(f"the results are of the experiment {results['experiment']!r}, not of 'digits'")
    if len(results["seeds"]) < SEEDS:
        raise ValueError(f"the results have {len(results['seeds'])} seeds, but {SEEDS} are needed")
    if mixed := [f"{name} {found}" for name, found in results["versions"].items() if "," in str(found)]:
        raise ValueError(f"the results are of several versions: {'; '.join(mixed)}")


def check_runs(runs: Runs) -> None:
    """Raise a ValueError for results that do not belong together."""
    for results in runs.values():
        check_run(results)
    (first, one), *others = runs.items()
    for name, other in others:
        there, here = _flat(one["config"]), _flat(other["config"])
        if wrong := [f for f in sorted(there | here) if f not in APART and there.get(f) != here.get(f)]:
            raise ValueError(f"the configs of {first} and {name} differ in {', '.join(wrong)}")
    seeds = [seed for results in runs.values() for seed in results["seeds"]]
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise ValueError(f"the runs must have different seeds, but share {', '.join(map(str, twice))}")


def trimmed(results: Mapping[str, Any], figures: Mapping[str, str] = {}) -> dict[str, Any]:
    """Return of results what the README needs: the main rows of every seed on held-out data, test and the shifts.

    `figures`: the digests of those that were kept with them.
    """
    splits = {s: results["splits"][s] for role, s in files.summary_splits(results).items() if role != "train"}
    rows = []
    for row in files.rows_of(results, "main"):
        kept = {part: row[part] for part in ("seed", "name", "kind", "group")}
        found = {split: row["metrics"][split] for split in splits}
        kept["metrics"] = {s: {name: one[name] for name in METRICS if name in one} for s, one in found.items()}
        kept["num_ingredients"] = row.get("num_ingredients", len(row.get("ingredients", ())))
        rows.append(kept | {"cost": {"inference": row.get("cost", {}).get("inference", 1)}})
    same = ("schema", "experiment", "created", "versions", "device", "seeds")
    named = {s: {part: one[part] for part in ("role", "examples", "title") if part in one} for s, one in splits.items()}
    own = {s: {"title": files.title_of(results, s)} for s in splits}
    return {part: results[part] for part in same} | {
        "config": {name: one for name, one in results["config"].items() if name != "data_dir"},
        "splits": {split: named[split] | own[split] for split in splits},
        "rows": rows,
        "facts": {"run": {"command": command_of(results)}, "figures": dict(figures)},
    }


def load(folder: pathlib.Path = KEPT) -> dict[str, dict]:
    """Return the results that are kept, by interpreter; a ValueError if they do not belong together."""
    runs = {}
    for path in sorted(folder.glob("py*.json")):
        results = report.load_results(path)
        if path != place_of(results, folder):
            raise ValueError(f"{path} has results of Python {results['versions']['python']}")
        runs[f"Python {'.'.join(results['versions']['python'].split('.')[:2])}"] = results
    if runs:
        check_runs(runs)
    return runs


def place_of(results: Mapping[str, Any], folder: pathlib.Path) -> pathlib.Path:
    """Return where results are kept, by their interpreter."""
    return folder / f"py{''.join(results['versions']['python'].split('.')[:2])}.json"


def digest(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def gain(results: Mapping, row: str, split: str, over: str = "best member") -> Spread:
    """Return the gain of a row over another, seed by seed, as a fraction."""
    found = row_named(rows_table(results | {"reference": over}), row)
    if found is None or not found.gain:
        raise ValueError(f"the results have no {row!r} and {over!r} in the same seeds")
    return found.gain[files.summary_splits(results)[split]]


def side_of_zero(found: Spread) -> int:
    """Return 1 for an interval above 0, -1 for one below; 0 for one that has it, and where none is known."""
    return next((side for side in (1, -1) if side * found.mean - found.half > 0), 0)


def told(found: Spread) -> str:
    """Write a gain in points with its interval, and in how many seeds it has the sign of its mean."""
    sign = 1 if found.mean > 0 else -1
    right = sum(sign * value > 0 for value in found.values)
    return f"{format_gain(found, files.METRICS['accuracy'])} ({right} of {len(found.values)} seeds)"


def sentence(claim: Claim, runs: Runs) -> str:
    """Write a claim where it holds in every run, that the contrary holds, or that nothing can be claimed."""
    found = {name: gain(results, claim.row, claim.split, claim.over) for name, results in runs.items()}
    numbers = "; ".join(f"{told(one)} on {name}" for name, one in found.items())
    sides = {side_of_zero(one) for one in found.values()} if len(runs) > 1 else {0}
    if sides == {1}:
        return f"{claim.text[0].upper()}{claim.text[1:]}: {numbers}."
    if sides == {-1}:
        return f"It does not hold that {claim.text}, but the contrary: {numbers}."
    return f"It is not shown that {claim.text}; no effect can be claimed: {numbers}."


def reached(bar: Bar, found: Spread) -> bool:
    """Say whether a gain is what was demanded."""
    right = sum(value >= 0 if bar.not_below else value > 0 for value in found.values)
    enough = 100 * found.mean >= bar.least and right >= math.ceil(0.9 * len(found.values))
    return enough and (bar.not_below or side_of_zero(found) > 0)


def bar_sentence(bar: Bar, runs: Runs) -> str:
    """Say whether a bar is reached in every run, or in which, with the numbers; one run is not enough."""
    found = {name: gain(results, bar.row, bar.split) for name, results in runs.items()}
    done = [seeds_of(runs[name]) for name, one in found.items() if reached(bar, one)]
    said = "reached" if len(done) == len(runs) > 1 else f"reached by {' and '.join(done)} alone" if done else "missed"
    wanted = f"at least +{bar.least:g} points in the mean, an interval above 0 and a gain in nine of ten seeds"
    if bar.not_below:
        wanted = "not below the best member in the mean and in nine of ten seeds"
    numbers = "; ".join(f"{told(one)} on {name}" for name, one in found.items())
    return f"{bar.row.capitalize()}, {_WHERE[bar.split]}, {wanted}: **{said}**, {numbers}"


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
    """Lay out every row: levels of the first run, gains of all."""
    results = next(iter(runs.values()))
    splits = files.summary_splits(results)
    shown = [role for role in ("test", "shift") if role in splits]
    heads, body = [""], []
    for role in shown:
        heads += [
            f"{files.title_of(results, splits[role])} %",
            *(f"gain, {seeds_of(one)}" for one in runs.values()),
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
    """Lay out the gains of every row, seed by seed, of each run on test and on the shifts."""
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


def seeds_of(results: Mapping[str, Any]) -> str:
    """Write which seeds results have."""
    seeds = sorted(results["seeds"])
    if seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]}–{seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"


def block(runs: Runs) -> str:
    """Write the README's results: what was run, table, claims, bars and figures."""
    results = next(iter(runs.values()))
    examples = results["splits"][files.summary_splits(results)["test"]].get("examples", 0)
    made = [f"{seeds_of(one)} on {name} and {one['device']}" for name, one in runs.items()]
    about = results["config"].get("about", {}).get("shows", "")
    selecting, training = results["splits"]["held_out"]["examples"], results["config"]["task"]["num_train"]
    lines = [
        *([about, ""] if about else []),
        "```bash",
        *(one["facts"]["run"]["command"] for one in runs.values()),
        "```",
        "",
        f"Two sets of seeds that have none in common, {'; '.join(made)}: the second is a replication, with draws of "
        "its own. Each seed draws from the same 5,000 images of MNIST those that train, those that select and "
        f"{examples:,} that test, and has a sweep and an order of its own. Common to all seeds of both sets are the "
        'network that they start from and the images of the shift "printed"; so the intervals speak of other draws '
        "from these images, and not of another start. [docs/glyphs.md](docs/glyphs.md) says what the network had seen: "
        "printed characters, so that forgetting shows on that shift; and under which licences all data stand.",
        "",
        f"{selecting:,} held-out images select among what {training} trained. Who has so many labels would train on "
        "most of them: the setting shows what averaging does, not how to read digits best.",
        "",
        "Mean ± half of the 95 % interval (Student's t) over the seeds of a set; levels are those of the first. "
        "*Gain*: points over the best member of the same seed by held-out accuracy, and in how many seeds it has this "
        "sign. *Passes*: forward passes for a prediction. Seed by seed: [docs/digits](docs/digits/README.md).",
        "",
        *main_table(runs),
        "",
        "What these seeds say. A claim needs a 95 % interval that excludes 0 on the same side in both sets:",
        "",
        *(f"* {sentence(claim, runs)}" for claim in CLAIMS),
        "",
        f"These are {len(CLAIMS)} comparisons at 95 % each, not corrected for their number, and with common rows and "
        "images. Where nothing differs, one set alone excludes 0 once in 20 comparisons; two sets of independent draws "
        "do so on the same side once in 800.",
        "",
        "What was demanded of these runs before they were made, in both sets (after trials with other networks; the "
        f"ranges of the sweep come of trials on other draws of images, which `{CONFIG}` tells of):",
        "",
        *(f"* {bar_sentence(bar, runs)}." for bar in BARS),
        "",
        *figure_lines(runs),
    ]
    return "\n".join(lines[:-1])


def figure_lines(runs: Runs, folder: pathlib.Path = FIGURES) -> list[str]:
    """Embed the figures that were kept with these results, and are unchanged since, with the seeds that they show."""
    lines = []
    for name, (title, first) in SHOWN.items():
        path = folder / f"{name}.png"
        found = digest(path) if path.exists() else ""
        for interpreter, one in runs.items():
            if found and one["facts"].get("figures", {}).get(name) == found:
                seeds = f"seed {one['seeds'][0]}" if first else seeds_of(one)
                lines += [f"![{title}](docs/figures/{name}.png)", "", f"*{title}; {seeds}, {interpreter}.*", ""]
    return lines


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
    check_run(results)
    figures = {name: pathlib.Path(options.run) / "figures" / f"{name}.png" for name in SHOWN if options.figures}
    kept = trimmed(results, {name: digest(made) for name, made in figures.items()})
    KEPT.mkdir(exist_ok=True)
    place = place_of(results, KEPT)
    state.write(place, kept)
    print(place.relative_to(ROOT))
    for name, made in figures.items():
        print(shutil.copyfile(made, FIGURES / f"{name}.png").relative_to(ROOT))


def write(options) -> None:
    """Write the README's results and the page of every seed."""
    runs = load()
    if len(runs) != 2:
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
    one.add_argument("--figures", action="store_true", help="keep its figures too, in the place of others")
    one.set_defaults(do=collect)
    commands.add_parser("write", help="write the pages").set_defaults(do=write)
    options = parser.parse_args()
    try:
        options.do(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
