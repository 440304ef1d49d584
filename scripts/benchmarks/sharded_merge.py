"""Merge members that are kept in different shards, on eight devices of a CPU, and measure the memory that it takes.

    python scripts/benchmarks/sharded_merge.py [--gigabytes 4] [--members 3] [--method task_arithmetic] [--out FILE]

Each member is an Orbax checkpoint in bfloat16, cut otherwise: along the first axis of every leaf over all devices, as
FSDP does; along the last, as tensor parallelism; over both on a mesh of 4 and 2. A process of its own then merges them
as `soups merge --format orbax --sharded` does. Held on devices are the arrays that JAX has while it reads. Here the
devices' memory is the host's, so the largest resident set, less what the process has before it begins, holds both, and
the pages of files that are mapped, which the system takes back as it likes. What the formula says is printed beside: a
device holds its share of what is merged, and of the inputs of one leaf; methods that measure the whole model first,
as TIES does by default, hold all inputs.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

LEAVES, ROWS = 16, 8192


def write_member(folder, gigabytes, index):
    """Write a member of so many gigabytes, in the shards of its place."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    from soups.formats.orbax import save_checkpoint

    flat = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    both = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    sharding = [NamedSharding(flat, P("x")), NamedSharding(flat, P(None, "x")), NamedSharding(both, P("x", "y"))]
    columns = int(gigabytes * 2**30 / 2 / LEAVES / ROWS) // 8 * 8

    def leaf(key):
        return jax.random.normal(key, (ROWS, columns), jnp.bfloat16)

    make = jax.jit(leaf, out_shardings=sharding[index % 3])
    keys = jax.random.split(jax.random.key(index), LEAVES)
    save_checkpoint(folder / f"member_{index}", {f"layer_{i:02d}": make(keys[i]) for i in range(LEAVES)})


def merge(folder, method, members):
    """Merge the members, and print what it took as JSON."""
    import jax
    import yaml

    from soups import merging
    from soups.merging.sharded import merge_sharded

    jax.devices()
    before, largest, anonymous = status("RssAnon"), [0], [0]
    names = [str(folder / f"member_{index}") for index in range(members)]
    recipe = {"merge_method": method, "vocabulary": "published"}
    recipe |= {"models": [{"model": name} for name in names[1:]], "base_model": names[0]}
    plan = merging.plan(merging.parse_recipe(yaml.safe_dump(recipe)), merging.open_model)

    def progress(count):
        held = sum(array.nbytes for array in jax.live_arrays())
        largest[0], anonymous[0] = max(largest[0], held), max(anonymous[0], status("RssAnon"))

    begun = time.monotonic()
    merge_sharded(plan, folder / "merged", progress=progress)
    found = {"seconds": time.monotonic() - begun, "held": largest[0], "before": before, "peak": status("VmHWM")}
    found |= {"anonymous": max(anonymous[0], status("RssAnon")), "inputs": len(plan.outputs[0].sources)}
    print(json.dumps(found | {"leaf": max(output.size for output in plan.outputs)}))


def status(field):
    """Return a number of the process's own status, in bytes."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def main() -> None:
    """Write members, merge them in another process, and print and keep what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--method", default="task_arithmetic")
    parser.add_argument("--folder", type=pathlib.Path, help="where the members go; default: a temporary one")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/benchmarks/sharded_merge.json"))
    options = parser.parse_args()
    if options.part:
        import jax

        jax.config.update("jax_num_cpu_devices", 8)
        if options.part == "merge":
            merge(options.folder, options.method, options.members)
        else:
            write_member(options.folder, options.gigabytes, int(options.part))
        return
    import _common

    folder = options.folder or pathlib.Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    try:
        words = [sys.executable, __file__, f"--folder={folder}", f"--gigabytes={options.gigabytes}"]
        words += [f"--members={options.members}", f"--method={options.method}"]
        for index in range(options.members):
            subprocess.run([*words, f"--part={index}"], check=True)
        done = subprocess.run([*words, "--part=merge"], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder)
    member = LEAVES * found["leaf"] * 2
    says = member + found["leaf"] * found["inputs"] * 2  # what is merged, and the inputs of one leaf as they are kept
    rows = [
        ["a member", f"{member / 2**30:.2f} GB"],
        ["all members", f"{options.members * member / 2**30:.2f} GB"],
        ["held on devices, by the formula", f"{says / 2**30:.2f} GB, {says / 8 / 2**30:.2f} on each"],
        ["held on devices, measured", f"{found['held'] / 2**30:.2f} GB, {found['held'] / 8 / 2**30:.2f} on each"],
        ["peak of host and devices, measured", f"{(found['anonymous'] - found['before']) / 2**30:.2f} GB"],
        ["the same with pages of mapped files", f"{(found['peak'] - found['before']) / 2**30:.2f} GB"],
        ["seconds", f"{found['seconds']:.0f}"],
    ]
    _common.table(f"{options.method} of {options.members} members on 8 devices", ["what", "how much"], rows)
    _common.write(options.out, {"says": says, "member": member, **found, "machine": _common.machine()})


if __name__ == "__main__":
    main()
