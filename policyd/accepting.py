"""Accepting connections within bounds: for whom there is no descriptor, waits in the kernel's queue, at no cost to us.

Descriptors run out. Left alone, Twisted accepts the clients beyond and closes them, with three lines of log for each.
Here they are served once there is room, and policy connections leave some descriptors to the control socket and files.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Callable, Sized
from typing import Any, cast

from twisted.internet.interfaces import IListeningPort, IReactorTime
from twisted.internet.tcp import Port

from policyd.locks import Report

MAX_DESCRIPTORS = 65_536
"""Descriptors that this process wants: more connections than any Postfix makes."""

RESERVE = 64
"""Descriptors, besides those open at the start, that policy connections leave to the control socket, the database and
other files."""

LEAST = 16
"""Policy connections for which there is room even where that leaves less than the reserve."""

RETRY = 0.5
"""Seconds after which clients that wait are looked at again."""

_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def raise_limit() -> int:
    """Let this process open as many descriptors as it may, MAX_DESCRIPTORS at the most; return how many those are."""
    soft, hard = (
        MAX_DESCRIPTORS if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    wanted = min(hard, MAX_DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return wanted


def open_descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd")) - 1


class BoundedSocket(socket.socket):
    """A listening socket that says that no client is there while `has_room` says no, or while descriptors are short.

    `short` is told of the second.
    """

    def __init__(
        self, listening: socket.socket, has_room: Callable[[], bool], short: Callable[[OSError], None]
    ) -> None:
        super().__init__(fileno=listening.detach())
        self.setblocking(False)
        self._has_room = has_room
        self._short = short

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next client and its address; raise BlockingIOError where there is none, or no room."""
        if not self._has_room():
            raise BlockingIOError(errno.EAGAIN, "no room")
        try:
            return super().accept()
        except OSError as error:
            if error.errno in _SHORTAGES:
                self._short(error)
                raise BlockingIOError(errno.EAGAIN, "no descriptors") from error
            raise


class Accepting:
    """Accepts connections while there is room for them.

    `connections` are the policy connections that are open; `limit` is the number of descriptors that this process may
    have open.
    """

    def __init__(self, reactor: IReactorTime, connections: Sized, limit: int, report: Report) -> None:
        self._reactor = reactor
        self._connections = connections
        self._limit = limit
        self._report = report
        self._shortage = ""
        self.most = max(limit - open_descriptors() - RESERVE, LEAST)
        """Policy connections at the most."""

    def watch_policy(self, port: IListeningPort) -> None:
        """Accept policy connections within the bound."""
        self.watch(port, lambda: self._has_room(port))

    def watch(self, port: IListeningPort, has_room: Callable[[], bool]) -> None:
        """Accept connections while `has_room` says yes; a port that has no socket of its own stays as it is."""
        if isinstance(port, Port):
            port.socket = BoundedSocket(port.socket, has_room, lambda error: self._pause(port, str(error.strerror)))
            port.fileno = port.socket.fileno  # type: ignore[method-assign]  # so does Twisted

    def problem(self) -> str | None:
        """Return why clients have to wait just now, for a person to read; None where they need not."""
        if len(self._connections) >= self.most:
            return f"no room for more policy connections: {self._full}"
        return f"cannot accept connections: {self._shortage}" if self._shortage else None

    @property
    def _full(self) -> str:
        return f"{self.most} are open, of {self._limit} descriptors"

    def _has_room(self, port: IListeningPort) -> bool:
        if len(self._connections) < self.most:
            return True
        self._pause(port, self._full)
        return False

    def _pause(self, port: IListeningPort, why: str) -> None:
        """Look away from a port's clients for a while; it is asked for them without end otherwise."""
        self._shortage = why
        self._report("out-of-descriptors", {"reason": why})
        cast(Port, port).stopReading()
        self._reactor.callLater(RETRY, self._resume, port)

    def _resume(self, port: IListeningPort) -> None:
        self._shortage = ""
        listening = cast(Port, port)
        if listening.connected and not listening.disconnecting:
            listening.startReading()
