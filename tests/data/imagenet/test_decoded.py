"""Sets decoded once: pixels as Pillow makes them, resumed when killed, checked when opened, corrupt files named."""

import dataclasses
import fcntl
import os
import shutil
import threading

import numpy as np
import PIL.Image
import pytest

from soups import state
from soups.data.imagenet import decoded
from soups.data.imagenet.decoded import check_space, decode_once, decoded_set, open_decoded
from soups.data.sources import UnreadableImage, View, folder_source

SIZE = 6


@pytest.fixture
def photos(tmp_path, rng):
    """Return a folder of 7 images of several shapes and modes, and the files by name."""
    shapes = [(9, 14), (14, 9), (6, 6), (31, 8), (12, 10), (7, 40), (10, 10)]
    for number, (height, width) in enumerate(shapes):
        pixels = PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.{'png' if number == 5 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels.convert({1: "L", 2: "CMYK", 5: "RGBA"}.get(number, "RGB")).save(path)
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(decoded, "BLOCK", 3)


def _set(photos, **options):
    source = folder_source(photos)
    view = View(source, np.arange(len(source)), source.labels, source.class_names)
    options = {"image_size": SIZE} | options
    return decoded_set("photos", view, photos.parent, **options)


def _expected(photos, border=0):
    """Do with each file what the evaluation transform says."""
    images = []
    for path in sorted(photos.glob("*/*")):
        with PIL.Image.open(path) as file:
            image = file.convert("RGB")
        image = image.crop((border, border, image.width - border, image.height - border))
        scale = SIZE / min(image.size)
        size = [SIZE if side == min(image.size) else int(scale * side + 1e-9) for side in image.size]
        image = image.resize(size, PIL.Image.Resampling.BICUBIC)
        left, top = (round((side - SIZE) / 2) for side in size)
        images.append(np.asarray(image.crop((left, top, left + SIZE, top + SIZE))))
    return np.stack(images)


def _decode(one, on_corrupt="raise"):
    advanced = []
    decode_once(one, advanced.append, on_corrupt)
    return advanced


def _killed_after_a_block(one, finished=0):
    blocks = []

    def advance(number):
        blocks.append(number)
        if len(blocks) > finished:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_once(one, advance)


def _count_reads(monkeypatch):
    reads, original = [], View.__getitem__
    monkeypatch.setattr(View, "__getitem__", lambda view, index: reads.append(index) or original(view, index))
    return reads


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize("border", [0, 1])
def test_pixels_are_those_of_pillow(photos, border):
    one = _set(photos, border=border)
    assert _decode(one) == [3, 3, 1]
    content = open_decoded(one)
    assert isinstance(content.images, np.memmap) and not content.images.flags.writeable
    assert (content.images.dtype, content.labels.dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(content.images, _expected(photos, border))
    assert (content.labels.tolist(), content.faults) == ([0, 0, 0, 0, 1, 1, 1], [])
    assert sorted(path.name for path in one.folder.iterdir()) == ["images.bin", "record.json"]


def test_a_set_is_decoded_once(photos, monkeypatch):
    one = _set(photos)
    _decode(one)
    reads = _count_reads(monkeypatch)
    assert _decode(_set(photos)) == []
    assert reads == []


def test_a_killed_run_decodes_only_what_is_missing(photos, monkeypatch):
    one = _set(photos)
    _killed_after_a_block(one)
    with open(one.unfinished / "blocks.jsonl", "a") as journal:
        journal.write('{"block": 1, "dig')  # a line that was cut off
    reads = _count_reads(monkeypatch)
    _killed_after_a_block(one, 1)  # the line after that one counts
    _decode(one)
    assert sorted(reads) == [3, 4, 5, 6]
    np.testing.assert_array_equal(open_decoded(one).images, _expected(photos))
    assert not one.unfinished.exists()


def test_a_block_with_other_bytes_than_were_written_is_decoded_again(photos, monkeypatch):
    one = _set(photos)
    _killed_after_a_block(one)
    with open(one.unfinished / "images.bin", "r+b") as file:
        file.write(b"\0\1\2\3")
    reads = _count_reads(monkeypatch)
    _decode(one)
    assert sorted(reads) == [0, 1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(open_decoded(one).images, _expected(photos))


def test_all_corrupt_files_are_listed_after_the_others_are_decoded(photos, monkeypatch):
    _truncate(photos / "a" / "2.jpg")
    (photos / "b" / "5.png").write_bytes(b"no image")
    one = _set(photos)
    with pytest.raises(UnreadableImage) as error:
        _decode(one)
    first, *lines = str(error.value).splitlines()
    assert first.startswith('2 images cannot be read (on_corrupt="count" leaves them out')
    assert [line.partition(":")[0] for line in lines] == [f"  {photos}/a/2.jpg", f"  {photos}/b/5.png"]
    assert not one.is_finished
    # the block without a fault is kept, the others are tried again
    reads = _count_reads(monkeypatch)
    with pytest.raises(UnreadableImage):
        _decode(one)
    assert sorted(reads) == [0, 1, 2, 6]


def test_corrupt_files_are_left_out_on_demand(photos):
    for name in ("a/2.jpg", "b/5.png"):
        _truncate(photos / name)
    one = _set(photos)
    _decode(one, "count")
    content = open_decoded(one)
    shutil.copytree(photos, photos.parent / "rest")
    for name in ("a/2.jpg", "b/5.png"):
        (photos.parent / "rest" / name).unlink()
    np.testing.assert_array_equal(content.images, _expected(photos.parent / "rest"))
    assert content.labels.tolist() == [0, 0, 0, 1, 1]
    assert [fault.partition(":")[0] for fault in content.faults] == [f"{photos}/a/2.jpg", f"{photos}/b/5.png"]


def test_nothing_but_corrupt_files(photos):
    for path in photos.glob("*/*"):
        path.write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match="7 images cannot be read"):
        _decode(_set(photos), "count")


@pytest.mark.parametrize("place", [0, 200, 7 * SIZE * SIZE * 3 - 1])
def test_a_flipped_bit_is_named(photos, place):
    one = _set(photos)
    _decode(one)
    with open(one.folder / "images.bin", "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    block = {0: r"0\.\.2", 200: r"0\.\.2"}.get(place, r"6\.\.6")
    with pytest.raises(ValueError, match=rf"images\.bin: images {block} are not what was written \(1 blocks\); delete"):
        open_decoded(one)


def _flipped(path, place):
    content = path.read_bytes()
    path.write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1 :])
    return content


def test_a_flipped_byte_of_the_record_is_named(photos):
    _truncate(photos / "a" / "2.jpg")
    one = _set(photos)
    _decode(one, "count")
    record = one.folder / "record.json"
    for place in range(0, record.stat().st_size, 11):
        content = _flipped(record, place)
        with pytest.raises(ValueError, match=rf"{record} does not have the bytes .*; delete {one.folder} to decode"):
            open_decoded(one)
        record.write_bytes(content)
    assert len(open_decoded(one).images) == 6


@pytest.mark.parametrize(
    "changes", [{"count": 6}, {"digests": []}, {"left_out": {"0": "x"}}, {"count": "7"}, {"digests": None}]
)
def test_a_record_of_other_images_is_named(photos, changes):
    one = _set(photos)
    _decode(one)
    state.write(one.folder / "record.json", state.read(one.folder / "record.json") | changes)
    with pytest.raises(
        ValueError, match=r"record\.json (belongs to other images|is state of another kind: .*); delete"
    ):
        open_decoded(one)


def test_a_flipped_byte_in_the_list_of_blocks_has_the_block_decoded_again(photos, monkeypatch):
    one = _set(photos)
    _killed_after_a_block(one)
    blocks = one.unfinished / "blocks.jsonl"
    _flipped(blocks, blocks.stat().st_size // 2)
    reads = _count_reads(monkeypatch)
    _decode(one)
    assert sorted(reads) == [0, 1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(open_decoded(one).images, _expected(photos))


def test_a_cut_off_file_is_named(photos):
    one = _set(photos)
    _decode(one)
    os.truncate(one.folder / "images.bin", 100)
    with pytest.raises(ValueError, match=rf"images\.bin: it has 100 bytes, not {7 * SIZE * SIZE * 3}; delete"):
        open_decoded(one)


def test_other_files_sizes_and_crops_have_another_folder(photos):
    folders = {_set(photos).folder, _set(photos, image_size=5).folder, _set(photos, border=1).folder}
    (photos / "a" / "8.jpg").write_bytes((photos / "a" / "0.jpg").read_bytes())
    folders.add(_set(photos).folder)
    _truncate(photos / "a" / "8.jpg")
    folders.add(_set(photos).folder)
    assert len(folders) == 5
    assert _set(photos).folder in folders


def test_the_digest_is_about_pixels_labels_and_groups(photos):
    one = _set(photos)
    _decode(one)
    digest = open_decoded(one).digest
    assert digest == open_decoded(_set(photos)).digest
    shutil.move(photos / "b", photos / "c")
    renamed = _set(photos)
    _decode(renamed)
    grouped = dataclasses.replace(one, source=dataclasses.replace(one.source, class_groups=((1,), (0,))))
    assert open_decoded(grouped).digest != digest
    assert open_decoded(renamed).digest == digest  # classes of other names, the same pixels and labels
    shutil.move(photos / "a", photos / "d")
    reordered = _set(photos)
    _decode(reordered)
    assert open_decoded(reordered).digest != digest


def test_too_little_space_is_said_before(photos, monkeypatch):
    one = _set(photos)
    usage = shutil.disk_usage(photos)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=one.num_bytes - 1))
    with pytest.raises(OSError, match=r"decoded sets need 0\.0 GB in .*, but only 0\.0 GB are free"):
        check_space([one])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=one.num_bytes))
    check_space([one])
    check_space([])


def test_a_full_disk_is_named(photos, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*images\.bin: No space left on device"):
        _decode(_set(photos))


def test_a_set_that_is_not_decoded_here_is_named(photos):
    with pytest.raises(FileNotFoundError, match=r"there is no decoded set .*all must see the same cache_dir"):
        open_decoded(_set(photos))


def test_a_second_process_waits_for_the_first(photos):
    one = _set(photos)
    with open(one.folder.with_name(f".{one.folder.name}.lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=_decode, args=[one])
        second.start()
        second.join(0.2)
        assert second.is_alive() and not one.unfinished.exists()
    second.join(20)
    assert one.is_finished
