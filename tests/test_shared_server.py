"""The policy service whose verdicts come late, as one connection sees it."""

# mypy: allow-untyped-calls
# Twisted's transport for tests has no types.

from __future__ import annotations

from collections.abc import Mapping

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from policyd.shared_server import SharedFactory, SharedProtocol
from tests.asking import limit
from tests.daemon import request
from tests.sharers import Node

DUNNO = b"action=DUNNO\n\n"
FULL = b"action=REJECT messages 3\n\n"


class Service:
    """A policy service that asks a store which takes its time."""

    def __init__(self) -> None:
        self.node = Node(limit("messages", 2))
        self.node.net.late = True
        self.events: list[tuple[str, Mapping[str, object]]] = []
        self.disk: Deferred[None] | None = None
        self.clock = Clock()
        self.factory = SharedFactory(
            self.node.policy,
            self.clock,
            lambda word, fields: self.events.append((word, fields)),
            lambda: self.disk,
            self.node.sharing,
        )

    def connect(self) -> tuple[SharedProtocol, StringTransport]:
        """Open a connection."""
        protocol, transport = self.factory.buildProtocol(None), StringTransport()
        protocol.makeConnection(transport)
        return protocol, transport


def data(instance: str) -> bytes:
    """Return a DATA request."""
    return request(protocol_state="DATA", recipient="", recipient_count=1, instance=instance)


@pytest.fixture
def service() -> Service:
    """Return a service."""
    return Service()


def test_a_request_waits_for_its_verdict(service: Service) -> None:
    """There is no reply before the store's, and the connection is not idle meanwhile: the end of the daemon waits."""
    protocol, transport = service.connect()
    protocol.dataReceived(data("a"))
    assert (transport.value(), protocol.idle) == (b"", False)
    service.node.net.deliver()
    assert (transport.value(), protocol.idle) == (DUNNO, True)


def test_requests_of_a_connection_are_answered_in_order_one_at_a_time(service: Service) -> None:
    """What comes at once is asked about one by one, and answered in that order."""
    protocol, transport = service.connect()
    protocol.dataReceived(b"".join(map(data, "abc")))
    for expected in (DUNNO, DUNNO * 2, DUNNO * 2 + FULL):
        assert len(service.node.net.waiting) == 1
        service.node.net.deliver()
        assert transport.value() == expected
    assert protocol.idle


def test_nothing_more_is_read_while_a_request_waits(service: Service) -> None:
    """What comes all the same is kept, and answered afterwards; then there is room for more."""
    protocol, transport = service.connect()
    protocol.dataReceived(data("a"))
    assert transport.producerState == "producing"
    protocol.dataReceived(data("b")[:50])
    assert transport.producerState == "paused"
    service.node.net.deliver()
    assert transport.producerState == "producing"
    assert not protocol.idle
    protocol.dataReceived(data("b")[50:])
    service.node.net.deliver()
    assert transport.value() == DUNNO * 2


def test_connections_do_not_wait_for_each_other(service: Service) -> None:
    """A request of another connection is on its way at the same time."""
    (one, first), (two, second) = service.connect(), service.connect()
    one.dataReceived(data("a"))
    two.dataReceived(data("b"))
    assert len(service.node.net.waiting) == 2
    service.node.net.waiting.reverse()
    service.node.net.deliver()
    assert (first.value(), second.value()) == (b"", DUNNO)


def test_a_peer_that_has_gone_gets_no_answer(service: Service) -> None:
    """Its message is given back."""
    protocol, transport = service.connect()
    protocol.dataReceived(data("a") + data("b"))
    protocol.connectionLost(Failure(ConnectionDone()))
    while service.node.net.waiting:
        service.node.net.deliver()
    assert transport.value() == b""
    assert not service.factory.connections
    assert service.node.sharing.asking == 0


def test_what_is_no_request_is_hung_up_on_after_the_answers_before_it(service: Service) -> None:
    """The verdict that is waited for is told, then the connection is closed."""
    protocol, transport = service.connect()
    protocol.dataReceived(data("a") + b"nonsense\n\n")
    assert not transport.disconnecting
    service.node.net.deliver()
    assert transport.value() == DUNNO
    assert transport.disconnecting
    assert [word for word, _ in service.events] == ["protocol-error"]


def test_a_refusal_waits_for_the_disk(service: Service) -> None:
    """What may announce a lock is told when that is written, and the next request is looked at then."""
    protocol, transport = service.connect()
    for instance in "ab":
        protocol.dataReceived(data(instance))
        service.node.net.deliver()
    service.disk = Deferred()
    protocol.dataReceived(data("c") + data("d"))
    service.node.net.deliver()
    assert transport.value() == DUNNO * 2
    assert not service.node.net.waiting
    assert not protocol.idle
    disk, service.disk = service.disk, None
    disk.callback(None)
    service.node.net.deliver()
    assert transport.value() == DUNNO * 2 + FULL * 2


def test_an_unfinished_request_is_hung_up_on_in_time(service: Service) -> None:
    """The time for it begins when the one before has its answer."""
    protocol, transport = service.connect()
    protocol.dataReceived(data("a") + data("b")[:50])
    service.clock.advance(40)
    assert not transport.disconnecting
    service.node.net.deliver()
    service.clock.advance(30)
    assert transport.disconnecting


def test_a_whole_request_is_not_hung_up_on(service: Service) -> None:
    """The time for a request that comes in pieces is over when the last one is there, not when it is answered."""
    protocol, transport = service.connect()
    protocol.dataReceived(data("a")[:50])
    service.clock.advance(29)
    protocol.dataReceived(data("a")[50:])
    service.clock.advance(29)
    service.node.net.deliver()
    assert transport.value() == DUNNO
    assert not transport.disconnecting
    assert not service.clock.getDelayedCalls()


def test_a_store_that_goes_leaves_nobody_unanswered(service: Service) -> None:
    """All that wait are answered at once, by the node's own counts."""
    opened = [service.connect() for _ in range(4)]
    for place, (protocol, _) in enumerate(opened):
        protocol.dataReceived(data(str(place)))
    service.node.net.go_away()
    assert sorted(transport.value() for _, transport in opened) == sorted([DUNNO, DUNNO, FULL, FULL])
