"""The control socket: HTTP with JSON, so that `curl --unix-socket` works as well as policyctl.

What each path takes and gives is in docs/control.md. Bodies and headers are bounded; who asks is known from the socket
itself (SO_PEERCRED), and cannot be claimed.
"""

from __future__ import annotations

import json
import pwd
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.unix import Server
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from policyd.config import ConfigError
from policyd.desk import Desk, Json, Sort
from policyd.durations import format_duration, parse_duration
from policyd.limits import UNTIL_UNLOCKED
from policyd.sections import MAX_LOCK

MAX_BODY = 1024 * 1024
MAX_NAME = 64 * 1024
"""Characters of an account's name: a line of the policy protocol, each byte of it written as `\\xNN`."""

MAX_HEADERS = 256 * 1024
"""Bytes of a request's first line and headers: such a name, percent-encoded, is in the first line."""

MAX_CONNECTIONS = 32
"""Control connections that are kept; for one more the oldest is dropped, of those whose order is not being done."""

CLOSING = 8
"""Dropped connections that are waited for before another is accepted: a descriptor is free only when all is done."""

TIMEOUT = 60
"""Seconds for which a connection may say nothing."""

MAX_REASON = 300
MAX_ACCOUNTS = 100_000

_SORTS: tuple[Sort, ...] = ("messages", "recipients", "refused")
_CLOSED = Failure(ConnectionDone())
_CREDENTIALS = struct.Struct("3i")


class RefusedError(Exception):
    """The daemon says no; the message says why in plain words."""

    def __init__(self, message: str, status: int = 400, problems: list[str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.problems = problems


class Caller(NamedTuple):
    """Who gives an order: the name and the id of a user of this machine."""

    name: str
    uid: int | None


NOBODY = Caller("", None)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the API: what was given, by whom, when."""

    values: Json
    caller: Caller
    """Who gives an order; a question may be anybody's."""
    now: float

    def text(self, name: str, most: int = MAX_NAME) -> str:
        """Return a value that must be a text with something in it."""
        value = self.values.get(name)
        if not isinstance(value, str) or not value:
            raise RefusedError(f"{name} is missing")
        if len(value) > most:
            raise RefusedError(f"{name} is longer than {most} characters")
        return value

    def number(self, name: str, default: float | None, most: float) -> float | None:
        """Return a value that may be a number."""
        value = self.values.get(name)
        if value is None:
            return default
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1
        if not 0 <= number <= most:
            raise RefusedError(f"{name}: want a number from 0 to {most:g}")
        return number


class Api:
    """The calls, and what each does at the desk.

    `reload` reads the config anew; it returns what changed and what takes a restart, or raises ConfigError.
    """

    def __init__(self, desk: Desk, reload: Callable[[str, int | None], tuple[list[str], list[str]]]) -> None:
        self._desk = desk
        self._reload = reload
        self._calls: dict[tuple[bytes, bytes], Callable[[Call], Any]] = {
            (b"GET", b"/status"): self._status,
            (b"GET", b"/accounts"): self._accounts,
            (b"GET", b"/locked"): self._locked,
            (b"POST", b"/lock"): self._lock,
            (b"POST", b"/unlock"): self._unlock,
            (b"POST", b"/reset"): self._reset,
            (b"POST", b"/reload"): self._reload_config,
        }

    def answer(self, method: bytes, path: bytes, call: Call) -> Any:
        """Return the JSON value that a call comes to.

        Raises RefusedError.
        """
        do = self._calls.get((method, path))
        if do is None:
            raise RefusedError("there is no such call", 404)
        return do(call)

    def _status(self, call: Call) -> Json:
        if "account" in call.values:
            return self._desk.account(call.text("account"), call.now)
        return self._desk.status(call.now)

    def _accounts(self, call: Call) -> list[Json]:
        sort = call.values.get("sort", "messages")
        if sort not in _SORTS:
            raise RefusedError(f"sort: want one of {', '.join(_SORTS)}")
        most = call.number("n", 20, MAX_ACCOUNTS)
        if most is None or most != int(most):
            raise RefusedError("n: want a whole number")
        return self._desk.accounts(call.now, sort, int(most), call.number("over", None, 1e6))

    def _locked(self, call: Call) -> list[Json]:
        return self._desk.locked(call.now)

    def _lock(self, call: Call) -> Json:
        account, reason = call.text("account"), call.text("reason", MAX_REASON)
        if not reason.strip():
            raise RefusedError("reason is missing")
        duration, hold = call.values.get("for"), call.values.get("hold", False)
        if not isinstance(hold, bool):
            raise RefusedError("hold: want true or false")
        seconds = UNTIL_UNLOCKED
        if duration is not None:
            try:
                seconds = parse_duration(str(duration))
            except ValueError as error:
                raise RefusedError(f"for: {error}") from error
            if seconds > MAX_LOCK:
                raise RefusedError(f"for: want at most {format_duration(MAX_LOCK)}")
        return self._desk.lock(account, reason, seconds, call.caller.name, call.now, hold=hold, uid=call.caller.uid)

    def _unlock(self, call: Call) -> Json:
        names = call.values.get("accounts")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise RefusedError("accounts: want a list of names")
        return self._desk.unlock(names, call.caller.name, call.now, call.caller.uid)

    def _reset(self, call: Call) -> Json:
        return self._desk.reset(call.text("account"), call.caller.name, call.now, call.caller.uid)

    def _reload_config(self, call: Call) -> Json:
        try:
            changed, restart = self._reload(call.caller.name, call.caller.uid)
        except ConfigError as error:
            problems = [str(problem) for problem in error.problems]
            raise RefusedError("the config has errors; the old one stays in force", 422, problems) from error
        return {"changed": changed, "needs_restart": restart}


class ControlRequest(Request):
    """An HTTP request whose body is bounded before it is received."""

    _refused = False

    def gotLength(self, length: int | None) -> None:
        """Refuse a body that is too large, or of a length that is not said."""
        if length is None:
            self._refuse(b"411 Length Required", "the length of the body is not said")
        elif length > MAX_BODY:
            self._refuse(b"413 Content Too Large", f"the body is longer than {MAX_BODY} bytes")
        super().gotLength(0 if self._refused else length)  # type: ignore[no-untyped-call]  # Twisted has no types for it

    def process(self) -> None:
        """Carry out the request, unless it is refused already."""
        if not self._refused:
            super().process()  # type: ignore[no-untyped-call]  # Twisted has no types for it

    def _refuse(self, status: bytes, why: str) -> None:
        self._refused = True
        self.requestHeaders.removeHeader(b"expect")
        body = json.dumps({"error": why}).encode() + b"\n"
        head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        self.channel.write(head % (status, len(body)) + body)
        self.channel.loseConnection()


class ControlResource(Resource):
    """Turns HTTP requests into calls, and what comes of them into JSON."""

    isLeaf = True

    def __init__(
        self,
        api: Api,
        clock: Callable[[], float],
        bug: Callable[[], None],
        durable: Callable[[], Deferred[None] | None],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted has no types for it
        self._api = api
        self._clock = clock
        self._bug = bug
        self._durable = durable

    def render(self, request: HTTPRequest) -> bytes | int:
        """Answer one HTTP request: an order only when the locks that it has changed are on the disk."""
        status, answer = 200, None
        try:
            caller = _caller(request) if request.method == b"POST" else NOBODY
            answer = self._api.answer(request.method, request.path, Call(_values(request), caller, self._clock()))
        except RefusedError as error:
            status, answer = error.status, {"error": str(error)}
            if error.problems:
                answer["problems"] = error.problems
        except Exception:  # a bug of ours, whatever it is, is told as JSON too
            self._bug()
            status, answer = 500, {"error": "internal error, see the daemon's log"}
        request.setResponseCode(status)
        request.setHeader(b"content-type", b"application/json")
        body = json.dumps(answer).encode() + b"\n"
        durable = self._durable() if request.method == b"POST" else None
        if durable is None:
            return body
        gone: list[object] = []
        cast(ControlChannel, request.channel).waits = True
        request.notifyFinish().addErrback(gone.append)
        durable.addCallback(lambda _: None if gone else _finish(request, body))
        return NOT_DONE_YET


class ControlChannel(HTTPChannel):
    """An HTTP connection with room for the longest account's name in the first line."""

    MAX_LENGTH = MAX_HEADERS
    totalHeadersSize = MAX_HEADERS
    waits = False
    """Whether an order of its is being done."""

    def connectionMade(self) -> None:
        """Take one of the places for connections."""
        super().connectionMade()  # type: ignore[no-untyped-call]  # Twisted has no types for it
        self.factory.take_place(self)

    def connectionLost(self, reason: Failure = _CLOSED) -> None:
        """Leave it again."""
        self.factory.leave_place(self)
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # Twisted has no types for it


class QuietSite(Site):
    """An HTTP service that does not log each request, and cannot be kept busy by those who never end theirs."""

    noisy = False
    protocol = ControlChannel  # type: ignore[assignment]  # typed for the channel that may become HTTP/2

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource, requestFactory=ControlRequest, timeout=TIMEOUT)  # type: ignore[no-untyped-call]
        self._places: dict[ControlChannel, None] = {}
        """The connections that are kept, the oldest first."""
        self._open = 0

    def has_room(self) -> bool:
        """Tell whether another connection may be accepted now; else it may as soon as dropped ones are gone."""
        return self._open < MAX_CONNECTIONS + CLOSING

    def take_place(self, channel: ControlChannel) -> None:
        """Give a connection a place, an older one's if need be."""
        self._open += 1
        if len(self._places) >= MAX_CONNECTIONS:
            dropped = min(self._places, key=lambda known: known.waits)
            del self._places[dropped]
            cast(Server, dropped.transport).abortConnection()
        self._places[channel] = None

    def leave_place(self, channel: ControlChannel) -> None:
        """Note that a connection is gone."""
        self._open -= 1
        self._places.pop(channel, None)

    def log(self, request: HTTPRequest) -> None:
        """Log nothing: orders are events of their own, and questions none."""


def control_site(
    api: Api,
    clock: Callable[[], float],
    bug: Callable[[], None],
    durable: Callable[[], Deferred[None] | None] = lambda: None,
) -> QuietSite:
    """Return the HTTP service of the control socket.

    `clock` gives seconds that never step back; `bug` is called while an exception of ours is handled; `durable` returns
    what fires when all locks are on the disk, None when they are.
    """
    return QuietSite(ControlResource(api, clock, bug, durable))


def _finish(request: HTTPRequest, body: bytes) -> None:
    cast(ControlChannel, request.channel).waits = False
    request.write(body)
    request.finish()


def _values(request: HTTPRequest) -> Json:
    if request.method == b"GET":
        return {
            name.decode(errors="replace"): given[-1].decode(errors="replace") for name, given in request.args.items()
        }
    body = request.content.read() if request.content else b""
    if not body:
        return {}
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError("the body is not JSON") from error
    if not isinstance(values, dict):
        raise RefusedError("the body is no JSON object")
    return values


def _caller(request: HTTPRequest) -> Caller:
    """Return who is at the other end of the socket."""
    peer: socket.socket = request.transport.socket  # type: ignore[union-attr]  # a unix socket has one
    uid: int = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
    try:
        return Caller(pwd.getpwuid(uid).pw_name, uid)
    except KeyError:
        return Caller(f"uid {uid}", uid)
