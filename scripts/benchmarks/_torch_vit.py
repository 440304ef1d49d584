"""Train the benchmark's ViT in PyTorch, on command: run by train_step_torch.py with an interpreter that has torch.

`_torch_serve.serve` says what it reads, says and obeys.
"""

import numpy as np
import torch
import torch.nn.functional as F
from _torch_serve import serve, stepper
from torch import nn

CHECKED_STEPS = 5


class Block(nn.Module):
    """An encoder block; one matrix product for query, key and value, and torch's own attention kernel."""

    def __init__(self, width, mlp_dim, heads):
        super().__init__()
        self.heads = heads
        self.norm_0, self.norm_1 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense_0, self.dense_1 = nn.Linear(width, mlp_dim), nn.Linear(mlp_dim, width)

    def forward(self, x):
        """Map tokens [B, T, D] to [B, T, D]."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm_0(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.out(mixed)
        return x + self.dense_1(F.gelu(self.dense_0(self.norm_1(x)), approximate="tanh"))


class ViT(nn.Module):
    """The network of soups.models.ViT with pool_type "gap", for images of one channel."""

    def __init__(self, settings):
        super().__init__()
        self.patch, width, side = settings["patch_size"], settings["width"], settings["image_size"]
        tokens = (side // self.patch) ** 2
        self.embedding = nn.Linear(self.patch**2, width)
        self.position = nn.Parameter(torch.zeros(1, tokens, width))
        blocks = [Block(width, settings["mlp_dim"], settings["num_heads"]) for _ in range(settings["depth"])]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, settings["num_classes"])

    def forward(self, images):
        """Map bytes [B, H, W, 1] to logits [B, classes]."""
        batch, height, width, _ = images.shape
        x = images.float() / 255
        x = x.view(batch, height // self.patch, self.patch, width // self.patch, self.patch).transpose(2, 3)
        x = self.embedding(x.reshape(batch, -1, self.patch**2)) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


def load(model, weights):
    """Copy weights with big_vision's names into the model."""

    def dense(layer, name, inputs):
        names = name if isinstance(name, list) else [name]
        kernels = [weights[f"{n}/kernel"].reshape(inputs, -1) for n in names]
        layer.weight.copy_(torch.tensor(np.concatenate(kernels, 1).T))
        layer.bias.copy_(torch.tensor(np.concatenate([weights[f"{n}/bias"].ravel() for n in names])))

    def norm(layer, name):
        layer.weight.copy_(torch.tensor(weights[f"{name}/scale"]))
        layer.bias.copy_(torch.tensor(weights[f"{name}/bias"]))

    with torch.no_grad():
        dense(model.embedding, "embedding", model.patch**2)
        model.position.copy_(torch.tensor(weights["pos_embedding"]))
        for index, block in enumerate(model.blocks):
            name = f"Transformer/encoderblock_{index}"
            attention, width = f"{name}/MultiHeadDotProductAttention_0", block.out.in_features
            norm(block.norm_0, f"{name}/LayerNorm_0")
            norm(block.norm_1, f"{name}/LayerNorm_1")
            dense(block.qkv, [f"{attention}/{part}" for part in ("query", "key", "value")], width)
            dense(block.out, f"{attention}/out", width)
            dense(block.dense_0, f"{name}/MlpBlock_0/Dense_0", width)
            dense(block.dense_1, f"{name}/MlpBlock_0/Dense_1", block.dense_1.in_features)
        norm(model.norm, "Transformer/encoder_norm")
        dense(model.head, "head", model.head.in_features)


def tasks(file, settings, *, compiled, fused):
    """Return the task of a variant."""
    model = ViT(settings)
    load(model, file)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": settings["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    kernels = {"fused": True} if fused else {"foreach": True}
    optimizer = torch.optim.AdamW(groups, lr=settings["learning_rate"], **kernels)
    forward = torch.compile(model) if compiled else model
    images, labels = torch.tensor(file["images"]), torch.tensor(file["labels"]).long()
    smoothing, limit = settings["label_smoothing"], settings["clip_norm"]
    train = stepper(
        lambda: F.cross_entropy(forward(images), labels, label_smoothing=smoothing),
        optimizer,
        lambda: nn.utils.clip_grad_norm_(model.parameters(), limit, foreach=True),
    )
    return {"train": train}


if __name__ == "__main__":
    variants = {
        "torch": {"compiled": False, "fused": True},
        "torch, foreach AdamW": {"compiled": False, "fused": False},
        "torch.compile": {"compiled": True, "fused": True},
    }
    serve(tasks, variants, CHECKED_STEPS)
