"""Fine-tune a pool of AugReg ViT-B/16 on ImageNet from its .npz file.

    python scripts/run.py --config configs/imagenet/augreg_vit_b16_finetune.py --config.data_dir=DATA \\
        --config.start=AUGREG.npz

AUGREG.npz is a checkpoint of vision_transformer or big_vision that was pre-trained on ImageNet-21k; the linear probe
replaces its head. Learning rates are higher than CLIP's; no search of them was done here.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the config of clip_vit_b32_finetune.py, changed for this network."""
    config = runpy.run_path(pathlib.Path(__file__).with_name("clip_vit_b32_finetune.py"))["get_config"]()
    config.name = "augreg_vit_b16_finetune"
    config.arch = "vit-b16"
    config.finetune.accumulate = 2
    config.sweep.learning_rate = (3e-6, 3e-4)
    return config
