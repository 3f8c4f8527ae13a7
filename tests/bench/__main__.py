"""What policyd costs, beside other servers, with full tables, in variants, and at a steady rate.

`.tests/bin/python -m tests.bench`: no root, under three minutes. Servers run on one core and the load on another. Every
figure printed is measured in the same run; --json keeps each single one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from policyd.compiled import answer
from tests.bench import closing, flat, steady, table, variants
from tests.bench.flat import Filled
from tests.bench.generator import C_SOURCE, FLOOR_SOURCE, Generator, longest
from tests.bench.machine import compiled, compiler, memory_left, processor, two_cores
from tests.bench.measuring import WIDTH, Bench, Plan, note

HEADLINES = {
    table.PART: "What a request costs",
    variants.PART: "Variants",
    flat.PART: "Flat: small tables and large ones",
    steady.PART: "Steadiness",
}
PARTS = tuple(HEADLINES)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("tests.bench", description=__doc__)
    parser.add_argument("--only", type=_parts, default=PARTS, metavar="PART,…", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a run in a closed loop")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each server in each setting")
    parser.add_argument("--paced-seconds", type=float, default=8.0, help="of a run at a steady rate")
    parser.add_argument(
        "--accounts", type=_numbers, default=(1000, 100_000, 1_000_000), metavar="N,…", help="in the tables of `flat`"
    )
    parser.add_argument(
        "--patience", type=float, default=0.0, help="seconds in all to wait for a machine that does other things, too"
    )
    parser.add_argument("--no-peers", action="store_true", help="leave out other projects' daemons")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all single results there")
    given = parser.parse_args()
    most = min(longest() / variants.LENGTH, flat.longest_run(min(given.accounts), given.rounds))
    if not 0 < given.seconds <= most:
        parser.error(f"--seconds: more than 0 and at most {most:.2f}, or accounts might reach their limits")
    return given


def _parts(text: str) -> tuple[str, ...]:
    found = tuple(text.split(","))
    if unknown := set(found) - set(PARTS):
        raise argparse.ArgumentTypeError(f"there is no part {', '.join(sorted(unknown))}: {', '.join(PARTS)}")
    return found


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted(int(number) for number in text.split(",")))


def prepared(given: argparse.Namespace, folder: Path) -> Bench:
    """Compile what can be compiled, find two cores, and say what there is to measure with."""
    cores = two_cores()
    program = floor = None
    if compiler() is None:
        print("There is no C compiler (cc): the load comes from Python, whose ceiling limits what can be seen.")
    else:
        try:
            program, floor = compiled(C_SOURCE, folder), compiled(FLOOR_SOURCE, folder)
        except subprocess.CalledProcessError as error:
            print(f"The C compiler fails ({error}): the load comes from Python, whose ceiling limits what can be seen.")
    where = f"servers on core {cores.server}, load on core {cores.load}"
    if cores.load is None:
        where = "one core, or no taskset: nothing is pinned, servers and load are in each other's way"
    else:
        os.sched_setaffinity(0, {cores.load})
    note(
        f"{processor()}, {os.cpu_count()} cores, {memory_left() / 2**30:.1f} GiB free;"
        f" Python {sys.version.split()[0]}; policyd {'in Python alone' if answer is None else 'as compiled'}; {where}."
    )
    plan = Plan(given.seconds, given.rounds, given.paced_seconds, not given.no_peers, given.patience, given.accounts)
    return Bench(plan, Generator(folder, program, cores.load), cores, folder, floor)


def measure(bench: Bench, parts: tuple[str, ...]) -> dict[str, float]:
    """Measure the parts, one after the other; return what each took, in seconds."""
    took = {}
    tables: list[Filled] = []
    with ExitStack() as stack:
        measures: dict[str, Callable[[], None]] = {
            table.PART: lambda: table.measure(bench),
            variants.PART: lambda: variants.measure(bench),
            flat.PART: lambda: tables.append(stack.enter_context(flat.measured(bench))),
            steady.PART: lambda: steady.measure(bench, *tables) if tables else steady.alone(bench),
        }
        for part, do in measures.items():
            if part in parts:
                began = time.monotonic()
                _headline(HEADLINES[part])
                do()
                took[part] = time.monotonic() - began
    return took


def _headline(text: str) -> None:
    print(f"== {text} ==\n", flush=True)


def _found(bench: Bench) -> dict[str, object]:
    samples = [asdict(sample) for sample in bench.samples]
    return {"plan": asdict(bench.plan), "facts": bench.facts, "samples": samples}


def main() -> None:
    """Measure, and print."""
    began = time.monotonic()
    given = options()
    with tempfile.TemporaryDirectory(prefix="policyd-bench-") as folder:
        bench = prepared(given, Path(folder))
        try:
            took = measure(bench, given.only)
        finally:
            if given.json:
                given.json.write_text(json.dumps(_found(bench), indent=1))
    _headline("In short")
    for line in closing.lines(bench):
        print(textwrap.fill(line, WIDTH, subsequent_indent="  "))
    parts = ", ".join(f"{part} {seconds:.0f}" for part, seconds in took.items())
    waited = f", {bench.waited:.0f} s of which it waited for an idle machine" if bench.waited >= 1 else ""
    print(f"\nAll that took {time.monotonic() - began:.0f} s ({parts}){waited}.")


if __name__ == "__main__":
    main()
