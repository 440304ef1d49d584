"""Turn image folders, TFDS sets and arrays into tasks: decoded splits, distribution shifts and shuffled batches."""

from soups.data.batches import batch_indices as batch_indices
from soups.data.batches import loader as loader
from soups.data.dataset import Dataset as Dataset
from soups.data.dataset import Source as Source
from soups.data.dataset import Task as Task
from soups.data.dataset import decode as decode
from soups.data.dataset import project_logits as project_logits
from soups.data.digits import digits_task as digits_task
from soups.data.random_transforms import compose_random as compose_random
from soups.data.random_transforms import rand_augment as rand_augment
from soups.data.random_transforms import random_flip as random_flip
from soups.data.random_transforms import random_resized_crop as random_resized_crop
from soups.data.shifts import CORRUPTIONS as CORRUPTIONS
from soups.data.shifts import SEVERITIES as SEVERITIES
from soups.data.shifts import corrupt as corrupt
from soups.data.sources import array_source as array_source
from soups.data.sources import domain_folder_sources as domain_folder_sources
from soups.data.sources import folder_source as folder_source
from soups.data.sources import tfds_source as tfds_source
from soups.data.splits import check_disjoint as check_disjoint
from soups.data.splits import split_indices as split_indices
from soups.data.transforms import center_crop as center_crop
from soups.data.transforms import compose as compose
from soups.data.transforms import resize as resize
from soups.data.transforms import resize_shorter as resize_shorter
from soups.data.transforms import to_channels as to_channels
