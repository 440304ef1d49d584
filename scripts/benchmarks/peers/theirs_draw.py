"""Draw the weights of a peer's network, and let it write them and compute."""

import math

import numpy as np
import torch


def draw(network, seed):
    """Return every parameter and statistic random values of a sensible size, so that zeros and ones hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if not tensor.is_floating_point() or name.endswith(("attn_mask", "inv_freq")):
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            tensor.data = noise / math.sqrt(math.prod(tensor.shape[1:]))
        elif name.endswith(("bias", "mean")):
            tensor.data = 0.1 * noise
        elif name.endswith("var"):
            tensor.data = 1 + 0.3 * noise.tanh()
        else:
            tensor.data = 1 + 0.1 * noise
    return network.eval()


def answer(folder, case, network, run, save, given):
    """Write the weights of a case, and what the network makes of its inputs in float32 and in float64."""
    save(folder / case["name"])
    inputs = np.load(folder / f"{case['name']}.inputs.npy")
    outputs = {"inputs": inputs}
    for dtype in (torch.float32, torch.float64):
        network.to(dtype)
        with torch.no_grad():
            outputs[str(dtype).removeprefix("torch.")] = run(given(inputs, dtype)).numpy()
    np.savez(folder / f"{case['name']}.logits.npz", **outputs)
