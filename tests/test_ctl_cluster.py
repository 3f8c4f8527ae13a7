"""What policyctl says for people of the nodes that share a store."""

from __future__ import annotations

from argparse import Namespace
from datetime import datetime, timezone
from typing import Any

from policyd import ctl_allow, ctl_history, ctl_text
from policyd.ctl_history import question
from policyd.ctl_layout import Screen
from tests.control_socket import LOCK, STATUS

PIPE = Screen(datetime(2026, 11, 23, 8, 0, tzinfo=timezone.utc), timezone.utc)
LATER = "the store does not know yet: the other nodes are told when the store is back"
NODE: dict[str, Any] = {
    "node": "mail1",
    "version": "0.1.0",
    "script": "5f0c123456789",
    "run": "8a1d",
    "started": "2026-11-23T07:00:00+00:00",
    "listen": ["tcp:10045"],
    "database": "none",
    "heard": "2026-11-23T07:59:59+00:00",
    "silent": False,
}
CLUSTER: dict[str, Any] = {
    "store": "redis://valkey:6379/0",
    "prefix": "policyd",
    "node": "mail1",
    "here": True,
    "since": "2026-11-23T07:00:00+00:00",
    "problem": None,
    "unshared": {"waiting": 0, "lost": 0},
    "orders": {"waiting": 0},
    "malformed": 0,
    "nodes": [NODE, {**NODE, "node": "mail2", "silent": True, "heard": "2026-11-23T07:50:00+00:00"}],
}
SILENT = {"node": "mail1", "here": True, "answered": ["mail1"], "silent": ["mail2"]}
AWAY = {"node": "mail1", "here": False, "answered": ["mail1"], "silent": []}


def test_status_has_a_line_for_each_node() -> None:
    """Who looks at the status sees the store, this node and the others, and which of them are silent since when."""
    lines = ctl_text.status({**STATUS, "cluster": CLUSTER}, PIPE)
    assert lines[lines.index("cluster") :] == [
        "cluster",
        "  store  redis://valkey:6379/0, here since 2026-11-23 07:00:00 (60 min ago)",
        "  mail1 (this one)  policyd 0.1.0  script 5f0c123  here                              tcp:10045",
        "  mail2             policyd 0.1.0  script 5f0c123  SILENT since 2026-11-23 07:50:00  tcp:10045",
    ]


def test_status_tells_what_waits_for_the_store() -> None:
    """While the store is away, it is seen how much the other nodes do not know."""
    cluster = {**CLUSTER, "here": False, "unshared": {"waiting": 12, "lost": 1}, "orders": {"waiting": 2}, "nodes": []}
    assert ctl_text.status({**STATUS, "cluster": cluster}, PIPE)[-2:] == [
        "  store     redis://valkey:6379/0, AWAY since 2026-11-23 07:00:00 (60 min ago)",
        "  unshared  12 messages and 2 orders wait, 1 message lost",
    ]


def test_an_account_says_which_nodes_have_not_answered() -> None:
    """What is missing of the tallies is not passed over."""
    account: dict[str, Any] = {"account": "anna", "lock": None, "seen": False, "limits": []}
    assert ctl_text.account({**account, "cluster": SILENT}, PIPE)[-1] == (
        "no answer from mail2: what only that has seen is missing"
    )
    assert ctl_text.account({**account, "cluster": AWAY}, PIPE)[-1] == (
        "the store is away: this is what mail1 alone knows"
    )
    well = {**SILENT, "silent": []}
    assert ctl_text.account({**account, "cluster": well}, PIPE) == ["anna: no activity seen"]


def test_each_order_says_that_the_others_do_not_know_yet() -> None:
    """An order that the store does not know of holds here, and says that it does not elsewhere."""
    freed = {"unlocked": ["anna"], "free": [], "held": []}
    assert ctl_text.lock_made({**LOCK, "shared": False}, PIPE)[-1] == LATER
    assert ctl_text.unlocked({**freed, "shared": False})[-1] == LATER
    assert ctl_text.counts_reset({"account": "anna", "seen": True, "shared": False})[-1] == LATER
    assert ctl_allow.disallowed({"account": "anna", "disallowed": [], "shared": False}, None, PIPE)[-1] == LATER
    assert ctl_text.unlocked({**freed, "shared": True}) == ctl_text.unlocked(freed)


def test_the_history_tells_through_which_node_a_message_came() -> None:
    """In a cluster each message has its node, and a node that has not answered is named."""
    message = {
        "at": "2026-11-23T07:00:00+00:00",
        "queue_id": "4b",
        "verdict": "passed",
        "recipients": 1,
        "size": 0,
        "client": "192.0.2.7",
        "sender": "anna",
        "locked": False,
        "limit": None,
        "node": "mail2",
    }
    args = Namespace(client=None, except_client=None, verdict=None, since=None, account="anna")
    value = {"messages": [message], "more": False, "cluster": SILENT}
    title, line, *_, last = ctl_history.text(value, args, PIPE)
    assert title.split()[-1] == "node"
    assert line.split()[-1] == "mail2"
    assert last == "no answer from mail2: what only that has seen is missing"
    assert ctl_history.text({**value, "messages": []}, args, PIPE)[-1] == last


def test_what_goes_to_another_command_is_of_this_machine_alone() -> None:
    """Queue ids of another machine's Postfix are never handed to this one's."""
    assert question("anna", n=1, since=None, verdict=None, local=True).path == "/history?account=anna&local=1&n=1"
    assert question("anna", n=1, since=None, verdict=None).path == "/history?account=anna&n=1"
