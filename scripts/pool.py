"""List, show, verify, add and remove the members of a checkpoint pool.

python scripts/pool.py list POOL
python scripts/pool.py show POOL NAME ...
python scripts/pool.py verify POOL [NAME ...]
python scripts/pool.py add POOL NAME CHECKPOINT [--metadata JSON]
python scripts/pool.py remove POOL NAME ...
"""

import argparse
import json
import math
import sys

import numpy as np
import rich.console
import rich.markup
import rich.table

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
    return parser


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
