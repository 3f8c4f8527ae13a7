"""The daemon as a process of its own, for tests that see it as Postfix, systemd and policyctl see it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
SYSTEM_CONFIG = Path("/etc/policyd/policyd.yaml")
SHIPPED_CONFIG = REPOSITORY / "etc" / "policyd.yaml"

PATIENCE = 20.0
"""Seconds after which something that should have happened at once is taken for never happening."""

DEFAULT_PORT = 10045
"""Where the daemon listens when nobody tells it."""

TEST_PORTS = range(20000, 32000)
"""Below the kernel's ephemeral ports, so that no outgoing connection takes one between the look and the bind."""

ATTRIBUTES: Mapping[str, str] = {
    "request": "smtpd_access_policy",
    "protocol_state": "RCPT",
    "protocol_name": "ESMTP",
    "client_address": "192.0.2.7",
    "client_name": "client.example.net",
    "client_port": "40404",
    "reverse_client_name": "client.example.net",
    "server_address": "192.0.2.1",
    "server_port": "587",
    "helo_name": "client.example.net",
    "sender": "anna@example.com",
    "recipient": "one@remote.example",
    "recipient_count": "0",
    "queue_id": "",
    "instance": "5d7e.6b03cb6b.435bb.0",
    "size": "0",
    "etrn_domain": "",
    "stress": "",
    "sasl_method": "PLAIN",
    "sasl_username": "anna@example.com",
    "sasl_sender": "",
    "ccert_subject": "",
    "ccert_issuer": "",
    "ccert_fingerprint": "",
    "ccert_pubkey_fingerprint": "",
    "encryption_protocol": "TLSv1.3",
    "encryption_cipher": "TLS_AES_256_GCM_SHA384",
    "encryption_keysize": "256",
    "policy_context": "",
}
"""A request as Postfix 3.7 sends it: these names, in this order."""

Value = str | bytes | int
Address = tuple[str, int] | str


def request(**attributes: Value) -> bytes:
    """Return one request as Postfix would send it, with `attributes` in place of the defaults; unknown ones follow."""
    values: dict[str, Value] = {**ATTRIBUTES, **attributes}
    lines = (name.encode() + b"=" + _bytes(value) + b"\n" for name, value in values.items())
    return b"".join(lines) + b"\n"


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which nothing listens."""
    for port in random.sample(TEST_PORTS, 200):
        if not listens(port):
            return port
    raise RuntimeError("no free TCP port found")


def listens(port: int) -> bool:
    """Tell whether a TCP port of 127.0.0.1 is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


AS_SYSTEMD = """
import fcntl, os, sys
given = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1].split()]
for number, descriptor in enumerate(given, 3):
    os.dup2(descriptor, number)
    os.close(descriptor)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(given))}
os.execv(sys.argv[2], sys.argv[2:])
"""


def passing(sockets: Sequence[socket.socket]) -> list[str]:
    """Return the command that passes sockets to the command after it, as systemd does."""
    if not sockets:
        return []
    numbers = " ".join(str(passed.fileno()) for passed in sockets)
    return [sys.executable, "-I", "-S", "-c", AS_SYSTEMD, numbers]


class Connection:
    """One connection to the daemon, as an smtpd process holds one."""

    def __init__(self, address: Address, instances: Iterator[str] | None = None) -> None:
        if isinstance(address, str):
            self._socket = socket.socket(socket.AF_UNIX)
        else:
            self._socket = socket.socket(socket.AF_INET)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(address)
        if not isinstance(address, str):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._instances = instances if instances is not None else _instances()
        self._received = b""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, **attributes: Value) -> str:
        """Send one request and return the action answered; where no `instance` is given, it is a new one."""
        if "instance" not in attributes:
            attributes["instance"] = next(self._instances)
        self.send(request(**attributes))
        return self.replies(1)[0]

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(data)

    def replies(self, n: int = 1) -> list[str]:
        """Wait for `n` replies and return their actions.

        Raises ConnectionError when the daemon hangs up first, AssertionError when a reply is not of the form that
        SMTPD_POLICY_README asks for.
        """
        return [self._reply() for _ in range(n)]

    def closed(self, patience: float = PATIENCE) -> bool:
        """Tell whether the daemon hangs up, without another byte, within `patience` seconds."""
        if self._received:
            return False
        self._socket.settimeout(patience)
        try:
            return self._socket.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        finally:
            self._socket.settimeout(PATIENCE)

    def shutdown(self) -> None:
        """Say that nothing more will be sent, and stay to read."""
        self._socket.shutdown(socket.SHUT_WR)

    def leave(self) -> None:
        """Hang up, and return when the daemon has noticed; it has nothing left to say."""
        self.shutdown()
        assert self.closed(), "the daemon says more than it was asked, or does not hang up"
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _reply(self) -> str:
        while b"\n\n" not in self._received:
            chunk = self._socket.recv(65536)
            if not chunk:
                raise ConnectionError(f"the daemon hung up; unfinished reply: {self._received!r}")
            self._received += chunk
        reply, self._received = self._received.split(b"\n\n", 1)
        name, _, action = reply.partition(b"=")
        assert name == b"action", f"a reply of an unknown form: {reply!r}"
        assert b"\n" not in action, f"a reply of an unknown form: {reply!r}"
        return action.decode()


class DaemonFailedError(Exception):
    """The daemon did not do what it was told in time; the text has all that it wrote to stderr."""


class Policyd:
    """`python -m policyd` with a config of the test's own, as a context manager.

    `config` is the text of a config file, or a mapping that becomes one; what it does not say is added: `listen` (a
    free port of 127.0.0.1), `control` (in a folder of its own), `database: none`. With None there is no config file
    at all, and the daemon listens where it does by default. `listen` are endpoints besides that port. `sockets` are
    passed as systemd does. `prefix` is a command that becomes the daemon.
    """

    def __init__(
        self,
        config: str | Mapping[str, object] | None = "",
        *,
        listen: Sequence[str] = (),
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        sockets: Sequence[socket.socket] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        self._sockets = tuple(sockets)
        self._prefix = tuple(prefix)
        self.port = DEFAULT_PORT if config is None else free_port()
        self._config = config
        self._listen = listen
        self._arguments = tuple(arguments)
        self._environment = dict(environment or {})
        self._instances = _instances()
        self._notices: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._notify: socket.socket | None = None
        self._asking: Connection | None = None
        self._connections: list[Connection] = []
        self._folder: Path | None = None

    def __enter__(self) -> Policyd:
        self._folder = Path(tempfile.mkdtemp(prefix="policyd-"))
        try:
            for name in ("run", "state"):
                (self.folder / name).mkdir()
            self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._notify.bind(str(self.folder / "notify"))
            self.write_config(self._config)
            self.start()
        except BaseException:
            self._clear_away()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            self.stop()
            written = self.stderr
        finally:
            self._clear_away()
        if kind is None:
            assert "Traceback" not in written, f"the daemon met a bug of its own:\n{written}"

    @property
    def folder(self) -> Path:
        """A folder of this daemon's own, removed at the end."""
        assert self._folder is not None, "the daemon is only there inside of its with statement"
        return self._folder

    @property
    def config_file(self) -> Path:
        """Where the config is, unless there is none."""
        return self.folder / "policyd.yaml"

    @property
    def control(self) -> Path:
        """The control socket."""
        return self.folder / "run" / "control.sock"

    @property
    def address(self) -> tuple[str, int]:
        """Where the daemon listens for TCP."""
        return ("127.0.0.1", self.port)

    @property
    def endpoint(self) -> str:
        """The daemon as Postfix names it: `inet:127.0.0.1:PORT`."""
        return f"inet:127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the daemon."""
        return self._running.pid

    @property
    def stderr(self) -> str:
        """All that the daemon has written to stderr, over all restarts."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "stderr").read_text(errors="backslashreplace")
        return ""

    @property
    def notices(self) -> list[str]:
        """The sd_notify assignments received so far: `READY=1`, `STATUS=…`."""
        self._read_notices()
        return list(self._notices)

    def write_config(self, config: str | Mapping[str, object] | None) -> None:
        """Write another config file, which the daemon reads when it is next started or reloaded."""
        self._config = config
        if config is None:
            assert not SYSTEM_CONFIG.exists(), f"the daemon would read {SYSTEM_CONFIG}, which belongs to this machine"
            return
        text = config if isinstance(config, str) else yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        wanted = {
            "listen": [f"tcp:{self.port}:interface=127.0.0.1", *self._listen],
            "control": str(self.control),
            "database": "none",
        }
        missing = {key: value for key, value in wanted.items() if not re.search(rf"^{key}:", text, re.MULTILINE)}
        separator = "" if not text or text.endswith("\n") else "\n"
        addition = yaml.safe_dump(missing) if missing else ""
        self.config_file.write_text(text + separator + addition)

    def start(self) -> None:
        """Start the daemon, and return when it says that it is ready.

        Raises DaemonFailedError, with its exit status and stderr, when it ends instead.
        """
        assert self._process is None, "the daemon is already running"
        self.control.unlink(missing_ok=True)
        if not self._sockets and listens(self.port):
            raise DaemonFailedError(f"port {self.port} is taken by somebody else")
        self._read_notices()
        command = [*self._prefix, *passing(self._sockets), sys.executable, "-m", "policyd"]
        if self._config is not None:
            command += ["-c", str(self.config_file)]
        with (self.folder / "stderr").open("ab") as stderr:
            self._process = subprocess.Popen(
                [*command, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                cwd=self.folder,
                env=self._daemon_environment(),
                pass_fds=[passed.fileno() for passed in self._sockets],
            )
        self._wait_until_ready()

    def stop(self) -> int:
        """End the daemon as systemd does, by SIGTERM, and return its exit status; 0 where it does not run."""
        if self._process is None:
            return 0
        self._process.terminate()
        return self._ended()

    def kill(self) -> None:
        """End the daemon as a power cut does."""
        self._running.kill()
        self._ended()

    def restart(self) -> None:
        """Stop the daemon and start it again."""
        self.stop()
        self.start()

    def reload(self, config: str | Mapping[str, object] | None = None) -> None:
        """Send SIGHUP, with another config file if one is given, and return when the daemon is ready again."""
        if config is not None:
            self.write_config(config)
        self._read_notices()
        self._running.send_signal(signal.SIGHUP)
        self._wait_until_ready()

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait for the daemon to end by itself, and return its exit status."""
        return self._ended(patience)

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run policyctl on this daemon's control socket."""
        return subprocess.run(
            [sys.executable, "-m", "policyd.ctl", "--socket", str(self.control), *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=self._environment_with_policyd(),
            timeout=PATIENCE,
            check=False,
        )

    def ctl_json(self, *arguments: str) -> Any:
        """Run policyctl with `--json`, and return what it printed; it has to exit 0."""
        done = self.ctl(*arguments, "--json")
        assert done.returncode == 0, f"policyctl {' '.join(arguments)}: exit {done.returncode}: {done.stderr}"
        return json.loads(done.stdout)

    def counts(self, account: str) -> dict[str, int | None]:
        """Return what `policyctl status ACCOUNT` counts: the name of each limit with its count."""
        return {limit["name"]: limit["count"] for limit in self.ctl_json("status", account)["limits"]}

    def wait_for_quiet(self) -> None:
        """Hang up all connections that were opened here, and wait until the daemon has none left."""
        self._hang_up()
        deadline = time.monotonic() + PATIENCE
        while connections := self.ctl_json("status")["connections"]:
            assert time.monotonic() < deadline, f"{connections} connections are left"

    def ask(self, **attributes: Value) -> str:
        """Send one request over a connection that is kept, and return the action answered."""
        if self._asking is None:
            self._asking = self.connect()
        return self._asking.ask(**attributes)

    def message(self, account: str, recipients: int = 1, **attributes: Value) -> list[str]:
        """Ask as Postfix does for one message, RCPT by RCPT and then DATA, and return the actions answered."""
        given: dict[str, Value] = {"instance": next(self._instances), "sasl_username": account, **attributes}
        answers = [
            self.ask(**{"protocol_state": "RCPT", "recipient": f"r{n}@remote.example", **given})
            for n in range(recipients)
        ]
        data: dict[str, Value] = {"protocol_state": "DATA", "recipient": "", "recipient_count": recipients}
        return [*answers, self.ask(**{**data, "queue_id": "4F1C02A0B7", **given})]

    def connect(self, address: Address | None = None) -> Connection:
        """Open a connection, by default to the TCP port; it is closed at the latest when the daemon goes."""
        connection = Connection(self.address if address is None else address, self._instances)
        self._connections.append(connection)
        return connection

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the daemon is not running"
        return self._process

    @property
    def _notices_socket(self) -> socket.socket:
        assert self._notify is not None, "the daemon is only there inside of its with statement"
        return self._notify

    def _ended(self, patience: float = PATIENCE) -> int:
        process = self._running
        try:
            status = process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self._process = None
            raise DaemonFailedError(f"did not end within {patience} s\n{self.stderr}") from None
        self._process = None
        self._hang_up()
        return status

    def _hang_up(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        self._asking = None

    def _clear_away(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._hang_up()
        if self._notify is not None:
            self._notify.close()
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None

    def _wait_until_ready(self) -> None:
        """Wait for READY=1, or for the end of the process, whichever comes first."""
        seen = len(self._notices)
        deadline = time.monotonic() + PATIENCE
        process_end = os.pidfd_open(self.pid)
        try:
            while "READY=1" not in self._notices[seen:]:
                patience = max(0.0, deadline - time.monotonic())
                readable, _, _ = select.select([self._notices_socket.fileno(), process_end], [], [], patience)
                self._read_notices()
                if process_end in readable and "READY=1" not in self._notices[seen:]:
                    raise DaemonFailedError(f"exit status {self._ended()}\n{self.stderr}")
                if not readable:
                    raise DaemonFailedError(f"not ready within {PATIENCE} s\n{self.stderr}")
        finally:
            os.close(process_end)

    def _read_notices(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._notices += self._notices_socket.recv(4096, socket.MSG_DONTWAIT).decode().split("\n")

    def _daemon_environment(self) -> dict[str, str]:
        environment = self._environment_with_policyd()
        environment["NOTIFY_SOCKET"] = str(self.folder / "notify")
        environment["RUNTIME_DIRECTORY"] = str(self.folder / "run")
        environment["STATE_DIRECTORY"] = str(self.folder / "state")
        return {**environment, **self._environment}

    def _environment_with_policyd(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}


def _instances() -> Iterator[str]:
    """Name transactions as smtpd does, each once: pid.sec.usec.seq in hex."""
    return (f"{os.getpid():x}.{time.time_ns() // 1000:x}.{n:x}" for n in itertools.count())


def _bytes(value: Value) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
