"""Find the elements of a JSON array in a file of any length, without holding many of them.

Elements are parsed by Python's own scanner, which is written in C: on bytes that are taken for
Latin-1, so that a character is a byte and offsets are right. What it cannot parse is delimited by
its brackets, so that one broken element costs that element.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from consomme.storage.readers import text

_BLANK = b" \t\r\n"
_CHUNK_BYTES = 1 << 22
_TOKEN = re.compile(rb'["\[\]{},]')
_TEXT = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_GAP = re.compile(r"[ \t\r\n,]*+")
_SPACE = re.compile(r"[ \t\r\n]*+")
_NEAR_END = 16
"""Characters before the end of a piece at which an error may be that of a cut word or escape."""

_parse = json.JSONDecoder(strict=False).raw_decode


class Elements:
    """The elements of an array, with their offsets."""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        """Read nothing yet.

        Args:
            file: With the array.
            offset: Of its opening bracket.
        """
        self._file, self._begin = file, offset + 1
        self._window, self._at, self._has_more = "", 0, True
        self.is_closed = False
        """Whether the closing bracket was found."""

        self.open_at: int | None = None
        """Offset of an element that has no end."""

    def __iter__(self) -> Iterator[tuple[int, int, Any]]:
        """Yield offset, end and value of each element; the value is None if it is broken."""
        self._file.seek(self._begin)
        while True:
            gap = _GAP.match(self._window, self._at)
            self._at = gap.end() if gap else self._at
            if self._at == len(self._window):
                if not self._read():
                    return
                continue
            if self._window[self._at] == "]":
                self._at += 1
                self.is_closed = True
                return
            value, end, is_cut = self._element()
            if is_cut:
                self._read()
                continue
            begin = self._begin + self._at
            if end is None:
                value, end = None, self._end_by_brackets(begin)
                if end is None:
                    self.open_at = begin
                    return
                self._begin, self._window, self._at = end, "", 0
                self._file.seek(end)
                self._has_more = True
                yield begin, end, value
                continue
            self._at = end
            yield begin, self._begin + end, value

    def has_rest(self) -> bool:
        """Whether anything but white space follows the array."""
        rest = self._window[self._at :].encode("latin-1")
        while not rest.strip(_BLANK):
            rest = self._file.read(_CHUNK_BYTES)
            if not rest:
                return False
        return True

    def _element(self) -> tuple[Any, int | None, bool]:
        """Parse an element: its value, its end in the window, and whether it goes on after it."""
        window, at = self._window, self._at
        may_go_on = self._has_more and len(window) - at <= text.MAX_RECORD_BYTES
        try:
            value, end = _parse(window, at)
        except RecursionError:
            return None, None, False
        except json.JSONDecodeError as error:
            is_cut = error.pos >= len(window) - _NEAR_END or error.msg.startswith("Unterminated")
            return None, None, may_go_on and is_cut
        except ValueError:
            # A whole number of more digits than Python converts.
            return None, None, False
        space = _SPACE.match(window, end)
        after = space.end() if space else end
        if after == len(window) and may_go_on:
            return None, None, True
        if window[after : after + 1] not in ("", ",", "]"):
            return None, None, False
        return value, end, False

    def _end_by_brackets(self, begin: int) -> int | None:
        self._file.seek(begin)
        found = next(iter(_BracketScan(self._file, begin)), None)
        return None if found is None else found[1]

    def _read(self) -> bool:
        data = self._file.read(_CHUNK_BYTES)
        self._has_more = bool(data)
        self._begin += self._at
        self._window, self._at = self._window[self._at :] + data.decode("latin-1"), 0
        return self._has_more


class _BracketScan:
    """Finds the elements of an array by its brackets, from an element on.

    Args:
        file: Positioned at the element.
        offset: Offset of that position in the file.
    """

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self._file = file
        self._end = offset
        self._chunk = b""
        self.start = offset
        """Offset of the current element."""
        self.is_blank = True
        """Whether only white space of the current element has been scanned so far."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield offset and end of each element that is not blank."""
        depth, is_in_string = 1, False
        while self._read():
            at = 0
            while at < len(self._chunk):
                if is_in_string:
                    text = _TEXT.match(self._chunk, at)
                    at = text.end() if text else at
                    if self._chunk[at : at + 1] != b'"':
                        # The rest is empty, or a backslash whose escape is in the next chunk.
                        break
                    is_in_string, at = False, at + 1
                token = _TOKEN.search(self._chunk, at)
                stop = token.start() if token else len(self._chunk)
                blanks = stop - at - len(self._chunk[at:stop].lstrip(_BLANK))
                if depth and at + blanks < stop:
                    self._begin(at + blanks)
                at = stop
                if not token:
                    break
                token_bytes = token.group()
                if depth == 1 and token_bytes in b",]":
                    if not self.is_blank:
                        yield self.start, self._offset_of(at)
                    self.is_blank = True
                elif depth:
                    self._begin(at)
                at += 1
                is_in_string = token_bytes == b'"'
                depth += token_bytes in b"[{"
                depth -= token_bytes in b"]}"
                if depth == 0:
                    return
            self._chunk = self._chunk[at:]

    def _begin(self, at: int) -> None:
        """Start the current element here, unless it has started already."""
        if self.is_blank:
            self.start, self.is_blank = self._offset_of(at), False

    def _offset_of(self, at: int) -> int:
        """Return the file offset of an index into the chunk."""
        return self._end - len(self._chunk) + at

    def _read(self) -> bool:
        more = self._file.read(_CHUNK_BYTES)
        self._chunk += more
        self._end += len(more)
        return bool(more)
