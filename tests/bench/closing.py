"""The ratios that matter, at the end: each from what was measured before, and left out where that was not."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench import flat, steady, table
from tests.bench.measuring import DISTURBED, Bench, Series, milliseconds
from tests.bench.peers import POSTFWD, RATE_LIMIT
from tests.bench.servers import BARE, FLOOR, POLICYD

AWAY = 2.0
"""Milliseconds for which the generator may be away and times still be the server's."""


def lines(bench: Bench) -> Iterator[str]:
    """Yield what came out, a line each."""
    for setting, against in ((table.TCP, BARE), (table.TCP, FLOOR), (table.UNIX, BARE), (table.UNIX, FLOOR)):
        yield from _against(bench, setting, against)
    peers = [name for name in (RATE_LIMIT, POSTFWD) if bench.series(table.PART, str(table.UNIX), name)]
    if peers:
        fastest = max(peers, key=lambda name: bench.series(table.PART, str(table.UNIX), name).rate)
        yield from _against(bench, table.UNIX, fastest)
    yield from _of_tables(bench)
    for sample in bench.samples:
        if sample.part == steady.PART:
            yield f"p99 at {steady.RATE:,.0f} requests/s, {sample.setting}: {milliseconds(sample.result.p99)} ms"
    if steady.GREATEST_PAUSE in bench.facts:
        yield f"{steady.GREATEST_PAUSE}: {milliseconds(bench.facts[steady.GREATEST_PAUSE])}"
        yield f"{steady.STATUS_CPU}: {bench.facts[steady.STATUS_CPU]:.3f}"
    yield from _disturbance(bench)


def _disturbance(bench: Bench) -> Iterator[str]:
    """Say whether the machine did nothing but this."""
    disturbed = [sample for sample in bench.samples if sample.others > DISTURBED]
    if disturbed:
        worst = max(disturbed, key=lambda sample: sample.others)
        yield (
            f"! The machine was not idle: in {len(disturbed)} of {len(bench.samples)} runs something else used over"
            f" {DISTURBED:.0%} of one of the two cores, at worst {worst.others:.0%} ({worst.part}: {worst.setting},"
            f" {worst.server}). Rates marked ! are too low."
        )
    paced = [sample.result.away for sample in bench.samples if sample.part == steady.PART]
    if paced and max(paced) > AWAY and bench.cores.load is not None:
        yield (
            f"! Something else had the generator's core for up to {milliseconds(max(paced))} ms at a time: times at a"
            " steady rate may be its."
        )


def _against(bench: Bench, setting: table.Setting, other: str) -> Iterator[str]:
    ours, theirs = (bench.series(table.PART, str(setting), name) for name in (POLICYD, other))
    if ours and theirs:
        yield (
            f"{setting}: policyd ÷ {other}: {ours.rate / theirs.rate:.2f} of the requests/s,"
            f" {ours.cpu / theirs.cpu:.2f} of the CPU a request"
        )


def _of_tables(bench: Bench) -> Iterator[str]:
    sizes = sorted({int(sample.setting.replace(",", "")) for sample in bench.samples if sample.part == flat.PART})
    if sizes:
        least, most = (_of_size(bench, size) for size in (sizes[0], sizes[-1]))
        stored = [bench.facts[flat.all_stored(size)] for size in (sizes[0], sizes[-1])]
        yield (
            f"{sizes[-1]:,} accounts ÷ {sizes[0]:,}: {most.rate / least.rate:.2f} of the requests/s,"
            f" {stored[1] / stored[0]:.2f} of the CPU a request until all is stored"
        )
        yield f"resident with {sizes[-1]:,} accounts: {most.memory / 2**20:,.0f} MiB"


def _of_size(bench: Bench, size: int) -> Series:
    name = next(found.server for found in bench.samples if (found.part, found.setting) == (flat.PART, f"{size:,}"))
    return bench.series(flat.PART, f"{size:,}", name)
