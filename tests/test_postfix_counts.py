"""A real Postfix tells clients, senders and sizes: what is counted is what came in, to the byte."""

from __future__ import annotations

import pytest

from tests.daemon import Policyd
from tests.postfix import ACCEPTED, PrivatePostfix, Session, queued, require_postfix, wired

CONFIG = """\
limits:
  clients: {count: clients, per: 1h, max: 2, action: "REJECT 5.7.1 At most {max} clients in {per}"}
  senders: {count: senders, per: 1h, max: 2, action: "REJECT 5.7.1 At most {max} senders in {per}"}
  bytes: {count: bytes, per: 1h, max: 10k, action: "452 4.3.1 At most {max} in {per}, with this {count}"}
"""

TEXT = "Subject: test\n\n" + "x" * 70 + "\n"
SIZE = len(TEXT.replace("\n", "\r\n"))
"""Bytes of the text as they are on the wire."""

TOO_LARGE = "Subject: test\n\n" + ("x" * 70 + "\n") * 150
REFUSED_AT_END = "452 4.3.1 <END-OF-MESSAGE>: End-of-data rejected: At most 10k in 1h, with this "

ANNA = "anna@example.com"


def counts(daemon: Policyd, account: str = ANNA) -> tuple[int, int, int]:
    """Return how many clients, senders and bytes are counted for an account."""
    clients, senders, size = daemon.ctl_json("status", account)["limits"]
    return clients["count"], senders["count"], size["count"]


def send(session: Session, text: str = TEXT, *, sender: str = ANNA, declared: int | None = None) -> str:
    """Send a message; return the reply to DATA where that is refused, else to the end of the text."""
    session.command(f"MAIL FROM:<{sender}>" + ("" if declared is None else f" SIZE={declared}"))
    assert session.rcpt() == ACCEPTED
    reply = session.data(text)
    session.command("RSET")
    return reply


@pytest.mark.parametrize("hooks", [("RCPT", "DATA"), ("RCPT", "DATA", "END-OF-MESSAGE"), ("END-OF-MESSAGE",)])
def test_size_is_what_was_declared_or_at_the_end_what_it_is(hooks: tuple[str, ...]) -> None:
    """Without END-OF-MESSAGE what the client declares counts; with it, each byte that came, with its line ends."""
    with wired(CONFIG, hooks) as (postfix, daemon), postfix.smtp(ANNA) as session:
        for declared in (None, 0, 1, 5000):
            assert queued(send(session, declared=declared))
            assert counts(daemon)[2] == (SIZE if "END-OF-MESSAGE" in hooks else declared or 0)
            daemon.ctl("reset", ANNA)


def test_message_that_is_too_large_in_truth_is_refused_at_the_end() -> None:
    """It is given back as a whole, and the next message has the room, as it has a place in the queue."""
    with wired(CONFIG, ("RCPT", "DATA", "END-OF-MESSAGE")) as (postfix, daemon), postfix.smtp(ANNA) as session:
        refused = send(session, TOO_LARGE, declared=100)
        assert refused.startswith(REFUSED_AT_END)
        assert counts(daemon) == (0, 0, 0)
        assert queued(send(session))
        clients, senders, size = counts(daemon)
        assert (clients, senders) == (1, 1)
        assert 0 < size < 1000
        shown = daemon.ctl("status", ANNA).stdout
    assert " of 10k in 1h " in shown


def test_message_that_is_declared_too_large_is_refused_at_data() -> None:
    """Nobody needs to send what will not be taken."""
    with wired(CONFIG) as (postfix, daemon), postfix.smtp(ANNA) as session:
        assert queued(send(session)), "from now on messages are counted at DATA"
        reply = send(session, declared=10_241)
        assert reply == "452 4.3.1 <DATA>: Data command rejected: At most 10k in 1h, with this 10k"
        assert queued(send(session, declared=10_240))
        assert counts(daemon)[2] == 10_240


def test_clients_and_senders_are_told_apart() -> None:
    """A third address, or a third sender, is refused at DATA; those that were there go on."""
    require_postfix()
    settings = {"smtpd_authorized_xclient_hosts": "127.0.0.1"}
    with wired(CONFIG, settings=settings) as (postfix, daemon):
        with postfix.smtp(ANNA) as session:
            assert queued(send(session)), "from now on messages are counted at DATA"
        daemon.ctl("reset", ANNA)
        replies = [
            from_client(postfix, address, sender)
            for address, sender in (
                ("192.0.2.1", ANNA),
                ("192.0.2.2", "<>"),
                ("192.0.2.3", ANNA),
                ("192.0.2.2", "Anna@Example.com"),
                ("192.0.2.1", "third@example.com"),
                ("IPV6:::ffff:192.0.2.1", ANNA),
            )
        ]
        assert [bool(queued(reply)) for reply in replies] == [True, True, False, True, False, True]
        assert replies[2] == "554 5.7.1 <DATA>: Data command rejected: At most 2 clients in 1h"
        assert replies[4] == "554 5.7.1 <DATA>: Data command rejected: At most 2 senders in 1h"
        assert counts(daemon)[:2] == (2, 2)


def from_client(postfix: PrivatePostfix, address: str, sender: str) -> str:
    """Send a message as a client of another address."""
    with postfix.connect() as session:
        session.command("EHLO proxy.example.com")
        assert session.command(f"XCLIENT ADDR={address} NAME=[UNAVAILABLE]").startswith("220")
        session.command("EHLO client.example.com")
        assert session.login(ANNA).startswith("235")
        return send(session, sender=sender.strip("<>"))
