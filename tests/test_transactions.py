"""One message on its way through smtpd: counted once however often it is asked about, and given back if it ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.asking import BERT, Connection, Mail, limit

LOCKED = "REJECT 5.7.1 Account anna@example.com is locked: spam"

Ask = Callable[[Connection], str]

STATES = pytest.mark.parametrize(
    "ask", [Connection.rcpt, Connection.data, Connection.eom], ids=lambda ask: ask.__name__
)


def both(recipients: int = 9, messages: int = 9) -> Mail:
    """Return a policy that limits recipients and messages."""
    return Mail(limit("recipients", recipients), limit("messages", messages))


# --- the very same request again


@STATES
def test_a_request_resent_on_its_connection_counts_once(ask: Ask) -> None:
    """The same request twice on one connection is one event, and gets one answer."""
    mail = both()
    connection = mail.connection()
    connection.accepted = 1
    answer = ask(connection)
    before = mail.counts()
    assert connection.again() == answer
    assert mail.counts() == before


@STATES
@pytest.mark.parametrize("closes", ["first", "later"])
def test_a_request_resent_on_a_new_connection_counts_once(ask: Ask, closes: str) -> None:
    """Whether or not the old connection's end is seen before the request comes again, it counts once."""
    mail = both()
    old = mail.connection()
    old.accepted = 1
    answer = ask(old)
    before = mail.counts()
    new = old.resend()
    if closes == "first":
        old.close()
    assert new.again() == answer
    if closes == "later":
        old.close()
    assert mail.counts() == before


@STATES
def test_a_resent_request_gets_the_same_answer_though_the_account_was_locked(ask: Ask) -> None:
    """What passed passes again when Postfix did not hear it, even if the account was locked meanwhile."""
    mail = both()
    old = mail.connection()
    old.accepted = 1
    assert ask(old) == "DUNNO"
    mail.lock()
    assert old.resend().again() == "DUNNO"
    assert mail.tallies() == {}


@STATES
def test_a_resent_request_gets_the_same_answer_though_the_account_was_freed(ask: Ask) -> None:
    """What was refused is refused again when Postfix did not hear it, even if the account was freed meanwhile."""
    mail = both()
    mail.lock()
    old = mail.connection()
    old.accepted = 1
    assert ask(old) == LOCKED
    mail.unlock()
    assert old.resend().again() == LOCKED
    assert mail.tallies() == {"attempts_while_locked": 1}


def test_a_resent_refusal_is_tallied_and_reported_once() -> None:
    """A refusal that Postfix did not hear is said again, and is one refusal."""
    mail = both(messages=0)
    old = mail.connection()
    assert old.data(1) == "REJECT messages 1"
    old.close()
    assert old.resend().again() == "REJECT messages 1"
    assert mail.tallies() == {"refused": 1}
    assert len(mail.told("refused")) == 1


def test_the_last_of_several_recipients_resent_counts_once() -> None:
    """A break between two recipients counts neither of them twice, and the message goes on as if nothing had been."""
    mail = both()
    old = mail.connection()
    old.rcpts(3)
    old.close()
    new = old.resend()
    new.again()
    assert mail.counts() == [3, 0]
    new.rcpt()
    assert new.data() == "DUNNO"
    assert mail.counts() == [4, 1]


def test_a_list_that_names_the_daemon_twice_counts_once() -> None:
    """Where Postfix asks each thing twice, recipients and messages count once."""
    mail = both()
    connection = mail.connection()
    for _ in range(2):
        for _ in range(3):
            connection.rcpt()
            connection.again()
        connection.data()
        connection.again()
        connection.eom()
        connection.again()
        connection.rset()
    assert mail.counts() == [6, 2]


def test_four_hooks_at_rcpt_count_one_recipient() -> None:
    """With smtpd_delay_reject client, helo, sender and recipient hooks all fire at RCPT: still one recipient."""
    mail = both()
    connection = mail.connection()
    for recipient in ("a@remote.example", "b@remote.example"):
        for context in ("client", "helo", "sender", "recipient"):
            connection.ask(protocol_state="RCPT", recipient=recipient, policy_context=context)
    assert mail.counts() == [2, 0]


def test_a_recipient_named_twice_in_a_row_counts_once_until_data() -> None:
    """A recipient named twice cannot be told from a resent request; DATA's count corrects it."""
    mail = both()
    connection = mail.connection()
    connection.rcpt("a@remote.example")
    connection.rcpt("a@remote.example")
    assert mail.counts() == [1, 0]
    connection.data(2)
    assert mail.counts() == [2, 1]


def test_a_recipient_named_again_later_counts_again() -> None:
    """A recipient that comes again after another one is one more recipient."""
    mail = both()
    connection = mail.connection()
    for recipient in ("a@remote.example", "b@remote.example", "a@remote.example"):
        connection.rcpt(recipient)
    assert mail.counts() == [3, 0]


# --- whose transaction it is, and for how long


def test_the_end_of_an_older_connection_takes_nothing_back() -> None:
    """Once a message goes on elsewhere, the connection it came from may end at any time."""
    mail = both()
    old = mail.connection()
    old.rcpts(2)
    new = old.resend()
    new.rcpt()
    old.close()
    assert mail.counts() == [3, 0]
    assert new.data() == "DUNNO"
    assert mail.counts() == [3, 1]


def test_the_next_message_on_an_older_connection_takes_nothing_back() -> None:
    """Once a message goes on elsewhere, the connection it came from may begin another."""
    mail = both()
    old = mail.connection()
    old.rcpts(2)
    new = old.resend()
    new.again()
    old.rset()
    old.rcpt()
    assert mail.counts() == [3, 0]
    new.data()
    assert mail.counts() == [3, 1]


def test_a_transaction_is_the_connections_that_asked_last() -> None:
    """Where an older connection asks again, the message is its own again: the end of the other takes nothing back."""
    mail = both()
    old = mail.connection()
    old.rcpt()
    new = old.resend()
    new.again()
    old.rcpt()
    new.close()
    assert mail.counts() == [2, 0]
    old.close()
    assert mail.counts() == [0, 0]


def test_a_transaction_that_an_older_connection_went_on_with_is_given_back_at_its_end() -> None:
    """Where the newer connection ended first, the older one's end still gives the recipients back."""
    mail = both()
    old = mail.connection()
    old.rcpt()
    new = old.resend()
    new.again()
    new.close()
    old.rcpt()
    old.close()
    assert mail.counts() == [0, 0]


def test_one_instance_of_two_accounts_is_two_transactions() -> None:
    """Two servers may use the same instance: their messages are not mixed up."""
    mail = both()
    anna = mail.connection()
    anna.rcpt()
    bert = anna.resend(user=BERT)
    bert.rcpts(2)
    bert.data(2)
    anna.data()
    assert mail.counts() == [1, 1]
    assert mail.counts(BERT) == [2, 1]


@pytest.mark.parametrize(("seconds", "messages"), [(299.875, 1), (300.0, 2)])
def test_a_transaction_is_remembered_for_300_seconds(seconds: float, messages: int) -> None:
    """A request that comes again within 300 s of the last counts once; what comes later is a message of its own."""
    mail = both()
    old = mail.connection()
    old.data(1)
    old.close()
    mail.now += seconds
    old.resend().again()
    assert mail.counts() == [messages, messages]


def test_the_300_seconds_begin_with_the_last_request() -> None:
    """A message that is long on its way is remembered from its last request on, not from its first."""
    mail = both()
    old = mail.connection()
    old.rcpt()
    mail.now += 299
    old.data()
    old.close()
    mail.now += 299
    old.resend().again()
    assert mail.counts() == [1, 1]


def test_a_connections_latest_transaction_is_remembered_as_long_as_the_connection() -> None:
    """A client may take an hour for its message: its recipients are not counted again at DATA."""
    mail = Mail(limit("recipients", 9, "1d"), limit("messages", 9, "1d"))
    connection = mail.connection()
    connection.rcpts(2)
    mail.now += 3600
    connection.data()
    assert mail.counts() == [2, 1]
    mail.now += 3600
    connection.again()
    connection.eom()
    assert mail.counts() == [2, 1]


def test_a_message_that_went_on_elsewhere_after_an_hour_is_counted_once() -> None:
    """A message whose old connection is still open is remembered, however long ago it was asked about."""
    mail = Mail(limit("messages", 9, "1d"))
    old = mail.connection()
    old.data(1)
    mail.now += 3600
    old.resend().again()
    assert mail.count() == 1


def test_the_same_request_300_seconds_late_is_judged_anew() -> None:
    """A client that tries again after five minutes is no Postfix that resends: once there is room, it is let in."""
    mail = both(messages=1)
    mail.send()
    connection = mail.connection()
    connection.rcpt()
    assert connection.data() == "REJECT messages 2"
    mail.now += 1800
    assert connection.again() == "DUNNO"
    assert mail.counts() == [1, 1]


# --- an empty instance


def test_an_empty_instance_ends_no_transaction() -> None:
    """A request without instance in the middle of a message leaves its recipients counted."""
    mail = both()
    connection = mail.connection()
    connection.rcpts(2)
    connection.mail()
    connection.ask(protocol_state="VRFY", instance="")
    assert mail.counts() == [2, 0]
    connection.data()
    assert mail.counts() == [2, 1]


def test_an_empty_instance_belongs_to_no_transaction() -> None:
    """Requests without instance are all different ones, and the end of the connection takes none of them back."""
    mail = both()
    connection = mail.connection()
    for _ in range(2):
        connection.ask(protocol_state="RCPT", instance="", recipient="a@remote.example")
    connection.close()
    assert mail.counts() == [2, 0]


# --- DATA's recipient_count is the truth


@pytest.mark.parametrize(("told", "counted"), [(3, 3), (2, 2), (1, 1), (5, 5), (None, 3)])
def test_data_tells_the_true_number_of_recipients(told: int | None, counted: int) -> None:
    """Recipients that Postfix refused are given back, those that were never asked about are counted."""
    mail = both()
    connection = mail.connection()
    connection.rcpts(3)
    assert connection.ask(protocol_state="DATA", recipient_count=told) == "DUNNO"
    assert mail.counts() == [counted, 1]


def test_a_message_without_recipient_count_has_a_recipient() -> None:
    """Where neither RCPT nor DATA tells the recipients, there is at least one."""
    mail = both()
    assert mail.connection().ask(protocol_state="DATA", recipient_count=None) == "DUNNO"
    assert mail.counts() == [1, 1]


def test_recipients_that_were_never_asked_about_exceed_like_any_other() -> None:
    """A message that has more recipients at DATA than there is room for is refused as a whole, and not counted."""
    mail = both(recipients=4)
    connection = mail.connection()
    connection.rcpts(3)
    assert connection.data(5) == "REJECT recipients 5"
    assert mail.counts() == [0, 0]


def test_recipients_that_were_never_asked_about_count_for_the_message() -> None:
    """A limit of recipients per message sees all recipients that DATA tells of."""
    mail = Mail(limit("recipients", 4, "message"))
    for told, answer in ((4, "DUNNO"), (5, "REJECT recipients 5")):
        connection = mail.connection()
        connection.rcpts(3)
        assert connection.data(told) == answer


def test_recipients_that_postfix_refused_make_room() -> None:
    """What DATA gives back can be used at once."""
    mail = both(recipients=4)
    connection = mail.connection()
    connection.rcpts(4)
    connection.data(1)
    connection.rset()
    assert connection.rcpts(4) == ["DUNNO"] * 3 + ["REJECT recipients 5"]


def test_the_latest_recipients_are_those_that_stay() -> None:
    """Nobody tells which recipients Postfix refused: the oldest are given back, so that no window is ever too full."""
    mail = Mail(limit("recipients", 2, "10m"))
    connection = mail.connection()
    connection.rcpt()
    mail.now += 60
    connection.rcpt()
    connection.data(1)
    mail.now += 540
    assert mail.count() == 1
    mail.now += 60
    assert mail.count() == 0


def test_a_refused_recipient_is_not_counted_at_data() -> None:
    """DATA tells of those recipients only that were let through, and finds them counted."""
    mail = both(recipients=3)
    connection = mail.connection()
    connection.rcpts(5)
    assert connection.data() == "DUNNO"
    assert mail.counts() == [3, 1]
    assert mail.tallies() == {"refused": 2}


# --- what is not sent is given back


def rset(connection: Connection) -> None:
    """Go on to the next message on the same connection."""
    connection.rset()
    connection.ask(protocol_state="RCPT", sasl_username=BERT)


@pytest.mark.parametrize("end", [rset, Connection.close])
def test_a_message_that_ends_without_data_gives_its_recipients_back(end: Callable[[Connection], None]) -> None:
    """After RSET, QUIT or a drop nothing is sent: the recipients count no more."""
    mail = both()
    connection = mail.connection()
    connection.rcpts(3)
    end(connection)
    assert mail.counts() == [0, 0]


@pytest.mark.parametrize("end", [rset, Connection.close])
def test_a_message_that_was_sent_stays_counted(end: Callable[[Connection], None]) -> None:
    """After DATA the message is on its way, and the end of the connection takes nothing back."""
    mail = both()
    connection = mail.connection()
    connection.rcpts(3)
    connection.data()
    end(connection)
    assert mail.counts() == [3, 1]


@pytest.mark.parametrize("end", [rset, Connection.close])
def test_a_message_that_ends_after_a_refused_data_gives_back_what_came_after(end: Callable[[Connection], None]) -> None:
    """Refused at DATA, a client may name more recipients and then give up: these are given back, too."""
    mail = both(messages=0)
    connection = mail.connection()
    connection.rcpts(3)
    assert connection.data() == "REJECT messages 1"
    connection.rcpts(2)
    end(connection)
    assert mail.counts() == [0, 0]


def test_a_message_refused_at_data_gives_its_recipients_back() -> None:
    """What is refused as a whole has sent to nobody."""
    mail = both(messages=1)
    mail.send(2, recipients=3)
    assert mail.counts() == [3, 1]


def test_a_locked_accounts_message_gives_its_recipients_back_at_data() -> None:
    """An account that is locked between RCPT and DATA is refused, and its recipients are given back."""
    mail = both()
    connection = mail.connection()
    connection.rcpts(3)
    mail.lock()
    assert connection.data() == LOCKED
    assert mail.counts() == [0, 0]


def test_data_retried_with_more_recipients_is_judged_anew() -> None:
    """A client that was refused at DATA may name another recipient and try again, once there is room."""
    mail = both(messages=1)
    mail.send()
    connection = mail.connection()
    connection.rcpt()
    assert connection.data() == "REJECT messages 2"
    mail.now += 1800
    connection.rcpt()
    assert connection.data() == "DUNNO"
    assert mail.counts() == [2, 1]


def test_data_retried_while_there_is_no_room_is_refused_anew() -> None:
    """A second DATA after more recipients is a second refusal, and counts nothing."""
    mail = both(messages=1)
    mail.send()
    connection = mail.connection()
    for refused in (1, 2):
        connection.rcpt()
        assert connection.data() == "REJECT messages 2"
        assert mail.tallies() == {"refused": refused}
    assert mail.counts() == [1, 1]


def test_end_of_message_refused_gives_message_and_recipients_back() -> None:
    """An account that is locked between DATA and END-OF-MESSAGE is refused there, and its message is given back."""
    mail = both()
    connection = mail.connection()
    connection.rcpts(3)
    connection.data()
    mail.lock()
    assert connection.eom() == LOCKED
    assert mail.counts() == [0, 0]
    assert mail.tallies() == {"attempts_while_locked": 1}
    other = connection.resend()
    assert other.again() == LOCKED
    connection.close()
    other.close()
    assert mail.counts() == [0, 0]
    assert mail.tallies() == {"attempts_while_locked": 1}


def test_a_refused_client_that_tries_again_is_judged_anew() -> None:
    """On the connection that was told no, Postfix repeats nothing, but its client may, and find room now."""
    mail = Mail(limit("messages", 1, "1m"))
    mail.send()
    connection = mail.connection()
    connection.rcpt()
    assert connection.data() == "REJECT messages 2"
    assert connection.again() == "REJECT messages 2"
    assert mail.tallies() == {"refused": 2}
    mail.now += 60
    assert connection.again() == "DUNNO"
    assert connection.again() == "DUNNO"
    assert mail.counts() == [1]


def test_each_attempt_of_a_locked_account_is_tallied() -> None:
    """A bot that repeats one recipient all day is seen to do so; freed, it need not begin a new message."""
    mail = Mail(limit("recipients", 9))
    mail.lock()
    connection = mail.connection()
    connection.rcpt("a@x")
    for _ in range(49):
        assert connection.again() == LOCKED
    assert mail.tallies() == {"attempts_while_locked": 50}
    mail.unlock()
    assert connection.again() == "DUNNO"
    assert mail.counts() == [1]


def test_what_was_counted_before_an_unlock_is_not_taken_from_what_came_after() -> None:
    """Freed, an account's windows start anew; a message from before gives nothing back that was counted since."""
    mail = both()
    before = mail.connection()
    before.rcpts(3)
    mail.lock()
    mail.unlock()
    mail.send(recipients=2)
    before.close()
    assert mail.counts() == [2, 1]


def test_what_has_left_its_window_is_not_given_back_from_another() -> None:
    """A message given up after half an hour takes nothing from what was counted since."""
    mail = both()
    late = mail.connection()
    late.rcpts(3)
    mail.now += 1800
    mail.send(recipients=2)
    late.close()
    assert mail.counts() == [2, 1]


# --- a connection that breaks in the middle of a message


def test_recipients_given_back_when_a_connection_breaks_are_counted_again_when_the_message_goes_on() -> None:
    """A message that goes on elsewhere counts as it did, and is one message."""
    mail = both()
    old = mail.connection()
    old.rcpts(3)
    old.close()
    assert mail.counts() == [0, 0]
    new = old.resend()
    new.rcpt()
    assert mail.counts() == [4, 0]
    new.data()
    assert mail.counts() == [4, 1]


def test_a_message_that_goes_on_where_there_is_no_room_is_refused_at_data() -> None:
    """Where others have used the room meanwhile, DATA finds the recipients that are not counted, and refuses them."""
    mail = both(recipients=4)
    old = mail.connection()
    old.rcpts(3)
    old.close()
    mail.send(recipients=2)
    assert old.resend().again() == "DUNNO"
    assert mail.counts() == [2, 1]
    assert old.resend().data() == "REJECT recipients 5"
    assert mail.counts() == [2, 1]


def test_a_message_that_breaks_off_twice_is_counted_once() -> None:
    """However often a message changes its connection, it counts once, and its end gives all of it back."""
    mail = both()
    connection = mail.connection()
    connection.rcpts(2)
    for _ in range(3):
        connection.close()
        connection = connection.resend()
        connection.again()
        assert mail.counts() == [2, 0]
    connection.close()
    assert mail.counts() == [0, 0]


def test_nothing_is_counted_again_for_a_locked_account() -> None:
    """A message of an account that was locked meanwhile is not counted when it goes on; DATA refuses it."""
    mail = both()
    old = mail.connection()
    old.rcpts(3)
    old.close()
    mail.lock()
    new = old.resend()
    new.again()
    assert mail.counts() == [0, 0]
    assert new.data() == LOCKED
