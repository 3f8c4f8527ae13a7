"""Locks and counts over the end of the daemon: what kill -9 loses, and how long a start takes.

`python -m tests.durability --rounds 50` kills a daemon that often under load; `--start` starts one with 100,000 stored
accounts. Both print what they found.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import shutil
import socket
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from policyd.accounts import Account
from policyd.database import Batch, Database
from policyd.limits import HOUSE_RULES, Rules
from policyd.records import Span, account_record
from policyd.systemd import boot_id
from tests.daemon import PATIENCE, Connection, Policyd

WORKERS = 4
USERS = 40
BOT_MAX = 3
BEHIND = 1.0
"""Seconds that a count may be behind."""

CONFIG = """\
database: {path}
limits:
  messages: {{count: messages, per: 1d, max: 100000000, action: REJECT, lock: until-unlocked}}
overrides:
  - {{accounts: ["bot*"], limits: {{messages: 3}}}}
"""


class Control(http.client.HTTPConnection):
    """HTTP over a daemon's control socket."""

    def __init__(self, daemon: Policyd) -> None:
        super().__init__("policyd", timeout=PATIENCE)
        self._path = str(daemon.control)

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)

    def call(self, method: str, path: str, **values: object) -> Any:
        """Return the answer to a call; it has to be one."""
        self.request(method, path, json.dumps(values) if values else None)
        response = self.getresponse()
        answer = json.loads(response.read())
        assert response.status == http.client.OK, answer
        return answer


def ask_control(daemon: Policyd, method: str, path: str, **values: object) -> Any:
    """Make one call on a connection of its own."""
    with closing(Control(daemon)) as control:
        return control.call(method, path, **values)


@dataclass
class Known:
    """What the daemon has said, and what it must still know after it was killed."""

    answered: dict[str, list[float]] = field(default_factory=dict)
    """Of each account, when each of its messages was let through since the last start."""
    base: Counter[str] = field(default_factory=Counter)
    """Of each account, what was counted at the last start."""
    locked: set[str] = field(default_factory=set)
    """Accounts whose lock has been told."""
    freed: set[str] = field(default_factory=set)
    """Accounts whose unlock has been told."""


@dataclass
class Figures:
    """What all rounds came to."""

    rounds: int = 0
    messages: int = 0
    locks: int = 0
    unlocks: int = 0
    lost_locks: int = 0
    lost_unlocks: int = 0
    lost_counts: int = 0
    greatest_age: float = 0.0
    """Seconds before the kill at which the oldest count that was lost had been answered."""
    checks_failed: int = 0
    starts: list[float] = field(default_factory=list)


class Load:
    """Customers at work on a daemon until it is killed; with `locks` bots and a desk too.

    As each lock has all that is known written, counts are furthest behind where there is none.
    """

    def __init__(self, daemon: Policyd, known: Known, number: int, seed: int, *, locks: bool) -> None:
        self._daemon = daemon
        self._known = known
        self._number = number
        self._seed = seed
        self._locks = locks
        self._wrong: list[BaseException] = []
        work: list[Callable[[], None]] = [*(lambda worker=worker: self._smtpd(worker) for worker in range(WORKERS))]
        if locks:
            work.append(self._desk)
        self._threads = [threading.Thread(target=self._until_killed, args=(one,), daemon=True) for one in work]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait for all to notice that the daemon is gone."""
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        if self._wrong:
            raise self._wrong[0]

    def _until_killed(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (ConnectionError, http.client.HTTPException, FileNotFoundError):
            pass  # killed
        except BaseException as error:  # told by join, whatever it is
            self._wrong.append(error)

    def _smtpd(self, worker: int) -> None:
        """Send messages of accounts of this worker's own, and now and then as a bot until it is locked."""
        chance = random.Random(self._seed * 100 + worker)  # noqa: S311 -- no secret
        users = [f"user{worker}-{number}" for number in range(USERS // WORKERS)]
        with Connection(self._daemon.address) as connection:
            for turn in range(10**9):
                if self._locks and turn % 10 == 9:
                    bot = f"bot{self._number}-{worker}-{turn}"
                    for _ in range(BOT_MAX):
                        self._message(connection, bot)
                    assert connection.ask(protocol_state="DATA", sasl_username=bot).startswith("REJECT")
                    self._known.locked.add(bot)
                else:
                    self._message(connection, chance.choice(users))

    def _message(self, connection: Connection, account: str) -> None:
        answer = connection.ask(protocol_state="DATA", sasl_username=account, recipient_count=1)
        assert answer == "DUNNO", answer
        self._known.answered.setdefault(account, []).append(time.monotonic())

    def _desk(self) -> None:
        """Lock one account by hand, and free another that was locked."""
        known = self._known
        with closing(Control(self._daemon)) as control:
            for turn in range(10**9):
                name = f"hand{self._number}-{turn}"
                control.call("POST", "/lock", account=name, reason="spam")
                known.locked.add(name)
                if turn % 3 == 0:
                    free = sorted(known.locked)[0]
                    known.locked.discard(free)  # until it is told, it may be either
                    known.answered.pop(free, None)
                    known.base.pop(free, None)
                    control.call("POST", "/unlock", accounts=[free])
                    known.freed.add(free)


def check_file(path: Path) -> bool:
    """Tell whether a copy of the database, as the killed daemon has left it, is in order."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        for ending in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copy(f"{path}{ending}", f"{copy}{ending}")
        with closing(sqlite3.connect(copy)) as connection:
            return bool(connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)])


def kill_rounds(path: Path, rounds: int, longest: float, seed: int) -> Figures:
    """Kill a daemon under load at random moments, and compare what it knows then with what it had said."""
    chance = random.Random(seed)  # noqa: S311 -- no secret
    known, figures = Known(), Figures()
    with Policyd(CONFIG.format(path=path)) as daemon:
        for number in range(rounds):
            load = Load(daemon, known, number, seed + number, locks=number % 2 == 0)
            load.start()
            time.sleep(chance.uniform(0.02, longest))  # the random moment itself: nothing is waited for
            killed = time.monotonic()
            daemon.kill()
            load.join()
            figures.checks_failed += not check_file(path)
            begin = time.monotonic()
            daemon.start()
            figures.starts.append(time.monotonic() - begin)
            _compare(daemon, known, killed, figures)
            figures.rounds += 1
        assert "database-problem" not in daemon.stderr, daemon.stderr
        assert "database-damaged" not in daemon.stderr, daemon.stderr
    return figures


def _compare(daemon: Policyd, known: Known, killed: float, figures: Figures) -> None:
    locked = {lock["account"] for lock in ask_control(daemon, "GET", "/locked")}
    figures.locks, figures.unlocks = len(known.locked), len(known.freed)
    figures.lost_locks += len(known.locked - locked)
    figures.lost_unlocks += len(known.freed & locked)
    known.locked &= locked
    accounts = ask_control(daemon, "GET", "/accounts?n=100000")
    counts = {account["account"]: account["limits"][0]["count"] for account in accounts}
    for name, answered in known.answered.items():
        figures.messages += len(answered)
        kept = max(0, counts.get(name, 0) - known.base[name])
        for lost in answered[kept:]:
            figures.lost_counts += 1
            figures.greatest_age = max(figures.greatest_age, killed - lost)
    known.answered.clear()
    known.base = Counter({name: count for name, count in counts.items() if count})


def fill(path: Path, number: int, events: int) -> None:
    """Make a database of accounts that have each sent that many messages in the last half hour."""
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    span = Span(time.time() - now)
    rules = Rules(HOUSE_RULES)
    with closing(Database(path, boot_id(), span.offset)) as database:
        batch = Batch(hooks={"RCPT", "DATA"})
        for one in range(number):
            account = Account(f"user{one}@example.com", rules, now)
            account.note_client(b"192.0.2.7", now)
            for limit, window in zip(account.limits, account.windows, strict=True):
                for event in range(events if window else 0):
                    assert window is not None
                    window.add(now - 900 + event, 1, limit.slice)
            batch.accounts[account.name] = account_record(account, span, now)
        database.write(batch, span.wall(now))


@contextmanager
def filled(number: int, events: int = 20) -> Iterator[Policyd]:
    """Have a daemon that is stopped and has that many accounts stored."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policyd.sqlite"
        with Policyd(f"database: {path}\n") as daemon:
            daemon.stop()
            path.unlink()
            fill(path, number, events)
            yield daemon


def time_start(daemon: Policyd, account: str) -> tuple[float, float, str]:
    """Start a daemon; return the seconds from then to the first connection and to its first answer, and that."""
    begin = time.monotonic()
    starting = threading.Thread(target=daemon.start)
    starting.start()
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(daemon.address) == 0:
                break
        time.sleep(0.002)  # a look every so often: the kernel does not tell when somebody listens
    connected = time.monotonic() - begin
    with Connection(daemon.address) as connection:
        answer = connection.ask(protocol_state="DATA", sasl_username=account, recipient_count=1)
        answered = time.monotonic() - begin
    starting.join()
    return connected, answered, answer


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser("tests.durability", description=__doc__)
    parser.add_argument("--rounds", type=int, default=0, help="kill -9 this often under load")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", action="store_true", help="start with 100,000 stored accounts")
    options = parser.parse_args()
    if options.rounds:
        with tempfile.TemporaryDirectory() as folder:
            found = kill_rounds(Path(folder) / "policyd.sqlite", options.rounds, 3.0, options.seed)
        print(
            f"{found.rounds} kills under load, {found.messages:,} messages, {found.locks:,} locks and"
            f" {found.unlocks:,} unlocks told\n"
            f"lost locks: {found.lost_locks}, lost unlocks: {found.lost_unlocks},"
            f" integrity_check failed: {found.checks_failed}\n"
            f"lost counts: {found.lost_counts}, the oldest answered {found.greatest_age * 1000:.0f} ms before a kill\n"
            f"started again in {median(found.starts):.2f} s (greatest {max(found.starts):.2f} s)"
        )
    if options.start:
        for number in (0, 100_000):
            with filled(number) as daemon:
                times = []
                for _ in range(5):
                    times.append(time_start(daemon, "user50000@example.com")[:2])
                    daemon.stop()
            connected, answered = map(median, zip(*times, strict=True))
            print(
                f"{number:7,} stored accounts: from exec {connected:.2f} s to the first connection,"
                f" {answered:.2f} s to the first answer"
            )


if __name__ == "__main__":
    main()
