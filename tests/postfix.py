"""A private Postfix with SASL users of its own, and what an SMTP client, its queue and its hooks need around it.

Nothing of the machine's own Postfix is read or touched: configuration, queue, data and log lie in one temporary folder.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pwd
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.daemon import PATIENCE, Address, Policyd, free_port

COMMANDS = ("postfix", "postqueue", "saslpasswd2")
SYSTEM_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
"""Administrators' commands are not in everybody's PATH."""

GRACE = 1.0
"""Seconds after which the processes of a Postfix are killed: a delivery may be under way, and nobody waits for it."""

PASSWORD = "secret"  # noqa: S105 -- of accounts that live for one test
REALM = "lab.example"
"""Completes a login without @."""

HOOKS: Mapping[str, str] = {
    "CONNECT": "smtpd_client_restrictions",
    "EHLO": "smtpd_helo_restrictions",
    "MAIL": "smtpd_sender_restrictions",
    "RCPT": "smtpd_recipient_restrictions",
    "DATA": "smtpd_data_restrictions",
    "END-OF-MESSAGE": "smtpd_end_of_data_restrictions",
    "ETRN": "smtpd_etrn_restrictions",
}
"""The seven lists in which Postfix can ask a policy daemon, by the protocol state that each is named after."""

MAIN_CF: Mapping[str, str] = {
    "compatibility_level": "3.6",
    "inet_protocols": "ipv4",
    "myhostname": f"mx.{REALM}",
    "mydestination": "",
    "mynetworks": "127.0.0.0/8",
    "alias_maps": "",
    "local_recipient_maps": "",
    "default_transport": "discard:",
    "local_transport": "discard:",
    "smtpd_peername_lookup": "no",
    "smtpd_relay_restrictions": "permit_mynetworks, permit_sasl_authenticated, reject",
    "smtpd_sasl_auth_enable": "yes",
    "smtpd_sasl_type": "cyrus",
    "smtpd_sasl_path": "smtpd",
    "smtpd_sasl_local_domain": REALM,
    "smtpd_recipient_limit": "10000",
    "smtpd_client_connection_count_limit": "0",
    "smtpd_client_connection_rate_limit": "0",
    "smtpd_client_message_rate_limit": "0",
    "smtpd_client_recipient_rate_limit": "0",
    "smtpd_client_auth_rate_limit": "0",
    "smtpd_error_sleep_time": "0",
    "smtpd_soft_error_limit": "5000",
    "smtpd_hard_error_limit": "10000",
    "smtpd_junk_command_limit": "10000",
}

MASTER_CF = """\
127.0.0.1:{port} inet n - {chroot} - {smtpds} smtpd
cleanup  unix       n - n -    0 cleanup
qmgr     unix       n - n 300  1 qmgr
rewrite  unix       - - n -    - trivial-rewrite
bounce   unix       - - n -    0 bounce
defer    unix       - - n -    0 bounce
trace    unix       - - n -    0 bounce
verify   unix       - - n -    1 verify
flush    unix       n - n 1000 0 flush
proxymap unix       - - n -    - proxymap
showq    unix       n - n -    - showq
error    unix       - - n -    - error
retry    unix       - - n -    - error
discard  unix       - - n -    - discard
anvil    unix       - - n -    1 anvil
postlog  unix-dgram n - n -    1 postlogd
"""

SASL_CONF = """\
pwcheck_method: auxprop
auxprop_plugin: sasldb
sasldb_path: sasldb
mech_list: PLAIN
"""
"""The path is relative to the queue directory, where each smtpd works, whether that is its root or not."""

ACCEPTED = "250 2.1.5 Ok"
"""The reply to RCPT where the recipient is accepted."""

QUEUED = re.compile(r"250 2\.0\.0 Ok: (?:\d+ bytes )?queued as (\w+)")


def queued(reply: str) -> str:
    """Return the queue id that a message got at its end, "" where it was not accepted."""
    found = QUEUED.fullmatch(reply)
    return found[1] if found else ""


def require_postfix() -> None:
    """Skip the test where no private Postfix can be started; under CI it fails, for there nothing may be left out."""
    missing = [command for command in COMMANDS if shutil.which(command, path=SYSTEM_PATH) is None]
    if missing:
        reason = f"{', '.join(missing)} not found: apt-get install postfix sasl2-bin libsasl2-modules"
    elif os.geteuid() != 0:
        reason = "only root can start a Postfix"
    else:
        return
    if os.environ.get("CI"):
        pytest.fail(f"the tests with a real Postfix cannot run: {reason}", pytrace=False)
    pytest.skip(f"needs a real Postfix: {reason}")


class Session:
    """One SMTP client. Every method returns the server's reply: `250 2.1.5 Ok`, further lines without their code."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._replies = self._socket.makefile("rb")
        self.greeting = self._reply()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self._socket.fileno() != -1:
                with contextlib.suppress(OSError, EOFError):
                    self.quit()
        finally:
            self.close()

    def command(self, line: str | bytes) -> str:
        """Send one command line and return its reply; EOFError where the server hangs up instead."""
        return self.pipeline([line])[0]

    def pipeline(self, lines: Sequence[str | bytes]) -> list[str]:
        """Send all lines in one piece, and only then read their replies."""
        self.ask(lines)
        return self.replies(len(lines))

    def ask(self, lines: Sequence[str | bytes]) -> None:
        """Send all lines in one piece; their replies are to be read later."""
        self.send(b"".join(_encoded(line) + b"\r\n" for line in lines))

    def replies(self, n: int) -> list[str]:
        """Wait for the next `n` replies."""
        return [self._reply() for _ in range(n)]

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(data)

    def login(self, user: str, password: str = PASSWORD) -> str:
        """Log in by AUTH PLAIN."""
        secret = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
        return self.command(f"AUTH PLAIN {secret}")

    def mail(self, sender: str = "anna@example.com") -> str:
        """Begin a message."""
        return self.command(f"MAIL FROM:<{sender}>")

    def rcpt(self, recipient: str = "one@remote.example") -> str:
        """Name one recipient."""
        return self.command(f"RCPT TO:<{recipient}>")

    def data(self, text: str = "Subject: test\n\nHello.\n") -> str:
        """Send the text of the message; the reply is to DATA where that is refused, else to the end of the text."""
        reply = self.command("DATA")
        if not reply.startswith("354"):
            return reply
        return self.command(text.replace("\n", "\r\n") + ".")

    def message(self, recipients: int | Sequence[str] = 1, sender: str = "anna@example.com") -> list[str]:
        """Send one message and return the replies to each RCPT, then to its end; what is left over is reset."""
        if isinstance(recipients, int):
            recipients = [f"r{n}@remote.example" for n in range(recipients)]
        begun = self.mail(sender)
        if not begun.startswith("250"):
            return [begun]
        replies = [self.rcpt(recipient) for recipient in recipients]
        replies.append(self.data())
        if not replies[-1].startswith("250"):
            self.command("RSET")
        return replies

    def quit(self) -> str:
        """Take leave and hang up, and return the server's farewell."""
        farewell = self.command("QUIT")
        self.close()
        return farewell

    def drop(self) -> None:
        """Vanish, as a client does whose line breaks: the server gets a reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Hang up without a word."""
        self._replies.close()
        self._socket.close()

    def _reply(self) -> str:
        lines: list[str] = []
        while True:
            line = self._replies.readline()
            if not line.endswith(b"\r\n"):
                raise EOFError(f"the SMTP server hung up: {lines!r} {line!r}")
            text = line.decode(errors="backslashreplace").rstrip("\r\n")
            lines.append(text[4:] if lines else text)
            if text[3:4] != "-":
                return "\n".join(lines)


class PrivatePostfix:
    """A Postfix on a free port of 127.0.0.1, as a context manager; only root can run one.

    `settings` are lines of main.cf besides and over MAIN_CF; `smtpds` is the greatest number of smtpd processes (None:
    as many as are needed); with `chroot` they live in the queue directory.
    """

    def __init__(
        self, settings: Mapping[str, str] | None = None, *, chroot: bool = False, smtpds: int | None = None
    ) -> None:
        self.port = free_port()
        self._settings = dict(settings or {})
        self._chroot = chroot
        self._smtpds = smtpds
        self._users: set[str] = set()
        self._master: int | None = None
        self._folder: Path | None = None

    def __enter__(self) -> PrivatePostfix:
        require_postfix()
        self._folder = Path(tempfile.mkdtemp(prefix="postfix-"))
        try:
            self._make_folders()
            self.configure(self._settings)
            self._command("postfix", "start")
            self._master = int((self.queue_directory / "pid" / "master.pid").read_text())
        except BaseException:
            self._clear_away()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()
        if kind is not None:
            print(self.log())
        self._clear_away()

    @property
    def folder(self) -> Path:
        """All that belongs to this Postfix; removed at the end."""
        assert self._folder is not None, "Postfix is only there inside of its with statement"
        return self._folder

    @property
    def queue_directory(self) -> Path:
        """Where smtpd works, and what a relative `unix:` endpoint is relative to."""
        return self.folder / "queue"

    @property
    def policy_socket(self) -> Path:
        """Where a policy daemon can listen for `unix:policyd/policy.sock`; what is made here belongs to postfix."""
        return self.queue_directory / "policyd" / "policy.sock"

    def configure(self, settings: Mapping[str, str]) -> None:
        """Write main.cf and master.cf."""
        parameters = {
            **MAIN_CF,
            "queue_directory": str(self.queue_directory),
            "data_directory": str(self.folder / "data"),
            "cyrus_sasl_config_path": str(self.folder / "conf" / "sasl"),
            "maillog_file": str(self.folder / "log"),
            "maillog_file_prefixes": str(self.folder),
            **settings,
        }
        services = MASTER_CF.format(
            port=self.port, chroot="y" if self._chroot else "n", smtpds="-" if self._smtpds is None else self._smtpds
        )
        self._write("main.cf", "".join(f"{name} = {value}\n" for name, value in parameters.items()))
        self._write("master.cf", services)

    def reload(self, settings: Mapping[str, str] | None = None) -> None:
        """Read the configuration again, with other settings if some are given."""
        if settings is not None:
            self.configure(settings)
        self._command("postfix", "reload")

    def stop(self) -> None:
        """End all processes of this Postfix, and return when they have ended."""
        if self._master is None:
            return
        group, self._master = self._master, None
        with contextlib.suppress(ProcessLookupError):
            os.kill(group, signal.SIGTERM)
        if not _group_ended(group, GRACE):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            assert _group_ended(group, PATIENCE), "processes of the private Postfix cannot be ended"

    def connect(self) -> Session:
        """Connect as a client that has not logged in, and say EHLO."""
        session = Session(self.port)
        try:
            hello = session.command("EHLO client.example.net")
            assert "AUTH PLAIN" in hello, f"no AUTH PLAIN offered, libsasl2-modules may be missing:\n{hello}"
        except BaseException:
            session.close()
            raise
        return session

    def smtp(self, user: str, password: str = PASSWORD) -> Session:
        """Connect and log in; a user not named before is created first."""
        self.add_user(user, password)
        session = self.connect()
        reply = session.login(user, password)
        if not reply.startswith("235"):
            session.close()
            raise AssertionError(f"AUTH PLAIN as {user!r}: {reply}\n{self.log()}")
        return session

    def add_user(self, user: str, password: str = PASSWORD) -> None:
        """Make a SASL account, unless it is there already."""
        if user in self._users:
            return
        local, _, realm = user.rpartition("@") if "@" in user else (user, "", REALM)
        database = self.queue_directory / "sasldb"
        command = _which("saslpasswd2")
        subprocess.run(
            [command, "-p", "-c", "-f", str(database), "-u", realm, local], input=password, text=True, check=True
        )
        os.chown(database, *_postfix_ids())
        self._users.add(user)

    def queue(self) -> list[dict[str, Any]]:
        """Return the messages in the queue, as `postqueue -j` shows them."""
        return [json.loads(line) for line in self._command("postqueue", "-j").splitlines()]

    def held(self) -> list[dict[str, Any]]:
        """Return the messages that are on hold."""
        return [message for message in self.queue() if message["queue_name"] == "hold"]

    def log(self) -> str:
        """Return the mail log so far; what was logged last may still be on its way."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "log").read_text(errors="backslashreplace")
        return ""

    def _make_folders(self) -> None:
        self.folder.chmod(0o755)
        for name in ("conf/sasl", "queue/policyd", "data"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "conf" / "sasl" / "smtpd.conf").write_text(SASL_CONF)
        _, group = _postfix_ids()
        os.chown(self.folder / "data", *_postfix_ids())
        os.chown(self.policy_socket.parent, 0, group)
        self.policy_socket.parent.chmod(0o2750)

    def _write(self, name: str, text: str) -> None:
        """Write a configuration file of yesterday: Postfix waits for one that is only seconds old."""
        path = self.folder / "conf" / name
        path.write_text(text)
        yesterday = time.time() - 86400
        os.utime(path, (yesterday, yesterday))

    def _command(self, name: str, *arguments: str) -> str:
        done = subprocess.run(
            [_which(name), "-c", str(self.folder / "conf"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{name} {' '.join(arguments)}: {done.stdout}\n{self.log()}"
        return done.stdout

    def _clear_away(self) -> None:
        self.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None


class WithheldReplies:
    """A TCP proxy before the daemon that keeps back the first reply to each request that has `late` in it.

    Postfix waits in vain, hangs up, and sends the request again on a new connection, which then passes unhindered. The
    daemon's end of the given-up connection is closed when Postfix closes its own, or with `half_open` only at the end,
    as when a firewall has forgotten the connection.
    """

    def __init__(self, daemon: Address, late: bytes, *, half_open: bool = False) -> None:
        self._daemon = daemon
        self._late = late
        self._half_open = half_open
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._ending, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._run)
        self._withheld: set[bytes] = set()

    def __enter__(self) -> WithheldReplies:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()
        self._thread.join()
        self._ending.close()
        self._listening.close()

    @property
    def endpoint(self) -> str:
        """The proxy as Postfix names it."""
        return f"inet:127.0.0.1:{self._listening.getsockname()[1]}"

    @property
    def withheld(self) -> int:
        """How many replies were kept back so far."""
        return len(self._withheld)

    def _run(self) -> None:
        with contextlib.ExitStack() as connections:
            towards: dict[socket.socket, socket.socket] = {}
            from_client: set[socket.socket] = set()
            mute: set[socket.socket] = set()
            while True:
                readable, _, _ = select.select([self._ending, self._listening, *towards], [], [])
                if self._ending in readable:
                    return
                if self._listening in readable:
                    client = connections.enter_context(self._listening.accept()[0])
                    daemon = connections.enter_context(_connected(self._daemon))
                    towards |= {client: daemon, daemon: client}
                    from_client.add(client)
                for source in readable:
                    if (target := towards.get(source)) is None:
                        continue
                    received = _received(source)
                    if not received:
                        self._hang_up(source, target, forget=source in from_client)
                        del towards[source], towards[target]
                    elif source in from_client:
                        if self._late in received and received not in self._withheld:
                            self._withheld.add(received)
                            mute.add(target)
                        target.sendall(received)
                    elif source not in mute:
                        target.sendall(received)

    def _hang_up(self, source: socket.socket, target: socket.socket, *, forget: bool) -> None:
        source.close()
        if not (forget and self._half_open):
            target.close()


@contextlib.contextmanager
def wired(
    config: str | Mapping[str, object] | None,
    hooks: Sequence[str] = ("RCPT", "DATA"),
    settings: Mapping[str, str] | None = None,
    *,
    smtpds: int | None = None,
) -> Iterator[tuple[PrivatePostfix, Policyd]]:
    """Run a daemon, and a Postfix that asks it at `hooks` (keys of HOOKS; one named twice asks twice).

    `settings` are lines of main.cf besides; `{policyd}` in them stands for the daemon's endpoint.
    """
    require_postfix()
    with Policyd(config) as daemon:
        lines = {name: value.replace("{policyd}", daemon.endpoint) for name, value in (settings or {}).items()}
        with PrivatePostfix({**asking(daemon.endpoint, hooks), **lines}, smtpds=smtpds) as postfix:
            yield postfix, daemon


def asking(endpoint: str, hooks: Sequence[str]) -> dict[str, str]:
    """Return the lines of main.cf by which Postfix asks `endpoint` at these hooks."""
    lists: dict[str, list[str]] = {}
    for hook in hooks:
        lists.setdefault(HOOKS[hook], []).append(f"check_policy_service {endpoint}")
    return {name: ", ".join(services) for name, services in lists.items()}


def _encoded(line: str | bytes) -> bytes:
    return line if isinstance(line, bytes) else line.encode()


def _which(command: str) -> str:
    found = shutil.which(command, path=SYSTEM_PATH)
    assert found is not None, f"{command} not found"
    return found


def _postfix_ids() -> tuple[int, int]:
    user = pwd.getpwnam("postfix")
    return user.pw_uid, user.pw_gid


def _connected(address: Address) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    connection.connect(address)
    return connection


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(65536)
    except ConnectionError:
        return b""


def _group_ended(group: int, patience: float) -> bool:
    """Wait until no process of a process group is left."""
    deadline = time.monotonic() + patience
    while members := _members(group):
        for pid in members:
            _wait_for_end(pid, deadline)
        if time.monotonic() > deadline:
            return False
    return True


def _members(group: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, process_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(process_group) == group and state != "Z":
                    members.append(int(entry.name))
    return members


def _wait_for_end(pid: int, deadline: float) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
    finally:
        os.close(descriptor)
