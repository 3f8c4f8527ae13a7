"""What systemd is told of the daemon, sd_notify(3) and the watchdog, and what it tells, without a library."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4
from weakref import finalize

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Notifier:
    """Sends the daemon's state to the service manager; does nothing where none has asked for it."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._manager: socket.socket | None = None
        """Open from the first notice on: there must be a sign of life where no more descriptors are to be had."""
        self.watchdog = _watchdog_seconds(environment)
        """Seconds within which systemd wants a sign of life; None where it wants none."""

    def ready(self, status: str) -> None:
        """Tell that requests are answered, after the start or a reload."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Tell that the config is read anew."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Tell that the end has begun."""
        self._send("STOPPING=1")

    def alive(self, status: str) -> None:
        """Give the sign of life that the watchdog waits for."""
        self._send("WATCHDOG=1", f"STATUS={status}")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        try:
            if self._manager is None:
                kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
                self._manager = socket.socket(socket.AF_UNIX, kind)
                finalize(self, self._manager.close)
            self._manager.sendto("\n".join(assignments).encode(), self._address)
        except OSError:
            return  # a manager that does not listen must not stop the mail


def boot_id(environment: Mapping[str, str] = os.environ, kernels: Path = BOOT_ID) -> str:
    """Return what names this boot of the machine: the unit tells it, or else the kernel.

    Where neither does, it is a name that never comes again, as if there had been another boot.
    """
    try:
        told = environment.get("POLICYD_BOOT_ID") or kernels.read_text()
    except OSError:
        told = str(uuid4())
    return told.strip().replace("-", "")


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not (microseconds.isascii() and microseconds.isdigit()):
        return None
    return int(microseconds) / 1e6 or None
