"""policyctl history and queue with the daemon's own history, behind a real Postfix."""

from __future__ import annotations

from pathlib import Path

from tests.postfix import queued, wired
from tests.waiting import until

SETTINGS = {
    "enable_long_queue_ids": "no",
    "defer_transports": "discard",
    "sender_canonical_maps": "inline:{forged@bank.example=canon@bank.example}",
}


def test_the_daemons_history_finds_what_is_in_the_queue(tmp_path: Path) -> None:
    """What an account sent, in whatever name, is found and deleted, and nobody else's."""
    with wired({"database": str(tmp_path / "policyd.sqlite")}, settings=SETTINGS) as (postfix, daemon):
        with postfix.smtp("Anna@example.com") as anna:
            senders = ("anna@example.com", "forged@bank.example", "", "plain", '"a b"@x.example')
            wanted = [queued(anna.message(3, sender)[-1]) for sender in senders]
        with postfix.smtp("bert@example.com") as bert:
            other = queued(bert.message(1, "anna@example.com")[-1])
        until(lambda: [one["queue_name"] for one in postfix.queue()] == ["deferred"] * 6)
        history = daemon.ctl_json("history", "anna@example.com")
        assert [one["queue_id"] for one in history["messages"]] == wanted[::-1]
        assert daemon.ctl("history", "anna@example.com", "-0").stdout.split("\0")[:-1] == wanted[::-1]
        config = str(postfix.folder / "conf")
        for given, which in (
            (["--sender", "FORGED@bank.example"], [1]),
            (["--sender", "<>", "--sender", "plain"], [2, 3]),
            (["--except-sender", "anna@example.com", "--except-sender", "<>"], [1, 3, 4]),
        ):
            found = daemon.ctl_json("queue", "anna@example.com", *given, "--delete", "--postfix-config", config)
            assert [one["queue_id"] for one in found["messages"]] == [wanted[place] for place in which]
        told = daemon.ctl("queue", "anna@example.com", "--sender", "<>", "--delete", "--postfix-config", config).stdout
        assert "--sender '<>' --delete --yes anna@example.com" in told
        value = daemon.ctl_json("queue", "anna@example.com", "--delete", "--yes", "--postfix-config", config)
        assert [one["queue_id"] for one in value["messages"]] == value["done"] == wanted
        assert value["left_alone"] == []
        assert "queue account=anna@example.com order=delete messages=5 recipients=15 by=" in daemon.stderr
        assert [one["queue_id"] for one in postfix.queue()] == [other]
