"""A real daemon with a database: what outlives restarts and kill -9, and what a disk in trouble does to requests."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from policyd.storage import RETRY
from tests.daemon import PATIENCE, Connection, DaemonFailedError, Policyd, free_port, request
from tests.durability import ask_control, filled, kill_rounds, time_start
from tests.waiting import until

ANNA, BERT, CARL, DORA = (f"{name}@example.com" for name in ("anna", "bert", "carl", "dora"))

LIMITS = """\
limits:
  messages: {count: messages, per: 30m, max: 3, action: "REJECT 5.7.1 {account} is locked", lock: until-unlocked}
  recipients: {count: recipients, per: 1d, max: 1000, action: HOLD too many, lock: 2h}
overrides:
  - {accounts: ["free*"], limits: {messages: unlimited, recipients: unlimited}}
"""

SLOW = 0.5
"""Seconds that no request takes, however the disk is: waiting for it would take a second at least."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the database is to be."""
    return tmp_path / "policyd.sqlite"


def config(path: Path | str) -> str:
    """Return a config with a database."""
    return f"database: {path}\n{LIMITS}"


def daemon_with(path: Path) -> Policyd:
    """Return a daemon with a database."""
    return Policyd(config(path))


def account(daemon: Policyd, name: str) -> Any:
    """Return what the desk sees of an account."""
    return ask_control(daemon, "GET", f"/status?account={name}")


def count(daemon: Policyd, name: str) -> int:
    """Return how many messages an account has sent."""
    counted: int = account(daemon, name)["limits"][0]["count"]
    return counted


def problems(daemon: Policyd) -> str:
    """Return what status says of the database."""
    told: list[str] = ask_control(daemon, "GET", "/status")["problems"]
    return "; ".join(text for text in told if "database" in text)


def trouble(daemon: Policyd) -> str:
    """Return what status says of a database that cannot be written now."""
    return problems(daemon) if "cannot be written" in problems(daemon) else ""


def well(daemon: Policyd) -> bool:
    """Tell whether the database can be written as far as status knows."""
    return not trouble(daemon)


def logged(daemon: Policyd, word: str) -> int:
    """Return how many lines of an event were logged."""
    return daemon.stderr.count(f" {word} ")


def files(path: Path) -> set[str]:
    """Return the names of all files that belong to a database."""
    return {found.name for found in path.parent.iterdir() if found.name.startswith(path.name)}


@contextmanager
def asking(daemon: Policyd) -> Iterator[Callable[[], int]]:
    """Have a customer ask all the while, and see that no answer takes long; give how many there were."""
    done = threading.Event()
    taken: list[float] = []
    wrong: list[str] = []

    def ask() -> None:
        with Connection(daemon.address) as connection:
            number = 0
            while not done.is_set():
                number += 1
                begin = time.monotonic()
                for state in ("RCPT", "DATA"):
                    answer = connection.ask(
                        protocol_state=state, sasl_username="free", instance=f"asking.{number}", recipient_count=1
                    )
                    if answer != "DUNNO":
                        wrong.append(answer)
                taken.append(time.monotonic() - begin)
                done.wait(0.005)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield lambda: len(taken)
    finally:
        done.set()
        thread.join(PATIENCE)
    assert not wrong
    assert taken
    assert max(taken) < SLOW


def locked_and_told(daemon: Policyd, name: str) -> None:
    """Lock an account by exceeding its limit; the answer must come in good time whatever the disk does."""
    for _ in range(3):
        daemon.message(name)
    begin = time.monotonic()
    assert daemon.message(name)[-1].startswith("REJECT")
    assert time.monotonic() - begin < 1 + SLOW


def test_a_restart_forgets_nothing(path: Path) -> None:
    """Counts, locks of all kinds, unlocks and tallies are as they were."""
    with daemon_with(path) as daemon:
        daemon.message(ANNA, recipients=5)
        daemon.message(ANNA, recipients=2)
        for _ in range(6):
            daemon.message(BERT)
        assert daemon.ctl("lock", CARL, "--reason", "phished", "--for", "2h").returncode == 0
        assert daemon.ctl("lock", DORA, "--reason", "phished", "--hold").returncode == 0
        assert daemon.message(DORA)[-1].startswith("HOLD")
        assert daemon.ctl("lock", "freed", "--reason", "mistaken").returncode == 0
        assert daemon.ctl("unlock", "freed").returncode == 0
        names = (ANNA, BERT, CARL, DORA, "freed")
        before = [account(daemon, name) for name in names]
        locked = ask_control(daemon, "GET", "/locked")
        assert [lock["account"] for lock in locked] == [DORA, CARL, BERT]
        daemon.restart()
        for shown, name in zip(before, names, strict=True):
            now = account(daemon, name)
            for was, limit in zip(shown["limits"], now["limits"], strict=True):
                before_in, after_in = was.pop("resets_in"), limit.pop("resets_in")
                assert (before_in is None) == (after_in is None)
                assert before_in is None or before_in - PATIENCE < after_in <= before_in + 0.01
            _about_the_same_time(shown, now)
            assert now == shown
        assert {lock["account"] for lock in ask_control(daemon, "GET", "/locked")} == {BERT, CARL, DORA}
        assert daemon.message(ANNA)[-1] == "DUNNO"
        assert daemon.message(ANNA)[-1] == f"REJECT 5.7.1 {ANNA} is locked"
        assert daemon.message(BERT)[-1] == f"REJECT 5.7.1 {BERT} is locked"
        assert daemon.message(CARL)[-1] == f"REJECT 5.7.1 Account {CARL} is locked: phished"
        assert daemon.message(DORA)[-1] == f"HOLD Account {DORA} is locked: phished"
        assert daemon.message("freed")[-1] == "DUNNO"


def _about_the_same_time(was: Any, now: Any) -> None:
    """Take out times that were rounded to a second by another clock's offset, if they are alike."""
    pairs = [(one, other, "last") for one, other in zip(was["clients"], now["clients"], strict=True)]
    if was["lock"] and was["lock"]["until"]:
        pairs.append((was["lock"], now["lock"], "until"))
    for one, other, key in pairs:
        apart = datetime.fromisoformat(one.pop(key)) - datetime.fromisoformat(other.pop(key))
        assert abs(apart.total_seconds()) <= 1


def test_tallies_of_a_locked_account_are_kept_when_nothing_lies_in_its_windows(path: Path) -> None:
    """The desk wants to see in the morning whether the bot has tried all night."""
    with daemon_with(path) as daemon:
        assert daemon.ctl("lock", CARL, "--reason", "phished").returncode == 0
        for _ in range(4):
            daemon.ask(sasl_username=CARL)
        daemon.restart()
        assert account(daemon, CARL)["attempts_while_locked"] == 4


def test_the_first_rcpt_after_a_restart_is_no_message(path: Path) -> None:
    """That DATA is asked was learned before the restart."""
    with daemon_with(path) as daemon:
        daemon.message(ANNA)
        daemon.restart()
        assert daemon.ask(sasl_username=BERT) == "DUNNO"
        assert count(daemon, BERT) == 0
        assert ask_control(daemon, "GET", "/status")["problems"] == []
        assert logged(daemon, "no-data-seen") == 1


def test_a_reset_outlives_a_restart(path: Path) -> None:
    """Counts that were forgotten do not come back."""
    with daemon_with(path) as daemon:
        daemon.message(ANNA)
        assert daemon.ctl("reset", ANNA).returncode == 0
        daemon.restart()
        assert count(daemon, ANNA) == 0


def test_status_names_the_store(path: Path) -> None:
    """A person sees whether there is a database."""
    with daemon_with(path) as daemon:
        assert ask_control(daemon, "GET", "/status")["store"] == "sqlite"


def test_killed_at_random_moments_it_loses_no_lock(path: Path) -> None:
    """Every lock and unlock that was told is there, and every count that was answered a second before the kill."""
    found = kill_rounds(path, 8, 1.2, seed=os.getpid())
    assert found.messages
    assert found.locks
    assert (found.lost_locks, found.lost_unlocks, found.checks_failed) == (0, 0, 0)
    assert found.greatest_age < 1.0


def test_a_lock_is_on_the_disk_before_it_is_told(path: Path) -> None:
    """Killed in the instant of the answer, it has not forgotten."""
    with daemon_with(path) as daemon:
        for name in (ANNA, BERT, CARL):
            locked_and_told(daemon, name)
            daemon.kill()
            daemon.start()
            assert account(daemon, name)["lock"]


def test_an_unlock_is_on_the_disk_before_it_is_told(path: Path) -> None:
    """Killed in the instant of the answer, it does not lock again."""
    with daemon_with(path) as daemon:
        locked_and_told(daemon, ANNA)
        ask_control(daemon, "POST", "/unlock", accounts=[ANNA])
        daemon.kill()
        daemon.start()
        assert account(daemon, ANNA)["lock"] is None


def test_with_100000_stored_accounts_it_answers_soon_after_its_start() -> None:
    """They are read in one go and taken in lazily; one that asks first is there at once."""
    with filled(100_000, events=5) as daemon:
        _, answered, answer = time_start(daemon, "user99999@example.com")
        assert answer == "DUNNO"
        assert answered < 3
        assert ask_control(daemon, "GET", "/status")["accounts"] == 100_000
        assert count_of(daemon, "user99999@example.com") == 6
        assert count_of(daemon, "user0@example.com") == 5


def count_of(daemon: Policyd, name: str) -> int | None:
    """Return an account's count of the house's limit of messages."""
    counts = {limit["name"]: limit["count"] for limit in account(daemon, name)["limits"]}
    counted: int | None = counts["messages-per-half-hour"]
    return counted


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system of its own; needs root."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_no_mail(tmp_path: Path) -> None:
    """Everything is kept in memory until there is room, and then written."""
    with tmpfs(tmp_path / "small", "size=1m") as small:
        path = small / "policyd.sqlite"
        with daemon_with(path) as daemon:
            daemon.message(ANNA)
            ballast = small / "ballast"
            with asking(daemon):
                with suppress(OSError), ballast.open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(1024))
                assert "full" in until(lambda: trouble(daemon))
                locked_and_told(daemon, BERT)
                daemon.message(ANNA)
                ballast.unlink()
                until(lambda: well(daemon))
            assert (logged(daemon, "database-problem"), logged(daemon, "database-well")) == (1, 1)
            daemon.restart()
            assert account(daemon, BERT)["lock"]
            assert count(daemon, ANNA) == 2


def test_a_file_that_may_not_grow_stops_no_mail(path: Path) -> None:
    """A quota is a full disk by another name."""
    with daemon_with(path) as daemon:
        daemon.message(ANNA)
        unlimited = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
        with asking(daemon):
            resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
            until(lambda: trouble(daemon))
            locked_and_told(daemon, BERT)
            resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, unlimited)
            until(lambda: well(daemon))
        assert (logged(daemon, "database-problem"), logged(daemon, "database-well")) == (1, 1)
        daemon.restart()
        assert account(daemon, BERT)["lock"]
        assert count(daemon, ANNA) == 1


def test_a_file_system_that_is_read_only_at_the_start_stops_no_mail(tmp_path: Path) -> None:
    """It begins in memory, says so, and writes when it can."""
    with tmpfs(tmp_path / "small", "size=4m") as folder:
        path = folder / "policyd.sqlite"
        with daemon_with(path) as daemon:
            locked_and_told(daemon, BERT)
            daemon.stop()
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            daemon.start()
            with asking(daemon):
                assert "ead-only" in until(lambda: trouble(daemon))
                locked_and_told(daemon, ANNA)
                subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
                until(lambda: well(daemon))
                until(lambda: account(daemon, BERT)["lock"])
            assert (logged(daemon, "database-problem"), logged(daemon, "database-well")) == (1, 1)
            daemon.restart()
            assert {lock["account"] for lock in ask_control(daemon, "GET", "/locked")} == {ANNA, BERT}


@contextmanager
def unchangeable(*paths: Path) -> Iterator[None]:
    """Have files that nobody may change, not even root; only root can do that, and not on every file system."""
    names = [str(path) for path in paths]
    if os.geteuid() != 0 or shutil.which("chattr") is None:
        pytest.skip("only root can make a file immutable")
    try:
        if subprocess.run(["chattr", "+i", *names], check=False).returncode:
            pytest.skip("this file system knows no immutable files")
        yield
    finally:
        subprocess.run(["chattr", "-i", *names], check=False)


def test_files_that_become_unwritable_while_it_runs_stop_no_mail(path: Path) -> None:
    """What worked a moment ago may not work now, and will work again."""
    with daemon_with(path) as daemon:
        locked_and_told(daemon, BERT)
        parts = [path, path.with_name(path.name + "-wal")]
        with asking(daemon):
            with unchangeable(*parts):
                until(lambda: trouble(daemon))
                locked_and_told(daemon, ANNA)
            until(lambda: well(daemon))
        assert (logged(daemon, "database-problem"), logged(daemon, "database-well")) == (1, 1)
        daemon.restart()
        assert {lock["account"] for lock in ask_control(daemon, "GET", "/locked")} == {ANNA, BERT}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_stops_no_mail(path: Path) -> None:
    """The permissions of a folder are a person's mistake, and put right by a person."""
    path.parent.chmod(0o500)
    with daemon_with(path) as daemon:
        with asking(daemon):
            until(lambda: trouble(daemon))
            locked_and_told(daemon, ANNA)
            path.parent.chmod(0o700)
            until(lambda: well(daemon))
        daemon.restart()
        assert account(daemon, ANNA)["lock"]


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Have another process keep the database locked."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def test_a_database_that_another_process_locks_stops_no_mail(path: Path) -> None:
    """A person's `sqlite3` that is left open costs a second for a lock, once, and nothing for the others."""
    with daemon_with(path) as daemon:
        daemon.message(ANNA)
        with asking(daemon):
            with locked_file(path):
                locked_and_told(daemon, BERT)
                assert "lock" in until(lambda: trouble(daemon)) or "no answer" in trouble(daemon)
                locked_and_told(daemon, CARL)
            until(lambda: well(daemon))
        assert (logged(daemon, "database-problem"), logged(daemon, "database-well")) == (1, 1)
        daemon.restart()
        assert {lock["account"] for lock in ask_control(daemon, "GET", "/locked")} == {BERT, CARL}
        assert count(daemon, ANNA) == 1


def test_a_database_that_is_locked_at_the_start_is_read_later(path: Path) -> None:
    """Locks that were stored are in force as soon as they can be read, without a restart."""
    with daemon_with(path) as daemon:
        locked_and_told(daemon, BERT)
        daemon.message(ANNA)
        daemon.stop()
        with locked_file(path):
            daemon.start()
            with asking(daemon) as answers:
                until(lambda: trouble(daemon))
                daemon.message(ANNA)
                until(lambda: answers() > 3)
        until(lambda: well(daemon))
        assert daemon.message(BERT)[-1].startswith("REJECT")
        assert count(daemon, ANNA) == 2
        assert (logged(daemon, "database-problem"), logged(daemon, "database-well")) == (1, 1)


def garbage(path: Path) -> None:
    """Overwrite a file."""
    with path.open("r+b") as file:
        file.write(b"this is no database. " * 1000)


def cut(path: Path) -> None:
    """Cut a file off."""
    os.truncate(path, 5000)


DAMAGES = [garbage, cut]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_database_at_the_start_is_set_aside(path: Path, damage: Callable[[Path], None]) -> None:
    """What it said is lost, and not thrown away; the daemon begins anew."""
    with daemon_with(path) as daemon:
        daemon.message(ANNA)
        daemon.stop()
        damage(path)
        damaged = path.read_bytes()
        daemon.start()
        assert "set aside" in problems(daemon)
        with asking(daemon):
            locked_and_told(daemon, BERT)
        assert logged(daemon, "database-damaged") == 1
        assert logged(daemon, "database-problem") == 0
        (aside,) = path.parent.glob("policyd.sqlite.corrupt-????????-??????")
        assert aside.read_bytes() == damaged
        daemon.restart()
        assert account(daemon, BERT)["lock"]
        assert problems(daemon) == ""


@pytest.mark.parametrize("damage", [*DAMAGES, os.unlink])
def test_damage_to_the_database_while_it_runs_loses_nothing(path: Path, damage: Callable[[Path], None]) -> None:
    """All that is known is written into a new file."""
    with daemon_with(path) as daemon:
        daemon.message(ANNA)
        locked_and_told(daemon, BERT)
        daemon.stop()
        daemon.start()
        with asking(daemon):
            damage(path)
            number = 0

            def noticed() -> bool:
                nonlocal number
                number += 1
                ask_control(daemon, "POST", "/lock", account=f"hand{number}", reason="spam")
                return "damaged" in problems(daemon)

            until(noticed)
            locked_and_told(daemon, CARL)
            until(lambda: well(daemon))
        assert logged(daemon, "database-damaged") == 1
        daemon.restart()
        assert {BERT, CARL, "hand1"} <= {lock["account"] for lock in ask_control(daemon, "GET", "/locked")}
        assert count(daemon, ANNA) == 1
        assert problems(daemon) == ""


def test_a_database_of_a_newer_policyd_is_refused(path: Path) -> None:
    """One line, exit status 1, and the file is as it was."""
    with daemon_with(path) as daemon:
        daemon.stop()
        with closing(sqlite3.connect(path)) as newer:
            newer.execute("PRAGMA user_version = 99")
        before = path.read_bytes()
        written = len(daemon.stderr)
        with pytest.raises(DaemonFailedError, match="exit status 1"):
            daemon.start()
        said = [line for line in daemon.stderr[written:].splitlines() if " start " not in line]
        assert len(said) == 1
        assert f"policyd: the database {path} is of schema 99, and this policyd knows" in said[0]
        assert path.read_bytes() == before


def test_a_second_daemon_on_one_database_refuses_to_start(path: Path) -> None:
    """Also when it has a control socket of its own."""
    with daemon_with(path) as first:
        locked_and_told(first, ANNA)
        other = first.folder / "other.yaml"
        other.write_text(
            f"listen: [tcp:{free_port()}:interface=127.0.0.1]\ncontrol: {first.folder}/other.sock\ndatabase: {path}\n"
        )
        done = subprocess.run(
            [sys.executable, "-m", "policyd", "-c", str(other)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        said = [line for line in done.stderr.splitlines() if " start " not in line]
        assert (done.returncode, said) == (1, [f"policyd: another policyd (pid {first.pid}) already runs with {path}"])
        assert first.message(ANNA)[-1].startswith("REJECT")


def test_without_a_database_nothing_is_written() -> None:
    """`database: none` leaves no file, and forgets all at the end."""
    with Policyd(config("none")) as daemon:
        before = {found for found in daemon.folder.rglob("*") if "sock" not in found.name}
        locked_and_told(daemon, ANNA)
        daemon.message(BERT)
        daemon.restart()
        assert {found for found in daemon.folder.rglob("*") if "sock" not in found.name} == before
        assert ask_control(daemon, "GET", "/status")["store"] == "memory"
        assert account(daemon, ANNA)["lock"] is None


def test_the_default_database_is_in_the_state_folder() -> None:
    """Where systemd says, and only its owner can read it."""
    with Policyd(LIMITS) as daemon:
        text = daemon.config_file.read_text().replace("database: none\n", "database:\n")
        daemon.stop()
        daemon.write_config(text)
        daemon.start()
        locked_and_told(daemon, ANNA)
        found = [path for path in (daemon.folder / "state").iterdir() if ".sqlite" in path.name]
        assert found
        assert {path.stat().st_mode & 0o777 for path in found} == {0o600}


def test_stopping_leaves_one_file(path: Path) -> None:
    """The log is taken in at the end, so that a backup of the one file is whole."""
    with daemon_with(path) as daemon:
        daemon.message(ANNA)
        daemon.stop()
        assert files(path) - {path.name + ".lock"} == {path.name}


def test_a_stop_does_not_wait_for_a_disk_that_does_not_answer(path: Path) -> None:
    """Postfix waits for the next daemon: one that is locked out of its database ends all the same."""
    with daemon_with(path) as daemon:
        daemon.message(ANNA)
        with locked_file(path):
            daemon.message(ANNA)
            begin = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - begin < RETRY + 2


def test_a_request_that_waits_for_its_lock_holds_up_nobody_else(path: Path) -> None:
    """While one account is being locked and the disk is slow, the others are answered at once."""
    with daemon_with(path) as daemon:
        for _ in range(3):
            daemon.message(BERT)
        with locked_file(path), asking(daemon) as answers, daemon.connect() as bot:
            before = answers()
            bot.send(request(protocol_state="DATA", sasl_username=BERT, instance="bot.1", recipient_count=1))
            assert bot.replies()[0].startswith("REJECT")
            assert answers() > before
