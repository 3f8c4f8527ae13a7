"""policyctl queue, against a real Postfix whose mail is held, deferred, requeued, and has queue ids of others."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.control_socket import ControlSocket, listening, run
from tests.history_socket import History
from tests.postfix import PrivatePostfix, queued, require_postfix
from tests.waiting import until

ANNA = "anna@example.com"
BERT = "bert@example.com"
HELD = "held@example.com"
"""A sender whose mail is held, whoever sends it."""
CLIENT = "127.0.0.1"

SETTINGS = {
    "enable_long_queue_ids": "no",
    "defer_transports": "discard",
    "sender_canonical_maps": "inline:{forged@bank.example=canon@bank.example}",
    "smtpd_data_restrictions": f"check_sender_access inline:{{{HELD}=HOLD}}",
}


class Desk:
    """A Postfix, a control socket with the history of what was sent through it, and policyctl."""

    def __init__(self, postfix: PrivatePostfix, socket: ControlSocket) -> None:
        self.postfix = postfix
        self.socket = socket
        self.history = History()
        socket.answers = self.history.answers

    def send(self, account: str = ANNA, sender: str = ANNA, *, told: str | None = None, recipients: int = 1) -> str:
        """Send a message, and tell of it as one of the account `told`; return its queue id."""
        with self.postfix.smtp(account) as session:
            session.mail(sender)
            began = time.time()
            for number in range(recipients):
                session.rcpt(f"r{number}@remote.example")
            at = time.time()
            queue_id = queued(session.data())
        assert queue_id
        self.history.add(told or account, queue_id, began, at, client=CLIENT, sender=sender)
        return queue_id

    def settle(self) -> None:
        """Wait until nothing is on its way any more."""
        until(lambda: all(message["queue_name"] in ("hold", "deferred") for message in self.postfix.queue()))

    def queues(self) -> dict[str, str]:
        """Return the name of the queue of each message."""
        return {message["queue_id"]: message["queue_name"] for message in self.postfix.queue()}

    def ask(self, *args: str, account: str = ANNA) -> dict[str, Any]:
        """Return what `policyctl queue --json` says."""
        config = str(self.postfix.folder / "conf")
        finished = run(self.socket, "queue", "--json", "--postfix-config", config, *args, account)
        assert (finished.returncode, finished.stderr) == (0, "")
        value: dict[str, Any] = json.loads(finished.stdout)
        return value

    def rename(self, queue_id: str, other: str) -> None:
        """Give a held message another queue id, also in its file: by chance an id comes again once in 2**20 times."""
        path = self.postfix.queue_directory / "hold" / queue_id
        path.write_bytes(path.read_bytes().replace(queue_id.encode(), other.encode()))
        path.rename(path.with_name(other))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """Run a Postfix that defers all mail, with a history of what is sent."""
    require_postfix()
    with PrivatePostfix(SETTINGS) as postfix, listening(tmp_path / "control.sock", {}) as socket:
        yield Desk(postfix, socket)


def ids(value: dict[str, Any], key: str = "messages") -> list[str]:
    """Return the queue ids of a part of the answer."""
    return [message["queue_id"] for message in value[key]]


def test_the_messages_of_an_account_are_found(desk: Desk) -> None:
    """Held, deferred, with a forged, a rewritten and a null sender: the account's messages, and nobody else's."""
    wanted = [desk.send(sender=sender) for sender in (ANNA, HELD, "forged@bank.example", "")]
    desk.send(BERT, sender=ANNA)
    desk.settle()
    value = desk.ask()
    assert ids(value) == wanted
    assert (value["account"], value["order"], value["dry_run"], value["more"]) == (ANNA, None, False, False)
    assert [message["queue"] for message in value["messages"]] == ["deferred", "hold", "deferred", "deferred"]
    assert [message["sender"] for message in value["messages"]] == [ANNA, HELD, "canon@bank.example", ""]
    first = value["messages"][0]
    assert {key: first[key] for key in ("client", "recipients", "verdict")} == {
        "client": CLIENT,
        "recipients": 1,
        "verdict": "passed",
    }
    assert datetime.fromisoformat(first["arrived"]) <= datetime.fromisoformat(first["began"])
    assert value["left_alone"] == []


def test_addresses_that_are_no_utf8_hide_nothing(desk: Desk) -> None:
    """Spam whose addresses are Latin-1 is found like any other, though Postfix shows its sender with question marks."""
    desk.postfix.reload({**SETTINGS, "smtputf8_enable": "no"})
    with desk.postfix.smtp(ANNA) as session:
        began = time.time()
        assert session.command(b"MAIL FROM:<j\xfcrgen@bank.example>").startswith("250")
        assert session.command(b"RCPT TO:<ren\xe9@remote.example>").startswith("250")
        queue_id = queued(session.data())
    desk.history.add(ANNA, queue_id, began, time.time(), client=CLIENT, sender="j\\xfcrgen@bank.example")
    desk.settle()
    (message,) = desk.ask("--delete", "--yes")["messages"]
    assert (message["queue_id"], message["sender"]) == (queue_id, "j?rgen@bank.example")
    assert desk.queues() == {}


def test_long_queue_ids_serve_as_well(tmp_path: Path) -> None:
    """With enable_long_queue_ids = yes nothing is different."""
    require_postfix()
    settings = {**SETTINGS, "enable_long_queue_ids": "yes"}
    with PrivatePostfix(settings) as postfix, listening(tmp_path / "control.sock", {}) as socket:
        desk = Desk(postfix, socket)
        wanted = [desk.send(), desk.send(sender=HELD)]
        desk.send(BERT)
        desk.settle()
        assert desk.ask("--delete", "--yes")["done"] == wanted


def test_a_message_arrives_when_its_sender_is_named(desk: Desk) -> None:
    """A client may be slow to name its recipients: Postfix counts from MAIL FROM, policyd is asked later."""
    with desk.postfix.smtp(ANNA) as session:
        arrived = int(time.time())
        session.mail(ANNA)
        until(lambda: time.time() >= arrived + 2)
        began = time.time()
        session.rcpt()
        queue_id = queued(session.data())
    desk.history.add(ANNA, queue_id, began, time.time(), client=CLIENT, sender=ANNA)
    desk.settle()
    (message,) = desk.ask()["messages"]
    assert 1 <= began - datetime.fromisoformat(message["arrived"]).timestamp() < began - arrived + 1


def test_an_id_that_had_another_message_before_is_no_proof(desk: Desk) -> None:
    """Anna's message is gone, and its id belongs to one of Bert's, with the sender of Anna's: it is left alone."""
    annas, berts = desk.send(sender=HELD), desk.send(BERT, sender=HELD)
    desk.settle()
    (desk.postfix.queue_directory / "hold" / annas).unlink()
    desk.rename(berts, annas)
    desk.history.forget(berts)
    for order in ("--release", "--delete"):
        value = desk.ask(order, "--yes")
        assert (ids(value), value["done"]) == ([], [])
    (left,) = value["left_alone"]
    assert (left["queue_id"], left["why"]) == (annas, "its queue file names another login than the history")
    assert desk.queues() == {annas: "hold"}


def test_an_id_of_another_account_at_the_same_time_is_ambiguous(desk: Desk) -> None:
    """Where the history has two messages that can be this one, none of them is touched, whoever asks."""
    queue_id = desk.send()
    desk.settle()
    message = desk.history.messages[0]
    desk.history.messages.append({**message, "account": BERT})
    for account in (ANNA, BERT):
        value = desk.ask("--delete", "--yes", account=account)
        assert ids(value) == value["done"] == []
        assert [one["why"] for one in value["left_alone"]] == ["several messages of the history can be this one"]
    assert desk.queues() == {queue_id: "deferred"}


def test_an_id_that_an_account_had_yesterday_is_not_its_message(desk: Desk) -> None:
    """What came at another time than the history says is not even mentioned."""
    queue_id = desk.send()
    desk.settle()
    desk.history.add(BERT, queue_id, time.time() - 86400, time.time() - 86399, client=CLIENT, sender=ANNA)
    value = desk.ask("--delete", "--yes", account=BERT)
    assert (value["messages"], value["left_alone"], value["done"]) == ([], [], [])
    assert ids(desk.ask()) == [queue_id]


def test_a_message_that_lies_about_its_file_hides_and_forges_nothing(desk: Desk) -> None:
    """A line end in ORCPT cannot make a message another's, nor another message look like this one's."""
    first = desk.send()
    with desk.postfix.smtp(BERT) as session:
        forged = f"+0A***+20ENVELOPE+20RECORDS+20deferred/{first[0]}/{first}+20***+0Anamed_attribute:+20sasl_username=x"
        session.mail(ANNA)
        began = time.time()
        assert session.command(f"RCPT TO:<r@remote.example> ORCPT=rfc822;r{forged}@x.example").startswith("250")
        berts = queued(session.data())
    desk.history.add(ANNA, berts, began, time.time(), client=CLIENT, sender=ANNA)
    last = desk.send()
    desk.settle()
    value = desk.ask("--delete", "--yes")
    assert sorted(value["done"]) == sorted([first, last])
    assert ids(value, "left_alone") == [berts]
    assert desk.queues() == {berts: "deferred"}


def test_nothing_is_done_without_yes(desk: Desk) -> None:
    """Without --yes it is listed what would be done, and the line that does it."""
    held, deferred = desk.send(sender=HELD), desk.send()
    desk.settle()
    config = str(desk.postfix.folder / "conf")
    finished = run(desk.socket, "queue", "--postfix-config", config, "--delete", "--client", CLIENT, ANNA)
    lines = finished.stdout.splitlines()
    assert (finished.returncode, len(lines)) == (0, 6)
    assert lines[1].split()[2:5] == [held, "hold", "passed"]
    assert lines[-2:] == [
        f"nothing is done yet: to delete 2 messages of {ANNA}, to 2 recipients, add --yes:",
        f"  policyctl queue --socket {desk.socket.path} --postfix-config {config} --client {CLIENT} "
        f"--delete --yes {ANNA}",
    ]
    assert (ids(desk.ask("--hold")), ids(desk.ask("--release"))) == ([deferred], [held])
    assert desk.queues() == {held: "hold", deferred: "deferred"}


def test_messages_are_held_and_released_and_deleted(desk: Desk) -> None:
    """Each order is done to the account's messages where it makes sense, and to nobody else's."""
    held, deferred, berts = desk.send(sender=HELD), desk.send(), desk.send(BERT)
    desk.settle()
    value = desk.ask("--hold", "--yes")
    assert (value["done"], value["gone"], value["failed"], value["dry_run"]) == ([deferred], [], [], False)
    assert desk.queues() == {held: "hold", deferred: "hold", berts: "deferred"}
    desk.postfix.reload({**SETTINGS, "defer_transports": ""})
    assert sorted(desk.ask("--release", "--yes")["done"]) == sorted([held, deferred])
    until(lambda: set(desk.queues()) == {berts})
    assert desk.ask("--delete", "--yes", account=BERT)["done"] == [berts]
    assert desk.queues() == {}


def test_filters_keep_to_what_was_asked_for(desk: Desk) -> None:
    """By verdict, by queue, by client, by time: what does not fit is not there."""
    first, second = desk.send(sender=HELD), desk.send()
    desk.settle()
    desk.history.messages[0]["verdict"] = "held"
    assert ids(desk.ask("--verdict", "held")) == [first]
    assert ids(desk.ask("--queue", "deferred")) == [second]
    value = desk.ask("--client", "192.0.2.1")
    assert (ids(value), value["others"]) == ([], 2)
    assert ids(desk.ask("--client", "127.0.0.0/8", "--except-client", "192.0.2.1")) == [first, second]
    assert ids(desk.ask("--since", "1h")) == [first, second]
    assert desk.ask("--queue", "active", "--delete", "--yes")["done"] == []


def test_a_requeued_message_is_left_alone(desk: Desk) -> None:
    """`postsuper -r` gives a new id, which the history knows of another message, if at all."""
    path = desk.postfix.queue_directory / "hold" / desk.send(sender=HELD)
    path.rename(path.with_name("ABCDE12345"))
    desk.history.messages[0]["queue_id"] = "ABCDE12345"
    value = desk.ask("--delete", "--yes")
    assert [one["why"] for one in value["left_alone"]] == [
        "its queue file was made under another queue id (postsuper -r?)"
    ]
    assert desk.queues() == {"ABCDE12345": "hold"}


def test_a_person_is_told_what_was_done(desk: Desk) -> None:
    """The last line says how many of how many."""
    desk.send(recipients=3)
    desk.settle()
    config = str(desk.postfix.folder / "conf")
    finished = run(desk.socket, "queue", ANNA, "--delete", "--yes", "--postfix-config", config)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.splitlines()[-1] == f"deleted: 1 of 1 message of {ANNA}, to 3 recipients"
    again = run(desk.socket, "queue", ANNA, "--delete", "--postfix-config", config)
    assert again.stdout == f"there is nothing to delete: no message of {ANNA} is in the queue\n"


def test_ten_thousand_messages(desk: Desk) -> None:
    """A full queue is looked through and emptied of one account's messages, and of no other."""
    number = 10_000
    first, bystander = desk.send(sender=HELD), desk.send(BERT, sender=HELD)
    desk.settle()
    folder = desk.postfix.queue_directory / "hold"
    text, owner, message = (folder / first).read_bytes(), (folder / first).stat(), desk.history.messages[0]
    copies = [f"{n:05X}{first[5:]}" for n in range(number)]
    for queue_id in set(copies) - {first, bystander}:
        path = folder / queue_id
        path.write_bytes(text.replace(first.encode(), queue_id.encode()))
        os.chown(path, owner.st_uid, owner.st_gid)
        path.chmod(owner.st_mode)
        desk.history.messages.append({**message, "queue_id": queue_id})
    value = desk.ask("--delete", "--yes")
    assert sorted(value["done"]) == sorted(ids(value)) == sorted({*copies, first} - {bystander})
    assert value["left_alone"] == value["failed"] == value["gone"] == []
    assert set(desk.queues()) == {bystander}
