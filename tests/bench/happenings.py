"""What an administrator does to a daemon while mail flows: policyctl and reloads, in a thread of the benchmark's."""

from __future__ import annotations

import itertools
import resource
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from types import TracebackType

from policyd.ctl_client import Question, ask
from tests.daemon import Policyd

ACCOUNTS, STATUS, RELOAD = "policyctl accounts", "policyctl status", "SIGHUP"

HOW = (
    "policyctl's requests are made by its own client over the control socket, on the generator's core: to start a"
    " Python for each would stop the generator. SIGHUP lasts until the daemon says that it is ready again."
)


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that was done to a daemon: what, when (CLOCK_MONOTONIC), and how long it took, in seconds."""

    name: str
    at: float
    took: float


def doings(daemon: Policyd) -> dict[str, Callable[[], object]]:
    """Return what can be done to a daemon, by name."""
    places = [str(daemon.control)]
    return {
        ACCOUNTS: lambda: ask(places, Question("/accounts?sort=messages&n=20")),
        STATUS: lambda: ask(places, Question("/status")),
        RELOAD: daemon.reload,
    }


class Happenings:
    """Does some things to a daemon in turn, one each so many seconds, for as long as the with statement lasts.

    There is at least half that time between two of them, so that it can be told what a pause is of.
    """

    def __init__(self, daemon: Policyd, names: Sequence[str], interval: float) -> None:
        self._daemon = daemon
        known = doings(daemon)
        self._doings = [(name, known[name]) for name in names]
        self._interval = interval
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="happenings")
        self.happened: list[Happening] = []

    def __enter__(self) -> Happenings:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise RuntimeError(f"the daemon's log:\n{self._daemon.stderr}") from self._error

    def _run(self) -> None:
        next_time = time.monotonic() + self._interval / 2
        for name, do in itertools.cycle(self._doings):
            if self._over.wait(max(0.0, next_time - time.monotonic())):
                return
            began = time.monotonic()
            try:
                do()
            except BaseException as error:  # whoever waits for the thread is told
                self._error = error
                return
            ended = time.monotonic()
            self.happened.append(Happening(name, began, ended - began))
            next_time = max(next_time + self._interval, ended + self._interval / 2)


def cpu_of_status(daemon: Policyd, times: int = 5) -> float:
    """Return the CPU seconds of a `policyctl status`, started as a process: the median of some."""
    found = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert daemon.ctl("status").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return median(found)
