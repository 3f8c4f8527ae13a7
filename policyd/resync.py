"""What the nodes tell each other of locks and allowances, and looking through all that the store has of them.

News come at once; the look mends what was missed: when the store is back, when news can be heard again, and now and
then. It is done in pieces, between which requests are answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import deferLater

from policyd.decisions import MAX_TEXT, value_of
from policyd.grants import Grants
from policyd.outbox import all_of
from policyd.registry import Registry
from policyd.shared_calls import AwayError
from policyd.shared_node import Node

EVERY = 300.0
"""Seconds between two looks, where nothing else is a reason for one."""

PIECE = 50
"""Records, or messages, that are looked at in one turn."""

ASKED = 100
"""Records for which the store is asked at a time, about."""

Fields = list[tuple[str, str]]
"""Fields of a hash, and what they hold."""

MAX_NEWS = 10_000
MAX_LENGTH = 16 * 1024 * 1024
"""Messages that wait to be read, and their bytes; where more come they are dropped, and all is looked through instead.
"""

LOCK_NEWS = ("lock", "unlock", "reset")
ALLOWANCE_NEWS = ("allow", "disallow")


class Resync:
    """Keeps the locks and allowances here the same as those in the store."""

    def __init__(self, node: Node, registry: Registry, grants: Grants) -> None:
        self.malformed = 0
        """Messages that make no sense."""
        self._registry = registry
        self._grants = grants
        self._node = node
        self._reactor = node.reactor
        self._news: deque[str | bytes] = deque()
        self._length = 0
        """Bytes of those that wait."""
        self._reading = False
        self._looking = False
        self._looked = node.reactor.seconds()
        """When all was looked through last."""
        self._wanted = True
        """Whether all is to be looked through as soon as that can be done."""

    def look(self) -> None:
        """Have all looked through: the store is back, or news can be heard again."""
        self._wanted = True
        self.tick()

    def tick(self) -> None:
        """Do what is due: to be called each second."""
        self._registry.orders.go()
        self._grants.orders.go()
        if self._reactor.seconds() - self._looked >= EVERY:
            self._wanted = True
        if self._wanted and not self._looking and self._node.store.here:
            self._wanted, self._looking = False, True
            Deferred.fromCoroutine(self._look())

    def lost(self) -> None:
        """Write all that is in force here again: the store has lost its data."""
        Deferred.fromCoroutine(self._write_again())

    def heard(self, message: str | bytes) -> None:
        """Take in a message of the channel of news."""
        if len(message) > MAX_TEXT:
            self.malformed += 1
            return
        if len(self._news) >= MAX_NEWS or self._length + len(message) > MAX_LENGTH:
            self._news.clear()
            self._length = 0
            self._wanted = True
        self._news.append(message)
        self._length += len(message)
        if not self._reading:
            self._reading = True
            self._reactor.callLater(0, self._read)

    def _read(self) -> None:
        """Read some of the messages, and the others in the turns that follow."""
        for _ in range(min(PIECE, len(self._news))):
            try:
                message = self._news.popleft()
                self._length -= len(message)
                self._take_in(message)
            except (ValueError, KeyError):
                self.malformed += 1
            except Exception:  # whatever it is, the other messages must be read
                self._node.bug()
        self._reading = bool(self._news)
        if self._reading:
            self._reactor.callLater(0, self._read)

    def _take_in(self, message: str | bytes) -> None:
        value = value_of(message)
        if value["run"] == self._node.run:
            return
        if value["what"] in LOCK_NEWS:
            self._registry.news(value)
        elif value["what"] in ALLOWANCE_NEWS:
            self._grants.news(value)
        else:
            raise ValueError("another version's news")

    async def _look(self) -> None:
        try:
            for table in (self._registry, self._grants):
                table.round += 1
            await self._through("locks", self._compare_locks)
            await self._step_by_step(self._registry.unseen())
            await self._through("allowances", self._compare_allowances)
            await self._step_by_step(self._grants.unseen())
            self._looked = self._reactor.seconds()
        except AwayError:
            self._wanted = True
        except Exception:  # the next look tries again
            self._node.bug()
        finally:
            self._looking = False

    async def _write_again(self) -> None:
        try:
            await self._step_by_step(self._registry.lost())
            await self._step_by_step(self._grants.lost())
        except Exception:  # the next look finds what is missing
            self._node.bug()

    async def _step_by_step(self, steps: Iterator[None]) -> None:
        """Take so many steps in each turn."""
        while sum(1 for _ in islice(steps, PIECE)) == PIECE:
            await deferLater(self._reactor, 0)

    async def _through(self, name: str, compare: Callable[[Fields], Awaitable[None]]) -> None:
        """Look through a hash in the store, some fields in each turn; raises AwayError."""
        key, cursor = self._node.key(name), "0"
        while True:
            ((told, flat),) = await all_of([self._node.store.command("HSCAN", key, cursor, "COUNT", ASKED)])
            texts = [_text(each) for each in flat]
            fields = list(zip(texts[::2], texts[1::2], strict=True))
            for start in range(0, len(fields), PIECE):
                await compare(fields[start : start + PIECE])
                await deferLater(self._reactor, 0)
            cursor = _text(told)
            if cursor == "0":
                return

    async def _compare_locks(self, fields: Fields) -> None:
        """Compare some of the index with what is in force here, and with the accounts' own keys where it differs."""
        registry, over, odd = self._registry, [], []
        for field, text in fields:
            decision = registry.decided(text)
            if decision is None or decision.account in registry.orders:
                continue
            known = registry.known.get(decision.account)
            if registry.is_over(decision):
                over.append(field)
            elif known is not None and known.text == hash(text):
                known.seen = registry.round
            else:
                odd.append((field, text, decision))
        owns: list[tuple[bool, Any]] = await DeferredList(
            [self._node.store.command("GET", self._node.own_lock(each.account)) for *_, each in odd], consumeErrors=True
        )
        for (field, text, decision), (read, own) in zip(odd, owns, strict=True):
            if not read and not self._node.store.here:
                raise AwayError("the store has gone")
            if own is not None:
                # Where something else than a lock is under the account's own key, the index is all that there is.
                await self._mend(field, text, _text(own) if read else text)
            elif not registry.doubt_named(decision.account) and decision.lock is not None:
                over.append(field)
        if over:
            await self._node.store.command("HDEL", self._node.key("locks"), *over)

    async def _mend(self, field: str, text: str, mended: str) -> None:
        """Put in force what stands, and write it to the index where that has something else."""
        self._registry.read(mended, self._reactor.seconds())
        if mended != text:
            await self._node.store.command("HSET", self._node.key("locks"), field, mended)

    async def _compare_allowances(self, fields: Fields) -> None:
        over = []
        for field, text in fields:
            grant, now = self._grants.granted(text), self._reactor.seconds()
            if grant is None:
                continue
            if self._grants.is_over(grant, now):
                over.append(field)
            else:
                self._grants.compare(grant, text, now)
        if over:
            await self._node.store.command("HDEL", self._node.key("allowances"), *over)


def _text(found: str | bytes) -> str:
    """Return what the store has as text; all that is written is ASCII."""
    return found if isinstance(found, str) else found.decode(errors="replace")
