"""Fine-tune CLIP ViT-L/14 on ImageNet as WiSE-FT does; then walk back with wise_ft_vit_l14.py.

    python scripts/run.py --config configs/imagenet/clip_vit_l14_finetune.py --config.data_dir=DATA \\
        --config.start=ZERO_SHOT

ZERO_SHOT is what soups zero-shot made of OpenAI's ViT-L/14: there is no linear probe. Learning rate 3e-5, decay
0.1, 10 epochs, batch 512, crops of 90 to 100 %: Wortsman et al., "Robust fine-tuning of zero-shot models", 2021,
arXiv 2109.01903, appendix D.2. Two members that differ in their seeds.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the config of clip_vit_b32_finetune.py, changed for this network."""
    config = runpy.run_path(pathlib.Path(__file__).with_name("clip_vit_b32_finetune.py"))["get_config"]()
    config.name = "clip_vit_l14_finetune"
    config.arch = "clip-vit-l14"
    config.probe.strengths = ()
    config.finetune.update(accumulate=4, remat=True, shard=True)
    config.sweep.update(members=2, learning_rate=(3e-5, 3e-5), weight_decay=(0.1, 0.1), epochs=(10, 10))
    config.sweep.update(label_smoothing=(0.0, 0.0), mixup=(0.0, 0.0), minimal=1.0)
    config.evaluate.batch_size = 250
    return config
