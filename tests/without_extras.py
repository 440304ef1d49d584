"""Import every module where only some packages are installed: without_extras.py JSON prints what was wrong with each.

JSON maps names to the packages that are not there. First those of "core": what is refused then is imported anew for
each of the others, in a process of its own that has all else. "commands" are run without what "core" lacks. At last all
modules are imported anew with no more of the standard library than Windows has, where nobody deletes an open file, and
"on windows" are run.
"""

import contextlib
import ctypes
import errno
import importlib
import io
import json
import os
import pathlib
import signal
import sys
import tempfile
import types
import warnings

POSIX = {"_posixsubprocess", "fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
OF_OS = (
    "fork",
    "getpgid",
    "getuid",
    "geteuid",
    "killpg",
    "mkfifo",
    "posix_fadvise",
    "posix_fallocate",
    "pread",
    "pwrite",
    "setsid",
    "sysconf",
    "uname",
)
OF_SIGNAL = ("SIGALRM", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "setitimer")


class Missing:
    """Find none of these packages."""

    def __init__(self):
        self.packages = set()

    def find_spec(self, name, path=None, target=None):
        """Raise what Python raises for a package that is not installed."""
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def refused(modules):
    """Return the kind and the words of what importing a module raised, for those that raised something."""
    wrong = {}
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            wrong[name] = [type(error).__name__, str(error)]
    return wrong


def on_windows(modules, commands):
    """Return what `refused` and then `run` do, where the standard library has no more than on Windows."""
    assert not refused(modules)  # other packages know of Windows: they have been imported before
    ours = {name for name in sys.modules if name.partition(".")[0] in ("soups", *POSIX)}
    for name in ours - {"soups.data.builders"}:  # TFDS takes no set twice
        del sys.modules[name]
    sys.meta_path.insert(0, missing := Missing())
    missing.packages = POSIX
    for module, names in {os: OF_OS, signal: OF_SIGNAL}.items():
        for name in names:
            delattr(module, name)
    library, ctypes.CDLL = ctypes.CDLL, lambda name, **_: name.strip()  # a TypeError for None, the program itself
    wrong = refused(modules)
    ctypes.CDLL = library  # `os.name` would say "nt", and files be mapped by Python
    sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=lambda *_: None)
    for name in ("unlink", "rename", "replace"):
        setattr(os, name, unless_open(getattr(os, name)))
    return {"refused": wrong, "commands": [run(words) for words in commands]}


def unless_open(function):
    """Return a function of a path that raises what Windows does, if this process has the file open or mapped."""

    def called(path, *arguments, dir_fd=None, **settings):
        whole = os.path.join("" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}"), path)
        held = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        held = {os.readlink(link) for link in held if os.path.lexists(link)}
        held |= {line.split(maxsplit=5)[-1] for line in pathlib.Path("/proc/self/maps").read_text().splitlines()}
        if os.path.abspath(whole) in held:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), whole)
        return function(path, *arguments, **settings, **({} if dir_fd is None else {"dir_fd": dir_fd}))

    return called if os.path.exists("/proc/self/maps") else function


def run(words):
    """Return the exit code of a command and what it printed."""
    from soups.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(words)
    return [code, out.getvalue(), err.getvalue()]


def in_child(function, *arguments):
    """Call a function in a forked process, which has imported what this one has, and return what it returned."""
    with tempfile.NamedTemporaryFile("w+") as file:
        if child := os.fork():
            assert os.waitpid(child, 0)[1] == 0
            return json.loads(pathlib.Path(file.name).read_text())
        pathlib.Path(file.name).write_text(json.dumps(function(*arguments)))
        os._exit(0)


def main():
    """Do it all in one start of Python."""
    warnings.simplefilter("ignore")  # JAX dislikes forks; its backend has not started
    jobs, missing = json.loads(sys.argv[1]), Missing()
    sys.meta_path.insert(0, missing)
    files = sorted(pathlib.Path(__file__).parents[1].glob("soups/**/*.py"))
    roots = [file.relative_to(pathlib.Path(__file__).parents[1]).with_suffix("").parts for file in files]
    missing.packages = set(jobs.pop("core"))
    modules = [".".join(parts).removesuffix(".__init__") for parts in roots]
    on = jobs.pop("on windows")
    core = refused(modules)
    found = {"core": core, "commands": [run(words) for words in jobs.pop("commands")]}
    for name, packages in jobs.items():
        missing.packages = set(packages)
        found[name] = in_child(refused, list(core))
    missing.packages = set()
    found["windows"] = in_child(on_windows, modules, on)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
