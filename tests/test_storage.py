"""The policy's state behind its back: a real thread and a real file, a clock and a reactor that the test moves."""

from __future__ import annotations

import itertools
import os
import queue
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from policyd.accounts import Evidence
from policyd.archive import TOLERANCE, Archive
from policyd.database import SCHEMA_VERSION, Batch, Database, NewerDatabaseError
from policyd.history import FOR_EVER, Message, Wanted
from policyd.history_table import find
from policyd.limits import Limit
from policyd.notices import Notices
from policyd.patience import LOCK_PATIENCE
from policyd.sections_notify import Notify
from policyd.storage import CLOCK_STEP, COLLECT, SLICE, Storage
from tests.asking import ANNA, BERT, EPOCH, Event, Mail, limit
from tests.waiting import until

BOOT = "boot-1"
HOUR = 3600.0
COUNTED = (limit("messages", 500, "30m"),)
LOCKING = (limit("messages", 2, "30m", lock="until-unlocked"),)


class Run:
    """One run of a daemon without its sockets, as a context manager.

    What the thread wants done in the reactor is done when the test looks: in `advance`, `drain` and `wait`.
    """

    def __init__(
        self,
        path: Path,
        *limits: Limit,
        now: float = 10_000.0,
        wall: float = EPOCH,
        boot: str = BOOT,
        data_seen: bool = True,
    ) -> None:
        self.mail = Mail(*(limits or COUNTED), data_seen=data_seen)
        self.mail.now = now
        self.mail.wall_offset = wall - now
        self.clock = Clock()
        self.clock.advance(now)
        self.path = path
        self._calls: queue.SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]]] = queue.SimpleQueue()
        self.storage = Storage(
            self.mail.policy, path, self.clock, self.mail.to_wall, boot, self._report, self._in_reactor
        )

    def __enter__(self) -> Run:
        self.storage.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.storage.close()
        self.drain()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)
        self.mail.now = self.clock.seconds()
        self.drain()

    def drain(self) -> None:
        """Do what the thread wants done."""
        while not self._calls.empty():
            call, arguments = self._calls.get()
            call(*arguments)

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait for something that the thread is to bring about, while the reactor turns and time stands still."""

        def turned() -> object:
            self.drain()
            self.clock.advance(0)
            return condition()

        until(turned)

    def settle(self) -> None:
        """Have all that is known written."""
        self.advance(COLLECT)
        self.wait(lambda: not self.mail.policy.accounts.changed and not self.mail.policy.accounts.stored)
        self.mail.lock("settled@example.com")
        assert self.durable()

    def durable(self) -> bool:
        """Wait until what was asked for is on the disk; tell whether there was anything to wait for."""
        done = self.storage.durable()
        if done is None:
            return False
        fired: list[object] = []
        done.addCallback(fired.append)
        self.wait(lambda: fired)
        return True

    def told(self, *words: str) -> list[str]:
        """Return the events of these words that were reported of the database."""
        return [event.word for event in self.mail.events if event.word in words]

    def database_events(self) -> list[str]:
        """Return what was said of the database."""
        return [event.word for event in self.mail.events if event.word.startswith("database-")]

    def _report(self, word: str, fields: Mapping[str, object]) -> None:
        self.mail.events.append(Event(word, fields))

    def _in_reactor(self, call: Callable[..., object], *arguments: Any) -> None:
        self._calls.put((call, arguments))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the database is to be."""
    return tmp_path / "policyd.sqlite"


@contextmanager
def locked_by_another(path: Path) -> Iterator[Callable[[], None]]:
    """Have another process keep the file locked in the block, or until what is given is called."""
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN EXCLUSIVE');"
        " print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"

        def free() -> None:
            process.kill()
            process.wait()

        try:
            yield free
        finally:
            free()


def sql(path: Path, statement: str) -> list[Any]:
    """Return what the file itself says."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute(statement).fetchall()
        connection.commit()
    return found


def stored_locks(path: Path) -> set[str]:
    """Return the accounts that are locked in the file."""
    return {name for (name,) in sql(path, "SELECT account FROM locks")}


def test_what_was_known_is_known_again(path: Path) -> None:
    """Counts, locks, tallies and clients outlive a restart."""
    limits = (limit("messages", 3, "30m", lock="until-unlocked"), limit("recipients", 100, "1d"))
    with Run(path, *limits) as before:
        before.mail.send(2, recipients=5)
        before.mail.send(5, user=BERT)
        shown = [before.mail.account(ANNA), before.mail.account(BERT)]
        assert shown[1]["lock"]
    with Run(path, *limits) as after:
        assert [after.mail.account(ANNA), after.mail.account(BERT)] == shown
        assert after.mail.send(1) == "DUNNO"
        assert after.mail.send(1).startswith("REJECT")
        assert after.mail.send(user=BERT).startswith("REJECT")


def test_a_count_goes_on_where_it_was(path: Path) -> None:
    """In no window are there ever more than the maximum, whatever restarts lie in it."""
    with Run(path, limit("messages", 5, "30m")) as first:
        assert first.mail.send(3) == "DUNNO"
    with Run(path, limit("messages", 5, "30m"), now=11_000.0, wall=EPOCH + 1000) as second:
        assert second.mail.send(2) == "DUNNO"
        assert second.mail.send(1) != "DUNNO"
    with Run(path, limit("messages", 5, "30m"), now=11_799.0, wall=EPOCH + 1799) as third:
        assert third.mail.send(1) != "DUNNO"
        third.advance(1)
        assert third.mail.send(3) == "DUNNO"
        assert third.mail.send(1) != "DUNNO"


@pytest.mark.parametrize("step", [HOUR, -HOUR, 1e8, -1e8])
def test_a_wall_clock_that_is_set_between_two_runs_changes_no_count(path: Path, step: float) -> None:
    """In the same boot only the clock counts that never steps back."""
    with Run(path) as before:
        before.mail.send(400)
    with Run(path, now=11_000.0, wall=EPOCH + 1000 + step) as after:
        assert after.mail.count() == 400
        after.advance(799.9)
        assert after.mail.count() == 400
        after.advance(0.1)
        assert after.mail.count() == 0


@pytest.mark.parametrize("step", [HOUR, -HOUR, 1e8])
def test_a_wall_clock_that_is_set_before_a_reboot_changes_no_count(path: Path, step: float) -> None:
    """What was stored by the wrong clock is put right when the daemon has seen the right one."""
    with Run(path) as before:
        before.mail.send(400)
        before.settle()
        before.mail.wall_offset += step
        before.advance(COLLECT)
        before.settle()
    with Run(path, now=30.0, wall=EPOCH + step + 1000, boot="boot-2") as after:
        assert after.mail.count() == 400
        after.advance(799)
        assert after.mail.count() == 400
        after.advance(1.1)
        assert after.mail.count() == 0


def test_suspend_counts_as_time(path: Path) -> None:
    """A laptop that slept for an hour has no half hour's count left: the clock counts suspend, and so does the wall."""
    with Run(path) as before:
        before.mail.send(400)
    with Run(path, now=13_600.0, wall=EPOCH + 3600) as after:
        assert after.mail.count() == 0


@pytest.mark.parametrize("boot", [BOOT, "boot-2"])
def test_a_lock_ends_when_it_was_to_end(path: Path, boot: str) -> None:
    """In an hour less what has passed, over a restart and over a reboot."""
    with Run(path) as before:
        before.mail.lock(seconds=HOUR)
    now = 11_000.0 if boot == BOOT else 60.0
    with Run(path, now=now, wall=EPOCH + 1000, boot=boot) as after:
        after.advance(2599.9)
        assert after.mail.locked()
        after.advance(0.2)
        assert not after.mail.locked()


def test_locks_are_in_the_order_in_which_they_came(path: Path) -> None:
    """The desk sees the latest first, also after a restart."""
    names = ["dora", "anna", "carl", "bert"]
    with Run(path) as before:
        for name in names:
            before.mail.lock(name)
            before.advance(1)
    with Run(path, now=10_010.0, wall=EPOCH + 10) as after:
        assert [lock["account"] for lock in after.mail.desk.locked(after.mail.now)] == names[::-1]


def test_nonsense_is_told_once(path: Path) -> None:
    """A thousand rows of nonsense are one line in the log."""
    with Run(path) as before:
        for number in range(10):
            before.mail.send(user=f"user{number}")
    sql(path, "UPDATE accounts SET record = 'no JSON'")
    with Run(path) as after:
        after.settle()
        assert after.database_events() == ["database-damaged"]
        assert after.storage.damage


def test_an_unlocked_account_stays_free(path: Path) -> None:
    """Its counts start anew, also after a restart."""
    with Run(path, *LOCKING) as first:
        first.mail.send(3)
        first.settle()
        first.mail.unlock()
    with Run(path, *LOCKING) as second:
        assert not second.mail.locked()
        assert second.mail.send(2) == "DUNNO"


def test_a_reset_account_stays_reset(path: Path) -> None:
    """Counts that a person has forgotten do not come back."""
    with Run(path) as first:
        first.mail.send(100)
        first.settle()
        first.mail.reset()
    with Run(path) as second:
        assert second.mail.count() == 0


def test_hooks_that_were_seen_are_known_at_the_first_request(path: Path) -> None:
    """After a restart a message is not counted at RCPT where DATA was ever asked."""
    with Run(path, data_seen=False) as before:
        before.mail.send(1)
        assert before.mail.told("data-seen")
    with Run(path, data_seen=False) as after:
        connection = after.mail.connection(BERT)
        connection.rcpt()
        assert after.mail.count(BERT) == 0
        assert after.mail.told("no-data-seen") == []
        assert after.mail.desk.status(after.mail.now)["hooks"] == {"RCPT": True, "DATA": True, "END-OF-MESSAGE": False}


def test_where_only_rcpt_was_seen_messages_are_still_counted_there(path: Path) -> None:
    """The hooks that were seen are told apart."""
    with Run(path, data_seen=False) as before:
        before.mail.connection().rcpt()
    with Run(path, data_seen=False) as after:
        after.mail.connection(BERT).rcpt()
        assert after.mail.count(BERT) == 1


def test_a_hook_seen_at_the_very_end_is_stored(path: Path) -> None:
    """A request of a client that has not logged in changes no account, and is the first of its hook all the same."""
    with Run(path, data_seen=False) as before:
        before.mail.connection(user="").ask(protocol_state="DATA", client_address="", instance="")
    with Run(path, data_seen=False) as after:
        after.mail.connection(BERT).rcpt()
        assert after.mail.count(BERT) == 0


def test_there_is_nothing_to_wait_for_when_nothing_was_locked(path: Path) -> None:
    """Counts are written behind; no reply waits for them."""
    with Run(path) as run:
        run.mail.send(10)
        assert run.storage.durable() is None


def test_a_lock_is_on_the_disk_when_what_waits_for_it_goes_on(path: Path) -> None:
    """Another process reads the lock at that moment."""
    with Run(path, *LOCKING) as run:
        for number in range(20):
            user = f"user{number}"
            run.mail.send(3, user=user)
            assert run.durable()
            assert user in stored_locks(path)
        assert run.storage.durable() is None


def test_an_unlock_is_on_the_disk_when_what_waits_for_it_goes_on(path: Path) -> None:
    """A person who was told that an account is free can rely on it."""
    with Run(path) as run:
        run.mail.lock()
        assert run.durable()
        run.mail.unlock()
        assert run.durable()
        assert stored_locks(path) == set()


def test_a_lock_is_not_taken_for_written_while_an_older_batch_is(path: Path) -> None:
    """However thread and reactor interleave, who waits for a lock goes on when that lock is on the disk."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with Run(path) as run, closing(sqlite3.connect(path)) as reader:
            for number in range(100):
                run.mail.connection(f"sender{number}").rcpt()
                run.clock.advance(COLLECT)
                user = f"user{number}"
                run.mail.lock(user)
                assert run.durable()
                assert reader.execute("SELECT 1 FROM locks WHERE account = ?", (user,)).fetchone(), number
    finally:
        sys.setswitchinterval(interval)


def test_nobody_waits_for_longer_than_a_lock_is_worth(path: Path) -> None:
    """When the disk does not answer in a second, the reply goes out, and the problem is told."""
    with Run(path) as run:
        run.settle()
        with locked_by_another(path):
            run.mail.lock()
            done = run.storage.durable()
            assert done is not None
            fired: list[object] = []
            done.addCallback(fired.append)
            run.clock.advance(LOCK_PATIENCE - 0.001)
            assert not fired
            run.clock.advance(0.001)
            assert fired == [None]
            assert "no answer from the disk" in run.storage.problem
            run.mail.lock(BERT)
            assert run.storage.durable() is None
        run.wait(lambda: not run.storage.problem)
        assert {ANNA, BERT} <= stored_locks(path)


def test_who_waits_goes_on_when_a_problem_comes_up(path: Path) -> None:
    """There is nothing to be gained by waiting for a disk that is known not to work."""
    with Run(path) as run:
        run.settle()
        with locked_by_another(path):
            run.mail.lock()
            assert run.durable()
            assert "locked" in run.storage.problem
            assert ANNA not in stored_locks(path)


def test_a_problem_is_told_once_and_its_end_too(path: Path) -> None:
    """However often it is tried in vain."""
    with Run(path) as run:
        run.settle()
        with locked_by_another(path):
            for number in range(3):
                run.mail.lock(f"user{number}")
                run.durable()
                run.advance(COLLECT)
        run.wait(lambda: not run.storage.problem)
        assert run.database_events() == ["database-problem", "database-well"]
        assert run.storage.problem == ""


def test_a_slow_lock_is_one_problem_not_two(path: Path) -> None:
    """Who gave up waiting and the thread that gave up trying mean the same."""
    with Run(path) as run:
        run.settle()
        with locked_by_another(path):
            run.mail.lock()
            assert run.storage.durable() is not None
            run.clock.advance(LOCK_PATIENCE)
            run.wait(lambda: "locked" in run.storage.problem or len(run.database_events()) > 1)
        run.wait(lambda: not run.storage.problem)
        assert run.database_events() == ["database-problem", "database-well"]


def test_all_that_happened_during_a_failure_is_written_after_it(path: Path) -> None:
    """Counts, locks, unlocks: nothing that is known is left out."""
    with Run(path) as run:
        run.mail.lock("freed@example.com")
        run.settle()
        with locked_by_another(path):
            run.mail.send(7)
            run.mail.lock(BERT)
            run.mail.unlock("freed@example.com")
            run.durable()
            for number in range(SLICE + 50):
                run.mail.send(user=f"user{number}")
            run.advance(COLLECT)
        run.wait(lambda: not run.storage.problem)
    with Run(path) as after:
        assert after.mail.count() == 7
        assert after.mail.locked(BERT)
        assert not after.mail.locked("freed@example.com")
        assert [after.mail.count(f"user{number}") for number in range(SLICE + 50)] == [1] * (SLICE + 50)


def test_a_database_locked_at_the_start_is_taken_in_later(path: Path) -> None:
    """Requests are answered meanwhile; what was stored is known when it can be read, without any request."""
    with Run(path) as before:
        before.mail.send(400)
        before.mail.lock(BERT)
    with locked_by_another(path) as free, Run(path) as run:
        assert "locked" in run.storage.problem
        assert run.mail.send(user="carl") == "DUNNO"
        free()
        run.advance(COLLECT)
        run.wait(lambda: not run.storage.problem)
        assert run.mail.locked(BERT)
        assert run.mail.count() == 400
        assert run.mail.count("carl") == 1


def test_writing_resumes_without_a_request(path: Path) -> None:
    """When the cause is gone, the problem goes within some seconds, also at night when nobody sends."""
    with Run(path) as before:
        before.mail.lock(BERT)
    with locked_by_another(path) as free, Run(path, data_seen=False) as run:
        assert run.storage.problem
        free()

        def well() -> bool:
            run.advance(COLLECT)
            return not run.storage.problem

        until(well, 5.0)
        assert run.mail.locked(BERT)


def test_what_was_counted_before_the_database_could_be_read_is_added(path: Path) -> None:
    """An account that sends while the file is locked at the start keeps its stored count."""
    with Run(path) as before:
        before.mail.send(400)
    with locked_by_another(path) as free, Run(path) as run:
        run.mail.send(3)
        free()
        run.advance(COLLECT)
        run.wait(lambda: not run.storage.problem)
        assert run.mail.count() == 403
    with Run(path) as after:
        assert after.mail.count() == 403


def test_an_unlock_before_the_database_could_be_read_holds(path: Path) -> None:
    """What a person has said meanwhile is newer than what is stored, and who was freed starts anew."""
    with Run(path) as before:
        before.mail.send(400)
        before.mail.lock()
    with locked_by_another(path) as free, Run(path) as run:
        run.mail.lock(reason="again")
        run.storage.durable()
        run.mail.unlock()
        run.storage.durable()
        run.mail.lock(BERT)
        free()
        run.advance(COLLECT)
        run.wait(lambda: not run.storage.problem)
        assert not run.mail.locked()
        assert run.mail.count() == 0
        assert run.mail.locked(BERT)
    assert stored_locks(path) == {BERT}


def test_a_damaged_file_is_set_aside_at_the_start(path: Path) -> None:
    """The daemon begins anew and says what became of the file."""
    path.write_bytes(b"no database at all " * 500)
    with Run(path) as run:
        assert run.database_events() == ["database-damaged"]
        (told,) = run.mail.told("database-damaged")
        aside = Path(str(told["set_aside"]))
        assert aside.read_bytes() == b"no database at all " * 500
        assert str(aside) in run.storage.damage
        run.mail.send(3)
    with Run(path) as after:
        assert after.mail.count() == 3
        assert after.database_events() == []


def damaged(path: Path) -> None:
    """Damage a file that is in use."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.write(bytes(8192))


@pytest.mark.parametrize("what", [damaged, os.unlink])
def test_all_that_is_known_is_written_into_a_new_file(path: Path, what: Callable[[Path], None]) -> None:
    """Damage or removal under a running daemon costs nothing."""
    with Run(path) as run:
        run.mail.send(7)
        for number in range(2 * SLICE):
            run.mail.send(user=f"user{number}")
        run.mail.lock(BERT)
        run.settle()
        what(path)
        run.mail.send(1, user="carl")
        run.advance(COLLECT)
        run.wait(lambda: run.storage.damage)
        assert run.database_events().count("database-damaged") == 1
        run.settle()
        assert run.storage.problem == ""
        assert sql(path, "PRAGMA integrity_check") == [("ok",)]
    with Run(path) as after:
        assert after.mail.count() == 7
        assert after.mail.locked(BERT)
        assert [after.mail.count(f"user{number}") for number in range(2 * SLICE)] == [1] * 2 * SLICE
        assert after.mail.count("carl") == 1
        assert after.mail.policy.tally.data_seen


def test_what_nobody_has_asked_about_yet_is_written_into_a_new_file_too(path: Path) -> None:
    """Accounts that are still being taken in when the damage is noticed are among what is known."""
    number = 5 * SLICE
    with Run(path) as before:
        for one in range(number):
            before.mail.send(user=f"user{one}")
    with Run(path) as run:
        assert run.mail.policy.accounts.stored
        path.unlink()
        run.mail.lock(BERT)
        run.storage.durable()

        def noticed() -> str:
            run.drain()
            return run.storage.damage

        until(noticed)
        assert run.mail.policy.accounts.stored
        run.settle()
    with Run(path) as after:
        assert [after.mail.count(f"user{one}") for one in range(number)] == [1] * number


def test_a_lock_that_meets_damage_is_on_the_disk_before_it_is_told(path: Path) -> None:
    """The new file is made within the patience of who waits."""
    with Run(path) as run:
        run.settle()
        path.unlink()
        run.mail.lock()
        assert run.durable()
        assert not run.storage.problem
        assert ANNA in stored_locks(path)
        run.settle()
        assert stored_locks(path) == {ANNA, "settled@example.com"}


def test_a_removed_file_is_not_said_to_be_set_aside(path: Path) -> None:
    """Nobody is sent to look for a file that is not there."""
    with Run(path) as run:
        run.settle()
        path.unlink()
        run.mail.lock()
        run.storage.durable()
        run.wait(lambda: run.storage.damage)
        (told,) = run.mail.told("database-damaged")
        assert told.get("set_aside") is None or Path(str(told["set_aside"])).exists()
        assert "set aside" not in run.storage.damage


def test_a_folder_that_is_not_there_is_a_problem_until_it_is(tmp_path: Path) -> None:
    """All is kept in memory, and written when there is where."""
    path = tmp_path / "missing" / "policyd.sqlite"
    with Run(path) as run:
        assert "No such file" in run.storage.problem
        run.mail.lock()
        assert run.storage.durable() is None
        path.parent.mkdir()
        run.advance(COLLECT)
        run.wait(lambda: not run.storage.problem)
        assert stored_locks(path) == {ANNA}
        assert run.database_events() == ["database-problem", "database-well"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE accounts SET record = 'no JSON' WHERE name = 'user3'",
        "UPDATE accounts SET record = '[]' WHERE name = 'user3'",
        "UPDATE accounts SET record = '{}' WHERE name = 'user3'",
        """UPDATE accounts SET record = '{"windows": [[1]], "tallies": 3, "clients": 1}' WHERE name = 'user3'""",
        "UPDATE locks SET effect = 'nonsense'",
        "UPDATE accounts SET epoch = 99 WHERE name = 'user3'",
        "UPDATE locks SET epoch = 99",
        "DELETE FROM epochs",
        "DROP TABLE locks",
    ],
)
def test_a_row_that_makes_no_sense_stops_nothing(path: Path, statement: str) -> None:
    """SQLite has no checksums: what comes back may be nonsense, and everything else must work on."""
    with Run(path) as before:
        for number in range(5):
            before.mail.send(user=f"user{number}")
        before.mail.lock(BERT)
    sql(path, statement)
    with Run(path) as run:
        assert run.mail.send(user="user3") == "DUNNO"
        run.mail.send(2)
        run.settle()
    with Run(path) as after:
        assert after.mail.count() == 2


def test_a_newer_database_ends_the_start(path: Path) -> None:
    """It is not touched, and not written around."""
    Database(path, BOOT, 0.0).close()
    sql(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    run = Run(path)
    with pytest.raises(NewerDatabaseError):
        run.storage.open()
    run.storage.close()
    assert path.read_bytes() == before


def test_closing_writes_what_is_left(path: Path) -> None:
    """More than a slice, and without another turn of the reactor."""
    number = 3 * SLICE
    with Run(path) as run:
        for one in range(number):
            run.mail.send(user=f"user{one}")
        run.mail.lock(BERT)
    assert sql(path, "SELECT count(*) FROM accounts WHERE name LIKE 'user%'") == [(number,)]
    assert stored_locks(path) == {BERT}
    assert not path.with_name(path.name + "-wal").exists()


def test_closing_ends_the_thread(path: Path) -> None:
    """Nothing is left behind, whatever state the database is in."""
    threads = threading.active_count()
    with Run(path) as run:
        run.settle()
        assert threading.active_count() == threads + 1
    assert threading.active_count() == threads


def test_closing_does_not_wait_for_a_disk_that_does_not_answer(path: Path) -> None:
    """Postfix waits for the next daemon."""
    with Run(path) as run:
        run.settle()
        with locked_by_another(path):
            run.mail.lock()
            run.storage.close()
            assert ANNA not in stored_locks(path)


def test_accounts_are_taken_in_a_slice_at_a_time(path: Path) -> None:
    """A million accounts keep no request waiting; one that is asked about is there at once."""
    with Run(path) as before:
        for one in range(3 * SLICE):
            before.mail.send(user=f"user{one}")
    with Run(path) as run:
        accounts = run.mail.policy.accounts
        assert len(accounts) == 3 * SLICE
        assert len(accounts.stored) == 2 * SLICE
        assert run.mail.count(f"user{3 * SLICE - 1}") == 1
        assert run.mail.count("user0") == 1
        run.advance(0)
        run.advance(0)
        assert not accounts.stored


def test_only_what_changed_is_written(path: Path) -> None:
    """An account that sends nothing costs nothing."""
    with Run(path) as run:
        for one in range(10):
            run.mail.send(user=f"user{one}")
        run.settle()
        of_users = "SELECT name, keep_until FROM accounts WHERE name LIKE 'user%'"
        before = dict(sql(path, of_users))
        run.advance(10)
        run.mail.send(user="user3")
        run.settle()
        after = dict(sql(path, of_users))
        assert {name for name in before if before[name] != after[name]} == {"user3"}


def test_what_has_passed_goes_from_the_file(path: Path) -> None:
    """Half an hour after its last message an account that has no tallies leaves no row."""
    with Run(path) as run:
        run.mail.send()
        run.settle()
        assert sql(path, "SELECT name FROM accounts WHERE name = 'anna@example.com'")
        run.advance(1801)
        run.mail.send(user=BERT)
        run.settle()
        assert not sql(path, "SELECT name FROM accounts WHERE name = 'anna@example.com'")


def test_nothing_is_noted_without_a_database() -> None:
    """`database: none` costs neither memory nor time."""
    mail = Mail(*LOCKING)
    mail.send(5)
    assert mail.policy.accounts.changed is None
    assert mail.policy.accounts.locks_changed == {}


def test_an_empty_batch_is_nothing_to_write() -> None:
    """A daemon that nobody asks does not wake the disk."""
    assert not Batch()


def told(run: Run) -> Notices:
    """Have the locks of a run told, and the notices kept."""
    ids = (f"id-{number}" for number in itertools.count(1))
    notices = Notices(lambda *_: None, lambda: next(ids), run.mail.to_wall)
    notices.apply(Notify(command=("/bin/true",)), run.clock.seconds())
    run.storage.notices = notices
    return notices


def stored_notices(path: Path) -> list[str]:
    """Return the ids of the notices in a file."""
    with closing(sqlite3.connect(path)) as other:
        return [id_ for (id_,) in other.execute("SELECT id FROM notices")]


def test_a_notice_is_on_the_disk_when_its_lock_is(path: Path) -> None:
    """Whoever is killed after the answer tells of the lock when it starts again; and once it is told, it is gone."""
    run = Run(path)
    notices = told(run)
    with run:
        run.mail.lock(ANNA)
        notices.tell("lock", {"account": ANNA, "by": "desk", "uid": 0}, run.clock.seconds())
        assert run.durable()
        assert stored_notices(path) == ["id-1"]
    again = Run(path)
    notices = told(again)
    with again:
        notice = notices.next_for("command", again.clock.seconds())
        assert notice is not None
        assert (notice.id, notice.fields["account"]) == ("id-1", ANNA)
        notices.took("command", notice.id, again.clock.seconds())
        again.settle()
        assert stored_notices(path) == []


def test_a_fact_is_known_again_and_what_is_newer_counts(path: Path) -> None:
    """What was noted before the database could be read goes over what it had; all is written into a new file."""
    with Run(path) as run:
        run.storage.facts.put("a", "", "1")
        run.storage.facts.put("b", "", "2")
    again = Run(path)
    had: list[object] = []
    again.storage.facts.on_restored = had.append
    again.storage.facts.put("b", "", "3")
    with again:
        assert had == [{("a", ""): "1", ("b", ""): "2"}]
        assert [again.storage.facts.get(kind) for kind in "abc"] == ["1", "3", None]
        path.write_bytes(b"no database, though it is longer than one page is wide" * 100)
        again.storage.facts.put("a", "", None)
        again.advance(COLLECT)
        again.wait(lambda: again.storage.damage)
        again.settle()
    with Run(path) as last:
        assert list(last.storage.facts.of("b")) == ["3"]
        assert last.storage.facts.get("a") is None


def test_notices_are_written_into_a_new_file_when_the_old_one_is_damaged(path: Path) -> None:
    """They are in memory as well."""
    run = Run(path)
    notices = told(run)
    with run:
        notices.tell("lock", {"account": ANNA, "by": "desk", "uid": 0}, run.clock.seconds())
        run.settle()
        path.unlink()
        run.mail.send()
        run.advance(COLLECT)
        run.wait(lambda: run.storage.damage)
        run.settle()
        assert stored_notices(path) == ["id-1"]


def test_a_message_is_stored_by_the_clock_as_it_is(path: Path) -> None:
    """Whatever it was at the start: what is told of a message is compared with what others say by then."""
    for step in (0.0, 7200.0, -86_400.0):
        with Run(path) as run:
            run.mail.policy.history.kept = True
            run.mail.wall_offset += step
            run.mail.send(user=f"{step}@example.com")
            found: list[Message] = []
            run.storage.ask(partial(find, wanted=Wanted(f"{step}@example.com"))).addCallback(found.extend)
            run.wait(partial(bool, found))
            assert abs(found[0].at - run.mail.to_wall(run.mail.now)) < CLOCK_STEP


def test_a_question_that_takes_long_keeps_no_lock_waiting(path: Path) -> None:
    """It has a thread of its own."""
    goes_on = threading.Event()
    with Run(path) as run:
        answer = run.storage.ask(lambda _connection: goes_on.wait(60))
        run.mail.lock(ANNA)
        durable = run.storage.durable()
        assert durable is not None
        run.wait(lambda: durable.called)
        assert not answer.called
        goes_on.set()
        run.wait(lambda: answer.called)
        assert run.storage.problem == ""


def test_what_led_to_an_earlier_lock_did_not_lead_to_the_next(path: Path) -> None:
    """An account that is unlocked starts anew, and so does what is told of it."""
    with Run(path, *LOCKING) as run:
        Archive(run.mail.policy, run.storage, FOR_EVER)

        def exceed(client: str) -> None:
            connection = run.mail.connection(ANNA)
            for _ in range(3):
                connection.rset()
                connection.rcpt()
                connection.ask(protocol_state="DATA", recipient_count=1, client_address=client)

        def evidence() -> Evidence | None:
            lock = run.mail.policy.accounts.get(ANNA, run.mail.now).lock
            return lock.evidence if lock else None

        for client in ("192.0.2.66", "192.0.2.7"):
            exceed(client)
            run.wait(lambda: (found := evidence()) and found.messages)
            found = evidence()
            assert found is not None
            assert (found.clients, found.distinct_clients) == (((client, 2),), 1)
            run.mail.unlock(ANNA)
            run.advance(2 * TOLERANCE)
