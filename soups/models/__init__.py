"""Networks and their weights: Linen models as pure functions, BatchNorm statistics, heads, NNX, published weights."""

from soups.lazy import extra

with extra("train"):  # all networks are of it
    import flax

from soups.models.architectures import ARCHITECTURES, Architecture, architecture
from soups.models.batch_stats import reestimate_batch_stats, running_stats_fn, stats_fn
from soups.models.bottleneck_resnet import BottleneckResNet
from soups.models.clip_text import import_text_tower, text_features
from soups.models.convnet import ConvNet
from soups.models.functional import apply_fn, init, train_apply_fn
from soups.models.gram import gram_fn, linear_inputs_gram
from soups.models.head import head_rule, replace_head
from soups.models.import_weights import check_weights, import_weights, imported_members
from soups.models.load_npz import load_big_vision
from soups.models.mlp import MLP
from soups.models.network import Network
from soups.models.nnx import from_nnx, into_nnx, nnx_train_apply_fn
from soups.models.permutation_specs import permutation_spec
from soups.models.pretrained import glyph_vit
from soups.models.repair import activation_statistics, repair
from soups.models.resnet import ResNet
from soups.models.text_tower import TextTower
from soups.models.vit import ViT, vit
from soups.models.zero_shot import zero_shot_head
