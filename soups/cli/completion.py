"""Print the completion of commands, options, methods and configs for a shell.

soups completion bash >~/.local/share/bash-completion/completions/soups
soups completion zsh >~/.zfunc/_soups     # where fpath has ~/.zfunc
soups completion fish >~/.config/fish/completions/soups.fish

The next shell that you open reads it. Print it again after an upgrade.
"""

import argparse
import dataclasses
import importlib
from collections.abc import Mapping, Sequence

from soups.cli.options import Parser, asked_for_help
from soups.cli.stopping import Run
from soups.lazy import MissingExtraError

_FUNCTION = """_soups() {{
  {place}
  local found="" dash=""
  if [[ $word == -* ]]; then dash="-"; fi
  case "$command $before" in
{values}
  esac
  if [[ -z $found && $position == 1 ]]; then
    found="{commands}"
  elif [[ -z $found && ( $position == 2 || $dash ) ]]; then
    case "$command $dash" in
{options}
    esac
  fi
  {offer}
}}
"""
_PLACE = {
    "bash": 'local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"\n'
    '  local command="${COMP_WORDS[1]}" position=$COMP_CWORD',
    "zsh": 'local word="${words[CURRENT]}" before="${words[CURRENT-1]}" command="${words[2]}"\n'
    "  local position=$((CURRENT - 1))",
}
_OFFER = {
    "bash": 'COMPREPLY=($(compgen -W "$found" -- "$word"))',
    "zsh": "if [[ -n $found ]]; then compadd -- ${=found}; else _files; fi",
}
_AROUND = {"bash": "{}complete -o default -F _soups soups\n", "zsh": "#compdef soups\n{}compdef _soups soups\n"}


@dataclasses.dataclass
class Known:
    """Hold what can follow the name of a command."""

    first: Sequence[str]  #: such as commands of its own
    options: dict[str, str]  #: what each says of itself
    values: dict[str, Sequence[str]]  #: of options


def main(arguments: list[str], run) -> int:
    """Print the completions for a shell and return the exit code."""
    parser = Parser(prog=run.prog, usage="%(prog)s SHELL", description=__doc__)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")
    shell = parser.parse(arguments).shell
    from soups.cli import COMMANDS

    known = {name: found for name in COMMANDS if (found := _known(name)) is not None}
    print(_fish(COMMANDS, known) if shell == "fish" else _function(shell, COMMANDS, known), end="")
    return 0


def _known(name) -> Known | None:
    """Return what can follow a command; None for one that lacks an extra, and so says no more than that."""
    from soups import merging
    from soups.shipped import configs

    methods = list(merging.methods_of("published"))
    try:
        command, run = importlib.import_module(f"soups.cli.{name.replace('-', '_')}"), Run(f"soups {name}")
    except MissingExtraError:
        return None
    own = asked_for_help(command.main, [], run)
    of_methods = methods if "--method" in own._option_string_actions else []
    below = [p for a in own._actions if isinstance(a, argparse._SubParsersAction) for p in a.choices.values()]
    parsers = [own, *below, *(asked_for_help(command.main, ["--method", m], run) for m in of_methods)]
    actions = [(word, action) for p in parsers for action in p._actions for word in action.option_strings]
    values = {word: list(action.choices) for word, action in actions if action.choices}
    values |= {"--method": methods, "--methods": methods, "--config": list(configs())}
    options = {word: (action.help or "") % vars(action) for word, action in actions if word.startswith("--")}
    first = [word for action in own._actions if action.choices and not action.option_strings for word in action.choices]
    return Known(first, options, {word: found for word, found in values.items() if word in options})


def _function(shell, commands: Sequence[str], known: Mapping[str, Known]) -> str:
    values = {f"{name} {option}": words for name, one in known.items() for option, words in one.values.items()}
    follows = {f"{name} ": one.first for name, one in known.items() if one.first}
    follows |= {f"{name} -": one.options for name, one in known.items()}
    text = _FUNCTION.format(
        place=_PLACE[shell],
        values=_cases(values, 4),
        commands=" ".join(commands),
        options=_cases(follows, 6),
        offer=_OFFER[shell],
    )
    return _AROUND[shell].format(text)


def _cases(words: Mapping[str, Sequence[str]], indent: int) -> str:
    return "\n".join(f'{" " * indent}"{before}") found="{" ".join(after)}" ;;' for before, after in words.items())


def _fish(commands: Mapping[str, str], known: Mapping[str, Known]) -> str:
    lines = [f"complete -c soups -n __fish_use_subcommand -f -a {n} -d {_quoted(said)}" for n, said in commands.items()]
    for name, one in known.items():
        when = f'complete -c soups -n "__fish_seen_subcommand_from {name}"'
        lines += [f"{when} -f -a {_quoted(' '.join(one.first))}"] if one.first else []
        for option, said in one.options.items():
            values = f" -x -a {_quoted(' '.join(one.values[option]))}" if option in one.values else ""
            lines.append(f"{when} -l {option[2:]} -d {_quoted(said)}{values}")
    return "\n".join(lines) + "\n"


def _quoted(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
