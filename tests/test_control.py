"""The control socket of a real daemon: the calls, their shapes, and what becomes of callers who get it wrong."""

from __future__ import annotations

import http.client
import json
import os
import pwd
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection

from policyd import __version__
from policyd.calls import Api
from policyd.control import CLOSING, MAX_CONNECTIONS, TIMEOUT, control_site
from tests.asking import Mail
from tests.daemon import PATIENCE, Policyd, request
from tests.waiting import until

CALLER = pwd.getpwuid(os.geteuid()).pw_name

CONFIG = """
limits:
  recipients-per-message: {count: recipients, per: message, max: 100, action: REJECT}
  messages: {count: messages, per: 30m, max: 3, action: "REJECT 5.7.1 {account} is locked", lock: until-unlocked}
overrides:
  - {accounts: ["free@*"], limits: {messages: unlimited}}
"""

STATUS = {
    *("version", "started", "uptime", "accounts", "locked", "connections", "requests", "answers"),
    *("requests_without_account", "protocol_errors", "internal_errors", "hooks", "store", "problems"),
    *("listen", "attributes", "observe", "limits"),
}
ACCOUNT = {"account", "seen", "lock", "limits", "refused", "held", "attempts_while_locked"}
BESIDES = {"warned", "observed", "clients", "evidence"}
LOCK = {"since", "until", "limit", "counts", "count", "by", "reason", "action"}
NOTHING = {"resets_in": None, "allowance": None}
LIMIT = {"name", "counts", "count", "max", "per", "resets_in", "allowance"}


class Control(http.client.HTTPConnection):
    """HTTP over the control socket."""

    def __init__(self, daemon: Policyd) -> None:
        super().__init__("policyd", timeout=PATIENCE)
        self._path = str(daemon.control)

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


def call(daemon: Policyd, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Make one call, with a value that becomes JSON or with bytes, and return its status and answer."""
    control = Control(daemon)
    try:
        control.request(method, path, body if body is None or isinstance(body, bytes) else json.dumps(body))
        response = control.getresponse()
        assert response.headers["Content-Type"] == "application/json"
        return response.status, json.loads(response.read())
    finally:
        control.close()


def get(daemon: Policyd, path: str) -> Any:
    """Return the answer to a question that has one."""
    status, answer = call(daemon, "GET", path)
    assert status == 200, answer
    return answer


def post(daemon: Policyd, path: str, **values: object) -> Any:
    """Return the answer to an order that is carried out."""
    status, answer = call(daemon, "POST", path, values)
    assert status == 200, answer
    return answer


def lock_of(daemon: Policyd, account: str) -> Any:
    """Return an account's lock."""
    return get(daemon, f"/status?account={account}")["lock"]


def raw(daemon: Policyd, data: bytes) -> bytes:
    """Send bytes, and return what comes back before the daemon hangs up; it has to."""
    received = b""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(daemon.control))
        try:
            client.sendall(data)
            while chunk := client.recv(65536):
                received += chunk
        except ConnectionError:
            pass
    return received


@pytest.fixture(scope="module")
def daemon() -> Iterator[Policyd]:
    """Run one daemon for all tests; each has accounts of its own."""
    with Policyd(CONFIG) as running:
        running.message("somebody@example.com")
        yield running


@pytest.fixture(autouse=True)
def alive(daemon: Policyd) -> Iterator[None]:
    """Find the daemon answering Postfix after each test, whatever was done to its control socket."""
    yield
    assert daemon.ask(sasl_username="") == "DUNNO"


def test_the_socket_is_for_owner_and_group(daemon: Policyd) -> None:
    """Its mode is 0660."""
    assert stat.S_IMODE(daemon.control.stat().st_mode) == 0o660


def test_status_has_its_documented_shape(daemon: Policyd) -> None:
    """The keys are those of the documentation, and the numbers are numbers."""
    status = get(daemon, "/status")
    assert set(status) == STATUS
    assert status["version"] == __version__
    assert status["store"] == "memory"
    assert status["problems"] == []
    assert status["hooks"] == {"RCPT": True, "DATA": True, "END-OF-MESSAGE": False}
    assert status["internal_errors"] == 0
    assert abs(datetime.now(timezone.utc) - datetime.fromisoformat(status["started"])) < timedelta(hours=1)
    assert status["uptime"] < 3600


def test_status_tells_what_a_check_of_the_wiring_wants_to_know(daemon: Policyd) -> None:
    """Where Postfix can ask, how accounts are known, what is in force, and how often nobody was named."""
    before = get(daemon, "/status")["requests_without_account"]
    daemon.ask(sasl_username="")
    status = get(daemon, "/status")
    assert status["requests_without_account"] == before + 1
    assert status["listen"] == [f"tcp:{daemon.port}:interface=127.0.0.1"]
    assert (status["attributes"], status["observe"]) == (["sasl_username"], False)
    per_message, messages = status["limits"]
    assert per_message == {
        "name": "recipients-per-message",
        "count": "recipients",
        "per": "message",
        "max": 100,
        "action": "REJECT",
        "observe": False,
    }
    assert (messages["per"], messages["max"]) == ("30m", 3)


def test_status_counts_requests_and_answers(daemon: Policyd) -> None:
    """Each request is counted by its state, and by what it was answered."""
    before = get(daemon, "/status")
    daemon.message("counted@example.com", recipients=3)
    daemon.ask(protocol_state="NONSENSE")
    after = get(daemon, "/status")
    assert after["requests"]["RCPT"] - before["requests"]["RCPT"] == 3
    assert after["requests"]["DATA"] - before["requests"]["DATA"] == 1
    assert after["requests"]["other"] - before["requests"].get("other", 0) == 1
    assert after["answers"]["DUNNO"] - before["answers"]["DUNNO"] == 5


def test_an_account_has_its_documented_shape(daemon: Policyd) -> None:
    """Limits per message have no count, and windows tell when the oldest event leaves."""
    daemon.message("shape@example.com", recipients=2)
    status = get(daemon, "/status?account=shape@example.com")
    assert set(status) == ACCOUNT | BESIDES
    message, window = status.pop("limits")
    assert 1700 < window.pop("resets_in") <= 1800
    assert window == {
        "name": "messages",
        "counts": "messages",
        "count": 1,
        "max": 3,
        "per": "30m",
        "allowance": None,
    }
    assert message == {
        "name": "recipients-per-message",
        "counts": "recipients",
        "count": None,
        "max": 100,
        "per": "message",
        **NOTHING,
    }
    (client,) = status.pop("clients")
    assert set(client) == {"address", "last"}
    assert client["address"] == "192.0.2.7"
    assert status == {
        "account": "shape@example.com",
        "seen": True,
        "lock": None,
        "evidence": None,
        "refused": 0,
        "held": 0,
        "warned": 0,
        "observed": 0,
        "attempts_while_locked": 0,
    }


def test_an_account_never_seen_has_the_same_shape(daemon: Policyd) -> None:
    """It is told apart by `seen`, and asking does not make it known."""
    for _ in range(2):
        status = get(daemon, "/status?account=Never@example.com")
        assert set(status) == ACCOUNT | BESIDES
        assert (status["account"], status["seen"], status["lock"]) == ("never@example.com", False, None)
        assert [(limit["count"], limit["resets_in"]) for limit in status["limits"]] == [(None, None), (0, None)]


def test_an_unlimited_account_has_no_maximum(daemon: Policyd) -> None:
    """Its count is shown all the same."""
    daemon.message("free@example.com")
    limit = get(daemon, "/status?account=free@example.com")["limits"][1]
    assert (limit["max"], limit["count"]) == (None, 1)


def test_a_lock_by_a_limit_has_its_documented_shape(daemon: Policyd) -> None:
    """It names the limit, the count that was reached, and why."""
    answers = [daemon.message("bot@example.com")[-1] for _ in range(5)]
    assert answers == ["DUNNO"] * 3 + ["REJECT 5.7.1 bot@example.com is locked"] * 2
    status = get(daemon, "/status?account=bot@example.com")
    lock = status["lock"]
    assert set(lock) == LOCK
    assert abs(datetime.now(timezone.utc) - datetime.fromisoformat(lock.pop("since"))) < timedelta(minutes=5)
    assert lock == {
        "until": None,
        "limit": "messages",
        "counts": "messages",
        "count": 4,
        "by": "policyd",
        "reason": "more than 3 messages in 30m",
        "action": "REJECT",
    }
    assert (status["refused"], status["attempts_while_locked"]) == (1, 2)


def test_the_list_of_locks_names_each_account(daemon: Policyd) -> None:
    """Each lock is as in the account's status, the latest first."""
    for name in ("list1@example.com", "list2@example.com"):
        post(daemon, "/lock", account=name, reason="x")
    locks = get(daemon, "/locked")
    assert [lock["account"] for lock in locks[:2]] == ["list2@example.com", "list1@example.com"]
    assert all(set(lock) == {"account"} | LOCK for lock in locks)
    assert {"account": "list1@example.com", **lock_of(daemon, "list1@example.com")} == locks[1]
    assert get(daemon, "/locked?n=1") == locks[:1]
    assert get(daemon, "/locked?n=0") == []
    assert call(daemon, "GET", "/locked?n=1.5") == (400, {"error": "n: want a whole number"})


def test_the_list_of_accounts_shows_who_sends_most(daemon: Policyd) -> None:
    """It has the documented keys, is sorted as asked, and is cut as asked."""
    for _ in range(3):
        daemon.message("most@example.com")
    accounts = get(daemon, "/accounts?n=1000")
    assert all(set(found) == {"account", "locked", "limits", "refused", "held"} for found in accounts)
    assert all(set(limit) == LIMIT for found in accounts for limit in found["limits"])
    counts = [found["limits"][1]["count"] for found in accounts]
    assert counts == sorted(counts, reverse=True)
    assert "most@example.com" in [found["account"] for found in get(daemon, "/accounts?over=80")]
    assert len(get(daemon, "/accounts?sort=refused&n=1")) == 1
    assert get(daemon, "/accounts?n=0") == []


def test_a_lock_by_hand_is_in_force_at_once(daemon: Policyd) -> None:
    """It refuses with its reason, names its author, and concerns the account however that is written."""
    lock = post(daemon, "/lock", account="Hand@Example.COM", reason="phished")
    assert set(lock) == {"account"} | LOCK
    since = lock.pop("since")
    assert since
    assert lock == {
        "account": "hand@example.com",
        "until": None,
        "limit": None,
        "counts": None,
        "count": None,
        "by": CALLER,
        "reason": "phished",
        "action": "REJECT",
    }
    refusal = "REJECT 5.7.1 Account hand@example.com is locked: phished"
    for state in ("MAIL", "RCPT", "DATA", "END-OF-MESSAGE"):
        assert daemon.ask(protocol_state=state, sasl_username="hAnD@example.com") == refusal
    assert f"lock account=hand@example.com by={CALLER} uid={os.getuid()} reason=phished" in daemon.stderr


def test_who_did_what_to_the_queue_is_logged(daemon: Policyd) -> None:
    """In one line, whatever the account is called; who it was is known from the socket."""
    order = {"order": "delete", "messages": 3, "recipients": 150}
    for account, written in (("QUEUE@example.com", "queue@example.com"), ("x\nlock by=z", '"x\\nlock by=z"')):
        told = post(daemon, "/queue-order", account=account, by="policyd", uid=1, **order)
        assert told == {"account": account.lower(), **order}
        line = f"queue account={written} order=delete messages=3 recipients=150 by={CALLER} uid={os.getuid()}"
        assert line in [line.partition(" NOTICE ")[2] for line in daemon.stderr.splitlines()]


def test_the_author_of_a_lock_cannot_be_claimed(daemon: Policyd) -> None:
    """Who asks is known from the socket, whatever the body says."""
    assert post(daemon, "/lock", account="claim@example.com", reason="x", by="policyd")["by"] == CALLER


def test_a_lock_may_hold_instead_of_refuse(daemon: Policyd) -> None:
    """The message is held at DATA, where its queue id is known."""
    assert post(daemon, "/lock", account="held@example.com", reason="look", hold=True)["action"] == "HOLD"
    assert daemon.message("held@example.com") == ["DUNNO", "HOLD Account held@example.com is locked: look"]
    assert post(daemon, "/unlock", accounts=["held@example.com"])["held"] == ["held@example.com"]


def test_an_account_is_freed_and_its_windows_start_anew(daemon: Policyd) -> None:
    """Upper case or not; one that is free already, or unknown, is no error."""
    for _ in range(4):
        daemon.message("unlock@example.com")
    names = ["UNLOCK@example.com", "unknown@example.com", "unlock@example.com"]
    assert post(daemon, "/unlock", accounts=names) == {
        "unlocked": ["unlock@example.com"],
        "free": ["unknown@example.com", "unlock@example.com"],
        "held": [],
    }
    status = get(daemon, "/status?account=unlock@example.com")
    assert (status["lock"], status["limits"][1]["count"]) == (None, 0)
    assert [daemon.message("unlock@example.com")[-1] for _ in range(3)] == ["DUNNO"] * 3
    assert f"unlock account=unlock@example.com by={CALLER}" in daemon.stderr


def test_counts_are_forgotten_on_demand(daemon: Policyd) -> None:
    """Upper case or not; an unknown account is no error; a lock stays."""
    daemon.message("reset@example.com")
    assert post(daemon, "/reset", account="RESET@example.com") == {"account": "reset@example.com", "seen": True}
    assert daemon.counts("reset@example.com")["messages"] == 0
    assert post(daemon, "/reset", account="nobody@example.com") == {"account": "nobody@example.com", "seen": False}
    post(daemon, "/lock", account="reset@example.com", reason="x")
    post(daemon, "/reset", account="reset@example.com")
    assert lock_of(daemon, "reset@example.com")["reason"] == "x"


def test_a_lock_for_some_time_tells_until_when(daemon: Policyd) -> None:
    """Its end is wall time."""
    lock = post(daemon, "/lock", account="until@example.com", reason="x", **{"for": "2h"})
    lasts = datetime.fromisoformat(lock["until"]) - datetime.fromisoformat(lock["since"])
    assert abs(lasts - timedelta(hours=2)) <= timedelta(seconds=1)


def test_a_lock_ends_by_itself(daemon: Policyd) -> None:
    """When its time is over the account is free, and the log says so though nobody asked."""
    post(daemon, "/lock", account="short@example.com", reason="x", **{"for": "1s"})
    assert daemon.ask(sasl_username="short@example.com").startswith("REJECT")
    until(lambda: "unlock account=short@example.com by=policyd attempts=1" in daemon.stderr)
    assert lock_of(daemon, "short@example.com") is None
    assert daemon.message("short@example.com") == ["DUNNO", "DUNNO"]


def test_a_lock_in_place_of_a_lock_counts(daemon: Policyd) -> None:
    """The later one holds, and there is one."""
    post(daemon, "/lock", account="twice@example.com", reason="first", **{"for": "1h"})
    post(daemon, "/lock", account="twice@example.com", reason="second")
    (lock,) = [lock for lock in get(daemon, "/locked") if lock["account"] == "twice@example.com"]
    assert (lock["reason"], lock["until"]) == ("second", None)


def test_a_reload_says_what_changed(daemon: Policyd) -> None:
    """And what takes a restart; nothing is lost by it."""
    post(daemon, "/lock", account="keep@example.com", reason="x")
    assert post(daemon, "/reload") == {"changed": [], "needs_restart": []}
    daemon.write_config(CONFIG.replace("max: 3", "max: 5") + "database: /var/lib/x.sqlite\n")
    answer = post(daemon, "/reload")
    assert answer["needs_restart"] == ["database"]
    assert "limits.messages.max: 3 -> 5" in answer["changed"]
    assert get(daemon, "/status?account=x")["limits"][1]["max"] == 5
    daemon.write_config(CONFIG)
    assert post(daemon, "/reload")["changed"]
    assert lock_of(daemon, "keep@example.com")["reason"] == "x"


def test_a_reload_tells_what_takes_a_restart_until_there_was_one(daemon: Policyd) -> None:
    """What counts is what the daemon was started with, not the config that was read last."""
    daemon.write_config(CONFIG + "database: /var/lib/x.sqlite\n")
    assert [post(daemon, "/reload")["needs_restart"] for _ in range(2)] == [["database"]] * 2
    told = "database has changed in the config, and takes a restart to change"
    assert told in get(daemon, "/status")["problems"]
    daemon.write_config(CONFIG)
    assert post(daemon, "/reload")["needs_restart"] == []
    assert told not in get(daemon, "/status")["problems"]


def test_a_bad_config_is_not_loaded(daemon: Policyd) -> None:
    """All its errors are told, the old one stays in force, and status shows the problem until it is mended."""
    daemon.write_config(CONFIG.replace("max: 3", "max: three") + "oberve: true\n")
    status, answer = call(daemon, "POST", "/reload")
    assert status == 422
    assert answer["error"] == "the config has errors; the old one stays in force"
    file = daemon.config_file
    assert answer["problems"] == [
        f"{file}:4: limits.messages.max: want a whole number above 0, got 'three'",
        f"{file}:7: oberve: unknown key, did you mean 'observe'?",
    ]
    (problem,) = get(daemon, "/status")["problems"]
    assert answer["problems"][0] in problem
    assert get(daemon, "/status?account=x")["limits"][1]["max"] == 3
    daemon.write_config(CONFIG)
    post(daemon, "/reload")
    assert get(daemon, "/status")["problems"] == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in ("/", "/nope", "/status/", "/lock", "/unlock", "/reset", "/reload", "//status")),
        *(("POST", path) for path in ("/", "/status", "/accounts", "/locked")),
        *((method, "/status") for method in ("PUT", "DELETE", "OPTIONS", "BREW")),
    ],
)
def test_a_call_that_there_is_not_is_not_found(daemon: Policyd, method: str, path: str) -> None:
    """Whatever the path or the method."""
    assert call(daemon, method, path) == (404, {"error": "there is no such call"})


ODD_ORDERS: tuple[object, ...] = (None, "", "HOLD", 5, ["hold"], {})
ODD_NUMBERS: tuple[object, ...] = (None, True, "5", 1.0, -1, 10**9 + 1, 10**400, [], {})


def wrong(error: str, path: str, *bodies: object) -> list[Any]:
    """Return rows of bodies that are all refused with the same error."""
    return [pytest.param(path, body, error, id=f"{path} {body!r}"[:50]) for body in bodies]


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        *wrong("the body is not JSON", "/lock", b"x", b"{", b"\xff", b"{}{}", b"[" * 60_000, b'{"a":' * 10_000),
        *wrong("the body is no JSON object", "/lock", [], "x", 5, True, b"null"),
        *wrong("account is missing", "/lock", {}, b"", {"account": 5}, {"account": ""}),
        *wrong("account is missing", "/lock", {"account": None}, {"account": ["a"]}, {"account": {}}),
        *wrong("account is longer than 65536 characters", "/lock", {"account": "x" * 65537, "reason": "y"}),
        *wrong("reason is missing", "/lock", {"account": "x"}, {"account": "x", "reason": ""}),
        *wrong("reason is missing", "/lock", {"account": "x", "reason": 5}),
        *wrong("reason is longer than 300 characters", "/lock", {"account": "x", "reason": "y" * 301}),
        *wrong("hold: want true or false", "/lock", *({"account": "x", "reason": "y", "hold": h} for h in (1, "no"))),
        *wrong(
            "for: want a duration such as 45s, 30m, 1h30m or 7d",
            "/lock",
            *({"account": "x", "reason": "y", "for": f} for f in ("", "5", "0s", "-1h", "1 h", "5x", "1h.")),
            *({"account": "x", "reason": "y", "for": n} for n in (5, True)),
        ),
        *wrong("accounts: want a list of names", "/unlock", {}, {"accounts": []}, {"accounts": "x"}),
        *wrong("accounts: want a list of names", "/unlock", {"accounts": [""]}, {"accounts": ["x", 5]}),
        *wrong("account is missing", "/queue-order", {"order": "hold", "messages": 1, "recipients": 1}),
        *wrong(
            "order: want one of hold, release, delete",
            "/queue-order",
            *({"account": "x", "order": o, "messages": 1, "recipients": 1} for o in ODD_ORDERS),
        ),
        *wrong(
            "messages: want a whole number from 0 to 1000000000",
            "/queue-order",
            *({"account": "x", "order": "hold", "messages": n, "recipients": 1} for n in ODD_NUMBERS),
        ),
        *wrong(
            "recipients: want a whole number from 0 to 1000000000",
            "/queue-order",
            *({"account": "x", "order": "hold", "messages": 1, "recipients": n} for n in ODD_NUMBERS),
        ),
        *wrong("account is missing", "/reset", {}, {"account": 5}, {"accounts": ["x"]}),
    ],
)
def test_a_wrong_order_is_refused_in_words(daemon: Policyd, path: str, body: object, error: str) -> None:
    """Nothing is done, and the answer says what was wrong."""
    body = b"null" if body is None else body
    assert call(daemon, "POST", path, body) == (400, {"error": error})
    assert lock_of(daemon, "x") is None


@pytest.mark.parametrize("duration", ["3661d", "999999999d", "999999999d" * 100])
def test_a_lock_that_would_outlive_the_calendar_is_refused(daemon: Policyd, duration: str) -> None:
    """Its end could not be written; whoever means for ever says nothing."""
    status, answer = call(daemon, "POST", "/lock", {"account": "x", "reason": "y", "for": duration})
    assert status == 400
    assert answer["error"].startswith("for: want")
    assert lock_of(daemon, "x") is None
    assert call(daemon, "GET", "/locked")[0] == 200


@pytest.mark.parametrize(
    ("query", "error"),
    [
        *((f"n={n}", "n: want a number from 0 to 100000") for n in ("-1", "x", "nan", "inf", "100001", "")[:5]),
        *((f"over={n}", "over: want a number from 0 to 1e+06") for n in ("x", "-1", "nan", "80%25")),
        *(
            (f"sort={word}", "sort: want one of messages, recipients, clients, senders, bytes, refused")
            for word in ("name", "Messages")
        ),
    ],
)
def test_a_wrong_question_is_refused_in_words(daemon: Policyd, query: str, error: str) -> None:
    """What is not a number or a known word is not guessed at."""
    assert call(daemon, "GET", f"/accounts?{query}") == (400, {"error": error})


@pytest.mark.parametrize(
    "account", ["a\nlock account=root", "a\u2028b", "\x1b[2j", "\ud800", "x" * 16384, "é" * 9000, " ", "ä€😀", "%"]
)
def test_a_strange_account_can_be_locked_and_freed(daemon: Policyd, account: str) -> None:
    """It is one line of the log, one line of the reply, and the same name in all answers."""
    lines = len(daemon.stderr.splitlines())
    assert post(daemon, "/lock", account=account, reason=f"<{account[:200]}>")["account"] == account
    assert account in [lock["account"] for lock in get(daemon, "/locked")]
    assert post(daemon, "/unlock", accounts=[account]) == {"unlocked": [account], "free": [], "held": []}
    assert len(daemon.stderr.split("\n")) == lines + 3


def http_request(line: str, *headers: str, body: bytes = b"") -> bytes:
    """Return an HTTP request as bytes."""
    return "\r\n".join((line, "Host: policyd", *headers, "", "")).encode() + body


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x00\xff\x16\x03\x01 garbage\r\n\r\n", id="garbage"),
        pytest.param(b"\r\n" * 1000 + b"\r\n\r\nx\r\n\r\n", id="empty lines"),
        pytest.param(http_request("GET /status HTTP/1.1", "X: " + "x" * 600_000), id="a huge header"),
        pytest.param(http_request("GET /status HTTP/1.1", *["X: x"] * 5000), id="many headers"),
        pytest.param(http_request("GET /" + "x" * 600_000 + " HTTP/1.1"), id="a huge path"),
        pytest.param(http_request("POST /lock HTTP/1.1", "Content-Length: x"), id="a length that is no number"),
        pytest.param(http_request("POST /lock HTTP/1.1", "Content-Length: -5"), id="a negative length"),
        pytest.param(http_request("POST /lock HTTP/1.1", "Content-Length: 999999999999"), id="a huge length"),
        pytest.param(http_request("POST /lock HTTP/1.1", "Content-Length: 1048577"), id="just too large a length"),
        pytest.param(http_request("POST /lock HTTP/1.1", "Transfer-Encoding: gzip"), id="an unknown encoding"),
        pytest.param(
            http_request("POST /lock HTTP/1.1", "Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\n\r\n"),
            id="a body without a length",
        ),
        pytest.param(
            http_request("POST /lock HTTP/1.1", "Content-Length: 2000000", body=b"{" + b" " * 1_999_998 + b"}"),
            id="a huge body",
        ),
        pytest.param(
            http_request(
                "POST /lock HTTP/1.1",
                *("Content-Type: multipart/form-data; boundary=x", "Content-Length: 4", "Connection: close"),
                body=b"--x-",
            ),
            id="a form",
        ),
    ],
)
def test_what_is_no_http_is_refused_or_hung_up_on(daemon: Policyd, data: bytes) -> None:
    """No such caller gets anything done, or keeps the daemon waiting."""
    received = raw(daemon, data)
    assert received == b"" or received.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
    assert b" 200 " not in received.split(b"\r\n")[0]


TOO_LONG = "the body is longer than 1048576 bytes"
CHUNKED = b'31\r\n{"account": "chunked@example.com", "reason": "x"}\r\n0\r\n\r\n'


@pytest.mark.parametrize(
    ("head", "body", "status", "why"),
    [
        ("Content-Length: 1048577", b"", b"413 Content Too Large", TOO_LONG),
        ("Content-Length: 1048577\r\nExpect: 100-continue", b"", b"413 Content Too Large", TOO_LONG),
        ("Transfer-Encoding: chunked", CHUNKED, b"411 Length Required", "the length of the body is not said"),
    ],
    ids=["too large", "too large, and asked for first", "of unknown length"],
)
def test_a_body_without_bounds_is_refused(daemon: Policyd, head: str, body: bytes, status: bytes, why: str) -> None:
    """The caller is told why as JSON and hung up on, and what the body asks for is not done."""
    headers, _, content = raw(daemon, http_request("POST /lock HTTP/1.1", head, body=body)).partition(b"\r\n\r\n")
    assert headers.split(b"\r\n")[0] == b"HTTP/1.1 " + status
    assert b"Connection: close" in headers.split(b"\r\n")
    assert json.loads(content) == {"error": why}
    assert lock_of(daemon, "chunked@example.com") is None


def test_a_large_body_within_the_maximum_is_read(daemon: Policyd) -> None:
    """64 KiB are a body like any other."""
    names = [f"{n:0100}" for n in range(600)]
    assert post(daemon, "/unlock", accounts=names) == {"unlocked": [], "free": names, "held": []}


def test_slow_callers_keep_nobody_waiting(daemon: Policyd) -> None:
    """Callers who stop in the middle of a request, or never begin one, do not disturb anybody else."""
    beginnings = (
        b"",
        b"GET",
        b"GET /status HTTP/1.1\r\nHost:",
        http_request("POST /lock HTTP/1.1", "Content-Length: 9"),
    )
    slow = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    try:
        for n, client in enumerate(slow):
            client.connect(str(daemon.control))
            client.sendall(beginnings[n % 4])
        assert get(daemon, "/status")["internal_errors"] == 0
        assert daemon.ask(sasl_username="") == "DUNNO"
    finally:
        for client in slow:
            client.close()


def test_callers_who_never_end_do_not_keep_the_desk_out(daemon: Policyd) -> None:
    """200 connections that trickle along leave no room but what is taken from the oldest of them."""
    with ExitStack() as stack:
        slow = []
        for n in range(200):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(PATIENCE)
            client.connect(str(daemon.control))
            client.sendall(b"GET /status HTTP/1.1\r\nHost:"[: n % 30])
            slow.append(client)
            if n % 40 == 39:
                assert daemon.ctl("status").returncode == 0
        assert get(daemon, "/status")["internal_errors"] == 0
        assert all(gone(client) for client in slow[: -2 * MAX_CONNECTIONS])
        slow[-1].sendall(b"x")
        assert len(os.listdir(f"/proc/{daemon.pid}/fd")) < 30 + MAX_CONNECTIONS + CLOSING


def test_a_caller_who_says_nothing_is_hung_up_on() -> None:
    """A silent connection ends after a minute; what it says in between is a sign of life."""
    clock = Clock()
    mail = Mail()
    site = control_site(Api(mail.desk, lambda *_: Deferred()), clock, lambda: None)
    channel, transport = site.buildProtocol(None), StringTransportWithDisconnection()
    transport.protocol = channel
    channel.makeConnection(transport)
    for line in (b"GET /status HTTP/1.1\r\n", b"Host: policyd\r\n"):
        clock.advance(TIMEOUT - 1)
        assert transport.connected
        channel.dataReceived(line)
    clock.advance(TIMEOUT)
    assert not transport.connected


def gone(client: socket.socket) -> bool:
    """Tell whether the daemon has hung up; it has to, sooner or later."""
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


def test_several_calls_share_a_connection(daemon: Policyd) -> None:
    """A dashboard need not connect for each of its questions."""
    control = Control(daemon)
    try:
        for path in ("/status", "/locked", "/nope", "/accounts"):
            control.request("GET", path)
            response = control.getresponse()
            assert json.loads(response.read()) is not None
            assert response.status == (404 if path == "/nope" else 200)
    finally:
        control.close()


def test_policy_requests_are_no_http(daemon: Policyd) -> None:
    """Postfix pointed at the wrong socket is hung up on once it says what is no HTTP header."""
    assert not raw(daemon, request() + b"\r\n\r\n").startswith(b"action=")
