"""The load: smtpd processes that ask about messages of three recipients, one request after the other."""

from __future__ import annotations

import random
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.daemon import request

RECIPIENTS = 3
ACCOUNTS = 1000
ANSWER = b"action=DUNNO\n\n"


@dataclass(frozen=True, slots=True)
class Result:
    """What one run came to."""

    requests: int
    seconds: float
    generator_cpu: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


class Messages:
    """Requests as Postfix 3.7 sends them: 29 attributes, a new instance for each message, accounts in random order."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 -- an order, not a secret
        self._number = seed << 40
        self._parts = []
        for account in range(ACCOUNTS):
            name = f"user{account}@example.com"
            rcpts = [_cut(name, "RCPT", recipient, 0) for recipient in range(RECIPIENTS)]
            self._parts.append([*rcpts, _cut(name, "DATA", -1, RECIPIENTS)])

    def requests(self) -> Iterator[bytes]:
        """Yield requests without end, message by message."""
        while True:
            self._number += 1
            instance = b"%x.6b03cb6b.435bb.0" % self._number
            for before, after in self._random.choice(self._parts):
                yield before + instance + after


def _cut(account: str, state: str, recipient: int, count: int) -> tuple[bytes, bytes]:
    """Return what stands before and after the instance."""
    address = "" if recipient < 0 else f"recipient{recipient}@remote.example"
    whole = request(
        protocol_state=state,
        sasl_username=account,
        sender=account,
        recipient=address,
        recipient_count=count,
        instance="@",
    )
    before, _, after = whole.partition(b"instance=@")
    return before + b"instance=", after


def run(port: int, connections: int, seconds: float, seed: int) -> Result:
    """Ask over that many connections for that long, and check every answer."""
    poll = select.epoll()
    clients: dict[int, tuple[socket.socket, Iterator[bytes]]] = {}
    messages = Messages(seed)
    for _ in range(connections):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        clients[client.fileno()] = (client, messages.requests())
        poll.register(client.fileno(), select.EPOLLIN)
    done = 0
    cpu = time.process_time()
    start = time.monotonic()
    end = start + seconds
    for client, requests in clients.values():
        client.send(next(requests))
    while time.monotonic() < end:
        for descriptor, _ in poll.poll(1):
            client, requests = clients[descriptor]
            answer = client.recv(4096)
            if answer != ANSWER:
                raise AssertionError(f"answered {answer!r}")
            done += 1
            client.send(next(requests))
    took = time.monotonic() - start
    for client, _ in clients.values():
        client.close()
    poll.close()
    return Result(done, took, (time.process_time() - cpu) / took)
