"""What a request costs, counted and not timed: function calls and instructions of Python's are the same at every run.

A change that puts something slow in the way of every request is noticed here, on any machine. Who makes requests
cheaper lowers the budget; who must make them dearer raises it, and says why in the commit.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from select import EPOLLIN
from types import FrameType
from typing import Any

import pytest
from twisted.internet.task import Clock

from policyd.compiled import Step
from policyd.limits import HOUSE_RULES, Limits, Override, Rules
from policyd.policy import Policy
from policyd.records import Span, account_record
from policyd.server import PolicyFactory, PolicyProtocol
from policyd.verdict import PASS
from policyd.wire import Layout, Layouts, Request
from tests import compiling
from tests.asking import limit
from tests.daemon import ATTRIBUTES, request

MESSAGES = 100
RECIPIENTS = 3
MARGIN = 1.1
"""CPython 3.10 and 3.11, by which the budgets were counted, differ by less."""

SLACK = 1.3
"""A budget that is wider than this tells nothing; by CPython 3.13 requests cost a tenth fewer instructions."""

BUDGETS = {
    "house rules": (Rules(), 25.6, 558),
    "ten windows": (Rules(Limits(limit("messages", 1000, f"{n}h", name=f"l{n}") for n in range(1, 11))), 36.8, 843),
    "recipients counted": (Rules(Limits([*HOUSE_RULES, limit("recipients", 1000, name="r")])), 31.8, 718),
    "warnings": (Rules(warn_at=80), 25.6, 558),
    "overrides by name": (Rules(overrides=tuple(Override((f"o{n}",), ()) for n in range(100))), 25.6, 558),
}
"""The rules, and the most function calls and instructions that a request may cost with them, on an average;
all of it in Python, as where nothing is compiled."""


class Transport:
    """Takes all that is sent, at once."""

    def __init__(self) -> None:
        self.sent = 0

    def getPeer(self) -> None:  # noqa: N802 -- named by Twisted
        """Tell nothing of the peer."""

    def writeSomeData(self, data: bytes) -> int:  # noqa: N802 -- named by Twisted
        """Take it."""
        self.sent += 1
        return len(data)


class Ticking(Clock):
    """A clock that goes on by a millisecond each time it is read."""

    def seconds(self) -> float:
        """Return the time."""
        self.rightNow += 0.001
        return self.rightNow


class Events:
    """Counts what Python tells of while something runs."""

    def __init__(self) -> None:
        self.calls = 0
        self.instructions = 0

    def count(self, run: Callable[[], object]) -> None:
        """Run it twice with the same effect: once for the calls, once for the instructions."""
        sys.setprofile(self._profile)
        try:
            run()
        finally:
            sys.setprofile(None)
        sys.settrace(self._trace)
        try:
            run()
        finally:
            sys.settrace(None)

    def _profile(self, _frame: FrameType, event: str, _argument: object) -> None:
        self.calls += event in ("call", "c_call")

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        frame.f_trace_opcodes = True
        self.instructions += event == "opcode"
        return self._trace


def requests() -> Iterator[list[bytes]]:
    """Yield the requests about one message after the other, each of an account that has sent before."""
    for number in itertools.count():
        account = f"user{number % 7}@example.com"
        common = {"sasl_username": account, "sender": account, "instance": f"{number:x}.6b03cb6b.435bb.0"}
        rcpts = [
            request(protocol_state="RCPT", recipient=f"r{place}@remote.example", recipient_count=place, **common)
            for place in range(RECIPIENTS)
        ]
        yield [*rcpts, request(protocol_state="DATA", recipient="", recipient_count=RECIPIENTS, **common)]


def connected(rules: Rules) -> tuple[Policy, PolicyProtocol, Transport]:
    """Return a connection over which all accounts have sent a message, and whose changes are noted for a database."""
    policy = Policy(rules, lambda *_: None, lambda now: now)
    policy.accounts.changed = deque()
    policy.history.kept = True
    factory = PolicyFactory(policy, Ticking(), lambda *_: None, layouts=Layouts(None))
    protocol, transport = factory.buildProtocol(None), Transport()
    protocol.makeConnection(transport)
    return policy, protocol, transport


@pytest.mark.parametrize("name", BUDGETS)
def test_a_request_costs_no_more_than_its_budget(name: str) -> None:
    """From the bytes that come in to those that go out, over messages of three recipients."""
    rules, calls, instructions = BUDGETS[name]
    _, protocol, transport = connected(rules)
    messages = requests()
    for message in itertools.islice(messages, 20):
        for asked in message:
            protocol.dataReceived(asked)
    events, coming = Events(), [list(itertools.chain(*itertools.islice(messages, MESSAGES))) for _ in range(2)]
    before, number = transport.sent, len(coming[0])

    def ask() -> None:
        for asked in coming.pop():
            protocol.dataReceived(asked)

    events.count(ask)
    assert transport.sent - before == 2 * number
    assert_within(events.calls / number, calls, "function calls")
    assert_within(events.instructions / number, instructions, "instructions")


COMPILED = (17.3, 423)
"""The same by the house rules where all is compiled but the decision."""


def test_what_is_compiled_leaves_the_decision_to_python() -> None:
    """Nothing else is done by Python's functions and instructions, but what tells the time."""
    answer, (ours, theirs) = compiling.answer(), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    policy, protocol, _ = connected(Rules())
    layout = Layout([name.encode() for name in ATTRIBUTES]).packed
    about = (policy.decide, Ticking().seconds, Request(b""), protocol._connection)
    steps: dict[int, Step] = {ours.fileno(): (None, layout, *about, PASS, PASS.reply)}
    happened, messages, events = [(ours.fileno(), EPOLLIN)], requests(), Events()

    def ask() -> None:
        for _ in range(RECIPIENTS + 1):
            answer(happened, 0, steps)

    def send() -> None:
        for asked in next(messages):
            theirs.send(asked)

    with contextlib.closing(ours), contextlib.closing(theirs):
        for counted in (*[False] * 20, *[True] * MESSAGES):
            send()
            if counted:
                send()
                events.count(ask)
            else:
                ask()
            received = [theirs.recv(100) for _ in range((1 + counted) * (RECIPIENTS + 1))]
            assert set(received) == {PASS.reply}
    number = MESSAGES * (RECIPIENTS + 1)
    assert_within(events.calls / number, COMPILED[0], "function calls")
    assert_within(events.instructions / number, COMPILED[1], "instructions")


def test_an_account_is_copied_for_the_database_within_its_budget() -> None:
    """What of the writing is done between two requests does not grow with what the account has sent."""
    policy, protocol, _ = connected(Rules())
    for message in itertools.islice(requests(), 1000):
        for asked in message:
            protocol.dataReceived(asked)
    account = policy.accounts.peek("user0@example.com", 0.0)
    assert account is not None
    events = Events()
    events.count(lambda: account_record(account, Span(0.0), 0.0))
    assert_within(events.calls, 26, "function calls")
    assert_within(events.instructions, 376, "instructions")


def assert_within(found: float, budget: float, what: str) -> None:
    """Fail where a budget is exceeded, and where it is so wide that it tells nothing."""
    assert found <= budget * MARGIN, f"{found:.1f} {what} of {budget}: what has become slower, and is it worth it?"
    assert found >= budget / SLACK, f"{found:.1f} {what} of {budget}: well done; lower the budget"
