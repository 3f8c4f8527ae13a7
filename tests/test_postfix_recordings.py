"""What a real Postfix sent once is sent again, byte for byte and cut anywhere: the counts are what its client did.

`recordings/NAME.txt` has the requests as they were read from the wire, connection after connection; `index.json` says
in which order they came and over which connection (`[connection, offset, length]`), and what the SMTP client sent:
messages and recipients. With `data_seen` false the recording is of a server without a DATA hook.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.daemon import Policyd

RECORDINGS = Path(__file__).parent / "recordings"
INDEX = json.loads((RECORDINGS / "index.json").read_text())

CONFIG = """\
limits:
  messages: {count: messages, per: 1h, max: 1000, action: REJECT}
  recipients: {count: recipients, per: 1h, max: 1000, action: REJECT}
"""

Sent = tuple[int, int]
"""Messages and recipients."""

Cut = Callable[[list[bytes]], list[list[bytes]]]
"""Cuts requests that follow each other on a connection into pieces; a whole list is sent before a reply is read."""


def byte_by_byte(requests: list[bytes]) -> list[list[bytes]]:
    """Cut between any two bytes, inside UTF-8 sequences too, and send a request when the last one is answered."""
    return [[bytes([byte]) for byte in request] for request in requests]


def anywhere(requests: list[bytes]) -> list[list[bytes]]:
    """Cut at random, here within a request and there behind several."""
    stream = b"".join(requests)
    chance = random.Random(len(stream))  # noqa: S311 -- the same cuts at every run
    cuts = sorted(chance.sample(range(1, len(stream)), len(stream) // 100))
    return [[stream[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(stream)])]]


def nowhere(requests: list[bytes]) -> list[list[bytes]]:
    """Send all requests in one packet."""
    return [[b"".join(requests)]]


@dataclass(frozen=True)
class Recording:
    """The requests of one SMTP dialogue."""

    name: str

    @property
    def data_seen(self) -> bool:
        """Whether the server's daemon has seen DATA or END-OF-MESSAGE requests."""
        return bool(INDEX[self.name]["data_seen"])

    @property
    def sent(self) -> dict[str, Sent]:
        """What the client sent: accounts with their messages and recipients."""
        return {account: (messages, recipients) for account, (messages, recipients) in INDEX[self.name]["sent"].items()}

    def runs(self) -> Iterator[tuple[int, list[bytes]]]:
        """Yield connections with the requests that follow each other on them."""
        stream = (RECORDINGS / f"{self.name}.txt").read_bytes()
        for connection, requests in itertools.groupby(INDEX[self.name]["requests"], key=lambda request: request[0]):
            yield connection, [stream[offset : offset + length] for _, offset, length in requests]


def counted(daemon: Policyd) -> dict[str, Sent]:
    """Return what is counted for each account."""
    listed = {entry["account"]: entry["limits"] for entry in daemon.ctl_json("accounts", "-n", "100")}
    return {account: (messages["count"], recipients["count"]) for account, (messages, recipients) in listed.items()}


def added(before: dict[str, Sent], after: dict[str, Sent]) -> dict[str, Sent]:
    """Return what has come to each account, for those to which something has come."""
    changed = {account: sent for account, sent in after.items() if sent != before.get(account, (0, 0))}
    return {
        account: (messages - before.get(account, (0, 0))[0], recipients - before.get(account, (0, 0))[1])
        for account, (messages, recipients) in changed.items()
    }


@dataclass(frozen=True)
class Stage:
    """A way to cut requests, and the daemons on which it is tried."""

    cut: Cut
    daemons: dict[bool, Policyd]
    """By whether they have seen a DATA request."""
    counts: dict[bool, dict[str, Sent]]
    """What the daemons have counted so far."""


@pytest.fixture(scope="module", params=[byte_by_byte, anywhere, nowhere], ids=lambda cut: str(cut.__name__))
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Start daemons that have not seen the recordings: a request seen twice is one resent."""
    with Policyd(CONFIG) as experienced, Policyd(CONFIG) as fresh:
        experienced.message("first@example.com")
        daemons = {True: experienced, False: fresh}
        yield Stage(request.param, daemons, {seen: counted(daemon) for seen, daemon in daemons.items()})


@pytest.mark.parametrize("recording", [Recording(name) for name in INDEX], ids=list(INDEX))
def test_counts_are_what_the_client_sent(stage: Stage, recording: Recording) -> None:
    """However the requests are cut, each is answered DUNNO, and the SMTP dialogue's messages and recipients count."""
    daemon = stage.daemons[recording.data_seen]
    current, connection = 1, daemon.connect()
    for number, requests in recording.runs():
        if number != current:
            connection.leave()
            current, connection = number, daemon.connect()
        answers = []
        for pieces in stage.cut(requests):
            for piece in pieces:
                connection.send(piece)
            answers += connection.replies(b"".join(pieces).count(b"\n\n"))
        assert answers == ["DUNNO"] * len(requests)
    connection.leave()

    before, after = stage.counts[recording.data_seen], counted(daemon)
    stage.counts[recording.data_seen] = after
    assert added(before, after) == {account: sent for account, sent in recording.sent.items() if sent != (0, 0)}


def test_recordings_are_whole() -> None:
    """Each request in the index begins and ends where a request does, and none is left out."""
    for name in INDEX:
        requests = [request for _, run in Recording(name).runs() for request in run]
        assert all(request.startswith(b"request=smtpd_access_policy\n") for request in requests), name
        assert all(request.endswith(b"\n\n") and request.count(b"\n\n") == 1 for request in requests), name
        assert sum(map(len, requests)) == (RECORDINGS / f"{name}.txt").stat().st_size, name
