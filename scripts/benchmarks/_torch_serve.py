"""Serve a benchmark that waits beside: what all workers in PyTorch share."""

import json
import os
import sys

import numpy as np
import torch


def stepper(loss, optimizer, clip=lambda: None):
    """Return a function that takes some steps and gives their losses."""

    def run(steps):
        losses = []
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            value = loss()
            value.backward()
            clip()
            optimizer.step()
            losses.append(value.detach())
        return torch.stack(losses).tolist()

    return run


def serve(make, variants, checked_steps, **versions):
    """Say the losses of the first steps of each variant as one line of JSON, then obey lines from stdin.

    `make(file, settings, **options)` gives the tasks of a variant, functions of a number of steps: "train", and
    "forward" if there is one, whose first outputs are said too. `file`: weights and a batch, of the npz at argv[1]. A
    line is "task, variant steps", and is answered with "done".
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    file = dict(np.load(sys.argv[1]))
    settings = json.loads(str(file.pop("settings")))
    runs, losses, logits, failed = {}, {}, {}, {}
    for name, options in variants.items():
        if name not in settings.get("variants", variants):
            continue
        try:
            made = make(file, settings, **options)
            losses[name] = made["train"](checked_steps)
            if "forward" in made:
                logits[name] = made["forward"](1)
            runs |= {f"{task}, {name}": run for task, run in made.items()}
        except Exception as error:  # torch.compile needs a C++ compiler, which not every machine has
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    said = {"losses": losses, "logits": logits, "failed": failed, "version": torch.__version__}
    print(json.dumps(said | versions), flush=True)
    for line in sys.stdin:
        name, steps = line.rsplit(maxsplit=1)
        runs[name](int(steps))
        print("done", flush=True)
