"""What the history is told of each message: once, when its fate is known, and nothing of its recipients."""

from __future__ import annotations

import itertools
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd import history_table
from policyd.history import MAX_WAITING, VERDICTS, History, Kept, Message, Seen, Wanted
from policyd.history_table import MAX_TEXT, PRUNE_STEP, SHOWN, evidence, find, insert, message, prune, store
from policyd.verdict import PASS
from tests.asking import ANNA, BERT, EPOCH, Mail, limit, request

MANY = limit("messages", 1000)


def kept(mail: Mail) -> Mail:
    """Return the mail with a history."""
    mail.policy.history.kept = True
    return mail


def told(mail: Mail) -> list[Message]:
    """Return what the history has been told since it was asked last."""
    return [message(seen) for seen in mail.policy.history.take(1000, mail.wall_offset)]


def brief(mail: Mail) -> list[tuple[str, int, str]]:
    """Return the same: verdict, recipients, queue id."""
    return [(seen.verdict, seen.recipients, seen.queue_id) for seen in told(mail)]


def test_a_message_is_told_of_at_data() -> None:
    """With when it began, who sent it from where, and how many recipients it has."""
    mail = kept(Mail(MANY))
    connection = mail.connection()
    connection.rcpts(3)
    mail.now += 5
    assert told(mail) == []
    connection.ask(
        protocol_state="DATA", recipient_count=3, queue_id="4bCdEf1gHz", sender="Anna@Example.com", size=1234
    )
    assert told(mail) == [
        Message(
            ANNA,
            EPOCH,
            EPOCH + 5,
            "4bCdEf1gHz",
            "192.0.2.7",
            "Anna@Example.com",
            3,
            1234,
            "passed",
            "DUNNO",
            None,
            False,
        )
    ]
    connection.close()
    assert told(mail) == []


def test_nothing_is_kept_where_nobody_wants_it() -> None:
    """Without a database there is no history."""
    mail = Mail(MANY)
    mail.send(3)
    assert told(mail) == []


def test_a_message_that_is_given_up_is_none() -> None:
    """A client that hangs up before DATA has sent nothing, and was not refused anything."""
    mail = kept(Mail(MANY))
    connection = mail.connection()
    connection.rcpts(2)
    connection.close()
    assert told(mail) == []


def test_a_message_over_a_limit_names_it() -> None:
    """What was refused is told of like what was sent."""
    mail = kept(Mail(limit("messages", 1)))
    mail.send(2)
    _, refused = told(mail)
    assert (refused.verdict, refused.action, refused.limit, refused.locked) == ("refused", "REJECT", "messages", False)


def test_a_message_of_a_locked_account_is_told_of_once() -> None:
    """However many recipients it tries; and after each RSET it is another one."""
    mail = kept(Mail(MANY))
    mail.lock()
    connection = mail.connection()
    connection.rcpts(3)
    connection.rset()
    connection.rcpt()
    assert [(seen.verdict, seen.locked) for seen in told(mail)] == [("refused", True)] * 2
    connection.close()
    assert told(mail) == []


def test_a_locked_account_that_is_refused_at_mail_is_told_of() -> None:
    """There, Postfix has no instance yet."""
    mail = kept(Mail(MANY))
    mail.lock()
    mail.connection().mail()
    assert [(seen.verdict, seen.locked) for seen in told(mail)] == [("refused", True)]


def test_a_recipient_too_many_does_not_make_the_message_refused() -> None:
    """It goes out to those that were let through."""
    mail = kept(Mail(limit("recipients", 2)))
    connection = mail.connection()
    connection.rcpts(3)
    assert brief(mail) == [("refused", 2, "")]
    connection.data()
    assert brief(mail) == [("passed", 2, "4Xyz")]


def test_a_message_with_nothing_but_refused_recipients_is_refused() -> None:
    """Its client gives up."""
    mail = kept(Mail(limit("recipients", 1)))
    mail.send()
    told(mail)
    connection = mail.connection()
    connection.rcpt()
    connection.close()
    assert brief(mail) == [("refused", 0, "")]


@pytest.mark.parametrize("count", ["messages", "recipients"])
def test_a_held_message_has_its_queue_id(count: str) -> None:
    """Whether it is a recipient or the message that exceeds, it is held at DATA."""
    mail = kept(Mail(limit(count, 1, action="HOLD")))  # type: ignore[arg-type]  # it is one of the two
    mail.send(2)
    assert brief(mail) == [("passed", 1, "4Xyz"), ("held", 1, "4Xyz")]


def test_a_warning_stays_known() -> None:
    """The message passes, and the history says that there was something."""
    mail = kept(Mail(limit("recipients", 1, action="WARN")))
    mail.send(1, recipients=2)
    seen = told(mail)[-1]
    assert (seen.verdict, seen.action, seen.limit, seen.recipients) == ("warned", "WARN", "recipients", 2)


def test_a_message_that_is_asked_about_again_is_one() -> None:
    """Postfix repeats a request on another connection when a reply is late."""
    mail = kept(Mail(MANY))
    connection = mail.connection()
    connection.rcpt()
    connection.data()
    again = connection.resend()
    again.again()
    connection.close()
    again.close()
    assert brief(mail) == [("passed", 1, "4Xyz")]


class TestEndOfMessage:
    """Where Postfix asks at END-OF-MESSAGE, too, the size is known."""

    @pytest.fixture
    def mail(self) -> Mail:
        """Return mail of which an END-OF-MESSAGE was seen."""
        mail = kept(Mail(MANY))
        connection = mail.connection(BERT)
        connection.rcpt()
        connection.eom()
        connection.close()
        told(mail)
        return mail

    def test_a_message_is_told_of_again_at_its_end(self, mail: Mail) -> None:
        """In place of what was told at DATA."""
        connection = mail.connection()
        connection.rcpt()
        connection.data()
        assert [(seen.verdict, seen.size) for seen in told(mail)] == [("passed", 0)]
        connection.ask(protocol_state="END-OF-MESSAGE", recipient_count=1, queue_id="4Xyz", size=99)
        connection.close()
        (last,) = mail.policy.history.take(10, 0.0)
        assert (message(last).size, last.again) == (99, True)

    def test_a_message_that_never_ends_is_told_of_when_its_client_is_gone(self, mail: Mail) -> None:
        """What was answered at DATA stands."""
        connection = mail.connection()
        connection.rcpt()
        connection.data()
        connection.close()
        assert brief(mail) == [("passed", 1, "4Xyz")]

    def test_a_message_whose_account_is_locked_meanwhile_is_refused(self, mail: Mail) -> None:
        """It is not accepted in the end."""
        connection = mail.connection()
        connection.rcpt()
        connection.data()
        mail.lock()
        connection.eom()
        connection.close()
        assert [(seen.verdict, seen.locked) for seen in told(mail)] == [("passed", False), ("refused", True)]

    def test_a_message_that_is_held_stays_held(self, mail: Mail) -> None:
        """END-OF-MESSAGE is answered DUNNO, and the message is on hold all the same."""
        mail.lock(hold=True)
        connection = mail.connection()
        connection.rcpt()
        connection.data()
        connection.eom()
        connection.close()
        assert [(seen.verdict, seen.action) for seen in told(mail)] == [("held", "HOLD")] * 2

    def test_a_message_that_is_refused_at_data_is_told_of_there(self, mail: Mail) -> None:
        """Nothing more comes of it."""
        mail.reload(limit("messages", 1))
        mail.send()
        told(mail)
        connection = mail.connection()
        connection.rcpt()
        connection.data()
        assert [seen.verdict for seen in told(mail)] == ["refused"]


class TestRcptAlone:
    """Where Postfix asks at RCPT alone, a message is known by its recipients."""

    @pytest.fixture
    def mail(self) -> Mail:
        """Return mail without any DATA."""
        return kept(Mail(MANY, data_seen=False))

    def test_a_message_is_told_of_at_each_recipient(self, mail: Mail) -> None:
        """Nobody says that there is none to come."""
        connection = mail.connection()
        connection.rcpts(2)
        assert brief(mail) == [("passed", 1, ""), ("passed", 2, "")]
        connection.rset()
        connection.rcpt()
        connection.close()
        assert brief(mail) == [("passed", 1, "")]

    def test_a_message_that_is_held_stays_held(self, mail: Mail) -> None:
        """Though its next recipient passes."""
        mail.reload(limit("recipients", 1, action="HOLD"))
        connection = mail.connection()
        connection.rcpts(2)
        mail.reload(limit("recipients", 10, action="HOLD"))
        connection.rcpt()
        connection.close()
        assert [seen.verdict for seen in told(mail)] == ["passed", "held", "held"]


def test_a_message_that_is_too_large_at_its_end_stays_refused() -> None:
    """However often it is asked about."""
    mail = kept(Mail(limit("bytes", 100)))
    connection = mail.connection()
    connection.rcpt()
    connection.data()
    for size in (1000, 1000, 1001):
        connection.ask(protocol_state="END-OF-MESSAGE", recipient_count=1, size=size)
        assert connection.ask(protocol_state="END-OF-MESSAGE", recipient_count=1, size=size + 5).startswith("REJECT")
    assert told(mail)[-1].verdict == "refused"


def test_messages_that_wait_are_bounded() -> None:
    """Those that come when there is no room are counted."""
    history = History()
    for number in range(MAX_WAITING + 3):
        history.note(Seen(number, number, ANNA, b"", 1, PASS))
    assert (len(history), history.lost) == (MAX_WAITING, 3)
    assert [(seen.began, seen.at) for seen in history.take(2, 100.0)] == [(100, 100), (101, 101)]
    assert (len(history), history.lost) == (MAX_WAITING - 2, 3)


def test_what_comes_from_outside_is_bounded_and_text() -> None:
    """Whatever bytes come over the wire, and whatever is no number."""
    lines = request(protocol_state="DATA", sender=b"\xff\n"[:1] + b"x" * 5000, size="1" * 30, queue_id=b"\x00\xfe")
    seen = message(Seen(1.0, 2.0, ANNA, lines, 1, PASS))
    assert seen.sender == "\\xff" + "x" * (MAX_TEXT - 4)
    assert (seen.size, seen.queue_id, seen.client) == (0, "\x00\\xfe", "")


def connected() -> sqlite3.Connection:
    """Return an empty table."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(history_table.TABLE)
    return connection


def a_message(account: str = ANNA, at: float = 0.0, **others: Any) -> Message:
    """Return a message."""
    known = Message(account, at - 1, at, "", "192.0.2.7", account, 1, 0, "passed", "DUNNO", None, False)
    return known._replace(**others)


messages = st.lists(
    st.builds(
        a_message,
        st.sampled_from([ANNA, BERT, "\udc80", "", "x' OR 1 --"]),
        st.integers(0, 20).map(float),
        queue_id=st.sampled_from(["", "A", "B"]),
        client=st.sampled_from(["", "192.0.2.7", "2001:db8::1"]),
        sender=st.sampled_from(["", "a@x", "b@x"]),
        verdict=st.sampled_from(VERDICTS),
        recipients=st.integers(0, 9),
    ),
    max_size=30,
)
questions = st.builds(
    Wanted,
    st.none() | st.sampled_from([ANNA, BERT, "\udc80", "nobody"]),
    st.sampled_from([(), ("A",), ("A", "B"), ("", "B"), ("C",)]),
    st.integers(0, 21).map(float),
    st.none() | st.sampled_from(VERDICTS),
    st.integers(0, 30),
)


@given(messages, questions)
def test_what_is_wanted_is_found(known: list[Message], wanted: Wanted) -> None:
    """All of it, nothing else, the latest first."""
    with closing(connected()) as connection:
        insert(connection, known)
        found = find(connection, wanted)
    fitting = [
        one
        for one in reversed(known)
        if (wanted.account is None or one.account == wanted.account)
        and (not wanted.queue_ids or (one.queue_id and one.queue_id in wanted.queue_ids))
        and (wanted.verdict is None or one.verdict == wanted.verdict)
        and one.at >= wanted.since
    ]
    assert found == sorted(fitting, key=lambda one: -one.at)[: wanted.most]


@given(messages, st.integers(0, 21), st.none() | st.integers(0, 21))
def test_evidence_is_what_the_account_did(known: list[Message], since: float, first: float | None) -> None:
    """Its most frequent clients and senders, and the queue ids of what was not refused, all of that time."""
    with closing(connected()) as connection:
        insert(connection, known)
        found = evidence(connection, ANNA, since, first)
    hers = [one for one in known if one.account == ANNA and one.at >= since]
    assert (found.messages, found.recipients) == (len(hers), sum(one.recipients for one in hers))
    assert found.first == (min((one.at for one in hers), default=None) if first is None else first)
    for shown, values in (
        (found.clients, [one.client for one in hers if one.client]),
        (found.senders, [one.sender for one in hers if one.sender]),
    ):
        assert len(shown) == min(len(set(values)), SHOWN)
        assert all(values.count(value) == number for value, number in shown)
        assert [number for _, number in shown] == sorted((number for _, number in shown), reverse=True)
    assert found.distinct_clients == len({one.client for one in hers if one.client})
    assert found.distinct_senders == len({one.sender for one in hers if one.sender})
    accepted = [one for one in reversed(hers) if one.queue_id and one.verdict != "refused"]
    assert list(found.queue_ids) == [one.queue_id for one in sorted(accepted, key=lambda one: -one.at)[: 2 * SHOWN]]


@pytest.mark.parametrize("together", [True, False])
def test_of_a_message_the_last_that_is_told_counts(together: bool) -> None:
    """It is one message, whether it was stored in between or not."""
    mail = kept(Mail(limit("recipients", 1)))
    other = mail.connection(BERT)
    with closing(connected()) as connection:
        anna = mail.connection()
        for step in (other.rcpt, anna.rcpt, anna.rcpt, other.data, anna.data, anna.eom):
            mail.now += 1
            step()
            if not together:
                store(connection, mail.policy.history.take(100, mail.wall_offset))
        store(connection, mail.policy.history.take(100, mail.wall_offset))
        found = find(connection, Wanted())
    assert sorted((one.account, one.verdict) for one in found) == [(ANNA, "passed"), (BERT, "passed")]


def pruned(connection: sqlite3.Connection, kept: Kept, steps: int) -> list[int]:
    """Prune some times, and return how many rows there are after each."""
    left, after = [], 0
    for _ in range(steps):
        after = prune(connection, after, kept)
        left += connection.execute("SELECT count(*) FROM history").fetchone()
    return left


def test_old_messages_go_a_few_at_a_time() -> None:
    """In the end all that are too old are gone, and no others."""
    with closing(connected()) as connection:
        insert(connection, [a_message(at=float(number)) for number in range(5 * PRUNE_STEP)])
        left = pruned(connection, Kept(4 * PRUNE_STEP + 10.0, 1e9, 10**9), 8)
        assert all(
            0 <= before - after <= 2 * PRUNE_STEP for before, after in itertools.pairwise([5 * PRUNE_STEP, *left])
        )
        assert left[-1] == PRUNE_STEP - 10


def test_messages_that_a_wrong_clock_has_stored_do_not_stop_the_others() -> None:
    """Neither those that will be old only in a year, nor those that lie in the future for no reason."""
    with closing(connected()) as connection:
        early = [a_message(at=1000.0) for _ in range(3 * PRUNE_STEP)]
        future = [a_message(at=1e9) for _ in range(PRUNE_STEP)]
        insert(connection, [*early, *future, *(a_message(at=1.0) for _ in range(PRUNE_STEP)), a_message(at=1000.0)])
        assert pruned(connection, Kept(500.0, 5000.0, 10**9), 12)[-1] == 3 * PRUNE_STEP + 1


def test_messages_beyond_the_bound_go() -> None:
    """The latest ones stay."""
    with closing(connected()) as connection:
        insert(connection, [a_message(at=float(number)) for number in range(100)])
        prune(connection, 0, Kept(0.0, 1e9, 30))
        assert [one.at for one in find(connection, Wanted(ANNA))] == [float(at) for at in range(99, 69, -1)]


def test_an_empty_history_is_pruned() -> None:
    """There is nothing to remove."""
    with closing(connected()) as connection:
        assert prune(connection, 7, Kept(1e9, 1e9, 0)) == 0
        assert find(connection, Wanted()) == []
