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
from bisect import bisect_left

_COMPACT = 64
"""Runs that have left are removed this many at a time: removing one shifts all the others."""


class Window:
    """The events of one account that count against one limit."""

    __slots__ = ("_counts", "_head", "_stamps", "_total")

    def __init__(self) -> None:
        self._stamps: list[float] = []
        self._counts: list[int] = []
        self._head = 0
        self._total = 0

    def put_before(self, stamps: list[float], events: list[int]) -> None:
        """Add runs that are older than all that is here, as `runs` has given them once."""
        later, numbers = self.runs()
        self._stamps, self._counts, self._head, self._total = [], [], 0, 0
        for stamp, number in (*zip(stamps, events, strict=True), *zip(later, numbers, strict=True)):
            self.add(stamp, number, 0.0)

    def runs(self) -> tuple[list[float], list[int]]:
        """Return the time stamps, oldest first, and the number of events that bear each."""
        return self._stamps[self._head :], self._counts[self._head :]

    def count(self, now: float, period: float) -> int:
        """Return the number of events in the last `period` seconds; those before are forgotten."""
        head, stamps = self._head, self._stamps
        while head < len(stamps) and stamps[head] + period <= now:
            self._total -= self._counts[head]
            head += 1
        if head >= _COMPACT or head == len(stamps) > 0:
            del stamps[:head]
            del self._counts[:head]
            head = 0
        self._head = head
        return self._total

    def add(self, now: float, events: int, slice_: float) -> float:
        """Count `events` at `now`, told apart by `slice_` seconds (0.0: exactly); return the stamp they got."""
        stamp = max(now, math.ceil(now / slice_) * slice_) if slice_ else now
        self._total += events
        stamps = self._stamps
        at = len(stamps)
        while at > self._head and stamps[at - 1] > stamp:
            at -= 1  # behind the end of a slice that has not ended: the window was coarser until a reload
        if at > self._head and stamps[at - 1] == stamp:
            self._counts[at - 1] += events
        else:
            stamps.insert(at, stamp)
            self._counts.insert(at, events)
        return stamp

    def give_back(self, stamp: float, events: int) -> None:
        """Take back `events` that got this stamp; what has left meanwhile is not there to be taken."""
        at = bisect_left(self._stamps, stamp, self._head)
        if at == len(self._stamps) or self._stamps[at] != stamp:
            return
        taken = min(events, self._counts[at])
        self._total -= taken
        self._counts[at] -= taken
        if not self._counts[at]:
            del self._stamps[at]
            del self._counts[at]

    def resets_in(self, now: float, period: float) -> float | None:
        """Return the seconds until the oldest event leaves; None where there is none."""
        if not self.count(now, period):
            return None
        return self._stamps[self._head] + period - now
