"""Describe the default experiment with everything small, and with every step that the study has, for the tests."""

import importlib.util
import pathlib

_DIGITS = pathlib.Path(__file__).parents[2] / "configs" / "digits.py"


def get_config():
    """Change the sizes of configs/digits.py, pre-train a small network, and add the steps that it leaves out."""
    spec = importlib.util.spec_from_file_location("digits", _DIGITS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.task.update(image_size=14, num_train=64, num_held_out=100, num_test=100, natural_shift_size=60)
    config.task.update(num_shifted=100, printed=False)
    with config.unlocked(), config.task.unlocked():
        config.task.shifts = {"rotation": (3,), "noise": (3,)}
        config.model = {"name": "vit", "patch_size": 7, "width": 16, "depth": 1, "mlp_dim": 16, "num_heads": 2}
        config.pretrain = {"learning_rate": 2e-3, "weight_decay": 5e-2, "epochs": 2}
        config.pretrain.update(augment_operations=2, augment_magnitude=15.0)
        config.sam = {"members": 2, "radius": 0.05}
        config.trajectory = {"ema_decay": 0.99, "swa_start": 0.5}
    config.finetune.update(batch_size=32, members_per_program=2)
    rows = ("start weights", "best member", "uniform soup", "greedy soup", "ensemble")
    with config.unlocked():
        config.about = {"shows": "It is small.", "minutes": 0.5, "rows": rows, "command": "bash small.sh", "next": ()}
    config.probe.epochs = 3
    config.sweep.update(members=5, epochs=(2, 5), learning_rate=(1e-3, 1e-2))
    config.random_head.members = 2
    config.greedy.random_orders = 2
    config.learned.update(epochs=1, batch_size=50)
    config.wise_ft.alphas = (0.0, 0.5, 1.0)
    config.figures.update(counts=(1, 3), plane_points=3, plane_examples=50, pairs_members=3, barrier_ts=(0.5,))
    return config
