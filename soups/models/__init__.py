"""Networks and their weights: Linen models as pure functions, BatchNorm statistics, heads, NNX, published weights."""

from soups.models.batch_stats import reestimate_batch_stats as reestimate_batch_stats
from soups.models.batch_stats import stats_fn as stats_fn
from soups.models.convnet import ConvNet as ConvNet
from soups.models.functional import apply_fn as apply_fn
from soups.models.functional import init as init
from soups.models.functional import train_apply_fn as train_apply_fn
from soups.models.gram import gram_fn as gram_fn
from soups.models.gram import linear_inputs_gram as linear_inputs_gram
from soups.models.head import head_rule as head_rule
from soups.models.head import replace_head as replace_head
from soups.models.load_npz import load_big_vision as load_big_vision
from soups.models.mlp import MLP as MLP
from soups.models.nnx import from_nnx as from_nnx
from soups.models.nnx import into_nnx as into_nnx
from soups.models.permutation_specs import permutation_spec as permutation_spec
from soups.models.repair import activation_statistics as activation_statistics
from soups.models.repair import repair as repair
from soups.models.resnet import ResNet as ResNet
from soups.models.vit import ViT as ViT
from soups.models.vit import vit as vit
