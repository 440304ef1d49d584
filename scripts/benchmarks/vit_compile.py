"""Compile evaluation and training of CLIP ViTs for accelerators that are not here: what fits, and the compiler's guess.

    python scripts/benchmarks/vit_compile.py --tpu v4:2x2x1     after pip install "jax[tpu]"
    python scripts/benchmarks/vit_compile.py --gpu FILE         after pip install "jax[cuda12]"

Nothing is run, so no number here is a measured speed; that is scripts/benchmarks/vit_throughput.py, on the accelerator.
That the programs compile, the memory of a chip and the exchanges between chips are the compiler's statements about what
would run there. For a TPU it also notes how many cycles it expects of each operation: their sum, without loops and
exchanges, gives "guessed MFU" and "guessed images/s". A product of two large matrices, guessed alike, is the first row.
FILE describes a GPU to XLA: one of xla/backends/gpu/target_config/specs in github.com/openxla/xla.

data: one member on all chips, a batch of 512; sharded: its weights and optimizer state are cut over them; pool: a
member on each chip, with a batch of 512 each; remat: activations are computed again.
"""

import argparse
import os
import pathlib
import re

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}  # no such device is looked for

import _common
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from vit_throughput import CLASSES, PEAKS, forward_flops

from soups.evaluate.evaluator import _forward, _Network, unit_range
from soups.models.architectures import architecture
from soups.train import Classification, Lanes, Training, param_shardings
from soups.train.published import DECAY_ALL, MODEL_SOUPS

BATCH, EVALUATION_BATCH = 512, 1000
CLOCKS = {"TPU v4": 1.05e9, "TPU v5 lite": 1.5e9, "TPU v6 lite": 1.75e9}  # Hz: peak by operations in a cycle
EXCHANGES = r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
MATMUL = 8192


def main():
    """Compile, print the table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--tpu", help="the topology, such as v4:2x2x1, the four chips of a v4-8")
    where.add_argument("--gpu", help="XLA's description of a GPU")
    parser.add_argument("--archs", nargs="+", default=["clip-vit-b32", "clip-vit-b16"])
    parser.add_argument("--out", default="runs/benchmarks/vit_compile.json")
    options = parser.parse_args()
    devices = tpu_devices(options.tpu) if options.tpu else gpu_devices(options.gpu)
    kind, mesh = devices[0].device_kind, mesh_of(devices, (1, len(devices), 1))
    rows = [row("one large product", "bfloat16", matmul(mesh), 2.0 * MATMUL**3, 0, kind)]
    for name in options.archs:
        arch = architecture(name)
        for what, program, images, passes in programs(arch, devices):
            rows.append(row(name, what, program, passes * images / len(devices) * forward_flops(arch), images, kind))
            print(rows[-1], flush=True)
    heads = [head for head in rows[0] if head != "exchanges"]  # in the record, of which the table has no room
    title = f"{len(devices)} x {kind}, compiled and not run; memory of a chip"
    _common.table(title, heads, [[line[head] for head in heads] for line in rows])
    record = {"benchmark": "vit_compile", "what": __doc__.splitlines()[0], "device": kind, "chips": len(devices)}
    _common.write(options.out, record | {"rows": rows, "machine": _common.machine()})


def tpu_devices(topology) -> list:
    """Return the chips of a topology; a v4 or v5p is one device with two cores."""
    cores = {"chip_config_name": "megacore"} if topology.startswith(("v4", "v5p")) else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **cores).devices


def gpu_devices(description) -> list:
    """Return one GPU of this description; its matrix products are cuBLAS's, as XLA's own are chosen by trying them."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_triton_gemm=false"
    target = pathlib.Path(description).read_text()
    return topologies.get_topology_desc(platform="cuda", target_config=target, topology="1x1x1").devices


def mesh_of(devices, shape) -> Mesh:
    """Arrange the chips on "pool", "data" and "model"."""
    return Mesh(np.array(devices).reshape(shape), ("pool", "data", "model"), axis_types=(AxisType.Auto,) * 3)


def programs(arch, devices):
    """Yield (what, compiled program, images in all, passes as long as a forward pass) of each task and arrangement."""
    chips, whole = len(devices), mesh_of(devices, (1, len(devices), 1))
    for dtype in ("bfloat16", "float32"):
        yield f"evaluation, {dtype}", evaluation(arch, whole, dtype), EVALUATION_BATCH, 1
    yield "training, data", training(arch, whole), BATCH, 3
    yield "training, data, remat", training(arch, whole, remat=True), BATCH, 3
    if chips > 1:
        yield "training, sharded", training(arch, whole, sharded=True), BATCH, 3
        yield "training, pool", training_pool(arch, mesh_of(devices, (chips, 1, 1))), chips * BATCH, 3


def matmul(mesh):
    """Compile a product of two matrices that every chip has."""
    matrix = jax.ShapeDtypeStruct((MATMUL, MATMUL), jnp.bfloat16, sharding=NamedSharding(mesh, P()))
    return jax.jit(lambda a, b: a @ b).lower(matrix, matrix).compile()


def evaluation(arch, mesh, dtype):
    """Compile the forward pass of `soups.evaluate.Evaluator`."""
    apply_fn = arch.apply_fn(CLASSES, dtype=jnp.dtype(dtype))
    params = placed(arch.abstract(CLASSES), NamedSharding(mesh, P()))
    images = batch_of(arch, (EVALUATION_BATCH,), NamedSharding(mesh, P("data")))["image"]
    with jax.default_matmul_precision("float32" if dtype == "float32" else "default"):
        fixed = {"network": _Network(apply_fn, unit_range, None, True), "mesh": mesh}
        return _forward.lower(params, (images, None), **fixed, side_by_side=False, gathered=None).compile()


def training(arch, mesh, sharded=False, remat=False):
    """Compile a step of the published recipe."""
    params = arch.abstract(CLASSES)
    return compiled(arch, mesh, param_shardings(params, mesh) if sharded else None, remat)


def training_pool(arch, mesh):
    """Compile a step of several members, each on its own chip."""
    return compiled(arch, mesh, None, False)


def compiled(arch, mesh, shardings, remat):
    """Compile a step of a member on each lane of the mesh."""
    settings, params, count = recipe(arch, remat), arch.abstract(CLASSES), mesh.shape["pool"]
    lanes = Lanes(settings, params, mesh=mesh, shardings=shardings)
    numbers = settings.numbers(settings.hyperparameters | MODEL_SOUPS | {"num_steps": 10_000})
    values = jax.tree.map(lambda number: jax.ShapeDtypeStruct((count,), number.dtype), numbers)
    return lanes.step.lower(lanes.abstract(params), batch_of(arch, (count, BATCH)), values).compile()


def recipe(arch, remat) -> Training:
    """Return what the members have in common."""
    apply_fn = arch.train_apply_fn(CLASSES, dtype=jnp.bfloat16, remat=remat)
    return Training(loss=Classification(apply_fn, CLASSES), clip_norm=1.0, decay_rules=DECAY_ALL)


def batch_of(arch, shape, sharding=None):
    """Describe a batch."""
    side = arch.image_size
    images = jax.ShapeDtypeStruct((*shape, side, side, 3), jnp.uint8, sharding=sharding)
    return {"image": images, "label": jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)}


def placed(params, sharding):
    """Describe weights that lie as `sharding` says."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), params)


def row(name, what, program, flops, images, kind) -> dict:
    """Return what the compiler says of a program with so many operations on a chip and images on all."""
    memory, text = program.memory_analysis(), program.as_text()
    sizes = (memory.temp_size_in_bytes, memory.argument_size_in_bytes, memory.output_size_in_bytes)
    found = re.findall(EXCHANGES, text)
    line = {"network": name, "task": what, "memory GB": (sum(sizes) - memory.alias_size_in_bytes) / 1e9}
    line["exchanges"] = ", ".join(f"{found.count(one)} {one}" for one in sorted(set(found))) or "none"
    cycles = sum(map(int, re.findall(r'estimated_cycles":"(\d+)"', text[text.index("\nENTRY") :])))
    seconds = cycles / CLOCKS[kind] if kind in CLOCKS else 0
    line["guessed MFU"] = flops / seconds / 1e12 / PEAKS[kind] if seconds else None
    line["guessed images/s"] = images / seconds if seconds and images else None
    return line


if __name__ == "__main__":
    main()
