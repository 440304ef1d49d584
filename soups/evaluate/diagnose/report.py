"""Hold what a diagnosis found, and write it for people and for JSON."""

import dataclasses
import math
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

VERDICTS = ("average", "average some", "align first", "do not average")
SEVERITIES = ("problem", "warning", "note")
ALIGN = "permute hidden units to match first: soups.align, Git Re-Basin"
_WIDTH, _GAP = 100, "   "  # columns
_MOST_ROWS = 24  # a table of hundreds of members would bury the verdict


@dataclasses.dataclass(frozen=True)
class Finding:
    """Hold one thing that was found.

    `severity`: "problem" (averaging fails or does harm), "warning" (look at it) or "note". `kind`: a short name for
    programs, such as "non-finite". `what` and `advice` are sentences, `members` the names it is about.
    """

    severity: str
    kind: str
    what: str
    members: tuple[str, ...] = ()
    advice: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis:
    """Hold what `diagnose` found; `str` gives a report of at most 100 columns.

    All arrays are float64 in the order of `names`; NaN stands for what was not measured.

    Attributes:
        verdict: "average" (all of them), "average some" (all but those in `leave_out`), "align first" (their networks
            are the same, but no two lie in one basin) or "do not average".
        names: all members, K of them.
        leave_out: the reason for each member that should be left out.
        findings: problems first, then warnings, then notes.
        reference: "base", or "members" where none could be used.
        norms: [K], of the task vectors; without a base each member's median distance to the others.
        relative_norms: [K], `norms` relative to the norm of the base; without one to that of the members' mean.
        cosines: [K, K], of the angles between task vectors; without a base between the weights themselves.
        modules: for each top-level module its name, "drift" (median over the members of its relative norm), "share" of
            all squared movement, and "cosine" (median over the pairs, between the weights themselves).
        barriers: [K, K], as `soups.evaluate.barriers`; infinity where the path has no score; None without `evaluate`.
        scores: [K]; None without `evaluate`.
        soup_scores: scores of the uniform soups of "all" comparable members and of those to "keep".
        tolerance: the barrier above which two members count as apart, 0 if none was measured.
    """

    verdict: str
    names: tuple[str, ...]
    leave_out: dict[str, str]
    findings: tuple[Finding, ...]
    reference: str
    norms: np.ndarray
    relative_norms: np.ndarray
    cosines: np.ndarray
    modules: tuple[dict[str, Any], ...] = ()
    barriers: np.ndarray | None = None
    scores: np.ndarray | None = None
    soup_scores: dict[str, float] = dataclasses.field(default_factory=dict)
    tolerance: float = 0.0

    @property
    def keep(self) -> list[str]:
        """List the members to average, none where the verdict is against it."""
        if not self.verdict.startswith("average"):
            return []
        return [name for name in self.names if name not in self.leave_out]

    @property
    def summary(self) -> str:
        """Say the verdict in one sentence."""
        count, kept = len(self.names), len(self.names) - len(self.leave_out)
        return {
            "average": f"average all {count} members",
            "average some": f"average {kept} of {count} members",
            "align first": "no two members lie in one basin as they are",
            "do not average": "there is nothing here that an average would improve",
        }[self.verdict]

    def record(self) -> dict[str, Any]:
        """Return everything, ready for JSON; what is not finite becomes None."""
        return _plain({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    def __str__(self) -> str:
        return "\n".join(_report(self))


class Book:
    """Collect findings, who should be left out for which reason, and what decides the verdict for all.

    `apart`: no two members lie together. `spoiled`: those to keep average to something worse than each of them.
    """

    def __init__(self):
        self.findings: list[Finding] = []
        self.leave_out: dict[str, str] = {}
        self.apart = False
        self.spoiled = False

    def add(self, severity: str, kind: str, what: str, members: Iterable[str] = (), advice: str = "") -> None:
        """Write down a finding that leaves nobody out."""
        self.findings.append(Finding(severity, kind, what, tuple(members), advice))

    def out(self, kind: str, what: str, reasons: Mapping[str, str], advice: str = "") -> None:
        """Write down a problem for which these members should be left out, each for a reason of its own."""
        self.add("problem", kind, what, reasons, advice)
        self.leave_out.update(reasons)

    def sorted(self) -> tuple[Finding, ...]:
        """Return the findings, the severest first and else in the order in which they came."""
        return tuple(sorted(self.findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def listed(names: Iterable[str], most: int = 6) -> str:
    """Write names in a row, and only count those beyond the first few."""
    names = list(names)
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


# --- For JSON ---


def _plain(value):
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _plain(dataclasses.asdict(value)) if dataclasses.is_dataclass(value) else value


# --- For people ---


def _report(diagnosis):
    yield from _wrapped(f"{diagnosis.verdict.upper()}: {diagnosis.summary}.", "", "")
    if diagnosis.leave_out:
        yield "\nLeave out"
        for name, reason in diagnosis.leave_out.items():
            yield from _wrapped(f"{name}: {reason}", "  - ", "    ")
    for severity in SEVERITIES:
        found = [finding for finding in diagnosis.findings if finding.severity == severity]
        if found:
            yield f"\n{severity.capitalize()}s"
        for finding in found:
            yield from _wrapped(_sentence(finding), "  - ", "    ")
    if np.isfinite(diagnosis.norms).any() or diagnosis.scores is not None:
        yield "\nMembers"
        yield from _members_table(diagnosis)
    if diagnosis.modules:
        yield f"\nHow far the modules moved, relative to the {_reference(diagnosis)}"
        yield from _modules_table(diagnosis)
    if diagnosis.soup_scores:
        of = {"all": "all comparable members", "keep": "those to keep"}
        yield "\nScore of the uniform soup: " + "; ".join(
            f"{_number(score)} of {of[which]}" for which, score in diagnosis.soup_scores.items()
        )


def _sentence(finding):
    who = f" [{listed(finding.members)}]" if finding.members else ""
    return f"{finding.what}{who}" + (f". {finding.advice[:1].upper()}{finding.advice[1:]}" if finding.advice else "")


def _members_table(diagnosis):
    based = diagnosis.reference == "base"
    heads = ["|τ|" if based else "distance", f"|τ|/|{'base' if based else 'mean'}|" if based else "relative"]
    kept = np.array([name not in diagnosis.leave_out for name in diagnosis.names])
    columns = [diagnosis.norms, diagnosis.relative_norms, _with_kept(diagnosis.cosines, kept, np.mean)]
    heads.append("mean cosine")
    if diagnosis.scores is not None:
        heads += ["score", "median barrier"]
        columns += [diagnosis.scores, _with_kept(diagnosis.barriers, kept, np.median)]
    # those to leave out first: a long table is cut
    order = sorted(range(len(diagnosis.names)), key=lambda i: diagnosis.names[i] not in diagnosis.leave_out)
    marks = ["out" if name in diagnosis.leave_out else "" for name in diagnosis.names]
    rows = [[diagnosis.names[i], *(_number(c[i]) for c in columns), marks[i]] for i in order[:_MOST_ROWS]]
    yield from _table(["member", *heads, ""], rows)
    if len(order) > _MOST_ROWS:
        yield f"  … and {len(order) - _MOST_ROWS} more"


def _modules_table(diagnosis):
    modules = sorted(diagnosis.modules, key=lambda module: -module["share"])
    shares = [f"{100 * module['share']:.1f} %" for module in modules]
    rows = [[m["name"], _number(m["drift"]), s, _number(m["cosine"])] for m, s in zip(modules, shares, strict=True)]
    yield from _table(["module", "drift", "share of movement", "cosine of weights"], rows[:_MOST_ROWS])
    if len(modules) > _MOST_ROWS:
        yield f"  … and {len(modules) - _MOST_ROWS} more"


def _table(heads, rows):
    """Draw a table, of which only the first column can be too wide: its names go on in further lines."""
    widths = [max(map(_cells, column)) for column in zip(heads, *rows, strict=True)]
    widths[0] = min(widths[0], _WIDTH - 2 - sum(widths[1:]) - len(_GAP) * (len(widths) - 1))
    for number, (name, *values) in enumerate([heads, *rows]):
        for line, part in enumerate(_folded(name, widths[0])):
            cells = [part + " " * (widths[0] - _cells(part))]
            cells += [] if line else map(str.rjust, values, widths[1:])
            yield f"  {_GAP.join(cells)}".rstrip()
        if not number:
            yield f"  {'─' * (sum(widths) + len(_GAP) * (len(widths) - 1))}".rstrip()


def _folded(text, width):
    lines = [""]
    for letter in text if text.isprintable() else repr(text)[1:-1]:
        lines += [""] if _cells(lines[-1] + letter) > width else []
        lines[-1] += letter
    return lines


def _cells(text):
    """Count the columns that a terminal takes for a text: two for a wide letter, none for an accent by itself."""
    wide = [unicodedata.east_asian_width(letter) in "WF" for letter in text if not unicodedata.combining(letter)]
    return len(wide) + sum(wide)


def _wrapped(text, first, rest):
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def _reference(diagnosis):
    return "base" if diagnosis.reference == "base" else "members' mean"


def _number(value):
    if math.isnan(value):
        return "-"
    return f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"


def _with_kept(matrix, kept, summary):
    """Summarise what each member has with the others that are kept, NaN where nothing was measured."""
    rows = [row[kept & ~np.isnan(row) & (np.arange(len(row)) != index)] for index, row in enumerate(matrix)]
    return [float(summary(row)) if len(row) else math.nan for row in rows]
