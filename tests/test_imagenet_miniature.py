"""Test the miniature of ImageNet: its files, its networks, and that both are what the released ones are like."""

import json

import imagenet_miniature
import jax
import numpy as np
import PIL.Image
import pytest

from soups.data.imagenet import SETS, evaluation_sets, held_out_split, imagenet_sources, train_source
from soups.evaluate import Evaluator
from soups.formats import open_checkpoint
from soups.models.architectures import architecture
from soups.models.import_weights import import_weights


@pytest.fixture(scope="module")
def accuracies(miniature, tmp_path_factory):
    """Return the accuracy of some networks on every set."""
    arch = architecture("clip-vit-mini")
    sets = evaluation_sets(miniature / "data", tmp_path_factory.mktemp("decoded"), image_size=arch.image_size)
    apply = arch.apply_fn(20)
    evaluators = {name: Evaluator(apply, dataset, batch_size=200) for name, dataset in sets.items()}
    members = {index: import_weights(miniature / "models" / f"model_{index}.pt", arch.name) for index in (0, 1, 2, 3)}
    return {index: {name: evaluators[name](params)["accuracy"] for name in sets} for index, params in members.items()}


def test_every_set_is_found_with_its_classes(miniature):
    sources = imagenet_sources(miniature / "data")
    assert set(sources) == set(SETS)
    sizes = {name: (len(source), len(source.class_names)) for name, source in sources.items()}
    assert sizes == {
        "held_out": (160, 20),
        "imagenet": (200, 20),
        "imagenet_v2": (120, 20),
        "imagenet_sketch": (120, 20),
        "imagenet_r": (60, 10),
        "objectnet": (84, 8),  # six objects of two classes, two of one; two objects are unknown
        "imagenet_a": (60, 10),
    }
    assert sorted(map(len, sources["objectnet"].class_groups)) == [1, 1, 2, 2, 2, 2, 2, 2]
    assert len(train_source(miniature / "data")) == 440


def test_the_held_out_images_are_published_as_a_file(miniature):
    split = held_out_split(miniature / "data")
    assert (split.kind, len(split.held_out)) == ("published", 160)
    assert np.load(miniature / "data" / "imagenet_98_idxs.npy").dtype == np.float64


def test_objects_have_the_outputs_of_their_digit(miniature):
    objects = imagenet_sources(miniature / "data", ("objectnet",))["objectnet"]
    outputs = dict(zip(objects.class_names, objects.class_groups, strict=True))
    assert sorted(outputs["digit_three"]) == [6, 7]
    assert outputs["digit_six"] == (12,)
    assert outputs["digit_seven"] == (15,)
    assert "digit_eight" not in outputs


def test_files_are_as_odd_as_the_released_ones(miniature):
    modes, upright = set(), set()
    for path in (miniature / "data" / "imagenet" / "train").rglob("*.JPEG"):
        with PIL.Image.open(path) as image:
            assert image.format == "JPEG"
            modes.add(image.mode)
            upright.add(image.height > image.width)
    assert modes == {"RGB", "L", "CMYK"}
    assert upright == {True, False}
    with PIL.Image.open(next((miniature / "data" / "objectnet-1.0" / "images").rglob("*.png"))) as image:
        border = np.asarray(image)[:2]
    assert (border == (255, 0, 0)).all()


def test_no_digit_is_in_two_sets():
    drawer = imagenet_miniature.layouts.Drawer(seed=0, scale=4)
    strokes = [digit.tobytes() for classes in drawer._strokes.values() for part in classes.values() for digit in part]
    assert len(strokes) == 20 * 4 * sum(imagenet_miniature.layouts.SIZES.values())
    assert len(set(strokes)) == len(strokes)


def test_one_seed_gives_the_same_files_and_another_gives_others(miniature, tmp_path):
    def content(folder):
        files = sorted(path for path in (folder / "data").rglob("*") if path.is_file())
        return {path.relative_to(folder): path.read_bytes() for path in files}

    first = content(miniature)
    assert content(imagenet_miniature.make_data(tmp_path / "same")) == first
    other = content(imagenet_miniature.make_data(tmp_path / "other", seed=1))
    pictures = [name for name in first if name.suffix in (".jpeg", ".png")]
    assert pictures and not any(other[name] == first[name] for name in pictures)


def test_members_have_the_tensors_of_the_published_files(miniature):
    """Compare with the list of names, shapes in the terms of the sizes, and the order that the published files have."""
    width, depth, features, text, tokens = 128, 2, 64, 64, 16
    block = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
    }
    vocabulary = len(json.loads((miniature / "clip" / "vocab.json").read_text()))
    expected = {
        "model.positional_embedding": (77, text),
        "model.text_projection": (text, features),
        "model.logit_scale": (),
        "model.visual.class_embedding": (width,),
        "model.visual.positional_embedding": (tokens + 1, width),
        "model.visual.proj": (width, features),
        "model.visual.conv1.weight": (width, 3, 8, 8),
        "model.visual.ln_pre.weight": (width,),
        "model.visual.ln_pre.bias": (width,),
        **{f"model.visual.transformer.resblocks.{i}.{n}": s for i in range(depth) for n, s in block.items()},
        "model.visual.ln_post.weight": (width,),
        "model.visual.ln_post.bias": (width,),
        "model.token_embedding.weight": (vocabulary, text),
        "model.ln_final.weight": (text,),
        "model.ln_final.bias": (text,),
        "classification_head.weight": (20, features),
        "classification_head.bias": (20,),
    }
    for index in range(12):
        checkpoint = open_checkpoint(miniature / "models" / f"model_{index}.pt")
        leaves = checkpoint.leaves.values()
        assert [(leaf.name, leaf.shape, leaf.dtype.name) for leaf in leaves] == [
            (name, shape, "float32") for name, shape in expected.items()
        ]
        assert all(leaf.offset % 64 == 0 for leaf in leaves)


def test_fine_tuned_members_differ_except_the_published_copy(miniature):
    digests = [(miniature / "models" / f"model_{index}.pt").read_bytes() for index in range(12)]
    assert digests[4] == digests[5]
    assert len(set(digests)) == 11


def test_hyperparameters_are_in_the_published_form(miniature):
    known = json.loads((miniature / "models" / "hparam_info.json").read_text())
    assert list(known) == [f"model_{index}" for index in range(12)]
    assert known.pop("model_0") == {"info": "LP initialization"}
    assert all(set(hparams) == {"aug", "wd", "lr", "mix", "smoothing", "epochs"} for hparams in known.values())
    assert known["model_4"] == known["model_5"]


def test_members_are_better_than_the_probe_and_that_is_better_than_chance(accuracies):
    probe, *members = accuracies.values()
    assert probe["imagenet"] > 6 / 20
    mean = {name: np.mean([member[name] for member in members]) for name in probe}
    for name, margin in {"held_out": 0.05, "imagenet": 0.05, "imagenet_v2": 0.04, "imagenet_sketch": 0.04}.items():
        assert mean[name] > probe[name] + margin, name


def test_the_clip_tells_classes_apart_by_their_names(miniature, tmp_path):
    from soups.models.clip_text import import_text_tower, text_features
    from soups.models.clip_tokenizer import clip_tokenizer
    from soups.models.zero_shot import zero_shot_head

    path = miniature / "clip" / "clip-vit-mini.pt"
    names = (miniature / "clip" / "classes.txt").read_text().splitlines()
    tower, arch = import_text_tower(path, "clip-vit-mini"), architecture("clip-vit-mini")
    embed = jax.jit(lambda tokens: text_features(tower, tokens, arch=arch.name))
    head = zero_shot_head(embed, clip_tokenizer(miniature / "clip"), names, ["a photo of a {}."])
    params = import_weights(path, arch.name, num_classes=20) | {"head": head}
    test = evaluation_sets(miniature / "data", tmp_path, image_size=32, sets=("imagenet",))["imagenet"]
    assert Evaluator(arch.apply_fn(20), test, batch_size=200)(params)["accuracy"] > 3 / 20


def test_a_miniature_is_not_written_over_another_folder_or_without_digits(tmp_path):
    with pytest.raises(FileExistsError, match="exists already"):
        imagenet_miniature.make_data(tmp_path)
    with pytest.raises(ValueError, match="scale must be 1 to 4"):
        imagenet_miniature.make_data(tmp_path / "large", scale=5)
    assert not (tmp_path / "large").exists()
