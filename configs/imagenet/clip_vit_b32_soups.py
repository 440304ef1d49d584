"""Reproduce the published model soups: 72 CLIP ViT-B/32 on ImageNet and five shifts.

    soups pool import --arch clip-vit-b32 --pool runs/clip72/pool MODEL_DIR/model_*.pt
    python scripts/run.py --config configs/imagenet/clip_vit_b32_soups.py --config.data_dir=DATA

or, with the files as they lie, instead of the first command `--config.pool= --config.models='MODEL_DIR/model_*.pt'`.
docs/imagenet.md says what DATA holds, how long it takes and which numbers to expect.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

SETS = ("held_out", "imagenet", "imagenet_v2", "imagenet_sketch", "imagenet_r", "objectnet", "imagenet_a")


def get_config() -> ConfigDict:
    """Return the config of the experiment."""
    config = ConfigDict()
    config.study = "imagenet_soups"
    config.name = "clip_vit_b32_soups"
    config.seed = 0  # of the random orders and of the learned soups' batches
    config.data_dir = placeholder(str)  # holds imagenet/ and the shifts
    config.cache_dir = placeholder(str)  # of the decoded sets, 29 GB; default: decoded/ beside the workdir
    config.arch = "clip-vit-b32"
    config.pool = "runs/clip72/pool"
    config.models = ""  # a glob of checkpoint files, to use them in place instead of a pool
    config.sets = SETS
    config.cook = ("uniform", "greedy", "learned", "ensembles", "wise_ft")

    # float32: the precision of the published numbers; tensorfloat32 and bfloat16 are faster and change some images
    config.evaluate = ConfigDict(dict(batch_size=1000, precision="float32"))
    # in which the host keeps members; auto: bfloat16 if half the free memory holds all of them only so, else float32
    config.evaluate.members_dtype = "auto"
    config.greedy = ConfigDict(dict(random_orders=3))
    config.learned = ConfigDict(dict(learning_rate=0.05, epochs=5, batch_size=256))
    # base "": the first member (model_0, the linear probe); member "": the best other one on held-out data
    config.wise_ft = ConfigDict(dict(base="", member="", alphas=tuple(i / 10 for i in range(11))))
    return config
