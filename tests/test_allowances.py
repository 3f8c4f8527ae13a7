"""Allowances: the maximum in force is a person's for as long as it was said, and what was counted stays counted."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policyd import allowances
from policyd.accounts import Accounts
from policyd.allowances import MAX_TIME, Allowances, AllowedLimits
from policyd.limits import MAX_PERIOD, SLICES, Limits, Rules
from policyd.window import Window
from tests.allowing import Given, Oracle, allow, disallow, listed, maximum, tick, wanted
from tests.asking import ANNA, BERT, EPOCH, Mail, limit, override

HOUR = 3600.0
HOSTILE = ("-x", "a\nb\r", "a\0b", "'\"; DROP", "\ud800", "\u202egnp", "\\xff", "x" * 10_000, "%s {max}", " ")

AT_ONCE = limit("recipients", 100, "message", name="at-once")
RULES = (
    Rules((limit("messages", 5), AT_ONCE)),
    Rules((limit("messages", 7), AT_ONCE), (override(["anna*"], messages=9),)),
    Rules((AT_ONCE,)),
    Rules((limit("recipients", 900, name="messages"), limit("recipients", 300, "1h", name="at-once"))),
)
"""With overrides, with a limit less, and with the same names for something else."""

NAMES = ("messages", "at-once")

STEPS = st.one_of(
    st.tuples(
        st.just("allow"),
        st.sampled_from((ANNA, BERT)),
        st.sampled_from(NAMES),
        st.sampled_from((100, 101, 1000, 1001, 5000, None)),
        st.booleans(),
        st.sampled_from((1.0, 60.0, 100.5, HOUR)),
    ),
    st.tuples(st.just("disallow"), st.sampled_from((ANNA, BERT)), st.sampled_from((*NAMES, None))),
    st.tuples(st.just("time"), st.sampled_from((0.5, 1.0, 59.0, 100.0, HOUR))),
    st.tuples(st.just("clock"), st.sampled_from((-2 * HOUR, -60.0, -0.25, 30.0, 3 * HOUR))),
    st.tuples(st.just("reload"), st.integers(0, len(RULES) - 1)),
    st.tuples(st.just("send"), st.sampled_from((ANNA, BERT))),
    st.tuples(st.just("forget")),
)


class Course:
    """Allowances in the policy and in the oracle, side by side."""

    def __init__(self) -> None:
        self.mail = Mail(rules=RULES[0])
        self.oracle = Oracle()

    def do(self, step: tuple[Any, ...]) -> None:
        """Do a step in both."""
        word, *values = step
        getattr(self, f"_{word}")(*values)
        self.oracle.pass_time(self.mail.now, self.mail.to_wall(self.mail.now))
        tick(self.mail)

    def check(self) -> None:
        """Compare what the desk shows, of accounts that are known and of those that are not."""
        rules = self.mail.policy.accounts.rules
        for user in (ANNA, BERT):
            limits = self.mail.account(user)["limits"]
            shown = {each["name"]: (each["max"], each["allowance"] is not None) for each in limits}
            expected = {}
            for each in rules.limits_for(user):
                found = self.oracle.found(user, each.name, (each.count, each.period is None))
                expected[each.name] = (found.max if found else each.max, found is not None)
            assert shown == expected
        held = {(each["account"], each["limit"]) for each in listed(self.mail)}
        assert held == {(each.user, each.limit) for each in self.oracle.history}

    def _allow(self, user: str, name: str, most: int | None, dated: bool, seconds: float) -> None:
        mail = self.mail
        ends: dict[str, Any] = {"until": mail.to_wall(mail.now) + seconds} if dated else {"seconds": seconds}
        order = wanted(most, name, user=user, **ends)
        kinds = {each.name: (each.count, each.period is None) for each in mail.policy.accounts.rules.limits_for(user)}
        if name not in kinds:
            assert mail.desk.allowances.objection(order, mail.now) is not None
            return
        allow(mail, most, name, user=user, **ends)
        self.oracle.allow(
            Given(user, name, kinds[name], most, ends.get("until"), None if dated else mail.now + seconds)
        )

    def _disallow(self, user: str, name: str | None) -> None:
        disallow(self.mail, name, user)
        self.oracle.disallow(user, name)

    def _time(self, seconds: float) -> None:
        self.mail.now += seconds

    def _clock(self, seconds: float) -> None:
        self.mail.wall_offset += seconds

    def _reload(self, number: int) -> None:
        self.mail.reload(rules=RULES[number])

    def _send(self, user: str) -> None:
        self.mail.send(user=user)

    def _forget(self) -> None:
        """Fill the table with others."""
        accounts = self.mail.policy.accounts
        accounts.size = 3
        for number in range(5):
            accounts.get(f"other{number}", self.mail.now)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=25))
def test_the_maximum_in_force_is_what_was_last_allowed_and_is_not_over(steps: list[tuple[Any, ...]]) -> None:
    """Whatever is allowed, taken back, reloaded, forgotten, and however clocks go: as the oracle has it."""
    course = Course()
    for step in steps:
        course.do(step)
        course.check()


SENDING = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from((1, 1, 200, 499, 500, 501, 1000))),
        st.tuples(st.just("time"), st.sampled_from((0.001, 1.0, 29.9, 30.0, 31.0, 600.0, 1770.0, 1800.0))),
        st.tuples(st.just("allow"), st.sampled_from((100, 600, 1000, 1001, 3000, None)), st.sampled_from((1.0, 600.0))),
        st.tuples(st.just("disallow")),
    ),
    max_size=40,
)

BEYOND = [("send", 500), ("allow", 1001, 600.0), ("time", 29.9), ("send", 501)]


@settings(max_examples=300, deadline=None)
@given(SENDING)
@example([("allow", 3000, 600.0), ("send", 1000), ("disallow",), ("time", 1800.0), ("send", 500), ("send", 1)])
@example([*BEYOND, ("disallow",), ("time", 1770.0), ("send", 500)])
def test_in_no_window_is_more_accepted_than_the_maximum_in_force(course: list[tuple[Any, ...]]) -> None:
    """While an exact window becomes a coarse one and back, nothing is accepted beyond it, nor refused far below."""
    period, usual = 1800.0, 500
    mail = Mail(limit("recipients", usual, "30m"))
    accepted: list[tuple[float, int]] = []
    most, ends = usual, 0.0
    for word, *values in course:
        if word == "time":
            mail.now += values[0]
            tick(mail)
        elif word == "allow":
            allow(mail, values[0], "recipients", seconds=values[1])
            most, ends = values[0], mail.now + values[1]
        elif word == "disallow":
            disallow(mail)
            most, ends = usual, 0.0
        if mail.now >= ends:
            most = usual
        if word == "send":
            number, now = values[0], mail.now
            passed = mail.connection().data(number) == "DUNNO"
            reached = number + sum(sent for time, sent in accepted if time + period > now)
            at_most = number + sum(sent for time, sent in accepted if time + period * (1 + 1 / SLICES) > now)
            if passed:
                assert most is None or reached <= most
                accepted.append((now, number))
            else:
                assert most is not None
                assert at_most > most


def test_what_was_sent_stays_counted_when_an_allowance_begins_and_ends() -> None:
    """Who has used up the limit goes on up to the allowance, and is refused again when that is over."""
    mail = Mail(limit("messages", 5))
    mail.send(5)
    assert mail.send() == "REJECT messages 6"
    allow(mail, 8, seconds=60.0)
    assert [mail.send() for _ in range(4)] == ["DUNNO"] * 3 + ["REJECT messages 9"]
    mail.now += 60.0
    tick(mail)
    assert (mail.count(), maximum(mail)) == (8, 5)
    assert mail.send() == "REJECT messages 9"


def test_what_is_sent_without_limit_is_counted() -> None:
    """An unlimited account has its count when it is over."""
    mail = Mail(limit("messages", 2))
    allow(mail, None)
    assert mail.send(50) == "DUNNO"
    disallow(mail)
    assert (mail.count(), mail.send()) == (50, "REJECT messages 51")


def test_an_allowance_goes_above_overrides_and_below_limits() -> None:
    """It is the maximum, whatever the config says, also where it is the lower one."""
    mail = Mail(rules=Rules((limit("messages", 5),), (override([ANNA], messages=20),)))
    answer = allow(mail, 3)
    assert (answer["max"], answer["usual_max"], maximum(mail), maximum(mail, user=BERT)) == (3, 20, 3, 5)
    mail.send(3)
    assert mail.send() == "REJECT messages 4"


def test_a_message_on_its_way_goes_by_what_is_allowed_meanwhile() -> None:
    """From the next request on, over the same connection."""
    mail = Mail(limit("recipients", 2))
    connection = mail.connection()
    connection.rcpts(2)
    assert connection.rcpt() == "REJECT recipients 3"
    allow(mail, 3, "recipients")
    assert connection.rcpt() == "DUNNO"
    assert connection.data() == "DUNNO"
    disallow(mail)
    assert (mail.count(), mail.connection().rcpt()) == (3, "REJECT recipients 4")


def test_a_message_of_a_forgotten_account_goes_by_what_is_allowed_meanwhile() -> None:
    """The account that the message remembers takes its place in the table again, with the maximum in force."""
    mail = Mail(limit("recipients", 2))
    connection = mail.connection()
    connection.rcpts(2)
    mail.policy.accounts.size = 1
    for number in range(3):
        mail.policy.accounts.get(f"other{number}", mail.now)
    assert mail.policy.accounts.peek(ANNA, mail.now) is None
    allow(mail, 3, "recipients")
    assert connection.rcpt() == "DUNNO"


def test_an_allowance_unlocks_nobody() -> None:
    """The answer says that the account is locked; once unlocked, it goes by the allowance."""
    mail = Mail(limit("messages", 2, lock="until-unlocked"))
    mail.send(3)
    answer = allow(mail, 4)
    assert answer["lock"]["limit"] == "messages"
    assert mail.locked()
    mail.unlock()
    assert mail.send(4) == "DUNNO"
    assert mail.send() == "REJECT messages 5"


def test_a_second_allowance_takes_the_place_of_the_first() -> None:
    """Its end, too: the first one's means nothing any more."""
    mail = Mail(limit("messages", 5))
    allow(mail, 8, seconds=60.0, reason="first")
    answer = allow(mail, 9, until=mail.to_wall(mail.now) + HOUR)
    assert (answer["before"]["max"], answer["before"]["reason"]) == (8, "first")
    mail.now += 60.0
    tick(mail)
    assert [each["max"] for each in listed(mail)] == [9]
    assert mail.told("allowance-over") == []


def test_a_length_of_time_lasts_that_long_whatever_the_clock_is_set_to() -> None:
    """And what is told of its end is right by the clock as it is set."""
    mail = Mail(limit("messages", 5))
    allow(mail, 8, seconds=HOUR)
    mail.wall_offset += 5 * HOUR
    tick(mail)
    assert maximum(mail) == 8
    assert listed(mail)[0]["until"] == "2026-11-23T14:00:00+00:00"
    mail.now += HOUR
    mail.wall_offset -= 10 * HOUR
    tick(mail)
    assert maximum(mail) == 5


def test_a_date_is_a_date_whatever_time_has_passed() -> None:
    """Where the clock was wrong and is set right, it ends when the right clock shows it."""
    mail = Mail(limit("messages", 5))
    allow(mail, 8, until=EPOCH + 10 * HOUR)
    mail.wall_offset -= HOUR
    mail.now += 10 * HOUR
    tick(mail)
    assert maximum(mail) == 8
    assert listed(mail)[0]["until"] == "2026-11-23T18:00:00+00:00"
    mail.wall_offset += HOUR
    tick(mail)
    assert maximum(mail) == 5


def test_an_end_is_told_alike_while_the_clock_is_not_set() -> None:
    """Parts of seconds that computing with clocks comes to do not show."""
    mail = Mail(limit("messages", 5))
    mail.wall_offset += 1e-5
    told = allow(mail, 8, seconds=HOUR)["until"]
    for drift in (-0.4, 0.2, 0.5):
        mail.wall_offset += drift
        mail.now += 60.1
        assert listed(mail)[0]["until"] == told


def test_while_its_limit_is_gone_an_allowance_changes_nothing() -> None:
    """It is shown as such, holds again when the limit is back, and ends when it ends."""
    mail = Mail(limit("messages", 5))
    allow(mail, 8)
    mail.reload(limit("messages", 5, name="other"))
    assert (maximum(mail, "other"), listed(mail)[0]["in_force"]) == (5, False)
    mail.reload(limit("messages", 6))
    assert (maximum(mail), listed(mail)[0]["in_force"]) == (8, True)
    mail.reload(limit("messages", 5, name="other"))
    mail.now += HOUR
    tick(mail)
    assert listed(mail) == []
    assert mail.told("allowance-over")[0]["limit"] == "messages"


@pytest.mark.parametrize("other", [limit("recipients", 900), limit("recipients", 900, "message")])
def test_an_allowance_is_not_for_another_limit_of_the_same_name(other: Any) -> None:
    """2000 messages in a day are not 2000 recipients in one message."""
    mail = Mail(limit("messages", 5))
    allow(mail, 8)
    mail.reload(replace(other, name="messages"))
    assert (maximum(mail), listed(mail)[0]["in_force"]) == (900, False)


def test_many_that_end_at_once_end_a_few_at_a_time() -> None:
    """No turn of the reactor takes long for it, and each has its line in the log."""
    mail = Mail(limit("messages", 5))
    for number in range(120):
        allow(mail, 8, user=f"user{number}", seconds=60.0)
    mail.now += 60.0
    assert [mail.policy.allowing.expire(mail.now) for _ in range(3)] == [True, True, False]
    assert len(mail.told("allowance-over")) == 120
    assert listed(mail) == []


def test_the_log_tells_who_allowed_what_until_when() -> None:
    """By whom it was given stands where it ends, too."""
    mail = Mail(limit("messages", 5))
    allow(mail, None, until=EPOCH + HOUR, reason='a "mailing"\nof ours')
    fields = {
        "account": ANNA,
        "by": "desk",
        "uid": 1000,
        "limit": "messages",
        "max": "unlimited",
        "until": "2026-11-23T09:00:00+00:00",
        "reason": 'a "mailing"\nof ours',
    }
    assert mail.told("allow") == [fields]
    mail.now += HOUR
    tick(mail)
    assert mail.told("allowance-over") == [fields]
    allow(mail, 7)
    disallow(mail)
    assert (mail.told("disallow")[0]["max"], mail.told("disallow")[0]["reason"]) == (7, None)


def test_to_disallow_takes_one_or_all() -> None:
    """To take what there is not is no error."""
    mail = Mail(limit("messages", 5), limit("recipients", 5))
    allow(mail, 8)
    allow(mail, 8, "recipients")
    allow(mail, 9, user=BERT)
    assert disallow(mail, "recipients") == ["recipients"]
    assert disallow(mail, "recipients") == []
    assert (maximum(mail), maximum(mail, "recipients")) == (8, 5)
    assert disallow(mail) == ["messages"]
    assert [each["account"] for each in listed(mail)] == [BERT]


def test_they_are_listed_in_the_order_of_their_ends() -> None:
    """Dated ones and others, by the wall clock."""
    mail = Mail(limit("messages", 5))
    for number, hours in enumerate((5, 1, 3)):
        allow(mail, 8, user=f"for{number}", seconds=hours * HOUR)
        allow(mail, 8, user=f"date{number}", until=EPOCH + (hours + 1) * HOUR)
    assert [each["account"] for each in listed(mail)] == ["for1", "date1", "for2", "date2", "for0", "date0"]


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (wanted(8, "mesages"), "limit: there is no limit of this name, did you mean 'messages'?"),
        (wanted(8, "quite other"), "limit: there is no limit of this name, want one of messages, at-once"),
        (wanted(99, "at-once"), "max: want at least 100 recipients per message (RFC 5321 4.5.3.1.8)"),
        (
            wanted(8, until=EPOCH),
            "until: 2026-11-23T08:00:00+00:00 is in the past, it is 2026-11-23T08:00:00+00:00 now",
        ),
        (
            wanted(8, seconds=MAX_TIME + 1),
            "for: want at most 366d; what holds for longer belongs in the config, as an override",
        ),
        (
            wanted(8, until=EPOCH + MAX_TIME + 1),
            "until: want at most 366d; what holds for longer belongs in the config, as an override",
        ),
    ],
)
def test_what_cannot_be_allowed_is_refused_with_the_reason(order: Any, told: str) -> None:
    """It is said what was wanted, and nothing is changed."""
    mail = Mail(rules=RULES[0])
    assert mail.desk.allowances.objection(order, mail.now) == told
    assert listed(mail) == []


def test_the_longest_and_the_least_may_be_allowed() -> None:
    """The bounds belong to what is allowed."""
    mail = Mail(rules=RULES[0])
    for order in (wanted(100, "at-once"), wanted(1, seconds=MAX_TIME), wanted(1, until=EPOCH + MAX_TIME)):
        assert mail.desk.allowances.objection(order, mail.now) is None


def test_there_is_a_most_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it one may only take the place of another."""
    monkeypatch.setattr(allowances, "MAX_ALLOWANCES", 2)
    mail = Mail(limit("messages", 5))
    allow(mail, 8)
    allow(mail, 8, user=BERT)
    told = mail.desk.allowances.objection(wanted(8, user="carl"), mail.now)
    assert told is not None
    assert told.endswith("which is all there may be: disallow some first")
    allow(mail, 9)
    disallow(mail)
    allow(mail, 8, user="carl")


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_an_account_may_be_called_anything(name: str) -> None:
    """What is allowed to a name is allowed to just that."""
    mail = Mail(limit("messages", 1))
    allow(mail, 2, user=name, reason=name)
    assert (maximum(mail, user=name), maximum(mail)) == (2, 1)
    assert [(each["account"], each["reason"]) for each in listed(mail)] == [(name, name)]
    assert disallow(mail, user=name) == ["messages"]


def test_accounts_are_listed_by_the_maximum_in_force() -> None:
    """Who has used 80% of the allowance is listed, and who has used 80% of what held before is not."""
    mail = Mail(limit("messages", 10))
    for user, most in ((ANNA, 20), (BERT, 5), ("carl", None), ("dora", 10)):
        allow(mail, most, user=user)
        mail.send(4, user=user)
    assert {each["account"] for each in mail.desk.accounts(mail.now, "messages", 9, 80)} == {BERT}
    mail.send(12, user=ANNA)
    listed_at_80 = mail.desk.accounts(mail.now, "messages", 9, 80)
    assert [each["account"] for each in listed_at_80] == [ANNA, BERT]
    assert [each["limits"][0]["allowance"]["usual_max"] for each in listed_at_80] == [10, 10]
    disallow(mail, user=BERT)
    assert [each["account"] for each in mail.desk.accounts(mail.now, "messages", 9, 80)] == [ANNA]


def test_what_is_allowed_while_accounts_are_looked_through_counts() -> None:
    """Between two pieces maxima may change: those in force when an account is shown decide."""
    mail = Mail(limit("messages", 100))
    for number in range(300):
        mail.policy.accounts.get(f"user{number}", mail.now)
        mail.send(user=f"user{number}")
    for number in range(300):
        allow(mail, 2, user=f"user{number}")
    pieces = mail.desk.survey(mail.now, "messages", 1000, 50)
    for _ in range(20):
        assert next(pieces) == []
    for number in range(0, 300, 2):
        disallow(mail, user=f"user{number}")
    found = {each["account"] for piece in pieces for each in piece}
    assert found == {f"user{number}" for number in range(1, 300, 2)}


def test_a_long_forgotten_account_that_comes_back_goes_by_its_allowance() -> None:
    """The table of accounts is bounded by itself, and that of allowances by itself."""
    mail = Mail(limit("messages", 1))
    allow(mail, 2, seconds=MAX_TIME)
    mail.send(2)
    mail.now += MAX_PERIOD + 1
    mail.send(user=BERT)
    mail.send(user=BERT)
    assert mail.policy.accounts.peek(ANNA, mail.now) is None
    assert mail.send(2) == "DUNNO"
    assert mail.send() == "REJECT messages 3"


def test_what_was_stored_is_taken_in_where_nothing_was_decided_since() -> None:
    """Neither an allowance that is newer nor one that was taken back meanwhile is undone."""
    mail = Mail(limit("messages", 5), limit("recipients", 5))
    allow(mail, 8)
    allow(mail, 8, "recipients")
    stored = [allowance for given in mail.policy.accounts.allowances.accounts.values() for allowance in given.values()]
    later = Mail(limit("messages", 5), limit("recipients", 5))
    later.policy.accounts.allowances.changed = {}
    allow(later, 9)
    disallow(later)
    allow(later, 7, user=BERT)
    later.policy.accounts.allowances.hand_over()
    allow(later, 9)
    disallow(later)
    later.send()
    later.policy.allowing.restore(stored)
    assert (maximum(later), maximum(later, "recipients"), maximum(later, user=BERT)) == (5, 8, 7)


def test_limits_without_an_allowance_are_shared() -> None:
    """Only an account with an allowance in force has limits of its own."""
    accounts = Accounts(Rules((limit("messages", 5),)))
    mail = Mail(rules=accounts.rules)
    allow(mail, 8)
    anna, bert, carl = (mail.policy.accounts.get(name, mail.now) for name in (ANNA, BERT, "carl"))
    assert isinstance(anna.limits, AllowedLimits)
    assert bert.limits is carl.limits is anna.limits.usual
    assert anna.maxima.messages[0][2] == 8
    disallow(mail)
    assert anna.limits is bert.limits


def test_a_window_is_kept_when_an_account_goes_by_an_allowance() -> None:
    """What a message on its way has to give back lies in it."""
    mail = Mail(limit("messages", 5))
    mail.send()
    (before,) = mail.policy.accounts.get(ANNA, mail.now).windows
    allow(mail, 2000)
    (after,) = mail.policy.accounts.get(ANNA, mail.now).windows
    assert isinstance(after, Window)
    assert after is before


def test_an_empty_table_has_nothing_to_say_of_limits() -> None:
    """Limits come back as they are."""
    limits = Limits((limit("messages", 5),))
    assert Allowances().limits_for(ANNA, limits) is limits
    assert deque(Allowances().in_order(0.0)) == deque()
