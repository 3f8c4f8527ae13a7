"""The database alone, on a file: what comes back, what is refused, what is noticed, and how times outlive a clock."""

from __future__ import annotations

import itertools
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.actions import Effect
from policyd.database import (
    PRUNE_STEP,
    SCHEMA_VERSION,
    Batch,
    DamagedDatabaseError,
    Database,
    NewerDatabaseError,
    Stored,
    set_aside,
)
from policyd.records import AccountRecord, AllowanceRecord, LockRecord, Span, restore_lock

BOOT, OTHER_BOOT = "boot-1", "boot-2"
AHEAD = 1_795_420_000.0
"""How far the wall clock is ahead of the boot clock."""

WALL = AHEAD + 10_000
HOUR = 3600.0

HOSTILE = [
    "",
    " ",
    "anna@example.com",
    "123",
    "1e3",
    "'; DROP TABLE accounts; --",
    "a\0b",
    "a\nb\r\n",
    "jürgen@例え.example",
    "\ud800 alone",
    "\udcff\udcfe",
    "\ud83d\ude00",
    "\U0001f600",
    "%s ? :name",
    "x" * 9000,
    "\udcff" * 9000,
]
NAMES = [ascii(name[:20]) for name in HOSTILE]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the database is to be."""
    return tmp_path / "policyd.sqlite"


def opened(path: Path, boot: str = BOOT, ahead: float = AHEAD) -> closing[Database]:
    """Open the database, and close it at the end of the block."""
    return closing(Database(path, boot, ahead))


def account(name: str, text: str = "{}", keep_until: float = WALL + HOUR) -> AccountRecord:
    """Return the record of an account."""
    return AccountRecord(name, text, keep_until)


def lock(name: str, reason: str = "spam", until: float | None = None, limit: str | None = "messages") -> LockRecord:
    """Return the record of a lock."""
    return LockRecord(
        account=name,
        recorded=WALL,
        since=WALL - 5,
        until=until,
        limit=limit,
        count=501,
        by="policyd",
        reason=reason,
        action=f"REJECT 5.7.1 {name}",
        effect=Effect.REFUSED.value,
        uid=1000,
    )


def allowance(
    name: str, limit: str, reason: str | None = "news", *, dated: bool = True, **other: int | None
) -> AllowanceRecord:
    """Return the record of an allowance."""
    values = {"max": 2000, "uid": 1000, **other}
    return AllowanceRecord(
        name, limit, "messages", values["max"], WALL - 5, WALL, WALL + HOUR, dated, "anna", values["uid"], reason
    )


def allowances_in(path: Path) -> list[AllowanceRecord]:
    """Return the allowances that another run of the daemon finds."""
    return [record for _, record in load(path).allowances]


def accounts_of(*records: AccountRecord) -> Batch:
    """Return a batch that writes these accounts."""
    return Batch(accounts={record.name: record for record in records})


def locks_of(*records: LockRecord) -> Batch:
    """Return a batch that writes these locks."""
    return Batch(locks={record.account: record for record in records})


def load(path: Path, boot: str = BOOT, ahead: float = AHEAD, wall: float = WALL) -> Stored:
    """Return what another run of the daemon finds."""
    with opened(path, boot, ahead) as database:
        return database.load(wall)


def write(path: Path, batch: Batch, boot: str = BOOT, ahead: float = AHEAD, wall: float = WALL) -> None:
    """Write a batch in a run of its own."""
    with opened(path, boot, ahead) as database:
        database.write(batch, wall)


def parts(path: Path) -> dict[str, bytes]:
    """Return the files in the database's folder, with what is in them."""
    return {part.name: part.read_bytes() for part in path.parent.iterdir()}


def untouched(path: Path, before: dict[str, bytes]) -> bool:
    """Tell whether all files are as they were; whoever reads may leave an empty log, and the index of one."""
    after = parts(path)
    new = {name: content for name, content in after.items() if name not in before and not name.endswith("-shm")}
    return all(after[name] == content for name, content in before.items()) and not any(new.values())


def version_of(path: Path) -> int:
    """Return the schema version that the file names."""
    with closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def test_what_is_written_comes_back(path: Path) -> None:
    """Accounts, locks and hooks are there at the next start, as they were."""
    batch = accounts_of(account("anna", '{"a": 1}'), account("bert", '{"b": 2}'))
    locks = [lock("bert"), lock("carl", until=WALL + 60, limit=None)]
    batch.locks = {record.account: record for record in locks}
    batch.hooks = {"RCPT", "DATA"}
    write(path, batch)
    found = load(path)
    assert {name: text for name, (_, text) in found.accounts.items()} == {"anna": '{"a": 1}', "bert": '{"b": 2}'}
    assert sorted((record for _, record in found.locks), key=lambda record: record.account) == locks
    assert found.hooks == {"RCPT", "DATA"}


@pytest.mark.parametrize("name", HOSTILE, ids=NAMES)
def test_a_hostile_name_comes_back_as_it_was(path: Path, name: str) -> None:
    """Neither SQL, NUL, nor lone surrogates that JSON can bring, nor numbers that look like one change a name."""
    batch = accounts_of(account(name))
    batch.locks[name] = lock(name, reason=name, limit=name)
    write(path, batch)
    found = load(path)
    assert list(found.accounts) == [name]
    assert [record for _, record in found.locks] == [lock(name, reason=name, limit=name)]
    write(path, Batch(locks={name: None}))
    assert load(path).locks == []


@pytest.mark.parametrize("name", HOSTILE, ids=NAMES)
def test_allowances_come_back_as_they_were(path: Path, name: str) -> None:
    """One is replaced by the next for the same account and limit, and by no other; one that is taken is gone."""
    given_first = [allowance(name, "a"), allowance(name, "b", name), allowance("else", "a", max=None, uid=None)]
    write(path, Batch(allowances={(each.account, each.limit): each for each in given_first}))
    assert sorted(allowances_in(path), key=given_first.index) == given_first
    latest = allowance(name, "a", None, dated=False, max=10**12)
    write(path, Batch(allowances={(name, "a"): latest, (name, "b"): None, ("nobody", "a"): None}))
    assert sorted(allowances_in(path), key=lambda each: each.account == "else") == [latest, given_first[2]]


def test_a_run_of_which_an_allowance_is_left_is_remembered(path: Path) -> None:
    """Its times are read by the clocks of the run in which it was given."""
    with opened(path, ahead=1000.0) as database:
        database.write(Batch(allowances={("anna", "a"): allowance("anna", "a")}), WALL)
    write(path, accounts_of(account("bert")))
    with opened(path, ahead=5.0) as database:
        assert [span.offset for span, _ in database.load(WALL).allowances] == [1000.0]


@settings(max_examples=20)
@given(st.lists(st.text(st.characters()), unique=True, max_size=8))
def test_names_never_run_into_each_other(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    """However alike two names are, they are two rows."""
    path = tmp_path_factory.mktemp("database") / "policyd.sqlite"
    write(path, accounts_of(*(account(name, str(number)) for number, name in enumerate(names))))
    found = load(path).accounts
    assert {name: text for name, (_, text) in found.items()} == {name: str(n) for n, name in enumerate(names)}


def test_the_latest_record_counts(path: Path) -> None:
    """A row is replaced, in the same run and in later ones."""
    with opened(path) as database:
        database.write(accounts_of(account("anna", "1")), WALL)
        database.write(accounts_of(account("anna", "2")), WALL)
        assert [text for _, text in database.load(WALL).accounts.values()] == ["2"]
    write(path, accounts_of(account("anna", "3")))
    assert [text for _, text in load(path).accounts.values()] == ["3"]


def test_a_batch_is_written_whole_or_not_at_all(path: Path) -> None:
    """When one row of a batch cannot be written, none is."""
    batch = accounts_of(account("anna"))
    batch.locks = {"anna": lock("anna")}
    batch.hooks = {"DATA", 3j}  # type: ignore[arg-type]  # what SQLite does not take stands for any error
    with opened(path) as database:
        with pytest.raises(sqlite3.Error):
            database.write(batch, WALL)
        assert database.load(WALL) == Stored({}, [], frozenset())
        database.write(accounts_of(account("bert")), WALL)
    assert list(load(path).accounts) == ["bert"]


def test_a_newer_batch_goes_over_an_older_one() -> None:
    """What could not be written goes along with what comes next, and never over it."""
    newer = Batch({"anna": account("anna", "new")}, {"anna": None}, {"DATA"}, None)
    older = Batch(
        {"anna": account("anna", "old"), "bert": account("bert")},
        {"anna": lock("anna"), "bert": lock("bert")},
        {"RCPT"},
        5.0,
    )
    older.add_newer(newer)
    assert older == Batch(
        {"anna": account("anna", "new"), "bert": account("bert")},
        {"anna": None, "bert": lock("bert")},
        {"RCPT", "DATA"},
        5.0,
    )
    older.add_newer(Batch(latest=6.0))
    assert older.latest == 6.0


def test_notices_are_kept_until_they_are_done_with(path: Path) -> None:
    """A newer record goes over an older one, and what is done with is gone."""
    write(path, Batch(notices={"a": "1", "b": "2"}))
    write(path, Batch(notices={"a": None, "b": "3", "c": "4", "d": None}))
    assert dict(load(path).notices) == {"b": "3", "c": "4"}


def test_a_database_of_schema_5_gets_a_place_for_notices(path: Path) -> None:
    """What else is in it stays."""
    write(path, accounts_of(account("anna", "as it was")))
    with closing(sqlite3.connect(path)) as older:
        older.executescript("DROP TABLE notices; DROP TABLE facts; PRAGMA user_version = 5;")
    write(path, Batch(notices={"a": "1"}))
    stored = load(path)
    assert (list(stored.accounts), dict(stored.notices)) == (["anna"], {"a": "1"})


def test_facts_are_kept_until_they_are_facts_no_more(path: Path) -> None:
    """A newer one goes over an older one of the same kind and name, whatever the name."""
    write(path, Batch(facts={("a", ""): "1", ("a", "\ud800"): "2", ("b", ""): "3"}))
    write(path, Batch(facts={("a", ""): None, ("b", ""): "4", ("c", ""): None}))
    assert load(path).facts == (("a", "\ud800", "2"), ("b", "", "4"))


def test_a_database_of_schema_6_gets_a_place_for_facts(path: Path) -> None:
    """What else is in it stays."""
    write(path, accounts_of(account("anna", "as it was")))
    with closing(sqlite3.connect(path)) as older:
        older.executescript("DROP TABLE facts; PRAGMA user_version = 6;")
    write(path, Batch(facts={("a", "b"): "1"}))
    stored = load(path)
    assert (list(stored.accounts), stored.facts) == (["anna"], (("a", "b", "1"),))


@pytest.mark.parametrize(
    ("batch", "something"),
    [
        (Batch(), False),
        (accounts_of(account("anna")), True),
        (Batch(locks={"anna": None}), True),
        (Batch(notices={"a": None}), True),
        (Batch(facts={("a", ""): None}), True),
        (Batch(hooks={"RCPT"}), True),
        (Batch(latest=0.0), True),
    ],
)
def test_a_batch_knows_whether_there_is_anything_to_write(batch: Batch, something: bool) -> None:
    """An empty batch costs no transaction."""
    assert bool(batch) is something


def test_what_has_passed_is_removed_in_small_steps(path: Path) -> None:
    """No transaction looks at more than PRUNE_STEP rows, and in the end all that have passed are gone."""
    with opened(path) as database, closing(sqlite3.connect(path)) as other:
        passing = [account(f"user{number}", keep_until=WALL + 60) for number in range(2 * PRUNE_STEP + 100)]
        database.write(accounts_of(account("anna", keep_until=WALL + 61), *passing), WALL)
        left = [len(passing) + 1]
        for _ in range(5):  # the first may begin anywhere, and so look at the end of the table alone
            database.write(Batch(), WALL + 60)
            left += other.execute("SELECT count(*) FROM accounts").fetchone()
        assert all(0 <= before - after <= PRUNE_STEP for before, after in itertools.pairwise(left))
        assert left[-1] == 1
        assert list(database.load(WALL + 60).accounts) == ["anna"]


def test_what_has_passed_is_not_loaded(path: Path) -> None:
    """An account whose last event has left its window before the start is not taken in, nor is one that leaves now."""
    write(path, accounts_of(account("anna", keep_until=WALL + 60), account("bert", keep_until=WALL + 61)))
    assert list(load(path, wall=WALL + 60).accounts) == ["bert"]


def test_locks_never_pass(path: Path) -> None:
    """Pruning accounts leaves locks alone, however old."""
    batch = accounts_of(account("anna", keep_until=WALL + 1))
    batch.locks = {"anna": lock("anna")}
    write(path, batch)
    write(path, Batch(hooks={"RCPT"}), wall=WALL + 1e9)
    found = load(path, wall=WALL + 1e9)
    assert (found.accounts, [record.account for _, record in found.locks]) == ({}, ["anna"])


def test_a_fresh_database_names_its_schema(path: Path) -> None:
    """A file that is not there is made, with the version in user_version."""
    with opened(path):
        assert version_of(path) == SCHEMA_VERSION


def test_an_empty_file_becomes_a_database(path: Path) -> None:
    """A file of no bytes is schema 0: all migrations run."""
    path.touch()
    write(path, accounts_of(account("anna")))
    assert (version_of(path), list(load(path).accounts)) == (SCHEMA_VERSION, ["anna"])


def test_opening_again_migrates_nothing(path: Path) -> None:
    """What is of the current schema stays as it is."""
    write(path, accounts_of(account("anna")))
    for _ in range(3):
        assert list(load(path).accounts) == ["anna"]
    assert version_of(path) == SCHEMA_VERSION


def test_a_database_of_schema_1_is_taken_over(path: Path) -> None:
    """What is in its tables is kept, and read as it was written."""
    names = ["anna", "\udc80"]
    write(path, accounts_of(*(account(name, "as it was") for name in names)))
    with closing(sqlite3.connect(path)) as older:
        older.executescript(
            """
            CREATE TABLE older (
                name PRIMARY KEY, epoch INTEGER NOT NULL, record TEXT NOT NULL, keep_until REAL NOT NULL
            ) WITHOUT ROWID;
            INSERT INTO older SELECT * FROM accounts;
            DROP TABLE accounts;
            ALTER TABLE older RENAME TO accounts;
            CREATE INDEX accounts_by_age ON accounts (epoch, keep_until);
            DROP TABLE history;
            ALTER TABLE locks DROP COLUMN evidence;
            DROP TABLE allowances;
            DROP TABLE notices;
            DROP TABLE facts;
            PRAGMA user_version = 1;
            """
        )
    assert [(name, record) for name, (_, record) in load(path).accounts.items()] == [(n, "as it was") for n in names]
    with closing(sqlite3.connect(path)) as taken:
        assert taken.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").fetchall() == [
            ("accounts",),
            ("allowances",),
            ("epochs",),
            ("facts",),
            ("history",),
            ("locks",),
            ("notices",),
            ("seen",),
        ]
        assert taken.execute("SELECT name FROM sqlite_schema WHERE name = 'accounts_by_age'").fetchall() == []
    assert version_of(path) == SCHEMA_VERSION


def test_what_has_passed_is_looked_for_again_and_again(path: Path) -> None:
    """When all accounts have been looked at, it begins anew; names that are stored as bytes are among them."""
    with opened(path) as database:
        database.write(accounts_of(*(account(name, keep_until=WALL + 60) for name in ("anna", "\udc80"))), WALL)
        for after in (0, 0, 60, 60, 60):
            database.write(Batch(), WALL + after)
        assert database.load(WALL).accounts == {}


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_a_newer_schema_is_refused_and_not_touched(path: Path, journal: str) -> None:
    """Not a byte of a database that a newer policyd has made is changed."""
    write(path, accounts_of(account("anna")))
    with closing(sqlite3.connect(path)) as newer:
        newer.execute(f"PRAGMA journal_mode = {journal}")
        newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = parts(path)
    with pytest.raises(NewerDatabaseError, match=f"^is of schema {SCHEMA_VERSION + 1}, and .* {SCHEMA_VERSION}$"):
        Database(path, BOOT, AHEAD)
    assert untouched(path, before)


def test_a_newer_schema_after_a_crash_is_refused_and_not_touched(path: Path, tmp_path: Path) -> None:
    """Nor is a write-ahead log taken in that a newer policyd has left behind when it was killed."""
    write(path, accounts_of(account("anna")))
    crashed = tmp_path / "crashed" / path.name
    crashed.parent.mkdir()
    with closing(sqlite3.connect(path)) as newer:
        newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        for ending in ("", "-wal"):
            Path(f"{crashed}{ending}").write_bytes(Path(f"{path}{ending}").read_bytes())
    before = parts(crashed)
    with pytest.raises(NewerDatabaseError):
        Database(crashed, BOOT, AHEAD)
    assert untouched(crashed, before)


def test_only_the_owner_can_read_it(path: Path) -> None:
    """The file and what SQLite puts beside it are 0600: they tell who mails whom when."""
    with opened(path) as database:
        database.write(accounts_of(account("anna")), WALL)
        modes = {part.name: stat.S_IMODE(part.stat().st_mode) for part in path.parent.iterdir()}
    assert modes == {path.name: 0o600, f"{path.name}-wal": 0o600, f"{path.name}-shm": 0o600}


def test_a_symbolic_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    """Who may write in the folder must not have the daemon make or change a file elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    path.symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic"):
        Database(path, BOOT, AHEAD)
    assert not elsewhere.exists()


def test_each_write_is_synchronous_and_in_a_log(path: Path) -> None:
    """WAL, so that readers and the writer do not wait for each other."""
    with opened(path), closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def _filled(path: Path) -> None:
    batch = accounts_of(*(account(f"user{number}", f'"{number:0200}"') for number in range(2000)))
    batch.locks = {f"user{number}": lock(f"user{number}") for number in range(100)}
    write(path, batch)
    assert path.stat().st_size > 400_000


def _garbage(path: Path) -> None:
    path.write_bytes(b"this is no database. " * 1000)


def _short_garbage(path: Path) -> None:
    path.write_bytes(b"no")


def _truncated(size: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.truncate(size)

    return damage


def _zeroed(page: int, pages: int = 1, size: int = 4096) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(page * size)
            file.write(bytes(pages * size))

    return damage


DAMAGES = {
    "garbage": _garbage,
    "two bytes": _short_garbage,
    "truncated in the header": _truncated(50),
    "truncated in the first page": _truncated(1000),
    "truncated after the first page": _truncated(4096),
    "truncated in the middle": _truncated(150_000),
    "truncated in the middle of a page": _truncated(202_000),
    "zeroed header": _zeroed(0),
    "zeroed tables": _zeroed(1, 6),
    "zeroed middle": _zeroed(20, 40),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_told_from_trouble_that_passes(path: Path, damage: Callable[[Path], None]) -> None:
    """Whatever the damage, opening, loading or writing says that it is one."""
    _filled(path)
    damage(path)

    def use() -> None:
        with opened(path) as database:
            database.load(WALL)
            database.write(accounts_of(*(account(f"user{number}", "again") for number in range(2000))), WALL)

    with pytest.raises(DamagedDatabaseError):
        use()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_noticed_while_it_is_open(path: Path, damage: Callable[[Path], None]) -> None:
    """What happens to the file under a running daemon is seen at the latest when all of it is written again."""
    _filled(path)
    with opened(path) as database:
        database.load(WALL)
        with closing(sqlite3.connect(path)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        damage(path)

        def write_twice() -> None:
            for text in ("again", "and again"):
                database.write(accounts_of(*(account(f"user{number}", text) for number in range(2000))), WALL)
            with opened(path) as next_run:
                next_run.load(WALL)

        with pytest.raises(DamagedDatabaseError):
            write_twice()


def test_a_removed_file_is_damage(path: Path) -> None:
    """What is written into a file that has no name any more would be lost."""
    with opened(path) as database:
        path.unlink()
        with pytest.raises(DamagedDatabaseError, match="removed"):
            database.write(accounts_of(account("anna")), WALL)


def test_a_replaced_file_is_damage(path: Path, tmp_path: Path) -> None:
    """Another file under the same name, such as a backup brought back, is not the one that is open."""
    with opened(path) as database:
        backup = tmp_path / "backup"
        backup.touch()
        backup.rename(path)
        with pytest.raises(DamagedDatabaseError):
            database.write(accounts_of(account("anna")), WALL)


@pytest.mark.parametrize("table", ["accounts", "locks"])
def test_a_row_of_an_epoch_that_is_gone_is_damage(path: Path, table: str) -> None:
    """A time that cannot be read is not guessed."""
    batch = accounts_of(account("anna"))
    batch.locks = {"anna": lock("anna")}
    write(path, batch)
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"UPDATE {table} SET epoch = 99")  # noqa: S608 -- no user's text
        other.commit()
    with pytest.raises(DamagedDatabaseError):
        load(path)


def test_a_missing_table_is_damage(path: Path) -> None:
    """A file that says it is of our schema and is not will not heal by itself."""
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def use() -> None:
        with opened(path) as database:
            database.load(WALL)

    with pytest.raises(DamagedDatabaseError):
        use()


def test_a_file_that_another_process_has_locked_is_trouble_that_passes(path: Path) -> None:
    """It is an error of SQLite's, and writing works when the lock is gone."""
    with opened(path) as database, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            database.write(accounts_of(account("anna")), WALL)
        other.execute("ROLLBACK")
        database.write(accounts_of(account("bert")), WALL)
        assert list(database.load(WALL).accounts) == ["bert"]


def test_a_full_disk_is_trouble_that_passes(path: Path) -> None:
    """What does not fit is not written, and what was there stays."""
    with opened(path) as database:
        database.write(accounts_of(account("anna")), WALL)
        database._connection.execute("PRAGMA max_page_count = 20")
        large = [account(f"user{number}", "x" * 9000) for number in range(100)]
        with pytest.raises(sqlite3.OperationalError, match="full"):
            database.write(accounts_of(*large), WALL)
        assert list(database.load(WALL).accounts) == ["anna"]
        database._connection.execute("PRAGMA max_page_count = 1000000")
        database.write(accounts_of(*large), WALL)
        assert len(database.load(WALL).accounts) == 101


def test_all_parts_are_set_aside(path: Path) -> None:
    """The file, its log and the log's index move together, and nothing is left in the way."""
    contents = {"": b"file", "-wal": b"log", "-shm": b"index"}
    for ending, content in contents.items():
        Path(f"{path}{ending}").write_bytes(content)
    aside = set_aside(path, "20261123-080000")
    assert aside.name == "policyd.sqlite.corrupt-20261123-080000"
    assert parts(path) == {f"{aside.name}{ending}": content for ending, content in contents.items()}


def test_what_was_set_aside_before_is_not_overwritten(path: Path) -> None:
    """Two damages in one second are two files: a person may want to look into both."""
    for content in (b"first", b"second"):
        path.write_bytes(content)
        set_aside(path, "20261123-080000")
    assert sorted(parts(path).values()) == [b"first", b"second"]


def test_setting_aside_takes_what_is_there(path: Path) -> None:
    """A file that is gone leaves nothing to move but what is beside it."""
    Path(f"{path}-wal").write_bytes(b"log")
    aside = set_aside(path, "20261123-080000")
    assert parts(path) == {f"{aside.name}-wal": b"log"}


def events_after(path: Path, wall: float, boot: str, ahead: float) -> float:
    """Return at what boot time another run of the daemon puts what was stored as `wall`."""
    span, _ = load(path, boot, ahead, wall=0.0).accounts["anna"]
    return span.boot(wall)


@pytest.mark.parametrize("step", [0.0, 1.0, -1.0, HOUR, -HOUR, 1e8, -1e8])
def test_in_the_same_boot_times_are_exact_whatever_the_wall_clock_did(path: Path, step: float) -> None:
    """The boot clock went on meanwhile: an event is as old as it is."""
    write(path, accounts_of(account("anna", keep_until=2 * WALL)))
    assert events_after(path, Span(AHEAD).wall(12_345.0), BOOT, AHEAD + step) == pytest.approx(12_345.0, abs=1e-5)


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_in_the_same_boot_nothing_passes_before_its_time(path: Path, step: float) -> None:
    """A wall clock that was set by an hour between two runs makes no row pass that has half an hour left."""
    write(path, accounts_of(account("anna", keep_until=WALL + 1800)))
    now = 10_060.0  # a minute later
    with opened(path, ahead=AHEAD + step) as database:
        wall = Span(AHEAD + step).wall(now)
        assert list(database.load(wall).accounts) == ["anna"]
        database.write(Batch(hooks={"RCPT"}), wall)
    assert list(load(path, ahead=AHEAD + step, wall=wall).accounts) == ["anna"]


def test_after_a_reboot_ages_are_those_of_the_wall_clock(path: Path) -> None:
    """Ten minutes on the wall clock, from an event before to the start after, are ten minutes."""
    write(path, accounts_of(account("anna")))
    event = 10_000.0
    start, ahead = 30.0, AHEAD + 10_000 + 600 - 30
    assert start - events_after(path, Span(AHEAD).wall(event), OTHER_BOOT, ahead) == pytest.approx(600, abs=1e-5)


@pytest.mark.parametrize("step", [HOUR, -HOUR, 1e8])
def test_after_a_reboot_a_clock_that_was_corrected_in_the_last_run_is_reckoned_with(path: Path, step: float) -> None:
    """The machine came up with a wrong clock that was set right later: what was stored before is right all the same."""
    with opened(path) as database:
        database.write(accounts_of(account("anna", keep_until=3 * WALL)), WALL)
        database.write(Batch(latest=AHEAD + step), WALL)
    event = 10_000.0
    start, ahead = 30.0, AHEAD + step + 10_000 + 600 - 30
    assert start - events_after(path, Span(AHEAD).wall(event), OTHER_BOOT, ahead) == pytest.approx(600, abs=1e-5)


def test_after_a_reboot_a_clock_that_was_corrected_between_two_runs_is_reckoned_with(path: Path) -> None:
    """A row of the run before last belongs to the same boot, and to the same clock."""
    write(path, accounts_of(account("anna", keep_until=WALL + 1e6)))
    write(path, Batch(hooks={"RCPT"}), ahead=AHEAD + HOUR)
    event = 10_000.0
    start, ahead = 30.0, AHEAD + HOUR + 10_000 + 600 - 30
    assert start - events_after(path, Span(AHEAD).wall(event), OTHER_BOOT, ahead) == pytest.approx(600, abs=1e-5)


def test_after_a_reboot_a_clock_that_was_corrected_in_a_later_run_is_reckoned_with(path: Path) -> None:
    """What a run learns of the clock holds for all that was stored in the same boot."""
    write(path, accounts_of(account("anna", keep_until=WALL + 1e6)))
    write(path, Batch(latest=AHEAD + HOUR))
    event = 10_000.0
    start, ahead = 30.0, AHEAD + HOUR + 10_000 + 600 - 30
    assert start - events_after(path, Span(AHEAD).wall(event), OTHER_BOOT, ahead) == pytest.approx(600, abs=1e-5)


@pytest.mark.parametrize("boot", [BOOT, OTHER_BOOT])
@pytest.mark.parametrize("step", [0.0, 30.0, HOUR, -HOUR, -1e8])
def test_a_lock_has_no_more_time_left_than_when_it_was_stored(path: Path, boot: str, step: float) -> None:
    """Whatever the clocks did, an hour's lock is over an hour after the start at the latest."""
    write(path, locks_of(lock("anna", until=WALL + HOUR)))
    ((span, record),) = load(path, boot, AHEAD + step).locks
    found = restore_lock(record, span, 10_000.0, AHEAD + step)
    assert found.ends - 10_000.0 <= HOUR + 1e-5
    if boot == BOOT or step == 0.0:
        assert found.ends - 10_000.0 == pytest.approx(HOUR, abs=1e-5)
    assert found.until == pytest.approx(found.ends + AHEAD + step)


def test_a_lock_until_unlocked_has_no_end(path: Path) -> None:
    """Only a person ends it, whatever the clocks did."""
    write(path, locks_of(lock("anna")))
    for boot, step in [(BOOT, HOUR), (OTHER_BOOT, HOUR), (OTHER_BOOT, -HOUR), (OTHER_BOOT, 1e9)]:
        ((span, record),) = load(path, boot, AHEAD + step).locks
        found = restore_lock(record, span, 10_000.0, AHEAD + step)
        assert (found.ends, found.until) == (float("inf"), None)


def test_runs_of_which_nothing_is_stored_are_forgotten(path: Path) -> None:
    """A thousand restarts do not make the file grow: there is the first run, the last one, and this one's."""
    write(path, accounts_of(account("anna", keep_until=2 * WALL)))
    for number in range(20):
        load(path, f"boot-{number}", AHEAD + number)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM epochs").fetchone()[0] <= 3
