"""Variants: what limits, overrides, reloads and questions cost those who wait for an answer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from tests.bench.happenings import ACCOUNTS, HOW, RELOAD, Happenings
from tests.bench.machine import awake
from tests.bench.measuring import Bench, milliseconds, note, print_table
from tests.bench.servers import Daemon, policyd

PART = "variants"
CONNECTIONS = 50
LENGTH = 2
"""A run of these lasts so many times as long as others: things happen in it."""

SHIPPED = "as shipped (2 limits, no overrides)"
OVERRIDES = 100

HEADER = ("", "requests/s", "min to max", "x shipped", "p50", "p99", "p99.9 ms", "greatest", "CPU µs/request")

PER_MESSAGE = {"count": "recipients", "per": "message", "max": 5000, "action": "REJECT"}
HALF_HOUR = {"count": "messages", "per": "30m", "max": 500, "action": "REJECT", "lock": "until-unlocked"}
MORE = {
    f"{count}-per-{per}": {"count": count, "per": per, "max": most, "action": "REJECT"}
    for count, most in (("messages", 1000), ("recipients", 10_000))
    for per in ("10m", "1h", "6h", "1d")
}


def overrides() -> list[dict[str, object]]:
    """Return overrides that no account of the load matches, so that each account is held against all of them."""
    kinds = ("customer{}@example.net", "*@domain{}.example", "news-*-{}@*.example.net")
    return [
        {"accounts": [kinds[number % len(kinds)].format(number)], "limits": {"messages-per-half-hour": 1000 + number}}
        for number in range(OVERRIDES)
    ]


PURE = "nothing compiled"

CONFIGS: Mapping[str, Mapping[str, object]] = {
    SHIPPED: {},
    PURE: {},
    "1 limit": {"limits": {"messages-per-half-hour": HALF_HOUR}},
    "10 limits": {"limits": {"recipients-per-message": PER_MESSAGE, "messages-per-half-hour": HALF_HOUR, **MORE}},
    f"{OVERRIDES} overrides": {"overrides": overrides()},
}


@dataclass(frozen=True, slots=True)
class Disturbed:
    """What happens to the daemon as shipped while it is asked, and how often."""

    happens: str
    interval: float

    def __str__(self) -> str:
        return f"{self.happens} each {self.interval:g} s"


DISTURBED = (Disturbed(RELOAD, 0.5), Disturbed(ACCOUNTS, 1.0))


def measure(bench: Bench) -> None:
    """Measure all variants in turn, and print what was found."""
    seconds = bench.plan.seconds * LENGTH
    with ExitStack() as stack:
        daemons = {
            name: stack.enter_context(policyd(name, bench.folder, bench.server_prefix, config, pure=name == PURE))
            for name, config in CONFIGS.items()
        }
        for turn in range(bench.plan.rounds):
            for name, daemon in daemons.items():
                _run(bench, (PART, name, turn), daemon, seconds)
            for disturbed in DISTURBED:
                happenings = Happenings(daemons[SHIPPED].process, [disturbed.happens], disturbed.interval)
                _run(bench, (PART, str(disturbed), turn), daemons[SHIPPED], seconds, happenings)
                happened = bench.facts.get(str(disturbed), 0) + len(happenings.happened)
                bench.facts[str(disturbed)] = happened
        with awake(daemons[SHIPPED].at["unix"].pids):
            known = daemons[SHIPPED].process.ctl_json("status")["accounts"]
    _print(bench, seconds, known)


def _run(
    bench: Bench, sample: tuple[str, str, int], daemon: Daemon, seconds: float, meanwhile: Happenings | None = None
) -> None:
    bench.measure(sample, daemon, "unix", bench.fresh(daemon, "unix", CONNECTIONS, seconds), meanwhile)


def _print(bench: Bench, seconds: float, known: int) -> None:
    note(
        f"With database. Closed loop over the unix socket, {CONNECTIONS} connections; {bench.plan.rounds} runs of"
        f" {seconds:g} s each, variants in turn; medians."
    )
    print_table(HEADER, _rows(bench))
    print()
    times = "; ".join(f"{disturbed.happens}, {bench.facts[str(disturbed)]:g} times" for disturbed in DISTURBED)
    note(
        "Each run has 1,000 new accounts, each of which is held against all overrides: a third are names, a third"
        f" *@domain, a third other globs. What happened to the daemon as shipped: {times}. In the end it knew"
        f" {known:,} accounts. {HOW}"
    )


def _rows(bench: Bench) -> list[list[str]]:
    shipped = bench.series(PART, SHIPPED, SHIPPED)
    rows = []
    for setting in (*CONFIGS, *map(str, DISTURBED)):
        series = bench.series(PART, setting, setting if setting in CONFIGS else SHIPPED)
        rows.append(
            [
                setting,
                *series.cells,
                f"{series.rate / shipped.rate:.2f}",
                *(milliseconds(latency) for latency in (*series.latencies, series.greatest)),
                f"{series.cpu:.1f}",
            ]
        )
    return rows
