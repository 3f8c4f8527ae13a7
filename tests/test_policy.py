"""What each request does: what is counted, what is refused, and for whom."""

from __future__ import annotations

import pytest

from policyd.limits import Rules
from tests.asking import ANNA, BERT, Mail, limit, override

# --- one row of the table each


def test_rcpt_counts_one_recipient_against_every_recipients_limit() -> None:
    """Each recipient that is asked for counts once, in all limits of recipients and in no limit of messages."""
    mail = Mail(
        limit("recipients", 9, "1h", name="hourly"), limit("recipients", 9, "1d", name="daily"), limit("messages", 9)
    )
    assert mail.connection().rcpts(2) == ["DUNNO", "DUNNO"]
    assert mail.counts() == [2, 2, 0]


def test_data_counts_one_message_against_every_messages_limit() -> None:
    """Each message counts once, however many recipients it has, and its recipients are not counted again."""
    mail = Mail(
        limit("messages", 9, "1h", name="hourly"), limit("messages", 9, "1d", name="daily"), limit("recipients", 9)
    )
    connection = mail.connection()
    connection.rcpts(3)
    assert connection.data() == "DUNNO"
    assert mail.counts() == [1, 1, 3]


def test_data_counts_the_recipients_where_rcpt_was_never_asked() -> None:
    """Where recipients are not asked about, a message counts as many as Postfix says it has."""
    mail = Mail(limit("recipients", 9), limit("messages", 9))
    assert mail.connection().data(4) == "DUNNO"
    assert mail.counts() == [4, 1]


def test_end_of_message_does_nothing_more_once_data_was_asked() -> None:
    """A message that was counted at DATA passes END-OF-MESSAGE uncounted, even when the limit is reached."""
    mail = Mail(limit("messages", 1), limit("recipients", 1))
    connection = mail.connection()
    connection.rcpt()
    connection.data()
    assert connection.eom() == "DUNNO"
    assert mail.counts() == [1, 1]


def test_end_of_message_counts_as_data_where_data_was_not_asked() -> None:
    """Where DATA is not asked, END-OF-MESSAGE counts the message and refuses one too many."""
    mail = Mail(limit("messages", 1))
    for answer in ("DUNNO", "REJECT messages 2"):
        connection = mail.connection()
        connection.rcpt()
        assert connection.eom() == answer
    assert mail.count() == 1


@pytest.mark.parametrize("state", ["CONNECT", "EHLO", "HELO", "MAIL"])
def test_mail_and_earlier_is_never_counted(state: str) -> None:
    """What comes before RCPT passes and counts nothing, even where the limit is reached."""
    mail = Mail(limit("recipients", 1), limit("messages", 1))
    mail.send()
    assert mail.connection().ask(protocol_state=state, instance="") == "DUNNO"
    assert mail.counts() == [1, 1]
    assert mail.tallies() == {}


@pytest.mark.parametrize("state", ["CONNECT", "EHLO", "HELO", "MAIL"])
def test_mail_and_earlier_is_refused_for_a_locked_account(state: str) -> None:
    """A locked account is told so as early as it asks, and the attempt is tallied."""
    mail = Mail()
    mail.lock()
    answer = mail.connection().ask(protocol_state=state, instance="")
    assert answer == "REJECT 5.7.1 Account anna@example.com is locked: spam"
    assert mail.tallies() == {"attempts_while_locked": 1}


@pytest.mark.parametrize("state", ["VRFY", "ETRN", "BDAT", "rcpt", "", "CONNECTION", "\u00fc"])
def test_any_other_state_is_neither_counted_nor_locked_out(state: str) -> None:
    """VRFY, ETRN and states nobody has heard of pass, for a locked account too, and leave no trace at it."""
    mail = Mail(limit("recipients", 1), limit("messages", 1))
    assert mail.connection().ask(protocol_state=state) == "DUNNO"
    mail.lock()
    assert mail.connection().ask(protocol_state=state) == "DUNNO"
    assert mail.counts() == [0, 0]
    assert mail.tallies() == {}


@pytest.mark.parametrize("state", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "END-OF-MESSAGE", "VRFY"])
def test_a_client_without_account_passes(state: str) -> None:
    """A client that is not authenticated is not this daemon's business, whatever it sends."""
    mail = Mail(limit("recipients", 1), limit("messages", 1))
    for _ in range(3):
        connection = mail.connection(user="")
        assert connection.ask(protocol_state=state, recipient_count=500) == "DUNNO"
    assert mail.desk.accounts(mail.now, "messages", 9) == []


def test_an_absent_account_attribute_is_no_account() -> None:
    """A request without a sasl_username passes as one with an empty one does."""
    assert Mail(limit("recipients", 1)).connection().ask(protocol_state="DATA", sasl_username=None) == "DUNNO"


def test_accounts_are_counted_apart() -> None:
    """What one account sends is not counted for another, on the same connection either."""
    mail = Mail(limit("messages", 1))
    connection = mail.connection()
    connection.data(1)
    connection.rset()
    connection.user = BERT
    assert connection.data(1) == "DUNNO"
    assert (mail.count(ANNA), mail.count(BERT)) == (1, 1)


# --- limits


def test_the_maximum_passes_and_one_more_does_not() -> None:
    """With the house rules the 500th message in half an hour passes, and the 501st is refused and locks."""
    mail = Mail()
    assert mail.send(500) == "DUNNO"
    assert not mail.locked()
    answer = "REJECT 5.7.1 Account anna@example.com is locked: more than 500 messages in 30m. Contact your provider"
    assert mail.send() == answer
    assert mail.locked()
    assert mail.counts() == [None, 500]


def test_a_message_may_have_as_many_recipients_as_the_maximum_and_not_one_more() -> None:
    """With the house rules the 5000th recipient passes and the 5001st is refused; nobody is locked, the mail goes."""
    mail = Mail()
    connection = mail.connection()
    assert set(connection.rcpts(5000)) == {"DUNNO"}
    assert connection.rcpt() == "REJECT 5.5.3 Too many recipients: at most 5000 in one message"
    assert connection.data() == "DUNNO"
    assert not mail.locked()


def test_a_limit_per_message_starts_anew_with_each_message() -> None:
    """The recipients of one message say nothing of the next."""
    mail = Mail(limit("recipients", 2, "message"))
    connection = mail.connection()
    for _ in range(3):
        assert connection.rcpts(3) == ["DUNNO", "DUNNO", "REJECT recipients 3"]
        connection.data()
        connection.rset()


def test_an_event_leaves_its_window_to_the_point() -> None:
    """An event counts until just before t + 30 minutes; at t + 30 minutes there is room for the next."""
    mail = Mail(limit("messages", 1, "30m"))
    mail.send()
    mail.now += 1799.999
    assert mail.send() == "REJECT messages 2"
    mail.now += 0.001
    assert mail.send() == "DUNNO"


def test_each_event_leaves_at_its_own_time() -> None:
    """A window slides: room comes back one event at a time, as each grows too old."""
    mail = Mail(limit("messages", 2, "10m"))
    mail.send()
    mail.now += 300
    mail.send()
    mail.now += 300
    assert mail.send(2) == "REJECT messages 3"
    mail.now += 299.875
    assert mail.send() == "REJECT messages 3"
    mail.now += 0.125
    assert mail.send() == "DUNNO"


def test_a_clock_that_stands_still_counts_all_the_same() -> None:
    """Many messages at one moment are many messages."""
    mail = Mail(limit("messages", 3))
    assert mail.send(3) == "DUNNO"
    assert mail.send() == "REJECT messages 4"


def test_several_limits_count_all_or_nothing() -> None:
    """What one limit refuses is counted against none, so that no other limit runs full with it."""
    mail = Mail(limit("recipients", 5, "1d", name="daily"), limit("recipients", 2, "1h", name="hourly"))
    connection = mail.connection()
    connection.rcpts(2)
    assert set(connection.rcpts(5)) == {"REJECT hourly 3"}
    assert mail.counts() == [2, 2]


def test_data_counts_message_and_recipients_all_or_nothing() -> None:
    """A message refused for its recipients is not counted as a message, and the other way round."""
    mail = Mail(limit("messages", 1), limit("recipients", 3))
    assert mail.connection().data(4) == "REJECT recipients 4"
    assert mail.counts() == [0, 0]
    assert mail.connection().data(2) == "DUNNO"
    assert mail.connection().data(1) == "REJECT messages 2"
    assert mail.counts() == [1, 2]


@pytest.mark.parametrize(("first", "second"), [("hourly", "daily"), ("daily", "hourly")])
def test_the_first_exceeded_limit_in_the_configs_order_answers(first: str, second: str) -> None:
    """Where two limits are exceeded, the answer is that of the one that the config names first."""
    mail = Mail(limit("messages", 1, "1h", name=first), limit("messages", 1, "1h", name=second))
    mail.send()
    assert mail.send() == f"REJECT {first} 2"


def test_only_the_first_exceeded_limit_locks() -> None:
    """A limit behind the one that answers does nothing, and locks nobody."""
    mail = Mail(limit("messages", 1), limit("messages", 1, name="locking", lock="until-unlocked"))
    mail.send(2)
    assert not mail.locked()


def test_a_limit_of_recipients_does_not_stop_what_has_none() -> None:
    """A message whose recipients are all counted passes DATA though the limit of recipients is reached."""
    mail = Mail(limit("recipients", 2))
    connection = mail.connection()
    connection.rcpts(2)
    assert connection.data() == "DUNNO"


def test_a_messages_limit_does_not_refuse_recipients() -> None:
    """Where DATA is asked, a limit of messages is a matter of DATA alone."""
    mail = Mail(limit("messages", 1))
    mail.send()
    connection = mail.connection()
    assert connection.rcpt() == "DUNNO"
    assert connection.data() == "REJECT messages 2"


# --- what is not counted


def test_what_is_refused_is_not_counted() -> None:
    """A client that retries every minute does not keep itself out: it is let in when its window has room."""
    mail = Mail(limit("messages", 1, "30m"))
    mail.send()
    for _ in range(29):
        mail.now += 60
        assert mail.send() == "REJECT messages 2"
    mail.now += 60
    assert mail.send() == "DUNNO"
    assert mail.count() == 1
    assert mail.tallies() == {"refused": 29}


def test_attempts_while_locked_are_tallied_apart() -> None:
    """The desk sees whether the bot is still trying: each attempt counts, at RCPT and at DATA, and none as refused."""
    mail = Mail()
    mail.lock()
    connection = mail.connection()
    answer = "REJECT 5.7.1 Account anna@example.com is locked: spam"
    assert connection.mail() == answer
    assert connection.rcpts(2) == [answer, answer]
    assert connection.data(1) == answer
    assert mail.tallies() == {"attempts_while_locked": 4}
    assert mail.counts() == [None, 0]


def test_what_exceeds_and_locks_is_refused_and_no_attempt() -> None:
    """The request that locks the account is tallied as refused; only those after it as attempts."""
    mail = Mail(limit("messages", 1, lock="until-unlocked"))
    mail.send()
    mail.connection().data(1)
    assert mail.tallies() == {"refused": 1}
    mail.connection().data(1)
    assert mail.tallies() == {"refused": 1, "attempts_while_locked": 1}


def test_each_refusal_is_reported_once() -> None:
    """One line a refusal, with who, what and why; none for what passes."""
    mail = Mail(limit("messages", 1))
    mail.send()
    assert mail.events == []
    mail.connection().data(1)
    (refused,) = mail.events
    assert refused.word == "refused"
    assert dict(refused.fields) == {
        "account": ANNA,
        "action": "REJECT",
        "limit": "messages",
        "count": 2,
        "max": 1,
        "state": "DATA",
        "client": "192.0.2.7",
        "queue_id": "4Xyz",
    }


# --- WARN and its like, and limits that only observe


@pytest.mark.parametrize(
    "action", ["WARN {limit} {count}", "PREPEND X-Rate: {count}", "DUNNO", "OK", "BCC a@b.example"]
)
def test_an_action_that_lets_mail_pass_is_answered_and_not_counted(action: str) -> None:
    """Beyond a limit that warns, each message is answered so; what is beyond it is not counted against it."""
    mail = Mail(limit("messages", 1, action=action))
    mail.send()
    for _ in range(2):
        assert mail.send() == action.format(limit="messages", count=2)
    assert mail.count() == 1
    assert mail.tallies() == {"warned": 2}


def test_what_a_limit_warns_of_counts_against_all_others() -> None:
    """A warning does not take mail out of the other limits: it goes out."""
    mail = Mail(limit("messages", 1, action="WARN", name="warning"), limit("messages", 9))
    mail.send(3)
    assert mail.counts() == [1, 3]


def test_a_later_limit_that_refuses_wins_over_an_earlier_warning() -> None:
    """A limit that warns does not let pass what a later one refuses, and nothing is counted then."""
    mail = Mail(
        limit("messages", 1, action="WARN {limit}", name="warning"),
        limit("messages", 2),
        limit("messages", 9, "1d", name="daily"),
    )
    assert [mail.send() for _ in range(3)] == ["DUNNO", "WARN warning", "REJECT messages 3"]
    assert mail.counts() == [1, 2, 2]


def test_the_first_of_two_warnings_is_answered() -> None:
    """Where two limits warn, the one that the config names first does."""
    mail = Mail(limit("messages", 1, action="WARN a", name="a"), limit("messages", 1, action="WARN b", name="b"))
    mail.send()
    assert mail.send() == "WARN a"


def test_an_observed_limit_refuses_nothing_and_locks_nobody() -> None:
    """A limit on trial answers DUNNO, is tallied and reported with what it would have done, and never locks."""
    mail = Mail(limit("messages", 1, lock="until-unlocked", observe=True))
    mail.send()
    assert mail.send() == "DUNNO"
    assert not mail.locked()
    assert mail.count() == 1
    assert mail.tallies() == {"observed": 1}
    (observed,) = mail.told("observed")
    assert (observed["action"], observed["limit"], observed["count"]) == ("REJECT", "messages", 2)


def test_limits_behind_an_observed_one_are_enforced() -> None:
    """A limit on trial does not switch off those behind it."""
    mail = Mail(limit("messages", 1, name="trial", observe=True), limit("messages", 2))
    assert [mail.send() for _ in range(3)] == ["DUNNO", "DUNNO", "REJECT messages 3"]
    assert mail.counts() == [1, 2]
    assert mail.tallies() == {"observed": 2, "refused": 1}


def test_limits_that_are_all_observed_let_everything_pass() -> None:
    """With the whole config on trial nothing is refused or held, and all would-be refusals are tallied."""
    mail = Mail(
        limit("recipients", 1, "message", observe=True),
        limit("messages", 1, action="HOLD", observe=True, lock="until-unlocked"),
    )
    for _ in range(2):
        connection = mail.connection()
        assert connection.rcpts(2) == ["DUNNO", "DUNNO"]
        assert connection.data() == "DUNNO"
        assert connection.eom() == "DUNNO"
    assert mail.tallies() == {"observed": 3}


def test_an_observed_hold_is_no_hold() -> None:
    """A limit on trial whose action is HOLD holds nothing, at RCPT or at DATA."""
    mail = Mail(limit("recipients", 1, action="HOLD", observe=True))
    connection = mail.connection()
    connection.rcpts(2)
    assert connection.data() == "DUNNO"
    assert mail.tallies() == {"observed": 1}


# --- overrides


def test_an_override_gives_its_accounts_another_maximum() -> None:
    """The newsletter account may send more; all others go by the limit."""
    mail = Mail(rules=Rules((limit("messages", 1),), (override(["NEWS@*"], messages=3),)))
    assert mail.send(3, user="news@example.com") == "DUNNO"
    assert mail.send(user="news@example.com") == "REJECT messages 4"
    assert mail.send(2) == "REJECT messages 2"


def test_an_unlimited_account_is_counted_and_never_refused() -> None:
    """For an account without maximum the count is shown all the same."""
    mail = Mail(rules=Rules((limit("messages", 1),), (override([BERT], messages=None),)))
    assert mail.send(100, user=BERT) == "DUNNO"
    (shown,) = mail.account(BERT)["limits"]
    assert (shown["count"], shown["max"]) == (100, None)


def test_the_first_override_that_matches_wins() -> None:
    """An account that two overrides name goes by the first, and by that alone."""
    rules = Rules(
        (limit("messages", 1), limit("recipients", 1, "message")),
        (override([ANNA], messages=2), override(["*@example.com"], messages=9, recipients=9)),
    )
    mail = Mail(rules=rules)
    assert mail.send(3) == "REJECT messages 3"
    connection = mail.connection()
    assert connection.rcpts(2) == ["DUNNO", "REJECT recipients 2"]
    assert mail.send(9, user=BERT) == "DUNNO"


# --- who is counted


def test_logins_that_differ_in_case_are_one_account() -> None:
    """`Anna@Example.com` and `anna@example.com` are one login to Dovecot and Cyrus, and one account here."""
    mail = Mail(limit("messages", 2))
    mail.send(user="Anna@Example.com")
    mail.send(user="ANNA@EXAMPLE.COM")
    assert mail.send() == "REJECT messages 3"
    assert mail.account("aNNa@example.com")["account"] == ANNA


def test_logins_keep_their_case_where_the_config_says_so() -> None:
    """With `lowercase: false` logins that differ in case are different accounts."""
    mail = Mail(rules=Rules((limit("messages", 1),), lowercase=False))
    mail.send(user="Anna")
    assert mail.send(user="anna") == "DUNNO"
    assert (mail.count("Anna"), mail.count("ANNA")) == (1, 0)


def test_the_first_attribute_that_is_not_empty_names_the_account() -> None:
    """Where the config names several attributes, a login is counted as itself and the others by their address."""
    mail = Mail(rules=Rules((limit("messages", 1),), attributes=("sasl_username", "client_address")))
    mail.send()
    mail.send(user="")
    assert mail.count(ANNA) == 1
    assert mail.count("client_address=192.0.2.7") == 1
    assert mail.send(user="") == "REJECT messages 2"


def test_an_address_can_never_be_taken_for_a_login() -> None:
    """A client that logs in as `client_address=192.0.2.7` is not counted as the client at that address."""
    mail = Mail(rules=Rules((limit("messages", 1),), attributes=("sasl_username", "client_address")))
    mail.send(user="client_address=192.0.2.7")
    assert mail.count("client_address=192.0.2.7") == 0
    assert mail.send(user="") == "DUNNO"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::2", True),
        ("2001:db8:1:2::1", "2001:DB8:1:2::3", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("192.0.2.7", "192.0.2.8", False),
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("unknown", "unknown", True),
    ],
)
def test_ipv6_clients_are_counted_by_their_network(one: str, other: str, same: bool) -> None:
    """IPv6 hosts change their address within a /64 at will, and count as one; IPv4 addresses count each."""
    mail = Mail(rules=Rules((limit("messages", 1),), attributes=("client_address",)))
    mail.connection().ask(protocol_state="DATA", client_address=one)
    answer = mail.connection().ask(protocol_state="DATA", client_address=other)
    assert answer == ("REJECT messages 2" if same else "DUNNO")


def test_logins_that_are_no_utf8_are_accounts_of_their_own() -> None:
    """Two logins in Latin-1 that differ in one byte are two accounts, and the desk can name both."""
    mail = Mail(limit("messages", 1))
    mail.send(user=b"j\xf6rg")
    assert mail.send(user=b"j\xfcrg") == "DUNNO"
    assert (mail.count(r"j\xf6rg"), mail.count(r"j\xfcrg")) == (1, 1)


def test_the_desk_sees_the_latest_clients_of_an_account() -> None:
    """For each account the addresses are kept that it was last seen at, the latest first."""
    mail = Mail()
    for number in (1, 2, 1):
        mail.connection().ask(protocol_state="RCPT", client_address=f"192.0.2.{number}")
    assert [client["address"] for client in mail.account()["clients"]] == ["192.0.2.1", "192.0.2.2"]


# --- what is told


@pytest.mark.parametrize(
    ("action", "lock", "told"),
    [
        ("REJECT {account} {limit} {max} {per} {count}", "no", "REJECT anna@example.com messages 1 30m 2"),
        ("REJECT again at {until}", "no", "REJECT again at 2026-11-23 08:30 UTC"),
        ("REJECT locked until {until}", "2h", "REJECT locked until 2026-11-23 10:10 UTC"),
        ("REJECT locked until {until}", "until-unlocked", "REJECT locked until a person unlocks it"),
        ("452 4.5.3 {max} is enough", "no", "452 4.5.3 1 is enough"),
        ("DEFER_IF_PERMIT slowly", "no", "DEFER_IF_PERMIT slowly"),
    ],
)
def test_an_action_tells_what_its_template_says(action: str, lock: str, told: str) -> None:
    """Account, limit, maximum, window, count and the time when it is over stand in the text for the client."""
    mail = Mail(limit("messages", 1, "30m", action, lock=lock))
    mail.send()
    mail.now += 600
    assert mail.send() == told


@pytest.mark.parametrize(
    "name",
    [
        "a\r\x0b\x0c\x1b\x85\u2028b",
        "action=OK",
        "{max}{count}{account}",
        "%s%d",
        "\u202e\u0000".replace("\0", ""),
        "x" * 9000,
        "\u20ac" * 3000,
        "\U0001f4a9" * 300,
    ],
)
def test_a_hostile_account_name_cannot_break_the_reply(name: str) -> None:
    """Whatever an account is called, the reply stays one line of at most 400 bytes of UTF-8."""
    mail = Mail(limit("messages", 1, action="REJECT 5.7.1 {account}"))
    mail.send(user=name)
    answer = mail.send(user=name)
    assert answer.startswith("REJECT 5.7.1 ")
    assert len(answer.encode()) <= 400
    assert answer.isprintable() or "\u202e" in answer
    assert not set(answer) & set("\r\n\v\f\x85\u2028\u2029")
    assert "{max}" not in name or answer.endswith("{max}{count}{account}")


def test_the_desk_sees_when_the_oldest_event_leaves() -> None:
    """Beside each count stands in how many seconds the first room comes back."""
    mail = Mail(limit("messages", 5, "30m"))
    mail.send()
    mail.now += 9.75
    mail.send()
    (shown,) = mail.account()["limits"]
    assert shown == {
        "name": "messages",
        "counts": "messages",
        "count": 2,
        "max": 5,
        "per": "30m",
        "resets_in": 1790.25,
        "allowance": None,
    }


def test_requests_and_answers_are_tallied() -> None:
    """The daemon's state tells how often each state was asked about, and each action answered."""
    mail = Mail(limit("messages", 1), data_seen=False)
    mail.send(2)
    mail.connection().ask(protocol_state="FOO")
    status = mail.desk.status(mail.now)
    assert status["requests"] == {"RCPT": 2, "DATA": 2, "other": 1}
    assert status["answers"] == {"DUNNO": 4, "REJECT": 1}
