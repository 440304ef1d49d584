"""Ask whether diverse members gain more by their average, and whether members of one parent lie in one basin.

    python scripts/build_domains.py data
    python scripts/run.py --config configs/recycling/diversity.py --workdir runs/diversity --config.data_dir=data

Sets, network and protocol are those of configs/recycling/domainbed.py.
"""

import importlib.util
import pathlib

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Return the config of the experiment."""
    spec = importlib.util.spec_from_file_location("domainbed", pathlib.Path(__file__).with_name("domainbed.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.study = config.name = "diversity"
    with config.unlocked():
        for name in ("about", "leave_one_out", "fusing", "methods", "fisher"):
            del config[name]
        config.pairs = ConfigDict(dict(barrier_ts=(0.25, 0.5, 0.75)))  # places on the paths between two members
    config.runs.members = 5
    return config
