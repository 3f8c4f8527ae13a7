"""The benchmark itself: its generators ask what Postfix would ask, notice wrong answers, and it runs to the end."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.bench.generator import C_SOURCE, FLOOR_SOURCE, Generator, Load, LoadFailedError, longest
from tests.bench.machine import compiled, compiler
from tests.bench.servers import BARE, FLOOR, POLICYD, WITHOUT_DATABASE, bare, floor
from tests.bench.table import SETTINGS
from tests.daemon import ATTRIBUTES, REPOSITORY
from tests.stores import require_store

DUNNO = b"action=DUNNO\n\n"


@pytest.fixture(params=["C", "Python"])
def generator(request: pytest.FixtureRequest, tmp_path: Path) -> Generator:
    """Return each of the generators."""
    if request.param == "Python":
        return Generator(tmp_path, None, None)
    if compiler() is None:
        pytest.skip("there is no compiler")
    return Generator(tmp_path, compiled(C_SOURCE, tmp_path), None)


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Answer all requests of one connection in the same way; give what was asked."""
    asked: list[bytes] = []

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            rest = b""
            with suppress(ConnectionResetError):  # whoever does not like the answer leaves without reading it all
                while received := connection.recv(65536):
                    *requests, rest = (rest + received).split(b"\n\n")
                    asked.extend(requests)
                    connection.sendall(answer * len(requests))

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join()


def test_generators_ask_as_postfix_does(generator: Generator, tmp_path: Path) -> None:
    """All attributes in their order; RCPT by RCPT and then DATA, one instance and one account a message."""
    path = tmp_path / "socket"
    with answering(path, DUNNO) as asked:
        load = Load(socket=str(path), run="test", seed=7, connections=1, messages=5, accounts=4, depth=3)
        assert generator.run(load).requests == 5 * 4
    requests = [dict(line.split("=", 1) for line in request.decode().split("\n")) for request in asked]
    assert all(list(request) == list(ATTRIBUTES) for request in requests)
    assert [request["protocol_state"] for request in requests] == ["RCPT", "RCPT", "RCPT", "DATA"] * 5
    assert [request["recipient_count"] for request in requests] == ["0", "0", "0", "3"] * 5
    assert [request["recipient"] for request in requests[:4]] == [
        *(f"recipient{number}@remote.example" for number in range(3)),
        "",
    ]
    accounts = [request["sasl_username"] for request in requests]
    assert accounts[::4] == [f"user{number % 4}.test@example.com" for number in range(5)]
    assert accounts == [request["sender"] for request in requests]
    instances = [request["instance"] for request in requests]
    assert len(set(instances[::4])) == 5
    assert instances == [instance for instance in instances[::4] for _ in range(4)]
    assert {**requests[0], "sender": "", "sasl_username": "", "instance": "", "recipient": ""} == {
        **ATTRIBUTES,
        "sender": "",
        "sasl_username": "",
        "instance": "",
        "recipient": "",
    }


@pytest.mark.parametrize("answer", [b"action=REJECT\n\n", b"action=DUNNO\n\naction=DUNNO\n\n", b"action=DUNNO \n\n"])
def test_generators_notice_a_wrong_answer(generator: Generator, tmp_path: Path, answer: bytes) -> None:
    """A benchmark of a server that refuses would measure something else."""
    path = tmp_path / "socket"
    with answering(path, answer), pytest.raises(LoadFailedError, match="answered"):
        generator.run(Load(socket=str(path), run="test", seed=1, connections=1, seconds=0.2))


def test_generators_keep_to_a_rate_and_to_a_time(generator: Generator, tmp_path: Path) -> None:
    """A paced load is of so many requests; a closed loop lasts so long, and asks more."""
    with bare(tmp_path, ()) as server:
        for where in (server.at["unix"].socket, server.at["tcp"].socket):
            paced = generator.run(Load(socket=where, run="a", seed=1, connections=5, seconds=0.2, rate=500))
            assert paced.requests == 100
            assert paced.seconds > 99 / 500
            assert 0 < paced.p50 <= paced.p99 <= paced.p999 <= paced.greatest == pytest.approx(max(paced.peaks), 0.001)
            assert paced.began <= paced.greatest_at <= paced.began + paced.seconds
            closed = generator.run(Load(socket=where, run="b", seed=2, connections=5, seconds=0.2))
            assert closed.requests > paced.requests
            assert 0 < closed.busy <= 1


@pytest.mark.skipif(compiler() is None, reason="there is no compiler")
def test_the_floor_answers(generator: Generator, tmp_path: Path) -> None:
    """Over both kinds of socket."""
    with floor(compiled(FLOOR_SOURCE, tmp_path), tmp_path, ()) as server:
        for where in (server.at["unix"].socket, server.at["tcp"].socket):
            assert generator.run(Load(socket=where, run="a", seed=1, connections=5, messages=1000)).requests == 4000


def test_a_run_is_never_so_long_that_an_account_reaches_its_limit() -> None:
    """What an answer that refuses costs is another question."""
    assert longest(accounts=1000) == pytest.approx(2 * longest(accounts=500))
    assert 1.2 < longest() < 500 * 1000 * 4 / 250_000


def test_the_benchmark_runs(tmp_path: Path) -> None:
    """Every server answers in every setting, and the table, the ratios and the single results are told."""
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "tests.bench", "--only", "table", "--seconds", "0.05", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--no-peers", "--json", str(results)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    samples = json.loads(results.read_text())["samples"]
    servers = [*([FLOOR] if compiler() else []), BARE, WITHOUT_DATABASE, POLICYD]
    assert [(sample["setting"], sample["server"]) for sample in samples] == [
        (str(setting), server) for setting in SETTINGS for server in servers
    ]
    for sample in samples:
        assert sample["result"]["requests"] > 0
        assert 0 < sample["cpu"] < 100_000
        assert sample["memory"] > 0
        assert sample["server"] in done.stdout
    assert "TCP, 50 connections: policyd ÷ bare Twisted: " in done.stdout
    assert f"The generator is {'load.c' if compiler() else 'load.py'}" in done.stdout


def test_the_benchmark_of_a_shared_store_runs() -> None:
    """It tells what sharing costs, and what becomes of answers when the store hangs."""
    require_store()
    command = [
        sys.executable,
        "-m",
        "tests.bench.shared",
        "--seconds",
        "0.1",
        "--rounds",
        "1",
        "--paced-seconds",
        "3.1",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for told in (
        "policyd that asks at each request ÷ the store alone: ",
        "sharing adds to the p50: ",
        "the first 1 s  ",
    ):
        assert told in done.stdout
