"""Test that codes are not taken for weights, and which dtype a merge of several has."""

import ml_dtypes
import numpy as np
import pytest

from soups import merging
from soups.cli import main
from soups.formats import write_safetensors
from soups.merging.meaning import widest

F8, BF16 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.bfloat16)
MODULE = "model.layers.0.mlp.up_proj"


def code(dtype, shape=(8, 6)):
    return np.zeros(shape, dtype)


@pytest.fixture
def planned(small, tmp_path):
    """Return a function that plans a merge of two models with these further tensors."""

    def make(of_both, of_one=None, config=None, **more):
        for name in ("base", "a"):
            leaves = small.tensors(name == "a") | of_both | ((of_one or {}) if name == "a" else {})
            small.write_model(tmp_path / name, leaves, config if name == "a" else None)
        members = [{"model": tmp_path / name, "parameters": {"weight": 1}} for name in ("base", "a")]
        return small.plan({"merge_method": "linear", "models": members, **more})

    return make


QUANTISED = {
    "GPTQ": {f"{MODULE}.{x}": code(np.int32) for x in ("qweight", "qzeros", "g_idx")}
    | {f"{MODULE}.scales": code(np.float16)},
    "AWQ": {f"{MODULE}.qweight": code(np.int32), f"{MODULE}.scales": code(np.float16)},
    "bitsandbytes, 8 bits": {f"{MODULE}.weight": code(np.int8), f"{MODULE}.SCB": code(np.float32, (8,))},
    "bitsandbytes, 4 bits": {
        **{f"{MODULE}.weight": code(np.uint8, (24, 1)), f"{MODULE}.weight.absmax": code(np.float32, (1,))},
        **{f"{MODULE}.weight.quant_map": code(np.float32, (16,))},
        **{f"{MODULE}.weight.quant_state.bitsandbytes__nf4": code(np.uint8, (80,))},
    },
    "compressed-tensors": {f"{MODULE}.weight_packed": code(np.int32), f"{MODULE}.weight_scale": code(BF16)},
    "8 bits in compressed-tensors": {f"{MODULE}.weight": code(np.int8), f"{MODULE}.weight_scale": code(BF16)},
    "fp8 of ModelOpt": {f"{MODULE}.weight": code(F8), f"{MODULE}.input_scale": code(np.float32, ())},
    "fp8 of DeepSeek": {f"{MODULE}.weight": code(F8), f"{MODULE}.weight_scale_inv": code(np.float32, (1, 1))},
    "fp8 of stacked experts": {
        "experts.down_proj": code(F8, (2, 3, 4)),
        "experts.down_proj_scale": code(np.float32, (2, 1)),
    },
    "fp8 with a scale of another name": {f"{MODULE}.weight": code(F8), f"{MODULE}.scale_weight": code(np.float32, ())},
    "MXFP4": {"experts.gate_up_proj_blocks": code(np.uint8, (2, 3, 4)), "experts.gate_up_proj_scales": code(np.uint8)},
    "scales of fp8 that was cast": {f"{MODULE}.weight_scale_inv": code(np.float32, (1, 1))},
    "fp8 in nested dicts": {"a/b/kernel": code(F8), "a/b/kernel_scale": code(np.float32, ())},
    "fp8 with the scale of its module": {f"{MODULE}.weight": code(F8), f"{MODULE}.scale": code(np.float32, ())},
    "whole numbers of stacked experts": {"experts.down_proj": code(np.int8), "experts.down_proj_scale": code(BF16)},
    "quanto": {f"{MODULE}.weight._data": code(np.int8), f"{MODULE}.weight._scale": code(BF16)},
    "scales without their codes": {"o_proj.scales": code(np.float16)},
    "whole numbers": {f"{MODULE}.weight": code(np.uint8)},
    "whole numbers of 16 bits": {f"{MODULE}.weight": code(np.int16)},
    "MLX": {f"{MODULE}.weight": code(np.uint32), f"{MODULE}.biases": code(BF16)},
    "scales of activations": {f"{MODULE}.activation_scale": code(np.float32, ())},
    "a scale for all of it": {f"{MODULE}.weight_global_scale": code(np.float32, (1,))},
    "sparse": {f"{MODULE}.weight_compressed": code(BF16), f"{MODULE}.weight_bitmask": code(np.uint8)},
    "quantizers of ModelOpt": {f"{MODULE}.weight_quantizer._amax": code(np.float32, ())},
    "QuIP#": {f"{MODULE}.Qidxs": code(np.int64), f"{MODULE}.SU": code(np.float16, (6,))},
    "EXL3": {f"{MODULE}.trellis": code(np.int16, (2, 2, 4)), f"{MODULE}.suh": code(np.float16, (6,))},
    "torchao": {f"{MODULE}.weight:qdata": code(np.int8), f"{MODULE}.weight:scale": code(BF16)},
    "packed by torchao": {f"{MODULE}.weight.layout_tensor.packed_weight": code(np.int32)},
    "shifts of quanto": {f"{MODULE}.weight._shift": code(BF16)},
    "Nunchaku": {f"{MODULE}.wscales": code(BF16)},
    "fp8 of ComfyUI": {f"{MODULE}.weight": code(F8), f"{MODULE}.comfy_quant": code(np.uint8, (9,))},
    "fp8 with any scale in its module": {f"{MODULE}.weight": code(F8), f"{MODULE}.w_scale": code(np.float32, ())},
    "quantised by PyTorch": {f"{MODULE}._packed_params.dtype": code(np.uint8, ())},
    "fp8 without modules": {"w": code(F8), "w_scale": code(np.float32, ())},
    "Marlin": {f"{MODULE}.B": code(np.int32, (1, 32)), f"{MODULE}.s": code(np.float16, (1, 16))},
    "HQQ": {f"{MODULE}.W_q": code(np.uint8), f"{MODULE}.scale": code(BF16), f"{MODULE}.zero": code(BF16)},
    "HQQ in nested dicts": {
        **{f"{MODULE}.W_q": code(np.float16), f"{MODULE}.meta.scale_q": code(np.uint8)},
        **{f"{MODULE}.meta.meta_scale.scale": code(np.float16), f"{MODULE}.meta.zero": code(np.float16)},
    },
    "VPTQ": {f"{MODULE}.indices": code(np.int32, (1, 4, 2)), f"{MODULE}.centroids.weight": code(BF16, (1, 64))},
    "VPTQ with codes as floats": {
        **{f"{MODULE}.indices": code(np.float16, (1, 4, 2)), f"{MODULE}.centroids.weight": code(np.float16, (1, 64))},
    },
    "VPTQ with residuals": {
        **{f"{MODULE}.{part}indices": code(np.int16, (1, 4, 2)) for part in ("", "res_")},
        **{f"{MODULE}.{part}centroids.weight": code(np.float16, (1, 64)) for part in ("", "res_")},
    },
    "SpQR": {f"{MODULE}.{name}": code(np.int32, (8,)) for name in ("row_offsets", "col_vals", "in_perm")}
    | {f"{MODULE}.dense_weights": code(np.int64, (16,))},
    "sparse by bitmasks": {
        **{f"{MODULE}.compressed": code(BF16, (20,)), f"{MODULE}.bitmask": code(np.uint8, (8, 1))},
        **{f"{MODULE}.shape": code(np.int64, (2,)), f"{MODULE}.row_offsets": code(np.int64, (8,))},
    },
    "whole numbers without modules": {"w": code(np.int8), "w_amax": code(np.float32, ())},
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_models_are_refused_by_their_tensors(planned, tmp_path, kind):
    with pytest.raises(ValueError, match="so their sum means nothing") as error:
        planned(QUANTISED[kind])
    for name in ("base", "a"):
        assert f"  ~ {tmp_path / name} is quantised: " in str(error.value)
    assert "such as" in str(error.value) and "dequantise it first" in str(error.value)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors", "mxfp4", "torchao"])
@pytest.mark.parametrize("part", [None, "text_config"])
def test_quantised_models_are_refused_by_their_config(planned, tmp_path, method, part):
    config = {"quantization_config": {"quant_method": method}}
    with pytest.raises(ValueError, match=rf"a is quantised: its config.json has a quantization_config of {method}"):
        planned({}, config={part: config} if part else config)


@pytest.mark.parametrize("setting", ["quantization", "quantize_config", "compression_config"])
def test_other_settings_of_quantised_models_are_refused(planned, setting):
    with pytest.raises(ValueError, match=f"a is quantised: its config.json has a {setting}: dequantise it first"):
        planned({}, config={setting: {"bits": 4, "group_size": 64}})


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_quantised_models_are_refused_by_the_files_beside_them(small, tmp_path, name):
    (small.write_model(tmp_path / "a", small.tensors(1)) / name).write_text("{}")
    with pytest.raises(ValueError, match=f"a is quantised: {name} lies in its folder: dequantise it first"):
        small.plan({"merge_method": "passthrough", "models": [{"model": tmp_path / "a"}]})


def test_one_model_alone_is_looked_at_too(small, tmp_path):
    write_safetensors(tmp_path / "a.safetensors", QUANTISED["fp8 of DeepSeek"])
    recipe = {"merge_method": "passthrough", "models": [{"model": tmp_path / "a.safetensors"}]}
    with pytest.raises(ValueError, match="is quantised"):
        small.plan(recipe)
    (note,) = small.plan(recipe | {"insist": True}).notes
    assert note.startswith("merged because of insist, although ") and "is quantised" in note


FACTORS = {
    "PEFT": ["base_model.model.q.lora_A.weight", "q.lora_embedding_B", "q.lora_A.default.weight"],
    "kohya": ["lora_unet_mid_q.lora_down.weight", "lora_te_q.lora_up.weight", "lora_te_q.lora_mid.weight"],
    "diffusers": ["unet.q.lora.down.weight", "unet.to_q_lora.up.weight"],
    "LyCORIS": ["lora_te_q.hada_w1_a", "lora_te_q.lokr_w1", "lora_te_q.lokr_w2_b", "lora_te_q.hada_t1"],
    "XLabs": ["blocks.0.processor.proj_lora1.down.weight"],
    "Flax": ["params/q/lora_a", "layers/0/q_einsum/w_lora_b"],
    "VeRA": ["q.vera_lambda_b"],
}


@pytest.mark.parametrize("name", [name for names in FACTORS.values() for name in names])
def test_factors_of_adapters_are_not_averaged(small, tmp_path, name):
    write_safetensors(tmp_path / "a.safetensors", {name: code(np.float32)})
    recipe = {"merge_method": "passthrough", "models": [{"model": tmp_path / "a.safetensors"}]}
    with pytest.raises(ValueError, match=r"a\.safetensors holds factors of an adapter, such as .*merge each adapter"):
        small.plan(recipe)
    assert small.plan(recipe | {"insist": True}).notes[0].startswith("merged because of insist, although ")


PLAIN = {
    "names that sound like an adapter's": {"flora.up.weight": code(BF16), "x.w_lora.0.weight": code(BF16)},
    "fp8 without scales": {f"{MODULE}.weight": code(F8)},
    "fp8 of norms of Flax": {"norm/scale": code(F8, (6,)), "norm/bias": code(F8, (6,))},
    "whole numbers beside the temperature": {
        "attn.logit_scale": code(BF16),
        "attn.relative_position_index": code(np.int64),
    },
    "the temperature of CLIP": {"logit_scale": code(np.float32, ())},
    "its temperature beside whole numbers": {"logit_scale": code(np.float32, ()), "labels": code(np.int8)},
    "a scale for nothing": {"scale": code(np.float32, ()), "labels": code(np.int8)},
    "scales of layers": {"blocks.0.layer_scale": code(np.float32, (3,)), "norm.scale": code(np.float32, (3,))},
    "scales of norms beside whole numbers": {"norm.scale": code(np.float32, (3,)), "norm.steps": code(np.int64, ())},
    "scales without codes": {"scales": code(np.float32, (3,))},
    "matrices called B": {"ssm.A": code(BF16), "ssm.B": code(BF16), "ssm.s": code(BF16, (1, 3))},
    "the cluster of each token": {"vq.indices": code(np.int64, (8,)), "vq.centroids.weight": code(BF16)},
    "places without centroids": {"attn.indices": code(np.int64, (1, 4, 4)), "attn.B": code(np.int32)},
    "masks of bits": {"h.0.bitmask": code(np.uint8), "h.0.dense_weights": code(BF16), "h.0.col_vals": code(BF16, (3,))},
    "masks of attention": {"h.0.attn.bias": code(np.uint8, (1, 1, 4, 4)), "h.0.attn.mask": code(np.bool_, (4, 4))},
}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_tensors_are_no_codes(planned, kind):
    assert planned(PLAIN[kind]).notes == ()


# --- Dtypes ---


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (["float16"], "float16"),
        (["bfloat16", "float16"], "float32"),
        (["bfloat16", "float32"], "float32"),
        (["float16", "float64", "bfloat16"], "float64"),
        (["float8_e4m3fn", "bfloat16"], "bfloat16"),
        (["float8_e5m2", "float16"], "float16"),
        (["float8_e4m3fn", "float8_e5m2"], "bfloat16"),
        (["float8_e4m3fn", "float16", "bfloat16"], "float32"),
        (["complex64", "float64"], "complex128"),
    ],
)
def test_the_widest_holds_all_numbers(dtypes, expected):
    for order in (dtypes, dtypes[::-1]):
        assert widest(map(np.dtype, order)) == np.dtype(expected)


def numbers(dtype):
    return {"norm": np.linspace(1, 2, 6).astype(dtype)}


@pytest.mark.parametrize("order", [(BF16, np.float32), (np.float32, BF16)])
def test_mixed_dtypes_give_the_widest_and_that_is_said(planned, small, tmp_path, order):
    made = planned(numbers(order[0]), numbers(order[1]), {"torch_dtype": "bfloat16"})
    (note,) = made.notes
    assert (
        note.startswith("of 1 tensor the models have different dtypes, such as norm: ") and "written as float32" in note
    )
    merging.merge_to_folder(made, tmp_path / "out")
    merged = small.read(tmp_path / "out")["norm"]
    expected = sum(numbers(dtype)["norm"].astype(np.float64) for dtype in order) / 2
    assert merged.dtype == np.float32
    np.testing.assert_allclose(merged, expected, rtol=1e-6)


def test_a_base_counts_too(small, tmp_path):
    for name, dtype in (("base", np.float32), ("a", BF16)):
        small.write_model(tmp_path / name, numbers(dtype))
    members = [{"model": tmp_path / "a", "parameters": {"weight": 0.5}}]
    recipe = {"merge_method": "task_arithmetic", "base_model": tmp_path / "base", "models": members}
    assert small.plan(recipe).outputs[0].dtype == np.float32
    for field in ("dtype", "out_dtype"):
        made = small.plan(recipe | {field: "bfloat16"})
        assert made.outputs[0].dtype == BF16 and made.notes == ()


# --- The command ---


def test_the_command_prints_notes_and_insists(small, tmp_path, capsys):
    for name, heads in (("base", 2), ("a", 3)):
        config = {"num_attention_heads": heads, "rope_theta": 10.0 * heads}
        small.write_model(tmp_path / name, small.tensors(name == "a"), config)
    (tmp_path / "base" / "optimizer.pt").write_text("x")
    words = ["merge", "--method", "linear", "--members", *(str(tmp_path / name) for name in ("base", "a"))]
    words += ["--out", str(tmp_path / "out"), "--dry-run"]
    assert main(words) == 2
    assert "num_attention_heads is 3 instead of 2" in capsys.readouterr().err
    assert main([*words, "--insist"]) == 0
    printed = " ".join(capsys.readouterr().out.split())  # lines are broken where a terminal ends
    assert "merged because of insist, although " in printed and "rope_theta 30.0 instead of 20.0" in printed
    assert f"not copied from {tmp_path / 'base'}: optimizer.pt" in printed


@pytest.mark.parametrize("form", ["orbax", "pool"])
def test_every_kind_of_output_is_refused(small, tmp_path, capsys, form):
    for name, heads in (("base", 2), ("a", 3)):
        small.write_model(tmp_path / name, small.tensors(name == "a"), {"num_attention_heads": heads})
    out = f"{tmp_path / 'out'}:x" if form == "pool" else tmp_path / "out"
    words = ["merge", "--method", "linear", "--members", *(str(tmp_path / name) for name in ("base", "a"))]
    assert main([*words, "--format", form, "--out", str(out)]) == 2
    assert "num_attention_heads is 3 instead of 2" in capsys.readouterr().err and not (tmp_path / "out").exists()
