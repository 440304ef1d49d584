"""Keep the certificates of a pool: what must hold of its members, and of every soup that it releases."""

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from soups import state
from soups.files import PathLike, any_path
from soups.names import check_name
from soups.pool._record import PoolCorruptionError

FORMAT = "soups.certificates/1"
_FILE = "certificates.json"


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Hold a test of weights: how a score is measured, and its bound.

    Attributes:
        name: of the certificate.
        evaluation: a command with {model}, or "module:function" or "file.py:function", as `soups search --eval` takes
            it; of a function that was given, its name.
        given: whether it is a function that has to be given again to be called.
        metric: the name of the number that counts.
        at_least, at_most: the bound; one of them is None.
        of: the members whose certificate it is, and that of whatever is made of them; of all if there are none.
    """

    name: str
    evaluation: str
    given: bool = False
    metric: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    of: tuple[str, ...] = ()

    @property
    def bound(self) -> str:
        """Return the bound in words: "at least 0.9"."""
        return f"at most {self.at_most:g}" if self.at_least is None else f"at least {self.at_least:g}"

    def holds(self, value: float) -> bool:
        """Say whether a score keeps the bound; NaN never does."""
        return value <= self.at_most if self.at_least is None else value >= self.at_least

    def concerns(self, members: Sequence[str]) -> bool:
        """Say whether it is a certificate of one of these members."""
        return not self.of or not set(self.of).isdisjoint(members)


class Certificates(Mapping):
    """Hold the certificates of a pool by name, in the order in which they were added; `Pool.certificates` opens them.

    A PoolCorruptionError names the file if it is not what was written.
    """

    def __init__(self, path: PathLike, locked: Callable[[], contextlib.AbstractContextManager]):
        self._path, self._locked = any_path(path) / _FILE, locked
        self._found = self._read()

    def add(
        self,
        name: str,
        evaluate: str | Callable[[Any], Any],
        *,
        metric: str | None = None,
        at_least: float | None = None,
        at_most: float | None = None,
        of: Sequence[str] = (),
    ) -> Certificate:
        """Keep a certificate and return it; the same once more changes nothing.

        Args:
            evaluate: the text of an evaluation, as `Certificate.evaluation`; or a function of weights, as nested dicts
                of arrays, that returns a number, or numbers by the names of metrics. Of a function the name is kept.
            metric, at_least, at_most, of: as of `Certificate`. `of` may name members that are still to come.

        Raises:
            ValueError: a name that is taken, or is not printable text; no bound, two, or one that is not finite; an
                `evaluate` of another kind.
            OSError: the disk is full or cannot be written to.
        """
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ValueError(f"the name of a certificate must be printable text, not {name!r:.200}")
        bounds = [bound for bound in (at_least, at_most) if bound is not None]
        if len(bounds) != 1 or not math.isfinite(bounds[0]):
            raise ValueError(f"certificate {name!r} needs one finite bound: at_least or at_most")
        if not isinstance(evaluate, str) and not inspect.isfunction(evaluate):
            raise ValueError(f"certificate {name!r} is measured by a text or a function, not {evaluate!r:.200}")
        text = evaluate if isinstance(evaluate, str) else f"{evaluate.__module__}.{evaluate.__qualname__}"
        low, high = (None if bound is None else float(bound) for bound in (at_least, at_most))
        made = Certificate(name, text, not isinstance(evaluate, str), metric, low, high, tuple(of))
        with self._changing():
            if (there := self._found.get(name, made)) != made:
                raise ValueError(
                    f"the pool has another certificate {name!r}, {there.bound} by {there.evaluation!r}: remove it first"
                )
            self._found[name] = made
        return made

    def remove(self, name: str) -> None:
        """Take a certificate out.

        Raises:
            ValueError: there is no such certificate.
        """
        with self._changing():
            del self._found[check_name(name, self._found, "certificate")]

    def of(self, members: Sequence[str]) -> list[Certificate]:
        """List the certificates of some members: those that must hold of each, and of what is made of them."""
        return [certificate for certificate in self._found.values() if certificate.concerns(members)]

    def __getitem__(self, name: str) -> Certificate:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    @contextlib.contextmanager
    def _changing(self):
        with self._locked():
            self._found = self._read()
            yield
            state.write(
                self._path, {"format": FORMAT, "certificates": [*map(dataclasses.asdict, self._found.values())]}
            )

    def _read(self):
        try:
            found = state.read(self._path, {"format": str, "certificates": list})
            if found["format"] != FORMAT:
                raise ValueError(f"{self._path} has format {found['format']!r:.100}; this version reads {FORMAT!r}")
            made = [Certificate(**{**entry, "of": tuple(entry["of"])}) for entry in found["certificates"]]
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, KeyError) as error:
            raise PoolCorruptionError(f"the certificates of the pool cannot be read: {error}") from error
        return {certificate.name: certificate for certificate in made}
