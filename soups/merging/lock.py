"""Let one merge at a time write to a place."""

import functools
import pathlib
from collections.abc import Callable

from soups.files import locked as locked


def one_at_a_time(merge: Callable) -> Callable:
    """Wrap a function of (plan, out, ...) so that it holds the lock of `out` while it runs."""

    @functools.wraps(merge)
    def alone(plan, out, *arguments, **options):
        with locked(pathlib.Path(out).absolute()):
            return merge(plan, out, *arguments, **options)

    return alone
