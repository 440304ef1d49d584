"""Say which tensors of GPT-2's and Llama's files are which weights: Hugging Face's names, and those of GGUF."""

import math

from soups.models.architectures import Architecture
from soups.models.tables import parts
from soups.models.tables.parts import Part, Table

#: buffers of old files
GPT2_REST = r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)"
LLAMA_REST = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
_IN_GGUF = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gpt2(arch: Architecture, prefix: str = "transformer.") -> Table:
    """Return the table of GPT-2, whose matrices are [inputs, outputs]; `prefix`: before the names of the trunk."""
    decoder, width = arch.features, arch.features.width
    heads = (decoder.num_heads, width // decoder.num_heads)
    rows = {"wte": ("token", decoder.vocabulary_size), "wpe": ("position", decoder.context_length)}
    table = parts.norm(f"{prefix}ln_f", "Transformer/encoder_norm", width)
    if not decoder.tied:
        table |= parts.matrix("lm_head.weight", "lm_head/kernel", (width,), (decoder.vocabulary_size,))
    for theirs, (ours, count) in rows.items():
        table |= parts.as_it_is(f"{prefix}{theirs}.weight", (count, width), f"{ours}_embedding/embedding")
    for index in range(decoder.depth):
        ours, theirs = f"Transformer/encoderblock_{index}", f"{prefix}h.{index}"
        attention, mlp = f"{ours}/MultiHeadDotProductAttention_0", f"{ours}/MlpBlock_0"
        table |= parts.norm(f"{theirs}.ln_1", f"{ours}/LayerNorm_0", width)
        table |= parts.norm(f"{theirs}.ln_2", f"{ours}/LayerNorm_1", width)
        table |= _stacked(f"{theirs}.attn.c_attn", attention, heads)
        table |= _untransposed(f"{theirs}.attn.c_proj", f"{attention}/out", heads, (width,))
        table |= _untransposed(f"{theirs}.mlp.c_fc", f"{mlp}/Dense_0", (width,), (decoder.mlp_dim,))
        table |= _untransposed(f"{theirs}.mlp.c_proj", f"{mlp}/Dense_1", (decoder.mlp_dim,), (width,))
    return table


def llama(arch: Architecture) -> Table:
    """Return the table of Llama by Hugging Face's names."""
    return _llama(arch, "model.embed_tokens", "model.norm", "lm_head", "model.layers.{}.", {}, _rows)


def gguf(arch: Architecture) -> Table:
    """Return the table of Llama by the names of GGUF, where the rows of queries and keys lie in pairs."""
    return _llama(arch, "token_embd", "output_norm", "output", "blk.{}.", _IN_GGUF, _pairs)


def _llama(arch, embedding, last, logits, block, names, rows) -> Table:
    decoder, width = arch.features, arch.features.width
    size = decoder.head_dim or width // decoder.num_heads
    table = parts.as_it_is(f"{embedding}.weight", (decoder.vocabulary_size, width), "token_embedding/embedding")
    table |= parts.as_it_is(f"{last}.weight", (width,), "Transformer/encoder_norm/scale")
    if not decoder.tied:
        table |= parts.matrix(f"{logits}.weight", "lm_head/kernel", (width,), (decoder.vocabulary_size,))
    many, few = (decoder.num_heads, size), (decoder.num_kv_heads or decoder.num_heads, size)
    for index in range(decoder.depth):
        ours, theirs = f"Transformer/encoderblock_{index}", block.format(index)
        attention, mlp, hidden = f"{ours}/MultiHeadDotProductAttention_0", f"{ours}/MlpBlock_0", (decoder.mlp_dim,)
        matrices = {
            "self_attn.v_proj": (f"{attention}/value", (width,), few),
            "self_attn.o_proj": (f"{attention}/out", many, (width,)),
            "mlp.up_proj": (f"{mlp}/Dense_0", (width,), hidden),
            "mlp.gate_proj": (f"{mlp}/gate", (width,), hidden),
            "mlp.down_proj": (f"{mlp}/Dense_1", hidden, (width,)),
        }
        for name, (place, *shape) in matrices.items():
            table |= parts.matrix(f"{theirs}{names.get(name, name)}.weight", f"{place}/kernel", *shape)
        for name, part, heads in (("self_attn.q_proj", "query", many), ("self_attn.k_proj", "key", few)):
            table |= rows(f"{theirs}{names.get(name, name)}.weight", f"{attention}/{part}/kernel", width, heads)
        for number, name in enumerate(("input_layernorm", "post_attention_layernorm")):
            scale = f"{ours}/RMSNorm_{number}/scale"
            table |= parts.as_it_is(f"{theirs}{names.get(name, name)}.weight", (width,), scale)
    return table


def _rows(name, ours, width, heads):
    return parts.matrix(name, ours, (width,), heads)


def _pairs(name, ours, width, heads):
    """Take queries or keys whose rows 2i and 2i + 1 are turned together, where ours are rows i and i + E/2."""
    count, size = heads

    def apart(weight):
        return weight.reshape(count, size // 2, 2, width).transpose(3, 0, 2, 1).reshape(width, count, size)

    return {name: Part((count * size, width), {ours: apart})}


def _untransposed(name, ours, inputs, outputs):
    shape = (math.prod(inputs), math.prod(outputs))
    weight = {f"{name}.weight": Part(shape, {f"{ours}/kernel": lambda weight: weight.reshape(*inputs, *outputs)})}
    return weight | {f"{name}.bias": Part((shape[1],), {f"{ours}/bias": lambda bias: bias.reshape(outputs)})}


def _stacked(name, ours, heads):
    """Take queries, keys and values side by side, [D, 3 · H · E]."""
    width, named = math.prod(heads), list(enumerate(("query", "key", "value")))
    kernels = {f"{ours}/{p}/kernel": lambda w, i=i: w.reshape(width, 3, *heads)[:, i] for i, p in named}
    biases = {f"{ours}/{p}/bias": lambda b, i=i: b.reshape(3, *heads)[i] for i, p in named}
    return {f"{name}.weight": Part((width, 3 * width), kernels), f"{name}.bias": Part((3 * width,), biases)}
