"""More clients than descriptors: those connected are served, the others wait, and the desk still gets in."""

from __future__ import annotations

import resource
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from policyd.accepting import LEAST, RESERVE, RETRY
from tests.bench.machine import cpu_seconds
from tests.daemon import Address, Connection, Policyd, request
from tests.waiting import until

DESCRIPTORS = 128
PREFIX = ("bash", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "bash")
CLIENTS = 120
ASK = request(sasl_username="", protocol_state="DATA")
LINE = "WARNING out-of-descriptors"


@contextmanager
def clients(address: Address, number: int) -> Iterator[list[socket.socket]]:
    """Connect that many clients, each of which asks at once."""
    with ExitStack() as stack:
        found = []
        for _ in range(number):
            client = stack.enter_context(socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET))
            client.connect(address)
            client.sendall(ASK)
            found.append(client)
        yield found


def answered(asking: list[socket.socket]) -> int:
    """Return how many of the clients have an answer waiting."""
    poll = select.poll()
    for client in asking:
        poll.register(client, select.POLLIN)
    return len(poll.poll(0))


def test_retries_come_within_a_second() -> None:
    """Whoever waits is accepted within a second of there being room."""
    assert 0 < RETRY < 1


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_clients_beyond_the_descriptors_wait_for_room(tmp_path: Path, kind: str) -> None:
    """They cost neither time nor log lines, are accepted when others leave, and policyctl works all the while."""
    path = str(tmp_path / "policy.sock")
    with Policyd(listen=[f"unix:{path}"], prefix=PREFIX) as daemon:
        address = path if kind == "unix" else daemon.address
        with clients(address, CLIENTS) as asking:
            status = until(lambda: (found := daemon.ctl_json("status"))["problems"] and found)
            room = status["connections"]
            assert LEAST <= room < DESCRIPTORS - RESERVE
            assert status["problems"] == [
                f"no room for more policy connections: {room} are open, of {DESCRIPTORS} descriptors"
            ]
            until(lambda: answered(asking) == room)
            before = cpu_seconds(daemon.pid)
            time.sleep(1.0)  # nothing is to happen, and that has to be seen for a while
            assert cpu_seconds(daemon.pid) - before < 0.3
            assert answered(asking) == room
            assert daemon.ctl("lock", "anna@example.com", "--reason", "x").returncode == 0
            assert daemon.ctl("reload").returncode == 0
            asking[0].recv(1000)
            asking[0].sendall(ASK)
            until(lambda: answered(asking) == room)
            for client in asking[:5]:
                client.close()
            until(lambda: answered(asking[5:]) == room)
        until(lambda: daemon.ctl_json("status")["problems"] == [])
        assert daemon.stderr.count(LINE) == 1
        assert "EMFILE" not in daemon.stderr


def test_a_kernel_that_gives_no_descriptor_is_asked_again() -> None:
    """Where none is left at all, clients of both sockets wait without a busy loop until there are some."""
    with Policyd() as daemon:
        first = daemon.connect()
        assert first.ask() == "DUNNO"
        limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (5, limits[1]))
        with clients(daemon.address, 3) as asking, clients(str(daemon.control), 1):
            until(lambda: LINE in daemon.stderr)
            alive = daemon.notices.count("WATCHDOG=1")
            before = cpu_seconds(daemon.pid)
            time.sleep(1.0)  # nothing is to happen, and that has to be seen for a while
            assert cpu_seconds(daemon.pid) - before < 0.3
            assert first.ask() == "DUNNO"
            assert answered(asking) == 0
            until(lambda: daemon.notices.count("WATCHDOG=1") > alive + 1)
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
            until(lambda: answered(asking) == 3)
        assert daemon.stderr.count(f'{LINE} reason="Too many open files"') == 1
        until(lambda: daemon.ctl_json("status")["problems"] == [])


def test_the_daemon_has_as_many_descriptors_as_it_may_have() -> None:
    """What a shell gives by default is no bound; the hard limit is."""
    with Policyd(prefix=("bash", "-c", 'ulimit -S -n 64; exec "$@"', "bash")) as daemon:
        soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        assert soft == min(hard, 65_536)
        with Connection(daemon.address) as connection:
            assert connection.ask() == "DUNNO"
