"""ImageNet and its distribution shifts: sources in the released layouts, the held-out split, sets decoded once."""

from soups.data.imagenet.evaluation import PUBLISHED_SIZES as PUBLISHED_SIZES
from soups.data.imagenet.evaluation import EvaluationSet as EvaluationSet
from soups.data.imagenet.evaluation import count_notes as count_notes
from soups.data.imagenet.evaluation import evaluation_sets as evaluation_sets
from soups.data.imagenet.held_out import HeldOutSplit as HeldOutSplit
from soups.data.imagenet.layouts import SETS as SETS
from soups.data.imagenet.opening import held_out_kind as held_out_kind
from soups.data.imagenet.opening import held_out_split as held_out_split
from soups.data.imagenet.opening import imagenet_sources as imagenet_sources
from soups.data.imagenet.opening import train_source as train_source
