"""What an event would exceed, and counting it: the one place where windows grow.

`check` counts nothing and `count` refuses nothing. A caller that counts does both without anything in between, so
that an event counts against all limits or none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from policyd.limits import Limit
from policyd.transactions import Transaction


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A limit that an event would exceed, and the count that it would reach."""

    limit: Limit
    reached: int
    resets_in: float | None
    """Seconds until the window's oldest event leaves; None where the limit is per message."""


class Check(NamedTuple):
    """What would become of an event."""

    stop: Exceeded | None
    """The first limit, in the config's order, that keeps it back."""
    passing: tuple[Exceeded, ...]
    """Those before it that are exceeded too and let it pass: observed ones, and actions such as WARN."""


_FREE = Check(None, ())


def check(transaction: Transaction, messages: int, recipients: int, now: float) -> Check:
    """Find what `messages` and `recipients` more would exceed."""
    account = transaction.account
    passing: list[Exceeded] = []
    for limit, window in zip(account.limits, account.windows, strict=True):
        events = recipients if limit.count == "recipients" else messages
        if not events or limit.max is None:
            continue
        if window is None or limit.period is None:
            reached = transaction.recipients + events
        else:
            reached = window.count(now, limit.period) + events
        if reached > limit.max:
            resets_in = window.resets_in(now, limit.period) if window and limit.period else None
            exceeded = Exceeded(limit, reached, resets_in)
            if limit.stops:
                return Check(exceeded, tuple(passing))
            passing.append(exceeded)
    return Check(None, tuple(passing)) if passing else _FREE


def count(
    transaction: Transaction, messages: int, recipients: int, now: float, passing: tuple[Exceeded, ...] = ()
) -> None:
    """Count an event in all windows but those of the limits that it exceeds and that let it `pass`.

    What it exceeds is not counted where it exceeds; in the others it has to be: the mail goes out.
    """
    account = transaction.account
    limits, maxima, windows = account.limits, account.maxima, account.windows
    spared = [exceeded.limit for exceeded in passing] if passing else ()
    if recipients:
        for index, _, _, slice_ in maxima.recipients:
            window = windows[index]
            if window is not None and not (spared and limits[index] in spared):
                transaction.charged_recipients(window, window.add(now, recipients, slice_), recipients)
        transaction.recipients += recipients
    if messages:
        for index, _, _, slice_ in maxima.messages:
            window = windows[index]
            if window is not None and not (spared and limits[index] in spared):
                transaction.charged_message(window, window.add(now, messages, slice_))
        transaction.message_counted = True


def charge(transaction: Transaction, messages: int, recipients: int, now: float) -> bool:
    """Count an event that exceeds nothing. Where it would exceed something, return False, and count nothing.

    `check` and `count` do the same more slowly, and tell what would be exceeded.
    """
    maxima, total = transaction.account.maxima, transaction.recipients + recipients
    if recipients and total > maxima.recipients_per_message:
        return False
    if not messages and not maxima.recipients:  # at RCPT, by the house rules: there is no window to be counted in
        transaction.recipients = total
        return True
    windows = transaction.account.windows
    if recipients:
        for place, period, most, _ in maxima.recipients:
            if windows[place].count(now, period) + recipients > most:  # type: ignore[union-attr]  # it is a window's place
                return False
    if messages:
        for place, period, most, _ in maxima.messages:
            if windows[place].count(now, period) + messages > most:  # type: ignore[union-attr]
                return False
    count(transaction, messages, recipients, now)
    return True
