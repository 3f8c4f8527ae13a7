"""Postfix policy delegation, without I/O: bytes in, requests out; an action in, the bytes of its reply out.

However the bytes are cut into packets, the same requests come out, in order, and a ProtocolError where there is one.
Nothing is decoded here, and nothing is kept of a request that is done. Source: SMTPD_POLICY_README.
"""

from __future__ import annotations

import re

MAX_LINE = 16 * 1024
MAX_REQUEST = 64 * 1024
MAX_ATTRIBUTES = 100

_MAX_DIGITS = 18
_NEWLINE = b"\n"
_FIRST_LINE = b"\nrequest=smtpd_access_policy\n"
_END = b"\n\n"
_ALL_BUT_ENDS_AND_EQUALS = bytes(byte for byte in range(256) if byte not in b"\n=")
_LINE_WITHOUT_EQUALS = re.compile(rb"\n[^=\n]+(?=\n)")
_LONG_LINE = re.compile(rb"\n[^\n]{%d}" % (MAX_LINE + 1))
"""From its start on, lest a line that is not too long is searched anew from each of its bytes."""


class ProtocolError(Exception):
    """The peer does not speak the protocol; its message is the reason. There is no reply to that but to hang up."""


def key(name: str) -> bytes:
    """Return what to ask a Request for the attribute `name`."""
    return f"\n{name}=".encode()


REQUEST = key("request")
PROTOCOL_STATE = key("protocol_state")
INSTANCE = key("instance")
RECIPIENT = key("recipient")
RECIPIENT_COUNT = key("recipient_count")
CLIENT_ADDRESS = key("client_address")
QUEUE_ID = key("queue_id")


class Request:
    """One policy delegation request, whose attributes are looked up when they are wanted.

    Postfix sends some 29 attributes, and five of them decide: searching for those costs a fifth of taking all apart.
    """

    __slots__ = ("_lines",)

    def __init__(self, lines: bytes) -> None:
        """`lines` is the request as received, with a line end before its first line too."""
        self._lines = lines

    def get(self, wanted: bytes) -> bytes:
        """Return the value of the attribute whose `key` is given, b"" where there is none."""
        lines = self._lines
        start = lines.find(wanted)
        if start < 0:
            return b""
        start += len(wanted)
        return lines[start : lines.find(b"\n", start)]

    @property
    def recipient_count(self) -> int | None:
        """The number of recipients that Postfix has accepted; None where the attribute is absent."""
        digits = self.get(RECIPIENT_COUNT)
        return int(digits) if digits else None


class RequestReader:
    """Cuts what one connection receives into requests.

    The buffer always starts with the line end that closed the previous request (at first, one of our own): so each
    attribute, the first too, stands behind a line end, and a request ends where two of them meet.
    """

    __slots__ = ("_buffer", "_checked", "_start")

    def __init__(self) -> None:
        self._buffer = b"\n"
        self._start = 0
        self._checked = 0

    @property
    def unfinished(self) -> bool:
        """Whether a request has begun and its end has not been seen."""
        return self._start + 1 < len(self._buffer)

    def receive(self, data: bytes) -> None:
        """Take what has come in; then ask for `next_request` until there is none."""
        self._buffer += data

    def next_request(self) -> Request | None:
        """Return the next whole request, or None until more has been received.

        Raises ProtocolError for a request that is malformed or too large, as soon as that can be seen.
        """
        start = self._start
        end = self._buffer.find(_END, max(start, self._checked - 1))
        if end < 0:
            self._check_unfinished()
            return None
        lines = self._buffer[start : end + 1]
        if end + 2 == len(self._buffer):
            self._buffer = b"\n"
            self._start = self._checked = 0
        else:
            self._start = self._checked = end + 1
        return _checked_request(lines)

    def _check_unfinished(self) -> None:
        """Find what is wrong with the part of a request that is there, looking at each line once."""
        if self._start:
            self._buffer = self._buffer[self._start :]
            self._start = self._checked = 0
        if not self.unfinished:
            return
        buffer = self._buffer
        last = buffer.rfind(b"\n")
        _check_size(buffer)
        _check_lines(buffer, self._checked, last + 1)
        if len(buffer) - self._checked > MAX_LINE and _LONG_LINE.search(buffer, self._checked):
            raise ProtocolError(f"a line of over {MAX_LINE} bytes")
        self._checked = last


def reply(action: str) -> bytes:
    """Return the reply that tells Postfix an action; the action has no line end (see `actions.one_line`)."""
    return f"action={action}\n\n".encode()


def _checked_request(lines: bytes) -> Request:
    _check_size(lines)
    # Of lines that have a '=' each, no two ends are left in a row. Searching for one that has none takes 5 µs, this 1.
    if _END in lines.translate(None, _ALL_BUT_ENDS_AND_EQUALS):
        _check_lines(lines, 0, len(lines))
    if len(lines) > MAX_LINE and _LONG_LINE.search(lines):
        raise ProtocolError(f"a line of over {MAX_LINE} bytes")
    request = Request(lines)
    if not lines.startswith(_FIRST_LINE):
        _check_kind(request)
    digits = request.get(RECIPIENT_COUNT)
    if (not digits.isdigit() or len(digits) > _MAX_DIGITS) and RECIPIENT_COUNT in lines:
        raise ProtocolError("recipient_count is no number")
    return request


def _check_kind(request: Request) -> None:
    kind = request.get(REQUEST)
    if not kind:
        raise ProtocolError("no request attribute")
    if kind != b"smtpd_access_policy":
        raise ProtocolError(f"request={kind[:40].decode(errors='backslashreplace')}, want smtpd_access_policy")


def _check_size(lines: bytes) -> None:
    if len(lines) > MAX_REQUEST:
        raise ProtocolError(f"a request of over {MAX_REQUEST} bytes")
    if lines.count(b"\n") > MAX_ATTRIBUTES + 1:
        raise ProtocolError(f"over {MAX_ATTRIBUTES} attributes")
    if b"\0" in lines:
        raise ProtocolError("a NUL byte")


def _check_lines(lines: bytes, start: int, end: int) -> None:
    found = _LINE_WITHOUT_EQUALS.search(lines, start, end)
    if found:
        raise ProtocolError(f"line {lines.count(_NEWLINE, 0, found.start()) + 1} has no '='")
