"""A terminal, for tests that sit at one: what is typed goes to a command, what it shows is waited for."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.daemon import PATIENCE

ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[>=])")


class Terminal:
    """A command that has a terminal of its own, as a context manager."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, columns: int = 100, rows: int = 30
    ) -> None:
        self._ours, self._theirs = pty.openpty()
        self.resize(columns, rows)
        self.before = self.mode
        """How the terminal was when the command came."""
        self.output = ""
        """All that the command has shown so far."""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env={**environment, "TERM": "xterm"},
            cwd=folder,
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.hang_up()
        os.close(self._theirs)

    @property
    def mode(self) -> list[Any]:
        """How the terminal is now: termios(3)."""
        return termios.tcgetattr(self._theirs)

    @property
    def screen(self) -> list[str]:
        """The rows that were last drawn as a whole, from the upper left corner on."""
        drawn = self.output.rpartition("\x1b[J")[0].rpartition("\x1b[H")[2]
        return [ESCAPES.sub("", row).rstrip("\r") for row in drawn.split("\r\n")]

    def resize(self, columns: int, rows: int) -> None:
        """Make the terminal larger or smaller."""
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        """Type keys; those like Ctrl-C do what they do."""
        os.write(self._ours, keys.encode())

    def wait_for(self, seen: Callable[[Terminal], object]) -> None:
        """Wait until what the command has shown is as it should be."""
        deadline = time.monotonic() + PATIENCE
        while not seen(self):
            patience = max(deadline - time.monotonic(), 0)
            ready, _, _ = select.select([self._ours], [], [], patience)
            assert ready, f"this has not been shown in {PATIENCE:g} s; shown was:\n{self.output[-5000:]!r}"
            self._read()

    def wait_for_text(self, text: str) -> None:
        """Wait until something is shown that was not yet, and forget all up to there."""
        self.wait_for(lambda terminal: text in terminal.output)
        self.output = self.output.partition(text)[2]

    def ended(self) -> int:
        """Wait until the command has ended by itself, having shown all; return its exit status."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"the command does not end; shown was:\n{self.output[-5000:]!r}"
            if select.select([self._ours], [], [], 0.01)[0]:
                self._read()
        while select.select([self._ours], [], [], 0)[0]:
            self._read()
        return self.process.returncode

    def hang_up(self) -> None:
        """Take the terminal away, as a broken connection does."""
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1

    def _read(self) -> None:
        self.output += os.read(self._ours, 65536).decode(errors="backslashreplace")
