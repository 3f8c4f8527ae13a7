"""Locks, unlocks and allowances as the store has them, and which of two decisions about the same stands.

Times are the store's clock, seconds since the epoch, but for `since` and for dates that a person named. An unlock and
an allowance that was taken back are remembered for a week, so that who was away for as long learns of them.

A decision that waited for the store meets what was decided elsewhere meanwhile. What comes out is what would have come
out on one node, in the order of the decisions:

| waits here       | the store has                    | what stands                                            |
|------------------|----------------------------------|--------------------------------------------------------|
| a lock           | nothing                          | the lock                                               |
| a lock           | the same lock                    | the lock; it is written again, with what is new        |
| a lock           | an unlock, decided before        | the lock                                               |
| a lock           | an unlock, decided later         | the unlock                                             |
| a lock           | a lock whose time is over        | the lock that waits                                    |
| a lock by limit  | a lock, decided before           | the earlier: who is locked exceeds no limit            |
| a lock by hand   | a lock, decided before           | the later: a person's lock takes another's place       |
| a lock           | a lock by limit, decided later   | the earlier, as above                                  |
| a lock           | a lock by hand, decided later    | the later, as above                                    |
| an unlock        | nothing, or an unlock            | the account is free, its counts are forgotten          |
| an unlock        | a lock, decided before           | the unlock                                             |
| an unlock        | a lock, decided later            | the lock                                               |
| a reset          | anything                         | the counts are forgotten; a lock stays                 |
| an allowance,    | an allowance,                    | what was decided later                                 |
| or none any more | or none any more                 |                                                        |

Of two that are decided in the same moment a lock stands against an unlock, else the one whose id is greater. What the
store has in the end is in force on all nodes. The store's own record of an account is the truth; the index, in which
all are found, follows it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from types import NoneType
from typing import Any

from policyd.accounts import Account, Lock
from policyd.actions import one_line
from policyd.allowances import Allowance
from policyd.records import AllowanceRecord, LockRecord, Span, allowance_records, lock_record

REMEMBERED = 7 * 86400.0
"""Seconds for which the store remembers that an account was freed, or an allowance taken back."""

MAX_TEXT = 256 * 1024
"""Characters of a record: two accounts' names of the longest kind, and a lock's evidence, have room."""

LATEST = 200e9
"""Seconds since the epoch: what is later cannot be shown as a date."""

_MOST = 2**63 - 1
_TIME, _TEXT = (int, float), (str,)
_Kinds = Mapping[str, tuple[type, ...]]

_DECIDED: _Kinds = {"account": _TEXT, "decided": _TIME, "node": _TEXT, "by": _TEXT, "uid": (int, NoneType)}
_LOCK: _Kinds = {
    "recorded": _TIME,
    "since": _TIME,
    "until": (int, float, NoneType),
    "limit": (str, NoneType),
    "count": (int, NoneType),
    "reason": _TEXT,
    "action": _TEXT,
    "effect": _TEXT,
    "evidence": (str, NoneType),
}
_ALLOWANCE: _Kinds = {
    "kind": _TEXT,
    "max": (int, NoneType),
    "since": _TIME,
    "recorded": _TIME,
    "until": _TIME,
    "dated": (bool,),
    "reason": (str, NoneType),
}


@dataclass(frozen=True, slots=True)
class Decision:
    """That an account is locked, or free."""

    account: str
    decided: float
    node: str
    """The node that decided."""
    by: str
    uid: int | None
    lock: LockRecord | None
    """None: it is free."""

    def text(self) -> str:
        """Return it as the store has it."""
        who = {"account": self.account, "decided": self.decided, "node": self.node, "by": self.by, "uid": self.uid}
        if self.lock is None:
            return json.dumps({**who, "free": True})
        return json.dumps({**asdict(self.lock), **who, "id": self.id})

    @property
    def id(self) -> str:
        """What tells this lock from others; "" for an unlock."""
        return "" if self.lock is None else lock_id(self.account, self.lock)

    def is_over(self, now: float) -> bool:
        """Tell whether it says nothing any more: `now` is the store's clock."""
        if self.lock is None:
            return self.decided + REMEMBERED <= now
        return self.lock.until is not None and self.lock.until <= now


@dataclass(frozen=True, slots=True)
class Grant:
    """That an account is allowed something of a limit, or nothing beyond the config."""

    account: str
    limit: str
    decided: float
    node: str
    by: str
    uid: int | None
    allowance: AllowanceRecord | None
    """None: it was taken back."""

    def text(self) -> str:
        """Return it as the store has it."""
        who = {"account": self.account, "limit": self.limit, "decided": self.decided, "node": self.node}
        if self.allowance is None:
            return json.dumps({**who, "by": self.by, "uid": self.uid, "taken": True})
        return json.dumps({**self.allowance._asdict(), **who})

    def is_over(self, now: float, wall: float) -> bool:
        """Tell whether it says nothing any more: `now` is the store's clock, `wall` this node's."""
        if self.allowance is None:
            return self.decided + REMEMBERED <= now
        return self.allowance.until <= (wall if self.allowance.dated else now)


def lock_id(account: str, lock: Lock | LockRecord) -> str:
    """Return what tells this lock from others, on all nodes and after a restart."""
    told = json.dumps([account, lock.since, lock.by, lock.limit, lock.reason])
    return blake2b(told.encode(), digest_size=8).hexdigest()


def locked(account: Account, lock: Lock, decided: float, node: str, span: Span, now: float) -> Decision:
    """Return that an account is locked; `span` tells how far the store's clock is ahead."""
    return Decision(account.name, decided, node, lock.by, lock.uid, lock_record(account, lock, span, now))


def granted(allowance: Allowance, decided: float, node: str, span: Span, now: float) -> Grant:
    """Return that an account is allowed something; `span` tells how far the store's clock is ahead."""
    key = (allowance.account, allowance.limit)
    record = allowance_records({key: allowance}, span, now)[key]
    return Grant(*key, decided, node, allowance.by, allowance.uid, record)


def stands(mine: Decision, theirs: Decision | None, now: float) -> bool:
    """Tell whether a decision that waited stands against what the store has; `now` is the store's clock."""
    if theirs is None or theirs.is_over(now):
        return True
    if mine.id == theirs.id:
        return mine.lock is not None or mine.decided >= theirs.decided
    mine_is_later = (mine.decided, mine.id) > (theirs.decided, theirs.id)
    if mine.lock is None or theirs.lock is None:
        return mine_is_later
    later = mine if mine_is_later else theirs
    by_hand = later.lock is not None and later.lock.limit is None
    return mine_is_later == by_hand


def decision_of(value: Any) -> Decision:
    """Return what the store has of an account's lock; raises ValueError for what no node can have written."""
    found = _fields(value, _DECIDED)
    if value.get("free") is True:
        return Decision(**found, lock=None)
    told = _fields(value, _LOCK)
    told["action"] = one_line(told["action"])
    if not told["action"]:
        raise ValueError("action is empty")
    who = {name: found[name] for name in ("account", "by", "uid")}
    return Decision(**found, lock=LockRecord(**who, **told))


def grant_of(value: Any) -> Grant:
    """Return what the store has of an allowance; raises ValueError for what no node can have written."""
    found = _fields(value, {**_DECIDED, "limit": _TEXT})
    if value.get("taken") is True:
        return Grant(**found, allowance=None)
    who = {name: found[name] for name in ("account", "limit", "by", "uid")}
    return Grant(**found, allowance=AllowanceRecord(**who, **_fields(value, _ALLOWANCE)))


def value_of(text: object) -> dict[str, Any]:
    """Return the JSON object that a text holds; raises ValueError."""
    if isinstance(text, bytes):
        text = text.decode()
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise ValueError("no text, or too long a one")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 -- it is the text that is wrong
    return value


def _fields(value: Any, wanted: _Kinds) -> dict[str, Any]:
    """Return the fields of these names, each of one of its types."""
    found = {name: value.get(name) for name in wanted}
    for name, kinds in wanted.items():
        field = found[name]
        if type(field) not in kinds:
            raise ValueError(f"{name} is of a wrong type")
        if isinstance(field, str):
            field.encode()  # where that cannot be done, no policyd has written it, and none could store it
        if kinds[0] is int and float in kinds and field is not None:
            if not 0 <= field <= LATEST:  # NaN is none either
                raise ValueError(f"{name} is no time")
        elif isinstance(field, int) and abs(field) > _MOST:
            raise ValueError(f"{name} is too large")
    return found
