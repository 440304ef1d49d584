"""Fine-tune members side by side in one of two processes with three devices: ID PORT FOLDER; see test_lanes.py."""

import pathlib
import shutil
import sys

import jax
import killed_run
import numpy as np
from jax.sharding import AxisType, Mesh

from soups import tree
from soups.data import array_source, loader
from soups.processes import on_first_process
from soups.train import Exchange, Training, fit_workers, lanes, loop, param_shardings, step

ROOT = pathlib.Path(__file__).parents[2]
PLAIN = Training(loss=killed_run.LOSS, clip_norm=1.0)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # slower, and there sooner
MEMBERS = {
    "short": {"learning_rate": 0.03, "weight_decay": 0.1, "mixup": 0.4, "seed": 5, "num_steps": 4},
    "long": {"learning_rate": 0.01, "weight_decay": 0.3, "label_smoothing": 0.1, "seed": 6, "num_steps": 7},
}
MESH = (3, 2, 1)  # of two processes each has a lane of its own, and both share one
BATCH, SAVE_EVERY = 12, 3


def mesh_of(*sizes):
    """Return a mesh ("pool", "data", "model") of the first devices."""
    devices = np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes)
    return Mesh(devices, ("pool", "data", "model"), axis_types=(AxisType.Auto,) * 3)


def make_loader(name, index=0, count=1):
    """Load a part of a member's batches of 20 images, so that epochs end within batches."""
    rng = np.random.default_rng(1)
    source = array_source(rng.integers(0, 256, (20, 4, 4, 3)).astype(np.uint8), np.arange(20) % killed_run.CLASSES)
    seed = MEMBERS[name]["seed"]
    return loader(source, BATCH, seed=seed, process_index=index, process_count=count, num_threads=0)


def placed_on(mesh):
    """Cut every weight that the devices of a member divide."""
    return {"mesh": mesh, "shardings": param_shardings(killed_run.start_weights(), mesh, min_size=16)}


def train_group(placement, make_loader, members, directory, **options):
    """Train one group of members side by side, and give their state as one."""
    params, options = killed_run.start_weights(), {"save_every": SAVE_EVERY} | options
    data, members = loop.prepared(placement.training, params, make_loader, members, None)
    return loop.run(placement, params, members, data, directory=directory, **options)[0]


def run(directory, placement, members=MEMBERS, make_loader=make_loader, **options):
    """Train the members, as many side by side as there is room for, and give their states on the host, by name."""
    states = {}
    for group in lanes.groups_of({name: one["num_steps"] for name, one in members.items()}, placement.count):
        own = {name: members[name] for name in group}
        state = train_group(placement, make_loader, own, directory / group[0], **options)
        states |= {name: lanes.take_lane(state, lane) for lane, name in enumerate(group)}
    return states


def train_workers(**place):
    """Train two workers that average their weights after every second step."""
    start, options = killed_run.start_weights(), {"learning_rate": 0.03, "mixup": 0.4}
    data = lambda worker, *part: make_loader(list(MEMBERS)[worker], *part)  # noqa: E731
    return fit_workers(PLAIN, start, data, exchange=Exchange(every=2), steps=3, hyperparameters=options, **place)


def main():
    """Do what each of the two processes does."""
    process, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
    jax.config.update("jax_num_cpu_devices", 3)
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    step.cpu_options = lambda statistics: QUICK
    mesh = mesh_of(*MESH)
    print(f"loads {sorted(lanes.lane_shares(mesh).items())}", flush=True)
    placement = lanes.Lanes(PLAIN, killed_run.start_weights(), **placed_on(mesh))
    run(folder, placement)
    on_first_process(lambda: shutil.rmtree(max(folder.glob("*/step_*"))))  # as if killed before the last checkpoint
    states = run(folder, placement)
    leaves = {f"{name}/{leaf}": x for name in states for leaf, x in tree.flatten(states[name]["params"]).items()}
    np.savez(folder / f"states_{process}.npz", **leaves)
    np.savez(folder / f"workers_{process}.npz", **tree.flatten(train_workers(mesh=mesh_of(2, 3, 1))))
    try:
        lanes.lane_shares(mesh_of(1, 3, 2))
    except ValueError as error:
        print(f"refused: {error}", flush=True)


if __name__ == "__main__":
    main()
