"""policyctl history: the messages of one account, for people and for xargs."""

from __future__ import annotations

import argparse
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from policyd import ctl_history
from policyd.ctl_layout import Screen
from tests.control_socket import ControlSocket, line_of, listening, run, said
from tests.test_ctl_text import NOW, PIPE, VIENNA

HOSTILE = "\x1b]0;owned\x07\nroot\u202e\x00"

MESSAGE: dict[str, Any] = {
    "account": "anna@example.com",
    "began": "2026-11-23T03:12:40.120000+00:00",
    "at": "2026-11-23T03:12:41.513000+00:00",
    "queue_id": "4bCdEf1gHz",
    "client": "192.0.2.7",
    "sender": "anna@example.com",
    "recipients": 3,
    "size": 1234,
    "verdict": "passed",
    "action": "DUNNO",
    "limit": None,
    "locked": False,
}
REFUSED = {**MESSAGE, "at": "2026-11-23T03:10:00+00:00", "queue_id": "", "verdict": "refused", "size": 0, "sender": ""}
BY_LIMIT = {**REFUSED, "limit": "messages-per-hour"}
BY_LOCK = {**REFUSED, "limit": "messages-per-hour", "locked": True, "at": "2026-11-23T03:09:00+00:00"}


def history(*messages: dict[str, Any], more: bool = False) -> dict[str, tuple[int, Any]]:
    """Return what a daemon answers that has seen these messages, the newest first."""
    return {"/history": (200, {"messages": list(messages), "more": more})}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ControlSocket]:
    """Run a daemon whose history has three messages of Anna's."""
    with listening(tmp_path / "control.sock", history(MESSAGE, BY_LIMIT, BY_LOCK)) as server:
        yield server


@pytest.mark.parametrize(
    ("args", "asked"),
    [
        (["anna"], {"account": "anna", "n": "50"}),
        (["anna", "-n", "7"], {"account": "anna", "n": "7"}),
        (["a&n=1\n"], {"account": "a&n=1\n", "n": "50"}),
        (
            ["anna", "--since", "1h30m", "--verdict", "held"],
            {"account": "anna", "since": "5400", "verdict": "held", "n": "50"},
        ),
        (["anna", "-0"], {"account": "anna", "local": "1", "n": "100000"}),
        (["-0", "-n", "3", "--", "-x"], {"account": "-x", "local": "1", "n": "3"}),
    ],
)
def test_what_is_asked(daemon: ControlSocket, args: list[str], asked: dict[str, str]) -> None:
    """One question asks for what is shown; xargs gets all there is unless told otherwise."""
    assert run(daemon, "history", *args).returncode == 0
    ((method, path, body),) = daemon.requests
    assert (method, urlsplit(path).path, dict(parse_qsl(urlsplit(path).query)), body) == (
        "GET",
        "/history",
        asked,
        None,
    )


def test_the_newest_stands_last(daemon: ControlSocket) -> None:
    """The table reads like a log, in the zone of the computer; what is not known is a dash, no sender is <>."""
    assert said(run(daemon, "history", "anna@example.com")) == (
        0,
        "time                 queue id    verdict  recipients  size  client     sender            limit\n"
        "2026-11-23 04:09:00  -           refused           3     -  192.0.2.7  <>                locked\n"
        "2026-11-23 04:10:00  -           refused           3     -  192.0.2.7  <>                messages-per-hour\n"
        "2026-11-23 04:12:41  4bCdEf1gHz  passed            3  1234  192.0.2.7  anna@example.com  -\n",
        "",
    )


def test_that_there_were_more_is_said(daemon: ControlSocket) -> None:
    """Who sees a part is told that it is one, and how to see the rest."""
    daemon.answers = history(MESSAGE, more=True)
    assert run(daemon, "history", "anna").stdout.splitlines()[-1] == (
        "shown are the newest 1; there are older ones: -n shows more, --since others"
    )


def test_an_account_without_messages(daemon: ControlSocket) -> None:
    """That there is nothing is said with all that was asked for."""
    daemon.answers = history()
    assert run(daemon, "history", "a\nb", "--since", "2h", "--verdict", "held").stdout == (
        "the history has no messages that were held in the last 2h of a\\nb\n"
    )


def test_clients_are_picked_out_of_all_there_is(daemon: ControlSocket) -> None:
    """With --client and --except-client the newest of those are told, and -n means so many of them."""
    clients = ("192.0.2.7", "198.51.100.3", "192.0.2.8", "192.0.2.9", "")
    daemon.answers = history(*({**MESSAGE, "client": client, "queue_id": f"Q{client[-1:]}"} for client in clients))
    given = ("--client", "192.0.2.0/24", "--client", "198.51.100.3", "--except-client", "192.0.2.8")
    assert run(daemon, "history", "anna", "-0", *given).stdout == "Q7\0Q3\0Q9\0"
    assert dict(parse_qsl(urlsplit(daemon.requests[0][1]).query))["n"] == "100000"
    shown = run(daemon, "history", "anna", *given, "-n", "1").stdout.splitlines()
    assert ("Q7" in shown[1], shown[2:]) == (
        True,
        ["shown are the newest 1; there may be older ones: -n shows more, --since others"],
    )
    daemon.answers = history(MESSAGE, more=True)
    assert run(daemon, "history", "anna", "--client", "192.0.2.1", "--except-client", "::1").stdout == (
        "the history has no messages from 192.0.2.1 except ::1 of anna; "
        "older ones than the newest 100000 were not looked at\n"
    )
    daemon.answers = history()
    assert run(daemon, "history", "anna", "--except-client", "::1", "--except-client", "::2").stdout == (
        "the history has no messages from anywhere except ::1 or ::2 of anna\n"
    )


def test_bare_queue_ids_are_what_xargs_can_take(daemon: ControlSocket) -> None:
    """With -0 there is nothing but queue ids, each once; what is none is left out, and said on stderr."""
    ids = ["B1", "B1", "", "4bCdEf1gHz", "-d", "a b", "ALL\n", "x" * 65, "é", "٣"]
    daemon.answers = history(*({**MESSAGE, "queue_id": queue_id} for queue_id in ids), more=True)
    assert said(run(daemon, "history", "anna", "-0")) == (
        0,
        "B1\x004bCdEf1gHz\x00",
        "policyctl: left out 6 queue ids that Postfix cannot have given\n"
        "policyctl: these are of the newest 10 messages; there are older ones: see -n, --since\n",
    )


def test_no_queue_ids_are_no_output(daemon: ControlSocket) -> None:
    """Where there is nothing, xargs -0 gets nothing."""
    daemon.answers = history(REFUSED)
    assert said(run(daemon, "history", "anna", "-0")) == (0, "", "")


def test_json_is_the_daemons_own(daemon: ControlSocket) -> None:
    """With --json programs get the daemon's answer, whose shape docs/control.md tells."""
    assert '"queue_id": "4bCdEf1gHz"' in run(daemon, "history", "anna", "--json").stdout


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--json", "-0"], "policyctl: --json and -0 are two forms of the same answer: want one of them"),
        (["-n", "100001"], "policyctl: argument -n: want at most 100000, got 100001"),
    ],
)
def test_what_cannot_be_meant_is_not_asked(daemon: ControlSocket, args: list[str], complaint: str) -> None:
    """Wrong usage is one sentence, exit status 2, and no question to the daemon."""
    assert line_of(run(daemon, "history", "anna", *args), 2) == complaint
    assert daemon.requests == []


def test_where_no_history_is_kept(daemon: ControlSocket) -> None:
    """The daemon's own word is told, with exit status 1."""
    daemon.answers = {"/history": (400, {"error": "no history is kept: see history: in policyd.yaml"})}
    assert line_of(run(daemon, "history", "anna"), 1) == "policyctl: no history is kept: see history: in policyd.yaml"


@pytest.mark.parametrize("value", [[], {"messages": [MESSAGE]}, {"messages": [{}], "more": False}, {"messages": 3}])
def test_an_answer_of_another_shape_is_no_traceback(daemon: ControlSocket, value: Any) -> None:
    """A daemon of another version is named as what it may be."""
    daemon.answers = {"/history": (200, value)}
    assert "is policyd of the same version?" in line_of(run(daemon, "history", "anna"), 1)


def test_nothing_hostile_reaches_the_terminal() -> None:
    """Whatever a client sends as its sender, it can neither forge a line nor steer the terminal."""
    hostile = dict.fromkeys(("queue_id", "client", "sender", "verdict", "limit"), HOSTILE)
    args = argparse.Namespace(account=HOSTILE, since=None, verdict=None, client=None, except_client=None)
    value = {"messages": [{**MESSAGE, **hostile}], "more": False}
    lines = ctl_history.text(value, args, PIPE) + ctl_history.text({"messages": [], "more": False}, args, PIPE)
    assert len(lines) == 3
    assert [line for line in lines if any(unicodedata.category(c)[0] == "C" for c in line)] == []


def test_a_narrow_terminal_shortens_the_sender() -> None:
    """On a terminal only what can be long is cut: never a queue id, which is to be copied."""
    value = {"messages": [{**MESSAGE, "sender": "x" * 200}], "more": False}
    args = argparse.Namespace(account="anna", since=None, verdict=None, client=None, except_client=None)
    lines = ctl_history.text(value, args, Screen(NOW, VIENNA, width=100))
    assert {len(line) for line in lines} <= set(range(101))
    assert "4bCdEf1gHz" in lines[1]
