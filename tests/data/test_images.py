"""Test that image files are read by their own decoders, upright, in bounded memory, each fault by name."""

import concurrent.futures
import io
import os
import pathlib
import re
import struct
import threading
import zlib

import numpy as np
import PIL.EpsImagePlugin
import PIL.Image
import pytest

from soups.cli import predict
from soups.data import decode, domain_folder_sources, folder_source, images, transforms
from soups.data.imagenet.decoded import decode_once, decoded_set, open_decoded
from soups.data.images import EXTENSIONS, UnreadableImage, memory_held, read_image
from soups.data.sources import View
from soups.data.transforms import center_crop, compose, resize, resize_shorter, to_channels

ROOT = pathlib.Path(__file__).parents[2]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 10 10 rectfill\nshowpage\n%%EOF\n"
KINDS = {".bmp": "BMP", ".gif": "GIF", ".jpeg": "JPEG", ".jpg": "JPEG", ".pgm": "PPM", ".png": "PNG", ".ppm": "PPM",
         ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}  # fmt: skip


@pytest.fixture(params=["folder", "bytes", "predict"])
def read(request, tmp_path):
    """Return a function that reads the bytes of a file of some name as each of the doors does: image, or an error."""

    def by_folder(content, name):
        for place in ("a", "b"):
            (tmp_path / place).mkdir(exist_ok=True)
            (tmp_path / place / name).write_bytes(content)
        return folder_source(tmp_path)[0]["image"]

    def by_predict(content, name):
        (tmp_path / name).write_bytes(content)
        found = predict._read(tmp_path, name, lambda image: image)
        if isinstance(found, str):
            raise UnreadableImage(f"{name}: {found}")
        return found

    doors = {"folder": by_folder, "bytes": lambda content, name: read_image(io.BytesIO(content), name)}
    return (doors | {"predict": by_predict})[request.param]


def encoded(kind, pixels, **options):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def pixels(rng):
    """Return a picture whose every turned and mirrored form is another, so large that JPEG keeps its corners apart."""
    corners = rng.permutation([[20, 40, 60], [230, 20, 20], [20, 230, 20], [20, 20, 230], [230, 230, 20], [90, 90, 90]])
    return corners.reshape(2, 3, 3).repeat(16, 0).repeat(16, 1).astype(np.uint8)


def alike(found, expected, most):
    """Compare the middles of the six squares, which no compression reaches from the next one."""
    differences = np.abs(found[8::16, 8::16].astype(int) - expected[8::16, 8::16])
    return found.shape == expected.shape and differences.max() <= most


# --- Decoders ---------------------------------------------------------------------------------------------------------


def test_every_extension_has_its_decoder(tmp_path, pixels):
    assert set(KINDS) == EXTENSIONS
    for extension, kind in KINDS.items():
        path = tmp_path / f"x{extension.upper()}"
        path.write_bytes(encoded(kind, pixels))
        assert alike(read_image(path, "x"), pixels, 12 if kind in ("JPEG", "WEBP") else 0), kind


def test_no_other_place_opens_images():
    files = (file for room in ("soups", "scripts") for file in (ROOT / room).rglob("*.py"))
    opening = re.compile(r"\b(Image|pillow)\.open\(")
    ours = {"benchmarks", "notebooks.py", "build_domains.py"}  # which open pictures that they drew
    found = [file for file in files if opening.search(file.read_text()) and not ours & set(file.parts)]
    assert found == [ROOT / "soups" / "data" / "images.py"]


@pytest.mark.parametrize("name", ["x.png", "x.JPEG", "x.tif", "x.ppm"])
def test_no_ghostscript_is_started_whatever_a_file_is_called(read, name, monkeypatch):
    started = []
    monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", lambda *arguments, **options: started.append(arguments))
    with pytest.raises(UnreadableImage, match=rf"{name}: cannot be read as an image \(cannot identify image file"):
        read(EPS, name)
    assert not started


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "TGA", "SGI", "PCX", "DDS", "JPEG2000"])
def test_a_decoder_that_the_name_does_not_name_is_not_asked(read, kind, pixels):
    with pytest.raises(UnreadableImage, match=r"x\.png: cannot be read as an image \(cannot identify"):
        read(encoded(kind, pixels), "x.png")


@pytest.mark.parametrize(("kind", "name"), [("PNG", "x.JPEG"), ("BMP", "x.png"), ("PNG", "x.tif")])
def test_common_kinds_are_known_under_other_names(read, kind, name, pixels):
    np.testing.assert_array_equal(read(encoded(kind, pixels), name), pixels)


# --- Orientation ------------------------------------------------------------------------------------------------------


def upright(pixels, orientation):
    """Return what EXIF says a viewer must show: 5 to 8 have rows for columns."""
    pixels = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


def exif_of(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_what_a_camera_took_is_turned_upright(kind, pixels, tmp_path):
    for orientation in (*range(1, 9), 0, 9, 77):
        path = tmp_path / f"x.{kind.lower()}"
        path.write_bytes(encoded(kind, pixels, exif=exif_of(orientation)))
        expected = upright(pixels, orientation if orientation in range(1, 9) else 1)
        found = read_image(path, "x")
        assert alike(found, expected, 12), orientation


def test_it_is_turned_by_every_door_and_stays_as_stored_on_demand(read, pixels, tmp_path):
    content = encoded("PNG", pixels, exif=exif_of(6))
    np.testing.assert_array_equal(read(content, "x.png"), upright(pixels, 6))
    (tmp_path / "a").mkdir(exist_ok=True), (tmp_path / "b").mkdir(exist_ok=True)
    (tmp_path / "a" / "x.png").write_bytes(content), (tmp_path / "b" / "x.png").write_bytes(content)
    np.testing.assert_array_equal(folder_source(tmp_path, upright=False)[0]["image"], pixels)


@pytest.mark.parametrize("exif", [b"MM\0*\xff\xff\xff\xff", b"", b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 30])
def test_broken_notes_of_a_camera_make_no_image_unreadable(read, exif, pixels):
    np.testing.assert_array_equal(read(encoded("PNG", pixels, exif=b"Exif\0\0" + exif), "x.png"), pixels)


# --- Size and memory --------------------------------------------------------------------------------------------------


def bomb(height, width):
    """Return a PNG of one zero byte that says it has this size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("shape", [(100_000, 100_000), (2**31 - 1, 1), (1, 2**31 - 1)])
def test_a_size_bomb_is_unreadable(read, shape):
    with pytest.raises(UnreadableImage, match=r"x\.png: cannot be read as an image \(Image size .* exceeds limit"):
        read(bomb(*shape), "x.png")


@pytest.fixture
def folder(tmp_path, rng):
    """Return a folder of eight pictures, two of them long and thin."""
    for number, shape in enumerate([(12, 9), (1, 4000), (8, 8), (9, 30), (4000, 1), (10, 10), (8, 12), (30, 8)]):
        path = tmp_path / "pictures" / "ab"[number // 4] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(path)
    return tmp_path / "pictures"


def test_long_and_thin_pictures_are_counted_like_other_damage(folder, monkeypatch):
    monkeypatch.setattr(transforms, "MAX_PIXELS", 100_000)  # of 6 x 24,000
    source = folder_source(folder)
    view = View(source, np.arange(8), source.labels, source.class_names)
    one = decoded_set("thin", view, folder.parent, image_size=6)
    with pytest.raises(UnreadableImage, match=r"2 images cannot be read .*\n.*/a/1\.png: a 1 x 4000 image is too long"):
        decode_once(one, lambda number: None)
    decode_once(one, lambda number: None, "count")
    content = open_decoded(one)
    assert (len(content.images), content.labels.tolist()) == (6, [0, 0, 0, 1, 1, 1])
    assert [fault.rpartition("/")[2] for fault in content.faults] == [
        "1.png: a 1 x 4000 image is too long and thin to be resized to 6 pixels",
        "4.png: a 4000 x 1 image is too long and thin to be resized to 6 pixels",
    ]


def test_long_and_thin_pictures_are_named_by_every_door(folder, monkeypatch):
    monkeypatch.setattr(transforms, "MAX_PIXELS", 100_000)
    transform = compose(resize_shorter(6), center_crop(6), to_channels(3))
    with pytest.raises(UnreadableImage, match=r"a/1\.png: a 1 x 4000 image is too long and thin"):
        decode(folder_source(folder), transform)
    (_, found, reasons), *_ = predict._batches(folder, ["a/0.png", "a/1.png", "b/4.png"], 6, 3)
    assert list(found) == ["a/0.png"] and list(reasons) == ["a/1.png", "b/4.png"]
    assert reasons["b/4.png"] == "a 4000 x 1 image is too long and thin to be resized to 6 pixels"


@pytest.mark.parametrize("size", [0, -1, (4, 0), 2**14])
def test_sizes_that_no_image_can_have(size):
    with pytest.raises(ValueError, match="a size must have 1 to 67,108,864 pixels"):
        resize(size)


def test_an_image_without_pixels_is_named():
    for transform in (resize(4), resize_shorter(4), to_channels(3)):
        with pytest.raises(ValueError, match=r"shape \[0, 5, 3\] has no pixels"):
            transform(np.zeros((0, 5, 3), np.uint8))


@pytest.mark.parametrize("at_once", [1, 3])
def test_only_so_much_is_decoded_at_once_until_it_is_transformed(at_once, tmp_path, rng, monkeypatch):
    monkeypatch.setattr(images, "_AT_ONCE", at_once * 100 * images._BYTES_PER_PIXEL)
    for number in range(16):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 256, (10, 10, 3), np.uint8)).save(path)
    lock, came, now, most, all_in = threading.Lock(), 0, 0, 0, threading.Barrier(at_once)

    def transform(image):
        nonlocal came, now, most
        with lock:
            came, now = came + 1, now + 1
            most, first = max(most, now), came <= at_once
        if first:
            all_in.wait(10)  # as many as may be here come here
        with lock:
            now -= 1
        return image

    decode(folder_source(tmp_path), transform, num_threads=8)
    assert most == at_once and images._taken == 0


def test_what_is_larger_than_all_memory_is_decoded_alone_and_faults_give_it_back(folder, monkeypatch):
    monkeypatch.setattr(images, "_AT_ONCE", 1)
    source = folder_source(folder)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert [image["image"].shape[0] for image in threads.map(source.__getitem__, range(8))][:2] == [12, 1]
    (folder / "a" / "0.png").write_bytes((folder / "a" / "0.png").read_bytes()[:-40])
    with pytest.raises(UnreadableImage):
        source[0]
    assert images._taken == 0


def test_who_holds_an_image_does_not_wait_for_the_next(folder, monkeypatch):
    monkeypatch.setattr(images, "_AT_ONCE", 1)
    source = folder_source(folder)
    with memory_held():
        pair = source[0]["image"], source[1]["image"]
        assert images._taken == images._BYTES_PER_PIXEL * sum(image[..., 0].size for image in pair)
    assert images._taken == 0


# --- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"a/\xff.png", b"\xff/x.png", b"a/b\xe9.JPG"])
def test_a_name_that_is_not_utf_8_is_named(name, tmp_path, pixels):
    for place in (os.fsencode(tmp_path / "set" / "domain") + b"/" + file for file in (name, b"a/x.png", b"b/x.png")):
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(encoded("PNG", pixels))
    domain = tmp_path / "set" / "domain"
    for door in (
        lambda: folder_source(domain),
        lambda: domain_folder_sources(tmp_path / "set"),
        lambda: predict._files(domain),
    ):
        with pytest.raises(ValueError, match=r"domain.*: the name b'.*\\x(ff|e9).*' is not UTF-8: rename it"):
            door()
