"""Turn image folders, TFDS sets and arrays into tasks: decoded splits, distribution shifts and shuffled batches."""

from soups.data.batches import batch_indices, loader
from soups.data.dataset import Dataset, Source, Task, as_dataset, decode, pair_of, project_logits
from soups.data.digits import digits_task
from soups.data.glyphs import glyphs_task, printed_digits
from soups.data.random_transforms import compose_random, rand_augment, random_flip, random_resized_crop
from soups.data.shifts import CORRUPTIONS, SEVERITIES, corrupt
from soups.data.sources import array_source, domain_folder_sources, folder_source, tfds_source
from soups.data.splits import check_disjoint, split_indices
from soups.data.transforms import center_crop, compose, resize, resize_shorter, to_channels
