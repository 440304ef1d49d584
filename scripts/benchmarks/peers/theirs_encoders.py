"""Build the encoders of transformers, and run them on tokens.

    python theirs_encoders.py FOLDER CASES.json

For each case it writes FOLDER/NAME, a folder of weights, and FOLDER/NAME.logits.npz with the inputs, int32 [3, B, T],
and what the network makes of them in float32 and in float64; what it makes of padding is zero.
"""

import json
import pathlib
import sys

import numpy as np
import theirs_draw
import torch
import transformers

# as the released networks of DeBERTa-v3 state it
DEBERTA = {"relative_attention": True, "share_att_key": True, "pos_att_type": "p2c|c2p", "norm_rel_ebd": "layer_norm"}
DEBERTA |= {"position_biased_input": False, "max_relative_positions": -1}


def config_of(case, kind):
    """Return the configuration of a case."""
    named = {"hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "num_heads"}
    named |= {"intermediate_size": "mlp_dim", "vocab_size": "vocabulary_size", "type_vocab_size": "num_segments"}
    named |= {"hidden_act": "activation", "layer_norm_eps": "norm_epsilon"}
    sizes = {theirs: case[ours] for theirs, ours in named.items()} | {"num_labels": case["classes"]}
    sizes["max_position_embeddings"] = case["context_length"] + case["position_offset"]
    if case["buckets"]:
        sizes |= DEBERTA | {"position_buckets": case["buckets"], "legacy": case["kind"].startswith("transformers")}
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
    "transformers DeBERTa": (transformers.DebertaV2ForSequenceClassification, transformers.DebertaV2Config, logits),
    "transformers DeBERTa MLM": (transformers.DebertaV2ForMaskedLM, transformers.DebertaV2Config, logits),
    "released DeBERTa MLM": (transformers.DebertaV2ForMaskedLM, transformers.DebertaV2Config, logits),
}


def t5(case):
    """Build a T5; since version 5 transformers tie the logits of 1.1 to the embeddings unless a file has both."""
    named = {"d_model": "width", "num_layers": "depth", "d_ff": "mlp_dim", "num_heads": "num_heads"}
    named |= {"d_kv": "head_dim", "vocab_size": "vocabulary_size", "relative_attention_num_buckets": "buckets"}
    named |= {"relative_attention_max_distance": "distance"}
    sizes = {theirs: case[ours] for theirs, ours in named.items()} | {"decoder_start_token_id": 0}
    gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if case["gated"] else {}
    network = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **gated))
    if case["gated"]:
        network.lm_head.weight = torch.nn.Parameter(network.lm_head.weight.detach().clone())
    return network


def answer_t5(folder, case):
    """Run one case of T5, whose third input is what the decoder is given."""
    network = theirs_draw.draw(t5(case), case["seed"])
    for name, weight in network.named_parameters():
        if name.endswith(".q.weight"):  # as T5 begins: its scores are not divided, and would be all or nothing
            weight.data *= case["head_dim"] ** -0.5

    def run(given):
        tokens, mask, written = given
        return network(input_ids=tokens, attention_mask=mask, decoder_input_ids=written).logits

    theirs_draw.answer(
        folder, case, network, run, network.save_pretrained, lambda inputs, _: torch.from_numpy(inputs).long().unbind()
    )


def align(case):
    """Build an ALIGN."""
    named = {"hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "num_heads"}
    named |= {"intermediate_size": "mlp_dim", "vocab_size": "vocabulary_size", "type_vocab_size": "num_segments"}
    named |= {"hidden_act": "activation", "layer_norm_eps": "norm_epsilon"}
    named |= {"max_position_embeddings": "context_length"}
    text = {theirs: case["text"][ours] for theirs, ours in named.items()}
    widths, blocks, sizes, strides, expansions = zip(*case["plan"], strict=True)
    image = {"out_channels": widths, "in_channels": (32, *widths[:-1]), "num_block_repeats": blocks}
    image |= {"kernel_sizes": sizes, "strides": strides, "expand_ratios": expansions}
    image |= {"width_coefficient": case["width_multiplier"], "depth_coefficient": case["depth_multiplier"]}
    image |= {"depthwise_padding": case["symmetric"], "image_size": case["image_size"]}
    image |= {"hidden_dim": case["projection"]}
    config = {"text_config": text, "vision_config": image, "projection_dim": case["projection"]}
    return transformers.AlignModel(transformers.AlignConfig(**config))


def answer_align(folder, case):
    """Run one case of ALIGN: features of images, or logits of texts with images of the seed 1."""
    network = theirs_draw.draw(align(case), case["seed"])
    network.temperature.data = torch.tensor(0.07)
    shape = (4, case["image_size"], case["image_size"], 3)
    own = np.random.default_rng(1).random(shape, np.float32)
    of_text = case["kind"].endswith("text")

    def pixels(images, dtype):
        # as its processor gives them
        return torch.from_numpy(images).permute(0, 3, 1, 2).to(dtype) * 2 - 1

    def run(given):
        if not of_text:
            features = network.vision_model(given).pooler_output
            return features / features.norm(dim=-1, keepdim=True)
        tokens, mask, segments, images = given
        made = network(pixel_values=images, input_ids=tokens, attention_mask=mask, token_type_ids=segments)
        return made.logits_per_text

    def given(inputs, dtype):
        if not of_text:
            return pixels(inputs, dtype)
        return (*torch.from_numpy(inputs).long().unbind(), pixels(own, dtype))

    theirs_draw.answer(folder, case, network, run, network.save_pretrained, given)


def answer(folder, case):
    """Run one case."""
    for kind, own in {"T5": answer_t5, "ALIGN": answer_align}.items():
        if kind in case["kind"]:
            return own(folder, case)
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
