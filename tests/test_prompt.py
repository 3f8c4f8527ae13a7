"""Connections that are answered in one step: real sockets and a real reactor of their own, run by hand."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from select import EPOLLIN

import pytest
from twisted.internet import tcp, unix
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.python import log
from twisted.python.failure import Failure

from policyd.prompt import PromptReactor, PromptTcp, PromptUnix, make_prompt
from policyd.verdict import PASS
from policyd.wire import Layout, Request
from tests.compiling import require_compiled
from tests.daemon import ATTRIBUTES, request

TURNS = 200
LAYOUT = Layout([name.encode() for name in ATTRIBUTES]).packed


class Echo(Protocol):
    """Sends back at once what comes, as far as the socket takes it, and notes what happens."""

    broken = False

    def connectionMade(self) -> None:
        """Be known."""
        self.factory.made.append(self)
        self.lost: Failure | None = None
        self.sent: list[object] = []

    def dataReceived(self, data: bytes) -> None:
        """Send back."""
        if data == b"raise":
            raise RuntimeError("a bug")
        self.sent.append(self.transport.sender()(data))  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Note why."""
        self.lost = reason


class Listening:
    """A port with prompt connections, and a client."""

    def __init__(self, listen: Callable[[PromptReactor, ServerFactory[Echo]], IListeningPort]) -> None:
        self.reactor = PromptReactor()
        self.factory: ServerFactory[Echo] = ServerFactory()
        self.factory.protocol = Echo
        self.factory.noisy = False
        self.made: list[Echo] = []
        self.factory.made = self.made  # type: ignore[attr-defined]
        self.port = listen(self.reactor, self.factory)
        make_prompt(self.port)
        address = self.port.socket.getsockname()  # type: ignore[attr-defined]
        self.client = socket.socket(self.port.socket.family)  # type: ignore[attr-defined]
        self.client.connect(address)
        self.client.setblocking(False)
        self.until(lambda: bool(self.made))
        (self.server,) = self.made

    def until(self, done: Callable[[], bool]) -> None:
        """Let the reactor turn until something has happened."""
        for _ in range(TURNS):
            if done():
                return
            self.reactor.iterate(0.05)
        raise AssertionError("it does not happen")

    def received(self, length: int) -> bytes:
        """Return so many bytes that the client receives."""
        found = b""

        def more() -> bool:
            nonlocal found
            try:
                found += self.client.recv(length - len(found))
            except BlockingIOError:
                return False
            return len(found) >= length

        self.until(more)
        return found

    def close(self) -> None:
        """End it all."""
        self.client.close()
        for made in self.made:
            made.transport.abortConnection()  # type: ignore[union-attr]
        self.port.stopListening()
        for _ in range(3):
            self.reactor.iterate(0)
        self.reactor.removeAll()


@pytest.fixture(params=["tcp", "unix"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listening]:
    """Return a port of each kind."""
    path = str(tmp_path / "socket")
    found = Listening(
        (lambda reactor, factory: reactor.listenTCP(0, factory, interface="127.0.0.1"))
        if request.param == "tcp"
        else (lambda reactor, factory: reactor.listenUNIX(path, factory))
    )
    yield found
    found.close()


def test_what_is_sent_is_answered_in_the_same_turn(listening: Listening) -> None:
    """The answer is with the client after one turn of the reactor, which waits for nothing else."""
    assert type(listening.server.transport) in (PromptTcp, PromptUnix)
    listening.client.send(b"hello")
    listening.reactor.iterate(1)
    assert listening.client.recv(100) == b"hello"
    assert listening.server.sent == [5]


def test_a_client_that_leaves_is_gone(listening: Listening) -> None:
    """Its protocol is told, as by any transport of Twisted's."""
    listening.client.close()
    listening.until(lambda: listening.server.lost is not None)
    assert listening.server.lost is not None
    assert "cleanly" in listening.server.lost.getErrorMessage()


def test_a_reset_ends_the_connection(listening: Listening) -> None:
    """However a client goes, nothing is left of it."""
    listening.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    listening.client.close()
    listening.until(lambda: listening.server.lost is not None)
    assert listening.server.transport not in listening.reactor.getReaders()


def test_an_exception_ends_its_own_connection_only(listening: Listening) -> None:
    """It is logged, and the reactor goes on."""
    listening.client.send(b"raise")
    listening.until(lambda: listening.server.lost is not None)
    other = socket.socket(listening.client.family)
    other.connect(listening.port.socket.getsockname())  # type: ignore[attr-defined]
    listening.until(lambda: len(listening.made) == 2)
    other.send(b"still there")
    listening.reactor.iterate(1)
    assert other.recv(100) == b"still there"
    other.close()


def test_a_socket_that_is_full_takes_what_it_can(listening: Listening) -> None:
    """What is sent at once is said; the client gets just that, in order, and then nothing is taken."""
    send = listening.server.transport.sender()  # type: ignore[union-attr]
    data = bytes(range(256)) * 65536
    sent: list[int] = []

    def send_all() -> None:
        while sum(sent) < len(data):
            sent.append(send(data[sum(sent) :]))

    with pytest.raises(BlockingIOError):
        send_all()
    assert 0 < sum(sent) < len(data)
    assert listening.received(sum(sent)) == data[: sum(sent)]


def test_to_send_to_a_client_that_is_gone_raises(listening: Listening) -> None:
    """Twisted, to which what was not sent is left then, finds out and ends the connection."""
    send = listening.server.transport.sender()  # type: ignore[union-attr]
    listening.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    listening.client.close()

    def send_twice() -> None:
        send(b"x")
        send(b"x")

    with pytest.raises(OSError, match=r"reset|pipe"):
        send_twice()


def test_a_read_without_data_is_none(listening: Listening) -> None:
    """An event that has passed when its turn comes does no harm."""
    assert listening.server.transport.doRead() is None  # type: ignore[union-attr]
    assert listening.server.lost is None


def test_an_event_of_a_closed_descriptor_is_passed_over(listening: Listening) -> None:
    """A connection that another one's event has ended meanwhile is not asked any more."""

    class Poller:
        """Tells of an event at a descriptor that nobody has."""

        def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
            """Return it."""
            assert timeout == -1
            return [(999_999, EPOLLIN)]

    listening.reactor._poller, kept = Poller(), listening.reactor._poller
    listening.reactor.doPoll(None)
    listening.reactor._poller = kept


class Asking(Echo):
    """Has what comes in dealt with in one step, and notes what that leaves."""

    def connectionMade(self) -> None:
        """Expect requests."""
        super().connectionMade()
        self.leaves: list[object] = []
        self.received: list[bytes] = []
        self.verdict: object = PASS
        self.transport.expect(  # type: ignore[union-attr]
            (self.transport, LAYOUT, self.decide, lambda: 1.0, Request(b""), None, PASS, PASS.reply)
        )

    def decide(self, *_: object) -> object:
        """Say what the test wants."""
        return self.verdict

    def finish(self, left: object) -> None:
        """Note it; end all connections where that is wanted."""
        self.leaves.append(left)
        if left == "end all":
            for made in self.factory.made:
                made.transport.connectionLost(Failure(ConnectionDone()))

    def dataReceived(self, data: bytes) -> None:
        """Note what comes."""
        self.received.append(data)


@pytest.fixture
def asking(listening: Listening) -> Asking:
    """Return a connection of which a step is expected."""
    require_compiled()
    listening.factory.protocol = Asking
    listening.client.close()
    listening.client = socket.socket(listening.client.family)
    listening.client.connect(listening.port.socket.getsockname())  # type: ignore[attr-defined]
    listening.until(lambda: len(listening.made) == 2)
    found = listening.made[1]
    assert isinstance(found, Asking)
    return found


def test_an_expected_request_is_answered_without_its_protocol(listening: Listening, asking: Asking) -> None:
    """In the same turn; what is none is its protocol's, and what is left of one too."""
    listening.client.send(request())
    listening.reactor.iterate(1)
    assert listening.client.recv(100) == PASS.reply
    listening.client.send(b"x")
    listening.until(lambda: asking.received == [b"x"])
    asking.verdict = "another"
    listening.client.send(request())
    listening.until(lambda: asking.leaves == ["another"])
    asking.transport.expect(None)  # type: ignore[union-attr]
    listening.client.send(request())
    listening.until(lambda: asking.received == [b"x", request()])


def test_nothing_is_expected_of_a_connection_that_is_over(listening: Listening, asking: Asking) -> None:
    """Its descriptor may be another's by then."""
    assert list(listening.reactor.steps) == [asking.transport.fileno()]  # type: ignore[union-attr]
    listening.client.close()
    listening.until(lambda: asking.lost is not None)
    assert listening.reactor.steps == {}


def test_what_is_left_of_a_connection_that_another_has_ended_is_passed_over(
    listening: Listening, asking: Asking
) -> None:
    """As are its events."""
    asking.verdict = "end all"
    client = socket.socket(listening.client.family)
    client.connect(listening.port.socket.getsockname())  # type: ignore[attr-defined]
    listening.until(lambda: len(listening.made) == 3)
    other = listening.made[2]
    assert isinstance(other, Asking)
    other.verdict = "end all"
    listening.client.send(request())
    client.send(request())
    logged: list[object] = []
    log.addObserver(logged.append)
    listening.reactor.iterate(1)
    log.removeObserver(logged.append)
    assert asking.leaves + other.leaves == ["end all"]
    assert logged == []
    client.close()


def test_only_plain_ports_are_made_prompt() -> None:
    """Whatever has a transport of its own keeps it."""

    class Strange:
        transport = Echo

    class Plain:
        transport: type = tcp.Server

    class Passed:
        transport: type = unix.Server

    strange, plain, passed = Strange(), Plain(), Passed()
    for port in (strange, plain, passed, object()):
        make_prompt(port)  # type: ignore[arg-type]
    assert (strange.transport, plain.transport, passed.transport) == (Echo, PromptTcp, PromptUnix)
