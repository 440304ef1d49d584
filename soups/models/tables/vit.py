"""Say which tensors of AugReg's, timm's and Hugging Face's ViTs are which weights."""

from soups import tree
from soups.models.architectures import Architecture
from soups.models.tables import parts
from soups.models.tables.parts import BlockNames, Table

TIMM_BLOCK = BlockNames("norm1", ("attn.qkv.weight", "attn.qkv.bias"), "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
HF_BLOCK = BlockNames(
    "layernorm_before",
    ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attention.output.dense",
    "layernorm_after",
    "intermediate.dense",
    "output.dense",
)
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
    return _table(arch, "cls_token", "pos_embed", "patch_embed.proj", "blocks.{}", TIMM_BLOCK, "norm")


def huggingface(arch: Architecture) -> Table:
    """Return the table of Hugging Face's names."""
    first = ("embeddings.cls_token", "embeddings.position_embeddings", "embeddings.patch_embeddings.projection")
    return _table(arch, *first, "encoder.layer.{}", HF_BLOCK, "layernorm")


def _table(arch, token, positions, patches, block, names, last):
    model, width = arch.features, arch.features.width
    return (
        parts.class_token(token, (1, 1, width))
        | parts.positions(positions, (1, 1 + arch.patches, width))
        | parts.convolution(f"{patches}.weight", "embedding/kernel", model.patch_size, 3, width)
        | parts.as_it_is(f"{patches}.bias", (width,), "embedding/bias")
        | parts.encoder(block, names, model.depth, width, model.mlp_dim, model.num_heads)
        | parts.norm(last, "Transformer/encoder_norm", width)
    )


def _as_they_are(leaves):
    return {name: parts.Part(leaf.shape, {name: lambda tensor: tensor}) for name, leaf in leaves.items()}
