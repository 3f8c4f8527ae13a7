"""Requests per second of policyd with its house rules, beside a bare Twisted protocol that answers DUNNO to all.

Both servers run in turn (A B A B …), pinned to one core, with the load generator pinned to another. Where the
generator is as busy as its core allows, the CPU time a request costs the server tells more than the rate.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tests.bench.load import run
from tests.daemon import Policyd, free_port

ROUNDS = 5
SECONDS = 2.0
CONNECTIONS = 50
SERVER_CORE, LOAD_CORE = 0, 1


@contextmanager
def bare_twisted() -> Iterator[tuple[int, int]]:
    """Run the bare protocol; give its port and pid."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.bare", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield port, process.pid
        process.terminate()


@contextmanager
def policyd() -> Iterator[tuple[int, int]]:
    """Run policyd with its house rules; give its port and pid."""
    with Policyd({"database": "none"}) as daemon:
        yield daemon.port, daemon.pid


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure, and print a table."""
    os.sched_setaffinity(0, {LOAD_CORE})
    rates: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    busy = 0.0
    with bare_twisted() as bare, policyd() as ours:
        servers = {"bare Twisted": bare, "policyd": ours}
        for _, pid in servers.values():
            os.sched_setaffinity(pid, {SERVER_CORE})
        for turn in range(ROUNDS):
            for name, (port, pid) in servers.items():
                before = cpu_seconds(pid)
                result = run(port, CONNECTIONS, SECONDS, seed=turn + 1)
                rates.setdefault(name, []).append(result.rate)
                costs.setdefault(name, []).append((cpu_seconds(pid) - before) / result.requests * 1e6)
                busy = max(busy, result.generator_cpu)
    print(f"{CONNECTIONS} connections over TCP, {ROUNDS} runs of {SECONDS:.0f} s each in turn; median (min to max)")
    for name in servers:
        rate, cost = rates[name], costs[name]
        print(
            f"{name:13} {median(rate):8,.0f} requests/s ({min(rate):,.0f} to {max(rate):,.0f})"
            f"   {median(cost):5.1f} µs CPU a request ({min(cost):.1f} to {max(cost):.1f})"
        )
    ratio = median(rates["policyd"]) / median(rates["bare Twisted"])
    saved = median(costs["bare Twisted"]) / median(costs["policyd"])
    print(f"policyd answers {ratio:.2f} times as many, at {1 / saved:.2f} times the CPU; the load was {busy:.0%} busy")


if __name__ == "__main__":
    main()
