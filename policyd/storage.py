"""Keeps what the policy knows in the database, behind its back.

The reactor hands over copies, a thread writes them: no request waits for the disk but one whose answer announces a
lock that is not written yet, and that only as long as the disk is well. While it is not, everything stays in memory,
status says so, and writing goes on by itself when the cause is gone.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from policyd import records
from policyd.accounts import Account
from policyd.chores import Chores, in_pieces
from policyd.database import Batch, DamagedDatabaseError, Database, Stored, set_aside
from policyd.facts import Facts
from policyd.history import FOR_EVER, MAX_WAITING, Kept
from policyd.locks import Report
from policyd.notices import Notices
from policyd.patience import LOCK_PATIENCE, Patience
from policyd.policy import Policy
from policyd.questions import Question, Questions

T = TypeVar("T")

COLLECT = 0.9
"""Seconds between two looks at what has changed."""

SLICE = 50
"""Accounts that are copied, or taken back, in one turn of the reactor."""

MOST = 1000
"""Accounts that are stored at one look, in one transaction: 1,100 a second. Where more than that send, answering them
goes before storing what they sent, which comes later then; storing an account takes longer than answering it."""

FEW = 500
"""Requests between two looks: where there are fewer, all that waits is stored without a pause."""

MAX_QUESTIONS = 2000  # one of each control connection, and those about locks
RETRY = 1.0
"""Seconds between two tries while the database cannot be written."""

CLOSE_PATIENCE = 0.6
"""Seconds that the last copying may take when the daemon ends, and the last writing."""

DAY = 86400.0

CLOCK_STEP = 0.5
"""Seconds that the wall clock must have stepped to be worth a note."""


class Storage:
    """The policy's state in a database.

    `in_reactor` has a function called in the reactor's thread; `to_wall` turns `clock`'s seconds, which never step
    back, into seconds since the epoch; `boot` names this boot of the machine.
    """

    def __init__(
        self,
        policy: Policy,
        path: Path,
        clock: IReactorTime,
        to_wall: Callable[[float], float],
        boot: str,
        report: Report,
        in_reactor: Callable[..., object],
    ) -> None:
        self.problem = ""
        """What is wrong with the database, in a sentence; "" when all is well."""
        self.damage = ""
        """What became of a damaged database since the start; "" where there was none."""
        self.notices: Notices | None = None
        """The notices that are kept, too; named before `open`."""
        self.facts = Facts()  # what a node of a cluster has to know again
        self._policy = policy
        self.path = path
        self._clock = clock
        self._to_wall = to_wall
        self._boot = boot
        self._report = report
        self._in_reactor = in_reactor
        self._span = records.Span(self._ahead())
        self._latest = self._span.offset
        self._hooks: set[str] = set()
        self._decided: set[str] | None = set()
        """Accounts that were locked or freed before the database was taken in; None once it is."""
        self._chores = Chores()
        self._database: Database | None = None
        self._batch = Batch()
        """What the thread is to write next."""
        self._collected = Batch()
        """What it will be handed at the end of this look at what has changed."""
        self._to_look_at = 0
        """Accounts that this look has still to copy."""
        self._requests = 0
        """Requests that had come until this look."""
        self._idle = True
        """Whether few had come since the one before."""
        self._handed, self._durable = 0, 0
        """Batches with locks that were handed to the thread, and those of them that are on the disk."""
        self._patience = Patience(clock, self._give_up_waiting)
        self.retention = FOR_EVER
        """How long the history is kept."""
        self._questions = Questions(path, in_reactor)
        self._asked: list[Question] = []
        """What is to be found out when what waits by now is written."""
        self._condition = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="database", daemon=True)

    def open(self) -> None:
        """Take in what is stored, and begin to write.

        Raises NewerDatabaseError. Anything else that is wrong is a `problem`, and is tried again.
        """
        accounts = self._policy.accounts
        accounts.changed, accounts.allowances.changed = deque(), {}
        accounts.recall = self._recall
        try:
            self._take_in(self._opened())
        except DamagedDatabaseError as error:
            self._rewrite(error, self._set_aside())
        except (sqlite3.Error, OSError) as error:
            self._set_problem(error)
        self._thread.start()
        self._collect()

    def durable(self) -> Deferred[None] | None:
        """Return what fires when locks and allowances are on the disk; None: they are, or it cannot be waited for."""
        accounts = self._policy.accounts
        if accounts.locks_changed or accounts.allowances.changed:
            self._hand_over()
        if self._durable >= self._handed or self.problem:
            return None
        return self._patience.wait(self._handed)

    def ask(self, question: Callable[[sqlite3.Connection], T]) -> Deferred[T]:
        """Return what fires with the answer to a question, which is asked when all that waits by now is written.

        It fails with NoAnswerError.
        """
        done: Deferred[T] = Deferred()
        self._hand_over(MAX_WAITING)
        with self._condition:
            self._asked.append(Question(question, done))
            self._condition.notify()
        return done

    def close(self) -> None:
        """Write what is left, as far as that can be done within a moment."""
        changed, ends = self._policy.accounts.changed, self._clock.seconds() + CLOSE_PATIENCE
        for _ in self._chores.rest():
            if self._clock.seconds() >= ends:
                break
        while changed and self._clock.seconds() < ends:
            self._copy(min(SLICE, len(changed)))
        self._hand_over(MAX_WAITING)
        with self._condition:
            self._closing = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join(CLOSE_PATIENCE)

    def _ahead(self) -> float:
        """Return how far the wall clock is ahead."""
        now = self._clock.seconds()
        return self._to_wall(now) - now

    def _collect(self) -> None:
        """Hand over some of what has changed, take in some of what is stored, and come back soon."""
        if self._closing:
            return
        now = self._clock.seconds()
        accounts = self._policy.accounts
        try:
            self._chores.go_on()
            for name in list(islice(reversed(accounts.stored), SLICE)):
                accounts.peek(name, now)
            if not self._to_look_at:
                self._to_look_at, requests = min(MOST, len(accounts.changed or ())), self._policy.tally.total
                self._idle, self._requests = requests - self._requests < FEW, requests
            number = min(SLICE, self._to_look_at)
            self._to_look_at -= number
            self._copy(number)
            if not self._to_look_at:
                waiting = len(self._policy.history)
                # in a flood some are lost anyway, and answering goes before storing them
                self._hand_over(waiting if self._idle else MOST if waiting < MAX_WAITING else MOST // 4)
        finally:  # the next time must come, whatever is wrong with this one
            busy = self._to_look_at or self._chores or accounts.stored or (accounts.changed and self._idle)
            self._clock.callLater(0 if busy else COLLECT, self._collect)

    def _copy(self, number: int) -> None:
        """Copy so many accounts that have changed, the one that has for longest first."""
        now = self._clock.seconds()
        changed = self._policy.accounts.changed or deque()
        for _ in range(number):
            account = changed.popleft()
            account.changed = False
            self._collected.accounts[account.name] = records.account_record(account, self._span, now)

    def _hand_over(self, messages: int = 0) -> None:
        """Have the thread write what has been collected, all locks, and so many messages of the history at the most."""
        now = self._clock.seconds()
        accounts = self._policy.accounts
        batch, self._collected = self._collected, Batch()
        ahead = self._ahead()
        if abs(ahead - self._latest) > CLOCK_STEP:
            self._latest = batch.latest = ahead
        if not self.problem and len(self._batch.messages) < MAX_WAITING:  # else they wait where they are bounded
            batch.messages = self._policy.history.take(messages, self._latest)
        for name, account in accounts.locks_changed.items():
            lock = account.lock
            if self._decided is not None:
                self._decided.add(name)
            batch.locks[name] = None if lock is None else records.lock_record(account, lock, self._span, now)
        accounts.locks_changed.clear()
        batch.allowances = records.allowance_records(accounts.allowances.hand_over(), self._span, now)
        batch.hooks = self._policy.tally.hooks - self._hooks
        self._hooks |= batch.hooks
        if self.notices is not None:
            batch.notices = self.notices.take_unsaved()
        batch.facts = self.facts.take_changed()
        if batch:
            with self._condition:
                self._handed += bool(batch.locks or batch.allowances)
                self._batch.add_newer(batch)
                self._condition.notify()

    def _opened(self) -> Stored:
        database = Database(self.path, self._boot, self._span.offset)
        try:
            stored = database.load(self._wall())
        except BaseException:
            database.close()
            raise
        self._database = database  # not before: nothing is written over what could not be read
        return stored

    def _wall(self) -> float:
        """Return the wall clock's time as this run of the daemon reckons it: a step of the clock removes nothing."""
        return self._span.wall(self._clock.seconds())

    def _take_in(self, stored: Stored) -> None:
        """Go on from what is stored: locks at once, accounts by and by. What is known already is newer."""
        accounts, now = self._policy.accounts, self._clock.seconds()
        decided = self._decided = (self._decided or set()) | accounts.locks_changed.keys()
        ahead = self._ahead()
        self._policy.allowing.restore(
            records.restore_allowance(known, span, now, ahead) for span, known in stored.allowances
        )
        for span, record in sorted(stored.locks, key=lambda lock: lock[1].since):
            if record.account not in decided:
                account = accounts.get(record.account, now)
                accounts.restore_lock(account, records.restore_lock(record, span, now, ahead))
        tally = self._policy.tally
        tally.hooks |= stored.hooks
        self._hooks |= stored.hooks
        tally.data_seen = tally.data_seen or bool(stored.hooks - {"RCPT"})
        accounts.stored = stored.accounts
        if self.notices is not None:
            self.notices.restore(stored.notices, now)
        self.facts.restore(stored.facts)
        self._chores.begin(self._taking_in(decided))

    def _taking_in(self, decided: set[str]) -> Iterator[None]:
        """Add to the accounts that are at work already what is stored of them; those that come get it when they do."""
        accounts = self._policy.accounts
        for some in in_pieces(self._policy.accounts):
            for account in some:
                name = account.name
                record = accounts.stored.pop(name, None)
                if record and (account.lock or not (name in decided or name in accounts.locks_changed)):
                    self._recall(account, record, self._clock.seconds())  # but who was freed starts anew
                    accounts.note_change(account)
            yield
        self._decided = None

    def _recall(self, account: Account, stored: tuple[records.Span, str], now: float) -> None:
        span, text = stored
        try:
            records.restore_account(account, text, span, now)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            account.forget_counts()
            if not self.damage:  # there may be thousands
                self._report("database-damaged", {"path": self.path, "account": account.name, "reason": repr(error)})
            self.damage = f"what the database had of {account.name} made no sense: {error!r}"
        if self.damage:
            self._policy.accounts.note_change(account)  # the file may be a new one, which does not have it yet

    def _run(self) -> None:
        """Write what is handed over, until the end; this is the thread."""
        while True:
            with self._condition:
                # what could not be read is tried again though there is nothing to write
                patience = RETRY if self._database is None else None
                self._condition.wait_for(lambda: self._batch or self._asked or self._closing, patience)
                batch, self._batch = self._batch, Batch()
                asked, self._asked = self._asked, []
                handed, closing = self._handed, self._closing
            if not batch and (closing or self._database is not None):
                pass
            elif self._written(batch):
                self._in_reactor(self._is_durable, handed)
            else:
                with self._condition:
                    batch.add_newer(self._batch)
                    self._batch = batch
                    if not (self._closing or asked):
                        self._condition.wait(RETRY)
            for question in asked:
                self._questions.put(question)
            if closing:
                break
        if self._database is not None:
            self._database.close()

    def _written(self, batch: Batch) -> bool:
        try:
            if self._database is None:
                self._in_reactor(self._take_in, self._opened())
            if self._database is not None:
                self._database.write(batch, self._wall(), self._kept())
        except Exception as error:  # whatever it is, it must not end the thread
            if isinstance(error, DamagedDatabaseError):
                return self._replaced(error)
            self._in_reactor(self._set_problem, error)
            return False
        return True

    def _kept(self) -> Kept:
        """Return which messages are kept: what is of tomorrow was stored by a clock that was wrong."""
        wall = self._to_wall(self._clock.seconds())
        return Kept(wall - self.retention.seconds, wall + DAY, self.retention.rows)

    def _replaced(self, error: DamagedDatabaseError) -> bool:
        """Make room for a new file; all that is known is written into it, next time."""
        try:
            self._in_reactor(self._rewrite, error, self._set_aside())
        except OSError as trouble:
            self._in_reactor(self._set_problem, trouble)
        return False

    def _set_aside(self) -> Path | None:
        database, self._database = self._database, None
        if database is not None:
            database.close()
        now = datetime.fromtimestamp(self._to_wall(self._clock.seconds()), timezone.utc)
        aside = set_aside(self.path, now.strftime("%Y%m%d-%H%M%S"))
        return aside if aside.exists() else None

    def _is_durable(self, handed: int) -> None:
        self._durable = max(self._durable, handed)
        if self.problem:
            self.problem = ""
            self._report("database-well", {"path": self.path})
        self._patience.end(self._durable)

    def _give_up_waiting(self) -> None:
        self._set_problem(TimeoutError(f"no answer from the disk in {LOCK_PATIENCE:g} s"))

    def _set_problem(self, error: Any) -> None:
        """Say once what is wrong; nobody waits for a disk that is not well."""
        if not self.problem:
            self._report("database-problem", {"path": self.path, "reason": error})
        self.problem = f"the database {self.path} cannot be written: {error}; locks and counts are in memory alone"
        self._patience.end(self._handed)

    def _rewrite(self, error: DamagedDatabaseError, aside: Path | None) -> None:
        """Have all that is known written once more: what was stored is damaged, and set aside."""
        self._report("database-damaged", {"path": self.path, "reason": error, "set_aside": aside})
        kept = f", and is set aside as {aside}" if aside else ""
        self.damage = f"the database was damaged ({error}){kept}; a new one has what was in memory"
        self._latest = self._span.offset  # the new file does not know of a step of the clock yet
        accounts = self._policy.accounts
        self._chores.begin(self._noting_all())
        accounts.locks_changed.update((account.name, account) for account in accounts.locked)
        accounts.allowances.note_all()
        self._hooks.clear()
        if self.notices is not None:
            self.notices.note_all_unsaved()
        self.facts.note_all()

    def _noting_all(self) -> Iterator[None]:
        """Have all accounts stored; those that change place meanwhile have it noted by what they do."""
        for some in in_pieces(self._policy.accounts):
            for account in some:
                self._policy.accounts.note_change(account)
            yield
