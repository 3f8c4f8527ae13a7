"""What a message has besides its recipients: the client it comes from, its sender, its size; and where those count.

It is looked at only where a limit counts such a thing, when the message is counted. Clients are told apart as accounts
named by their address are: IPv6 by /64, and an IPv4 address is the same however it is written. Senders are told apart
without regard to upper and lower case, and the null sender `<>` is one of them. A size is what the client has declared,
or at END-OF-MESSAGE the true one; where none was declared, there is nothing to count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from policyd.distinct import Distinct, digest
from policyd.limits import Count, Limit, client_network
from policyd.window import Window
from policyd.wire import SIZE, Request, key

MAX_DIGITS = 18
"""Those of the largest size that is believed: a thousand times what can be a maximum."""

_SENDER = key("sender")


def client_of(request: Request) -> bytes:
    """Return what the client is known by, b"" where the request names none."""
    address = request.client_address
    return digest(client_network(_text(address)).encode(errors="surrogatepass")) if address else b""


def sender_of(request: Request) -> bytes:
    """Return what the envelope sender is known by."""
    return digest(_text(request.get(_SENDER)).encode(errors="surrogatepass"))


def size_of(request: Request) -> int:
    """Return the bytes of the message: 0 where they are not told, or what is told is no number."""
    digits = request.get(SIZE)
    return int(digits) if digits.isdigit() and len(digits) <= MAX_DIGITS else 0


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace").lower()


_VALUE_OF: Mapping[Count, Callable[[Request], bytes]] = {"clients": client_of, "senders": sender_of}


class Envelope:
    """One message's values and size, and in which windows they were counted."""

    __slots__ = ("_sightings", "_sizes", "_values", "size")

    def __init__(self, request: Request, looked_at: Iterable[Count]) -> None:
        """Look at the request for those of OF_A_MESSAGE."""
        wanted = tuple(looked_at)
        self._values = {count: _VALUE_OF[count](request) for count in wanted if count in _VALUE_OF}
        self.size = size_of(request) if "bytes" in wanted else 0
        """In bytes, as far as it is known by now."""
        self._sightings: tuple[tuple[Distinct, bytes, float], ...] = ()
        self._sizes: tuple[tuple[Window, float, int], ...] = ()

    def events(self, limit: Limit, window: Window | None, now: float) -> int:
        """Return by how much the message adds to the count of a limit of OF_A_MESSAGE."""
        if limit.count == "bytes":
            return self.size
        value = self._values.get(limit.count)
        if not value or not isinstance(window, Distinct) or limit.period is None:
            return 0
        return 0 if window.holds(value, now, limit.period) else 1

    def value(self, count: Count) -> bytes:
        """Return what the message's client, or its sender, is known by; b"" where it is not looked at."""
        return self._values.get(count, b"")

    def count_value(self, count: Count, window: Window, now: float) -> None:
        """Count the message's client, or its sender, in a window."""
        value = self._values.get(count)
        if value and isinstance(window, Distinct):
            self._sightings += ((window, value, window.see(value, now)),)

    def count_size(self, size: int, window: Window, now: float, slice_: float) -> None:
        """Count so many bytes of the message in a window."""
        self._sizes += ((window, window.add(now, size, slice_), size),)

    def give_back_size(self, size: int, window: Window) -> None:
        """Give back so many bytes of those that were counted in a window, the latest first."""
        kept = []
        for known, stamp, counted in reversed(self._sizes):
            taken = min(counted, size) if known is window else 0
            if taken:
                window.give_back(stamp, taken)
                size -= taken
            if taken < counted:
                kept.append((known, stamp, counted - taken))
        self._sizes = tuple(reversed(kept))

    def size_in(self, window: Window) -> int:
        """Return how many bytes of the message were counted in a window."""
        return sum(counted for known, _, counted in self._sizes if known is window)

    def give_back(self) -> None:
        """Give back all that was counted: the message is not sent."""
        for window, value, stamp in self._sightings:
            window.take_back(value, stamp)
        for counted_in, stamp, size in self._sizes:
            counted_in.give_back(stamp, size)
        self._sightings = self._sizes = ()
