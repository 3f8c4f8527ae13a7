"""What systemd is told, seen from the socket on which it listens."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from policyd.systemd import Notifier, boot_id


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """Listen as systemd does, and give what it puts into $NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        if request.param == "path":
            name = str(tmp_path / "notify")
            listening.bind(name)
        else:
            name = f"@policyd-test-{os.getpid()}"
            listening.bind(f"\0{name[1:]}")
        listening.settimeout(10)
        yield listening, name


def test_each_state_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    """The assignments are those of sd_notify(3), in one datagram a state, in order."""
    listening, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("0 requests")
    notifier.alive("1 requests")
    notifier.stopping()
    assert [listening.recv(4096) for _ in range(3)] == [
        b"READY=1\nSTATUS=0 requests",
        b"WATCHDOG=1\nSTATUS=1 requests",
        b"STOPPING=1",
    ]


def test_reloading_tells_the_time(manager: tuple[socket.socket, str]) -> None:
    """Type=notify-reload wants CLOCK_MONOTONIC in microseconds with RELOADING."""
    listening, name = manager
    before = time.monotonic_ns() // 1000
    Notifier({"NOTIFY_SOCKET": name}).reloading()
    state, _, told = listening.recv(4096).decode().partition("\n")
    assert state == "RELOADING=1"
    assert before <= int(told.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_a_manager_nothing_is_sent(environment: dict[str, str]) -> None:
    """Started by hand, the daemon tells nobody."""
    notifier = Notifier(environment)
    notifier.ready("")
    notifier.reloading()
    notifier.alive("")
    notifier.stopping()
    assert notifier.watchdog is None


def test_a_manager_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    """A socket that is missing, dead, or no socket at all does not keep the daemon from its mail."""
    dead = tmp_path / "dead"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(dead))
    (tmp_path / "file").touch()
    for name in (dead, tmp_path / "missing", tmp_path / "file", tmp_path / ("x" * 200)):
        Notifier({"NOTIFY_SOCKET": str(name)}).ready("")


def test_a_manager_that_does_not_read_stops_nothing(manager: tuple[socket.socket, str]) -> None:
    """A full queue loses a sign of life, and delays no reply."""
    notifier = Notifier({"NOTIFY_SOCKET": manager[1]})
    for _ in range(2000):
        notifier.alive("x" * 1000)


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ""}, None),
        ({"WATCHDOG_PID": str(os.getpid())}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "1.5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_minded_where_it_is_meant(environment: dict[str, str], seconds: float | None) -> None:
    """$WATCHDOG_USEC counts if $WATCHDOG_PID is this process or absent, as sd_watchdog_enabled(3) has it."""
    assert Notifier(environment).watchdog == seconds


def test_a_boot_has_one_name_whoever_tells_it(tmp_path: Path) -> None:
    """The kernel writes it with hyphens, systemd without; within a boot both mean the same."""
    kernels = tmp_path / "boot_id"
    kernels.write_text("a3c4e6f8-0000-4000-8000-123456789abc\n")
    name = "a3c4e6f8000040008000123456789abc"
    assert boot_id({}, kernels) == boot_id({"POLICYD_BOOT_ID": name}, tmp_path / "missing") == name


def test_a_boot_that_nobody_names_is_taken_for_another(tmp_path: Path) -> None:
    """Times of a boot that may be another are not compared with those of this one."""
    assert boot_id({}, tmp_path / "missing") != boot_id({}, tmp_path / "missing")
