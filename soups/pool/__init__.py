"""Keep fine-tuned members in a directory that any process may add to, and merge them without loading them."""

from soups.formats.orbax import load_checkpoint as load_checkpoint
from soups.formats.orbax import save_checkpoint as save_checkpoint
from soups.pool._describe import digest as digest
from soups.pool._record import PoolCorruptionError as PoolCorruptionError
from soups.pool.pool import Pool as Pool
from soups.pool.prefetch import kept_dtype as kept_dtype
from soups.pool.prefetch import prefetched as prefetched
from soups.pool.save import save_soup as save_soup


def merge(*_arguments, **_options):
    """Raise a TypeError that says what took its place."""
    raise TypeError(
        "soups.merge is gone: give the pool to a method, soup = soups.uniform(pool), "
        "and write the soup with soups.pool.save_soup(out, soup, pool=pool)"
    )
