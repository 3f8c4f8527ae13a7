"""The policy service where a verdict may come late: what several servers share has to be asked first.

The requests of one connection are answered in order, and one at a time: the next is looked at when the one before has
its answer. What comes meanwhile waits, and nothing more is read from the connection then. (Postfix sends nothing before
it has its answer, so that to stop reading each time would be in vain.)
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.python.failure import Failure

from policyd.actions import Effect
from policyd.locks import Report
from policyd.policy import Policy
from policyd.server import PolicyFactory, PolicyProtocol
from policyd.sharing import Sharing
from policyd.transactions import Connection
from policyd.verdict import Verdict
from policyd.wire import Layouts, ProtocolError, Request


class SharedProtocol(PolicyProtocol):
    """One connection from smtpd."""

    def __init__(
        self,
        policy: Policy,
        clock: IReactorTime,
        report: Report,
        connections: set[PolicyProtocol],
        durable: Callable[[], Deferred[None] | None],
        layouts: Layouts,
        sharing: Sharing,
    ) -> None:
        super().__init__(policy, clock, report, connections, durable, layouts)
        self._sharing = sharing
        self._asks = False
        """Whether a request waits for its verdict."""
        self._paused = False

    @property
    def idle(self) -> bool:
        """Whether no request has begun, and none waits for its reply."""
        return not self._asks and super().idle

    @property
    def connection(self) -> Connection:
        """What the policy knows it by."""
        return self._connection

    def dataReceived(self, data: bytes) -> None:
        """Answer the requests that end in `data`, one after the other."""
        reader = self._reader
        if self._asks or self._waits:
            reader.receive(data)
            self._pause()
            return
        request = reader.only_request(data)
        if request is not None:
            if self._decided(request):
                self._go_on(b"", None)
            return
        reader.receive(data)
        self._next()

    def _next(self) -> None:
        """Answer the requests that are there, up to one that has to wait for its verdict, or for the disk."""
        while not self._hung_up:
            try:
                request = self._reader.next_request()
            except ProtocolError as error:
                self._go_on(b"", str(error))
                return
            if request is None:
                self._resume()
                self._go_on(b"", None)
                return
            if not self._decided(request):
                return

    def _decided(self, request: Request) -> bool:
        """Answer a request; tell whether the next one can be looked at."""
        self._end_deadline()  # it is whole
        try:
            verdict = self._sharing.decide(request, self._connection, self._seconds(), self._later)
        except Exception:
            verdict = self._bug()
        if verdict is None:
            self._asks = True
            return False
        self._reply(verdict)
        return not self._waits

    def _later(self, verdict: Verdict) -> None:
        """Send the verdict that was waited for, and go on."""
        self._asks = False
        if self._hung_up or self not in self._connections:
            return
        self._reply(verdict)
        if not self._waits:
            self._next()

    def _reply(self, verdict: Verdict) -> None:
        """Send a verdict, when the lock that it may announce is on the disk."""
        durable = None if verdict.effect is Effect.PASSED else self._durable()
        if durable is None:
            self._send(verdict.reply)
        else:
            self._waits = True
            durable.addCallback(lambda _: self._stored(verdict))

    def _stored(self, verdict: Verdict) -> None:
        self._waits = False
        if self._hung_up or self not in self._connections:
            return
        self._send(verdict.reply)
        self._next()

    def _pause(self) -> None:
        """Read nothing more for now."""
        if not self._paused:
            self._paused = True
            self._transport.pauseProducing()  # type: ignore[attr-defined]  # all stream transports have it

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resumeProducing()  # type: ignore[attr-defined]  # all stream transports have it

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Forget the connection, and what it has asked; a message whose DATA was not asked is given back."""
        self._asks = False
        self._sharing.leave(self._connection, self._clock.seconds())
        super().connectionLost(reason)


class SharedFactory(PolicyFactory):
    """Makes a SharedProtocol for each connection."""

    def __init__(
        self,
        policy: Policy,
        clock: IReactorTime,
        report: Report,
        durable: Callable[[], Deferred[None] | None],
        sharing: Sharing,
    ) -> None:
        super().__init__(policy, clock, report, durable)
        self._sharing = sharing

    def buildProtocol(self, addr: IAddress | None) -> SharedProtocol:
        """Return the protocol for a new connection."""
        known = (self._policy, self._clock, self._report, self.connections, self._durable, self._layouts)
        return SharedProtocol(*known, self._sharing)
