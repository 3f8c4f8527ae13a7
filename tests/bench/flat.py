"""Flat: a daemon with a million accounts is to be as fast as one with a thousand, and not to need much memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

from policyd.sections import DEFAULT_MAX_ACCOUNTS
from tests.bench.generator import Load, longest
from tests.bench.machine import awake, cpu_of, memory_left, memory_of, pin, wait_until_quiet
from tests.bench.measuring import Bench, Series, mebibytes, milliseconds, note, print_table
from tests.bench.servers import SETTLES, Daemon, policyd

PART = "flat"
LENGTH = 3
"""A run of these lasts so many times as long as others: most of what has to be stored falls into it."""
CONNECTIONS = 50
FILLING, DEPTH = 20, 50
"""Connections that fill a table, and requests that each sends at once."""

MANY = 20
"""Recent messages of each account in the table that is to show what they need."""
MANY_SIZE = 100_000
BYTES = 3000
"""Memory of an account and what belongs to it, plentifully: what there is not room for is left out."""

HEADER = (
    *("accounts", "requests/s", "min to max", "p50", "p99", "p99.9 ms", "CPU µs/request"),
    *("all stored", "MiB", "bytes/account"),
)


@dataclass(frozen=True, slots=True)
class Filled:
    """A daemon, and what is in its table."""

    daemon: Daemon
    accounts: int
    messages: int
    """Recent messages of each account."""
    run: str
    """What stands in the accounts' names."""
    bytes_each: float
    """Resident memory an account: what there is after the filling, less what there was before."""

    def load(self, seed: int, seconds: float, connections: int = CONNECTIONS, rate: float = 0.0) -> Load:
        """Return a load from the accounts in the table, in random order."""
        return Load(
            socket=self.daemon.path,
            run=self.run,
            seed=seed,
            connections=connections,
            seconds=seconds,
            rate=rate,
            accounts=self.accounts,
        )


def longest_run(accounts: int, rounds: int) -> float:
    """Return for how many seconds runs can be planned so that none of so many accounts reaches its limit."""
    return longest(accounts) / (rounds * LENGTH)


def fill(bench: Bench, daemon: Daemon, accounts: int, messages: int = 1) -> Filled:
    """Have each account send so many messages, as fast as can be, and wait until all is stored."""
    pids = daemon.at["unix"].pids
    before = memory_of(pids())
    load = Load(
        socket=daemon.path,
        run=f"filled{accounts}",
        seed=bench.seed,
        connections=FILLING,
        messages=messages * accounts,
        accounts=accounts,
        recipients=0,
        depth=DEPTH,
    )
    asked = bench.generator.run(load).requests
    assert asked == messages * accounts, f"{asked} messages were sent in place of {messages * accounts}"
    wait_until_quiet(pids, SETTLES)
    known = daemon.process.ctl_json("status")["accounts"]
    assert known == accounts, f"{known} accounts are known in place of {accounts}"
    return Filled(daemon, accounts, messages, load.run, (memory_of(pids()) - before) / accounts)


@contextmanager
def filled(bench: Bench, tables: Sequence[tuple[int, int]]) -> Iterator[list[Filled]]:
    """Run daemons whose tables have so many accounts with so many recent messages each.

    They are filled on both cores, one daemon on each at a time; afterwards all are on the servers' core.
    """
    with ExitStack() as stack:
        daemons = []
        for accounts, messages in tables:
            name = f"policyd, {accounts:,} accounts" + (f", {messages} messages each" if messages > 1 else "")
            daemon = stack.enter_context(policyd(name, bench.folder, bench.server_prefix))
            daemons.append(daemon)
        free: SimpleQueue[int | None] = SimpleQueue()
        for core in (bench.cores.server, bench.cores.load):
            free.put(core)

        def fill_one(daemon: Daemon, table: tuple[int, int]) -> Filled:
            core = free.get()
            pin(daemon.process.pid, core)
            try:
                return fill(bench, daemon, *table)
            finally:
                pin(daemon.process.pid, bench.cores.server)
                free.put(core)

        bench.progress(f"filling {'; '.join(daemon.name for daemon in daemons)}")
        with ThreadPoolExecutor(2) as pool:
            yield list(pool.map(fill_one, daemons, tables))


@contextmanager
def measured(bench: Bench) -> Iterator[Filled]:
    """Measure tables of all sizes in turn, print what was found, and yield the greatest for further use."""
    plan = bench.plan
    sizes = _sizes_with_room(plan.sizes)
    seconds = plan.seconds * LENGTH
    # the longest to fill come first
    wanted = [(min(MANY_SIZE, sizes[-1]), MANY), *((size, 1) for size in reversed(sizes))]
    with filled(bench, wanted) as (of_many, greatest, *smaller):
        tables = [*reversed(smaller), greatest]
        for turn in range(plan.rounds):
            for table in tables:
                load = table.load(bench.seed, seconds)
                bench.measure((PART, f"{table.accounts:,}", turn), table.daemon, "unix", load)
        for table in tables:
            bench.facts[all_stored(table.accounts)] = _cpu_until_all_is_stored(bench, table)
        _print(bench, tables, of_many)
        yield greatest


def all_stored(accounts: int) -> str:
    """Return the name of the figure that says what a request costs when all that it changed is stored."""
    return f"CPU µs a request until all is stored, {accounts:,} accounts"


def _cpu_until_all_is_stored(bench: Bench, table: Filled) -> float:
    """Have a daemon store what its runs have left, and return the microseconds of CPU time of all that a request."""
    pids = table.daemon.at["unix"].pids
    with awake(pids):
        before = cpu_of(pids())
        wait_until_quiet(pids, SETTLES)
        left = (cpu_of(pids()) - before) * 1e6
    samples = _series(bench, table).samples
    while_asked = sum(sample.cpu * sample.result.requests for sample in samples)
    return (while_asked + left) / sum(sample.result.requests for sample in samples)


def _print(bench: Bench, tables: Sequence[Filled], of_many: Filled) -> None:
    plan = bench.plan
    for table in (*tables, of_many):
        bench.facts[f"bytes an account, {table.accounts:,} accounts, {table.messages} recent"] = table.bytes_each
    note(
        f"Shipped limits and database, each account with one recent message. Closed loop over the unix socket,"
        f" {CONNECTIONS} connections, accounts in random order; {plan.rounds} runs of {plan.seconds * LENGTH:g} s each,"
        " daemons in turn; medians."
    )
    print_table(HEADER, [_row(bench, table) for table in tables])
    least, most = (_series(bench, table) for table in (tables[0], tables[-1]))
    print(
        f"\n{tables[-1].accounts:,} accounts ÷ {tables[0].accounts:,}: {most.rate / least.rate:.2f} of the requests/s"
    )
    print(
        f"{of_many.accounts:,} accounts with {of_many.messages} recent messages each:"
        f" {of_many.bytes_each:,.0f} bytes/account"
    )
    note(
        "all stored: CPU µs/request, with what it took after the last run until all was stored: a daemon that is asked"
        " as fast as can be puts that off. bytes/account: RSS when the table is full and all is stored, less that"
        " before, ÷ accounts; of few accounts most of it is what there is but once."
    )


def _series(bench: Bench, table: Filled) -> Series:
    return bench.series(PART, f"{table.accounts:,}", table.daemon.name)


def _row(bench: Bench, table: Filled) -> list[str]:
    series = _series(bench, table)
    return [
        f"{table.accounts:,}",
        *series.cells,
        *(milliseconds(latency) for latency in series.latencies),
        f"{series.cpu:.1f}",
        f"{bench.facts[all_stored(table.accounts)]:.1f}",
        mebibytes(series.memory),
        f"{table.bytes_each:,.0f}",
    ]


def _sizes_with_room(sizes: Sequence[int]) -> list[int]:
    room = memory_left()
    found: list[int] = []
    for size in sorted(sizes):
        if size > DEFAULT_MAX_ACCOUNTS:
            print(f"{size:,} accounts: left out, max_accounts is {DEFAULT_MAX_ACCOUNTS:,}")
        elif sum(found) + size > room / BYTES:
            print(f"{size:,} accounts: left out, {room / 2**20:,.0f} MiB of memory are too little")
        else:
            found.append(size)
    if not found:
        raise SystemExit("no table of accounts has room in the memory")
    return found
