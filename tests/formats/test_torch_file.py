"""Test reading torch files: those that torch 2.13 wrote, and those written by hand; the wrong ones are named."""

import pathlib
import re
import zipfile

import ml_dtypes
import numpy as np
import pytest

from soups.formats import CheckpointError, open_checkpoint

DATA = pathlib.Path(__file__).parent / "data"  # made by torch 2.13
WIDER = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float8": np.dtype(ml_dtypes.float8_e4m3fn)}  # saved as float32


@pytest.fixture
def refused(tmp_path):
    """Check that a file is refused with this message, which names it."""

    def check(path, message, error=CheckpointError):
        with pytest.raises(error, match=f"{re.escape(str(path))}.*{message}"):
            open_checkpoint(path)

    return check


# --- Files made by torch ---


@pytest.mark.parametrize("file", ["zip.pt", "legacy.pt"])
def test_reads_what_torch_wrote(file):
    checkpoint = open_checkpoint(DATA / file)
    with np.load(DATA / "tensors.npz") as expected:
        assert {*checkpoint.leaves, *checkpoint.aliases} == set(expected)
        for name, values in expected.items():
            read = checkpoint.read(name)
            assert read.dtype == WIDER.get(name, values.dtype) and read.shape == values.shape
            np.testing.assert_array_equal(read.astype(values.dtype), values)
            assert not read.flags.writeable
    assert checkpoint.aliases == {"tied": "weight"} and checkpoint.metadata == {}
    strided = {name for name, leaf in checkpoint.leaves.items() if leaf.offset is None}
    assert strided == {"transposed", "columns", "expanded"}
    offsets = [leaf.strided[0] if leaf.strided else leaf.offset for leaf in checkpoint.leaves.values()]
    assert offsets == sorted(offsets)


def test_raw_leaves_lie_where_they_say():
    checkpoint = open_checkpoint(DATA / "zip.pt")
    content = (DATA / "zip.pt").read_bytes()
    raw = {name: leaf for name, leaf in checkpoint.leaves.items() if leaf.offset is not None}
    assert len(raw) == 13
    for name, leaf in raw.items():
        assert content[leaf.offset : leaf.offset + leaf.nbytes] == checkpoint.read(name).tobytes()


def test_takes_the_weights_of_a_training_checkpoint():
    checkpoint = open_checkpoint(DATA / "training.pt")
    with np.load(DATA / "training.npz") as expected:
        assert set(checkpoint.leaves) == set(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(checkpoint.read(name), values)
    assert checkpoint.notes == ("left out of training.pt: 'optimizer', 'epoch', 'name'",)


# --- Files made by hand ---


def one(make, **kwargs):
    return make.pickled(make.mapping({"a": make.tensor(make.storage("FloatStorage", "0", 6), **kwargs)}))


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        *[((6,), (1,), 0), ((2, 3), (3, 1), 0), ((3, 2), (1, 3), 0), ((2,), (2,), 1), ((2, 2), (3, 1), 1), ((), (), 5)],
        *[((4,), (0,), 3), ((1, 3), (77, 1), 0), ((0, 5), (9, 9), 2), ((2, 2, 2), (1, 1, 1), 2)],
    ],
)
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_views_have_the_elements_that_strides_name(kind, shape, strides, offset, tmp_path, make, floats):
    values, data = floats
    pickle = one(make, shape=shape, strides=strides, offset=offset)
    if kind == "zip":
        path = make.write_zip(tmp_path / "x.pt", pickle, {"0": data})
    else:
        path = make.write_legacy(tmp_path / "x.pt", pickle, {"0": (6, data)})
    expected = np.zeros(shape, np.float32)
    for index in np.ndindex(*shape):
        expected[index] = values[offset + sum(i * s for i, s in zip(index, strides, strict=True))]
    checkpoint = open_checkpoint(path)
    read = checkpoint.read("a")
    np.testing.assert_array_equal(read, expected)
    leaf = checkpoint.leaves["a"]
    assert leaf.nbytes == expected.nbytes and read.dtype == np.float32
    if leaf.offset is not None:
        assert path.read_bytes()[leaf.offset : leaf.offset + leaf.nbytes] == expected.tobytes()


def test_functions_of_all_ages_and_untyped_storages(tmp_path, make, floats):
    values, data = floats
    typed, untyped = make.storage("FloatStorage", "0", 6), make.global_of("torch.storage", "UntypedStorage")
    untyped = make.tuple_of(make.text("storage"), untyped, make.text("1"), make.text("cuda:0"), make.integer(24)) + b"Q"
    items = {
        "v1": make.tensor(typed, (6,), (1,), function="_rebuild_tensor"),
        "v2": make.tensor(typed, (5,), (1,), more=(b"}",)),
        "v3": make.tensor(untyped, (6,), (1,), function="_rebuild_tensor_v3", more=(make.global_of("torch", "int32"),)),
        "bytes": make.tensor(untyped, (24,), (1,)),
    }
    checkpoint = open_checkpoint(
        make.write_zip(tmp_path / "x.pt", make.pickled(make.mapping(items)), {"0": data, "1": data})
    )
    np.testing.assert_array_equal(checkpoint.read("v1"), values)
    np.testing.assert_array_equal(checkpoint.read("v2"), values[:5])
    np.testing.assert_array_equal(checkpoint.read("v3"), values.view(np.int32))
    np.testing.assert_array_equal(checkpoint.read("bytes"), values.view(np.uint8))


def test_python_2_s_ordered_dicts_and_strings(tmp_path, make, floats):
    pair = b"](U\x01a" + make.tensor(make.storage("FloatStorage", "0", 6), (6,), (1,)) + b"e"
    body = make.global_of("collections", "OrderedDict") + b"](" + pair + b"e\x85R"
    body += b"}(U\x09_metadata}ub"  # its attributes
    checkpoint = open_checkpoint(make.write_legacy(tmp_path / "x.pth", make.pickled(body), {"0": (6, floats[1])}))
    np.testing.assert_array_equal(checkpoint.read("a"), floats[0])


def test_protocol_4(tmp_path, make, floats):
    def name(module, attribute):
        return b"\x8c" + bytes([len(module)]) + module + b"\x94\x8c" + bytes([len(attribute)]) + attribute + b"\x93"

    storage = b"(\x8c\x07storage\x94" + name(b"torch", b"FloatStorage") + b"\x8c\x010\x8c\x03cpuK\x06tQ"
    hooks = name(b"collections", b"OrderedDict") + b")R"
    tensor = (
        name(b"torch._utils", b"_rebuild_tensor_v2") + b"(" + storage + b"K\x00K\x06\x85K\x01\x85\x89" + hooks + b"tR"
    )
    body = b"\x80\x04\x95\0\0\0\0\0\0\0\0}(\x8c\x01a" + tensor + b"u."
    checkpoint = open_checkpoint(make.write_zip(tmp_path / "x.pt", body, {"0": floats[1]}))
    np.testing.assert_array_equal(checkpoint.read("a"), floats[0])


def test_nested_mappings_have_names_with_dots_and_the_rest_is_ignored(tmp_path, make, floats):
    leaf = make.tensor(make.storage("FloatStorage", "0", 6), (6,), (1,))
    row = make.tensor(make.storage("FloatStorage", "0", 6), (3,), (1,), offset=3)
    inner = b"}(K\x00" + leaf + make.text("lr") + b"G?\xf0\0\0\0\0\0\0" + b"u"  # the key is an integer
    body = make.mapping({"trunk": make.mapping({"0": row, "list": b"]K\x01a"}), "head": inner, "epoch": b"K\x03"})
    checkpoint = open_checkpoint(make.write_zip(tmp_path / "x.pt", make.pickled(body), {"0": floats[1]}))
    assert list(checkpoint.leaves) == ["head.0", "trunk.0"]
    assert checkpoint.notes == ("left out of x.pt: 'trunk.list', 'head.lr', 'epoch'",)


def test_one_of_several_trees_is_chosen(tmp_path, make, floats):
    trees = {
        name: make.mapping({"a": make.tensor(make.storage("FloatStorage", "0", 6), (3,), (1,), offset=offset)})
        for name, offset in (("state_dict", 0), ("ema", 3))
    }
    path = make.write_zip(tmp_path / "x.pt", make.pickled(make.mapping(trees)), {"0": floats[1]})
    with pytest.raises(CheckpointError, match=r"x\.pt holds several trees .*: 'state_dict', 'ema'; choose one"):
        open_checkpoint(path)
    for name, part in (("state_dict", slice(0, 3)), ("ema", slice(3, 6))):
        np.testing.assert_array_equal(open_checkpoint(path, name).read("a"), floats[0][part])
    assert set(open_checkpoint(path, ".").leaves) == {"state_dict.a", "ema.a"}


# --- What is refused ---

VIEWS = {
    "beyond the storage": ({"shape": (7,), "strides": (1,)}, "tensor 'a' reaches to byte 28 of a storage of 24 bytes"),
    "an offset beyond": ({"shape": (2,), "strides": (1,), "offset": 5}, "tensor 'a' reaches to byte 28"),
    "a stride beyond": ({"shape": (2,), "strides": (6,)}, "tensor 'a' reaches to byte 28"),
    "a huge stride": ({"shape": (2,), "strides": (1 << 62,)}, "tensor 'a' reaches to byte"),
    "a negative stride": ({"shape": (2,), "strides": (-1,), "offset": 3}, "not counts of elements"),
    "a negative offset": ({"shape": (2,), "strides": (1,), "offset": -3}, "not counts of elements"),
    "a stride too many": ({"shape": (2,), "strides": (1, 1)}, "not counts of elements"),
    "an overflow": ({"shape": (1 << 40, 1 << 40), "strides": (0, 0)}, "tensor 'a' has a shape of more than"),
    "terabytes of one number": ({"shape": (1 << 40,), "strides": (0,)}, "tensor 'a' repeats the elements"),
    "too many dimensions": ({"shape": (1,) * 65, "strides": (0,) * 65}, "a tensor of 65 dimensions, more than 64"),
    "a conjugate bit": ({"shape": (6,), "strides": (1,), "more": (b"}X\x04\0\0\0conj\x88s",)}, "conjugate or negative"),
}


@pytest.mark.parametrize("case", VIEWS)
def test_refuses_views(case, tmp_path, make, floats, refused):
    kwargs, message = VIEWS[case]
    refused(make.write_zip(tmp_path / "x.pt", one(make, **kwargs), {"0": floats[1]}), message)
    refused(make.write_legacy(tmp_path / "y.pt", one(make, **kwargs), {"0": (6, floats[1])}), message)


@pytest.fixture
def whole(make):
    """Return a pickle of one tensor of six elements."""
    return one(make, shape=(6,), strides=(1,))


ZIPS = {
    "a storage that is missing": ({"storages": {}}, "storage '0' is not in the archive"),
    "a storage that is short": ({"storages": {"0": b"\0" * 20}}, "its storage has 20 bytes instead of 24"),
    "big-endian": ({"byteorder": b"big"}, "is not little-endian"),
    "compressed": ({"compression": zipfile.ZIP_DEFLATED, "byteorder": None}, "data.pkl' is compressed"),
    "TorchScript of a dict": ({"more": ["constants.pkl"]}, "is a TorchScript archive, but of a dict instead of a mod"),
    "TorchScript of old": ({"more": ["model.json"]}, "is a TorchScript archive in an old layout; save it again"),
}


@pytest.mark.parametrize("case", ZIPS)
def test_refuses_archives(case, tmp_path, make, whole, floats, refused):
    kwargs, message = ZIPS[case]
    refused(make.write_zip(tmp_path / "x.pt", whole, **({"storages": {"0": floats[1]}} | kwargs)), message)


def test_refuses_other_archives(tmp_path, refused):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", b"")
    refused(path, "a zip archive with 0 entries")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("b/data.pkl", b"")
    refused(path, "a zip archive with 2 entries")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/data.pkl", b"")
    refused(path, "two entries of the same name")


PATCHES = {  # of the last entry of the directory, or of its own header: offset from its signature, bytes
    "encrypted": (b"PK\1\2", 8, b"\1\0", "data/0' is encrypted"),
    "a place outside": (b"PK\1\2", 42, b"\xff\xff\xff\x7f", "data/0' lies outside the file"),
    "another place": (b"PK\1\2", 42, b"\1\0\0\0", "data/0' has no header in the file"),
    "the place of another entry": (b"PK\1\2", 42, b"\0\0\0\0", "data/0' has another name in its header"),
    "a header too long": (b"PK\3\4", 28, b"\xff\x7f", "data/0' is truncated: it ends at byte"),
    "an absurd size": (b"PK\1\2", 20, b"\0\0\0\x40" * 2, "data/0' is truncated: it ends at byte"),
}


@pytest.mark.parametrize("case", PATCHES)
def test_refuses_damaged_directories(case, tmp_path, make, whole, floats, refused):
    signature, offset, patch, message = PATCHES[case]
    path = make.write_zip(tmp_path / "x.pt", whole, {"0": floats[1]})
    content = bytearray(path.read_bytes())
    at = content.rindex(signature) + offset
    content[at : at + len(patch)] = patch
    path.write_bytes(content)
    refused(path, message)


def test_entries_of_64_bit_archives(tmp_path, make, whole, floats):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"a/data.pkl": whole, "a/data/0": floats[1]}.items():
            with archive.open(name, "w", force_zip64=True) as entry:
                entry.write(content)
    np.testing.assert_array_equal(open_checkpoint(path).read("a"), floats[0])


def test_archives_without_checksums(tmp_path, make, whole, floats):
    path = make.write_zip(tmp_path / "x.pt", whole, {"0": floats[1]})
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\1\2") + 16
    content[at : at + 4] = bytes(4)  # torch.serialization.set_crc32_options(False)
    path.write_bytes(content)
    np.testing.assert_array_equal(open_checkpoint(path).read("a"), floats[0])


def test_a_damaged_pickle_is_noticed_by_its_checksum(tmp_path, make, whole, floats, refused):
    path = make.write_zip(tmp_path / "x.pt", whole, {"0": floats[1]})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"X\x01\0\0\0a", b"X\x01\0\0\0b", 1))
    refused(path, "data.pkl does not match its checksum")


def test_a_pickle_larger_than_the_limit_is_not_read(tmp_path, make, whole, floats, refused, monkeypatch):
    monkeypatch.setattr("soups.formats.torch_file.MAX_PICKLE", 100)
    path = make.write_zip(tmp_path / "x.pt", whole, {"0": floats[1]})
    refused(path, rf"data.pkl' has {len(whole)} bytes, more than 100")


LEGACY = {
    "another magic number": ({"magic": 7}, "is a pickle, but torch did not write it"),
    "big-endian": ({"little_endian": False}, "is not little-endian"),
    "a storage that is missing": ({"storages": {}}, "storage '0' is not in the file"),
    "a storage of another size": ({"storages": {"0": (5, b"\0" * 20)}}, "storage has 20 bytes instead of 24"),
    "a truncated storage": ({"storages": {"0": (6, b"\0" * 20)}}, "is truncated in storage '0'"),
    "an absurd storage": ({"storages": {"0": (1 << 62, b"")}}, "is truncated in storage '0'"),
    "a negative storage": ({"storages": {"0": (-6, b"\0" * 24)}}, "is truncated in storage '0'"),
    "bytes behind": ({"storages": {"0": (6, b"\0" * 25)}}, "1 bytes after the last storage"),
    "a storage of nobody": ({"storages": {"0": (6, b"\0" * 24), "1": (2, b"\0" * 8)}}, "no tensor says how long"),
}


@pytest.mark.parametrize("case", LEGACY)
def test_refuses_streams(case, tmp_path, make, whole, floats, refused):
    kwargs, message = LEGACY[case]
    refused(make.write_legacy(tmp_path / "x.pt", whole, **({"storages": {"0": (6, floats[1])}} | kwargs)), message)


VALUES = {
    "a list": (b"]", "holds a list, not tensors by name"),
    "nothing": (b"}", "holds no tensors by name"),
    "numbers": (b"}X\x01\0\0\0aK\x03s", "holds no tensors by name"),
}


@pytest.mark.parametrize("case", VALUES)
def test_refuses_values_without_tensors(case, tmp_path, make, refused):
    body, message = VALUES[case]
    refused(make.write_zip(tmp_path / "x.pt", make.pickled(body), {}), message)


def test_refuses_two_tensors_of_one_name(tmp_path, make, floats, refused):
    leaf = make.tensor(make.storage("FloatStorage", "0", 6), (6,), (1,))
    body = make.mapping({"a": make.mapping({"b": leaf}), "a.b": leaf})
    refused(make.write_zip(tmp_path / "x.pt", make.pickled(body), {"0": floats[1]}), "two tensors are named 'a.b'")


def test_refuses_names_without_measure(tmp_path, make, floats, refused):
    leaf = make.tensor(make.storage("FloatStorage", "0", 6), (6,), (1,))
    body = make.mapping({"x" * 1001: leaf})
    refused(make.write_zip(tmp_path / "x.pt", make.pickled(body), {"0": floats[1]}), "a name of more than 1000")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"ustar\0", b"\x93NUMPY", b"PK", b"PK\3\4 no zip", b"\x80", b"\x80\x02."]
)
def test_refuses_other_files(content, tmp_path, refused):
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    refused(path, "")


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_every_truncation_is_an_error(kind, tmp_path):
    content = (DATA / f"{kind}.pt").read_bytes()
    path = tmp_path / "x.pt"
    for size in range(0, len(content), 29):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)
