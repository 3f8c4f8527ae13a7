"""Crowds that a policy daemon has to bear: idle connections, trickling ones, made-up names; for tests and benches."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from policyd.policy import Policy
from policyd.transactions import Connection
from policyd.wire import RequestReader
from tests import daemon
from tests.daemon import Policyd, request

IDLE = 2000
TRICKLING = 500
TRICKLED = request(sasl_username="", instance="trickle")

PIPELINED = 1000
"""Requests of one packet."""


def enough_descriptors(number: int) -> bool:
    """Let this process have that many descriptors; tell whether it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    return number <= hard


class Crowd:
    """Idle connections and trickling ones, each of which sends a byte at a time."""

    def __init__(self, trickling: Sequence[socket.socket]) -> None:
        self._trickling = trickling
        self._sent = 0

    def trickle(self, number: int) -> None:
        """Have the next so many connections send their next byte."""
        for _ in range(number):
            client = self._trickling[self._sent % len(self._trickling)]
            at = self._sent // len(self._trickling) % len(TRICKLED)
            client.send(TRICKLED[at : at + 1])
            self._sent += 1


@contextmanager
def crowd(running: Policyd, idle: int = IDLE, trickling: int = TRICKLING) -> Iterator[Crowd]:
    """Connect a crowd to a daemon, and wait until all are connected."""
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(running.address, daemon.PATIENCE))
            for _ in range(idle + trickling)
        ]
        yield Crowd(clients[idle:])


def latencies(
    connection: daemon.Connection, number: int, crowd: Crowd | None = None, bytes_each: int = 0
) -> list[float]:
    """Ask one request after the other, bytes of a crowd before each; return the seconds that the answers took."""
    found = []
    for _ in range(number):
        if crowd:
            crowd.trickle(bytes_each)
        began = time.perf_counter()
        connection.ask(sasl_username="anna@example.com", protocol_state="RCPT")
        found.append(time.perf_counter() - began)
    return sorted(found)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below which that part of sorted values lies."""
    return values[min(int(len(values) * percent / 100), len(values) - 1)]


def make_up(policy: Policy, number: int, now: float, start: int = 0) -> float:
    """Send a message from each of so many made-up accounts, each with an instance of its own; return the time then."""
    reader, connection = RequestReader(), Connection("flood")
    for first in range(start, start + number, PIPELINED):
        reader.receive(
            b"".join(
                b"request=smtpd_access_policy\nprotocol_state=DATA\nsasl_username=%d@made.up\ninstance=%x.0\n"
                b"recipient_count=1\nclient_address=192.0.2.7\n\n" % (made_up, made_up)
                for made_up in range(first, min(first + PIPELINED, start + number))
            )
        )
        while (asked := reader.next_request()) is not None:
            policy.decide(asked, connection, now)
            now += 0.0001
    policy.leave(connection, now)
    return now


def resident(pid: int | str = "self") -> int:
    """Return the bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
