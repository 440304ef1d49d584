"""Damage files in thousands of ways: each gives what an independent reader finds, or a CheckpointError."""

import io
import json
import math
import pathlib
import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest

from soups.formats import CheckpointError, open_checkpoint
from soups.formats.text import read_json

DATA = pathlib.Path(__file__).parent / "data"
NUMBERS = [0, 1, 2, 3, 4, 7, 8, 12, 24, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1]


def outcome(path):
    """Return the leaves as {name: (dtype, shape, bytes)}, or None where the file is refused."""
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError:
        return None
    size, found = path.stat().st_size, {}
    for name in [*checkpoint.leaves, *checkpoint.aliases]:
        array = checkpoint.read(name)
        found[name] = (array.dtype.itemsize, array.shape, array.tobytes())
        leaf = checkpoint.leaves[checkpoint.aliases.get(name, name)]
        if leaf.load:
            continue
        first = leaf.offset if leaf.strided is None else leaf.strided[0]
        assert 0 <= first <= size and (leaf.offset is None or first + leaf.nbytes <= size)
    return found


def rewrite(path, content):
    """Replace a file's bytes without emptying it first: ext4 brings files that were emptied to the disk at once."""
    with open(path, "r+b" if path.exists() else "wb") as file:
        file.write(content)
        file.truncate()


def mutated(rng, content, tokens=()):
    """Change one to three places of some bytes."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = int(rng.integers(0, len(content) + 1))
        kind = rng.integers(0, 7)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << rng.integers(0, 8)
        elif kind == 1 and at < len(content):
            content[at] = rng.integers(0, 256)
        elif kind == 2:
            del content[at : at + rng.integers(1, 9)]
        elif kind == 3:
            start = int(rng.integers(0, len(content) + 1))
            content[at:at] = content[start : start + rng.integers(1, 30)]
        elif kind == 4:
            number = struct.pack("<Q", NUMBERS[rng.integers(0, len(NUMBERS))])[: rng.choice([1, 2, 4, 8])]
            content[at : at + len(number)] = number
        elif tokens:
            token = tokens[rng.integers(0, len(tokens))]
            content[at : at + (0 if kind == 5 else len(token))] = token
        else:
            content[at:at] = bytes(rng.integers(0, 256, 3, np.uint8))
    return bytes(content)


# --- safetensors ---

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8, "BOOL": 1} | {
    f"{kind}{8 * size}": size for kind in "IU" for size in (1, 2, 4, 8)
}


def strict_safetensors(content):
    """Read by the letter of the format, byte by byte; None where anything is amiss."""
    try:
        (length,) = struct.unpack_from("<Q", content)
        assert length <= len(content) - 8
        twice = []

        def pairs(items):
            twice.extend(name for name, _ in items if [n for n, _ in items].count(name) > 1)
            return dict(items)

        header = json.loads(content[8 : 8 + length].decode("utf-8", "strict"), object_pairs_hook=pairs)
        assert content[8:9] == b"{" and not twice
        metadata = header.pop("__metadata__", {})
        assert all(type(x) is str for x in metadata.values())
        data, found, used = content[8 + length :], {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            name.encode()
            assert set(entry) == {"dtype", "shape", "data_offsets"}
            begin, end = entry["data_offsets"]
            assert type(begin) is type(end) is int and begin == used <= end and type(entry["shape"]) is list
            assert all(type(size) is int and 0 <= size < 2**63 for size in entry["shape"]) and len(entry["shape"]) <= 64
            size = SIZES[entry["dtype"]]
            assert math.prod(n or 1 for n in entry["shape"]) * size < 2**63
            assert math.prod(entry["shape"]) * size == end - begin
            found[name] = (size, tuple(entry["shape"]), data[begin:end])
            used = end
        assert used == len(data)
        return found | {name: found[kept] for name, kept in metadata.items() if kept in found and name not in found}
    except (AssertionError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
        return None


TOKENS = rb'" { } [ ] , : - 1 0 1e3 null true "F32" "BOOL" "U8" "a": "shape":[2],'.split()
TOKENS += [b"9" * 30, rb"\u0000", rb"\ud800", b"  ", *rb'[0,8] [8,16] "x":{} NaN 6'.split()]


def random_entries(rng):
    """Make a valid layout, and in two of three cases put another value in one place of it."""
    entries, at = {}, 0
    for name in "abcd"[: rng.integers(0, 5)]:
        kind, shape = rng.choice(list(SIZES)), rng.integers(0, 4, rng.integers(0, 4)).tolist()
        size = math.prod(shape) * SIZES[kind]
        entries[name], at = [str(kind), shape, at, at + size], at + size
    if entries and rng.integers(0, 3):
        entry, place = entries[rng.choice(list(entries))], rng.integers(0, 4)
        if place == 0:
            entry[0] = str(rng.choice(list(SIZES)))
        elif place == 1:
            sizes = [*entry[1], NUMBERS[rng.integers(0, len(NUMBERS))]]
            entry[1] = [sizes[i] for i in rng.permutation(len(sizes))[rng.integers(0, 2) :]]
        else:
            entry[place] += int(rng.integers(-2, 3))
    return entries, bytes(at)


def test_safetensors_with_wrong_numbers(tmp_path, make):
    rng, path = np.random.default_rng(5), tmp_path / "x.safetensors"
    accepted = 0
    for _ in range(1500):
        content = make.safetensors_bytes(*random_entries(rng))
        rewrite(path, content)
        found = outcome(path)
        assert found == strict_safetensors(content), content
        accepted += found is not None
    assert 450 < accepted < 1200  # both ways are exercised


def test_safetensors_with_damaged_bytes(tmp_path, make):
    rng, path = np.random.default_rng(0), tmp_path / "x.safetensors"
    entries = {
        "a": ("F32", [2], 0, 8),
        "b": ("U8", [8], 8, 16),
        "c": ("BF16", [], 16, 18),
        "none": ("I64", [0], 18, 18),
    }
    headers = [make.safetensors_bytes(entries, metadata=metadata)[8:] for metadata in ({"tied": "a"}, None)]
    data, accepted = bytes(range(18)), 0
    for index in range(2000):
        header = headers[index % 2]
        if index % 4:
            content = make.safetensors_bytes(mutated(rng, header, TOKENS), data)
        else:
            content = mutated(rng, make.safetensors_bytes(header, data))
        rewrite(path, content)
        found = outcome(path)
        assert found == strict_safetensors(content), content
        accepted += found is not None
    assert 15 < accepted < 1000


# --- torch ---


class Anything(tuple):
    """Stand for a global, in an unpickler that is only for this test."""

    def __call__(self, *args):
        if self == ("collections", "OrderedDict"):
            return dict(*args)
        if self == ("torch", "Size"):
            return tuple(*args)
        if self == ("torch.jit._pickle", "restore_type_tag"):
            return None
        assert self in [("torch._utils", f"_rebuild_{name}") for name in ("tensor_v2", "parameter", "tensor")]
        return args[0] if self[1] == "_rebuild_parameter" else ("tensor", *args[:4])

    __new__ = tuple.__new__


class Oracle(pickle._Unpickler):
    """Python's own unpickler (the slow one, which takes no memory for a sparse memo), with harmless globals."""

    dispatch = pickle._Unpickler.dispatch | {pickle.BUILD[0]: lambda self: self.stack.pop()}  # attributes are ignored

    def find_class(self, module, name):
        return Anything((module, name))

    def persistent_load(self, identity):
        kind, (module, name), key, _, count, *view = identity
        assert kind == "storage" and module == "torch" and name in KINDS
        assert view in ([], [None]) and type(key) is str and type(count) is int
        return ("storage", np.dtype(KINDS[name]), key, count)


class Object:  # of a class of a TorchScript archive
    attributes = None


class ScriptOracle(Oracle):
    """The same for data.pkl of TorchScript."""

    def new_object(self):
        arguments, (module, _) = self.stack.pop(), self.stack.pop()
        assert module.split(".")[0] == "__torch__" and arguments == ()
        self.stack.append(Object())

    def build(self):
        state = self.stack.pop()
        assert type(state) is dict and self.stack[-1].attributes is None
        self.stack[-1].attributes = state

    dispatch = Oracle.dispatch | {pickle.NEWOBJ[0]: new_object, pickle.BUILD[0]: build}


KINDS = {"FloatStorage": "f4", "DoubleStorage": "f8", "LongStorage": "i8", "ByteStorage": "u1", "HalfStorage": "f2"}


def gather(view, storages):
    """Collect the elements of a strided view, one after the other."""
    tag, (_, dtype, key, count), offset, shape, strides = view
    assert tag == "tensor" and len(storages[key]) == count * dtype.itemsize
    elements, size = [], dtype.itemsize
    for index in np.ndindex(*shape):
        at = offset + sum(i * s for i, s in zip(index, strides, strict=True))
        assert 0 <= at < count
        elements.append(storages[key][at * size : (at + 1) * size])
    return size, tuple(shape), b"".join(elements)


def expected(stream, storages=None, oracle=Oracle):
    """Read with Python's unpickler: a pickle beside its storages, or the five of the older format before them."""
    if storages is not None:
        value = oracle(stream).load()
    else:
        _, _, _, value, keys = [Oracle(stream).load() for _ in range(5)]
        sizes = {}

        def walk(item):
            if type(item) is tuple and item[:1] == ("tensor",):
                sizes[item[1][2]] = item[1][1].itemsize
            elif type(item) is dict:
                [walk(part) for part in item.values()]
            elif type(item) in (list, tuple):
                [walk(part) for part in item]

        walk(value)
        storages = {key: stream.read(sizes[key] * struct.unpack("<q", stream.read(8))[0]) for key in keys}
    model = value.get("model") if type(value) is dict else None
    if type(model) is dict and not any(type(v) is tuple and v[:1] == ("tensor",) for v in value.values()):
        value = model
    found = {}

    def flatten(mapping, prefix):
        items = mapping.attributes or {} if type(mapping) is Object else mapping
        for key, item in items.items():
            if type(item) is type(mapping):
                flatten(item, f"{prefix}{key}.")
            elif type(item) is tuple and item[:1] == ("tensor",):
                found[f"{prefix}{key}"] = gather(item, storages)

    flatten(value, "")
    return found


@pytest.fixture
def weights(make):
    """Return a small state dict as a pickle, with its storages."""
    shared = make.storage("FloatStorage", "0", 6)
    other = make.storage("LongStorage", "1", 2)
    parameter = make.global_of("torch._utils", "_rebuild_parameter") + b"("
    parameter += make.tensor(other, (2,), (1,)) + b"\x88" + make.global_of("collections", "OrderedDict") + b")RtR"
    items = {
        "w": make.tensor(shared, (2, 3), (3, 1)),
        "t": make.tensor(shared, (3, 2), (1, 3)),
        "p": parameter,
        "deep": make.mapping({"row": make.tensor(shared, (3,), (1,), offset=3), "lr": b"K\x05"}),
    }
    body = make.global_of("collections", "OrderedDict") + b")Rq\0(" + make.mapping(items)[2:]
    body += b"}X\x09\0\0\0_metadatah\0sb"
    data = np.arange(6, dtype=np.float32).tobytes(), np.arange(2).tobytes()
    return make.pickled(body), {"0": data[0], "1": data[1]}


OPCODES = [bytes([code]) for code in b"Rbtu}])(Qs\x85\x86\x87\x81h\x88NKJ.qcX0"]
OPCODES += [b"h\0", b"h\0s", b"K\0", b"K\7", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\0"]
OPCODES += [b"cos\nsystem\n", b"X\x01\0\0\0w", b"r\xff\xff\xff\xff", b"\x8e" + b"\xff" * 8]
OPCODES += [b"ctorch\nDoubleStorage\n", b"ctorch\nByteStorage\n", b"(K\x01K\x02t"]


def compare(path, read):
    """Compare the outcome with the oracle's, where there is one."""
    found = outcome(path)
    if found is not None:
        assert found == read(), path.read_bytes()
    return found is not None


def test_torch_pickles_in_an_archive_with_good_checksums(tmp_path, make, weights):
    rng = np.random.default_rng(1)
    pickled, storages = weights
    path, accepted = tmp_path / "x.pt", 0
    for _ in range(1500):
        damaged = mutated(rng, pickled, OPCODES)
        rewrite(path, make.write_zip(io.BytesIO(), damaged, storages, byteorder=None).getvalue())
        accepted += compare(path, lambda damaged=damaged: expected(io.BytesIO(damaged), storages))
    assert 15 < accepted < 600


def test_modules_in_an_archive(tmp_path, make):
    rng, path, accepted = np.random.default_rng(7), tmp_path / "x.pt", 0
    first = make.tensor(make.storage("FloatStorage", "0", 6), (2, 3), (3, 1))
    other = make.tensor(make.storage("LongStorage", "1", 2), (2,), (1,))
    tagged = make.global_of("torch.jit._pickle", "restore_type_tag") + b"]" + make.text("List[int]") + b"\x86R"
    part = make.module_of({"w": first, "sizes": tagged, "none": b"N", "table": make.mapping({"t": other})}, "nn.Linear")
    pickled = make.pickled(make.module_of({"0": part + b"q\0", "w": other, "again": b"h\0", "training": b"\x88"}))
    storages = {"0": np.arange(6, dtype=np.float32).tobytes(), "1": np.arange(2).tobytes()}
    for _ in range(1500):
        damaged = mutated(rng, pickled, [*OPCODES, b"c__torch__\nNetwork\n", b")\x81", b")\x81}b"])
        archive = make.write_zip(io.BytesIO(), damaged, storages, byteorder=None, more=["constants.pkl"])
        rewrite(path, archive.getvalue())
        accepted += compare(path, lambda damaged=damaged: expected(io.BytesIO(damaged), storages, ScriptOracle))
    assert 15 < accepted < 600


def test_torch_views_with_wrong_numbers(tmp_path, make):
    rng, path = np.random.default_rng(6), tmp_path / "x.pt"
    storages, accepted = {"0": np.arange(12, dtype=np.float32).tobytes()}, 0
    for _ in range(800):
        shape, strides = rng.integers(0, 4, 2).tolist(), rng.integers(-1, 6, 2).tolist()
        offset, count = int(rng.integers(-1, 5)), int(rng.choice([12, 12, 12, 11]))
        storage = make.storage("FloatStorage", "0", count)
        pickled = make.pickled(make.mapping({"a": make.tensor(storage, shape, strides, offset)}))
        try:
            assert offset >= 0 and min(strides) >= 0 and count == 12
            right = expected(io.BytesIO(pickled), storages)
        except AssertionError:
            right = None
        rewrite(path, make.write_zip(io.BytesIO(), pickled, storages).getvalue())
        assert outcome(path) == right
        accepted += right is not None
    assert 240 < accepted < 560


def test_torch_streams(tmp_path, make, weights):
    rng = np.random.default_rng(2)
    pickled, storages = weights
    path, accepted = tmp_path / "x.pt", 0
    make.write_legacy(path, pickled, {"0": (6, storages["0"]), "1": (2, storages["1"])})
    whole = path.read_bytes()
    for _ in range(1500):
        damaged = mutated(rng, whole, OPCODES)
        rewrite(path, damaged)
        accepted += compare(path, lambda damaged=damaged: expected(io.BytesIO(damaged)))
    assert 15 < accepted < 750


def test_torch_archives(tmp_path, make, weights):
    rng = np.random.default_rng(3)
    pickled, storages = weights
    path, accepted = tmp_path / "x.pt", 0
    make.write_zip(path, pickled, storages)
    whole, right = path.read_bytes(), outcome(path)
    assert right == expected(io.BytesIO(pickled), storages)
    for _ in range(1000):
        rewrite(path, mutated(rng, whole))
        found = outcome(path)
        # the numbers themselves have no checksum that is compared, all else has
        if found is not None:
            assert {n: leaf[:2] for n, leaf in found.items()} == {n: leaf[:2] for n, leaf in right.items()}
            accepted += 1
    assert 15 < accepted < 750
    assert zlib.crc32(pickled) != 0


@pytest.mark.parametrize("file", ["zip.pt", "legacy.pt", "training.pt", "script.pt"])
def test_files_of_torch(file, tmp_path):
    rng = np.random.default_rng(4)
    whole, path = (DATA / file).read_bytes(), tmp_path / "x.pt"
    for _ in range(150):
        rewrite(path, mutated(rng, whole))
        outcome(path)


# --- npz ---

HEADER_TOKENS = [b"'descr': '<f4'", *rb"'|O' '<f8' '>i2' True (2,) ( ) { } ,".split(), b"9" * 30]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_arrays_with_damaged_headers(compression, tmp_path):
    rng, path, accepted = np.random.default_rng(8), tmp_path / "x.npz", 0
    arrays = [np.arange(6, dtype="<f4").reshape(2, 3), np.arange(6, dtype=">i2").reshape(3, 2, order="F"), np.zeros(())]
    for index in range(1000):
        file = io.BytesIO()
        np.save(file, arrays[index % 3])
        content = file.getvalue()
        text = mutated(rng, content[10:128], HEADER_TOKENS)
        start = content[:8] + struct.pack("<H", len(text)) if index % 4 else mutated(rng, content[:10])
        damaged = start + text + content[128:]
        with zipfile.ZipFile(file := io.BytesIO(), "w", compression) as archive:
            archive.writestr("a.npy", damaged)
        rewrite(path, file.getvalue())
        found = outcome(path)
        if found is not None:
            right = np.lib.format.read_array(io.BytesIO(damaged), allow_pickle=False)
            right = right.astype(right.dtype.newbyteorder("="))
            assert found == {"a": (right.dtype.itemsize, right.shape, right.tobytes())}, damaged
            accepted += 1
    assert 20 < accepted < 600


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_archives_of_arrays(save, tmp_path):
    rng, path = np.random.default_rng(9), tmp_path / "x.npz"
    save(path, a=np.arange(6, dtype=np.float32), b=np.asfortranarray(np.arange(6.0).reshape(2, 3)), c=np.zeros(500))
    whole, right, accepted = path.read_bytes(), outcome(path), 0
    for _ in range(800):
        rewrite(path, mutated(rng, whole))
        try:
            found = outcome(path)
        except CheckpointError as error:  # what is packed is only seen to be damaged when it is read
            assert "is damaged" in str(error)
            continue
        if found is not None and save is np.savez_compressed:
            assert all(leaf[2] == right[name][2] for name, leaf in found.items() if name in right)
        accepted += found is not None
    assert 5 < accepted < 640


# --- GGUF ---


def test_damaged_gguf(tmp_path):
    def text(string):
        return struct.pack("<Q", len(string)) + string

    metadata = text(b"arch") + struct.pack("<I", 8) + text(b"llama")
    metadata += text(b"tokens") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"bc")
    infos = text(b"a") + struct.pack("<IQQIQ", 2, 3, 2, 0, 0) + text(b"b") + struct.pack("<IQIQ", 1, 4, 1, 32)
    header = b"GGUF" + struct.pack("<IQQ", 3, 2, 2) + metadata + infos
    data = np.arange(6, dtype="<f4").tobytes().ljust(32, b"\0") + np.arange(4, dtype="<f2").tobytes()
    rng, path, accepted = np.random.default_rng(10), tmp_path / "x.gguf", 0
    for index in range(2000):
        content = mutated(rng, header, [struct.pack("<I", kind) for kind in (2, 8, 9, 24, 30)])
        content += b"\0" * (-len(content) % 32) + data
        rewrite(path, content if index % 3 else mutated(rng, content))
        found = outcome(path)
        if found is not None:
            accepted += 1
            assert all(len(leaf[2]) == leaf[0] * math.prod(leaf[1]) for leaf in found.values())
            assert sum(len(leaf[2]) for leaf in found.values()) <= path.stat().st_size
    assert 20 < accepted < 1000


@pytest.mark.parametrize("kind", ["safetensors", "npz", "gguf", "pt"])
def test_every_truncation_is_an_error(kind, tmp_path, make, weights):
    path = tmp_path / f"x.{kind}"
    if kind == "npz":
        np.savez_compressed(path, a=np.arange(6.0))
    elif kind == "pt":
        make.write_legacy(path, weights[0], {"0": (6, weights[1]["0"]), "1": (2, weights[1]["1"])})
    elif kind == "gguf":
        info = struct.pack("<Q", 1) + b"a" + struct.pack("<IQIQ", 1, 2, 0, 0)
        path.write_bytes((b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + info).ljust(64, b"\0") + b"\1" * 8)
    else:
        path.write_bytes(make.safetensors_bytes({"a": ("F32", [2], 0, 8)}, b"\1" * 8))
    whole = path.read_bytes()
    assert outcome(path)
    for size in range(len(whole)):
        rewrite(path, whole[:size])
        assert outcome(path) is None


# --- JSON ---


def test_damaged_json(tmp_path):
    rng, path, accepted = np.random.default_rng(11), tmp_path / "config.json", 0
    whole = json.dumps({"a": {"b": [1, 2.5, None, True, "x"]}, "c": "é", "d": -1e300}).encode()
    for _ in range(2000):
        content = mutated(rng, whole, TOKENS)
        rewrite(path, content)
        try:
            found = read_json(path)
        except CheckpointError:
            continue
        assert repr(found) == repr(json.loads(content))  # NaN is no NaN
        accepted += 1
    assert 30 < accepted < 1500
