"""What it costs to share the counts: policyd with a store beside policyd without one, and beside the store alone.

`.tests/bin/python -m tests.bench.shared`: no root, about a minute; it takes redis-server and redis-benchmark. policyd
runs on one core, the store and the load on another. Everything printed is measured in the same run, in turn.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from policyd.limits import HOUSE_RULES
from policyd.shared_calls import Calls, Target
from tests.bench.generator import C_SOURCE, PEAK, Generator, Load, Result
from tests.bench.machine import compiled, compiler, pin, pinned, processor, two_cores
from tests.bench.measuring import Bench, Plan, milliseconds, note, print_table
from tests.bench.servers import Daemon, policyd
from tests.stores import Store, running

PART = "shared"
ALONE, SHARED, STORE_ALONE = "policyd in memory", "policyd with a store", "the store alone (redis-benchmark)"
ALL_ASKED = "policyd with a store, recipients limited too"
RECIPIENTS = {"count": "recipients", "per": "1h", "max": 100_000, "action": "REJECT"}
MESSAGES = {"count": "messages", "per": "30m", "max": 500, "action": "REJECT", "lock": "until-unlocked"}
CONNECTIONS = 50
ACCOUNTS = 1000
AWAY_RATE = 500.0
AWAY_AFTER = 2.0
"""Seconds of a run after which the store is stopped."""

FIRST = 1.0
"""Seconds from then on in which requests are the first ones."""

HEADER = ("", "requests/s", "min to max", "x in memory", "p50", "p99 ms", "CPU µs/request")


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("tests.bench.shared", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a run in a closed loop")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each in a closed loop")
    parser.add_argument("--paced-seconds", type=float, default=6.0, help="of a run at a steady rate")
    given = parser.parse_args()
    if given.paced_seconds <= AWAY_AFTER + FIRST:
        parser.error(f"--paced-seconds: more than {AWAY_AFTER + FIRST:g}")
    return given


def ceiling(store: Store, prefix: Sequence[str], seconds: float) -> float:
    """Return the calls a second that the store answers to redis-benchmark: that of a message at DATA."""
    instance = b"5d7e.__rand_int__"
    call = Calls("bench", "ceiling").settle("user__rand_int__@example.com", HOUSE_RULES, instance, Target(1, 3))
    number = str(int(20_000 * max(seconds, 0.1)))
    command = [*prefix, "redis-benchmark", "-s", store.socket, "-c", str(CONNECTIONS), "-n", number]
    words = [word.decode() for word in _words(call)]
    done = subprocess.run([*command, "-r", str(ACCOUNTS), "--csv", *words], capture_output=True, text=True, check=True)
    found = re.search(r'",?"([0-9.]+)"', done.stdout.splitlines()[-1])
    if found is None:
        raise RuntimeError(f"redis-benchmark said {done.stdout!r}, {done.stderr!r}")
    return float(found[1])


def _words(call: bytes) -> Iterator[bytes]:
    """Yield the words of a packed call."""
    rest = call.split(b"\r\n", 1)[1]
    while rest:
        length, rest = rest.split(b"\r\n", 1)
        yield rest[: int(length[1:])]
        rest = rest[int(length[1:]) + 2 :]


@contextmanager
def stopped(store: Store, seconds: float) -> Iterator[list[float]]:
    """Stop the store after some seconds; give the time when that was."""
    at: list[float] = []

    def stop() -> None:
        at.append(time.monotonic())
        store.stop()

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        yield at
    finally:
        timer.join()


def closed_loops(bench: Bench, daemons: Sequence[Daemon], all_asked: Daemon, store: Store) -> None:
    """Measure and print how much can be asked."""
    ceilings = []
    for turn in range(bench.plan.rounds):
        for daemon in (*daemons, all_asked):
            load = bench.fresh(daemon, "unix", CONNECTIONS, bench.plan.seconds)
            bench.measure((PART, "closed", turn), daemon, "unix", load)
        ceilings.append(ceiling(store, bench.server_prefix, bench.plan.seconds))
    alone = bench.series(PART, "closed", ALONE)
    rows = []
    for daemon in (*daemons, all_asked):
        series = bench.series(PART, "closed", daemon.name)
        p50, p99, _ = series.latencies
        share = f"{series.rate / alone.rate:.2f}"
        rows.append([daemon.name, *series.cells, share, milliseconds(p50), milliseconds(p99), f"{series.cpu:.1f}"])
    least, most = min(ceilings), max(ceilings)
    rows.append([STORE_ALONE, f"{median(ceilings):,.0f}", f"{least:,.0f} to {most:,.0f}", "", "", "", ""])
    note(
        f"Closed loop over the unix socket, {CONNECTIONS} connections, {bench.plan.rounds} runs of"
        f" {bench.plan.seconds:g} s each, in turn; medians. The store answers redis-benchmark the call that policyd"
        " makes for a message at DATA, with as many connections. By the house rules policyd asks the store at DATA"
        " alone; with a limit of recipients, it asks at each request."
    )
    print_table(HEADER, rows)
    asked = bench.series(PART, "closed", ALL_ASKED)
    print(f"\npolicyd that asks at each request ÷ the store alone: {asked.rate / median(ceilings):.2f}\n", flush=True)


def low_load(bench: Bench, daemons: Sequence[Daemon]) -> None:
    """Measure and print what sharing adds to an answer's time when nobody else asks."""
    for turn in range(bench.plan.rounds):
        for daemon in daemons:
            bench.measure((PART, "alone", turn), daemon, "unix", bench.fresh(daemon, "unix", 1, bench.plan.seconds))
    found = {daemon.name: bench.series(PART, "alone", daemon.name) for daemon in daemons}
    rows = [[name, *map(milliseconds, (*series.latencies, series.greatest))] for name, series in found.items()]
    note("One connection, which asks when it has its answer; with a store, each request is a call.")
    print_table(("", "p50", "p99", "p99.9", "greatest ms"), rows)
    added = found[ALL_ASKED].latencies[0] - found[ALONE].latencies[0]
    print(f"\nsharing adds to the p50: {milliseconds(added)} ms\n", flush=True)


def away(bench: Bench, daemons: Sequence[Daemon], store: Store) -> None:
    """Measure and print what answers take from when the store stops on."""
    alone, shared = daemons
    with stopped(store, AWAY_AFTER) as at:
        found = _paced(bench, shared, AWAY_RATE, bench.plan.paced_seconds)
    first = int((at[0] - found.began) / PEAK)
    until = first + int(FIRST / PEAK)
    spans = {
        "before": found.peaks[:first],
        f"the first {FIRST:g} s": found.peaks[first:until],
        "after that": found.peaks[until:],
    }
    long_away = _paced(bench, shared, AWAY_RATE, bench.plan.paced_seconds / 2)
    in_memory = _paced(bench, alone, AWAY_RATE, bench.plan.paced_seconds / 2)
    store.cont()
    note(
        f"{AWAY_RATE:,.0f} requests/s, each counted from when it was due; after {AWAY_AFTER:g} s the store is stopped"
        " (SIGSTOP), the worst that can happen to it: it does not even refuse. All are answered."
    )
    print_table(("the greatest time", "ms"), [[name, milliseconds(max(peaks))] for name, peaks in spans.items()])
    print()
    results = {"the store still away": long_away, ALONE: in_memory}
    rows = [[name, *map(milliseconds, (result.p50, result.p99, result.greatest))] for name, result in results.items()]
    print_table(("", "p50", "p99", "greatest ms"), rows)


def _version(store: Store) -> str:
    """Return the store's name and version."""
    facts = dict(line.split(b":", 1) for line in bytes_of(store.cli("INFO", "server")).split(b"\r\n") if b":" in line)
    return " ".join(facts[name].decode() for name in (b"server_name", b"redis_version") if name in facts)


def bytes_of(reply: object) -> bytes:
    """Return a reply that is a text."""
    assert isinstance(reply, bytes)
    return reply


def _paced(bench: Bench, daemon: Daemon, rate: float, seconds: float) -> Result:
    seed = bench.seed
    load = Load(socket=daemon.path, run=f"r{seed}", seed=seed, connections=CONNECTIONS, seconds=seconds, rate=rate)
    return bench.measure((PART, f"{rate:g}/s", seed), daemon, "unix", load).result


def main() -> None:
    """Measure, and print."""
    given = options()
    cores = two_cores()
    if shutil.which("redis-benchmark") is None:
        sys.exit("tests.bench.shared: redis-benchmark is not there (Debian: redis-tools)")
    with tempfile.TemporaryDirectory(prefix="policyd-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        program = compiled(C_SOURCE, folder) if compiler() else None
        if cores.load is not None:
            os.sched_setaffinity(0, {cores.load})
        plan = Plan(given.seconds, given.rounds, given.paced_seconds, peers=False, patience=0.0, sizes=())
        generator = Generator(folder, program, None)  # it sleeps while it waits, and leaves the core to the store
        bench = Bench(plan, generator, cores, folder, None)
        store = stack.enter_context(running())
        pin(store.pid, cores.load)
        cluster = {"url": f"unix://{store.socket}", "node": "bench"}
        daemons = [
            stack.enter_context(policyd(ALONE, folder, pinned(cores.server))),
            stack.enter_context(policyd(SHARED, folder, pinned(cores.server), {"cluster": cluster})),
        ]
        note(
            f"{processor()}; Python {sys.version.split()[0]}; {_version(store)}; policyd on core {cores.server},"
            f" store and load on core {cores.load}."
        )
        limits = {"messages": MESSAGES, "recipients": RECIPIENTS}
        all_asked = stack.enter_context(
            policyd(ALL_ASKED, folder, pinned(cores.server), {"limits": limits, "cluster": {**cluster, "node": "all"}})
        )
        closed_loops(bench, daemons, all_asked, store)
        low_load(bench, (daemons[0], all_asked))
        away(bench, (daemons[0], all_asked), store)


if __name__ == "__main__":
    main()
