"""Read the protocol buffers that SentencePiece writes its models as, without their library."""

from collections.abc import Iterator
from typing import Any


def fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of the fields of a message: whole numbers of varints, bytes of all else.

    Raises:
        ValueError: the content is truncated, or not a SentencePiece model.
    """
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(content, place)
        else:
            size = {1: 8, 5: 4}.get(kind)
            if kind == 2:
                size, place = _varint(content, place)
            if size is None or place + size > len(content):
                raise ValueError("it is truncated, or not a SentencePiece model")
            value, place = content[place : place + size], place + size
        yield key >> 3, value


def _varint(content, place):
    number = shift = 0
    while True:
        if place >= len(content) or shift > 63:
            raise ValueError("it is truncated, or not a SentencePiece model")
        byte, place = content[place], place + 1
        number, shift = number | (byte & 127) << shift, shift + 7
        if byte < 128:
            return number, place
