"""Understand the words of `soups merge`: its options, and those that are settings of the chosen method."""

import argparse

import yaml

from soups import merging
from soups.cli.options import Parser, path_argument
from soups.cli.plugins import load_plugin
from soups.files import local_path
from soups.formats.text import read_text
from soups.merging.yaml_text import LARGEST

FORMATS = ("huggingface", "orbax", "pool")


def parse(words: list[str], prog: str, description: str) -> tuple[argparse.Namespace, dict]:
    """Return the options and the settings of the method; plugins are loaded on the way.

    Raises:
        ValueError: an option that does not exist, or that others contradict; a plugin that cannot be loaded.
    """
    first = Parser(add_help=False)
    first.add_argument("--method")
    _add_plugin(first)
    chosen, _ = first.parse_known_args(words)
    for file in chosen.plugin:
        load_plugin(file)
    method = merging.find_method(chosen.method, "published") if chosen.method else None
    parser = _parser(prog, description, () if method and "only" in method.settings else ("--only",))
    settings = _add_settings(parser, chosen.method, method) if method else {}
    options = parser.parse(words, "" if method else "; settings of a method belong into the recipe, or beside --method")
    options.out = options.out or options.place
    if not options.methods and not options.verify:
        _check(options)
    given = {name: getattr(options, dest) for name, dest in settings.items()}
    return options, {name: values for name, values in given.items() if values is not None}


def recipe_text(options, settings) -> tuple[str, str]:
    """Return the recipe, of the file or made from the options, and where it stands.

    Raises:
        FileNotFoundError: no file.
        ValueError: settings beside a recipe file, of another number than the members, or a file that is not text.
    """
    fields = {"base_model": options.base, "dtype": options.dtype, "out_dtype": options.out_dtype}
    fields |= {"tokenizer_source": options.tokenizer_source, "align": _align(options)}
    asked = {"keep_first": options.keep_first, "only_tensors": options.only_tensors, "insist": options.insist or None}
    fields, asked = ({name: value for name, value in some.items() if value is not None} for some in (fields, asked))
    if options.recipe:
        if elsewhere := [*fields, *(["models"] if options.members else [])]:
            raise ValueError(f"settings belong into the recipe file: {', '.join(elsewhere)}")
        return _with(_text(options.recipe, "no recipe file at"), asked, options.recipe), options.recipe
    for name in [*options.members, *filter(None, [options.base])]:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(f"the name {name} is not UTF-8, as a recipe must be: rename it, or give a link to it")
    method = merging.find_method(options.method, "published")
    # a file belongs to one member, even if there is but one
    lists = {
        name: values
        for name, values in settings.items()
        if len(values) > 1 or (name in method.files and name in method.of_member)
    }
    for name, values in lists.items():
        if name not in method.of_member or len(values) != len(options.members):
            one = "one value" if name in method.files else "one value, or one"
            raise ValueError(f"--{name}: {one} for each of the {len(options.members)} members")
    recipe = {
        "vocabulary": "published",
        "merge_method": options.method,
        "models": [
            {"model": model, "parameters": {name: values[index] for name, values in lists.items()}}
            for index, model in enumerate(options.members)
        ],
        "parameters": {name: values[0] for name, values in settings.items() if name not in lists},
    }
    return yaml.safe_dump(recipe | fields | asked, sort_keys=False), "the command line"


def _with(text, asked, where):
    """Return a recipe with what was asked for beside it, so that its record is enough to make the same merge again."""
    given = merging.load_yaml(text, where) if asked else None
    return yaml.safe_dump(given | asked, sort_keys=False) if isinstance(given, dict) else text


def _parser(prog, description, only):
    parser = Parser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=path_argument, help="a recipe file")
    parser.add_argument("place", nargs="?", type=path_argument, metavar="OUT", help="the folder to write")
    parser.add_argument("--method", help="the name of a method, instead of a recipe file")
    parser.add_argument("--base", type=path_argument, help="the model that the members were fine-tuned from")
    parser.add_argument("--members", nargs="+", default=[], type=path_argument, help="what is merged")
    parser.add_argument("--out", type=path_argument, help="the folder to write, or POOL:NAME")
    parser.add_argument("--dtype", help="of the arithmetic where wider than float32, and of the output")
    parser.add_argument("--out_dtype", "--out-dtype", help="of the output alone")
    parser.add_argument("--tokenizer_source", "--tokenizer-source", help="base, union or a model")
    parser.add_argument(
        "--keep_first",
        "--keep-first",
        metavar="REGEX",
        help="tensors, by their whole names, that are the first member's",
    )
    # for methods with a setting "only" that is something else
    parser.add_argument(
        *only,
        "--only_tensors",
        "--only-tensors",
        dest="only_tensors",
        metavar="REGEX",
        help="the tensors, by their whole names, to write",
    )
    parser.add_argument("--insist", action="store_true", help="merge models whose configs or tokens mean other things")
    parser.add_argument(
        "--align",
        metavar="SPEC",
        type=path_argument,
        help="YAML, a list of [regex, axes]: permute units to match the first",
    )
    parser.add_argument("--seed", type=int, default=0, help="of random methods")
    parser.add_argument("--threads", type=int, help="how many compute side by side")
    parser.add_argument("--memory", help="the most private memory that may be used, such as 2GB")
    parser.add_argument("--shard-size", default="5GB", help="the largest size of a file (default: %(default)s)")
    parser.add_argument("--format", choices=FORMATS, default="huggingface", help="of the output (default: %(default)s)")
    parser.add_argument("--sharded", action="store_true", help="merge on all devices")
    parser.add_argument("--coordinator", help="HOST:PORT of the first host, or auto")
    parser.add_argument("--processes", type=int, help="how many there are")
    parser.add_argument("--process", type=int, help="which of them this is, from 0")
    parser.add_argument("--dry-run", action="store_true", help="compare the headers and print the plan")
    parser.add_argument("--verify", metavar="OUT", type=path_argument, help="merge again and compare")
    parser.add_argument("--methods", action="store_true", help="list the methods")
    _add_plugin(parser)
    return parser


def _add_plugin(parser):
    kind = {"action": "append", "default": [], "type": path_argument, "metavar": "FILE.py"}
    parser.add_argument("--plugin", **kind, help="Python that declares methods; may be given several times")


def _add_settings(parser, name, method):
    """Make an option of each setting, and return where its values will be found."""
    group = parser.add_argument_group(f"settings of {name}", method.summary or None)
    places = {}
    for setting, default in method.settings.items():
        needed = "needed" if default is merging.REQUIRED else f"default: {default}"
        of_each = "; one value, or one for each member" if setting in method.of_member else ""
        spellings = list(dict.fromkeys([f"--{setting}", f"--{setting.replace('_', '-')}"]))
        if spellings[0] in parser.known:  # such as --seed, which is of the whole merge
            continue
        places[setting] = f"setting {setting}"
        parser.known += spellings
        text = f"{needed}{of_each}".replace("%", "%%")
        group.add_argument(*spellings, dest=places[setting], nargs="+", type=_value, metavar="VALUE", help=text)
    return places


def _value(word):
    try:
        return merging.load_yaml(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is no value of YAML") from None


def _check(options):
    if bool(options.recipe) == bool(options.method):
        raise ValueError("give a recipe file, or --method with --members and --out (see --help)")
    if not options.out or (options.method and not options.members):
        raise ValueError("say what is merged and where to: RECIPE OUT, or --method, --members and --out")
    if options.sharded and options.format != "orbax":
        raise ValueError("--sharded writes an Orbax checkpoint: add --format orbax")
    if options.sharded and options.memory:
        raise ValueError("--memory is of a merge on the host: with --sharded all devices share what the models need")
    if options.coordinator and not options.sharded:
        raise ValueError("--coordinator needs --sharded: several hosts merge what each of them has shards of")


def _align(options):
    if options.align is None:
        return None
    return merging.load_yaml(_text(options.align, "--align: no file at"), f"--align: {options.align}")


def _text(path, missing):
    if not local_path(path).is_file():
        raise FileNotFoundError(f"{missing} {path}")
    return read_text(path, limit=LARGEST)
