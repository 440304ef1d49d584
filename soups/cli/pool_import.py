"""Import published weights into a pool."""

import collections
import pathlib
import time

import jax

from soups import tree
from soups.cli.show import say, size_of
from soups.formats.hub import cached_model
from soups.formats.mapping import hash_files
from soups.formats.text import read_json
from soups.models.import_weights import imported_members
from soups.pool import Pool


def import_members(options, run) -> int:
    """Make a member of each file that is not there yet, and return 0."""
    members = imported_members(options.files, options.arch, options.num_classes)
    files = dict(zip(members, [pathlib.Path(cached_model(file)) for file in options.files], strict=True))
    pool, hparams = Pool(options.pool), _hparams(options.hparams, members) if options.hparams else {}
    missing = [name for name in members if not _is_there(pool, name, files[name], options.arch)]
    if len(pool) and missing:
        labels = [f"member {name}" for name in (pool.names[0], missing[0])]
        first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), members[missing[0]])
        tree.check_same_structure([pool.structure, first], labels)
    if there := len(members) - len(missing):
        say(f"{there} of {len(members)} are there already")
    run.go_on = "the same command goes on with what is not there yet"
    for number, name in enumerate(missing, there + 1):
        start = time.monotonic()
        file = files[name]
        source = {"file": str(file.absolute()), "size": _size(file), "xxh3_128": hash_files(*_parts(file))}
        metadata = {"arch": options.arch, "source": source}
        metadata |= {"hparams": hparams[name]} if hparams else {}
        record = pool.add(name, members[name], metadata)
        size, seconds = size_of(record)[1] / 1e6, time.monotonic() - start
        say(f"{name}: {size:.3g} MB, {record['status']}, {seconds:.2g} s ({number}/{len(members)})")
        run.made(name)
    for names in _duplicates(pool):
        say(f"the same weights: {' = '.join(names)}")
    return 0


def _hparams(path, names):
    known = read_json(path)
    if lacking := [name for name in names if not isinstance(known.get(name), dict)]:
        raise ValueError(f"{path} does not give the hyper-parameters of {', '.join(lacking)}")
    return known


def _is_there(pool, name, file, arch):
    """Say whether the pool has this member from this file; one of this name from elsewhere is a ValueError."""
    if name not in pool:
        return False
    metadata = pool.record(name)["metadata"]
    source = metadata.get("source", {})
    same = metadata.get("arch") == arch and source.get("size") == _size(file)
    if not same or source.get("xxh3_128") != hash_files(*_parts(file)):
        raise ValueError(f"the pool {pool.path} has a member {name!r} that is not {file} as {arch}: rename one of them")
    return True


def _size(file):
    return sum(part.stat().st_size for part in _parts(file))


def _parts(path):
    return sorted(part for part in path.iterdir() if part.is_file()) if path.is_dir() else [path]


def _duplicates(pool):
    same = collections.defaultdict(list)
    for name in pool:
        same[pool.digest(name)].append(name)
    return [names for names in same.values() if len(names) > 1]
