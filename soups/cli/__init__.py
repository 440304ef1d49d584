"""Run the commands of the shell, such as `soups merge`; what one needs is imported when it is chosen."""

import gc
import importlib
import os
import sys

from soups.cli.options import Parser, meant, split_volume
from soups.cli.show import complain
from soups.cli.stopping import Run, guarded
from soups.names import did_you_mean

COMMANDS = {
    "merge": "merge checkpoints into one, in the memory of a few blocks",
    "search": "search the settings of a merge with your own evaluation",
    "greedy": "make a greedy soup of models with your own evaluation",
    "rank": "score models with your own evaluation, the best first",
    "pool": "list, show, verify, add, export, remove members; release soups",
    "run": "run a study: train its members, cook soups from them, and report",
    "cook": "cook soups from the members of a pool, measure them on your data",
    "report": "make the report of a run again, from its results alone",
    "predict": "write the logits of a network for all images in a folder",
    "zero-shot": "make an image classifier from CLIP and the names of classes",
    "completion": "print the completion of all of this for bash, zsh or fish",
}
_LIGHT = ("merge", "pool")  # which work on files, tensor by tensor
_HELP = """
  soups help COMMAND                more about a command, with an example
  soups merge --methods             all merging methods
  soups merge --methods NAME ...    what a method does, and its settings

exit codes: 0 done; 1 a check failed, such as a certificate or soups pool
verify; 2 a wrong command or input; 128 + N stopped by signal N
"""


def main(arguments: list[str] | None = None, *, prog: str | None = None, alone: bool = False) -> int:
    """Run a command, the first of the arguments, and return its exit code.

    The code is 0; 1 if something was checked and is not as it should be; 2 if the command cannot be done as it was
    given; 128 + the number of the signal that stopped it. What went wrong is one message behind `prog`, "soups COMMAND"
    by default.

    `alone`: this process does nothing else, and is not needed any more where memory is lacking.
    """
    _prepare_streams()
    try:
        words, volume = split_volume(sys.argv[1:] if arguments is None else arguments)
        if words[:1] == ["help"]:
            words = [*words[1:], "--help"]
        name, words = (words[0].replace("_", "-"), words[1:]) if words else ("", [])
        if name not in COMMANDS:
            return _without_command(name)
    except ValueError as error:
        complain(prog or "soups", error)
        return 2
    run = Run(prog or f"soups {name}", alone=alone, **volume)

    def command():
        if name in _LIGHT:
            # modules and headers of large models are many objects without cycles: a fifth of the time went into looking
            gc.set_threshold(200_000)
            # tensors are worked on side by side; BLAS's own threads would wait for work in a loop, a third of the start
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        return importlib.import_module(f"soups.cli.{name.replace('-', '_')}").main(words, run)

    code = guarded(command, run)
    if run.alone and run.exhausted:  # what else would be done at the end has no memory either
        os._exit(code)
    return code


def _prepare_streams():
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the shell has closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            # a terminal may lack the letters of a name; a pipe's reader should not wait for the end
            stream.reconfigure(errors="backslashreplace", line_buffering=True)


def _without_command(word):
    """Print the help or the version, or complain of a word that is no command, and return the exit code."""
    import soups

    commands = "\n".join(f"  {name:<11}{what}" for name, what in COMMANDS.items())
    parser = Parser(
        prog="soups",
        usage="%(prog)s COMMAND [OPTION ...]",
        description=f"Average and merge the weights of fine-tuned networks.\n\ncommands:\n{commands}",
        epilog=_HELP.strip("\n"),
    )
    parser.add_argument("--version", action="version", version=f"soups {soups.__version__}", help="print the version")
    parser.parse_known_args([word])
    if word.startswith("-"):
        raise ValueError(f"unknown option {word}{meant(word, parser.known)}: a command comes first")
    wrong = f"unknown command {word!r}{did_you_mean(word, COMMANDS)}" if word else "a command is needed"
    raise ValueError(f"{wrong}; there are: {', '.join(COMMANDS)} (see soups --help)")
