"""Warnings once per window, against a plain list of what was sent; and that nothing is paid where nobody is warned."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.accounts import Account
from policyd.allowing import Wanted
from policyd.limits import Limit, Limits, Rules
from policyd.nearing import Nearing
from tests.asking import ANNA, BERT, Mail, limit, override


def mail(*limits: Limit, warn_at: int | None = 80) -> Mail:
    """Return a policy that warns."""
    return Mail(rules=Rules(Limits(limits), warn_at=warn_at))


def warned(mail: Mail) -> list[tuple[object, object]]:
    """Return the accounts and counts of the warnings so far."""
    return [(fields["account"], fields["count"]) for fields in mail.told("near-limit")]


def test_who_reaches_the_share_is_told_of_once_in_a_window() -> None:
    """At the count that reaches it, and again only when a whole window has passed and it is still so."""
    desk = mail(limit("messages", 10, "30m", name="m"))
    desk.send(7)
    assert warned(desk) == []
    desk.send(3)
    assert warned(desk) == [(ANNA, 8)]
    assert desk.told("near-limit")[0] == {"account": ANNA, "limit": "m", "count": 8, "max": 10, "per": "30m"}
    desk.now += 1799
    desk.send()
    assert desk.told("refused")
    desk.now += 1
    desk.send(8)
    assert warned(desk) == [(ANNA, 8), (ANNA, 8)]


def test_accounts_and_limits_are_warned_of_apart() -> None:
    """Each has a window of its own; an override's maximum is what counts."""
    limits = Limits([limit("messages", 10, "30m", name="m"), limit("recipients", 5, "1h", name="r")])
    desk = Mail(rules=Rules(limits, (override([BERT], m=100),), warn_at=80))
    desk.send(8, 0)
    desk.send(1, 4)
    desk.send(9, 0, user=BERT)
    assert [(told["account"], told["limit"]) for told in desk.told("near-limit")] == [(ANNA, "m"), (ANNA, "r")]


@pytest.mark.parametrize(
    "harmless",
    [
        limit("messages", 10, "30m", observe=True),
        limit("messages", 10, "30m", action="WARN much"),
        limit("messages", None, "30m"),
        limit("recipients", 100, "message"),
    ],
    ids=["observed", "lets pass", "unlimited", "per message"],
)
def test_nobody_is_warned_of_what_does_no_harm(harmless: Limit) -> None:
    """A limit that keeps no mail back, or that has no window."""
    desk = mail(harmless)
    desk.send(9)
    desk.send(1, 99)
    assert warned(desk) == []


def test_without_warnings_nothing_is_different() -> None:
    """The maxima that each request is measured by are those of the config, and no warning is remembered."""
    desk = mail(limit("messages", 10, "30m"), warn_at=None)
    desk.send(10)
    assert warned(desk) == []
    ((_, _, most, _),) = desk.policy.accounts.rules.limits_for(ANNA).maxima.messages
    assert most == 10


def test_a_reload_begins_and_ends_warnings() -> None:
    """What was counted stays."""
    limits = Limits([limit("messages", 10, "30m")])
    desk = mail(*limits, warn_at=None)
    desk.send(8)
    desk.reload(rules=Rules(limits, warn_at=80))
    desk.send()
    assert warned(desk) == [(ANNA, 9)]
    desk.reload(rules=Rules(limits))
    desk.now += 3600
    desk.send(10)
    assert len(warned(desk)) == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from((ANNA, BERT))), max_size=60),
    st.integers(1, 12),
    st.integers(1, 100),
)
def test_warnings_are_those_of_a_plain_list(sent: list[tuple[int, str]], most: int, percent: int) -> None:
    """And what is refused is what would be refused without warnings."""
    with_warnings, without = (mail(limit("messages", most, "60s"), warn_at=at) for at in (percent, None))
    passed: dict[str, list[float]] = {ANNA: [], BERT: []}
    last: dict[str, float] = {}
    expected = []
    for pause, user in sent:
        for desk in (with_warnings, without):
            desk.now += pause
        now = with_warnings.now
        answer = with_warnings.send(user=user)
        assert answer == without.send(user=user)
        if answer.startswith("DUNNO"):
            passed[user].append(now)
            count = sum(now - 60 < when for when in passed[user])
            if 100 * count >= most * percent and now - last.get(user, -1e9) >= 60:
                last[user] = now
                expected.append((user, count))
    assert warned(with_warnings) == expected


def test_what_is_remembered_of_warnings_is_bounded() -> None:
    """The oldest is forgotten first, and what has passed is."""
    told: deque[object] = deque()
    rules = Rules(Limits([limit("messages", 1, "60s")]), warn_at=100)
    nearing = Nearing(lambda word, fields: told.append(fields["account"]), size=10)

    def look_at(name: str, now: float) -> None:
        account = Account(name, rules, now)
        for window in account.windows:
            assert window is not None
            window.add(now, 1, 0.0)
        nearing.look_at(account, 100, now)

    for number in range(100):
        look_at(f"u{number}", 0.0)
        assert len(nearing) <= 10
    look_at("u99", 59.0)
    assert len(told) == 100
    look_at("u0", 59.0)
    assert len(told) == 101
    for number in range(10):
        look_at(f"v{number}", 200.0)
    assert len(nearing) == 10


def test_limits_of_what_messages_have_warn_too() -> None:
    """Of different senders; and of bytes, whose true size is known at the end, and stops only what exceeds."""
    desk = mail(limit("senders", 5, "30m", name="s"), limit("bytes", 1000, "30m", name="b"))
    connection = desk.connection()
    for number in range(4):
        connection.rset()
        connection.rcpt()
        connection.ask(protocol_state="DATA", recipient_count=1, sender=f"a{number}@example.com", size=100)
    assert [(told["limit"], told["count"]) for told in desk.told("near-limit")] == [("s", 4)]
    answer = connection.ask(protocol_state="END-OF-MESSAGE", recipient_count=1, sender="a3@example.com", size=600)
    assert answer == "DUNNO"
    assert [(told["limit"], told["count"]) for told in desk.told("near-limit")] == [("s", 4), ("b", 900)]
    connection.rset()
    connection.rcpt()
    assert connection.ask(protocol_state="DATA", recipient_count=1, sender="a3@example.com", size=101).startswith(
        "REJECT"
    )


def test_an_allowance_is_what_an_account_comes_near_to() -> None:
    """For as long as it holds."""
    desk = mail(limit("messages", 10, "30m", name="m"))
    allowances = desk.desk.allowances
    allowances.allow(Wanted(ANNA, "m", 20, 3600.0, None, None), "desk", None, desk.now)
    desk.send(15)
    assert warned(desk) == []
    desk.send()
    assert warned(desk) == [(ANNA, 16)]
