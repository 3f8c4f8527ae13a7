"""policyctl status --nagios: one line, figures, and the exit status that a monitor goes by."""

from __future__ import annotations

import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.ctl_nagios import CRITICAL, OK, UNKNOWN, WARNING, judged
from tests.control_socket import ANSWERS, STATUS, ControlSocket, listening, policyctl, run, said
from tests.daemon import Policyd
from tests.test_ctl_client import AS_NOBODY

FIGURE = re.compile(r"[A-Za-z0-9_.-]+=[0-9]+(s|c)?;[0-9]*;[0-9]*;0;")
FIGURES = (
    "locked=0;;;0; accounts=3;;;0; connections=2;;;0; problems=0;;;0; uptime=12s;;;0; requests=12c;;;0; "
    "answers_DUNNO=12c;;;0; protocol_errors=0c;;;0; internal_errors=0c;;;0;"
)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ControlSocket]:
    """Run a daemon with which all is well."""
    with listening(tmp_path / "control.sock", dict(ANSWERS)) as server:
        yield server


def test_all_is_well(daemon: ControlSocket) -> None:
    """One line and exit status 0."""
    expected = f"POLICYD OK - none locked of 3 accounts| {FIGURES}\n"
    assert said(run(daemon, "status", "--nagios")) == (OK, expected, "")
    assert daemon.requests == [("GET", "/status", None)]


@pytest.mark.parametrize(
    ("locked", "thresholds", "state", "text"),
    [
        (2, (None, None), OK, "OK - 2 locked of 3 accounts"),
        (2, (2, 5), OK, "OK - 2 locked of 3 accounts"),
        (3, (2, 5), WARNING, "WARNING - 3 locked, more than 2"),
        (6, (2, 5), CRITICAL, "CRITICAL - 6 locked, more than 5"),
        (1, (0, None), WARNING, "WARNING - 1 locked, more than 0"),
        (6, (None, 5), CRITICAL, "CRITICAL - 6 locked, more than 5"),
    ],
)
def test_too_many_locks(locked: int, thresholds: tuple[int | None, int | None], state: int, text: str) -> None:
    """A threshold is the last number that is not yet too many, as Nagios reads a range of one number."""
    found, line = judged({**STATUS, "locked": locked}, *thresholds)
    warning, critical = ("" if most is None else most for most in thresholds)
    assert (found, line.partition("| ")[0]) == (state, f"POLICYD {text}")
    assert f"| locked={locked};{warning};{critical};0; " in line


def test_problems_are_a_warning(daemon: ControlSocket) -> None:
    """What the daemon names as a problem is the text; a `|` or a line end in it cannot forge figures."""
    daemon.answers = {"/status": (200, {**STATUS, "problems": ["disk |x=1\n|full", "no DATA"]})}
    finished = run(daemon, "status", "--nagios")
    assert (finished.returncode, finished.stderr) == (WARNING, "")
    assert finished.stdout.startswith("POLICYD WARNING - disk /x=1\\n/full; no DATA| locked=0;")


def test_locks_beyond_the_critical_threshold_are_worse_than_problems() -> None:
    """The worst counts, and both are told."""
    state, line = judged({**STATUS, "locked": 9, "problems": ["no DATA"]}, 1, 5)
    assert (state, line.partition("| ")[0]) == (
        CRITICAL,
        "POLICYD CRITICAL - 9 locked, more than 5; no DATA",
    )


def test_a_daemon_that_does_not_run_is_critical(tmp_path: Path) -> None:
    """For then mail is not limited."""
    finished = policyctl("--socket", str(tmp_path / "none"), "status", "--nagios")
    assert (finished.returncode, finished.stderr) == (CRITICAL, "")
    (line,) = finished.stdout.splitlines()
    assert line.startswith("POLICYD CRITICAL - policyd is not running: nothing listens on ")


def test_a_daemon_that_breaks_off_is_critical(daemon: ControlSocket) -> None:
    """So is one that dies meanwhile."""
    daemon.answers = {"/status": (200, b"")}
    finished = run(daemon, "status", "--nagios")
    assert (finished.returncode, finished.stderr) == (CRITICAL, "")
    assert finished.stdout.startswith("POLICYD CRITICAL - policyd broke off on ")


def test_a_daemon_that_accepts_nobody_is_critical(tmp_path: Path) -> None:
    """A daemon that hangs is no better than none."""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind(str(path))
        full.listen(0)
        first.connect(str(path))
        finished = policyctl("--socket", str(path), "status", "--nagios")
    assert (finished.returncode, finished.stderr) == (CRITICAL, "")


def test_a_socket_that_is_closed_to_us_is_unknown() -> None:
    """Where the plugin may not ask, nothing is known of the daemon."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, listening(Path(folder, "control.sock"), ANSWERS) as daemon:
        Path(folder).chmod(0o755)
        daemon.path.chmod(0)
        finished = run(daemon, "status", "--nagios", command=(sys.executable, "-c", AS_NOBODY_TOO))
    assert (finished.returncode, finished.stderr) == (UNKNOWN, "")
    assert finished.stdout.startswith("POLICYD UNKNOWN - permission denied on ")


AS_NOBODY_TOO = "import locale, policyd.ctl_nagios\n" + AS_NOBODY
"""All that is needed has to be loaded while we can still read it."""


@pytest.mark.parametrize(
    "answer", [b"220 smtp ESMTP\r\n", {}, [], {**STATUS, "locked": "x"}, {**STATUS, "uptime": None}]
)
def test_an_answer_that_is_none_is_unknown(daemon: ControlSocket, answer: Any) -> None:
    """Something else on the socket is told in one line, never in a traceback."""
    daemon.answers = {"/status": (200, answer)}
    finished = run(daemon, "status", "--nagios")
    assert (finished.returncode, finished.stderr) == (UNKNOWN, "")
    (line,) = finished.stdout.splitlines()
    assert line.startswith("POLICYD UNKNOWN - the ")


@pytest.mark.parametrize(
    "args",
    [
        ["anna@example.com"],
        ["--json"],
        ["--warning-locked", "x"],
        ["--critical-locked", "-1"],
        ["--no-such"],
        ["-c", "/no/such.yaml"],
    ],
)
def test_a_check_that_is_configured_wrongly_is_unknown(args: list[str]) -> None:
    """Wrong usage says UNKNOWN on stdout, where Nagios looks."""
    finished = policyctl("status", "--nagios", *args)
    assert finished.returncode == UNKNOWN
    (line,) = finished.stdout.splitlines()
    assert line.startswith("POLICYD UNKNOWN - ")


def test_thresholds_without_nagios_are_wrong_usage() -> None:
    """They are not silently ignored."""
    finished = policyctl("status", "--warning-locked", "5")
    assert said(finished) == (2, "", "policyctl: --warning-locked and --critical-locked go with --nagios\n")


@given(
    problems=st.lists(st.text(max_size=700), max_size=3),
    answers=st.dictionaries(st.text(), st.integers(0, 10**12), max_size=3),
    locked=st.integers(0, 10),
    thresholds=st.tuples(st.none() | st.integers(0, 10), st.none() | st.integers(0, 10)),
)
def test_whatever_is_told_it_is_one_line_with_figures(
    problems: list[str], answers: dict[str, int], locked: int, thresholds: tuple[int | None, int | None]
) -> None:
    """The line has one `|`, a bounded text before it and well-formed figures after; the state is the worst there is."""
    status = {**STATUS, "problems": problems, "answers": answers, "locked": locked}
    state, line = judged(status, *thresholds)
    text, figures = line.split("|")
    assert line.isprintable()
    assert len(text) < 600
    assert [figure for figure in figures.split() if not FIGURE.fullmatch(figure)] == []
    warning, critical = ((most is not None and locked > most) for most in thresholds)
    assert state == (CRITICAL if critical else WARNING if warning or problems else OK)


def test_the_real_daemon() -> None:
    """The daemon's own answer is what the plugin expects; problems of a daemon that is asked at RCPT alone are told."""
    with Policyd() as policyd:
        done = policyd.ctl("status", "--nagios")
        assert (done.returncode, done.stderr) == (OK, "")
        assert done.stdout.startswith("POLICYD OK - none locked of 0 accounts| locked=0;;;0; ")
        policyd.ask()
        done = policyd.ctl("status", "--nagios")
    assert done.returncode == WARNING
    assert "answers_DUNNO=1c;;;0;" in done.stdout
