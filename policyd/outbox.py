"""What this node has decided and the store does not know yet: it waits here, the latest decision on each thing alone.

While the store is away nothing is sent; when it is back all is, some at a time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable
from itertools import islice
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from policyd.shared_calls import AwayError

MAX_WAITING = 200_000
"""Decisions that wait at the most, beyond what is in force here; for one more the oldest is lost."""

MAX_REMEMBERED = 10_000
"""Accounts, and allowances, of which it is remembered when they were freed, or taken back."""

AT_ONCE = 50
"""Decisions that are on their way at a time."""

Key = TypeVar("Key", bound=Hashable)
Order = TypeVar("Order")


class Outbox(Generic[Key, Order]):
    """Sends by `send`, which fails with AwayError, while `here` says that the store is there.

    `bug` is called while an exception of ours is handled.
    """

    def __init__(
        self, send: Callable[[Key, Order], Awaitable[None]], here: Callable[[], bool], bug: Callable[[], None]
    ) -> None:
        self.lost = 0
        self._send = send
        self._here = here
        self._bug = bug
        self._waiting: dict[Key, Order] = {}
        self._running = False
        self._listeners: list[Deferred[bool]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: Key) -> bool:
        return key in self._waiting

    def get(self, key: Key) -> Order | None:
        """Return what waits to be sent of this."""
        return self._waiting.get(key)

    def put(self, key: Key, order: Order) -> None:
        """Have something sent, in place of what waits of the same."""
        if key not in self._waiting and len(self._waiting) >= MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
            self.lost += 1
        self._waiting[key] = order
        self.go()

    def drop(self, key: Key) -> None:
        """Have nothing sent of this any more."""
        self._waiting.pop(key, None)

    def go(self) -> None:
        """Send what waits, if the store is there."""
        if self._waiting and not self._running and self._here():
            self._running = True
            Deferred.fromCoroutine(self._work_off())

    def all_sent(self) -> Deferred[bool]:
        """Return what fires when nothing waits any more, with True, or when the store does not take it, with False."""
        told: Deferred[bool] = Deferred(self._listeners.remove)
        self._listeners.append(told)
        self.go()
        if not self._running:
            self._tell()
        return told

    async def _work_off(self) -> None:
        """Try each thing that waits, and what comes meanwhile, once."""
        tried: dict[Key, Order] = {}
        try:
            while self._here():
                some = list(
                    islice((item for item in self._waiting.items() if tried.get(item[0]) is not item[1]), AT_ONCE)
                )
                if not some:
                    break
                tried.update(some)
                await DeferredList([Deferred.fromCoroutine(self._try(key, order)) for key, order in some])
        finally:
            self._running = False
            self._tell()

    async def _try(self, key: Key, order: Order) -> None:
        try:
            await self._send(key, order)
        except AwayError:
            return  # it goes on waiting
        except Exception:  # whatever it is, it must not come again each second
            self._bug()
        if self._waiting.get(key) is order:
            del self._waiting[key]

    def _tell(self) -> None:
        listeners, self._listeners = self._listeners, []
        for told in listeners:
            told.callback(not self._waiting)


async def all_of(calls: Iterable[Deferred[object]]) -> list[Any]:
    """Return what all calls have come to; raises AwayError if one of them has failed."""
    done = await DeferredList(calls, consumeErrors=True)
    for _, value in done:
        if isinstance(value, Failure):
            value.raiseException()
    return [value for _, value in done]
