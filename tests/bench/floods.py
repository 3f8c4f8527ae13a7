"""What floods cost: `.tests/bin/python -m tests.bench.floods`.

Idle and trickling connections: p50 and p99 of the answers to ten others that ask 1,000 times a second between them,
with and without the crowd, A B A B. A million made-up accounts, and as many instances: memory. More clients than
descriptors: how long one waits when another has left.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from contextlib import ExitStack

from policyd.limits import HOUSE_RULES, Rules
from policyd.policy import Policy
from tests.daemon import Policyd, request
from tests.floods import IDLE, TRICKLING, Crowd, crowd, enough_descriptors, make_up, percentile, resident

SECONDS = 8.0
ASKING = 10
RATE = 1000
ROUNDS = 2
MILLION = 1_000_000
DESCRIPTORS = 128
WAITING = 120
LEAVING = 20

ASK = request(sasl_username="", protocol_state="DATA")


def paced(running: Policyd, others: Crowd | None) -> list[float]:
    """Ask at a steady rate for a while; return how long after its due time each answer was there."""
    found = []
    with ExitStack() as stack:
        asking = [stack.enter_context(running.connect()) for _ in range(ASKING)]
        began = time.perf_counter()
        for number in range(int(SECONDS * RATE)):
            due = began + number / RATE
            if (wait := due - time.perf_counter()) > 0:
                time.sleep(wait)
            if others and number * TRICKLING // RATE != (number - 1) * TRICKLING // RATE:
                others.trickle(1)
            sent = time.perf_counter()
            asking[number % ASKING].ask(sasl_username=f"user{number % 100}@example.com")
            found.append(time.perf_counter() - sent)
    return sorted(found)


def connections() -> None:
    """Measure answers beside a crowd of connections."""
    for turn in range(ROUNDS):
        with Policyd({"limits": {}}) as running:
            print(f"run {turn + 1}, nobody else:                     {_shown(paced(running, None))}")
            with crowd(running) as others:
                told = f"run {turn + 1}, {IDLE:,} idle, {TRICKLING} a byte a second:"
                print(f"{told} {_shown(paced(running, others))}, resident {resident(running.pid) / 2**20:.0f} MiB")


def _shown(found: list[float]) -> str:
    return f"p50 {percentile(found, 50) * 1000:.2f} ms, p99 {percentile(found, 99) * 1000:.2f} ms"


def made_up() -> None:
    """Measure the memory that a million made-up accounts take, and that a second million takes no more."""
    policy = Policy(Rules(HOUSE_RULES), lambda *_: None, lambda now: now)
    before, now = resident(), 0.0
    for start in (0, MILLION):
        began = time.perf_counter()
        now = make_up(policy, MILLION, now, start)
        took = time.perf_counter() - began
        print(
            f"{start + MILLION:,} made-up accounts and instances: {len(policy.accounts):,} and "
            f"{len(policy.transactions):,} remembered, {(resident() - before) / 2**20:,.0f} MiB, "
            f"{took / MILLION * 1e6:.1f} µs a request"
        )


def descriptors() -> None:
    """Measure how long a waiting client waits once another has left."""
    with ExitStack() as stack:
        limited = ("bash", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "bash")
        running = stack.enter_context(Policyd(prefix=limited))
        clients = [stack.enter_context(socket.create_connection(running.address)) for _ in range(WAITING)]
        for client in clients:
            client.sendall(ASK)
        while not running.ctl_json("status")["problems"]:
            time.sleep(0.05)
        room = running.ctl_json("status")["connections"]
        waits = []
        for number in range(LEAVING):
            began = time.perf_counter()
            clients[number].close()
            select.select([clients[room + number]], [], [], 10)
            waits.append(time.perf_counter() - began)
        print(f"{DESCRIPTORS} descriptors, {room} connected: when one leaves, the next waits up to {max(waits):.2f} s")


def main() -> None:
    """Measure, and print."""
    if not enough_descriptors(2 * (IDLE + TRICKLING)):
        sys.exit("too few file descriptors allowed")
    connections()
    made_up()
    descriptors()


if __name__ == "__main__":
    main()
