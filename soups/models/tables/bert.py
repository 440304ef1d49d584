"""Say which tensors of Hugging Face's BERT and RoBERTa files are which weights."""

from soups.models.architectures import Architecture
from soups.models.tables import parts
from soups.models.tables.parts import BlockNames, Table

_PARTS = tuple(f"attention.self.{part}" for part in ("query", "key", "value"))
BLOCK = BlockNames(
    "attention.output.LayerNorm",
    _PARTS,
    "attention.output.dense",
    "output.LayerNorm",
    "intermediate.dense",
    "output.dense",
)
#: what an encoder may do without: the heads of pre-training, the pooler, numbers of positions
BERT_REST = r"(bert\.)?(embeddings\.position_ids|pooler\.dense\.(weight|bias))|cls\..*"
ROBERTA_REST = r"(roberta\.)?(embeddings\.(position|token_type)_ids|pooler\.dense\.(weight|bias))|lm_head\..*"


def bert(arch: Architecture, prefix: str = "bert.") -> Table:
    """Return the table of BERT; `prefix`: before the names of the trunk."""
    encoder, width = arch.features, arch.features.width
    table = _trunk(arch, prefix)
    if encoder.representation_size is not None:
        table |= parts.linear(f"{prefix}pooler.dense", "pre_logits", (width,), (encoder.representation_size,))
    if encoder.mlm:
        theirs = "cls.predictions"
        table |= parts.linear(f"{theirs}.transform.dense", "mlm/dense", (width,), (width,))
        table |= parts.norm(f"{theirs}.transform.LayerNorm", "mlm/norm", width)
        table |= parts.as_it_is(f"{theirs}.bias", (encoder.vocabulary_size,), "mlm/bias")
    return table


def roberta(arch: Architecture, prefix: str = "roberta.") -> Table:
    """Return the table of RoBERTa, whose tanh layer is of its classifier."""
    encoder, width = arch.features, arch.features.width
    table = _trunk(arch, prefix)
    if encoder.representation_size is not None:
        table |= parts.linear("classifier.dense", "pre_logits", (width,), (encoder.representation_size,))
    if encoder.mlm:
        table |= parts.linear("lm_head.dense", "mlm/dense", (width,), (width,))
        table |= parts.norm("lm_head.layer_norm", "mlm/norm", width)
        table |= parts.as_it_is("lm_head.bias", (encoder.vocabulary_size,), "mlm/bias")
    return table


def bare(arch: Architecture) -> Table:
    """Return the table of an encoder that was saved alone."""
    return {"bert": bert, "roberta": roberta}[arch.family](arch, "")


def head(arch: Architecture, classes: int) -> Table:
    """Return the table of a classifier's last layer."""
    inside = arch.family == "roberta" and arch.features.representation_size is not None
    return parts.linear("classifier.out_proj" if inside else "classifier", "head", (arch.feature_dim,), (classes,))


def _trunk(arch, prefix) -> Table:
    encoder, width, top = arch.features, arch.features.width, f"{prefix}embeddings"
    rows = {"word": ("token", encoder.vocabulary_size), "token_type": ("segment", encoder.num_segments)}
    rows["position"] = ("position", encoder.context_length + encoder.position_offset)
    table = parts.norm(f"{top}.LayerNorm", "embedding_norm", width)
    for theirs, (ours, count) in rows.items():
        table |= parts.as_it_is(f"{top}.{theirs}_embeddings.weight", (count, width), f"{ours}_embedding/embedding")
    blocks = f"{prefix}encoder.layer.{{}}"
    return table | parts.encoder(blocks, BLOCK, encoder.depth, width, encoder.mlp_dim, encoder.num_heads)
