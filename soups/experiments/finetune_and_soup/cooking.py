"""Make every row of the report from one seed's members: single weights, soups, paths, ensembles."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import optax

import soups
from soups import tree
from soups.data import batch_indices
from soups.evaluate import ensemble_logits, greedy_ensemble
from soups.experiments.finetune_and_soup.setting import Setting
from soups.progress import counted, progress, say

Row = dict[str, Any]


def single_rows(setting: Setting, start: tree.Tree, probe: tree.Tree, names: list[str]) -> list[Row]:
    """Measure start weights, probe and each member, note it in the pool, and add the best, mean and worst member."""
    rows = [
        setting.row("start weights", "start", setting.logits(start), {}),
        setting.row("linear probe", "probe", setting.logits(probe), {}),
    ]
    members = measured_members(setting, names)
    held_out = {name: row["metrics"]["held_out"]["accuracy"] for name, row in members.items()}
    best, worst = best_of(held_out), min(held_out, key=held_out.get)
    selection = len(names) * len(setting.task.held_out)
    named = {"ingredients": {short(setting, best): 1.0}, "num_ingredients": 1}
    rows.append(members[best] | {"name": "best member", "kind": "member", "group": "main"} | named)
    rows[-1]["cost"] = rows[-1]["cost"] | {"selection": selection}
    rows.append(_mean_row(setting, list(members.values())))
    named = {"ingredients": {short(setting, worst): 1.0}, "num_ingredients": 1}
    rows.append(members[worst] | {"name": "worst member", "kind": "member", "group": "main"} | named)
    return rows + list(members.values())


def measured_members(setting: Setting, names: list[str]) -> dict[str, Row]:
    """Measure each member on every split and note its metrics in the pool."""
    rows = {}
    with progress("measuring", len(names), "members") as advance:
        for name in names:
            logits = setting.logits(setting.pool[name])
            rows[name] = setting.row(short(setting, name), "member", logits, {}, group="member")
            values = rows[name]["metrics"]
            setting.pool.update_metrics(
                name, {split: values[split]["accuracy"] for split in ("held_out", "test", "shift_mean")}
            )
            advance(1)
    return rows


def soup_rows(setting: Setting, names: list[str], scores: Mapping[str, float]) -> tuple[list[Row], dict[str, Any]]:
    """Make the uniform, greedy and learned soups; give their rows and their histories."""
    pool, size = setting.pool.select(names), len(setting.task.held_out)
    single = len(names) * size  # every member is evaluated once, to rank them
    uniform = soups.uniform(pool)
    rows = [_soup_row(setting, "uniform soup", uniform, dict.fromkeys(names, 1.0 / len(names)))]
    greedy = greedy_soup(setting, "greedy soup", names, scores)
    rows.append(_soup_row(setting, "greedy soup", greedy.params, greedy.ingredients, single + (len(names) - 1) * size))
    histories = {"greedy soup": _short_history(setting, greedy.history)}
    generator = np.random.default_rng([setting.seed, 1])
    for number in range(1, setting.config["greedy"]["random_orders"] + 1):
        title = f"greedy soup, random order {number}"
        order = [names[index] for index in generator.permutation(len(names))]
        soup = greedy_soup(setting, title, names, scores, order=order)
        rows.append(_soup_row(setting, title, soup.params, soup.ingredients, len(names) * size))
    for per, title in (("model", "learned soup"), ("leaf", "learned soup, per leaf")):
        soup = _learned(setting, pool, per)
        cost = (
            3 * len(soup.history) * setting.config["learned"]["batch_size"]
        )  # a backward pass costs two forward passes
        rows.append(_soup_row(setting, title, soup.params, soup.ingredients, cost))
        rows[-1]["temperature"] = soup.temperature
        histories[title] = soup.history
    return rows, histories


def greedy_soup(setting: Setting, title: str, names: list[str], scores: Mapping[str, float], order=None) -> soups.Soup:
    """Make the greedy soup of some members by held-out accuracy, going on from its journal after a crash."""
    return soups.greedy(
        setting.pool.select(names),
        lambda params: setting.held_out(params)["accuracy"],
        scores=None if order else {name: scores[name] for name in names},
        order=order,
        journal=setting.workdir.path / "journals" / f"{setting.name(title.replace(' ', '_').replace(',', ''))}.jsonl",
    )


def sam_rows(setting: Setting, names: list[str]) -> list[Row]:
    """Return the best SAM member and the uniform and greedy soups of the SAM members."""
    members = measured_members(setting, names)
    held_out = {name: row["metrics"]["held_out"]["accuracy"] for name, row in members.items()}
    best = best_of(held_out)
    single, size = len(names) * len(setting.task.held_out), len(setting.task.held_out)
    # every step of SAM has one more forward and backward pass
    training = sum(3 * setting.pool.record(name)["metadata"]["config"]["epochs"] for name in names)
    training *= 2 * len(setting.task.train)
    row = members[best] | {"name": "SAM best member", "group": "main", "ingredients": {short(setting, best): 1.0}}
    row |= {"num_ingredients": 1, "cost": {"inference": 1, "selection": single, "training": int(training)}}
    uniform = soups.uniform(setting.pool.select(names))
    greedy = greedy_soup(setting, "SAM greedy soup", names, held_out)
    equal = dict.fromkeys(names, 1.0 / len(names))
    cost = {"training": int(training)}
    return [
        row,
        _soup_row(setting, "SAM uniform soup", uniform, equal, **cost),
        _soup_row(setting, "SAM greedy soup", greedy.params, greedy.ingredients, 2 * single - size, **cost),
        *members.values(),
    ]


def path_rows(setting: Setting, probe: tree.Tree, best: str) -> list[Row]:
    """Walk from the linear probe to the best member (WiSE-FT); give the rows of the best α and of the whole path."""
    member, alphas = setting.pool[best], setting.config["wise_ft"]["alphas"]
    say(f"WiSE-FT from the linear probe to {short(setting, best)}")
    rows = []
    for alpha in alphas:
        params = soups.wise_ft(member, base=probe, alpha=alpha)
        ingredients = {short(setting, best): alpha, "probe": 1.0 - alpha}
        place = {"group": "curve", "of": {"alpha": alpha}}
        row = setting.row(f"WiSE-FT, α = {alpha:g}", "interpolation", setting.logits(params), ingredients, **place)
        rows.append(row)
    held_out = [row["metrics"]["held_out"]["accuracy"] for row in rows]
    # the largest of equally good α: the nearest to the member that the held-out split has chosen already
    chosen = max(range(len(rows)), key=lambda index: (held_out[index], alphas[index]))
    middle = min(range(len(rows)), key=lambda index: abs(alphas[index] - 0.5))
    selection = len(alphas) * len(setting.task.held_out)
    main = [
        rows[chosen] | {"name": "WiSE-FT, α by held-out", "group": "main", "of": {}},
        rows[middle] | {"name": "WiSE-FT, α = 0.5", "group": "main", "of": {}},
    ]
    main[0]["cost"] = {"inference": 1, "selection": selection, "training": 0}
    return main + rows


def trajectory_rows(setting: Setting, averages: Mapping[str, tree.Tree], best: str) -> list[Row]:
    """Measure the averages along the best member's trajectory."""
    ingredients = {short(setting, best): 1.0}
    return [
        setting.row(f"{kind.upper()} of best member", "trajectory", setting.logits(params), ingredients)
        for kind, params in averages.items()
    ]


def ensemble_rows(setting: Setting, names: list[str]) -> tuple[list[Row], list[dict[str, Any]]]:
    """Return the ensemble of all members and the greedy ensemble, by arithmetic on cached logits, and its history."""
    logits = {name: setting.logits(setting.pool[name]) for name in names}
    held_out = {name: logits[name]["held_out"] for name in names}
    greedy = greedy_ensemble(held_out, setting.task.held_out.labels)
    rows = []
    selections = {
        "ensemble": dict.fromkeys(names, 1.0 / len(names)),
        "greedy ensemble": greedy.ingredients,
    }
    for title, ingredients in selections.items():
        row = setting.row(
            title,
            "ensemble",
            mixed_logits(setting, logits, ingredients),
            _short_names(setting, ingredients),
            inference=len(ingredients),
            selection=0 if title == "ensemble" else len(names) * len(setting.task.held_out),
        )
        rows.append(row)
    return rows, _short_history(setting, greedy.history)


def mixed_logits(
    setting: Setting, logits: Mapping[str, Any], ingredients: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Return the ensemble's logits on every split."""
    return {
        split: ensemble_logits([logits[name][split] for name in ingredients], list(ingredients.values()))
        for split in setting.splits
    }


def distilled_row(setting: Setting, params: tree.Tree, names: list[str], best: str) -> Row:
    """Measure the network that was distilled from the ensemble of all members."""
    epochs = setting.pool.record(best)["metadata"]["config"]["epochs"]
    training = (len(names) + 3 * epochs) * len(setting.task.train)  # the teachers once, then forward and backward
    equal = dict.fromkeys(map(lambda name: short(setting, name), names), 1.0 / len(names))
    return setting.row("distilled ensemble", "distilled", setting.logits(params), equal, training=int(training))


def best_of(scores: Mapping[str, float]) -> str:
    """Return the name with the highest score; of equal ones the last, with which the greedy soup begins as well."""
    return max(reversed(scores), key=scores.get)


def short(setting: Setting, name: str) -> str:
    """Return a member's name without its seed, as the results call it."""
    return name.removeprefix(setting.name(""))


def _soup_row(setting, title, params, ingredients, selection=0, training=0) -> Row:
    kept = setting.name(title.replace(" ", "_").replace(",", ""))
    if kept not in setting.results:
        digests = {name: setting.pool.digest(name) for name in ingredients}
        record = {"recipe": title, "ingredients": dict(ingredients), "digests": digests, "soups": soups.__version__}
        setting.results.add(kept, params, record)
    shown = _short_names(setting, ingredients)
    return setting.row(title, "soup", setting.logits(params), shown, selection=selection, training=training)


def _learned(setting, pool, per) -> soups.Soup:
    config, data = setting.config["learned"], setting.task.held_out
    steps = max(1, round(config["epochs"] * len(data) / config["batch_size"]))
    order = batch_indices(len(data), config["batch_size"], steps, setting.seed)
    batches = ({"image": data.images[rows], "label": data.labels[rows]} for rows in order)

    def loss(params, batch, temperature):
        logits = temperature * setting.apply_fn(params, setting.training.loss.preprocess(batch["image"]))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    batches = counted(batches, f"learned soup, one weight for each {per}", steps, "steps")
    return soups.learned(pool, loss, batches, per=per, learning_rate=config["learning_rate"])


def _mean_row(setting, rows) -> Row:
    row = {**rows[0], "name": "mean member", "kind": "members", "group": "main", "num_ingredients": 1}
    return row | {part: _mean([row[part] for row in rows]) for part in ("metrics", "classes")}


def _mean(values):
    if isinstance(values[0], Mapping):
        return {name: _mean([value[name] for value in values]) for name in values[0]}
    return float(np.mean(values))


def _short_names(setting, ingredients):
    return {short(setting, name): weight for name, weight in ingredients.items()}


def _short_history(setting, history):
    return [step | {"member": short(setting, step["member"])} for step in history]
