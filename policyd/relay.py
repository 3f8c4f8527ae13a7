"""Handing a mail to a relay by SMTP.

(twisted.mail could do it, but asks DNS for this host's name while it is imported, and everybody waits.)
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from twisted.internet._resolver import GAIResolver  # which has no public name
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import ClientFactory
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from policyd.letters import Letter
from policyd.sections_notify import is_host

TIMEOUT = 30.0
"""Seconds for the connection to a relay, and again for the mail."""

GOODBYE = 1.0
"""Seconds in which a relay can take its leave; then it is hung up on."""

MAX_LOOK_UPS = 4
"""Threads in which names are looked up."""

MAX_LINES = 100
"""Lines of a reply."""

MAX_SHOWN = 200
"""Characters of a reply that are shown."""

T = TypeVar("T")


class NotSentError(Exception):
    """A notice was not taken; the message says why. Where it is `final`, it never will be."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class RefusedAddressesError(NotSentError):
    """The relay has not taken the mail for all; `taken` are those for whom it has."""

    def __init__(self, reason: str, taken: Sequence[str], *, final: bool = False) -> None:
        super().__init__(reason, final=final)
        self.taken = taken


class Conversation(LineReceiver):
    """An SMTP client that waits for each reply before it goes on."""

    MAX_LENGTH = 2048

    def __init__(self) -> None:
        self._replies: deque[str] = deque()
        self._lines: list[str] = []
        self._waiting: Deferred[str] | None = None
        self._lost: Failure | None = None

    def lineReceived(self, line: bytes) -> None:
        """Take in a line of a reply."""
        text = line.decode("ascii", "backslashreplace")
        self._lines.append(text)
        if text[3:4] == "-" and len(self._lines) < MAX_LINES:
            return
        self._lines.clear()
        if self._waiting is None:
            self._replies.append(text)
            if len(self._replies) > MAX_LINES:
                self.abort()
            return
        waiting, self._waiting = self._waiting, None
        waiting.callback(text)

    def lineLengthExceeded(self, line: bytes) -> None:
        """Twisted tells of a line that is too long."""
        self.abort()

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Twisted tells that the relay has hung up."""
        self._lost = reason or Failure(ConnectionDone())
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.errback(self._lost)

    def abort(self) -> None:
        """Hang up without a word."""
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]  # all stream transports have it

    async def reply(self) -> str:
        """Return the last line of the next reply; it fails when the relay hangs up."""
        if self._replies:
            return self._replies.popleft()
        if self._lost is not None:
            self._lost.raiseException()
        self._waiting = Deferred()
        return await self._waiting

    async def say(self, command: str, wanted: str) -> None:
        """Say something; raise NotSentError for a reply that does not begin with what is wanted."""
        self.sendLine(command.encode("ascii"))
        await self.expect(wanted, command.partition(" ")[0])

    async def expect(self, wanted: str, what: str) -> None:
        """Raise NotSentError where the next reply does not begin with what is wanted."""
        reply = await self.reply()
        if not reply.startswith(wanted):
            raise NotSentError(f"the relay answers {what} with {reply[:MAX_SHOWN]}", final=reply.startswith("5"))

    async def hand_over(self, letter: Letter, host: str) -> None:
        """Hand over a mail.

        Raises NotSentError; RefusedAddressesError where it was taken for some, or none, of those who are to get it.
        """
        await self.expect("220", "the connection")
        await self.say(f"HELO {host}", "250")
        await self.say(f"MAIL FROM:<{letter.sender}>", "250")
        taken, refused = [], []
        for address in letter.to:
            try:
                await self.say(f"RCPT TO:<{address}>", "25")
            except NotSentError as error:
                refused.append((address, error))
            else:
                taken.append(address)
        if taken:
            await self.say("DATA", "354")
            self._send_text(letter.data)
            await self.expect("250", "the mail")
        self.sendLine(b"QUIT")
        if refused:
            address, why = refused[0]
            raise RefusedAddressesError(f"{address}: {why}", taken, final=all(each.final for _, each in refused))

    def _send_text(self, data: bytes) -> None:
        lines = data.removesuffix(b"\r\n").split(b"\r\n")
        text = b"".join(b"." + line + b"\r\n" if line.startswith(b".") else line + b"\r\n" for line in lines)
        self.transport.write(text + b".\r\n")  # type: ignore[union-attr]  # it is connected


def look_up_apart(reactor: Any) -> None:
    """Have names looked up in threads for which the end of the daemon does not wait: DNS may take half a minute."""
    pool = ThreadPool(0, MAX_LOOK_UPS, "names")
    pool.threadFactory = partial(threading.Thread, daemon=True)  # type: ignore[assignment]  # it makes threads, too
    pool.start()
    reactor.installNameResolver(GAIResolver(reactor, lambda: pool))


class Relay:
    """A relay, and how to reach it."""

    def __init__(self, reactor: IReactorTime, relay: tuple[str, int], host: str) -> None:
        """`host` is how this host is called."""
        self._reactor = reactor
        self._endpoint = HostnameEndpoint(reactor, *_named(relay))
        self._host = host if is_host(host) else "localhost"

    async def hand_over(self, letter: Letter) -> str:
        """Hand over a mail, and return where.

        Raises NotSentError.
        """
        conversation = await within(self._reactor, TIMEOUT, self._connect)
        try:
            work = conversation.hand_over(letter, self._host)
            await within(self._reactor, TIMEOUT, lambda: Deferred.fromCoroutine(work))
        finally:
            if conversation.transport is not None:
                conversation.transport.loseConnection()
                self._reactor.callLater(GOODBYE, conversation.abort)
        return f"{len(letter.to)} address" + ("es" if len(letter.to) > 1 else "")

    def _connect(self) -> Deferred[Conversation]:
        factory = ClientFactory.forProtocol(Conversation)
        factory.noisy = False
        done: Deferred[Any] = self._endpoint.connect(factory)
        return done


def _named(relay: tuple[str, int]) -> tuple[bytes, int]:
    return relay[0].encode("ascii"), relay[1]


async def within(reactor: IReactorTime, seconds: float, begin: Callable[[], Deferred[T]]) -> T:
    """Return what comes of something, if that takes no longer; raise NotSentError for what is wrong with a network."""
    late: list[bool] = []
    work = begin()

    def cancel() -> None:
        late.append(True)
        work.cancel()

    patience = reactor.callLater(seconds, cancel)
    try:
        return await work
    except Exception as error:
        if late:
            raise NotSentError(f"no answer within {seconds:g} s") from error
        if isinstance(error, NotSentError):
            raise
        raise NotSentError(said(error)) from error
    finally:
        if patience.active():
            patience.cancel()


def said(error: BaseException) -> str:
    """Return in a line what an error says."""
    reasons = getattr(error, "reasons", None)
    if reasons:  # twisted.web wraps what went wrong
        error = getattr(reasons[0], "value", error)
    text = " ".join(str(error).split()) or type(error).__name__
    return text[: 2 * MAX_SHOWN]
