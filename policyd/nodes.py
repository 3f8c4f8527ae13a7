"""The nodes: each says once a second that it is there, and sees who else is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeGuard

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from policyd.decisions import LATEST, value_of
from policyd.locks import utc
from policyd.outbox import all_of
from policyd.shared_calls import AwayError
from policyd.shared_node import Node
from policyd.survey import Json

COUNTED = 10.0
"""Seconds within which a node has to have been heard to be one of those that share now."""

SILENT = 5.0
"""Seconds after which a node is said to be silent."""

FORGOTTEN = 3600.0
"""Seconds after which a silent node is forgotten."""

MAX_NODES = 1000
"""Nodes that are looked at; the others are left out."""

MAX_FIELD = 1000
"""Characters of what a node says of itself that are shown."""


NUMBER = "nodes"
"""The kind of fact that tells how many nodes there are."""


class Entry(NamedTuple):
    """What a node says of itself."""

    name: str
    run: str
    heard: float
    """By the store's clock, seconds since the epoch."""
    told: Mapping[str, Any]

    def away(self, now: float) -> float:
        """Return how far off it is, in seconds; the store's clock may be behind the one by which it was written."""
        return abs(now - self.heard)

    def shown(self, now: float) -> Json:
        """Return it for the desk; `now` is when it was looked at, by the store's clock."""
        started = self.told.get("started")
        return {
            "node": self.name,
            **{name: str(self.told.get(name, ""))[:MAX_FIELD] for name in ("version", "script", "run")},
            "started": utc(started) if _is_time(started) else None,
            "listen": [str(each)[:MAX_FIELD] for each in self.told.get("listen", ())][:MAX_NODES],
            "database": str(self.told.get("database", ""))[:MAX_FIELD],
            "heard": utc(self.heard),
            "silent": self.away(now) > SILENT,
        }


class Nodes:
    """All nodes.

    `facts` returns what this one says of itself: version, script, started (seconds since the epoch), listen, database.
    """

    def __init__(self, node: Node, facts: Callable[[], Json]) -> None:
        self.malformed = 0
        """Entries that make no sense, at the last look."""
        self._node = node
        self._facts = facts
        self._entries: list[Entry] = []
        self._looked = 0.0
        """When they were looked at last, by the store's clock."""
        self._busy = False
        self._left = False
        """Whether this node is about to end."""
        self._written = False
        self._twin: tuple[float, Entry] | None = None
        """When a daemon of this node's name was seen last, and what it says of itself."""

    def tick(self) -> None:
        """Say that this node is there, and see who else is: to be called each second."""
        if not (self._busy or self._left) and self._node.store.here:
            self._busy = True
            Deferred.fromCoroutine(self._look())

    def leave(self) -> None:
        """Say that this node is there no more, if the store can be told; the others wait for no answer of it then."""
        self._left = True
        self._node.store.command("HDEL", self._node.key("nodes"), self._node.name).addErrback(_unheard)

    def now(self) -> int:
        """Return how many nodes share by what was known last, before a restart if need be; this one included."""
        known = self._node.facts.get(NUMBER) or ""
        if not self._entries and known.isdecimal():
            return int(known)
        return self._sharing()

    def fresh(self) -> list[str]:
        """Return the names of the nodes that share, by what was known last."""
        return [entry.name for entry in self._entries if entry.away(self._looked) <= COUNTED]

    def problem(self) -> str:
        """Return what is wrong among the nodes, in a sentence; "" when all is well."""
        if self._twin is None or self._node.reactor.seconds() - self._twin[0] > COUNTED:
            return ""
        where = " ".join(self._twin[1].shown(0.0)["listen"])
        return (
            f"another daemon, which listens on {where or 'no endpoint'}, calls itself {self._node.name} in the cluster "
            "as well: give each its own name (`node` under `cluster` in the config), and restart it"
        )

    def shown(self) -> list[Json]:
        """Return all nodes for the desk, in the order of their names."""
        return [entry.shown(self._looked) for entry in self._entries]

    def _sharing(self) -> int:
        return 1 + sum(name != self._node.name for name in self.fresh())

    async def _look(self) -> None:
        try:
            await self._see()
        except AwayError:
            pass  # the link says so
        except Exception:  # the next second tries again
            self._node.bug()
        finally:
            self._busy = False

    async def _see(self) -> None:
        node, key = self._node, self._node.key("nodes")
        asked = node.reactor.seconds()
        (seconds, micros), flat = await all_of([node.store.command("TIME"), node.store.command("HGETALL", key)])
        if self._left:
            return
        now = node.reactor.seconds()
        node.clock.learn(int(seconds) + int(micros) / 1e6, (asked + now) / 2)
        self._looked = node.clock.at(now)
        found = [_entry(*pair) for pair in zip(flat[::2], flat[1::2], strict=True)][:MAX_NODES]
        self.malformed = found.count(None)
        others = [entry for entry in found if entry is not None and not self._is_of_our_name(entry, now)]
        gone = [entry.name for entry in others if entry.away(self._looked) > FORGOTTEN]
        own = Entry(node.name, node.run, self._looked, self._facts())
        kept = [entry for entry in others if entry.name not in gone]
        self._entries = sorted([*kept, own], key=lambda entry: entry.name)
        node.facts.put(NUMBER, "", str(self._sharing()))
        text = json.dumps({**own.told, "run": own.run, "heard": own.heard})
        writes = [node.store.command("HSET", key, node.name, text)]
        if gone:
            writes.append(node.store.command("HDEL", key, *gone))
        await all_of(writes)
        self._written = True

    def _is_of_our_name(self, entry: Entry, now: float) -> bool:
        """Tell whether an entry is of this node; if another daemon has written it since this one did, note that."""
        if entry.name != self._node.name:
            return False
        if entry.run != self._node.run and self._written:
            self._twin = now, entry
        return True


def _entry(name: bytes, text: bytes) -> Entry | None:
    """Return what a node says of itself; None for what no policyd can have said."""
    try:
        value = value_of(text)
        heard, run = value["heard"], value["run"]
        if not _is_time(heard) or not isinstance(run, str):
            return None
        if not isinstance(value.get("listen", []), list):
            return None
        return Entry(name.decode()[:MAX_FIELD], run, heard, value)
    except (ValueError, KeyError):
        return None


def _unheard(failure: Failure) -> None:
    """Leave it at that where the store cannot be told."""
    failure.trap(AwayError)


def _is_time(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and 0 <= value <= LATEST
