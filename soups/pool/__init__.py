"""Keep fine-tuned members in a directory that any process may add to, and merge them without loading them."""

from typing import Any, NoReturn

from soups.lazy import orbax
from soups.pool._describe import digest as digest
from soups.pool._record import PoolCorruptionError as PoolCorruptionError
from soups.pool.certificates import Certificate as Certificate
from soups.pool.certificates import Certificates as Certificates
from soups.pool.pool import Pool as Pool
from soups.pool.prefetch import kept_dtype as kept_dtype
from soups.pool.prefetch import prefetched as prefetched
from soups.pool.save import save_soup as save_soup


def merge(*_arguments: Any, **_options: Any) -> NoReturn:
    """Raise a TypeError that says what took its place."""
    raise TypeError(
        "soups.merge is gone: give the pool to a method, soup = soups.uniform(pool), "
        "and write the soup with soups.pool.save_soup(out, soup, pool=pool)"
    )


def __getattr__(name):
    if name in ("load_checkpoint", "save_checkpoint"):
        return getattr(orbax, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
