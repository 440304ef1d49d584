"""Register figures and draw those whose content is in the results: a figure is a function of the results alone."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from matplotlib.figure import Figure

from soups.progress import counted
from soups.report import style

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
    """Hold a finished figure: the name of its files, title, caption, and the bytes of its PNG and its SVG."""

    name: str
    title: str
    caption: str
    png: bytes
    svg: bytes


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


def draw_all(results: Mapping) -> list[Drawn]:
    """Draw every registered figure whose content is there, in the order of registration."""
    drawn = []
    with style.look():
        for plan in counted(PLANS.values(), "figures", len(PLANS), "figures"):
            if (made := plan.draw(results)) is not None:
                number = len(results["seeds"])
                caption = plan.caption.replace("{reference}", f"the {results['reference']}")
                caption += f" {plan.seeds.format(number)}" if number > 1 else ""
                png = style.rendered(made, "png")
                made.set_layout_engine("none")  # laid out once, for both
                drawn.append(Drawn(plan.name, plan.title, caption, png, style.rendered(made, "svg")))
    return drawn
