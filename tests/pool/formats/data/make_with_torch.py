"""Write the torch files of this folder and their values; only this needs torch (2.13 was used)."""

import pathlib

import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parent
NARROW = (torch.bfloat16, torch.float8_e4m3fn)  # NumPy's files do not have them


def tensors():
    """Give tensors of all kinds: shared, tied, strided, expanded, empty."""
    weight = torch.randn(3, 4)
    return {
        "weight": weight,
        "tied": weight,
        "transposed": weight.T,
        "row": weight[1],
        "columns": weight[:, 1:3],
        "bfloat16": torch.randn(2, 3).bfloat16(),
        "half": torch.randn(5).half(),
        "double": torch.randn(2).double(),
        "parameter": torch.nn.Parameter(torch.randn(4)),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "mask": torch.tensor([True, False, True]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "expanded": torch.tensor([1.5]).expand(2, 3),
        "float8": torch.tensor([0.5, -2.0]).to(torch.float8_e4m3fn),
        "uint16": torch.tensor([1, 60000]).to(torch.uint16),
        "complex": torch.tensor([1 + 2j]),
    }


def save_values(path, tensors):
    """Save the values for the tests."""
    wide = {name: (t.float() if t.dtype in NARROW else t).detach().contiguous() for name, t in tensors.items()}
    np.savez_compressed(path, **{name: tensor.numpy() for name, tensor in wide.items()})


if __name__ == "__main__":
    torch.manual_seed(0)
    everything = tensors()
    torch.save(everything, FOLDER / "zip.pt")
    torch.save(everything, FOLDER / "legacy.pt", _use_new_zipfile_serialization=False)
    save_values(FOLDER / "tensors.npz", everything)
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    training = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "name": "x"}
    torch.save(training, FOLDER / "training.pt")
    save_values(FOLDER / "training.npz", network.state_dict())
