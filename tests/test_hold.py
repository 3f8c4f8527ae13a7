"""HOLD: the whole message is accepted and kept, whatever state it is answered at."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.asking import ANNA, Connection, Mail, limit

LOCKED = "HOLD Account anna@example.com is locked: spam"
HOLD = "HOLD {limit} {count}"


def holding(*, data_seen: bool = True, lock: str = "no") -> Mail:
    """Return a policy that holds the third recipient, and counts messages."""
    return Mail(limit("recipients", 2, action=HOLD, lock=lock), limit("messages", 9), data_seen=data_seen)


def rset(connection: Connection) -> None:
    """Go on to the next message on the same connection."""
    connection.rset()
    connection.ask(protocol_state="RCPT", sasl_username="bert@example.com")


def test_a_hold_at_rcpt_is_answered_at_data() -> None:
    """Where DATA is asked a message is held there, when its queue id is known: once, for all its recipients."""
    mail = holding()
    connection = mail.connection()
    assert connection.rcpts(4) == ["DUNNO"] * 4
    assert mail.tallies() == {}
    assert connection.data() == "HOLD recipients 3"
    assert mail.tallies() == {"held": 1}
    (told,) = mail.told("held")
    assert (told["state"], told["queue_id"], told["limit"], told["count"]) == ("DATA", "4Xyz", "recipients", 3)


def test_a_held_message_is_not_counted() -> None:
    """Nothing of a held message counts: not the recipients before the one too many, nor the message."""
    mail = holding()
    connection = mail.connection()
    connection.rcpts(4)
    connection.data()
    connection.eom()
    connection.close()
    assert mail.counts() == [0, 0]


def test_a_hold_at_rcpt_is_answered_there_where_data_is_not_asked() -> None:
    """Where only RCPT is wired the message is held at RCPT: there is no later word."""
    mail = holding(data_seen=False)
    assert mail.connection().rcpts(3) == ["DUNNO", "DUNNO", "HOLD recipients 3"]
    assert mail.tallies() == {"held": 1}


def test_a_hold_at_rcpt_stays_though_the_first_data_ever_follows() -> None:
    """A message that was held at RCPT is held at the first DATA ever seen, and nothing of it counts."""
    mail = holding(data_seen=False)
    connection = mail.connection()
    connection.rcpts(3)
    assert connection.data() == "HOLD recipients 3"
    assert mail.counts() == [0, 0]


def test_a_hold_at_rcpt_waits_for_end_of_message_where_data_is_not_asked() -> None:
    """Where RCPT and END-OF-MESSAGE are wired a message is held at END-OF-MESSAGE."""
    mail = holding()
    connection = mail.connection()
    assert connection.rcpts(3) == ["DUNNO"] * 3
    assert connection.eom() == "HOLD recipients 3"
    assert mail.counts() == [0, 0]


@pytest.mark.parametrize("end", [rset, Connection.close])
def test_a_message_given_up_before_it_was_held_leaves_nothing(end: Callable[[Connection], None]) -> None:
    """A message that would have been held and is given up is neither counted nor tallied nor reported."""
    mail = holding()
    connection = mail.connection()
    connection.rcpts(3)
    end(connection)
    assert mail.counts() == [0, 0]
    assert mail.tallies() == {}
    assert mail.told("held") == []


def test_one_message_held_does_not_hold_the_next() -> None:
    """A limit that does not lock holds what is too much, and lets the next message go."""
    mail = holding()
    connection = mail.connection()
    connection.rcpts(3)
    connection.data()
    connection.rset()
    assert connection.rcpts(2) == ["DUNNO", "DUNNO"]
    assert connection.data() == "DUNNO"
    assert mail.counts() == [2, 1]


def test_a_message_too_many_is_held_at_data() -> None:
    """A limit of messages holds at DATA, and what is held is not counted."""
    mail = Mail(limit("messages", 1, action=HOLD), limit("recipients", 9))
    mail.send(recipients=2)
    assert mail.send(recipients=3) == "HOLD messages 2"
    assert mail.counts() == [1, 2]
    assert mail.tallies() == {"held": 1}


def test_recipients_that_postfix_refused_do_not_free_a_held_message() -> None:
    """A message is held for what was asked at RCPT, even if DATA tells of fewer recipients."""
    mail = holding()
    connection = mail.connection()
    connection.rcpts(3)
    assert connection.data(1) == "HOLD recipients 3"


def test_a_resent_hold_is_one_hold() -> None:
    """A DATA that comes again is held again, and tallied once."""
    mail = holding()
    old = mail.connection()
    old.rcpts(3)
    old.data()
    old.close()
    assert old.resend().again() == "HOLD recipients 3"
    assert mail.tallies() == {"held": 1}


def test_a_message_to_be_held_is_held_though_its_connection_breaks() -> None:
    """A message that goes on elsewhere is held at its DATA there."""
    mail = holding()
    old = mail.connection()
    old.rcpts(3)
    old.close()
    assert old.resend().data() == "HOLD recipients 3"
    assert mail.counts() == [0, 0]


# --- accounts whose mail is held


def test_a_limit_that_holds_and_locks_holds_all_that_follows() -> None:
    """The message that is too much is held by the limit, and the next ones by the lock."""
    mail = holding(lock="until-unlocked")
    assert mail.send(recipients=3) == "HOLD recipients 3"
    assert mail.locked()
    assert mail.tallies() == {"held": 1}
    assert mail.send() == "HOLD recipients 3"
    assert mail.tallies() == {"held": 1, "attempts_while_locked": 1}


def test_who_frees_an_account_is_told_that_its_mail_was_held() -> None:
    """By a limit, or by a lock under which it has tried; not where nothing was, nor where it was refused."""
    mail = holding()
    mail.send(recipients=3)
    for user, hold in ((ANNA, False), ("held", True), ("idle", True), ("refused", False)):
        mail.lock(user, hold=hold)
        if user in ("held", "refused"):
            mail.send(user=user)
    users = [ANNA, "held", "idle", "refused", "free"]
    assert mail.desk.unlock(users, "desk", mail.now) == {"unlocked": users[:4], "free": ["free"], "held": users[:2]}


def test_end_of_message_of_a_held_message_passes_though_its_account_is_locked() -> None:
    """A message that DATA held is held; END-OF-MESSAGE has nothing to add, and is no further attempt."""
    mail = Mail(limit("messages", 0, action=HOLD, lock="until-unlocked"))
    connection = mail.connection()
    connection.rcpt()
    assert connection.data() == "HOLD messages 1"
    assert mail.locked()
    assert connection.eom() == "DUNNO"
    assert mail.tallies() == {"held": 1}


def test_a_lock_by_hand_that_holds_is_answered_at_data() -> None:
    """A person may lock an account so that its mail is accepted and kept: one attempt a message, with its queue id."""
    mail = Mail(limit("messages", 9), limit("recipients", 9))
    mail.lock(hold=True)
    connection = mail.connection()
    assert connection.rcpts(2) == ["DUNNO", "DUNNO"]
    assert connection.data() == LOCKED
    assert connection.eom() == "DUNNO"
    assert mail.counts() == [0, 0]
    assert mail.tallies() == {"attempts_while_locked": 1}
    (told,) = mail.told("held")
    assert (told["queue_id"], told["locked"]) == ("4Xyz", "yes")
    assert mail.account()["lock"]["action"] == "HOLD"


def test_a_lock_by_hand_that_holds_is_answered_at_mail() -> None:
    """Where Postfix asks as early as at MAIL, the answer is the lock's, as it is for any lock."""
    mail = Mail(limit("messages", 9))
    mail.lock(hold=True)
    assert mail.connection().mail() == LOCKED
    assert mail.tallies() == {"attempts_while_locked": 1}


def test_a_hold_does_not_wait_for_a_data_that_nothing_connects_it_with() -> None:
    """A recipient asked about without an instance is held at once: its DATA request could not be told from others."""
    mail = Mail(limit("recipients", 1, action=HOLD))
    connection = mail.connection()
    assert connection.ask(protocol_state="RCPT", recipient="a@x", instance="") == "DUNNO"
    assert connection.ask(protocol_state="RCPT", recipient="b@x", instance="") == "HOLD recipients 2"
    assert mail.tallies() == {"held": 1}


def test_a_lock_by_hand_that_holds_is_answered_at_once_where_data_is_not_asked() -> None:
    """Where only RCPT is wired a locked account's mail is held at MAIL and RCPT."""
    mail = Mail(limit("messages", 9), data_seen=False)
    mail.lock(hold=True)
    connection = mail.connection()
    assert connection.mail() == LOCKED
    assert connection.rcpt() == LOCKED
    assert mail.count() == 0


def test_a_lock_that_holds_is_answered_at_data_where_only_that_is_asked() -> None:
    """Where only DATA is wired a locked account's mail is held there."""
    mail = Mail(limit("messages", 9))
    mail.lock(hold=True)
    assert mail.connection().data(3) == LOCKED
    assert mail.count() == 0


def test_a_lock_that_holds_after_data_holds_at_end_of_message() -> None:
    """An account that is locked between DATA and END-OF-MESSAGE has its message held there, and given back."""
    mail = Mail(limit("messages", 9), limit("recipients", 9))
    connection = mail.connection()
    connection.rcpts(2)
    connection.data()
    mail.lock(hold=True)
    assert connection.eom() == LOCKED
    assert mail.counts() == [0, 0]


def test_a_lock_that_refuses_wins_over_a_hold() -> None:
    """A message that would have been held is refused once a person has locked its account."""
    mail = holding()
    connection = mail.connection()
    connection.rcpts(3)
    mail.lock()
    assert connection.data().startswith("REJECT 5.7.1 ")


def test_a_lock_that_refuses_refuses_a_held_message_at_end_of_message() -> None:
    """A message that DATA held is refused at END-OF-MESSAGE once a person has locked its account so."""
    mail = holding()
    connection = mail.connection()
    connection.rcpts(3)
    assert connection.data() == "HOLD recipients 3"
    mail.lock()
    assert connection.eom().startswith("REJECT 5.7.1 ")


def test_a_message_begun_under_a_lock_that_holds_is_held_though_its_account_is_freed() -> None:
    """HOLD concerns the whole message: what was asked while locked is held at DATA."""
    mail = Mail(limit("messages", 9))
    mail.lock(hold=True)
    connection = mail.connection()
    connection.rcpt()
    mail.unlock()
    assert connection.data() == LOCKED
    connection.rset()
    connection.rcpt()
    assert connection.data() == "DUNNO"


def test_a_message_locked_between_rcpt_and_data_is_held_and_given_back() -> None:
    """An account that is locked to hold between RCPT and DATA has its message held, and nothing of it counts."""
    mail = Mail(limit("messages", 9), limit("recipients", 9))
    connection = mail.connection()
    connection.rcpts(2)
    mail.lock(hold=True)
    assert connection.data() == LOCKED
    assert mail.counts() == [0, 0]


# --- what is like HOLD


@pytest.mark.parametrize("action", ["DISCARD too much", "REDIRECT abuse@example.com"])
def test_discard_and_redirect_concern_the_whole_message_too(action: str) -> None:
    """DISCARD and REDIRECT are answered at DATA as HOLD is, tallied as held, and nothing of the message counts."""
    mail = Mail(limit("recipients", 2, action=action), limit("messages", 9))
    connection = mail.connection()
    assert connection.rcpts(3) == ["DUNNO"] * 3
    assert connection.data() == action
    assert connection.eom() == "DUNNO"
    assert mail.counts() == [0, 0]
    assert mail.tallies() == {"held": 1}


@pytest.mark.parametrize("action", ["DISCARD too much", "REDIRECT abuse@example.com"])
def test_discard_and_redirect_are_answered_at_rcpt_where_data_is_not_asked(action: str) -> None:
    """Where only RCPT is wired DISCARD and REDIRECT are answered there."""
    mail = Mail(limit("recipients", 1, action=action), data_seen=False)
    assert mail.connection().rcpts(2) == ["DUNNO", action]
