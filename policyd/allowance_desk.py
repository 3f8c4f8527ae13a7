"""What the people at the desk see and say of allowances, as JSON values.

The shapes are documented in docs/control.md; keys may be added, never renamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from policyd.accounts import Account
from policyd.allowances import Allowance, holds
from policyd.allowing import Wanted, limit_named, names
from policyd.limits import Limit
from policyd.locks import utc
from policyd.policy import Policy
from policyd.survey import Json
from policyd.yamlnodes import suggestion

SHOWN = 50
"""Allowances that are shown in one piece."""


class AllowanceDesk:
    """The orders and questions about allowances.

    `to_wall` turns `now`, seconds of a clock that never steps back, into seconds since the epoch; `known` returns an
    account's name from what a person typed, and `lock_shown` an account's lock.
    """

    def __init__(
        self,
        policy: Policy,
        to_wall: Callable[[float], float],
        known: Callable[[str, float], str],
        lock_shown: Callable[[Account], Json | None],
    ) -> None:
        self._policy = policy
        self._to_wall = to_wall
        self._known = known
        self._lock_shown = lock_shown

    def name(self, given: str, now: float) -> str:
        """Return an account's name from what a person typed: as it is if there is an allowance for just that."""
        return given if given in self._policy.accounts.allowances.accounts else self._known(given, now)

    def objection(self, wanted: Wanted, now: float) -> str | None:
        """Return why something cannot be allowed, for a person to read; None: it can."""
        return self._policy.allowing.objection(wanted, now)

    def allow(self, wanted: Wanted, by: str, uid: int | None, now: float) -> Json:
        """Give an allowance to which there is no objection."""
        allowance, before = self._policy.allowing.allow(wanted, by, uid, now)
        account = self._policy.locks.peek(wanted.account, now)
        return {
            **self._shown(allowance, now),
            **self._usual(allowance),
            "before": None if before is None else self._shown(before, now),
            "lock": self._lock_shown(account) if account else None,
        }

    def unknown_limit(self, account: str, limit: str) -> str | None:
        """Return what is wrong with a limit's name that is neither in the config nor among the account's allowances."""
        rules = self._policy.accounts.rules
        given = self._policy.accounts.allowances.accounts.get(account, {})
        if limit in given or limit_named(rules, limit) is not None:
            return None
        return f"limit: there is no limit of this name, {suggestion(limit, dict.fromkeys([*names(rules), *given]))}"

    def disallow(self, account: str, limit: str | None, by: str, uid: int | None, now: float) -> Json:
        """Take an account's allowance for a limit, or all that it has; to take none is no error."""
        taken = self._policy.allowing.disallow(account, limit, by, uid, now)
        return {
            "account": account,
            "disallowed": [{**self._shown(allowance, now), **self._usual(allowance)} for allowance in taken],
        }

    def listed(self, now: float) -> Iterator[list[Json]]:
        """Yield every allowance, the one that ends next first, in parts."""
        self._policy.allowing.expire(now)
        allowances = self._policy.accounts.allowances.in_order(self._to_wall(now) - now)
        rules, known = None, dict[str, Limit]()
        while some := list(islice(allowances, SHOWN)):
            if rules is not self._policy.accounts.rules:
                rules = self._policy.accounts.rules
                known = {limit.name: limit for limit in rules.limits_for("")}
            shown = []
            for allowance in some:
                limit = known.get(allowance.limit)
                in_force = limit is not None and holds(allowance, limit)
                shown.append({**self._shown(allowance, now), "in_force": in_force})
            yield shown

    def _shown(self, allowance: Allowance, now: float) -> Json:
        return {
            "account": allowance.account,
            "limit": allowance.limit,
            "counts": allowance.kind.partition(" ")[0],
            "max": allowance.max,
            "since": utc(allowance.since),
            "until": utc(self._policy.allowing.until(allowance, now)),
            "by": allowance.by,
            "uid": allowance.uid,
            "reason": allowance.reason,
        }

    def _usual(self, allowance: Allowance) -> Json:
        """Return what holds for the account without the allowance; nothing where there is no such limit now."""
        limits = self._policy.accounts.rules.limits_for(allowance.account)
        limit = next((limit for limit in limits if holds(allowance, limit)), None)
        return {
            "counts": limit.count if limit else None,
            "per": limit.per if limit else None,
            "usual_max": limit.max if limit else None,
        }
