"""Run a study: train its members, cook soups from them, and write a report.

soups run --config digits --config.sweep.members=8

CONFIG is the name of a config of this package, such as digits, or a file of
yours with a function get_config(), which returns nested fields. Its fields
`study`, `task` and `model` name something in the library, or a function of
yours as "module:function"; modules beside that file are found first.
--config.FIELD=VALUE changes a field. The same command goes on with a run that
was stopped.

On several hosts give the same command on each, with one DIR that they all
see: with --coordinator auto on a TPU pod or under SLURM, elsewhere with
--coordinator HOST:PORT --processes 4 --process 0 (to 3).
"""

import ast
import contextlib
import functools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from soups import presence
from soups.allocator import keep_freed_memory
from soups.cli import about
from soups.cli.options import HOSTS, Parser, connect, path_argument, place_argument
from soups.files import any_path
from soups.lazy import extra
from soups.names import did_you_mean, few
from soups.plugins import blamed, importable, load_plugin, named
from soups.progress import say
from soups.shipped import config_file

with extra("data", "report", "train"):
    from ml_collections import ConfigDict

#: what a config's field "study" may name
STUDIES = {
    name: f"soups.studies.{name}:run"
    for name in (
        "clip_tasks",
        "diversity",
        "domainbed",
        "finetune_and_soup",
        "fusing",
        "glue_soups",
        "imagenet_finetune",
        "imagenet_soups",
        "language_models",
        "localize_and_stitch",
        "lofi",
        "multi_task",
        "pretrain",
        "rank_bases",
        "rebasin",
    )
}
OF_SEVERAL_PROCESSES = ("finetune_and_soup", "imagenet_finetune", "imagenet_soups")  # which run on several hosts


def main(arguments: list[str], run) -> int:
    """Run the study that a config describes and return the exit code."""
    run.less_memory = "smaller batches and fewer members_per_program need less"
    if arguments and not arguments[0].startswith("-"):
        raise ValueError(
            f"{arguments[0]!r} does not belong to any option: a config is given as --config {arguments[0]}"
        )
    changes = [word for word in arguments if word.startswith("--config.")]
    options = parser(run.prog).parse([word for word in arguments if word not in changes])
    for name, value in preferred(os.environ).items():
        jax.config.update(name, value)
    keep_freed_memory()
    connect(options)  # nothing may be computed before
    file = config_file(options.config)
    with importable(pathlib.Path(file).parent), contextlib.ExitStack() as stack:
        config = read_config(file, changes)
        about.check(config)
        if file != options.config and "about" in config:
            config["about"]["command"] = f"{run.prog} --config {options.config}"
        workdir = options.workdir or os.path.join("runs", config["name"])
        run.go_on = f"the same command goes on with {workdir}"
        for line in about.opening(config):
            say(line)
        study = _study(config.get("study"))
        seen = functools.partial(setattr, run, "leader")
        stack.enter_context(presence.watched(any_path(workdir) / ".processes", functools.partial(_end, run), seen))
        if options.join:
            if getattr(study, "members", None) is None:
                raise ValueError(f"--join: a run of the study {config['study']} cannot be joined by other processes")
            study(config, workdir, join=True)
            return 0
        study(config, workdir)
        # whole, for what config.about proposes may run in another directory
        changes += [] if options.workdir is None else [f"--workdir={any_path(workdir).absolute()}"]
        for line in about.closing(config, changes):
            say(line)
    run.made(about.report_of(workdir))
    return 0


def _end(run, lost):
    """End this process, which would wait for one that is lost."""
    run.end(f"{lost}, and the others end")
    os._exit(2)


def preferred(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of `jax.config` to set, without those that the user has set, as in JAX_NUM_CPU_DEVICES=2."""
    settings = {
        "jax_compilation_cache_dir": os.path.abspath(".cache/jax"),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
        # one device for each core lets a sweep train that many members side by side; accelerators come before them
        "jax_num_cpu_devices": os.cpu_count(),
    }
    if "xla_force_host_platform_device_count" in environ.get("XLA_FLAGS", ""):
        del settings["jax_num_cpu_devices"]
    return {name: value for name, value in settings.items() if name.upper() not in environ}


def read_config(path: str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Return what the `get_config()` of a file says, with changes such as "--config.sweep.members=8".

    A config without a "name" has that of its file.
    """
    get_config = getattr(load_plugin(path, "--config"), "get_config", None)
    if not callable(get_config):
        raise ValueError(f"--config: {path} has no function get_config()")
    with blamed(f"--config: get_config of {path}", get_config):
        config = get_config()
    if not isinstance(config, ConfigDict | Mapping):
        raise ValueError(
            f"--config: get_config of {path} must return an ml_collections.ConfigDict or a dict, not a "
            f"{type(config).__name__}"
        )
    config = ConfigDict(config)
    for change in changes:
        _change(config, *change.removeprefix("--config.").partition("="))
    config = {"name": pathlib.Path(path).stem} | config.to_dict()
    if "experiment" in config:  # as older configs call it
        config = {"study": config.pop("experiment")} | config
    for name, value in _fields(config):
        _check_plain(name, value)
    return config


_USAGE = "%(prog)s --config CONFIG [--workdir DIR] [--config.FIELD=VALUE ...]"


def parser(prog: str) -> Parser:
    """Return the parser of the options."""
    parser = Parser(prog=prog, usage=_USAGE, description=__doc__)
    paths = {"type": path_argument}
    parser.add_argument("--config", required=True, metavar="CONFIG", **paths, help="the name of a config, or a file")
    folder = "the folder of the run, or s3://… or gs://…; default: runs/NAME"
    parser.add_argument("--workdir", metavar="DIR", type=place_argument, help=folder)
    join = "help a run that is working in the folder to make its members"
    parser.add_argument("--join", action="store_true", help=join)
    for name, settings in HOSTS:
        parser.add_argument(name, **settings)
    return parser


def _study(name):
    study = named(name, STUDIES, "config.study")
    if jax.process_count() > 1 and name in STUDIES and name not in OF_SEVERAL_PROCESSES:
        raise ValueError(f"{name} runs in one process; in several run {', '.join(OF_SEVERAL_PROCESSES)}")
    return study


def _fields(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """List the fields of a config by their whole names; sections have no value."""
    for name, value in config.items():
        section = isinstance(value, Mapping)
        yield f"{prefix}{name}", {} if section else value
        if section:
            yield from _fields(value, f"{prefix}{name}.")


def _change(config, name, equals, text):
    fields = dict(_fields(config.to_dict()))
    if name not in fields:
        hint = did_you_mean(name, fields).replace("mean '", "mean --config.").replace("'", "")
        raise ValueError(f"unknown option --config.{name}{hint}; fields of the config: {few(fields)}")
    if not equals:
        raise ValueError(f"--config.{name} needs a value: --config.{name}=VALUE")
    *sections, last = name.split(".")
    for section in sections:
        config = config[section]
    if isinstance(config[last], ConfigDict):
        raise ValueError(f"config.{name} is a section: change one of its fields, {', '.join(config[last])}")
    config[last] = _value(f"--config.{name}", config.get_type(last), text)


def _value(option, kind, text):
    """Return the text of a command line as a value of the type that the field has."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        if kind is type(None):
            return text
        raise _wrong_kind(option, kind, text) from None
    if kind is tuple:
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    if kind is not type(None) and not isinstance(value, kind):
        raise _wrong_kind(option, kind, text)
    return value


def _wrong_kind(option, kind, text):
    return ValueError(f"{option} must be {'an' if kind is int else 'a'} {kind.__name__}, not {text!r:.200}")


def _check_plain(name, value):
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(
            f"config.{name} holds a {type(value).__name__}, but a config has only numbers, text, lists and sections: "
            "name functions as 'module:function'"
        ) from None
