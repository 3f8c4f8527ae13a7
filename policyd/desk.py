"""What the people at the desk see and say: the state as JSON values, and their orders about accounts.

The shapes are documented in docs/control.md; keys may be added, never renamed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from policyd import __version__
from policyd.accounts import Account, Lock
from policyd.allowance_desk import AllowanceDesk
from policyd.limits import Limit, Rules
from policyd.locks import utc
from policyd.policy import Policy
from policyd.survey import Json, Sort, Survey, limits_shown
from policyd.tally import HOOKS, OTHER_STATES, STATES

_REASON = re.compile(r"more than \S+ (\w+) in ")
"""See Limit.reason."""

HOLD = "HOLD"
"""The action that puts mail on hold."""

LOCKS = 20
"""Locks that are shown in one piece."""


class Desk:
    """The orders and questions that come in over the control socket.

    `to_wall` turns `now`, seconds of a clock that never steps back, into seconds since the epoch; `problems` names
    what is wrong outside the policy, `listen` the endpoints where Postfix can ask.
    """

    def __init__(
        self,
        policy: Policy,
        to_wall: Callable[[float], float],
        started: float,
        problems: Callable[[], list[str]],
        store: str = "memory",
        listen: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._policy = policy
        self._to_wall = to_wall
        self._started = started
        self._started_wall = to_wall(started)
        self._problems = problems
        self._store = store
        self.allowances = AllowanceDesk(policy, to_wall, self.known, self._lock)
        self._listen = listen

    def status(self, now: float) -> Json:
        """Return the daemon's state."""
        policy = self._policy
        policy.locks.expire(now)
        tally = policy.tally
        return {
            "version": __version__,
            "started": utc(self._started_wall),
            "uptime": round(now - self._started, 3),
            "accounts": len(policy.accounts),
            "locked": len(policy.accounts.locked),
            "connections": tally.connections,
            "requests": {state: tally.requests[state] for state in (*STATES, OTHER_STATES) if tally.requests[state]},
            "answers": dict(sorted(tally.answers.items())),
            "requests_without_account": tally.unnamed,
            "protocol_errors": tally.protocol_errors,
            "internal_errors": tally.internal_errors,
            "hooks": {hook: hook in tally.hooks for hook in HOOKS},
            "listen": list(self._listen()),
            "attributes": list(self._rules.attributes),
            "observe": self._rules.observe,
            "limits": [_in_force(limit) for limit in self._rules.limits],
            "store": self._store,
            "problems": [*policy.problems(), *self._problems()],
        }

    def account(self, name: str, now: float) -> Json:
        """Return one account's limits, lock and tallies."""
        self._policy.allowing.expire(now)
        name = self.allowances.name(name, now)
        account = self._policy.locks.peek(name, now) or self._policy.accounts.new(name, now)
        return {
            "account": name,
            "seen": account.seen,
            "lock": self._lock(account),
            "evidence": _evidence(account),
            "limits": limits_shown(account, self._policy.allowing, now),
            "refused": account.refused,
            "held": account.held,
            "warned": account.warned,
            "observed": account.observed,
            "attempts_while_locked": account.attempts_while_locked,
            "clients": [
                {"address": address.decode(errors="backslashreplace"), "last": utc(self._to_wall(last))}
                for address, last in reversed(account.clients)
            ],
        }

    def survey(self, now: float, sort: Sort, most: int, over: float | None = None) -> Iterator[list[Json]]:
        """Yield the `most` accounts that send most, of those whose count is at least `over` percent of a maximum.

        The list comes in parts, some of them empty, and with a bounded piece of work for each.
        """
        self._policy.locks.expire(now)
        yield from Survey(self._policy, now, sort, most, over).pieces()

    def accounts(self, now: float, sort: Sort, most: int, over: float | None = None) -> list[Json]:
        """Return the same in one go, where nobody waits meanwhile."""
        return list(chain.from_iterable(self.survey(now, sort, most, over)))

    def locks(self, now: float, most: int | None = None) -> Iterator[list[Json]]:
        """Yield every lock, or so many at most, the latest first, in parts."""
        self._policy.locks.expire(now)
        locked = self._policy.accounts.locked
        least = 0 if most is None else max(len(locked) - most, 0)
        for end in range(len(locked), least, -LOCKS):
            part = reversed(locked[max(end - LOCKS, least) : end])
            yield [self._lock_of(account) for account in part if account.lock]

    def locked(self, now: float) -> list[Json]:
        """Return the same in one go, where nobody waits meanwhile."""
        return list(chain.from_iterable(self.locks(now)))

    def lock(
        self, name: str, reason: str, seconds: float, by: str, now: float, *, hold: bool, uid: int | None = None
    ) -> Json:
        """Lock an account by hand."""
        account = self._policy.locks.by_hand(self.known(name, now), reason, seconds, by, now, hold=hold, uid=uid)
        return self._lock_of(account)

    def unlock(self, names: Sequence[str], by: str, now: float, uid: int | None = None) -> Json:
        """Free accounts, and tell of which of them mail was held; to free one that is free is no error."""
        done: dict[bool, list[str]] = {True: [], False: []}
        held: list[str] = []
        for given in names:
            name = self.known(given, now)
            account = self._policy.locks.peek(name, now)
            if account is not None and account.lock is not None and _has_held(account, account.lock):
                held.append(name)
            done[self._policy.locks.unlock(name, by, now, uid)].append(name)
        return {"unlocked": done[True], "free": done[False], "held": held}

    def reset(self, name: str, by: str, now: float, uid: int | None = None) -> Json:
        """Forget an account's counts."""
        name = self.known(name, now)
        return {"account": name, "seen": self._policy.locks.reset(name, by, now, uid)}

    def queue_ordered(self, name: str, done: Json, by: str, now: float, uid: int | None = None) -> Json:
        """Log what policyctl has done to messages in Postfix's queue: `done` tells the order, and of how many."""
        done = {"account": self.known(name, now), **done}
        self._policy.queue_ordered({**done, "by": by, "uid": uid})
        return done

    def known(self, given: str, now: float) -> str:
        """Return an account's name from what a person typed: as it is if there is one of that name.

        After a reload that makes names lower-case, those counted before are still there under their old names.
        """
        return given if self._policy.accounts.peek(given, now) else self._rules.named(given)

    def wall(self, now: float) -> float:
        """Return `now` as seconds since the epoch."""
        return self._to_wall(now)

    @property
    def _rules(self) -> Rules:
        return self._policy.accounts.rules

    def _lock_of(self, account: Account) -> Json:
        return {"account": account.name, **(self._lock(account) or {})}

    def _lock(self, account: Account) -> Json | None:
        lock = account.lock
        if lock is None:
            return None
        return {
            "since": utc(lock.since),
            "until": None if lock.until is None else utc(lock.until),
            "limit": lock.limit,
            "counts": _counted(lock),
            "count": lock.count,
            "by": lock.by,
            "reason": lock.reason,
            "action": lock.verdict.word,
        }


def _has_held(account: Account, lock: Lock) -> bool:
    """Tell whether mail of an account was held: by a limit, or by its lock."""
    return account.held > 0 or (lock.verdict.word == HOLD and account.attempts_while_locked > 0)


def _counted(lock: Lock) -> str | None:
    """Return what the limit that made a lock counts; the limit itself may be gone by now."""
    found = None if lock.limit is None else _REASON.match(lock.reason)
    return found[1] if found else None


def _evidence(account: Account) -> Json | None:
    """Return what led to an account's lock."""
    evidence = account.lock.evidence if account.lock else None
    if evidence is None:
        return None
    return {
        "first": None if evidence.first is None else utc(evidence.first),
        "messages": evidence.messages,
        "recipients": evidence.recipients,
        "clients": [{"address": address, "messages": number} for address, number in evidence.clients],
        "senders": [{"sender": sender, "messages": number} for sender, number in evidence.senders],
        "queue_ids": list(evidence.queue_ids),
        "distinct_clients": evidence.distinct_clients,
        "distinct_senders": evidence.distinct_senders,
    }


def _in_force(limit: Limit) -> Json:
    return {
        "name": limit.name,
        "count": limit.count,
        "per": limit.per,
        "max": limit.max,
        "action": limit.action.word,
        "observe": limit.observe,
    }
