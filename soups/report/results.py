"""Read and check the results of a study, whatever it is, and find things in them; docs/results.md has the schema.

A study writes a dict of JSON values. The least of one, from which a whole report is made:

    results = {
        "schema": SCHEMA,
        "experiment": "mine",
        "created": "2026-11-28T12:00:00+00:00",
        "config": {},
        "versions": {"soups": soups.__version__},
        "device": "cpu x1",
        "seeds": [0],
        "splits": {"held_out": {"role": "held_out", "examples": 500}, "test": {"role": "test", "examples": 500}},
        "rows": [
            {"seed": 0, "name": "best member", "kind": "member", "group": "main",
             "metrics": {"held_out": {"accuracy": 0.91}, "test": {"accuracy": 0.90}}},
            {"seed": 0, "name": "uniform soup", "kind": "soup", "group": "main",
             "metrics": {"held_out": {"accuracy": 0.92}, "test": {"accuracy": 0.91}}},
        ],
    }
    check(results)
    state.write(workdir / "results.json", results)
    write_report(workdir)
"""

import difflib
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from soups import state
from soups.files import PathLike, any_path, meant_path
from soups.names import count_of, few, refuse
from soups.recipes._scores import MODES

SCHEMA = "soups.results/2"
BEYOND = 1e30  # what is not smaller no axis can show
GROUPS = ("main", "member", "curve")
ROLES = ("test", "shift", "held_out", "train")

_OLDER = ("soups.results/1", "soups.tasks/1", "soups.rebasin/1", "soups.imagenet/1")


class Metric(NamedTuple):
    """State how a metric is shown, and which of two values is better."""

    title: str
    better: str  # "higher" or "lower"
    percent: bool = False

    @property
    def sign(self) -> int:
        """Return 1 where higher is better, else -1."""
        return 1 if self.better == "higher" else -1

    @property
    def scale(self) -> float:
        """Return what a value is multiplied by to be shown."""
        return 100.0 if self.percent else 1.0

    @property
    def digits(self) -> int:
        """Return how many decimals are shown."""
        return 2 if self.percent else 3

    @property
    def drawn_digits(self) -> int:
        """Return how many decimals figures show."""
        return 1 if self.percent else 3


_TITLES = {"nll": "NLL", "brier": "Brier", "ece": "ECE", "ece_equal_width": "ECE equal width", "mse": "MSE"}
_TITLES |= {"mae": "MAE", "rmse": "RMSE", "r2": "R²", "f1": "F1", "micro_f1": "micro F1", "macro_f1": "macro F1"}
_TITLES |= {"token_nll": "token NLL", "map": "MAP", "auc": "AUC", "top_1": "top-1", "top_5": "top-5"}
_PERCENT = {"accuracy", "top_1", "top_5", "per_class_accuracy", "token_accuracy", "exact_match", "normalised"}
_PERCENT |= {"f1", "micro_f1", "macro_f1", "ece", "ece_equal_width"}
#: those whose direction greedy soups know, and the accuracy in units of the member's
METRICS = {
    name: Metric(_TITLES.get(name, name.replace("_", " ")), {"max": "higher", "min": "lower"}[mode], name in _PERCENT)
    for name, mode in (MODES | {"normalised": "max"}).items()
}

# the schema: "name?" may be missing, "*" is any name, a tuple is either
_MAYBE = (float, type(None))
_METRICS = {"*": {"*": _MAYBE}}
_STAGES = {"*": {"*": object}}
_MEMBER = {"name": str, "config?": {"*": object}, "status?": str, "digest?": str, "losses?": [_MAYBE]}
_PUBLISHED = {"value": float, "exact": bool, "tolerance?": _MAYBE}
_ROW = {
    "seed": int,
    "name": str,
    "kind": str,
    "group": str,
    "metrics": _METRICS,
    "family?": str,
    "of?": {"*": (str, float)},
    "ingredients?": {"*": float},
    "num_ingredients?": int,
    "settings?": {"*": object},
    "cost?": {"*": _MAYBE},
    "classes?": _METRICS,
    "wins?": {"*": [int]},
    "published?": {"*": _PUBLISHED},
}
_PAIR = {
    "seed": int,
    "a": str,
    "b": str,
    "of?": {"*": (str, float)},
    "values": {"*": _MAYBE},
    "lambdas?": [float],
    "path?": {"*": {"*": [_MAYBE]}},
}
_CLAIM = {"seed": int, "title": str, "value": _MAYBE, "unit?": str}
_SHAPE = {
    "schema": str,
    "experiment": str,
    "created": str,
    "config": {"*": object},
    "versions": {"*": object},
    "device": str,
    "seeds": [int],
    "splits": {"*": {"role": str, "examples?": int, "mean_of?": [str], "title?": str}},
    "rows": [_ROW],
    "metric?": str,
    "metrics?": {"*": {"title": str, "better": str, "percent?": bool}},
    "reference?": str,
    "members?": {"*": [_MEMBER]},
    "pairs?": [_PAIR],
    "curves?": [{"seed": int, "kind": str}],
    "claims?": [_CLAIM],
    "histories?": {"*": {"*": list}},
    "timings?": _STAGES,
    "facts?": _STAGES,
    "notes?": [str],
}
_CURVES = {
    "plane": {"x": [float], "y": [float], "values": [[_MAYBE]], "points": {"*": [float]}},
    "reliability": {"name": str, "bins": [{"confidence": float, "accuracy": float, "count": int}]},
    "masks": {"name": str, "percent": {"*": _MAYBE}, "alone": {"*": _MAYBE}, "jaccard": _METRICS},
}


def load_results(path: PathLike) -> dict[str, Any]:
    """Read and check a results file, given as the file or as the directory that holds `results.json`.

    Sections that may be missing are empty in the result. A ValueError if it is damaged or of another version of the
    schema, and one that lists all that is missing, unknown, contradictory or of another type.
    """
    path = any_path(path)
    path = path / "results.json" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(
            f"no results file at {path}{meant_path(path)}: run the study first, it writes results.json"
        )
    try:
        return check(state.read(path), path)
    except ValueError:
        # those that have no checksum, either
        if old := next((name for name in _OLDER if f'"schema": "{name}"'.encode() in state.content(path)), None):
            raise ValueError(_other_schema(path, old)) from None
        raise


def check(results: Any, where: PathLike = "results") -> dict[str, Any]:
    """Return results with empty sections for those that may be missing; errors are those of `load_results`."""
    if not isinstance(results, Mapping):
        raise ValueError(f"{where} must hold a JSON object, not a {type(results).__name__}")
    if (version := results.get("schema", SCHEMA)) != SCHEMA:
        raise ValueError(_other_schema(where, version))
    # the same mostly is wrong in many places: one line for each fault, with the first places
    places: dict[str, list[str]] = {}
    contents = (
        problem
        for part in (_of_splits, _of_rows, _of_metrics, _of_curves, _of_pairs, _of_claims)
        for problem in part(results)
    )
    for label, problem in _structure(results, _SHAPE, "") or contents:
        places.setdefault(problem, []).append(label)
    lines = (f"{problem}{_at(found)}" for problem, found in places.items())
    refuse(f"{where} is not a complete {SCHEMA} file", lines)
    empty = {"metric": "accuracy", "reference": "best member", "notes": [], "pairs": [], "curves": [], "claims": []}
    empty |= {name: {} for name in ("metrics", "members", "histories", "timings", "facts")}
    return empty | dict(results)


def metric_of(results: Mapping, name: str | None = None) -> Metric:
    """Return what is known of a metric, of the main one if none is named: from the results, else the usual ones."""
    name = name or results["metric"]
    found = results["metrics"].get(name)
    return Metric(**found) if found else METRICS[name]


def value(row: Mapping, split: str, metric: str) -> float:
    """Return a metric of a row; NaN where it is null or was not measured."""
    number = row["metrics"].get(split, {}).get(metric)
    return math.nan if number is None else float(number)


def summary_splits(results: Mapping) -> dict[str, str]:
    """Return for each role the split that stands for it: the mean over several, else the first.

    A mean over one split alone is that split, which would stand there twice.
    """
    found = {}
    for role in ROLES:
        names = [name for name, split in results["splits"].items() if split["role"] == role]
        means = [name for name in names if len(results["splits"][name].get("mean_of", ())) > 1]
        if names:
            found[role] = (means or names)[0]
    return found


def details(results: Mapping, split: str | None) -> list[str]:
    """List the splits that a mean is over; none for a plain split, or for none."""
    return results["splits"][split].get("mean_of", []) if split else []


def title_of(results: Mapping, split: str) -> str:
    """Return the name of a split for people."""
    plain = {"held_out": "held-out", "shift_mean": "shift mean"}.get(split, split)
    return results["splits"][split].get("title", plain)


def rows_of(results: Mapping, group: str, seed: int | None = None) -> list[dict]:
    """List the rows of a group, of one seed or of all."""
    return [row for row in results["rows"] if row["group"] == group and seed in (None, row["seed"])]


def facets(row: Mapping) -> tuple:
    """Return what a row or a pair is of, in a form that can be compared."""
    return tuple(sorted(row.get("of", {}).items()))


def curves_of(results: Mapping, kind: str) -> list[dict]:
    """List the curves of a kind, by seed."""
    return [curve for curve in results["curves"] if curve["kind"] == kind]


def grouped(items: Iterable, key: Callable[[Any], Hashable]) -> dict[Any, list]:
    """Return the items by a key, in the order of the first of each."""
    found: dict[Any, list] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def by_seed(items: Sequence[Mapping], seeds: Sequence[int]) -> list[Mapping]:
    """Return the items of the first seed that has any."""
    return next((found for seed in seeds if (found := [item for item in items if item["seed"] == seed])), [])


Problems = list[tuple[str, str]]  # (where, what is wrong)


def _other_schema(where, version):
    hint = "; it is from an earlier version: run the same command again in another workdir"
    known = f"this version of soups reads {SCHEMA!r}{hint if version in _OLDER else ''}"
    return f"{where} has schema {str(version)[:80]!r}, but {known}"


def _structure(found, shape, where) -> Problems:
    if isinstance(shape, dict):
        return _of_object(found, shape, where)
    if isinstance(shape, list):
        if not isinstance(found, list):
            return [(where, f"must be a list, not {_kind(found)}")]
        return [problem for i, one in enumerate(found) for problem in _structure(one, shape[0], _place(where, one, i))]
    shapes = shape if isinstance(shape, tuple) else (shape,)
    if any(_is_of(found, one) for one in shapes):
        return []
    return [(where, f"must be {' or '.join(_NAMES[one] for one in shapes)}, not {_kind(found)}")]


_NAMES = {str: "a text", int: "an integer", float: "a number", bool: "true or false", list: "a list"}
_NAMES |= {type(None): "null", object: "anything"}


def _is_of(found, kind):
    if kind in (int, float):
        number = isinstance(found, int if kind is int else int | float) and not isinstance(found, bool)
        return number and math.isfinite(found) and abs(found) < BEYOND
    return isinstance(found, kind)


def _of_object(found, shape, where) -> Problems:
    if not isinstance(found, Mapping):
        return [(where, f"must be an object, not {_kind(found)}")]
    if "*" in shape:
        return [p for name, one in found.items() for p in _structure(one, shape["*"], f"{where}.{name}".lstrip("."))]
    problems: Problems = []
    for key, inner in shape.items():
        name = key.removesuffix("?")
        if name in found:
            problems += _structure(found[name], inner, f"{where}.{name}".lstrip("."))
        elif not key.endswith("?"):
            known = {known.removesuffix("?") for known in shape}
            close = difflib.get_close_matches(name, [key for key in found if key not in known], n=1)
            problems.append((where, f"{name} is missing{f' (did you misspell it as {close[0]!r}?)' if close else ''}"))
    return problems


def _of_splits(results):
    splits = results["splits"]
    for name, split in splits.items():
        if split["role"] not in ROLES:
            yield f"splits.{name}", f"role {split['role']!r} is not one of {', '.join(ROLES)}"
        for other in split.get("mean_of", ()):
            if "mean_of" in splits.get(other, {"mean_of": ()}):
                yield f"splits.{name}", f"mean_of names {other!r}, which is not a split, or is itself a mean"
    if not any(split["role"] == "test" for split in splits.values()):
        yield "splits", 'no split has the role "test"'
    if not results["seeds"]:
        yield "seeds", "there must be at least one"


def _of_rows(results):
    metric, needed = results.get("metric", "accuracy"), set(results["splits"])
    for index, row in enumerate(results["rows"]):
        label = _place("rows", row, index)
        if row["group"] not in GROUPS:
            yield label, f"group {row['group']!r} is not one of {', '.join(GROUPS)}"
        if row["seed"] not in results["seeds"]:
            yield label, f"seed {row['seed']} is not in seeds"
        for split in row["metrics"].keys() - needed:
            yield label, f"metrics.{split}: there is no such split"
        if any(len(found) != 2 for found in row.get("wins", {}).values()):
            yield label, "wins must be pairs of integers"
        yield from _of_places(label, row)
        if row["group"] != "curve":
            for split in (split for split in results["splits"] if metric not in row["metrics"].get(split, ())):
                yield label, f"metrics.{split}.{metric} is missing"
    keys = Counter((row["seed"], row["group"], row["name"], facets(row)) for row in results["rows"])
    for (seed, _, name, _), number in keys.items():
        if number > 1:
            yield f"{name!r} (seed {seed})", "the same row appears twice"
    matrix = (row for row in results["rows"] if {"start", "target"} <= row.get("of", {}).keys())
    for (seed, of), number in Counter((row["seed"], facets(row)) for row in matrix).items():
        if number > 1:
            place = ", ".join(f"{name} {value!r}" for name, value in of)
            yield f"{place} (seed {seed})", "the same start and target appear twice"


def _of_metrics(results):
    known = METRICS.keys() | results.get("metrics", {}).keys()
    used = {metric for row in results["rows"] for found in row["metrics"].values() for metric in found}
    for name in sorted((used | {results.get("metric", "accuracy")}) - known):
        yield "metrics", f"{name!r} is unknown: say there whether higher or lower is better"
    for name, found in results.get("metrics", {}).items():
        if found["better"] not in ("higher", "lower"):
            yield f"metrics.{name}", f'better must be "higher" or "lower", not {found["better"]!r}'


def _of_curves(results):
    for index, curve in enumerate(results.get("curves", ())):
        label = f"curves[{index}]"
        wrong = _structure(curve, _CURVES.get(curve["kind"], {}), label)
        yield from wrong
        if curve["seed"] not in results["seeds"]:
            yield label, f"seed {curve['seed']} is not in seeds"
        if curve["kind"] == "plane" and not wrong:
            size = len(curve["y"]), len(curve["x"])
            if any(sorted(set(axis)) != axis for axis in (curve["x"], curve["y"])):
                yield label, "x and y must be ascending numbers"
            if min(size) < 2 or [len(row) for row in curve["values"]] != [size[1]] * size[0]:
                yield label, f"values must be {size[0]} lists of {size[1]} numbers, as many as y and x have, at least 2"
            if any(len(place) != 2 for place in curve["points"].values()):
                yield label, "points must be pairs of numbers"


def _of_pairs(results):
    pairs = results.get("pairs", ())
    if len({tuple(pair["lambdas"]) for pair in pairs if "lambdas" in pair}) > 1:
        yield "pairs", "lambdas must be the same in all"
    for index, pair in enumerate(pairs):
        yield from _of_places(f"pairs[{index}]", pair)
        sizes = {len(line) for lines in pair.get("path", {}).values() for line in lines.values()}
        if sizes - {len(pair.get("lambdas", ()))}:
            yield f"pairs[{index}]", "path must have a value for each of lambdas"
        if pair["seed"] not in results["seeds"]:
            yield f"pairs[{index}]", f"seed {pair['seed']} is not in seeds"


def _of_claims(results):
    found = results.get("claims", ())
    for claim in found:
        if claim["seed"] not in results["seeds"]:
            yield f"the claim {claim['title']!r}", f"seed {claim['seed']} is not in seeds"
    for (title, seed), number in Counter((claim["title"], claim["seed"]) for claim in found).items():
        if number > 1:
            yield f"the claim {title!r} (seed {seed})", "the same claim appears twice"
    for title, several in grouped(found, lambda claim: claim["title"]).items():
        if len({claim.get("unit") for claim in several}) > 1:
            yield f"the claim {title!r}", "unit must be the same in all seeds"


def _of_places(label, found):
    for name in ("models", "alpha", "units", "share"):
        if isinstance(found.get("of", {}).get(name), str):
            yield label, f"of.{name} must be a number"


def _place(where, found, index):
    if isinstance(found, Mapping) and isinstance(found.get("name"), str) and where == "rows":
        return f"{found['name']!r} (seed {found.get('seed', '?')})"
    return f"{where}[{index}]"


def _kind(found):
    return "null" if found is None else str(found)[:40] if isinstance(found, int | float) else type(found).__name__


def _at(places):
    named = [place for place in places if place]
    return f" in {count_of(len(named), 'place')}: {few(named, 4)}" if named else ""
