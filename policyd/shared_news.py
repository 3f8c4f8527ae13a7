"""Listening to what nodes tell each other through the store, by a connection of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from policyd.shared_replies import Refusal
from policyd.shared_store import Wire

MAX_MESSAGE = 4 * 1024 * 1024
"""Bytes of a message; the connection of a longer one is given up, and who listens asks anew."""

BEAT = 0.5
"""Seconds between signs of life that are asked for."""

MAX_BEATS = 3
"""Of them in vain, until the connection is taken for dead: after 2 s."""

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 1.0
"""Seconds until the next connection."""


class News:
    """Listens to channels, and listens again whenever the connection was lost."""

    def __init__(
        self,
        reactor: IReactorTime,
        dial: Callable[..., Deferred[Wire]],
        channels: Sequence[str],
        on_message: Callable[[bytes, bytes], None],
        on_subscribed: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._dial = dial
        self._channels = tuple(channels)
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._wire: Wire | None = None
        self._dialling: Deferred[Wire] | None = None
        self._missing = 0
        """Channels that the store has not confirmed yet."""
        self._silent = 0
        self._pause = FIRST_PAUSE
        self._timer: IDelayedCall | None = None
        """The next connection, or the next beat."""
        self._stopped = True

    def start(self) -> None:
        """Connect, and stay connected."""
        self._stopped = False
        self._connect()

    def stop(self) -> None:
        """End."""
        self._stopped = True
        self._cancel()
        if self._dialling is not None:
            self._dialling.cancel()
        if self._wire is not None:
            self._wire.transport.loseConnection()

    def redial(self) -> None:
        """Connect anew: the store may be elsewhere now."""
        if self._wire is not None:
            self._wire.give_up("it may be elsewhere")

    def _connect(self) -> None:
        self._timer = None
        self._dialling = self._dial(MAX_MESSAGE)
        self._dialling.addCallbacks(self._connected, lambda _failure: self._again())

    def _connected(self, wire: Wire) -> None:
        self._dialling = None
        if self._stopped or not wire.connected:
            wire.transport.abortConnection()
            self._again()
            return
        self._wire = wire
        self._missing = len(self._channels)
        self._silent = 0
        wire.on_told = self._heard
        wire.on_lost = self._lost
        wire.tell("SUBSCRIBE", *self._channels)
        self._timer = self._reactor.callLater(BEAT, self._beat)

    def _heard(self, reply: object) -> None:
        self._silent = 0
        match reply:
            case [b"message", bytes(channel), bytes(data)]:
                self._on_message(channel, data)
            case [b"subscribe", *_]:
                self._missing -= 1
                if self._missing == 0:
                    self._pause = FIRST_PAUSE
                    self._on_subscribed()
            case Refusal() if self._wire is not None:
                self._wire.give_up(f"it says {reply}")

    def _beat(self) -> None:
        """Ask for a sign of life; take the connection for dead where there was none for long."""
        self._timer = None
        if self._wire is None:
            return
        if self._silent >= MAX_BEATS:
            self._wire.give_up("it is silent")
            return
        self._silent += 1
        self._wire.tell("PING")
        self._timer = self._reactor.callLater(BEAT, self._beat)

    def _lost(self, _why: str) -> None:
        self._wire = None
        self._cancel()
        self._again()

    def _again(self) -> None:
        self._dialling = None
        if not self._stopped and self._timer is None:
            self._timer = self._reactor.callLater(self._pause, self._connect)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _cancel(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
