"""The load generators, as processes of their own: the one in C, or where there is no compiler the one in Python."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from policyd.limits import HOUSE_RULES
from tests.bench.load import ACCOUNT, COUNT, INSTANCE, RECIPIENT, STATE
from tests.bench.machine import pinned
from tests.daemon import REPOSITORY, request

HERE = Path(__file__).resolve().parent
C_SOURCE, FLOOR_SOURCE = HERE / "load.c", HERE / "floor.c"

MOST_RATE = 250_000
"""Requests a second that no server which counts answers: what a run may last is reckoned with it."""

MOST_MESSAGES = next(limit.max or 0 for limit in HOUSE_RULES if limit.name == "messages-per-half-hour")
"""Messages of an account that the shipped limits let pass."""

PEAK = 0.01
SPREAD = 6
"""Standard deviations by which no account is above the others, by chance."""


def template() -> bytes:
    """Return a request as Postfix 3.7 sends it, with the generators' marks in place of what differs."""
    return request(
        protocol_state=STATE,
        sasl_username=ACCOUNT,
        sender=ACCOUNT,
        recipient=RECIPIENT,
        recipient_count=COUNT,
        instance=INSTANCE,
    )


class LoadFailedError(Exception):
    """The generator met something else than DUNNO, or could not do its work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a generator is to do; load.c says what each of it means."""

    socket: str
    run: str
    seed: int
    connections: int = 50
    seconds: float = 0.0
    rate: float = 0.0
    messages: int = 0
    accounts: int = 1000
    recipients: int = 3
    depth: int = 1

    @property
    def arguments(self) -> list[str]:
        """The generators' options."""
        options: dict[str, object] = {
            "-c": self.connections,
            "-s": self.seconds,
            "-r": self.rate,
            "-m": self.messages,
            "-a": self.accounts,
            "-n": self.recipients,
            "-d": self.depth,
            "-t": self.run,
            "-i": self.seed,
        }
        return [text for name, value in options.items() for text in (name, str(value))]


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to. Times are in ms, `began` and `greatest_at` on CLOCK_MONOTONIC in seconds."""

    requests: int
    seconds: float
    busy: float
    """The part of the time in which the generator had something to do."""
    away: float
    """The longest time between two of the generator's looks at its connections."""
    began: float
    p50: float
    p99: float
    p999: float
    greatest: float
    greatest_at: float
    peaks: tuple[float, ...]
    """The greatest time of those due in each span of PEAK seconds."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def ceiling(self) -> float:
        """Requests a second that the generator could have made at that price."""
        return self.rate / self.busy


def longest(accounts: int = 1000, recipients: int = 3) -> float:
    """Return for how many seconds a load can last and surely reach no limit, were the server as fast as none is."""
    # the greatest mean m for which m + SPREAD * sqrt(m) stays below the maximum
    mean = (math.sqrt(SPREAD**2 + 4 * (MOST_MESSAGES - 1)) - SPREAD) ** 2 / 4
    return mean * accounts * (recipients + 1) / MOST_RATE


class Asking:
    """A generator that is connected, and waits to begin."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def result(self) -> Result:
        """Have it ask, and return what that came to. Raises LoadFailedError."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found = json.loads(self.line())
        return Result(**{**found, "peaks": tuple(found["peaks"])})

    def line(self) -> str:
        """Return the next line that the generator writes. Raises LoadFailedError."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            raise LoadFailedError(self._process.stderr.read().strip() or f"exit status {self._process.wait()}")
        return line


class Generator:
    """Makes loads, with the program in C if there is one, on a core of its own if there is one."""

    def __init__(self, folder: Path, program: Path | None, core: int | None) -> None:
        self._template = folder / "template"
        self._template.write_bytes(template())
        self.name = "load.c" if program else "load.py (there is no C compiler)"
        self.compiled = program is not None
        self._command = [str(program)] if program else [sys.executable, "-m", "tests.bench.load"]
        self._core = core

    @contextmanager
    def connected(self, load: Load) -> Iterator[Asking]:
        """Connect; each connection has been answered once, so that it is accepted. Raises LoadFailedError."""
        alone = [] if self._core is not None else ["-w"]
        options = [*load.arguments, *alone, load.socket, str(self._template)]
        with subprocess.Popen(
            [*pinned(self._core), *self._command, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        ) as process:
            try:
                asking = Asking(process)
                asking.line()
                yield asking
            except BaseException:
                process.kill()
                raise

    def run(self, load: Load) -> Result:
        """Connect, ask and hang up. Raises LoadFailedError."""
        with self.connected(load) as asking:
            return asking.result()
