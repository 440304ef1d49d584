"""Find the entries of a zip archive, as torch and NumPy write them, and where their bytes lie."""

import os
import pathlib
import struct
import zipfile
import zlib
from typing import BinaryIO

from soups.formats.tensors import CheckpointError, short

DEFLATED = 1032  # times its size is the most that deflate can pack


def read_entries(file: BinaryIO, path: pathlib.Path) -> dict[str, zipfile.ZipInfo]:
    """Return the directory of an archive by name."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    # OSError: a directory that is said to lie before the start of the file
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OverflowError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole zip archive: {error}") from error
    entries = {info.orig_filename: info for info in infos}
    if len(entries) < len(infos):
        raise CheckpointError(f"{path}: the archive holds two entries of the same name")
    return entries


def data_offset(file: BinaryIO, entry: zipfile.ZipInfo, path: pathlib.Path, *, packed: bool = False) -> int:
    """Return where an entry's bytes begin: behind its local header, whose length the directory does not say.

    `packed`: whether it may be compressed, with deflate.
    """
    where = f"{path}: {short(entry.orig_filename)}"
    _check_compression(entry, where, packed)
    size = file.seek(0, os.SEEK_END)
    if not 0 <= entry.header_offset <= size:
        raise CheckpointError(f"{where} lies outside the file")
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise CheckpointError(f"{where} has no header in the file: it is damaged")
    name_size, extra_size = struct.unpack("<HH", header[26:])
    if file.read(name_size) != entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437"):
        raise CheckpointError(f"{where} has another name in its header: the file is damaged")
    offset = entry.header_offset + 30 + name_size + extra_size
    if offset + entry.compress_size > size:
        raise CheckpointError(
            f"{where} is truncated: it ends at byte {offset + entry.compress_size}, the file at {size}"
        )
    return offset


def _check_compression(entry, where, packed):
    if entry.flag_bits & 1:
        raise CheckpointError(f"{where} is encrypted")
    stored = entry.compress_type == zipfile.ZIP_STORED
    if not stored and not packed:
        raise CheckpointError(f"{where} is compressed; torch.save writes plain bytes")
    if not stored and entry.compress_type != zipfile.ZIP_DEFLATED:
        raise CheckpointError(f"{where} is compressed in a way that NumPy does not write; save it with np.savez")
    if stored and entry.compress_size != entry.file_size:
        raise CheckpointError(f"{where} has {entry.compress_size} bytes, but the archive says {entry.file_size}")
    if entry.file_size > DEFLATED * entry.compress_size:
        raise CheckpointError(f"{where} claims {entry.file_size} bytes, but its {entry.compress_size} cannot hold them")


def unpack(packed: memoryview | bytes, entry: zipfile.ZipInfo, count: int, path: pathlib.Path) -> bytes:
    """Return the first `count` bytes of a compressed entry, which must be there; the checksum is of all of it."""
    try:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, count)
    except zlib.error as error:
        raise CheckpointError(f"{path}: {short(entry.orig_filename)} is damaged: {error}") from error
    wrong = "is shorter than it claims" if len(content) < count else "does not match its checksum"
    if len(content) < count or (count == entry.file_size and zlib.crc32(content) != entry.CRC):
        raise CheckpointError(f"{path}: {short(entry.orig_filename)} is damaged: it {wrong}")
    return content
