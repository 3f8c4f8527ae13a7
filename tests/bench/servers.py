"""The servers that are measured, each as a context manager: the floor, bare Twisted, and policyd."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from policyd.storage import COLLECT
from tests.daemon import REPOSITORY, Policyd, free_port

Kind = Literal["unix", "tcp"]

FLOOR = "C epoll floor"
BARE = "bare Twisted"
WITHOUT_DATABASE = "policyd, no database"
POLICYD = "policyd"

SETTLES = COLLECT + 0.1
"""Seconds without work after which policyd has stored all: within COLLECT it looks for what there is to store."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A server as it listens in one place."""

    socket: str
    """A path, or a port of 127.0.0.1."""
    pids: Callable[[], Sequence[int]]
    """Its processes by now."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs."""

    name: str
    at: Mapping[Kind, Instance]
    """By the kind of socket; the same processes, where the server can listen in two places."""
    most_connections: int = 2**31


@dataclass(frozen=True, slots=True)
class Daemon(Running):
    """A policyd that runs."""

    policyd: Policyd | None = None

    @property
    def process(self) -> Policyd:
        """The daemon's process."""
        assert self.policyd is not None
        return self.policyd

    @property
    def path(self) -> str:
        """Its unix socket."""
        return self.at["unix"].socket


@contextmanager
def simple(name: str, command: Sequence[str], folder: Path) -> Iterator[Running]:
    """Run a server that takes the sockets to listen on as arguments and says when it is ready."""
    path, port = str(Path(tempfile.mkdtemp(dir=folder)) / "socket"), str(free_port())
    with subprocess.Popen([*command, path, port], stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"{name} does not start")
            yield Running(name, {"unix": _alone(path, process.pid), "tcp": _alone(port, process.pid)})
        finally:
            process.kill()


def floor(program: Path, folder: Path, prefix: Sequence[str]) -> AbstractContextManager[Running]:
    """Run the floor."""
    return simple(FLOOR, [*prefix, str(program)], folder)


def bare(folder: Path, prefix: Sequence[str]) -> AbstractContextManager[Running]:
    """Run the bare Twisted protocol."""
    return simple(BARE, [*prefix, sys.executable, "-m", "tests.bench.bare"], folder)


@contextmanager
def policyd(
    name: str,
    folder: Path,
    prefix: Sequence[str],
    config: Mapping[str, object] | None = None,
    *,
    database: bool = True,
    pure: bool = False,
) -> Iterator[Daemon]:
    """Run policyd; what `config` does not say is as shipped. Its database is in a folder of its own.

    `pure` has it do without what is compiled of it.
    """
    own = Path(tempfile.mkdtemp(dir=folder))
    path = str(own / "socket")
    store = str(own / "policyd.sqlite") if database else "none"
    environment = {"POLICYD_PURE_PYTHON": "1"} if pure else {}
    text = yaml.safe_dump({**(config or {}), "database": store}, sort_keys=False)
    with Policyd(text, listen=[f"unix:{path}"], prefix=prefix, environment=environment) as process:
        at: dict[Kind, Instance] = {"unix": _alone(path, process.pid), "tcp": _alone(str(process.port), process.pid)}
        try:
            yield Daemon(name, at, policyd=process)
        finally:
            process.kill()  # it has nothing more to do; to end in peace takes it seconds


def _alone(socket: str, pid: int) -> Instance:
    return Instance(socket, lambda: [pid])
