"""Write files that are whole or not there."""

import os
import pathlib
import re
import shutil

# a scheme of two letters or more, for one letter is a drive of Windows; pathlib makes one slash of two
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_path(path: str | os.PathLike) -> pathlib.Path:
    """Return a path of this machine's file system.

    Raises:
        ValueError: a URL, such as gs://bucket/model, which would otherwise become a local folder "gs:"; an empty path,
            which would be the working directory; one that no file system can have.
    """
    text = os.fspath(path)
    if _URL.match(text):
        raise ValueError(f"{text[:200]!a} is a URL: give a local path, such as that of a copy or of a mount")
    if not text or "\0" in text:
        raise ValueError(f"{text[:200]!a} is no path: it is empty or holds a null character")
    return pathlib.Path(path)


def replace_file(path: str | os.PathLike, content: bytes | str | pathlib.Path) -> pathlib.Path:
    """Write a file under another name, see it to the disk and rename it: no reader ever meets half of one.

    `content`: a path is that of a file to copy, for which folders are made where they are not there yet.

    Processes may write the same file side by side; the last one stays.

    Raises:
        OSError: the disk is full or cannot be written to; the path is in the message, and the old file stays.
    """
    path = pathlib.Path(path)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        if isinstance(content, pathlib.Path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with open(fresh, "wb") as file:
            if isinstance(content, pathlib.Path):
                with open(content, "rb") as source:
                    shutil.copyfileobj(source, file, 1 << 20)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException as error:
        fresh.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise
    return path


def cannot_write(path: str | os.PathLike, error: OSError) -> OSError:
    """Give the same error with the path in its message: a full disk does not name the file."""
    return OSError(error.errno, f"cannot write {path}: {error.strerror}")
