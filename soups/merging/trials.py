"""Try merges: each is made in a folder of its own, scored by a user's evaluation once and for all, and removed."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import xxhash

from soups import journal, tree
from soups.files import AnyPath, PathLike, any_path, locked, sweep_unfinished
from soups.formats.hub import cached_model
from soups.formats.mapping import hash_files
from soups.merging import bands
from soups.merging.evaluation import Evaluation
from soups.merging.folder import RECIPES, folder_files
from soups.merging.lora import open_with_lora
from soups.merging.places import FILES
from soups.merging.planning import Plan
from soups.merging.planning import plan as make_plan
from soups.merging.recipe_file import parse_recipe
from soups.merging.record import RECORD, record_beside
from soups.merging.run import THREADS, merge_to_file, merge_to_folder, merge_to_orbax
from soups.merging.sources import MODEL_FILES, open_model
from soups.merging.yaml_text import dump_yaml
from soups.stores import Copies, StorePath
from soups.workers import in_threads

JOURNAL = "scores.jsonl"
_CANDIDATES, _PRINTED = "candidates", "printed"
_NAMES = ("README.md", *RECIPES)  # files that name the models, and so decide nothing

Recipe = Mapping[str, Any]  # as it stands in a recipe file


class Trials:
    """Make candidates below a folder of work and have them scored, each once.

    All scores are kept in a journal. A score is that of a recipe and of the content of its models, whatever these are
    called and whatever asks for it: nothing is evaluated twice.

    Args:
        work: a folder that `held_work` holds; what evaluations print is kept there too, but on a store.
        evaluation: from `soups.merging.evaluation`.
        kind: how candidates are written, whose path an evaluation is given: "huggingface" or "orbax", such a folder, or
            a file of this end, ".safetensors" or ".npz".
        seed: of random methods.
        keep: whether candidates stay where they were made.
        keep_scores: whether scores hold that were made when the evaluation's scripts had another content.
        report: is called with what was evaluated, its score and the seconds that this took.
        tell: is called with the notes of plans, and on members that count several times, before any is evaluated.

    Raises:
        ValueError: a journal of another evaluation, or one that is damaged; scripts that have changed.
    """

    def __init__(
        self,
        work: pathlib.Path | StorePath,
        evaluation: Evaluation,
        *,
        kind: str = "huggingface",
        seed: int = 0,
        threads: int = THREADS,
        keep: bool = False,
        keep_scores: bool = False,
        report: Callable[[str, float, float], None] = lambda what, score, seconds: None,
        tell: Callable[[str], None] = lambda sentence: None,
    ):
        self.work, self.evaluation, self.kind, self.seed, self.threads = work, evaluation, kind, seed, threads
        if keep and isinstance(work, StorePath):
            raise ValueError(f"--keep: candidates are evaluated on this machine, but {work} is on a store")
        self._copies = Copies() if isinstance(work, StorePath) else None
        self._here = work if self._copies is None else self._copies.folder  # where evaluations find candidates
        self._keep, self._report, self.tell, self._digests = keep, report, tell, {}
        _settle_scripts(work / JOURNAL, evaluation.identity["scripts"], keep_scores)
        if (work / JOURNAL).exists():
            self._journal  # noqa: B018 - it refuses one of another evaluation
        self._known = {record["key"]: record for record in journal.records(work / JOURNAL)[1:]}

    @functools.cached_property
    def _journal(self):
        header = {"recipe": "scores", **self.evaluation.identity, "format": self.kind}
        return journal.Journal(self.work / JOURNAL, header)

    @property
    def scores(self) -> list[float]:
        """Return the scores that are known."""
        return [record["score"] for record in self._known.values()]

    def plan(self, recipe: Recipe) -> Plan:
        """Plan the merge of a recipe from the headers of its models."""
        return make_plan(parse_recipe(dump_yaml(dict(recipe)), seed=self.seed), open_model)

    def digests(self, models: Iterable[str]) -> dict[str, str]:
        """Return the digest of each model's tensors; each model is read for it once."""
        models = list(models)
        self._digests |= digests_of(model for model in models if model not in self._digests)
        return {model: self._digests[model] for model in models}

    def score(
        self, name: str, what: str, recipe: Recipe, *, plan: Plan | None = None, in_place: bool = False
    ) -> tuple[float, str | None]:
        """Return the score of what a recipe gives; NaN, and the reason, where that holds NaN or infinity.

        Args:
            name: of the candidate's folder.
            what: it is, for messages.
            plan: of the recipe, if it has been made.
            in_place: whether the only model is evaluated where it lies, if that is as a candidate would be written.

        Raises:
            ValueError: as `soups.merging.plan`, `merge_to_folder` and the evaluation, which is told `what` it is.
        """
        plan = self.plan(recipe) if plan is None else plan
        files = folder_files(plan) if self.kind == "huggingface" else {}
        key = self._key(recipe, plan, files)
        if key not in self._known:
            begin, log = time.monotonic(), self._journal
            score, reason = self._evaluated(name, what, plan, files, in_place)
            self._known[key] = {"key": key, "what": what, "score": score, "reason": reason, "recipe": recipe}
            log.write(self._known[key])
            self._report(what, score, time.monotonic() - begin)
        return self._known[key]["score"], self._known[key]["reason"]

    def _evaluated(self, name, what, plan, files, in_place):
        if in_place and (place := _lying(plan.job.models[0], self.kind)):
            return self._asked(name, what, place), None
        place = self._here / _CANDIDATES / f"{name}{self.kind if self.kind in FILES else ''}"
        remove(place)
        try:
            if self.kind == "huggingface":
                merge_to_folder(plan, place, threads=self.threads, files=files)
            else:
                sink = merge_to_orbax if self.kind == "orbax" else merge_to_file
                sink(plan, place, threads=self.threads)
            return self._asked(name, what, place), None
        except tree.NonFiniteError as error:
            return float("nan"), str(error)
        finally:
            if not self._keep:
                remove(place)
                with contextlib.suppress(OSError):  # not empty
                    place.parent.rmdir()

    def _asked(self, name, what, place):
        try:
            return self.evaluation(place, self._here / _PRINTED / name)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error

    def _key(self, recipe, plan, files):
        """Return the digest of all that decides what a recipe gives."""
        digests = self.digests([*plan.job.models, *plan.job.files])
        beside = {name: _content(file) for name, file in files.items() if name not in _NAMES}
        content = {"recipe": _by_content(recipe, digests), "seed": self.seed, "files": beside}
        return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


@contextlib.contextmanager
def held_work(work: PathLike, out: str | None = None) -> Iterator[pathlib.Path | StorePath]:
    """Yield the absolute path of a folder of work, where no other process works meanwhile.

    Raises:
        BlockingIOError: another process works there.
        FileExistsError: it is there and holds something else.
        ValueError: a URL; it and the output would lie one inside the other.
    """
    path = any_path(work).absolute()
    real, other = _real(path), _real(any_path(out)) if out is not None else None
    if other and (real == other or real in other.parents or other in real.parents):
        raise ValueError(f"--work {work} and --out {out} would lie one inside the other: choose two separate folders")
    with locked(path, path.with_name(f".{path.name}.lock"), "search"):
        if isinstance(path, pathlib.Path):
            sweep_unfinished(path)
        if path.exists() and not (path / JOURNAL).is_file() and (not path.is_dir() or any(path.iterdir())):
            raise FileExistsError(f"{work} exists and has no {JOURNAL}: give --work a new folder")
        yield path


def _real(path):
    return path if isinstance(path, StorePath) else pathlib.Path(os.path.realpath(path))


def digests_of(models: Iterable[str]) -> dict[str, str]:
    """Return the digest of the names, dtypes, shapes and numbers of each model's tensors, which is that of a pool."""
    opened = {model: open_with_lora(model, open_model) for model in models}
    pairs = [(found, leaf) for found in opened.values() for leaf in sorted(found.leaves.values(), key=lambda x: x.name)]
    lines = iter(in_threads(lambda pair: _line(*pair), pairs))
    return {model: _joined(next(lines) for _ in found.leaves) for model, found in opened.items()}


def remove(place: AnyPath) -> None:
    """Remove a merge: a folder, first its name, so that nothing is met half removed; a file, and its record.

    On a store the record goes last: what was killed meanwhile is still known as a merge.
    """
    if isinstance(place, StorePath):
        record = record_beside(place) if place.is_file() else place / RECORD
        for path in [place, *place.sizes()]:
            if path != record:
                path.unlink(missing_ok=True)
        record.unlink(missing_ok=True)
        return
    gone = place.with_name(f".{place.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    if place.is_dir():
        os.rename(place, gone)
        shutil.rmtree(gone)
        return
    place.unlink(missing_ok=True)
    record_beside(place).unlink(missing_ok=True)


def _settle_scripts(path, scripts, keep):
    """Compare the scripts of an evaluation with those that made the scores of a journal, where there is one."""
    first, *scores = journal.records(path) or [{}]
    before = first.get("scripts", {}) if scores else {}  # without a score any evaluation may come
    changed = [name for name in scripts if name in before and scripts[name] != before[name]]
    if changed and not keep:
        raise ValueError(
            f"{', '.join(changed)} has changed since the scores in {path} were made: --keep-scores keeps them, "
            "another --work starts over"
        )
    if changed:
        journal.amend(path, scripts=scripts)


def _lying(model, kind):
    """Return the path of a model that is of a kind as candidates are written, or None."""
    path = pathlib.Path(cached_model(model))
    if kind in FILES:
        return path if path.suffix == kind and path.is_file() else None
    whole = kind == "huggingface" and any((path / file).is_file() for file in MODEL_FILES[:2])
    return path if whole else None


def _by_content(value, digests):
    """Return what a recipe says with digests in the place of models."""
    if isinstance(value, Mapping):
        return {name: _by_content(inner, digests) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_by_content(inner, digests) for inner in value]
    return digests.get(value, value) if isinstance(value, str) else value


def _content(file):
    """Return the digest of a file of the output's folder: of what is copied, or of a text."""
    if isinstance(file, pathlib.Path):
        return hash_files(file)
    return xxhash.xxh3_128_hexdigest(file.encode("utf-8", "backslashreplace") if isinstance(file, str) else file)


def _line(found, leaf):
    digest = found.digests.get(leaf.name) or bands.digest_of(found, leaf.name)
    return f"{leaf.name} {leaf.dtype.name} {list(leaf.shape)} {digest}\n"


def _joined(lines):
    return xxhash.xxh3_128_hexdigest("".join(lines).encode(errors="backslashreplace"))
