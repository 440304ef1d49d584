"""Keep the results of runs of the default experiment, and write what the README says of them.

    python scripts/readme_results.py collect runs/digits     # into docs/digits/py311.json, by its interpreter
    python scripts/readme_results.py collect runs/digits --figures      # and its figures into docs/figures
    python scripts/readme_results.py collect runs/again --repeat        # into docs/digits/py313_seeds0-9.json
    python scripts/readme_results.py write                   # README.md and docs/digits/README.md

The runs are of configs/digits.py, on two interpreters with ten seeds each, and none in common, so that the second is a
replication. A third may repeat the seeds of one of them on the other interpreter. What is claimed of them, and when, is
in digits_pages.py.
"""

import argparse
import json
import pathlib
import re
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from digits_pages import (
    CONFIG,
    FIGURES,
    ROOT,
    SHOWN,
    Runs,
    digest,
    figure_lines,
    interpreter,
    readme_block,
    results_page,
    seeds_of,
)

from soups import report, state
from soups.cli.run import read_config
from soups.report import results as files

KEPT = ROOT / "docs" / "digits"
METRICS = ("accuracy", "ece")
SEEDS = 10  # of a run, at least
CHANGES = ("seeds", "first_seed", "random_head.members")  # fields of the config that runs may change
APART = ("first_seed", "data_dir")  # fields that the runs need not share


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


def check_repeat(again: Mapping[str, Any], runs: Runs) -> None:
    """Raise a ValueError for results that are not those of one of the runs, seed by seed, on another interpreter."""
    check_run(again)
    same = [name for name, one in runs.items() if one["seeds"] == again["seeds"] and name != interpreter(again)]
    if not same:
        raise ValueError(f"no results of another interpreter than {interpreter(again)} have {seeds_of(again)}")
    there, here = _flat(again["config"]), _flat(runs[same[0]]["config"])
    apart = ("random_head.members",)
    if wrong := [f for f in sorted(there | here) if f not in apart and there.get(f) != here.get(f)]:
        raise ValueError(f"the configs of {same[0]} and of its repetition differ in {', '.join(wrong)}")


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
        if "_" not in path.name:
            results = _read(path, folder)
            runs[interpreter(results)] = results
    if runs:
        check_runs(runs)
    return runs


def load_repeat(runs: Runs, folder: pathlib.Path = KEPT) -> dict[str, Any] | None:
    """Return the results that repeat the seeds of one of these runs on another interpreter, if there are any."""
    found = [_read(path, folder, repeat=True) for path in sorted(folder.glob("py*_seeds*.json"))]
    if len(found) > 1:
        raise ValueError(f"{folder} has {len(found)} files that repeat seeds, but one is shown")
    for results in found:
        check_repeat(results, runs)
    return found[0] if found else None


def _read(path, folder, repeat=False):
    results = report.load_results(path)
    if path != place_of(results, folder, repeat):
        raise ValueError(f"{path} has results of Python {results['versions']['python']}, {seeds_of(results)}")
    return results


def place_of(results: Mapping[str, Any], folder: pathlib.Path, repeat: bool = False) -> pathlib.Path:
    """Return where results are kept, by their interpreter, and by their seeds if those are of another one."""
    seeds = f"_seeds{min(results['seeds'])}-{max(results['seeds'])}" if repeat else ""
    return folder / f"py{interpreter(results).removeprefix('Python ').replace('.', '')}{seeds}.json"


def updated(readme: str, runs: Runs, again: Mapping[str, Any] | None = None) -> str:
    """Return the README with the results of these runs, and a figure of them; as it is where there are none."""
    if not runs:
        return readme
    first = next(iter(SHOWN))
    blocks = {
        "figure": "\n".join(figure_lines(runs, [first], "docs/figures")).strip(),
        "results": readme_block(runs, again),
    }
    for mark, block in blocks.items():
        begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
        readme = re.sub(f"{begin}.*?{end}", f"{begin}\n{block}\n{end}".replace("\\", r"\\"), readme, flags=re.DOTALL)
    return readme


def collect(options) -> None:
    """Keep the results of a run, and its figures."""
    results = report.load_results(options.run)
    check_run(results)
    if options.repeat:
        check_repeat(results, load())
    figures = {name: pathlib.Path(options.run) / "figures" / f"{name}.png" for name in SHOWN if options.figures}
    kept = trimmed(results, {name: digest(made) for name, made in figures.items()})
    KEPT.mkdir(exist_ok=True)
    place = place_of(results, KEPT, options.repeat)
    state.write(place, kept)
    print(place.relative_to(ROOT))
    for name, made in figures.items():
        print(shutil.copyfile(made, FIGURES / f"{name}.png").relative_to(ROOT))


def write(options) -> None:
    """Write the README's results, and the page with all of them."""
    runs = load()
    if len(runs) != 2:
        raise ValueError(f"{KEPT} needs results of two interpreters, not of {len(runs)}")
    page, again = ROOT / "README.md", load_repeat(runs)
    page.write_text(updated(page.read_text(encoding="utf-8"), runs, again), encoding="utf-8")
    (KEPT / "README.md").write_text(results_page(runs, again), encoding="utf-8")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("collect", help="keep the results of a run")
    one.add_argument("run", metavar="RUN", help="its directory")
    one.add_argument("--figures", action="store_true", help="keep its figures too, in the place of others")
    one.add_argument("--repeat", action="store_true", help="they repeat the seeds of another interpreter")
    one.set_defaults(do=collect)
    commands.add_parser("write", help="write the pages").set_defaults(do=write)
    options = parser.parse_args()
    try:
        options.do(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
