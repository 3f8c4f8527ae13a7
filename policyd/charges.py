"""What an event would exceed, and counting it: the one place where windows grow.

`check` counts nothing and `count` refuses nothing. A caller that counts does both without anything in between, so
that an event counts against all limits or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from policyd.accounts import Account
from policyd.envelope import Envelope
from policyd.limits import DISTINCT, OF_A_MESSAGE, Limit
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


FREE = Check(None, ())
"""Nothing is exceeded."""


def check(transaction: Transaction, messages: int, recipients: int, now: float) -> Check:
    """Find what `messages` and `recipients` more would exceed."""
    account = transaction.account
    passing: list[Exceeded] = []
    for limit, window in zip(account.limits, account.windows, strict=True):
        events = recipients if limit.count == "recipients" else messages
        if events and limit.count in OF_A_MESSAGE:
            events = transaction.envelope.events(limit, window, now) if transaction.envelope else 0
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
    return Check(None, tuple(passing)) if passing else FREE


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
        if maxima.looked_at and transaction.envelope:
            _count_envelope(transaction.envelope, account, spared, now)
        transaction.message_counted = True


def charge(transaction: Transaction, messages: int, recipients: int, now: float) -> bool:
    """Count an event that exceeds nothing. Where it would exceed something, return False, and count nothing.

    So it does where a count comes so near to a maximum that somebody may have to be warned. `check` and `count` do the
    same more slowly, and tell what would be exceeded.
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
        if maxima.looked_at and transaction.envelope and not _fits(transaction.envelope, transaction.account, now):
            return False
    count(transaction, messages, recipients, now)
    return True


def settle(transaction: Transaction, size: int, now: float) -> Check:
    """Put the true size of a message that was counted in place of the declared one, and tell what that exceeds.

    Where that keeps the message back, nothing is changed: who asks gives the message back.
    """
    envelope, account = transaction.envelope, transaction.account
    if envelope is None or not size or size == envelope.size:
        return FREE
    passing: list[Exceeded] = []
    for place, period, _, _ in account.maxima.bytes:
        limit, window = account.limits[place], account.windows[place]
        if window is None or limit.max is None:
            continue
        counted = envelope.size_in(window)
        reached = window.count(now, period) + size - counted
        if reached > limit.max and size > counted:
            exceeded = Exceeded(limit, reached, window.resets_in(now, period))
            if limit.stops:
                return settled(transaction, size, now, Check(exceeded, tuple(passing)))
            passing.append(exceeded)
    return settled(transaction, size, now, Check(None, tuple(passing)))


def settled(transaction: Transaction, size: int, now: float, found: Check) -> Check:
    """Count the true size of a message, of which was `found` what it exceeds; return what is to be told of that.

    A limit that is exceeded and lets it pass has counted what was declared, or nothing where that was too much; then
    it was told of before.
    """
    envelope, account = transaction.envelope, transaction.account
    if envelope is None:
        return FREE
    spared = [exceeded.limit for exceeded in found.passing]
    declared, known = envelope.size, {}
    for place, _, _, slice_ in account.maxima.bytes:
        limit, window = account.limits[place], account.windows[place]
        if window is None:
            continue
        counted = known[limit.name] = envelope.size_in(window)
        if found.stop is not None or limit in spared:
            continue
        if size > counted:
            envelope.count_size(size - counted, window, now, slice_)
        else:
            envelope.give_back_size(counted - size, window)
    if found.stop is None:
        envelope.size = size
    told = tuple(exceeded for exceeded in found.passing if known.get(exceeded.limit.name) or not declared)
    return Check(found.stop, told)


def _fits(envelope: Envelope, account: Account, now: float) -> bool:
    """Tell whether a message exceeds no limit by what it has."""
    limits, windows = account.limits, account.windows
    for place, period, most, _ in (*account.maxima.bytes, *account.maxima.distinct):
        window = windows[place]
        events = envelope.events(limits[place], window, now)
        if window is not None and events and window.count(now, period) + events > most:
            return False
    return True


def _count_envelope(envelope: Envelope, account: Account, spared: Sequence[Limit], now: float) -> None:
    """Count what a message has in all windows but those of the limits that are `spared`."""
    limits, windows = account.limits, account.windows
    for place, _, _, slice_ in (*account.maxima.bytes, *account.maxima.distinct):
        limit, window = limits[place], windows[place]
        if window is None or limit in spared:
            continue
        if limit.count in DISTINCT:
            envelope.count_value(limit.count, window, now)
        elif envelope.size:
            envelope.count_size(envelope.size, window, now, slice_)
