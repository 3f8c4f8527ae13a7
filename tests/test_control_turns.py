"""Calls of the control socket that take many turns of the reactor: who waits, who need not, and who is dropped."""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.testing import StringTransportWithDisconnection

from policyd.calls import Api
from policyd.control import MAX_CONNECTIONS, TIMEOUT, QuietSite, control_site
from tests.asking import Mail
from tests.turning import TurningClock

MANY = 3000
ROOM = 64 * 1024


class _Transport(StringTransportWithDisconnection):
    """A connection over a unix socket."""

    def __init__(self, near: socket.socket) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted has no types for it
        self.socket = near

    def write(self, data: bytes) -> None:
        """Take what is sent, and ask for no more when it is much."""
        super().write(data)  # type: ignore[no-untyped-call]  # Twisted has no types for it
        if self.producer is not None and self.io.tell() > ROOM:
            self.producer.pauseProducing()

    def abortConnection(self) -> None:  # noqa: N802 -- Twisted's
        """Hang up."""
        self.loseConnection()  # type: ignore[no-untyped-call]  # Twisted has no types for it


class Peer:
    """Somebody at the other end of the control socket, who reads only when told to."""

    def __init__(self, site: QuietSite, stack: ExitStack) -> None:
        near, _far = (stack.enter_context(end) for end in socket.socketpair())
        self._transport: Any = _Transport(near)
        self._transport.protocol = site.buildProtocol(None)
        self._transport.protocol.makeConnection(self._transport)

    @property
    def connected(self) -> bool:
        """Whether nobody has hung up."""
        return bool(self._transport.connected)

    @property
    def waiting(self) -> bytes:
        """What was sent and is not read yet."""
        found: bytes = self._transport.value()
        return found

    def send(self, line: str, body: bytes = b"") -> None:
        """Send a request."""
        head = f"{line} HTTP/1.1\r\nHost: policyd\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.protocol.dataReceived(head.encode() + body)

    def read(self) -> bytes:
        """Return what was sent, and make room for more."""
        found = self.waiting
        self._transport.clear()
        self._transport.producer.resumeProducing()
        return found

    def hang_up(self) -> None:
        """End the connection."""
        self._transport.loseConnection()

    def answer(self) -> tuple[int, Any]:
        """Return status and answer, which has to be there, to the last byte and in JSON's usual form."""
        received = b"".join(iter(self.read, b""))
        head, _, body = received.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
        value = json.loads(body)
        assert body == json.dumps(value).encode() + b"\n"
        return int(head.split(b" ")[1]), value


class Desk:
    """A control socket in memory, the reactor behind it, and what was told."""

    def __init__(self, stack: ExitStack) -> None:
        self.clock = TurningClock()
        self.mail = Mail()
        self.bugs = 0
        self.durable: Deferred[None] | None = None
        self.reloaded: Callable[[], Awaitable[tuple[list[str], list[str]]]] = lambda: succeed(([], []))
        self._stack = stack
        api = Api(self.mail.desk, lambda *_: self.reloaded())
        self._site = control_site(api, self.clock, self._bug, lambda: self.durable)

    def connect(self) -> Peer:
        """Connect to the socket."""
        return Peer(self._site, self._stack)

    def get(self, path: str) -> Peer:
        """Ask a question over a connection of its own."""
        peer = self.connect()
        peer.send(f"GET {path}")
        return peer

    def post(self, path: str, **values: object) -> Peer:
        """Give an order over a connection of its own."""
        peer = self.connect()
        peer.send(f"POST {path}", json.dumps(values).encode())
        return peer

    def turn_until_idle(self) -> int:
        """Let the reactor go round until nothing is left to be done soon; return how often that was."""
        for turns in range(100_000):
            if not [call for call in self.clock.getDelayedCalls() if call.getTime() < self.clock.seconds() + 1]:
                return turns
            self.clock.turn()
        raise AssertionError("it goes round for ever")

    def _bug(self) -> None:
        self.bugs += 1


@pytest.fixture
def desk() -> Iterator[Desk]:
    """Begin with an idle reactor."""
    with ExitStack() as stack:
        yield Desk(stack)


def crowd(desk: Desk, number: int = MANY) -> list[str]:
    """Make accounts known, and return their names."""
    everybody = [f"user{place}@example.com" for place in range(number)]
    for user in everybody:
        desk.mail.policy.accounts.get(user, 0.0)
    return everybody


def test_mail_need_not_wait_for_the_list_of_accounts(desk: Desk) -> None:
    """It takes many turns, between which requests are answered; the list is as if there had been one."""
    crowd(desk)
    asked = desk.get("/accounts?n=1000")
    assert asked.waiting == b""
    assert desk.turn_until_idle() > 3
    assert asked.answer() == (200, desk.mail.desk.accounts(0.0, "messages", 1000))


def test_mail_need_not_wait_for_the_list_of_locks(desk: Desk) -> None:
    """Nor for one that is empty."""
    empty = desk.get("/locked")
    desk.turn_until_idle()
    assert empty.answer() == (200, [])
    for user in crowd(desk):
        desk.mail.lock(user)
    asked = desk.get("/locked")
    assert desk.turn_until_idle() > 1
    assert asked.answer() == (200, desk.mail.desk.locked(0.0))


def test_mail_need_not_wait_for_thousands_to_be_freed(desk: Desk) -> None:
    """Each is freed and logged, and the answer names all, in the order of the question."""
    everybody = crowd(desk)
    for user in everybody[::2]:
        desk.mail.lock(user)
    order = desk.post("/unlock", accounts=everybody)
    desk.clock.turn()
    assert 0 < len(desk.mail.told("unlock")) < MANY / 4
    desk.turn_until_idle()
    assert order.answer() == (200, {"unlocked": everybody[::2], "free": everybody[1::2], "held": []})
    assert [fields["account"] for fields in desk.mail.told("unlock")] == everybody[::2]


def test_an_answer_leaves_when_the_last_lock_is_on_the_disk(desk: Desk) -> None:
    """Of thousands, too."""
    order = desk.post("/unlock", accounts=crowd(desk))
    desk.durable = Deferred()
    desk.turn_until_idle()
    assert order.waiting == b""
    desk.durable.callback(None)
    assert order.answer()[0] == 200


def test_who_hangs_up_ends_a_question(desk: Desk) -> None:
    """What nobody will read is not looked for, and the next question does not wait for it."""
    crowd(desk)
    gone, waiting = desk.get("/accounts?n=100000"), desk.get("/accounts?n=1")
    desk.clock.turn()
    gone.hang_up()
    assert desk.turn_until_idle() < 10
    assert waiting.answer()[0] == 200
    assert gone.waiting == b""


def test_who_hangs_up_does_not_end_an_order(desk: Desk) -> None:
    """All are freed whom it names."""
    everybody = crowd(desk)
    for user in everybody:
        desk.mail.lock(user)
    desk.post("/unlock", accounts=everybody).hang_up()
    desk.turn_until_idle()
    assert len(desk.mail.told("unlock")) == MANY
    assert desk.bugs == 0


def test_an_order_does_not_wait_for_questions(desk: Desk) -> None:
    """However many have been asked before it: a monitor that asks without end keeps nobody from locking."""
    crowd(desk)
    questions = [desk.get("/accounts?n=1000") for _ in range(5)]
    desk.clock.turn()
    order = desk.post("/unlock", accounts=["user1@example.com"])
    locked = desk.post("/lock", account="user1@example.com", reason="x")
    assert locked.answer()[0] == 200
    desk.clock.turn()
    assert order.answer()[0] == 200
    assert not any(question.waiting for question in questions)
    assert desk.get("/status").answer()[0] == 200
    desk.turn_until_idle()
    assert all(question.answer()[0] == 200 for question in questions)


def test_who_waits_for_a_list_leaves_its_place_and_who_gave_an_order_does_not(desk: Desk) -> None:
    """When there are too many connections the oldest is dropped whose order is not being done."""
    everybody = crowd(desk)
    order, question = desk.post("/unlock", accounts=everybody), desk.get("/accounts")
    others = [desk.connect() for _ in range(MAX_CONNECTIONS - 1)]
    assert (order.connected, question.connected) == (True, False)
    desk.turn_until_idle()
    assert len(order.answer()[1]["free"]) == MANY
    assert all(other.connected for other in others)


def test_a_reload_is_an_order_that_may_take_long(desk: Desk) -> None:
    """It is answered when it is done, and not dropped before."""
    done: Deferred[tuple[list[str], list[str]]] = Deferred()
    desk.reloaded = lambda: done
    order = desk.post("/reload")
    others = [desk.connect() for _ in range(MAX_CONNECTIONS)]
    assert [other.connected for other in others] == [False] + [True] * (MAX_CONNECTIONS - 1)
    assert order.waiting == b""
    done.callback((["x: 1 -> 2"], ["listen"]))
    assert order.answer() == (200, {"changed": ["x: 1 -> 2"], "needs_restart": ["listen"]})


def test_a_bug_in_a_later_turn_is_told_as_one_in_the_first(desk: Desk) -> None:
    """The caller gets a 500, the log what it was, and the next call is carried out."""
    locks = desk.mail.policy.locks
    del desk.mail.policy.locks
    order = desk.post("/unlock", accounts=crowd(desk))
    desk.turn_until_idle()
    assert order.answer() == (500, {"error": "internal error, see the daemon's log"})
    desk.mail.policy.locks = locks
    question = desk.get("/locked")
    desk.turn_until_idle()
    assert question.answer() == (200, [])
    assert desk.bugs == 1


def test_a_large_answer_is_sent_as_fast_as_it_is_read(desk: Desk) -> None:
    """No more than a bit of it lies in the socket's buffer, and in the end all has come."""
    crowd(desk)
    asked = desk.get("/accounts?n=100000")
    desk.turn_until_idle()
    received = b""
    while piece := asked.read():
        assert len(piece) < 2 * ROOM
        received += piece
    assert len(received) > 10 * ROOM
    head, _, body = received.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    assert len(json.loads(body)) == MANY
    asked.send("GET /status")
    assert asked.answer()[0] == 200


def test_who_does_not_read_a_large_answer_is_hung_up_on(desk: Desk) -> None:
    """After a minute without reading, however long the reading has gone on."""
    crowd(desk)
    asked = desk.get("/accounts?n=100000")
    desk.turn_until_idle()
    for _ in range(3):
        desk.clock.advance(TIMEOUT - 1)
        assert asked.connected
        asked.read()
    desk.clock.advance(TIMEOUT)
    assert not asked.connected
