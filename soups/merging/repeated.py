"""Notice models that a merge counts several times, under one name or several, and a base among its members."""

import collections
import os
from collections.abc import Hashable, Mapping, Sequence

from soups import arguments
from soups.formats import Checkpoint
from soups.merging.job import Job, is_member
from soups.merging.lora import absolute_reference
from soups.merging.sources import split_pool
from soups.names import few, shown


def repeated(job: Job, contents: Mapping[str, Hashable], bases: Sequence[str] = ()) -> list[str]:
    """Return sentences on members that count several times, and on a base among them, of a merge of whole models.

    Args:
        contents: by model what its weights are known by, as far as that is known: where they lie, or a digest.
        bases: further bases than the job's, by name or digest.
    """
    part = job.slices[0]
    if len(job.slices) > 1 or part.sources[0].layers is not None:
        return []
    members = collections.Counter(source.model for source in part.sources if is_member(job, source))
    several = [f"{shown(model)} ({count} times)" for model, count in members.items() if count > 1]
    sentences = [f"members that are given more than once, and count as often: {few(several, 8)}"] if several else []
    bases = [*bases, *([job.base, contents.get(job.base, job.base)] if job.base else [])]
    sentences += arguments.repeated({model: contents.get(model, model) for model in members}, bases)
    if job.vocabulary == "published" and job.base in {source.model for source in part.sources} - members.keys():
        sentences.append(arguments.no_member(job.base))  # which recipes of mergekit list
    return sentences


def places(models: Mapping[str, Checkpoint]) -> dict[str, Hashable]:
    """Return by model where it lies, behind all links; of a pool's member the digest of its weights."""
    return {model: _record(found).get("digest") or _place(model) for model, found in models.items()}


def bases_of(models: Mapping[str, Checkpoint]) -> list[str]:
    """Return the names and digests of what members of pools were fine-tuned from, as far as the pools say."""
    known = [(split_pool(model)[0], _record(found).get("base")) for model, found in models.items()]
    return [name for pool, base in known if base for name in (base, f"{pool}:{base}")]


def same_contents(digests: Mapping[str, Sequence[Sequence[str]]], models: Sequence[str]) -> dict[str, Hashable]:
    """Return by model the digests of its tensors, of those that all models had to give which went in.

    `digests`: by output (model, tensor, digest) of all that went in.
    """
    found = [{model: digest for model, _, digest in digests[name]} for name in sorted(digests)]
    there = [model for model in models if any(model in one for one in found)]
    whole = [one for one in found if all(model in one for model in there)]
    return {model: tuple(one[model] for one in whole) for model in there} if whole else {}


def _record(checkpoint):
    return getattr(checkpoint, "record", {})


def _place(model):
    return os.path.realpath(absolute_reference(model))
