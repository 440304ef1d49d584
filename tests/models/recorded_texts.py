"""Read what transformers wrote of small networks of texts: folders, with the inputs and the outputs of each.

They are those of `scripts/benchmarks/parity_encoders.py` and `parity_decoders.py` with `--sizes small --record`.
"""

import json
import pathlib
import shutil

import numpy as np

from soups.formats import open_checkpoint

RECORDED = pathlib.Path(__file__).parent / "recorded" / "models"

NAMES = {
    "transformers-BERT-bert-base-uncased": "bert-base-uncased",
    "transformers-BERT-MLM-bert-base-uncased-mlm": "bert-base-uncased-mlm",
    "transformers-MiniLM-minilm-l6": "minilm-l6",
    "transformers-RoBERTa-roberta-base-classifier": "roberta-base-classifier",
    "transformers-RoBERTa-MLM-roberta-base-mlm": "roberta-base-mlm",
    "transformers-DeBERTa-deberta-v3-base": "deberta-v3-base",
    "transformers-DeBERTa-MLM-deberta-v3-base-mlm": "deberta-v3-base-mlm",
    "released-DeBERTa-MLM-deberta-v3-small-mlm": "deberta-v3-small-mlm",
    "transformers-GPT-2-gpt2": "gpt2",
    "transformers-Llama-smollm2-135m": "smollm2-135m",
    "transformers-Llama-untied-smollm2-135m": "smollm2-135m",
    "transformers-T5-t5-base": "t5-base",
    "transformers-T5-1.1-t5-v1_1-base": "t5-v1_1-base",
}
ENCODERS, DECODERS, T5S = list(NAMES)[:8], list(NAMES)[8:11], list(NAMES)[11:]
BERT, BERT_MLM, MINILM, ROBERTA, ROBERTA_MLM, DEBERTA, DEBERTA_MLM, DEBERTA_RELEASED = ENCODERS
GPT2, LLAMA, UNTIED = DECODERS
T5, T5_GATED = T5S
CLASSES = dict.fromkeys((BERT, ROBERTA, DEBERTA), 3)  # the others have no head
FIELDS = {LLAMA: {"num_kv_heads": 2}}
FIELDS[UNTIED] = {"num_kv_heads": 2, "tied": False, "norm_epsilon": 1e-6, "rope_theta": 1e4}


def tensors_of(folder):
    """Read all tensors of a recorded folder, by the names that its file has."""
    checkpoint = open_checkpoint(RECORDED / folder)
    return {name: np.array(checkpoint.read(name)) for name in (*checkpoint.leaves, *checkpoint.aliases)}


def changed(tmp_path, folder, **fields):
    """Copy a recorded folder, with other values in its config.json; None leaves one out."""
    copy = tmp_path / "copy"
    shutil.copytree(RECORDED / folder, copy)
    config = json.loads((copy / "config.json").read_text()) | fields
    (copy / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return copy
