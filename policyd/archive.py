"""The history as it is asked about: by people, and for a lock that has to say why.

Without a database there is none, and with `history: 0` none is kept.
"""

from __future__ import annotations

from functools import partial

from twisted.internet.defer import Deferred

from policyd.accounts import Account, Evidence, Lock
from policyd.history import Message, NoHistoryError, Retention, Wanted
from policyd.history_table import evidence, find
from policyd.policy import Policy
from policyd.storage import Storage

MAX_GATHERING = 1000
"""Locks whose evidence is being looked for; one more has to do without what the history knows."""


TOLERANCE = 1.0
"""Seconds by which two times of the same event may differ: the wall clock is set now and then."""


class Archive:
    """The history of all messages; `storage` is None where there is no database."""

    def __init__(self, policy: Policy, storage: Storage | None, retention: Retention) -> None:
        self._policy = policy
        self._storage = storage
        self._gathering = 0
        self.keep(retention)
        policy.locks.gather = self._gather

    def keep(self, retention: Retention) -> None:
        """Keep the history for so long from now on."""
        self._retention = retention
        self._policy.history.kept = self._storage is not None and retention.seconds > 0
        if self._storage is not None:
            self._storage.retention = retention

    def problems(self) -> list[str]:
        """Return what a person should know of the history."""
        lost = self._policy.history.lost
        return [f"the history lacks {lost} messages: they came faster than they can be stored"] if lost else []

    def find(self, wanted: Wanted) -> Deferred[list[Message]]:
        """Return what fires with the messages that are wanted, the latest first.

        Raises NoHistoryError; the answer fails with what is wrong with the database.
        """
        if self._storage is None:
            raise NoHistoryError("no history is kept: there is no database")
        if not self._retention.seconds:
            raise NoHistoryError("no history is kept: the config says `history: 0`")
        return self._storage.ask(partial(find, wanted=wanted))

    def _gather(self, account: Account, lock: Lock, since: float) -> None:
        """Have a lock say what led to it, as soon as that is found out."""
        if self._storage is None or not self._policy.history.kept or self._gathering >= MAX_GATHERING:
            return
        self._gathering += 1
        first = lock.evidence.first if lock.evidence else None
        if first is not None:  # what came before does not count any more, such as what led to an earlier lock
            since = max(since, first - TOLERANCE)
        look = partial(evidence, account=account.name, since=since, first=first)

        def done(found: object) -> None:
            self._gathering -= 1
            if isinstance(found, Evidence):  # else the database is not well, which it says itself
                self._policy.accounts.add_evidence(account, lock, found)

        self._storage.ask(look).addBoth(done)
