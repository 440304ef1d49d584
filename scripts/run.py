"""Run an experiment: python scripts/run.py --config configs/digits.py [--workdir runs/digits] [--config.seeds=3].

On several hosts, the same command on each, with one workdir that all of them see: --coordinator=auto on a TPU pod or
under SLURM, elsewhere --coordinator=HOST:PORT --processes=4 --process=0 (to 3).
"""

import importlib
import os
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from soups.cli.environment import preferred
from soups.experiments import EXPERIMENTS, OF_SEVERAL_PROCESSES
from soups.names import check_name

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run, where the same command goes on; runs/NAME.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "For several hosts: HOST:PORT of the first one, or auto.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are, with --coordinator=HOST:PORT.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0, with --coordinator=HOST:PORT.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the log of the libraries, and a traceback where something fails.")
flags.mark_flag_as_required("config")


def main(argv):
    """Run the experiment and turn what the user did wrong into one line."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.INFO if _DEBUG.value else logging.WARNING)
    for name, value in preferred(os.environ).items():
        jax.config.update(name, value)
    try:
        _connect()
        config = _CONFIG.value.to_dict()
        experiment = check_name(config.get("experiment"), EXPERIMENTS, "experiment")
        if jax.process_count() > 1 and experiment not in OF_SEVERAL_PROCESSES:
            raise ValueError(f"{experiment} runs in one process; in several run {', '.join(OF_SEVERAL_PROCESSES)}")
        workdir = _WORKDIR.value or os.path.join("runs", config["name"])
        importlib.import_module(f"soups.experiments.{experiment}").run(config, workdir)
    except (ValueError, OSError) as error:
        if _DEBUG.value:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _connect():
    if (_PROCESSES.value is None) != (_PROCESS.value is None):
        raise ValueError("--processes and --process go together: how many there are, and which of them this is")
    if _COORDINATOR.value is None:
        if _PROCESSES.value is not None:
            raise ValueError("several processes need --coordinator=HOST:PORT, the address of the first one")
    elif _COORDINATOR.value == "auto":
        jax.distributed.initialize()
    elif _PROCESSES.value is None:
        raise ValueError("--coordinator=HOST:PORT needs --processes and --process")
    else:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)


if __name__ == "__main__":
    app.run(main)
