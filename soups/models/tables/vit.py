"""Say which tensors of AugReg's, timm's and Hugging Face's ViTs are which weights."""

from soups import tree
from soups.models.architectures import Architecture
from soups.models.tables import parts
from soups.models.tables.parts import BlockNames, Table

TIMM_BLOCK = BlockNames("norm1", ("attn.qkv.weight", "attn.qkv.bias"), "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_PARTS = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))
_REST = ("attention.output.dense", "layernorm_after", "intermediate.dense", "output.dense")
HF_BLOCK = BlockNames("layernorm_before", _PARTS, *_REST)
HF_POOLER = r"pooler\..*"  # of a file without a classifier, which does not use it either


def augreg(arch: Architecture) -> Table:
    """Return the table of AugReg's and big_vision's names, which are those of this library."""
    return _as_they_are(tree.flatten(arch.abstract(None)))


def augreg_head(arch: Architecture, classes: int) -> Table:
    """Return the table of their head."""
    leaves = tree.flatten(arch.abstract(classes))
    return _as_they_are({name: leaves[name] for name in ("head/kernel", "head/bias")})


def timm(arch: Architecture) -> Table:
    """Return the table of timm's names."""
    bias = parts.as_it_is("patch_embed.proj.bias", (arch.features.width,), "embedding/bias")
    names = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.{}", TIMM_BLOCK, "norm")
    return parts.tower(arch, *names, lead=(1,)) | bias


def huggingface(arch: Architecture) -> Table:
    """Return the table of Hugging Face's names."""
    top = "embeddings"
    patches = f"{top}.patch_embeddings.projection"
    names = (f"{top}.cls_token", f"{top}.position_embeddings", f"{patches}.weight", "encoder.layer.{}")
    bias = parts.as_it_is(f"{patches}.bias", (arch.features.width,), "embedding/bias")
    return parts.tower(arch, *names, HF_BLOCK, "layernorm", lead=(1,)) | bias


def _as_they_are(leaves):
    return {name: parts.Part(leaf.shape, {name: lambda tensor: tensor}) for name, leaf in leaves.items()}
