"""Keep logits in files."""

import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xxhash

from soups.files import PathLike, any_path, replace_file
from soups.processes import from_first_process, on_first_process

Arrays = np.ndarray | Mapping[str, np.ndarray]

_DIGEST_BYTES = 16


class LogitCache:
    """Keep arrays in a directory, so that no network runs twice for the same logits.

    A key must hold all that decides the logits, so a digest rather than a name where there is one:
    `cache.get((pool.digest(name), dataset_name), lambda: evaluator.logits(pool[name]))`.

    Each entry is one file: a plain .npy (`numpy.load` reads it), an .npz of several arrays, followed by 16 bytes of
    xxh3 digest. It is written
    under another name and then renamed, so processes may share the directory and be killed at any moment. A file that
    fails its digest is made again, with a line in the log.

    The processes of one JAX run must all ask for the same keys in the same order: the first one reads and writes, and
    what it lacks all of them compute together.
    """

    def __init__(self, directory: PathLike):
        self.directory = any_path(directory)
        on_first_process(lambda: self.directory.mkdir(parents=True, exist_ok=True))

    def get(self, key: str | Sequence[str], compute: Callable[[], Arrays]) -> Arrays:
        """Return the array of `key`, from the disk if it is there, else from `compute()`, which is then kept.

        Raises:
            ValueError: `compute` returns something other than an array, or a mapping of arrays by name.
        """
        path = self._path((key,) if isinstance(key, str) else tuple(key))
        body = from_first_process(lambda: _read(path))
        if body:
            kept = np.load(io.BytesIO(body), allow_pickle=False)
            return kept if isinstance(kept, np.ndarray) else {name[1:]: kept[name] for name in kept}
        value = _arrays(compute())
        on_first_process(lambda: _write(path, value))
        return value

    def __contains__(self, key: str | Sequence[str]) -> bool:
        """Say whether there is a file for this key."""
        return on_first_process(self._path((key,) if isinstance(key, str) else tuple(key)).exists)

    def _path(self, key):
        # the readable part may be cut or coincide, the hash of the whole key decides
        readable = re.sub(r"[^A-Za-z0-9.=_-]+", "_", "-".join(key))[:80]
        whole = xxhash.xxh3_64_hexdigest("\0".join(key).encode())
        return self.directory / f"{readable}-{whole}.npy"


def _arrays(value):
    if hasattr(value, "dtype"):
        return np.asarray(value)
    if isinstance(value, Mapping) and all(isinstance(k, str) and hasattr(v, "dtype") for k, v in value.items()):
        return {name: np.asarray(leaf) for name, leaf in value.items()}
    raise ValueError(f"only one array, or arrays by name, can be kept on disk, not {value!r:.200}")


def _read(path) -> bytes:
    """Return the .npy of an entry, or nothing if it is not there or damaged."""
    if not path.exists():
        return b""
    content = path.read_bytes()
    body = content[:-_DIGEST_BYTES]
    if xxhash.xxh3_128_digest(body) != content[-_DIGEST_BYTES:]:
        logging.getLogger(__name__).error("%s is corrupted: its logits are computed again", path)
        return b""
    return body


def _write(path, array):
    buffer = io.BytesIO()
    if isinstance(array, dict):
        np.savez(buffer, **{f"_{name}": leaf for name, leaf in array.items()})  # "file" is an argument of its own
    else:
        np.save(buffer, array, allow_pickle=False)
    body = buffer.getvalue()
    replace_file(path, body + xxhash.xxh3_128_digest(body))
