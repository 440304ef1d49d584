"""Understand the words of `soups merge`: its options, and those that are settings of the chosen method."""

import argparse
import contextlib
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence

from soups import merging
from soups.cli.options import HOSTS, Parser, option_of, path_argument, place_argument
from soups.cli.show import tell
from soups.files import local_path, meant_path
from soups.merging.members import chosen_members
from soups.plugins import load_plugin
from soups.recipes.declare import Method

COMMAND_LINE = "the command line"  # where a recipe comes from that options made
_MADE = rf"(?:{COMMAND_LINE}|the recipe)"  # also by `soups pool release`
_AS_OPTIONS = (  # what is said of fields of such a recipe, and what is said instead
    (rf"{_MADE}: parameters\.(\w+)", r"--\1"),
    (rf"{_MADE}: parameters of (.+)\.(\w+)(?= )", r"--\2 of \1"),
    (rf"{_MADE}: (align|keep_first|only_tensors)", r"--\1"),
    (rf"(dtype|out_dtype|tokenizer_source|seed) of {_MADE}", r"--\1"),
    (r"^the --", "--"),
    (rf"^{_MADE}: ", ""),
    (r"needs a base_model \(--base\)", "needs --base"),
    (r"needs a value of '?(\w+)'?", r"needs --\1"),
)
FORMATS = ("huggingface", "orbax", "pool")
MEMBERS = (
    (
        "--members",
        {"nargs": "+", "default": [], "type": place_argument, "metavar": "MODEL"}
        | {"help": "models, patterns such as 'runs/*/model', POOL for all of its members, 'POOL:a*'"},
    ),
    (
        "--where",
        {"nargs": "+", "action": "extend", "default": [], "metavar": "CONDITION"}
        | {"help": "choose members of pools by metadata or metrics: 'learning_rate<1e-3'"},
    ),
)
_PLUGIN = {"action": "append", "default": [], "type": path_argument, "metavar": "FILE.py"}
_PLUGIN |= {"help": "a Python file that declares methods; may be repeated"}
USAGE = """%(prog)s RECIPE.yml OUT [OPTION ...]
       %(prog)s --method METHOD [--base MODEL] --members MODEL ... --out OUT
                   [OPTION ...]"""


def parse(
    words: list[str], prog: str, description: str, groups: Callable[[str], dict] | None = None, usage: str = USAGE
) -> tuple[argparse.Namespace, dict]:
    """Return the options and the settings of the method; plugins are loaded on the way.

    `groups`: gives the options of another command that merges, as `arguments_of` gives those of `soups merge`.
    """
    first = Parser(add_help=False)
    first.add_argument("--method")
    first.add_argument("--plugin", **_PLUGIN)
    chosen, _ = first.parse_known_args(words)
    for file in chosen.plugin:
        load_plugin(file)
    method = merging.find_method(chosen.method, "published") if chosen.method else None
    parser, group = Parser(prog=prog, usage=usage, description=description), None
    if method:  # whose settings come first in the help
        group = parser.add_argument_group(f"settings of {method.name}", _summary(method))
    add_groups(parser, (groups or arguments_of)("" if method and "only" in method.settings else "--only"))
    settings = add_settings(group, parser.known, method) if method else {}
    hint = "" if method else "; settings of a method belong in the recipe, or beside --method"
    options = parser.parse(words, hint, not_settings(method) if method else {})
    options.out = options.out or options.place
    if groups:
        _check(options)
    elif options.methods is None and not options.verify:
        _check(options)
        _check_devices(options)
    return options, given_settings(options, settings)


def not_settings(method: Method) -> dict[str, str]:
    """Return what is said of each option that is a setting of other methods alone, or was one of this."""
    own = f"it has {', '.join(method.settings)}" if method.settings else "it has none"
    others = {name for other in merging.methods_of("published").values() for name in other.settings}
    said = {name: f"{method.name} has no setting {name}; {own}" for name in others - method.settings.keys()}
    return {option_of(setting): text for setting, text in (said | dict(method.gone)).items()}


def given_settings(options: argparse.Namespace, places: Mapping[str, str]) -> dict[str, list]:
    """Return the values of each setting that was given, where `add_settings` says that they are found."""
    given = {name: getattr(options, place) for name, place in places.items()}
    return {name: values for name, values in given.items() if values is not None}


def choose_members(options: argparse.Namespace) -> None:
    """Put the models that patterns, pools and conditions choose in the place of --members, and say what is left out."""
    if options.members:
        options.members, notes = chosen_members(options.members, options.where)
        for note in notes:
            tell(note)


def recipe_text(options, settings) -> tuple[str, str]:
    """Return the recipe, of the file or made from the options, and where it stands."""
    from soups.merging.yaml_text import dump_yaml

    fields = {"base_model": options.base, "dtype": options.dtype, "out_dtype": options.out_dtype}
    fields |= {"tokenizer_source": options.tokenizer_source, "align": options.align}
    if options.align is not None:
        text = _text(options.align, "--align: no file at")
        fields["align"] = merging.load_yaml(text, f"--align: {options.align}")
    asked = {"keep_first": options.keep_first, "only_tensors": options.only_tensors, "insist": options.insist or None}
    fields, asked = ({name: value for name, value in some.items() if value is not None} for some in (fields, asked))
    if options.recipe:
        if elsewhere := [*fields, *(["models"] if options.members or options.where else [])]:
            raise ValueError(f"settings belong in the recipe file: {', '.join(elsewhere)}")
        text = _text(options.recipe, "no recipe file at")
        # what was asked for goes in, so that the record is enough to make the same merge again
        given = merging.load_yaml(text, options.recipe) if asked else None
        return (dump_yaml(given | asked) if isinstance(given, dict) else text), options.recipe
    return dump_yaml(_recipe(options, settings) | fields | asked), COMMAND_LINE


@contextlib.contextmanager
def naming_options() -> Iterator[None]:
    """Have errors about a recipe that options made name the options; those about a recipe file stay as they are."""
    try:
        yield
    except ValueError as error:
        said = str(error)
        if not re.search(rf"^{_MADE}: | of {_MADE}", said):
            raise
        for pattern, instead in _AS_OPTIONS:
            said = re.sub(pattern, lambda found, to=instead: _hyphened(found.expand(to)), said)
        raise ValueError(said) from error


def _hyphened(text):
    return re.sub(r"--\w+", lambda option: option[0].replace("_", "-"), text, count=1)


def _recipe(options, settings):
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
    return {
        "vocabulary": "published",
        "merge_method": options.method,
        "models": [
            {"model": model, "parameters": {name: values[index] for name, values in lists.items()}}
            for index, model in enumerate(options.members)
        ],
        "parameters": {name: values[0] for name, values in settings.items() if name not in lists},
    }


def _summary(method):
    summary = f"{method.summary}; soups merge --methods {method.name} says more".removeprefix("; ")
    return textwrap.fill(summary, 78).replace("%", "%%")


def parser_of(prog: str, description: str, usage: str, groups: Mapping[str, Sequence]) -> Parser:
    """Return a parser of options by the titles of their groups."""
    parser = Parser(prog=prog, usage=usage, description=description)
    add_groups(parser, groups)
    return parser


def add_groups(parser: Parser, groups: Mapping[str, Sequence]) -> None:
    """Add options by the titles of their groups: names, and what argparse knows of them."""
    for title, arguments in groups.items():
        group = parser.add_argument_group(title)
        for names, settings in arguments:
            group.add_argument(*names.split(), **settings)


def arguments_of(only: str) -> dict[str, list]:
    """Return the options of `soups merge` by group: names, and what argparse knows of them."""
    path, count, switch = {"type": path_argument}, {"type": int, "metavar": "N"}, {"action": "store_true"}
    regex, place = {"metavar": "REGEX"}, {"type": place_argument}
    return {
        "what is merged": [
            ("recipe", path | {"nargs": "?", "metavar": "RECIPE.yml", "help": "a recipe file"}),
            ("--method", {"metavar": "METHOD", "help": "the name of a method, instead of a recipe file"}),
            ("--base", place | {"metavar": "MODEL", "help": "what the members were fine-tuned from"}),
            *MEMBERS,
            ("--insist", switch | {"help": "merge models even if their configs or tokens differ in meaning"}),
            ("--align", path | {"metavar": "SPEC", "help": "permute the units of all models to match the first"}),
            ("--keep-first", regex | {"help": "take tensors whose whole name matches from the first member"}),
            (f"--only-tensors {only}", regex | {"help": "merge and write only tensors whose whole name matches"}),
            ("--seed", {"type": int, "default": 0, "metavar": "N", "help": "seed of all that is random (default: 0)"}),
            ("--plugin", _PLUGIN),
        ],
        "what is written": [
            ("place", place | {"nargs": "?", "metavar": "OUT", "help": "a new folder, FILE.safetensors or FILE.npz"}),
            ("--out", place | {"metavar": "OUT", "help": "the same, or POOL:NAME"}),
            (
                "--format",
                {"choices": FORMATS, "help": "format of OUT (default: huggingface, or one file if OUT ends like one)"},
            ),
            ("--dtype", {"help": "dtype of OUT, and of the arithmetic if wider than float32"}),
            ("--out-dtype", {"metavar": "DTYPE", "help": "dtype of OUT alone"}),
            ("--tokenizer-source", {"metavar": "WHICH", "help": "the vocabulary of OUT: base, union, or a model"}),
            ("--shard-size", {"metavar": "SIZE", "help": "the size of the largest file (default: 5GB)"}),
        ],
        "how": [
            ("--dry-run", switch | {"help": "compare the headers, print the plan, write nothing"}),
            ("--threads", count | {"help": "how many tensors to work on at a time"}),
            ("--memory", {"metavar": "SIZE", "help": "the most private memory to use, such as 2GB"}),
            ("--sharded", switch | {"help": "merge on all devices"}),
            *HOSTS,
        ],
        "instead of a merge": [
            ("--verify", place | {"metavar": "OUT", "help": "merge OUT again and compare it bit for bit"}),
            ("--methods", {"nargs": "*", "metavar": "NAME", "help": "explain methods; without NAME, list all"}),
        ],
    }


def add_settings(group, known: Sequence[str], method: Method, several: bool = True) -> dict[str, str]:
    """Make an option of each setting that is not among the known ones, and return where its values will be found."""
    places = {}
    for setting, default in method.settings.items():
        needed = "needed" if default is merging.REQUIRED else f"default: {default}"
        of_each = "; one value, or one for each member" if several and setting in method.of_member else ""
        option = option_of(setting)
        if option == "--seed" and option in known:  # which is of the whole merge
            continue
        if option in known:
            raise ValueError(
                f"{option} is an option of the command, so it cannot give the setting {setting} of {method.name}: "
                "give that another name, or merge by a recipe file"
            )
        places[setting] = f"setting {setting}"
        text = f"{needed}{of_each}".replace("%", "%%")
        number = "+" if several else 1
        group.add_argument(option, dest=places[setting], nargs=number, type=_value, metavar="VALUE", help=text)
    return places


def _value(word):
    try:
        return merging.load_yaml(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a YAML value") from None


def _check(options):
    if options.recipe and options.method:
        raise ValueError(f"with --method there is no recipe file, but {options.recipe} was given")
    if not (options.recipe or options.method):
        raise ValueError("give a recipe file, or --method with --members and --out (see --help)")
    if not options.out or (options.method and not options.members):
        raise ValueError("say what is merged and where to: RECIPE OUT, or --method, --members and --out")
    settle_format(options)


def settle_format(options: argparse.Namespace) -> None:
    """Put the format that the name of the output asks for in the place of none."""
    if options.format is None:
        from soups.merging.places import FILES

        options.format = "file" if options.out.endswith(FILES) else "huggingface"


def _check_devices(options):
    if options.sharded and options.format != "orbax":
        raise ValueError("--sharded writes an Orbax checkpoint: add --format orbax")
    if options.sharded and options.memory:
        raise ValueError("--memory is for merges on the host: with --sharded all devices share what the models need")
    if options.coordinator and not options.sharded:
        raise ValueError("--coordinator needs --sharded: several hosts merge what each of them has shards of")


def _text(path, missing):
    from soups.formats.text import read_text
    from soups.merging.yaml_text import LARGEST

    if not local_path(path).is_file():
        raise FileNotFoundError(f"{missing} {path}{meant_path(path)}")
    return read_text(path, limit=LARGEST)
