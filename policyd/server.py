"""The policy service: connections from smtpd, each request answered in the turn in which it came in.

A peer that does not speak the protocol gets no reply and is hung up on; Postfix then does what its
`smtpd_policy_service_default_action` says. A connection that is merely idle is never closed: when a daemon closes
first, Postfix pauses for a second before its next request.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IPushProducer, IReactorTime, ITCPTransport, ITransport
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from policyd.actions import Effect
from policyd.compiled import Step
from policyd.locks import Report
from policyd.policy import Policy
from policyd.prompt import Prompt
from policyd.transactions import Connection
from policyd.verdict import PASS, Verdict
from policyd.wire import Layouts, ProtocolError, Request, RequestReader

REQUEST_TIMEOUT = 30.0
"""Seconds within which a request that has begun must end."""

_PASSED = Effect.PASSED


def _cannot(data: bytes) -> int:
    """Send nothing at once: the transport has no way to, or its peer does not take it."""
    return 0


@implementer(IPushProducer)
class PolicyProtocol(Protocol):
    """One connection from smtpd."""

    def __init__(
        self,
        policy: Policy,
        clock: IReactorTime,
        report: Report,
        connections: set[PolicyProtocol],
        durable: Callable[[], Deferred[None] | None],
        layouts: Layouts,
    ) -> None:
        self._policy = policy
        self._decide = policy.decide
        self._durable = durable
        self._clock = clock
        self._seconds = clock.seconds
        self._report = report
        self._connections = connections
        self._reader = RequestReader(layouts)
        self._connection = Connection("")
        self._deadline: IDelayedCall | None = None
        self._send_now: Callable[[bytes], object] = _cannot
        """Sends at once what the socket takes; returns how much that was, else raises OSError or returns why."""
        self._hung_up = False
        self._waits = False
        """Whether a reply waits until the lock that it announces is on the disk."""

    @property
    def idle(self) -> bool:
        """Whether no request has begun, and none waits for its reply."""
        return not self._reader.unfinished and not self._waits

    @property
    def fresh(self) -> bool:
        """Whether it has not asked about any message yet: Postfix connects only to ask at once."""
        return self._connection.transaction is None

    def connectionMade(self) -> None:
        """Get ready for requests."""
        transport = self._transport
        peer = transport.getPeer()
        host = getattr(peer, "host", None)
        self._connection.peer = host or "unix"
        if host and ITCPTransport.providedBy(transport):  # Twisted's unix sockets may say that they are TCP, too
            transport.setTcpNoDelay(True)
            transport.setTcpKeepAlive(True)
        if isinstance(transport, Prompt):
            self._send_now = transport.sender()
        elif hasattr(type(transport), "writeSomeData"):  # of its own: TLS lends out that of the socket below it
            self._send_now = getattr(transport, "writeSomeData")  # noqa: B009 -- ITransport does not have it
        self._policy.tally.connections += 1
        self._connections.add(self)

    def dataReceived(self, data: bytes) -> None:
        """Answer all requests that end in `data`.

        Nearly always that is one whole request, which may pass. For it all is written out here that has a method of
        its own below: the calls would cost 3 % of what a request costs.
        """
        reader = self._reader
        request = reader.only_request(data)
        if request is not None:
            # Python calls what a variable holds faster than what an attribute does
            decide, seconds, send_now = self._decide, self._seconds, self._send_now
            try:
                answer = decide(request, self._connection, seconds())
            except Exception:
                answer = self._bug()
            reply = answer.reply
            if answer is not PASS and answer.effect is not _PASSED:
                self._send_durable(reply, None)
                return
            try:
                sent = send_now(reply)
            except OSError:
                sent = 0
            if sent != len(reply):
                self._send_rest(reply, sent)
            return
        self._answer_all(data)

    def finish(self, left: Verdict | Exception | int) -> None:
        """Go on with a request where the step that answers most of them has left it; see `compiled.Left`."""
        if isinstance(left, int):
            self._send_rest(PASS.reply, left)
            return
        answer = left if isinstance(left, Verdict) else self._bug(Failure(left))
        if answer.effect is Effect.PASSED:
            self._send(answer.reply)
        else:
            self._send_durable(answer.reply, None)

    def _answer_all(self, data: bytes) -> None:
        """Answer all requests that end in `data`, whatever else it is."""
        reader = self._reader
        reader.receive(data)
        replies = b""
        stops = False
        wrong = None
        try:
            while (request := reader.next_request()) is not None:
                answer = self._answer(request)
                replies += answer.reply
                stops = stops or answer.effect is not Effect.PASSED
        except ProtocolError as error:
            wrong = str(error)
        self._expect()
        if stops:
            self._send_durable(replies, wrong)
        else:
            self._go_on(replies, wrong)

    def _expect(self) -> None:
        """Have the transport answer what comes next in one step, if it is a request like this connection's first."""
        transport, expected = self.transport, self._reader.expected
        if not isinstance(transport, Prompt):
            return
        step: Step | None = None
        if expected is not None and self._send_now is not _cannot:
            layout, request = expected
            decide, seconds, connection = self._decide, self._seconds, self._connection
            step = (transport, layout, decide, seconds, request, connection, PASS, PASS.reply)
        transport.expect(step)

    def _send_durable(self, replies: bytes, wrong: str | None) -> None:
        """Go on when the locks that the replies may announce are on the disk."""
        durable = self._durable()
        if durable is None:
            self._go_on(replies, wrong)
        else:
            self._waits = True
            self._transport.pauseProducing()  # type: ignore[attr-defined]  # all stream transports have it
            durable.addCallback(lambda _: self._go_on(replies, wrong))

    def _go_on(self, replies: bytes, wrong: str | None) -> None:
        """Send the replies, and see what is to be done about what else has come in."""
        if self._waits:
            self._waits = False
            if self not in self._connections:
                return  # the peer has gone
            self._transport.resumeProducing()  # type: ignore[attr-defined]  # all stream transports have it
        if replies:
            self._send(replies)
            self._end_deadline()
        if self._hung_up:
            return
        if wrong is not None:
            self.hang_up(wrong)
        elif self._reader.unfinished and self._deadline is None:
            self._deadline = self._clock.callLater(REQUEST_TIMEOUT, self._late)

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Forget the connection; a message whose DATA was not asked is given back."""
        self._end_deadline()
        self._send_now = _cannot
        self._policy.tally.connections -= 1
        self._connections.discard(self)
        self._policy.leave(self._connection, self._clock.seconds())

    def hang_up(self, why: str) -> None:
        """Close the connection on a peer that does not keep to the protocol, and say so in the log."""
        self._end_deadline()
        self._hung_up = True
        self._policy.tally.protocol_errors += 1
        self._report("protocol-error", {"peer": self._connection.peer, "reason": why})
        self._transport.loseConnection()

    def close(self) -> None:
        """Close the connection once its replies are sent."""
        self._transport.loseConnection()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abortConnection()  # type: ignore[attr-defined]  # all stream transports have it

    def pauseProducing(self) -> None:
        """Twisted tells that too many replies wait to be read by the peer."""
        self.hang_up("does not read its replies")
        self.abort()

    def resumeProducing(self) -> None:
        """Twisted tells that the replies have been read."""

    def stopProducing(self) -> None:
        """Twisted tells that the connection is lost; so does connectionLost."""

    @property
    def _transport(self) -> ITransport:
        assert self.transport is not None, "connected"  # noqa: S101 -- for the type checker
        return self.transport

    def _answer(self, request: Request) -> Verdict:
        try:
            return self._decide(request, self._connection, self._seconds())
        except Exception:
            return self._bug()

    def _bug(self, failure: Failure | None = None) -> Verdict:
        """Tell of an exception, by default of the one that is being handled: a bug of ours must not stop the mail."""
        self._policy.tally.internal_errors += 1
        traceback = (failure or Failure()).getTraceback()
        self._report("internal-error", {"peer": self._connection.peer, "traceback": traceback})
        return PASS

    def _send(self, replies: bytes) -> None:
        """Send at once what the socket takes.

        `transport.write` costs a turn of the reactor and two system calls more.
        """
        try:
            sent = self._send_now(replies)
        except OSError:
            sent = 0
        if sent != len(replies):
            self._send_rest(replies, sent)

    def _send_rest(self, replies: bytes, sent: object) -> None:
        """Leave what the socket did not take to Twisted, and all later replies too.

        A peer that does not take its 14 bytes is none that waits for them, and may be as slow as it likes.
        """
        transport = self._transport
        if self._send_now is not _cannot:
            self._send_now = _cannot
            self._expect()
            transport.registerProducer(self, True)  # type: ignore[attr-defined]  # all stream transports have it
        transport.write(replies[sent:] if isinstance(sent, int) else replies)

    def _late(self) -> None:
        self._deadline = None
        self.hang_up(f"a request not finished in {REQUEST_TIMEOUT:.0f} s")

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class PolicyFactory(ServerFactory):
    """Makes a PolicyProtocol for each connection."""

    noisy = False

    def __init__(
        self,
        policy: Policy,
        clock: IReactorTime,
        report: Report,
        durable: Callable[[], Deferred[None] | None] = lambda: None,
        layouts: Layouts | None = None,
    ) -> None:
        """`durable` returns what fires when all locks are on the disk, None when they are."""
        self._policy = policy
        self._clock = clock
        self._report = report
        self._durable = durable
        self._layouts = Layouts() if layouts is None else layouts
        self.connections: set[PolicyProtocol] = set()

    def buildProtocol(self, addr: IAddress | None) -> PolicyProtocol:
        """Return the protocol for a new connection."""
        return PolicyProtocol(self._policy, self._clock, self._report, self.connections, self._durable, self._layouts)
