"""Say which tensors of Hugging Face's T5 files are which weights."""

from soups.models.architectures import Architecture
from soups.models.tables import parts
from soups.models.tables.parts import Table

# copies of the embeddings, and a bias that no version used
T5_REST = r"((encoder|decoder)\.embed_tokens|lm_head|.*\.EncDecAttention\.relative_attention_bias)\.weight"
SELF, CROSS = ("SelfAttention", "attention"), ("EncDecAttention", "cross_attention")


def t5(arch: Architecture) -> Table:
    """Return the table of T5 1.0, or 1.1."""
    network = arch.features
    shape = (network.vocabulary_size, network.width)
    table = parts.as_it_is("shared.weight", shape, "token_embedding/embedding")
    if network.gated:
        table |= parts.matrix("lm_head.weight", "lm_head/kernel", shape[1:], shape[:1])
    for stack, attentions in {"encoder": (SELF,), "decoder": (SELF, CROSS)}.items():
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table |= parts.as_it_is(bias, (network.buckets, network.num_heads), f"{stack}/relative_bias/embedding")
        table |= _norm(f"{stack}.final_layer_norm", f"{stack}/norm", network)
        for index in range(network.depth):
            table |= _block(f"{stack}.block.{index}.layer", f"{stack}/block_{index}", attentions, network)
    return table


def _block(theirs, ours, attentions, network) -> Table:
    table, heads, width = {}, (network.num_heads, network.head_dim), (network.width,)
    for number, (name, own) in enumerate(attentions):
        for part, place in {"q": "query", "k": "key", "v": "value"}.items():
            named = (f"{theirs}.{number}.{name}.{part}.weight", f"{ours}/{own}/{place}/kernel")
            table |= parts.matrix(*named, width, heads)
        table |= parts.matrix(f"{theirs}.{number}.{name}.o.weight", f"{ours}/{own}/out/kernel", heads, width)
        table |= _norm(f"{theirs}.{number}.layer_norm", f"{ours}/{own}_norm", network)
    last, hidden = f"{theirs}.{len(attentions)}", (network.mlp_dim,)
    inside = {"wi_0": "gate", "wi_1": "hidden"} if network.gated else {"wi": "hidden"}
    for name, place in inside.items():
        table |= parts.matrix(f"{last}.DenseReluDense.{name}.weight", f"{ours}/mlp/{place}/kernel", width, hidden)
    table |= parts.matrix(f"{last}.DenseReluDense.wo.weight", f"{ours}/mlp/out/kernel", hidden, width)
    return table | _norm(f"{last}.layer_norm", f"{ours}/mlp_norm", network)


def _norm(theirs, ours, network) -> Table:
    return parts.as_it_is(f"{theirs}.weight", (network.width,), f"{ours}/scale")
