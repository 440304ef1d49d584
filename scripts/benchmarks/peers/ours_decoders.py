"""State which decoders of texts are compared with those of transformers, and compute them with soups."""

import dataclasses
import pathlib

import jax
import numpy as np

from soups.models.architectures import Architecture, architecture
from soups.models.import_weights import import_weights

SMALL = {"width": 16, "depth": 2, "mlp_dim": 32, "num_heads": 4, "vocabulary_size": 24, "context_length": 10}
KINDS = {
    "transformers GPT-2": ("gpt2", {}),
    "transformers Llama": ("smollm2-135m", {}),
    "transformers Llama untied": ("smollm2-135m", {"tied": False, "norm_epsilon": 1e-6, "rope_theta": 1e4}),
}


@dataclasses.dataclass(frozen=True)
class DecoderCase:
    """Hold one comparison: the kind of network, the architecture, and how many texts.

    `trained`: the GGUF file of a package, whose weights both read.
    """

    kind: str
    arch: Architecture
    count: int = 4
    trained: pathlib.Path | None = None

    of_text = False

    @property
    def name(self) -> str:
        """Return the name of its weights, a folder."""
        return f"{self.kind}-{self.arch.name}".replace(" ", "-")

    def described(self, folder: pathlib.Path) -> dict:
        """Describe the network in plain values for the peer."""
        decoder = self.arch.features
        fields = [field.name for field in dataclasses.fields(decoder) if field.name not in ("parent", "name", "dtype")]
        case = {"name": self.name, "kind": self.kind, "seed": 0, "trained": self.trained and str(self.trained)}
        return case | {field: getattr(decoder, field) for field in fields}

    def inputs(self) -> np.ndarray:
        """Draw tokens and mask of texts of different lengths, as one int32 [2, B, T]."""
        decoder, rng = self.arch.features, np.random.default_rng(0)
        length = min(decoder.context_length, 128)
        tokens = rng.integers(3, decoder.vocabulary_size, (self.count, length))
        ends = np.array([length, *rng.integers(2, length, self.count - 1)])[:, None]
        mask = np.arange(length)[None] < ends
        return np.stack([np.where(mask, tokens, 0), mask]).astype(np.int32)

    def ours(self, path: pathlib.Path, inputs: np.ndarray) -> np.ndarray:
        """Import the peer's weights and give the logits; those of padding are zero."""
        params = import_weights(self.trained or path, self.arch)
        mask = inputs[1].astype(bool)
        found = jax.jit(self.arch.apply_fn(None))(params, {"tokens": inputs[0], "mask": mask})
        return np.where(mask[..., None], np.asarray(found), 0)


def real_cases() -> list[DecoderCase]:
    """Return the comparisons at published sizes, and the trained SmolLM2 where its package is installed."""
    cases = [DecoderCase(kind, _with(name, fields)) for kind, (name, fields) in KINDS.items()]
    try:
        from soups.models.pretrained import smollm2_file

        return [*cases, DecoderCase("transformers GGUF", architecture("smollm2-135m"), trained=smollm2_file())]
    except ImportError:
        return cases


def small_cases() -> list[DecoderCase]:
    """Return the comparisons of decoders so small that their files can lie beside the tests."""
    return [DecoderCase(kind, small(_with(name, fields))) for kind, (name, fields) in KINDS.items()]


def small(arch: Architecture) -> Architecture:
    """Shrink a decoder to about 5,000 weights."""
    groups = {"num_kv_heads": 2} if arch.family == "llama" else {}
    return dataclasses.replace(arch, feature_dim=SMALL["width"], features=arch.features.clone(**SMALL, **groups))


def _with(name, fields):
    arch = architecture(name)
    return dataclasses.replace(arch, features=arch.features.clone(**fields))
