"""The link to the store that nodes share: calls that are answered or given up in time, and a breaker.

The law: a call fails with AwayError within the patience, whatever the store or the network does; while the store is
away, calls fail at once, and the network is asked by a probe alone. All calls share one connection, their replies come
in order, and one timer watches over all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from policyd.shared_calls import AwayError
from policyd.shared_news import News
from policyd.shared_replies import Refusal
from policyd.shared_store import Call, Wire

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 1.0
"""Seconds until the store is tried again: at first, and after it was in vain again and again."""

STEADY = 5.0
"""Seconds for which the store has to have been here until the next pause is a first one again."""

SILENCE = 2.0
"""Seconds without a sign of the store after which its connection is taken for dead."""

LATE = 0.02
"""Seconds by which a look at the calls is late when this process was held up: replies may have come meanwhile."""

MAX_WAITING = 20_000
"""Calls that wait for a reply, given up ones included."""

RECENT = 60.0
"""Seconds for which `problem` names wrong data."""

UNABLE = frozenset(
    [
        *("LOADING", "READONLY", "MASTERDOWN", "OOM", "NOAUTH", "WRONGPASS", "NOPERM", "CLUSTERDOWN", "BUSY"),
        *("UNKILLABLE", "MISCONF", "NOREPLICAS", "MOVED", "ASK", "TRYAGAIN"),
    ]
)
"""Errors that are the store's, not the call's."""

ELSEWHERE = frozenset(("READONLY", "MASTERDOWN", "NOREPLICAS", "NOAUTH", "WRONGPASS"))
"""Errors that another connection may not have: after a failover, or with another password."""

TOO_MANY = "ERR max number of clients reached"
"""What the store says before it hangs up on a connection that is one too many."""

_PROBE = "return redis.call('SET', KEYS[1], '1', 'PX', '1000')"
"""What needs all that calls need: scripts, memory, and a server that may be written to."""


def _nobody() -> None:
    """Tell nobody."""


class Link:
    """The link to the store.

    `dial` returns a connection, `evaluated` a script call that brings the script along, `prefix` begins all keys.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        dial: Callable[..., Deferred[Wire]],
        patience: float,
        evaluated: Callable[[bytes], bytes],
        prefix: str,
    ) -> None:
        self.here = False
        """Whether calls are tried."""
        self.on_here: Callable[[], None] = _nobody
        self.on_away: Callable[[str], None] = lambda _why: None
        self.on_wrong: Callable[[str], None] = lambda _why: None
        """Told once of each kind of error that is about what is stored, not about the store."""
        self._reactor = reactor
        self._dial = dial
        self._patience = patience
        self._evaluated = evaluated
        self._probe_key = f"{prefix}:probe"
        self._news: list[News] = []
        self._wire: Wire | None = None
        self._why = "not connected yet"
        self._told = False
        """Whether somebody was told that the store is away."""
        self._wrong: tuple[str, float] | None = None
        """What was wrong with data last, and when."""
        self._wrong_codes: set[str] = set()
        self._pause = FIRST_PAUSE
        self._since = 0.0
        """Since when the store is here."""
        self._silent_since: float | None = None
        self._dialling: Deferred[Wire] | None = None
        self._again: IDelayedCall | None = None
        self._watch: IDelayedCall | None = None
        """The next look at the calls that wait."""
        self._due = 0.0
        self._stopped = False

    @property
    def problem(self) -> str:
        """What is wrong, as a sentence; empty where nothing is."""
        if not self.here:
            return "the store is away: " + self._why.rstrip(".")
        if self._wrong is not None and self._reactor.seconds() - self._wrong[1] < RECENT:
            return f"the store has wrong data: {self._wrong[0]}"
        return ""

    def start(self) -> None:
        """Connect, and stay connected."""
        self._try()
        for news in self._news:
            news.start()

    def stop(self) -> None:
        """End: what waits fails, and nobody is told."""
        self._stopped = True
        self.here = False
        self._why = "policyd is ending"
        for news in self._news:
            news.stop()
        for timer in (self._again, self._watch):
            if timer is not None and timer.active():
                timer.cancel()
        if self._dialling is not None:
            self._dialling.cancel()
        if self._wire is not None:
            for call in self._wire.waiting:
                if not call.called:
                    call.errback(AwayError(self._why))
            self._wire.transport.loseConnection()

    def subscribe(
        self,
        channels: Sequence[str],
        on_message: Callable[[bytes, bytes], None],
        on_subscribed: Callable[[], None],
    ) -> None:
        """Listen to channels by a connection of its own.

        `on_subscribed` is told each time that nothing is missed from then on, and something may have been before.
        """
        news = News(self._reactor, self._dial, channels, on_message, on_subscribed)
        self._news.append(news)
        if self._dialling is not None or self._wire is not None or self._again is not None:
            news.start()

    def call(self, command: bytes) -> Deferred[object]:
        """Call the script, with a command as it is sent; return the reply: an int, bytes, a list or None.

        Fails with AwayError.
        """
        wire = self._wire
        if not self.here or wire is None or len(wire.waiting) >= MAX_WAITING:
            return self._not_now()
        call = Call()
        call.command = command
        call.deadline = self._reactor.seconds() + self._patience
        wire.send(command, call)
        if self._watch is None:
            self._look_at(call.deadline)
        return call

    def command(self, *words: bytes | str | float) -> Deferred[object]:
        """Send any command, such as `HGETALL`, and return the reply as `call` does."""
        wire = self._wire
        if not self.here or wire is None or len(wire.waiting) >= MAX_WAITING:
            return self._not_now()
        return self._ask(wire, *words)

    def _not_now(self) -> Deferred[object]:
        return fail(AwayError(self._why if not self.here else "too many calls wait"))

    def _ask(self, wire: Wire, *words: bytes | str | float) -> Call:
        call = wire.execute_command(*words)
        call.deadline = self._reactor.seconds() + self._patience
        if self._watch is None:
            self._look_at(call.deadline)
        return call

    def _look_at(self, when: float) -> None:
        self._due = when
        self._watch = self._reactor.callLater(max(0.0, when - self._reactor.seconds()), self._look)

    def _look(self, *, again: bool = False) -> None:
        """Give up the calls whose time is over; look again when the next one's is."""
        self._watch = None
        wire = self._wire
        if wire is None:
            return
        now = self._reactor.seconds()
        if now - self._due > LATE and not again:
            # The store shall not be taken for away because of us: what has come meanwhile is read in this turn.
            self._watch = self._reactor.callLater(0, self._look, again=True)
            return
        late = [call for call in wire.waiting if call.deadline <= now and not call.called]
        if late:
            why = f"no answer within {self._patience * 1000:g} ms"
            self._away(why)
            for call in late:
                if not call.called:
                    call.errback(AwayError(why))
        rest = min((call.deadline for call in wire.waiting if not call.called), default=None)
        if rest is not None and self._watch is None and self._wire is wire:
            self._look_at(rest)

    def _refused(self, call: Call, refusal: Refusal) -> None:
        """Deal with an error that the store answers with."""
        wire, code = self._wire, refusal.code
        if code == "NOSCRIPT" and call.command and wire is not None:
            command, call.command = call.command, b""
            wire.send(self._evaluated(command), call)
            return
        why = f"it says {refusal}"
        if code in UNABLE or refusal.text == TOO_MANY:
            self._away(why)
            if code in ELSEWHERE and wire is not None:
                wire.give_up(why)
        else:
            self._wrong = why, self._reactor.seconds()
            if code not in self._wrong_codes:
                self._wrong_codes.add(code)
                self.on_wrong(why)
        call.errback(AwayError(why))

    def _away(self, why: str) -> None:
        """Stop calling for a moment."""
        if self._stopped:
            return
        if self.here and self._reactor.seconds() - self._since >= STEADY:
            self._pause = FIRST_PAUSE
        was_here, self.here = self.here, False
        self._why = why
        if self._again is None:
            self._again = self._reactor.callLater(self._pause, self._try)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        if was_here or not self._told:
            self._told = True
            self.on_away(why)

    def _try(self) -> None:
        """Look whether the store is able: by a probe, after connecting where there is no connection."""
        self._again = None
        wire = self._wire
        if wire is None:
            self._dialling = self._dial()
            self._dialling.addCallbacks(self._connected, self._in_vain)
            return
        now = self._reactor.seconds()
        if wire.heard or self._silent_since is None:
            self._silent_since = now
            wire.heard = False
        elif now - self._silent_since >= SILENCE:
            wire.give_up(self._why)
            return
        self._probe(wire)

    def _connected(self, wire: Wire) -> None:
        self._dialling = None
        if self._stopped or not wire.connected:
            wire.transport.abortConnection()
            self._away("the connection was lost")
            return
        self._wire = wire
        self._silent_since = None
        wire.on_refused = self._refused
        wire.on_lost = self._lost
        self._probe(wire)

    def _in_vain(self, failure: Failure) -> None:
        self._dialling = None
        self._away(str(failure.value))

    def _probe(self, wire: Wire) -> None:
        self._ask(wire, "EVAL", _PROBE, 1, self._probe_key).addCallbacks(self._able, self._in_vain)

    def _able(self, _reply: object) -> None:
        if self._stopped:
            return
        if self._again is not None:
            # Meanwhile something else has failed.
            return
        self.here = True
        self._told = False
        self._since = self._reactor.seconds()
        self.on_here()

    def _lost(self, why: str) -> None:
        """Deal with a connection that is over: what waited for it is failed by it."""
        self._wire = None
        self._away(why)
        for news in self._news:
            news.redial()
