"""Name the figures of a report in their order, with the captions that say how to read them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from soups.report import style
from soups.report.draw_accuracy import hyper_parameters, number_of_models, scatter, wise_ft
from soups.report.draw_reliability import reliability
from soups.report.draw_weights import advantage, barriers_angles, loss_plane

FIRST, ALL, SPREAD = "first", "all", "spread"


class Drawn(NamedTuple):
    """Hold a finished figure: the name of its file, a title, a caption, and the bytes of the PNG."""

    name: str
    title: str
    caption: str
    png: bytes


class _Plan(NamedTuple):
    name: str
    title: str
    draw: Callable
    seeds: str
    caption: str


PLANS = (
    _Plan(
        "scatter",
        "Test against shifts",
        scatter,
        FIRST,
        "Farther right is better on the test set, farther up is better on the shifted test sets. Dots are single "
        "members, darker for a higher learning rate, hollow for those of another sweep; the star is the best of them "
        "on held-out data. The green line is WiSE-FT, from the weights that fine-tuning started from to the best "
        "member. What lies far off is named below the axes.",
    ),
    _Plan(
        "number_of_models",
        "How many models",
        number_of_models,
        SPREAD,
        "Accuracy when only the first k models of the sweep are there. The dashed line is the best of the k on "
        "held-out data. A soup predicts with one forward pass however many models are in it, the ensemble with k.",
    ),
    _Plan(
        "wise_ft",
        "From the start to the best member",
        wise_ft,
        FIRST,
        "Weights (1 − α) · base + α · best member, the base being what fine-tuning started from. Left: accuracies "
        "along the path; right: the same path as test against shifts. The star is the α with the highest held-out "
        "accuracy: the choice one can make without the test set.",
    ),
    _Plan(
        "loss_plane",
        "The plane through the start and two members",
        loss_plane,
        FIRST,
        "Held-out error at every point of the plane in weight space through the start of fine-tuning and two "
        "members; both axes are Euclidean distances. Errors above the 95th percentile share the darkest colour. "
        "Averaging works where no ridge separates the members.",
    ),
    _Plan(
        "barriers_angles",
        "Barriers and angles between members",
        barriers_angles,
        FIRST,
        "Barrier: accuracy points lost at the worst place of the straight path between two members (0: they are "
        "connected, and their average is safe). Angle: between their task vectors, member − start; members that "
        "differ more have more to give to an average. An arrow on a colour bar says that some pairs lie above it.",
    ),
    _Plan(
        "reliability",
        "Reliability",
        reliability,
        FIRST,
        "Test predictions in bins by confidence; the area of a dot is the number of examples. On the dashed line "
        "confidence and accuracy agree; above it the predictor is less sure than it could be, below it is too sure. "
        "ECE is the mean gap, weighted by the examples, of the bins drawn here.",
    ),
    _Plan(
        "advantage",
        "What averaging two members gains",
        advantage,
        ALL,
        "Each dot is a pair: the accuracy of the average of two members less the mean of their accuracies, against "
        "the angle between them. The ratio error is how often exactly one of the two is wrong for each time both "
        "are: higher means more diverse.",
    ),
    _Plan(
        "hyper_parameters",
        "Hyper-parameters of the members",
        hyper_parameters,
        ALL,
        "Test accuracy of every member against each hyper-parameter that varies in the sweep. A blue ring: the "
        "greedy soup took it. A red cross at the bottom: it diverged or lies below the axis.",
    ),
)


def draw_all(results: Mapping) -> list[Drawn]:
    """Draw every figure whose data are there."""
    drawn = []
    with style.look():
        for plan in PLANS:
            if (figure := plan.draw(results)) is not None:
                caption = f"{plan.caption} {_seeds_sentence(plan.seeds, results['seeds'])}".strip()
                drawn.append(Drawn(plan.name, plan.title, caption, style.png(figure)))
    return drawn


def _seeds_sentence(kind, seeds):
    if len(seeds) == 1:
        return ""
    if kind == FIRST:
        return f"Shown: the first of {len(seeds)} seeds."
    if kind == SPREAD:
        return f"Line and band: mean and one standard deviation over {len(seeds)} seeds."
    return f"Shown: all {len(seeds)} seeds."
