"""Say which tensors of CLIP files are which weights: OpenAI's names, which open_clip shares, and Hugging Face's."""

from soups.models.architectures import Architecture
from soups.models.tables import parts
from soups.models.tables.parts import BlockNames, Table

_STACKED = ("attn.in_proj_weight", "attn.in_proj_bias")
OPENAI_BLOCK = BlockNames("ln_1", _STACKED, "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
_PARTS = tuple(f"self_attn.{part}_proj" for part in "qkv")
HF_BLOCK = BlockNames("layer_norm1", _PARTS, "self_attn.out_proj", "layer_norm2", "mlp.fc1", "mlp.fc2")
# the rest of a CLIP, which an image classifier does without; the numbers are those of OpenAI's archives
OPENAI_TEXT = (
    r"(transformer|token_embedding|ln_final)\..*|positional_embedding|text_projection(\.weight)?|logit_(scale|bias)"
    r"|attn_mask|input_resolution|context_length|vocab_size"
)
HF_TEXT = r"text_model\..*|text_projection\.weight|logit_scale|vision_model\.embeddings\.position_ids"
OPENAI_IMAGE = r"visual\..*|logit_(scale|bias)|attn_mask|input_resolution|context_length|vocab_size"
HF_IMAGE = r"(vision_model|visual_projection)\..*|logit_scale|text_model\.embeddings\.position_ids"


def openai_image(arch: Architecture) -> Table:
    """Return the table of the image tower."""
    names = ("visual.class_embedding", "visual.positional_embedding", "visual.conv1.weight")
    return (
        parts.tower(arch, *names, "visual.transformer.resblocks.{}", OPENAI_BLOCK, "visual.ln_post")
        | parts.norm("visual.ln_pre", "pre_norm", arch.features.width)
        | parts.as_it_is("visual.proj", (arch.features.width, arch.features.projection_size), "projection/kernel")
    )


def hf_image(arch: Architecture) -> Table:
    """Return the table of the image tower."""
    width, top = arch.features.width, "vision_model.embeddings"
    names = (f"{top}.class_embedding", f"{top}.position_embedding.weight", f"{top}.patch_embedding.weight")
    return (
        parts.tower(arch, *names, "vision_model.encoder.layers.{}", HF_BLOCK, "vision_model.post_layernorm")
        | parts.norm("vision_model.pre_layrnorm", "pre_norm", width)  # the name is theirs
        | parts.matrix("visual_projection.weight", "projection/kernel", (width,), (arch.features.projection_size,))
    )


def openai_text(arch: Architecture) -> Table:
    """Return the table of the text tower."""
    tower = arch.text
    width = tower.width
    return (
        parts.as_it_is("token_embedding.weight", (tower.vocabulary_size, width), "token_embedding/embedding")
        | _text_positions("positional_embedding", tower)
        | parts.encoder("transformer.resblocks.{}", OPENAI_BLOCK, tower.depth, width, 4 * width, tower.num_heads)
        | parts.norm("ln_final", "Transformer/encoder_norm", width)
        | parts.as_it_is("text_projection", (width, tower.projection_size), "projection/kernel")
    )


def hf_text(arch: Architecture) -> Table:
    """Return the table of the text tower."""
    tower = arch.text
    width, top = tower.width, "text_model.embeddings"
    return (
        parts.as_it_is(f"{top}.token_embedding.weight", (tower.vocabulary_size, width), "token_embedding/embedding")
        | _text_positions(f"{top}.position_embedding.weight", tower)
        | parts.encoder("text_model.encoder.layers.{}", HF_BLOCK, tower.depth, width, 4 * width, tower.num_heads)
        | parts.norm("text_model.final_layer_norm", "Transformer/encoder_norm", width)
        | parts.matrix("text_projection.weight", "projection/kernel", (width,), (tower.projection_size,))
    )


def _text_positions(name, tower):
    shape = (tower.context_length, tower.width)
    return {name: parts.Part(shape, {"pos_embedding": lambda rows: rows[None]})}
