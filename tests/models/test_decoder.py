"""Give decoders of texts their inputs and files; what all networks of texts share is in test_text_networks.py."""

import dataclasses
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded_texts import DECODERS, GPT2, LLAMA, RECORDED, UNTIED, changed, tensors_of

from soups import tree
from soups.formats import open_checkpoint
from soups.models.architectures import decoder_of
from soups.models.import_weights import check_weights, import_weights
from soups.models.tables import reading

ROW = {"tokens": np.zeros((2, 4), np.int32), "mask": np.ones((2, 4), bool)}


@pytest.mark.parametrize("folder", [GPT2, LLAMA])
def test_no_token_sees_one_behind_it(case, folder):
    _, params, apply, inputs, _ = case(folder)
    expected, tokens = np.asarray(apply(params, inputs)), inputs["tokens"]
    for at in (0, 4):
        changed = tokens.copy()
        changed[0, at] = 3 + (changed[0, at] - 2) % 20
        moved = np.abs(np.asarray(apply(params, {**inputs, "tokens": changed}))[0] - expected[0]).max(axis=1)
        assert (moved[:at] == 0).all() and (moved[at:] > 1e-5).all()


@pytest.mark.parametrize("folder", [GPT2, LLAMA])
def test_padding_may_stand_in_front(case, folder):
    _, params, apply, inputs, _ = case(folder)
    expected = np.asarray(apply(params, inputs))
    shift = inputs["mask"].shape[1] - inputs["mask"].sum(axis=1)
    rolled = {name: np.stack([np.roll(row, n) for row, n in zip(x, shift, strict=True)]) for name, x in inputs.items()}
    np.testing.assert_allclose(
        np.asarray(apply(params, rolled))[rolled["mask"]], expected[inputs["mask"]], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("folder", [GPT2, LLAMA])
def test_ends_that_share_their_begin_are_those_of_rows_of_their_own(case, folder):
    _, params, apply, inputs, _ = case(folder)
    row = inputs["tokens"][:1]
    begin, ends = row[:, :4], (row[:, 4:7], row[:, 7:])  # 10 tokens in all
    tokens = np.concatenate([begin, *ends, ends[0][:, :2]], axis=1)  # and 12 here
    segments = np.repeat([0, 1, 2, 3], [4, 3, 3, 2])[None].astype(np.int32)
    at = np.array([[3, 6, 9, 11]], np.int32)
    both = {"tokens": tokens, "mask": np.ones_like(tokens, bool), "segments": segments}
    found = np.asarray(apply(params, both | {"at": at}))
    np.testing.assert_allclose(found, np.asarray(apply(params, both))[:, at[0]], rtol=1e-5, atol=1e-6)
    for place, end in zip((1, 2, 3), (*ends, ends[0][:, :2]), strict=True):
        alone = np.concatenate([begin, end], axis=1)
        expected = np.asarray(apply(params, {"tokens": alone, "mask": np.ones_like(alone, bool)}))
        np.testing.assert_allclose(found[0, [0, place]], expected[0, [3, -1]], rtol=1e-4, atol=1e-5)


def test_a_classifier_reads_the_last_token(case):
    arch, params, apply, inputs, _ = case(GPT2)
    logits, last = np.asarray(apply(params, inputs)), inputs["mask"].sum(axis=1) - 1
    head = {"kernel": params["token_embedding"]["embedding"].T, "bias": np.zeros(24, np.float32)}
    found = jax.jit(arch.apply_fn(24))({**params, "head": head}, inputs)
    np.testing.assert_allclose(found, logits[np.arange(len(last)), last], rtol=1e-5, atol=1e-6)
    zeros = import_weights(RECORDED / GPT2, arch, num_classes=3)["head"]
    assert zeros["kernel"].shape == (16, 3) and not any(leaf.any() for leaf in zeros.values())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"tokens": np.zeros((1, 3), np.int32)}, "mask is missing"),
        ({"tokens": np.zeros((1, 11), np.int32), "mask": np.ones((1, 11), bool)}, r"T from 1 to 10, not \[1, 11\]"),
        ({**ROW, "segments": np.zeros((2, 3), np.int32)}, r"segments must be integers \[2, 4\]"),
        ({**ROW, "at": np.zeros((1, 3), np.int32)}, r"at must be integers \[2, 3\]"),
        ({**ROW, "at": np.zeros((2, 3), bool)}, r"at must be integers \[2, 3\], but they are bool"),
    ],
)
def test_other_inputs_are_errors(arch_of, inputs, message):
    arch = arch_of(GPT2)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(arch.apply_fn(None), arch.abstract(None), jax.tree.map(jnp.asarray, inputs))


@pytest.mark.parametrize(
    ("fields", "more", "message"),
    [
        ({"activation": "relu"}, {}, "unknown activation 'relu'"),
        ({"num_heads": 3}, {}, "width 16 does not divide into 3 heads"),
        ({"num_kv_heads": 3}, {}, "4 heads do not divide into 3 groups"),
        ({"num_classes": 3}, {"at": np.zeros((2, 1), np.int32)}, "a classifier takes none"),
    ],
)
def test_other_fields_are_errors(arch_of, fields, more, message):
    model = arch_of(GPT2).features.clone(**fields)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), ROW | more)


def test_what_is_beyond_the_tables_is_not_a_number(case):
    _, params, apply, inputs, _ = case(GPT2)
    tokens = inputs["tokens"].copy()
    tokens[0, 5] = 24
    found = np.asarray(apply(params, {**inputs, "tokens": tokens}))
    assert np.isnan(found[0]).all() and np.isfinite(found[1:]).all()
    long = {"tokens": np.zeros((1, 12), np.int32), "mask": np.ones((1, 12), bool)}
    assert np.isnan(apply(params, long | {"segments": np.zeros((1, 12), np.int32)})).all()


# --- Files ---


@pytest.mark.parametrize("order", [("embed", "logits"), ("logits", "embed")])
def test_logits_that_torch_saved_as_the_embeddings_are_these(arch_of, monkeypatch, order):
    tensors, names = tensors_of(LLAMA), {"embed": "model.embed_tokens.weight", "logits": "lm_head.weight"}
    first, second = (names[one] for one in order)
    checkpoint = open_checkpoint(RECORDED / LLAMA)
    leaf = dataclasses.replace(checkpoint.leaves[names["embed"]], name=first)
    rest = {name: one for name, one in checkpoint.leaves.items() if name != names["embed"]}
    tied = dataclasses.replace(checkpoint, leaves={first: leaf, **rest}, aliases={second: first})
    monkeypatch.setattr(reading, "open_checkpoint", lambda path, **options: tied)
    found = import_weights(RECORDED / LLAMA, arch_of(LLAMA))
    np.testing.assert_array_equal(found["token_embedding"]["embedding"], tensors[names["embed"]])
    assert "lm_head" not in found


def test_gpt2_may_have_its_own_matrix_of_logits(arch_of, write):
    own = {**tensors_of(GPT2), "lm_head.weight": tensors_of(GPT2)["transformer.wte.weight"] + 1}
    with pytest.raises(ValueError, match=r"'lm_head.weight' is extra"):
        check_weights(write(own), arch_of(GPT2))
    untied = dataclasses.replace(arch_of(GPT2), features=arch_of(GPT2).features.clone(tied=False))
    found = import_weights(write(own), untied)
    tree.check_same_structure([untied.abstract(None), found])
    np.testing.assert_array_equal(found["lm_head"]["kernel"].T, own["lm_head.weight"])


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_is_read_with_and_without_the_prefix_and_with_old_buffers(arch_of, write, prefix):
    tensors = {prefix + name.removeprefix("transformer."): leaf for name, leaf in tensors_of(GPT2).items()}
    tensors[f"{prefix}h.0.attn.bias"] = np.ones((1, 1, 10, 10), np.uint8)
    found = import_weights(write(tensors), arch_of(GPT2))
    jax.tree.map(np.testing.assert_array_equal, found, import_weights(RECORDED / GPT2, arch_of(GPT2)))


@pytest.mark.parametrize("folder", DECODERS)
def test_a_decoder_has_the_sizes_that_its_folder_says(arch_of, folder):
    found, wanted = decoder_of(RECORDED / folder), arch_of(folder).features
    assert (found.family, found.feature_dim) == (arch_of(folder).family, 16)
    assert found.features.clone(head_dim=None) == wanted
    check_weights(RECORDED / folder, found)


@pytest.mark.parametrize(
    ("folder", "fields", "message"),
    [
        (GPT2, {"model_type": "t5"}, "unknown model_type in .*config.json 't5'; there are: gpt2, llama"),
        (GPT2, {"n_embd": None, "vocab_size": 0}, "must give these .*: n_embd, vocab_size"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        (GPT2, {"activation_function": "relu"}, "unknown activation of .*'relu'"),
        (LLAMA, {"attention_bias": True}, "not supported: attention_bias is True"),
        (LLAMA, {"rope_parameters": {"rope_type": "llama3"}}, "rope_type is 'llama3'"),
        (LLAMA, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        (LLAMA, {"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling is {'rope_type': 'yarn'}"),
    ],
)
def test_folders_of_other_networks_are_errors(tmp_path, folder, fields, message):
    with pytest.raises(ValueError, match=message):
        decoder_of(changed(tmp_path, folder, **fields))
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        decoder_of(tmp_path)


@pytest.mark.parametrize(
    ("folder", "fields", "message"),
    [
        (LLAMA, {"rope_parameters": {"rope_theta": 500.0}}, "says rope_theta 500.0, but smollm2-135m has 100000.0"),
        (LLAMA, {"tie_word_embeddings": False}, "says tied False, but smollm2-135m has True"),
        (LLAMA, {"hidden_act": "gelu"}, "says activation gelu, but smollm2-135m has silu"),
        (GPT2, {"layer_norm_epsilon": 1e-3}, "says norm_epsilon 0.001, but gpt2 has 1e-05"),
    ],
)
def test_configs_of_another_computation_are_errors(arch_of, tmp_path, folder, fields, message):
    with pytest.raises(ValueError, match=message):
        check_weights(changed(tmp_path, folder, **fields), arch_of(folder))


def test_files_of_another_decoder_are_errors(arch_of):
    with pytest.raises(ValueError, match=r"GPT-2 names, but smollm2-135m needs Hugging Face's Llama names or GGUF's"):
        check_weights(RECORDED / GPT2, arch_of(LLAMA))
    with pytest.raises(ValueError, match=r"'lm_head.weight' is extra"):
        check_weights(RECORDED / UNTIED / "model.safetensors", arch_of(LLAMA))


# --- GGUF ---

IN_GGUF = {"embed_tokens": "token_embd", "norm": "output_norm", "q_proj": "attn_q", "k_proj": "attn_k"}
IN_GGUF |= {"v_proj": "attn_v", "o_proj": "attn_output", "up_proj": "ffn_up", "gate_proj": "ffn_gate"}
IN_GGUF |= {"down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
SAID = {"block_count": 2, "context_length": 10, "embedding_length": 16, "feed_forward_length": 32}
SAID |= {"attention.head_count": 4, "attention.head_count_kv": 2, "rope.freq_base": 1e5}
SAID |= {"attention.layer_norm_rms_epsilon": 1e-5}


def written_gguf(path, tensors, said, architecture=b"llama"):
    """Write a GGUF file of float32 tensors, as its description says."""
    content = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), 1 + len(said))
    content += _text(b"general.architecture") + struct.pack("<I", 8) + _text(architecture)
    for name, value in said.items():
        content += _text(f"llama.{name}".encode())
        content += struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)
    data = b""
    for name, leaf in tensors.items():
        content += _text(name.encode()) + struct.pack(f"<I{leaf.ndim}Q", leaf.ndim, *reversed(leaf.shape))
        content += struct.pack("<IQ", 0, len(data))
        data += leaf.tobytes() + b"\0" * (-leaf.nbytes % 32)
    path.write_bytes(content + b"\0" * (-len(content) % 32) + data)
    return path


def _text(content):
    return struct.pack("<Q", len(content)) + content


def as_gguf(tensors):
    """Rename the tensors of a Llama, and put the rows of queries and keys that are turned together side by side."""
    made = {}
    for name, leaf in tensors.items():
        *above, last, _ = name.split(".")
        block = f"blk.{above[2]}." if "layers" in above else ""
        if last in ("q_proj", "k_proj"):  # heads of four rows: 0 and 2 are turned together, as are 1 and 3
            order = [4 * head + row for head in range(len(leaf) // 4) for row in (0, 2, 1, 3)]
            leaf = leaf[order]
        made[f"{block}{IN_GGUF[last]}.weight"] = leaf
    return made


def test_a_gguf_file_gives_the_same_network(arch_of, tmp_path):
    expected = import_weights(RECORDED / LLAMA, arch_of(LLAMA))
    file = written_gguf(tmp_path / "model.gguf", as_gguf(tensors_of(LLAMA)), SAID)
    arch = decoder_of(file)
    assert arch.features.clone(head_dim=None, norm_epsilon=1e-5) == arch_of(LLAMA).features
    assert arch.features.norm_epsilon == pytest.approx(1e-5)
    for found in (import_weights(file, arch), import_weights(file, arch_of(LLAMA))):
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_gguf_file_may_have_its_own_matrix_of_logits(tmp_path):
    tensors = {**as_gguf(tensors_of(LLAMA)), "output.weight": tensors_of(LLAMA)["model.embed_tokens.weight"] + 1}
    arch = decoder_of(file := written_gguf(tmp_path / "model.gguf", tensors, SAID))
    assert not arch.features.tied
    np.testing.assert_array_equal(import_weights(file, arch)["lm_head"]["kernel"].T, tensors["output.weight"])


@pytest.mark.parametrize(
    ("said", "architecture", "message"),
    [
        (SAID, b"qwen2", "unknown general.architecture in .*'qwen2'; there are: llama"),
        ({**SAID, "block_count": 0}, b"llama", "must give these .*: llama.block_count"),
        ({**SAID, "rope.scaling.factor": 8.0}, b"llama", "not supported: it has llama.rope.scaling.factor"),
    ],
)
def test_gguf_files_of_other_networks_are_errors(tmp_path, said, architecture, message):
    file = written_gguf(tmp_path / "model.gguf", as_gguf(tensors_of(LLAMA)), said, architecture)
    with pytest.raises(ValueError, match=message):
        decoder_of(file)


def test_scaled_rotations_of_a_gguf_file_are_an_error(arch_of, tmp_path):
    tensors = {**as_gguf(tensors_of(LLAMA)), "rope_freqs.weight": np.full(2, 8, np.float32)}
    file = written_gguf(tmp_path / "model.gguf", tensors, SAID)
    with pytest.raises(ValueError, match=r"not supported: it has rope_freqs\.weight"):
        decoder_of(file)
    with pytest.raises(ValueError, match=r"rope_freqs\.weight"):
        check_weights(file, arch_of(LLAMA))


def test_a_gguf_file_of_another_computation_is_an_error(arch_of, tmp_path):
    file = written_gguf(tmp_path / "model.gguf", as_gguf(tensors_of(LLAMA)), {**SAID, "rope.freq_base": 500.0})
    with pytest.raises(ValueError, match=r"model.gguf says rope_theta 500.0, but smollm2-135m has 100000.0"):
        check_weights(file, arch_of(LLAMA))
