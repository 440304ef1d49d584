"""Test that data which lie on object stores are those of a folder."""

import numpy as np
import PIL.Image
import pytest

from soups.data import domain_folder_sources, folder_source, load_text_task
from soups.data.batches import loader
from soups.data.domains import load_domains
from soups.data.questions import read_mmlu
from soups.data.sources import UnreadableImage
from soups.stores import store_path

RNG = np.random.default_rng(0)


@pytest.fixture
def images(tmp_path, folder):
    """Return two folders with the same images, domain/class/file: of this machine, and of a store."""
    for domain, ends in {"photo": ("png", "ppm"), "sketch": ("jpeg", "tif")}.items():
        for label in ("cat", "dog"):
            place = tmp_path / "set" / domain / label
            place.mkdir(parents=True)
            for number in range(6):
                pixels = RNG.integers(0, 256, (9, 8, 3), np.uint8)
                PIL.Image.fromarray(pixels).save(place / f"{number}.{ends[number % 2]}")
            (place / "notes.txt").write_text("no image")
    copy(tmp_path, folder)
    return tmp_path, folder


def copy(here, there):
    for path in here.rglob("*"):
        if path.is_file():
            (store_path(there) / path.relative_to(here).as_posix()).write_bytes(path.read_bytes())


def test_folders_of_images(images, proxy):
    here, there = (folder_source(f"{place}/set/photo") for place in images)
    assert (here.files, here.class_names, here.stamp(range(5))) == (
        there.files,
        there.class_names,
        there.stamp(range(5)),
    )
    proxy.seen.clear()
    for index in range(len(here)):
        one, other = here[index], there[index]
        np.testing.assert_array_equal(one["image"], other["image"])
        assert one["label"] == other["label"]
    assert len(proxy.seen) == len(here)  # one request for each image
    batches = [next(iter(loader(source, 4, seed=0, num_threads=2))) for source in (here, there)]
    np.testing.assert_array_equal(*(batch["image"] for batch in batches))
    (store_path(images[1]) / "set/photo/cat/0.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"s3://bucket/.*/set/photo/cat/0\.png: cannot be read as an image"):
        there[0]


def test_sets_of_domains(images):
    here, there = (load_domains(place, "set", image_size=8) for place in images)
    assert here.digest() == there.digest() and list(domain_folder_sources(f"{images[1]}/set")) == ["photo", "sketch"]
    (store_path(images[1]) / "left_out").write_bytes(b"photo/cat/0.png\n")
    assert len(load_domains(images[1], "set", image_size=8, left_out=f"{images[1]}/left_out")["photo"]) == 11
    with pytest.raises(FileNotFoundError, match="no set 'other'; there are set"):
        load_domains(images[1], "other", image_size=8)
    with pytest.raises(FileNotFoundError, match=r"s3://bucket/.*/none: no such folder"):
        folder_source(f"{images[1]}/none")


def test_texts_and_questions(tmp_path, folder):
    for split, count in {"train": 8, "dev": 4}.items():
        lines = [f"text {number}\tlabel {number % 2}" for number in range(count)]
        (tmp_path / "task").mkdir(exist_ok=True)
        (tmp_path / "task" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    for split in ("dev", "test"):
        (tmp_path / "mmlu" / split).mkdir(parents=True)
        (tmp_path / "mmlu" / split / f"sums_{split}.csv").write_text("1 + 1,1,2,3,4,B\n")
    copy(tmp_path, folder)
    here, there = (load_text_task(f"{place}/task", held_out=2) for place in (tmp_path, folder))
    assert (here.name, here.class_names, here.facts) == (there.name, there.class_names, there.facts)
    assert list(here.train.texts) == list(there.train.texts)
    np.testing.assert_array_equal(here.test.labels, there.test.labels)
    assert read_mmlu(f"{folder}/mmlu", shots=1) == read_mmlu(tmp_path / "mmlu", shots=1)
    with pytest.raises(FileNotFoundError, match=r"s3://bucket/.*/mmlu: no train\.tsv"):
        load_text_task(f"{folder}/mmlu")
