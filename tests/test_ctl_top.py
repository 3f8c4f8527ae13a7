"""policyctl top on a real terminal: what it shows, how it ends, and how it leaves the terminal."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from policyd.ctl_top import LEAVE, SHOW
from tests.control_socket import (
    ANSWERS,
    BUSY,
    CTL,
    LOCK,
    REPOSITORY,
    STATUS,
    ControlSocket,
    environment,
    line_of,
    listening,
    policyctl,
    run,
)
from tests.daemon import Policyd
from tests.terminals import Terminal

LOCAL = 3
"""Where termios.tcgetattr has the flags of echo and the like."""

ONCE = "3600"
"""So seldom that there is but one look in a test."""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ControlSocket]:
    """Run a daemon with which all is well."""
    with listening(tmp_path / "control.sock", dict(ANSWERS)) as server:
        yield server


@contextlib.contextmanager
def top(path: Path, *arguments: str, columns: int = 100, rows: int = 30) -> Iterator[Terminal]:
    """Run top at a terminal."""
    command = [*CTL, "--socket", str(path), "top", *arguments]
    with Terminal(command, environment(), REPOSITORY, columns, rows) as terminal:
        yield terminal


def has_left(terminal: Terminal) -> bool:
    """Tell whether the terminal is as it was, and the screen given back."""
    assert terminal.output.count(SHOW.decode()) == terminal.output.count(LEAVE.decode())
    return terminal.mode == terminal.before and terminal.output.endswith(LEAVE.decode())


def shows(text: str) -> Callable[[Terminal], bool]:
    """Return what waits until a row of the screen has this text."""
    return lambda terminal: any(text in row for row in terminal.screen)


def test_a_real_daemon_is_watched(tmp_path: Path) -> None:
    """Rates, locks and senders are what the daemon has counted, and s changes what is sorted by."""
    config = "limits: {few: {count: messages, per: 1h, max: 2, action: REJECT, lock: until-unlocked}}"
    with Policyd(config) as policyd, top(policyd.control, "--every", "0.1") as terminal:
        terminal.wait_for(shows("no account is locked"))
        for _ in range(3):
            policyd.message("bert@example.com")
        policyd.message("anna@example.com")
        terminal.wait_for(lambda here: any(row.startswith("bert@example.com") and "few" in row for row in here.screen))
        terminal.wait_for(shows("locked 1 of 2"))
        terminal.wait_for(shows("bert@example.com  LOCKED"))
        terminal.wait_for(shows("anna@example.com  free"))
        terminal.wait_for(lambda here: policyd.message("anna@example.com") and "(RCPT" in here.screen[1])
        terminal.type("s")
        terminal.wait_for(shows("top senders, by recipients"))
        terminal.type("q")
        assert terminal.ended() == 0
        assert has_left(terminal)


def test_nothing_that_is_typed_is_shown_and_unknown_keys_do_nothing(daemon: ControlSocket) -> None:
    """The screen is top's."""
    with top(daemon.path, "--every", ONCE) as terminal:
        terminal.wait_for(shows("anna@example.com"))
        assert not terminal.mode[LOCAL] & (termios.ECHO | termios.ICANON)
        terminal.type("xyz\x1b[Ajq")
        assert terminal.ended() == 0
        assert "xyz" not in terminal.output
        assert has_left(terminal)


@pytest.mark.parametrize(("keys", "status"), [("q", 0), ("Q", 0), ("\x03", 0)])
def test_keys_that_end_it(daemon: ControlSocket, keys: str, status: int) -> None:
    """Q and Ctrl-C end it quietly, and the terminal is as it was."""
    with top(daemon.path) as terminal:
        terminal.wait_for(shows("anna@example.com"))
        terminal.type(keys)
        assert terminal.ended() == status
        assert has_left(terminal)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end_it(daemon: ControlSocket, number: signal.Signals) -> None:
    """The terminal is as it was, and the exit status tells the signal."""
    with top(daemon.path) as terminal:
        terminal.wait_for(shows("anna@example.com"))
        terminal.process.send_signal(number)
        assert terminal.ended() == 128 + number
        assert has_left(terminal)


def test_a_terminal_that_goes_away_ends_it(daemon: ControlSocket) -> None:
    """No process stays behind when a connection breaks."""
    with top(daemon.path) as terminal:
        terminal.wait_for(shows("anna@example.com"))
        terminal.hang_up()
        assert terminal.process.wait(60) != 0


def test_keys_are_heard_while_the_daemon_thinks(tmp_path: Path) -> None:
    """Whoever has seen enough need not wait for an answer."""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with top(path) as terminal:
            terminal.wait_for(shows("policyd has not answered yet; trying again"))
            terminal.type("q")
            assert terminal.ended() == 0
            assert has_left(terminal)


def test_a_daemon_that_comes_and_goes(tmp_path: Path) -> None:
    """It is told that it is not there, with the last that it said; and it is shown again when it is back."""
    path = tmp_path / "control.sock"
    with top(path, "--every", "0.1", columns=200) as terminal:
        terminal.wait_for(shows("policyd is not running: nothing listens on"))
        with listening(path, dict(ANSWERS)):
            terminal.wait_for(shows("anna@example.com"))
        terminal.wait_for(shows("policyd does not answer, this is the last that it said: policyd is not running"))
        assert any(row.startswith("anna@example.com") for row in terminal.screen)
        path.unlink()
        with listening(path, {**ANSWERS, "/accounts": (200, [{**BUSY, "account": "bert"}])}):
            terminal.wait_for(lambda here: not any("does not answer" in row for row in here.screen))
            terminal.wait_for(lambda here: any(row.startswith("bert") for row in here.screen))
        terminal.type("q")
        assert terminal.ended() == 0
        assert has_left(terminal)


@pytest.mark.parametrize(
    "answer", [b"220 smtp ESMTP\r\n", {}, [], {**STATUS, "uptime": "x"}, {**STATUS, "problems": 1}]
)
def test_an_answer_that_is_none(daemon: ControlSocket, answer: object) -> None:
    """It says so, and goes on trying."""
    daemon.answers = {**ANSWERS, "/status": (200, answer)}
    with top(daemon.path, "--every", "0.1") as terminal:
        terminal.wait_for(lambda here: any(row.startswith("the ") or ": the " in row for row in here.screen))
        daemon.answers = ANSWERS
        terminal.wait_for(lambda here: here.screen[0].startswith("policyd 0.1.0") and here.screen[-1].startswith("q "))
        terminal.wait_for(lambda here: not any("the daemon's answer" in row for row in here.screen))
        terminal.type("q")
        assert terminal.ended() == 0
        assert has_left(terminal)


def test_the_screen_follows_the_terminals_size(daemon: ControlSocket) -> None:
    """At once, without another look; no row is wider than a narrow terminal."""
    daemon.answers = {**ANSWERS, "/accounts": (200, [{**BUSY, "account": "x" * 90}] * 50)}
    with top(daemon.path, "--every", ONCE, columns=200, rows=40) as terminal:
        terminal.wait_for(lambda here: len(here.screen) == 40 and "x" * 90 in here.screen[-2])
        terminal.resize(40, 12)
        terminal.wait_for(lambda here: len(here.screen) == 12)
        assert max(map(len, terminal.screen)) <= 40
        terminal.resize(1, 1)
        terminal.wait_for(lambda here: len(here.screen) == 1)
        terminal.type("q")
        assert terminal.ended() == 0
    assert len([path for _, path, _ in daemon.requests if path == "/status"]) == 1


def test_hostile_names_do_not_steer_the_terminal(daemon: ControlSocket) -> None:
    """They are shown with their control characters escaped."""
    hostile = "\x1b]0;owned\x07\nroot\u202e"
    daemon.answers = {
        "/status": (200, {**STATUS, "problems": [hostile], "answers": {hostile: 1}, "locked": 1}),
        "/locked": (200, [{**LOCK, "account": hostile, "reason": hostile, "by": hostile}]),
        "/accounts": (200, [{**BUSY, "account": hostile}]),
    }
    with top(daemon.path, columns=200) as terminal:
        terminal.wait_for(shows(r"\x1b]0;owned\x07\nroot\u202e  free"))
        terminal.type("q")
        assert terminal.ended() == 0
    assert "\x1b]0;" not in terminal.output
    assert "\u202e" not in terminal.output


def test_it_can_be_stopped_and_continued(daemon: ControlSocket, tmp_path: Path) -> None:
    """Ctrl-Z gives the terminal back to the shell, fg takes it again."""
    settings = environment(PS1="ready> ", HISTFILE="/dev/null")
    with Terminal(["bash", "--norc", "--noprofile", "-i"], settings, REPOSITORY) as shell:
        shell.wait_for_text("ready> ")
        shell.type(f"stty -g > {tmp_path}/before\n")
        shell.wait_for_text("ready> ")
        shell.type(f"{' '.join(CTL)} --socket {daemon.path} top\n")
        shell.wait_for(shows("anna@example.com"))
        shell.type("\x1a")
        shell.wait_for_text(LEAVE.decode())
        shell.wait_for_text("Stopped")
        shell.wait_for_text("ready> ")
        shell.type(f"stty -g > {tmp_path}/stopped\n")
        shell.wait_for_text("ready> ")
        shell.type("fg\n")
        shell.wait_for_text(SHOW.decode())
        shell.wait_for(shows("anna@example.com"))
        shell.type("q")
        shell.wait_for_text(LEAVE.decode())
        shell.wait_for_text("ready> ")
        shell.type(f"stty -g > {tmp_path}/after\n")
        shell.wait_for_text("ready> ")
    modes = [(tmp_path / name).read_text() for name in ("before", "stopped", "after")]
    assert modes == [modes[0]] * 3


def test_what_is_no_terminal_is_told_what_to_do(daemon: ControlSocket) -> None:
    """In one line, with exit status 2, and without a question to the daemon."""
    expected = "policyctl: top needs a terminal; for a pipe there are status, accounts, locked, and top --json"
    assert line_of(run(daemon, "top"), 2) == expected
    assert daemon.requests == []


def test_a_terminal_that_cannot_place_its_cursor(daemon: ControlSocket) -> None:
    """Is no better."""
    command = ["env", "TERM=dumb", *CTL, "--socket", str(daemon.path), "top"]
    with Terminal(command, environment(), REPOSITORY) as terminal:
        assert terminal.ended() == 2
    assert "policyctl: top needs a terminal that can place its cursor" in terminal.output


def test_a_config_with_mistakes_ends_it(tmp_path: Path) -> None:
    """It does not mend itself; the terminal is as it was, and the mistakes are told below."""
    config = tmp_path / "policyd.yaml"
    config.write_text("nonsense: 1\n")
    with Terminal([*CTL, "-c", str(config), "top"], environment(), REPOSITORY) as terminal:
        assert terminal.ended() == 2
        assert terminal.mode == terminal.before
    assert f"policyctl: cannot use {config}" in terminal.output.rpartition(LEAVE.decode())[2]


def test_json_needs_no_terminal(daemon: ControlSocket) -> None:
    """Two looks, the rates between them, and out."""
    finished = run(daemon, "top", "--json", "--every", "0.1")
    assert (finished.returncode, finished.stderr) == (0, "")
    value = json.loads(finished.stdout)
    assert value == {"rates": None, "status": STATUS, "locked": [], "accounts": [BUSY]}
    with Policyd() as policyd:
        value = policyd.ctl_json("top", "--every", "0.1")
    assert value["rates"]["seconds"] >= 0.1
    assert value["rates"]["requests"] == {}
    assert (value["locked"], value["accounts"]) == ([], [])


def test_json_of_a_daemon_that_does_not_run(tmp_path: Path) -> None:
    """Is told as with every command."""
    finished = policyctl("--socket", str(tmp_path / "none"), "top", "--json")
    assert line_of(finished, 3).startswith("policyctl: policyd is not running")


@pytest.mark.parametrize("every", ["0", "0.05", "3601", "x", "-1", "1e3", "nan"])
def test_an_interval_that_makes_no_sense(every: str) -> None:
    """Is told before anything is asked."""
    finished = policyctl("top", f"--every={every}")
    assert finished.returncode == 2
    assert f"argument --every: want seconds from 0.1 to 3600 such as 2, got '{every}'" in finished.stderr
