"""Register figures and draw those whose content is in the results: a figure is a function of the results alone."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from matplotlib.figure import Figure

from soups.names import check_name
from soups.progress import counted
from soups.report import style
from soups.report.results import check

# what a caption adds where there are several seeds
FIRST = "Shown: the first of {} seeds."
ALL = "Shown: all {} seeds."
SPREAD = "Whiskers: 95 % intervals over {} seeds."


class Plan(NamedTuple):
    """State a figure: what draws it (None where its content is missing), its title, caption and how it shows seeds."""

    name: str
    title: str
    draw: Callable[[Mapping], Figure | None]
    seeds: str
    caption: str


class Drawn(NamedTuple):
    """Hold a finished figure: the name of its files, title, caption, and the bytes of its PNG and its SVG.

    It is its own picture where it is the last line of a notebook's cell.
    """

    name: str
    title: str
    caption: str
    png: bytes
    svg: bytes

    def __repr__(self) -> str:
        return f"<{self.title}>"

    def _repr_png_(self) -> tuple[bytes, dict]:
        return self.png, {"width": 100 * int.from_bytes(self.png[16:20], "big") // style.DPI}


PLANS: dict[str, Plan] = {}


def figure(title: str, caption: str | None = None, *, seeds: str = SPREAD) -> Callable:
    """Register a function from results to a matplotlib figure, or to None where its content is not in the results.

        @soups.report.figure("Norms of the members", "Farther right is farther from the start.")
        def norms(results):
            if not results["members"]:
                return None
            ...

    `caption`: by default the function's docstring. `seeds`: what it adds where there are several, with "{}" for their
    number. Two figures of one name are a ValueError.
    """

    def register(draw):
        if draw.__name__ in PLANS and PLANS[draw.__name__].draw.__module__ != draw.__module__:
            raise ValueError(f"there is a figure {draw.__name__!r} already, in {PLANS[draw.__name__].draw.__module__}")
        text = caption or " ".join((draw.__doc__ or "").split())
        PLANS[draw.__name__] = Plan(draw.__name__, title, draw, seeds, text)
        return draw

    return register


def draw(results: Mapping, name: str) -> Drawn:
    """Draw one figure of what `soups.cook` or `load_results` gives; as the last line of a notebook's cell it is shown.

        soups.report.draw(results, "scatter")

    A ValueError for an unknown name, for results without what the figure shows, and as of `load_results`.
    """
    check_name(name, PLANS, "figure")
    drawn = _drawn(PLANS[name], check(results))
    if drawn is None:
        raise ValueError(f"these results have nothing that the figure {name!r} shows")
    return drawn


def draw_all(results: Mapping) -> list[Drawn]:
    """Draw every registered figure whose content is there, in the order of registration."""
    plans = counted(PLANS.values(), "figures", len(PLANS), "figures")
    return [drawn for plan in plans if (drawn := _drawn(plan, results)) is not None]


def _drawn(plan, results):
    with style.look():
        if (made := plan.draw(results)) is None:
            return None
        number = len(results["seeds"])
        caption = plan.caption.replace("{reference}", f"the {results['reference']}")
        caption += f" {plan.seeds.format(number)}" if number > 1 else ""
        png = style.rendered(made, "png")
        made.set_layout_engine("none")  # laid out once, for both
        return Drawn(plan.name, plan.title, caption, png, style.rendered(made, "svg"))
