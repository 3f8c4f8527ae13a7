"""Transactions: what one message was charged, so that it is charged once and can be given back.

A transaction belongs to the connection that asked about it last. It is remembered while it is that connection's
latest, and 300 s beyond its last request: Postfix repeats a request, same `instance`, on a new connection when a reply
is late or the connection breaks.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from policyd.accounts import Account
from policyd.envelope import Envelope
from policyd.verdict import PASS, Verdict
from policyd.window import Window

MEMORY = 300.0
"""Seconds for which a transaction is remembered beyond its last request."""

MAX_ENDED = 100_000
"""Transactions that are remembered though no connection is at them."""

_AT_ONCE = 4
"""Of those, that many are forgotten at the most when another one ends: nobody waits while 100,000 are."""


class Receipt:
    """The events that one transaction was charged in one window, oldest first."""

    __slots__ = ("_runs", "_total", "window")

    def __init__(self, window: Window) -> None:
        self.window = window
        self._runs: list[tuple[float, int]] = []
        self._total = 0

    def add(self, stamp: float, events: int) -> None:
        """Note events that were charged."""
        self._total += events
        if self._runs and self._runs[-1][0] == stamp:
            events += self._runs.pop()[1]
        self._runs.append((stamp, events))

    def keep(self, most: int) -> None:
        """Give back all but the latest `most` events.

        Nobody tells which of a message's recipients Postfix refused. To keep the latest ones is to never count fewer
        in any window than were accepted.
        """
        while self._total > most:
            stamp, events = self._runs[0]
            taken = min(events, self._total - most)
            self.window.give_back(stamp, taken)
            self._total -= taken
            if taken == events:
                del self._runs[0]
            else:
                self._runs[0] = (stamp, events - taken)


class Transaction:
    """One message on its way through smtpd: all requests with the same `instance`."""

    __slots__ = (
        "_recipients",
        "_stamps",
        "_windows",
        "account",
        "answer",
        "asked",
        "began",
        "connection",
        "data_asked",
        "envelope",
        "held",
        "instance",
        "last",
        "message_counted",
        "recipients",
        "returned",
        "seen",
        "share",
    )

    def __init__(self, instance: bytes, account: Account) -> None:
        self.instance = instance
        self.account = account
        self.connection: Connection | None = None
        self.began = self.last = 0.0
        """When it was first asked about, and when last."""
        self.asked: int | None = None
        """What tells its last request from the next; the same again is the same request, sent again."""
        self.answer: Verdict = PASS
        """The answer to its last request."""
        self.recipients = 0
        """Recipients that were let through and stand."""
        self.message_counted = False
        self.envelope: Envelope | None = None
        """What the message has that a limit counts; None where none does, or the message has not been counted yet."""
        self.data_asked = False
        """Whether Postfix was told at DATA, or at END-OF-MESSAGE where DATA is not asked, to go on."""
        self.held: Verdict | None = None
        """The verdict that holds the whole message."""
        self.returned = 0
        """Recipients that were given back when its connection broke."""
        self.seen: Any = None
        """What the history was told of the message."""
        self.share: Any = None
        """What the other servers were told of it."""
        self._recipients: tuple[Receipt, ...] = ()
        self._windows: tuple[Window, ...] = ()
        """Those in which the message was counted."""
        self._stamps: tuple[float, ...] = ()
        """The stamps that it got there."""

    def is_other(self, instance: bytes, account: str) -> bool:
        """Tell whether a request of this instance and account belongs to another message."""
        return instance != self.instance or account != self.account.name

    def is_over(self, now: float) -> bool:
        """Tell whether it need not be remembered among those that have ended."""
        return self.last + MEMORY <= now or self.connection is not None

    def charged_message(self, window: Window, stamp: float) -> None:
        """Note that the message was counted in a window."""
        self._windows += (window,)
        self._stamps += (stamp,)

    def charged_recipients(self, window: Window, stamp: float, events: int) -> None:
        """Note recipients that were counted in a window."""
        for receipt in self._recipients:
            if receipt.window is window:
                break
        else:
            receipt = Receipt(window)
            self._recipients += (receipt,)
        receipt.add(stamp, events)

    def keep_recipients(self, number: int) -> None:
        """Give back the recipients above `number`."""
        for receipt in self._recipients:
            receipt.keep(number)
        self.recipients = min(self.recipients, number)

    def give_back(self) -> None:
        """Give back all that was counted: the message is not sent."""
        self.keep_recipients(0)
        for window, stamp in zip(self._windows, self._stamps, strict=True):
            window.give_back(stamp, 1)
        self._windows = self._stamps = ()
        if self.envelope is not None:
            self.envelope.give_back()
        self.message_counted = False


class Connection:
    """One policy client: a connection from smtpd, and the transaction it asked about last."""

    __slots__ = ("login", "peer", "rules", "transaction")

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.transaction: Transaction | None = None
        self.login = b""
        """The SASL user who asked last about the transaction."""
        self.rules: object = None
        """The rules by which the transaction's account is this user's, whatever else a request says."""


class Transactions:
    """The transactions that are remembered."""

    def __init__(self, size: int = MAX_ENDED) -> None:
        self._size = size
        self._known: dict[tuple[bytes, str], Transaction] = {}
        self._ended: deque[Transaction] = deque()
        """Those that are no connection's latest, in the order in which they ended; and some that a connection has
        taken up again, or that are known no more."""

    def __len__(self) -> int:
        return len(self._known)

    def begin(self, instance: bytes, account: Account, connection: Connection, now: float) -> Transaction:
        """Return the transaction of this instance, known or new, as the connection's own."""
        key = (instance, account.name)
        transaction = self._known.get(key)
        if transaction is None or (transaction.connection is None and transaction.last + MEMORY <= now):
            transaction = self._known[key] = Transaction(instance, account)
            transaction.began = now
        transaction.connection = connection
        connection.transaction = transaction
        return transaction

    def leave(self, connection: Connection, now: float) -> Transaction | None:
        """Part a connection from its transaction; return that if it was still the connection's own."""
        transaction = connection.transaction
        connection.transaction = None
        if transaction is None or transaction.connection is not connection:
            return None
        transaction.connection = None
        ended = self._ended
        ended.append(transaction)
        forgotten = 0
        while ended and forgotten < _AT_ONCE and (len(ended) > self._size or ended[0].is_over(now)):
            self._forget(ended.popleft())
            forgotten += 1
        return transaction

    def _forget(self, transaction: Transaction) -> None:
        """Forget a transaction, unless a connection has taken it up again, or another one is known instead."""
        key = (transaction.instance, transaction.account.name)
        if transaction.connection is None and self._known.get(key) is transaction:
            del self._known[key]
