"""A real Postfix asks at any of its hooks, once or twice, by TCP or a unix socket: what is counted is what was sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.daemon import Policyd
from tests.postfix import ACCEPTED, HOOKS, PrivatePostfix, asking, queued, require_postfix, wired

CONFIG = """\
limits:
  messages: {count: messages, per: 1h, max: 1000, action: "REJECT 5.7.1 At most {max} messages in {per}"}
  recipients: {count: recipients, per: 1h, max: 1000, action: "REJECT 5.7.1 At most {max} recipients in {per}"}
  held: {count: messages, per: 1h, max: 1000, action: "HOLD"}
overrides:
  - {accounts: ["few@example.com"], limits: {messages: 2}}
  - {accounts: ["narrow@example.com"], limits: {recipients: 3}}
  - {accounts: ["held@example.com"], limits: {held: 1}}
"""

REFUSALS = {
    "RCPT": "554 5.7.1 <r0@remote.example>: Recipient address rejected: ",
    "DATA": "554 5.7.1 <DATA>: Data command rejected: ",
    "END-OF-MESSAGE": "554 5.7.1 <END-OF-MESSAGE>: End-of-data rejected: ",
}
"""How Postfix begins the reply by which it passes on a REJECT."""


@dataclass(frozen=True)
class Wiring:
    """At which hooks Postfix asks."""

    hooks: tuple[str, ...]
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def counts_messages_at(self) -> str:
        """The state at which a message is counted, once the daemon has seen a few."""
        return next(state for state in ("DATA", "END-OF-MESSAGE", "RCPT") if state in self.hooks)


@dataclass(frozen=True)
class Running:
    """A wiring with its two processes."""

    wiring: Wiring
    postfix: PrivatePostfix
    daemon: Policyd


WIRINGS = {
    "RCPT and DATA": Wiring(("RCPT", "DATA")),
    "RCPT": Wiring(("RCPT",)),
    "DATA": Wiring(("DATA",)),
    "END-OF-MESSAGE": Wiring(("END-OF-MESSAGE",)),
    "RCPT and END-OF-MESSAGE": Wiring(("RCPT", "END-OF-MESSAGE")),
    "DATA and END-OF-MESSAGE": Wiring(("DATA", "END-OF-MESSAGE")),
    "RCPT, DATA and END-OF-MESSAGE": Wiring(("RCPT", "DATA", "END-OF-MESSAGE")),
    "RCPT twice": Wiring(("RCPT", "RCPT")),
    "RCPT and DATA twice": Wiring(("RCPT", "RCPT", "DATA", "DATA")),
    "all seven, at RCPT": Wiring(tuple(HOOKS), {"smtpd_delay_reject": "yes"}),
    "all seven, at once": Wiring(tuple(HOOKS), {"smtpd_delay_reject": "no"}),
}


@pytest.fixture(scope="module", params=list(WIRINGS.values()), ids=list(WIRINGS))
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    """Start a fresh daemon and its Postfix, through which a first message goes."""
    wiring: Wiring = request.param
    with wired(CONFIG, wiring.hooks, wiring.settings) as (postfix, daemon):
        with postfix.smtp("first@example.com") as session:
            assert queued(session.message(2)[-1])
        yield Running(wiring, postfix, daemon)


def sent(daemon: Policyd, account: str) -> tuple[int, int]:
    """Return how many messages and recipients are counted for an account."""
    return counts(daemon.ctl_json("status", account))


def counts(status: Any) -> tuple[int, int]:
    """Return how many messages and recipients an account's status shows."""
    messages, recipients, _ = status["limits"]
    return messages["count"], recipients["count"]


def test_very_first_message_is_counted_once(running: Running) -> None:
    """The daemon does not know yet which hooks it has, and counts the message all the same, and once."""
    assert sent(running.daemon, "first@example.com") == (1, 2)


def test_counts_are_what_was_sent(running: Running) -> None:
    """Three messages to six recipients, in two sessions, are three messages to six recipients."""
    for messages in ((3, 1), (2,)):
        with running.postfix.smtp("anna@example.com") as session:
            session.command("VRFY one@remote.example")
            session.command("ETRN remote.example")
            for recipients in messages:
                assert queued(session.message(recipients)[-1])
    status = running.daemon.ctl_json("status", "anna@example.com")
    assert counts(status) == (3, 6)
    assert (status["refused"], status["held"], status["attempts_while_locked"]) == (0, 0, 0)


def test_two_sessions_at_once_are_counted_together(running: Running) -> None:
    """Messages of one account that cross each other in two smtpd processes do not disturb each other."""
    with running.postfix.smtp("both@example.com") as one, running.postfix.smtp("both@example.com") as other:
        one.mail()
        other.mail()
        for n in range(3):
            assert one.rcpt(f"one{n}@remote.example") == ACCEPTED
            assert other.rcpt(f"other{n}@remote.example") == ACCEPTED
        assert other.rcpt("three@remote.example") == ACCEPTED
        assert queued(one.data())
        assert queued(other.data())
    assert sent(running.daemon, "both@example.com") == (2, 7)


def test_given_up_message_costs_nothing(running: Running) -> None:
    """A message given up by RSET is not counted; where only RCPT is wired nobody can know that, and it is."""
    with running.postfix.smtp("rset@example.com") as session:
        session.mail()
        assert [session.rcpt(f"r{n}@remote.example") for n in range(2)] == [ACCEPTED] * 2
        session.command("RSET")
        assert queued(session.message(1)[-1])
    blind = running.wiring.counts_messages_at == "RCPT"
    assert sent(running.daemon, "rset@example.com") == ((2, 3) if blind else (1, 1))


def test_message_over_the_limit_is_refused(running: Running) -> None:
    """Two messages pass and the third does not, wherever the daemon is asked."""
    with running.postfix.smtp("few@example.com") as session:
        assert [bool(queued(session.message(1)[-1])) for _ in range(2)] == [True, True]
        replies = session.message(1)
    assert f"{REFUSALS[running.wiring.counts_messages_at]}At most 2 messages in 1h" in replies
    assert not queued(replies[-1])
    status = running.daemon.ctl_json("status", "few@example.com")
    assert counts(status) == (2, 2)
    assert status["refused"] == 1


def test_recipients_over_the_limit_are_refused(running: Running) -> None:
    """Of five recipients where three may pass, two are refused at RCPT; where RCPT is not asked, the message is."""
    with running.postfix.smtp("narrow@example.com") as session:
        replies = session.message(5)
    if "RCPT" in running.wiring.hooks:
        assert replies[:3] == [ACCEPTED] * 3
        assert all(reply.endswith("At most 3 recipients in 1h") for reply in replies[3:5])
        assert queued(replies[-1])
        assert sent(running.daemon, "narrow@example.com") == (1, 3)
    else:
        assert replies[-1] == f"{REFUSALS[running.wiring.counts_messages_at]}At most 3 recipients in 1h"
        assert sent(running.daemon, "narrow@example.com") == (0, 0)


def test_message_over_a_holding_limit_is_held(running: Running) -> None:
    """The second message lies in the hold queue with all its recipients, at whatever state HOLD is answered."""
    with running.postfix.smtp("held@example.com") as session:
        free, held = queued(session.message(2)[-1]), queued(session.message(3)[-1])
    on_hold = {message["queue_id"]: message for message in running.postfix.held()}
    assert free
    assert free not in on_hold
    assert len(on_hold[held]["recipients"]) == 3


def test_locked_account_gets_nothing_through(running: Running) -> None:
    """Locked by hand, an account has no message accepted at whichever hook; unlocked, it has."""
    account = "locked@example.com"
    assert running.daemon.ctl("lock", account, "--reason", "stolen password").returncode == 0
    with running.postfix.smtp(account) as session:
        refused = session.message(1)
        assert running.daemon.ctl("unlock", account).returncode == 0
        accepted = session.message(1)
    assert any(reply.endswith("Account locked@example.com is locked: stolen password") for reply in refused)
    assert not queued(refused[-1])
    assert queued(accepted[-1])
    assert sent(running.daemon, account) == (1, 1)


def test_status_tells_which_hooks_are_wired(running: Running) -> None:
    """The states that were seen are shown, so that a forgotten hook is found."""
    with running.postfix.smtp("anybody@example.com") as session:
        assert queued(session.message(1)[-1])
    shown = running.daemon.ctl_json("status")["hooks"]
    states = ("RCPT", "DATA", "END-OF-MESSAGE")
    assert {state: shown[state] for state in states} == {state: state in running.wiring.hooks for state in states}


def test_account_locked_while_its_text_is_sent_is_refused_at_the_end() -> None:
    """A lock between DATA and END-OF-MESSAGE still stops the message, and the message is given back."""
    account = "between@example.com"
    with wired(CONFIG, ("RCPT", "DATA", "END-OF-MESSAGE")) as (postfix, daemon), postfix.smtp(account) as session:
        assert queued(session.message(1)[-1])
        session.mail()
        assert [session.rcpt(f"r{n}@remote.example") for n in range(2)] == [ACCEPTED] * 2
        assert session.command("DATA").startswith("354")
        assert daemon.ctl("lock", account, "--reason", "stolen password").returncode == 0
        assert session.command("Subject: test\r\n\r\nHello.\r\n.") == (
            f"{REFUSALS['END-OF-MESSAGE']}Account between@example.com is locked: stolen password"
        )
        assert sent(daemon, account) == (1, 1)


@pytest.mark.parametrize(
    "lists",
    [
        {HOOKS["RCPT"]: "{numeric}", HOOKS["DATA"]: "{named}"},
        {HOOKS["RCPT"]: "{numeric}, {named}", HOOKS["DATA"]: "{named}, {numeric}"},
    ],
    ids=["RCPT here and DATA there", "each at both"],
)
def test_message_over_two_spellings_of_the_endpoint_is_counted_once(lists: dict[str, str]) -> None:
    """Postfix keeps a connection for each spelling: the requests of one message then come over different ones."""
    require_postfix()
    with Policyd(CONFIG) as daemon:
        spellings = {
            "numeric": f"check_policy_service inet:127.0.0.1:{daemon.port}",
            "named": f"check_policy_service inet:localhost:{daemon.port}",
        }
        settings = {name: services.format(**spellings) for name, services in lists.items()}
        with PrivatePostfix(settings) as postfix, postfix.smtp("anna@example.com") as session:
            assert queued(session.message(2)[-1])
            session.mail()
            assert [session.rcpt(f"r{n}@remote.example") for n in range(4)] == [ACCEPTED] * 4
            session.command("RSET")
            assert all(queued(session.message(recipients)[-1]) for recipients in (1, 3))
            assert sent(daemon, "anna@example.com") == (3, 6)


@pytest.mark.parametrize("chroot", [True, False], ids=["chrooted smtpd", "smtpd not chrooted"])
def test_unix_socket_below_the_queue_directory_is_asked(chroot: bool) -> None:
    """A socket with mode 660 in a folder of group postfix serves smtpd, chrooted or not."""
    settings = asking("unix:policyd/policy.sock", ("RCPT", "DATA"))
    with (
        PrivatePostfix(settings, chroot=chroot) as postfix,
        Policyd(CONFIG, listen=[f"unix:{postfix.policy_socket}:mode=660"]) as daemon,
    ):
        assert postfix.policy_socket.stat().st_mode & 0o777 == 0o660
        with postfix.smtp("few@example.com") as session:
            ends = [session.message(2)[-1] for _ in range(3)]
        assert [bool(queued(end)) for end in ends] == [True, True, False]
        assert sent(daemon, "few@example.com") == (2, 4)
