"""Long work on all accounts, of which a piece is done in each turn of the reactor."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain, islice

from policyd.accounts import Account, Accounts

AT_ONCE = 100
"""Pieces of work on all accounts (64 there are, and one for each 1,000 accounts) that are done in one turn: 20 ms."""

PIECE = 1000
"""Accounts of one piece."""


class Chores:
    """Long work that is not done yet."""

    def __init__(self) -> None:
        self._begun: deque[Iterator[None]] = deque()

    def __bool__(self) -> bool:
        return bool(self._begun)

    def begin(self, chore: Iterator[None]) -> None:
        """Do some work: at once as far as that takes no long time, the rest by and by."""
        if sum(1 for _ in islice(chore, AT_ONCE)) == AT_ONCE:
            self._begun.append(chore)

    def go_on(self) -> None:
        """Do one piece."""
        if self._begun and next(self._begun[0], self) is self:
            self._begun.popleft()

    def rest(self) -> Iterator[None]:
        """Do all that is left, a piece at each step."""
        yield from chain(*self._begun)


def in_pieces(accounts: Accounts) -> Iterator[list[Account]]:
    """Yield all accounts in the table, some at a time."""
    for portion in accounts.portions():
        for start in range(0, len(portion), PIECE):
            yield portion[start : start + PIECE]
