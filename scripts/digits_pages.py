"""Write what the README and docs/digits/README.md say of runs of the default experiment; `readme_results.py` calls it.

A claim is written as one only where its 95 % interval over the seeds excludes 0 on the same side in both sets of seeds;
else the pages say that no effect can be claimed, with the numbers.
"""

import hashlib
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from soups.report import results as files
from soups.report.tables import Spread, format_gain, format_number, format_spread, row_named, rows_table

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures"
CONFIG = "configs/digits.py"
#: title of a figure, and whether it shows the first seed alone; the first one is the README's
SHOWN = {
    "number_of_models": ("Gain over the best member so far against the number of members", False),
    "scatter": ("Accuracy on the shifts against test accuracy", False),
    "loss_plane": ("Held-out error in the plane through the linear probe and two members", True),
}
IN_README = ("best member", "greedy soup", "uniform soup", "learned soup", "ensemble")  # rows
Results = Mapping[str, Any]
Runs = Mapping[str, Results]  # by interpreter, as "Python 3.11"


class Claim(NamedTuple):
    """State what may be claimed: that a row is better than another."""

    text: str
    row: str
    split: str  # "test" or "shift"
    over: str = "best member"

    @property
    def of_probe(self) -> bool:
        """Whether it is about members from the linear probe, against the same from a random head."""
        return self.over.startswith("random head")


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


# --- Verdicts ---------------------------------------------------------------------------------------------------------


def gain(results: Results, row: str, split: str, over: str = "best member") -> Spread:
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


def verdict(claim: Claim, runs: Runs) -> int:
    """Return 1 where a claim holds in every run, -1 where the contrary does; else 0, as for one run alone."""
    sides = {side_of_zero(gain(results, claim.row, claim.split, claim.over)) for results in runs.values()}
    return sides.pop() if len(sides) == 1 < len(runs) else 0


def sentence(claim: Claim, runs: Runs) -> str:
    """Write a claim where it holds in every run, that the contrary holds, or that nothing can be claimed."""
    found = {name: gain(results, claim.row, claim.split, claim.over) for name, results in runs.items()}
    numbers = "; ".join(f"{told(one)} on {name}" for name, one in found.items())
    said = {
        1: claim.text,
        -1: claim.text.replace(" better than ", " worse than "),
        0: f"it is not shown that {claim.text}; no effect can be claimed",
    }[verdict(claim, runs)]
    return f"{said[0].upper()}{said[1:]}: {numbers}."


def reached(bar: Bar, found: Spread) -> bool:
    """Say whether a gain is what was demanded."""
    right = sum(value >= 0 if bar.not_below else value > 0 for value in found.values)
    enough = 100 * found.mean >= bar.least and right >= math.ceil(0.9 * len(found.values))
    return enough and (bar.not_below or side_of_zero(found) > 0)


def everywhere(bar: Bar, runs: Runs) -> bool:
    """Say whether a bar is reached in every run, of which there must be two."""
    return len(runs) > 1 and all(reached(bar, gain(one, bar.row, bar.split)) for one in runs.values())


def bar_sentence(bar: Bar, runs: Runs) -> str:
    """Say whether a bar is reached in every run, or in which, with the numbers; one run is not enough."""
    found = {name: gain(results, bar.row, bar.split) for name, results in runs.items()}
    done = [seeds_of(runs[name]) for name, one in found.items() if reached(bar, one)]
    said = f"reached by {' and '.join(done)} alone" if done else "missed"
    said = "reached" if everywhere(bar, runs) else said
    wanted = f"at least +{bar.least:g} points in the mean, an interval above 0 and a gain in nine of ten seeds"
    if bar.not_below:
        wanted = "not below the best member in the mean and in nine of ten seeds"
    numbers = "; ".join(f"{told(one)} on {name}" for name, one in found.items())
    return f"{bar.row.capitalize()}, {_WHERE[bar.split]}, {wanted}: **{said}**, {numbers}."


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


def roles_of(results: Results) -> dict[str, str]:
    """Return the splits that report, by their role."""
    splits = files.summary_splits(results)
    return {role: splits[role] for role in ("test", "shift") if role in splits}


def row_gain(results: Results, row: str, role: str) -> Spread | None:
    """Return the gain of a row over the best member; None where the results have no such row."""
    return gain(results, row, role) if row_named(rows_table(results), row) else None


def main_table(runs: Runs, names: Iterable[str] = ()) -> list[str]:
    """Lay out levels of the first run and the gains of all: of every row with its calibration, or of those named."""
    results = next(iter(runs.values()))
    roles, names = roles_of(results), tuple(names)
    heads = [""]
    for split in roles.values():
        heads += [f"{files.title_of(results, split)} %", *(f"gain, {seeds_of(one)}" for one in runs.values())]
    body = []
    for row in rows_table(results):
        cells = [row.name]
        for role, split in roles.items():
            gains = (row_gain(one, row.name, role) for one in runs.values())
            cells += [_cell(row.metrics[split]["accuracy"]), *(_cell(one, signed=True) for one in gains)]
        calibration = [] if names else [_cell(row.metrics[roles["test"]].get("ece"))]
        body.append([*cells, *calibration, format_number(row.cost["inference"].mean, digits=0)])
    if names:
        body = [next(cells for cells in body if cells[0] == name) for name in names]
    return table([*heads, *([] if names else ["ECE %"]), "passes"], body)


def repeat_table(first: Results, again: Results) -> list[str]:
    """Lay out the gains of the rows that two runs of the same seeds share, beside each other."""
    heads, body = [""], []
    for split in roles_of(first).values():
        heads += [f"{files.title_of(first, split)}, {interpreter(one)}" for one in (first, again)]
    for row in rows_table(again):
        gains = [row_gain(one, row.name, role) for role in roles_of(first) for one in (first, again)]
        if row.name != first["reference"] and None not in gains:
            body.append([row.name, *(_cell(one, signed=True) for one in gains)])
    return table(heads, body)


def seed_tables(runs: Runs) -> list[str]:
    """Lay out the gains of every row, seed by seed, of each run on test and on the shifts."""
    lines = []
    for name, results in runs.items():
        for role, split in roles_of(results).items():
            body = []
            for row in rows_table(results):
                if row.name == results["reference"]:
                    continue
                found = gain(results, row.name, role)
                values = dict(zip(row.seeds, found.values, strict=True))
                each = (format_number(values.get(seed, math.nan), 100, sign="+") for seed in results["seeds"])
                body.append([row.name, *each, told(found)])
            heads = ["", *(f"seed {seed}" for seed in results["seeds"]), "mean, 95 % interval"]
            lines += [f"### {name}: {files.title_of(results, split)}", "", *table(heads, body), ""]
    return lines


# --- Pages ------------------------------------------------------------------------------------------------------------


def _versions(results):
    shown = {"Python": "python", "jax": "jax", "flax": "flax"}
    found = {title: results["versions"].get(name) for title, name in shown.items()}
    return ", ".join(f"{title} {version}" for title, version in found.items() if version)


def interpreter(results: Results) -> str:
    """Return the interpreter of results, as "Python 3.11"."""
    return f"Python {'.'.join(results['versions']['python'].split('.')[:2])}"


def seeds_of(results: Results) -> str:
    """Write which seeds results have."""
    seeds = sorted(results["seeds"])
    if seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]}–{seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"


def first_of(runs: Runs, again: Results) -> Results:
    """Return the run whose seeds another one repeats."""
    return next(one for one in runs.values() if one["seeds"] == again["seeds"])


def about(runs: Runs) -> list[str]:
    """Write what the experiment shows, as its config says it."""
    shown = next(iter(runs.values()))["config"].get("about", {}).get("shows", "")
    return [shown, ""] if shown else []


def readme_block(runs: Runs, again: Results | None = None) -> str:
    """Write the README's results: five rows, what holds and what does not."""
    better = [claim for claim in CLAIMS if claim.over == "best member"]
    doubtful = [claim for claim in better if verdict(claim, runs) != 1]
    rows = dict.fromkeys(claim.row for claim in better)
    holds = [row for row in rows if row not in {claim.row for claim in doubtful}]
    others = [claim for claim in CLAIMS if claim not in better and not claim.of_probe]
    seeds = len(next(iter(runs.values()))["seeds"])
    repeated = f" {repeat_sentence(first_of(runs, again), again)}" if again else ""
    lines = [
        " ".join([f"{seeds} seeds, twice, of what `bash scripts/quickstart.sh` runs once.", *about(runs)]).strip(),
        "",
        *commands(runs),
        *main_table(runs, IN_README),
        "",
        "Accuracies are of the first set of seeds. Gains are points over the best member of the same seed by held-out "
        "accuracy: the mean ± half of its 95 % interval, and in how many seeds it has this sign. *Passes* are forward "
        f"passes for a prediction. {training_and_selecting(runs)}{repeated} [All rows, claims and demands, seed by "
        "seed](docs/digits/README.md), with what the intervals are about.",
        "",
        *([f"* {_sum_up(holds)}"] if holds else []),
        *(f"* {sentence(claim, runs)}" for claim in (*doubtful, *others)),
        f"* {probe_sentence(runs)}",
        f"* {bars_sentence(runs)}",
    ]
    return "\n".join(lines)


def commands(runs: Runs) -> list[str]:
    """Return the commands that make the runs, as lines of Markdown."""
    return ["```bash", *(one["facts"]["run"]["command"] for one in runs.values()), "```", ""]


def training_and_selecting(runs: Runs) -> str:
    """Say how many images train and how many select, and so what the setting is for."""
    results = next(iter(runs.values()))
    selecting, training = results["splits"]["held_out"]["examples"], results["config"]["task"]["num_train"]
    return (
        f"{training} images train and {selecting:,} held-out images select. Whoever has so many labels would train on "
        "most of them: the setting shows what averaging does, not how to read digits best."
    )


def _sum_up(rows):
    names = [row.removesuffix(" soup") for row in rows]
    listed = f"{', '.join(names[:-1])} and {names[-1]} soups are" if len(names) > 1 else f"{names[0]} soup is"
    return (
        f"The {listed} better than the best member, in distribution and on the shifts: every interval of both sets "
        "lies above 0."
    )


def probe_sentence(runs: Runs) -> str:
    """Say whether it helped to train a linear probe first, with what is shown of it."""
    found = {claim: verdict(claim, runs) for claim in CLAIMS if claim.of_probe}
    lead = "helped in part" if 1 in found.values() else "did not help"
    lead = "helped" if set(found.values()) == {1} else "is not shown to help" if not any(found.values()) else lead
    return " ".join([f"**LP-FT {lead}.**", *(sentence(claim, runs) for claim, side in found.items() if side)])


def bars_sentence(runs: Runs) -> str:
    """Say how many bars were reached, and which were not."""
    rest = [bar for bar in BARS if not everywhere(bar, runs)]
    done = f"{len(BARS) - len(rest)} of {len(BARS)} demands that were made before the runs were reached in both sets."
    missed = (bar_sentence(bar, runs) for bar in rest)
    return " ".join([done, *(f"Not in both: {one[0].lower()}{one[1:]}" for one in missed)])


def repeat_sentence(first: Results, again: Results) -> str:
    """Say how far the gains of the README's rows move when the same seeds run on another interpreter."""

    def moved(role):
        rows = [row for row in IN_README if row != first["reference"]]
        most = max(abs(gain(first, row, role).mean - gain(again, row, role).mean) for row in rows)
        return f"{math.ceil(round(1e4 * most, 6)) / 100:.2f}"

    return (
        f"{seeds_of(again).capitalize()} again on {_versions(again)}: the mean gains of these rows move by at most "
        f"{moved('test')} points in distribution and {moved('shift')} on the shifts."
    )


def figure_lines(
    runs: Runs, names: Iterable[str] = SHOWN, link="../figures", folder: pathlib.Path = FIGURES
) -> list[str]:
    """Embed the figures that were kept with these results, and are unchanged since, with the seeds that they show."""
    lines = []
    for name in names:
        (title, first), path = SHOWN[name], folder / f"{name}.png"
        found = digest(path) if path.exists() else ""
        for key, one in runs.items():
            if found and one["facts"].get("figures", {}).get(name) == found:
                seeds = f"seed {one['seeds'][0]}" if first else seeds_of(one)
                lines += [f"![{title}]({link}/{name}.png)", "", f"*{title}; {seeds}, {key}.*", ""]
    return lines


def digest(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def results_page(runs: Runs, again: Results | None = None) -> str:
    """Write docs/digits/README.md: what was run, every row, claim, bar and figure, and every gain seed by seed."""
    everything = runs | ({f"{interpreter(again)}, {seeds_of(again)}": again} if again else {})
    lines = [
        "# Digits: what averaging gains",
        "",
        *about(runs),
        *_setting(runs),
        "## Every row",
        "",
        "Values are the mean ± half of the 95 % interval (Student's t) over the seeds of a set; accuracies are of the "
        "first set. *Gain* is in points over the best member of the same seed by held-out accuracy, with the number of "
        "seeds in which it has this sign. *Passes* are forward passes for a prediction.",
        "",
        *main_table(runs),
        "",
        *_claims(runs),
        *(_repeat(first_of(runs, again), again) if again else []),
        "## Figures",
        "",
        *figure_lines(runs),
        "## Seed by seed",
        "",
        "Gains in points over the best member by held-out accuracy of the same seed.",
        "",
        *seed_tables(everything),
        "## Where this page comes from",
        "",
        "`python scripts/readme_results.py write` makes it from the files beside it, which `soups.report` reads:",
        "",
        *(f"* {name}: {_versions(one)}, {one['device']}, {one['created']}" for name, one in everything.items()),
        "",
    ]
    return "\n".join(lines)


def _setting(runs):
    results = next(iter(runs.values()))
    examples = results["splits"][files.summary_splits(results)["test"]].get("examples", 0)
    sets = " and ".join(f"{seeds_of(one)} on {name} ({one['device']})" for name, one in runs.items())
    return [
        *commands(runs),
        f"There are two sets of seeds that have none in common: {sets}. The second is a replication with draws of its "
        "own. Each seed draws its training images, its held-out images and "
        f"{examples:,} test images from the same 5,000 images of MNIST, and has a sweep and an order of its own. All "
        'seeds of both sets share the network that they start from and the images of the shift "printed"; so the '
        "intervals are about other draws from these images, and not about another start. "
        "[docs/glyphs.md](../glyphs.md) says what the network had seen: printed characters, so that forgetting shows "
        "on that shift. It also has the licences of all data.",
        "",
        training_and_selecting(runs),
        "",
    ]


def _claims(runs):
    return [
        "## What these seeds say",
        "",
        "A claim needs a 95 % interval that excludes 0 on the same side in both sets:",
        "",
        *(f"* {sentence(claim, runs)}" for claim in CLAIMS),
        "",
        f"These are {len(CLAIMS)} comparisons at 95 % each, which share rows and images and are not corrected for "
        "their number. Where nothing differs, the interval of one set excludes 0 in one of 20 comparisons; those of "
        "two sets of independent draws do so on the same side in one of 800.",
        "",
        "## What was demanded",
        "",
        "This was demanded of both sets before they were run, after trials with other networks; the ranges of the "
        f"sweep come from trials on other draws of images, which `{CONFIG}` describes:",
        "",
        *(f"* {bar_sentence(bar, runs)}" for bar in BARS),
        "",
    ]


def _repeat(first, again):
    return [
        "## The same seeds on the other interpreter",
        "",
        f"{repeat_sentence(first, again)} Nothing but the versions differs, so what moves is what rounding does to the "
        "training of each member. Gains over the best member, beside each other:",
        "",
        *repeat_table(first, again),
        "",
    ]
