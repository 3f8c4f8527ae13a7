"""Asking all nodes at once, through the store, and gathering what they answer.

A question goes out on one channel, the answers come back on the asking node's own, in parts. Each question is answered
in pieces, between which requests are; what nobody waits for, or makes no sense, is left alone and counted.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred

from policyd.decisions import value_of
from policyd.outbox import all_of
from policyd.shared_calls import AwayError
from policyd.shared_node import Node
from policyd.survey import Json
from policyd.turns import Turns

PATIENCE = 0.5
"""Seconds within which a node has to have answered, or to have sent the next part."""

LONGEST = 5.0
"""Seconds within which it has to have sent all."""

PART = 64 * 1024
"""Characters of an answer's part, roughly: a row may be longer."""

MAX_PART = 1024 * 1024
"""Characters of what is taken for one."""

MAX_ANSWER = 64 * 1024 * 1024
"""Characters of all that a node answers to one question."""

MAX_QUESTIONS = 100
"""Questions that wait to be answered here; for one more the asker has to do without this node."""

MAX_ID = 100
"""Characters of a question's name, of its kind, and of what names a run of a daemon."""

MAX_NODE = 253
"""Characters of a node's name."""

Rows = list[Any]
Answer = Callable[[Json], "Iterator[Rows] | Awaitable[Iterator[Rows]]"]
"""Answers a question, with a bounded piece of work for each part; raises ValueError where it makes no sense."""


class Gathered(NamedTuple):
    """What the nodes have answered."""

    rows: Mapping[str, Rows]
    """By node; this one comes first."""
    silent: tuple[str, ...]
    """The nodes that have not answered in time."""


@dataclass(slots=True)
class _Asked:
    """A question that waits for answers."""

    missing: set[str]
    """The nodes that have not sent all yet."""
    ends: float
    done: Deferred[None] = field(default_factory=Deferred)
    rows: dict[str, Rows] = field(default_factory=dict)
    """What has come so far."""
    length: dict[str, int] = field(default_factory=dict)
    parts: int = 0


class Gathering:
    """Questions to all nodes; `names` returns those that are there, `answers` what this one answers to each kind."""

    def __init__(self, node: Node, names: Callable[[], Iterable[str]], answers: Mapping[str, Answer]) -> None:
        self.malformed = 0
        """Messages that make no sense."""
        self._node = node
        self._names = names
        self._answers = answers
        self._turns = Turns(node.reactor)
        self._asked: dict[str, _Asked] = {}
        self._number = 0
        self._answering = 0

    @property
    def channels(self) -> tuple[str, str]:
        """The channels to listen to: for questions, and for answers."""
        return self._node.channel("ask"), self._node.channel(f"answer:{self._node.name}")

    def expected(self) -> list[str]:
        """Return the names of the nodes that are asked, this one first."""
        return [self._node.name, *(name for name in self._names() if name != self._node.name)]

    async def ask(self, what: str, value: Json) -> Gathered:
        """Return what the nodes answer; this one alone, where the store is away. Raises what answering here raises."""
        node, others = self._node, self.expected()[1:]
        asked = _Asked(set(others), node.reactor.seconds() + LONGEST)
        self._number += 1
        name = f"{node.run}.{self._number}"
        self._asked[name] = asked
        try:
            question = json.dumps({**value, "what": what, "id": name, "node": node.name, "run": node.run})
            if others:
                await self._publish(self.channels[0], question, asked)
            rows: Rows = []
            await self._worked_off(what, value, partial(_put, rows))
            await self._wait(asked)
        finally:
            del self._asked[name]
        answered = {other: asked.rows[other] for other in others if other not in asked.missing}
        return Gathered({node.name: rows, **answered}, tuple(sorted(asked.missing)))

    def heard(self, channel: bytes, message: bytes) -> None:
        """Take in a question or an answer."""
        try:
            text = message.decode()
            if channel.decode() == self.channels[0]:
                self._question(value_of(text))
            else:
                self._part(text)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            self.malformed += 1

    async def _publish(self, channel: str, text: str, asked: _Asked) -> None:
        """Ask the others; nobody answers while the store is away."""
        try:
            await all_of([self._node.store.command("PUBLISH", channel, text)])
        except AwayError:
            asked.ends = 0.0

    async def _wait(self, asked: _Asked) -> None:
        """Wait until all have sent all, or no more comes in time."""
        seconds = self._node.reactor.seconds
        while asked.missing and seconds() < asked.ends:
            parts, asked.done = asked.parts, Deferred()
            late = self._node.reactor.callLater(min(PATIENCE, asked.ends - seconds()), asked.done.callback, None)
            await asked.done
            if late.active():
                late.cancel()
            if asked.parts == parts:
                return

    def _part(self, text: str) -> None:
        """Take in a part of an answer."""
        if len(text) > MAX_PART:
            raise ValueError("too long a part")
        value = json.loads(text)
        asked, name, rows = self._asked.get(value["id"]), value["node"], value["rows"]
        if asked is None or name not in asked.missing:
            return  # it comes too late
        if not isinstance(rows, list) or not isinstance(value["last"], bool):
            raise ValueError("no rows")  # noqa: TRY004 -- it is the text that is wrong
        asked.length[name] = asked.length.get(name, 0) + len(text)
        if asked.length[name] > MAX_ANSWER:
            raise ValueError("too long an answer")
        asked.rows.setdefault(name, []).extend(rows)
        asked.parts += 1
        if value["last"]:
            asked.missing.discard(name)
        if not asked.done.called:
            asked.done.callback(None)

    def _question(self, value: Json) -> None:
        if value["run"] == self._node.run:
            return
        known = [value[name] for name in ("what", "id", "node", "run")]
        most = (MAX_ID, MAX_ID, MAX_NODE, MAX_ID)
        if not all(isinstance(each, str) and len(each) <= length for each, length in zip(known, most, strict=True)):
            raise ValueError("no question")
        if value["what"] not in self._answers or self._answering >= MAX_QUESTIONS:
            self.malformed += value["what"] not in self._answers
            return
        self._answering += 1
        Deferred.fromCoroutine(self._answer(value))

    async def _answer(self, question: Json) -> None:
        try:
            texts = await self._worked_off(question["what"], question, _listed)
            for part, last in _parts(texts):
                head = json.dumps({"id": question["id"], "node": self._node.name, "last": last})
                message = f'{head[:-1]}, "rows": [{part}]}}'
                channel = self._node.channel(f"answer:{question['node']}")
                await all_of([self._node.store.command("PUBLISH", channel, message)])
        except AwayError:
            pass  # whoever asked is told so, too
        except (ValueError, LookupError, TypeError):
            self.malformed += 1
        except Exception:  # a bug of ours, whatever it is
            self._node.bug()
        finally:
            self._answering -= 1

    async def _worked_off(self, what: str, value: Json, take: Callable[[Rows], str]) -> list[bytes]:
        """Answer a question, and return what `take` makes of each part."""
        found = self._answers[what](value)
        if isinstance(found, Awaitable):
            found = await found
        return await self._turns.take(map(take, found), order=False)


def _put(rows: Rows, some: Rows) -> str:
    rows.extend(some)
    return ""


def _listed(rows: Rows) -> str:
    return json.dumps(rows) if rows else ""


def _parts(texts: Iterable[bytes]) -> Iterator[tuple[str, bool]]:
    """Yield lists' texts together, without their brackets, and whether each part is the last."""
    part: list[str] = []
    length = 0
    for text in texts:
        if length > PART:
            yield ", ".join(part), False
            part, length = [], 0
        part.append(text.decode()[1:-1])
        length += len(text)
    yield ", ".join(part), True


def shaped(rows: Rows, *kinds: type) -> Rows:
    """Return those of an answer's rows that are lists of values of these types."""
    return [row for row in rows if isinstance(row, list) and tuple(map(type, row)) == kinds]
