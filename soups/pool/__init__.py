"""Keep fine-tuned members in a directory that any process may add to, and merge them without loading them."""

from soups.formats.orbax import load_checkpoint as load_checkpoint
from soups.formats.orbax import save_checkpoint as save_checkpoint
from soups.pool._describe import digest as digest
from soups.pool._manifest import PoolCorruptionError as PoolCorruptionError
from soups.pool.merge import merge as merge
from soups.pool.pool import Pool as Pool
from soups.pool.prefetch import kept_dtype as kept_dtype
from soups.pool.prefetch import prefetched as prefetched
