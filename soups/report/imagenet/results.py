"""Read the results of an ImageNet run; docs/results_imagenet.md describes the schema."""

from collections.abc import Mapping

SCHEMA = "soups.imagenet/1"
REQUIRED = ("schema", "experiment", "config", "num_classes", "sets", "held_out", "notes", "rows")
TITLES = {
    "held_out": "held-out",
    "imagenet": "ImageNet",
    "imagenet_v2": "V2",
    "imagenet_sketch": "Sketch",
    "imagenet_r": "R",
    "objectnet": "ObjectNet",
    "imagenet_a": "A",
    "shift_mean": "mean of shifts",
}
_ROW = ("name", "kind", "group", "ingredients", "num_ingredients", "accuracy", "shift_mean", "passes")


def check_imagenet(results: Mapping) -> None:
    """Raise one ValueError for another schema, or that lists all keys that are missing."""
    if results.get("schema") != SCHEMA:
        raise ValueError(f"these results have schema {results.get('schema')!r}, not {SCHEMA!r}")
    missing = [key for key in REQUIRED if key not in results]
    for place, row in enumerate(results.get("rows", [])):
        missing += [f"rows[{place}].{key}" for key in _ROW if key not in row]
        missing += [
            f"rows[{place}].accuracy.{name}" for name in results.get("sets", ()) if name not in row.get("accuracy", ())
        ]
    if missing:
        raise ValueError(f"the results are not a complete {SCHEMA} file; missing: {', '.join(missing)}")


def rows_of(results: Mapping, group: str) -> list[dict]:
    """List the rows of a group: main, member or curve."""
    return [row for row in results["rows"] if row["group"] == group]


def row_named(results: Mapping, name: str) -> dict | None:
    """Find the main row of this name; None where the run did not make it."""
    return next((row for row in rows_of(results, "main") if row["name"] == name), None)


def columns_of(results: Mapping) -> list[str]:
    """List the columns of every table: the sets that were measured, in their order, and the mean of the shifts."""
    sets = [name for name in TITLES if name in results["sets"]]
    return sets + ["shift_mean"] * (results["rows"][0]["shift_mean"] is not None if results["rows"] else 0)


def value(row: Mapping, column: str) -> float:
    """Return an accuracy of a row, as a fraction."""
    return row["shift_mean"] if column == "shift_mean" else row["accuracy"][column]
