"""Cook soups from anyone's members and report on them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from soups import arguments, tree
from soups.data import pair_of
from soups.evaluate import Metric, diagnose
from soups.evaluate.evaluator import unit_range
from soups.files import PathLike, any_path, same_place
from soups.names import did_you_mean, few
from soups.pool import Pool, digest
from soups.processes import on_first_process
from soups.progress import say
from soups.recipes import METHODS, Inputs
from soups.studies import curves
from soups.studies.digests import shared_examples
from soups.studies.examples import Examples
from soups.studies.kitchen import Kitchen
from soups.studies.rows import Row
from soups.studies.study import Workdir, held, versions

#: what is cooked unless something else is asked for; "wise_ft" where there is a base, "learned" where there is a loss,
#: "ensemble" where outputs are floats and all of them are kept
RECIPES = ("uniform", "greedy", "learned", "wise_ft", "ensemble")
_PAIRED = 6  # members between which barriers are measured where a soup is worse than they are
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 32, 48, 64)  # of members, whose soups are compared


def cook(
    members: Mapping[str, tree.Tree] | Sequence[tree.Tree],
    apply_fn: Callable,
    *,
    workdir: PathLike,
    held_out: Any,
    test: Any,
    shifts: Mapping[str, Any] | None = None,
    base: tree.Tree | None = None,
    recipes: Sequence[Any] | Mapping[str, Any] | None = None,
    metrics: Sequence[str] | Mapping[str, Callable | Metric] | None = None,
    keep: Callable | None = None,
    loss: Callable | None = None,
    reestimate: Callable | None = None,
    preprocess: Callable | None = None,
    batch_size: int = 500,
    mesh: jax.sharding.Mesh | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure members, cook soups from them and write `results.json`, `report.html`, figures and the soups to a folder.

        results = soups.cook(
            soups.Pool("runs/mine/pool"), model.apply, base=start, workdir="runs/mine",
            held_out=(images_a, labels_a), test=(images_b, labels_b), shifts={"night": (images_c, labels_c)},
            recipes=["uniform", "greedy", "wise_ft", ("ties", {"density": 0.2})],
        )
        best = soups.Pool("runs/mine/soups")["greedy_soup"]

    The same call goes on where an earlier one was killed, and computes nothing twice; other members, data or settings
    in the same folder repeat what depends on them.

    Args:
        members: a pool, or a mapping or sequence of pytrees; those with NaN or infinity are left out.
        apply_fn: `apply_fn(params, inputs) -> logits [B, C]`, or other outputs [B, ...], each example on its own.
        workdir: the folder, of this machine or of an object store.
        held_out: inputs [N, ...] and integer labels [N], or other targets [N, ...], that select, in any of the forms of
            `soups.data.pair_of`.
        test: the same for the report.
        shifts: the same for test sets from other distributions, by name.
        base: the weights that the members were fine-tuned from, for "wise_ft" and the methods that need them.
        recipes: "uniform", "greedy", "learned", "learned_per_leaf", "wise_ft" (the path from the base to the best
            member), "ensemble" (all, and greedy), any merging method by its name, a pair of one with its settings, or
            `function(members) -> weights`; a mapping gives titles. Default: `RECIPES`. Settings that differ from
            member to member are of all that are given, also where some are left out. Those of learned soups are
            `learning_rate` (0.05), `epochs` (5) and `batch_size` (128).
        metrics: what is measured, as for `soups.evaluate.Evaluator`, such as ["mse", "r2"]; the first one selects, and
            is the main one of the report. Default: accuracy and what else suits classes.
        keep: `keep(outputs, targets)`, as for `soups.evaluate.Evaluator`: what is left of a batch's outputs for the
            metrics, such as `soups.evaluate.token_scores` where whole logits of tokens would fill memory and disk. Of
            what is left there are no ensembles.
        loss: `loss(outputs, targets)`, the mean of a batch, for learned soups. Default: cross-entropy of classes.
        reestimate: `reestimate(params) -> params`, which gives averaged weights BatchNorm statistics of their own.
        preprocess: `preprocess(inputs) -> inputs`, compiled with the network. Default: uint8 becomes float32 in [0, 1],
            all else stays.
        batch_size: the most examples in one step.
        mesh: shards batches over its axis "data".
        seed: of the batches of learned soups.

    Returns:
        What `soups.report.load_results` gives of `results.json`; docs/results.md describes it. Its notes, which are
        printed too, name members with the same weights, those that are left out, a base among them, examples of test
        data that are held-out ones, and, where a soup of all is worse than the mean member, whom `soups.diagnose` would
        leave out.

    Raises:
        ValueError: fewer than two usable members; splits that do not fit the network or the metrics; a test set with
            the very examples of the held-out data; without `preprocess` inputs that hold NaN or infinity; recipes that
            are unknown, have wrong settings, or need a base that is not given; a workdir that is a pool, or whose soups
            would go among the members. All problems of the recipes are listed.
        OSError: the folder cannot be written, or another run works there.
    """
    members = _members(members, base)
    seed = arguments.check_within("seed", seed, "[0, 4294967295]", whole=True)
    batch_size = arguments.check_within("batch_size", batch_size, "[1, inf)", whole=True)
    shifts = {} if shifts is None else shifts
    _check_names(members, shifts)
    _check_functions(keep=keep, loss=loss, reestimate=reestimate)
    directory = any_path(workdir).absolute()
    if isinstance(members, Pool) and same_place(members.path, directory / "soups"):
        raise ValueError(
            f"the pool of the members is where soups would be kept, {members.path}: choose another workdir"
        )
    from soups.report.results import check  # where an extra is missing, this is said before long work

    kitchen = Kitchen(
        members=members,
        apply_fn=apply_fn,
        held_out=_examples("held_out", held_out),
        test=_examples("test", test),
        shifts={name: _examples(name, data) for name, data in shifts.items()},
        directory=directory,
        seed=seed,
        batch_size=batch_size,
        mesh=mesh,
        preprocess=preprocess or unit_range,
        metrics=metrics,
        part=keep,
        loss=loss,
        reestimate=reestimate,
    )
    if keep is not None and kitchen.classes:
        raise ValueError("metrics of classes need whole logits [B, C]: leave out keep=")
    floats = kitchen.check(_one_of(members))
    wanted = _wanted(recipes, base, list(members), _lacking(kitchen, base, floats))
    notes = shared_examples("held_out", kitchen.splits)
    with held(directory):
        return check(_written(kitchen, base, wanted, floats, notes))


# --- What is given ----------------------------------------------------------------------------------------------------


def _members(given, base) -> Mapping[str, tree.Tree]:
    """Return members by name, whose structure, with that of the base, is looked at where no member is read for that."""
    if isinstance(given, Pool) and not given:
        Pool(given.path, must_exist=True)  # says that there is none
    members = arguments.by_name(given)
    if isinstance(members, dict):  # in memory
        tree.check_same_structure(list(members.values()), [f"member {name}" for name in members])
    if base is not None:
        pair = [tree.flatten(one) for one in (_one_of(members), base)]
        tree.check_same_structure(pair, ["the members", "the base"], dtypes=False)
        tree.check_finite({"the base": base})
    return members


def _one_of(members) -> tree.Tree:
    return members.structure if isinstance(members, Pool) else members[next(iter(members))]


# --- What is asked for ------------------------------------------------------------------------------------------------

_BASE = "a base, base= (--base): the weights that the members were fine-tuned from"
_OWN = ("uniform", "greedy", "learned", "learned_per_leaf", "wise_ft", "ensemble")
# names of rows, which no other recipe may have
_TAKEN = ("best member", "mean member", "worst member", "base", "uniform soup", "greedy soup", "ensemble")
_TAKEN += ("greedy ensemble",)
_LEARNED = {"learned": "model", "learned_per_leaf": "leaf"}
_LEARNING = {"learning_rate": "(0, inf)", "epochs": "(0, inf)", "batch_size": "[1, inf)"}  # settings of learned soups


def _lacking(kitchen, base, floats) -> dict[str, str]:
    """Return what recipes of our own need that is not there."""
    found = {} if base is not None else {"wise_ft": _BASE}
    if not kitchen.classes and kitchen.loss is None:
        loss = "loss=, a function (outputs, targets), for other metrics"
        found |= {"learned": loss, "learned_per_leaf": loss}
    needed = "outputs that are floats, of which it takes the mean" if kitchen.part is None else "outputs without keep="
    return found if floats else found | {"ensemble": needed}


def _wanted(given, base, members, lacking) -> dict[str, Any]:
    """Return what is cooked by title: the name of one of our own, a method with its settings, or a function."""
    if given is None:
        given = [name for name in RECIPES if name not in lacking]
    if isinstance(given, str) or callable(given) or _is_pair(given):
        given = [given]
    if not isinstance(given, Iterable):
        raise ValueError(f"recipes must be a list of names, pairs and functions, or them by title, not {given!r:.200}")
    titled = given.items() if isinstance(given, Mapping) else ((_title(one), one) for one in given)
    wanted, problems = {}, []
    for title, one in titled:
        name, settings = one if _is_pair(one) else (one, {})
        if isinstance(name, str) and name in _OWN and (name is one or name not in METHODS):
            found = _own(name, settings, problems)
            problems += [f"{name} needs {lacking[name]}"] if name in lacking else []
        else:
            found = one if callable(one) else _method(one, base, members, problems)
        title = str(title)
        if callable(one):
            problems += _wrong_call(title, one)
        if not isinstance(found, str) and not (isinstance(found, tuple) and found[0] == name):
            problems += _wrong_title(title, wanted)
        if title in wanted or (isinstance(found, str) and found in wanted.values()):
            problems.append(f"{title!r} is asked for twice: give the recipes different titles, as a mapping")
        wanted[title] = found
    if problems or not wanted:
        raise ValueError("\n".join(problems) or "no recipes were asked for")
    return wanted


def _wrong_call(title, function) -> list[str]:
    try:
        arguments.check_takes(title, function, "members")
    except ValueError as error:
        return [str(error)]
    return []


def _wrong_title(title, others) -> list[str]:
    """Say why a row, and a soup in the pool, cannot have a title."""
    if not title.strip() or not title.isprintable():
        return [f"titles of recipes must be printable text, not {title!a:.200}"]
    if title in _TAKEN or title.startswith(("learned soup", "WiSE-FT")):
        return [f"a recipe cannot be called {title!r}, the name of another row: choose another title"]
    alike = [other for other in others if other != title and other.replace(" ", "_") == title.replace(" ", "_")]
    return [f"the soups of {alike[0]!r} and {title!r} would have one name in the pool"] if alike else []


def _title(one):
    if isinstance(one, str):
        return one
    if callable(one):
        return getattr(one, "__name__", "soup").strip("<>")
    name, settings = one if isinstance(one, tuple) and len(one) == 2 and isinstance(one[1], Mapping) else (one, {})
    return ", ".join([str(name), *(f"{key} = {value}" for key, value in settings.items())])


def _own(name, settings, problems):
    """Return the name of one of our own, as a pair with settings where there are any, which only learned soups have."""
    known = _LEARNING if name in _LEARNED else {}
    for key, value in settings.items():
        if key not in known:
            has = f"no setting {key!r}{did_you_mean(key, known)}" if known else "no settings: give its name alone"
            problems.append(f"{name} has {has}")
            continue
        try:
            arguments.check_within(key, value, known[key], whole=key == "batch_size")
        except ValueError as error:
            problems.append(f"{name}: {error}")
    return (name, dict(settings)) if settings else name


def _method(one, base, members, problems):
    name, settings = (one, {}) if isinstance(one, str) else one if _is_pair(one) else (None, None)
    if name not in METHODS:
        known = [*_OWN, *METHODS]
        problems.append(
            f"unknown recipe {one!r}: a recipe is a name, (name, settings) or a function"
            + (did_you_mean(name, known) if name else "")
        )
        return None
    method = METHODS[name]
    if method.base in ("required", "first") and base is None:
        problems.append(f"{name} needs {_BASE}")
    unknown = [key for key in settings if key not in method.defaults]
    problems += [f"{name} has no setting {key!r}{did_you_mean(key, method.defaults)}" for key in unknown]
    if method.single or method.beside:
        problems.append(f"{name} takes more than members: call it in a function(members) of your own")
    elif not unknown:
        problems += _wrong_settings(method, settings, members, base is not None)
    return method, dict(settings)


def _wrong_settings(method, settings, members, has_base) -> list[str]:
    try:
        own = {n: arguments.per_member(settings[n], members, n) for n in settings.keys() & {*method.per_member}}
        names = dict.fromkeys(["base", *members] if method.base == "first" else members)
        method.recipe(Inputs(len(names), has_base), names, **settings | own)
    except (ValueError, TypeError) as error:
        return [f"{method.name}: {error}"]
    return []


def _is_pair(one):
    return isinstance(one, list | tuple) and len(one) == 2 and isinstance(one[0], str) and isinstance(one[1], Mapping)


def _examples(name, data) -> Examples:
    inputs, labels = pair_of(data, name)
    labels = np.asarray(labels) if isinstance(labels, list) else jax.tree.map(np.asanyarray, labels)
    return Examples(inputs, labels, getattr(data, "class_groups", None))


def _check_functions(**given):
    for name, function in given.items():
        if function is not None:
            arguments.check_takes(name, function, "params" if name == "reestimate" else "outputs, targets")


def _check_names(members, shifts):
    if not isinstance(shifts, Mapping):
        raise ValueError(f"shifts must be a mapping from names to test sets, not a {type(shifts).__name__}")
    if wrong := [
        name for name in (*members, *shifts) if not isinstance(name, str) or not name.isprintable() or not name
    ]:
        raise ValueError(f"names of members and shifts must be printable text, not {wrong[0]!a:.200}")
    if taken := [name for name in shifts if name in ("held_out", "test", "shift_mean")]:
        raise ValueError(f"a shift cannot be called {taken[0]!r}, the name of another split: choose another name")


# --- Rows -------------------------------------------------------------------------------------------------------------


def _written(kitchen, base, wanted, floats, notes) -> dict[str, Any]:
    """Return the results, written to the folder with a report of them."""
    given, usable = len(kitchen.members), len(kitchen.names)
    if usable < 2:
        raise ValueError(
            f"soups need two members whose weights and outputs are finite, but only {usable} of {given} are"
        )
    directory, settings = kitchen.directory, {"batch_size": kitchen.batch_size, "seed": kitchen.seed}
    config = {"name": directory.name, "recipes": list(wanted), **settings}
    place = Workdir(directory, config, changeable=config)  # what was cooked is known by all that it depends on
    notes = [*notes, *_repeated(kitchen, base)]
    for note in notes:
        say(note)
    found = _results(kitchen, base, wanted, floats)
    if left := [kitchen.short(name) for name in kitchen.members if name not in kitchen.measured]:  # as was said
        notes.append(f"left out of every soup, because weights or outputs are not finite: {few(left)}")
    found["notes"] = notes + _spoiled(kitchen, base, found["rows"])
    results = place.head(config) | {"versions": versions()} | found
    on_first_process(lambda: place.finish(results, "soups", short=True))
    return results


def _results(kitchen, base, wanted, floats) -> dict[str, Any]:
    singles = kitchen.single_rows()
    rows, histories, seed = [], {}, str(kitchen.seed)
    if base is not None:
        rows.append(kitchen.row("base", "start", kitchen.measure(base), {}))
    for title, one in wanted.items():
        made, history = _cooked(kitchen, base, title, one)
        rows += made
        histories |= {"greedy ensemble" if one == "ensemble" else made[0]["name"]: history} if history else {}
    simple = [f"{one} soup" for one in ("uniform", "greedy") if one in wanted.values()]
    if len(simple) == 2:
        rows += curves.number_of_models(kitchen, COUNTS, ensembles=floats)
    return {
        "seeds": [kitchen.seed],
        "splits": kitchen.described_splits,
        "rows": singles[:3] + rows + singles[3:],
        "members": {seed: kitchen.described_members},
        "curves": curves.reliability_diagrams(kitchen, kitchen.shown(simple)) if kitchen.classes and floats else [],
        **kitchen.described_metrics,
        "histories": {seed: histories},
    }


def _repeated(kitchen, base) -> list[str]:
    """Return sentences on members that count several times, and on bases among them."""
    bases = [] if base is None else [digest(base)]
    if isinstance(kitchen.members, Pool):
        bases += filter(None, (kitchen.members.record(name)["base"] for name in kitchen.names))
    found = arguments.repeated({name: kitchen.digests[name] for name in kitchen.names}, bases)
    if isinstance(kitchen.members, Pool):
        kitchen.members.told.update(found)
    return found


def _spoiled(kitchen, base, rows) -> list[str]:
    """Return what a diagnosis says of the members where a soup of them all is worse than they are in the mean."""

    def worth(row):
        return kitchen.worth(row["metrics"]["held_out"][kitchen.metric])

    mean = next(worth(row) for row in rows if row["kind"] == "members")
    soups = [row for row in rows if row["kind"] == "soup" and row["group"] == "main"]
    worse = [row["name"] for row in soups if len(row["ingredients"]) == len(kitchen.names) and worth(row) < mean]
    if not worse:
        return []
    measure = kitchen.evaluator(kitchen.held_out)
    found = diagnose(
        kitchen.usable(),
        base=base,
        evaluate=lambda params: measure(kitchen.settled(params))[kitchen.metric],
        mode=kitchen.main.mode,
        max_members=_PAIRED,
    )
    reasons = [f"{kitchen.short(name)}: {reason}" for name, reason in found.leave_out.items()]
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    said = f"would leave out {'; '.join(reasons[:3])}{more}" if reasons else "would leave out no member"
    if not found.verdict.startswith("average"):
        said = f"finds that {found.summary}"
    return [f"worse than the mean member on held-out data: {few(worse, 3)}; soups.diagnose {said}"]


def _cooked(kitchen, base, title, one) -> tuple[list[Row], list]:
    if one == "uniform":
        return [kitchen.uniform_row()], []
    if one == "greedy":
        row, history = kitchen.greedy_row()
        return [row], history
    name, settings = one if isinstance(one, tuple) else (one, {})
    if isinstance(name, str) and name in _LEARNED:
        row, losses = kitchen.learned_row(_LEARNED[name], title=title if settings else None, **settings)
        return [row], losses
    if one == "wise_ft":
        return kitchen.path_rows(base, [place / 10 for place in range(11)]), []
    if one == "ensemble":
        return kitchen.ensemble_rows()
    return [kitchen.merged_row(title, one, base)], []
