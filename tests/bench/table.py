"""The table: what each server answers, over each kind of connection, at what price."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from tests.bench.generator import LoadFailedError
from tests.bench.machine import filesystem_of
from tests.bench.measuring import Bench, Series, mebibytes, milliseconds, note, print_table
from tests.bench.peers import POSTFWD, RATE_LIMIT, UnavailableError, policyd_rate_limit, postfwd
from tests.bench.servers import BARE, FLOOR, POLICYD, WITHOUT_DATABASE, Kind, Running, bare, floor, policyd

PART = "table"
PEERS = {RATE_LIMIT: policyd_rate_limit, POSTFWD: postfwd}
FULL = 0.9
"""The busy share from which on the generator is what limits a rate."""

HEADER = ("", "requests/s", "min to max", "x bare", "p50", "p99", "p99.9 ms", "CPU µs/request", "MiB", "load busy")


@dataclass(frozen=True, slots=True)
class Setting:
    """Over what the load asks."""

    kind: Kind
    connections: int

    def __str__(self) -> str:
        return f"{'unix socket' if self.kind == 'unix' else 'TCP'}, {self.connections} connections"


UNIX, TCP = Setting("unix", 50), Setting("tcp", 50)
SETTINGS = (Setting("unix", 1), UNIX, Setting("unix", 500), TCP)


@contextmanager
def servers(bench: Bench) -> Iterator[list[Running]]:
    """Run all servers that can be had here; say of the others why not."""
    folder, prefix = bench.folder, bench.server_prefix
    with ExitStack() as stack:
        running: list[Running] = []
        if bench.floor is None:
            print(f"{FLOOR}: not measured: there is no compiler (cc)")
        else:
            running.append(stack.enter_context(floor(bench.floor, folder, prefix)))
        running.append(stack.enter_context(bare(folder, prefix)))
        running.append(stack.enter_context(policyd(WITHOUT_DATABASE, folder, prefix, database=False)))
        running.append(stack.enter_context(policyd(POLICYD, folder, prefix)))
        for name, peer in PEERS.items() if bench.plan.peers else ():
            started = _started(stack, name, peer(folder, prefix))
            running += [started] if started else []
        yield running


def _started(stack: ExitStack, name: str, peer: AbstractContextManager[Running]) -> Running | None:
    try:
        return stack.enter_context(peer)
    except (UnavailableError, OSError) as error:
        print(f"{name}: not measured: {error}")
        return None


def measure(bench: Bench) -> None:
    """Measure all servers in all settings, in turn, and print the table."""
    with servers(bench) as running:
        note(
            f"Closed loop, {bench.plan.rounds} runs of {bench.plan.seconds:g} s each, servers in turn; medians."
            f" policyd's database is on {filesystem_of(bench.folder)}."
        )
        rows: list[list[str]] = []
        for setting in SETTINGS:
            able = [server for server in running if setting.connections <= server.most_connections]
            for turn in range(bench.plan.rounds):
                for server in list(able):
                    if not _answers(bench, server, setting, turn):
                        able.remove(server)
            rows += [[str(setting), *[""] * (len(HEADER) - 1)], *_rows(bench, setting, running, able)]
    print_table(HEADER, rows)
    _print_notes(bench, running)


def _answers(bench: Bench, server: Running, setting: Setting, turn: int) -> bool:
    """Measure a server once; tell whether it did its work. Ours has to."""
    load = bench.fresh(server, setting.kind, setting.connections, bench.plan.seconds)
    try:
        bench.measure((PART, str(setting), turn), server, setting.kind, load)
    except LoadFailedError as error:
        if server.name in (FLOOR, BARE, WITHOUT_DATABASE, POLICYD):
            raise
        print(f"{server.name}: {setting}: {error}")
        return False
    return True


def _rows(bench: Bench, setting: Setting, running: list[Running], able: list[Running]) -> list[list[str]]:
    against = bench.series(PART, str(setting), BARE).rate
    return [
        _row(server.name, bench.series(PART, str(setting), server.name), against)
        if server in able
        else [f"  {server.name}", *"-" * (len(HEADER) - 1)]
        for server in running
    ]


def _row(name: str, series: Series, against: float) -> list[str]:
    busy = series.of(lambda result: result.busy)
    return [
        f"  {name}",
        *series.cells,
        f"{series.rate / against:.2f}",
        *(milliseconds(latency) for latency in series.latencies),
        f"{series.cpu:.1f}",
        mebibytes(series.memory),
        f"{busy:.0%}" + ("*" if busy > FULL else " "),
    ]


def _print_notes(bench: Bench, running: list[Running]) -> None:
    print()
    for server in running:
        if server.most_connections < max(setting.connections for setting in SETTINGS):
            print(f"{server.name} serves {server.most_connections} connections at the most, as shipped.")
    samples = [sample for sample in bench.samples if sample.part == PART]
    ceilings = {}
    for setting in (UNIX, TCP):
        results = [sample.result for sample in samples if sample.setting == str(setting)]
        ceilings[setting] = max(results, key=lambda result: result.rate).ceiling
    told = ", ".join(f"{ceiling:,.0f} over {setting}" for setting, ceiling in ceilings.items())
    if any(sample.result.busy > FULL for sample in samples):
        print("* the generator limits this row: the server could do more.")
    print()
    note(
        f"The generator is {bench.generator.name}. Its ceiling, requests/s of its quickest run ÷ its busy share, is"
        f" {told}."
    )
    if not bench.generator.compiled:
        note("There is no C compiler: the ceiling limits the rates that can be seen. Look at the CPU time a request.")
    note(
        "A server is stopped (SIGSTOP) while another is measured; what a run leaves to be done later falls into the"
        " server's next. CPU: of all its threads and processes (schedstat). MiB: resident (VmRSS) after the run; of"
        " several processes, what they share counts once (Pss)."
    )
