"""ImageNet and its distribution shifts: sources in the released layouts, the held-out split, sets decoded once."""

from soups.data.imagenet.evaluation import PUBLISHED_SIZES, EvaluationSet, count_notes, evaluation_sets
from soups.data.imagenet.held_out import HeldOutSplit
from soups.data.imagenet.layouts import SETS
from soups.data.imagenet.opening import held_out_kind, held_out_split, imagenet_sources, train_source
