"""List, show, verify, add, import and remove the members of a checkpoint pool.

python scripts/pool.py list POOL
python scripts/pool.py show POOL NAME ...
python scripts/pool.py verify POOL [NAME ...]
python scripts/pool.py add POOL NAME CHECKPOINT [--metadata JSON]
python scripts/pool.py import --arch ARCHITECTURE --pool POOL FILE ... [--hparams hparam_info.json] [--num_classes N]
python scripts/pool.py remove POOL NAME ...

`import` reads published weights, .pt and .pth without torch, .safetensors and .npz: each file becomes the member of its
name without suffix. The headers of all files are compared with the architecture first, and nothing is imported if one
of them is wrong. The same command goes on after it was stopped: what is there from the same file is left as it is.
"""

import argparse
import collections
import json
import math
import pathlib
import sys
import time

import jax
import numpy as np
import rich.console
import rich.markup
import rich.table
import xxhash

from soups import tree
from soups.models.architectures import ARCHITECTURES
from soups.models.import_weights import imported_members
from soups.pool import Pool, load_checkpoint


def main(arguments: list[str] | None = None) -> int:
    """Run one command and give the exit code: 0, 1 if `verify` found something, 2 if the command cannot be done."""
    options = _parser().parse_args(arguments)
    console = rich.console.Console()
    try:
        return options.command(options, console)
    except KeyError as error:
        message = error.args[0]
    except (ValueError, OSError) as error:
        message = error
    print(f"pool.py: {message}", file=sys.stderr)
    return 2


def list_members(options, console) -> int:
    """Print a line for each member."""
    pool = Pool(options.pool, must_exist=True)
    table = _table(f"{pool.path}: {len(pool)} members", "name", "status", "parameters", "MB", "metrics", "digest")
    for name in pool:
        record = pool.record(name)
        numbers, size = _size(record)
        table.add_row(
            *map(_text, [name, record["status"], f"{numbers:,}", f"{size / 1e6:.3g}"]),
            _text(_metrics(record)),
            record["digest"][:12],
        )
    console.print(table)
    return 0


def show(options, console) -> int:
    """Print all that is known of some members."""
    pool = Pool(options.pool, must_exist=True)
    for name, record in [(name, pool.record(name)) for name in options.names]:
        facts = _table(name, "", "")
        for key in ("status", "digest", "base", "created", "path"):
            facts.add_row(key, _text(record[key]))
        for group in ("metadata", "metrics", "versions"):
            for key, value in record[group].items():
                facts.add_row(f"{group}.{_text(key)}", _text(value if isinstance(value, str) else json.dumps(value)))
        leaves = _table(
            f"{len(record['leaves'])} leaves, {_size(record)[0]:,} parameters", "leaf", "shape", "dtype", ""
        )
        for leaf, known in record["leaves"].items():
            bad = "NaN or infinity" if leaf in record["nonfinite_leaves"] else ""
            leaves.add_row(_text(leaf), _text(tuple(known["shape"])), known["dtype"], bad)
        console.print(facts, leaves)
    return 0


def verify(options, console) -> int:
    """Print for each member whether its files are what was written; 1 if any is not."""
    pool = Pool(options.pool, must_exist=True)
    problems = pool.verify(options.names or None)
    table = _table(str(pool.path), "name", "result")
    for name, found in problems.items():
        table.add_row(_text(name), _text("\n".join(found) or "ok"))
    console.print(table)
    return int(any(problems.values()))


def add(options, console) -> int:
    """Add an Orbax checkpoint as a member."""
    try:
        metadata = json.loads(options.metadata)
    except json.JSONDecodeError as error:
        raise ValueError(f"--metadata is not JSON: {error}") from error
    record = Pool(options.pool).add(options.name, load_checkpoint(options.checkpoint), metadata)
    console.print(f"added {_text(options.name)}: {_size(record)[0]:,} parameters, {record['status']}")
    return 0


def import_files(options, console) -> int:
    """Import published weights as members, after all of their headers were found to be right."""
    members = imported_members(options.files, options.arch, options.num_classes)
    files = dict(zip(members, map(pathlib.Path, options.files), strict=True))
    pool, hparams = Pool(options.pool), _hparams(options.hparams, members) if options.hparams else {}
    missing = [name for name in members if not _is_there(pool, name, files[name], options.arch)]
    if len(pool) and missing:
        tree.check_same_structure([pool.structure, _structure(members[missing[0]])], [pool.names[0], missing[0]])
    if there := len(members) - len(missing):
        console.print(f"{there} of {len(members)} are there already")
    for number, name in enumerate(missing, there + 1):
        start = time.monotonic()
        metadata = {"arch": options.arch, "source": _source(files[name])}
        metadata |= {"hparams": hparams[name]} if hparams else {}
        record = pool.add(name, members[name], metadata)
        size, seconds = _size(record)[1] / 1e6, time.monotonic() - start
        console.print(_text(f"{name}: {size:.3g} MB, {record['status']}, {seconds:.2g} s ({number}/{len(members)})"))
    for names in _duplicates(pool):
        console.print(_text(f"the same weights: {' = '.join(names)}"))
    return 0


def remove(options, console) -> int:
    """Remove members, all or none of those that are named."""
    pool = Pool(options.pool, must_exist=True)
    for name in pool.select(options.names):
        pool.remove(name)
        console.print(f"removed {_text(name)}")
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="pool.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, names in [
        ("list", list_members, None),
        ("show", show, "+"),
        ("verify", verify, "*"),
        ("add", add, None),
        ("remove", remove, "+"),
    ]:
        command = commands.add_parser(name, help=function.__doc__)
        command.set_defaults(command=function)
        command.add_argument("pool", metavar="POOL", help="the directory of the pool")
        if names:
            command.add_argument("names", metavar="NAME", nargs=names, help="members")
        if function is add:
            command.add_argument("name", metavar="NAME", help="the new member")
            command.add_argument("checkpoint", metavar="CHECKPOINT", help="an Orbax checkpoint")
            command.add_argument("--metadata", default="{}", metavar="JSON", help="what should be known of it")
    _import_parser(commands.add_parser("import", help=import_files.__doc__))
    return parser


def _import_parser(command):
    command.set_defaults(command=import_files)
    command.add_argument("files", metavar="FILE", nargs="+", help="published weights; the stem names the member")
    command.add_argument("--arch", required=True, metavar="ARCHITECTURE", help=", ".join(ARCHITECTURES))
    command.add_argument("--pool", required=True, metavar="POOL", help="the directory of the pool")
    command.add_argument("--hparams", metavar="JSON", help="a file of {name: hyper-parameters}, as hparam_info.json")
    command.add_argument("--num_classes", type=int, metavar="N", help="give files without a head one of zeros")


# --- Importing ---


def _hparams(path, names):
    try:
        known = json.loads(pathlib.Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    known = known if isinstance(known, dict) else {}
    if lacking := [name for name in names if not isinstance(known.get(name), dict)]:
        raise ValueError(f"{path} does not give the hyper-parameters of {', '.join(lacking)}")
    return known


def _is_there(pool, name, file, arch):
    """Say whether the pool has this member from this file; one of this name from elsewhere is a ValueError."""
    if name not in pool:
        return False
    metadata, now = pool.record(name)["metadata"], _stamp(file)
    source = metadata.get("source", {})
    # as make and rsync do, believe size and time; what was copied or fetched again is compared by its bytes
    same = source.items() >= now.items() or (
        source.get("size") == now["size"] and source.get("xxh3_128") == _digest(file)
    )
    if not same or metadata.get("arch") != arch:
        raise ValueError(f"the pool {pool.path} has a member {name!r} that is not {file} as {arch}: rename one of them")
    return True


def _structure(params):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)


def _source(file):
    return {"file": str(file.absolute()), **_stamp(file), "xxh3_128": _digest(file)}


def _stamp(file):
    known = [part.stat() for part in _parts(file)]
    return {"size": sum(one.st_size for one in known), "modified_ns": max(one.st_mtime_ns for one in known)}


def _digest(file):
    digest = xxhash.xxh3_128()
    for part in _parts(file):
        with open(part, "rb") as content:
            while block := content.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _parts(path):
    return sorted(part for part in path.iterdir() if part.is_file()) if path.is_dir() else [path]


def _duplicates(pool):
    same = collections.defaultdict(list)
    for name in pool:
        same[pool.digest(name)].append(name)
    return [names for names in same.values() if len(names) > 1]


# --- Showing ---


def _table(title, *columns):
    table = rich.table.Table(title=_text(title), title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in ("parameters", "MB") else "left", overflow="fold")
    return table


def _text(value) -> str:
    return rich.markup.escape(str(value))


def _size(record):
    numbers = [(math.prod(leaf["shape"]), np.dtype(leaf["dtype"]).itemsize) for leaf in record["leaves"].values()]
    return sum(count for count, _ in numbers), sum(count * itemsize for count, itemsize in numbers)


def _metrics(record):
    scalars = {key: value for key, value in record["metrics"].items() if isinstance(value, (int, float))}
    held_out = {key: value for key, value in scalars.items() if "held_out" in key}
    return ", ".join(f"{key} {value:.4g}" for key, value in (held_out or scalars).items())


if __name__ == "__main__":
    sys.exit(main())
