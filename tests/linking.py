"""Links to real stores, on a reactor that the test turns, and a network between them that does as the test says."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.selectreactor import SelectReactor
from twisted.python.failure import Failure

from policyd.sections_cluster import parse_store
from policyd.shared_calls import AwayError, Calls
from policyd.shared_link import Link
from policyd.shared_store import Dial
from tests.daemon import PATIENCE
from tests.stores import Store

CALL_PATIENCE = 0.1


class Turned:
    """A reactor of the test's own."""

    def __init__(self) -> None:
        self.reactor: Any = SelectReactor()
        self.reactor.startRunning(installSignalHandlers=False)

    def until(self, condition: Callable[[], object], patience: float = PATIENCE) -> None:
        """Let it turn until something is true."""
        deadline = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < deadline, f"this has not become true in {patience:g} s"
            self.reactor.iterate(0.01)
            # Twisted's TLS puts off what is small by the reactor that is installed.
            installed.runUntilCurrent()  # type: ignore[attr-defined]  # all of Twisted's have it

    def end(self) -> None:
        """Have it end."""
        self.reactor.stop()
        self.reactor.iterate()


class Linked:
    """A link to a store, and what it has told."""

    def __init__(self, turned: Turned, url: str, password: Callable[[], bytes | None] = lambda: None) -> None:
        self.turned = turned
        self.calls = Calls("policyd", "n1")
        self.told: list[str] = []
        dial = Dial(turned.reactor, parse_store(url), password)
        self.link = Link(turned.reactor, dial, CALL_PATIENCE, self.calls.evaluated, "policyd")
        self.link.on_here = lambda: self.told.append("here")
        self.link.on_away = lambda why: self.told.append(f"away: {why}")

    def connect(self) -> None:
        """Start, and wait until the store is here."""
        self.link.start()
        self.until_here()

    def until_here(self) -> None:
        """Wait until the store is here."""
        self.turned.until(lambda: self.link.here)

    def until_away(self, why: str) -> None:
        """Wait until the store is away for this reason."""
        self.turned.until(lambda: not self.link.here and why in self.link.problem)

    def ask(self, *words: bytes | str | float) -> object:
        """Send a command, and return the reply; in place of one, what AwayError says."""
        return self.reply(self.link.command(*words))

    def reply(self, call: Deferred[object]) -> object:
        """Return what has come of a call."""
        found: list[object] = []
        call.addErrback(lambda failure: f"away: {failure.value}" if failure.check(AwayError) else failure)
        call.addBoth(found.append)
        self.turned.until(lambda: found)
        return found[0]


class _Near(Protocol):
    """The end of a connection that the link has."""

    transport: Any

    def __init__(self, network: Network) -> None:
        self._network = network
        self._far: Any = None
        self._early = b""

    def connectionMade(self) -> None:
        connecting: Any = connectProtocol(self._network.endpoint, _Far(self, self._network))
        connecting.addCallbacks(self._connected, lambda _: self.transport.loseConnection())

    def _connected(self, far: Any) -> None:
        self._far = far
        far.transport.write(self._early)

    def dataReceived(self, data: bytes) -> None:
        if self._far is None:
            self._early += data
        else:
            self._far.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._far is not None:
            self._far.transport.loseConnection()


class _Far(Protocol):
    """The end of a connection that the store has."""

    def __init__(self, near: _Near, network: Network) -> None:
        self._near = near
        self._network = network

    def dataReceived(self, data: bytes) -> None:
        self._network.answered(self._near.transport, data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._near.transport.loseConnection()


class Network:
    """A network between a link and a port of 127.0.0.1."""

    def __init__(self, turned: Turned, port: int) -> None:
        self._reactor = turned.reactor
        self.delay = 0.0
        """Seconds that an answer takes."""
        self.cut: int | None = None
        """Bytes of answers after which the connection ends."""
        self.garbage = b""
        """What comes in place of an answer."""
        self.silent = False
        """Whether answers are lost."""
        self.endpoint = HostnameEndpoint(self._reactor, b"127.0.0.1", port)
        factory = Factory.forProtocol(lambda: _Near(self))
        factory.noisy = False
        self.port: int = self._reactor.listenTCP(0, factory, interface="127.0.0.1").getHost().port

    def answered(self, near: Any, data: bytes) -> None:
        """Pass an answer on, or do with it as is said above."""
        data = self.garbage or data
        if self.silent:
            return
        if self.cut is not None and self.cut <= len(data):
            near.write(data[: self.cut])
            near.loseConnection()
            self.cut = None
        else:
            self._reactor.callLater(self.delay, near.write, data)


@contextlib.contextmanager
def linked(url: str, password: Callable[[], bytes | None] = lambda: None) -> Iterator[Linked]:
    """Have a link that is not started yet."""
    turned = Turned()
    found = Linked(turned, url, password)
    try:
        yield found
    finally:
        found.link.stop()
        turned.end()


@contextlib.contextmanager
def linked_through_network(store: Store) -> Iterator[tuple[Linked, Network]]:
    """Have a link that has the store here, and the network between them."""
    turned = Turned()
    network = Network(turned, store.port)
    found = Linked(turned, f"redis://127.0.0.1:{network.port}/0")
    try:
        found.connect()
        yield found, network
    finally:
        found.link.stop()
        turned.end()
