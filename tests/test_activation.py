"""Sockets that systemd opens: adopted as they are, left as they were, and no request lost while policyd restarts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from policyd.activation import endpoint_of, ignored
from tests.daemon import PATIENCE, REPOSITORY, Connection, DaemonFailedError, Policyd, free_port, listens, request
from tests.postfix import ACCEPTED, PrivatePostfix, asking, queued, require_postfix
from tests.waiting import until

RESTARTS = 20
CUSTOMERS = 4
"""So many of each Postfix."""

MESSAGES = 50
"""At the least so many are sent before every other restart."""

RECIPIENTS = 2
LIMITS = "limits:\n  messages: {count: messages, per: 1h, max: 1000000, action: REJECT 5.7.1 enough}\n"
TCP_INFO_BACKLOG = 28
"""Where tcpi_sacked, which of a listening socket is the backlog, stands in struct tcp_info."""


def tcp_socket(backlog: int = 300) -> socket.socket:
    """Listen as policyd.socket does."""
    return socket.create_server(("127.0.0.1", 0), backlog=backlog)


def unix_socket(path: Path, mode: int = 0o640, backlog: int = 300) -> socket.socket:
    """Listen on a unix socket that is like no socket of policyd's own."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    path.chmod(mode)
    listening.listen(backlog)
    return listening


def address_of(listening: socket.socket) -> tuple[str, int] | str:
    """Return where to connect to."""
    address: tuple[str, int] | str = listening.getsockname()
    return address


def tcp_backlog(listening: socket.socket) -> int:
    """Return how many connections may wait in the queue of a TCP socket."""
    info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    backlog: int = struct.unpack_from("I", info, TCP_INFO_BACKLOG)[0]
    return backlog


def unix_backlog(path: Path, most: int) -> int:
    """Return how many connections may wait in the queue of a unix socket, while nobody accepts them."""
    with ExitStack() as waiting:
        for number in range(most + 2):
            connection = waiting.enter_context(socket.socket(socket.AF_UNIX))
            connection.setblocking(False)
            if connection.connect_ex(str(path)):
                return number - 1
    raise AssertionError(f"more than {most + 1} connections may wait")


def ready_line(daemon: Policyd) -> str:
    """Return where the daemon says that it listens."""
    listen: str = re.findall(r'ready listen="?(.*?)"? control=', daemon.stderr)[-1]
    return listen


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Hold a TCP and a unix socket, as systemd does."""
    with tcp_socket() as tcp, unix_socket(tmp_path / "policy.sock") as unix:
        yield tcp, unix


def test_sockets_that_are_passed_are_listened_on(sockets: tuple[socket.socket, socket.socket]) -> None:
    """On all of them, and on nothing that the config names; the log says both."""
    with Policyd(LIMITS, sockets=sockets) as daemon:
        for listening in sockets:
            with daemon.connect(address_of(listening)) as connection:
                assert connection.ask() == "DUNNO"
        tcp, unix = map(endpoint_of, sockets)
        assert ready_line(daemon) == f"{tcp} {unix}"
        assert f'listen-ignored listen="tcp:{daemon.port}:interface=127.0.0.1"' in daemon.stderr
        assert not listens(daemon.port)


@pytest.mark.parametrize("listen", ["tcp:{port}:interface=127.0.0.1", "systemd:domain=INET:index=0"])
def test_a_config_that_names_the_same_socket_is_not_remarked_on(listen: str) -> None:
    """Nothing is ignored where config and systemd agree, or where the config leaves it to systemd."""
    with tcp_socket() as tcp, Policyd({"listen": [listen.format(port=tcp.getsockname()[1])]}, sockets=[tcp]) as daemon:
        assert "listen-ignored" not in daemon.stderr
        assert ready_line(daemon) == endpoint_of(tcp)


def test_a_reload_does_not_ask_for_a_restart_that_would_change_nothing() -> None:
    """A changed `listen:` takes no restart where systemd decides."""
    with tcp_socket() as tcp, Policyd(LIMITS, sockets=[tcp]) as daemon:
        daemon.reload("listen: [tcp:10999]\n" + LIMITS)
        until(lambda: "reload by=SIGHUP changed=" in daemon.stderr)
        assert "needs_restart" not in daemon.stderr


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_socket_stays_as_systemd_made_it(sockets: tuple[socket.socket, socket.socket], end: str) -> None:
    """Mode, owner, path, inode and backlog are the same while the daemon runs and after its end, however that comes."""
    tcp, unix = sockets
    path = Path(unix.getsockname())
    before = path.stat()
    with Policyd(LIMITS, sockets=sockets) as daemon:
        with daemon.connect(str(path)) as connection:
            assert connection.ask() == "DUNNO"
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            found = tcp_backlog(tcp), unix_backlog(path, 300)
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        assert found == (300, 300)
        for ended in (False, True):
            if ended:
                getattr(daemon, end)()
            after = path.stat()
            assert stat.S_IMODE(after.st_mode) == 0o640
            assert (after.st_ino, after.st_uid, after.st_gid) == (before.st_ino, before.st_uid, before.st_gid)
        assert tcp_backlog(tcp) == 300


def test_who_connects_while_it_is_down_is_answered_by_the_next(sockets: tuple[socket.socket, socket.socket]) -> None:
    """The queue outlives the daemon: no connection is refused, and no request that waits in it is lost."""
    with Policyd(LIMITS, sockets=sockets) as daemon:
        daemon.stop()
        waiting = [Connection(address_of(listening)) for listening in sockets]
        for connection in waiting:
            connection.send(request())
        daemon.start()
        for connection in waiting:
            with closing(connection):
                assert connection.replies() == ["DUNNO"]


def test_who_connects_while_it_ends_is_answered_by_the_next(sockets: tuple[socket.socket, socket.socket]) -> None:
    """From STOPPING on nobody is taken in; who was, is answered first."""
    with Policyd(LIMITS, sockets=sockets) as daemon:
        half = daemon.connect(address_of(sockets[0]))
        half.send(request() + b"request=")
        assert half.replies() == ["DUNNO"]
        os.kill(daemon.pid, signal.SIGTERM)
        until(lambda: "stop requests=1" in daemon.stderr)
        waiting = [Connection(address_of(listening)) for listening in sockets]
        for connection in waiting:
            connection.send(request())
        half.send(request().removeprefix(b"request="))
        assert half.replies() == ["DUNNO"]
        assert daemon.wait() == 0
        daemon.start()
        for connection in waiting:
            with closing(connection):
                assert connection.replies() == ["DUNNO"]


def test_a_first_request_on_its_way_is_waited_for_at_the_end() -> None:
    """Who was taken in just before the end and asks only then is answered, not hung up on."""
    with tcp_socket() as tcp, Policyd(LIMITS, sockets=[tcp]) as daemon:
        old, new = daemon.connect(address_of(tcp)), daemon.connect(address_of(tcp))
        assert old.ask() == "DUNNO"
        until(lambda: daemon.ctl_json("status")["connections"] == 2)
        os.kill(daemon.pid, signal.SIGTERM)
        assert old.closed()
        assert new.ask() == "DUNNO"
        assert daemon.wait() == 0


def not_a_socket() -> socket.socket:
    """Return what only looks like a socket."""
    fake = socket.socket()
    with Path(os.devnull).open("rb") as other:
        os.dup2(other.fileno(), fake.fileno())
    return fake


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), "what was passed is a datagram socket"),
        (lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), "what was passed is a sequential-packet socket"),
        (lambda: socket.socket(socket.AF_INET), "what was passed is a socket that does not listen: it wants Accept=no"),
        (lambda: socket.socket(socket.AF_VSOCK), "what was passed is a socket neither of TCP nor of unix"),
        (not_a_socket, "Socket operation on non-socket"),
    ],
    ids=["datagram", "seqpacket", "not listening", "vsock", "no socket"],
)
def test_what_cannot_be_listened_on_is_told_in_one_line(make: Callable[[], socket.socket], why: str) -> None:
    """It exits 1 and says which descriptor, and what is wrong with it, even if those before it are good."""
    with tcp_socket() as good, closing(make()) as bad, pytest.raises(DaemonFailedError) as caught:
        Policyd(LIMITS, sockets=[good, bad]).__enter__()
    status, *lines = [line for line in str(caught.value).splitlines() if " INFO start " not in line]
    assert (status, lines) == ("exit status 1", [f"policyd: cannot listen on descriptor 4: {why}"])


@pytest.mark.parametrize("number", ["", "two", "-1", "1025", "²"])
def test_a_number_of_sockets_that_is_none_is_told_in_one_line(number: str) -> None:
    """A LISTEN_FDS that makes no sense does not lead to a daemon that listens elsewhere."""
    script = 'LISTEN_PID=$$ exec "$@"'
    prefix = ["sh", "-c", script, "sh"]
    with pytest.raises(DaemonFailedError, match=r"exit status 1\n(.*\n)?policyd: LISTEN_FDS wants a number of"):
        Policyd(LIMITS, prefix=prefix, environment={"LISTEN_FDS": number}).__enter__()


@pytest.mark.parametrize("pid", ["1", "", "x"])
def test_sockets_for_another_process_are_not_taken(pid: str) -> None:
    """A LISTEN_PID that is inherited from a parent is no word to us: the config says where to listen."""
    with Policyd(LIMITS, environment={"LISTEN_PID": pid, "LISTEN_FDS": "2"}) as daemon:
        assert daemon.ask() == "DUNNO"


def test_what_is_passed_is_not_passed_on() -> None:
    """Neither the descriptors nor the variables reach what the daemon may start."""
    code = (
        "import os, sys, socket\n"
        "import policyd.daemon\n"  # Twisted takes two of the variables away
        "from policyd.activation import passed_sockets, started_with\n"
        "(passed,) = passed_sockets(started_with())\n"
        "print(passed.get_inheritable(), passed.getblocking(), *[name for name in os.environ if 'LISTEN_' in name])\n"
    )
    with tcp_socket() as tcp:
        script = f'exec 3<&{tcp.fileno()}; LISTEN_FDNAMES=a LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
        done = subprocess.run(
            ["bash", "-c", script, "bash", sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            pass_fds=[tcp.fileno()],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (done.stdout, done.stderr) == ("False False\n", "")


def test_a_check_needs_no_sockets(tmp_path: Path) -> None:
    """In ExecStartPre= there are none, and `systemd:` endpoints are good all the same; a start without them is not."""
    file = tmp_path / "policyd.yaml"
    file.write_text(f"listen: ['systemd:domain=UNIX:index=0']\ncontrol: {tmp_path}/c\ndatabase: none\n")
    done = {}
    for argument in ("--check", "-c"):
        done[argument] = subprocess.run(
            [sys.executable, "-m", "policyd", "-c", str(file), *([argument] if argument == "--check" else [])],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (done["--check"].returncode, done["--check"].stderr) == (0, "")
    assert done["-c"].returncode == 1
    wrong = "policyd: cannot listen on systemd:domain=UNIX:index=0: systemd has passed no socket"
    assert done["-c"].stderr.splitlines()[-1] == wrong


@pytest.mark.parametrize(
    ("configured", "left"),
    [
        (["tcp:10045:interface=127.0.0.1"], []),
        (["tcp:port=10045:interface=127.0.0.1:backlog=50"], []),
        (["tcp:10045"], ["tcp:10045"]),
        (["tcp:25", "tcp6:25", "tcp6:25:interface=\\:\\:"], []),
        (["unix:/run/a\\:b:mode=660", "unix:address=/run/a\\:b"], []),
        (["unix:/run/a", "ssl:10045", "systemd:domain=INET:index=0"], ["unix:/run/a", "ssl:10045"]),
    ],
)
def test_what_the_config_names_besides_is_found(configured: list[str], left: list[str]) -> None:
    """However an endpoint is spelled: the same place is the same."""
    passed = ["tcp:10045:interface=127.0.0.1", "tcp6:25:interface=\\:\\:", "unix:/run/a\\:b"]
    assert ignored(configured, passed) == left


def test_a_passed_socket_is_named_as_the_config_would(tmp_path: Path) -> None:
    """IPv4, IPv6, a path and an abstract name."""
    with unix_socket(tmp_path / "a:b") as unix:
        assert endpoint_of(unix) == f"unix:{tmp_path}/a\\:b"
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0policyd-{os.getpid()}")
        assert endpoint_of(abstract) == f"unix:@policyd-{os.getpid()}"
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as tcp:
        assert endpoint_of(tcp) == f"tcp6:{tcp.getsockname()[1]}:interface=\\:\\:1"


def test_it_works_with_systemds_own_activation(tmp_path: Path) -> None:
    """`systemd-socket-activate` starts it at the first connection, whose request is answered; names do not matter."""
    if shutil.which("systemd-socket-activate") is None:
        if os.environ.get("CI"):
            pytest.fail("systemd-socket-activate not found: apt-get install systemd", pytrace=False)
        pytest.skip("systemd-socket-activate not found: apt-get install systemd")
    port, path, file = free_port(), tmp_path / "policy.sock", tmp_path / "policyd.yaml"
    file.write_text(f"control: {tmp_path}/control.sock\ndatabase: none\n{LIMITS}")
    command = ["systemd-socket-activate", f"--setenv=PYTHONPATH={REPOSITORY}", "--fdname=inet:unix"]
    command += ["-l", f"127.0.0.1:{port}", "-l", str(path)]
    with subprocess.Popen(
        [*command, sys.executable, "-m", "policyd", "-c", str(file)], stderr=subprocess.DEVNULL
    ) as process:
        try:
            until(path.exists)
            path.chmod(0o604)
            for address in (str(path), ("127.0.0.1", port)):
                with Connection(address) as connection:
                    assert connection.ask() == "DUNNO"
            assert stat.S_IMODE(path.stat().st_mode) == 0o604
        finally:
            process.terminate()
    assert process.returncode == 0
    assert path.exists()


class Customer(threading.Thread):
    """Sends messages through a Postfix, one after the other, until it is told to finish."""

    def __init__(self, postfix: PrivatePostfix, name: str) -> None:
        super().__init__()
        self._postfix = postfix
        self._session = postfix.smtp(name)
        self._finishing = threading.Event()
        self.sent: list[str] = []
        self.wrong: list[str] = []

    def run(self) -> None:
        """Send."""
        with self._session as session:
            while not self._finishing.is_set():
                *recipients, end = session.message(RECIPIENTS)
                self.wrong += [reply for reply in recipients if reply != ACCEPTED]
                if name := queued(end):
                    self.sent.append(name)
                else:
                    self.wrong.append(end)

    def finish(self) -> None:
        """Send the message that is under way, and no other."""
        self._finishing.set()
        self.join()

    def all_delivered(self) -> bool:
        """Tell whether the mail log has the end of each message that was sent."""
        return set(self.sent) <= set(re.findall(r"qmgr\[\d+\]: (\w+): removed", self._postfix.log()))


def test_no_message_is_deferred_or_lost_over_twenty_restarts() -> None:
    """While two Postfixes take in mail as fast as they can: every reply is a 250, every message is delivered.

    One asks over TCP, the other over a unix socket, from its chroot.
    """
    require_postfix()
    with ExitStack() as stack:
        tcp = stack.enter_context(tcp_socket(1024))
        services = (f"inet:127.0.0.1:{tcp.getsockname()[1]}", "unix:policyd/policy.sock")
        inet, chrooted = (
            stack.enter_context(PrivatePostfix(asking(service, ("RCPT", "DATA")), chroot=service.startswith("unix")))
            for service in services
        )
        path = chrooted.policy_socket
        unix = stack.enter_context(unix_socket(path, 0o660, 1024))
        os.chown(path, 0, path.parent.stat().st_gid)
        daemon = stack.enter_context(Policyd(LIMITS, sockets=[tcp, unix]))
        customers = [Customer(postfix, f"c{n}@example.com") for postfix in (inet, chrooted) for n in range(CUSTOMERS)]
        for customer in customers:
            customer.start()
        try:
            for restart in range(RESTARTS):
                enough = sum(len(customer.sent) for customer in customers) + MESSAGES
                while restart % 2 and sum(len(customer.sent) for customer in customers) < enough:
                    time.sleep(0.01)  # in other rounds it ends again before those who pause have come back
                daemon.restart()
        finally:
            for customer in customers:
                customer.finish()
        assert [customer.wrong for customer in customers] == [[]] * len(customers)
        for customer in customers:
            until(customer.all_delivered)
