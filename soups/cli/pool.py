"""List, show, verify, add, import and remove the members of a pool of checkpoints.

soups pool list runs/digits/pool
soups pool COMMAND --help    more about a command, with an example
"""

import json

from soups.cli.options import Parser, path_argument
from soups.cli.show import say, size_of, table
from soups.formats.tensors import CheckpointError, nested
from soups.formats.text import parse_json
from soups.merging.lora import local_notes, open_with_lora
from soups.merging.sources import open_model
from soups.pool import Pool


def main(arguments: list[str], run) -> int:
    """Run one command and return its exit code."""
    options = parser(run.prog).parse(arguments)
    return options.command(options, run)


def list_members(options, run) -> int:
    """Print a line for each member.

    soups pool list runs/digits/pool
    soups pool list --quiet runs/digits/pool    only the names
    """
    pool = Pool(options.pool, must_exist=True)
    rows = [_row(name, pool.record(name)) for name in pool]
    columns = ("name", "status", "parameters", "MB", "metrics", "digest")
    table(f"{pool.path}: {len(pool)} members", columns, rows, ("parameters", "MB"))
    run.made(*pool)
    return 0


def show(options, run) -> int:
    """Print all that is known about some members.

    soups pool show runs/digits/pool seed0_member_00
    """
    pool = Pool(options.pool, must_exist=True)
    for name, record in [(name, pool.record(name)) for name in options.names]:
        facts = [(key, record[key]) for key in ("status", "digest", "base", "created", "path")]
        for group in ("metadata", "metrics", "versions"):
            own = {key: value if isinstance(value, str) else json.dumps(value) for key, value in record[group].items()}
            facts += [(f"{group}.{key}", text) for key, text in own.items()]
        table(name, ("", ""), facts)
        title = f"{len(record['leaves'])} leaves, {size_of(record)[0]:,} parameters"
        bad = {leaf: "NaN or infinity" for leaf in record["nonfinite_leaves"]}
        leaves = [(leaf, tuple(k["shape"]), k["dtype"], bad.get(leaf, "")) for leaf, k in record["leaves"].items()]
        table(title, ("leaf", "shape", "dtype", ""), leaves)
        run.made(f"{name} {record['digest']}")
    return 0


def verify(options, run) -> int:
    """Compare the files of members with what was written; 1 if any has changed.

    soups pool verify runs/digits/pool
    """
    pool = Pool(options.pool, must_exist=True)
    problems = pool.verify(options.names or None)
    rows = [(name, line) for name, found in problems.items() for line in found or ["ok"]]
    table(str(pool.path), ("name", "result"), rows)
    run.made(*(f"{name}: {line}" for name, found in problems.items() for line in found))
    return int(any(problems.values()))


def add(options, run) -> int:
    """Add the weights of a checkpoint as a member.

    soups pool add POOL night model.safetensors --metadata '{"seed": 3}'

    CHECKPOINT is what `soups merge` takes: a file of safetensors, torch, NumPy
    (.npz), GGUF or Flax (.msgpack), a folder of Hugging Face or Orbax, a member
    POOL:NAME; CHECKPOINT@TREE takes one of several trees. The names of tensors
    become nested dicts.
    """
    metadata = parse_json(options.metadata, "--metadata")
    there = open_with_lora(options.checkpoint, open_model)
    tied = [f"{alias} is tied to {name} and not added" for alias, name in there.aliases.items()]
    for note in [*local_notes(options.checkpoint), *there.notes, *tied]:
        say(note)
    keys = getattr(there, "keys", {})  # of Orbax: a key may hold a "/" itself
    try:
        member = nested({keys.get(name, name): there.read(name) for name in there.leaves})
    except CheckpointError as error:
        raise CheckpointError(f"{options.checkpoint}: {error}") from error
    record = Pool(options.pool).add(options.name, member, metadata)
    say(f"added {options.name}: {size_of(record)[0]:,} parameters, {record['status']}")
    run.made(options.name)
    return 0


def read_checkpoint(checkpoint: str) -> dict:
    """Return the weights of a checkpoint, of any format that can be merged, as nested dicts."""
    there = open_with_lora(checkpoint, open_model)
    for note in [*there.notes, *(f"{alias} is tied to {name} and not added" for alias, name in there.aliases.items())]:
        say(note)
    keys = getattr(there, "keys", {})  # of Orbax: a key may hold a "/" itself
    try:
        return nested({keys.get(name, name): there.read(name) for name in there.leaves})
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error


def import_files(options, run) -> int:
    """Import published weights as members, all or none.

    soups pool import --arch clip-vit-b32 --pool POOL model_0.pt model_1.pt

    Each FILE, .pt and .pth (read without torch), .safetensors or .npz, becomes
    the member of its name without suffix. The headers of all files are compared
    with the architecture first, and nothing is imported if one of them is wrong.
    The same command goes on where it was stopped: members that are there from
    the same file are left as they are.
    """
    from soups.cli.pool_import import import_members

    return import_members(options, run)


def remove(options, run) -> int:
    """Remove members, all or none of those that are named.

    soups pool remove runs/digits/pool seed0_member_03
    """
    pool = Pool(options.pool, must_exist=True)
    for name in pool.select(options.names):
        pool.remove(name)
        say(f"removed {name}")
        run.made(name)
    return 0


def parser(prog: str) -> Parser:
    """Return the parser of the options."""
    parser = Parser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, names in [
        ("list", list_members, None),
        ("show", show, "+"),
        ("verify", verify, "*"),
        ("add", add, None),
        ("import", import_files, None),
        ("remove", remove, "+"),
    ]:
        command = commands.add_parser(name, help=function.__doc__.partition("\n")[0], description=function.__doc__)
        command.set_defaults(command=function)
        if function is import_files:
            _add_import_arguments(command)
        else:
            command.add_argument("pool", metavar="POOL", type=path_argument, help="the directory of the pool")
        if names:
            command.add_argument("names", metavar="NAME", nargs=names, help="members")
        if function is add:
            command.add_argument("name", metavar="NAME", help="the new member")
            command.add_argument("checkpoint", metavar="CHECKPOINT", type=path_argument, help="as soups merge takes it")
            command.add_argument("--metadata", default="{}", metavar="JSON", help="what to remember about it")
    return parser


def _add_import_arguments(command):
    path = {"type": path_argument}
    command.add_argument("files", metavar="FILE", nargs="+", **path, help="published weights; the stem is the name")
    command.add_argument("--arch", required=True, metavar="ARCHITECTURE", help="a network, such as clip-vit-b32")
    command.add_argument("--pool", required=True, metavar="POOL", **path, help="the directory of the pool")
    command.add_argument("--hparams", metavar="JSON", **path, help="{name: hyper-parameters}, as in hparam_info.json")
    command.add_argument("--num-classes", type=int, metavar="N", help="give files that lack a head one of zeros")


def _row(name, record):
    numbers, size = size_of(record)
    return name, record["status"], f"{numbers:,}", f"{size / 1e6:.3g}", _metrics(record), record["digest"][:12]


def _metrics(record):
    scalars = {key: value for key, value in record["metrics"].items() if isinstance(value, (int, float))}
    held_out = {key: value for key, value in scalars.items() if "held_out" in key}
    return ", ".join(f"{key} {value:.4g}" for key, value in (held_out or scalars).items())
