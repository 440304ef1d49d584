"""Fine-tune a pool of CLIP ViT-B/16 on ImageNet, by the search of clip_vit_b32_finetune.py.

    python scripts/run.py --config configs/imagenet/clip_vit_b16_finetune.py --config.data_dir=DATA \\
        --config.start=CLIP.pt

CLIP.pt is OpenAI's ViT-B/16. No pool of it was published.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the config of clip_vit_b32_finetune.py, changed for this network."""
    config = runpy.run_path(pathlib.Path(__file__).with_name("clip_vit_b32_finetune.py"))["get_config"]()
    config.name = "clip_vit_b16_finetune"
    config.arch = "clip-vit-b16"
    config.finetune.accumulate = 2
    return config
