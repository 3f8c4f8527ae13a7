"""What the database costs those who wait for an answer: the same steady load with and without one, in turn.

The generator asks at a fixed rate, whatever the answers take, over 50 connections; a latency is counted from the
moment at which the request was due, so that a stall is seen by all who had to wait. Each account has some messages in
its window before it begins: what changes of one is written as a whole. (Not too many: all messages of the last five
minutes are remembered one by one, and 400,000 of them make Python's garbage collector a stall of its own.)
"""

from __future__ import annotations

import argparse
import select
import socket
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.bench.load import ACCOUNTS, ANSWER, Messages
from tests.daemon import Policyd, request

CONNECTIONS = 50
PORTIONS = (0.5, 0.99, 0.999)

CONFIG = """\
limits:
  recipients-per-message: {count: recipients, per: message, max: 5000, action: REJECT}
  messages-per-half-hour: {count: messages, per: 30m, max: 1000, action: REJECT, lock: until-unlocked}
"""


def latencies(port: int, rate: float, seconds: float, seed: int) -> list[float]:
    """Ask at that rate for that long; return how long after it was due each request was answered."""
    messages = Messages(seed)
    poll = select.epoll()
    clients: dict[int, tuple[socket.socket, Iterator[bytes]]] = {}
    for _ in range(CONNECTIONS):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        clients[client.fileno()] = (client, messages.requests())
        poll.register(client.fileno(), select.EPOLLIN)
    free = deque(clients)
    due: dict[int, float] = {}
    taken: list[float] = []
    begin = time.perf_counter()
    number, total = 0, int(rate * seconds)
    while len(taken) < total:
        now = time.perf_counter()
        while free and number < total and (at := begin + number / rate) <= now:
            descriptor = free.popleft()
            client, requests = clients[descriptor]
            due[descriptor] = at
            client.send(next(requests))
            number += 1
        waits = max(0.0, begin + number / rate - time.perf_counter()) if free and number < total else 1.0
        for descriptor, _ in poll.poll(waits):
            answer = clients[descriptor][0].recv(4096)
            if answer != ANSWER:
                raise AssertionError(f"answered {answer!r}")
            taken.append(time.perf_counter() - due.pop(descriptor))
            free.append(descriptor)
    for client, _ in clients.values():
        client.close()
    poll.close()
    return taken


def send_before(daemon: Policyd, accounts: int, messages: int) -> None:
    """Have each account send that many messages, as fast as they are answered."""
    with daemon.connect() as connection:
        for number in range(messages):
            connection.send(
                b"".join(
                    request(
                        protocol_state="DATA",
                        sasl_username=f"user{account}@example.com",
                        instance=f"before.{number}.{account}",
                        recipient_count=1,
                    )
                    for account in range(accounts)
                )
            )
            connection.replies(accounts)


def portion(sorted_latencies: list[float], part: float) -> float:
    """Return what that part of the requests took at the most, in milliseconds."""
    return sorted_latencies[min(len(sorted_latencies) - 1, int(part * len(sorted_latencies)))] * 1000


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser("tests.bench.flush", description=__doc__)
    parser.add_argument("--rate", type=float, default=2000.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--before", type=int, default=20, help="messages in each account's window")
    options = parser.parse_args()
    found: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        stores = {"none": "none", "sqlite": str(Path(folder) / "policyd.sqlite")}
        for turn in range(options.turns):
            for name, path in stores.items():
                with Policyd(f"database: {path}\n{CONFIG}") as daemon:
                    if turn == 0 or name == "none":  # the database remembers
                        send_before(daemon, ACCOUNTS, options.before)
                        daemon.wait_for_quiet()
                    taken = sorted(latencies(daemon.port, options.rate, options.seconds, turn + 1))
                    found.setdefault(name, []).append(taken)
    print(
        f"{options.rate:,.0f} requests/s for {options.seconds:g} s, {options.turns} runs each in turn,"
        f" {ACCOUNTS} accounts with {options.before} messages each; median of the runs, ms"
    )
    for name, runs in found.items():
        values = "   ".join(f"p{100 * part:g} {median(portion(run, part) for run in runs):7.2f}" for part in PORTIONS)
        print(f"database: {name:7} {values}   greatest {median(run[-1] for run in runs) * 1000:7.2f}")


if __name__ == "__main__":
    main()
