"""Compare the images per second of evaluating CLIP ViT-B/32 with those of PyTorch on the same CPU.

    python scripts/benchmarks/forward_torch.py --torch-python PATH/bin/python [--batch 64]

PyTorch runs open_clip's network beside, as a process that waits while JAX is timed, and compiled too where it can be;
the ratio is to the faster. It writes the weights in the released format and soups imports them; the logits must agree.
PyTorch's images are normalised before, ours in each call. Run it on a quiet machine.
"""

import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile

import _common
import jax
import numpy as np
from peers.ours_models import REQUIREMENTS, Case

from soups.models.architectures import architecture
from soups.models.import_weights import import_weights

WORKER = pathlib.Path(__file__).parent / "peers" / "theirs_forward.py"
GOAL, TOLERANCE = 1.0, 1e-5


def main():
    """Run the benchmark."""
    options = _options()
    case = Case("released", architecture("clip-vit-b32"), count=options.batch)
    images = case.inputs().astype(np.float32) / np.float32(255)
    with torch_process(options.torch_python, case, images) as (torch_run, said, folder):
        params = jax.device_put(import_weights(folder / "weights.pt", case.arch))
        apply, on_device = jax.jit(case.arch.apply_fn(case.classes)), jax.device_put(images)
        check(np.asarray(apply(params, on_device)), said["runs"], folder)
        callables = {"soups": lambda: apply(params, on_device)}
        callables |= {name: lambda name=name: torch_run(name) for name in said["runs"]}
        _common.measure(callables, 1)  # warm
        seconds = _common.measure(callables, options.repeats)
    report(seconds, said, options)


@contextlib.contextmanager
def torch_process(python, case, images):
    """Start PyTorch beside; give a function that runs one variant, what it said at the start, and its folder."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "case.json").write_text(json.dumps(case.described(folder)))
        np.save(folder / "images.npy", images)
        with subprocess.Popen(
            [python, WORKER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        ) as process:
            first = process.stdout.readline()
            if not first:
                sys.exit(f"PyTorch did not start. Its environment needs {', '.join(REQUIREMENTS)}")

            def run(name):
                process.stdin.write(f"{name}\n")
                if process.stdout.readline().strip() != "done":
                    sys.exit(f"PyTorch failed at {name!r}")

            yield run, json.loads(first), folder
            process.stdin.close()


def check(ours, names, folder):
    """Stop if the logits differ: then it is not the same network."""
    for name in names:
        theirs = np.load(folder / f"{name}.npy")
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        if not error <= TOLERANCE:
            sys.exit(f"not the same network: relative error {error:.2g} of the logits of {name}")


def report(seconds, said, options):
    """Print images per second and the ratio to the faster of PyTorch's, and write the record."""
    rates = {name: options.batch / _common.summarize(x)["median"] for name, x in seconds.items()}
    ratio = rates["soups"] / max(rates[name] for name in said["runs"])
    rows = [[name, rate, _common.summarize(seconds[name])["min"]] for name, rate in rates.items()]
    _common.table(f"CLIP ViT-B/32, {options.batch} images", ["", "images/s (median)", "fastest s"], rows)
    print(f"ratio to the faster of PyTorch's: {ratio:.3g} (goal {GOAL}); failed: {said['failed'] or 'none'}")
    record = {"benchmark": "forward_torch", "what": __doc__.splitlines()[0], "batch": options.batch, "goal": GOAL}
    record |= {"images per second": rates, "ratio": ratio, "seconds": seconds, "torch": said}
    _common.write(options.output, record | {"machine": _common.machine()})


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", required=True, help="interpreter with PyTorch and open_clip")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", default="runs/benchmarks/forward_torch.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
