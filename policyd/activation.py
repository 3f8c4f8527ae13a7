"""Sockets that systemd has opened and passes on, as sd_listen_fds(3) has it: listened on as they are.

They stay systemd's. Their mode, owner, path and backlog are left as they were made, they are never shut down nor
removed, and who waits in their queue when the daemon ends is answered by the next one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from twisted.internet import tcp, unix
from twisted.internet.interfaces import IListeningPort, IReactorSocket
from twisted.internet.protocol import ServerFactory
from twisted.python.failure import Failure

from policyd.endpoints import parse_endpoint
from policyd.listening import CannotListenError

FIRST = 3
"""The descriptor of the first socket that is passed: SD_LISTEN_FDS_START."""

MAX_SOCKETS = 1024
"""More than these are a mistake."""

ENVIRONMENT = Path("/proc/self/environ")
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")

_KINDS = {socket.SOCK_DGRAM: "a datagram", socket.SOCK_SEQPACKET: "a sequential-packet", socket.SOCK_RAW: "a raw"}


def started_with() -> dict[str, str]:
    """Return the environment in which this process began.

    What is in os.environ does not do: Twisted takes LISTEN_PID and LISTEN_FDS out of it when it is imported.
    """
    try:
        pairs = ENVIRONMENT.read_bytes().split(b"\0")
    except OSError:
        return dict(os.environ)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in (pair.partition(b"=") for pair in pairs)}


def passed_sockets(environment: Mapping[str, str]) -> list[socket.socket]:
    """Return the sockets that are passed to this very process, and pass on neither them nor word of them.

    Raises CannotListenError where one is not a stream socket that listens.
    """
    for name in VARIABLES:
        os.environ.pop(name, None)
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    number = environment.get("LISTEN_FDS", "")
    if not (number.isascii() and number.isdigit() and int(number) <= MAX_SOCKETS):
        raise CannotListenError(f"LISTEN_FDS wants a number of sockets, at most {MAX_SOCKETS}, got {number!r}")
    return [_adopted(descriptor) for descriptor in range(FIRST, FIRST + int(number))]


def listen_on(reactor: IReactorSocket, passed: socket.socket, factory: ServerFactory[Any]) -> IListeningPort:
    """Listen on a socket that is listening already."""
    if passed.family != socket.AF_UNIX:
        return reactor.adoptStreamPort(passed.fileno(), passed.family, factory)
    port = PassedUnixPort(passed, factory, reactor)
    port.startListening()
    return cast(IListeningPort, port)


def endpoint_of(passed: socket.socket) -> str:
    """Return where a socket listens, as an endpoint string."""
    address = passed.getsockname()
    if passed.family == socket.AF_UNIX:
        return f"unix:{_escaped(os.fsdecode(address).replace(chr(0), '@', 1))}"
    kind = "tcp6" if passed.family == socket.AF_INET6 else "tcp"
    return f"{kind}:{address[1]}:interface={_escaped(address[0])}"


def ignored(configured: Iterable[str], passed: Iterable[str]) -> list[str]:
    """Return the endpoints that the config names and that are not among those passed."""
    places = {_place(endpoint) for endpoint in passed}
    return [endpoint for endpoint in configured if _place(endpoint) not in {*places, ("systemd",)}]


class PassedUnixPort(unix.Port):
    """A unix socket that is listened on as it is.

    Twisted's own adoption gives it mode 666 and a backlog of 50, and removes it at the end.
    """

    _shouldShutdown = False

    def __init__(self, passed: socket.socket, factory: ServerFactory[Any], reactor: IReactorSocket) -> None:
        super().__init__(passed.getsockname(), factory, reactor=reactor)
        self._passed = passed
        self._factory = factory

    def startListening(self) -> None:
        """Accept connections."""
        self._factory.doStart()
        self.socket = self._passed.dup()
        self.fileno = self.socket.fileno  # type: ignore[method-assign]  # so does Twisted
        self.connected = True
        self.numberAccepts = 100
        self.startReading()

    def connectionLost(self, reason: Failure) -> None:
        """Let go of it, and leave it where it is."""
        tcp.Port.connectionLost(self, reason)


def _adopted(descriptor: int) -> socket.socket:
    """Return a descriptor that was passed as a socket."""
    try:
        os.set_inheritable(descriptor, False)
        passed = socket.socket(fileno=descriptor)
    except OSError as error:
        raise CannotListenError(f"cannot listen on descriptor {descriptor}: {error.strerror}") from error
    wrong = None
    if passed.type != socket.SOCK_STREAM:
        wrong = f"{_KINDS.get(passed.type, 'a strange')} socket"
    elif passed.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        wrong = "a socket neither of TCP nor of unix"
    elif not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        wrong = "a socket that does not listen: it wants Accept=no"
    if wrong:
        passed.detach()
        raise CannotListenError(f"cannot listen on descriptor {descriptor}: what was passed is {wrong}")
    passed.setblocking(False)
    return passed


def _place(endpoint: str) -> tuple[str, ...]:
    """Return what two endpoint strings that mean the same have in common."""
    parsed = parse_endpoint(endpoint)
    if parsed.kind not in ("tcp", "tcp6"):
        return (parsed.kind, parsed.first("address")) if parsed.kind == "unix" else (parsed.kind,)
    interface = (*parsed.unnamed[1:], parsed.named.get("interface", ""))[0]
    return ("tcp", parsed.first("port"), "" if interface in ("0.0.0.0", "::") else interface)  # noqa: S104 -- compared


def _escaped(text: str) -> str:
    return "".join(f"\\{character}" if character in "\\:=" else character for character in text)
