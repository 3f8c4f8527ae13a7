"""Mutated requests against the reader and the policy, in memory: `python -m tests.fuzz --requests 1000000 --seed 7`.

Recorded requests (tests/recordings) and inputs that once found something (tests/seeds) are damaged in all ways that a
peer could think of, sent in pieces over many connections, while time leaps, rules change and people lock and unlock.
Whatever comes, the laws in `World.check` hold. One seed takes the same course at every run.
"""

from __future__ import annotations

import argparse
import gc
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from policyd.actions import MAX_ACTION
from policyd.desk import Desk
from policyd.distinct import DIGEST, MAX_VALUES, Distinct
from policyd.limits import UNTIL_UNLOCKED, Rules
from policyd.log import EventLog
from policyd.policy import Policy
from policyd.transactions import Connection, Receipt, Transaction, Transactions
from policyd.window import Window
from policyd.wire import MAX_ATTRIBUTES, MAX_LINE, MAX_REQUEST, ProtocolError, Request, RequestReader
from tests.asking import EPOCH, all_accounts, limit, override, seeded

FOLDER = Path(__file__).resolve().parent

REQUESTS = 1_000_000
CONNECTIONS = 50
MAX_ACCOUNTS = 1000
MAX_ENDED = 500
"""Ended transactions that are remembered; so few that they are forgotten in a short run, too."""

CHECK_EVERY = 2000
SLOW = 0.1
"""Seconds of CPU within which each piece has to be dealt with; it takes some milliseconds at the most."""

WARM = 0.3
"""The part of a run after which the process must not grow any more."""

MAX_GROWTH = 24 * 1024 * 1024
"""Bytes by which it may do so all the same: what an allocator leaves lying about."""

REPLY = re.compile(rb"action=([^\n]*)\n\n")
USERS = [
    b"",
    *(b"user%d@example.com" % number for number in range(20)),
    b"ANNA@example.com",
    b"j\xfcrgen",
    b"a=b\x1b[31m",
]
STATES = [
    *(b"RCPT", b"RCPT", b"RCPT", b"DATA", b"DATA", b"END-OF-MESSAGE"),
    *(b"CONNECT", b"EHLO", b"HELO", b"MAIL", b"VRFY", b"ETRN", b"", b"\xff", b"rcpt", b"RCPT "),
]
NUMBERS = [
    b"0",
    b"1",
    b"2",
    b"99",
    b"100",
    b"101",
    b"5000",
    b"9" * 18,
    b"9" * 19,
    b"00",
    b"-1",
    b"1.0",
    b"",
    b"\xb2",
    b"x",
]
CLIENTS = [b"", b"unknown", b"::1%lo", b"2001:db8::%", *(b"192.0.2.%d" % number for number in range(5))]
BYTES = [b"\n", b"\n\n", b"=", b"\0", b"\r\n", b" ", b"\xff", b"request=", b"\nsasl_username=", b"\ninstance="]

RULES: Sequence[Callable[[], Rules]] = (
    lambda: Rules(
        (
            limit("recipients", 100, "message", "REJECT 5.5.3 {limit} {max}", name="per-message"),
            limit("messages", 5, "30m", "REJECT 5.7.1 {account} {until}", name="few", lock="until-unlocked"),
            limit("recipients", 50, "1h", "WARN {account} {count}", name="warned"),
            limit("messages", 3, "1m", "HOLD {account}", name="tried", observe=True),
        ),
        (override(["user1@*"], few=None), override(["user2@*"], few=20, warned=2)),
    ),
    lambda: Rules(
        (
            limit("messages", 7, "10s", "HOLD {account} {per}", name="few", lock="1m"),
            limit("recipients", 300, "1d", "452 4.5.3 {count} of {max} until {until}", name="warned"),
            limit("recipients", 1_000_000, "7d", "REJECT {account}", name="coarse"),
        ),
        (),
        ("sasl_username", "client_address"),
        False,
    ),
    lambda: Rules(
        (limit("messages", 1, "1s", "DISCARD"), limit("recipients", 3, "31d", "DEFER {limit}")), observe=True
    ),
    lambda: Rules(
        (
            limit("clients", 2, "1h", "REJECT {account} {max} {count}", lock="1m"),
            limit("senders", 3, "10m", "HOLD {until}"),
            limit("bytes", 5000, "1h", "452 4.3.1 {count} of {max}"),
            limit("bytes", 2000, "1m", name="tried", observe=True),
            limit("messages", 50, "1h"),
        ),
        (override(["user1@*"], clients=None, bytes=None),),
    ),
)


def recorded() -> list[bytes]:
    """Return all requests of the recordings and the seeds, as they are on the wire."""
    found = []
    for file in sorted([*FOLDER.glob("recordings/*.txt"), *FOLDER.glob("seeds/*.txt")]):
        found += [lines + b"\n\n" for lines in file.read_bytes().rstrip(b"\n").split(b"\n\n")]
    return found


class Mutations:
    """Requests that are damaged a little, so that they get far, or much."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._seeds = recorded()
        self._names = sorted({line.partition(b"=")[0] for seed in self._seeds for line in seed.split(b"\n") if line})
        self._number = 0
        self._damages: Sequence[Callable[[bytes], bytes]] = (
            *(self._flip, self._cut, self._splice, self._insert, self._repeat, self._huge, self._many, self._drop_line),
        )

    def request(self) -> bytes:
        """Return the next request: three of four are as Postfix could send them."""
        chance = self._chance
        data = self._varied(chance.choice(self._seeds))
        while chance.random() < 0.25:
            data = chance.choice(self._damages)(data)
        return data

    def _varied(self, data: bytes) -> bytes:
        """Set the attributes that decide: among few accounts and instances at first, then ever new ones."""
        chance = self._chance
        self._number += chance.random() < 0.5
        user = chance.choice(USERS) if chance.random() < 0.9 else b"made-up-%d" % self._number
        values = {
            b"protocol_state": chance.choice(STATES),
            b"sasl_username": user,
            b"instance": b"%x.%d" % (self._number - chance.randrange(3), chance.randrange(2)),
            b"recipient": b"r%d@remote.example" % chance.randrange(5),
            b"client_address": chance.choice(CLIENTS),
            b"sender": b"s%d@example.com" % chance.randrange(9),
            b"size": chance.choice(NUMBERS),
            b"recipient_count": chance.choice(NUMBERS[:8]) if chance.random() < 0.98 else chance.choice(NUMBERS),
        }
        for name in chance.sample(sorted(values), chance.randrange(len(values) + 1)):
            data = _with(data, name, values[name])
        return data

    def _flip(self, data: bytes) -> bytes:
        at = self._chance.randrange(len(data) or 1)
        return data[:at] + bytes(byte ^ 1 << self._chance.randrange(8) for byte in data[at : at + 1]) + data[at + 1 :]

    def _cut(self, data: bytes) -> bytes:
        start, end = sorted(self._chance.randrange(len(data) + 1) for _ in range(2))
        return data[:start] + data[end:]

    def _splice(self, data: bytes) -> bytes:
        other = self._chance.choice(self._seeds)
        return data[: self._chance.randrange(len(data) + 1)] + other[self._chance.randrange(len(other)) :]

    def _insert(self, data: bytes) -> bytes:
        at = self._chance.randrange(len(data) + 1)
        return data[:at] + self._chance.choice(BYTES) + data[at:]

    def _repeat(self, data: bytes) -> bytes:
        lines = data.split(b"\n")
        line = self._chance.choice(lines)
        return b"\n".join([line] * self._chance.choice((1, 2, MAX_ATTRIBUTES)) + lines)

    def _huge(self, data: bytes) -> bytes:
        """Make a value so large that it just fits, or just does not."""
        name = self._chance.choice(self._names)
        size = self._chance.choice((400, MAX_LINE, MAX_REQUEST)) + self._chance.randrange(-20, 20) - len(name)
        value = self._chance.choice((b"x", b"\xc3\xbc", b"{account}", b"\xff", b"=")) * max(size, 0)
        return _with(data, name, value[: max(size, 0)])

    def _many(self, data: bytes) -> bytes:
        number = MAX_ATTRIBUTES - data.count(b"\n") + self._chance.randrange(4)
        return b"".join(b"x%d=\n" % extra for extra in range(number)) + data

    def _drop_line(self, data: bytes) -> bytes:
        lines = data.split(b"\n")
        del lines[self._chance.randrange(len(lines))]
        return b"\n".join(lines)


def _with(data: bytes, name: bytes, value: bytes) -> bytes:
    """Return a request with another value in its first attribute of this name."""
    line = name + b"=" + value
    return re.sub(rb"(?m)^%s=.*$" % re.escape(name), lambda _: line, data, count=1)


class Peer:
    """A connection, and what it has still to send."""

    def __init__(self) -> None:
        self.reader = RequestReader()
        self.connection = Connection("fuzz")
        self.pending = b""


@dataclass(slots=True)
class Outcome:
    """What a run came to."""

    requests: int = 0
    answered: int = 0
    malformed: int = 0
    slowest: float = 0.0
    growth: int = 0
    """Bytes by which the process has grown since it was warm."""

    def __str__(self) -> str:
        return (
            f"{self.requests:,} mutated requests: {self.answered:,} answered, {self.malformed:,} malformed; "
            f"the slowest piece took {self.slowest * 1000:.1f} ms; grown by {self.growth / 2**20:.1f} MiB since warm"
        )


class World:
    """A policy, many connections, people at the desk, and a clock that leaps."""

    def __init__(self, seed: int) -> None:
        self._chance = seeded(seed)
        self._mutations = Mutations(self._chance)
        self._now = 10_000.0
        self._offset = EPOCH
        self.outcome = Outcome()
        self._log = EventLog(lambda: self._now, self._one_line)
        self.policy = Policy(RULES[0](), self._log.report, lambda now: now + self._offset)
        self.policy.accounts.size = MAX_ACCOUNTS
        self.policy.transactions = Transactions(MAX_ENDED)
        self._desk = Desk(self.policy, lambda now: now + self._offset, self._now, list)
        self._peers = [Peer() for _ in range(CONNECTIONS)]

    def run(self, requests: int) -> Outcome:
        """Send that many mutated requests, and check every answer and, ever again, the whole."""
        outcome = self.outcome
        warm = 0
        gc.collect()
        gc.freeze()  # as the daemon does: what others have left in this process is not its business
        for number in range(requests):
            self._step()
            if number % CHECK_EVERY == 0:
                self.check()
                self._log.sum_up()
                if not warm and number >= requests * WARM:
                    warm = resident()
        gc.unfreeze()
        gc.collect()
        outcome.growth = resident() - warm if warm else 0
        for peer in self._peers:
            self.policy.leave(peer.connection, self._now)
        self.check()
        return outcome

    def feed(self, data: bytes) -> bytes:
        """Send bytes over a connection of their own; return the replies until it is hung up on."""
        peer = Peer()
        replies = self._receive(peer, data)
        self.policy.leave(peer.connection, self._now)
        return replies

    def check(self) -> None:
        """Check that tables are bounded, and that windows and receipts agree with themselves and each other."""
        accounts, transactions = self.policy.accounts, self.policy.transactions
        assert len(accounts) - len(accounts.locked) <= MAX_ACCOUNTS
        current = [known for known in transactions._known.values() if known.connection is not None]
        ended = [known for known in transactions._known.values() if known.connection is None]
        assert len(current) <= CONNECTIONS
        assert len(ended) <= MAX_ENDED
        for account in all_accounts(accounts, self._now):
            assert (account.lock is not None) == (account in accounts.locked)
            for window in filter(None, account.windows):
                check_window(window)
        charged: dict[int, tuple[Window, Counter[float]]] = {}
        for transaction in current:
            assert transaction.connection is not None
            assert transaction.connection.transaction is transaction
        for transaction in (*current, *ended):
            assert transaction.recipients >= 0
            for receipt in transaction._recipients:
                check_receipt(receipt)
            for window, stamp, events in charges(transaction):
                charged.setdefault(id(window), (window, Counter()))[1][stamp] += events
        for window, stamps in charged.values():
            for stamp, events in zip(*window.runs(), strict=True):
                assert stamps[stamp] <= events, "more can be given back than was counted"

    def _step(self) -> None:
        chance = self._chance
        peer = chance.choice(self._peers)
        peer.pending += self._mutations.request()
        self.outcome.requests += 1
        if chance.random() < 0.3:
            sent = chance.randrange(len(peer.pending) + 1)
            data, peer.pending = peer.pending[:sent], peer.pending[sent:]
        else:
            data, peer.pending = peer.pending, b""
        self._receive(peer, data)
        dice = chance.random()
        if dice < 0.01:
            self._hang_up(peer)
        elif dice < 0.02:
            self._desk_work()
        self._now += chance.choice((0.0, 0.0, 0.001, 0.5, 2.0)) if dice < 0.999 else chance.choice((60, 3600, 1e5, 3e6))
        if 0.5 < dice < 0.501:
            self._offset += chance.choice((-3600.0, 3600.0, -1e6, 1e6))

    def _receive(self, peer: Peer, data: bytes) -> bytes:
        """Hand a piece to a connection as the server does."""
        replies = b""
        began = time.thread_time()
        peer.reader.receive(data)
        try:
            while (request := peer.reader.next_request()) is not None:
                replies += self._decide(request, peer)
        except ProtocolError as error:
            self.outcome.malformed += 1
            self._log.report("protocol-error", {"peer": "fuzz", "reason": str(error)})
            self._hang_up(peer)
        else:
            assert len(peer.reader._buffer) <= MAX_REQUEST + 1
        took = time.thread_time() - began
        self.outcome.slowest = max(self.outcome.slowest, took)
        assert took < SLOW, f"{took:.3f} s for {data!r}"
        return replies

    def _decide(self, request: Request, peer: Peer) -> bytes:
        reply = self.policy.decide(request, peer.connection, self._now).reply
        found = REPLY.fullmatch(reply)
        assert found, f"{reply!r} to {request.lines!r}"
        assert 0 < len(found[1]) <= MAX_ACTION, reply
        assert found[1].decode().isprintable(), reply
        self.outcome.answered += 1
        return reply

    def _hang_up(self, peer: Peer) -> None:
        self.policy.leave(peer.connection, self._now)
        if peer in self._peers:
            self._peers[self._peers.index(peer)] = Peer()

    def _desk_work(self) -> None:
        chance, now, desk = self._chance, self._now, self._desk
        name = chance.choice(USERS[1:]).decode(errors="backslashreplace")
        seconds = chance.choice((1.0, 600.0, UNTIL_UNLOCKED))
        work: Sequence[Callable[[], object]] = (
            lambda: desk.lock(name, "spam", seconds, "fuzz", now, hold=chance.random() < 0.5),
            lambda: desk.unlock([account.name for account in self.policy.accounts.locked], "fuzz", now),
            lambda: desk.reset(name, "fuzz", now),
            lambda: desk.status(now),
            lambda: desk.accounts(now, "recipients", 5, 50.0),
            lambda: desk.account(name, now),
            lambda: desk.locked(now),
            lambda: setattr(self.policy.accounts, "rules", chance.choice(RULES)()),
        )
        chance.choice(work)()

    def _one_line(self, _severity: int, text: str) -> None:
        assert text.isprintable(), f"this is not one line: {text!r}"


def check_window(window: Window) -> None:
    """Check that a window's total is that of its runs, which are in order."""
    stamps, counts = window.runs()
    assert window._total == sum(counts) >= 0, "a window's total is not that of its runs"
    assert all(number > 0 for number in counts)
    assert stamps == sorted(set(stamps))
    if isinstance(window, Distinct):
        latest = Counter(sightings[-1] for sightings in window._values.values())
        assert latest == Counter(dict(zip(stamps, counts, strict=True))), "each value is counted once, when seen last"
        assert len(window._values) <= MAX_VALUES
        assert all(len(value) == DIGEST for value in window._values)


def check_receipt(receipt: Receipt) -> None:
    """Check that a receipt's total is that of its runs."""
    assert receipt._total == sum(events for _, events in receipt._runs) >= 0
    assert all(events > 0 for _, events in receipt._runs)


def charges(transaction: Transaction) -> Iterator[tuple[Window, float, int]]:
    """Yield all that a transaction was charged: the window, the stamp, the number of events."""
    for receipt in transaction._recipients:
        for stamp, events in receipt._runs:
            yield receipt.window, stamp, events
    for window, stamp in zip(transaction._windows, transaction._stamps, strict=True):
        yield window, stamp, 1
    if transaction.envelope is not None:
        yield from transaction.envelope._sizes


def resident() -> int:
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main() -> None:
    """Run, and say what it came to; an AssertionError or any other exception is a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.perf_counter()
    outcome = World(options.seed).run(options.requests)
    print(f"seed {options.seed}, {time.perf_counter() - began:.0f} s: {outcome}")
    if outcome.growth > MAX_GROWTH:
        raise SystemExit("it grows")


if __name__ == "__main__":
    main()
