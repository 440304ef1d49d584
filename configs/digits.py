"""Fine-tune a pool on real handwritten digits and cook soups from it.

python scripts/run.py --config configs/digits.py --workdir runs/digits
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Give the config of the default experiment."""
    config = ConfigDict()
    config.name = "digits"
    config.seeds = 1  # repetitions of everything, pre-training included

    config.task = ConfigDict()
    config.task.target = "mnist_5k"
    config.task.image_size = 28
    config.task.num_train = 1000
    config.task.num_held_out = 1500
    config.task.num_test = 1500
    config.task.natural_shift_size = 500
    config.task.shifts = ConfigDict(
        {
            "rotation": (2, 4),
            "noise": (2, 4),
            "blur": (2, 4),
            "translation": (2, 4),
            "contrast": (2, 4),
            "occlusion": (2, 4),
        }
    )

    config.model = ConfigDict()
    config.model.patch_size = 7
    config.model.width = 64
    config.model.depth = 3
    config.model.mlp_dim = 128
    config.model.num_heads = 4
    config.model.pool_type = "gap"

    config.finetune = ConfigDict()
    config.finetune.batch_size = 64
    config.finetune.clip_norm = 1.0
    config.finetune.mode = "auto"
    config.finetune.members_per_program = 4

    config.pretrain = ConfigDict(dict(learning_rate=2e-3, weight_decay=5e-2, epochs=300, augment_operations=2))
    config.pretrain.augment_magnitude = 15.0
    config.probe = ConfigDict(dict(learning_rate=1e-2, weight_decay=0.0, epochs=10))

    config.sweep = ConfigDict()
    config.sweep.members = 24
    config.sweep.learning_rate = (5e-4, 2e-3)
    config.sweep.weight_decay = (1e-4, 1e-1)
    config.sweep.label_smoothing = (0.0, 0.25)
    config.sweep.mixup = (0.0, 0.9)
    config.sweep.augment_operations = (0, 2)
    config.sweep.augment_magnitude = (0.0, 20.0)
    config.sweep.epochs = (20, 40)

    config.sam = ConfigDict(dict(members=6, radius=0.05))
    config.trajectory = ConfigDict(dict(ema_decay=0.99, swa_start=0.5))
    config.greedy = ConfigDict(dict(random_orders=3))
    config.learned = ConfigDict(dict(learning_rate=0.05, epochs=5, batch_size=128))
    config.wise_ft = ConfigDict(dict(alphas=tuple(i / 10 for i in range(11))))
    config.evaluate = ConfigDict(dict(batch_size=500))
    config.figures = ConfigDict(dict(counts=(1, 2, 3, 4, 6, 8, 12, 16, 20), plane_points=17, plane_examples=500))
    config.figures.pairs_members = 8
    config.figures.barrier_ts = (0.25, 0.5, 0.75)
    return config
