"""Steadiness: what the slowest answers take at a steady rate, without a database, with one, and while things happen."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from tests.bench.flat import Filled, filled
from tests.bench.generator import PEAK, Load
from tests.bench.happenings import ACCOUNTS, HOW, RELOAD, STATUS, Happening, Happenings, cpu_of_status
from tests.bench.machine import awake
from tests.bench.measuring import Bench, Sample, milliseconds, note, print_table
from tests.bench.servers import POLICYD, WITHOUT_DATABASE, Daemon, policyd

PART = "steady"
RATE = 2000.0
CONNECTIONS = 200
INTERVAL = 1.0
PART_OF_IT = 0.4
"""For how much of the time a small table is looked at, which has less to do now and then."""
ALONE = 100_000
"""Accounts in the table where this part runs without the one before."""

HAPPENINGS = (ACCOUNTS, STATUS, RELOAD)
AROUND = 0.02
"""Seconds before and after something happens in which who asks may have to wait for it."""
GREATEST_PAUSE = "greatest pause while things happen, ms"
STATUS_CPU = "CPU of a policyctl status, s"

HEADER = ("", "p50", "p99", "p99.9", "greatest ms", "CPU µs/request", "generator away ms")


def alone(bench: Bench) -> None:
    """Measure with a table of its own."""
    with filled(bench, [(min(ALONE, max(bench.plan.sizes)), 1)]) as (table,):
        measure(bench, table)


def measure(bench: Bench, table: Filled) -> None:
    """Measure, and print what was found."""
    seconds = bench.plan.paced_seconds
    with ExitStack() as stack:
        fresh = (
            stack.enter_context(policyd(WITHOUT_DATABASE, bench.folder, bench.server_prefix, database=False)),
            stack.enter_context(policyd(POLICYD, bench.folder, bench.server_prefix)),
        )
        samples = [_paced(bench, daemon, _fresh_load(bench, daemon, seconds * PART_OF_IT)) for daemon in fresh]
    samples.append(_paced(bench, table.daemon, _table_load(bench, table, seconds)))
    happenings = Happenings(table.daemon.process, HAPPENINGS, INTERVAL)
    disturbed = _paced(bench, table.daemon, _table_load(bench, table, seconds), happenings)
    bench.facts[GREATEST_PAUSE] = disturbed.result.greatest
    with awake(table.daemon.at["unix"].pids):
        bench.facts[STATUS_CPU] = cpu_of_status(table.daemon.process)
    note(
        f"{RATE:,.0f} requests/s over {CONNECTIONS} connections (unix socket), whatever the answers take, each counted"
        f" from when it was due. {seconds:g} s with the full table, {seconds * PART_OF_IT:g} s with 1,000 accounts."
    )
    print_table(HEADER, [_row(sample) for sample in (*samples, disturbed)])
    print()
    _print_happenings(disturbed, happenings.happened)
    print(f"CPU of a `policyctl status` as a process of its own, median of 5: {bench.facts[STATUS_CPU]:.3f} s")
    print()
    note(
        f"{HOW} The generator can be wrong by as long as it was away: longer than usual, and the machine had something"
        " else to do."
    )


def _fresh_load(bench: Bench, daemon: Daemon, seconds: float) -> Load:
    seed = bench.seed
    return Load(socket=daemon.path, run=f"r{seed}", seed=seed, connections=CONNECTIONS, seconds=seconds, rate=RATE)


def _table_load(bench: Bench, table: Filled, seconds: float) -> Load:
    return table.load(bench.seed, seconds, CONNECTIONS, RATE)


def _paced(bench: Bench, daemon: Daemon, load: Load, happenings: Happenings | None = None) -> Sample:
    setting = f"{daemon.name}{', things happen' if happenings else ''}"
    return bench.measure((PART, setting, 0), daemon, "unix", load, happenings)


def _row(sample: Sample) -> list[str]:
    found = sample.result
    times = (found.p50, found.p99, found.p999, found.greatest)
    return [sample.setting, *map(milliseconds, times), f"{sample.cpu:.1f}", milliseconds(found.away)]


def _print_happenings(sample: Sample, happened: Sequence[Happening]) -> None:
    """Print the greatest time during each kind of thing that happened, and where the greatest of all was."""
    result = sample.result
    for name in HAPPENINGS:
        these = [happening for happening in happened if happening.name == name]
        if these:
            pause = max(_greatest_of(sample, happening) for happening in these)
            took = max(happening.took for happening in these) * 1000
            print(f"{name}: {len(these)} times, greatest {milliseconds(pause)} ms, took {milliseconds(took)} ms itself")
    before = [happening for happening in happened if happening.at - AROUND <= result.greatest_at]
    if before:
        last = before[-1]
        print(
            f"The greatest, {milliseconds(result.greatest)} ms, was due {result.greatest_at - last.at:+.3f} s from the"
            f" beginning of a {last.name}."
        )


def _greatest_of(sample: Sample, happening: Happening) -> float:
    """Return the greatest time of what was due while something happened, or around it."""
    result = sample.result
    span = (happening.at - AROUND, happening.at + happening.took + AROUND)
    first, last = (int((at - result.began) / PEAK) for at in span)
    return max(result.peaks[max(first, 0) : last + 1], default=0.0)
