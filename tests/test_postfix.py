"""SASL users send through a real Postfix with both hooks, RCPT and DATA, as a submission server has them.

All sessions go through one smtpd process, so that what one leaves behind is there when the next one comes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemon import Policyd
from tests.postfix import ACCEPTED, PrivatePostfix, Session, queued, wired

Pair = tuple[PrivatePostfix, Policyd]

CONFIG = """\
limits:
  messages: {count: messages, per: 1h, max: 1000, action: "REJECT 5.7.1 {account} may send {max} messages in {per}"}
  recipients: {count: recipients, per: 1h, max: 1000, action: "REJECT 5.7.1 At most {max} recipients in {per}"}
  patience: {count: recipients, per: 1h, max: 1000, action: "452 4.5.3 Too many recipients, try again later"}
  deferral: {count: messages, per: 1h, max: 1000, action: "DEFER_IF_PERMIT Slow down"}
  hijack: {count: messages, per: 1h, max: 1000, action: "REJECT 5.7.1 {account} is locked", lock: until-unlocked}
  held-messages: {count: messages, per: 1h, max: 1000, action: "HOLD more than {max} messages"}
  held-recipients: {count: recipients, per: 1h, max: 1000, action: "HOLD more than {max} recipients"}
overrides:
  - {accounts: ["messages-*"], limits: {messages: 2}}
  - {accounts: ["recipients-*"], limits: {recipients: 3}}
  - {accounts: ["patience-*"], limits: {patience: 2}}
  - {accounts: ["deferral-*"], limits: {deferral: 1}}
  - {accounts: ["hijack-*"], limits: {hijack: 2}}
  - {accounts: ["held-messages-*"], limits: {held-messages: 1}}
  - {accounts: ["held-recipients-*"], limits: {held-recipients: 3}}
"""

REFUSES_AFTERWARDS = {
    "smtpd_recipient_restrictions": "check_recipient_access inline:{{early@remote.example=REJECT No such user}}, "
    "check_policy_service {policyd}, check_recipient_access inline:{{late@remote.example=REJECT No such user}}"
}
"""Postfix refuses one recipient before it asks the daemon, and another one after."""


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Start a Postfix with one smtpd, and a daemon, which has already seen a DATA request."""
    with wired(CONFIG, settings=REFUSES_AFTERWARDS, smtpds=1) as (postfix, daemon):
        with postfix.smtp("first@example.com") as session:
            assert queued(session.message()[-1])
        yield postfix, daemon


def sent(daemon: Policyd, account: str) -> tuple[int | None, int | None]:
    """Return how many messages and recipients are counted for an account."""
    counts = daemon.counts(account)
    return counts["messages"], counts["recipients"]


def begin_message(session: Session, recipients: int) -> None:
    """Send the envelope of a message."""
    assert session.mail().startswith("250")
    for n in range(recipients):
        assert session.rcpt(f"r{n}@remote.example") == ACCEPTED


def test_message_over_its_limit_is_refused_at_data(pair: Pair) -> None:
    """Two messages may pass: the third is refused at DATA, with the limit's text, and nothing of it is counted."""
    postfix, daemon = pair
    with postfix.smtp("messages-1@example.com") as session:
        assert queued(session.message(2)[-1])
        assert queued(session.message(1)[-1])
        assert session.message(2) == [
            ACCEPTED,
            ACCEPTED,
            "554 5.7.1 <DATA>: Data command rejected: messages-1@example.com may send 2 messages in 1h",
        ]
    assert sent(daemon, "messages-1@example.com") == (2, 3)
    status = daemon.ctl_json("status", "messages-1@example.com")
    assert (status["refused"], status["held"], status["lock"]) == (1, 0, None)


def test_recipient_over_its_limit_is_refused_at_rcpt_and_the_others_get_the_message(pair: Pair) -> None:
    """Three recipients may pass: the fourth and fifth are refused one by one, and the message goes to the three."""
    postfix, daemon = pair
    with postfix.smtp("recipients-1@example.com") as session:
        *answers, end = session.message(5)
    refusal = "554 5.7.1 <{}>: Recipient address rejected: At most 3 recipients in 1h"
    assert answers == [
        *[ACCEPTED] * 3,
        refusal.format("r3@remote.example"),
        refusal.format("r4@remote.example"),
    ]
    assert queued(end)
    assert sent(daemon, "recipients-1@example.com") == (1, 3)
    assert daemon.ctl_json("status", "recipients-1@example.com")["refused"] == 2


def test_limit_holds_over_sessions(pair: Pair) -> None:
    """A user who connects anew for each message has the same limit."""
    postfix, _ = pair
    ends = []
    for _ in range(3):
        with postfix.smtp("messages-2@example.com") as session:
            ends.append(session.message()[-1])
    assert [bool(queued(end)) for end in ends] == [True, True, False]


def test_one_users_limit_does_not_concern_another(pair: Pair) -> None:
    """A user sends on while another one is refused."""
    postfix, _ = pair
    with postfix.smtp("messages-3@example.com") as session:
        ends = [session.message()[-1] for _ in range(3)]
    assert not queued(ends[-1])
    with postfix.smtp("somebody@example.com") as session:
        assert queued(session.message()[-1])


def test_temporary_refusal_keeps_its_reply_code(pair: Pair) -> None:
    """An action of 452 reaches the client as 452 4.5.3, so that it tries again later."""
    postfix, _ = pair
    with postfix.smtp("patience-1@example.com") as session:
        *answers, end = session.message(3)
    refusal = "452 4.5.3 <r2@remote.example>: Recipient address rejected: Too many recipients, try again later"
    assert answers == [ACCEPTED, ACCEPTED, refusal]
    assert queued(end)


def test_defer_if_permit_defers_the_message(pair: Pair) -> None:
    """DEFER_IF_PERMIT reaches the client as 450."""
    postfix, _ = pair
    with postfix.smtp("deferral-1@example.com") as session:
        assert queued(session.message()[-1])
        assert session.message()[-1] == "450 4.7.1 <DATA>: Data command rejected: Slow down"


def test_unauthenticated_client_is_not_limited(pair: Pair) -> None:
    """Without a login nothing is counted, and no account appears."""
    postfix, daemon = pair
    before = daemon.ctl_json("status")
    with postfix.connect() as session:
        assert all(queued(session.message(2, sender="messages-1@example.com")[-1]) for _ in range(4))
    after = daemon.ctl_json("status")
    assert after["accounts"] == before["accounts"]
    assert after["requests"]["RCPT"] == before["requests"]["RCPT"] + 8


def test_account_over_a_locking_limit_is_locked_until_unlocked(pair: Pair) -> None:
    """The third message locks the account; its next RCPT is refused; policyctl unlock frees it and its count."""
    postfix, daemon = pair
    account = "hijack-1@example.com"
    with postfix.smtp(account) as session:
        assert [bool(queued(session.message()[-1])) for _ in range(2)] == [True, True]
        locked = f"{account} is locked"
        assert session.message() == [ACCEPTED, f"554 5.7.1 <DATA>: Data command rejected: {locked}"]
        session.mail()
        assert session.rcpt() == f"554 5.7.1 <one@remote.example>: Recipient address rejected: {locked}"
        session.command("RSET")

        status = daemon.ctl_json("status", account)
        assert status["lock"]["limit"] == "hijack"
        assert status["lock"]["count"] == 3
        assert status["lock"]["by"] == "policyd"
        assert status["lock"]["until"] is None
        assert status["attempts_while_locked"] == 1
        assert account in [lock["account"] for lock in daemon.ctl_json("locked")]

        assert daemon.ctl("unlock", account).returncode == 0
        assert sent(daemon, account) == (0, 0)
        assert [bool(queued(session.message()[-1])) for _ in range(3)] == [True, True, False]


def test_locked_by_hand_the_account_is_refused_with_the_reason(pair: Pair) -> None:
    """A lock takes effect at the next recipient, in the middle of a message; unlocking as well."""
    postfix, daemon = pair
    with postfix.smtp("locked-1@example.com") as session:
        session.mail()
        assert session.rcpt("one@remote.example") == ACCEPTED
        assert daemon.ctl("lock", "locked-1@example.com", "--reason", "spam complaints").returncode == 0
        refusal = "Account locked-1@example.com is locked: spam complaints"
        assert session.rcpt("two@remote.example") == (
            f"554 5.7.1 <two@remote.example>: Recipient address rejected: {refusal}"
        )
        assert session.data() == f"554 5.7.1 <DATA>: Data command rejected: {refusal}"
        assert daemon.ctl("unlock", "locked-1@example.com").returncode == 0
        assert session.rcpt("two@remote.example") == ACCEPTED
        assert queued(session.data())


def test_lock_concerns_all_of_an_accounts_spellings(pair: Pair) -> None:
    """An account locked in lower case is locked for a login in upper case too."""
    postfix, daemon = pair
    daemon.ctl("lock", "locked-2@example.com", "--reason", "stolen")
    with postfix.smtp("LOCKED-2@EXAMPLE.COM") as session:
        session.mail()
        assert session.rcpt().endswith("Account locked-2@example.com is locked: stolen")


def test_message_over_a_holding_limit_is_held(pair: Pair) -> None:
    """The second message is accepted from the client, and stays in Postfix's hold queue with all its recipients."""
    postfix, daemon = pair
    with postfix.smtp("held-messages-1@example.com") as session:
        free = queued(session.message()[-1])
        held = queued(session.message(3)[-1])
    assert free
    messages = {message["queue_id"]: message for message in postfix.held()}
    assert free not in messages
    assert len(messages[held]["recipients"]) == 3
    assert f"queue_id={held}" in daemon.stderr
    status = daemon.ctl_json("status", "held-messages-1@example.com")
    assert (status["held"], status["refused"]) == (1, 0)
    assert sent(daemon, "held-messages-1@example.com")[0] == 1


def test_message_with_recipients_over_a_holding_limit_is_held_whole(pair: Pair) -> None:
    """Of five recipients three may pass: all five are accepted, the message is held for all, and the log names it."""
    postfix, daemon = pair
    with postfix.smtp("held-recipients-1@example.com") as session:
        *answers, end = session.message(5)
    assert answers == [ACCEPTED] * 5
    messages = {message["queue_id"]: message for message in postfix.held()}
    assert len(messages[queued(end)]["recipients"]) == 5
    assert f"queue_id={queued(end)}" in daemon.stderr
    status = daemon.ctl_json("status", "held-recipients-1@example.com")
    assert (status["held"], status["refused"]) == (1, 0)
    assert sent(daemon, "held-recipients-1@example.com")[0] == 0


def test_account_locked_with_hold_has_its_mail_held(pair: Pair) -> None:
    """A lock with --hold keeps the account's mail back without telling the client; unlocked, it flows again."""
    postfix, daemon = pair
    assert daemon.ctl("lock", "held-1@example.com", "--reason", "to be looked at", "--hold").returncode == 0
    with postfix.smtp("held-1@example.com") as session:
        held = queued(session.message(2)[-1])
        daemon.ctl("unlock", "held-1@example.com")
        free = queued(session.message()[-1])
    on_hold = [message["queue_id"] for message in postfix.held()]
    assert held in on_hold
    assert f"queue_id={held}" in daemon.stderr
    assert free
    assert free not in on_hold


def test_reset_gives_recipients_back(pair: Pair) -> None:
    """A message given up by RSET costs nothing, once the next one has begun."""
    postfix, daemon = pair
    with postfix.smtp("rset@example.com") as session:
        session.mail()
        assert [session.rcpt(f"r{n}@remote.example") for n in range(3)] == [ACCEPTED] * 3
        session.command("RSET")
        assert queued(session.message()[-1])
    assert sent(daemon, "rset@example.com") == (1, 1)


def test_quit_gives_recipients_back(pair: Pair) -> None:
    """A message given up by QUIT costs nothing, once the same smtpd serves somebody else."""
    postfix, daemon = pair
    with postfix.smtp("quits@example.com") as session:
        session.mail()
        assert [session.rcpt(f"r{n}@remote.example") for n in range(2)] == [ACCEPTED] * 2
    with postfix.smtp("somebody@example.com") as session:
        assert queued(session.message()[-1])
    assert sent(daemon, "quits@example.com") == (0, 0)


def test_dropped_client_gives_recipients_back(pair: Pair) -> None:
    """A message whose client vanishes after RCPT costs nothing, once the same smtpd serves somebody else."""
    postfix, daemon = pair
    with postfix.smtp("drops@example.com") as session:
        session.mail()
        assert [session.rcpt(f"r{n}@remote.example") for n in range(2)] == [ACCEPTED] * 2
        session.drop()
    with postfix.smtp("somebody@example.com") as session:
        assert queued(session.message()[-1])
    assert sent(daemon, "drops@example.com") == (0, 0)


def test_recipient_limit_is_free_again_after_a_given_up_message(pair: Pair) -> None:
    """Recipients of a message that was given up do not stand in the way of the next one."""
    postfix, daemon = pair
    with postfix.smtp("recipients-2@example.com") as session:
        for _ in range(3):
            session.mail()
            assert [session.rcpt(f"r{n}@remote.example") for n in range(3)] == [ACCEPTED] * 3
            session.command("RSET")
        assert session.message(3)[:3] == [ACCEPTED] * 3
    assert sent(daemon, "recipients-2@example.com") == (1, 3)


def test_recipients_that_postfix_refuses_after_asking_are_given_back(pair: Pair) -> None:
    """DATA says how many recipients Postfix accepted; the others are not counted."""
    postfix, daemon = pair
    with postfix.smtp("late@example.com") as session:
        replies = session.message(["one@remote.example", "late@remote.example", "two@remote.example"])
    assert replies[1] == "554 5.7.1 <late@remote.example>: Recipient address rejected: No such user"
    assert queued(replies[-1])
    assert sent(daemon, "late@example.com") == (1, 2)


def test_recipients_that_postfix_refuses_before_asking_are_not_counted(pair: Pair) -> None:
    """The daemon never hears of a recipient that an earlier restriction refuses."""
    postfix, daemon = pair
    with postfix.smtp("early@example.com") as session:
        replies = session.message(["one@remote.example", "early@remote.example"])
    assert replies[1] == "554 5.7.1 <early@remote.example>: Recipient address rejected: No such user"
    assert sent(daemon, "early@example.com") == (1, 1)


def test_postmaster_is_counted_at_data(pair: Pair) -> None:
    """Postfix asks nothing about RCPT TO:<postmaster>; DATA's recipient_count has it."""
    postfix, daemon = pair
    with postfix.smtp("postmaster@example.com") as session:
        assert queued(session.message(["postmaster"])[-1])
        assert queued(session.message(["postmaster", "one@remote.example"])[-1])
    assert sent(daemon, "postmaster@example.com") == (2, 3)


def test_postmaster_over_the_limit_is_refused_at_data(pair: Pair) -> None:
    """A recipient that was never asked about exceeds a limit like any other."""
    postfix, daemon = pair
    with postfix.smtp("recipients-3@example.com") as session:
        replies = session.message([*(f"r{n}@remote.example" for n in range(3)), "postmaster"])
    assert replies == [
        *[ACCEPTED] * 4,
        "554 5.7.1 <DATA>: Data command rejected: At most 3 recipients in 1h",
    ]
    assert sent(daemon, "recipients-3@example.com") == (0, 0)


def test_recipient_named_twice_counts_as_postfix_counts_it(pair: Pair) -> None:
    """Postfix counts the same recipient each time it is named, in a row or not."""
    postfix, daemon = pair
    with postfix.smtp("twice@example.com") as session:
        recipients = ["one@remote.example"] * 3 + ["two@remote.example", "one@remote.example"]
        assert queued(session.message(recipients)[-1])
    assert sent(daemon, "twice@example.com") == (1, 5)


def test_several_messages_in_one_session_are_all_counted(pair: Pair) -> None:
    """Each message has an instance of its own."""
    postfix, daemon = pair
    with postfix.smtp("several@example.com") as session:
        assert all(queued(session.message(recipients)[-1]) for recipients in (1, 4, 1, 2))
    assert sent(daemon, "several@example.com") == (4, 8)


def test_two_users_through_one_smtpd_are_counted_apart(pair: Pair) -> None:
    """Sessions one after another share a connection to the daemon, and nothing else."""
    postfix, daemon = pair
    for account, recipients in (("left@example.com", 2), ("right@example.com", 3)):
        with postfix.smtp(account) as session:
            assert queued(session.message(recipients)[-1])
    assert sent(daemon, "left@example.com") == (1, 2)
    assert sent(daemon, "right@example.com") == (1, 3)


def test_null_sender_counts_for_the_login(pair: Pair) -> None:
    """Who is logged in is counted, whatever the envelope sender says."""
    postfix, daemon = pair
    with postfix.smtp("null@example.com") as session:
        assert queued(session.message(2, sender="")[-1])
        assert queued(session.message(1, sender="somebody.else@example.com")[-1])
    assert sent(daemon, "null@example.com") == (2, 3)


def test_pipelined_message_is_counted(pair: Pair) -> None:
    """A client that sends all commands in one packet is counted as any other."""
    postfix, daemon = pair
    with postfix.smtp("pipelining@example.com") as session:
        for _ in range(2):
            recipients = [f"RCPT TO:<r{n}@remote.example>" for n in range(3)]
            replies = session.pipeline(["MAIL FROM:<anna@example.com>", *recipients, "DATA"])
            assert [reply[:3] for reply in replies] == ["250", "250", "250", "250", "354"]
            assert queued(session.command("Subject: test\r\n\r\nHello.\r\n."))
    assert sent(daemon, "pipelining@example.com") == (2, 6)


def test_message_sent_by_bdat_is_counted(pair: Pair) -> None:
    """BDAT is asked about as DATA, once for all its chunks."""
    postfix, daemon = pair
    with postfix.smtp("bdat@example.com") as session:
        begin_message(session, 2)
        assert session.command("BDAT 15\r\nSubject: test").startswith("250")
        assert queued(session.command("BDAT 10 LAST\r\n\r\nHello."))
    assert sent(daemon, "bdat@example.com") == (1, 2)


def test_message_over_its_limit_is_refused_at_bdat(pair: Pair) -> None:
    """The limit on messages concerns BDAT as it does DATA."""
    postfix, _ = pair
    with postfix.smtp("messages-4@example.com") as session:
        assert all(queued(session.message()[-1]) for _ in range(2))
        begin_message(session, 1)
        assert session.command("BDAT 8 LAST\r\nHello.") == (
            "554 5.7.1 <DATA>: Data command rejected: messages-4@example.com may send 2 messages in 1h"
        )


def test_vrfy_counts_nothing(pair: Pair) -> None:
    """VRFY asks the same hook as RCPT does."""
    postfix, daemon = pair
    with postfix.smtp("vrfy@example.com") as session:
        assert session.command("VRFY one@remote.example").startswith("252")
        assert queued(session.message()[-1])
    assert sent(daemon, "vrfy@example.com") == (1, 1)
    assert daemon.ctl_json("status")["requests"]["VRFY"] > 0


@pytest.mark.parametrize(
    ("logins", "account"),
    [
        (["upper@example.com", "UPPER@example.com", "Upper@Example.COM"], "upper@example.com"),
        (["büro@example.com", "BÜRO@example.com"], "büro@example.com"),
        (["carl+list@example.com"], "carl+list@example.com"),
        (["d d@example.com"], "d d@example.com"),
        (["a=b@example.com"], "a=b@example.com"),
        (['"quoted"@example.com'], '"quoted"@example.com'),
        (["norealm"], "norealm@lab.example"),
    ],
    ids=["upper case", "UTF-8", "plus tag", "blank", "equals sign", "quotes", "no realm"],
)
def test_odd_login_is_counted(pair: Pair, logins: list[str], account: str) -> None:
    """Whatever a login consists of, it is an account; capitals make no other one."""
    postfix, daemon = pair
    for login in logins:
        with postfix.smtp(login) as session:
            assert queued(session.message(2)[-1])
    assert sent(daemon, account) == (len(logins), 2 * len(logins))
    assert daemon.ctl_json("status", account)["account"] == account
