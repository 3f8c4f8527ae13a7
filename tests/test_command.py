"""The command of the config: it never outlives its time, whatever it does, and gets nothing that it should not."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from policyd.command import MAX_SHOWN, Commands, environment
from policyd.notices import Notice
from policyd.relay import NotSentError
from policyd.webhook import body
from tests.asking import ANNA, EPOCH
from tests.waiting import until

NOTICE = Notice("0123abcd", "lock", EPOCH, {"account": ANNA, "limit": "m", "count": 501, "until": None, "uid": None})


def run(*argv: str, commands: Commands | None = None, stdin: bytes = b"") -> str:
    """Run a command, and return what is said of it."""
    return (commands or Commands()).run(argv, environment(NOTICE, "mx1"), stdin)


def shell(text: str, *arguments: str) -> Sequence[str]:
    """Return the command that a shell reads."""
    return ["/bin/sh", "-c", text, "sh", *arguments]


def is_running(pid: int) -> bool:
    """Tell whether a process is there and not just waiting to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_command_gets_the_notice_and_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment is clean, its stdin is the JSON that a web server gets, and it is in the root folder."""
    monkeypatch.setenv("SECRET_OF_OURS", "x")
    out = tmp_path / "out"
    stdin = body(NOTICE, "mx1", 5)
    told = "[dict(os.environ), sys.argv[2:], sys.stdin.read(), os.getcwd()]"
    program = f"import json, os, sys; json.dump({told}, open(sys.argv[1], 'w'))"
    assert run(sys.executable, "-I", "-S", "-c", program, str(out), "$(id)", "-x", stdin=stdin) == "status 0"
    variables, arguments, read, folder = json.loads(out.read_text())
    assert (arguments, folder) == (["$(id)", "-x"], "/")
    assert json.loads(read) == {"version": 1, "sent": 5, "host": "mx1", **NOTICE.value()}
    assert {name: value for name, value in variables.items() if name != "LC_CTYPE"} == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "POLICYD_EVENT": "lock",
        "POLICYD_ID": "0123abcd",
        "POLICYD_AT": "2026-11-23T08:00:00+00:00",
        "POLICYD_HOST": "mx1",
        "POLICYD_ACCOUNT": ANNA,
        "POLICYD_LIMIT": "m",
        "POLICYD_COUNT": "501",
    }


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "\ud800", "x" * 100_000, "$(reboot)", ""])
def test_no_name_is_too_odd_for_the_environment(name: str) -> None:
    """It is shown on one line there; as it is, it is in the JSON."""
    notice = Notice("1", "lock", EPOCH, {"account": name})
    said = Commands().run(shell('test -n "${POLICYD_ACCOUNT+x}"'), environment(notice, "mx1"), body(notice, "mx1", 0))
    assert said == "status 0"
    assert len(environment(notice, "mx1")["POLICYD_ACCOUNT"].splitlines()) <= 1


def test_a_command_that_never_ends_is_ended_with_all_that_it_has_started(tmp_path: Path) -> None:
    """Its process group gets SIGTERM; what does not mind that is killed."""
    pids = tmp_path / "pids"
    text = f"trap '' TERM; (trap '' TERM; sleep 1000) & echo $$ $! > {pids}; sleep 1000 & wait; sleep 1000"
    with pytest.raises(NotSentError, match=r"did not end within 0.3 s and was killed"):
        run(*shell(text), commands=Commands(timeout=0.3, grace=0.1))
    for pid in map(int, pids.read_text().split()):
        until(lambda pid=pid: not is_running(pid))  # type: ignore[misc]


def test_a_command_that_ends_on_sigterm_can_say_why(tmp_path: Path) -> None:
    """It has a moment for that."""
    text = "trap 'echo interrupted; exit 0' TERM; sleep 1000 & wait"
    with pytest.raises(NotSentError, match=r"was killed: interrupted$"):
        run(*shell(text), commands=Commands(timeout=0.3, grace=10.0))


def test_a_command_may_leave_something_running(tmp_path: Path) -> None:
    """It has ended all the same, though its child holds the pipe."""
    begun = time.monotonic()
    pid_file = tmp_path / "pid"
    assert run(*shell(f"sleep 1000 & echo $! > {pid_file}")) == "status 0"
    assert time.monotonic() - begun < 20
    os.kill(int(pid_file.read_text()), 9)


def test_a_flood_of_output_is_read_and_forgotten() -> None:
    """The command does not wait for a reader, and the end of what it wrote is shown."""
    with pytest.raises(NotSentError) as caught:
        run(*shell("yes | head -c 50000000; echo; echo the end; exit 7"))
    assert str(caught.value).startswith("/bin/sh ended with status 7: ")
    assert str(caught.value).endswith(" y y the end")
    assert len(str(caught.value)) < MAX_SHOWN + 100


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["/no/such"], "/no/such cannot be run: No such file or directory"),
        (["/etc/passwd"], "/etc/passwd cannot be run: Permission denied"),
        (["/"], "/ cannot be run: Permission denied"),
    ],
)
def test_what_cannot_be_run_is_named(argv: list[str], why: str) -> None:
    """With what the system says."""
    with pytest.raises(NotSentError) as caught:
        run(*argv)
    assert str(caught.value) == why


def test_when_the_daemon_ends_its_commands_end() -> None:
    """They are not waited for; their notices are sent when it starts again."""
    commands = Commands(timeout=1000.0, grace=0.1)
    said: list[str] = []

    def work() -> None:
        try:
            run(*shell("sleep 1000"), commands=commands)
        except NotSentError as error:
            said.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    commands.stop()
    thread.join(20)
    assert said


@pytest.mark.parametrize("left", ["sleep 100", "yes"])
def test_what_a_command_leaves_behind_keeps_nothing_of_ours(left: str) -> None:
    """Neither a thread nor a descriptor, though it holds the command's output, and whether it writes or not."""
    before = len(os.listdir("/proc/self/fd"))
    pids = []
    try:
        for _ in range(3):
            with pytest.raises(NotSentError) as caught:
                run(*shell(f"echo START; {left} & echo PID=$!; exit 7"))
            if found := re.search(r"PID=(\d+)", str(caught.value)):
                pids.append(int(found[1]))
        until(lambda: not [thread for thread in threading.enumerate() if thread.name == "output"])
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
