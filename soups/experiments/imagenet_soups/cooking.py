"""Make every row of the report: members, soups, the path of WiSE-FT, ensembles."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import soups
from soups import tree
from soups.data import batch_indices
from soups.evaluate import accuracy, greedy_ensemble
from soups.experiments.imagenet_soups.setting import Row, Setting, accuracy_of, stage_of
from soups.pool import Pool, digest
from soups.processes import on_first_process
from soups.progress import counted, progress, say
from soups.recipes.speculative import greedy_speculative
from soups.studies.kitchen import mixture_loss, random_orders, slug
from soups.studies.measuring import best_of, unit_range


def member_rows(setting: Setting) -> dict[str, Row]:
    """Measure each member on every set, unless an earlier run has done so, and give the rows by name.

    Raises:
        ValueError: a member that is not the one that the earlier run measured, or one with NaN or infinity.
    """
    names, rows = setting.members.names, {}
    done = set(names) - set(setting.unmeasured())
    with progress("measuring", len(names), "members", done=len(done)) as advance:
        for name in names:
            rows[name] = setting.workdir.stage(stage_of(name), lambda name=name: _measured(setting, name))
            if name not in done:
                advance(1)
    # of several hosts each may have copies of the files of its own
    changed = on_first_process(lambda: [n for n in names if rows[n]["origin"] != setting.members.origins[n]])
    if changed:
        raise ValueError(f"members have changed since they were measured, use another --workdir: {', '.join(changed)}")
    return rows


def single_rows(setting: Setting, members: Mapping[str, Row]) -> list[Row]:
    """Name the best member on the held-out set, the best on the shifts (which nobody could choose), and the mean."""
    best = best_of({name: accuracy_of(row, "held_out") for name, row in members.items()})
    rows = [members[best] | {"name": "best member", "group": "main"}]
    if "shift_mean" in rows[0]["metrics"]:
        oracle = best_of({name: accuracy_of(row, "shift_mean") for name, row in members.items()})
        rows.append(members[oracle] | {"name": "best member on the shifts", "group": "main"})
    sets = [name for name in rows[0]["metrics"] if name != "shift_mean"]
    means = {name: float(np.mean([accuracy_of(row, name) for row in members.values()])) for name in sets}
    rows.append(setting.row("mean member", "members", means, {}) | {"num_ingredients": 1})
    return [{key: row[key] for key in rows[-1]} for row in rows]


def uniform_row(setting: Setting, digests: Mapping[str, str]) -> Row:
    """Average all members."""
    say("uniform soup")
    equal = dict.fromkeys(digests, 1 / len(digests))
    return _soup_row(setting, "uniform soup", lambda: _uniform(setting), equal, digests)


def greedy_row(
    setting: Setting,
    members: Mapping[str, Row],
    title: str,
    order: Sequence[str] | None = None,
) -> tuple[Row, list[dict[str, Any]]]:
    """Add members one by one, by held-out score or in a given order; give the row and the history."""
    scores = None if order else {name: accuracy_of(row, "held_out") for name, row in members.items()}
    with progress(title, len(members), "candidates") as advance:
        left = len(members)

        def evaluate_many(candidates):
            nonlocal left
            found, new = setting.held_out(candidates), min(left, len(candidates))
            left -= new
            if new:  # else all were evaluated before, with another soup
                advance(new)
            return found

        soup = greedy_speculative(
            setting.trees,
            evaluate_many,
            width=setting.width,
            device=setting.device,
            scores=scores,
            order=order,
            journal=setting.workdir.path / "journals" / f"{slug(title)}.jsonl",
        )
    digests = {name: members[name]["digest"] for name in soup.ingredients}
    return _soup_row(setting, title, lambda: soup.params, soup.ingredients, digests), soup.history


def greedy_orders(setting: Setting, names: Sequence[str]) -> dict[str, list[str] | None]:
    """Return titles of greedy soups with their orders: by score (None), then `greedy.random_orders` random ones."""
    return {"greedy soup": None} | random_orders(names, setting.config["greedy"]["random_orders"], setting.seed)


def learned_row(setting: Setting, digests: Mapping[str, str], per: str) -> tuple[Row, list[float]]:
    """Learn the mixing weights on the held-out set, one for each member or one for each leaf; give row and losses."""
    title = {"model": "learned soup", "leaf": "learned soup, per leaf"}[per]
    config, data = setting.config["learned"], setting.datasets["held_out"]
    steps = max(1, round(config["epochs"] * len(data) / config["batch_size"]))
    order = batch_indices(len(data), config["batch_size"], steps, setting.config["seed"])
    batches = ({"image": data.images[np.sort(rows)], "label": data.labels[np.sort(rows)]} for rows in order)
    loss = mixture_loss(setting.apply_fn, unit_range)
    options = {"per": per, "learning_rate": config["learning_rate"], "dtype": "float32"}
    journal = setting.workdir.path / "journals" / f"{slug(title)}.jsonl"
    batches = counted(batches, title, steps, "steps")
    soup = soups.learned(_all_at_once(setting, digests), loss, batches, journal=journal, **options)
    row = _soup_row(setting, title, lambda: soup.params, soup.ingredients, digests)
    return row | {"temperature": soup.temperature}, soup.history


def path_row(setting: Setting, base: str, member: str, alpha: float) -> Row:
    """Measure the weights (1 − α) base + α member (WiSE-FT)."""
    say(f"WiSE-FT from {base} to {member}, α = {alpha:g}")
    trees = setting.trees
    params = soups.wise_ft(trees[member], base=trees[base], alpha=alpha)
    ingredients = {base: 1.0 - alpha, member: alpha}
    found, place = setting.accuracies(params), {"group": "curve", "of": {"alpha": alpha}}
    return setting.row(f"WiSE-FT, α = {alpha:g}", "interpolation", found, ingredients, **place)


def ensemble_rows(setting: Setting, digests: Mapping[str, str]) -> tuple[list[Row], list[dict[str, Any]]]:
    """Return the ensemble of all members and the greedy ensemble, by arithmetic on their logits, and its history."""
    say("ensembles")
    held_out = {name: _logits(setting, digests, name, "held_out") for name in digests}
    greedy = greedy_ensemble(held_out, setting.datasets["held_out"].labels)
    del held_out
    chosen = {"ensemble": dict.fromkeys(digests, 1 / len(digests)), "greedy ensemble": greedy.ingredients}
    rows = []
    for title, weights in chosen.items():
        found = {
            name: accuracy(_mixed(setting, digests, weights, name), data.labels)
            for name, data in setting.datasets.items()
        }
        rows.append(setting.row(title, "ensemble", found, weights, passes=len(weights)))
    return rows, greedy.history


def _measured(setting, name) -> Row:
    params = setting.trees[name]
    if nonfinite := tree.nonfinite_names(params):
        raise ValueError(f"NaN or infinity in member {name}: {', '.join(nonfinite)}; import into a pool leaves it out")
    accuracies = setting.accuracies(params, keep_logits="ensembles" in setting.config["cook"])
    row = setting.row(name, "member", accuracies, {name: 1.0}, group="member")
    return row | {"digest": digest(params), "origin": setting.members.origins[name]}


def _soup_row(setting, title, make, ingredients, digests) -> Row:
    kept = slug(title)
    if kept not in setting.results:
        used = {name: digests[name] for name in ingredients}
        record = {"recipe": title, "arch": setting.config["arch"], "ingredients": dict(ingredients), "digests": used}
        setting.results.add(kept, make(), record | {"soups": soups.__version__})
    return setting.row(title, "soup", setting.accuracies(setting.results[kept]), ingredients)


def _uniform(setting):
    if isinstance(setting.members.trees, Pool) and not setting.rounded:
        return soups.uniform(setting.members.trees)  # streamed through its files
    mean = None
    for count, name in enumerate(setting.members.names):
        member = setting.trees[name]
        mean = tree.widen(member) if mean is None else soups.running_mean(mean, member, count)
    return mean


def _all_at_once(setting, names):
    """Return the members as those who need all at once want them: in mapped files, or in memory in the narrow dtype."""
    trees = setting.trees.as_kept if setting.rounded else setting.members.trees.__getitem__
    return {name: trees(name) for name in names}


def _logits(setting, digests, member, name):
    return setting.logits(digests[member], name, lambda: setting.trees[member])


def _mixed(setting, digests, weights, name):
    """Average logits with one member's in memory at a time, in float64."""
    return sum(
        weight * _logits(setting, digests, member, name).astype(np.float64) for member, weight in weights.items()
    )
