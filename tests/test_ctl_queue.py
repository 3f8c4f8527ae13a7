"""policyctl queue: what it says and does, with commands that stand for Postfix's."""

from __future__ import annotations

import argparse
import json
import os
import pty
import subprocess
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

import pytest

from policyd.ctl_client import CtlError, Question
from policyd.ctl_join import Envelope, Past, Queued
from policyd.ctl_postfix import ORDERS, Envelopes, Order, command_path
from policyd.ctl_queue import BATCH, Progress, log, obey
from policyd.ctl_queue_report import FILTERS, MAX_FLUSHED, Found, Report, as_json, as_text
from tests.control_socket import CTL, REPOSITORY, ControlSocket, environment, line_of, listening, run
from tests.history_socket import History
from tests.test_ctl import whatever_is_on
from tests.test_ctl_history import HOSTILE
from tests.test_ctl_text import PIPE

ANNA = "anna@example.com"
BERT = "bert@example.com"
CLIENT = "127.0.0.1"


def without_postfix(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which a folder of our own comes first."""
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


def fake(folder: Path, name: str, script: str) -> None:
    """Put a command there that does this instead of Postfix's."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


LISTED = (
    '{"queue_name": "hold", "queue_id": "B1", "arrival_time": %d, "message_size": 3, "sender": "s", "recipients": []}'
)


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[ControlSocket]:
    """Run a control socket with one message of Anna's."""
    history = History()
    now = time.time()
    history.add(ANNA, "B1", now, now, client=CLIENT, sender="s")
    with listening(tmp_path / "control.sock", history.answers) as socket:
        yield socket


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo 'postqueue: fatal: open /x/main.cf: No such file or directory' >&2; exit 69",
            "policyctl: postqueue failed: fatal: open /x/main.cf: No such file or directory",
        ),
        ("exit 1", "policyctl: postqueue failed: it did not say why"),
        ("printf '\\033[2J\\n' >&2; exit 1", "policyctl: postqueue failed: \\x1b[2J"),
    ],
)
def test_a_postfix_that_does_not_answer_is_a_sentence(
    stub: ControlSocket, tmp_path: Path, script: str, said: str
) -> None:
    """What Postfix's commands complain of is told in one line, with exit status 1."""
    fake(tmp_path, "postqueue", script)
    finished = run(stub, "queue", ANNA, env=without_postfix(tmp_path))
    line = line_of(finished, 1)
    assert line.startswith(said)
    assert line.endswith(" (another instance: --postfix-config DIR)")


def test_all_that_postqueue_complains_of_is_told(stub: ControlSocket, tmp_path: Path) -> None:
    """Its last line says where it gave up, those before it why; harmless, and no more than the last ten."""
    script = "n=0; while [ $n -lt 20 ]; do n=$((n+1)); printf 'postqueue: warning: \\033%s\\n' $n >&2; done"
    fake(tmp_path, "postqueue", f"{script}; printf '%01000d\\n' 0 >&2; exit 69")
    finished = run(stub, "queue", ANNA, "--postfix-config", "/x\ny", env=without_postfix(tmp_path))
    first, *rest = finished.stderr.splitlines()
    assert (finished.returncode, finished.stdout) == (1, "")
    assert first == f"policyctl: postqueue failed: {'0' * 200}; the folder read is /x\\ny"
    assert rest == [*(f"  postqueue: warning: \\x1b{n}" for n in range(12, 21)), f"  {'0' * 200}"]


@pytest.mark.parametrize("broken", ["postqueue", "postcat", "postsuper"])
def test_a_command_that_cannot_be_run_is_a_sentence(stub: ControlSocket, tmp_path: Path, broken: str) -> None:
    """A file that is no program is named, with the reason, and the exit status is 1."""
    looks_twice(tmp_path, ANNA, ANNA)
    (tmp_path / broken).write_bytes(b"\x7fELF no program")
    (tmp_path / broken).chmod(0o755)
    finished = run(stub, "queue", ANNA, "--delete", "--yes", env=without_postfix(tmp_path))
    told = f"policyctl: cannot run {tmp_path / broken}: Exec format error"
    assert (finished.returncode, told in (finished.stderr + finished.stdout).splitlines()) == (1, True)


def test_the_folder_that_postfix_reads_is_named(stub: ControlSocket, tmp_path: Path) -> None:
    """As postconf knows it; where that fails too, it is said all the same whose it is."""
    fake(tmp_path, "postqueue", "exit 1")
    for script, folder in (("echo /opt/postfix", "/opt/postfix"), ("exit 1", "Postfix's own")):
        fake(tmp_path, "postconf", script)
        line = line_of(run(stub, "queue", ANNA, env=without_postfix(tmp_path)), 1)
        assert f"; the folder read is {folder} (another instance" in line


def test_lines_that_are_no_messages_are_counted(stub: ControlSocket, tmp_path: Path) -> None:
    """A list that cannot be read in part is told of, and the rest is used."""
    fake(tmp_path, "postqueue", "echo nonsense; echo '[]'; echo '{\"queue_id\": \"-d\"}'")
    finished = run(stub, "queue", ANNA, env=without_postfix(tmp_path))
    assert finished.stdout == (f"3 messages of the queue could not be read\nno message of {ANNA} is in the queue\n")


def test_bytes_that_are_no_utf8_do_not_hide_a_message(stub: ControlSocket, tmp_path: Path) -> None:
    """Whatever stands in an address, the message is there."""
    line = (LISTED % time.time()).replace('"s"', '"\\351"')
    fake(tmp_path, "postqueue", f"printf '{line}\\n'")
    fake(tmp_path, "postcat", "echo garbled")
    value = json.loads(run(stub, "queue", "--json", ANNA, env=without_postfix(tmp_path)).stdout)
    assert (value["unreadable"], [one["sender"] for one in value["left_alone"]]) == (0, ["\\xe9"])


def test_a_message_with_too_many_recipients_does_not_hide_the_others(stub: ControlSocket, tmp_path: Path) -> None:
    """A line that is too long is skipped to its end, and counted."""
    fake(tmp_path, "postqueue", f"head -c 135000000 /dev/zero | tr '\\0' x; echo; echo '{LISTED % time.time()}'")
    fake(tmp_path, "postcat", "echo 'postcat: fatal: open queue file B1: No such file or directory' >&2; exit 1")
    value = json.loads(run(stub, "queue", "--json", ANNA, env=without_postfix(tmp_path)).stdout)
    assert (value["unreadable"], value["messages"], value["left_alone"]) == (1, [], [])


def listing_two(folder: Path) -> History:
    """Have two held messages of Anna's, whose files cannot be read, and return their history."""
    now = time.time()
    lines = [LISTED % now, (LISTED % now).replace("B1", "B2")]
    fake(folder, "postqueue", "\n".join(f"echo '{line}'" for line in lines))
    fake(folder, "postcat", "echo garbled")
    history = History()
    for queue_id in ("B1", "B2"):
        history.add(ANNA, queue_id, now, now, client=CLIENT, sender="s")
    return history


def test_a_history_that_has_more_to_tell_is_asked_for_less(tmp_path: Path) -> None:
    """Where the daemon cannot tell all of some ids at once it is asked for half of them."""
    history = listing_two(tmp_path)
    history.add(BERT, "B1", time.time() - 9999, time.time() - 9999, client=CLIENT, sender="s")
    history.most = 2
    with listening(tmp_path / "control.sock", history.answers) as socket:
        finished = run(socket, "queue", ANNA, env=without_postfix(tmp_path))
        assert [path for _, path, _ in socket.requests[1:]] == [
            "/history?queue_id=B1&queue_id=B2",
            "/history?queue_id=B1",
            "/history?queue_id=B2",
        ]
    assert finished.stdout.splitlines()[:3] == [
        f"left alone, for it is not sure that it is {ANNA}'s:",
        "B1  hold  its queue file cannot be read",
        "B2  hold  its queue file cannot be read",
    ]


def test_an_id_that_is_everywhere_is_left_alone(tmp_path: Path) -> None:
    """An id of which the daemon cannot tell all at once proves nothing."""
    history = listing_two(tmp_path)
    history.most = 1
    history.messages.append({**history.messages[1], "account": BERT})
    with listening(tmp_path / "control.sock", history.answers) as socket:
        lines = run(socket, "queue", ANNA, env=without_postfix(tmp_path)).stdout.splitlines()
    assert "B2  hold  its queue id is too frequent in the history" in lines
    assert "the history has more than 100000 messages of this account: older ones were not looked for" in lines


def test_a_terminal_is_shown_how_far_it_is(stub: ControlSocket, tmp_path: Path) -> None:
    """On a terminal a line tells what is being done, and is gone at the end; a pipe gets nothing of it."""
    looks_twice(tmp_path, ANNA, ANNA)
    ours, terminal = pty.openpty()
    command = [*CTL, "--socket", str(stub.path), "queue", ANNA]
    subprocess.run(
        command,
        env=environment(**without_postfix(tmp_path)),
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        check=True,
    )
    os.close(terminal)
    shown = whatever_is_on(ours)
    assert shown.startswith("\r\x1b[Kthe queue: 1 messages")
    assert shown.endswith("\r\x1b[K")


def test_queue_files_that_are_closed_to_us_are_told_of(stub: ControlSocket, tmp_path: Path) -> None:
    """Without the right to look at the files nothing is guessed."""
    fake(tmp_path, "postqueue", f"echo '{LISTED % time.time()}'")
    fake(tmp_path, "postcat", "echo 'postcat: fatal: open queue file B1: Permission denied' >&2; exit 1")
    finished = run(stub, "queue", ANNA, env=without_postfix(tmp_path))
    assert line_of(finished, 1).startswith("policyctl: postcat failed: fatal: open queue file B1: Permission denied")


def looks_twice(folder: Path, first: str, second: str) -> None:
    """Have postcat show one login at the first look, and another at the second."""
    now = time.time()
    stamp = datetime.fromtimestamp(now, timezone.utc).strftime("%a %b %d %H:%M:%S %Y")
    fake(folder, "postqueue", f"echo '{LISTED % now}'")
    lines = "\n".join(
        (
            "*** ENVELOPE RECORDS hold/B1 ***",
            f"message_arrival_time: {stamp}",
            f"create_time: {stamp}",
            "named_attribute: log_ident=B1",
            "named_attribute: sasl_username=$login",
            "sender: s",
            f"named_attribute: client_address={CLIENT}",
        )
    )
    fake(
        folder,
        "postcat",
        f'if [ -e {folder}/seen ]; then login="{second}"; else login="{first}"; fi; touch {folder}/seen\n'
        f'[ "$login" ] || {{ echo "postcat: fatal: open queue file B1: No such file or directory" >&2; exit 1; }}\n'
        f'echo "{lines}"',
    )


@pytest.mark.parametrize("second", [BERT, ""])
def test_a_message_that_has_changed_at_the_second_look_is_not_touched(
    stub: ControlSocket, tmp_path: Path, second: str
) -> None:
    """An id that was given to another message, or whose message has left, between the list and the order."""
    looks_twice(tmp_path, ANNA, second)
    fake(tmp_path, "postsuper", f"touch {tmp_path}/ordered")
    finished = run(stub, "queue", ANNA, "--delete", "--yes", env=without_postfix(tmp_path))
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-2:] == [
        f"deleted: 0 of 1 message of {ANNA}, to no recipients",
        "not deleted, because they had left the queue: 1",
    ]
    assert not (tmp_path / "ordered").exists()


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 0", ["NOT deleted: 1: B1"]),
        (
            "echo 'postsuper: fatal: use of this command is reserved for the superuser' >&2; exit 1",
            ["NOT deleted: 1: B1", "postsuper failed: fatal: use of this command is reserved for the superuser"],
        ),
    ],
)
def test_what_postsuper_does_not_confirm_was_not_done(
    stub: ControlSocket, tmp_path: Path, script: str, told: list[str]
) -> None:
    """Done is what postsuper says that it has done; anything else is told, and the exit status is 1."""
    looks_twice(tmp_path, ANNA, ANNA)
    fake(tmp_path, "postsuper", script)
    finished = run(stub, "queue", ANNA, "--delete", "--yes", env=without_postfix(tmp_path))
    assert finished.returncode == 1
    assert finished.stdout.splitlines()[-len(told) - 1 :] == [
        f"deleted: 0 of 1 message of {ANNA}, to no recipients",
        *told,
    ]


DONE_BY_POSTFIX = "while read id; do echo postsuper: $id: removed >&2; done"
"""Deletes all that it is told to."""


@pytest.mark.parametrize(
    ("answer", "remark"),
    [
        ((200, {}), ""),
        ((404, {"error": "there is no such call"}), "there is no such call"),
        (
            (200, b""),
            "policyd broke off on {path} before it had answered: it was stopped or died, see its log; "
            "whether it has done it is not known",
        ),
    ],
)
def test_what_was_done_is_told_to_the_daemon(tmp_path: Path, answer: tuple[int, object], remark: str) -> None:
    """So its log tells who did it; where it cannot be told, the order is done all the same, and that is said."""
    looks_twice(tmp_path, ANNA, ANNA)
    fake(tmp_path, "postsuper", DONE_BY_POSTFIX)
    history = History()
    history.add(ANNA, "B1", time.time(), time.time(), client=CLIENT, sender="s")
    with listening(tmp_path / "control.sock", {**history.answers, "/queue-order": answer}) as socket:
        finished = run(socket, "queue", ANNA, "--delete", "--yes", env=without_postfix(tmp_path))
        told = socket.requests[-1]
    assert finished.returncode == 0
    assert finished.stdout.splitlines()[-1] == f"deleted: 1 of 1 message of {ANNA}, to no recipients"
    complaint = f"policyctl: done, but policyd's log may not tell of it: {remark.format(path=socket.path)}\n"
    assert finished.stderr == (complaint if remark else "")
    assert told == ("POST", "/queue-order", {"account": ANNA, "order": "delete", "messages": 1, "recipients": 0})


@pytest.mark.parametrize(("args", "second"), [((), ANNA), (("--delete",), ANNA), (("--delete", "--yes"), BERT)])
def test_what_was_not_done_is_not_told(stub: ControlSocket, tmp_path: Path, args: Sequence[str], second: str) -> None:
    """A list, an order without --yes, and one that found nothing left to do are no line of the log."""
    looks_twice(tmp_path, ANNA, second)
    assert run(stub, "queue", ANNA, *args, env=without_postfix(tmp_path)).returncode == 0
    assert {method for method, _, _ in stub.requests} == {"GET"}


def test_only_what_was_done_is_counted() -> None:
    """Messages that Postfix did not confirm, and their recipients, are not part of it."""
    asked: list[Question] = []
    report = full_report(3)
    report.done, report.failed = ["Q0", "Q2"], ["Q1"]
    assert log(report, asked.append) == []
    (question,) = asked
    assert question.body == {"account": ANNA, "order": "release", "messages": 2, "recipients": 2}


def test_where_there_is_no_postfix() -> None:
    """A host without Postfix is told as what it is."""
    with pytest.raises(CtlError, match="there is no postnone here: run this where Postfix is installed, as root"):
        command_path("postnone")


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--yes"], "policyctl: --yes to what? Want one of --hold, --release and --delete with it"),
        (["--hold", "--delete"], "policyctl queue: error: argument --delete: not allowed with --hold"),
        *(
            (
                [option, wrong],
                f"policyctl queue: error: argument {option}: want an address or network such as 192.0.2.7 or "
                f"192.0.2.0/24, got {wrong!r}",
            )
            for option in ("--client", "--except-client")
            for wrong in ("nonsense", "192.0.2.7/24", "", "192.0.2.1\n")
        ),
    ],
)
def test_what_cannot_be_meant_is_not_begun(stub: ControlSocket, args: list[str], complaint: str) -> None:
    """Wrong usage is exit status 2, and nothing is asked or done."""
    finished = run(stub, "queue", ANNA, *args)
    assert (finished.returncode, finished.stderr.splitlines()[-1]) == (2, complaint)
    assert stub.requests == []


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--client", "127.0.0.0/8"], f"1 message of {ANNA}, to no recipients, in the queue"),
        (["--client", "::1", "--client", CLIENT], f"1 message of {ANNA}, to no recipients, in the queue"),
        (["--except-client", "::1"], f"1 message of {ANNA}, to no recipients, in the queue"),
        *(
            (args, f"the one message of {ANNA} in the queue is not what was asked for")
            for args in (
                ["--client", "127.0.0.2"],
                ["--except-client", "::ffff:127.0.0.1"],
                ["--client", CLIENT, "--except-client", "::1", "--except-client", "127.0.0.0/31"],
                ["--verdict", "held"],
                ["--queue", "active"],
            )
        ),
        (
            ["--client", "127.0.0.2", "--delete", "--yes"],
            f"there is nothing to delete: the one message of {ANNA} in the queue is not what was asked for",
        ),
        (["--hold"], f"there is nothing to hold: the one message of {ANNA} in the queue is on hold"),
        (
            ["--release", "--queue", "deferred"],
            f"there is nothing to release: the one message of {ANNA} in the queue is not what was asked for",
        ),
    ],
)
def test_what_is_not_asked_for_is_told_from_what_is_not_there(
    stub: ControlSocket, tmp_path: Path, args: list[str], told: str
) -> None:
    """Where filters leave nothing, it is said that there are messages all the same."""
    looks_twice(tmp_path, ANNA, ANNA)
    finished = run(stub, "queue", ANNA, *args, env=without_postfix(tmp_path))
    assert (finished.returncode, finished.stdout.splitlines()[-1]) == (0, told)


@pytest.mark.parametrize(
    ("order", "client", "told"),
    [
        (None, "::1", "none of the 329 messages of {} in the queue is what was asked for"),
        ("release", None, "there is nothing to release: none of the 329 messages of {} in the queue is on hold"),
        ("hold", None, "there is nothing to hold: all 329 messages of {} in the queue are on hold"),
    ],
)
def test_many_that_are_not_asked_for_are_counted(order: str | None, client: str | None, told: str) -> None:
    """How many there are tells whether the filter or the account is wrong."""
    names = ("since", "verdict", "except_client", "sender", "except_sender", "queue")
    args = argparse.Namespace(account=ANNA, order=order, client=client and [client], **dict.fromkeys(names))
    assert as_text(Report(ANNA, order, dry_run=order is not None, others=329), args, PIPE) == [told.format(ANNA)]


def test_an_account_that_policyd_has_not_heard_of(stub: ControlSocket, tmp_path: Path) -> None:
    """It may be a slip in the name: that is told from an account whose mail has left, with a filter and without."""
    looks_twice(tmp_path, ANNA, ANNA)
    for args in ([], ["--verdict", "held"]):
        finished = run(stub, "queue", BERT, *args, env=without_postfix(tmp_path))
        assert finished.stdout == f"no message of {BERT} is in the queue; policyd knows of none it has sent\n"
    fake(tmp_path, "postqueue", ":")
    finished = run(stub, "queue", ANNA, "--delete", env=without_postfix(tmp_path))
    assert finished.stdout == f"there is nothing to delete: no message of {ANNA} is in the queue\n"


def test_the_command_that_is_suggested_has_all_that_was_asked(stub: ControlSocket, tmp_path: Path) -> None:
    """Every client that was given stands in it."""
    looks_twice(tmp_path, ANNA, ANNA)
    given = ["--client", CLIENT, "--client", "::1", "--except-client", "192.0.2.0/24"]
    lines = run(stub, "queue", ANNA, *given, "--delete", env=without_postfix(tmp_path)).stdout.splitlines()
    assert lines[-1] == f"  policyctl queue --socket {stub.path} {' '.join(given)} --delete --yes {ANNA}"


class Postmaster:
    """Stands for Postfix: does what it is told, until something happens."""

    def __init__(self, trouble: Callable[[int], str] = lambda _: "", missed: Sequence[str] = ()) -> None:
        self.trouble = trouble
        self.missed = set(missed)
        self.orders: list[list[str]] = []
        self.flushed: list[str] = []

    def envelopes(self, queue_ids: Sequence[str]) -> Envelopes:
        """Find all files as they were."""
        return Envelopes(dict.fromkeys(queue_ids, FILE), [])

    def give(self, _order: Order, queue_ids: Sequence[str]) -> tuple[set[str], str]:
        """Do all of it, but for what is missed the first time, unless there is trouble."""
        self.orders.append(list(queue_ids))
        missed, self.missed = self.missed, set()
        trouble = self.trouble(len(self.orders))
        return set() if trouble else set(queue_ids) - missed, trouble

    def flush(self, queue_id: str) -> str:
        """Remember it."""
        self.flushed.append(queue_id)
        return ""


FILE = Envelope(0, 0, "s", {})


def full_report(number: int) -> Report:
    """Return a report of so many messages found."""
    past = Past(ANNA, "", 0.0, 0.0, CLIENT, "s", "passed")
    found = [Found(Queued(f"Q{n}", "hold", 0, 1, "s", 1), past, FILE) for n in range(number)]
    return Report(ANNA, "release", dry_run=False, found=found)


def test_an_order_that_fails_is_not_given_again() -> None:
    """What comes after the batch at which postsuper failed is not begun, and counts as not done."""
    report, clerk = full_report(3 * BATCH), Postmaster(lambda number: "no space" if number == 2 else "")
    obey(report, ORDERS["delete"], clerk, Progress(None))
    assert (len(report.done), len(report.failed)) == (BATCH, 2 * BATCH)
    assert report.problems == ["postsuper failed: no space"]
    assert len(clerk.orders) == 2


def test_a_message_that_is_just_moving_is_not_missed() -> None:
    """Postfix moves messages between its queues: one that was not found there is looked for again."""
    report, postfix = full_report(3), Postmaster(missed=["Q0", "Q2"])
    obey(report, ORDERS["delete"], postfix, Progress(None))
    assert (sorted(report.done), report.gone, report.failed) == (["Q0", "Q1", "Q2"], [], [])
    assert postfix.orders == [["Q0", "Q1", "Q2"], ["Q0", "Q2"]]


def test_what_was_done_is_told_whatever_comes_then() -> None:
    """Where Postfix's commands fail in the middle of it, what was done by then is not forgotten."""

    def refused(number: int) -> str:
        if number == 2:
            raise CtlError(1, "postcat failed: no")
        return ""

    report = full_report(2 * BATCH)
    obey(report, ORDERS["delete"], Postmaster(refused), Progress(None))
    assert (len(report.done), len(report.failed)) == (BATCH, BATCH)
    assert report.problems == ["policyctl: postcat failed: no"]


def test_interrupting_an_order_tells_how_far_it_came() -> None:
    """Ctrl-C ends it: what was not confirmed by then is told as not done."""

    def interrupted(number: int) -> str:
        if number == 2:
            raise KeyboardInterrupt
        return ""

    report = full_report(3 * BATCH)
    obey(report, ORDERS["delete"], Postmaster(interrupted), Progress(None))
    assert (len(report.done), len(report.failed)) == (BATCH, 2 * BATCH)
    assert report.problems == ["interrupted: what was last being done may be done or not"]


def test_only_so_much_is_delivered_at_once() -> None:
    """Of many released messages the first are tried at once, each by itself; the others with the queue's next run."""
    report, clerk = full_report(MAX_FLUSHED + 1), Postmaster()
    obey(report, ORDERS["release"], clerk, Progress(None))
    assert (len(report.done), report.failed, len(clerk.flushed)) == (MAX_FLUSHED + 1, [], MAX_FLUSHED)


@pytest.mark.parametrize("dry_run", [True, False])
def test_nothing_hostile_reaches_the_terminal(dry_run: bool) -> None:
    """Whatever accounts, senders and clients are called: no line is forged, and a suggested command is quoted."""
    queued, past = Queued("B1", "hold", 0, 1, HOSTILE, 1), Past(HOSTILE, "B1", 0.0, 0.0, HOSTILE, HOSTILE, HOSTILE)
    report = Report(HOSTILE, "delete", dry_run=dry_run, found=[Found(queued, past, FILE)], problems=[HOSTILE])
    report.left_alone.append((queued, "why"))
    names = ("socket", "config", "postfix_config", *FILTERS)
    args = argparse.Namespace(account=HOSTILE, order="delete", **dict.fromkeys(names))
    lines = as_text(report, args, PIPE)
    assert [line for line in lines if any(unicodedata.category(c)[0] == "C" for c in line)] == []
    assert "root" not in lines
    assert HOSTILE not in json.dumps(as_json(report))
    if dry_run:
        assert lines[-1].startswith("  policyctl queue --delete --yes $'")


def test_a_name_like_an_option_is_none_in_the_suggested_command() -> None:
    """A name that begins with a dash stands behind two of them."""
    report = full_report(1)
    report.dry_run = True
    names = ("socket", "config", "postfix_config", *FILTERS)
    for account, word in (("-x", "-x"), ("-x'y", "'-x'\"'\"'y'"), ("-\n", "$'-\\x0a'")):
        args = argparse.Namespace(account=account, order="release", **{**dict.fromkeys(names), "queue": "hold"})
        assert as_text(report, args, PIPE)[-1] == f"  policyctl queue --queue hold --release --yes -- {word}"
