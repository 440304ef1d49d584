"""Make the rows that only this study has: what members start from, SAM, averages along a trajectory, distillation."""

from collections.abc import Mapping

from soups import tree
from soups.experiments.finetune_and_soup.setting import Setting
from soups.studies.kitchen import Kitchen
from soups.studies.measuring import Row, best_of


def single_rows(kitchen: Kitchen, start: tree.Tree, probe: tree.Tree) -> list[Row]:
    """Measure start weights, the probe if it is another, and each member, and name the best, mean and worst member."""
    return [
        kitchen.row("start weights", "start", kitchen.measure(start), {}),
        *([] if probe is start else [kitchen.row("linear probe", "probe", kitchen.measure(probe), {})]),
        *kitchen.single_rows(),
    ]


def soup_rows(setting: Setting, kitchen: Kitchen) -> tuple[list[Row], dict[str, list]]:
    """Make the uniform, greedy and learned soups; give their rows and their histories."""
    rows, histories = [kitchen.uniform_row()], {}
    random = kitchen.random_orders(setting.config["greedy"]["random_orders"])
    for title, order in ({"greedy soup": None} | random).items():
        row, history = kitchen.greedy_row(title, order)
        rows.append(row)
        histories |= {} if order else {title: history}
    for per in ("model", "leaf") if "learned" in setting.config else ():
        row, losses = kitchen.learned_row(per, **setting.config["learned"])
        rows.append(row)
        histories[row["name"]] = losses
    return rows, histories


def sam_rows(setting: Setting, kitchen: Kitchen) -> list[Row]:
    """Return the best SAM member, the uniform and greedy soups of the SAM members, and each of them."""
    epochs = [setting.pool.record(name)["metadata"]["config"]["epochs"] for name in kitchen.names]
    # every step of SAM has one more forward and backward pass
    training = int(sum(3 * one for one in epochs) * 2 * len(setting.task.train))
    best = kitchen.single_rows()[0] | {"name": "SAM best member"}
    return [
        best | {"cost": best["cost"] | {"training": training}},
        kitchen.uniform_row("SAM uniform soup", training),
        kitchen.greedy_row("SAM greedy soup", training=training)[0],
        *kitchen.member_rows.values(),
    ]


def trajectory_rows(kitchen: Kitchen, averages: Mapping[str, tree.Tree]) -> list[Row]:
    """Measure the averages along the best member's trajectory."""
    best = {best_of(kitchen.scores): 1.0}
    return [
        kitchen.row(f"{kind.upper()} of best member", "trajectory", kitchen.measure(params), best)
        for kind, params in averages.items()
    ]


def distilled_row(setting: Setting, kitchen: Kitchen, params: tree.Tree) -> Row:
    """Measure the network that was distilled from the ensemble of all members."""
    names = kitchen.names
    epochs = setting.pool.record(best_of(kitchen.scores))["metadata"]["config"]["epochs"]
    training = int((len(names) + 3 * epochs) * len(setting.task.train))  # the teachers once, then forward and backward
    equal = dict.fromkeys(names, 1.0 / len(names))
    return kitchen.row("distilled ensemble", "distilled", kitchen.measure(params), equal, training=training)
