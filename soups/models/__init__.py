"""Networks and their weights: Linen models as pure functions, BatchNorm statistics, heads, NNX, published weights."""

from soups.lazy import extra

with extra("train"):  # all networks are of it
    import flax

from soups.models.align import AlignImageTower as AlignImageTower
from soups.models.align import similarity as similarity
from soups.models.architectures import ARCHITECTURES as ARCHITECTURES
from soups.models.architectures import Architecture as Architecture
from soups.models.architectures import architecture as architecture
from soups.models.architectures import decoder_of as decoder_of
from soups.models.architectures import encoder_of as encoder_of
from soups.models.batch_stats import reestimate_batch_stats as reestimate_batch_stats
from soups.models.batch_stats import running_stats_fn as running_stats_fn
from soups.models.batch_stats import stats_fn as stats_fn
from soups.models.bottleneck_resnet import BottleneckResNet as BottleneckResNet
from soups.models.clip_text import import_temperature as import_temperature
from soups.models.clip_text import import_text_tower as import_text_tower
from soups.models.clip_text import text_features as text_features
from soups.models.convnet import ConvNet as ConvNet
from soups.models.decoder import Decoder as Decoder
from soups.models.efficientnet_lite import EfficientNetLite as EfficientNetLite
from soups.models.functional import apply_fn as apply_fn
from soups.models.functional import init as init
from soups.models.functional import train_apply_fn as train_apply_fn
from soups.models.gram import gram_fn as gram_fn
from soups.models.gram import linear_inputs_gram as linear_inputs_gram
from soups.models.head import head_rule as head_rule
from soups.models.head import replace_head as replace_head
from soups.models.import_weights import check_weights as check_weights
from soups.models.import_weights import import_weights as import_weights
from soups.models.import_weights import imported_members as imported_members
from soups.models.load_npz import load_big_vision as load_big_vision
from soups.models.lora import LORA_RULES as LORA_RULES
from soups.models.lora import lora_fn as lora_fn
from soups.models.lora import lora_params as lora_params
from soups.models.lora import merge_lora as merge_lora
from soups.models.mlp import MLP as MLP
from soups.models.network import Network as Network
from soups.models.nnx import from_nnx as from_nnx
from soups.models.nnx import into_nnx as into_nnx
from soups.models.nnx import nnx_train_apply_fn as nnx_train_apply_fn
from soups.models.permutation_specs import permutation_spec as permutation_spec
from soups.models.pretrained import efficientnet_lite0 as efficientnet_lite0
from soups.models.pretrained import efficientnet_lite0_file as efficientnet_lite0_file
from soups.models.pretrained import glyph_vit as glyph_vit
from soups.models.pretrained import minilm_folder as minilm_folder
from soups.models.pretrained import smollm2_file as smollm2_file
from soups.models.repair import activation_statistics as activation_statistics
from soups.models.repair import repair as repair
from soups.models.resnet import ResNet as ResNet
from soups.models.t5 import T5 as T5
from soups.models.text_encoder import TextEncoder as TextEncoder
from soups.models.text_tower import TextTower as TextTower
from soups.models.vit import ViT as ViT
from soups.models.vit import vit as vit
from soups.models.zero_shot import zero_shot_head as zero_shot_head
