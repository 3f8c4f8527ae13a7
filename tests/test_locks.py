"""Locks: by a limit and by hand, until a person unlocks or a time is over."""

from __future__ import annotations

import pytest

from policyd.limits import Rules
from tests.asking import ANNA, BERT, Mail, limit, override

BY_HAND = "REJECT 5.7.1 Account anna@example.com is locked: spam"


def test_a_limit_locks_until_a_person_unlocks() -> None:
    """An account that tries to exceed the house rule stays locked, however long it waits."""
    mail = Mail()
    mail.send(501)
    mail.now += 30 * 86_400
    assert mail.send().startswith("REJECT 5.7.1 Account anna@example.com is locked: more than 500 messages")
    assert mail.locked()


def test_a_locked_account_is_forgotten_by_nobody() -> None:
    """A lock holds though its account is not heard of for a year."""
    mail = Mail()
    mail.lock()
    mail.now += 366 * 86_400
    for number in range(10):
        mail.send(user=f"{number}@example.com")
    assert mail.send() == BY_HAND


def test_a_locked_account_is_answered_what_it_was_told_first() -> None:
    """All that a locked account asks is answered with the action that locked it, text and count as they were then."""
    mail = Mail(limit("messages", 1, action="REJECT {count} of {max}", lock="until-unlocked"))
    mail.send(2)
    connection = mail.connection()
    assert connection.mail() == "REJECT 2 of 1"
    assert connection.rcpt() == "REJECT 2 of 1"
    assert connection.data(1) == "REJECT 2 of 1"
    assert connection.eom(1) == "REJECT 2 of 1"


def test_a_lock_concerns_one_account_alone() -> None:
    """While one account is locked the others send."""
    mail = Mail()
    mail.lock()
    assert mail.send(user=BERT) == "DUNNO"


def test_a_limit_that_locks_shows_why() -> None:
    """The desk sees since when, by which limit, at which count and what for an account is locked."""
    mail = Mail()
    mail.send(501)
    assert mail.account()["lock"] == {
        "since": "2026-11-23T08:00:00+00:00",
        "until": None,
        "limit": "messages-per-half-hour",
        "count": 501,
        "counts": "messages",
        "by": "policyd",
        "reason": "more than 500 messages in 30m",
        "action": "REJECT",
    }
    assert mail.account()["refused"] == 1
    (told,) = mail.told("lock")
    assert (told["account"], told["by"], told["limit"], told["count"]) == (
        ANNA,
        "policyd",
        "messages-per-half-hour",
        501,
    )


def test_a_lock_by_a_limit_per_message_shows_why() -> None:
    """A limit per message may lock too, and says so in its own words."""
    mail = Mail(limit("recipients", 2, "message", lock="1h"))
    mail.connection().rcpts(3)
    lock = mail.account()["lock"]
    assert (lock["reason"], lock["count"]) == ("more than 2 recipients in one message", 3)


def test_a_lock_for_a_duration_ends_to_the_point() -> None:
    """A lock for an hour refuses until just before its end, and not at its end."""
    mail = Mail(limit("messages", 1, "1d", lock="1h"))
    mail.send(2)
    assert mail.account()["lock"]["until"] == "2026-11-23T09:00:00+00:00"
    mail.now += 3599.875
    assert mail.send() == "REJECT messages 2"
    mail.now += 0.125
    assert not mail.locked()
    assert mail.send() == "DUNNO"


def test_a_lock_ends_in_the_middle_of_a_message() -> None:
    """A client that was refused a recipient may name the next one, on the same connection, once the lock is over."""
    mail = Mail()
    mail.lock(seconds=60)
    connection = mail.connection()
    assert connection.rcpt() == BY_HAND
    mail.now += 60
    assert connection.rcpt() == "DUNNO"
    assert connection.data() == "DUNNO"


def test_windows_start_anew_when_a_lock_expires() -> None:
    """After its lock an account may send as much as anybody, and does not relock at once."""
    mail = Mail(limit("messages", 3, "1d", lock="1h"))
    mail.send(4)
    mail.now += 3600
    assert mail.send(3) == "DUNNO"
    assert mail.count() == 3
    assert mail.send() == "REJECT messages 4"
    assert mail.locked()


def test_a_lock_that_nobody_looks_at_expires_all_the_same() -> None:
    """A lock's end is seen in the list of locks without a request of its account, and reported once."""
    mail = Mail()
    mail.lock(seconds=60)
    mail.now += 60
    assert mail.desk.locked(mail.now) == []
    assert mail.desk.status(mail.now)["locked"] == 0
    (told,) = mail.told("unlock")
    assert (told["account"], told["by"]) == (ANNA, "policyd")


def test_windows_start_anew_when_a_person_unlocks() -> None:
    """An account that was freed does not relock at its first message."""
    mail = Mail(limit("messages", 3, "1d", lock="until-unlocked"))
    mail.send(4)
    mail.unlock()
    assert mail.count() == 0
    assert mail.send(3) == "DUNNO"
    (told,) = mail.told("unlock")
    assert (told["account"], told["by"]) == (ANNA, "desk")


def test_an_account_can_lock_again() -> None:
    """An account that goes on as before locks again, since then, with its attempts counted anew."""
    mail = Mail(limit("messages", 1, lock="until-unlocked"))
    mail.send(3)
    assert mail.tallies() == {"refused": 1, "attempts_while_locked": 2}
    mail.unlock()
    mail.now += 60
    mail.send(2)
    assert mail.account()["lock"]["since"] == "2026-11-23T08:01:00+00:00"
    assert mail.tallies() == {"refused": 2}


def test_to_unlock_a_free_account_is_no_error() -> None:
    """Freeing an account that is free, or was never seen, changes nothing."""
    mail = Mail(limit("messages", 3))
    mail.send()
    assert mail.desk.unlock([ANNA, BERT], "desk", mail.now) == {"unlocked": [], "free": [ANNA, BERT], "held": []}
    assert mail.count() == 1


def test_to_unlock_by_another_spelling_frees_the_account() -> None:
    """The desk may write a login in capitals."""
    mail = Mail()
    mail.lock("ANNA@example.com")
    assert mail.send() == BY_HAND
    mail.unlock("Anna@Example.COM")
    assert mail.send() == "DUNNO"


def test_reset_forgets_counts_and_keeps_the_lock() -> None:
    """To forget an account's counts makes room, and does not free it."""
    mail = Mail(limit("messages", 2))
    mail.send(2)
    mail.reset()
    assert mail.send(2) == "DUNNO"
    mail.lock()
    mail.reset()
    assert mail.locked()


def test_a_lock_by_hand_says_its_reason() -> None:
    """A person locks an account until it is unlocked; limit and count are empty, and the client reads the reason."""
    mail = Mail()
    mail.lock()
    assert mail.send() == BY_HAND
    lock = mail.account()["lock"]
    assert (lock["limit"], lock["count"], lock["by"], lock["reason"], lock["until"], lock["action"]) == (
        None,
        None,
        "desk",
        "spam",
        None,
        "REJECT",
    )


def test_a_lock_by_hand_may_end_by_itself() -> None:
    """`lock --for 2h` ends after two hours."""
    mail = Mail()
    mail.lock(seconds=7200)
    mail.now += 7199
    assert mail.send() == BY_HAND
    mail.now += 1
    assert mail.send() == "DUNNO"


def test_a_lock_by_hand_replaces_the_lock_that_is_there() -> None:
    """A lock by hand takes the place of an earlier one: its reason, its end and its action."""
    mail = Mail()
    mail.send(501)
    mail.lock(seconds=60, hold=True)
    assert mail.send() == "HOLD Account anna@example.com is locked: spam"
    assert len(mail.desk.locked(mail.now)) == 1
    mail.now += 60
    assert mail.send() == "DUNNO"


@pytest.mark.parametrize("reason", ["a\nb", "x" * 1000, "\u20ac" * 500, "action=OK\n\n"])
def test_a_reason_cannot_break_the_reply(reason: str) -> None:
    """Whatever a person gives as the reason, the reply stays one line of at most 400 bytes."""
    mail = Mail()
    mail.lock(reason=reason)
    answer = mail.send()
    assert answer.startswith("REJECT 5.7.1 Account anna@example.com is locked: ")
    assert "\n" not in answer
    assert len(answer.encode()) <= 400


def test_an_account_that_was_never_seen_can_be_locked() -> None:
    """A lock comes before the first message, too."""
    mail = Mail()
    mail.lock(BERT)
    assert mail.send(user=BERT).startswith("REJECT")


def test_a_wall_clock_that_jumps_neither_locks_nor_frees() -> None:
    """A lock lasts as long as it should, and windows are as long as they should be, whatever the wall clock does."""
    mail = Mail(limit("messages", 1, "30m", lock="2h"))
    mail.send(2)
    mail.wall_offset += 5 * 3600
    assert mail.locked()
    assert mail.send() == "REJECT messages 2"
    mail.wall_offset -= 10 * 3600
    mail.now += 7199.875
    assert mail.locked()
    mail.now += 0.125
    assert not mail.locked()
    mail.send()
    mail.wall_offset += 3600
    assert mail.count() == 1
    mail.wall_offset -= 7200
    mail.now += 1800
    assert mail.count() == 0


def test_an_unlimited_account_never_locks() -> None:
    """Where an override takes the maximum away, nothing locks the account by itself."""
    locking = limit("messages", 1, lock="until-unlocked")
    mail = Mail(rules=Rules((locking,), (override([ANNA], messages=None),)))
    mail.send(50)
    assert not mail.locked()


def test_a_recipients_limit_locks_at_rcpt() -> None:
    """Where a recipient is one too many the account is locked at once; its message does not go."""
    mail = Mail(limit("recipients", 2, lock="until-unlocked"), limit("messages", 9))
    connection = mail.connection()
    assert connection.rcpts(3) == ["DUNNO", "DUNNO", "REJECT recipients 3"]
    assert connection.data() == "REJECT recipients 3"
    assert mail.counts() == [0, 0]


def test_locks_are_listed_the_latest_first() -> None:
    """The desk reads its list of locks from the latest on, each with its account."""
    mail = Mail()
    mail.lock(BERT)
    mail.now += 60
    mail.lock(ANNA)
    assert [lock["account"] for lock in mail.desk.locked(mail.now)] == [ANNA, BERT]


def test_while_all_is_observed_only_a_persons_lock_is_in_force() -> None:
    """`observe: true` lets mail pass, also of accounts that a limit has locked; a person who locks one means it."""
    mail = Mail(limit("messages", 1, lock="until-unlocked"))
    mail.send(2)
    mail.lock(BERT)
    observed = Rules((limit("messages", 1, lock="until-unlocked", observe=True),), observe=True)
    mail.reload(rules=observed)
    assert mail.send() == "DUNNO"
    assert mail.send(user=BERT).startswith("REJECT")
    mail.reload(limit("messages", 1, lock="until-unlocked"))
    assert mail.send().startswith("REJECT")


def test_a_lock_from_before_names_were_lowered_can_be_lifted() -> None:
    """After a reload with another `lowercase`, an account is still found under the name that `locked` shows."""
    mail = Mail(rules=Rules(lowercase=False))
    mail.lock("Bert")
    mail.reload(rules=Rules(lowercase=True))
    assert mail.account("Bert")["lock"] is not None
    assert mail.desk.unlock(["Bert", "Anna"], "desk", mail.now) == {"unlocked": ["Bert"], "free": ["anna"], "held": []}
