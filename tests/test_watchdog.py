"""The watchdog: signs of life come from the reactor, so that systemd restarts a daemon that has stopped answering."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.daemon import Policyd
from tests.waiting import until

WATCHDOG = 0.3
"""Seconds within which systemd wants a sign of life."""


def signs(daemon: Policyd) -> int:
    """Return how many signs of life there have been."""
    return daemon.notices.count("WATCHDOG=1")


def stopped(process: int) -> bool:
    """Tell whether a process does nothing because of SIGSTOP."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_daemon_that_is_stuck_gives_no_sign_of_life() -> None:
    """They come at twice the rate that systemd wants, none comes while it is stuck, and they come again after that."""
    with Policyd(environment={"WATCHDOG_USEC": str(int(WATCHDOG * 1e6))}) as daemon:
        until(lambda: signs(daemon) >= 2)
        connection = daemon.connect()
        assert connection.ask() == "DUNNO"
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            until(lambda: stopped(daemon.pid))
            before = signs(daemon)
            time.sleep(1.5 * WATCHDOG)  # by now systemd would have restarted it
            assert signs(daemon) == before
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        began = time.monotonic()
        until(lambda: signs(daemon) >= before + 3)
        assert time.monotonic() - began < 4 * WATCHDOG
        assert connection.ask() == "DUNNO"


def test_the_unit_has_a_watchdog() -> None:
    """A reactor that is blocked for 30 s is restarted, whatever the exit status that this is."""
    unit = (Path(__file__).parent.parent / "systemd" / "policyd.service").read_text().splitlines()
    assert {"Type=notify", "WatchdogSec=30s", "Restart=on-failure"} <= set(unit)
