"""Posting notices to a web server, signed."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import implementer

from policyd import __version__
from policyd.notices import Notice
from policyd.relay import NotSentError, within
from policyd.sections_notify import WebhookNotices
from policyd.words import printable

TIMEOUT = 10.0
"""Seconds in which the server has to have taken a notice."""

MAX_ANSWER = 4096
"""Bytes of an answer that are read."""

MAX_SHOWN = 100
"""Characters of an answer that are shown."""

VERSION = 1
"""Of the shape of the JSON."""

SIGNATURE = "X-Policyd-Signature"


def body(notice: Notice, host: str, sent: int) -> bytes:
    """Return a notice as JSON; `sent` is the time of this try, in seconds since the epoch."""
    return json.dumps({"version": VERSION, "sent": sent, "host": host, **notice.value()}).encode()


def signature(secret: bytes, data: bytes) -> str:
    """Return what proves that who knows the secret has written the data."""
    return "sha256=" + hmac.new(secret, data, hashlib.sha256).hexdigest()


@implementer(IBodyProducer)
class _Body:
    """A body that is sent in one piece."""

    def __init__(self, data: bytes) -> None:
        self.length = len(data)
        self._data = data

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Send it."""
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Twisted tells that there is no more room."""

    def resumeProducing(self) -> None:
        """Twisted tells that there is room."""

    def stopProducing(self) -> None:
        """Twisted tells that the connection is lost."""


class _Answer(Protocol):
    """Reads the beginning of an answer, and hangs up."""

    def __init__(self) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: self._end())
        self._data = b""

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > MAX_ANSWER:
            self._end()

    def _end(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.done.called:
            self.done.callback(self._data[:MAX_ANSWER])


class Webhook:
    """A web server that is told, and how to reach it.

    `wall` tells the time in seconds since the epoch.
    """

    def __init__(self, reactor: IReactorTime, webhook: WebhookNotices, host: str, wall: Callable[[], float]) -> None:
        from twisted.web.client import Agent  # noqa: PLC0415 -- it is slow to load, and few need it

        self._reactor = reactor
        self._webhook = webhook
        self._host = host
        self._wall = wall
        self._agent = Agent(reactor, connectTimeout=TIMEOUT)

    async def post(self, notice: Notice) -> str:
        """Post a notice, and return what was answered; it is taken where the server answers 2xx.

        Raises NotSentError.
        """
        return await within(self._reactor, TIMEOUT, lambda: Deferred.fromCoroutine(self._post(notice)))

    async def _post(self, notice: Notice) -> str:
        data = body(notice, self._host, int(self._wall()))
        headers = {
            "Content-Type": ["application/json"],
            "User-Agent": [f"policyd/{__version__}"],
            "X-Policyd-Event": [notice.event],
            "X-Policyd-Id": [notice.id],
        }
        if self._webhook.secret is not None:
            headers[SIGNATURE] = [signature(self._webhook.secret, data)]
        url = self._webhook.url.encode("ascii")
        response: IResponse = await self._agent.request(b"POST", url, Headers(headers), _Body(data))
        answer = _Answer()
        response.deliverBody(answer)
        text = await answer.done
        if not 200 <= response.code < 300:  # noqa: PLR2004 -- HTTP's own
            more = printable(" ".join(text.decode(errors="backslashreplace").split()))[:MAX_SHOWN]
            raise NotSentError(f"the server answers {response.code}" + (f": {more}" if more else ""))
        return str(response.code)
