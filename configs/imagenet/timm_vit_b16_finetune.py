"""Fine-tune a pool of timm's ViT-B/16 on ImageNet from its safetensors file.

    python scripts/run.py --config configs/imagenet/timm_vit_b16_finetune.py --config.data_dir=DATA \\
        --config.start=model.safetensors

model.safetensors is that of timm's vit_base_patch16_224, whose head the linear probe replaces. For a folder of
Hugging Face add --config.arch=hf-vit-b16. No search of the learning rates was done here.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the config of clip_vit_b32_finetune.py, changed for this network."""
    config = runpy.run_path(pathlib.Path(__file__).with_name("clip_vit_b32_finetune.py"))["get_config"]()
    config.name = "timm_vit_b16_finetune"
    config.arch = "timm-vit-b16"
    config.finetune.accumulate = 2
    config.sweep.learning_rate = (3e-6, 3e-4)
    return config
