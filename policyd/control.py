"""The control socket: HTTP with JSON, so that `curl --unix-socket` works as well as policyctl.

What each path takes and gives is in docs/control.md. Bodies and headers are bounded; who asks is known from the socket
itself (SO_PEERCRED), and cannot be claimed.
"""

from __future__ import annotations

import json
import pwd
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.unix import Server
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer

from policyd.calls import NOBODY, Api, Call, Caller, RefusedError
from policyd.survey import Json
from policyd.turns import Turns

MAX_BODY = 1024 * 1024
MAX_HEADERS = 256 * 1024
"""Bytes of a request's first line and headers: an account's name, percent-encoded, is in the first line."""

MAX_CONNECTIONS = 32
"""Control connections that are kept; for one more the oldest is dropped, of those whose order is not being done."""

CLOSING = 8
"""Dropped connections that are waited for before another is accepted: a descriptor is free only when all is done."""

TIMEOUT = 60
"""Seconds for which a connection may say nothing."""

_LISTS = ("queue_id",)
"""What may be given several times in a question."""

_CLOSED = Failure(ConnectionDone())
_CREDENTIALS = struct.Struct("3i")


class ControlRequest(Request):
    """An HTTP request whose body is bounded before it is received."""

    _refused = False

    def gotLength(self, length: int | None) -> None:
        """Refuse a body that is too large, or of a length that is not said."""
        if length is None:
            self._refuse(b"411 Length Required", "the length of the body is not said")
        elif length > MAX_BODY:
            self._refuse(b"413 Content Too Large", f"the body is longer than {MAX_BODY} bytes")
        self.requestHeaders.removeHeader(b"content-type")  # it is JSON; to take a large form apart would take long
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
        reactor: IReactorTime,
        bug: Callable[[], None],
        durable: Callable[[], Deferred[None] | None],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted has no types for it
        self._api = api
        self._reactor = reactor
        self._turns = Turns(reactor)
        self._bug = bug
        self._durable = durable

    def render(self, request: HTTPRequest) -> int:
        """Answer one HTTP request, sooner or later."""
        Deferred.fromCoroutine(self._answer(request))
        return NOT_DONE_YET

    async def _answer(self, request: HTTPRequest) -> None:
        """Answer one HTTP request: an order only when the locks that it has changed are on the disk.

        An order is done though whoever gave it has gone; a question nobody wants to have answered is dropped.
        """
        channel = cast(ControlChannel, request.channel)
        channel.waits = order = request.method == b"POST"
        gone: list[object] = []
        request.notifyFinish().addErrback(gone.append)
        try:
            status, text = 200, await self._text(request, order=order)
        except CancelledError:
            return
        except RefusedError as error:
            status, text = error.status, await self._turns.take(error.text(), order=True)
        except Exception:  # a bug of ours, whatever it is, is told as JSON too
            self._bug()
            status, text = 500, _encoded({"error": "internal error, see the daemon's log"})
        if order and (durable := self._durable()) is not None:
            await durable
        channel.waits = False
        if not gone:
            request.setResponseCode(status)
            request.setHeader(b"content-type", b"application/json")
            _Sending(request, [*text, b"\n"]).begin()

    async def _text(self, request: HTTPRequest, *, order: bool) -> list[bytes]:
        """Do what is asked for, and return the text of what it comes to, in pieces."""
        caller = _caller(request) if order else NOBODY
        call = Call(_values(request), caller, self._reactor.seconds())
        answer = self._api.answer(request.method, request.path, call)
        if isinstance(answer, Awaitable):
            answer = await answer
        if isinstance(answer, Iterator):
            work = self._turns.take(answer, order=order)
            if not order:
                request.notifyFinish().addErrback(lambda _: work.cancel())
            return await work
        return _encoded(answer)


@implementer(IPushProducer)
class _Sending:
    """An answer on its way, no faster than it is read: not all of it is to be copied at once."""

    def __init__(self, request: HTTPRequest, pieces: list[bytes]) -> None:
        self._request = request
        self._channel = cast(ControlChannel, request.channel)
        self._pieces = deque(pieces)
        self._paused = False
        request.setHeader(b"content-length", b"%d" % sum(map(len, pieces)))

    def begin(self) -> None:
        """Send what there is room for; who reads nothing of the rest for TIMEOUT is hung up on."""
        self._request.registerProducer(self, True)
        self._channel.setTimeout(TIMEOUT)
        self.resumeProducing()

    def pauseProducing(self) -> None:
        """Twisted tells that there is no more room."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Twisted tells that there is room."""
        self._paused = False
        self._channel.resetTimeout()
        while self._pieces and not self._paused:
            self._request.write(self._pieces.popleft())
        if not self._pieces:
            self._request.unregisterProducer()
            self._request.finish()

    def stopProducing(self) -> None:
        """Twisted tells that the connection is lost."""
        self._pieces.clear()


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

    def __init__(self, resource: Resource, reactor: IReactorTime) -> None:
        super().__init__(  # type: ignore[no-untyped-call]  # Twisted has no types for it
            resource, requestFactory=ControlRequest, timeout=TIMEOUT, reactor=reactor
        )
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
    reactor: IReactorTime,
    bug: Callable[[], None],
    durable: Callable[[], Deferred[None] | None] = lambda: None,
) -> QuietSite:
    """Return the HTTP service of the control socket.

    The reactor's seconds never step back; `bug` is called while an exception of ours is handled; `durable` returns what
    fires when all locks are on the disk, None when they are.
    """
    return QuietSite(ControlResource(api, reactor, bug, durable), reactor)


def _encoded(answer: object) -> list[bytes]:
    return [json.dumps(answer).encode()]


def _values(request: HTTPRequest) -> Json:
    if request.method == b"GET":
        given = {
            name.decode(errors="replace"): [value.decode(errors="replace") for value in values]
            for name, values in request.args.items()
        }
        return {name: values if name in _LISTS else values[-1] for name, values in given.items()}
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
