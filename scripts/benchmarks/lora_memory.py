"""Count the memory of a training step of SmolLM2-135M: whole, and by low-rank changes, alone and side by side.

    python scripts/benchmarks/lora_memory.py [--members 8] [--batch 4] [--length 128]

Nothing is computed: the programs are compiled for weights that are not there, and XLA says what they need: arguments,
results that lie in no argument's place, and room for what is between. Side by side means one program for all members
on one device (`soups.train.sweep(mode="vmap")`); on several devices each needs what one member needs.
"""

import argparse
import dataclasses
import functools

import _common
import jax
import numpy as np

from soups import tree
from soups.models import LORA_RULES, architecture, lora_fn, lora_params
from soups.train import NextToken, Training, init_state, training_step

GIB = 2**30


def main():
    """Compile the steps, print the table and write the record."""
    options = _options()
    arch = architecture("smollm2-135m")
    if options.depth is not None:
        arch = dataclasses.replace(arch, features=arch.features.clone(depth=options.depth))
    base = arch.abstract(None)
    batch = {"tokens": np.int32, "mask": np.bool_, "learned": np.bool_}
    batch = {name: jax.ShapeDtypeStruct((options.batch, options.length), kind) for name, kind in batch.items()}
    inputs = {name: np.zeros(batch[name].shape, batch[name].dtype) for name in ("tokens", "mask")}
    make = functools.partial(lora_params, arch.model(None), rank=options.rank)
    whole = Training(loss=NextToken(arch.train_apply_fn(None, remat=True)))
    thin = Training(loss=NextToken(lora_fn(arch.train_apply_fn(None, remat=True))), learning_rate_rules=LORA_RULES)
    adapted = make(base, inputs, jax.random.key(0))
    rows = [measured("whole, one member", whole, base, batch, 1)]
    rows.append(measured("low-rank, one member", thin, adapted, batch, 1))
    rows.append(measured(f"low-rank, {options.members} side by side", thin, adapted, batch, options.members))
    for row in rows:
        row["to one low-rank member"] = row["bytes"] / rows[1]["bytes"]
    columns = ["what", "trained", "GiB", "arguments", "between", "to one low-rank member"]
    _common.table("Memory of a step", columns, [[row[name] for name in columns] for row in rows])
    record = {"benchmark": "lora_memory", "what": __doc__.splitlines()[0], "rows": rows}
    record |= {"batch": options.batch, "length": options.length, "rank": options.rank}
    _common.write(options.output, record | {"machine": _common.machine()})


def measured(what, training, params, batch, members):
    """Return the row of a program for so many members, which share what is frozen, as those of a sweep do."""
    numbers = training.hyperparameters | {"learning_rate": 1e-4, "num_steps": 100}
    state = jax.eval_shape(functools.partial(init_state, training), params, numbers)
    frozen = {name: part for name, part in state["params"].items() if name == "base"}
    own = state | {"params": {name: part for name, part in state["params"].items() if name != "base"}}

    def step(own, frozen, batch):
        after, loss = training_step(training, own | {"params": {**own["params"], **frozen}}, batch, numbers)
        return after | {"params": {name: after["params"][name] for name in own["params"]}}, loss

    if members > 1:
        step = jax.vmap(step, in_axes=(0, None, 0))
        own, batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((members, *leaf.shape), leaf.dtype), (own, batch))
    found = jax.jit(step, donate_argnums=0).lower(own, frozen, batch).compile().memory_analysis()
    apart = found.output_size_in_bytes - found.alias_size_in_bytes
    total = found.argument_size_in_bytes + found.temp_size_in_bytes + apart
    row = {"what": what, "members": members, "trained": tree.count(params.get("lora", params)), "bytes": total}
    row |= {"GiB": total / GIB, "arguments": found.argument_size_in_bytes / GIB}
    row |= {"between": found.temp_size_in_bytes / GIB}
    print(row, flush=True)
    return row


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--depth", type=int, help="blocks of a smaller network")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--output", default="runs/benchmarks/lora_memory.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
