"""Files of xz, to their last byte: Python's own reader ends without a word at the first stream that is damaged."""

from __future__ import annotations

import io
import lzma
from typing import Any, BinaryIO

_BLOCK = 128 * 1024


class XzReader(io.RawIOBase):
    """What the streams of a file hold, one after the other, whatever zeros xz has padded them with.

    Reading raises lzma.LZMAError for bytes that are no stream, also behind one, and EOFError for a stream that is cut
    off.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._stream = lzma.LZMADecompressor()
        # Of the file, read and not yet given to the stream.
        self._block = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream.eof and not self._begin_stream():
                return 0
            block, self._block = self._block, b""
            if self._stream.needs_input and not block and not (block := self._raw.read(_BLOCK)):
                raise EOFError("it ends within a stream of xz")
            if found := self._stream.decompress(block, len(buffer)):
                buffer[: len(found)] = found
                return len(found)

    def _begin_stream(self) -> bool:
        """Whether there is something behind the stream that has ended."""
        self._block = self._stream.unused_data.lstrip(b"\0")
        while not self._block and (block := self._raw.read(_BLOCK)):
            self._block = block.lstrip(b"\0")
        if self._block:
            self._stream = lzma.LZMADecompressor()
        return bool(self._block)
