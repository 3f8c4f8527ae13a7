"""How policyctl finds the daemon, and what it says when it does not, or gets no answer."""

from __future__ import annotations

import contextlib
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from policyd import __version__
from policyd.ctl_client import CtlError, Question, ask
from tests.control_socket import ANSWERS, ControlSocket, line_of, listening, policyctl, run, said

NOBODY = 65534


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ControlSocket]:
    """Run a daemon that answers every command."""
    with listening(tmp_path / "control.sock", dict(ANSWERS)) as server:
        yield server


def test_a_daemon_that_is_not_running(tmp_path: Path) -> None:
    """Where nothing listens, one line names the socket and what to check; the exit status is 3."""
    path = tmp_path / "control.sock"
    expected = (
        f"policyctl: policyd is not running: nothing listens on {path}. Check that it is started "
        "(systemctl status policyd), and that this is its socket (see policyctl --help)"
    )
    assert line_of(policyctl("--socket", str(path), "status"), 3) == expected
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    assert line_of(policyctl("--socket", str(path), "status"), 3) == expected


def test_a_path_that_no_socket_can_have() -> None:
    """A path too long for a socket is told as such."""
    path = "/nowhere/" + "x" * 200
    assert (
        line_of(policyctl("--socket", path, "status"), 3)
        == f"policyctl: cannot connect to {path}: AF_UNIX path too long"
    )


def test_the_environment_names_the_socket(daemon: ControlSocket) -> None:
    """$POLICYD_CONTROL is the socket where the command line names none."""
    assert policyctl("locked", env={"POLICYD_CONTROL": str(daemon.path)}).returncode == 0


def test_the_command_line_beats_the_environment(daemon: ControlSocket, tmp_path: Path) -> None:
    """--socket wins over $POLICYD_CONTROL, and can stand after the command."""
    env = {"POLICYD_CONTROL": str(tmp_path / "none")}
    assert policyctl("locked", "--socket", str(daemon.path), env=env).returncode == 0


def test_the_default_place_is_tried(daemon: ControlSocket) -> None:
    """With nothing said, the daemon's own default place is found; an empty variable says nothing."""
    env = {"RUNTIME_DIRECTORY": str(daemon.path.parent), "POLICYD_CONTROL": ""}
    assert policyctl("locked", env=env).returncode == 0


def test_the_config_names_the_socket(daemon: ControlSocket, tmp_path: Path) -> None:
    """`control:` in the file that -c names is the socket."""
    config = tmp_path / "policyd.yaml"
    config.write_text(f"control: {daemon.path}\n")
    assert said(policyctl("-c", str(config), "locked")) == (0, "no account is locked\n", "")


def test_a_config_that_names_no_socket_leaves_the_default(daemon: ControlSocket, tmp_path: Path) -> None:
    """A config without `control:` leaves the default places."""
    config = tmp_path / "policyd.yaml"
    config.write_text("observe: true\n")
    assert policyctl("-c", str(config), "locked", env={"RUNTIME_DIRECTORY": str(daemon.path.parent)}).returncode == 0


def test_a_config_that_cannot_be_used(tmp_path: Path) -> None:
    """A config with a mistake is told with its problems, with exit status 2."""
    config = tmp_path / "policyd.yaml"
    config.write_text("control: [1, 2]\n")
    finished = policyctl("-c", str(config), "locked")
    first, *problems = finished.stderr.splitlines()
    assert (finished.returncode, first) == (2, f"policyctl: cannot use {config}")
    assert problems
    assert all(problem.startswith(f"{config}:1: control") for problem in problems)


AS_NOBODY = f"""
import grp, locale, os, shutil, sys
from policyd.ctl import main
if not os.geteuid():
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
sys.exit(main())
"""
"""policyctl for somebody whom permissions bind; it loads all its modules while it still can read them."""


@pytest.mark.parametrize(("barrier", "kind"), [("control.sock", "socket"), ("", "folder")])
def test_a_socket_that_is_closed_to_us(barrier: str, kind: str) -> None:
    """Who may not use the socket is told which group may; that is not the same as a daemon that does not run."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, listening(Path(folder, "control.sock"), ANSWERS) as daemon:
        Path(folder).chmod(0o755)
        closed = Path(folder, barrier)
        closed.chmod(0)
        group = closed.group()
        finished = run(daemon, "status", command=(sys.executable, "-c", AS_NOBODY))
        Path(folder).chmod(0o700)
    assert line_of(finished, 3) == (
        f"policyctl: permission denied on {daemon.path}: the {kind} {closed} belongs to group {group}, mode 0000; "
        "run policyctl as root or as a member of that group"
    )


def test_a_daemon_that_hangs(tmp_path: Path) -> None:
    """A daemon that accepts and never answers is given up, with exit status 3."""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(CtlError) as caught:
            ask([str(path)], Question("/reload", {}), patience=0.01)
    assert (caught.value.status, caught.value.lines) == (
        3,
        [
            f"policyctl: policyd has not answered on {path} within 0.01 s: it hangs, see its log; "
            "whether it has done it is not known"
        ],
    )


def test_a_daemon_that_accepts_nobody(tmp_path: Path) -> None:
    """A daemon whose queue of connections is full is told at once, with exit status 3."""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind(str(path))
        full.listen(0)
        first.connect(str(path))
        line = line_of(policyctl("--socket", str(path), "status"), 3)
    assert line == f"policyctl: policyd does not accept connections on {path}: it hangs, see its log"


HTTP = b"HTTP/1.1 200 OK\r\nContent-Length: "


@pytest.mark.parametrize(
    ("answer", "status", "line"),
    [
        (b"", 3, "policyd broke off on {path} before it had answered: it was stopped or died, see its log"),
        (
            HTTP + b"99\r\n\r\n[",
            3,
            "policyd broke off on {path} before it had answered: it was stopped or died, see its log",
        ),
        (b"220 smtp ESMTP\r\n", 1, "the answer on {path} is no HTTP: is this policyd's control socket?"),
        (HTTP + b"2\r\n\r\nhi", 1, "the answer on {path} is no JSON: is this policyd's control socket?"),
        (HTTP + b"3\r\n\r\nNaN", 1, "the answer on {path} is no JSON: is this policyd's control socket?"),
        (HTTP + b"1\r\n\r\n\xff", 1, "the answer on {path} is no JSON: is this policyd's control socket?"),
        (
            HTTP + b"99999\r\n\r\n" + b"[" * 99999,
            1,
            "the answer on {path} is no JSON: is this policyd's control socket?",
        ),
        (
            b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n<>",
            1,
            "the answer, 500 Oops, on {path} is no JSON: is this policyd's control socket?",
        ),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\n[]", 1, "policyd answered 503 Busy, and no reason"),
        (
            HTTP + b"2\r\n\r\n{}",
            1,
            f"the daemon's answer is not what policyctl {__version__} expects: is policyd of the same version?",
        ),
    ],
)
def test_an_answer_that_is_none(daemon: ControlSocket, answer: bytes, status: int, line: str) -> None:
    """Whatever comes instead of an answer ends in one plain line, never in a traceback."""
    daemon.answers = {"/status": (200, answer)}
    assert line_of(run(daemon, "status"), status) == "policyctl: " + line.format(path=daemon.path)


def test_a_daemon_that_answers_too_slowly(tmp_path: Path) -> None:
    """The whole answer has to be there in time: a byte now and then is not enough."""
    path = tmp_path / "control.sock"
    given_up = threading.Event()

    def trickle(listening: socket.socket) -> None:
        client, _ = listening.accept()
        with client, contextlib.suppress(OSError):
            client.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not given_up.wait(0.01):
                client.sendall(b"x")

    with socket.socket(socket.AF_UNIX) as listening_socket:
        listening_socket.bind(str(path))
        listening_socket.listen()
        daemon = threading.Thread(target=trickle, args=(listening_socket,))
        daemon.start()
        try:
            with pytest.raises(CtlError, match=r"policyd has not answered on .* within 0.1 s"):
                ask([str(path)], Question("/status"), patience=0.1)
        finally:
            given_up.set()
            daemon.join()


@pytest.mark.parametrize("value", [{}, None, "", 0, {"error": "x"}])
@pytest.mark.parametrize("command", ["accounts", "locked"])
def test_a_list_that_is_none(daemon: ControlSocket, command: str, value: object) -> None:
    """Something else in place of a list is not taken for an empty one."""
    daemon.answers = {f"/{command}": (200, value)}
    expected = f"the daemon's answer is not what policyctl {__version__} expects: is policyd of the same version?"
    assert line_of(run(daemon, command), 1) == f"policyctl: {expected}"
