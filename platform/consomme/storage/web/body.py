"""Bodies of responses, out of the codings that were asked for, in pieces of bounded size.

aiohttp's own decoding depends on its version and on the packages beside it: a body in a coding
that it cannot decode is an error before the headers can be read, or comes undecoded.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp

CODINGS = ("gzip", "deflate")
"""Content codings to ask for."""

_CHUNK_BYTES = 1 << 16


class UnknownCodingError(ValueError):
    """A body in a coding that was not asked for."""


async def iter_body(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the decoded body, of a session that does not decode by itself.

    Raises:
        UnknownCodingError: The coding is none of `CODINGS`.
        ValueError: The body is damaged, or ends too early.
        aiohttp.ClientError: The connection failed.
    """
    coding = response.headers.get("Content-Encoding", "").strip().lower().removeprefix("x-")
    chunks = response.content.iter_chunked(_CHUNK_BYTES)
    if coding in ("", "identity"):
        async for chunk in chunks:
            yield chunk
        return
    if coding not in CODINGS:
        raise UnknownCodingError(f"Content-Encoding: {coding[:50]}, which was not asked for")
    decoder = _Decoder(is_gzip=coding == "gzip")
    async for chunk in chunks:
        for piece in decoder.decode(chunk):
            yield piece
    decoder.finish()


class _Decoder:
    """Decodes gzip (with several members) and deflate (with or without zlib's header)."""

    def __init__(self, *, is_gzip: bool) -> None:
        self._is_gzip = is_gzip
        self._start = b""
        self._inner: Any = None

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Yield what some bytes of the body decode to, in bounded pieces."""
        data = self._start + data
        self._start = b""
        try:
            while data:
                if self._inner is None or self._inner.eof:
                    # The first two bytes say what follows.
                    if len(data) < 2:
                        self._start = data
                        return
                    # Behind the end, what is no further member is padding.
                    if self._inner and not (self._is_gzip and data.startswith(b"\x1f\x8b")):
                        return
                    self._inner = self._begin(data)
                piece = self._inner.decompress(data, _CHUNK_BYTES)
                yield piece
                while len(piece) == _CHUNK_BYTES and not self._inner.unconsumed_tail:
                    # All is read, but not all is written.
                    yield (piece := self._inner.decompress(b"", _CHUNK_BYTES))
                data = self._inner.unconsumed_tail or self._inner.unused_data
        except zlib.error as error:
            raise ValueError(f"the body is damaged: {error}") from error

    def finish(self) -> None:
        """Check that the body was whole; one of no bytes is."""
        if (self._start and self._inner is None) or (self._inner and not self._inner.eof):
            raise ValueError("the body ends too early")

    def _begin(self, data: bytes) -> Any:
        if self._is_gzip:
            return zlib.decompressobj(16 + zlib.MAX_WBITS)
        has_header = data[0] & 15 == 8 and int.from_bytes(data[:2], "big") % 31 == 0
        return zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
