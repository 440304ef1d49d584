"""Walk from zero-shot CLIP ViT-L/14 to its fine-tuning (WiSE-FT), with the released pair of checkpoints.

    python scripts/run.py --config configs/imagenet/wise_ft_vit_l14.py --config.data_dir=DATA \\
        --config.models='MODEL_DIR/*-vit-l14.pt'

The files are zero-shot-vit-l14.pt and checkpoint-4-vit-l14.pt. Published: ImageNet 75.5, 85.5 and, at α = 0.75, 86.0 %.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the config of the experiment."""
    config = runpy.run_path(pathlib.Path(__file__).with_name("clip_vit_b32_soups.py"))["get_config"]()
    config.name = "wise_ft_vit_l14"
    config.arch = "clip-vit-l14"
    config.pool = ""
    config.models = ""
    config.cook = ("wise_ft",)
    config.evaluate.batch_size = 250
    config.wise_ft.update(base="zero-shot-vit-l14", member="checkpoint-4-vit-l14")
    config.wise_ft.alphas = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0)
    return config
