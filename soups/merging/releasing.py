"""Let members into a pool, and soups of them out of it, only where all of the pool's certificates hold."""

import contextlib
import functools
import inspect
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import xxhash

from soups import state, tree
from soups.files import PathLike, local_path, locked, made_folder, sweep_unfinished
from soups.merging import bands
from soups.merging.evaluation import evaluation
from soups.merging.folder import folder_files
from soups.merging.job import is_member
from soups.merging.origin import innermost, original, write_original
from soups.merging.planning import plan as make_plan
from soups.merging.recipe_file import parse_recipe
from soups.merging.record import plan_again, read_record
from soups.merging.run import kept_with, merge_in_memory, merge_to_folder
from soups.merging.sources import open_model
from soups.merging.yaml_text import dump_yaml
from soups.names import check_name, differences, few, refuse, shown
from soups.plugins import blamed
from soups.pool import Pool, PoolCorruptionError, digest
from soups.pool._member import Member
from soups.pool.certificates import Certificate
from soups.pool.pool import as_json
from soups.recipes._scores import pick_metric

Functions = Mapping[str, Callable[[Any], Any]]
Report = Callable[[str, Certificate, float], None]
NONE: Functions = MappingProxyType({})
_RESULTS = "certified"  # the folder of a pool that holds what was measured


class FailedCheckError(ValueError):
    """Say what was checked and is not as it should be, which no other words of a command would change."""

    exit_code = 1  # of a command


class CertificateError(FailedCheckError):
    """Say which certificates do not hold of what should have become a member, or the released soup."""


def certify(
    pool: Pool,
    members: Sequence[str] | None = None,
    *,
    functions: Functions = NONE,
    report: Report = lambda what, certificate, value: None,
) -> dict[str, dict[str, float]]:
    """Return the scores of the released soup, or of members, by certificate; whether one holds, it says itself.

    What was measured is kept in the pool, by the digests of the weights and of what measures them, and is not measured
    again unless one of them changed: the command, the scripts that it names, or the source of the function.

    Args:
        members: names; without them the released soup, under the name "release N".
        functions: by certificate, those that were given as functions (`Certificate.given`).
        report: is called with each score as it is known: of what, by which certificate.

    Raises:
        BlockingIOError: another process certifies, adds or releases in this pool.
        ValueError: no certificates; no soup was released; no certificate or member of that name; a function that is not
            given; as `soups search --eval`, what the evaluation does wrong.
        PoolCorruptionError: a file of the pool is not what was written.
    """
    with _Certifying(pool, functions, report) as certifying:
        if not pool.certificates:
            raise ValueError(f"the pool {pool.path} has no certificates: add one")
        if members is not None:
            return {name: certifying.member(name) for name in pool.select(members)}
        if (number := _newest(pool)) is None:
            raise ValueError(f"the pool {pool.path} has released no soup: name members, or release one")
        return {f"release {number}": certifying.release(number)}


def admit(
    pool: Pool,
    name: str,
    params: tree.Tree,
    metadata: Mapping | None = None,
    *,
    functions: Functions = NONE,
    report: Report = lambda what, certificate, value: None,
    **known: Any,
) -> dict:
    """Add a member as `Pool.add` does, which takes `known` too, if all certificates hold that are of it or of all.

    Raises:
        CertificateError: which do not hold, with their scores, and those of the released soup.
        BlockingIOError, ValueError, PoolCorruptionError: as `certify` and `Pool.add`.
    """
    with _Certifying(pool, functions, report) as certifying:
        if name in pool:  # before it is measured
            raise ValueError(f"the pool {pool.path} already has a member {name!r}: choose another name, or remove it")
        kept = known.get("files") or {}
        scores = certifying.scores(f"{name!r}", [name], digest(params), params, kept)
        certifying.demand(f"{name!r} is not added", {f"{name!r}": scores})
        return pool.add(name, params, metadata, **known)


def release(
    pool: Pool,
    members: Sequence[str] | None = None,
    method: str = "uniform",
    *,
    base: str | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    seed: int = 0,
    source: PathLike | None = None,
    functions: Functions = NONE,
    report: Report = lambda what, certificate, value: None,
) -> dict:
    """Merge members into the released soup if all certificates hold, and return its record in `Pool.releases`.

    The certificates of each ingredient must hold of itself, and those of all of them of the soup. The record's metadata
    has the recipe and the ingredients with their digests, its metrics have the scores. A soup that is the released one
    already is not released again.

    Args:
        members: names; without them all members whose numbers are finite. The base is none, which a note says.
        method, base, settings, seed: as of a recipe; the base may be a member, or any model.
        source: the output of a merge, a search or a greedy soup of members: its recipe then takes the place of all.
        functions, report: as for `certify`.

    Raises:
        CertificateError: which certificates do not hold, with their scores, and those of the soup released before.
        ValueError: an ingredient that is no member of the pool; a source whose models have changed since; tensors that
            the members do not have, or lack; as `certify` and `soups.merging.plan`.
        BlockingIOError, PoolCorruptionError: as `certify`.
    """
    with _Certifying(pool, functions, report) as certifying:
        plan, known = _planned(pool, members, method, base, settings, seed, source)
        inside, names = _in_pool(pool, plan)
        certifying.demand("no soup is released", {f"ingredient {name!r}": certifying.member(name) for name in names})
        merged, made = merge_in_memory(plan, chosen=known.get("chosen"))
        refuse(f"{source} was merged from other weights", _changed(known.get("inputs", {}), made["inputs"]))
        member = innermost(next(plan.checkpoints[model] for model, name in inside.items() if name == names[0]))
        params = _nested(member, merged)
        newest, own, what = _newest(pool), digest(params), f"the soup of {few(map(repr, names), 5)}"
        if newest is not None and pool.releases.digest(newest) == own:
            return pool.releases.record(newest)
        kept = kept_with(plan, folder_files(plan), made, member.keys)
        scores = certifying.scores(what, names, own, params, kept)
        certifying.demand("no soup is released", {what: scores})
        about = {
            "ingredients": {name: pool.digest(name) for name in names},
            "certificates": {name: pool.certificates[name].bound for name in scores},
            "models": {model: {"member": name, "digest": pool.digest(name)} for model, name in inside.items()},
            "merge": made,
        }
        return pool.releases.add(str(1 + int(newest or 0)), params, about, metrics=scores, base=pool.base, files=kept)


def remake(pool: Pool, number: int | str, out: PathLike) -> pathlib.Path:
    """Make a released soup again from its ingredients, as a new folder of safetensors, and return its path.

    Raises:
        ValueError: no such release; ingredients that the pool does not have any more, or has with other weights;
            tensors that are not those of the release, bit for bit: all are listed, and the folder stays.
        FileExistsError, OSError, PoolCorruptionError: as `soups.merging.merge_to_folder`.
    """
    if not pool.releases:
        raise ValueError(f"the pool {pool.path} has no releases yet: soups pool release makes one")
    record = pool.releases.record(check_name(str(number), pool.releases.names, "release"))
    models, made = record["metadata"]["models"], record["metadata"]["merge"]
    wrong = []
    for name, there in ((entry["member"], entry["digest"]) for entry in models.values()):
        if name not in pool:
            wrong.append(f"{name!r} is not a member any more")
        elif pool.digest(name) != there:
            wrong.append(f"{name!r} has other weights: their digest is {pool.digest(name)}, not {there}")
    refuse(f"release {number} cannot be made again from {pool.path}", wrong)
    located = {model: entry["path"] for model, entry in made["inputs"].items()}
    located |= {model: f"{pool.path}:{entry['member']}" for model, entry in models.items()}
    plan = make_plan(parse_recipe(made["recipe"], seed=made["seed"]), open_model, located)
    place = merge_to_folder(plan, out, files=folder_files(plan))
    again, wrong = open_model(place), _changed(made["inputs"], read_record(place)["inputs"])
    leaves = original(pool.releases.tensors(str(number))).digests.items()
    wrong += [f"{shown(name)} differs" for name, written in leaves if bands.digest_of(again, name) != written]
    refuse(f"{out} is not release {number}, bit for bit", wrong, FailedCheckError)
    return place


class _Certifying(contextlib.AbstractContextManager):
    """Measure the certificates of a pool, while nobody else does."""

    def __init__(self, pool, functions, report):
        self._pool, self._report, self._certificates = pool, report, pool.certificates
        for name in functions:
            check_name(name, self._certificates, "certificate")
        # all of them before any work, and with the environment of this moment
        self._measures = {name: _measure(own, functions.get(name)) for name, own in self._certificates.items()}
        self._place = local_path(pool.path) / _RESULTS

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self._place, what="certification"))
            sweep_unfinished(made_folder(self._place))
            shutil.rmtree(self._place / "candidate", ignore_errors=True)  # of one that was killed
            self._held = stack.pop_all()
        return self

    def __exit__(self, *raised):
        self._held.close()

    def member(self, name: str) -> dict[str, float]:
        """Return the scores of a member."""
        kept = self._pool.tensors(name).kept
        return self.scores(repr(name), [name], self._pool.digest(name), lambda: self._pool[name], kept)

    def release(self, number: str, only: Sequence[str] | None = None) -> dict[str, float]:
        """Return the scores of a released soup, by some certificates only if they are named."""
        releases = self._pool.releases
        names = [*releases.record(number)["metadata"]["ingredients"]]
        kept = releases.tensors(number).kept
        return self.scores(f"release {number}", names, releases.digest(number), lambda: releases[number], kept, only)

    def scores(self, what, names, own, params, kept, only=None) -> dict[str, float]:
        """Return the scores of weights of this digest, and the files kept with them, by certificates."""
        chosen = self._certificates.of(names) if only is None else [self._certificates[name] for name in only]
        found = {}
        with contextlib.ExitStack() as stack:
            given = functools.cache(lambda: params() if callable(params) else params)
            files = functools.cache(lambda: kept() if callable(kept) else kept)
            place = functools.cache(lambda: stack.enter_context(self._candidate(given(), files())))
            for one in chosen:
                path = self._result(one, own)
                if not path.exists():
                    value = self._measured(what, one, given() if one.given else place(), path.stem)
                    known = {"certificate": one.name, "weights": own, "of": what}
                    state.write(path, {**known, "score": value if math.isfinite(value) else None})
                found[one.name] = _read(path, own)
                self._report(what, one, found[one.name])
        return found

    def demand(self, refusal: str, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Raise a CertificateError unless all certificates hold of all that was measured."""
        failed = [
            (what, self._certificates[name], value)
            for what, own in scores.items()
            for name, value in own.items()
            if not self._certificates[name].holds(value)
        ]
        if not failed:
            return
        number = _newest(self._pool)
        before = self.release(number, list(dict.fromkeys(one.name for _, one, _ in failed))) if number else {}
        lines = [
            f"{what}: {one.name} is {value:.6g}, must be {one.bound}"
            + (f" (release {number}: {before[one.name]:.6g})" if number else "")
            for what, one, value in failed
        ]
        refuse(f"{refusal}, for certificates do not hold", lines, CertificateError)

    def _result(self, certificate, own):
        """Return where the score of weights by a certificate is kept: a name of the content of both."""
        measure = self._measures[certificate.name]
        return self._place / f"{xxhash.xxh3_128_hexdigest(repr(sorted(measure.identity.items())).encode())}-{own}.json"

    @contextlib.contextmanager
    def _candidate(self, params, kept):
        """Yield the model that the weights came from, or become, as a folder, which evaluations on disk are given."""
        place = made_folder(self._place / "candidate")
        try:
            write_original(place, params, kept)
            yield place
        finally:
            shutil.rmtree(place)

    def _measured(self, what, certificate, model, name):
        try:
            return self._measures[certificate.name](model, self._place / "printed" / name)
        except ValueError as error:
            raise ValueError(f"certificate {certificate.name!r} of {what}: {error}") from error


class _Given:
    """Be the `Evaluation` of a function of weights in memory."""

    def __init__(self, certificate, function):
        self._certificate, self._function = certificate, function
        scripts = {certificate.evaluation: None if function is None else _source(function)}
        self.identity = {"evaluation": certificate.evaluation, "metric": certificate.metric, "scripts": scripts}

    def __call__(self, params, log):
        name, evaluation = self._certificate.name, self._certificate.evaluation
        if self._function is None:
            raise ValueError(f"{evaluation} is a function: give it in Python, functions={{{name!r}: {evaluation}}}")
        with blamed(evaluation, self._function):
            value = self._function(params)
        return pick_metric(value, self._certificate.metric)


def _source(function):
    try:
        if function.__code__.co_filename == "<string>":  # which may be found to be the text of python -c
            raise OSError("it was made from a string")
        return xxhash.xxh3_128_hexdigest(inspect.getsource(function).encode())
    except (OSError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the source of {function!r:.200}, which identifies its scores, cannot be read: {error}"
        ) from error


def _measure(certificate, function):
    if certificate.given:
        return _Given(certificate, function)
    try:
        return evaluation(certificate.evaluation, certificate.metric)
    except (ValueError, OSError) as error:
        raise ValueError(f"certificate {certificate.name!r}: {error}") from error


def _read(path, own):
    """Return a score that was kept."""
    try:
        kept = state.read(path, {"weights": str, "score": (float, int, type(None))})
        if kept["weights"] != own:
            raise ValueError(f"{path} has the score of other weights, {kept['weights']:.100}")
    except ValueError as error:
        raise PoolCorruptionError(f"{error}; without this file the score is measured again") from error
    return math.nan if kept["score"] is None else float(kept["score"])


def _newest(pool):
    """Return the number of the released soup, or None."""
    return next(reversed(pool.releases.names), None)


def _planned(pool, members, method, base, settings, seed, source):
    """Return the plan of a release, and the record of what it is taken from."""
    if source is not None:
        known = read_record(source)
        return plan_again(known), known
    names = list(pool.usable if members is None else pool.select(members))
    recipe = {"vocabulary": "published", "merge_method": method, "parameters": as_json(settings, "settings")}
    recipe |= {"models": [f"{pool.path}:{name}" for name in names]}
    recipe |= {"base_model": f"{pool.path}:{base}" if base in pool else str(base)} if base else {}
    return make_plan(parse_recipe(dump_yaml(recipe), seed=seed), open_model), {}


def _in_pool(pool, plan):
    """Return the names of the models of a plan that are members of the pool, and those of its ingredients."""
    inside = {
        model: found.name
        for model, found in ((model, innermost(one)) for model, one in plan.checkpoints.items())
        if isinstance(found, Member) and _is_same(found.directory.parent.parent, pool.path)
    }
    merged = [source.model for part in plan.job.slices for source in part.sources if is_member(plan.job, source)]
    strangers = [
        f"{shown(model)} is not a member of {pool.path}" for model in dict.fromkeys(merged) if model not in inside
    ]
    refuse("a release is made of members of its pool", strangers)
    return inside, [inside[model] for model in dict.fromkeys(merged)]


def _is_same(place, other):
    return place == other or (isinstance(place, pathlib.Path) and os.path.samefile(place, other))


def _nested(member, merged):
    """Put merged tensors by name into nested dicts as those of a member."""
    missing, extra = sorted(member.leaves.keys() - merged.keys()), sorted(merged.keys() - member.leaves.keys())
    refuse(f"the soup must have the tensors of {member.name!r}", map(str.strip, differences(missing, extra)))
    return member.nest(merged)


def _changed(before, now):
    """List the models whose tensors are not those that were merged before."""
    changed = [model for model, entry in before.items() if model in now and now[model]["digest"] != entry["digest"]]
    return [f"{shown(model)} has changed since" for model in changed]
