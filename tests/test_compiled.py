"""What is compiled does what Python does: with the same bytes, the same."""

from __future__ import annotations

import collections
import gc
import hashlib
import importlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from select import EPOLLHUP, EPOLLIN
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policyd import compiled
from policyd.compiled import Step
from policyd.verdict import PASS
from policyd.wire import ATTRIBUTES, MAX_LINE, Layout, Request
from tests.compiling import answer, fields, require_compiled
from tests.daemon import ATTRIBUTES as POSTFIX
from tests.daemon import PATIENCE, REPOSITORY, Connection, Policyd, request

NAMES = [name.encode() for name in POSTFIX]
LAYOUT = Layout(NAMES)
VALUES = tuple(POSTFIX[name].encode() for name in ATTRIBUTES)
ANNA = request()
NOW = 123.5


@pytest.fixture(autouse=True)
def _compiled() -> None:
    require_compiled()


# --- fields


def matched(data: bytes, layout: Layout) -> tuple[bytes, ...] | None:
    """Return what Python finds."""
    found = None if b"\0" in data or len(data) > MAX_LINE else layout.whole(data)
    return None if found is None else found.groups()


value = st.binary(max_size=20) | st.sampled_from(
    [b"", b"=", b"0", b"9" * 18, b"9" * 19, b"RCPT", b"smtpd_access_policy"]
)
other_name = st.binary(min_size=1, max_size=300).filter(lambda name: not set(name) & set(b"=\n\0"))


@st.composite
def layouts(draw: st.DrawFn) -> list[bytes]:
    """Return names of which a layout can be made: `request` first, and the attributes that decide in their order."""
    names = [b"request"]
    for name in ATTRIBUTES:
        names += draw(st.lists(other_name, max_size=2))
        names.append(name.encode())
    names += draw(st.lists(other_name, max_size=2))
    wanted = {b"request", *(name.encode() for name in ATTRIBUTES)}
    return [name for place, name in enumerate(names) if name not in wanted or names.index(name) == place]


@st.composite
def requests(draw: st.DrawFn, names: list[bytes]) -> bytes:
    """Return a request of these names, or one like it that is cut, doubled or changed somewhere."""
    lines = []
    for name in names:
        text = draw(value)
        if name == b"request":
            text = draw(st.just(b"smtpd_access_policy") | value)
        elif name == b"recipient_count":
            text = draw(st.integers(0, 10**20).map(lambda number: b"%d" % number) | value)
        lines.append(name + b"=" + text + b"\n")
    data = b"".join(lines) + b"\n"
    place = draw(st.integers(0, len(data)))
    change = draw(st.sampled_from(["nothing", "cut", "insert", "replace", "double"]))
    more = draw(st.sampled_from([b"\n", b"\0", b"=", b"x", b"\n\n", b"\xff"]))
    return {
        "nothing": data,
        "cut": data[:place],
        "insert": data[:place] + more + data[place:],
        "replace": data[:place] + more + data[place + 1 :],
        "double": data + data,
    }[change]


@given(st.data())
def test_fields_are_those_that_the_pattern_finds(data: st.DataObject) -> None:
    """Whatever the names are, and whatever is wrong with the request."""
    names = data.draw(layouts())
    layout = Layout(names)
    asked = data.draw(requests(names))
    assert fields()(asked, layout.packed) == matched(asked, layout)


@given(st.binary(max_size=200))
@example(b"")
@example(b"\n\n")
@example(ANNA)
@example(ANNA[:-1])
@example(ANNA + b"\n")
def test_whatever_comes_in_is_a_request_or_none(data: bytes) -> None:
    """As for the pattern."""
    assert fields()(data, LAYOUT.packed) == matched(data, LAYOUT)


@pytest.mark.parametrize("length", [MAX_LINE - 1, MAX_LINE, MAX_LINE + 1])
def test_a_long_request_is_left_to_python(length: int) -> None:
    """It may have a line that is too long."""
    asked = request(sender=b"x" * (length - len(request(sender=""))))
    assert len(asked) == length
    assert (fields()(asked, LAYOUT.packed) is None) == (length > MAX_LINE)
    assert fields()(asked, LAYOUT.packed) == matched(asked, LAYOUT)


@pytest.mark.parametrize("digits", ["", "0", "9" * 18, "9" * 19, "1x", "-1", " 1", "\u0661"])
def test_a_number_is_a_number(digits: str) -> None:
    """As many digits as Python takes, and nothing else."""
    asked = request(recipient_count=digits)
    assert fields()(asked, LAYOUT.packed) == matched(asked, LAYOUT)


@given(st.binary(max_size=40))
def test_a_layout_that_is_none_does_no_harm(layout: bytes) -> None:
    """Nothing is read beyond its end, or beyond the request's."""
    found = fields()(ANNA, layout)
    assert found is None or isinstance(found, tuple)
    packed = LAYOUT.packed[: len(layout)] + layout
    assert fields()(ANNA, packed) is None


def test_more_fields_than_there_is_room_for_are_none() -> None:
    """Nobody asks for them."""
    lines = [b"a%d" % number for number in range(17)]
    packed = [b"=" + struct.pack("<H", len(line) + 1) + line + b"=" for line in lines]
    asked = [line + b"=v\n" for line in lines]
    assert fields()(b"".join(asked) + b"\n", b"".join(packed)) is None
    assert fields()(b"".join(asked[:16]) + b"\n", b"".join(packed[:16])) == (b"v",) * 16


@pytest.mark.parametrize("arguments", [(), (ANNA,), (ANNA, LAYOUT.packed, 1), ("x", LAYOUT.packed), (ANNA, None)])
def test_fields_of_something_else_are_an_error(arguments: tuple[Any, ...]) -> None:
    """And no crash."""
    with pytest.raises(TypeError):
        fields()(*arguments)


# --- answer


class Asked:
    """A socket at which somebody asks, the step that is done there, and what the decision was asked."""

    def __init__(self) -> None:
        self.client, self.server = socket.socketpair()
        self.client.settimeout(1)
        self.descriptor = self.server.fileno()
        self.asked: list[tuple[bytes, tuple[bytes, ...], object, float]] = []
        self.verdict: object = PASS
        self.request = Request(b"")
        self.step: Step = (
            self, LAYOUT.packed, self.decide, lambda: NOW, self.request, "connection", PASS, PASS.reply
        )  # fmt: skip

    def decide(self, asked: Request, connection: object, now: float) -> object:
        """Note what is asked; raise or return what the test wants."""
        self.asked.append((asked.lines, asked.values, connection, now))
        if isinstance(self.verdict, BaseException):
            raise self.verdict
        return self.verdict

    def done(self, data: bytes = b"") -> list[object]:
        """Send it, do the step, and return what is left."""
        if data:
            self.client.sendall(data)
        place, left = answer()([(self.descriptor, EPOLLIN)], 0, {self.descriptor: self.step})
        assert place == 1
        if left is None:
            return []
        transport, what = left
        assert transport is self
        return [what]

    def close(self) -> None:
        """End it."""
        self.client.close()
        self.server.close()


@pytest.fixture
def asked() -> Iterator[Asked]:
    """Return a socket at which nothing was asked yet."""
    with closing(Asked()) as found:
        yield found


def test_a_request_is_answered(asked: Asked) -> None:
    """In one step: the decision knows all of it, and its client has the reply."""
    assert asked.done(ANNA) == []
    assert asked.client.recv(100) == b"action=DUNNO\n\n"
    assert asked.asked == [(ANNA, VALUES, "connection", NOW)]


@pytest.mark.parametrize("data", [ANNA[:-1], ANNA * 2, b"\n", request(more="x"), ANNA.replace(b"stress=", b"=")])
def test_what_is_no_such_request_is_left(asked: Asked, data: bytes) -> None:
    """All of it, and nobody was asked."""
    assert asked.done(data) == [data]
    assert asked.asked == []


def test_at_most_64_kib_are_received_at_once(asked: Asked) -> None:
    """The rest is there the next time."""
    asked.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
    assert asked.done(b"x" * 100_000) == [b"x" * 65536]
    assert asked.done() == [b"x" * (100_000 - 65536)]


def test_where_nothing_is_there_nothing_is_left(asked: Asked) -> None:
    """An event may have passed when its turn comes."""
    assert asked.done() == []


def test_a_connection_that_is_over_is_told(asked: Asked) -> None:
    """Closed by its peer, or broken, or a descriptor that is none any more."""
    asked.client.close()
    assert asked.done() == [b""]
    asked.server.close()
    assert asked.done() == [b""]


def test_another_verdict_is_left(asked: Asked) -> None:
    """Its reply may have to wait."""
    asked.verdict = object()
    assert asked.done(ANNA) == [asked.verdict]
    asked.client.setblocking(False)
    with pytest.raises(BlockingIOError):
        asked.client.recv(1)


def test_an_exception_is_left(asked: Asked) -> None:
    """With its traceback; and nothing is raised."""
    asked.verdict = RuntimeError("a bug")
    (left,) = asked.done(ANNA)
    assert left is asked.verdict
    assert left.__traceback__ is not None
    assert sys.exc_info() == (None, None, None)


def test_no_verdict_is_an_error(asked: Asked) -> None:
    """Who asked is not left to wait."""
    asked.verdict = None
    (left,) = asked.done(ANNA)
    assert isinstance(left, TypeError)


def test_an_end_of_the_program_is_no_answer(asked: Asked) -> None:
    """Ctrl-C is not swallowed."""
    asked.verdict = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        asked.done(ANNA)


def test_a_reply_that_is_not_taken_is_left(asked: Asked) -> None:
    """How much was sent is told: nothing where the peer is gone or its buffer is full."""
    asked.server.setblocking(False)
    with pytest.raises(BlockingIOError):
        collections.deque(iter(lambda: asked.server.send(b"x" * 4096), 0))
    assert asked.done(ANNA) == [0]
    asked.client.sendall(ANNA)
    asked.client.close()
    assert asked.done() == [0]


def test_a_reply_that_is_taken_in_part_is_left(asked: Asked) -> None:
    """A stream takes what it has room for."""
    asked.server.close()
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    asked.server, _ = listener.accept()
    asked.descriptor = asked.server.fileno()
    asked.server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    asked.server.setblocking(False)
    asked.step = (*asked.step[:7], b"x" * 2**22)
    client.sendall(ANNA)
    with closing(listener), closing(client):
        (sent,) = asked.done()
        assert isinstance(sent, int)
        assert 0 < sent < 2**22
        received = 0
        while received < sent:
            received += len(client.recv(65536))
        assert received == sent


def test_other_events_are_passed_by_nobody(asked: Asked) -> None:
    """At those of descriptors without a step, and those that are no bare input, it stops; what comes after waits."""
    steps = {asked.descriptor: asked.step}
    asked.client.sendall(ANNA)
    events = [(asked.descriptor, EPOLLIN | EPOLLHUP), (10**6, EPOLLIN), (asked.descriptor, EPOLLHUP), (3, 4)]
    for place in range(len(events)):
        assert answer()(events, place, steps) == (place, None)
    assert asked.asked == []
    events.insert(2, (asked.descriptor, EPOLLIN))
    assert answer()(events, 1, steps) == (1, None)
    assert answer()(events, 2, steps) == (3, None)
    assert len(asked.asked) == 1
    assert answer()(events, 5, steps) == (5, None)
    assert answer()(events, 9, steps) == (9, None)


def test_what_comes_after_something_that_is_left_waits(asked: Asked) -> None:
    """So that all is done in the order in which it happened: what is left may decide what comes after it."""
    with closing(Asked()) as other:
        steps = {asked.descriptor: asked.step, other.descriptor: other.step}
        asked.verdict, events = "another", [(at.descriptor, EPOLLIN) for at in (other, asked, other)]
        asked.client.sendall(ANNA)
        other.client.sendall(ANNA)
        assert answer()(events, 0, steps) == (2, (asked, "another"))
        assert len(other.asked) == 1
        other.client.sendall(ANNA)
        assert answer()(events, 2, steps) == (3, None)
        assert len(other.asked) == 2


def test_what_is_sent_goes_to_whom_was_asked_for(asked: Asked) -> None:
    """Where whoever decides has the connection closed, its descriptor may be another's."""
    steps: dict[int, Step] = {}

    def decide(*_: object) -> object:
        steps.clear()
        return PASS

    steps[asked.descriptor] = asked.step = (*asked.step[:2], decide, *asked.step[3:])
    asked.client.sendall(ANNA)
    assert answer()([(asked.descriptor, EPOLLIN)], 0, steps) == (1, (asked, 0))
    asked.client.setblocking(False)
    with pytest.raises(BlockingIOError):
        asked.client.recv(1)


@pytest.mark.parametrize(
    "arguments",
    [
        *[(), ([], 0), ([], 0, {}, 1), ((), 0, {}), ([], 0, []), ([], None, {}), ([], 2**100, {}), ([], -1, {})],
        *[([1], 0, {}), ([(1,)], 0, {}), ([(1, "x")], 0, {})],
    ],
)
def test_an_answer_to_something_else_is_an_error(arguments: tuple[Any, ...]) -> None:
    """And no crash."""
    with pytest.raises((TypeError, IndexError, OverflowError)):
        answer()(*arguments)


@pytest.mark.parametrize("place", [1, 4, 7])
def test_a_step_of_something_else_is_an_error(asked: Asked, place: int) -> None:
    """Which is no decision's, and not answered."""
    parts: list[Any] = list(asked.step)
    parts[place] = None
    asked.step = tuple(parts)
    with pytest.raises((TypeError, AttributeError)):
        asked.done(ANNA)


@pytest.mark.parametrize("place", [2, 3])
def test_a_decision_that_cannot_be_asked_for_is_left(asked: Asked, place: int) -> None:
    """As one that is broken off."""
    parts: list[Any] = list(asked.step)
    parts[place] = None
    asked.step = tuple(parts)
    (left,) = asked.done(ANNA)
    assert isinstance(left, TypeError)


@pytest.mark.parametrize("step", [None, 1, [], (), (None,), [None] * 8, (None,) * 7, (None,) * 9])
def test_what_is_no_step_at_all_is_an_error(asked: Asked, step: Any) -> None:
    """Nothing is looked for in it: there is no transport to which that could be told."""
    asked.step = step
    with pytest.raises(TypeError, match="8 parts"):
        asked.done(ANNA)


@pytest.mark.parametrize("descriptor", [2**100, -(2**100), 1.0, None])
def test_what_is_no_descriptor_is_an_error(asked: Asked, descriptor: Any) -> None:
    """Nothing is received where none is named."""
    with pytest.raises((TypeError, OverflowError)):
        answer()([(descriptor, EPOLLIN)], 0, {descriptor: asked.step})
    assert asked.asked == []


def test_events_that_go_while_they_are_dealt_with_do_no_harm(asked: Asked) -> None:
    """What is looked at is kept for as long as that takes."""

    class Going:
        """A kind of event at which all of them go."""

        def __index__(self) -> int:
            """Let go of all events."""
            events.clear()
            return EPOLLIN

    asked.client.sendall(ANNA)
    events: list[Any] = [(asked.descriptor, Going()), (asked.descriptor, EPOLLIN)]
    assert answer()(events, 0, {asked.descriptor: asked.step}) == (1, None)
    assert len(asked.asked) == 1
    assert asked.client.recv(100) == PASS.reply


ASKING = """
import os, socket, sys
asking, wakes, asked = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
while asking.send(asked) and asking.recv(100):
    os.write(wakes, b"x")
"""
"""A process that asks again as soon as it is answered, and says so to a thread of ours."""


def test_other_threads_are_let_in_while_replies_are_sent(asked: Asked) -> None:
    """Though there is always a next request: what writes locks to the disk needs Python's lock time and again."""
    wanted, turns, interval = 20, 0, sys.getswitchinterval()
    woken, wakes = os.pipe()

    def take_turns() -> None:
        """Need Python's lock again and again, and nothing else."""
        nonlocal turns
        while os.read(woken, 1):
            turns += 1

    asked.client.setblocking(True)
    given = [asked.client.fileno(), wakes]
    thread = threading.Thread(target=take_turns)
    with subprocess.Popen([sys.executable, "-c", ASKING, *map(str, given), ANNA.hex()], pass_fds=given) as process:
        os.close(wakes)
        thread.start()
        try:
            sys.setswitchinterval(1000)  # nobody is made to let go of it
            ends = time.monotonic() + PATIENCE
            while turns < wanted and time.monotonic() < ends:
                asked.done()
            assert turns >= wanted
        finally:
            sys.setswitchinterval(interval)
            process.kill()
            thread.join()
    os.close(woken)


def test_nothing_is_kept_of_what_is_done(asked: Asked) -> None:
    """Requests, verdicts and steps are let go of, whatever becomes of a request."""
    bug = RuntimeError("a bug")
    verdicts: list[object] = [PASS, object(), bug]

    def held() -> list[int]:
        gc.collect()
        bug.__traceback__ = None
        return [sys.getrefcount(known) for known in (*verdicts, asked.step, asked.request, LAYOUT.packed)]

    before = held()
    blocks = 0
    for turn in range(200):
        for asked.verdict in verdicts:
            asked.done(ANNA)
        asked.done(ANNA * 2)
        asked.done()
        asked.asked.clear()
        asked.client.recv(65536)
        if turn == 100:
            blocks = sys.getallocatedblocks()
    asked.verdict = PASS
    assert held() == before
    assert sys.getallocatedblocks() - blocks < 50


# --- the daemon


@pytest.mark.parametrize("pure", ["", "1"])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_who_leaves_before_another_asks_has_left_by_then(tmp_path: Path, kind: str, pure: str) -> None:
    """Though the daemon sees both at once: what was given back is there again, and nobody is locked for it."""
    limit = {"count": "recipients", "per": "1h", "max": 1, "action": "REJECT", "lock": "until-unlocked"}
    path, environment = str(tmp_path / "socket"), {"POLICYD_PURE_PYTHON": pure}
    with Policyd({"limits": {"hourly": limit}}, listen=[f"unix:{path}"], environment=environment) as running:
        address = running.address if kind == "tcp" else path
        with Connection(address) as leaving, Connection(address) as staying:
            assert leaving.ask(protocol_state="DATA", sasl_username="other", recipient_count=1) == "DUNNO"
            assert staying.ask(sasl_username="") == "DUNNO"
            assert leaving.ask(sasl_username="b") == "DUNNO"
            os.kill(running.pid, signal.SIGSTOP)
            try:
                os.waitid(os.P_PID, running.pid, os.WSTOPPED)
                leaving.close()
                staying.send(request(sasl_username="b", instance="another"))
            finally:
                os.kill(running.pid, signal.SIGCONT)
            assert staying.replies() == ["DUNNO"]


def meet_all(running: Policyd) -> None:
    """Meet all that a connection can be: passed, refused, cut, pipelined, wrong."""
    assert running.ask(sasl_username="anna") == "DUNNO"
    with running.connect() as connection:
        for number in range(1, 4):
            wanted = "DUNNO" if number < 3 else "REJECT 5.7.1 Account b is locked: more than 2 messages in 1h"
            common: dict[str, str] = {"sasl_username": "b", "instance": f"b{number}"}
            assert connection.ask(protocol_state="RCPT", **common) == "DUNNO"
            assert connection.ask(protocol_state="DATA", recipient_count=1, **common) == wanted
        assert connection.ask(sasl_username="b") == wanted
        for place in range(1, len(ANNA), 97):
            connection.send(ANNA[:place])
            connection.send(ANNA[place:])
            assert connection.replies() == ["DUNNO"]
        connection.send(ANNA * 3)
        assert connection.replies(3) == ["DUNNO"] * 3
        assert connection.ask(more="x") == "DUNNO"
        assert connection.ask() == "DUNNO"
        connection.send(request(recipient_count="x"))
        assert connection.closed()


@pytest.mark.parametrize("pure", ["", "1"])
def test_the_daemon_says_the_same_with_and_without(pure: str) -> None:
    """The log tells which it is."""
    limit = {
        "count": "messages", "per": "1h", "max": 2, "lock": "until-unlocked",
        "action": "REJECT 5.7.1 Account {account} is locked: more than {max} messages in {per}",
    }  # fmt: skip
    with Policyd({"limits": {"hourly": limit}}, environment={"POLICYD_PURE_PYTHON": pure}) as running:
        meet_all(running)
        assert f"compiled={'no' if pure else 'yes'}" in running.stderr


def test_what_is_compiled_is_what_is_there() -> None:
    """Its source is that of this tree, and both of its functions are in use."""
    onestep: Any = importlib.import_module("policyd._onestep")
    source = (REPOSITORY / "policyd" / "onestep.c").read_bytes()
    assert hashlib.sha256(source).hexdigest() == onestep.SOURCE, "policyd/onestep.c has changed: tests/run compiles it"
    functions = {known for known in vars(onestep).values() if callable(known) and known is not onestep.__loader__}
    assert {compiled.fields, compiled.answer} <= functions


def test_what_was_compiled_of_another_policyd_is_not_used(tmp_path: Path) -> None:
    """Its steps may have other parts."""
    other = tmp_path / "policyd"
    shutil.copytree(REPOSITORY / "policyd", other, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (other / "_onestep.py").write_text("SHAPE = 0\nfields = answer = print\n")
    command = [sys.executable, "-c", "from policyd import compiled; print(compiled.fields, compiled.answer)"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout == "None None\n"
