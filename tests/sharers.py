"""Nodes that share a store, for tests: each is a Mail whose policy asks the store before it counts.

The store is the model, or a real server that is told the test's time. A test says what becomes of calls: `node.net`
carries them out at once, late, or not at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from policyd import shared_calls, transactions
from policyd.accounts import Account
from policyd.catching_up import KEEP, Store
from policyd.limits import Limit, Limits, Rules
from policyd.shared_calls import AwayError, Calls, Outcome, Target
from policyd.sharing import Sharing
from policyd.transactions import Connection
from policyd.verdict import PASS, Verdict
from policyd.wire import Request
from tests.asking import Mail
from tests.store_model import ModelCalls, StoreModel
from tests.stores import Client, StoreError

LOCKED = "locked"
"""What the store has as the text of any lock: the nodes of these tests know their locks themselves."""


class Server(Protocol):
    """A store, model or real."""

    def calls(self, node: str) -> Calls:
        """Return what packs the calls of a node."""

    def say(self, command: bytes) -> object:
        """Carry out a call, and return its reply."""

    def read(self, reply: object) -> Outcome:
        """Understand a reply."""


class Model:
    """A StoreModel as a server."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.store = StoreModel(clock)
        self.say = self.store.say

    def calls(self, node: str) -> Calls:
        """Return what packs the calls of a node."""
        return ModelCalls(self.store, node)

    def read(self, reply: object) -> Outcome:
        """Understand a reply."""
        if not isinstance(reply, Outcome):
            raise ValueError(repr(reply))  # noqa: TRY004 -- as shared_calls.outcome
        return reply


class TimedCalls(Calls):
    """Calls that tell the store the time of the test."""

    def __init__(self, prefix: str, node: str, clock: Callable[[], float]) -> None:
        super().__init__(prefix, node)
        self._clock = clock

    def settle(
        self,
        account: str,
        limits: Limits,
        instance: bytes,
        target: Target,
        *,
        force: bool = False,
        ago: float = 0.0,
        now: float | None = None,
    ) -> bytes:
        """Have a transaction stand at a target."""
        return super().settle(account, limits, instance, target, force=force, ago=ago, now=self._clock())

    def refill(
        self,
        account: str,
        limits: Limits,
        runs: Sequence[tuple[int, Sequence[float], Sequence[int | bytes]]],
        now: float | None = None,
    ) -> bytes:
        """Tell what a node has counted."""
        return super().refill(account, limits, runs, self._clock())


class Real:
    """A real server, whose keys begin with `prefix`."""

    def __init__(self, client: Client, prefix: str, clock: Callable[[], float]) -> None:
        self._client, self._prefix, self._clock = client, prefix, clock
        self.read = shared_calls.outcome

    def calls(self, node: str) -> Calls:
        """Return what packs the calls of a node."""
        return TimedCalls(self._prefix, node, self._clock)

    def say(self, command: bytes) -> object:
        """Carry out a call, and return its reply."""
        try:
            return self._client.say(command)
        except StoreError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            return self._client.say(Calls.evaluated(command))


class Net:
    """What lies between a node and the store."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.here = True
        self.late = False
        """Whether calls wait until `deliver`."""
        self.fate: deque[str] = deque()
        """What becomes of the next calls: "" carried out; "unheard" carried out, and the reply is lost; "lost";
        "bug" an exception."""
        self.wrong: Callable[[bytes], bool] = lambda _command: False
        """Tells which calls fail though the store is here, as those do that find wrong data under their keys."""
        self.waiting: deque[tuple[bytes, Deferred[object]]] = deque()
        self.made = 0
        self.on_away: Callable[[], None] = lambda: None
        """Is called before a call fails that was made while the store was here, as the link does."""

    def call(self, command: bytes) -> Deferred[object]:
        """Send a call."""
        self.made += 1
        fate = self.fate.popleft() if self.fate else ""
        if fate == "bug":
            raise RuntimeError("oops")
        if self.here and self.wrong(command):
            return fail(AwayError("it says WRONGTYPE"))
        if self.here and fate == "unheard":
            self.server.say(command)
        if not self.here or fate:
            self.on_away()
            return fail(AwayError("lost"))
        if self.late:
            reply: Deferred[object] = Deferred()
            self.waiting.append((command, reply))
            return reply
        return succeed(self.server.say(command))

    def deliver(self, *, reply: bool = True, carry_out: bool = True) -> None:
        """Have the call that has waited longest carried out, and answered."""
        command, waiting = self.waiting.popleft()
        value = self.server.say(command) if carry_out else None
        if reply and carry_out:
            waiting.callback(value)
        else:
            waiting.errback(AwayError("late"))

    def go_away(self) -> None:
        """Be away: what waits is not answered."""
        self.here = False
        while self.waiting:
            self.deliver(carry_out=False)


class Node(Mail):
    """A node."""

    def __init__(
        self,
        *limits: Limit,
        rules: Rules | None = None,
        data_seen: bool = True,
        server: Callable[[Callable[[], float]], Server] = Model,
        name: str = "one",
    ) -> None:
        self._now = 10_000.0
        self._open: dict[Connection, None] = {}
        self.server = server(lambda: self._now)
        self.net = Net(self.server)
        self.calls = self.server.calls(name)
        self.turns: deque[Callable[[], None]] = deque()
        self.bugs: list[str] = []
        self.mirrored: list[str | None] = []
        super().__init__(*limits, rules=rules, data_seen=False)
        store = Store(
            self.calls, self.net.call, lambda: self.net.here, self.server.read, self.turns.append, lambda: self.now
        )
        self.sharing = Sharing(self.policy, store, self._mirror, self._report, b"run", self._bug)
        self.late: list[Verdict] = []
        if data_seen:
            self.connection(user="").ask(protocol_state="DATA", client_address="", instance="")
            self.events.clear()

    @property
    def now(self) -> float:
        """What its clock shows."""
        return self._now

    @now.setter
    def now(self, now: float) -> None:
        """Let time go by, with all that is done from time to time."""
        while self._now < now:
            self._now = min(now, self._now + KEEP)
            self.sharing.catching_up.tick(lambda: list(self._open))

    def decide(self, asked: Request, connection: transactions.Connection) -> Verdict:
        """Return the verdict on a request; the store has to answer at once."""
        self._open[connection] = None
        verdict = self.sharing.decide(asked, connection, self.now, self.late.append)
        assert verdict is not None
        return verdict

    def leave(self, connection: Connection) -> None:
        """End a connection."""
        self._open.pop(connection, None)
        self.sharing.leave(connection, self.now)

    def go_on(self) -> None:
        """Do what was put off to the next turns."""
        while self.turns:
            self.turns.popleft()()

    def _report(self, word: str, fields: Mapping[str, object]) -> None:
        """Tell the store of locks, as the registry does."""
        super()._report(word, fields)
        name = str(fields.get("account"))
        if word == "lock":
            self.net.call(self.calls.lock(name, LOCKED, None))  # it is freed when its time is over here
        elif word in ("unlock", "reset"):
            self.sharing.catching_up.forget(name)
            self.net.call(self.calls.unlock(name) if word == "unlock" else self.calls.reset(name))

    def _mirror(self, _account: Account, text: str | None, _now: float) -> None:
        self.mirrored.append(text)

    def _bug(self) -> Verdict:
        self.bugs.append(Failure().getTraceback())
        return PASS
