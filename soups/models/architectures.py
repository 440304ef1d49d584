"""Name the networks whose published weights can be imported, with what they take and how images are normalised."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from soups.files import PathLike
from soups.formats.hub import cached_model
from soups.formats.text import read_json
from soups.models import functional
from soups.models.align import AlignImageTower
from soups.models.bottleneck_resnet import BottleneckResNet
from soups.models.decoder import Decoder
from soups.models.decoder_sizes import HF_ACTIVATIONS as HF_ACTIVATIONS
from soups.models.decoder_sizes import LLAMA, decoder_fields
from soups.models.efficientnet_lite import TOP, EfficientNetLite
from soups.models.t5 import T5
from soups.models.text_encoder import TextEncoder
from soups.models.text_tower import TextTower
from soups.models.vit import ACTIVATIONS, vit
from soups.names import check_name
from soups.tree import Tree

# of RGB in [0, 1], as each family's own preprocessing states them
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
# the two rows before the first position are those of padding, and of nothing
ROBERTA = {"num_segments": 1, "norm_epsilon": 1e-5, "position_offset": 2}
# width and depth, besides those of BERT's sizes
DEBERTA_SIZES = {"xsmall": (384, 12), "small": (768, 6)}
# width, depth, hidden layers and heads
T5_SIZES = {"t5-small": (512, 6, 2048, 8), "t5-base": (768, 12, 3072, 12), "t5-large": (1024, 24, 4096, 16)}
T5_SIZES |= {"t5-v1_1-small": (512, 8, 1024, 6), "t5-v1_1-base": (768, 12, 2048, 12)}
T5_SIZES |= {"t5-v1_1-large": (1024, 24, 2816, 16)}
DEBERTA = {"num_segments": 0, "norm_epsilon": 1e-7, "buckets": 256, "pooler_activation": "gelu"}
# what config.json calls the sizes of networks
_OF_BERT = {"width": "hidden_size", "depth": "num_hidden_layers", "mlp_dim": "intermediate_size"}
_OF_BERT |= {"num_heads": "num_attention_heads", "vocabulary_size": "vocab_size"}
_OF_BERT |= {"context_length": "max_position_embeddings", "num_segments": "type_vocab_size"}
_OF_DEBERTA = {name: said for name, said in _OF_BERT.items() if name != "num_segments"}
_OF_T5 = {"width": "d_model", "depth": "num_layers", "mlp_dim": "d_ff", "num_heads": "num_heads", "head_dim": "d_kv"}
_OF_T5 |= {"vocabulary_size": "vocab_size", "buckets": "relative_attention_num_buckets"}
SIZES_IN_CONFIG = {"bert": _OF_BERT, "roberta": _OF_BERT, "deberta-v2": _OF_DEBERTA | {"buckets": "position_buckets"}}
SIZES_IN_CONFIG["t5"] = _OF_T5
FAMILY_FIELDS: dict[str, dict[str, Any]] = {"bert": {}, "roberta": ROBERTA, "deberta-v2": DEBERTA}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Describe a classifier of images or texts: features, of length 1 for CLIP and ALIGN, and a linear head.

    Attributes:
        name: as in `ARCHITECTURES`.
        family: whose names the weights have: "clip", "augreg", "timm", "huggingface", "torchvision",
            "efficientnet-pytorch", "align", or of texts "bert", "roberta", "deberta-v2", "t5",
            "gpt2" or "llama".
        image_size: the side of its square images; None for a network of texts, which takes what
            `soups.models.TextEncoder` does.
        mean, std: of each channel of RGB in [0, 1]; the network sees (image − mean) / std. None for texts.
        feature_dim: the length of the features.
        features: the network without a head.
        text: the text tower of CLIP or ALIGN, else None.
    """

    name: str
    family: str
    image_size: int | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    feature_dim: int
    features: nn.Module
    text: TextTower | TextEncoder | None = None

    @property
    def head(self) -> str:
        """Return the name of the head's module."""
        return "params/head" if hasattr(self.features, "momentum") else "head"

    def model(self, num_classes: int | None, **fields: Any) -> nn.Module:
        """Make the network, which takes normalised images or tokens; None: no head. `fields`: dtype, remat, ..."""
        return self.features.clone(num_classes=num_classes, **fields)

    def apply_fn(self, num_classes: int | None, **fields: Any) -> Callable:
        """Return `apply(params, images) -> logits [B, num_classes]`, in evaluation mode.

        Images: floats [B, H, W, 3] in [0, 1], which it normalises; of texts what a tokenizer gives. For None it gives
        features [B, feature_dim], and a network that foretells tokens the logits of its vocabulary.
        """
        return functional.apply_fn(self.model(num_classes, **fields), self.mean, self.std)

    def train_apply_fn(self, num_classes: int | None, *, frozen_statistics: bool = False, **fields: Any) -> Callable:
        """Return `train_apply(params, images, key) -> (logits, params)`, in training mode; images as in `apply_fn`.

        `frozen_statistics`: as of `soups.models.train_apply_fn`. `fields`: such as dtype=jnp.bfloat16, which leaves the
        weights in float32, and remat=True.
        """
        model = self.model(num_classes, **fields)
        return functional.train_apply_fn(model, self.mean, self.std, frozen_statistics=frozen_statistics)

    def abstract(self, num_classes: int | None) -> Tree:
        """Return the weights' names, shapes and dtypes as jax.ShapeDtypeStructs; nothing is computed."""
        model, inputs = self.model(num_classes), {"tokens": np.zeros((1, 1), int), "mask": np.ones((1, 1), bool)}
        inputs |= {"decoder_tokens": np.zeros((1, 1), int)} if self.family == "t5" else {}
        if self.image_size is not None:
            inputs = (self.image_size, self.image_size, 3)
        return jax.eval_shape(lambda key: functional.init(model, key, inputs), jax.random.key(0))


def architecture(name: str | Architecture) -> Architecture:
    """Return the architecture of this name, or the one that it is: your own, made by `dataclasses.replace`.

    clip-*: OpenAI's CLIP (Radford et al., 2021, arXiv:2103.00020), whose GELU is x / (1 + exp(−1.702 x)); open-clip-*:
    those of the open_clip project, with the exact GELU; clip-vit-mini is a small one for tests. vit-*: AugReg and
    big_vision (Steiner et al., 2021, arXiv:2106.10270), with the tanh form of GELU; timm-vit-* and hf-vit-*: the same
    networks as timm and Hugging Face compute them, with the exact GELU and, at Hugging Face, another epsilon in their
    norms. resnet50: torchvision's. efficientnet-lite*: TensorFlow's, by the names of EfficientNet-PyTorch.
    align-base: ALIGN (Jia et al., 2021, arXiv:2102.05918) as Hugging Face has it, EfficientNet-B7 with a BERT.

    bert-*: Google's BERT (Devlin et al., 2018, arXiv:1810.04805) with its pooler, roberta-* (Liu et al., 2019,
    arXiv:1907.11692), both by Hugging Face's names. *-mlm have the head of pre-training, roberta-*-classifier the tanh
    layer of Hugging Face's classifier, which only fine-tuned files have. minilm-l6: all-MiniLM-L6-v2, which averages
    the tokens (Reimers and Gurevych, 2019, arXiv:1908.10084). deberta-v3-*: Microsoft's DeBERTa-v3 (He et al., 2021,
    arXiv:2111.09543) with its pooler, and as *-mlm with the head that Hugging Face computes for it. t5-*: Google's
    T5 1.0 and 1.1 (Raffel et al., 2020, arXiv:1910.10683), see `soups.models.T5`. `encoder_of` reads other sizes from a
    folder.

    gpt2, gpt2-medium, -large and -xl (Radford et al., 2019), and smollm2-135m, a Llama (Ben Allal et al., 2025,
    arXiv:2502.02737), foretell tokens; `decoder_of` reads other sizes, also from GGUF files.

    An unknown name is a ValueError.
    """
    if isinstance(name, Architecture):
        return name
    check_name(name, _TABLE, "architecture")
    family, build, *arguments = _TABLE[name]
    fields = arguments.pop() if build is _encoder else {}
    return build(name, family, *arguments, **fields)


def encoder_of(
    path: PathLike, *, pool_type: str | None = "tok", pooler: bool = False, mlm: bool = False
) -> Architecture:
    """Return the architecture of a BERT, RoBERTa, DeBERTa or T5 in a folder, of the sizes in its config.json.

        arch = encoder_of("my/minilm", pool_type="mean")
        params = import_weights("my/minilm", arch)

    `path`: the folder of Hugging Face, or an id on the hub, org/name, in the local cache. `pool_type` and `mlm` are
    those of `soups.models.TextEncoder`. `pooler`: with a layer before the head, which is the pooler of BERT or DeBERTa,
    or that of RoBERTa's classifier. T5 has none of these three.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: it is of another kind of network, lacks a size, or has an activation that is not known.
    """
    folder = pathlib.Path(cached_model(str(path)))
    config = read_json(folder / "config.json")
    kinds = (*FAMILY_FIELDS, "t5")
    family = check_name(config.get("model_type"), kinds, f"model_type in {folder / 'config.json'}")
    named = SIZES_IN_CONFIG[family]
    if wrong := [name for name in named.values() if type(config.get(name)) is not int or config[name] < 1]:
        raise ValueError(f"{folder / 'config.json'} must give these as whole numbers of at least 1: {', '.join(wrong)}")
    sizes = {ours: config[theirs] for ours, theirs in named.items()}
    if family == "t5":
        sizes |= {"gated": str(config.get("feed_forward_proj")).startswith("gated")}
        sizes |= {"distance": config.get("relative_attention_max_distance", 128)}
        return Architecture(f"t5 in {folder}", "t5", None, None, None, sizes["width"], T5(None, **sizes))
    fields = FAMILY_FIELDS[family] | sizes
    offset = config.get("pad_token_id", 1) + 1 if family == "roberta" else 0
    fields |= {"position_offset": offset, "context_length": fields["context_length"] - offset}
    activation = str(config.get("hidden_act", "gelu"))
    fields |= {"activation": HF_ACTIVATIONS.get(activation, activation)}
    check_name(fields["activation"], ACTIVATIONS, f"hidden_act in {folder / 'config.json'}")
    fields |= {"norm_epsilon": config.get("layer_norm_eps", 1e-7 if family == "deberta-v2" else 1e-12)}
    fields |= {"pool_type": None if mlm else pool_type, "mlm": mlm}
    fields |= {"representation_size": fields["width"] if pooler else None}
    name = f"{family} in {folder}"
    return Architecture(name, family, None, None, None, fields["width"], TextEncoder(None, **fields))


def decoder_of(path: PathLike) -> Architecture:
    """Return the architecture of a GPT-2 or Llama, of the sizes that its folder or its GGUF file states.

        arch = decoder_of("SmolLM2-135M-Instruct.Q4_1.gguf")
        params = import_weights("SmolLM2-135M-Instruct.Q4_1.gguf", arch)

    `path`: a folder of Hugging Face with its config.json, a GGUF file, or an id on the hub, org/name, in the local
    cache.

    Raises:
        FileNotFoundError: there is no such file, or no config.json.
        ValueError: it is of another kind of network, lacks a size, or has a setting that is not computed, such as
            scaled rotations.
    """
    path = pathlib.Path(cached_model(str(path)))
    family, fields = decoder_fields(path)
    check_name(fields["activation"], ACTIVATIONS, f"activation of {path}")
    return _decoder(f"{family} in {path}", family, fields)


def _clip(name, family, size, image_size, projection_size, text_width, activation, mean=CLIP_MEAN, std=CLIP_STD):
    fields = {"pool_type": "tok", "norm_epsilon": 1e-5, "pre_norm": True, "embedding_bias": False, "normalize": True}
    features = vit(size, num_classes=None, activation=activation, projection_size=projection_size, **fields)
    text = TextTower(text_width, 12, text_width // 64, projection_size, activation)
    return Architecture(name, family, image_size, mean, std, projection_size, features, text)


def _clip_mini(name, family):
    small = _clip(name, family, "B/8", 32, 64, 64, "quick_gelu")
    features = small.features.clone(width=128, depth=2, mlp_dim=512, num_heads=2)
    return dataclasses.replace(small, features=features, text=small.text.clone(depth=2))


def _vit(name, family, size, activation, norm_epsilon):
    features = vit(size, num_classes=None, pool_type="tok", activation=activation, norm_epsilon=norm_epsilon)
    return Architecture(name, family, 224, HALF, HALF, features.width, features)


def _resnet(name, family, blocks):
    return Architecture(name, family, 224, IMAGENET_MEAN, IMAGENET_STD, 2048, BottleneckResNet(None, blocks))


def _lite(name, family, width_multiplier, depth_multiplier, image_size):
    features = EfficientNetLite(None, width_multiplier, depth_multiplier)
    return Architecture(name, family, image_size, LITE_MEAN, LITE_STD, TOP, features)


def _align(name, family):
    text = TextEncoder(None, 768, 12, 3072, 12, 30522, projection_size=640)
    return Architecture(name, family, 289, HALF, HALF, 640, AlignImageTower(None), text)


def _encoder(name, family, width, depth, vocabulary_size, **fields):
    sizes = {"width": width, "depth": depth, "mlp_dim": 4 * width, "num_heads": width // 64}
    fields = {**sizes, "vocabulary_size": vocabulary_size, **FAMILY_FIELDS[family], **fields}
    return Architecture(name, family, None, None, None, width, TextEncoder(None, **fields))


def _t5(name, family, width, depth, mlp_dim, num_heads, gated):
    return Architecture(name, family, None, None, None, width, T5(None, width, depth, mlp_dim, num_heads, gated=gated))


def _decoder(name, family, fields):
    return Architecture(name, family, None, None, None, fields["width"], Decoder(None, **fields))


def _decoders():
    table = {}
    for name, sizes in {
        "": (768, 12, 12),
        "-medium": (1024, 24, 16),
        "-large": (1280, 36, 20),
        "-xl": (1600, 48, 25),
    }.items():
        width, depth, heads = sizes
        fields = {"width": width, "depth": depth, "mlp_dim": 4 * width, "num_heads": heads, "vocabulary_size": 50257}
        table[f"gpt2{name}"] = ("gpt2", _decoder, fields)
    fields = {"width": 576, "depth": 30, "mlp_dim": 1536, "num_heads": 9, "num_kv_heads": 3, "rope_theta": 1e5}
    fields |= {"vocabulary_size": 49152, "context_length": 8192}
    return table | {"smollm2-135m": ("llama", _decoder, LLAMA | fields)}


def _encoders():
    sizes, table = {"base": (768, 12), "large": (1024, 24)}, {}
    for size, (width, depth) in sizes.items():
        kinds = {f"bert-{size}-{case}": ("bert", count) for case, count in {"uncased": 30522, "cased": 28996}.items()}
        for name, (family, count) in (kinds | {f"roberta-{size}": ("roberta", 50265)}).items():
            pooled, plain = {"representation_size": width}, (family, _encoder, width, depth, count)
            table[name] = (*plain, pooled if family == "bert" else {})
            table[f"{name}-mlm"] = (*plain, {"pool_type": None, "mlm": True})
            if family == "roberta":
                table[f"{name}-classifier"] = (*plain, pooled)
    for size, (width, depth) in (DEBERTA_SIZES | sizes).items():
        plain = ("deberta-v2", _encoder, width, depth, 128100)
        table[f"deberta-v3-{size}"] = (*plain, {"representation_size": width})
        table[f"deberta-v3-{size}-mlm"] = (*plain, {"pool_type": None, "mlm": True})
    for name, fields in T5_SIZES.items():
        table[name] = ("t5", _t5, *fields, "v1_1" in name)
    return table | {"minilm-l6": ("bert", _encoder, 384, 6, 30522, {"num_heads": 12, "pool_type": "mean"})}


def _table():
    table = {"resnet50": ("torchvision", _resnet, (3, 4, 6, 3)), "clip-vit-mini": ("clip", _clip_mini)}
    table["align-base"] = ("align", _align)
    lites = [(1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 280), (1.4, 1.8, 300)]
    for number, multipliers in enumerate(lites):
        table[f"efficientnet-lite{number}"] = ("efficientnet-pytorch", _lite, *multipliers)
    sizes = {"b32": ("B/32", 224, 512, 512), "b16": ("B/16", 224, 512, 512)}
    sizes |= {"l14": ("L/14", 224, 768, 768), "l14-336": ("L/14", 336, 768, 768)}
    for name, size in sizes.items():
        table[f"clip-vit-{name}"] = ("clip", _clip, *size, "quick_gelu")
        if name != "l14-336":
            table[f"open-clip-vit-{name}"] = ("clip", _clip, *size, "gelu")
    # as open_clip's release of 2022 on LAION-2B was trained
    table["open-clip-vit-l14-half"] = (*table["open-clip-vit-l14"], HALF, HALF)
    for name, size in {"ti16": "Ti/16", "s16": "S/16", "b32": "B/32", "b16": "B/16", "l16": "L/16"}.items():
        table[f"vit-{name}"] = ("augreg", _vit, size, "gelu_tanh", 1e-6)
        table[f"timm-vit-{name}"] = ("timm", _vit, size, "gelu", 1e-6)
        table[f"hf-vit-{name}"] = ("huggingface", _vit, size, "gelu", 1e-12)
    return table | _encoders() | _decoders()


_TABLE = _table()
#: names of the networks whose published weights can be imported, for `architecture`
ARCHITECTURES = tuple(sorted(_TABLE))
