"""Compute the logits of a fine-tuned CLIP with PyTorch, again and again on demand.

    python theirs_forward.py FOLDER

FOLDER has case.json and images.npy. It writes the weights and the logits there, prints the variants that run here as
one line of JSON, and then runs the variant that each line of its input names.
"""

import json
import pathlib
import sys

import numpy as np
import theirs_models
import torch


def variants(network):
    """Return functions from images to logits: PyTorch as it is, and compiled, which needs a C++ compiler."""

    def logits(images):
        return network.classification_head(network.model.encode_image(images, normalize=True))

    yield "PyTorch", logits
    yield "torch.compile", torch.compile(logits)


def main():
    """Serve."""
    folder = pathlib.Path(sys.argv[1])
    case = json.loads((folder / "case.json").read_text())
    network, _, save = theirs_models.released(case)
    save(folder / "weights.pt")
    images = torch.from_numpy(np.load(folder / "images.npy"))
    mean, std = (torch.tensor(case[name])[:, None, None] for name in ("mean", "std"))
    runs, failed = {}, {}
    with torch.inference_mode():
        images = ((images.permute(0, 3, 1, 2) - mean) / std).contiguous()
        for name, logits in variants(network):
            try:
                np.save(folder / f"{name}.npy", logits(images).numpy())
                runs[name] = logits
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        said = {"runs": list(runs), "failed": failed, "version": torch.__version__, "threads": torch.get_num_threads()}
        print(json.dumps(said), flush=True)
        for line in sys.stdin:
            runs[line.strip()](images)
            print("done", flush=True)


if __name__ == "__main__":
    main()
