"""Write checkpoints in the format of the released model soups with torch: python make_clip_files.py FOLDER COUNT."""

import collections
import pathlib
import sys

import torch

WIDTH, LAYERS, TEXT, EMBED, CLASSES = 768, 12, 512, 512, 1000  # CLIP ViT-B/32


def shapes():
    """Return name and shape of all 160 tensors in order; the text tower's transformer was deleted before saving."""
    visual = "model.visual."
    yield from [("model.positional_embedding", (77, TEXT)), ("model.text_projection", (TEXT, EMBED))]
    yield from [("model.logit_scale", ()), (visual + "class_embedding", (WIDTH,))]
    yield from [(visual + "positional_embedding", (50, WIDTH)), (visual + "proj", (WIDTH, EMBED))]
    yield from [(visual + "conv1.weight", (WIDTH, 3, 32, 32)), *_norm(visual + "ln_pre", WIDTH)]
    for layer in range(LAYERS):
        block = f"{visual}transformer.resblocks.{layer}."
        yield from [(block + "attn.in_proj_weight", (3 * WIDTH, WIDTH)), (block + "attn.in_proj_bias", (3 * WIDTH,))]
        yield from [(block + "attn.out_proj.weight", (WIDTH, WIDTH)), (block + "attn.out_proj.bias", (WIDTH,))]
        yield from _norm(block + "ln_1", WIDTH)
        yield from [(block + "mlp.c_fc.weight", (4 * WIDTH, WIDTH)), (block + "mlp.c_fc.bias", (4 * WIDTH,))]
        yield from [(block + "mlp.c_proj.weight", (WIDTH, 4 * WIDTH)), (block + "mlp.c_proj.bias", (WIDTH,))]
        yield from _norm(block + "ln_2", WIDTH)
    yield from [*_norm(visual + "ln_post", WIDTH), ("model.token_embedding.weight", (49408, TEXT))]
    yield from _norm("model.ln_final", TEXT)
    yield from [("classification_head.weight", (CLASSES, EMBED)), ("classification_head.bias", (CLASSES,))]


def _norm(name, width):
    return [(f"{name}.weight", (width,)), (f"{name}.bias", (width,))]


def main():
    """Draw one network, and members around it."""
    folder, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    generator = torch.Generator().manual_seed(0)
    base = {}
    for name, shape in shapes():
        ones = ".ln_" in name and name.endswith("weight")
        scale = 0.0 if name.endswith("bias") or ones else (shape[-1] if shape else 1) ** -0.5
        base[name] = scale * torch.randn(shape, generator=generator) + float(ones)
    for index in range(count):
        member = collections.OrderedDict(
            (name, value + 0.3 * value.std(correction=0) * torch.randn(value.shape, generator=generator))
            for name, value in base.items()
        )
        torch.save(member, folder / f"file_{index}.pt")


if __name__ == "__main__":
    main()
