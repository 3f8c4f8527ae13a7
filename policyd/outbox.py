"""What this node has decided and the store does not know yet: it waits here, the latest decision on each thing alone.

While the store is away nothing is sent; when it is back all is, some at a time. What cannot be found in the node's
tables again, such as an unlock, is kept in the database as well: it waits on after a restart.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable
from itertools import islice
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from policyd.shared_calls import AwayError

MAX_WAITING = 200_000
"""Decisions that wait at the most; for one more the oldest is lost, of those that are in the tables first."""

MAX_REMEMBERED = 10_000
"""Accounts, and allowances, of which it is remembered when they were freed, or taken back."""

AT_ONCE = 50
"""Decisions that are on their way at a time."""

Key = TypeVar("Key", bound=Hashable)
Order = TypeVar("Order")


class Outbox(Generic[Key, Order]):
    """Sends by `send`, which fails with AwayError, while `here` says that the store is there.

    `bug` is called while an exception of ours is handled. `keep` has an order kept over a restart, or None in its
    place, and tells whether that has to be; an order for which it does not is found in the node's tables again.
    """

    def __init__(
        self,
        send: Callable[[Key, Order], Awaitable[None]],
        here: Callable[[], bool],
        bug: Callable[[], None],
        keep: Callable[[Key, Order | None], bool],
    ) -> None:
        self.lost = 0
        self._keep = keep
        self._send = send
        self._here = here
        self._bug = bug
        self._waiting: dict[Key, Order] = {}
        self._found_again: dict[Key, None] = {}
        """Of what waits that which is not kept."""
        self._running = False
        self._listeners: dict[Deferred[bool], Collection[Key] | None] = {}
        """Who waits until all of these are sent; None: until all is."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: Key) -> bool:
        return key in self._waiting

    def get(self, key: Key) -> Order | None:
        """Return what waits to be sent of this."""
        return self._waiting.get(key)

    def put(self, key: Key, order: Order) -> None:
        """Have something sent, in place of what waits of the same."""
        self._waiting[key] = order
        if self._keep(key, order):
            self._found_again.pop(key, None)
        else:
            self._found_again[key] = None
        if len(self._waiting) > MAX_WAITING:
            self.drop(next(iter(self._found_again or self._waiting)))
            self.lost += 1
        self.go()

    def drop(self, key: Key) -> None:
        """Have nothing sent of this any more."""
        if self._waiting.pop(key, None) is not None:
            self._found_again.pop(key, None)
            self._keep(key, None)

    def go(self) -> None:
        """Send what waits, if the store is there."""
        if self._waiting and not self._running and self._here():
            self._running = True
            Deferred.fromCoroutine(self._work_off())

    def sent(self, keys: Collection[Key] | None = None) -> Deferred[bool]:
        """Return what fires when none of these, or nothing at all, waits any more, with True.

        It fires with False when the store does not take them.
        """
        told: Deferred[bool] = Deferred(self._listeners.__delitem__)
        self._listeners[told] = keys
        self.go()
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
                self._tell()
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
            self.drop(key)

    def _tell(self) -> None:
        """Tell those whose orders are all sent, and when the work is over the others as well."""
        for told, keys in list(self._listeners.items()):
            done = not self._waiting if keys is None else self._waiting.keys().isdisjoint(keys)
            if told in self._listeners and (done or not self._running):
                del self._listeners[told]
                told.callback(done)


async def all_of(calls: Iterable[Deferred[object]]) -> list[Any]:
    """Return what all calls have come to; raises AwayError if one of them has failed."""
    done = await DeferredList(calls, consumeErrors=True)
    for _, value in done:
        if isinstance(value, Failure):
            value.raiseException()
    return [value for _, value in done]
