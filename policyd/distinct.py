"""Counting what differs: how many values, such as client addresses, were seen in the last so many seconds.

Each value counts once, at the time when it was seen last: a window of the latest sightings. A sighting at time t has
left a window of length W at t + W, to the point, and its value with it.

Why that is exact, and bounded. How many values lie in the window, and whether this one is among them, depends on
nothing but when each was seen last, so that one time a value is all there is to keep. A limit lets no value in that
would be one more than its maximum (charges.py), not even where exceeding it is only observed: the number of values
grows by one at the most, to a number that is not over the maximum, and otherwise only falls. So there are never more
than the maximum, and that is at most MAX_VALUES. Only an account without a maximum could have more. Of its values those
MAX_VALUES are kept that were seen last: none of the others comes to be among them but by being seen again, so that
they can be told without the others, and what is counted is the true number, or MAX_VALUES where that is less.

A message that is given back takes back its sighting, so a value has its latest few. When more than SIGHTINGS messages
have brought it, the one before those stands for good: a value may then be counted longer than what was given back
explains, and never shorter.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from policyd.window import Window

MAX_VALUES = 1000
"""Values that are remembered of one account for one limit, and so the largest maximum."""

SIGHTINGS = 4
"""The latest sightings of a value that can be taken back."""

DIGEST = 16
"""Bytes by which a value is known. They come from outside, and are of any length; nobody has to read them again."""

_NEVER = -math.inf


def digest(text: bytes) -> bytes:
    """Return what a value is known by: no two values that anybody could find have the same."""
    return blake2b(text, digest_size=DIGEST).digest()


class Distinct(Window):
    """The values of one account that count against one limit, each with the stamp of its latest sighting."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[bytes, tuple[float, ...]] = {}
        """The sightings of each, oldest first, by their values' latest; the first of all is none that can be taken
        back, _NEVER where there is none."""

    def holds(self, value: bytes, now: float, period: float) -> bool:
        """Tell whether a value was seen in the last `period` seconds."""
        seen = self._values.get(value)
        return seen is not None and seen[-1] + period > now

    def see(self, value: bytes, now: float) -> float:
        """Count a value that is seen at `now`, which is no earlier than any before; return the stamp."""
        seen = self._values.pop(value, None)
        if seen is None:
            if len(self._values) >= MAX_VALUES:
                self._drop(next(iter(self._values)))
            seen = (_NEVER,)
        else:
            super().give_back(seen[-1], 1)
        self._values[value] = (*seen, now)[-SIGHTINGS - 1 :]
        return self.add(now, 1, 0.0)

    def take_back(self, value: bytes, stamp: float) -> None:
        """Take back a sighting that got this stamp: the value counts from the one before, or not at all."""
        seen = self._values.get(value, ())
        if stamp not in seen[1:]:
            return
        at = seen.index(stamp, 1)
        self._drop(value)
        if (left := seen[:at] + seen[at + 1 :]) != (_NEVER,):
            self._values[value] = left
            self._in_order()
            self.add(left[-1], 1, 0.0)

    def packed_values(self) -> tuple[bytes, bytes]:
        """Return the values, DIGEST bytes each, and the stamps of their latest sightings, as `packed` does."""
        stamps = array("d", [seen[-1] for seen in self._values.values()])
        if sys.byteorder == "big":
            stamps.byteswap()
        return b"".join(self._values), stamps.tobytes()

    def sightings(self) -> tuple[list[float], list[bytes]]:
        """Return the stamps of the values' latest sightings, oldest first, and the values."""
        return [seen[-1] for seen in self._values.values()], list(self._values)

    def put_values_before(self, values: bytes, stamps: Sequence[float]) -> None:
        """Add values, as `packed_values` has given them once, with sightings that are older than all that is here.

        Raises ValueError where there is not a stamp for each of the values.
        """
        starts = range(0, len(values), DIGEST)
        for value, stamp in zip((values[start : start + DIGEST] for start in starts), stamps, strict=True):
            first, *later = self._values.get(value, (_NEVER,))
            self._values[value] = (max(first, min(stamp, *later[:1], math.inf)), *later)
        self._in_order()
        latest = [seen[-1] for seen in self._values.values()]
        self._start_anew(latest)
        for value in list(self._values)[:-MAX_VALUES]:
            self._drop(value)

    def _drop(self, value: bytes) -> None:
        """Forget a value."""
        super().give_back(self._values.pop(value)[-1], 1)

    def _in_order(self) -> None:
        """Put the values into the order of their latest sightings."""
        self._values = dict(sorted(self._values.items(), key=lambda item: item[1][-1]))

    def _start_anew(self, stamps: Iterable[float]) -> None:
        """Have these stamps, oldest first, in place of all that are there."""
        super().__init__()
        for stamp in stamps:
            self.add(stamp, 1, 0.0)

    def _forget(self, now: float, period: float) -> None:
        """Forget the values that have left."""
        super()._forget(now, period)
        gone = []
        for value, seen in self._values.items():
            if seen[-1] + period > now:
                break
            gone.append(value)
        for value in gone:
            del self._values[value]
