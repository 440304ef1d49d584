"""Read and write the checkpoints of other libraries: safetensors, torch files, and folders of Hugging Face."""

from soups.pool.formats.checkpoint import Checkpoint as Checkpoint
from soups.pool.formats.checkpoint import CheckpointError as CheckpointError
from soups.pool.formats.checkpoint import Leaf as Leaf
from soups.pool.formats.checkpoint import UnsafeCheckpointError as UnsafeCheckpointError
from soups.pool.formats.folder import open_checkpoint as open_checkpoint
from soups.pool.formats.write import Writer as Writer
from soups.pool.formats.write import write_safetensors as write_safetensors
