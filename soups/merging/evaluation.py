"""Ask a user's own evaluation for the score of a model on disk: any command that prints it, or a function."""

import contextlib
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from soups.files import made_folder
from soups.formats.mapping import hash_files
from soups.names import did_you_mean, shown
from soups.plugins import blamed, importable, load_plugin, named
from soups.recipes._scores import pick_metric
from soups.workers import end_with_parent, may_fork

MODEL = "{model}"
_FUNCTION = re.compile(r"[^\s{}]+:[A-Za-z_]\w*")
_TAIL = 1 << 20  # bytes of what is printed that may hold the score
_LINES, _WIDTH = 5, 200  # of what a message shows of it
_GRACE = 1.0  # seconds that a command has to end by itself
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_NUMBER = (
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
    r"|[nN][aA][nN]|[iI][nN][fF](?:[iI][nN][iI][tT][yY])?)(?!\w|\.\d)"
)


class EvaluationError(ValueError):
    """Say that an evaluation gave no score."""


class Evaluation(Protocol):
    """Return the score of a model on disk."""

    #: "evaluation", its text; "metric"; and "scripts", digests of the files of program that it names
    identity: Mapping[str, Any]

    def __call__(self, model: pathlib.Path, log: pathlib.Path) -> float:
        """Return the score; what the evaluation prints goes into files that are called as `log`, with suffixes."""


def evaluation(text: str, metric: str | None = None, timeout: float | None = None) -> Evaluation:
    """Return the evaluation that a text names.

    "python my_eval.py {model}" is a command, started without a shell, which has the path of the model in the place of
    {model} and prints the score: the last number on its standard output, or with `metric` the last one right behind
    this name, as in "accuracy: 0.81" and {"accuracy": 0.81}. "module:function" and "file.py:function" is a function of
    the path that returns a number, or numbers by the names of metrics; the file is imported, without arguments.

    The path of the model is no number wherever it is printed. A command has the environment of this moment, and may
    take `timeout` seconds.

    Raises:
        ValueError: a command without {model}, or with a quotation that does not end; no such program, module, file or
            function; a timeout of a function, or one that is not above 0. When it is called: a command that fails,
            with the last lines that it printed, that takes too long or prints no number; what the function raises.
    """
    if timeout is not None and not (timeout > 0 and math.isfinite(timeout)):
        raise ValueError(f"--timeout must be a number of seconds above 0, not {timeout}")
    if MODEL not in text and _FUNCTION.fullmatch(text.strip()):
        if timeout is not None:
            raise ValueError("--timeout is for commands: a Python function cannot be stopped")
        return _Function(text.strip(), metric)
    return Command(text, metric, timeout)


class Command:
    """Be the `Evaluation` of a command."""

    def __init__(self, text, metric, timeout):
        self._metric, self._timeout, self._environ = metric, timeout, dict(os.environ)
        try:
            self._words = _words(text)
        except ValueError as error:
            raise ValueError(f"--eval is not a command: {error}: {text!r:.200}") from None
        if not any(MODEL in word for word in self._words):
            raise ValueError(f"--eval needs {MODEL}, where the path of a model will stand: {_example(text)}")
        if MODEL not in self._words[0] and shutil.which(self._words[0]) is None:
            raise ValueError(f"--eval: there is no program {self._words[0]!r}")
        scripts = {word: hash_files(pathlib.Path(word)) for word in self._words if _is_script(word)}
        self.identity = {"evaluation": text, "metric": metric, "scripts": scripts}

    def __call__(self, model, log):
        out, err = (made_folder(log.parent) / f"{log.name}.{kind}" for kind in ("out", "err"))
        path = os.path.abspath(model)
        words = [word.replace(MODEL, path) for word in self._words]
        with open(out, "wb") as stdout, open(err, "wb") as stderr:
            code = self._run(words, stdout, stderr)
        if code:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
            raise EvaluationError(f"the evaluation {how}: {shlex.join(words)}{_last_lines(err, out)}")
        return self._score(_without(path, _printed(out)), shlex.join(words), out, err)

    def _run(self, words, stdout, stderr):
        files = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr, "env": self._environ}
        # a group of its own can be ended as a whole; killed, this process cannot do it any more
        dying = {"preexec_fn": end_with_parent} if may_fork() else {}
        try:
            process = subprocess.Popen(words, start_new_session=True, **files, **dying)
        except OSError as error:
            raise EvaluationError(f"the evaluation cannot be started: {shlex.join(words)}: {error.strerror}") from error
        try:
            return process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            raise EvaluationError(
                f"the evaluation took longer than --timeout {self._timeout:g}: {shlex.join(words)}"
            ) from None
        finally:
            _end(process)

    def _score(self, printed, command, out, err):
        pattern, behind = re.compile(_NUMBER), ""
        if self._metric is not None:
            name, behind = re.escape(self._metric), f" behind {self._metric!r}"
            pattern = re.compile(rf"(?<!\w){name}(?!\w)[^\w\n]{{0,20}}?(?:{_NUMBER})")
        found = [match[0] for match in pattern.finditer(printed)]
        if not found:
            lines = _last_lines(out, err)
            raise EvaluationError(f"the evaluation prints no number{behind} to its output: {command}{lines}")
        number = re.findall(_NUMBER, found[-1])[-1]
        return float(number.replace(",", ""))


class _Function:
    """Be the `Evaluation` of a function of Python."""

    def __init__(self, text, metric):
        self._text, self._metric = text, metric
        name, _, function = text.rpartition(":")
        self._folder = os.path.abspath(os.path.dirname(name) if name.endswith(".py") else "")
        with importable(self._folder):
            self._function = _function_of(name, function)
        file = getattr(sys.modules.get(self._function.__module__), "__file__", None)
        scripts = {os.path.basename(file): hash_files(pathlib.Path(file))} if file else {}
        self.identity = {"evaluation": text, "metric": metric, "scripts": scripts}

    def __call__(self, model, log):
        with importable(self._folder), blamed(f"--eval {self._text}", self._function):
            value = self._function(os.path.abspath(model))
        return pick_metric(value, self._metric)


def _function_of(name, function) -> Callable:
    if not name.endswith(".py"):
        return named(f"{name}:{function}", {}, "--eval")
    module = load_plugin(name, "--eval")
    if not callable(found := getattr(module, function, None)):
        known = [own for own, value in vars(module).items() if callable(value)]
        raise ValueError(f"--eval: there is no function {function!r} in {name}{did_you_mean(function, known)}")
    return found


def _words(text):
    """Return the words of a command, as `shlex.split`; on Windows a backslash stands in paths and escapes nothing."""
    words = shlex.shlex(text, posix=True, punctuation_chars=False)
    words.whitespace_split, words.commenters = True, ""
    if os.name == "nt":
        words.escape = ""
    return list(words)


def _example(text):
    """Return how a command without the place of a model may have been meant."""
    text = text.strip() or "python my_eval.py"
    if MODEL in (meant := re.sub(re.escape(MODEL), MODEL, text, flags=re.IGNORECASE)):
        return f"{meant!r:.200}"
    if re.fullmatch(r"\S+\.py:?", text):
        file = text.removesuffix(":")
        return f"{f'python {file} {MODEL}'!r:.200}, or {f'{file}:FUNCTION'!r:.200}"
    return f"{f'{text} {MODEL}'!r:.200}"


def _is_script(word):
    """Say whether a word is a program's text; what it reads and writes may change from one evaluation to the next."""
    if not os.path.isfile(word):
        return False
    with open(word, "rb") as file:
        return word.endswith((".py", ".sh")) or file.read(2) == b"#!"


def _end(process):
    """End what a command has started, whether it has ended itself or not."""
    for name, grace in (("SIGTERM", _GRACE), ("SIGKILL", None)):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, getattr(signal, name))
            else:  # Windows, which ends the command alone
                process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)


def _printed(path) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - _TAIL))
        return _COLOURS.sub("", file.read().decode(errors="replace")).replace("\N{MINUS SIGN}", "-")


def _without(path, printed) -> str:
    """Return what is printed without the path of the model and what lies in it, in whose names digits are no score."""
    forms = {os.fsencode(form).decode(errors="replace") for form in (path, os.path.realpath(path))}
    forms |= {json.dumps(form)[1:-1] for form in forms}
    longest_first = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
    return re.sub(rf"(?:{longest_first})(?!\w)(?:[/{re.escape(os.sep)}][^\s'\",;:]*)?", " ", printed)


def _last_lines(*paths) -> str:
    """Return the last lines of the first file that has some, each below the message."""
    for path in paths:
        if lines := [line.rstrip() for line in _printed(path).splitlines() if line.strip()]:
            return "".join(f"\n  {shown(line[:_WIDTH])}" for line in lines[-_LINES:])
    return "; it prints nothing"
