"""Build the decoders of transformers, and run them on tokens.

    python theirs_decoders.py FOLDER CASES.json

For each case it writes FOLDER/NAME, a folder of weights, and FOLDER/NAME.logits.npz with the inputs, int32 [2, B, T],
and what the network makes of them in float32 and in float64; what it makes of padding is zero. A trained network is
read from its GGUF file by transformers themselves.
"""

import json
import pathlib
import sys

import theirs_draw
import torch
import transformers


def gpt2(case):
    """Return a GPT-2 of the sizes of a case."""
    sizes = {"n_embd": case["width"], "n_layer": case["depth"], "n_head": case["num_heads"], "n_inner": case["mlp_dim"]}
    sizes |= {"n_positions": case["context_length"], "vocab_size": case["vocabulary_size"]}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "layer_norm_epsilon": case["norm_epsilon"]}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends))


def llama(case):
    """Return a Llama of the sizes of a case."""
    named = {"hidden_size": "width", "num_hidden_layers": "depth", "intermediate_size": "mlp_dim"}
    named |= {
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "vocab_size": "vocabulary_size",
    }
    named |= {"max_position_embeddings": "context_length", "rms_norm_eps": "norm_epsilon"}
    sizes = {theirs: case[ours] for theirs, ours in named.items()} | {"tie_word_embeddings": case["tied"]}
    sizes |= {"rope_parameters": {"rope_type": "default", "rope_theta": case["rope_theta"]}}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, bos_token_id=1, eos_token_id=2))


def answer(folder, case):
    """Run one case."""
    if case["trained"]:
        file = pathlib.Path(case["trained"])
        network = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()
    else:
        network = theirs_draw.draw((gpt2 if case["kind"].endswith("GPT-2") else llama)(case), case["seed"])

    def run(given):
        tokens, mask = given
        found = network(input_ids=tokens, attention_mask=mask).logits
        return found * mask[..., None].to(found.dtype)

    def given(inputs, dtype):
        return torch.from_numpy(inputs).long().unbind()

    save = (lambda path: None) if case["trained"] else network.save_pretrained
    theirs_draw.answer(folder, case, network, run, save, given)


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    folder, cases = pathlib.Path(sys.argv[1]), json.loads(pathlib.Path(sys.argv[2]).read_text())
    for case in cases:
        answer(folder, case)
    versions = {module.__name__: module.__version__ for module in (torch, transformers)}
    (folder / "versions.json").write_text(json.dumps(versions))
