"""The history: what became of each message that an account sent, tried to send or had held.

A message is told of once, when its fate is known, and waits here until it is stored. Of its recipients nothing is
stored but how many they are; the request that waits here may name one.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Any, NamedTuple

from policyd.actions import Effect
from policyd.transactions import Transaction
from policyd.verdict import PASS, Verdict
from policyd.wire import Request

MAX_WAITING = 5000
"""Messages that wait to be stored at the most, each of them a request of some 800 bytes."""


class Retention(NamedTuple):
    """How long the history is kept."""

    seconds: float
    rows: int


FOR_EVER = Retention(inf, 2**62)


class Kept(NamedTuple):
    """Which messages are kept."""

    since: float
    """Wall clock; so is `until`: what is later was stored while the clock was wrong."""
    until: float
    rows: int


ALL = Kept(-inf, inf, 2**62)


class Seen(NamedTuple):
    """What was seen of a message."""

    began: float
    """When it was first asked about, in seconds of the clock that never steps back; so is `at`. When it is taken to be
    stored, they become wall clock."""
    at: float
    """When the verdict on it was given."""
    account: str
    request: bytes
    """The request that was answered with the verdict: it tells the queue id, the client, the sender and the size."""
    recipients: int
    verdict: Verdict
    again: bool = False
    """Whether it takes the place of what was told of the message before."""


VERDICTS = ("passed", "held", "refused", "warned")


class Message(NamedTuple):
    """A message of the history; times are wall clock, seconds since the epoch."""

    account: str
    began: float
    at: float
    queue_id: str
    client: str
    sender: str
    recipients: int
    size: int
    verdict: str
    """One of VERDICTS."""
    action: str
    limit: str | None
    locked: bool


class Wanted(NamedTuple):
    """Which messages are asked for."""

    account: str | None = None
    queue_ids: tuple[str, ...] = ()
    since: float = 0.0
    """Wall clock."""
    verdict: str | None = None
    most: int = 1000


class NoHistoryError(Exception):
    """No history is kept; the message says why."""


class History:
    """The messages that wait to be stored, the oldest first."""

    __slots__ = ("_waiting", "kept", "lost")

    def __init__(self) -> None:
        self.kept = False
        """Whether anything is."""
        self.lost = 0
        """How many were too many to wait."""
        self._waiting: deque[tuple[Any, ...]] = deque()
        """Each is made a Seen when it is taken, which takes longer than to note it."""

    def __len__(self) -> int:
        return len(self._waiting)

    def note(self, seen: Seen) -> None:
        """Have a message stored."""
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(seen)
        else:
            self.lost += 1

    def passed(self, transaction: Transaction, request: Request, now: float) -> None:
        """Note that a transaction's message passes at DATA, as nearly all do: there is nothing more to say of it."""
        if len(self._waiting) < MAX_WAITING:
            name = transaction.account.name
            self._waiting.append((transaction.began, now, name, request.lines, transaction.recipients, PASS))
        else:
            self.lost += 1

    def decided(self, transaction: Transaction, request: Request, answer: Verdict, now: float) -> None:
        """Note the verdict on a transaction's message, in place of any that was noted before.

        Of a message that goes on it stays known that it is held, or that there was a warning; of one that is refused at
        each recipient, the first time tells all.
        """
        before: Seen | None = transaction.seen
        said = before.verdict if before else PASS
        if answer.effect is Effect.PASSED:
            answer = transaction.held or (said if answer is PASS and said.effect is Effect.PASSED else answer)
        elif answer.effect is said.effect is Effect.REFUSED:
            return
        transaction.seen = Seen(
            transaction.began or now,
            now,
            transaction.account.name,
            request.lines,
            max(request.recipient_count or 0, transaction.recipients),
            answer,
            before is not None,
        )
        self.note(transaction.seen)

    def take(self, most: int, offset: float) -> list[Seen]:
        """Return the oldest that wait, which do so no more, by the wall clock, which is ahead by `offset` seconds."""
        taken = []
        for _ in range(min(most, len(self._waiting))):
            began, at, *rest = self._waiting.popleft()
            taken.append(Seen(began + offset, at + offset, *rest))
        return taken
