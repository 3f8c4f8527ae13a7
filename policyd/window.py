"""Counting in time: how many events lie in the last so many seconds.

An event at time t has left a window of length W at t + W, to the point. Events are kept as runs, each a time stamp
with the number of events that bear it, oldest first. An exact window stamps an event with its own time. A coarse one
(for large maxima) stamps it with the end of its slice: the event stays up to a slice longer and never leaves early,
so that in no window are there ever more than the maximum, and memory is bounded by the number of slices.

A window holds events alone. How long it is and how coarse are arguments, so that a limit can be changed under a
running count.
"""

from __future__ import annotations

import math
import sys
from array import array
from bisect import bisect_left
from collections.abc import Sequence

_COMPACT = 64
"""Runs that have left are removed this many at a time: removing one shifts all the others."""


class Window:
    """The events of one account that count against one limit."""

    __slots__ = ("_counts", "_head", "_stamps", "_total")

    def __init__(self) -> None:
        self._stamps = array("d")
        self._counts: list[int] | None = None
        """None: each stamp is that of one event, as those of messages are. It saves 110 bytes an account."""
        self._head = 0
        self._total = 0

    @property
    def at_most(self) -> int:
        """What the count cannot be over: events that have left may still be among it."""
        return self._total

    def put_before(self, stamps: Sequence[float], events: Sequence[int]) -> None:
        """Add runs that are older than all that is here, as `runs` has given them once."""
        later, numbers = self.runs()
        self._stamps, self._counts, self._head, self._total = array("d"), None, 0, 0
        for stamp, number in (*zip(stamps, events, strict=True), *zip(later, numbers, strict=True)):
            self.add(stamp, number, 0.0)

    def runs(self) -> tuple[list[float], list[int]]:
        """Return the time stamps, oldest first, and the number of events that bear each."""
        stamps = self._stamps[self._head :].tolist()
        return stamps, [1] * len(stamps) if self._counts is None else self._counts[self._head :]

    def packed(self) -> tuple[bytes, list[int] | None]:
        """Return the time stamps, 8 bytes each with the least first, and the events of each, None where that is one."""
        stamps = self._stamps[self._head :]
        if sys.byteorder == "big":
            stamps.byteswap()
        return stamps.tobytes(), None if self._counts is None else self._counts[self._head :]

    @property
    def latest(self) -> float:
        """The latest time stamp; there must be one."""
        return self._stamps[-1]

    def count(self, now: float, period: float) -> int:
        """Return the number of events in the last `period` seconds; those before are forgotten."""
        head, stamps = self._head, self._stamps
        if head < len(stamps) and stamps[head] + period <= now:
            self._forget(now, period)
        return self._total

    def add(self, now: float, events: int, slice_: float) -> float:
        """Count `events` at `now`, told apart by `slice_` seconds (0.0: exactly); return the stamp they got."""
        stamp = max(now, math.ceil(now / slice_) * slice_) if slice_ else now
        self._total += events
        stamps = self._stamps
        if events == 1 and self._counts is None and (not stamps or stamps[-1] < stamp):
            stamps.append(stamp)
            return stamp
        at, head = len(stamps), self._head
        while at > head and stamps[at - 1] > stamp:
            at -= 1  # behind the end of a slice that has not ended: the window was coarser until a reload
        if at > head and stamps[at - 1] == stamp:
            self._told_apart()[at - 1] += events
            return stamp
        if events != 1 or self._counts is not None:
            self._told_apart().insert(at, events)
        stamps.insert(at, stamp)
        return stamp

    def give_back(self, stamp: float, events: int) -> None:
        """Take back `events` that got this stamp; what has left meanwhile is not there to be taken."""
        stamps, counts = self._stamps, self._counts
        at = bisect_left(stamps, stamp, self._head)
        if at == len(stamps) or stamps[at] != stamp:
            return
        taken = min(events, 1 if counts is None else counts[at])
        self._total -= taken
        if counts is not None and counts[at] > taken:
            counts[at] -= taken
            return
        del stamps[at]
        if counts is not None:
            del counts[at]

    def resets_in(self, now: float, period: float) -> float | None:
        """Return the seconds until the oldest event leaves; None where there is none."""
        if not self.count(now, period):
            return None
        return self._stamps[self._head] + period - now

    def _told_apart(self) -> list[int]:
        """Return how many events bear each stamp."""
        if self._counts is None:
            self._counts = [1] * len(self._stamps)
        return self._counts

    def _forget(self, now: float, period: float) -> None:
        """Forget the runs that have left."""
        head, stamps, counts = self._head, self._stamps, self._counts
        while head < len(stamps) and stamps[head] + period <= now:
            self._total -= 1 if counts is None else counts[head]
            head += 1
        if head >= _COMPACT or head == len(stamps):
            del stamps[:head]
            if counts is not None:
                del counts[:head]
            head = 0
        self._head = head
