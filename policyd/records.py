"""Accounts and locks as plain values that can be stored, and back.

What is stored is wall clock, so that it can be read and outlives a reboot; a `Span` turns it into the clock that never
steps back, and the other way round. What belongs to a limit that is gone is left out when it comes back.
"""

from __future__ import annotations

import json
import math
import struct
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from policyd.accounts import Account, Evidence, Lock
from policyd.actions import Effect
from policyd.allowances import Allowance
from policyd.distinct import Distinct
from policyd.limits import MAX_PERIOD
from policyd.verdict import verdict

_STAMP = struct.Struct("<d")

MOST = 2**63 - 1
"""The largest whole number that SQLite has."""

TALLIES = ("refused", "held", "warned", "observed", "attempts_while_locked")
_tallies = attrgetter(*TALLIES)
_encoded = json.JSONEncoder(check_circular=False).encode


@dataclass(frozen=True, slots=True)
class Span:
    """How far the wall clock is ahead of the clock that never steps back, in seconds."""

    offset: float

    def wall(self, now: float) -> float:
        """Return a time of the clock that never steps back as seconds since the epoch."""
        return now + self.offset

    def boot(self, wall: float) -> float:
        """Return seconds since the epoch as a time of the clock that never steps back."""
        return wall - self.offset


class AccountRecord(NamedTuple):
    """What is stored of an account."""

    name: str
    text: str
    """Its windows, tallies and clients, as JSON."""
    keep_until: float
    """Wall clock: when the last event has left its window; tallies are kept for as long as the longest window."""


@dataclass(frozen=True, slots=True)
class LockRecord:
    """What is stored of a lock; times are wall clock."""

    account: str
    recorded: float
    since: float
    until: float | None
    limit: str | None
    count: int | None
    by: str
    reason: str
    action: str
    effect: str
    uid: int | None
    evidence: str | None = None
    """JSON."""


def account_record(account: Account, span: Span, now: float) -> AccountRecord:
    """Return what is to be stored of an account.

    Time stamps are eight bytes each, in base64: written out as numbers they would take ten times as long.
    """
    windows = []
    last = now
    limits, maxima = account.limits, account.maxima
    for place, period, _, _ in (*maxima.messages, *maxima.recipients, *maxima.bytes):
        window = account.windows[place]
        if window is not None and window.count(now, period):
            stamps, events = window.packed()
            last = max(last, window.latest + period)
            limit = limits[place]
            windows.append((limit.name, limit.count, b2a_base64(stamps, newline=False).decode(), events, span.offset))
    distinct = []
    for place, period, _, _ in maxima.distinct:
        seen = account.windows[place]
        if isinstance(seen, Distinct) and seen.count(now, period):
            last = max(last, seen.latest + period)
            packed = [b2a_base64(part, newline=False).decode() for part in seen.packed_values()]
            distinct.append((limits[place].name, limits[place].count, *packed, span.offset))
    tallies = {name: tally for name, tally in zip(TALLIES, _tallies(account), strict=True) if tally}
    if tallies:
        last = max(last, now + MAX_PERIOD)
    value = {
        "windows": windows,
        "tallies": tallies,
        "clients": [(address.decode("latin-1"), span.wall(seen)) for address, seen in account.clients],
        "seen": account.seen,
    }
    if distinct:
        value["distinct"] = distinct
    return AccountRecord(account.name, _encoded(value), span.wall(last))


def restore_account(account: Account, text: str, span: Span, now: float) -> None:
    """Add what was stored of an account to what it has done since.

    No event lies further ahead than its slice explains, whatever a clock said. Raises ValueError, LookupError,
    TypeError or AttributeError for what cannot have been stored.
    """
    value = json.loads(text)
    stored = {(name, count): _runs(*rest) for name, count, *rest in value["windows"]}
    for limit, window in zip(account.limits, account.windows, strict=True):
        runs = stored.get((limit.name, limit.count))
        if window is not None and runs is not None:
            latest = now + limit.slice
            window.put_before([min(span.boot(stamp), latest) for stamp in runs[0]], runs[1])
    _restore_distinct(account, value.get("distinct", ()), span, now)
    for name, tally in value["tallies"].items():
        if name in TALLIES:
            setattr(account, name, getattr(account, name) + tally)
    stored_clients = [(address.encode("latin-1"), min(span.boot(seen), now)) for address, seen in value["clients"]]
    account.clients = (*stored_clients, *account.clients)
    account.seen = account.seen or value["seen"]


def _restore_distinct(account: Account, stored: Sequence[Sequence[Any]], span: Span, now: float) -> None:
    """Add the values that were stored; what this program does not count is left out."""
    packed = {(name, count): rest for name, count, *rest in stored}
    for limit, window in zip(account.limits, account.windows, strict=True):
        found = packed.get((limit.name, limit.count))
        if isinstance(window, Distinct) and found is not None:
            values, *seen = found
            stamps, _ = _runs(seen[0], None, seen[1])
            window.put_values_before(a2b_base64(values), [min(span.boot(stamp), now) for stamp in stamps])


def _runs(stamps: str | list[float], events: list[int] | None, offset: float = 0.0) -> tuple[list[float], list[int]]:
    """Return time stamps by the wall clock, and the number of events of each; before schema 2 they were so stored."""
    if isinstance(stamps, str):
        packed = a2b_base64(stamps)
        if len(packed) % _STAMP.size:
            raise ValueError(f"{len(packed)} bytes of time stamps")
        stamps = [stamp + offset for (stamp,) in _STAMP.iter_unpack(packed)]
    return stamps, [1] * len(stamps) if events is None else events


def lock_record(account: Account, lock: Lock, span: Span, now: float) -> LockRecord:
    """Return what is to be stored of an account's lock."""
    until = None if math.isinf(lock.ends) else span.wall(lock.ends)
    told = lock.verdict
    return LockRecord(
        account.name,
        span.wall(now),
        lock.since,
        until,
        lock.limit,
        None if lock.count is None else min(lock.count, MOST),
        lock.by,
        lock.reason,
        told.action,
        told.effect.value,
        lock.uid,
        None if lock.evidence is None else json.dumps(astuple(lock.evidence)),
    )


def restore_lock(record: LockRecord, span: Span, now: float, offset: float) -> Lock:
    """Return a lock that was stored; whatever the clocks did, no more of its time is left than when it was stored.

    `offset` is how far the wall clock is ahead now.
    """
    ends = math.inf
    if record.until is not None:
        ends = min(span.boot(record.until), now + record.until - record.recorded)
    until = None if math.isinf(ends) else ends + offset
    known = {effect.value: effect for effect in Effect}
    told = verdict(record.action, known.get(record.effect, Effect.REFUSED), by_lock=True)
    return Lock(
        record.since,
        until,
        ends,
        record.limit,
        record.count,
        record.by,
        record.reason,
        told,
        record.uid,
        _evidence(record.evidence),
    )


def _evidence(text: str | None) -> Evidence | None:
    """Return what was stored of a lock's reasons; None for what makes no sense: the lock counts without it."""
    try:
        first, messages, recipients, clients, senders, queue_ids, *distinct = json.loads(text or "")
        counted = [tuple((str(name), int(number)) for name, number in pairs) for pairs in (clients, senders)]
        known = first if first is None else float(first)
        return Evidence(
            known,
            int(messages),
            int(recipients),
            counted[0],
            counted[1],
            tuple(map(str, queue_ids)),
            *map(int, distinct),
        )
    except (ValueError, TypeError):
        return None


def storable(value: object) -> object:
    """SQLite takes no text with lone surrogates, which JSON can bring; such a text is stored as bytes."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode(errors="surrogatepass")
    return value


def restored(value: Any) -> Any:
    """Return what was stored."""
    return value.decode(errors="surrogatepass") if isinstance(value, bytes) else value


class AllowanceRecord(NamedTuple):
    """What is stored of an allowance."""

    account: str
    limit: str
    kind: str
    max: int | None
    since: float
    """Wall clock."""
    recorded: float
    """Wall clock, by which `until` is one where that is not dated."""
    until: float
    dated: bool
    """Whether `until` is a date that a person named, whatever the clock that never steps back says."""
    by: str
    uid: int | None
    reason: str | None


AllowanceRecords = dict[tuple[str, str], "AllowanceRecord | None"]
"""By account and limit; None: there is none any more."""


def allowance_records(changed: Mapping[tuple[str, str], Allowance | None], span: Span, now: float) -> AllowanceRecords:
    """Return what is to be stored of allowances that have changed."""
    return {key: None if found is None else _allowance_record(found, span, now) for key, found in changed.items()}


def _allowance_record(found: Allowance, span: Span, now: float) -> AllowanceRecord:
    until = found.until if found.dated else span.wall(found.ends)
    return AllowanceRecord(
        found.account,
        found.limit,
        found.kind,
        found.max,
        found.since,
        span.wall(now),
        until,
        found.dated,
        found.by,
        found.uid,
        found.reason,
    )


def restore_allowance(record: AllowanceRecord, span: Span, now: float, offset: float) -> Allowance:
    """Return an allowance that was stored; of a length of time no more is left than when it was stored.

    `offset` is how far the wall clock is ahead now.
    """
    until, ends = record.until, math.inf
    if not record.dated:
        ends = min(span.boot(until), now + until - record.recorded)
        until = ends + offset
    account, limit, kind, most, since = record[:5]
    return Allowance(account, limit, kind, most, since, until, ends, record.by, record.uid, record.reason)
