"""policyctl as a process, against a control socket with prepared answers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policyd import __version__
from tests.control_socket import (
    ANSWERS,
    BUSY,
    CTL,
    REPOSITORY,
    STATUS,
    ControlSocket,
    environment,
    line_of,
    listening,
    policyctl,
    run,
    said,
)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ControlSocket]:
    """Run a daemon that answers every command."""
    with listening(tmp_path / "control.sock", dict(ANSWERS)) as server:
        yield server


@pytest.mark.parametrize(
    ("args", "method", "path", "body"),
    [
        (["status"], "GET", "/status", None),
        (["accounts"], "GET", "/accounts?sort=messages&n=20", None),
        (
            ["accounts", "--sort", "refused", "-n", "5", "--over", "80%"],
            "GET",
            "/accounts?sort=refused&n=5&over=80",
            None,
        ),
        (["accounts", "--over", "0"], "GET", "/accounts?sort=messages&n=20&over=0", None),
        (["locked"], "GET", "/locked", None),
        (
            ["lock", "Bert@example.com", "--reason", "phished"],
            "POST",
            "/lock",
            {"account": "Bert@example.com", "reason": "phished", "for": None, "hold": False},
        ),
        (
            ["lock", "bert", "--reason", "x", "--for", "1h30m", "--hold"],
            "POST",
            "/lock",
            {"account": "bert", "reason": "x", "for": "1h30m", "hold": True},
        ),
        (["unlock", "anna", "bert"], "POST", "/unlock", {"accounts": ["anna", "bert"]}),
        (["unlock", "--", "-n"], "POST", "/unlock", {"accounts": ["-n"]}),
        (["reset", "anna"], "POST", "/reset", {"account": "anna"}),
        (["reload"], "POST", "/reload", {}),
    ],
)
def test_each_command_asks_the_daemon_one_thing(
    daemon: ControlSocket, args: list[str], method: str, path: str, body: Any
) -> None:
    """A command is one HTTP request, the same that curl could make, and succeeds in silence on stderr."""
    finished = run(daemon, *args)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert daemon.requests == [(method, path, body)]


@pytest.mark.parametrize(
    ("account", "query"),
    [
        ("anna+x@example.com", "anna%2Bx%40example.com"),
        ("a b&c=\n", "a+b%26c%3D%0A"),
        ("jürgen", "j%C3%BCrgen"),
        (b"caf\xe9", "caf%5Cxe9"),
    ],
)
def test_any_account_can_be_named(daemon: ControlSocket, account: str | bytes, query: str) -> None:
    r"""An account's name reaches the daemon whole; bytes that are no UTF-8 as policyd names them, `\xNN`."""
    daemon.answers = {"/status": (404, {"error": "enough"})}
    assert line_of(run(daemon, "status", account), 1) == "policyctl: enough"
    assert daemon.requests == [("GET", f"/status?account={query}", None)]


@pytest.mark.parametrize(
    ("args", "out"),
    [
        (["locked"], "no account is locked\n"),
        (["lock", "bert", "--reason", "x"], "bert@example.com locked until unlocked: phished\n"),
        (
            ["unlock", "anna", "bert"],
            "anna@example.com unlocked; its windows start anew\nbert@example.com was not locked\n",
        ),
        (["reset", "anna"], "anna@example.com: its counts are forgotten\n"),
        (["reload"], "nothing changed\n"),
        (
            ["accounts"],
            "account           state  messages-per-half-hour  refused  held\n"
            "anna@example.com  free               5/500   1%        0     0\n",
        ),
    ],
)
def test_each_command_tells_what_was_done(daemon: ControlSocket, args: list[str], out: str) -> None:
    """Every command ends with plain lines about what it has found or done."""
    assert said(run(daemon, *args)) == (0, out, "")


def test_status_tells_times_in_the_zone_of_the_computer(daemon: ControlSocket) -> None:
    """The postmaster's clock on the wall is the one that counts."""
    lines = run(daemon, "status").stdout.splitlines()
    assert lines[:2] == ["policyd 0.1.0 is running", "  up since     2026-01-23 09:00:00 (for 12 s)"]


@pytest.mark.parametrize("args", [["--json", "status"], ["status", "--json"]])
def test_json_is_the_daemons_own(daemon: ControlSocket, args: list[str]) -> None:
    """With --json, before or after the command, programs get what the daemon said, keys in its order."""
    finished = run(daemon, *args)
    assert finished.stdout == json.dumps(STATUS, indent=2) + "\n"


def test_json_holds_no_raw_escapes(daemon: ControlSocket) -> None:
    """JSON that is looked at in a terminal is as harmless as the plain text."""
    daemon.answers = {"/locked": (200, [{"account": "\x1b[2J\x7f\x9b\u202e\ud800"}])}
    out = run(daemon, "locked", "--json").stdout
    assert r'"account": "\u001b[2J\u007f\u009b\u202e\ud800"' in out


def test_a_refusal_is_one_line_and_its_problems(daemon: ControlSocket) -> None:
    """What the daemon has against a command stands on stderr, a problem a line; the exit status is 1."""
    problems = ["policyd.yaml:14: limits.x.max: want a whole number above 0, got 'five'", "policyd.yaml:20: \x1b[2J"]
    daemon.answers = {"/reload": (422, {"error": "the config has 2 mistakes\nand more", "problems": problems})}
    assert said(run(daemon, "reload", "--json")) == (
        1,
        "",
        "policyctl: the config has 2 mistakes\\nand more\n" + problems[0] + "\npolicyd.yaml:20: \\x1b[2J\n",
    )


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["stat"], "policyctl: error: there is no command 'stat': did you mean status?"),
        (["unlokc", "anna"], "policyctl: error: there is no command 'unlokc': did you mean unlock?"),
        (["\x1b[2J"], "there is no command '\\x1b[2J': policyctl --help shows what there is"),
        (["x" * 100_000], f"there is no command '{'x' * 40}': policyctl --help shows what there is"),
        (["status", "--frob"], "policyctl status: error: unrecognized arguments: --frob"),
        (["reload", "\x1b[2J"], "policyctl reload: error: unrecognized arguments: \\x1b[2J"),
        (["status", ""], "argument ACCOUNT: want a text that is not empty"),
        (["unlock"], "the following arguments are required: ACCOUNT"),
        (["lock", "bert"], "the following arguments are required: --reason"),
        (["lock", "bert", "--reason", " "], "argument --reason: want a text that is not empty"),
        (["lock", "bert", "--reason", "x", "--for", "2 hours"], "want a duration such as 45s, 30m, 1h30m or 7d"),
        (["accounts", "-n", "0"], "argument -n: want a whole number above 0, got '0'"),
        (["accounts", "--over", "101%"], "want a percentage from 0 to 100 such as 80%, got '101%'"),
        (["accounts", "--sort", "name"], "argument --sort: invalid choice: 'name'"),
        (["--socket", "", "status"], "argument --socket: want a path that is not empty"),
    ],
)
def test_a_command_that_makes_no_sense_is_not_sent(args: list[str], complaint: str) -> None:
    """What cannot be meant is told at once, with exit status 2, whether a daemon runs or not."""
    finished = policyctl(*args)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert complaint in finished.stderr.splitlines()[-1]


def test_an_unknown_option_is_told_with_what_the_command_takes() -> None:
    """The usage is the command's own, whose options are those that matter."""
    finished = policyctl("queue", "anna", "--forse")
    assert finished.returncode == 2
    assert finished.stderr.startswith("usage: policyctl queue [-h]")
    assert "--release" in finished.stderr


@pytest.mark.parametrize("accounts", [1, 20000])
def test_a_reader_that_has_seen_enough_is_no_error(daemon: ControlSocket, accounts: int) -> None:
    """`policyctl accounts | head` ends quietly, however much was left to say."""
    daemon.answers = {"/accounts": (200, [BUSY] * accounts)}
    reader, writer = os.pipe()
    os.close(reader)
    finished = run(daemon, "accounts", stdout=writer)
    os.close(writer)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_an_answer_that_cannot_be_written(daemon: ControlSocket) -> None:
    """A full disk is told; the exit status says that the answer was lost."""
    with Path("/dev/full").open("w") as full:
        finished = run(daemon, "accounts", stdout=full)
    assert (finished.returncode, finished.stderr) == (
        1,
        "policyctl: cannot write the answer: No space left on device\n",
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_output_is_no_error(daemon: ControlSocket, closed: str) -> None:
    """A caller that has closed policyctl's outputs gets the exit status."""
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *CTL, "--socket", str(daemon.path), "reload"]
    assert subprocess.run(command, env=environment(), cwd=REPOSITORY, check=False).returncode == 0
    assert daemon.requests == [("POST", "/reload", {})]


def test_interrupting_is_quiet(tmp_path: Path) -> None:
    """Ctrl-C while the daemon thinks ends policyctl without a word, with exit status 130."""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as slow:
        slow.bind(str(path))
        slow.listen()
        command = ["env", "--default-signal=INT", *CTL, "--socket", str(path), "status"]
        with subprocess.Popen(command, env=environment(), cwd=REPOSITORY, stderr=subprocess.PIPE) as waiting:
            connection, _ = slow.accept()
            with connection:
                connection.recv(1)
                waiting.send_signal(signal.SIGINT)
                assert waiting.communicate(timeout=60)[1] == b""
    assert waiting.returncode == 130


def test_an_encoding_without_the_characters(daemon: ControlSocket) -> None:
    """A terminal that knows only ASCII gets the rest escaped."""
    daemon.answers = {"/reset": (200, {"account": "jürgen", "seen": True})}
    finished = run(daemon, "reset", "x", env={"PYTHONIOENCODING": "ascii:strict"})
    assert said(finished) == (0, "j\\xfcrgen: its counts are forgotten\n", "")


def whatever_is_on(terminal: int) -> str:
    """Return what was written to a terminal that is closed on its other side; close it here."""
    shown = b""
    with contextlib.suppress(OSError), open(terminal, "rb", buffering=0) as screen:
        while some := screen.read(4096):
            shown += some
    return shown.decode()


def test_a_terminal_shortens_what_a_pipe_gets_whole(daemon: ControlSocket) -> None:
    """On a terminal a long name is cut to the terminal's width; in a pipe it is whole."""
    name = "x" * 100
    daemon.answers = {"/accounts": (200, [{**BUSY, "account": name}])}
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    assert run(daemon, "accounts", stdout=terminal).returncode == 0
    os.close(terminal)
    rows = whatever_is_on(ours).splitlines()
    assert [len(row) for row in rows] == [80, 80]
    assert "x…  free" in rows[1]
    assert name in run(daemon, "accounts").stdout


COMMANDS = (
    *("status", "accounts", "top", "locked", "lock", "unlock", "reset", "reload"),
    *("allow", "allowances", "disallow", "history", "queue", "doctor", "notify"),
)


def test_help_is_enough_to_work_with() -> None:
    """--help names the commands, shows examples, and explains exit statuses and how the socket is found."""
    finished = policyctl("--help", env={"RUNTIME_DIRECTORY": "/run/elsewhere"})
    assert (finished.returncode, finished.stderr) == (0, "")
    lines = finished.stdout.splitlines()
    assert [command for command in COMMANDS if not any(line.startswith(f"    {command} ") for line in lines)] == []
    for wanted in (
        "examples:",
        "exit status:",
        "$POLICYD_CONTROL",
        "/run/elsewhere/control.sock, /run/policyd/control.sock",
    ):
        assert wanted in finished.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_says_why_one_runs_it(command: str) -> None:
    """A command's --help begins with the occasion for it."""
    finished = policyctl(command, "--help")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "\n\nRun it " in finished.stdout


def test_version() -> None:
    """--version names the tool and its version."""
    assert said(policyctl("--version")) == (0, f"policyctl {__version__}\n", "")


def test_starting_loads_nothing_slow() -> None:
    """Policyctl starts at once: it loads neither Twisted nor YAML, and of policyd only what it is made of."""
    code = (
        "import sys; before = set(sys.modules); import policyd.ctl; "
        "print(*sorted(name for name in set(sys.modules) - before))"
    )
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, env=environment(), cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    loaded = output.stdout.split()
    ours = {name for name in loaded if name.partition(".")[0] == "policyd"}
    rooms = (
        *(
            "ctl",
            "ctl_allow",
            "ctl_arguments",
            "ctl_client",
            "ctl_cluster",
            "ctl_commands",
            "ctl_history",
            "ctl_layout",
            "ctl_notify",
            "ctl_text",
        ),
        *("durations", "paths", "sizes", "words"),
    )
    assert ours == {"policyd", *(f"policyd.{room}" for room in rooms)}
    others = {name.partition(".")[0] for name in loaded} - {"policyd"}
    assert others <= sys.stdlib_module_names
    assert others & {"asyncio", "logging", "multiprocessing", "sqlite3", "subprocess", "unittest", "xml"} == set()
