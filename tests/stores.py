"""A store of one's own: a private redis-server, or valkey-server, a client of its protocol, and a Sentinel beside it.

POLICYD_TEST_STORE names the server that is run, by default the first of SERVERS that is there. Nothing of the machine's
own store is read or touched: its data, its socket and its log lie in one temporary folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from policyd.shared_calls import Calls
from tests.daemon import PATIENCE, free_port
from tests.waiting import until

SERVERS = ("redis-server", "valkey-server")

Reply = object
"""An int, bytes, None, or a list of those."""


class StoreError(Exception):
    """The store's error reply."""


def server_command() -> str:
    """Return the command of the server that is to be run, "" where there is none."""
    wanted = os.environ.get("POLICYD_TEST_STORE")
    return next((found for name in ([wanted] if wanted else SERVERS) if (found := shutil.which(name))), "")


def require_store() -> None:
    """Skip the test where no store can be started; under CI it fails, for there nothing may be left out."""
    if server_command():
        return
    reason = f"{' or '.join(SERVERS)} not found: apt-get install redis-server"
    if os.environ.get("CI"):
        pytest.fail(f"the tests with a real store cannot run: {reason}", pytrace=False)
    pytest.skip(f"needs a real store: {reason}")


class Client:
    """A connection to a store that waits for each reply."""

    def __init__(self, address: str | int) -> None:
        """Connect to a unix socket, or to a TCP port of 127.0.0.1."""
        family, where = (
            (socket.AF_UNIX, address) if isinstance(address, str) else (socket.AF_INET, ("127.0.0.1", address))
        )
        self._socket = socket.socket(family)
        self._socket.settimeout(PATIENCE)
        try:
            self._socket.connect(where)
        except OSError:
            self._socket.close()
            raise
        self._replies = self._socket.makefile("rb")

    def ask(self, *words: str | bytes | float) -> Reply:
        """Send a command and return its reply. Raises StoreError for one that says so."""
        parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        return self.say(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))

    def say(self, command: bytes) -> Reply:
        """Send a command that is packed already."""
        self.send(command)
        return self.reply()

    def send(self, commands: bytes) -> None:
        """Send what is packed already; the replies are to be read later."""
        self._socket.sendall(commands)

    def say_all(self, commands: Sequence[bytes]) -> list[Reply]:
        """Send packed commands in one piece, and only then read their replies."""
        self.send(b"".join(commands))
        return [self.reply() for _ in commands]

    def reply(self) -> Reply:
        """Wait for the next reply."""
        kind, text = (line := self._replies.readline())[:1], line[1:-2]
        if kind == b"+":
            return text
        if kind == b"-":
            raise StoreError(text.decode())
        number = int(text)
        if kind == b"$":
            return None if number < 0 else self._replies.read(number + 2)[:-2]
        if kind == b"*":
            return [self.reply() for _ in range(number)]
        assert kind == b":", line
        return number

    def close(self) -> None:
        """Hang up."""
        self._replies.close()
        self._socket.close()


class Process:
    """A server of the store's program."""

    def __init__(self, *arguments: str, port: int | None = None) -> None:
        require_store()
        self.folder = Path(tempfile.mkdtemp(prefix="policyd-store-"))
        self.port = free_port() if port is None else port
        self.socket = str(self.folder / "socket")
        self._arguments = arguments
        self._client: Client | None = None
        self._clients: list[Client] = []
        self._start()

    def cli(self, *words: str | bytes | float) -> Reply:
        """Send a command over a connection of the test's own and return the reply."""
        if self._client is None:
            self._client = Client(self.socket)
        return self._client.ask(*words)

    def client(self) -> Client:
        """Return another connection; it is closed with the server at the latest."""
        client = Client(self.socket)
        self._clients.append(client)
        return client

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def stop(self) -> None:
        """Have it hang: connections stay, and nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Have it go on after `stop`."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once; what is on the disk stays."""
        self._hang_up()
        self._process.kill()
        self._process.wait(PATIENCE)

    def start(self) -> None:
        """Start it again, at the same addresses, after `kill`."""
        self._start()

    def restart(self, *, keep: bool) -> None:
        """End it and start it again, with its data or without."""
        if keep:
            self.cli("SAVE")
        self.kill()
        if not keep:
            (self.folder / "dump.rdb").unlink(missing_ok=True)
        self._start()

    def close(self) -> None:
        """End it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder)

    def _hang_up(self) -> None:
        for client in (*self._clients, self._client):
            if client is not None:
                client.close()
        self._clients.clear()
        self._client = None

    def _start(self) -> None:
        addresses = ("--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.socket)
        files = ("--dir", str(self.folder), "--logfile", str(self.folder / "log"))
        self._process = subprocess.Popen((server_command(), *self._arguments, *addresses, *files))
        until(self._answers)

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self.folder / "log").read_text(encoding="utf-8")
        with contextlib.suppress(OSError, StoreError):
            return self.cli("PING") == b"PONG"
        self._hang_up()
        return False


class Store(Process):
    """A store; it keeps nothing on the disk unless it is told to."""

    def __init__(self, *arguments: str, port: int | None = None) -> None:
        super().__init__("--save", "", "--appendonly", "no", *arguments, port=port)

    def forget(self) -> None:
        """Forget all data."""
        self.cli("FLUSHALL")


class Sentinel(Process):
    """A Sentinel that watches over a store by a name, and is quick to give up on it."""

    def __init__(self, store: Store, name: str = "mymaster") -> None:
        self.name = name
        with tempfile.NamedTemporaryFile("w", prefix="policyd-sentinel-", suffix=".conf", delete=False) as config:
            config.write(
                f"sentinel monitor {name} 127.0.0.1 {store.port} 1\n"
                f"sentinel down-after-milliseconds {name} 300\n"
                f"sentinel failover-timeout {name} 3000\n"
            )
        self._config = Path(config.name)
        super().__init__(config.name, "--sentinel")

    def close(self) -> None:
        """End it and remove its files."""
        super().close()
        self._config.unlink()

    def master(self) -> int:
        """Return the port of the store that it names now."""
        address = self.cli("SENTINEL", "get-master-addr-by-name", self.name)
        assert isinstance(address, list)
        return int(address[1])

    def fail_over(self) -> None:
        """Have it put a replica in the place of the store."""
        self.cli("SENTINEL", "FAILOVER", self.name)


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Store]:
    """Run a store for as long as it is needed: best as a fixture of a whole file, whose tests `forget` before."""
    store = Store(*arguments)
    try:
        yield store
    finally:
        store.close()


class Shared:
    """What several daemons ask one store: calls are sent, and their replies read, as a daemon does it."""

    def __init__(self, store: Store, node: str = "mail1", prefix: str = "policyd") -> None:
        self.calls = Calls(prefix, node)
        self._client = store.client()

    def say(self, command: bytes) -> Reply:
        """Send a call and return the reply, with the script's text where the store does not know the script."""
        try:
            return self._client.say(command)
        except StoreError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            return self._client.say(self.calls.evaluated(command))
