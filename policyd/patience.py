"""Those who wait until something is on the disk, each for a second at the most."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

LOCK_PATIENCE = 1.0
"""Seconds for which an answer that announces a lock waits for the disk."""


class Patience:
    """Those who wait, and the number of the batch that each waits for.

    `give_up` is called when one has waited for LOCK_PATIENCE: it must end the waiting.
    """

    def __init__(self, clock: IReactorTime, give_up: Callable[[], None]) -> None:
        self._clock = clock
        self._give_up = give_up
        self._waiting: list[tuple[int, Deferred[None], IDelayedCall]] = []

    def wait(self, number: int) -> Deferred[None]:
        """Return what fires when batch `number` is on the disk, or when the waiting is ended otherwise."""
        done: Deferred[None] = Deferred()
        self._waiting.append((number, done, self._clock.callLater(LOCK_PATIENCE, self._give_up)))
        return done

    def end(self, number: int) -> None:
        """Let go those who wait for batch `number`, or an earlier one."""
        over = [entry for entry in self._waiting if entry[0] <= number]
        self._waiting = [entry for entry in self._waiting if entry[0] > number]
        for _, done, patience in over:
            if patience.active():
                patience.cancel()
            done.callback(None)
