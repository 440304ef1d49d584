"""Say of every claim of a study whether it was seen: whether the interval of a difference lies above 0."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from soups.report import results as files
from soups.report.tables import Cell, Spread, Table, format_gain, spread, text_cell

VERDICTS = ("seen", "not seen", "not decided")
_LOOKS = dict(zip(VERDICTS, ("plus", "minus", ""), strict=True))


class Claim(NamedTuple):
    """Hold a claim that a difference is above 0: the difference in each seed, a fraction unless it has a unit."""

    title: str
    found: Spread
    unit: str = ""

    @property
    def verdict(self) -> str:
        """Return "seen" where the 95 % interval of the mean lies above 0, "not seen" where below or at 0.

        Else it is "not decided", and so it is with one seed.
        """
        mean, half = self.found.mean, self.found.half
        if not math.isfinite(mean) or not math.isfinite(half):
            return "not decided"
        return "seen" if mean - half > 0 else "not seen" if mean + half < 0 or mean == half == 0 else "not decided"

    @property
    def text(self) -> str:
        """Return the mean and its interval as "+1.20 [+0.50, +1.90] points", or in the unit of the claim."""
        return f"{format_gain(self.found, files.Metric('', 'higher', not self.unit))} {self.unit or 'points'}"


def claims(results: Mapping) -> list[Claim]:
    """Return the claims of results over their seeds, in the order of the file."""
    grouped = files.grouped(results["claims"], lambda claim: claim["title"])
    return [
        Claim(title, spread([claim["value"] for claim in found]), found[0].get("unit", ""))
        for title, found in grouped.items()
    ]


def claim_table(results: Mapping) -> Table | None:
    """Lay out the claims: the difference with its interval, the number of seeds, the verdict; None without claims."""
    if not (found := claims(results)):
        return None
    body = [
        [
            text_cell(claim.title),
            Cell(claim.text, claim.found.mean, found=claim.found),
            text_cell(len(claim.found.values)),
            text_cell(claim.verdict, _LOOKS[claim.verdict]),
        ]
        for claim in found
    ]
    note = (
        "A claim is seen where the 95 % interval of its difference over the seeds (Student's t) lies above 0, not seen "
        "where it lies below or is 0, else not decided, and so with one seed."
    )
    return Table(["claim", "difference", "seeds", "verdict"], body, note)


def verdicts(results: Mapping) -> str:
    """Say in one sentence how many claims were seen; nothing without claims."""
    counts = Counter(claim.verdict for claim in claims(results))
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return f"Of {counts.total()} claim{'s' * (counts.total() > 1)}: {told}." if counts else ""
