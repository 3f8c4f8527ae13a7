"""Looking through all accounts a piece at a time: the right ones are found, whatever happens between two pieces."""

from __future__ import annotations

from collections.abc import Callable
from heapq import nlargest
from itertools import chain
from typing import Any

import pytest

from policyd.accounts import Account
from policyd.limits import MAX_PERIOD, Limit, Limits, Rules
from policyd.survey import EFFORT, GLANCES, Sort
from tests.asking import Mail, all_accounts, limit, override, seeded

SORTS: tuple[Sort, ...] = ("messages", "recipients", "refused")

LIMITS = (
    limit("recipients", 100, "message", name="at-once"),
    limit("messages", 40, "1h", name="hourly"),
    limit("messages", 60, "10m", "WARN many", name="often"),
    limit("recipients", 90, "2h"),
)
OVERRIDES = (override(["user1*"], hourly=None, often=7), override(["user2*"], recipients=5000, hourly=11))


class CountingRules(Rules):
    """Rules that count how often they are asked whom they concern."""

    asked = 0

    def limits_for(self, account: str) -> Limits:
        """Return the limits of an account."""
        self.asked += 1
        return super().limits_for(account)


def crowd(number: int = 400, *, seed: int = 1, rules: Rules | None = None) -> Mail:
    """Return the mail of many: busy ones, idle ones, refused and locked ones."""
    mail = Mail(rules=rules or Rules(LIMITS, OVERRIDES))
    chance = seeded(seed)
    for place in range(number):
        user = f"user{place}"
        mail.now += chance.choice((0, 1, 20))
        account = mail.policy.accounts.get(user, mail.now)
        for _ in range(chance.choice((0, 0, 1, 3, 9))):
            for counted, window in zip(account.limits, account.windows, strict=True):
                if window is not None:
                    window.add(mail.now, chance.choice((1, 1, 2, 5)), counted.slice)
        account.refused = chance.choice((0, 0, 0, 1, 5))
        if chance.random() < 0.1:
            mail.lock(user)
            account.attempts_while_locked = chance.randrange(3)
    return mail


def exact(mail: Mail, account: Account) -> list[tuple[Limit, int]]:
    """Return the limits of an account in windows, and the counts."""
    return [
        (counted, window.count(mail.now, counted.period))
        for counted, window in zip(account.limits, account.windows, strict=True)
        if window is not None and counted.period is not None
    ]


def rank(mail: Mail, account: Account, sort: Sort) -> tuple[int, int]:
    """Return what an account is to be sorted by."""
    if sort == "refused":
        return account.refused, account.attempts_while_locked
    return max(count for counted, count in exact(mail, account) if counted.count == sort), account.refused


def share(mail: Mail, account: Account) -> float:
    """Return how much of a maximum an account has used, in percent."""
    return max(100 * count / counted.max if counted.max else 0.0 for counted, count in exact(mail, account))


def expected(mail: Mail, sort: Sort, most: int, over: float) -> list[str]:
    """Return the names that have to be listed, found out by looking at each account."""
    known = [account for account in all_accounts(mail.policy.accounts, mail.now) if share(mail, account) >= over]
    return [account.name for account in nlargest(most, known, key=lambda account: rank(mail, account, sort))]


def names(shown: list[dict[str, Any]]) -> list[str]:
    """Return the names of what is shown."""
    return [account["account"] for account in shown]


def parts(mail: Mail, between: Callable[[int], None], sort: Sort = "messages", most: int = 20) -> list[dict[str, Any]]:
    """Return what is listed when something is done between any two pieces."""
    shown = []
    for number, part in enumerate(mail.desk.survey(mail.now, sort, most)):
        shown += part
        between(number)
    return shown


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("seed", range(3))
def test_those_who_send_most_are_listed(sort: Sort, seed: int) -> None:
    """Whatever is asked for, it is what looking at each account exactly comes to."""
    mail = crowd(seed=seed)
    chance = seeded(seed)
    for most in (1, 7, 20, 399, 400, 1000):
        over = chance.choice((0.0, 0.5, 10.0, 33.3, 80.0, 100.0, 1000.0))
        mail.now += chance.choice((0.0, 60.0, 1800.0))
        assert names(mail.desk.accounts(mail.now, sort, most, over)) == expected(mail, sort, most, over)


@pytest.mark.parametrize("over", [10.0, 24.999999999999996, 25.0, 25.000000000000004, 33.333333333333336, 1e6])
def test_who_has_used_just_so_much_of_a_maximum_is_listed(over: float) -> None:
    """What cannot be so much is passed over, and nothing that is."""
    mail = crowd(100, rules=Rules((limit("messages", 12), limit("recipients", 3))))
    assert names(mail.desk.accounts(mail.now, "messages", 100, over)) == expected(mail, "messages", 100, over)


def test_nobody_is_under_nothing() -> None:
    """Over 0 percent are all, those who have sent nothing too."""
    mail = crowd(50)
    assert len(mail.desk.accounts(mail.now, "messages", 100, 0.0)) == 50


def test_who_has_not_been_heard_of_for_longest_is_not_listed() -> None:
    """Unless locked: that is shown for as long as it lasts."""
    mail = crowd(50)
    locked = {lock["account"] for lock in mail.desk.locked(mail.now)}
    mail.now += MAX_PERIOD
    assert set(names(mail.desk.accounts(mail.now, "messages", 100))) == locked != set()


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("over", [0.0, 20.0])
def test_after_a_reload_the_new_rules_count(sort: Sort, over: float) -> None:
    """Accounts are judged by limits that were renamed, got another maximum, or are gone."""
    for rules in (
        Rules((LIMITS[1], limit("messages", 10, "10m", name="renamed"), LIMITS[3]), OVERRIDES[:1]),
        Rules((limit("messages", 3, "1h", name="hourly"), limit("recipients", 2, "2h", name="other"))),
        Rules((limit("messages", 5, "message", name="hourly"), limit("recipients", 4, "2h"), *LIMITS[2:3])),
    ):
        mail, known = crowd(), crowd()
        mail.reload(rules=rules)
        known.reload(rules=rules)
        shown = names(mail.desk.accounts(mail.now, sort, 30, over))
        assert shown == expected(known, sort, 30, over)


def test_a_reload_does_not_make_all_look_up_their_limits() -> None:
    """Who cannot be listed, by the events that are counted, is not asked about: globs may be thousands."""
    for another, wanted in (("hourly", 20), ("renamed", 30)):
        mail = crowd(2000, rules=Rules((limit("messages", 40, "1h", name="hourly"),)))
        rules = CountingRules((limit("messages", 50, "1h", name=another),))
        mail.reload(rules=rules)
        assert len(mail.desk.accounts(mail.now, "messages", 5)) == 5
        assert rules.asked < wanted * 10


def test_no_piece_is_large() -> None:
    """However many accounts there are and are to be shown, little is done between two yields."""
    mail = crowd(3000)
    rules = CountingRules(LIMITS)
    mail.reload(rules=rules)
    pieces, shown = 0, 0
    asked = rules.asked
    for part in mail.desk.survey(mail.now, "messages", 100_000):
        pieces += 1
        shown += len(part)
        assert len(part) * len(LIMITS) <= EFFORT
        assert rules.asked - asked <= 2  # one account's, and once which limits there are
        asked = rules.asked
    assert shown == 3000
    assert pieces >= 3000 / GLANCES + 3000 * 2 * len(LIMITS) / EFFORT


def test_many_locks_are_shown_in_parts() -> None:
    """No part is large, and together they are all locks, the latest first."""
    mail = Mail()
    everybody = [f"user{number}" for number in range(333)]
    for user in everybody:
        mail.lock(user)
    found = list(mail.desk.locks(mail.now))
    assert max(map(len, found)) < 50
    assert names(list(chain.from_iterable(found))) == everybody[::-1]


def test_a_lock_that_is_lifted_meanwhile_is_not_shown() -> None:
    """Nor is one shown twice that was replaced."""
    mail = Mail()
    for number in range(100):
        mail.lock(f"user{number}")
    found = mail.desk.locks(mail.now)
    shown = next(found)
    mail.unlock("user5")
    mail.lock("user99", reason="again")
    mail.lock("user6", reason="again")
    shown += list(chain.from_iterable(found))
    assert sorted(names(shown)) == sorted(f"user{number}" for number in range(100) if number != 5)
    assert [lock["reason"] for lock in shown if lock["account"] == "user6"] == ["again"]


def test_who_is_locked_and_freed_meanwhile_is_listed_once() -> None:
    """All go back and forth between the locked and the others, and each is shown as it is in the end."""
    mail = crowd()
    everybody = [f"user{number}" for number in range(400)]

    def to_and_fro(number: int) -> None:
        for user in everybody[number % 7 :: 7]:
            (mail.unlock if number % 2 else mail.lock)(user)

    shown = parts(mail, to_and_fro, most=1000)
    assert len(names(shown)) == len(set(names(shown))) > 0
    assert set(names(shown)) <= set(everybody)


def test_who_is_forgotten_meanwhile_is_not_listed() -> None:
    """Room is made for others while the table is looked through."""
    mail = crowd(300)
    mail.policy.accounts.size = 300
    newcomers = (f"new{number}" for number in range(10_000))

    def push_out(_number: int) -> None:
        for _ in range(20):
            mail.policy.accounts.get(next(newcomers), mail.now)

    shown = parts(mail, push_out, most=1000)
    assert len(names(shown)) == len(set(names(shown)))
    assert not [user for user in names(shown[:20]) if user.startswith("user") and not mail.account(user)["lock"]]


def test_what_is_shown_is_what_holds_when_it_is_shown() -> None:
    """Who was found with high counts and starts anew has no high place any more."""
    mail = crowd(300)
    first = names(mail.desk.accounts(mail.now, "messages", 3))
    survey = mail.desk.survey(mail.now, "messages", 50)
    seen = 0
    for _ in range(300 // GLANCES + 1):
        seen += len(next(survey))
    assert seen == 0
    while not seen:
        for user in first:
            mail.reset(user)
        shown = next(survey)
        seen = len(shown)
    shown += list(chain.from_iterable(survey))
    counts = [max(found["count"] for found in account["limits"][1:3]) for account in shown]
    assert counts == sorted(counts, reverse=True)
    assert not set(first) & set(names(shown[:3]))


def test_other_rules_may_come_into_force_meanwhile() -> None:
    """Again and again; what is shown has the limits that are in force then."""
    mail = crowd()
    rules = [Rules((limit("messages", 9, "1h", name=name), LIMITS[3])) for name in ("hourly", "renamed", "often")]
    shown = parts(mail, lambda number: mail.reload(rules=rules[number % 3]), most=100)
    assert len(shown) == 100
    assert {tuple(found["name"] for found in account["limits"]) for account in shown} <= {
        (name, "recipients") for name in ("hourly", "renamed", "often")
    }


@pytest.mark.parametrize("seed", range(10))
def test_whatever_happens_meanwhile_nobody_is_listed_twice(seed: int) -> None:
    """Accounts are counted, refused, locked, freed, reset and forgotten, and rules come and go."""
    mail = crowd(300, seed=seed)
    mail.policy.accounts.size = 280
    chance = seeded(seed)
    sort = chance.choice(SORTS)
    rules = [Rules(LIMITS, OVERRIDES), Rules(LIMITS[:2]), Rules((LIMITS[3], limit("messages", 5)), OVERRIDES[1:])]

    happenings: tuple[Callable[[str], object], ...] = (
        lambda user: mail.send(user=user),
        lambda user: mail.send(3, 20, user=user),
        lambda user: mail.lock(user, seconds=5.0),
        mail.unlock,
        mail.reset,
        lambda _user: mail.reload(rules=chance.choice(rules)),
    )
    most = chance.choice((1, 10, 100))
    shown = []
    for part in mail.desk.survey(mail.now, sort, most, chance.choice((None, 10.0))):
        shown += part
        for _ in range(chance.randrange(5)):
            chance.choice(happenings)(f"user{chance.randrange(310)}")
    assert len(shown) <= most
    assert len(set(names(shown))) == len(shown)
    assert set(names(shown)) <= {f"user{number}" for number in range(310)}


def test_nothing_is_looked_at_where_nothing_is_asked_for() -> None:
    """None of a million are found without looking."""
    mail = crowd(1000)
    assert list(mail.desk.survey(mail.now, "messages", 0)) == []
