"""What the store answers: RESP2 as bytes in, values out, without I/O.

The law: whatever comes in whatever pieces, a reply of more than MAX_REPLY bytes or of anything else than RESP2 raises
GarbageError, and the work is linear in the bytes. (txredisapi's own parser copies what is left for each line, waits a
turn of the reactor for each text, decodes what may not be text, and has no maximum.)

Source: https://redis.io/docs/latest/develop/reference/protocol-spec/.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from policyd.words import printable

MAX_REPLY = 64 * 1024 * 1024
"""Bytes of a reply, all that is in it included."""

MAX_LINE = 16 * 1024
"""Bytes of a line: of an error, at the most."""

MAX_DEPTH = 8
"""Lists in lists."""

MAX_SHOWN = 200
"""Characters of an error that are shown."""

ZERO = b":0\r\n"
"""Nearly all replies to calls."""

_NUMBER = re.compile(rb"-?[0-9]{1,19}")
_CODE = re.compile(r"[A-Z]{3,}\b")
_INNER = re.compile(r"@user_script: ?[0-9]+: -?([A-Z]{3,}\b.*)", re.DOTALL)


class GarbageError(Exception):
    """What came is no RESP2, or too much of it."""


class Refusal(NamedTuple):
    """An error that the store answers with."""

    text: str

    @property
    def code(self) -> str:
        """The word that says what kind of error it is, such as OOM; of an error within a script, its own.

        Redis 6.2 wraps it: `ERR Error running script (call to f_…): @user_script:1: @user_script: 1: -OOM …`.
        """
        word = _CODE.match(self._own)
        return word[0] if word else "ERR"

    @property
    def _own(self) -> str:
        """The error itself, without what Redis 6.2 wraps it in."""
        found = _INNER.search(self.text)
        return found[1] if found else self.text

    def __str__(self) -> str:
        return printable(" ".join(self._own.split()))[:MAX_SHOWN].rstrip(".")


class Replies:
    """The replies of one connection, from the bytes that have been received.

    Integers are int, texts and states bytes, lists lists, nothing None, and errors Refusal.
    """

    def __init__(self, most: int = MAX_REPLY) -> None:
        self._most = most
        self._buffer = bytearray()
        self._at = 0
        """Where in the buffer what has not been read begins."""
        self._open: list[tuple[list[object], int]] = []
        """The lists that have begun, outermost first, and how many values each has at the end."""
        self._begun = 0
        """Where in the buffer the reply that has begun begins."""
        self._size = 0
        """Bytes of it that are not in the buffer any more."""

    def feed(self, data: bytes) -> list[object]:
        """Return the replies that are complete with this data.

        Raises GarbageError; then there is no more to be read.
        """
        if not self._buffer and not self._open:
            zeros = data.count(ZERO)
            if zeros * len(ZERO) == len(data):
                return [0] * zeros
        self._buffer += data
        found: list[object] = []
        while self._value(found):
            pass
        self._size += self._at - self._begun
        del self._buffer[: self._at]
        self._at = self._begun = 0
        if self._size + len(self._buffer) > self._most:
            raise GarbageError(f"a reply of more than {self._most} bytes")
        return found

    def _value(self, found: list[object]) -> bool:
        """Read a value, or the beginning of a list; tell whether there was one."""
        end = self._buffer.find(b"\r\n", self._at)
        if end < 0 or end - self._at > MAX_LINE:
            if len(self._buffer) - self._at > MAX_LINE:
                raise GarbageError("a line that has no end")
            return False
        kind, line = self._buffer[self._at], bytes(self._buffer[self._at + 1 : end])
        if kind == _TEXT:
            return self._text(_number(line), end + 2, found)
        if kind == _LIST:
            return self._list(_number(line), end + 2, found)
        if kind not in _SIMPLE:
            raise GarbageError(f"a reply that begins with {chr(kind)!r}")
        self._at = end + 2
        self._close(_SIMPLE[kind](line), found)
        return True

    def _text(self, length: int, begin: int, found: list[object]) -> bool:
        if not -1 <= length <= self._most:
            raise GarbageError(f"a text of {length} bytes")
        if length < 0:
            self._at = begin
            self._close(None, found)
            return True
        end = begin + length
        if len(self._buffer) < end + 2:
            return False
        if self._buffer[end : end + 2] != b"\r\n":
            raise GarbageError("a text that has no end")
        self._at = end + 2
        self._close(bytes(self._buffer[begin:end]), found)
        return True

    def _list(self, length: int, begin: int, found: list[object]) -> bool:
        if not -1 <= length <= self._most or len(self._open) >= MAX_DEPTH:
            raise GarbageError(f"a list of {length} values in {len(self._open)} others")
        self._at = begin
        if length > 0:
            self._open.append(([], length))
        else:
            self._close(None if length < 0 else [], found)
        return True

    def _close(self, value: object, found: list[object]) -> None:
        """Put a value where it belongs: into the innermost list, and that into its own once it is whole."""
        while self._open:
            values, length = self._open[-1]
            values.append(value)
            if len(values) < length:
                return
            value = values
            self._open.pop()
        self._size = 0
        self._begun = self._at
        found.append(value)


def _number(line: bytes) -> int:
    if not _NUMBER.fullmatch(line):
        raise GarbageError(f"a number that is none: {line[:20]!r}")
    return int(line)


def _refusal(line: bytes) -> Refusal:
    return Refusal(line.decode(errors="backslashreplace"))


_TEXT, _LIST = b"$*"
_SIMPLE: dict[int, Callable[[bytes], object]] = {ord(":"): _number, ord("+"): bytes, ord("-"): _refusal}
"""What a line of each kind stands for."""
