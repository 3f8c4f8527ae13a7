"""Sending notices: after the answers that they are about, when they are due, by the channels of the config."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from policyd.command import Commands, environment
from policyd.letters import letter
from policyd.notices import ACCOUNT, COMMAND, MAIL, MAX_WAITING, TEST, WEBHOOK, Notice, Notices
from policyd.relay import NotSentError, RefusedAddressesError, Relay, within
from policyd.sections_notify import Notify
from policyd.webhook import Webhook, body

TEST_PATIENCE = 8.0
"""Seconds for which a test waits: policyctl waits for 10."""

T = TypeVar("T")

Send = Callable[[Notice], Awaitable[str]]
"""Has a channel take a notice; returns what to say of it.

Raises NotSentError.
"""


class Notifying:
    """Has the notices sent.

    `in_thread` has a function called in another thread; `durable` returns what fires when all locks are on the disk,
    None when they are; `bug` tells of the exception that is being handled; `wall` tells the time in seconds since the
    epoch; `host` is how this host is called.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        notices: Notices,
        in_thread: Callable[[Callable[[], str]], Deferred[str]],
        durable: Callable[[], Deferred[None] | None],
        bug: Callable[[], None],
        wall: Callable[[], float],
        host: str,
    ) -> None:
        self._reactor = reactor
        self._notices = notices
        self._in_thread = in_thread
        self._durable = durable
        self._bug = bug
        self._wall = wall
        self._host = host
        self._commands = Commands()
        self._sends: dict[str, Send] = {}
        self._taken: dict[str, tuple[str, ...]] = {}
        """Addresses of the desk for which the relay has taken a notice that it has not taken for all."""
        self._next: IDelayedCall | None = None
        self._stopped = False
        notices.wake = self.wake

    def apply(self, notify: Notify) -> None:
        """Go by another config."""
        sends: dict[str, Send] = {}
        if notify.mail is not None:
            relay = Relay(self._reactor, notify.mail.relay, self._host)
            sends[MAIL] = partial(self._mail, relay, notify)
            sends[ACCOUNT] = partial(self._mail, relay, notify, channel=ACCOUNT)
        if notify.webhook is not None:
            sends[WEBHOOK] = Webhook(self._reactor, notify.webhook, self._host, self._wall).post
        if notify.command:
            sends[COMMAND] = partial(self._run, notify.command)
        self._sends = sends
        self._notices.apply(notify, self._reactor.seconds())

    def stop(self) -> None:
        """Send nothing more; what is not sent by now is sent when the daemon starts again."""
        self._stopped = True
        self._commands.stop()
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def wake(self) -> None:
        """Look, after this turn of the reactor, at what there is to send."""
        self._look_in(0.0)

    def _look_in(self, seconds: float) -> None:
        if self._stopped:
            return
        if self._next is not None:
            if self._next.getTime() <= self._reactor.seconds() + seconds:
                return
            self._next.cancel()
        self._next = self._reactor.callLater(seconds, self._look)

    def _look(self) -> None:
        """Send what is due when the locks that it tells of are on the disk; the answers leave before."""
        self._next = None
        durable = self._durable()
        if durable is None:
            self._send_due()
        else:
            durable.addCallback(lambda _: self._look_in(0.0))

    def _send_due(self) -> None:
        if self._stopped:
            return
        now = self._reactor.seconds()
        for name, send in self._sends.items():
            while (notice := self._notices.next_for(name, now)) is not None:
                Deferred.fromCoroutine(self._tell(name, send, notice))
        due = self._notices.wakes_at()
        if due is not None:
            self._look_in(max(due - self._reactor.seconds(), 0.0))

    async def _tell(self, name: str, send: Send, notice: Notice) -> None:
        """Have a channel take a notice, and note what came of it."""
        try:
            await send(notice)
        except NotSentError as error:
            final = error.final and name == ACCOUNT  # what the desk is to know is tried on: somebody will mend it
            self._notices.failed(name, notice.id, str(error), self._reactor.seconds(), final=final)
        except Exception as error:  # a bug of ours, whatever it is
            self._bug()
            self._notices.failed(name, notice.id, repr(error), self._reactor.seconds())
        else:
            self._notices.took(name, notice.id, self._reactor.seconds())
        self.wake()

    async def _mail(self, relay: Relay, notify: Notify, notice: Notice, channel: str = MAIL) -> str:
        if notify.mail is None or (mail := letter(notice, channel, notify.mail, self._host)) is None:
            return "nobody is to get it"
        if channel == MAIL:
            already = self._taken.get(notice.id, ())
            mail = mail._replace(to=tuple(address for address in mail.to if address not in already))
            if not mail.to:
                return "all have got it"
        try:
            said = await relay.hand_over(mail)
        except RefusedAddressesError as error:
            if channel == MAIL and error.taken:
                if len(self._taken) >= MAX_WAITING:
                    del self._taken[next(iter(self._taken))]
                self._taken[notice.id] = (*already, *error.taken)
            raise
        self._taken.pop(notice.id, None)
        return said

    async def _run(self, argv: tuple[str, ...], notice: Notice) -> str:
        stdin = body(notice, self._host, int(self._wall())) + b"\n"
        return await self._in_thread(partial(self._commands.run, argv, environment(notice, self._host), stdin))

    def test(self, by: str) -> Deferred[list[dict[str, Any]]]:
        """Send a test by each channel, at once; return what came of it."""
        notice = Notice(self._notices.new_id(), TEST, self._wall(), {"by": by})
        names = [name for name in self._notices.channels if name != ACCOUNT]
        tests = [Deferred.fromCoroutine(self._tested(name, notice)) for name in names]
        return gatherResults(tests, consumeErrors=True)

    async def _tested(self, name: str, notice: Notice) -> dict[str, Any]:
        begun, send = self._reactor.seconds(), self._sends[name]
        try:
            said = await within(self._reactor, TEST_PATIENCE, lambda: Deferred.fromCoroutine(_awaited(send(notice))))
        except NotSentError as error:
            sent, said = False, str(error)
        else:
            sent = True
        return {"channel": name, "sent": sent, "said": said, "seconds": round(self._reactor.seconds() - begun, 3)}

    def shown(self) -> list[dict[str, Any]]:
        """Return how each channel does."""
        return self._notices.shown()


async def _awaited(work: Awaitable[T]) -> T:
    return await work
