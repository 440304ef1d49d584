"""Build the encoders of transformers, and run them on tokens.

    python theirs_encoders.py FOLDER CASES.json

For each case it writes FOLDER/NAME, a folder of weights, and FOLDER/NAME.logits.npz with the inputs, int32 [3, B, T],
and what the network makes of them in float32 and in float64; what it makes of padding is zero.
"""

import json
import pathlib
import sys

import theirs_draw
import torch
import transformers


def config_of(case, kind):
    """Return the configuration of a case."""
    named = {"hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "num_heads"}
    named |= {"intermediate_size": "mlp_dim", "vocab_size": "vocabulary_size", "type_vocab_size": "num_segments"}
    named |= {"hidden_act": "activation", "layer_norm_eps": "norm_epsilon"}
    sizes = {theirs: case[ours] for theirs, ours in named.items()} | {"num_labels": case["classes"]}
    sizes["max_position_embeddings"] = case["context_length"] + case["position_offset"]
    ends = {"bos_token_id": 0, "eos_token_id": 2}
    return kind(**sizes, **ends, pad_token_id=max(case["position_offset"] - 1, 0))


def mean(outputs, mask):
    """Average the tokens, as sentence-transformers do."""
    shares = mask[..., None].to(outputs.last_hidden_state.dtype)
    return (outputs.last_hidden_state * shares).sum(1) / shares.sum(1)


def logits(outputs, mask):
    """Return the logits."""
    return outputs.logits


KINDS = {
    "transformers BERT": (transformers.BertForSequenceClassification, transformers.BertConfig, logits),
    "transformers BERT MLM": (transformers.BertForMaskedLM, transformers.BertConfig, logits),
    "transformers MiniLM": (transformers.BertModel, transformers.BertConfig, mean),
    "transformers RoBERTa": (transformers.RobertaForSequenceClassification, transformers.RobertaConfig, logits),
    "transformers RoBERTa MLM": (transformers.RobertaForMaskedLM, transformers.RobertaConfig, logits),
}


def answer(folder, case):
    """Run one case."""
    kind, config, outputs = KINDS[case["kind"]]
    network = theirs_draw.draw(kind(config_of(case, config)), case["seed"])

    def run(given):
        tokens, mask, segments = given
        found = outputs(network(input_ids=tokens, attention_mask=mask, token_type_ids=segments), mask)
        return found * mask[..., None].to(found.dtype) if found.ndim == 3 else found

    def given(inputs, dtype):
        return torch.from_numpy(inputs).long().unbind()

    theirs_draw.answer(folder, case, network, run, network.save_pretrained, given)


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    folder, cases = pathlib.Path(sys.argv[1]), json.loads(pathlib.Path(sys.argv[2]).read_text())
    for case in cases:
        answer(folder, case)
    versions = {module.__name__: module.__version__ for module in (torch, transformers)}
    (folder / "versions.json").write_text(json.dumps(versions))
