"""Nodes that share a store in a test: policies in memory, and a store that a test takes away and gives back."""

from __future__ import annotations

import json
import traceback
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import unquote

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from policyd.calls import Call, Caller
from policyd.facts import Facts
from policyd.grants import Grants
from policyd.history import Message, Wanted
from policyd.limits import Limit
from policyd.nodes import Nodes
from policyd.registry import Registry
from policyd.resync import Resync
from policyd.shared_calls import AwayError, Calls
from policyd.shared_desk import Cluster, SharedApi, Unshared
from policyd.shared_node import Node, StoreClock
from tests.asking import ANNA, EPOCH, Event, Mail
from tests.turning import TurningClock

Heard = Callable[[bytes, bytes], None]

TRIP = 0.001
"""Seconds until a command is there, and until its reply is back."""


class Shared:
    """What the store has; its clock is ahead of `clock` by `ahead`."""

    def __init__(self, clock: TurningClock, ahead: float = EPOCH) -> None:
        self.clock = clock
        self.ahead = ahead
        self.hashes: dict[str, dict[str, bytes]] = defaultdict(dict)
        self.locks: dict[str, tuple[bytes, float | None]] = {}
        """The accounts' own keys, and when they expire."""
        self.resets: list[str] = []
        """The keys of accounts whose counts were forgotten."""
        self.members: list[Member] = []
        self.listeners: list[tuple[str, Heard, Link]] = []
        self.commands: list[str] = []
        """The names of all that was to be done, but for what is done each second."""

    def do(self, *words: bytes) -> object:
        """Carry out a command."""
        name, *rest = (word.decode() for word in words)
        if name != "TIME" and rest[0] != "policyd:nodes":
            self.commands.append(name)
        carry_out: Callable[..., object] = getattr(self, f"_{name.lower()}")
        return carry_out(*rest)

    def index(self) -> dict[str, dict[str, Any]]:
        """Return the index of locks."""
        return {name: json.loads(text) for name, text in self.hashes["policyd:locks"].items()}

    def lose_all(self) -> None:
        """Start anew, without data."""
        self.hashes.clear()
        self.locks.clear()

    def _time(self) -> list[bytes]:
        now = self.clock.seconds() + self.ahead
        return [b"%d" % now, b"%d" % (now % 1 * 1e6)]

    def _get(self, key: str) -> bytes | None:
        text, ends = self.locks.get(key, (None, None))
        return None if ends is not None and ends <= self.clock.seconds() else text

    def _hget(self, key: str, field: str) -> bytes | None:
        return self.hashes[key].get(field)

    def _hset(self, key: str, field: str, value: str) -> int:
        self.hashes[key][field] = value.encode()
        return 1

    def _hdel(self, key: str, *fields: str) -> int:
        return sum(self.hashes[key].pop(field, None) is not None for field in fields)

    def _hgetall(self, key: str) -> list[bytes]:
        return [part for field, value in self.hashes[key].items() for part in (field.encode(), value)]

    def _hscan(self, key: str, cursor: str, _count: str, most: str) -> list[object]:
        start = int(cursor)
        some = list(islice(self.hashes[key].items(), start, start + int(most)))
        following = start + len(some) if start + len(some) < len(self.hashes[key]) else 0
        return [b"%d" % following, [part for field, value in some for part in (field.encode(), value)]]

    def _publish(self, channel: str, message: str) -> int:
        for wanted, heard, link in list(self.listeners):
            if wanted == channel and link.listens:
                self.clock.callLater(TRIP, heard, channel.encode(), message.encode())
        return len(self.listeners)

    def _evalsha(self, _sha: str, number: str, *rest: str) -> object:
        keys, (operation, _now, *values) = rest[: int(number)], rest[int(number) :]
        own = next(key for key in keys if key.endswith(":l"))
        if operation == "show":
            return self._shown(own, [value.rpartition(" ")[2].partition(":")[0] for value in values])
        before = self.locks.get(own, (None, None))[0]
        if operation == "lock":
            text, milliseconds = values
            ends = self.clock.seconds() + int(milliseconds) / 1000 if milliseconds else None
            self.locks[own] = text.encode(), ends
        else:
            self.resets.append(own)
            if operation == "unlock":
                self.locks.pop(own, None)
        return before

    def _shown(self, own: str, limits: Sequence[str]) -> list[object]:
        """Return an account's lock, and what the nodes have counted together: the windows of each have its own part."""
        name = unquote(own[own.index("{") + 1 : own.index("}")])
        reply: list[object] = [self._get(own)]
        for limit in limits:
            windows = [
                shown for node in self.members for shown in node.account(name)["limits"] if shown["name"] == limit
            ]
            reply += [sum(shown["count"] for shown in windows), 1_000_000]
        return reply


class Link:
    """One node's way to the store."""

    def __init__(self, shared: Shared) -> None:
        self.here = True
        self.listens = True
        """Whether news come."""
        self.slow = 0.0
        """Seconds that each trip takes longer."""
        self._shared = shared

    def call(self, command: bytes) -> Deferred[object]:
        """Carry out a call of the script."""
        return self._carried_out(*command.split(b"\r\n")[2::2])

    def command(self, *words: bytes | str | float) -> Deferred[object]:
        """Carry out another command."""
        return self._carried_out(*(word if isinstance(word, bytes) else str(word).encode() for word in words))

    def subscribe(self, channels: Sequence[str], heard: Heard) -> None:
        """Hear what is published."""
        self._shared.listeners += [(channel, heard, self) for channel in channels]

    def _carried_out(self, *words: bytes) -> Deferred[object]:
        if not self.here:
            return fail(AwayError("it is away"))
        done: Deferred[object] = Deferred()
        self._shared.clock.callLater(TRIP + self.slow, self._arrived, done, words)
        return done

    def _arrived(self, done: Deferred[object], words: Sequence[bytes]) -> None:
        if not self.here:
            done.errback(AwayError("it went away"))
            return
        reply = self._shared.do(*words)
        self._shared.clock.callLater(TRIP, done.callback, reply)


class Sharer(Mail):
    """A node with all that it shares: `events` has what it tells people of, `logged` what came from other nodes."""

    def __init__(self, clock: Any, link: Any, name: str, *limits: Limit, run: str = "", wall_offset: float) -> None:
        self.clock = clock
        self.link = link
        self.facts = Facts()
        self.logged: list[Event] = []
        self.bugs: list[str] = []
        self.forgotten: list[str] = []
        self.listed: list[Message] = []
        """The history."""
        self._began = False
        super().__init__(*limits)
        self.wall_offset = wall_offset
        self.node = Node(
            "policyd",
            name,
            run or f"run-{name}",
            self.policy,
            link,
            Calls("policyd", name),
            StoreClock(self.to_wall),
            clock,
            lambda word, fields: self.logged.append(Event(word, fields)),
            self._bug,
            self.facts,
        )
        self.registry = Registry(self.node, self.forgotten.append)
        self.grants = Grants(self.node)
        self.resync = Resync(self.node, self.registry, self.grants)
        self.nodes = Nodes(
            self.node, lambda: {"version": "1", "script": "abc", "started": 0.0, "listen": ["tcp:10045"]}
        )
        cluster = Cluster(
            self.node, self.registry, self.grants, self.resync, self.nodes, "redis://x", str, lambda: Unshared(0, 0)
        )
        self.api = SharedApi(self.desk, self._reload, self._find, None, cluster)
        self._began = True

    @property
    def channels(self) -> list[str]:
        """The channels to listen to."""
        return ["policyd:news", *self.api.gathering.channels]

    def heard(self, channel: bytes, message: bytes) -> None:
        """Take in what was published."""
        if channel == b"policyd:news":
            self.resync.heard(message)
        else:
            self.api.gathering.heard(channel, message)

    @property
    def now(self) -> float:
        """The time that has passed."""
        return float(self.clock.seconds())

    @now.setter
    def now(self, value: float) -> None:
        """Let time pass."""
        if (seconds := value - self.clock.seconds()) > 0:
            self.clock.advance(seconds)

    def tick(self) -> None:
        """Do what the daemon does each second."""
        self.policy.locks.expire(self.now)
        self.policy.allowing.expire(self.now)
        self.nodes.tick()
        self.resync.tick()

    def asked(self, method: str, path: str, **values: Any) -> list[Any]:
        """Make a call of the control socket; what it gives, or how it fails, is in the list when it is there."""
        call = Call(values, Caller("desk", 1000), self.now)
        found, done = self.api.answer(method.encode(), path.encode(), call), list[Any]()
        if isinstance(found, Awaitable):
            Deferred.fromCoroutine(found).addCallback(_text).addBoth(done.append)  # type: ignore[arg-type]  # it is one
        else:
            done.append(_text(found))
        return done

    async def _reload(self, _by: str, _uid: int | None) -> tuple[list[str], list[str]]:
        return [], []

    async def _find(self, wanted: Wanted) -> list[Message]:
        found = [message for message in self.listed if wanted.account in (None, message.account)]
        return found[: wanted.most]

    def elsewhere(self, word: str) -> list[Mapping[str, object]]:
        """Return the fields of the events of this word that came from other nodes."""
        return [event.fields for event in self.logged if event.word == word]

    def why(self, user: str = ANNA) -> str | None:
        """Return the reason of an account's lock; None: it is free."""
        lock = self.account(user)["lock"]
        return None if lock is None else str(lock["reason"])

    def _report(self, word: str, fields: Mapping[str, object]) -> None:
        if not self._began:
            return
        if self.registry.noted(word, fields):
            super()._report(word, fields)
        self.grants.noted(word, fields)

    def _bug(self) -> None:
        self.bugs.append(traceback.format_exc())


class Member(Sharer):
    """A node of a store that is played; its wall clock is ahead of the true time by `skew`."""

    clock: TurningClock
    link: Link

    def __init__(self, shared: Shared, name: str, *limits: Limit, run: str = "", skew: float = 0.0) -> None:
        self.shared = shared
        super().__init__(shared.clock, Link(shared), name, *limits, run=run, wall_offset=EPOCH + skew)
        shared.members.append(self)
        self.link.subscribe(self.channels, self.heard)

    def call(self, method: str, path: str, patience: float = 3.0, **values: Any) -> Any:
        """Return what a call of the control socket gives, within some seconds."""
        done = self.asked(method, path, **values)
        for _ in range(round(patience * 200)):
            if done:
                break
            self.clock.advance(0.005)
        (found,) = done
        if isinstance(found, Failure):
            found.raiseException()
        return found

    def away(self) -> None:
        """Lose the store."""
        self.link.here = self.link.listens = False

    def back(self) -> None:
        """Find the store again."""
        self.link.here = self.link.listens = True
        self.resync.look()


def _text(found: Any) -> Any:
    return json.loads("".join(found)) if isinstance(found, Iterator) else found


def members(number: int, *limits: Limit, clock: TurningClock | None = None) -> tuple[Shared, list[Member]]:
    """Return a store and nodes that have just found it."""
    shared = Shared(clock or TurningClock())
    nodes = [Member(shared, f"mail{place}", *limits) for place in range(1, number + 1)]
    pass_time(nodes, 3)
    return shared, nodes


def pass_time(nodes: Sequence[Member], seconds: float = 0.5) -> None:
    """Let so much time pass, in hundredths of a second; each full second all nodes do what they do each second."""
    clock = nodes[0].clock
    for _ in range(round(seconds * 100)):
        before = int(clock.seconds())
        clock.advance(0.01)
        if int(clock.seconds()) > before:
            for node in nodes:
                node.tick()
