"""Which of Postfix's hooks are wired: RCPT alone, DATA alone, END-OF-MESSAGE alone, or several."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.asking import Connection, Mail, limit

PROBLEM = "no DATA requests seen: messages are counted at RCPT"


def rcpt_only(recipients: int = 9, messages: int = 9) -> Mail:
    """Return a policy that has not seen a DATA request."""
    return Mail(limit("recipients", recipients), limit("messages", messages), data_seen=False)


def rset(connection: Connection) -> None:
    """Go on to the next message on the same connection."""
    connection.rset()
    connection.mail()


# --- RCPT alone


def test_without_data_a_message_counts_at_its_first_rcpt() -> None:
    """Where only RCPT is wired a message counts once, at its first recipient."""
    mail = rcpt_only()
    for _ in range(2):
        mail.connection().rcpts(3)
    assert mail.counts() == [6, 2]


def test_without_data_one_message_too_many_is_refused_at_rcpt() -> None:
    """Where only RCPT is wired the limit of messages holds all the same, and counts no recipient of what it refuses."""
    mail = rcpt_only(messages=1)
    mail.connection().rcpt()
    assert mail.connection().rcpts(2) == ["REJECT messages 2", "REJECT messages 2"]
    assert mail.counts() == [1, 1]


def test_without_data_the_house_rules_lock() -> None:
    """Where only RCPT is wired the 501st message in half an hour locks its account."""
    mail = Mail(data_seen=False)
    for _ in range(500):
        assert mail.connection().rcpt() == "DUNNO"
    assert mail.connection().rcpt().startswith("REJECT 5.7.1 Account anna@example.com is locked")
    assert mail.locked()


def test_without_data_a_message_whose_first_recipient_was_refused_counts_at_the_next() -> None:
    """A message counts with the first recipient that passes."""
    mail = Mail(limit("recipients", 1, "1m"), limit("messages", 9), data_seen=False)
    mail.connection().rcpt()
    connection = mail.connection()
    assert connection.rcpt() == "REJECT recipients 2"
    assert mail.counts() == [1, 1]
    mail.now += 60
    assert connection.rcpt() == "DUNNO"
    assert mail.counts() == [1, 2]


@pytest.mark.parametrize("end", [rset, Connection.close])
def test_without_data_nothing_is_given_back(end: Callable[[Connection], None]) -> None:
    """Where only RCPT is wired nobody can tell a message that was sent from one that was given up: both count."""
    mail = rcpt_only()
    connection = mail.connection()
    connection.rcpts(2)
    end(connection)
    assert mail.counts() == [2, 1]


def test_without_data_a_resent_rcpt_counts_once() -> None:
    """Where only RCPT is wired a recipient that is asked about again on a new connection is still one message."""
    mail = rcpt_only()
    old = mail.connection()
    old.rcpts(2)
    old.close()
    new = old.resend()
    new.again()
    new.rcpt()
    assert mail.counts() == [3, 1]


def test_without_data_the_problem_is_told() -> None:
    """The log says once that messages are counted at RCPT, and the status for as long as it is so."""
    mail = rcpt_only()
    assert mail.desk.status(mail.now)["problems"] == []
    mail.connection().rcpts(2)
    assert [event.word for event in mail.events] == ["no-data-seen"]
    status = mail.desk.status(mail.now)
    assert status["problems"] == [PROBLEM]
    assert status["hooks"] == {"RCPT": True, "DATA": False, "END-OF-MESSAGE": False}


@pytest.mark.parametrize("state", ["DATA", "END-OF-MESSAGE"])
def test_the_first_data_ever_seen_ends_the_problem(state: str) -> None:
    """From the first DATA or END-OF-MESSAGE on, messages count there, and the log and the status say so."""
    mail = rcpt_only()
    mail.connection().rcpt()
    mail.connection(user="").ask(protocol_state=state, recipient_count=1)
    assert [event.word for event in mail.events] == ["no-data-seen", "data-seen"]
    assert mail.desk.status(mail.now)["problems"] == []
    mail.connection().rcpt()
    assert mail.counts() == [2, 1]
    mail.connection().ask(protocol_state=state, recipient_count=1)
    assert mail.counts() == [3, 2]
    assert len(mail.events) == 2


def test_the_first_data_ever_seen_may_be_anybodys() -> None:
    """A client that is not authenticated shows that DATA is wired; what others give up is given back from then on."""
    mail = rcpt_only()
    mail.connection(user="").data(1)
    connection = mail.connection()
    connection.rcpts(2)
    connection.close()
    assert mail.counts() == [0, 0]


def test_a_message_counted_at_rcpt_is_not_counted_again_at_data() -> None:
    """The message whose DATA is the first ever seen counts once."""
    mail = rcpt_only(messages=1)
    connection = mail.connection()
    connection.rcpts(2)
    assert connection.data() == "DUNNO"
    assert connection.eom() == "DUNNO"
    assert mail.counts() == [2, 1]


def test_a_message_counted_at_rcpt_is_not_counted_again_when_data_was_seen_elsewhere() -> None:
    """A message that counted at RCPT does not count again at DATA, whoever's DATA was the first."""
    mail = rcpt_only(messages=1)
    connection = mail.connection()
    connection.rcpts(2)
    mail.connection(user="").data(1)
    connection.rcpt()
    assert connection.data() == "DUNNO"
    assert mail.counts() == [3, 1]


def test_a_message_counted_at_rcpt_and_given_up_after_data_was_seen_is_given_back() -> None:
    """Once it is known that DATA is asked, a message that ends without it has not been sent."""
    mail = rcpt_only()
    connection = mail.connection()
    connection.rcpts(2)
    mail.connection(user="").data(1)
    connection.close()
    assert mail.counts() == [0, 0]


def test_a_message_counted_at_rcpt_and_refused_at_data_is_given_back() -> None:
    """A message that its DATA refuses is not sent, though it was counted at RCPT."""
    mail = rcpt_only(recipients=3)
    connection = mail.connection()
    connection.rcpts(2)
    assert connection.data(4) == "REJECT recipients 4"
    assert mail.counts() == [0, 0]


def test_data_of_the_first_ever_message_tells_the_true_number_of_recipients() -> None:
    """What RCPT counted is corrected by the first DATA ever seen."""
    mail = rcpt_only()
    connection = mail.connection()
    connection.rcpts(3)
    connection.data(1)
    assert mail.counts() == [1, 1]


# --- other sets of hooks


@pytest.mark.parametrize("state", ["DATA", "END-OF-MESSAGE"])
def test_one_hook_beyond_rcpt_is_enough(state: str) -> None:
    """With DATA alone or END-OF-MESSAGE alone messages and recipients count, and one too many is refused."""
    mail = Mail(limit("recipients", 5), limit("messages", 2), data_seen=False)
    answers = [mail.connection().ask(protocol_state=state, recipient_count=count) for count in (2, 4, 3, 1)]
    assert answers == ["DUNNO", "REJECT recipients 6", "DUNNO", "REJECT recipients 6"]
    assert mail.counts() == [5, 2]
    assert mail.told("no-data-seen") == []


@pytest.mark.parametrize("state", ["DATA", "END-OF-MESSAGE"])
def test_one_hook_beyond_rcpt_judges_the_recipients_of_one_message(state: str) -> None:
    """With DATA alone or END-OF-MESSAGE alone no message has more recipients than it may."""
    mail = Mail(data_seen=False)
    assert mail.connection().ask(protocol_state=state, recipient_count=5000) == "DUNNO"
    answer = mail.connection().ask(protocol_state=state, recipient_count=5001)
    assert answer == "REJECT 5.5.3 Too many recipients: at most 5000 in one message"


def test_rcpt_and_end_of_message_alone_count_and_give_back() -> None:
    """With RCPT and END-OF-MESSAGE wired, what is given up is given back, and what is sent counts as Postfix says."""
    mail = Mail(limit("recipients", 9), limit("messages", 9))
    connection = mail.connection()
    connection.rcpts(3)
    connection.rset()
    connection.rcpts(2)
    assert connection.eom(1) == "DUNNO"
    connection.close()
    assert mail.counts() == [1, 1]


def test_all_three_hooks_count_once() -> None:
    """With all hooks wired each message and each recipient counts once."""
    mail = Mail(limit("recipients", 9), limit("messages", 9))
    connection = mail.connection()
    for _ in range(3):
        connection.rcpts(2)
        connection.data()
        connection.eom()
        connection.rset()
    assert mail.counts() == [6, 3]


def test_a_message_whose_data_came_before_the_daemon_counts_at_end_of_message() -> None:
    """A message whose DATA this daemon was not asked about is counted at END-OF-MESSAGE, recipients too."""
    mail = Mail(limit("recipients", 9), limit("messages", 9), data_seen=False)
    assert mail.connection().eom(4) == "DUNNO"
    assert mail.counts() == [4, 1]
