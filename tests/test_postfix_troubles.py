"""A real Postfix in troubled times: floods, huge messages, a daemon that restarts, answers that come too late."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import yaml

from tests.daemon import REPOSITORY, SHIPPED_CONFIG, Policyd, free_port
from tests.postfix import ACCEPTED, PrivatePostfix, WithheldReplies, asking, queued, wired

CONFIG = """\
limits:
  messages: {count: messages, per: 1h, max: 1000, action: "REJECT 5.7.1 At most {max} messages in {per}"}
  recipients: {count: recipients, per: 1h, max: 1000, action: "REJECT 5.7.1 At most {max} recipients in {per}"}
overrides:
  - {accounts: ["few@example.com"], limits: {messages: 1}}
"""

ONE_PAUSE = 1.0
"""Seconds. So long Postfix waits before it asks again where the daemon has hung up; after that it gives up."""

TWO_PAUSES = 2 * ONE_PAUSE


def shipped_config() -> dict[str, Any]:
    """Return what etc/policyd.yaml says, but for where to listen."""
    config: dict[str, Any] = yaml.safe_load(SHIPPED_CONFIG.read_text())
    del config["listen"]
    return config


def example_main_cf(service: str) -> dict[str, str]:
    """Return the lines of etc/postfix/main.cf.example, and of its submission service, with one of its `policyd =`."""
    example = (REPOSITORY / "etc" / "postfix" / "main.cf.example").read_text()
    lines: dict[str, str] = dict(re.findall(r"^(\w+) = (.+)$", example, re.MULTILINE))
    options: dict[str, str] = dict(re.findall(r"^#   -o (\w*restrictions)=(.+)$", example, re.MULTILINE))
    assert f"policyd = {service}\n" in example
    return {**lines, **options, "policyd": service}


def test_house_rules_hold_with_no_config_at_all() -> None:
    """On 127.0.0.1:10045, 500 messages pass; the 501st is refused and locks the account until a person unlocks it."""
    account = "flood@example.com"
    with wired(None) as (postfix, daemon):
        accepted = 0
        for _ in range(2):
            with postfix.smtp(account) as session:
                accepted += sum(bool(queued(session.message(1)[-1])) for _ in range(250))
        assert accepted == 500

        text = f"Account {account} is locked: more than 500 messages in 30m. Contact your provider"
        with postfix.smtp(account) as session:
            assert session.message(1) == [ACCEPTED, f"554 5.7.1 <DATA>: Data command rejected: {text}"]
            session.mail()
            assert session.rcpt() == f"554 5.7.1 <one@remote.example>: Recipient address rejected: {text}"
        with postfix.smtp("somebody@example.com") as session:
            assert queued(session.message(1)[-1])

        status = daemon.ctl_json("status", account)
        assert status["refused"] == 1
        assert status["attempts_while_locked"] == 1
        lock = status["lock"]
        assert (lock["limit"], lock["count"], lock["by"]) == ("messages-per-half-hour", 501, "policyd")
        assert (lock["reason"], lock["until"]) == ("more than 500 messages in 30m", None)

        assert daemon.ctl("unlock", account).returncode == 0
        with postfix.smtp(account) as session:
            assert queued(session.message(1)[-1])
        assert daemon.counts(account) == {"recipients-per-message": None, "messages-per-half-hour": 1}


def test_5001st_recipient_of_a_message_is_refused_with_the_shipped_config() -> None:
    """5000 recipients are accepted and the next is not, once smtpd_recipient_limit lets Postfix ask about them."""
    with wired(shipped_config(), settings={"smtpd_recipient_limit": "10000"}) as (postfix, daemon):
        with postfix.smtp("anna@example.com") as session:
            session.mail()
            replies = session.pipeline([f"RCPT TO:<r{n}@remote.example>" for n in range(5001)])
            assert replies[:5000] == [ACCEPTED] * 5000
            assert replies[5000] == (
                "554 5.5.3 <r5000@remote.example>: Recipient address rejected: "
                "Too many recipients: at most 5000 in one message"
            )
            assert queued(session.data())
            assert queued(session.message(1)[-1])
        assert daemon.counts("anna@example.com") == {"recipients-per-message": None, "messages-per-half-hour": 2}


def test_house_rule_of_recipients_holds_at_data_alone() -> None:
    """With the DATA hook alone, a message to 5001 recipients is refused as a whole."""
    with wired(shipped_config(), ("DATA",)) as (postfix, daemon):
        with postfix.smtp("anna@example.com") as session:
            for recipients in (5001, 5000):
                session.mail()
                replies = session.pipeline([f"RCPT TO:<r{n}@remote.example>" for n in range(recipients)])
                assert set(replies) == {ACCEPTED}
                end = session.data()
                assert bool(queued(end)) == (recipients == 5000), end
                session.command("RSET")
        assert daemon.counts("anna@example.com")["messages-per-half-hour"] == 1


@pytest.mark.parametrize(
    "service",
    [
        "{ inet:127.0.0.1:10045, timeout=10s, default_action=DUNNO }",
        "{ inet:127.0.0.1:10045, timeout=10s, { default_action = 451 4.3.5 Server configuration problem } }",
        "{ unix:policyd/policy.sock, timeout=10s, default_action=DUNNO }",
    ],
    ids=["fail open", "fail closed", "unix"],
)
def test_example_main_cf_limits_and_does_what_it_says_without_the_daemon(service: str) -> None:
    """Each variant of etc/postfix/main.cf.example limits; when policyd is down, mail passes or gets a 451."""
    port = free_port()
    settings = {name: value.replace("10045", str(port)) for name, value in example_main_cf(service).items()}
    with PrivatePostfix(settings, chroot=True) as postfix, postfix.smtp("few@example.com") as session:
        listen = [f"tcp:{port}:interface=127.0.0.1", f"unix:{postfix.policy_socket}:mode=660"]
        with Policyd(CONFIG, listen=listen) as daemon:
            assert queued(session.message(2)[-1])
            refusal = "554 5.7.1 <DATA>: Data command rejected: At most 1 messages in 1h"
            assert session.message(1) == [ACCEPTED, refusal]
            assert daemon.counts("few@example.com") == {"messages": 1, "recipients": 2}
        session.mail()
        without = session.rcpt()
    assert without == (
        ACCEPTED
        if "DUNNO" in service
        else "451 4.3.5 <one@remote.example>: Recipient address rejected: Server configuration problem"
    )


@pytest.mark.parametrize("recipients_before", [0, 1, 2], ids=["before RCPT", "between two RCPT", "before DATA"])
def test_restart_in_the_middle_of_a_message_costs_a_pause_and_no_error(recipients_before: int) -> None:
    """While the daemon restarts, a session sees at most Postfix's own pause of a second; the message is counted."""
    with wired(CONFIG) as (postfix, daemon), postfix.smtp("anna@example.com") as session:
        assert queued(session.message(1)[-1])
        session.mail()
        recipients = ["one@remote.example", "two@remote.example"]
        assert {session.rcpt(recipient) for recipient in recipients[:recipients_before]} <= {ACCEPTED}
        daemon.restart()
        began = time.monotonic()
        assert {session.rcpt(recipient) for recipient in recipients[recipients_before:]} <= {ACCEPTED}
        assert queued(session.data())
        assert time.monotonic() - began < TWO_PAUSES
        assert daemon.counts("anna@example.com") == {"messages": 1, "recipients": 2}


def test_reload_in_the_middle_of_a_message_is_not_felt() -> None:
    """A limit changed by SIGHUP concerns the message that is under way; the connection stays, and so do the counts."""
    stricter = CONFIG.replace("few@example.com", "anna@example.com")
    with wired(CONFIG) as (postfix, daemon), postfix.smtp("anna@example.com") as session:
        assert queued(session.message(1)[-1])
        session.mail()
        assert session.rcpt() == ACCEPTED
        daemon.reload(stricter)
        began = time.monotonic()
        assert session.data() == "554 5.7.1 <DATA>: Data command rejected: At most 1 messages in 1h"
        assert time.monotonic() - began < ONE_PAUSE
        assert daemon.counts("anna@example.com") == {"messages": 1, "recipients": 1}


@pytest.mark.parametrize("half_open", [False, True], ids=["closed at once", "left half open"])
def test_request_whose_reply_comes_too_late_is_counted_once(half_open: bool) -> None:
    """Postfix gives up after smtpd_policy_service_timeout and asks the same again: counted once, or refused once.

    In one case the daemon learns at once that the first connection is gone, in the other only at the end.
    """
    envelope = ["MAIL FROM:<anna@example.com>", "RCPT TO:<late@remote.example>", "DATA"]
    late = b"\nrecipient=late@remote.example\n"
    with Policyd(CONFIG) as daemon, WithheldReplies(daemon.address, late, half_open=half_open) as proxy:
        settings = {**asking(proxy.endpoint, ("RCPT", "DATA")), "smtpd_policy_service_timeout": "1s"}
        with PrivatePostfix(settings) as postfix:
            with postfix.smtp("anna@example.com") as passes, postfix.smtp("few@example.com") as is_refused:
                assert queued(passes.message(1)[-1])
                assert queued(is_refused.message(1)[-1])
                is_refused.ask(envelope)
                assert passes.pipeline(envelope[:2])[-1] == ACCEPTED
                assert daemon.counts("anna@example.com") == {"messages": 1, "recipients": 2}
                assert passes.command("DATA").startswith("354")
                assert is_refused.replies(3)[-1] == "554 5.7.1 <DATA>: Data command rejected: At most 1 messages in 1h"
                assert proxy.withheld == 4
                assert queued(passes.command("Subject: test\r\n\r\nHello.\r\n."))
                assert queued(passes.message(3)[-1])
            assert daemon.counts("anna@example.com") == {"messages": 3, "recipients": 5}
            assert daemon.counts("few@example.com") == {"messages": 1, "recipients": 1}
            assert daemon.ctl_json("status", "few@example.com")["refused"] == 1


def test_recipients_are_given_back_when_postfix_hangs_up() -> None:
    """A message given up by its client costs nothing once the smtpd that asked about it has ended."""
    with wired(CONFIG) as (postfix, daemon):
        with postfix.smtp("anna@example.com") as session:
            assert queued(session.message(1)[-1])
            session.mail()
            assert [session.rcpt(f"r{n}@remote.example") for n in range(4)] == [ACCEPTED] * 4
            session.drop()
        assert daemon.counts("anna@example.com") == {"messages": 1, "recipients": 5}
        postfix.stop()
        daemon.wait_for_quiet()
        assert daemon.counts("anna@example.com") == {"messages": 1, "recipients": 1}
