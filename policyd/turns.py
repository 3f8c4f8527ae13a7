"""Long work, some pieces in each turn of the reactor: requests are answered between two turns."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

SHARE = 0.001
"""Seconds of a turn that are worked: the last piece ends somewhat later."""

PIECES = 100
"""Pieces of work in a turn at the most."""


class _Work:
    """A text that is being made."""

    def __init__(self, pieces: Iterator[str], done: Deferred[list[bytes]]) -> None:
        self.pieces = pieces
        self.done = done
        self.made: list[bytes] = []


class Turns:
    """Does one work after the other: orders before questions, and of each kind what came first.

    However many there are, a turn takes no longer for it; what nobody waits for any more is not done.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._orders: deque[_Work] = deque()
        self._questions: deque[_Work] = deque()
        self._running = False

    def take(self, pieces: Iterator[str], *, order: bool) -> Deferred[list[bytes]]:
        """Return what fires with all pieces, empty ones left out, when the last is made; to cancel it ends the work."""
        queue = self._orders if order else self._questions
        done: Deferred[list[bytes]] = Deferred(lambda _: queue.remove(work))
        work = _Work(pieces, done)
        queue.append(work)
        if not self._running:
            self._running = True
            self._reactor.callLater(0, self._turn)
        return done

    def _turn(self) -> None:
        ends = self._reactor.seconds() + SHARE
        for _ in range(PIECES):
            queue = self._orders or self._questions
            if not queue:
                self._running = False
                return
            self._do_piece(queue)
            if self._reactor.seconds() >= ends:
                break
        gc.collect(1)  # what is freed hides from Python how much is made, and one collection would take long in the end
        self._reactor.callLater(0, self._turn)

    def _do_piece(self, queue: deque[_Work]) -> None:
        work = queue[0]
        try:
            piece = next(work.pieces)
        except StopIteration:
            queue.popleft()
            work.done.callback(work.made)
        except Exception:  # whoever waits has to know, whatever it is
            queue.popleft()
            work.done.errback()
        else:
            if piece:
                work.made.append(piece.encode())
