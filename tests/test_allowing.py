"""Allowances in a real daemon: ordered with policyctl, logged, ended by the clock, and there again after kill -9."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.asking import seeded
from tests.daemon import PATIENCE, Policyd
from tests.durability import ask_control
from tests.test_control import call, get, post
from tests.waiting import until

ANNA, BERT = "anna@example.com", "bert@example.com"
CONFIG = """
database: {database}
limits:
  recipients-per-message: {{count: recipients, per: message, max: 100, action: REJECT}}
  messages: {{count: messages, per: 30m, max: 2, action: "REJECT 5.7.1 more than {{max}} in {{per}}"{lock}}}
"""
WITHOUT = """
database: {database}
limits:
  recipients-per-message: {{count: recipients, per: message, max: 100, action: REJECT}}
  other: {{count: messages, per: 30m, max: 50, action: REJECT}}
"""
GIVEN = {"account", "limit", "counts", "max", "since", "until", "by", "uid", "reason"}
HOSTILE = ["-x", "a\nb", "a\0b", "'\"; drop", "\ud800", "\u202egnp", "x" * 10_000, "%s {max}", " "]


def config(database: Path | str = "none", *, text: str = CONFIG, lock: str = "") -> str:
    """Return a config."""
    return text.format(database=database, lock=lock)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Policyd]:
    """Run one daemon for the tests that do not stop it; each has accounts of its own."""
    with Policyd(config()) as running:
        running.message("somebody@example.com")
        yield running


def answers(daemon: Policyd, account: str, number: int) -> list[str]:
    """Send messages, and return the answers at DATA."""
    return [daemon.message(account)[-1].split(" ")[0] for _ in range(number)]


def done(daemon: Policyd, *arguments: str) -> str:
    """Run policyctl, which is to succeed, and return what it says."""
    finished = daemon.ctl(*arguments)
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout


def logged(daemon: Policyd, word: str) -> list[str]:
    """Return the lines of an event."""
    return [line for line in daemon.stderr.splitlines() if f" NOTICE {word} " in line]


def allowance(daemon: Policyd, account: str) -> Any:
    """Return what status shows of an account's limit of messages."""
    (found,) = [limit for limit in get(daemon, f"/status?account={account}")["limits"] if limit["name"] == "messages"]
    return found


def test_an_allowance_lets_more_pass_and_then_no_more(daemon: Policyd) -> None:
    """From the order on, over all connections; when it is taken back, what was sent stays counted."""
    assert answers(daemon, ANNA, 3) == ["DUNNO", "DUNNO", "REJECT"]
    out = done(daemon, "allow", "Anna@Example.com", "messages", "4", "--for", "24h", "--reason", "a mailing")
    assert out.splitlines()[:2] == [
        "anna@example.com may send 4 messages in 30m",
        "  limit  messages, 2 without the allowance",
    ]
    assert answers(daemon, ANNA, 3) == ["DUNNO", "DUNNO", "REJECT"]
    shown = done(daemon, "status", ANNA)
    assert "  messages                4 of 4 in 30m       100%" in shown
    assert "\nallowances\n  messages  4 until " in shown
    assert daemon.message(ANNA)[-1] == "REJECT 5.7.1 more than 4 in 30m"
    assert done(daemon, "disallow", ANNA).startswith(
        "anna@example.com: messages is back to 2 messages in 30m; it was 4"
    )
    assert daemon.message(ANNA)[-1] == "REJECT 5.7.1 more than 2 in 30m"
    assert allowance(daemon, ANNA)["count"] == 4


def test_what_is_answered_has_its_documented_shape(daemon: Policyd) -> None:
    """The keys are those of the documentation."""
    answer = post(daemon, "/allow", account="Shape@example.com", limit="messages", max=9, **{"for": "2h"})
    assert set(answer) == GIVEN | {"per", "usual_max", "before", "lock"}
    assert (answer["account"], answer["max"], answer["usual_max"], answer["per"]) == ("shape@example.com", 9, 2, "30m")
    assert (answer["reason"], answer["before"], answer["lock"]) == (None, None, None)
    ends = datetime.fromisoformat(answer["until"])
    assert ends - datetime.fromisoformat(answer["since"]) == timedelta(hours=2)
    shown = allowance(daemon, "shape@example.com")
    assert set(shown["allowance"]) == {"since", "until", "by", "uid", "reason", "usual_max"}
    (found,) = [each for each in get(daemon, "/allowances") if each["account"] == "shape@example.com"]
    assert set(found) == GIVEN | {"in_force"}
    post(daemon, "/lock", account="shape@example.com", reason="x")
    again = post(
        daemon, "/allow", account="shape@example.com", limit="messages", max="unlimited", until=answer["until"]
    )
    assert set(again["before"]) == GIVEN
    assert (again["max"], again["lock"]["reason"], again["until"]) == (None, "x", answer["until"])
    answer = post(daemon, "/disallow", account="SHAPE@example.com")
    assert set(answer) == {"account", "disallowed"}
    assert [set(each) for each in answer["disallowed"]] == [GIVEN | {"per", "usual_max"}]
    assert post(daemon, "/disallow", account="shape@example.com", limit="messages")["disallowed"] == []


NEXT_YEAR = (datetime.now(timezone.utc) + timedelta(days=300)).isoformat()


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"account": None}, "account is missing"),
        ({"limit": ""}, "limit is missing"),
        ({"limit": "mesages"}, "limit: there is no limit of this name, did you mean 'messages'?"),
        ({"limit": "\x1b[2J"}, "limit: there is no limit of this name, want one of recipients-per-message, messages"),
        ({"max": None}, "max: want a whole number from 1 to 1000000000000, or unlimited"),
        ({"max": 0}, "max: want a whole number from 1 to 1000000000000, or unlimited"),
        ({"max": 1.5}, "max: want a whole number from 1 to 1000000000000, or unlimited"),
        ({"max": True}, "max: want a whole number from 1 to 1000000000000, or unlimited"),
        ({"max": 10**12 + 1}, "max: want a whole number from 1 to 1000000000000, or unlimited"),
        ({"limit": "recipients-per-message"}, "max: want at least 100 recipients per message (RFC 5321 4.5.3.1.8)"),
        ({"for": None}, "want either for or until; what is permanent is an override in the config"),
        ({"until": NEXT_YEAR}, "want either for or until; what is permanent is an override in the config"),
        ({"for": "soon"}, "for: want a duration such as 45s, 30m, 1h30m or 7d"),
        ({"for": [1]}, "for: want a duration such as 45s, 30m, 1h30m or 7d"),
        ({"for": "367d"}, "for: want at most 366d; what holds for longer belongs in the config, as an override"),
        (
            {"for": None, "until": "9999-12-31T23:59:59+00:00"},
            "until: want at most 366d; what holds for longer belongs in the config, as an override",
        ),
        (
            {"for": None, "until": "2026-12-01 18:00"},
            "until: want a date with its offset such as 2026-12-01T17:00:00+00:00",
        ),
        ({"for": None, "until": 5}, "until: want a date with its offset such as 2026-12-01T17:00:00+00:00"),
        (
            {"for": None, "until": "0001-01-01T00:00:00+23:59"},
            "until: want a date with its offset such as 2026-12-01T17:00:00+00:00",
        ),
        ({"reason": 5}, "reason is missing"),
        ({"reason": "x" * 301}, "reason is longer than 300 characters"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(daemon: Policyd, values: dict[str, Any], error: str) -> None:
    """It is said what was wanted, and nothing is changed."""
    order = {"account": "wrong@example.com", "limit": "messages", "max": 5, "for": "1h"}
    assert call(daemon, "POST", "/allow", {**order, **values}) == (400, {"error": error})
    assert allowance(daemon, "wrong@example.com")["allowance"] is None


def test_a_date_that_has_passed_is_refused(daemon: Policyd) -> None:
    """With what the time is now."""
    order = {"account": "wrong@example.com", "limit": "messages", "max": 5, "until": "2020-01-01T00:00:00Z"}
    status, answer = call(daemon, "POST", "/allow", order)
    assert status == 400
    assert answer["error"].startswith("until: 2020-01-01T00:00:00+00:00 is in the past, it is 20")


def test_to_disallow_a_limit_that_was_never_one_is_refused(daemon: Policyd) -> None:
    """A slip of the finger is told."""
    finished = daemon.ctl("disallow", ANNA, "mesages")
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr == "policyctl: limit: there is no limit of this name, did you mean 'messages'?\n"
    assert (
        done(daemon, "disallow", "nobody@example.com", "messages")
        == "nobody@example.com had no allowance for messages\n"
    )


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_an_account_and_a_reason_may_be_called_anything(daemon: Policyd, name: str) -> None:
    """They come back as they are, and are one line in the log."""
    before = len(daemon.stderr.splitlines())
    reason = name[:300]
    answer = post(daemon, "/allow", account=name, limit="messages", max=7, reason=reason, **{"for": "1h"})
    assert (answer["account"], answer["reason"]) == (name, reason.strip() or None)
    assert name in [each["account"] for each in get(daemon, "/allowances")]
    assert daemon.ctl("allowances").returncode == 0
    assert len(post(daemon, "/disallow", account=name)["disallowed"]) == 1
    assert len(daemon.stderr.splitlines()) == before + 2


def test_an_allowance_ends_by_itself(daemon: Policyd) -> None:
    """Within about a second, with a line in the log."""
    done(daemon, "allow", BERT, "messages", "unlimited", "--for", "1s", "--reason", "a try")
    until(lambda: logged(daemon, "allowance-over"))
    (line,) = logged(daemon, "allowance-over")
    assert f"allowance-over account={BERT} by=" in line
    assert " limit=messages max=unlimited until=20" in line
    assert line.endswith(' reason="a try"')
    assert allowance(daemon, BERT)["max"] == 2
    assert BERT not in done(daemon, "allowances")


def test_kill_9_right_after_the_answer_loses_no_allowance(tmp_path: Path) -> None:
    """It is on the disk before the answer leaves; so is that it was taken back."""
    with Policyd(config(tmp_path / "policyd.sqlite", lock=", lock: until-unlocked")) as daemon:
        for number in range(5):
            account = f"user{number}"
            post(daemon, "/allow", account=account, limit="messages", max=5 + number, **{"for": "1h"})
            daemon.kill()
            daemon.start()
            assert allowance(daemon, account)["max"] == 5 + number
        assert len(get(daemon, "/allowances")) == 5
        post(daemon, "/disallow", account="user1")
        daemon.kill()
        daemon.start()
        assert (allowance(daemon, "user1")["max"], allowance(daemon, "user2")["max"]) == (2, 7)
        assert answers(daemon, "user0", 5) == ["DUNNO"] * 5
        daemon.restart()
        assert [each["account"] for each in get(daemon, "/allowances")] == ["user0", "user2", "user3", "user4"]
        assert allowance(daemon, "user0")["count"] == 5
        assert get(daemon, "/status?account=user0")["lock"] is None


def test_kill_9_at_any_moment_loses_no_allowance_that_was_told(tmp_path: Path) -> None:
    """What was answered holds; what was being done when the daemon was killed may be either."""
    chance, told, doubtful = seeded(1), dict[str, int](), set[str]()

    def order(daemon: Policyd) -> None:
        with contextlib.suppress(ConnectionError, http.client.HTTPException, FileNotFoundError):
            for most in itertools.count(1):
                name = f"user{chance.randrange(20)}"
                doubtful.add(name)
                if chance.random() < 0.3:
                    ask_control(daemon, "POST", "/disallow", account=name)
                    told.pop(name, None)
                else:
                    ask_control(daemon, "POST", "/allow", account=name, limit="messages", max=most, **{"for": "1h"})
                    told[name] = most
                doubtful.discard(name)

    with Policyd(config(tmp_path / "policyd.sqlite")) as running:
        for _ in range(5):
            at_work = threading.Thread(target=order, args=(running,))
            at_work.start()
            until(lambda: doubtful or told)
            time.sleep(chance.uniform(0.0, 0.3))  # the random moment itself: nothing is waited for
            running.kill()
            at_work.join(PATIENCE)
            assert not at_work.is_alive()
            running.start()
            found = {each["account"]: each["max"] for each in get(running, "/allowances")}
            assert found.keys() - doubtful == told.keys() - doubtful
            assert all(found[name] == most for name, most in told.items() if name not in doubtful)
            told.clear()
            told.update(found)
            doubtful.clear()
        assert "database-" not in running.stderr


def test_those_that_end_while_the_daemon_is_down_are_over_when_it_is_back(tmp_path: Path) -> None:
    """However many, a few at a time, and each has its line in the log."""
    path = tmp_path / "policyd.sqlite"
    many = {f"many{number}" for number in range(220)}
    with Policyd(config(path)) as daemon:
        for name in many:
            post(daemon, "/allow", account=name, limit="messages", max=5, until=NEXT_YEAR)
        post(daemon, "/allow", account=ANNA, limit="messages", max=5, until=NEXT_YEAR)
        daemon.stop()
        with contextlib.closing(sqlite3.connect(path)) as stored:
            stored.execute("UPDATE allowances SET until = since + 1e-3 WHERE account != ?", (ANNA,))
            stored.commit()
        daemon.start()
        until(lambda: len(get(daemon, "/allowances")) == 1)
        assert {line.split("account=")[1].split()[0] for line in logged(daemon, "allowance-over")} == many
        assert [allowance(daemon, name)["max"] for name in ("many7", ANNA)] == [2, 5]
        daemon.restart()
        assert len(logged(daemon, "allowance-over")) == len(many)


def test_a_reload_takes_the_limit_and_gives_it_back() -> None:
    """Meanwhile the allowance is shown as one that has no limit."""
    with Policyd(config()) as daemon:
        done(daemon, "allow", ANNA, "messages", "4", "--for", "1h")
        assert answers(daemon, ANNA, 3) == ["DUNNO"] * 3
        daemon.reload(config(text=WITHOUT))
        assert "messages (no such limit now)" in done(daemon, "allowances")
        assert [each["in_force"] for each in json.loads(done(daemon, "allowances", "--json"))] == [False]
        assert [limit["allowance"] for limit in get(daemon, f"/status?account={ANNA}")["limits"]] == [None, None]
        daemon.reload(config())
        assert allowance(daemon, ANNA)["max"] == 4
        daemon.reload(config(text=WITHOUT))
        assert done(daemon, "disallow", ANNA).startswith("anna@example.com: messages is no limit now; it was 4 until")


def test_a_locked_account_stays_locked_and_then_goes_by_the_allowance() -> None:
    """The answer says so, and how to unlock it."""
    with Policyd(config(lock=", lock: until-unlocked")) as daemon:
        assert answers(daemon, ANNA, 3) == ["DUNNO", "DUNNO", "REJECT"]
        out = done(daemon, "allow", ANNA, "messages", "3", "--for", "1h")
        assert (
            f"{ANNA} is LOCKED all the same: more than 2 messages in 30m\n  to unlock  policyctl unlock {ANNA}\n" in out
        )
        assert answers(daemon, ANNA, 1) == ["REJECT"]
        done(daemon, "unlock", ANNA)
        assert answers(daemon, ANNA, 4) == ["DUNNO"] * 3 + ["REJECT"]
