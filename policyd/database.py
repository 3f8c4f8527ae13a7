"""The SQLite file that outlives the daemon: locks, allowances, counts, tallies, history, notices, hooks, and facts.

One connection, in one thread, does all the writing. Each transaction is durable when it is committed
(synchronous=FULL), and what has been handed over is kept until it is. Source: https://www.sqlite.org/wal.html.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path

from policyd import history_table
from policyd.history import ALL, Kept, Seen
from policyd.records import AccountRecord, AllowanceRecord, AllowanceRecords, LockRecord, Span, restored, storable

SCHEMA_VERSION = 7
PRUNE_STEP = 500
"""Rows that one transaction looks at, and removes where their windows have passed."""

CHECKPOINT = 1000
"""Rows that are written into the log before they are brought into the file."""

ROWS = 100
"""Accounts that one statement writes."""

BUSY_SECONDS = 1.0
"""How long another process may keep the file locked before that is a problem."""

_MIGRATIONS = (
    """
    CREATE TABLE epochs (id INTEGER PRIMARY KEY, boot TEXT NOT NULL, ahead REAL NOT NULL, latest REAL NOT NULL);
    CREATE TABLE accounts (
        name PRIMARY KEY, epoch INTEGER NOT NULL, record TEXT NOT NULL, keep_until REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX accounts_by_age ON accounts (epoch, keep_until);
    CREATE TABLE locks (
        account PRIMARY KEY, epoch INTEGER NOT NULL, recorded REAL NOT NULL, since REAL NOT NULL, until REAL,
        limit_name TEXT, count INTEGER, locked_by, reason, action, effect TEXT NOT NULL, uid INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE seen (hook TEXT PRIMARY KEY) WITHOUT ROWID;
    """,
    "",  # records have their time stamps in base64
    """
    DROP INDEX IF EXISTS accounts_by_age;
    ALTER TABLE accounts RENAME TO accounts_by_name;
    CREATE TABLE accounts (
        name NOT NULL UNIQUE, epoch INTEGER NOT NULL, record TEXT NOT NULL, keep_until REAL NOT NULL
    );
    INSERT INTO accounts SELECT * FROM accounts_by_name;
    DROP TABLE accounts_by_name;
    """,  # new accounts lie side by side now, which makes storing a thousand of them take a third of the time
    f"{history_table.TABLE} ALTER TABLE locks ADD COLUMN evidence TEXT;",
    """
    CREATE TABLE allowances (
        account NOT NULL, limit_name NOT NULL, epoch INTEGER NOT NULL, kind TEXT NOT NULL, max INTEGER,
        since REAL NOT NULL, recorded REAL NOT NULL, until REAL NOT NULL, dated INTEGER NOT NULL,
        allowed_by NOT NULL, uid INTEGER, reason, PRIMARY KEY (account, limit_name)
    ) WITHOUT ROWID;
    """,
    "CREATE TABLE notices (id TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;",
    "CREATE TABLE facts (kind TEXT, name, fact TEXT NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID;",
)
"""What leads from each schema version to the next. An epoch is one run of the daemon: in which boot, how far the wall
clock was ahead of the boot clock when it started, and how far it was when it was last looked at."""

_ACCOUNTS = "SELECT name, epoch, record, keep_until FROM accounts"
_EPOCHS = "SELECT epoch FROM accounts UNION SELECT epoch FROM locks UNION SELECT epoch FROM allowances"
_LOCKS = (
    "SELECT epoch, account, recorded, since, until, limit_name, count, locked_by, reason, action, effect,"
    " uid, evidence FROM locks"
)
"""In the order of LockRecord's fields, behind the epoch."""

_ALLOWANCE_COLUMNS = "account, limit_name, kind, max, since, recorded, until, dated, allowed_by, uid, reason"
"""In the order of AllowanceRecord's fields."""

_DAMAGED = ("malformed", "not a database", "file is encrypted", "no such table", "no such column")


class NewerDatabaseError(Exception):
    """The database was made by a newer policyd; it has not been touched."""


class DamagedDatabaseError(Exception):
    """The file is no database any more."""


@dataclass(slots=True)
class Batch:
    """What is to be written in one transaction."""

    accounts: dict[str, AccountRecord] = field(default_factory=dict)
    locks: dict[str, LockRecord | None] = field(default_factory=dict)
    """None: the account is free."""
    hooks: set[str] = field(default_factory=set)
    latest: float | None = None
    """How far the wall clock is ahead of the boot clock now."""
    messages: list[Seen] = field(default_factory=list)
    allowances: AllowanceRecords = field(default_factory=dict)
    notices: dict[str, str | None] = field(default_factory=dict)
    """By id, as JSON. None: nobody is left to be told."""
    facts: dict[tuple[str, str], str | None] = field(default_factory=dict)
    """By kind and name. None: it is one no more."""

    def __bool__(self) -> bool:
        changed = self.accounts or self.locks or self.allowances or self.hooks or self.messages or self.notices
        return bool(changed or self.facts or self.latest is not None)

    def add_newer(self, newer: Batch) -> None:
        """Take over what a newer batch has; that costs no more than the newer one is large."""
        self.accounts.update(newer.accounts)
        self.locks.update(newer.locks)
        self.allowances.update(newer.allowances)
        self.hooks |= newer.hooks
        self.messages += newer.messages
        self.notices.update(newer.notices)
        self.facts.update(newer.facts)
        if newer.latest is not None:
            self.latest = newer.latest


@dataclass(frozen=True, slots=True)
class Stored:
    """What a database held when it was opened."""

    accounts: dict[str, tuple[Span, str]]
    locks: list[tuple[Span, LockRecord]]
    hooks: frozenset[str]
    allowances: list[tuple[Span, AllowanceRecord]] = field(default_factory=list)
    notices: tuple[tuple[str, str], ...] = ()
    """Ids and JSON."""
    facts: tuple[tuple[str, str, str], ...] = ()
    """Kinds, names and texts."""


class Database:
    """An open database; all of it is used by one thread at a time.

    `boot` names the boot of the machine; `ahead` is how far the wall clock is ahead of the boot clock.
    """

    def __init__(self, path: Path, boot: str, ahead: float) -> None:
        """Open or create the file.

        Raises NewerDatabaseError, DamagedDatabaseError, and sqlite3.Error or OSError for what may pass.
        """
        _refuse_newer(path)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        self._path = path
        self._file = _identity(path)
        self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            with _told_apart():
                self._migrate()
                self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
                self._connection.execute("PRAGMA wal_autocheckpoint = 0")  # see _checkpoint
                self._connection.execute("PRAGMA synchronous = FULL")
                self._boot, self._ahead = boot, ahead
                self._epoch = self._begin_epoch()
                self._spans = self._read_spans()
                self._in_history = 0
                """The row of the history that is to be looked at next."""
                self._looked_at = 0
                """The last row that was looked at for what has passed."""
                self._left = _state(path)
                self._in_log = 0
                """Rows that are in the log alone, at the most."""
        except BaseException:
            self._connection.close()
            raise

    def load(self, wall: float) -> Stored:
        """Return all that is stored, but for accounts whose windows had passed at `wall`, by this run's reckoning."""
        with _told_apart():
            spans, passed = self._spans, self._passed(wall)
            accounts = {
                restored(name): (spans[epoch], record)
                for name, epoch, record, keep_until in self._connection.execute(_ACCOUNTS)
                if keep_until > passed[epoch]
            }
            rows = self._connection.execute(_LOCKS)
            locks = [(spans[epoch], LockRecord(*map(restored, row))) for epoch, *row in rows]
            hooks = frozenset(hook for (hook,) in self._connection.execute("SELECT hook FROM seen"))
            rows = self._connection.execute(f"SELECT epoch, {_ALLOWANCE_COLUMNS} FROM allowances")  # noqa: S608 -- a constant
            allowances = [(spans[epoch], AllowanceRecord(*map(restored, row))) for epoch, *row in rows]
            notices = tuple(self._connection.execute("SELECT id, record FROM notices"))
            rows = self._connection.execute("SELECT kind, name, fact FROM facts")
            facts = tuple((kind, restored(name), fact) for kind, name, fact in rows)
        return Stored(accounts, locks, hooks, allowances, notices, facts)

    def write(self, batch: Batch, wall: float, kept: Kept = ALL) -> None:
        """Write a batch, all or nothing, and remove some of what had passed at `wall`; durable on return.

        Raises DamagedDatabaseError, and sqlite3.Error for what may pass: a full disk, a lock, a read-only folder.
        """
        freed = [(storable(name),) for name, lock in batch.locks.items() if lock is None]
        locked = [lock for lock in batch.locks.values() if lock is not None]
        self._look_after_file()
        with _told_apart(), _transaction(self._connection) as connection:
            self._write_accounts(list(batch.accounts.values()))
            connection.executemany("DELETE FROM locks WHERE account = ?", freed)
            connection.executemany(
                "INSERT OR REPLACE INTO locks (epoch, account, recorded, since, until, limit_name, count, locked_by,"
                " reason, action, effect, uid, evidence) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(self._epoch, *map(storable, astuple(lock))) for lock in locked],
            )
            self._write_allowances(batch.allowances)
            connection.executemany("INSERT OR IGNORE INTO seen VALUES (?)", [(hook,) for hook in batch.hooks])
            self._write_notices(batch.notices)
            self._write_facts(batch.facts)
            history_table.store(connection, batch.messages)
            self._in_history = history_table.prune(connection, self._in_history, kept)
            if batch.latest is not None:
                connection.execute("UPDATE epochs SET latest = ? WHERE id = ?", (batch.latest, self._epoch))
            self._prune(wall)
        self._in_log += len(batch.accounts) + len(batch.locks) + len(batch.allowances)
        self._in_log += len(batch.messages) + len(batch.notices) + len(batch.facts)
        if self._in_log >= CHECKPOINT:
            self._checkpoint()

    def _write_allowances(self, allowances: AllowanceRecords) -> None:
        gone = [tuple(map(storable, key)) for key, record in allowances.items() if record is None]
        given = [(self._epoch, *map(storable, record)) for record in allowances.values() if record is not None]
        self._connection.executemany("DELETE FROM allowances WHERE account = ? AND limit_name = ?", gone)
        self._connection.executemany(
            f"INSERT OR REPLACE INTO allowances (epoch, {_ALLOWANCE_COLUMNS})"  # noqa: S608 -- a constant
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            given,
        )

    def _passed(self, wall: float) -> dict[int, float]:
        """Return the `keep_until` of each epoch that has passed at `wall`."""
        return {epoch: span.wall(wall - self._ahead) for epoch, span in self._spans.items()}

    def _prune(self, wall: float) -> None:
        """Look at the next few accounts, and remove those that have passed."""
        execute, after = self._connection.execute, self._looked_at
        number, upto = execute(
            "SELECT count(*), max(rowid) FROM (SELECT rowid FROM accounts WHERE rowid > ? ORDER BY rowid LIMIT ?)",
            (after, PRUNE_STEP),
        ).fetchone()
        for epoch, passed in self._passed(wall).items() if number else ():
            execute(
                "DELETE FROM accounts WHERE rowid > ? AND rowid <= ? AND epoch = ? AND keep_until <= ?",
                (after, upto, epoch, passed),
            )
        self._looked_at = upto if number == PRUNE_STEP else 0

    def _checkpoint(self) -> None:
        """Bring what is in the log into the file itself: nothing else that we do changes that."""
        self._look_after_file()
        with _told_apart():
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        self._left = _state(self._path)
        self._in_log = 0

    def _write_accounts(self, accounts: list[AccountRecord]) -> None:
        """Write many in one statement: each one takes the interpreter from the reactor, and gives it back."""
        for start in range(0, len(accounts), ROWS):
            some = accounts[start : start + ROWS]
            places = ", ".join(["(?, ?, ?, ?)"] * len(some))
            self._connection.execute(
                f"INSERT INTO accounts (name, epoch, record, keep_until) VALUES {places}"  # noqa: S608
                " ON CONFLICT (name) DO UPDATE"
                " SET epoch = excluded.epoch, record = excluded.record, keep_until = excluded.keep_until",
                [value for a in some for value in (storable(a.name), self._epoch, a.text, a.keep_until)],
            )

    def _write_notices(self, notices: dict[str, str | None]) -> None:
        done = [(id_,) for id_, record in notices.items() if record is None]
        self._connection.executemany("DELETE FROM notices WHERE id = ?", done)
        waiting = [(id_, record) for id_, record in notices.items() if record is not None]
        self._connection.executemany("INSERT OR REPLACE INTO notices VALUES (?, ?)", waiting)

    def _write_facts(self, facts: dict[tuple[str, str], str | None]) -> None:
        gone = [(kind, storable(name)) for (kind, name), fact in facts.items() if fact is None]
        self._connection.executemany("DELETE FROM facts WHERE kind = ? AND name = ?", gone)
        known = [(kind, storable(name), fact) for (kind, name), fact in facts.items() if fact is not None]
        self._connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", known)

    def _look_after_file(self) -> None:
        """Notice what others did to the file; SQLite does not, as long as it has what it needs in its own memory."""
        if _identity(self._path) != self._file:
            raise DamagedDatabaseError("the file has been removed or replaced")
        state = _state(self._path)
        if state == self._left:
            return
        with _told_apart(), closing(sqlite3.connect(self._path, timeout=BUSY_SECONDS)) as other:
            (found,) = other.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise DamagedDatabaseError(f"malformed: {found}")
        self._left = state

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _migrate(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        for number, steps in enumerate(_MIGRATIONS[version:], version + 1):
            self._connection.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {number}; COMMIT;")

    def _read_spans(self) -> dict[int, Span]:
        """Return how to read the times of each epoch.

        Within one boot the boot clock goes on, whatever the wall clock did. Of an earlier boot the wall clock is all
        there is, as it was when it was last looked at in that boot: it may have been set right by then.
        """
        epochs = self._connection.execute("SELECT id, boot, ahead, latest FROM epochs ORDER BY id").fetchall()
        latest = {boot: at_last for _, boot, _, at_last in epochs}
        return {
            number: Span(ahead if boot == self._boot else ahead - latest[boot] + self._ahead)
            for number, boot, ahead, _ in epochs
        }

    def _begin_epoch(self) -> int:
        """Note this run of the daemon; forget those of which nothing is stored but the last one of a boot."""
        with _transaction(self._connection) as connection:
            used = {id_ for (id_,) in connection.execute(_EPOCHS)}
            known = dict(connection.execute("SELECT id, boot FROM epochs ORDER BY id"))
            if not used <= known.keys():
                raise DamagedDatabaseError("a row belongs to no run of the daemon")
            last = {boot: id_ for id_, boot in known.items()}
            kept = used | {last[known[id_]] for id_ in used}
            connection.executemany("DELETE FROM epochs WHERE id = ?", [(id_,) for id_ in known.keys() - kept])
            values = (self._boot, self._ahead, self._ahead)
            epoch = connection.execute("INSERT INTO epochs (boot, ahead, latest) VALUES (?, ?, ?)", values).lastrowid
        return epoch or 0


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def _told_apart() -> Iterator[None]:
    """Tell damage, which does not pass, from trouble that may."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if any(word in str(error) for word in _DAMAGED):
            raise DamagedDatabaseError(str(error)) from error
        raise


def set_aside(path: Path, stamp: str) -> Path:
    """Move a damaged database, and what belongs to it, out of the way; return where the file is now."""
    names = (f"{path.name}.corrupt-{stamp}{again}" for again in ("", *(f"-{number}" for number in range(2, 100))))
    aside = next((path.with_name(name) for name in names if not path.with_name(name).exists()), path)
    for ending in ("", "-wal", "-shm"):
        part = path.with_name(path.name + ending)
        if part.exists():
            part.rename(aside.with_name(aside.name + ending))
    return aside


def _refuse_newer(path: Path) -> None:
    """Look at the schema version without touching anything, a log that a killed daemon has left behind included."""
    if not path.exists():
        return
    log = path.with_name(f"{path.name}-wal")
    how = "mode=ro" if log.exists() else "immutable=1"  # without a log, reading must not begin one
    with _told_apart(), closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise NewerDatabaseError(f"is of schema {version}, and this policyd knows {SCHEMA_VERSION}")


def _state(path: Path) -> tuple[int, int]:
    """Return what is different after somebody has written to a file."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _identity(path: Path) -> tuple[int, int] | None:
    """Tell one file from another of the same name; None: there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
