"""Sources: image folders, TFDS sets prepared and not, and no TensorFlow anywhere."""

import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds

from soups.data import builders, decode, domain_folder_sources, folder_source, resize, tfds_source, to_channels
from soups.data.sources import UnreadableImage, View


def _save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def colors(rng):
    return rng.integers(0, 256, (6, 9, 11, 3), dtype=np.uint8)


# --- Folders --------------------------------------------------------------------------------------------------------


def test_folders_are_sorted_and_decoded_as_stored(tmp_path, colors):
    _save(tmp_path / "owl" / "b.png", colors[0])
    _save(tmp_path / "owl" / "a.png", colors[1])
    _save(tmp_path / "cat" / "z.PNG", colors[2, :, :, 0])
    _save(tmp_path / "cat" / "c.bmp", colors[3])
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / ".hidden.png").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    source = folder_source(tmp_path)
    assert source.class_names == ("cat", "owl")
    expected = [(colors[3], 0), (colors[2, :, :, :1], 0), (colors[1], 1), (colors[0], 1)]
    assert len(source) == 4
    for index, (image, label) in enumerate(expected):
        np.testing.assert_array_equal(source[index]["image"], image)
        assert source[index]["label"] == label
    dataset = decode(source, to_channels(3))
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="different shapes"):
        decode(source)


def test_jpeg_and_palette_files(tmp_path, colors):
    _save(tmp_path / "a" / "1.jpg", colors[0], quality=90)
    palette = PIL.Image.fromarray(colors[1]).quantize(16)
    (tmp_path / "b").mkdir()
    palette.save(tmp_path / "b" / "1.gif")
    source = folder_source(str(tmp_path))
    with PIL.Image.open(tmp_path / "a" / "1.jpg") as image:
        np.testing.assert_array_equal(source[0]["image"], np.asarray(image))
    np.testing.assert_array_equal(source[1]["image"], np.asarray(palette.convert("RGB")))


def test_folder_errors(tmp_path, colors):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        folder_source(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"at least 2 class folders, found \[\]"):
        folder_source(tmp_path)
    _save(tmp_path / "photo" / "cat" / "1.png", colors[0])
    _save(tmp_path / "sketch" / "cat" / "1.png", colors[1])
    with pytest.raises(ValueError, match=r"no images .* photo, sketch \(2 of 2\).*domain_folder_sources"):
        folder_source(tmp_path)
    with pytest.raises(ValueError, match=r"at least 2 class folders, found \['cat'\]"):
        folder_source(tmp_path / "photo")


@pytest.mark.parametrize("open_folder", [folder_source, domain_folder_sources])
def test_a_url_is_refused(open_folder):
    with pytest.raises(ValueError, match="'hf://bucket/images' is a URL: give a local path"):
        open_folder("hf://bucket/images")


def test_a_broken_file_is_named_when_it_is_read(tmp_path, colors):
    _save(tmp_path / "a" / "1.png", colors[0])
    _save(tmp_path / "b" / "1.png", colors[1])
    whole = (tmp_path / "b" / "1.png").read_bytes()
    (tmp_path / "b" / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "2.png").write_text("not an image")
    source = folder_source(tmp_path)
    for index, name in ((1, "1.png"), (2, "2.png")):
        with pytest.raises(ValueError, match=rf"b/{name}: cannot be read as an image"):
            source[index]
    with pytest.raises(ValueError, match=r"b/1\.png: cannot be read"):
        decode(source)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (3, "transform must be a function of an image, not a int"),
        (lambda image: None, r"image 0 must be uint8 \[H, W, C\], not a NoneType"),
        (lambda image: image / 255, r"image 0 must be uint8 \[H, W, C\], not float64 \["),
    ],
)
def test_what_a_transform_makes_is_an_image(tmp_path, colors, transform, message):
    for name in "ab":
        _save(tmp_path / name / "1.png", colors[0])
    with pytest.raises(ValueError, match=message):
        decode(folder_source(tmp_path), transform, num_threads=1)


def test_broken_files_of_every_kind_are_unreadable_images(tmp_path, colors):
    file = tmp_path / "a" / "1.png"
    _save(file, colors[0])
    _save(tmp_path / "b" / "1.png", colors[1])
    whole = file.read_bytes()
    source = folder_source(tmp_path)
    unreadable = 0
    for place in range(8, len(whole), 7):  # Pillow answers with OSError, SyntaxError and others
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            source[0]
        except UnreadableImage as error:
            unreadable += "a/1.png: cannot be read as an image" in str(error)
    assert unreadable > len(whole) / 7 / 2
    file.unlink()
    with pytest.raises(UnreadableImage, match=r"a/1\.png: cannot be read as an image .*No such file"):
        source[0]


def test_named_folders_in_the_order_given(tmp_path, colors):
    for number, name in enumerate(["1", "10", "2", "other"]):
        _save(tmp_path / name / "x.png", colors[number])
    source = folder_source(tmp_path, ["1", "2", "10"])
    assert source.class_names == ("1", "2", "10")
    assert source.files == ["1/x.png", "2/x.png", "10/x.png"]
    assert (source.labels.dtype, source.labels.tolist()) == (np.int32, [0, 1, 2])
    np.testing.assert_array_equal(source[2]["image"], colors[1])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        folder_source(tmp_path, ["1", "nowhere"])


def test_a_view_has_order_labels_and_classes_of_its_own(tmp_path, colors):
    for number, name in enumerate("abc"):
        _save(tmp_path / name / "x.png", colors[number])
    view = View(folder_source(tmp_path), np.array([2, 0]), np.array([0, 1], np.int32), ("C", "A"), ((5,), (1, 3)))
    assert (len(view), view.files, [view[index]["label"] for index in (0, 1)]) == (2, ["c/x.png", "a/x.png"], [0, 1])
    np.testing.assert_array_equal(view[0]["image"], colors[2])
    dataset = decode(view.take(np.array([1, 0, 1])))
    np.testing.assert_array_equal(dataset.images, colors[[0, 2, 0]])
    assert (dataset.class_names, dataset.class_groups) == (("C", "A"), ((5,), (1, 3)))
    assert dataset.labels.tolist() == [1, 0, 1]
    with pytest.raises(IndexError):
        view[2]


def test_domains_share_their_classes(tmp_path, colors):
    for number, (domain, name) in enumerate([("art", "cat"), ("art", "dog"), ("photo", "cat"), ("photo", "dog")]):
        _save(tmp_path / domain / name / "1.png", colors[number])
    sources = domain_folder_sources(tmp_path)
    assert list(sources) == ["art", "photo"]
    assert sources["art"].class_names == sources["photo"].class_names == ("cat", "dog")
    np.testing.assert_array_equal(sources["photo"][1]["image"], colors[3])
    _save(tmp_path / "sketch" / "cat" / "1.png", colors[4])
    _save(tmp_path / "sketch" / "owl" / "1.png", colors[5])
    with pytest.raises(ValueError, match=r"same class folders, but art lacks owl, photo lacks owl, sketch lacks dog$"):
        domain_folder_sources(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no domain folders"):
        domain_folder_sources(tmp_path / "empty")


# --- TFDS -----------------------------------------------------------------------------------------------------------


class ToyColors(tfds.core.GeneratorBasedBuilder):
    """Build ten small random images with a label, a name and raw pixels."""

    code_path = None
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "photo": tfds.features.Image(shape=(5, 6, 3), encoding_format="png"),
            "pixels": tfds.features.Tensor(shape=(5, 6, 3), dtype=np.uint8),
            "animal": tfds.features.ClassLabel(names=["cat", "dog"]),
            "size": tfds.features.Scalar(np.int64),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, download_manager):
        return {"train": self._generate_examples(0, 10), "test": self._generate_examples(10, 14)}

    def _generate_examples(self, start, stop):
        for index in range(start, stop):
            pixels = np.random.default_rng(index).integers(0, 256, (5, 6, 3), dtype=np.uint8)
            photo = PIL.Image.fromarray(pixels)
            yield index, {"photo": photo, "pixels": pixels, "animal": index % 2, "size": index}


def _prepare(builder, capfd):
    builder.download_and_prepare()
    capfd.readouterr()


def test_any_prepared_set_is_read(tmp_path, capfd):
    _prepare(ToyColors(data_dir=tmp_path, file_format="array_record"), capfd)
    source = tfds_source("toy_colors", "train[:8]", data_dir=tmp_path, image_key="photo", label_key="animal")
    raw = tfds_source("toy_colors", "train[:8]", data_dir=tmp_path, image_key="pixels", label_key="animal")
    assert len(source) == 8
    assert source.class_names == ("cat", "dog")
    photos, pixels = decode(source), decode(raw)
    assert photos.images.shape == (8, 5, 6, 3)
    np.testing.assert_array_equal(photos.images, pixels.images)
    np.testing.assert_array_equal(photos.labels, pixels.labels)
    with pytest.raises(IndexError, match="there is no example 8: the 8 examples"):
        source[8]
    everything = tfds_source("toy_colors", "train+test", data_dir=tmp_path, image_key="photo", label_key="animal")
    expected = {
        np.random.default_rng(index).integers(0, 256, (5, 6, 3), dtype=np.uint8).tobytes(): index % 2
        for index in range(14)
    }
    assert {example["image"].tobytes(): example["label"] for example in everything} == expected


def test_keys_that_are_not_there(tmp_path, capfd):
    _prepare(ToyColors(data_dir=tmp_path, file_format="array_record"), capfd)
    with pytest.raises(ValueError, match=r"unknown feature of TFDS set 'toy_colors': 'image'.*photo, pixels"):
        tfds_source("toy_colors", "train", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"'animals' .did you mean 'animal'"):
        tfds_source("toy_colors", "train", data_dir=tmp_path, image_key="photo", label_key="animals")
    with pytest.raises(ValueError, match="feature 'size' of TFDS set 'toy_colors' is not a class label"):
        tfds_source("toy_colors", "train", data_dir=tmp_path, image_key="photo", label_key="size")
    with pytest.raises(ValueError, match="Unknown split 'validation'"):
        tfds_source("toy_colors", "validation", data_dir=tmp_path, image_key="photo", label_key="animal")


def test_unknown_and_unprepared_sets(tmp_path):
    with pytest.raises(ValueError, match=r"unknown TFDS set 'mnist_5000' .did you mean 'mnist_5k'"):
        tfds_source("mnist_5000", "train", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"unknown TFDS set 'cifer10' .did you mean 'cifar10'"):
        tfds_source("cifer10:3.0.2", "train", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"not prepared in .*cifar10.*tfds build cifar10 --file_format=array_"):
        tfds_source("cifar10", "train", data_dir=tmp_path)


@pytest.mark.parametrize("file_format", ["tfrecord", "parquet"])
def test_other_formats_are_refused(tmp_path, capfd, file_format):
    builder = ToyColors(data_dir=tmp_path, file_format="array_record")
    _prepare(builder, capfd)
    info = builder.data_path / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": file_format}))
    with pytest.raises(ValueError, match=f"stored as {file_format}, but only array_record"):
        tfds_source("toy_colors", "train", data_dir=tmp_path, image_key="photo", label_key="animal")


# --- The project's own sets -----------------------------------------------------------------------------------------


def test_optdigits_are_those_of_scikit_learn(digits_dir):
    dataset = decode(tfds_source("optdigits", "train", data_dir=digits_dir))
    digits = sklearn.datasets.load_digits()
    assert dataset.images.shape == (1797, 8, 8, 1)
    assert dataset.images.max() == 255
    expected = np.rint(digits.images * 255 / 16).astype(np.uint8)
    pairs = zip(expected, digits.target, strict=True)
    assert {(i.tobytes(), int(k)) for i, k in pairs} == {
        (i.tobytes(), int(k)) for i, k in zip(dataset.images, dataset.labels, strict=True)
    }


def test_mnist_5k_has_500_of_each_digit(digits_dir):
    dataset = decode(tfds_source("mnist_5k", "train", data_dir=digits_dir))
    assert dataset.images.shape == (5000, 28, 28, 1)
    assert np.bincount(dataset.labels).tolist() == [500] * 10
    assert dataset.class_names == tuple("0123456789")
    assert 25 < dataset.images.mean() < 40 and dataset.images.max() == 255


def test_preparing_is_quiet_and_done_once(tmp_path, capfd):
    source = tfds_source("optdigits", "train[:3]", data_dir=tmp_path)
    assert len(source) == 3
    assert capfd.readouterr() == ("", "")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    tfds_source("optdigits", "train", data_dir=tmp_path)
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def test_two_processes_may_prepare_at_once(tmp_path, monkeypatch):
    generate = builders.Optdigits._generate_examples
    others = []

    def overtaken(self):
        # while the first is at work, a second one begins and finishes
        monkeypatch.setattr(builders.Optdigits, "_generate_examples", generate)
        others.append(builders.prepare("optdigits", tmp_path))
        return generate(self)

    monkeypatch.setattr(builders.Optdigits, "_generate_examples", overtaken)
    first = builders.prepare("optdigits", tmp_path)
    assert others[0].data_path == first.data_path
    assert first.as_data_source("train")[7]["label"] == others[0].as_data_source("train")[7]["label"]
    assert [path.name for path in first.data_path.parent.iterdir()] == ["1.0.0"]


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        tfds_source("optdigits", "train", data_dir=tmp_path / "file")


def test_nothing_imports_tensorflow_and_the_import_is_lean(digits_dir):
    program = f"""
import sys
import soups.data as data
assert not {{"grain", "tensorflow_datasets", "sklearn", "mlxtend"}} & set(sys.modules)
task, pretrain = data.digits_task(
    image_size=8, num_train=40, num_held_out=20, num_test=20, shifts={{"blur": [1]}}, natural_shift_size=20,
    data_dir={str(digits_dir)!r},
)
next(iter(data.loader(task.train, 8, seed=0)))
found = sorted({{"tensorflow", "torch"}} & set(sys.modules))
assert not found, found
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_resized_records_are_decoded_in_their_order(digits_dir):
    source = tfds_source("optdigits", "train[:20]", data_dir=digits_dir)
    dataset = decode(source, resize(16))
    np.testing.assert_array_equal(dataset.images[11], resize(16)(source[11]["image"]))
    assert dataset.labels.tolist() == [source[index]["label"] for index in range(20)]
