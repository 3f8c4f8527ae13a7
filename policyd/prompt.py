"""Connections that are received from, answered and sent to in one step, and the reactor that lets them.

Twisted's own transport puts what is written into a buffer, asks the kernel to be told when the socket can be written
to, and sends in the next turn of the reactor: two system calls and one turn for each answer, though a socket whose peer
waits for its answer can be written to at once. And Twisted's reactor sets up a context for log lines around each event,
which no line of ours has any use for. Source: twisted.internet.tcp, twisted.internet.epollreactor.

Where that is compiled, the reactor has requests answered that are expected (`compiled`), and deals with what is left of
them, and with all else that happens, itself; always in the order in which it happened.
"""

from __future__ import annotations

from collections.abc import Callable
from select import EPOLLIN
from typing import Any

from twisted.internet import main, tcp, unix
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IListeningPort
from twisted.python import log
from twisted.python.failure import Failure

from policyd import compiled
from policyd.compiled import Step

MOST = 64 * 1024
"""Bytes that are received at once: a request is not longer."""


class Prompt:
    """What makes a transport of Twisted's receive and send without detours."""

    socket: Any
    protocol: Any
    reactor: Any
    fileno: Callable[[], int]

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

    def expect(self, step: Step | None) -> None:
        """Have what comes in answered in one step from now on, where that is compiled; None: by the protocol.

        The protocol's `finish` is told what is left then, but for what is its `dataReceived`'s.
        """
        steps: dict[int, Step] = self.reactor.steps
        if step is None or compiled.answer is None:
            steps.pop(self.fileno(), None)
        else:
            steps[self.fileno()] = step

    def take(self, left: object) -> Exception | None:
        """Deal with what a step has left; return why the connection is over if it is."""
        if not isinstance(left, bytes):
            self.protocol.finish(left)
        elif left:
            self.protocol.dataReceived(left)
        else:
            return main.CONNECTION_DONE
        return None

    def connectionLost(self, reason: Failure) -> None:
        """Expect nothing more: the descriptor will soon be another's."""
        self.expect(None)
        super().connectionLost(reason)  # type: ignore[misc]  # those that this is mixed into have it

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

    def __init__(self) -> None:
        self.steps: dict[int, Step] = {}
        """What is done at a descriptor where a request comes in."""
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's has no types

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events, and have each dealt with."""
        selectables = self._selectables
        try:
            events = self._poller.poll(-1 if timeout is None else timeout, len(selectables))
        except InterruptedError:
            return
        answer, steps, place = compiled.answer, self.steps, 0
        while place < len(events):
            if answer is not None:
                place, left = answer(events, place, steps)
                if left is not None:
                    transport, what = left
                    self._serve(transport, transport.take, what)
                    continue
                if place == len(events):
                    break
            descriptor, event = events[place]
            place += 1
            selectable = selectables.get(descriptor)
            if event == EPOLLIN and selectable.__class__ in _PROMPT:
                self._serve(selectable, selectable.doRead)
            elif selectable is not None:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, descriptor, event)

    def _serve(self, transport: Any, serve: Callable[..., Exception | None], *what: object) -> None:
        """Have a connection served, and end it where that says why it is over."""
        try:
            why = serve(*what)
        except Exception as error:  # it is logged and ends the connection, as with Twisted
            log.err()
            why = error
        if why is not None:
            self._disconnectSelectable(transport, why, True)

    doIteration = doPoll
