"""ImageNet as TFDS prepares it: the examples of the released folders, in the same order, with the same split."""

import contextlib
import io
import json
import pickle

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from soups.data.imagenet import evaluation_sets, held_out_split, imagenet_sources, tfds_sets, train_source
from soups.data.imagenet.held_out import split_files
from soups.data.imagenet.layouts import locate
from soups.data.imagenet.tfds_sets import open_tfds
from soups.data.sources import UnreadableImage

PLACES = (3, 38, 700, 999)  # of the classes that have images, among the 1,000 that TFDS knows


def _jpeg(rgb):
    file = io.BytesIO()
    PIL.Image.new("RGB", (12, 10), rgb).save(file, "JPEG", quality=95)
    return file.getvalue()


def _prepare(data_dir, name, split, examples):
    """Write (class name, file name, bytes of the image) as TFDS's own builder of that name does with TensorFlow."""
    registered = tfds.builder(name, data_dir=data_dir)

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Stand in for a builder that needs the released archives."""

        code_path = None
        VERSION = registered.version

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=registered.info.features)

        def _split_generators(self, download_manager):
            return {split: self._generate_examples()}

        def _generate_examples(self):
            for index, (label, file, image) in enumerate(examples):
                yield index, {"image": io.BytesIO(image), "label": label, "file_name": file}

    Builder.name = name
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        Builder(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return registered.info.features["label"].names


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny):
    """Return a directory with a training and an R set; the colours say (set, place in PLACES, number)."""
    data_dir = tmp_path_factory.mktemp("tfds")
    names = tfds.builder("imagenet_r", data_dir=data_dir).info.features["label"].names
    train = [(p, n) for n in range(5) for p in range(4)]
    _prepare(
        data_dir,
        "imagenet2012",
        "train",
        [(names[PLACES[p]], f"{names[PLACES[p]]}_{n}.JPEG", _jpeg(tiny.color(0, p, n))) for p, n in train],
    )
    _prepare(
        data_dir,
        "imagenet_r",
        "test",
        [(names[PLACES[p]], f"{names[PLACES[p]]}/art_{p}.jpg", _jpeg(tiny.color(4, p, 0))) for p in (2, 0, 1)],
    )
    return data_dir


def _identities(tiny, source):
    return [tiny.identify(source[index]["image"]) for index in range(len(source))]


def test_some_classes_of_the_thousand(prepared, tiny):
    source = imagenet_sources(prepared, ["imagenet_r"])["imagenet_r"]
    assert source.class_groups == ((3,), (38,), (700,))
    assert source.class_names[1] == "n01675722"
    assert source.labels.tolist() == [0, 1, 2]
    assert _identities(tiny, source) == [(4, 0, 0), (4, 1, 0), (4, 2, 0)]
    assert source.files[1] == "n01675722/art_1.jpg"


def test_training_images_are_in_the_order_of_folders(prepared, tiny):
    train, held_out = train_source(prepared), imagenet_sources(prepared, ["held_out"])["held_out"]
    assert len(train.class_names) == 1000
    names = [train.class_names[place] for place in PLACES]
    files = [f"{name}/{name}_{number}.JPEG" for name in names for number in range(5)]
    split = held_out_split(prepared)
    expected = split_files(files, np.repeat(PLACES, 5))
    np.testing.assert_array_equal(split.held_out, expected.held_out)
    assert held_out.files == [files[index] for index in split.held_out]
    assert _identities(tiny, train) == [(0, index // 5, index % 5) for index in split.train]
    assert train.labels.tolist() == [PLACES[index // 5] for index in split.train]
    copy = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(copy[3]["image"], train[3]["image"])


def test_the_cache_keeps_the_names(prepared, tmp_path, monkeypatch):
    first = imagenet_sources(prepared, ["imagenet_r"], cache_dir=tmp_path / "cache")["imagenet_r"]
    monkeypatch.setattr("soups.data.imagenet.tfds_sets._index", None)  # not called again
    second = imagenet_sources(prepared, ["imagenet_r"], cache_dir=tmp_path / "cache")["imagenet_r"]
    assert (second.files, second.labels.tolist(), second.stamp()) == (first.files, [0, 1, 2], first.stamp())
    assert second.take(np.array([0, 1])).stamp() != first.stamp()


def test_a_damaged_cache_of_names_is_named(prepared, tmp_path):
    imagenet_sources(prepared, ["imagenet_r"], cache_dir=tmp_path)
    (cache,) = tmp_path.glob("*.json")
    content, source = cache.read_bytes(), tfds_sets._source("imagenet_r", prepared)
    for place in range(len(content)):
        cache.write_bytes(content[:place] + bytes([content[place] ^ 8]) + content[place + 1 :])
        with pytest.raises(ValueError, match=rf"{cache} does not have the bytes .*; delete it, and the names are read"):
            tfds_sets._cached_index(source, cache)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\0"])
def test_a_damaged_description_of_a_set_is_named(text, tmp_path):
    (tmp_path / "imagenet_r" / "3.0.0").mkdir(parents=True)
    (tmp_path / "imagenet_r" / "3.0.0" / "dataset_info.json").write_text(text)
    with pytest.raises(ValueError, match=r"dataset_info\.json is (empty|not)"):
        locate(tmp_path, ["imagenet_r"])


@pytest.mark.parametrize(
    "content", [{}, {"splits": None}, {"splits": [1, None, {"x": 1}]}, {"splits": [{"name": "train"}]}]
)
def test_a_description_without_the_split_is_no_set(content, tmp_path):
    (tmp_path / "imagenet_r" / "3.0.0").mkdir(parents=True)
    (tmp_path / "imagenet_r" / "3.0.0" / "dataset_info.json").write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match="ImageNet sets are missing"):
        locate(tmp_path, ["imagenet_r"])


def test_labels_go_by_name(prepared, tiny):
    classes = imagenet_sources(prepared, ["imagenet_r"])["imagenet_r"].source.class_names[::-1]
    view = open_tfds("imagenet_r", prepared, classes)
    assert view.labels.tolist() == [299, 961, 996]
    assert _identities(tiny, view) == [(4, 2, 0), (4, 1, 0), (4, 0, 0)]


def test_other_labels_than_the_folders_of_other_sets(prepared, own, tiny):
    for path in prepared.iterdir():
        (own / path.name).symlink_to(path)
    (own / "imagenet-r").rename(own / "elsewhere")
    with pytest.raises(
        ValueError, match=r"imagenet_r \(TFDS\): - n00001000, .* and 2 more; \+ n01440764, .* and 990 more"
    ):
        imagenet_sources(own)


def test_sets_are_decoded_and_broken_images_named(prepared, tmp_path, tiny):
    dataset = evaluation_sets(prepared, tmp_path / "a", image_size=8, sets=["imagenet_r"])["imagenet_r"]
    assert [tiny.identify(image) for image in dataset.images] == [(4, 0, 0), (4, 1, 0), (4, 2, 0)]
    data_dir = tmp_path / "b"
    images = [("n01440764", "good.JPEG", _jpeg((9, 9, 9))), ("n01443537", "bad.JPEG", _jpeg((1, 2, 3))[:200])]
    _prepare(data_dir, "imagenet_sketch", "test", images)
    source = imagenet_sources(data_dir, ["imagenet_sketch"])["imagenet_sketch"]
    with pytest.raises(UnreadableImage, match=r"n01443537/bad\.JPEG, example \d: cannot be read as an image"):
        source[1]


def test_a_set_that_is_there_in_neither_form(prepared):
    with pytest.raises(
        FileNotFoundError, match=r"^ImageNet sets are missing in .*\n  imagenet: .*\n  objectnet: [^\n]*$"
    ):
        imagenet_sources(prepared, ["held_out", "imagenet_r", "imagenet", "objectnet"])
