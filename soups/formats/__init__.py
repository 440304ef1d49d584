"""Read and write the checkpoints of other libraries: safetensors, torch files, and folders of Hugging Face."""

from soups.formats.folder import open_checkpoint as open_checkpoint
from soups.formats.tensors import Checkpoint as Checkpoint
from soups.formats.tensors import CheckpointError as CheckpointError
from soups.formats.tensors import Leaf as Leaf
from soups.formats.tensors import Tensors as Tensors
from soups.formats.tensors import UnsafeCheckpointError as UnsafeCheckpointError
from soups.formats.write import Writer as Writer
from soups.formats.write import write_safetensors as write_safetensors
