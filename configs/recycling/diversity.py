"""Ask whether diverse members gain more by their average, and whether members of one parent lie in one basin.

    python scripts/build_domains.py data
    python scripts/run.py --config configs/recycling/diversity.py --workdir runs/diversity --config.data_dir=data

Sets, network and protocol are those of configs/recycling/domainbed.py.
"""

import pathlib

from ml_collections import ConfigDict

from soups.plugins import load_plugin


def get_config() -> ConfigDict:
    """Return the config of the experiment."""
    config = load_plugin(pathlib.Path(__file__).with_name("domainbed.py")).get_config()
    config.study = config.name = "diversity"
    with config.unlocked():
        for name in ("about", "leave_one_out", "fusing", "methods", "fisher"):
            del config[name]
        config.pairs = ConfigDict(dict(barrier_ts=(0.25, 0.5, 0.75)))  # places on the paths between two members
    config.runs.members = 5
    return config
