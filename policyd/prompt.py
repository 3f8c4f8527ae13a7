"""Connections that are received from, answered and sent to in one step, and the reactor that lets them.

Twisted's own transport puts what is written into a buffer, asks the kernel to be told when the socket can be written
to, and sends in the next turn of the reactor: two system calls and one turn for each answer, though a socket whose peer
waits for its answer can be written to at once. And Twisted's reactor sets up a context for log lines around each event,
which no line of ours has any use for. Source: twisted.internet.tcp, twisted.internet.epollreactor.
"""

from __future__ import annotations

from collections.abc import Callable
from select import EPOLLIN
from typing import Any

from twisted.internet import main, tcp, unix
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IListeningPort
from twisted.python import log

MOST = 64 * 1024
"""Bytes that are received at once: a request is not longer."""


class Prompt:
    """What makes a transport of Twisted's receive and send without detours."""

    socket: Any
    protocol: Any

    def doRead(self) -> Exception | None:
        """Receive what is there, and have it dealt with; return why the connection is over if it is."""
        try:
            data = self.socket.recv(MOST)
        except BlockingIOError:
            return None
        except OSError:
            return main.CONNECTION_LOST
        if not data:
            return main.CONNECTION_DONE
        self.protocol.dataReceived(data)
        return None

    def sender(self) -> Callable[[bytes], int]:
        """Return what sends as much as the socket takes at once, and raises OSError.

        It is the socket's own method, and keeps the socket open: who is told that the connection is lost must drop it.
        """
        send: Callable[[bytes], int] = self.socket.send
        return send


class PromptTcp(Prompt, tcp.Server):  # type: ignore[misc]  # what Twisted says of its methods is not true
    """A TCP connection."""


class PromptUnix(Prompt, unix.Server):  # type: ignore[misc]  # as above
    """A connection over a unix socket; descriptors that a peer passes along are not received."""


_PROMPT = frozenset((PromptTcp, PromptUnix))
_TRANSPORTS: dict[type, type] = {tcp.Server: PromptTcp, unix.Server: PromptUnix}


def make_prompt(port: IListeningPort) -> None:
    """Have a port's connections answered without detours, if they are plain ones."""
    transport = getattr(port, "transport", None)
    if transport in _TRANSPORTS:
        port.transport = _TRANSPORTS[transport]  # type: ignore[attr-defined]  # a Port of Twisted's has it


class PromptReactor(EPollReactor):
    """Twisted's reactor, which serves such connections first hand."""

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events, and have each dealt with."""
        selectables = self._selectables
        try:
            events = self._poller.poll(-1 if timeout is None else timeout, len(selectables))
        except InterruptedError:
            return
        for descriptor, event in events:
            selectable = selectables.get(descriptor)
            if event == EPOLLIN and selectable.__class__ in _PROMPT:
                try:
                    why: Exception | None = selectable.doRead()
                except Exception as error:  # it is logged and ends the connection, as with Twisted
                    log.err()
                    why = error
                if why is not None:
                    self._disconnectSelectable(selectable, why, True)
            elif selectable is not None:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, descriptor, event)

    doIteration = doPoll
