"""Configure both ImageNet experiments for a miniature of the data; the tests and their processes import it."""

import copy
import pathlib
import runpy

import numpy as np

from soups.models.architectures import architecture

ROOT = pathlib.Path(__file__).parents[2]

ARCH, CLASSES = "clip-vit-mini", 20
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # slower, and there sooner
MAIN_ROWS = [  # of one random order and with ½ on the path
    "best member",
    "best member on the shifts",
    "mean member",
    "uniform soup",
    "greedy soup",
    "greedy soup, random order 1",
    "learned soup",
    "learned soup, per leaf",
    "ensemble",
    "greedy ensemble",
    "WiSE-FT, α by held-out",
    "WiSE-FT, α = 0.5",
]


def make_folder(folder):
    """Write data/, as released, and clip.pt, a CLIP in OpenAI's names whose towers are random."""
    from imagenet_miniature import make_data
    from miniature import tensors, torch_zip

    make_data(folder / "made")
    (folder / "made" / "data").rename(folder / "data")
    rng, network = np.random.default_rng(0), architecture(ARCH)
    weights = tensors.random_weights(network.abstract(None), rng)
    text = tensors.text_tensors(514, network.text.width, network.text.depth, network.feature_dim, rng)
    torch_zip.write_state_dict(folder / "clip.pt", tensors.clip_tensors(weights, text))
    return folder


def default_config(name):
    return runpy.run_path(ROOT / "configs" / "imagenet" / f"{name}.py")["get_config"]().to_dict()


def changed(config, changes):
    """Change fields by name, such as "finetune.mesh"."""
    config = copy.deepcopy(config)
    for name, value in changes.items():
        section, _, field = name.rpartition(".")
        (config[section] if section else config)[field] = value
    return config


def finetune_config(folder):
    config = default_config("clip_vit_b32_finetune")
    config |= {"data_dir": str(folder / "data"), "start": str(folder / "clip.pt"), "arch": ARCH}
    config["probe"] = {"strengths": (1.0, 100.0), "max_iterations": 20}
    config["finetune"] |= {"batch_size": 128, "save_every": 2, "num_threads": 0, "num_workers": 0, "dtype": "float32"}
    # a norm that is never reached: over the shards of several processes it is added up in another order
    config["finetune"] |= {"mesh": (2, -1, 1), "shard": True, "clip_norm": 1e6, "ema_decays": (0.0, 0.9)}
    config["finetune"]["sam_radius"] = 0.05
    config["sweep"] |= {"members": 2, "epochs": (1, 1), "learning_rate": (1e-4, 1e-3)}
    config["evaluate"]["batch_size"] = 20  # on four devices the only size of a batch, whatever the set: one compilation
    return config


def soups_config(folder, pool):
    config = default_config("clip_vit_b32_soups")
    config |= {"data_dir": str(folder / "data"), "arch": ARCH, "pool": str(pool)}
    config["evaluate"]["batch_size"] = 20
    config["greedy"]["random_orders"] = 1
    config["learned"] |= {"epochs": 1, "batch_size": 80}
    config["wise_ft"]["alphas"] = (0.0, 0.5, 1.0)
    return config
