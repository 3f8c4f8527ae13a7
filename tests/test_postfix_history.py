"""The history of what SASL users send through a real Postfix: queue ids, sizes and verdicts are Postfix's own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon import Policyd
from tests.postfix import PrivatePostfix, queued, wired
from tests.test_control import get

Pair = tuple[PrivatePostfix, Policyd]

CONFIG = """\
database: {folder}/policyd.sqlite
limits:
  recipients: {{count: recipients, per: 1h, max: 1000, action: "REJECT At most {{max}} recipients"}}
  held: {{count: messages, per: 1h, max: 1000, action: "HOLD more than {{max}} messages"}}
overrides:
  - {{accounts: ["held-*"], limits: {{held: 1}}}}
  - {{accounts: ["refused-*"], limits: {{recipients: 1}}}}
"""

AT_THE_END = {"smtpd_end_of_data_restrictions": "check_policy_service {policyd}"}


@pytest.fixture(scope="module", params=["data", "end-of-message"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Start a Postfix and a daemon, with the two hooks that it needs, and with a third at END-OF-MESSAGE."""
    settings = AT_THE_END if request.param == "end-of-message" else {}
    with (
        tempfile.TemporaryDirectory() as folder,
        wired(CONFIG.format(folder=folder), settings=settings) as (postfix, daemon),
    ):
        with postfix.smtp("first@example.com") as session:
            assert queued(session.message()[-1])
        yield postfix, daemon


def history(daemon: Policyd, account: str) -> list[dict[str, Any]]:
    """Return an account's messages, the first one first."""
    messages: list[dict[str, Any]] = get(daemon, f"/history?account={account}")["messages"]
    return messages[::-1]


def test_a_message_has_postfix_s_queue_id(pair: Pair) -> None:
    """And its sender, client and number of recipients, once for each message of a connection."""
    postfix, daemon = pair
    with postfix.smtp("anna@example.com") as session:
        ids = [queued(session.message(number, sender="Anna@example.com")[-1]) for number in (2, 1, 3)]
    found = history(daemon, "anna@example.com")
    assert [message["queue_id"] for message in found] == ids
    assert [message["recipients"] for message in found] == [2, 1, 3]
    assert {(message["sender"], message["client"], message["verdict"]) for message in found} == {
        ("Anna@example.com", "127.0.0.1", "passed")
    }


def test_a_held_message_is_the_one_that_is_on_hold(pair: Pair) -> None:
    """By its queue id, an abuse desk finds it."""
    postfix, daemon = pair
    account = f"held-{postfix.folder.name}@example.com"
    with postfix.smtp(account) as session:
        ids = [queued(session.message()[-1]) for _ in range(2)]
    passed, held = history(daemon, account)
    assert [passed["verdict"], held["verdict"]] == ["passed", "held"]
    assert [passed["queue_id"], held["queue_id"]] == ids
    assert ids[1] in {message["queue_id"] for message in postfix.held()}


def test_a_message_without_recipients_is_refused(pair: Pair) -> None:
    """The client is told no at its only recipient, and sends nothing."""
    postfix, daemon = pair
    with postfix.smtp("refused-1@example.com") as session:
        session.message()
        session.mail()
        assert session.rcpt().startswith("554 ")
    passed, refused = history(daemon, "refused-1@example.com")
    assert (passed["verdict"], refused["verdict"], refused["limit"]) == ("passed", "refused", "recipients")


def test_the_size_is_known_at_the_end(pair: Pair) -> None:
    """Without END-OF-MESSAGE it is what the client has declared, here nothing."""
    postfix, daemon = pair
    with postfix.smtp("size@example.com") as session:
        session.message()
    (message,) = history(daemon, "size@example.com")
    assert (message["size"] > 0) is daemon.ctl_json("status")["hooks"]["END-OF-MESSAGE"]
