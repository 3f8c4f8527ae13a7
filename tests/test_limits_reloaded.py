"""Limits that change under running counts: no count and no lock is lost."""

from __future__ import annotations

import pytest

from policyd.limits import HOUSE_RULES, Rules
from tests.asking import ANNA, BERT, Mail, limit, override


def test_a_raised_maximum_lets_more_pass_at_once() -> None:
    """An account that was full goes on where it stood, up to the new maximum."""
    mail = Mail(limit("messages", 2))
    mail.send(2)
    mail.reload(limit("messages", 3))
    assert mail.count() == 2
    assert mail.send() == "DUNNO"
    assert mail.send() == "REJECT messages 4"


def test_a_lowered_maximum_refuses_until_there_is_room() -> None:
    """An account that has sent more than it now may is refused until enough of it is over."""
    mail = Mail(limit("messages", 4, "30m"))
    for _ in range(4):
        mail.send()
        mail.now += 60
    mail.reload(limit("messages", 2, "30m"))
    assert mail.send() == "REJECT messages 5"
    mail.now += 1800 - 240 + 60
    assert mail.count() == 2
    assert mail.send() == "REJECT messages 3"
    mail.now += 60
    assert mail.send() == "DUNNO"


def test_a_lowered_maximum_locks_nobody_by_itself() -> None:
    """Only who tries to exceed the new maximum is locked."""
    mail = Mail(limit("messages", 4, lock="until-unlocked"))
    mail.send(4)
    mail.reload(limit("messages", 2, lock="until-unlocked"))
    assert not mail.locked()
    mail.send()
    assert mail.locked()


def test_a_renamed_limit_starts_anew() -> None:
    """A limit is known by its name: under another it counts from 0."""
    mail = Mail(limit("messages", 2, name="old"))
    mail.send(2)
    mail.reload(limit("messages", 2, name="new"))
    assert mail.counts() == [0]


def test_a_removed_limit_takes_no_other_count_with_it() -> None:
    """Where a limit goes, the others keep what they have counted."""
    mail = Mail(limit("messages", 1), limit("recipients", 9))
    mail.send(recipients=3)
    mail.reload(limit("recipients", 9))
    assert mail.counts() == [3]
    assert mail.send(5) == "DUNNO"


def test_an_added_limit_counts_from_now_on() -> None:
    """A new limit counts what comes, and those that were there keep their counts, in any order."""
    mail = Mail(limit("messages", 9))
    mail.send(2)
    mail.reload(limit("recipients", 9), limit("messages", 9, "1d", name="daily"), limit("messages", 9))
    assert mail.counts() == [0, 0, 2]
    mail.send()
    assert mail.counts() == [1, 1, 3]


def test_a_limit_that_counts_something_else_starts_anew() -> None:
    """A limit of recipients does not go on with what was counted as messages under the same name."""
    mail = Mail(limit("messages", 9, name="sent"))
    mail.send(2)
    mail.reload(limit("recipients", 9, name="sent"))
    assert mail.counts() == [0]


def test_a_shorter_window_holds_what_lies_in_it() -> None:
    """Where a window is shortened, what is older than the new one counts no more."""
    mail = Mail(limit("messages", 2, "1h"))
    mail.send()
    mail.now += 1200
    mail.send()
    mail.reload(limit("messages", 2, "10m"))
    assert mail.count() == 1


def test_a_longer_window_keeps_what_was_counted() -> None:
    """Where a window is lengthened, what was in the old one stays for as long as the new one lasts."""
    mail = Mail(limit("messages", 2, "10m"))
    mail.send()
    mail.now += 599
    mail.reload(limit("messages", 2, "1h"))
    mail.now += 3000
    assert mail.count() == 1
    mail.now += 1
    assert mail.count() == 0


def test_a_maximum_raised_beyond_a_thousand_and_back_keeps_the_count() -> None:
    """A large maximum has a coarser memory; the count is the same before and after."""
    mail = Mail(limit("recipients", 1000))
    mail.connection().data(1000)
    mail.reload(limit("recipients", 2000))
    assert mail.connection().data(1000) == "DUNNO"
    assert mail.connection().data(1) == "REJECT recipients 2001"
    mail.reload(limit("recipients", 1000))
    assert mail.count() == 2000
    mail.now += 1800 * 61 / 60
    assert mail.count() == 0


def test_a_large_maximum_in_a_shortened_window_leaves_in_time() -> None:
    """Where a day becomes half an hour, what is counted afterwards leaves after half an hour and a sixtieth of it."""
    mail = Mail(limit("recipients", 2000, "1d"))
    mail.now += 1
    mail.connection().data(1)
    mail.reload(limit("recipients", 2000, "30m"))
    mail.connection().data(2000 - 1)
    mail.now += 1800 * 61 / 60
    assert mail.count() == 1, "the one from before is remembered as coarsely as the day was"
    assert mail.connection().data(2000 - 1) == "DUNNO"


def test_a_lock_outlives_its_limit() -> None:
    """An account that a limit has locked stays locked when the limit is raised or taken away, with the same text."""
    mail = Mail()
    mail.send(501)
    lock = mail.account()["lock"]
    mail.reload(limit("messages", 9999, name="another"))
    assert mail.account()["lock"] == lock
    assert "more than 500 messages in 30m" in mail.send()


def test_a_lock_with_an_end_keeps_it() -> None:
    """A lock for an hour ends after that hour, though its limit now locks for a day."""
    mail = Mail(limit("messages", 1, lock="1h"))
    mail.send(2)
    mail.reload(limit("messages", 1, lock="1d"))
    mail.now += 3600
    assert not mail.locked()


def test_a_new_action_is_answered_from_now_on() -> None:
    """Where the text is changed, the next refusal says the new one; one that is resent still the old one."""
    mail = Mail(limit("messages", 0))
    old = mail.connection()
    old.data(1)
    mail.reload(limit("messages", 0, action="DEFER later"))
    assert old.resend().again() == "REJECT messages 1"
    assert mail.connection().data(1) == "DEFER later"


def test_a_message_in_between_goes_by_the_new_limits() -> None:
    """A message that began before the reload is judged by what is in force when it is asked about."""
    mail = Mail(limit("recipients", 2))
    connection = mail.connection()
    connection.rcpts(2)
    mail.reload(limit("recipients", 3), limit("messages", 0))
    assert connection.rcpt() == "DUNNO"
    assert connection.data() == "REJECT messages 1"


def test_a_message_in_between_is_given_back_where_it_was_counted() -> None:
    """What was counted before a reload is given back after it."""
    mail = Mail(limit("recipients", 5))
    connection = mail.connection()
    connection.rcpts(3)
    mail.reload(limit("messages", 5), limit("recipients", 4))
    connection.close()
    assert mail.counts() == [0, 0]


def test_an_account_that_was_silent_meanwhile_keeps_its_count() -> None:
    """An account keeps its counts through reloads in which it sent nothing."""
    mail = Mail(limit("messages", 5), limit("recipients", 5))
    mail.send()
    for maximum in range(6, 20):
        mail.reload(limit("messages", maximum), limit("recipients", 5))
        mail.send(user=BERT)
    assert mail.send() == "DUNNO"
    assert mail.counts() == [2, 2]


def test_a_new_override_is_in_force_at_once() -> None:
    """An account that is given a maximum of its own goes by it from its next request on, and keeps its count."""
    mail = Mail(limit("messages", 1))
    mail.send()
    mail.reload(rules=Rules((limit("messages", 1),), (override([ANNA], messages=3),)))
    assert mail.send(2) == "DUNNO"
    assert mail.send() == "REJECT messages 4"
    mail.reload(limit("messages", 1))
    assert mail.counts() == [3]


def test_a_reload_that_changes_nothing_changes_nothing() -> None:
    """Counts, locks and messages on their way stay as they are when the same config is read again."""
    mail = Mail()
    connection = mail.connection()
    connection.rcpts(2)
    mail.send()
    mail.lock(BERT)
    before = mail.account(), mail.account(BERT)
    mail.reload(*HOUSE_RULES)
    assert (mail.account(), mail.account(BERT)) == before
    assert connection.again() == "DUNNO"


@pytest.mark.parametrize("observe", [True, False])
def test_a_limit_put_on_trial_keeps_its_count(observe: bool) -> None:
    """A limit that begins or ends its trial goes on where it stood."""
    mail = Mail(limit("messages", 1, observe=not observe))
    mail.send()
    mail.reload(limit("messages", 1, observe=observe))
    assert mail.send() == ("DUNNO" if observe else "REJECT messages 2")
