"""Write the weights of a small CLIP with the names, shapes and order of files of OpenAI and of the published soups.

It is the inverse of what `soups.models.import_weights` does, written from the formats alone.
"""

import math

import numpy as np

CONTEXT = 77
LOGIT_SCALE = math.log(100.0)


def random_weights(abstract, rng: np.random.Generator):
    """Draw weights for a tree of shapes: norms at one, biases and class token at zero, kernels by their fan-in."""
    from soups import tree

    def draw(name, leaf):
        if name.endswith("scale"):
            return np.ones(leaf.shape, np.float32)
        if name.endswith(("bias", "cls")):
            return np.zeros(leaf.shape, np.float32)
        out = 2 if name.endswith(("query/kernel", "key/kernel", "value/kernel")) else 1
        fan_in = leaf.shape[-1] if name.endswith("pos_embedding") else math.prod(leaf.shape[:-out])
        return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

    return tree.map_with_names(draw, abstract)


def clip_tensors(params, text: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a whole CLIP, as OpenAI names it, from the weights of the image tower and tensors of the text tower."""
    first = ("positional_embedding", "text_projection", "logit_scale")
    return {name: text[name] for name in first} | _visual(params) | {n: a for n, a in text.items() if n not in first}


def classifier_tensors(params, text: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a published soup's member: a CLIP without the transformer of its text tower, and a linear head."""
    clip = clip_tensors(params, {name: array for name, array in text.items() if not name.startswith("transformer.")})
    head = {
        "classification_head.weight": params["head"]["kernel"].T,
        "classification_head.bias": params["head"]["bias"],
    }
    return {f"model.{name}": array for name, array in clip.items()} | head


def text_tensors(vocabulary: int, width: int, depth: int, features: int, rng) -> dict[str, np.ndarray]:
    """Draw a text tower; it tells words apart, though it was never trained."""

    def draw(*shape, std=None):
        return rng.normal(0, std or shape[-1] ** -0.5, shape).astype(np.float32)

    tensors = {
        "positional_embedding": draw(CONTEXT, width),
        "text_projection": draw(width, features, std=width**-0.5),
        "logit_scale": np.float32(LOGIT_SCALE),
    }
    for index in range(depth):
        tensors |= {
            f"transformer.resblocks.{index}.{name}": tensor
            for name, tensor in {
                "attn.in_proj_weight": draw(3 * width, width),
                "attn.in_proj_bias": np.zeros(3 * width, np.float32),
                "attn.out_proj.weight": draw(width, width),
                "attn.out_proj.bias": np.zeros(width, np.float32),
                **_affine("ln_1", np.ones(width, np.float32), np.zeros(width, np.float32)),
                "mlp.c_fc.weight": draw(4 * width, width),
                "mlp.c_fc.bias": np.zeros(4 * width, np.float32),
                "mlp.c_proj.weight": draw(width, 4 * width),
                "mlp.c_proj.bias": np.zeros(width, np.float32),
                **_affine("ln_2", np.ones(width, np.float32), np.zeros(width, np.float32)),
            }.items()
        }
    tensors["token_embedding.weight"] = draw(vocabulary, width, std=1.0)
    return tensors | _affine("ln_final", np.ones(width, np.float32), np.zeros(width, np.float32))


def _visual(params):
    # the same sum as ours: the position of the class token is zero
    positions = np.concatenate([np.zeros_like(params["cls"][0]), params["pos_embedding"][0]])
    tensors = {
        "class_embedding": params["cls"][0, 0],
        "positional_embedding": positions,
        "proj": params["projection"]["kernel"],
        "conv1.weight": params["embedding"]["kernel"].transpose(3, 2, 0, 1),
        **_norm("ln_pre", params["pre_norm"]),
    }
    blocks = params["Transformer"]
    for index in range(len(blocks) - 1):
        block = _block(blocks[f"encoderblock_{index}"])
        tensors |= {f"transformer.resblocks.{index}.{name}": tensor for name, tensor in block.items()}
    tensors |= _norm("ln_post", blocks["encoder_norm"])
    return {f"visual.{name}": tensor for name, tensor in tensors.items()}


def _block(block):
    attention, mlp = block["MultiHeadDotProductAttention_0"], block["MlpBlock_0"]
    width = attention["out"]["kernel"].shape[-1]
    three = [attention[name] for name in ("query", "key", "value")]
    return {
        "attn.in_proj_weight": np.concatenate([part["kernel"].reshape(width, width).T for part in three]),
        "attn.in_proj_bias": np.concatenate([part["bias"].reshape(width) for part in three]),
        "attn.out_proj.weight": attention["out"]["kernel"].reshape(width, width).T,
        "attn.out_proj.bias": attention["out"]["bias"],
        **_norm("ln_1", block["LayerNorm_0"]),
        "mlp.c_fc.weight": mlp["Dense_0"]["kernel"].T,
        "mlp.c_fc.bias": mlp["Dense_0"]["bias"],
        "mlp.c_proj.weight": mlp["Dense_1"]["kernel"].T,
        "mlp.c_proj.bias": mlp["Dense_1"]["bias"],
        **_norm("ln_2", block["LayerNorm_1"]),
    }


def _norm(name, norm):
    return _affine(name, norm["scale"], norm["bias"])


def _affine(name, scale, shift):
    return {f"{name}.weight": scale, f"{name}.bias": shift}
