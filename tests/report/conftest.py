"""Make results that look like those of a real experiment: 3 seeds, 24 members, one diverged, soups that mostly help."""

import html.parser
import itertools
import math

import numpy as np
import pytest

from soups import state
from soups.report import write_report

SHIFTS = [f"{family}/{severity}" for family in ("rotation", "noise", "blur") for severity in (2, 4)] + ["optdigits"]
# name, kind, gain over the best member on test and on the shifts (points), ingredients, inference, selection, training
MAIN = [
    ("start weights", "start", -46.0, -38.0, 0, 1, 0, 0),
    ("linear probe", "probe", -11.0, -9.5, 0, 1, 0, 0),
    ("best member", "member", 0.0, 0.0, 1, 1, 24_000, 0),
    ("mean member", "members", -1.9, -2.6, 24, 1, 0, 0),
    ("worst member", "member", -23.0, -21.0, 1, 1, 0, 0),
    ("uniform soup", "soup", 0.25, 2.1, 23, 1, 0, 0),
    ("greedy soup", "soup", 0.55, 2.6, 6, 1, 47_000, 0),
    ("greedy soup, random order 1", "soup", 0.45, 2.3, 8, 1, 47_000, 0),
    ("greedy soup, random order 2", "soup", 0.5, 2.5, 7, 1, 47_000, 0),
    ("greedy soup, random order 3", "soup", 0.4, 2.2, 9, 1, 47_000, 0),
    ("learned soup", "soup", 0.6, 2.8, 23, 1, 80_000, 0),
    ("learned soup per leaf", "soup", 0.3, 2.4, 23, 1, 80_000, 0),
    ("SAM uniform soup", "soup", 0.1, 1.4, 8, 1, 0, 200_000),
    ("WiSE-FT", "interpolation", 0.05, 1.7, 2, 1, 11_000, 0),
    ("EMA", "trajectory", 0.1, 0.6, 1, 1, 0, 40_000),
    ("SWA", "trajectory", -0.2, 0.3, 1, 1, 0, 40_000),
    ("logit ensemble", "ensemble", 0.7, 2.9, 23, 23, 0, 0),
    ("greedy ensemble", "ensemble", 0.8, 3.1, 7, 7, 23_000, 0),
    ("distilled ensemble", "distilled", 0.35, 1.1, 23, 1, 0, 90_000),
]


def metrics_at(rng, test, shift):
    """Return the metrics of a row around these accuracies in percent."""

    def block(accuracy):
        accuracy = float(np.clip(np.round(accuracy / 100, 3), 0.02, 0.999))
        nll = -1.15 * math.log(accuracy) + 0.02
        return {
            "accuracy": accuracy,
            "nll": nll,
            "brier": 1.5 * (1 - accuracy),
            "ece": float(0.01 + 0.1 * (1 - accuracy) + 0.002 * rng.random()),
            "ece_equal_width": float(0.012 + 0.1 * (1 - accuracy)),
        }

    easy = np.linspace(10, -14, len(SHIFTS))
    shifts = {name: block(shift + hard + rng.normal(0, 0.5)) for name, hard in zip(SHIFTS, easy, strict=True)}
    keys = shifts[SHIFTS[0]]
    mean = {key: float(np.mean([found[key] for found in shifts.values()])) for key in keys}
    return {"held_out": block(test + rng.normal(0, 0.15)), "test": block(test), **shifts, "shift_mean": mean}


def make_members(rng, count):
    """Return the members of one seed; member 17 diverged."""
    pool = []
    for index in range(count):
        config = {
            "learning_rate": float(10 ** rng.uniform(-4, -2)),
            "weight_decay": float(10 ** rng.uniform(-4, -1)),
            "label_smoothing": float(rng.choice([0.0, 0.05, 0.1])),
            "mixup": float(rng.choice([0.0, 0.2, 0.4])),
            "augmentation": str(rng.choice(["none", "light", "strong"])),
            "epochs": int(rng.integers(4, 17)),
            "seed": index,
        }
        status = "diverged" if index == 17 else "ok"
        losses = (2.3 * np.exp(-np.linspace(0, 3, 30)) + 0.05 * rng.random(30)).tolist()
        pool.append({"name": f"member_{index:03d}", "config": config, "status": status, "digest": rng.bytes(8).hex(),
                     "losses": losses})  # fmt: skip
    return pool


def make_rows(rng, seed, pool):
    """Return main and member rows of one seed."""
    rows = []
    base_test, base_shift = 96.9 + rng.normal(0, 0.15), 78.0 + rng.normal(0, 0.5)
    ok = [member for member in pool if member["status"] == "ok"]
    for member in ok:
        far = abs(math.log10(member["config"]["learning_rate"]) + 2.9)
        test = base_test - 0.2 - 2.0 * far**2 - abs(rng.normal(0, 0.4))
        test = base_test - 23.0 if member["name"] == "member_005" else test
        shift = base_shift - 2.0 * (base_test - test) * 0.6 + rng.normal(0, 0.9) - 0.8
        rows.append({"seed": seed, "name": member["name"], "kind": "member", "group": "member"} |
                    {"ingredients": {member["name"]: 1.0}, "num_ingredients": 1,
                     "metrics": metrics_at(rng, test, shift),
                     "cost": {"inference": 1, "selection": 0, "training": 0}})  # fmt: skip
    for name, kind, test, shift, number, inference, selection, training in MAIN:
        used = rng.permutation([member["name"] for member in ok])[:number]
        metrics = metrics_at(rng, base_test + test + rng.normal(0, 0.1), base_shift + shift)
        rows.append({"seed": seed, "name": name, "kind": kind, "group": "main",
                     "ingredients": {member: 1 / number for member in sorted(used)}, "num_ingredients": number,
                     "metrics": metrics, "classes": {"test": classes_around(rng, metrics["test"]["accuracy"])},
                     "wins": {"test": [20, max(0, round(20 - 10 * test))]},
                     "cost": {"inference": inference, "selection": selection, "training": training}})  # fmt: skip
    return rows


def classes_around(rng, accuracy):
    """Return the accuracies of ten classes."""
    return {str(digit): float(np.clip(accuracy + rng.normal(0, 0.02), 0, 1)) for digit in range(10)}


def curve_row(seed, name, kind, of, values):
    """Return a point of a curve, with accuracies by split."""
    metrics = {split: {"accuracy": float(value)} for split, value in values.items()}
    return {"seed": seed, "name": name, "kind": kind, "group": "curve", "of": of, "ingredients": {}, "metrics": metrics}


def make_curve_rows(rng, seed, names):
    """Return the rows against the number of members and those along WiSE-FT of one seed."""
    k = np.arange(len(names))

    def rising(start, end, speed):
        return end - (end - start) * np.exp(-k / speed) + rng.normal(0, 0.0006, len(k))

    rows = []
    ends = {"uniform soup": (0.9715, 0.801), "greedy soup": (0.9745, 0.806), "ensemble": (0.976, 0.809)}
    for name, (test, shift) in (ends | {"best on held-out": (0.969, 0.78)}).items():
        for index, pair in enumerate(zip(rising(0.945, test, 3), rising(0.742, shift, 4), strict=True)):
            values = dict(zip(("test", "shift_mean"), pair, strict=True))
            rows.append(curve_row(seed, name, "soup", {"models": index + 1}, values))
    for alpha in np.linspace(0, 1, 11).round(2).tolist():
        bow = 4 * alpha * (1 - alpha)
        values = {"held_out": 0.86 + 0.11 * (1 - (1 - alpha) ** 2.4) + 0.006 * bow}
        values["test"] = 0.859 + 0.11 * (1 - (1 - alpha) ** 2.4) + 0.004 * bow
        values["shift_mean"] = 0.685 + 0.095 * (1 - (1 - alpha) ** 2) + 0.028 * bow
        rows.append(curve_row(seed, f"WiSE-FT, α = {alpha:g}", "interpolation", {"alpha": alpha}, values))
    return rows


def make_plane():
    """Return the held-out error of two basins around two members, the average between them a little lower."""
    x, y = np.linspace(-1.5, 5.5, 25), np.linspace(-1.5, 5.0, 23)
    points = {"start": [0.0, 0.0], "member_003": [4.0, 0.0], "member_011": [1.3, 3.6]}
    points["average"] = [(4.0 + 1.3) / 2, 3.6 / 2]
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    centre = np.array([2.3, 1.5])
    distance = np.hypot(*(grid - centre).transpose(2, 0, 1))
    values = np.clip(0.024 + 0.006 * distance**2.4 + 0.02 * (grid[..., 0] < 0) * grid[..., 0] ** 2, 0, 0.95)
    return {"x": x.tolist(), "y": y.tolist(), "values": values.tolist(), "points": points}


def make_pairs(rng, seed, names):
    """Return barriers, angles and diversity of pairs of members; those of the third are far apart."""
    pairs = []
    for a, b in itertools.combinations(range(len(names)), 2):
        angle = rng.uniform(20, 85)
        barrier = 0.11 if 2 in (a, b) else max(0, (angle - 40) / 45 * 0.012 + rng.normal(0, 0.002))
        gain = 0.0002 * (angle - 20) + rng.normal(0, 0.002) - (0.09 if 2 in (a, b) else 0)
        ratio = 0.4 + angle / 60 + 0.2 * rng.random()
        values = {"angle": angle, "barrier": barrier, "interpolation_advantage": gain, "ratio_error": ratio}
        pairs.append({"seed": seed, "a": names[a], "b": names[b], "values": values})
    return pairs


def make_reliability(rng, seed):
    """Return 15 bins of equal mass for four predictors; the first is too sure, the ensemble not sure enough."""
    curves = []
    for name, tilt in (("best member", -0.05), ("uniform soup", 0.06), ("greedy soup", 0.02), ("ensemble", 0.09)):
        confidence = 1 - 0.62 * (1 - np.linspace(0.02, 0.999, 15)) ** 2.2
        accuracy = np.clip(confidence + 4 * tilt * (1 - confidence) * confidence + rng.normal(0, 0.008, 15), 0, 1)
        bins = [
            {"confidence": float(c), "accuracy": float(a), "count": 67 if i else 62}
            for i, (c, a) in enumerate(zip(confidence, accuracy, strict=True))
        ]
        curves.append({"seed": seed, "kind": "reliability", "name": name, "bins": bins})
    return curves


def make_results(seeds=(0, 1, 2), members=24):
    """Return a whole results file as a dict."""
    splits = {"held_out": {"role": "held_out", "examples": 1000}, "test": {"role": "test", "examples": 1000}}
    splits |= {name: {"role": "shift", "examples": 500} for name in SHIFTS}
    splits["shift_mean"] = {"role": "shift", "mean_of": list(SHIFTS)}
    results = {
        "schema": "soups.results/2",
        "experiment": "digits",
        "created": "2025-01-02T03:04:05+00:00",
        "config": {"experiment": "digits", "sweep": {"members": members, "learning_rate": [1e-4, 1e-2]}},
        "versions": {"soups": "0.1.0", "jax": "0.10.2", "python": "3.11.9"},
        "device": "cpu x2",
        "seeds": list(seeds),
        "splits": splits,
        "rows": [], "members": {}, "pairs": [], "curves": [], "histories": {}, "timings": {},
    }  # fmt: skip
    for seed in seeds:
        rng = np.random.default_rng(seed)
        made = make_members(rng, members)
        names = [member["name"] for member in made if member["status"] == "ok"]
        results["members"][str(seed)] = made
        results["rows"] += make_rows(rng, seed, made) + make_curve_rows(rng, seed, names)
        results["pairs"] += make_pairs(rng, seed, names[:10])
        results["curves"] += [{"seed": seed, "kind": "plane", **make_plane()}, *make_reliability(rng, seed)]
        steps = [
            {"member": name, "score": 0.96 + 0.001 * i, "accepted": i % 3 == 0, "num_ingredients": 1 + i // 3}
            for i, name in enumerate(names[:12])
        ]
        losses = [float(0.2 * math.exp(-i / 30) + 0.1) for i in range(100)]
        results["histories"][str(seed)] = {"greedy soup": steps, "learned soup": losses}
        results["timings"][str(seed)] = {"linear probe": 3.2, "sweep": 104.5 + seed, "soups": 21.0}
    return results


@pytest.fixture
def results():
    """Return fresh results of 3 seeds that a test may change."""
    return make_results()


@pytest.fixture
def write_results(tmp_path):
    """Return a function that writes results into a directory and gives the directory."""

    def write(results):
        state.write(tmp_path / "results.json", results)
        return tmp_path

    return write


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """Return the results of 3 seeds, the directory of their report, and the paths that were written."""
    directory = tmp_path_factory.mktemp("report")
    results = make_results()
    state.write(directory / "results.json", results)
    return results, directory, write_report(directory)


class TagReader(html.parser.HTMLParser):
    """Follow which tags are open, and collect the ids."""

    def __init__(self):
        super().__init__()
        self.open, self.ids = [], set()

    def handle_starttag(self, tag, attributes):
        self.ids |= {value for name, value in attributes if name == "id"}
        if tag not in ("meta", "link", "img", "br", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def tag_reader():
    return TagReader()
