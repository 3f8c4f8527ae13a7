"""A reactor that a test turns by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock

_MOMENT = 1e-6


class TurningClock(Clock):
    """A clock on which what is called after no time is called in the next turn, and not in this one for ever."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> IDelayedCall:  # noqa: N802 -- Twisted's
        """Have something called."""
        return super().callLater(max(delay, _MOMENT), callable, *args, **kw)

    def turn(self, times: int = 1) -> None:
        """Let the reactor go round."""
        for _ in range(times):
            self.advance(_MOMENT)

    def work(self, seconds: float) -> None:
        """Let time pass in the middle of a turn."""
        self.rightNow += seconds


def result(done: Any) -> Any:
    """Return what a Deferred has fired with; it has to be there."""
    found: list[Any] = []
    done.addCallback(found.append)
    (outcome,) = found
    return outcome
