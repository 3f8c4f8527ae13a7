"""Giving allowances in a test, and what there ought to be of them, found out the long way."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

from policyd.allowing import Wanted
from tests.asking import ANNA, Mail


def wanted(
    maximum: int | None,
    limit: str = "messages",
    *,
    user: str = ANNA,
    seconds: float | None = None,
    until: float | None = None,
    reason: str | None = None,
) -> Wanted:
    """Return what is wanted; without an end, for an hour."""
    if seconds is None and until is None:
        seconds = 3600.0
    return Wanted(user, limit, maximum, seconds, until, reason)


def allow(mail: Mail, maximum: int | None, limit: str = "messages", **how: Any) -> dict[str, Any]:
    """Allow something to which there is no objection; return what the desk answers."""
    order = wanted(maximum, limit, **how)
    assert mail.desk.allowances.objection(order, mail.now) is None
    return mail.desk.allowances.allow(order, "desk", 1000, mail.now)


def disallow(mail: Mail, limit: str | None = None, user: str = ANNA) -> list[str]:
    """Take an allowance, or all; return the limits that were allowed something."""
    answer = mail.desk.allowances.disallow(user, limit, "desk", 1000, mail.now)
    return [taken["limit"] for taken in answer["disallowed"]]


def tick(mail: Mail) -> None:
    """Do what the daemon does each second."""
    while mail.policy.allowing.expire(mail.now):
        pass


def maximum(mail: Mail, limit: str = "messages", user: str = ANNA) -> int | None:
    """Return the maximum that the desk shows for an account's limit."""
    (found,) = [shown for shown in mail.account(user)["limits"] if shown["name"] == limit]
    most: int | None = found["max"]
    return most


def listed(mail: Mail) -> list[dict[str, Any]]:
    """Return all allowances as the desk shows them."""
    return list(chain.from_iterable(mail.desk.allowances.listed(mail.now)))


@dataclass(slots=True)
class Given:
    """An allowance as the oracle knows it."""

    user: str
    limit: str
    kind: tuple[str, bool]
    """What is counted, and whether in one message."""
    max: int | None
    until: float | None
    """Wall clock."""
    ends: float | None
    """Boot clock."""


class Oracle:
    """Keeps all that was ever allowed in a list, and looks through the whole of it."""

    def __init__(self) -> None:
        self.history: list[Given] = []

    def allow(self, given: Given) -> None:
        """Note an allowance; the one before is as if it had never been."""
        self.disallow(given.user, given.limit)
        self.history.append(given)

    def disallow(self, user: str, limit: str | None) -> None:
        """Forget what a person takes back."""
        self.history = [
            each for each in self.history if each.user != user or (limit is not None and each.limit != limit)
        ]

    def pass_time(self, now: float, wall: float) -> None:
        """Forget what is over; the wall clock may stand before that again."""
        self.history = [
            each
            for each in self.history
            if (each.until is None or each.until > wall) and (each.ends is None or each.ends > now)
        ]

    def found(self, user: str, limit: str, kind: tuple[str, bool]) -> Given | None:
        """Return the allowance in force."""
        for each in self.history:
            if (each.user, each.limit, each.kind) == (user, limit, kind):
                return each
        return None
