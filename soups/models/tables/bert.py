"""Say which tensors of Hugging Face's BERT, RoBERTa and DeBERTa files are which weights."""

from soups.models.architectures import Architecture
from soups.models.tables import parts
from soups.models.tables.parts import BlockNames, Table
from soups.models.text_encoder import TextEncoder

_PARTS = tuple(f"attention.self.{part}" for part in ("query", "key", "value"))
BLOCK = BlockNames(
    "attention.output.LayerNorm",
    _PARTS,
    "attention.output.dense",
    "output.LayerNorm",
    "intermediate.dense",
    "output.dense",
)
_PROJECTED = tuple(f"attention.self.{part}_proj" for part in ("query", "key", "value"))
DEBERTA_BLOCK = BLOCK._replace(attention=_PROJECTED)
#: what an encoder may do without: the heads of pre-training, the pooler, numbers of positions
BERT_REST = r"(bert\.)?(embeddings\.position_ids|pooler\.dense\.(weight|bias))|cls\..*"
ROBERTA_REST = r"(roberta\.)?(embeddings\.(position|token_type)_ids|pooler\.dense\.(weight|bias))|lm_head\..*"
DEBERTA_REST = r"(deberta\.)?embeddings\.position_ids|pooler\.dense\.(weight|bias)|((lm_|mask_)predictions|cls)\..*"


def bert(arch: Architecture, prefix: str = "bert.") -> Table:
    """Return the table of BERT; `prefix`: before the names of the trunk."""
    encoder, width = arch.features, arch.features.width
    table = trunk(encoder, prefix)
    if encoder.representation_size is not None:
        table |= parts.linear(f"{prefix}pooler.dense", "pre_logits", (width,), (encoder.representation_size,))
    return table | _mlm(encoder, "cls.predictions", "transform.dense", "transform.LayerNorm")


def roberta(arch: Architecture, prefix: str = "roberta.") -> Table:
    """Return the table of RoBERTa, whose tanh layer is of its classifier."""
    encoder, width = arch.features, arch.features.width
    table = trunk(encoder, prefix)
    if encoder.representation_size is not None:
        table |= parts.linear("classifier.dense", "pre_logits", (width,), (encoder.representation_size,))
    return table | _mlm(encoder, "lm_head", "dense", "layer_norm")


def deberta(arch: Architecture, prefix: str = "deberta.") -> Table:
    """Return the table of DeBERTa-v3, with the head of pre-training that Hugging Face has by default."""
    return _deberta(arch, prefix) | _mlm(arch.features, "cls.predictions", "transform.dense", "transform.LayerNorm")


def deberta_released(arch: Architecture) -> Table:
    """Return the table of DeBERTa-v3 with the head of pre-training by its authors' names."""
    return _deberta(arch, "deberta.") | _mlm(arch.features, "lm_predictions.lm_head", "dense", "LayerNorm")


def deberta_bare(arch: Architecture) -> Table:
    """Return the table of a DeBERTa-v3 that was saved alone."""
    return _deberta(arch, "")


def bare(arch: Architecture) -> Table:
    """Return the table of an encoder that was saved alone."""
    return {"bert": bert, "roberta": roberta}[arch.family](arch, "")


def head(arch: Architecture, classes: int) -> Table:
    """Return the table of a classifier's last layer."""
    inside = arch.family == "roberta" and arch.features.representation_size is not None
    return parts.linear("classifier.out_proj" if inside else "classifier", "head", (arch.feature_dim,), (classes,))


def _deberta(arch, prefix) -> Table:
    encoder, width, top = arch.features, arch.features.width, f"{prefix}encoder"
    table = trunk(encoder, prefix, DEBERTA_BLOCK)
    shape = (2 * encoder.buckets, width)
    table |= parts.as_it_is(f"{top}.rel_embeddings.weight", shape, "Transformer/relative_embedding/embedding")
    table |= parts.norm(f"{top}.LayerNorm", "Transformer/relative_norm", width)
    if encoder.representation_size is not None:
        table |= parts.linear("pooler.dense", "pre_logits", (width,), (encoder.representation_size,))
    return table


def _mlm(encoder, theirs, dense, norm) -> Table:
    if not encoder.mlm:
        return {}
    width = encoder.width
    table = parts.linear(f"{theirs}.{dense}", "mlm/dense", (width,), (width,))
    table |= parts.norm(f"{theirs}.{norm}", "mlm/norm", width)
    return table | parts.as_it_is(f"{theirs}.bias", (encoder.vocabulary_size,), "mlm/bias")


def trunk(encoder: TextEncoder, prefix: str, block: BlockNames = BLOCK) -> Table:
    """Return the table of embeddings and blocks; `prefix`: before their names."""
    width, top = encoder.width, f"{prefix}embeddings"
    rows = {"word": ("token", encoder.vocabulary_size)}
    if encoder.num_segments:
        rows["token_type"] = ("segment", encoder.num_segments)
    if encoder.buckets is None:
        rows["position"] = ("position", encoder.context_length + encoder.position_offset)
    table = parts.norm(f"{top}.LayerNorm", "embedding_norm", width)
    for theirs, (ours, count) in rows.items():
        table |= parts.as_it_is(f"{top}.{theirs}_embeddings.weight", (count, width), f"{ours}_embedding/embedding")
    blocks = f"{prefix}encoder.layer.{{}}"
    return table | parts.encoder(blocks, block, encoder.depth, width, encoder.mlp_dim, encoder.num_heads)
