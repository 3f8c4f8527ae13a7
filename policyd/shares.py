"""What the store is told of each message that this node has let through, and what waits to be told.

A share is one transaction as the store knows it. The store is told where a transaction shall stand, never by how much
it grows, so that to tell it twice does no harm. It forgets a transaction 300 s after it was told of it last: after that
a share goes on under another name, and tells only what has come since.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, takewhile
from typing import Any

from policyd.shared_calls import Target
from policyd.transactions import Transaction

KEPT = 290.0
"""Seconds for which the store surely knows what it was told of a transaction."""

MAX_WAITING = 500_000
"""Shares that wait to be told at the most; for one more the oldest is lost."""

NOTHING = Target(0, 0)


def stand(transaction: Transaction, messages: int = 0, recipients: int = 0, size: int | None = None) -> Target:
    """Return where a transaction stands on this node, or would with so much more, and with this true size."""
    total, envelope = transaction.recipients + recipients, transaction.envelope
    if not (messages or transaction.message_counted):
        return Target(0, total) if total else NOTHING
    if envelope is None:
        return Target(1, total)
    size = envelope.size if size is None else size
    return Target(1, total, size, envelope.value("clients"), envelope.value("senders"))


class Share:
    """One transaction as the store knows it."""

    __slots__ = (
        "account",
        "base",
        "busy",
        "called",
        "generation",
        "name",
        "noted",
        "stem",
        "sure",
        "told",
        "turn",
        "waiting",
        "wanted",
        "when",
    )

    def __init__(self, account: str, name: bytes, generation: int) -> None:
        self.account = account
        self.name = self.stem = name
        self.turn = 0
        """How often it got another name."""
        self.base = NOTHING
        """What the store counts of it under earlier names, for good."""
        self.told = NOTHING
        """What the store was told last under this name."""
        self.sure = True
        """Whether that is what the store knows; False: a call was not answered."""
        self.wanted = NOTHING
        """Where the transaction stands on this node."""
        self.when = self.called = 0.0
        """When that changed last, and when the store last answered a call that was made of it."""
        self.generation = generation
        """Which of its lives the store was in then: it starts anew when its data are lost."""
        self.busy = False
        """Whether a call of it is out: the next one waits, so that they come in order."""
        self.noted = False
        self.waiting: list[Any] | None = None
        """The questions that wait for a call that is out."""

    @property
    def settled(self) -> bool:
        """Whether the store knows where the transaction stands."""
        return self.sure and self.relative(self.wanted) == self.told

    def relative(self, target: Target) -> Target:
        """Return what is to be told under this name, where the transaction shall stand at `target`."""
        base = self.base
        if base == NOTHING:
            return target
        recipients = max(0, target.recipients - base.recipients)
        if target.messages <= base.messages:  # all that a message has was counted with it
            return Target(0, recipients)
        return Target(target.messages, recipients, target.size, target.client, target.sender)

    def start_anew(self, base: Target, generation: int) -> None:
        """Go on under another name, of which the store knows nothing; it counts `base` already."""
        self.turn += 1
        self.name = b"%b+%d" % (self.stem, self.turn)
        self.base, self.told, self.sure = base, NOTHING, True
        self.generation = generation

    def refresh(self, now: float, generation: int, stands: Target) -> None:
        """Start anew where the store has forgotten the transaction, or has lost all and got `stands` back since."""
        if self.generation != generation:
            self.start_anew(stands, generation)
        elif self.told != NOTHING and self.called + KEPT <= now:
            base, told = self.base, self.told
            self.start_anew(
                Target(
                    max(base.messages, told.messages),
                    base.recipients + told.recipients,
                ),
                generation,
            )


class Waiting:
    """The shares that wait to be told, by account: the one that has waited longest first.

    An account can be put aside for a while, with all that waits of it.
    """

    def __init__(self, size: int = MAX_WAITING) -> None:
        self._size = size
        self._accounts: dict[str, dict[Share, None]] = {}
        self._aside: dict[str, dict[Share, None]] = {}
        self._until: dict[str, float] = {}
        """Until when accounts are aside: those that come back first come first."""
        self._number = 0
        self.lost = 0

    def __len__(self) -> int:
        return self._number

    def __contains__(self, account: str) -> bool:
        return account in self._accounts or account in self._aside

    @property
    def ready(self) -> bool:
        """Whether one waits that is not aside."""
        return bool(self._accounts)

    def add(self, share: Share) -> None:
        """Have a share wait."""
        if share.noted:
            return
        if self._number >= self._size:
            self.remove(next(self._all()))
            self.lost += 1
        share.noted = True
        place = self._aside if share.account in self._aside else self._accounts
        place.setdefault(share.account, {})[share] = None
        self._number += 1

    def remove(self, share: Share) -> None:
        """Have a share wait no more."""
        if not share.noted:
            return
        share.noted = False
        self._number -= 1
        place = self._aside if share.account in self._aside else self._accounts
        shares = place[share.account]
        del shares[share]
        if not shares:
            del place[share.account]
            self._until.pop(share.account, None)

    def put_aside(self, account: str, until: float) -> None:
        """Have what waits of an account wait until then; `until` is never before that of the last one."""
        shares = self._accounts.pop(account, None)
        if shares is not None:
            self._aside[account], self._until[account] = shares, until

    def is_aside(self, account: str) -> bool:
        """Tell whether an account is aside."""
        return account in self._aside

    def take_back(self, account: str) -> None:
        """Have an account be aside no more."""
        if account in self._aside:
            self._accounts[account] = self._aside.pop(account)
            del self._until[account]

    def take_back_all(self, now: float) -> None:
        """Have the accounts be aside no more whose time has come."""
        for account in list(takewhile(lambda account: self._until[account] <= now, self._until)):
            self.take_back(account)

    def some(self, most: int) -> list[Share]:
        """Return some of those that wait and are not aside."""
        return list(islice(chain.from_iterable(self._accounts.values()), most))

    def of(self, account: str, most: int) -> list[Share]:
        """Return some of an account's."""
        return list(islice(self._accounts.get(account) or self._aside.get(account) or (), most))

    def forget(self, account: str) -> None:
        """Have none of an account's wait any more."""
        for share in self.of(account, self._size):
            self.remove(share)

    def clear(self) -> None:
        """Have none wait any more."""
        for share in self._all():
            share.noted = False
        for place in (self._accounts, self._aside, self._until):
            place.clear()
        self._number = 0

    def _all(self) -> Iterator[Share]:
        return chain.from_iterable(chain(self._accounts.values(), self._aside.values()))
