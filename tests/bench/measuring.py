"""Measuring: a load on a server, what it came to, and many of these in turn."""

from __future__ import annotations

import itertools
import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.bench.generator import Generator, Load, Result
from tests.bench.machine import Cores, Others, awake, cpu_of, memory_of, pinned
from tests.bench.servers import Kind, Running

WIDTH = 120

GLANCE = 0.2
"""Seconds for which the machine is looked at, to see whether it is idle."""

DISTURBED = 0.1
"""The part of a core from which on what else uses it makes a figure doubtful."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure, and how often."""

    seconds: float
    """Seconds of a run in a closed loop."""
    rounds: int
    paced_seconds: float
    """Seconds of a run at a steady rate."""
    peers: bool
    """Whether other projects' daemons are measured, too."""
    patience: float
    """Seconds in all for which a run may wait until nobody else uses the cores."""
    sizes: tuple[int, ...]
    """Accounts in the tables of the daemons that are to be equally fast."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: of a part of the benchmark, in a setting, with a server."""

    part: str
    setting: str
    server: str
    turn: int
    result: Result
    cpu: float
    """Microseconds of CPU time that a request cost the server, with what the run before had left to be done later."""
    memory: int
    """Bytes resident afterwards."""
    others: float
    """The part of one of the two cores that something else used meanwhile; 0 where nothing is pinned."""


@dataclass(frozen=True, slots=True)
class Series:
    """All runs of a server in a setting; its figures are their medians."""

    samples: tuple[Sample, ...]

    def __bool__(self) -> bool:
        return bool(self.samples)

    def of(self, figure: Callable[[Result], float]) -> float:
        """Return the median of a figure."""
        return median(figure(sample.result) for sample in self.samples)

    @property
    def rates(self) -> list[float]:
        """Requests a second, the least first."""
        return sorted(sample.result.rate for sample in self.samples)

    @property
    def rate(self) -> float:
        """Requests a second."""
        return median(self.rates)

    @property
    def cpu(self) -> float:
        """Microseconds of CPU time a request."""
        return median(sample.cpu for sample in self.samples)

    @property
    def memory(self) -> float:
        """Bytes resident."""
        return median(sample.memory for sample in self.samples)

    @property
    def cells(self) -> tuple[str, str]:
        """The rate, marked where the machine was not idle, and its least and most, for a table."""
        mark = "!" if median(sample.others for sample in self.samples) > DISTURBED else ""
        return f"{self.rate:,.0f}{mark}", f"{self.rates[0]:,.0f} to {self.rates[-1]:,.0f}"

    @property
    def latencies(self) -> tuple[float, float, float]:
        """p50, p99 and p99.9 in ms."""
        return self.of(lambda r: r.p50), self.of(lambda r: r.p99), self.of(lambda r: r.p999)

    @property
    def greatest(self) -> float:
        """The greatest time of all, in ms."""
        return max(sample.result.greatest for sample in self.samples)


@dataclass(slots=True)
class Bench:
    """What all parts of the benchmark share: the plan, the generator, the cores, and what was found so far."""

    plan: Plan
    generator: Generator
    cores: Cores
    folder: Path
    floor: Path | None
    """The compiled floor; None where there is no compiler."""
    samples: list[Sample] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    """Figures that are not of a run, by name."""
    waited: float = 0.0
    """Seconds for which the machine was not idle, and nothing was measured."""
    _seeds: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def server_prefix(self) -> tuple[str, ...]:
        """The command that has a server run on its core."""
        return pinned(self.cores.server)

    @property
    def seed(self) -> int:
        """Another seed each time."""
        return next(self._seeds)

    def measure(
        self,
        sample: tuple[str, str, int],
        running: Running,
        kind: Kind,
        load: Load,
        meanwhile: AbstractContextManager[object] | None = None,
    ) -> Sample:
        """Put a load on a server, and keep what it came to under its part, setting and turn.

        `meanwhile` is entered when the load begins and left when it ends. Afterwards the server is stopped (SIGSTOP)
        until it is its turn again: what it left for later it does then, and not while another is measured.
        """
        part, setting, turn = sample
        instance = running.at[kind]
        self._wait_for_the_machine()
        self.progress(f"{part}: {setting}, {running.name}, turn {turn + 1}")
        with awake(instance.pids), self.generator.connected(load) as asking:
            before = cpu_of(instance.pids())
            others = Others(self.cores, instance.pids, asking.pid)
            with meanwhile or nullcontext():
                result = asking.result()
            used_by_others = others.used() / result.seconds
            cpu = (cpu_of(instance.pids()) - before) / result.requests * 1e6
            memory = memory_of(instance.pids())
        found = Sample(part, setting, running.name, turn, result, cpu, memory, used_by_others)
        self.samples.append(found)
        return found

    def _wait_for_the_machine(self) -> None:
        """Wait until nobody else uses the cores, as long as there is patience left."""
        began = time.monotonic()
        while self.waited < self.plan.patience:
            others = Others(self.cores, list, os.getpid())
            time.sleep(GLANCE)
            if others.used() < DISTURBED * GLANCE:
                return
            self.waited += time.monotonic() - began
            began = time.monotonic()
            self.progress("waiting for the machine to be idle")

    def fresh(self, running: Running, kind: Kind, connections: int, seconds: float) -> Load:
        """Return a load in a closed loop, from accounts that nobody has heard of."""
        seed = self.seed
        return Load(socket=running.at[kind].socket, run=f"r{seed}", seed=seed, connections=connections, seconds=seconds)

    def series(self, part: str, setting: str, server: str) -> Series:
        """Return the runs of a server in a setting."""
        wanted = (part, setting, server)
        return Series(tuple(found for found in self.samples if (found.part, found.setting, found.server) == wanted))

    def progress(self, text: str) -> None:
        """Tell a person who waits what is being done."""
        if sys.stderr.isatty():
            print(f"\r\033[K{text[:100]}", end="", file=sys.stderr, flush=True)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below their header: the first column to the left, the others to the right."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        first, *others = zip(row, widths, strict=True)
        print("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip())


def note(text: str) -> None:
    """Print a paragraph."""
    print(textwrap.fill(text, WIDTH), end="\n\n")


def milliseconds(value: float) -> str:
    """Return a time in ms with as many digits as it is worth."""
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def mebibytes(number: float) -> str:
    """Return a number of bytes in MiB."""
    return f"{number / 2**20:,.1f}" if number < 100 * 2**20 else f"{number / 2**20:,.0f}"
