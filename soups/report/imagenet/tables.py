"""Write the numbers of an ImageNet run for people: cells, sentences, and the tables on the terminal."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from soups.report.imagenet.published import Difference, differences, member_differences, published, published_pool
from soups.report.imagenet.results import TITLES, columns_of, row_named, rows_of, value

NOTE = (
    "In small: how far it is from the published number, in images of the set where that is exact, else in points (p). "
    "±: by how many images two machines have differed before; a mark (!) says that it is more."
)


def percent(fraction: float) -> str:
    """Write a fraction as a percentage of two decimals, without the sign %."""
    return f"{100 * fraction:.2f}"


def difference_text(found: Difference | None) -> str:
    """Write a difference: +2 images, −0.03p where it is in points, ! where it is more than machines differ by."""
    if found is None:
        return ""
    text = f"{found.images:+d}" if found.images is not None else f"{found.points:+.2f}p"
    return text.replace("-", "−") + "!" * found.outside


def headings(results: Mapping) -> list[str]:
    """Name the columns, with the tolerance of each set where the run is about the published members."""
    known = published()["tolerance"] if published_pool(results) == "soups" else {}
    return [TITLES[name] + (f" ±{known[name]}" if known.get(name) else "") for name in columns_of(results)]


# --- Sentences --------------------------------------------------------------------------------------------------------


def sentences(results: Mapping) -> list[str]:
    """Say in plain sentences what was measured, what is best, and how it compares with what was published."""
    sets = ", ".join(f"{TITLES[name]} {found['examples']:,}" for name, found in results["sets"].items())
    said = [
        f"{len(rows_of(results, 'member'))} members were measured on: {sets}. The held-out images are chosen "
        + {"published": "by the published index file.", "by file name": "by file name, not as published."}[
            results["held_out"]
        ]
    ]
    return [*said, *_best(results), *_beside(results)]


def _best(results):
    best = row_named(results, "best member")
    soups = [row for row in rows_of(results, "main") if row["kind"] == "soup"]
    if best is None or not soups:
        return
    for column in (column for column in ("imagenet", "shift_mean") if column in columns_of(results)):
        top = max(soups, key=lambda row: value(row, column))
        gain = 100 * (value(top, column) - value(best, column))
        text = f"{gain:+.2f}".replace("-", "−")
        verdict = "" if gain > 0 else "; no soup is above it"
        yield (
            f"{TITLES[column]}: the highest soup in hindsight is {top['name']} with {percent(value(top, column))} %, "
            f"{text} points from the best member on held-out data ({percent(value(best, column))} %){verdict}."
        )


def _beside(results):
    if published_pool(results) is None:
        return
    if found := member_differences(results):
        known = [one for one in found.values() if one["tolerance"]]
        outside, number = sum(one["outside"] for one in known), sum(one["members"] for one in known)
        column, worst = max(found.items(), key=lambda item: abs(item[1]["largest"]))
        yield (
            f"Of the {number} accuracies of members whose spread between machines is known, {number - outside} are "
            f"within it; the largest difference is {worst['largest']:+d} images, {worst['member']} on {TITLES[column]}."
        )
    if greedy := row_named(results, "greedy soup"):
        theirs, ours = published()["greedy_ingredients"], list(greedy["ingredients"])
        same = "the same as published" if ours == theirs else f"published: {', '.join(theirs)}"
        yield f"The greedy soup took {', '.join(ours)}; {same}."


# --- The terminal -----------------------------------------------------------------------------------------------------


def print_imagenet_table(results: Mapping, console: Console | None = None) -> None:
    """Print the main rows and the path of WiSE-FT, each number with its difference, and what they say."""
    console = console or Console()
    for group, title in (("main", "top-1 accuracy, %"), ("curve", "along WiSE-FT, %")):
        rows = rows_of(results, group)
        if rows:
            _print(console, results, f"soups · {results['experiment']} · {title}", rows)
    for text in [*sentences(results), *results["notes"]]:
        console.print(Text(text))


def _print(console, results, title, rows: Sequence[Mapping]):
    caption = NOTE if published_pool(results) else ""
    table = Table(title=Text(title, style="bold"), caption=Text(caption), box=SIMPLE_HEAD, pad_edge=False)
    table.title_justify = table.caption_justify = "left"
    table.add_column("", no_wrap=True)
    for name in [*headings(results), "models", "passes"]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        found = differences(results, row)
        cells = [
            f"{percent(value(row, column))} {difference_text(found.get(column))}".strip()
            for column in columns_of(results)
        ]
        table.add_row(*map(Text, (row["name"], *cells, str(row["num_ingredients"]), str(row["passes"]))))
    if not console.is_terminal:
        console.width = max(console.width, Measurement.get(console, console.options.update(width=500), table).maximum)
    console.print(table)
