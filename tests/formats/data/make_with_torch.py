"""Write the torch files of this folder and their values; only this needs torch (2.13 was used)."""

import pathlib
import struct
import zipfile

import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parent
NARROW = (torch.bfloat16, torch.float8_e4m3fn)  # NumPy's files do not have them


def tensors():
    """Return tensors of all kinds: shared, tied, strided, expanded, empty."""
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


class Block(torch.nn.Module):
    """Have attributes of many kinds; `plain` is a tensor that no state dict holds."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 3, bias=False)
        self.register_buffer("count", torch.tensor(5))
        self.plain = torch.arange(3)
        self.sizes, self.table, self.label, self.nothing = [2, 3], {"a": 1}, "block", None
        self.tensors, self.pair = [torch.ones(1)], (1 << 40, torch.ones(2))

    def forward(self, x):
        """Use them all."""
        return (
            self.linear(x) + self.count + self.plain + self.sizes[0] + self.table["a"] + self.tensors[0] + self.pair[0]
        )


class Network(torch.nn.Module):
    """Nest, share and tie."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(), Block()])
        self.again = self.blocks[1]
        self.scales = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(3)) for _ in range(2)])
        self.tied = self.scales[0]
        self.activation = torch.nn.ReLU()
        self.register_buffer("transposed", torch.randn(3, 2).T)

    def forward(self, x):
        """Run the blocks."""
        for block in self.blocks:
            x = x + self.activation(block(x)).sum()
        return x + self.tied.sum()


def save_values(path, tensors):
    """Save the values for the tests."""
    wide = {name: (t.float() if t.dtype in NARROW else t).detach().contiguous() for name, t in tensors.items()}
    np.savez_compressed(path, **{name: tensor.numpy() for name, tensor in wide.items()})


def save_script(name, module):
    """Save a module as TorchScript and its values, then blank its code: it names folders, and is not to be read."""
    path = FOLDER / f"{name}.pt"
    torch.jit.save(module, path)
    save_values(FOLDER / f"{name}.npz", torch.jit.load(path).state_dict())
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.startswith(f"{name}/code/"):
                sizes = struct.unpack_from("<HH", content, entry.header_offset + 26)
                begin = entry.header_offset + 30 + sum(sizes)
                content[begin : begin + entry.compress_size] = bytes(entry.compress_size)
    path.write_bytes(content)


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
    save_script("script", torch.jit.script(Network().half()))
    layers = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Sequential(torch.nn.Linear(3, 1)))
    save_script("trace", torch.jit.trace(layers.half(), torch.ones(4, 2).half()))
