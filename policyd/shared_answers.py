"""What a node answers when another one asks all nodes: its part of what the desk shows.

Questions come from outside: each field is looked at before it is used.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, get_args

from policyd.accounts import MAX_CLIENTS
from policyd.calls import MAX_MESSAGES, MAX_NAME, MAX_QUEUE_IDS, MESSAGES, Find, message_shown
from policyd.decisions import LATEST
from policyd.gathering import Answer, Rows
from policyd.history import VERDICTS, NoHistoryError, Wanted
from policyd.policy import Policy
from policyd.records import TALLIES
from policyd.survey import Json, Sort, Survey

MAX_DEPTH = 10_000
"""Accounts that a node lists at most."""

NAMES = 20
"""Accounts that are looked up in one piece."""

MAX_NAMES = 1000
"""Accounts in one question."""

_SORTS = get_args(Sort)


class Answers:
    """This node's answers; `wall` turns seconds of the clock that never steps back into seconds since the epoch."""

    def __init__(
        self, policy: Policy, find: Find | None, seconds: Callable[[], float], wall: Callable[[float], float]
    ) -> None:
        self._policy = policy
        self._find = find
        self._seconds = seconds
        self._wall = wall
        self.kinds: dict[str, Answer] = {
            "top": self._top,
            "tallies": self._tallies,
            "account": self._account,
            "history": self._history,
        }

    def _top(self, asked: Json) -> Iterator[Rows]:
        """List who sends most: name and count, the most first."""
        sort, over = asked["sort"], asked.get("over")
        if sort not in _SORTS or not (over is None or _is_number(over, 1e6)):
            raise ValueError("no such list")
        survey = Survey(self._policy, self._seconds(), sort, _whole(asked["most"], MAX_DEPTH), over)
        return ([[shown["account"], sent(shown, sort)] for shown in some] for some in survey.pieces())

    def _tallies(self, asked: Json) -> Iterator[Rows]:
        """Tell of some accounts how much was refused and held."""
        names = asked["names"]
        if not isinstance(names, list) or len(names) > MAX_NAMES or not all(map(_is_name, names)):
            raise ValueError("no names")
        for start in range(0, len(names), NAMES):
            found = [self._policy.accounts.peek(name, self._seconds()) for name in names[start : start + NAMES]]
            yield [[account.name, account.refused, account.held] for account in found if account is not None]

    def _account(self, asked: Json) -> Iterator[Rows]:
        """Tell what this node has seen of an account."""
        if not _is_name(asked["account"]):
            raise ValueError("no name")
        account = self._policy.locks.peek(asked["account"], self._seconds())
        if account is None:
            return iter(())
        clients = [[address.decode(errors="backslashreplace"), self._wall(last)] for address, last in account.clients]
        tallies = {name: getattr(account, name) for name in TALLIES}
        return iter([[{"seen": account.seen, **tallies, "clients": clients[-MAX_CLIENTS:]}]])

    def _history(self, asked: Json) -> Awaitable[Iterator[Rows]]:
        """List messages, the latest first; none where no history is kept."""
        ids, account, verdict = asked["queue_ids"], asked["account"], asked["verdict"]
        if not isinstance(ids, list) or len(ids) > MAX_QUEUE_IDS or not all(map(_is_name, ids)):
            raise ValueError("no queue ids")
        if not (account is None or _is_name(account)) or not (verdict is None or verdict in VERDICTS):
            raise ValueError("no such messages")
        if not _is_number(asked["since"], LATEST):
            raise ValueError("no time")
        most = _whole(asked["most"], MAX_MESSAGES + 1)
        return self._found(Wanted(account, tuple(ids), asked["since"], verdict, most))

    async def _found(self, wanted: Wanted) -> Iterator[Rows]:
        try:
            found = [] if self._find is None else await self._find(wanted)
        except (NoHistoryError, OSError):
            found = []
        parts = (found[start : start + MESSAGES] for start in range(0, len(found), MESSAGES))
        return ([message_shown(message) for message in part] for part in parts)


def sent(shown: Json, sort: str) -> int:
    """Return what an account is sorted by: what was counted against the limits of that kind, or was refused."""
    if sort == "refused":
        return int(shown["refused"])
    return max((limit["count"] for limit in shown["limits"] if limit["counts"] == sort and limit["count"]), default=0)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME


def _is_number(value: Any, most: float) -> bool:
    return type(value) in (int, float) and 0 <= value <= most


def _whole(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("no whole number")
    return value
