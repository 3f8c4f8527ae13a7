"""The history in the database: a row for each message, in the order in which they were decided on.

What is shown of a message is plain text, whatever came over the wire; none of it is a recipient.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from policyd.accounts import Evidence
from policyd.actions import Effect
from policyd.envelope import size_of
from policyd.history import Kept, Message, Seen, Wanted
from policyd.records import restored, storable
from policyd.verdict import PASS
from policyd.wire import QUEUE_ID, Request, key

TABLE = """
    CREATE TABLE history (
        account NOT NULL, began REAL NOT NULL, at REAL NOT NULL, queue_id TEXT NOT NULL, client TEXT NOT NULL,
        sender TEXT NOT NULL, recipients INTEGER NOT NULL, size INTEGER NOT NULL, verdict TEXT NOT NULL,
        action TEXT NOT NULL, limit_name TEXT, locked INTEGER NOT NULL
    );
    CREATE INDEX history_by_account ON history (account, at);
    CREATE INDEX history_by_queue_id ON history (queue_id) WHERE queue_id <> '';
"""

ROWS = 50
"""Messages that one statement adds."""

PRUNE_STEP = 500
"""Rows that one transaction looks at, and removes where they are too old, or too many."""

MAX_TEXT = 500
"""Characters that are kept of a sender, or of anything else that comes from outside."""

LOOKED_AT = 10_000
"""The latest messages of an account that are looked at for evidence."""

SHOWN = 5
"""The most frequent clients and senders that are evidence, and so many queue ids twice."""

_SENDER, _CLIENT = key("sender"), key("client_address")
_NO_VALUES = (b"", b"", b"", b"", b"", b"")
_LATEST = (
    "WITH latest AS (SELECT rowid AS id, * FROM history WHERE account = ? AND at >= ?"
    " ORDER BY at DESC, id DESC LIMIT ?)"
)
_COLUMNS = "account, began, at, queue_id, client, sender, recipients, size, verdict, action, limit_name, locked"


def message(seen: Seen) -> Message:
    """Return what is kept of a message that was seen."""
    request, verdict = Request(seen.request, _NO_VALUES), seen.verdict
    get = request.get
    told = verdict.effect.value if verdict is PASS or verdict.effect is not Effect.PASSED else "warned"
    return Message(
        seen.account,
        seen.began,
        seen.at,
        _text(get(QUEUE_ID)),
        _text(get(_CLIENT)),
        _text(get(_SENDER)),
        seen.recipients,
        size_of(request),
        told,
        verdict.word,
        verdict.limit,
        verdict.by_lock,
    )


def store(connection: sqlite3.Connection, seen: Sequence[Seen]) -> None:
    """Add messages; of one that was told of several times, the last counts."""
    if again := [(storable(each.account), each.began) for each in seen if each.again]:
        seen = list({(each.account, each.began): each for each in seen}.values())
        connection.executemany("DELETE FROM history WHERE account = ?1 AND at >= ?2 AND began = ?2", again)
    insert(connection, [message(each) for each in seen])


def insert(connection: sqlite3.Connection, messages: Sequence[Message]) -> None:
    """Add messages as they are, many in one statement, each of which takes the interpreter from the reactor."""
    for start in range(0, len(messages), ROWS):
        some = messages[start : start + ROWS]
        places = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"] * len(some))
        connection.execute(
            f"INSERT INTO history ({_COLUMNS}) VALUES {places}",  # noqa: S608
            [value for account, *rest in some for value in (storable(account), *rest)],
        )


def prune(connection: sqlite3.Connection, after: int, kept: Kept) -> int:
    """Remove some of what is not to be kept: of the oldest rows, and of those `after` a row; return where to go on."""
    ends = "SELECT (SELECT min(rowid) FROM history), (SELECT max(rowid) FROM history)"
    first, last = connection.execute(ends).fetchone()
    if first is None:
        return 0
    for start in (first, max(after, first)):
        connection.execute(
            "DELETE FROM history WHERE rowid BETWEEN ? AND ? AND (at < ? OR at > ? OR rowid <= ?)",
            (start, start + PRUNE_STEP - 1, kept.since, kept.until, last - kept.rows),
        )
    following: int = max(after, first) + PRUNE_STEP
    return 0 if following > last else following


def find(connection: sqlite3.Connection, wanted: Wanted) -> list[Message]:
    """Return the messages that are wanted, the latest first."""
    conditions, values = ["at >= ?"], [wanted.since]  # type: tuple[list[str], list[Any]]
    if wanted.account is not None:
        conditions.append("account = ?")
        values.append(storable(wanted.account))
    if wanted.queue_ids:
        conditions.append(f"queue_id <> '' AND queue_id IN ({', '.join('?' * len(wanted.queue_ids))})")
        values += wanted.queue_ids
    if wanted.verdict is not None:
        conditions.append("verdict = ?")
        values.append(wanted.verdict)
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM history WHERE {' AND '.join(conditions)} ORDER BY at DESC, rowid DESC LIMIT ?",  # noqa: S608
        (*values, wanted.most),
    )
    return [_message(row) for row in rows]


def evidence(connection: sqlite3.Connection, account: str, since: float, first: float | None) -> Evidence:
    """Return what an account did `since` then, by the wall clock; `first` is its window's first event."""
    whose = (storable(account), since, LOOKED_AT)
    count, recipients, earliest, distinct_clients, distinct_senders = connection.execute(
        f"{_LATEST} SELECT count(*), total(recipients), min(at),"  # noqa: S608 -- it is a constant
        " count(DISTINCT nullif(client, '')), count(DISTINCT nullif(sender, ''))"
        " FROM latest",
        whose,
    ).fetchone()
    clients, senders = (
        tuple(
            connection.execute(
                f"{_LATEST} SELECT {column}, count(*) FROM latest WHERE {column} <> ''"  # noqa: S608
                f" GROUP BY {column} ORDER BY count(*) DESC, max(at) DESC LIMIT ?",
                (*whose, SHOWN),
            )
        )
        for column in ("client", "sender")
    )
    ids = connection.execute(
        f"{_LATEST} SELECT queue_id FROM latest WHERE queue_id <> '' AND verdict <> 'refused'"  # noqa: S608 -- as above
        " ORDER BY at DESC, id DESC LIMIT ?",
        (*whose, 2 * SHOWN),
    )
    known = earliest if first is None else first
    queue_ids = tuple(id_ for (id_,) in ids)
    return Evidence(known, count, int(recipients), clients, senders, queue_ids, distinct_clients, distinct_senders)


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")[:MAX_TEXT]


def _message(row: Sequence[Any]) -> Message:
    account, *rest, locked = row
    return Message._make((restored(account), *rest, bool(locked)))
