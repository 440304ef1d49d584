"""Fuse networks that were fine-tuned on other sets into a better start for each set, and ask which of them to fuse.

    python scripts/build_domains.py data
    python scripts/run.py --config configs/recycling/fusing.py --workdir runs/fusing --config.data_dir=data

Each of `config.dataset` and `config.auxiliary` is the target in turn, and the others are its sources. Network and sets
are those of configs/recycling/domainbed.py.
"""

import pathlib

from ml_collections import ConfigDict

from soups.plugins import load_plugin


def get_config() -> ConfigDict:
    """Return the config of the experiment."""
    config = load_plugin(pathlib.Path(__file__).with_name("domainbed.py")).get_config()
    config.study = config.name = "fusing"
    with config.unlocked():
        for name in ("about", "leave_one_out", "fusing", "methods", "fisher", "test_domains"):
            del config[name]
        del config.auxiliary_runs.members
        config.cold = ConfigDict(dict(rounds=3, steps=30))  # of ColD fusion
        config.joint = ConfigDict(dict(steps=100))  # of multi-task learning
        config.weight_decays = (0.0, 1e-2)  # on the way to the trunks, and of what is fine-tuned from them
    config.runs.update(members=1, steps=50)
    return config
