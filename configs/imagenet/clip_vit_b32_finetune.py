"""Fine-tune a pool of CLIP ViT-B/32 on ImageNet as the published one was: linear probe, then a random search.

    python scripts/run.py --config configs/imagenet/clip_vit_b32_finetune.py --config.data_dir=DATA \\
        --config.start=CLIP.pt

CLIP.pt is OpenAI's ViT-B/32 (or a safetensors file of it). It ends with the command that cooks from the pool. To start
from a zero-shot head instead of a probe: --config.start=OUT of soups zero-shot and --config.probe.strengths="()".

The ranges are those that the released hyper-parameters of the 71 fine-tunings lie in; the paper's appendix J.2.1 was
not at hand, so whether they were drawn so is not certain. "rand-m12-n1" is timm's policy, which takes magnitudes above
10 as 10. Batch size 512 is not certain either: the released finetune.py takes 256.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Return the config of the experiment."""
    config = ConfigDict()
    config.study = "imagenet_finetune"
    config.name = "clip_vit_b32_finetune"
    config.seed = 0  # of the search; each member has a seed of its own
    config.data_dir = placeholder(str)  # holds imagenet/
    config.cache_dir = placeholder(str)  # of the decoded held-out images, 3.9 GB; default: decoded/ beside the workdir
    config.arch = "clip-vit-b32"
    config.start = placeholder(str)  # a published checkpoint, or one of soups zero-shot

    # logistic regression for each C, the best on held-out data is the head; none: the head of the start weights
    config.probe = ConfigDict(dict(strengths=(1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0), max_iterations=200))

    config.finetune = ConfigDict(dict(batch_size=512, accumulate=1, clip_norm=1.0, warmup_steps=500, save_every=1000))
    config.finetune.dtype = "bfloat16"  # of the computation; weights stay in float32
    config.finetune.remat = False  # compute activations again in the backward pass, to save memory
    # devices on the axes "pool" (members that are trained side by side), "data" (-1: all that are left) and "model"
    config.finetune.mesh = (1, -1, 1)
    config.finetune.shard = False  # cut a member's weights and optimizer state over its devices
    config.finetune.sam_radius = 0.0  # above 0: sharpness-aware minimisation, at twice the cost
    config.finetune.ema_decays = ()  # such as (0.999, 0.9999999): each has a pool of its own beside that of the members
    config.finetune.num_threads = 8  # in each worker
    config.finetune.num_workers = 8  # processes on each host that decode and augment, shared by the members on it

    config.sweep = ConfigDict(dict(members=71, learning_rate=(1e-6, 1e-4), weight_decay=(1e-4, 10**-0.2)))
    config.sweep.label_smoothing = (0.0, 0.25)  # with probability 1/2, else none
    config.sweep.mixup = (0.0, 0.9)  # with probability 1/2, else none
    config.sweep.epochs = (4, 16)
    config.sweep.minimal = 1 / 3  # probability of a random crop alone
    config.sweep.magnitude = (0, 20)
    config.sweep.operations = (0, 2)
    config.evaluate = ConfigDict(dict(batch_size=1000))
    return config
