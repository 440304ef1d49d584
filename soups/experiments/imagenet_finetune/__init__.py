"""Fine-tune a pool on ImageNet by the published random search."""

from soups.experiments.imagenet_finetune.run import run as run
