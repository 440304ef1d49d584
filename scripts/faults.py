"""Kill processes at random places, over and over, and see that nothing is lost: run by hand, for as long as one likes.

    python scripts/faults.py train --rounds 20 --processes 2
    python scripts/faults.py queue --kills 20 --processes 4
    python scripts/faults.py spread

`train` starts a run of several JAX processes with two devices each, kills one of them (SIGKILL), or tells one to end
(SIGTERM), after a random time, waits for the others to end, and gives the same command again, in turn, until the rounds
are over and the run has ended well; its weights and losses must be those of a run that nothing disturbed, to the bit.
`queue` lets processes make members that each take a moment, kills one of them again and again, and starts another in
its place; in the end each member must be there once, as the formula has it. With --elsewhere they take each other for
processes of other hosts, whose claims end with their leases. `spread` trains one network on four devices of one, two
and four processes, and once is told to end on two and goes on with one; it says which weights are the same bits, and
fails where two are farther apart than rounding. What was seen is printed as JSON, and the exit code is 1
if anything is wrong.
"""

import argparse
import itertools
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter

import numpy as np

STEPS, LEASE = 60, 3.0


def main() -> int:
    """Run one of the trials, or what a process of one does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", choices=["train", "queue", "spread", "train-worker", "queue-worker"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6, help="of train: how often something is killed")
    parser.add_argument("--kills", type=int, default=8, help="of queue")
    parser.add_argument("--members", type=int, default=24, help="of queue")
    parser.add_argument("--elsewhere", action="store_true", help="of queue: no process knows whether another runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--devices", type=int, default=2, help="of a process that trains")
    parser.add_argument("--port")
    options = parser.parse_args()
    if options.trial.endswith("-worker"):
        {"train-worker": train_worker, "queue-worker": queue_worker}[options.trial](options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        options.folder = options.folder or pathlib.Path(folder)
        found = {"train": train, "queue": queue, "spread": spread}[options.trial](options, random.Random(options.seed))
    print(json.dumps(found, indent=1))
    return int(bool(found["wrong"]))


def start(options, kind, log, **more):
    """Start a process of a trial, whose output goes to a file."""
    words = [sys.executable, __file__, f"{kind}-worker", f"--processes={options.processes}"]
    words += [f"--devices={options.devices}"]
    words += [f"--{name}={value}" for name, value in more.items()]
    words += [f"--members={options.members}"] + ["--elsewhere"] * options.elsewhere
    with open(log, "a") as file:
        return subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)


# --- Processes that train one network ---------------------------------------------------------------------------------


def train(options, chance):
    """Disturb a run again and again, and compare what it finds with what an undisturbed one does."""
    found = Counter()
    seen = {"rounds": [], "wrong": []}
    calm, run = options.folder / "calm", options.folder / "run"
    assert set(together(options, calm)[0]) == {0}
    while True:
        disturb = None
        if len(seen["rounds"]) < options.rounds:
            disturb = chance.choice([signal.SIGKILL, signal.SIGTERM]), chance.randrange(options.processes)
        codes, waited, named, step = together(options, run, disturb, chance.uniform(0, 2.5))
        if disturb is None or set(codes) == {0}:
            break
        kind = disturb[0].name
        found[kind] += 1
        told = {"signal": kind, "to": disturb[1], "codes": codes, "seconds": round(waited, 2), "kept": step}
        seen["rounds"].append(told | {"named": named})
        if waited > (60 if disturb[0] == signal.SIGKILL else 30):
            seen["wrong"].append(f"the others took {waited:.0f} s to end after {kind}")
    for name in ("made.npz", "losses.npy"):
        one, other = (np.load(place / name) for place in (calm, run))
        pairs = [(one, other)] if name == "losses.npy" else [(one[leaf], other[leaf]) for leaf in one.files]
        if not all(np.array_equal(*pair) for pair in pairs):
            seen["wrong"].append(f"{name} differs from that of the undisturbed run")
    longest = {kind: max(r["seconds"] for r in seen["rounds"] if r["signal"] == kind) for kind in found}
    return {"counts": dict(found), "longest": longest, **seen}


def together(options, folder, disturb=None, after=0.0):
    """Run all processes, disturb one of them some time after training began, and return how they ended."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    logs = [folder.with_name(f"{folder.name}-{index}.log") for index in range(options.processes)]
    for log in logs:
        log.write_text("")
    more = {"folder": folder, "port": port}
    processes = [start(options, "train", log, process=index, **more) for index, log in enumerate(logs)]
    while "begun" not in logs[0].read_text() and processes[0].poll() is None:
        time.sleep(0.05)
    begun = time.monotonic()
    if disturb is not None:
        while time.monotonic() < begun + after and processes[0].poll() is None:
            time.sleep(0.01)
        processes[disturb[1]].send_signal(disturb[0])
        begun = time.monotonic()
    codes = [process.wait(timeout=300) for process in processes]
    kept = sorted(path.name for path in folder.glob("fit/step_*") if path.suffix == "")
    lost = [line for log in logs for line in log.read_text().splitlines() if line.startswith("lost ")]
    return codes, time.monotonic() - begun, lost, kept[-1] if kept else None


def spread(options, chance):
    """Compare what four devices find that belong to one, two and four processes."""
    found, made, kept = {"wrong": []}, {}, None
    for name, counts in {"1": [1], "2": [2], "4": [4], "2, then 1": [2, 1]}.items():
        for count in counts:
            options.processes, options.devices, place = count, 4 // count, options.folder / name.replace(", ", "-")
            disturb = (signal.SIGTERM, 0) if count != counts[-1] else None
            codes, _, _, step = together(options, place, disturb, 1.5)
            kept = step if disturb else kept
            if set(codes) != {0} and disturb is None:
                found["wrong"].append(f"{name}: the processes ended with {codes}")
        with np.load(place / "made.npz") as file:
            made[name] = {leaf: file[leaf] for leaf in file.files}
    for one, other in itertools.combinations(made, 2):
        pairs = [(made[one][leaf], made[other][leaf]) for leaf in made[one]]
        apart = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)
        same = all(np.array_equal(*pair) for pair in pairs)
        found[f"{one} / {other}"] = "the same bits" if same else f"{apart:.1g} apart"
        if apart > 1e-5:
            found["wrong"].append(f"{one} and {other} are {apart:.2g} apart")
    return found | {"kept on two": kept}


def train_worker(options):
    """Train a small network over the devices of all processes, 30 ms for each step."""
    import jax
    from jax.sharding import AxisType

    from soups import presence
    from soups.train import fit

    jax.config.update("jax_num_cpu_devices", options.devices)
    if options.processes > 1:
        jax.distributed.initialize(f"localhost:{options.port}", options.processes, options.process)
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(48, 6)).astype(np.float32), "y": rng.normal(size=(48, 2)).astype(np.float32)}
    params = {"a": rng.normal(size=(6, 8)).astype(np.float32), "b": rng.normal(size=(8, 2)).astype(np.float32)}
    count = len(jax.devices())
    mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))

    def loss(params, batch, key):
        return jax.numpy.mean((jax.numpy.tanh(batch["x"] @ params["a"]) @ params["b"] - batch["y"]) ** 2)

    def on_step(index, loss):
        time.sleep(0.03)

    def lost(who):
        print(f"lost {who}", flush=True)
        os._exit(2)

    with presence.watched(options.folder / ".processes", lost):
        print("begun", flush=True)
        settings = {"steps": STEPS, "batch_size": 4 * count, "save_every": 20, "mesh": mesh}
        made = fit(loss, params, data, directory=options.folder / "fit", on_step=on_step, **settings)
    if options.process == 0:
        np.savez(options.folder / "made.npz", **{name: np.asarray(leaf) for name, leaf in made["params"].items()})
        np.save(options.folder / "losses.npy", made["losses"])


# --- Processes that make members of one pool --------------------------------------------------------------------------


def weights(name):
    """Return what a member must be."""
    return {"w": np.random.default_rng([ord(letter) for letter in name]).normal(size=1000).astype(np.float32)}


def queue(options, chance):
    """Kill makers of members again and again, and see what is in the pool in the end."""
    from soups import Pool

    folder, log = options.folder, options.folder / "queue.log"
    begin = lambda: start(options, "queue", log, folder=folder)  # noqa: E731
    processes, kills, begun = [begin() for _ in range(options.processes)], 0, time.monotonic()
    names = [f"member_{index:02d}" for index in range(options.members)]
    while any(process.poll() is None for process in processes):
        time.sleep(chance.uniform(0.5, 1.5))
        alive = [place for place, process in enumerate(processes) if process.poll() is None]
        if alive and kills < options.kills:
            place = chance.choice(alive)
            processes[place].kill()
            processes[place].wait()
            kills, processes[place] = kills + 1, begin()
    pool, wrong = Pool(folder / "pool"), []
    swept = pool.sweep_orphans()  # what was killed while it was added
    made = Counter(log.read_text().split())
    if sorted(pool) != names:
        wrong.append(f"the pool has {sorted(pool)}")
    wrong += [f"{name}: {line}" for name, lines in pool.verify().items() for line in lines]
    wrong += [f"{name} has other numbers" for name in pool if not np.array_equal(pool[name]["w"], weights(name)["w"])]
    wrong += [f"a process ended with {process.returncode}" for process in processes if process.returncode]
    twice = {name: count for name, count in made.items() if count > 1 and name in names}
    wrong += [f"members were added twice: {twice}"] if twice else []
    left = [path.name for path in folder.glob(".pool.making/*")]
    seconds = round(time.monotonic() - begun, 1)
    counts = {"members": len(pool), "kills": kills, "swept": len(swept), "left": len(left)}
    return counts | {"seconds": seconds, "wrong": wrong}


def queue_worker(options):
    """Make members until all are there, a third of a second for each."""
    from soups import Pool, leases
    from soups.pool.claims import claims

    leases.SECONDS = LEASE
    if options.elsewhere:
        leases.has_ended = lambda there: False
    pool = Pool(options.folder / "pool")
    for mine in claims(pool, [f"member_{index:02d}" for index in range(options.members)]):
        for name in mine:
            time.sleep(0.3)
            pool.add(name, weights(name))
            print(name, flush=True)


if __name__ == "__main__":
    sys.exit(main())
