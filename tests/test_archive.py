"""The history of a real daemon: what policyctl's socket tells of it, across restarts, reloads and kills."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.daemon import Policyd
from tests.test_control import call, get
from tests.waiting import until

ANNA, BERT = "anna@example.com", "bert@example.com"

LOCKING = {
    "messages": {"count": "messages", "per": "30m", "max": 3, "action": "REJECT 5.7.1 locked", "lock": "until-unlocked"}
}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Return a config with a database, and a limit that locks."""
    return {"database": str(tmp_path / "policyd.sqlite"), "limits": LOCKING}


@pytest.fixture
def daemon(config: dict[str, Any]) -> Iterator[Policyd]:
    """Run policyd."""
    with Policyd(config) as running:
        yield running


def history(daemon: Policyd, **wanted: Any) -> Any:
    """Return the messages that the daemon tells of."""
    return ask(daemon, **wanted)["messages"]


def ask(daemon: Policyd, **wanted: Any) -> Any:
    """Return the whole answer."""
    return get(daemon, "/history?" + urlencode(wanted, doseq=True))


def refused(daemon: Policyd, **wanted: Any) -> str:
    """Return why the daemon does not answer."""
    status, answer = call(daemon, "GET", "/history?" + urlencode(wanted, doseq=True))
    assert status == 400
    return str(answer["error"])


def send(daemon: Policyd, number: int, account: str = ANNA, **attributes: Any) -> list[str]:
    """Send messages, and return the answers at DATA."""
    return [
        daemon.message(account, queue_id=f"4b{account[0]}{n}", sender=account, **attributes)[-1] for n in range(number)
    ]


def test_what_was_just_answered_is_in_the_history(daemon: Policyd) -> None:
    """Though it may not have been stored yet."""
    send(daemon, 2, size=77)
    send(daemon, 1, BERT)
    latest, first = history(daemon, account=ANNA)
    assert (latest["queue_id"], first["queue_id"]) == ("4ba1", "4ba0")
    assert set(first) == {
        "account",
        "began",
        "at",
        "queue_id",
        "client",
        "sender",
        "recipients",
        "size",
        "verdict",
        "action",
        "limit",
        "locked",
    }
    assert (first["account"], first["sender"], first["recipients"], first["size"]) == (ANNA, ANNA, 1, 77)
    assert first["began"] <= first["at"] <= latest["at"]


def test_an_account_is_asked_about_as_it_is_typed(daemon: Policyd) -> None:
    """As everywhere."""
    send(daemon, 1)
    assert len(history(daemon, account="Anna@Example.com")) == 1


def test_only_what_is_wanted_is_told(daemon: Policyd) -> None:
    """By verdict, by age, by queue id of whichever account, and so many at most."""
    send(daemon, 5)
    send(daemon, 1, BERT)
    assert [found["verdict"] for found in history(daemon, account=ANNA, verdict="refused")] == ["refused", "refused"]
    assert history(daemon, account=ANNA, since=0) == []
    assert len(history(daemon, account=ANNA, since=3600)) == 5
    assert [found["account"] for found in history(daemon, queue_id=["4ba0", "4bb0"])] == [BERT, ANNA]
    answer = ask(daemon, account=ANNA, n=2)
    assert (len(answer["messages"]), answer["more"]) == (2, True)
    assert ask(daemon, account=ANNA, n=5)["more"] is False


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({}, "account is missing"),
        ({"account": ANNA, "verdict": "lost"}, "verdict: want one of passed, held, refused, warned"),
        ({"account": ANNA, "n": "many"}, "n: want a number from 0 to 100000"),
        ({"account": ANNA, "n": 1.5}, "n: want a whole number"),
        ({"account": ANNA, "since": -1}, "since: want a number from 0 to 1e+09"),
        ({"queue_id": ["x"] * 101}, "queue_id: want at most 100 of them"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(daemon: Policyd, wanted: dict[str, Any], why: str) -> None:
    """In a sentence."""
    assert refused(daemon, **wanted) == why


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_the_history_outlives_the_daemon(daemon: Policyd, end: str) -> None:
    """However that ends, once it was told."""
    send(daemon, 3)
    before = history(daemon, account=ANNA)
    getattr(daemon, end)()
    daemon.start()
    assert history(daemon, account=ANNA) == before


def test_what_is_not_stored_yet_is_stored_at_the_end(daemon: Policyd) -> None:
    """Systemd stops the daemon a moment after a message."""
    send(daemon, 3)
    daemon.restart()
    assert len(history(daemon, account=ANNA)) == 3


def test_a_lock_says_what_led_to_it(daemon: Policyd) -> None:
    """Also after a restart."""
    send(daemon, 3, client_address="192.0.2.1")
    assert send(daemon, 1, client_address="192.0.2.2") == ["REJECT 5.7.1 locked"]
    until(lambda: daemon.ctl_json("status", ANNA)["evidence"]["messages"] == 3)
    evidence = daemon.ctl_json("status", ANNA)["evidence"]
    assert evidence["clients"] == [{"address": "192.0.2.1", "messages": 3}]
    assert evidence["senders"] == [{"sender": ANNA, "messages": 3}]
    assert evidence["queue_ids"] == ["4ba2", "4ba1", "4ba0"]
    assert evidence["first"] is not None
    daemon.restart()
    assert daemon.ctl_json("status", ANNA)["evidence"] == evidence


def test_a_lock_by_hand_says_what_the_account_did_of_late(daemon: Policyd) -> None:
    """There is no window; the last hour is looked at."""
    send(daemon, 2)
    assert daemon.ctl("lock", ANNA, "--reason", "phished").returncode == 0
    until(lambda: (daemon.ctl_json("status", ANNA)["evidence"] or {}).get("messages") == 2)


def test_without_a_database_there_is_no_history(config: dict[str, Any]) -> None:
    """It says so."""
    with Policyd({**config, "database": "none"}) as daemon:
        send(daemon, 4)
        assert refused(daemon, account=ANNA) == "no history is kept: there is no database"
        evidence = daemon.ctl_json("status", ANNA)["evidence"]
        assert (evidence["messages"], evidence["clients"]) == (0, [])
        assert evidence["first"] is not None


def test_a_reload_turns_the_history_off_and_on(daemon: Policyd, config: dict[str, Any]) -> None:
    """What was kept before is there again, unless it was removed meanwhile."""
    send(daemon, 1)
    assert len(history(daemon, account=ANNA)) == 1
    daemon.reload({**config, "history": 0})
    assert refused(daemon, account=ANNA) == "no history is kept: the config says `history: 0`"
    daemon.reload({**config, "history": "30d", "history_rows": 2000})
    send(daemon, 1)
    assert "4ba0" in [found["queue_id"] for found in history(daemon, account=ANNA)]


def test_a_hostile_account_has_a_history_of_its_own(daemon: Policyd) -> None:
    """Its name is a value, whatever is in it."""
    for name in ("x' or '1'='1", 'a"b\\c', "-x", "x" * 10_000):
        daemon.message(name, sender="<script>")
        (found,) = history(daemon, account=name)
        assert (found["account"], found["sender"]) == (name, "<script>")
