"""Fine-tune on the miniature and cook from the pool in one of two processes: ID PORT FOLDER; see test_imagenet.py."""

import pathlib
import sys

import jax
from imagenet_small import QUICK, ROOT, changed, finetune_config, soups_config

from soups import Pool, processes
from soups.report import page
from soups.studies import imagenet_finetune, imagenet_soups
from soups.train import step


def main():
    """Do what each of the two processes does."""
    process, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    step.cpu_options = lambda statistics: QUICK
    page.draw_all = lambda results: []
    processes._AT_ONCE = 2**12  # so that what the first process reads goes to the other in several parts
    config = finetune_config(folder)
    try:
        imagenet_finetune.run(config | ({"data_dir": "/nowhere"} if process else {}), folder / "both" / "refused")
    except (ValueError, OSError) as error:
        print(f"refused: {error}", flush=True)
    imagenet_finetune.run(changed(config, {"sweep.members": 0}), folder / "both" / "probe")
    # over four devices of two processes the probe's sums have another order: the members are made from that of one
    pool = Pool(folder / "finetune" / "pool")
    first = pool.path / pool.record("member_00")["path"]
    imagenet_finetune.run(changed(config, {"start": str(first), "probe.strengths": ()}), folder / "both" / "finetune")
    imagenet_soups.run(soups_config(folder, folder / "both" / "finetune" / "pool"), folder / "both" / "soups")


if __name__ == "__main__":
    main()
