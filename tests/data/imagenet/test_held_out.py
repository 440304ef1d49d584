"""The held-out 2 %: by name against a plain loop, by the published file with all its checks."""

import numpy as np
import pytest
import xxhash

from soups.data.imagenet import held_out
from soups.data.imagenet.held_out import split_files

RECORDED = [19, 87, 112]


def _names(counts):
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    numbers = np.concatenate([np.arange(count) for count in counts])
    return [f"n{a:08d}/n{a:08d}_{b}.JPEG" for a, b in zip(labels, numbers, strict=True)], labels


def _smallest(files, labels, quotas):
    """Choose as the formula says, class by class."""
    chosen = set()
    for label, quota in enumerate(quotas):
        mine = [file for file, other in zip(files, labels, strict=True) if other == label]
        mine.sort(key=lambda file: xxhash.xxh3_64_intdigest(file.split("/")[1].encode()))
        chosen |= set(mine[:quota])
    return [place for place, file in enumerate(files) if file in chosen]


@pytest.mark.parametrize(
    ("counts", "quotas"),
    [
        ((520, 700, 1300), (26, 26, 26)),
        ((519, 700, 1300), (10, 14, 26)),  # 26 would be more than 5 % of the first
        ((3, 60, 100), (1, 1, 2)),
    ],
)
def test_split_by_name(counts, quotas):
    files, labels = _names(counts)
    split = split_files(files, labels)
    assert split.kind == "by file name"
    assert split.held_out.tolist() == _smallest(files, labels, quotas)
    assert sorted([*split.held_out, *split.train]) == list(range(len(files)))


def test_the_choice_by_name_is_fixed():
    # recorded: it must never change, or old soups were selected on images that new ones are trained on
    files, labels = _names((100, 50))
    assert split_files(files, labels).held_out.tolist() == RECORDED
    # neither the folders' names nor other files of other classes matter
    assert split_files([f"other/{file}" for file in files], labels).held_out.tolist() == RECORDED


def _saved(tmp_path, values):
    np.save(tmp_path / "index.npy", values)
    return tmp_path / "index.npy"


def test_split_by_the_index_file(tmp_path):
    files, labels = _names((4, 3))
    split = split_files(files, labels, _saved(tmp_path, np.array([0.0, 1, 1, 0, 0, 0, 1])))
    assert split.kind == "published"
    assert (split.held_out.tolist(), split.train.tolist()) == ([1, 2, 6], [0, 3, 4, 5])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1, 0, 1, 0], r"index\.npy: it has 5 entries for 7 training images: .* all 1,281,167 images"),
        ([0, 1, 2, 0, 0, 0, 1], r"each value must be 0 or 1, but there are \[2\]"),
        ([0, 1, 1, 0, 0, 0, 0], r"of class 1 it holds out 0 of 3 images \(1 such classes\)"),
        ([1, 1, 1, 1, 0, 0, 1], r"of class 0 it holds out 4 of 4 images"),
    ],
)
def test_index_files_that_do_not_fit(tmp_path, values, message):
    files, labels = _names((4, 3))
    with pytest.raises(ValueError, match=message):
        split_files(files, labels, _saved(tmp_path, values))


def _of_shape(shape):
    header = f"{{'descr': '|b1', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"<html>not found</html>",
        b"",
        b"PK\x05\x06" + bytes(18),
        b"PK\x03\x04",
        b"\x80\x04N.",
        _of_shape((10**15,)),
        _of_shape((7, -1)),
        _of_shape("(" * 500),
        _of_shape((7,)),
    ],
)
def test_an_index_file_that_is_broken(tmp_path, content):
    files, labels = _names((4, 3))
    (tmp_path / "index.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"index\.npy: it is not an array in NumPy's format"):
        split_files(files, labels, tmp_path / "index.npy")


def test_with_all_of_imagenet_the_choice_must_be_the_published_one(tmp_path, monkeypatch):
    files, labels = _names([52] * 40)
    monkeypatch.setattr(held_out, "_TRAINING_IMAGES", len(files))
    values = np.tile(np.repeat([0, 1], 26), 40)
    place = np.flatnonzero(values)[1000]
    assert labels[place] == 1000 // 26 == 38
    with pytest.raises(ValueError, match=r"held-out image 1000 is n00000038/n00000038_38\.JPEG, .* n01675722_4108\."):
        split_files(files, labels, _saved(tmp_path, values))
    files[place] = "n01675722/n01675722_4108.JPEG"
    assert len(split_files(files, labels, _saved(tmp_path, values)).held_out) == 1040
    values[place] = 0
    with pytest.raises(ValueError, match="holds out 26 images of each class, not 25 of class 38"):
        split_files(files, labels, _saved(tmp_path, values))
