"""The load where there is no C compiler: what load.c does, with the same options and the same answer, only slower.

What it can ask for limits the rates that can be seen; the CPU time a request costs the server is what to look at then.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

STATE, ACCOUNT, RECIPIENT, COUNT, INSTANCE = b"\1", b"\2", b"\3", b"\4", b"\5"
"""What the template has in place of what differs from request to request."""

ANSWER = b"action=DUNNO\n\n"
PATIENCE = 20.0
SLEEP, NAP = 1.0, 0.001
"""Seconds for which it sleeps at the most, where it may; the same at a steady rate."""
PEAK = 10_000_000
"""Nanoseconds: of each such span, the greatest time is told."""


class Messages:
    """The requests of all messages, in order."""

    def __init__(self, template: bytes, options: argparse.Namespace) -> None:
        self._options = options
        self._random = random.Random(options.i)  # noqa: S311 -- an order, not a secret
        self._begun = 0
        self._steps = [self._cut(template, step) for step in range(options.n + 1)]

    def _cut(self, template: bytes, step: int) -> list[bytes]:
        """Return one step's request, cut at the account and the instance."""
        at_data = step == self._options.n
        filled = (
            template.replace(STATE, b"DATA" if at_data else b"RCPT")
            .replace(RECIPIENT, b"" if at_data else b"recipient%d@remote.example" % step)
            .replace(COUNT, b"%d" % (max(self._options.n, 1) if at_data else 0))
        )
        return re.split(b"([" + ACCOUNT + INSTANCE + b"])", filled)

    def requests(self) -> Iterator[bytes]:
        """Yield one client's requests, message by message, until no message is left."""
        options = self._options
        while not options.m or self._begun < options.m:
            number = self._begun if options.m else self._random.getrandbits(62)
            account = b"user%d.%s@example.com" % (number % options.a, options.t.encode())
            self._begun += 1
            instance = b"%x.6b03cb6b.435bb.0" % ((options.i << 40) + self._begun)
            given = {ACCOUNT: account, INSTANCE: instance}
            for pieces in self._steps:
                yield b"".join([given.get(piece, piece) for piece in pieces])


class Client:
    """One connection."""

    def __init__(self, where: str, requests: Iterator[bytes]) -> None:
        if "/" in where:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(where)
        else:
            self.socket = socket.create_connection(("127.0.0.1", int(where)))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(PATIENCE)
        self._requests = requests
        self._wanted = b""
        self.asked = 0
        self.since = 0

    def ask(self, most: int) -> bool:
        """Send the next requests, up to so many; tell whether there were any left."""
        batch = [request for _, request in zip(range(most), self._requests)]  # noqa: B905 -- the shorter one
        self.asked = len(batch)
        self._wanted = ANSWER * self.asked
        self.socket.sendall(b"".join(batch))
        return bool(batch)

    def all_answered(self) -> bool:
        """Read what has come; tell whether all is answered."""
        got = self.socket.recv(len(self._wanted) + 1)
        if not got or not self._wanted.startswith(got):
            sys.exit(f"load: answered {got!r} in place of {self._wanted!r}")
        self._wanted = self._wanted[len(got) :]
        return not self._wanted


class Run:
    """One run of the load, from the first request to the last answer."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        messages = Messages(Path(options.template).read_bytes(), options)
        self._poll = select.epoll()
        self._clients: dict[int, Client] = {}
        for _ in range(options.c):
            client = Client(options.socket, messages.requests())
            if not options.m:
                client.ask(1)
                while not client.all_answered():
                    pass
            self._clients[client.socket.fileno()] = client
            self._poll.register(client.socket, select.EPOLLIN)
        self._free = deque(self._clients.values())
        self._over = False
        self._asked = self._answered = self._idle = self._idle_since = self._away = 0
        self._began = self._last = 0
        self._times: list[tuple[int, int]] = []

    def ask_all(self) -> None:
        """Ask until it is over, and all is answered."""
        self._began = self._last = looked = time.monotonic_ns()
        end = self._began + int(self._options.s * 1e9)
        while len(self._free) < len(self._clients) or not self._over:
            now = time.monotonic_ns()
            self._away, looked = max(self._away, now - looked), now
            if not self._options.m and not self._options.r and now >= end:
                self._over = True
            self._ask_what_is_due(now)
            self._look()

    def _look(self) -> None:
        """Take in what has come; note for how long there was nothing."""
        sleeps = self._options.w or self._options.m
        if sleeps:
            self._idle_since = time.monotonic_ns()
        found = self._poll.poll((NAP if self._options.r else SLEEP) if sleeps else 0)
        now = time.monotonic_ns()
        if self._idle_since and (found or sleeps):
            self._idle += now - self._idle_since
            self._idle_since = 0
        elif not found and not self._idle_since:
            self._idle_since = now
        if not found and len(self._free) < len(self._clients) and now > self._last + PATIENCE * 1e9:
            sys.exit("load: no answer for too long")
        for descriptor, _ in found:
            self._take_in(self._clients[descriptor])

    def _ask_what_is_due(self, now: int) -> None:
        rate = self._options.r
        while not self._over and self._free:
            due = self._began + int(self._asked * 1e9 / rate) if rate else now
            if due > now:
                return
            client = self._free[0]
            client.since = due
            if not client.ask(self._options.d):
                self._over = True
                return
            self._free.popleft()
            self._asked += 1
            self._over = bool(rate) and self._asked >= int(rate * self._options.s)

    def _take_in(self, client: Client) -> None:
        if not client.all_answered():
            return
        self._last = time.monotonic_ns()
        self._times.append((self._last - client.since, client.since))
        self._answered += client.asked
        if not self._options.r and (self._options.m or not self._over):
            client.since = self._last
            if client.ask(self._options.d):
                return
            self._over = True
        self._free.append(client)

    def report(self) -> str:
        """Return what was found, as JSON."""
        took = self._last - self._began
        peaks = [0] * (took // PEAK + 1)
        for time_, since in self._times:
            at = (since - self._began) // PEAK
            peaks[at] = max(peaks[at], time_)
        times = sorted(self._times) or [(0, self._began)]
        p50, p99, p999, greatest = (times[int((len(times) - 1) * part)] for part in (0.5, 0.99, 0.999, 1))
        return json.dumps(
            {
                "requests": self._answered,
                "seconds": took / 1e9,
                "busy": 1 - self._idle / took if took else 0,
                "away": self._away / 1e6,
                "began": self._began / 1e9,
                "p50": p50[0] / 1e6,
                "p99": p99[0] / 1e6,
                "p999": p999[0] / 1e6,
                "greatest": greatest[0] / 1e6,
                "greatest_at": greatest[1] / 1e9,
                "peaks": [peak / 1e6 for peak in peaks],
            }
        )


def main() -> None:
    """Connect, wait for a line, ask, tell, and hang up when there are no more lines."""
    parser = argparse.ArgumentParser("tests.bench.load", description=__doc__)
    for name, default in {"-c": 1, "-m": 0, "-a": 1000, "-n": 3, "-d": 1, "-i": 1}.items():
        parser.add_argument(name, type=int, default=default)
    for name, seconds in {"-s": 1.0, "-r": 0.0}.items():
        parser.add_argument(name, type=float, default=seconds)
    parser.add_argument("-t", default="run")
    parser.add_argument("-w", action="store_true")
    parser.add_argument("socket")
    parser.add_argument("template")
    run = Run(parser.parse_args())
    print("ready", flush=True)
    if sys.stdin.readline():
        run.ask_all()
        print(run.report(), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
