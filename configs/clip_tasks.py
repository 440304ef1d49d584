"""Merge CLIPs that were fine-tuned on eight image sets, each under the zero-shot head of its classes, into one.

With the sets in folders of DATA as `soups.data.clip_sets.CLIP_SETS` says, OpenAI's ViT-B/32 and its vocabulary in CLIP,
and fine-tuned image encoders in MEMBERS/Cars/finetuned.pt, ...:

    python scripts/run.py --config configs/clip_tasks.py --workdir runs/clip --config.data_dir=DATA \
        --config.start=CLIP/ViT-B-32.pt --config.tokenizer=CLIP --config.members=MEMBERS/{task}/finetuned.pt

The published scales are 0.3 of task arithmetic and of TIES's sum; one of the eight may be left out of `config.tasks`
and be the ninth instead.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

SCALES = (0.1, 0.2, 0.3, 0.4, 0.5)


def get_config() -> ConfigDict:
    """Return the config of the experiment."""
    config = ConfigDict()
    config.study = config.name = "clip_tasks"
    config.seeds = 1
    config.data_dir = placeholder(str)
    config.tasks = ("Cars", "DTD", "EuroSAT", "GTSRB", "MNIST", "RESISC45", "SUN397", "SVHN")
    config.ninth = placeholder(str)  # a set that no member knows, under its zero-shot head
    config.arch = "clip-vit-b32"
    config.start = placeholder(str)  # a CLIP with both towers
    config.tokenizer = placeholder(str)  # a folder with its vocabulary
    config.members = placeholder(str)  # files of fine-tuned image encoders, with {task} for the name of a set
    config.splits = ConfigDict(dict(most=1024, most_held_out=500, most_test=2000))  # images of each set
    config.examples = ConfigDict(dict(few=128, batch_size=16))  # of each set, for the methods that take examples
    config.evaluate = ConfigDict(dict(batch_size=100))
    # the values of each method's settings that are compared on held-out data
    config.methods = ConfigDict(
        {
            "uniform": {},
            "task_arithmetic": dict(scale=SCALES),
            "ties": dict(density=(0.2,), scale=(0.5, 1.0, 2.0, 3.0)),
            "consensus": dict(threshold=(0.4,), votes=(2,), scale=SCALES),
            "tsv_merge": dict(scale=(0.3, 0.5, 1.0)),
            "iso_c": dict(scale=(0.5, 1.0, 1.5)),
            "regmean": dict(alpha=(0.5, 0.9)),
            "fisher_empirical": dict(normalize=(False, True)),
            "adamerging": dict(steps=(500,), learning_rate=(1e-3,), initial=(0.3,)),
            "adamerging_per_leaf": dict(steps=(500,), learning_rate=(1e-3,), initial=(0.3,)),
            "localize_dataless": dict(density=(0.05, 0.1)),
            "localize_and_stitch": dict(density=(1e-5, 0.1), epochs=(10,), learning_rate=(1e7,), l1_strength=(1.0,)),
            "tall_masks": dict(threshold=(0.2, 0.4, 0.6)),
            "emr": {},
        }
    )
    return config
