"""Import files that open_clip, transformers, timm, torchvision and torch wrote, and compare with what they computed.

The recorded files and logits are those of `scripts/benchmarks/parity_models.py --sizes small --record`.
"""

import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from soups import tree
from soups.formats import UnsafeCheckpointError, open_checkpoint
from soups.models.import_weights import check_weights, import_weights, imported_members

RECORDED = pathlib.Path(__file__).parent / "recorded" / "models"
FILES = {
    "released-clip-vit-mini.pt": "clip-vit-mini",
    "open_clip-open-clip-vit-b32.safetensors": "open-clip-vit-b32",
    "transformers-CLIP-clip-vit-mini": "clip-vit-mini",
    "transformers-ViT-hf-vit-ti16": "hf-vit-ti16",
    "timm-timm-vit-ti16.safetensors": "timm-vit-ti16",
    "AugReg-by-timm-vit-ti16.npz": "vit-ti16",
    "torchvision-resnet50.pth": "resnet50",
}
RELEASED, OPEN_CLIP, HF_CLIP, HF_VIT, TIMM, AUGREG, TORCHVISION = (RECORDED / name for name in FILES)


def tensors_of(path):
    checkpoint = open_checkpoint(path)
    return {name: np.array(checkpoint.read(name)) for name in (*checkpoint.leaves, *checkpoint.aliases)}


@pytest.fixture
def released(small):
    """Return the tensors of the released file, and their architecture."""
    return tensors_of(RELEASED), small("clip-vit-mini")


# --- Equality with other programs ---


@pytest.mark.parametrize("name", FILES)
def test_logits_equal_those_of_the_program_that_wrote_the_file(small, name):
    arch = small(FILES[name])
    params = import_weights(RECORDED / name, arch)
    classes = next((x.shape[0] for leaf, x in tree.flatten(params).items() if leaf.endswith("head/bias")), None)
    assert classes == (None if name in (OPEN_CLIP.name, HF_CLIP.name) else 5)
    tree.check_same_structure([arch.abstract(classes), params])
    with np.load(RECORDED / f"{name}.logits.npz") as theirs:
        images = theirs["inputs"].astype(np.float32) / np.float32(255)
        found = np.asarray(jax.jit(arch.apply_fn(classes))(params, images), np.float64)
        error = np.abs(found - theirs["float64"]).max() / np.abs(theirs["float64"]).max()
    assert error <= 1e-5


def test_weights_are_views_of_the_file_and_the_class_token_has_its_position(released):
    tensors, arch = released
    leaves = tree.flatten(import_weights(RELEASED, arch))
    assert {name for name, leaf in leaves.items() if leaf.flags.owndata or leaf.flags.writeable} == {"cls"}
    position = tensors["model.visual.positional_embedding"]
    np.testing.assert_array_equal(leaves["cls"][0, 0], tensors["model.visual.class_embedding"] + position[0])
    np.testing.assert_array_equal(leaves["pos_embedding"][0], position[1:])
    block = "Transformer/encoderblock_1/MultiHeadDotProductAttention_0"
    stacked = tensors["model.visual.transformer.resblocks.1.attn.in_proj_weight"]  # query, key and value
    key_of_head_1 = stacked[16:32][8:16]
    np.testing.assert_array_equal(leaves[f"{block}/key/kernel"][:, 1], key_of_head_1.T)


# --- Forms of files ---


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32(released, write, dtype):
    tensors, arch = released
    path = write({name: x.astype(dtype) for name, x in tensors.items()})
    kernel = import_weights(path, arch)["head"]["kernel"]
    assert kernel.dtype == np.float32
    expected = tensors["classification_head.weight"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(kernel, expected.T)


def test_names_of_torchs_parallel_wrapper_are_understood(released, write):
    tensors, arch = released
    path = write({f"module.{name}": x for name, x in tensors.items()})
    found, expected = import_weights(path, arch), import_weights(RELEASED, arch)
    np.testing.assert_array_equal(found["projection"]["kernel"], expected["projection"]["kernel"])


def test_a_folder_of_open_clip_is_read(small, tmp_path):
    shutil.copyfile(OPEN_CLIP, tmp_path / "open_clip_model.safetensors")
    config = {"model_cfg": {"embed_dim": 8}, "preprocess_cfg": {"mean": list(small("open-clip-vit-b32").mean)}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    params = import_weights(tmp_path, small("open-clip-vit-b32"))
    assert params["projection"]["kernel"].shape == (16, 8)


def test_a_vit_of_hugging_face_without_its_classifier_is_read(small, write):
    bare = {n.removeprefix("vit."): x for n, x in tensors_of(HF_VIT).items() if not n.startswith("classifier")}
    bare |= {"pooler.dense.weight": np.zeros((16, 16), np.float32), "pooler.dense.bias": np.zeros(16, np.float32)}
    params = import_weights(write(bare), small("hf-vit-ti16"))
    whole = import_weights(HF_VIT, small("hf-vit-ti16"))
    tree.check_same_structure([{name: x for name, x in whole.items() if name != "head"}, params])


# --- Heads ---


@pytest.mark.parametrize(("file", "name"), [(OPEN_CLIP, "open-clip-vit-b32"), (HF_CLIP, "clip-vit-mini")])
def test_a_file_without_a_head_gets_zeros(small, file, name):
    head = import_weights(file, small(name), num_classes=3)["head"]
    assert {part: x.shape for part, x in head.items()} == {"kernel": (8, 3), "bias": (3,)}
    assert all(x.dtype == np.float32 and not x.any() for x in head.values())


@pytest.mark.parametrize("file", [RELEASED, TORCHVISION, AUGREG])
def test_a_head_of_other_classes_is_an_error(small, file):
    arch = small(FILES[file.name])
    check_weights(file, arch, num_classes=5)
    with pytest.raises(ValueError, match="its head is of 5 classes, not 1000"):
        import_weights(file, arch, num_classes=1000)


def test_a_head_of_one_class_is_an_error(small):
    with pytest.raises(ValueError, match="at least two classes, not 1"):
        import_weights(OPEN_CLIP, small("open-clip-vit-b32"), num_classes=1)


# --- What a file lacks, has too much, or has otherwise ---


def test_everything_that_is_wrong_is_listed_at_once(released, write):
    tensors, arch = released
    del tensors["model.visual.proj"], tensors["classification_head.bias"]
    tensors["model.visual.ln_post.gain"] = np.zeros(16, np.float32)
    tensors["model.visual.ln_pre.bias"] = np.zeros(17, np.float32)
    tensors["model.visual.class_embedding"] = np.zeros(16, np.int32)
    path = write(tensors)
    with pytest.raises(ValueError) as error:
        check_weights(path, arch, num_classes=7)
    assert str(error.value).splitlines() == [
        f"{path} does not hold the weights of clip-vit-mini:",
        "  - model.visual.proj is missing",
        "  - classification_head.bias is missing",
        "  + 'model.visual.ln_post.gain' is extra (did you mean 'model.visual.ln_post.bias'?)",
        "  ~ model.visual.class_embedding has dtype int32, which is not a float",
        "  ~ model.visual.ln_pre.bias has shape (17,) instead of (16,)",
        "  ~ its head is of 5 classes, not 7",
    ]


def test_a_hostile_number_of_extra_tensors_is_counted(released, write):
    tensors, arch = released
    more = {f"{index}\n": np.zeros(1, np.float32) for index in range(60)}
    with pytest.raises(ValueError) as error:
        check_weights(write(tensors | more), arch)
    lines = str(error.value).splitlines()
    assert len(lines) == 52 and lines[-1] == "  + 10 more are extra"


def test_another_size_of_network_is_an_error(small):
    with pytest.raises(ValueError, match=r"ln_post.weight has shape \(16,\) instead of \(128,\)"):
        check_weights(RELEASED, "clip-vit-mini")


@pytest.mark.parametrize(
    ("file", "arch", "message"),
    [
        (TIMM, "vit-ti16", "timm's ViT names, but vit-ti16 needs AugReg's and big_vision's names"),
        (AUGREG, "timm-vit-ti16", "AugReg's and big_vision's names, but timm-vit-ti16 needs timm's ViT names"),
        (TORCHVISION, "clip-vit-b32", "torchvision's names, but clip-vit-b32 needs the released model soups' names or"),
        (HF_CLIP, "resnet50", "Hugging Face's CLIP names, but resnet50 needs torchvision's names"),
    ],
)
def test_names_of_another_project_are_an_error(file, arch, message):
    with pytest.raises(ValueError, match=message):
        check_weights(file, arch)


def test_unknown_names_are_an_error(write):
    with pytest.raises(ValueError, match=r"unknown names .*'weight'.*resnet50 needs torchvision's names"):
        check_weights(write({"weight": np.zeros(3, np.float32)}), "resnet50")


def test_damaged_and_hostile_files_are_errors(tmp_path, small):
    cut = tmp_path / "cut.pt"
    cut.write_bytes(RELEASED.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cut.pt is not a whole zip archive"):
        import_weights(cut, small("clip-vit-mini"))
    hostile = tmp_path / "hostile.pt"
    hostile.write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00trueR.")
    with pytest.raises(UnsafeCheckpointError, match=r"hostile.pt"):
        import_weights(hostile, small("clip-vit-mini"))
    with pytest.raises(FileNotFoundError, match=r"absent.pt"):
        import_weights(tmp_path / "absent.pt", small("clip-vit-mini"))


# --- Configurations of folders ---


@pytest.fixture
def folder(tmp_path):
    """Copy Hugging Face's ViT, with a change of its config.json."""

    def copied(change, file="config.json"):
        target = shutil.copytree(HF_VIT, tmp_path / "vit")
        config = json.loads((target / file).read_text()) if (target / file).exists() else {}
        (target / file).write_text(json.dumps(config | change))
        return target

    return copied


@pytest.mark.parametrize(
    ("change", "file", "message"),
    [
        ({"hidden_act": "gelu_new"}, "config.json", "config.json says activation gelu_tanh, but hf-vit-ti16 has gelu"),
        ({"layer_norm_eps": 1e-6}, "config.json", "config.json says norm_epsilon 1e-06, but hf-vit-ti16 has 1e-12"),
        ({"image_mean": [0.4, 0.5, 0.5]}, "preprocessor_config.json", r"preprocessor_config.json says mean \[0.4,"),
        ({"image_std": 0.5}, "preprocessor_config.json", "preprocessor_config.json says std 0.5, but"),
        ({"model_cfg": {"quick_gelu": True}}, "open_clip_config.json", "open_clip_config.json says activation quick"),
        ({"pretrained_cfg": {"std": [1, 1, 1]}}, "config.json", r"config.json says std \[1, 1, 1\], but"),
    ],
)
def test_a_configuration_that_computes_something_else_is_an_error(small, folder, change, file, message):
    check_weights(HF_VIT, small("hf-vit-ti16"))
    with pytest.raises(ValueError, match=message):
        check_weights(folder(change, file), small("hf-vit-ti16"))


def test_the_activation_of_clip_is_checked_in_its_vision_part(small):
    with pytest.raises(ValueError, match=r"config.json says activation quick_gelu, but open-clip-vit-b32 has gelu"):
        check_weights(HF_CLIP, small("open-clip-vit-b32"))


@pytest.mark.parametrize(("content", "message"), [("{", "is not valid JSON"), ("[]", "is not a JSON object")])
def test_a_broken_configuration_is_an_error(small, folder, content, message):
    target = folder({})
    (target / "config.json").write_text(content)
    with pytest.raises(ValueError, match=f"config.json {message}"):
        check_weights(target, small("hf-vit-ti16"))


# --- Members in place ---


def test_members_are_imported_when_they_are_asked_for(released, small, tmp_path, write):
    tensors, arch = released
    shutil.copyfile(RELEASED, tmp_path / "model_10.pt")
    write(tensors | {"classification_head.bias": np.full(5, 3, np.float32)}, "model_2.safetensors")
    members = imported_members([tmp_path / "model_10.pt", str(tmp_path / "model_2.safetensors")], arch)
    assert list(members) == ["model_10", "model_2"] and len(members) == 2
    np.testing.assert_array_equal(members["model_2"]["head"]["bias"], np.full(5, 3, np.float32))
    np.testing.assert_array_equal(members["model_10"]["head"]["bias"], tensors["classification_head.bias"])
    with pytest.raises(KeyError):
        members["model_3"]
    (tmp_path / "model_10.pt").unlink()
    with pytest.raises(FileNotFoundError):
        members["model_10"]


def test_a_folder_is_a_member_of_its_whole_name(small, tmp_path):
    shutil.copytree(HF_VIT, tmp_path / "vit.v1")
    assert list(imported_members([tmp_path / "vit.v1"], small("hf-vit-ti16"))) == ["vit.v1"]


def test_all_wrong_files_are_listed_before_any_is_used(released, small, tmp_path, write):
    tensors, arch = released
    good = shutil.copyfile(RELEASED, tmp_path / "good.pt")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(RELEASED.read_bytes()[:-1000])
    lacking = write({n: x for n, x in tensors.items() if n != "model.visual.proj"}, "lacking.safetensors")
    with pytest.raises(ValueError) as error:
        imported_members([good, cut, lacking], arch)
    message = str(error.value)
    assert "cut.pt is not a whole zip" in message and "model.visual.proj is missing" in message
    assert "good.pt" not in message


def test_lists_of_files_that_cannot_be_members_are_errors(released, small, tmp_path, write):
    tensors, arch = released
    with pytest.raises(FileNotFoundError, match=r"a\.pt, .*b\.pt"):
        imported_members([tmp_path / "a.pt", RELEASED, tmp_path / "b.pt"], arch)
    with pytest.raises(ValueError, match="no files of members"):
        imported_members([], arch)
    twin = write(tensors, f"{RELEASED.stem}.safetensors")
    with pytest.raises(ValueError, match=f"two files would be member '{RELEASED.stem}': .* and "):
        imported_members([RELEASED, twin], arch)
    other = {
        "classification_head.weight": np.zeros((4, 8), np.float32),
        "classification_head.bias": np.zeros(4, np.float32),
    }
    with pytest.raises(ValueError, match=f"(?s)different numbers of classes.*{RELEASED.stem}: 5.*other: 4"):
        imported_members([RELEASED, write(tensors | other, "other.safetensors")], arch)
