"""The machine that measures: its cores and compiler, and what a process uses of it."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
"""Of /proc, a second."""
LOOK = 0.02
"""Seconds between two looks at whether a process is busy."""
BUSY = 0.1
"""The part of a core up to which it is not."""

PATIENCE = 120.0
"""Seconds within which a server has done all that a load left it to do."""


@dataclass(frozen=True, slots=True)
class Cores:
    """The core of the servers and that of the load; None where there is only one."""

    server: int | None
    load: int | None


def two_cores() -> Cores:
    """Return two of the cores that may be used; none where there is only one, or nothing to pin with."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2 or shutil.which("taskset") is None:
        return Cores(None, None)
    return Cores(*usable[:2])


def pinned(core: int | None) -> tuple[str, ...]:
    """Return the command that has the command after it run on one core, with all its threads and children."""
    return () if core is None else ("taskset", "-c", str(core))


def pin(pid: int, core: int | None) -> None:
    """Move a process, with all its threads, to a core."""
    if core is None:
        return
    for task in (PROC / str(pid) / "task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def compiler() -> str | None:
    """Return the C compiler, if there is one."""
    return shutil.which("cc")


def compiled(source: Path, folder: Path) -> Path:
    """Compile a program of one C file; return where it is. Raises CalledProcessError."""
    program = folder / source.stem
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)], check=True)
    return program


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that all threads of a process have used, to the nanosecond.

    A thread that has ended is not in it.
    """
    used = 0
    for task in (PROC / str(pid) / "task").iterdir():
        used += int((task / "schedstat").read_text().split()[0])
    return used / 1e9


def cpu_of(pids: Sequence[int]) -> float:
    """Return the CPU time that processes have used; one that has ended counts as nothing."""
    used = 0.0
    for pid in pids:
        try:
            used += cpu_seconds(pid)
        except FileNotFoundError:
            continue
    return used


class Others:
    """What else than a server and its load uses their cores, from now on."""

    def __init__(self, cores: Cores, server: Callable[[], Sequence[int]], load: int) -> None:
        uses = ((cores.server, server), (cores.load, lambda: [load]))
        self._uses = [(core, pids) for core, pids in uses if core is not None]
        self._before = self._seconds()

    def used(self) -> float:
        """Return the seconds that others have used, on the core where they used more; 0 where nothing is pinned."""
        changes = zip(self._before, self._seconds(), strict=True)
        return max((min(now - then for then, now in zip(*change, strict=True)) for change in changes), default=0.0)

    def _seconds(self) -> list[tuple[float, float]]:
        """Return of each core, in both ways to know it, for how long it was at work for others."""
        return [(used - cpu_of(pids()), time.monotonic() - idle - cpu_of(pids())) for used, idle, pids in self._looks()]

    def _looks(self) -> list[tuple[float, float, Callable[[], Sequence[int]]]]:
        return [(*_core_seconds(core), pids) for core, pids in self._uses]


def _core_seconds(core: int) -> tuple[float, float]:
    """Return for how long a core was at work, and for how long it was idle.

    The former is sampled at the clock's ticks, and may mistake a load in step with them for more than it is; the
    latter does not know of the time that it takes to fall asleep and to wake. What both tell is true.
    """
    for line in (PROC / "stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            user, nice, system, idle, waiting, irq, softirq, stolen = (int(field) / TICKS for field in fields[:8])
            return user + nice + system + irq + softirq + stolen, idle + waiting
    raise LookupError(f"/proc/stat knows no core {core}")


@contextmanager
def awake(pids: Callable[[], Sequence[int]]) -> Iterator[None]:
    """Let processes go on that were stopped, and stop them afterwards: what they have still to do takes no core."""
    _signal(pids(), signal.SIGCONT)
    try:
        yield
    finally:
        _signal(pids(), signal.SIGSTOP)


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_until_quiet(pids: Callable[[], Sequence[int]], seconds: float) -> None:
    """Wait until processes have done next to nothing for so long."""
    began = last_busy = time.monotonic()
    before = cpu_of(pids())
    while (now := time.monotonic()) < last_busy + seconds:
        time.sleep(LOOK)
        used = cpu_of(pids())
        if used - before > BUSY * LOOK:
            last_busy = time.monotonic()
        before = used
        if now > began + PATIENCE:
            raise TimeoutError(f"processes {pids()} are still busy after {PATIENCE:g} s")


def memory_of(pids: Sequence[int]) -> int:
    """Return the bytes that are resident; of several processes, what they share is counted once (Pss)."""
    if len(pids) == 1:
        return int((PROC / str(pids[0]) / "statm").read_text().split()[1]) * resource.getpagesize()
    return sum(_proportional(pid) for pid in pids)


def _proportional(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def session_of(leader: int) -> list[int]:
    """Return the processes of the session that a process leads, without those that have ended."""
    found = []
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                state, _, _, session = (folder / "stat").read_text().rpartition(") ")[2].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(session) == leader and state not in "ZX":
                found.append(int(folder.name))
    return sorted(found)


def memory_left() -> int:
    """Return the bytes of memory that can be had."""
    lines = (PROC / "meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def filesystem_of(folder: Path) -> str:
    """Return the kind of file system that a folder is on."""
    found, kind = "", "unknown"
    for line in (PROC / "mounts").read_text().splitlines():
        _, mounted, its_kind, *_ = line.split()
        inside = folder.resolve().is_relative_to(mounted)
        if inside and len(mounted) >= len(found):
            found, kind = mounted, its_kind
    return kind


def processor() -> str:
    """Return what the processor says it is."""
    for line in (PROC / "cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine
