"""The policy service as one connection sees it, with a clock that the test moves and a transport in memory."""

# mypy: allow-untyped-calls
# Twisted's transport for tests has no types.

from __future__ import annotations

from collections.abc import Mapping

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from zope.interface import alsoProvides

from policyd.actions import parse_action
from policyd.limits import UNTIL_UNLOCKED, Limit, Rules
from policyd.policy import Policy
from policyd.server import PolicyFactory, PolicyProtocol
from policyd.transactions import Connection
from policyd.verdict import Verdict
from policyd.wire import Request
from tests.daemon import Value, request

DUNNO = b"action=DUNNO\n\n"
LOCKED = b"action=REJECT 5.7.1 Account bert@example.com is locked: phished\n\n"
ANNA = request()
BERT = request(sasl_username="bert@example.com", instance="b")

HOURLY = Limit("hourly", "recipients", "1h", 3600.0, 100, parse_action("REJECT 5.7.1 too many"))


class Socket(StringTransport):
    """A transport that takes at once what `takes` says, call by call, then everything; the rest it takes later."""

    def __init__(self, *takes: int | Exception) -> None:
        super().__init__()
        self.takes = list(takes)
        self.now: list[bytes] = []
        self.later: list[bytes] = []

    def writeSomeData(self, data: bytes) -> int | Exception:  # noqa: N802 -- named by Twisted
        """Take a part of the data."""
        take = self.takes.pop(0) if self.takes else len(data)
        if isinstance(take, int):
            self.now.append(data[:take])
            self.io.write(data[:take])
            return len(data[:take])
        return take

    def write(self, data: bytes) -> None:
        """Take the data, and tell the producer when too much of it waits."""
        self.later.append(data)
        super().write(data)
        if self.producer is not None and sum(map(len, self.later)) > 2**16:
            self.producer.pauseProducing()


class BrokenPolicy(Policy):
    """A policy that cannot decide on accounts named broken."""

    def decide(self, request: Request, connection: Connection, now: float) -> Verdict:
        """Raise for a broken account."""
        if b"broken" in request.get(b"\nsasl_username="):
            raise RuntimeError("no such rule")
        return super().decide(request, connection, now)


class Service:
    """A policy service in which bert@example.com is locked."""

    def __init__(self, policy: type[Policy] = Policy, *limits: Limit) -> None:
        self.clock = Clock()
        self.events: list[tuple[str, Mapping[str, object]]] = []
        self.policy = policy(Rules(limits), self.report, lambda now: now)
        self.policy.locks.by_hand("bert@example.com", "phished", UNTIL_UNLOCKED, "root", 0.0)
        self.events.clear()
        self.factory = PolicyFactory(self.policy, self.clock, self.report)

    def report(self, event: str, fields: Mapping[str, object]) -> None:
        """Note an event."""
        self.events.append((event, fields))

    def connect(self, transport: StringTransport | None = None) -> tuple[PolicyProtocol, StringTransport]:
        """Open a connection."""
        transport = StringTransport() if transport is None else transport
        protocol = self.factory.buildProtocol(None)
        protocol.makeConnection(transport)
        return protocol, transport

    def faults(self) -> list[Mapping[str, object]]:
        """Return the protocol errors, which are logged and counted alike."""
        found = [fields for event, fields in self.events if event == "protocol-error"]
        assert self.policy.tally.protocol_errors == len(found)
        return found

    def count(self, account: str) -> int:
        """Return what an account has in the window of its first limit."""
        found = self.policy.accounts.peek(account, self.clock.seconds())
        assert found is not None
        assert found.windows[0] is not None
        return found.windows[0].count(self.clock.seconds(), found.limits[0].period or 0.0)


def rcpt(recipient: str = "a@remote.example", **attributes: Value) -> bytes:
    """Return a RCPT request of one and the same transaction."""
    return request(recipient=recipient, instance="one", **attributes)


@pytest.fixture
def service() -> Service:
    """Return a service without limits."""
    return Service()


def test_replies_come_in_the_order_of_the_requests(service: Service) -> None:
    """Three requests in one packet are answered by three replies, one behind the other."""
    protocol, transport = service.connect()
    protocol.dataReceived(ANNA + BERT + ANNA)
    assert transport.value() == DUNNO + LOCKED + DUNNO
    assert not transport.disconnecting


def test_a_request_is_answered_when_its_last_byte_has_come(service: Service) -> None:
    """However a request is cut, there is no reply before its end and one reply then."""
    protocol, transport = service.connect()
    for byte in BERT[:-1]:
        protocol.dataReceived(bytes((byte,)))
        assert transport.value() == b""
        assert not protocol.idle
    protocol.dataReceived(BERT[-1:])
    assert transport.value() == LOCKED
    assert protocol.idle


def test_a_request_not_finished_in_30_s_ends_the_connection(service: Service) -> None:
    """The limit is exact, there is no reply, and one line in the log."""
    protocol, transport = service.connect()
    protocol.dataReceived(ANNA[:100])
    service.clock.advance(29.5)
    assert not transport.disconnecting
    service.clock.advance(0.5)
    assert transport.disconnecting
    assert transport.value() == b""
    assert service.faults() == [{"peer": "192.168.1.1", "reason": "a request not finished in 30 s"}]


def test_more_of_a_request_does_not_give_it_more_time(service: Service) -> None:
    """A peer that sends a byte now and then is not waited for any longer."""
    protocol, transport = service.connect()
    for _ in range(29):
        protocol.dataReceived(b"r")
        service.clock.advance(1)
    assert not transport.disconnecting
    service.clock.advance(1)
    assert transport.disconnecting


def test_the_next_unfinished_request_has_30_s_of_its_own(service: Service) -> None:
    """A request that begins in the packet in which another ends starts a new 30 s."""
    protocol, transport = service.connect()
    protocol.dataReceived(ANNA[:100])
    service.clock.advance(20)
    protocol.dataReceived(ANNA[100:] + BERT[:100])
    service.clock.advance(29.5)
    assert not transport.disconnecting
    assert transport.value() == DUNNO
    service.clock.advance(0.5)
    assert transport.disconnecting
    assert len(service.faults()) == 1


def test_a_request_finished_in_time_is_answered(service: Service) -> None:
    """At 29.9 s it is not too late, and the limit does not strike afterwards."""
    protocol, transport = service.connect()
    protocol.dataReceived(ANNA[:100])
    service.clock.advance(29.9)
    protocol.dataReceived(ANNA[100:])
    service.clock.advance(3600)
    assert transport.value() == DUNNO
    assert not transport.disconnecting
    assert service.faults() == []


@pytest.mark.parametrize("before", [b"", ANNA])
def test_an_idle_connection_is_left_alone(service: Service, before: bytes) -> None:
    """Hours without a request end no connection, used or not: Postfix would pause for a second."""
    protocol, transport = service.connect()
    protocol.dataReceived(before)
    service.clock.advance(24 * 3600)
    assert not transport.disconnecting
    assert service.clock.getDelayedCalls() == []


def test_a_protocol_error_ends_the_connection_without_a_reply(service: Service) -> None:
    """Hanging up is what SMTPD_POLICY_README asks for; the log has the peer and the reason, once."""
    protocol, transport = service.connect()
    protocol.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
    assert transport.value() == b""
    assert transport.disconnecting
    assert service.faults() == [{"peer": "192.168.1.1", "reason": "line 1 has no '='"}]
    assert service.clock.getDelayedCalls() == []


def test_a_protocol_error_ends_the_wait_for_the_request(service: Service) -> None:
    """A request that begins well and goes on badly is one error, not two."""
    protocol, _ = service.connect()
    protocol.dataReceived(ANNA[:100])
    protocol.dataReceived(b"\0")
    service.clock.advance(60)
    assert [fault["reason"] for fault in service.faults()] == ["a NUL byte"]


def test_good_requests_are_answered_before_the_bad_one_hangs_up(service: Service) -> None:
    """What was asked well in the same packet gets its replies first."""
    protocol, transport = service.connect()
    protocol.dataReceived(ANNA + BERT + b"request=junk\n\n")
    assert transport.value() == DUNNO + LOCKED
    assert transport.disconnecting
    assert len(service.faults()) == 1


@pytest.mark.parametrize(
    ("address", "peer"), [(IPv4Address("TCP", "192.0.2.7", 4), "192.0.2.7"), (UNIXAddress(None), "unix")]
)
def test_the_log_names_the_peer(service: Service, address: object, peer: str) -> None:
    """A TCP client is named by its address; one on a unix socket has none."""
    protocol, _ = service.connect(StringTransport(peerAddress=address))
    protocol.dataReceived(b"\0")
    assert [fault["peer"] for fault in service.faults()] == [peer]


def test_a_bug_in_deciding_does_not_stop_the_mail() -> None:
    """It is answered DUNNO, counted, and logged with its traceback; the requests around it are answered as ever."""
    service = Service(BrokenPolicy)
    protocol, transport = service.connect()
    protocol.dataReceived(BERT + request(sasl_username="broken") + BERT)
    assert transport.value() == LOCKED + DUNNO + LOCKED
    assert not transport.disconnecting
    assert service.policy.tally.internal_errors == 1
    (fields,) = [fields for event, fields in service.events if event == "internal-error"]
    assert fields["peer"] == "192.168.1.1"
    assert "RuntimeError: no such rule" in str(fields["traceback"])
    assert service.faults() == []


@pytest.mark.parametrize("reason", [ConnectionDone(), ConnectionLost()])
def test_a_lost_connection_gives_its_recipients_back(reason: Exception) -> None:
    """A message that was never asked about at DATA has not been sent."""
    service = Service(Policy, HOURLY)
    protocol, _ = service.connect()
    protocol.dataReceived(request(protocol_state="DATA", recipient_count=3, sasl_username="carl", instance="c"))
    protocol.dataReceived(rcpt("a@remote.example") + rcpt("b@remote.example"))
    assert service.count("anna@example.com") == 2
    protocol.connectionLost(Failure(reason))
    assert service.count("anna@example.com") == 0
    assert service.count("carl") == 3


def test_a_lost_connection_leaves_nothing_behind(service: Service) -> None:
    """Half a request is forgotten with its connection: no timer, no error, no count of connections."""
    protocol, _ = service.connect()
    service.connect()
    protocol.dataReceived(ANNA[:100])
    assert service.policy.tally.connections == len(service.factory.connections) == 2
    protocol.connectionLost(Failure(ConnectionLost()))
    assert service.policy.tally.connections == len(service.factory.connections) == 1
    assert service.clock.getDelayedCalls() == []
    assert service.faults() == []


def test_connections_do_not_disturb_each_other(service: Service) -> None:
    """Halves of two requests on two connections are two requests."""
    (one, one_transport), (other, other_transport) = service.connect(), service.connect()
    one.dataReceived(ANNA[:300])
    other.dataReceived(BERT[:300])
    one.dataReceived(ANNA[300:])
    other.dataReceived(BERT[300:])
    assert (one_transport.value(), other_transport.value()) == (DUNNO, LOCKED)


def test_a_reply_goes_out_at_once(service: Service) -> None:
    """Where the socket takes it, nothing waits for the reactor's next turn, and replies share one packet."""
    socket = Socket()
    protocol, _ = service.connect(socket)
    protocol.dataReceived(ANNA + BERT)
    protocol.dataReceived(ANNA)
    assert socket.now == [DUNNO + LOCKED, DUNNO]
    assert socket.later == []


@pytest.mark.parametrize("takes", [0, 1, len(DUNNO), len(DUNNO) + len(LOCKED) - 1, ConnectionLost()])
def test_a_socket_that_is_full_loses_nothing(service: Service, takes: int | Exception) -> None:
    """What is not taken at once goes out later, and so does all that comes after it, in order."""
    socket = Socket(takes)
    protocol, _ = service.connect(socket)
    protocol.dataReceived(ANNA + BERT)
    protocol.dataReceived(ANNA)
    protocol.dataReceived(BERT)
    assert socket.value() == DUNNO + LOCKED + DUNNO + LOCKED
    assert socket.later[1:] == [DUNNO, LOCKED]
    assert not socket.disconnecting


def test_a_peer_that_never_reads_is_cut_off(service: Service) -> None:
    """Replies do not pile up for ever: it is a protocol error, and the connection is aborted."""
    socket = Socket(0)
    protocol, _ = service.connect(socket)
    for _ in range(2000):
        protocol.dataReceived(BERT)
        if socket.disconnected:
            break
    assert socket.disconnected
    assert len(socket.value()) < 2**17
    assert [fault["reason"] for fault in service.faults()] == ["does not read its replies"]


def test_a_peer_with_two_faults_is_hung_up_on_once(service: Service) -> None:
    """Each disconnect counts as one protocol error, though the peer neither reads nor writes as it should."""
    socket = Socket(0)
    protocol, _ = service.connect(socket)
    protocol.dataReceived(BERT * 2000 + b"nonsense\n")
    assert socket.disconnected
    assert len(service.faults()) == 1
    assert service.clock.getDelayedCalls() == []


class Layer(ProtocolWrapper):
    """What lies between the socket and the service, such as TLS; it gives away the socket's methods as its own."""

    def write(self, data: bytes) -> None:
        """Put the data into an envelope."""
        super().write(b"<" + data + b">")


class Layered(WrappingFactory):
    """Puts a layer into each connection."""

    protocol = Layer


def test_a_layer_above_the_socket_is_not_bypassed(service: Service) -> None:
    """A reply takes the way that its request came, through TLS where there is TLS."""
    socket = Socket()
    layer = Layered(service.factory).buildProtocol(IPv4Address("TCP", "192.0.2.7", 4))
    assert layer is not None
    layer.makeConnection(socket)
    layer.dataReceived(ANNA)
    assert socket.value() == b"<" + DUNNO + b">"


class TCPSocket(StringTransport):
    """A transport that notes how it is tuned."""

    def __init__(self) -> None:
        super().__init__()
        self.tuned: dict[str, bool] = {}

    def setTcpNoDelay(self, enabled: bool) -> None:  # noqa: N802 -- named by Twisted
        """Note Nagle's algorithm."""
        self.tuned["no delay"] = enabled

    def setTcpKeepAlive(self, enabled: bool) -> None:  # noqa: N802 -- named by Twisted
        """Note keepalive."""
        self.tuned["keepalive"] = enabled


def test_a_reply_is_not_held_back_by_tcp(service: Service) -> None:
    """A TCP connection sends each reply at once, and notices in the end when its client is gone."""
    transport = TCPSocket()
    alsoProvides(transport, ITCPTransport)
    service.connect(transport)
    assert transport.tuned == {"no delay": True, "keepalive": True}


def test_closing_lets_replies_out_and_aborting_does_not_wait(service: Service) -> None:
    """At the end of the daemon, connections are closed first and then cut."""
    protocol, transport = service.connect()
    protocol.close()
    assert (transport.disconnecting, transport.disconnected) == (True, False)
    protocol.abort()
    assert transport.disconnected
    assert service.faults() == []
