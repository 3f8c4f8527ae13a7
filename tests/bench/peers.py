"""Other policy daemons, where Debian's packages of them are installed: as shipped, with a limit like policyd's.

They run as whoever measures, in a folder of their own. Each listens in one place only, so that there is one instance
for each kind of socket; the one that is not asked has nothing to do.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import yaml

from tests.bench.machine import session_of
from tests.bench.servers import Instance, Kind, Running
from tests.daemon import free_port

RATE_LIMIT = "policyd-rate-limit"
POSTFWD = "postfwd"

POSTFWD_PROGRAMS = ("postfwd3", "postfwd2", "postfwd")
SBIN = ("/usr/sbin", "/sbin")
"""Where daemons are, which is in few people's PATH."""

LIMIT, PERIOD = 500, 1800
MEMORY = Path("/dev/shm")  # noqa: S108 -- only a folder of our own in it
PATIENCE = 5.0

POSTFWD_CONNECTIONS = 100
"""Each connection has a process of its own, and there are that many as shipped."""


class UnavailableError(Exception):
    """A daemon cannot be measured here; the text says why."""


@contextmanager
def policyd_rate_limit(folder: Path, prefix: Sequence[str]) -> Iterator[Running]:
    """Run policyd-rate-limit, which counts recipients in an SQLite file: here in memory where there is /dev/shm."""
    program = _found([RATE_LIMIT])
    stores = MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else folder
    with ExitStack() as stack:
        store = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="policyd-bench-", dir=stores)))

        def started(kind: Kind) -> Instance:
            own = Path(tempfile.mkdtemp(dir=folder))
            where: str | int = str(own / "socket") if kind == "unix" else free_port()
            config = own / "config.yaml"
            config.write_text(yaml.safe_dump(_rate_limit_config(own, store / f"{kind}.sqlite", where)))
            stderr = stack.enter_context((own / "stderr").open("w+b"))
            process = subprocess.Popen([*prefix, program, "-f", str(config)], stderr=stderr)
            stack.callback(_ended, process)
            _wait_for(where, lambda: process.poll() is not None, own / "stderr")
            return Instance(str(where), lambda: [process.pid])

        yield Running(RATE_LIMIT, {"unix": started("unix"), "tcp": started("tcp")})


def _rate_limit_config(own: Path, store: Path, where: str | int) -> dict[str, object]:
    user, group = _own_names()
    return {
        "debug": False,
        "user": user,
        "group": group,
        "pidfile": str(own / "pid"),
        "sqlite_config": {"database": str(store)},
        "SOCKET": where if isinstance(where, str) else ["127.0.0.1", where],
        "limits": [[LIMIT, PERIOD]],
        "success_action": "DUNNO",
        # It looks at all connections that it remembers whenever one of them asks, and remembers those that have ended
        # for so long: the shipped 300 s would have it pay for all runs before.
        "delay_to_close": 5,
    }


@contextmanager
def postfwd(folder: Path, prefix: Sequence[str]) -> Iterator[Running]:
    """Run postfwd with one rule, which counts recipients, and without a log."""
    program = _found(POSTFWD_PROGRAMS)
    with ExitStack() as stack:

        def started(kind: Kind) -> Instance:
            own = Path(tempfile.mkdtemp(dir=folder))
            where: str | int = str(own / "socket") if kind == "unix" else free_port()
            command = [*prefix, program, *_postfwd_options(own, kind, where)]
            # what it leaves behind must not hold a pipe
            with (own / "stderr").open("wb") as stderr:
                done = subprocess.run(command, stdout=stderr, stderr=stderr, timeout=PATIENCE, check=False)
            if done.returncode:
                raise UnavailableError(_last_line(own / "stderr"))
            leader = _pid(own / "pid")
            stack.callback(_session_ended, leader)
            _wait_for(where, lambda: not session_of(leader), own / "stderr")
            return Instance(str(where), lambda: session_of(leader))

        at: dict[Kind, Instance] = {"unix": started("unix"), "tcp": started("tcp")}
        yield Running(POSTFWD, at, most_connections=POSTFWD_CONNECTIONS)


def _postfwd_options(own: Path, kind: Kind, where: str | int) -> list[str]:
    rule = f"id=LIMIT; protocol_state==RCPT; action=rate(sasl_username/{LIMIT}/{PERIOD}/REJECT too many)"
    user, group = _own_names()
    return [
        *("--user", user, "--group", group, "--pidfile", str(own / "pid")),
        *("--cache_proto", "unix", "--cache_port", str(own / "cache")),
        *("--proto", kind, "--interface", "127.0.0.1", "--port", str(where)),
        *("--perfmon", "--summary", "0", "--nodns", "--rule", rule),
    ]


def _own_names() -> tuple[str, str]:
    """Return the names of our user and group, as which the daemons are to stay."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
    except KeyError as error:
        raise UnavailableError(f"we have no name: {error}") from None


def _found(programs: Sequence[str]) -> str:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN])
    for program in programs:
        if found := shutil.which(program, path=path):
            return found
    raise UnavailableError("not installed")


def _wait_for(where: str | int, ended: Callable[[], bool], stderr: Path) -> None:
    """Wait until somebody listens. Raises UnavailableError when nobody ever does."""
    deadline = time.monotonic() + PATIENCE
    while not ended() and time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET) as probe:
            if not probe.connect_ex(where if isinstance(where, str) else ("127.0.0.1", where)):
                return
        time.sleep(0.02)
    raise UnavailableError(_last_line(stderr))


def _last_line(stderr: Path) -> str:
    lines = stderr.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it does not start, and does not say why")


def _pid(file: Path) -> int:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if file.exists() and (text := file.read_text().strip()):
            return int(text)
        time.sleep(0.02)
    raise UnavailableError("it does not start")


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _session_ended(leader: int) -> None:
    for pid in session_of(leader):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
