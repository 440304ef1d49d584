"""Test reading the NumPy arrays that lie among the tensors of a torch file; NumPy's own pickles are the oracle."""

import pickle

import numpy as np
import pytest

from soups.formats import CheckpointError, open_checkpoint

ARRAYS = {
    "floats": np.arange(6.0).reshape(2, 3),
    "big-endian, transposed": np.arange(6, dtype=">i2").reshape(2, 3).T,
    "a part of Fortran's order": np.arange(12, dtype=np.float16).reshape(2, 6, order="F")[:, ::2],
    "booleans": np.array([True, False]),
    "all bytes": np.arange(256, dtype=np.uint8),
    "complex": np.array([1 + 2j], np.complex64),
    "one number": np.array(3, np.float32),
    "no elements": np.zeros((0, 3), np.float32),
}
OTHERS = {"texts": np.array(["a"]), "objects": np.array([1, None]), "scalars": np.float32(1)}
OTHERS |= {"dates": np.array(["2020"], "M8[Y]")}
UNREAD = {"records": np.zeros(2, "f4,i4"), "raw bytes": np.zeros(2, "V2"), "wide": np.zeros(2, np.longdouble)}


@pytest.fixture
def beside(make, floats, tmp_path):
    """Return a function that puts the opcodes of an array beside a tensor, in a tree of weights that has a name."""

    def written(opcodes, **more):
        tensor = make.tensor(make.storage("FloatStorage", "0", 6), (6,), (1,))
        tree = make.mapping({"w": tensor, "inner": make.mapping({"a": opcodes})})
        items = {"model": tree, "a": opcodes, **more}
        return make.write_zip(tmp_path / "x.pt", make.pickled(make.mapping(items)), {"0": floats[1]})

    return written


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_among_the_weights_are_leaves(case, protocol, beside, floats):
    array = ARRAYS[case]
    checkpoint = open_checkpoint(beside(pickle.dumps(array, protocol)[2:-1]))
    assert set(checkpoint.leaves) == {"w", "inner.a"} and checkpoint.notes == ("left out of x.pt: 'a'",)
    leaf, read = checkpoint.leaves["inner.a"], checkpoint.read("inner.a")
    assert (leaf.shape, leaf.dtype) == (read.shape, read.dtype) == (array.shape, array.dtype.newbyteorder("="))
    assert leaf.nbytes == read.nbytes and not read.flags.writeable
    np.testing.assert_array_equal(read, array)
    np.testing.assert_array_equal(checkpoint.read("w"), floats[0])


def test_arrays_of_older_versions(beside):
    old = pickle.dumps(np.arange(3.0), 2).replace(b"numpy._core", b"numpy.core")
    assert open_checkpoint(beside(old[2:-1])).read("inner.a").tolist() == [0, 1, 2]
    python_2 = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x02tcnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\xc3\xa9tb"
    )
    assert open_checkpoint(beside(python_2)).read("inner.a").tolist() == [0xC3, 0xA9]


@pytest.mark.parametrize("case", OTHERS)
def test_what_holds_no_numbers_is_left_out_and_named(case, beside):
    checkpoint = open_checkpoint(beside(pickle.dumps(OTHERS[case], 2)[2:-1]))
    assert set(checkpoint.leaves) == {"w"} and checkpoint.notes == ("left out of x.pt: 'a', 'inner.a'",)


@pytest.mark.parametrize("case", UNREAD)
def test_numbers_that_cannot_be_read_are_refused(case, beside):
    with pytest.raises(CheckpointError, match=r"x\.pt: tensor 'inner\.a' has a dtype that cannot be read, .*plain"):
        open_checkpoint(beside(pickle.dumps(UNREAD[case], 2)[2:-1]))


DAMAGED = {
    "another size": (b"K\x06\x85", b"K\x07\x85", "is an array of 6 bytes; its shape and dtype make 7"),
    "a huge size": (b"K\x06\x85", b"\x8a\x05\0\0\0\0\1\x85", "is an array of 6 bytes; its shape and dtype make 42949"),
    "no size": (b"K\x06\x85", b"N\x85", "has a shape whose sizes are not non-negative integers"),
    "another order": (b"X\x01\0\0\0|", b"X\x01\0\0\0!", "has a dtype that cannot be read, '!u1'"),
    "fewer bytes": (b"X\x06\0\0\0\0\1\2\3\4\5", b"X\x03\0\0\0\0\1\2", "is an array of 3 bytes"),
    "what is no byte": (b"X\x06\0\0\0\0\1\2\3", b"X\x06\0\0\0\0\1\xc4\x80", "is an array of 4 bytes"),
    "no shape": (b"K\x06\x85", b"N", "has a dtype that cannot be read, 'of an array that is damaged'"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_arrays_are_refused(case, beside):
    before, after, message = DAMAGED[case]
    content = pickle.dumps(np.arange(6, dtype=np.uint8), 2)[2:-1]
    assert content.count(before) == 1
    with pytest.raises(CheckpointError, match=rf"x\.pt: tensor 'inner\.a' {message}"):
        open_checkpoint(beside(content.replace(before, after)))


def test_arrays_take_no_more_memory_than_the_file_allows(make, beside, monkeypatch):
    monkeypatch.setattr("soups.formats.torch_pickle.ALLOWANCE", 1 << 20)
    array = pickle.dumps(np.zeros(10_000, np.uint8), 4)[2:-1] + b"q\x40"
    many = make.mapping({str(number): b"h\x40" for number in range(3000)})
    with pytest.raises(CheckpointError, match="with more names than the size of the file allows"):
        open_checkpoint(beside(array, many=many), ".")
