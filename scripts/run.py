"""Run an experiment: python scripts/run.py --config configs/digits.py --workdir runs/digits [--config.seeds=3]."""

import os
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; the same command goes on where it was.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the log of the libraries, and a traceback where something fails.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv):
    """Run the experiment and turn what the user did wrong into one line."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.INFO if _DEBUG.value else logging.WARNING)
    # one device for each core lets a sweep train that many members side by side; ignored where there is an accelerator
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    jax.config.update("jax_compilation_cache_dir", os.path.abspath(".cache/jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    from soups.experiments import finetune_and_soup

    try:
        finetune_and_soup.run(_CONFIG.value.to_dict(), _WORKDIR.value)
    except (ValueError, OSError) as error:
        if _DEBUG.value:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
