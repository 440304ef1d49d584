"""Say in plain sentences what a results file shows: which soup is best, and where soups did not help."""

import math
from collections.abc import Mapping

from soups.report import results as files
from soups.report.tables import Spread, best_of, format_count, format_percent, format_points, one_pass, rows_table

_SPLITS = {"test": "on the test set", "shift_mean": "on the mean of the shifts"}


def summary(results: Mapping) -> list[str]:
    """Write the sentences of the summary, all from numbers in the file."""
    rows = rows_table(results)
    soups = [row for row in rows if row["kind"] == "soup" and row["gain"]]
    sentences = [_setting(results), *_baseline(results, rows)]
    if soups:
        sentences += [*_best_soups(soups), *_no_help(soups), *_by_shift(results, soups)]
    return [*sentences, *_against_ensembles(rows), *_chosen_by_held_out(rows), _noise(results, rows)]


def _setting(results):
    seeds, splits = results["seeds"], results["splits"]
    sizes = [len(results["pool"].get(str(seed), ())) or len(files.rows_of(results, "member", seed)) for seed in seeds]
    number = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    repeated = f", all of it repeated with {len(seeds)} seeds" if len(seeds) > 1 else ""
    shifts = f" and {len(splits['shifts'])} shifted test sets" if splits["shifts"] else ""
    return (
        f"{number} members were fine-tuned from one start and measured on {splits['test']:,} test examples{shifts}"
        f"{repeated}."
    )


def _baseline(results, rows):
    best = next((row for row in rows if row["name"] == "best member"), None)
    if best is None:
        return []
    return [
        f"The best member, chosen on held-out data, has {format_percent(best['test']['accuracy'])} % on the test set "
        f"and {format_percent(best['shift_mean']['accuracy'])} % on the mean of the shifts."
    ]


def _best_soups(soups):
    test, shift = (best_of(soups, split) for split in _SPLITS)
    if test is None or shift is None:
        return []
    if test is shift:
        return [
            f"The highest soup on both is the {test['name']}: {_level(test, 'test')} on the test set and "
            f"{_level(test, 'shift_mean')} on the shifts."
        ]
    return [
        f"The highest soup on the test set is the {test['name']} with {_level(test, 'test')}; on the shifts it is the "
        f"{shift['name']} with {_level(shift, 'shift_mean')}."
    ]


def _level(row, split):
    return f"{format_percent(row[split]['accuracy'])} % ({_gain(row['gain'][split])} over the best member)"


def _gain(gain):
    unsure = ", less than the spread over seeds" if abs(gain.mean) < gain.deviation else ""
    return f"{format_points(gain)} points{unsure}"


def _no_help(soups):
    """Name the soups that are not above the best member, by split; say so too where there are none."""
    sentences = []
    for split, where in _SPLITS.items():
        poor = [row for row in soups if not row["gain"][split].mean > 0]
        if len(poor) == len(soups):
            sentences.append(f"Soups did not help {where}: none of the {len(soups)} is above the best member.")
        elif poor:
            listed = ", ".join(f"{row['name']} ({format_points(row['gain'][split])})" for row in poor)
            sentences.append(f"Not every soup helped {where}; not above the best member: {listed}.")
    if not sentences:
        sentences.append(f"All {len(soups)} soups are above the best member, on the test set and on the shifts.")
    return sentences


def _by_shift(results, soups):
    shifts = list(results["splits"]["shifts"])
    best = best_of(soups, "shift_mean")
    if best is None or not shifts:
        return []
    worse = [shift for shift in shifts if not best["gain"][shift].mean > 0]
    start = f"Shift by shift, the {best['name']} is above the best member on"
    if not worse:
        return [f"{start} all {len(shifts)}."]
    listed = ", ".join(f"{shift} ({format_points(best['gain'][shift])})" for shift in worse)
    return [f"{start} {len(shifts) - len(worse)} of {len(shifts)}; it is not on {listed}."]


def _against_ensembles(rows):
    ensemble = best_of([row for row in rows if row["kind"] == "ensemble"], "test")
    single = best_of([row for row in rows if row["kind"] == "soup"], "test")
    if ensemble is None or single is None:
        return []
    passes = ensemble["cost"]["inference"]
    cost = f", with {format_count(passes)} forward passes a prediction," if math.isfinite(passes.mean) else ""
    differences = [
        format_points(Spread(100 * (single[split]["accuracy"].mean - ensemble[split]["accuracy"].mean), math.nan))
        for split in _SPLITS
    ]
    return [
        f"The highest ensemble on the test set, the {ensemble['name']}{cost} has "
        f"{format_percent(ensemble['test']['accuracy'])} % there and "
        f"{format_percent(ensemble['shift_mean']['accuracy'])} % on the shifts; the {single['name']}, with one pass, "
        f"differs from it by {differences[0]} and {differences[1]} points."
    ]


def _chosen_by_held_out(rows):
    chosen = best_of([row for row in rows if one_pass(row)], "held_out")
    if chosen is None:
        return []
    return [
        f"Held-out accuracy alone, which is all one has before deployment, would choose the {chosen['name']} among all "
        f"single networks: {format_percent(chosen['test']['accuracy'])} % on the test set, "
        f"{format_percent(chosen['shift_mean']['accuracy'])} % on the shifts."
    ]


def _noise(results, rows):
    accuracy = max((row["test"]["accuracy"].mean for row in rows), default=math.nan)
    number = results["splits"]["test"]
    error = 100 * math.sqrt(max(accuracy * (1 - accuracy), 0) / number) if math.isfinite(accuracy) else math.nan
    sentence = f"One standard error of the highest test accuracy, from {number:,} examples alone, is {error:.2f} points"
    seeds = len(results["seeds"])
    if seeds == 1:
        return sentence + "; with one seed the spread over runs is not known."
    return sentence + f"; after ± stands the standard deviation over {seeds} seeds."
