"""Keep the members of a pool of checkpoints, and release soups of them.

soups pool list runs/digits/pool
soups pool COMMAND --help    more about a command, with an example
"""

import json

from soups.cli.merge_options import add_settings, not_settings
from soups.cli.options import Parser, path_argument, place_argument
from soups.cli.show import say, size_of, table
from soups.formats.tensors import CheckpointError, nested
from soups.formats.text import parse_json
from soups.merging.folder import member_files
from soups.merging.lora import local_notes, open_with_lora
from soups.merging.methods import find_method
from soups.merging.sources import open_model
from soups.names import count_of
from soups.pool import Pool
from soups.recipes.declare import Method

_PATH = {"type": path_argument}
_OF_CERTIFICATES = {
    "certify": (
        ("--add", {"metavar": "CERTIFICATE", "help": "the name of a new certificate"}),
        ("--eval", {"metavar": "COMMAND", "help": "'python my_eval.py {model}', or module:function"}),
        ("--metric", {"metavar": "NAME", "help": "the score is the last number after this name"}),
        ("--at-least", {"type": float, "metavar": "BOUND", "help": "the lowest score with which it holds"}),
        ("--at-most", {"type": float, "metavar": "BOUND", "help": "the highest score with which it holds"}),
        ("--of", {"nargs": "+", "metavar": "NAME", "help": "members, also future ones (default: all)"}),
        ("--remove", {"metavar": "CERTIFICATE", "help": "the name of a certificate to remove"}),
    ),
    "release": (
        ("--members", {"nargs": "+", "metavar": "NAME", "help": "members, or patterns of names (default: all)"}),
        ("--method", {"metavar": "METHOD", "help": "how they are merged (default: uniform)"}),
        ("--base", _PATH | {"metavar": "MODEL", "help": "what they were fine-tuned from, a member or a model"}),
        ("--seed", {"type": int, "default": 0, "metavar": "N", "help": "seed of all that is random (default: 0)"}),
        ("--from", _PATH | {"dest": "source", "metavar": "OUT", "help": "an output, whose recipe is taken instead"}),
    ),
    "log": (
        ("--remake", _PATH | {"nargs": 2, "metavar": ("N", "OUT"), "help": "make release N again in a new folder"}),
    ),
}
_GONE = {"--settings": "each setting of --method is an option of its own, such as --density 0.2"}


def main(arguments: list[str], run) -> int:
    """Run one command and return its exit code."""
    method, hint = _method(arguments), "; settings of a method belong beside --method"
    release = "release" in arguments[:1]
    gone = _GONE | (not_settings(method) if method else {}) if release else {}
    options = parser(run.prog, method).parse(arguments, "" if method or not release else hint, gone)
    return options.command(options, run)


def _method(words):
    """Return the method of a release, whose settings are options."""
    first = Parser(add_help=False)
    first.add_argument("--method")
    chosen = first.parse_known_args(words)[0].method if words[:1] == ["release"] else None
    return find_method(chosen, "published") if chosen else None


def list_members(options, run) -> int:
    """Print a line for each member.

    soups pool list runs/digits/pool
    soups pool list --quiet runs/digits/pool    only the names
    """
    pool = Pool(options.pool, must_exist=True)
    rows = [_row(name, pool.record(name)) for name in pool]
    columns = ("name", "status", "parameters", "MB", "metrics", "digest")
    table(f"{pool.path}: {count_of(len(pool), 'member')}", columns, rows, ("parameters", "MB"))
    run.made(*pool)
    return 0


def show(options, run) -> int:
    """Print all that is known about some members.

    soups pool show runs/digits/pool seed0_member_00
    """
    pool = Pool(options.pool, must_exist=True)
    for name, record in [(name, pool.record(name)) for name in options.names]:
        facts = [(key, record[key]) for key in ("status", "digest", "base", "created", "path")]
        if kept := pool.tensors(name).kept_names:
            facts.append(("kept", ", ".join(kept)))
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


def watch(options, run) -> int:
    """Show which processes train which members, their progress, and the time left.

    soups pool watch runs/domainbed/pool           until all are there
    soups pool watch --once runs/domainbed/pool    the present state

    Processes on all hosts that train members for the pool record beside it which
    members these are and how many steps are done. A terminal shows this as a table
    that is updated in place, anything else as a line every few seconds. ETA is the
    time that the remaining steps take at the current rate.
    """
    from soups.cli.pool_watch import watch

    return watch(options, run)


def verify(options, run) -> int:
    """Compare the files of members with what was written; exit code 1 if any differ.

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
    become nested dicts. The names themselves, config, tokenizer and all else that
    a merge would copy are kept with the member, for merges and soups pool export.
    With --certified it is added only if the certificates of the pool hold: soups
    pool certify --help.
    """
    metadata = parse_json(options.metadata, "--metadata")
    there = open_with_lora(options.checkpoint, open_model)
    files, notes = member_files(options.checkpoint, there)
    for note in local_notes(options.checkpoint):
        say(note)
    member = _weights(options.checkpoint, there)
    for note in notes:
        say(note)
    pool = Pool(options.pool)
    if options.certified:
        from soups.cli.pool_certify import measuring
        from soups.merging.releasing import admit

        with measuring(pool, run) as report:
            record = admit(pool, options.name, member, metadata, report=report, files=files)
    else:
        record = pool.add(options.name, member, metadata, files=files)
    say(f"added {options.name}: {size_of(record)[0]:,} parameters, {record['status']}")
    run.made(options.name)
    return 0


def read_checkpoint(checkpoint: str) -> dict:
    """Return the weights of a checkpoint, of any format that can be merged, as nested dicts."""
    return _weights(checkpoint, open_with_lora(checkpoint, open_model))


def _weights(checkpoint, there):
    for note in [*there.notes, *(f"{alias} is tied to {name} and not added" for alias, name in there.aliases.items())]:
        say(note)
    keys = getattr(there, "keys", {})  # of Orbax and pools: a key may hold a "/" itself
    try:
        return nested({keys.get(name, name): there.read(name) for name in there.leaves})
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error


def import_files(options, run) -> int:
    """Import published weights as members, all or none.

    soups pool import --arch clip-vit-b32 --pool POOL model_0.pt model_1.pt

    Each FILE (.pt or .pth, which are read without torch, .safetensors or .npz)
    becomes a member with its name without the suffix. The headers of all files
    are compared with the architecture first, and nothing is imported if one of
    them is wrong. The same command goes on where it was stopped: members that
    are there from the same file are left as they are.
    """
    from soups.cli.pool_import import import_members

    return import_members(options, run)


def export(options, run) -> int:
    """Write members back as the models that they came from.

    soups pool export POOL:night OUT
    soups pool export POOL OUT --where 'seed<3'    a folder in OUT for each

    MEMBER is POOL:NAME, POOL for all of its members, or 'POOL:a*'. OUT becomes a
    folder in the layout of Hugging Face with the names of tensors, config,
    tokenizer and all else that was kept with the member, to the bit, and
    merge.json, by which soups merge --verify OUT compares it; one file if it ends
    in .safetensors or .npz; with --format orbax a checkpoint. Of several members
    each is written into OUT under its name. A member that came from no file, such
    as one that was trained here, has the names of its tensors in the pool. Members
    that are already there are left alone, so the same command goes on after it was
    stopped.
    """
    from soups.cli.pool_export import export_members

    return export_members(options, run)


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


def certify(options, run) -> int:
    """Keep certificates, and check whether they hold.

    soups pool certify POOL --add fast --eval 'time.py {model}' --at-most 0.5
    soups pool certify POOL                of the released soup
    soups pool certify POOL NAME ...       of members

    A certificate is an evaluation, as soups search --eval takes it, and a bound
    on its score. It must hold for every member that is added with --certified and
    for every soup that is released; with --of only for these members, and for the
    soups that are made of them. What was measured is measured again only if the
    weights or the evaluation changed. The exit code is 1 if one does not hold.
    """
    from soups.cli.pool_certify import certify

    return certify(options, run)


def release(options, run) -> int:
    """Merge members into the released soup, if all certificates hold.

    soups pool release POOL --members a b      their average
    soups pool release POOL --method ties --base a --density 0.2
    soups pool release POOL --from OUT         as soups merge or search made it

    The certificates of each ingredient must hold for it, and those of all of them
    for the soup; else the released soup stays, each certificate that does not hold
    is named, and the exit code is 1. Released soups are the members 1, 2, ... of
    POOL/releases.
    """
    from soups.cli.pool_certify import release

    return release(options, run)


def log(options, run) -> int:
    """Print the history of releases, or make one of them again.

    soups pool log POOL
    soups pool log POOL --remake 2 OUT      from its ingredients, bit for bit
    """
    from soups.cli.pool_certify import log

    return log(options, run)


def parser(prog: str, method: Method | None = None) -> Parser:
    """Return the parser of the options; with a method, of its settings for a release too."""
    parser = Parser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, names in [
        ("list", list_members, None),
        ("show", show, "+"),
        ("watch", watch, None),
        ("verify", verify, "*"),
        ("add", add, None),
        ("import", import_files, None),
        ("export", export, None),
        ("remove", remove, "+"),
        ("certify", certify, "*"),
        ("release", release, None),
        ("log", log, None),
    ]:
        command = commands.add_parser(name, help=function.__doc__.partition("\n")[0], description=function.__doc__)
        command.set_defaults(command=function)
        if function in _OWN_ARGUMENTS:
            _OWN_ARGUMENTS[function](command)
        else:
            command.add_argument("pool", metavar="POOL", type=place_argument, help="the directory, or s3://… or gs://…")
        if names:
            command.add_argument("names", metavar="NAME", nargs=names, help="members")
        if function is add:
            command.add_argument("name", metavar="NAME", help="the new member")
            command.add_argument(
                "checkpoint", metavar="CHECKPOINT", type=place_argument, help="as soups merge takes it"
            )
            command.add_argument("--metadata", default="{}", metavar="JSON", help="what to remember about it")
            command.add_argument("--certified", action="store_true", help="add it only if the pool's certificates hold")
        for names, settings in _OF_CERTIFICATES.get(name, ()):
            command.add_argument(names, **settings)
        if function is watch:
            command.add_argument("--once", action="store_true", help="print the table once")
            command.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="default: 5")
        if function is release:
            group = command.add_argument_group(f"settings of {method.name}") if method else None
            command.set_defaults(places=add_settings(group, command.known, method, several=False) if method else {})
    return parser


def _add_import_arguments(command):
    path = {"type": path_argument}
    command.add_argument("files", metavar="FILE", nargs="+", **path, help="published weights; the stem is the name")
    command.add_argument("--arch", required=True, metavar="ARCHITECTURE", help="a network, such as clip-vit-b32")
    command.add_argument("--pool", required=True, metavar="POOL", type=place_argument, help="the directory of the pool")
    command.add_argument("--hparams", metavar="JSON", **path, help="{name: hyper-parameters}, as in hparam_info.json")
    command.add_argument("--num-classes", type=int, metavar="N", help="give files that lack a head one of zeros")


def _add_export_arguments(command):
    command.add_argument("members", metavar="MEMBER", nargs="+", type=place_argument, help="POOL:NAME, POOL, 'POOL:a*'")
    command.add_argument("out", metavar="OUT", type=path_argument, help="a new folder, or FILE.safetensors or FILE.npz")
    command.add_argument("--where", metavar="CONDITION", action="append", default=[], help="which members: 'seed<3'")
    formats = {"choices": ("huggingface", "orbax"), "help": "default: huggingface, or one file if OUT ends like one"}
    command.add_argument("--format", **formats)
    command.add_argument("--shard-size", metavar="SIZE", default="5GB", help="of the largest file; default: 5GB")


_OWN_ARGUMENTS = {import_files: _add_import_arguments, export: _add_export_arguments}


def _row(name, record):
    numbers, size = size_of(record)
    return name, record["status"], f"{numbers:,}", f"{size / 1e6:.3g}", _metrics(record), record["digest"][:12]


def _metrics(record):
    scalars = {key: value for key, value in record["metrics"].items() if isinstance(value, (int, float))}
    held_out = {key: value for key, value in scalars.items() if "held_out" in key}
    return ", ".join(f"{key} {value:.4g}" for key, value in (held_out or scalars).items())
