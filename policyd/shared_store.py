"""Reaching the store that nodes share: a connection by TCP, TLS, a unix socket, or to where Sentinel says.

txredisapi knows the commands. What is read of the store, and whose reply it is, is seen to here: see shared_replies.
This room is loaded only where the config names a store.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure
from txredisapi import BaseRedisProtocol

from policyd.relay import said
from policyd.sections_cluster import Store
from policyd.shared_calls import AwayError
from policyd.shared_replies import MAX_REPLY, GarbageError, Refusal, Replies

CONNECT = 2.0
"""Seconds in which the store has to have let us in."""

ASK = 0.5
"""Seconds in which a Sentinel has to have said where the store is; then the next one is asked."""

MAX_CONTEXTS = 32
"""Hosts for which what TLS takes is kept: reading the authorities takes its time."""

AT_ONCE = 8
"""Commands after which what was written is sent within a turn of the reactor: the store begins with them while the next
ones come to be written. Where 50 connections ask all the time, that gives a quarter more answers."""


class Call(Deferred[object]):
    """A question to the store that waits for its reply."""

    deadline = math.inf
    """When it is given up, by the reactor's clock."""
    command = b""
    """What is sent in full where the store has forgotten the script; empty where it has no script."""


class Wire(BaseRedisProtocol):  # type: ignore[misc]  # txredisapi says nothing of its types
    """A connection to the store: replies belong to calls in the order in which these were sent.

    A call that nobody waits for any more keeps its place until its reply has come.
    """

    def __init__(self, most: int = MAX_REPLY) -> None:
        super().__init__(charset=None, convertNumbers=False)
        self.waiting: deque[Call] = deque()
        self.heard = True
        """Whether anything has come since somebody set it to False."""
        self.on_refused: Callable[[Call, Refusal], None] = _refused
        self.on_lost: Callable[[str], None] = lambda _why: None
        self.on_told: Callable[[object], None] | None = None
        """Told each reply in place of the calls: of a connection that listens."""
        self._replies = Replies(most)
        self._why = ""
        self._unsent = 0
        """Commands since something was last sent at once."""
        self._direct = False
        """Whether what was written can be sent at once: TLS lends out the method of the connection below it, which
        does not have it yet."""

    def connectionMade(self) -> None:
        """Twisted tells that there is a connection; who asked for it introduces us."""
        self.connected = 1
        self._direct = isinstance(self.transport, FileDescriptor)
        no_delay = getattr(self.transport, "setTcpNoDelay", None)
        if no_delay is not None:
            no_delay(True)

    def send(self, command: bytes, call: Call) -> None:
        """Send a command; what is sent within a turn of the reactor leaves together, but for each AT_ONCE commands."""
        self.waiting.append(call)
        self.transport.write(command)
        self._unsent += 1
        if self._unsent >= AT_ONCE:
            self._unsent = 0
            if self._direct:
                self.transport.doWrite()

    def execute_command(self, *args: object, **_more: object) -> Call:
        """Send one of txredisapi's commands."""
        call = Call()
        self.send(self._build_command(*args), call)
        return call

    def tell(self, *args: object) -> None:
        """Send one of txredisapi's commands, where the replies are not the calls'."""
        self.transport.write(self._build_command(*args))

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        """Hand each reply to whom it is for."""
        if self._why:
            return
        self.heard = True
        try:
            replies = self._replies.feed(data)
        except GarbageError as error:
            self.give_up(f"what came from it is no reply: {error}")
            return
        if self.on_told is not None:
            for reply in replies:
                self.on_told(reply)
            return
        waiting = self.waiting
        for reply in replies:
            if not waiting:
                self.give_up(f"it says {reply}" if reply.__class__ is Refusal else "it answers what nobody asked")
                return
            call = waiting.popleft()
            if call.called:
                continue
            if reply.__class__ is Refusal:
                self.on_refused(call, reply)
            else:
                call.callback(reply)

    def give_up(self, why: str) -> None:
        """Hang up without a word."""
        self._why = self._why or why
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Twisted tells that the connection is over."""
        self.connected = 0
        why = self._why = self._why or in_words(reason)
        self.on_lost(why)
        waiting, self.waiting = self.waiting, deque()
        for call in waiting:
            if not call.called:
                call.errback(AwayError(why))


def _refused(call: Call, refusal: Refusal) -> None:
    call.errback(AwayError(f"it says {refusal}"))


class Dial:
    """The way to a store, whose name is resolved and whose password is read each time."""

    def __init__(self, reactor: Any, store: Store, password: Callable[[], bytes | None]) -> None:
        """`reactor` has all that connecting takes; `password` raises OSError or ValueError where it cannot be read."""
        self._reactor = reactor
        self._store = store
        self._password = password
        self._sentinels = deque(store.hosts if store.master else ())
        self._options = lru_cache(MAX_CONTEXTS)(optionsForClientTLS)

    def __call__(self, most: int = MAX_REPLY) -> Deferred[Wire]:
        """Return a connection that is let in, within CONNECT.

        Fails with AwayError; `most` are the bytes of a reply.
        """
        dialled: Deferred[Wire] = Deferred.fromCoroutine(self._dial(most))
        return dialled.addTimeout(CONNECT, self._reactor).addErrback(_as_away, CONNECT)

    async def _dial(self, most: int) -> Wire:
        store = self._store
        if store.kind == "unix":
            endpoint: IStreamClientEndpoint = UNIXClientEndpoint(self._reactor, store.path, CONNECT)
        else:
            endpoint = self._endpoint(await self._master() if store.master else store.hosts[0])
        wire = await self._connect(endpoint, most)
        try:
            await self._introduce(wire)
        except BaseException:
            wire.give_up("it has not let us in")
            raise
        return wire

    async def _introduce(self, wire: Wire) -> None:
        password = self._read_password()
        if password is not None:
            await self._log_in(wire, password)
        if self._store.db:
            await wire.execute_command("SELECT", self._store.db)

    def _read_password(self) -> bytes | None:
        try:
            return self._password()
        except (OSError, ValueError) as error:
            raise AwayError(f"the password cannot be read: {error}") from error

    async def _log_in(self, wire: Wire, password: bytes) -> None:
        user = () if self._store.user is None else (self._store.user,)
        await wire.execute_command("AUTH", *user, password)

    async def _master(self) -> tuple[str, int]:
        """Return where the first Sentinel that knows says that the store is."""
        why: list[str] = []
        for _ in range(len(self._sentinels)):
            host = self._sentinels[0]
            try:
                asked: Deferred[tuple[str, int]] = Deferred.fromCoroutine(self._ask(host))
                return await asked.addTimeout(ASK, self._reactor).addErrback(_as_away, ASK)
            except AwayError as error:
                why.append(f"{host[0]}:{host[1]}: {error}")
                self._sentinels.rotate(-1)
        raise AwayError(f"no Sentinel knows where it is: {'; '.join(why)}")

    async def _ask(self, sentinel: tuple[str, int]) -> tuple[str, int]:
        wire = await self._connect(self._endpoint(sentinel))
        name = self._store.master
        try:
            try:
                found = await wire.sentinel_get_master_addr_by_name(name)
            except AwayError:
                # A Sentinel may have a password as well: the same one.
                password = self._read_password()
                if password is None:
                    raise
                await self._log_in(wire, password)
                found = await wire.sentinel_get_master_addr_by_name(name)
        finally:
            wire.give_up("it was asked")
        match found:
            case [bytes(host), bytes(port)] if port.isdigit():
                return host.decode("ascii", "replace"), int(port)
        raise AwayError(f"it knows no {name}")

    def _endpoint(self, place: tuple[str, int]) -> IStreamClientEndpoint:
        endpoint = HostnameEndpoint(self._reactor, place[0].encode(), place[1], CONNECT)
        return wrapClientTLS(self._options(place[0]), endpoint) if self._store.encrypted else endpoint

    @staticmethod
    async def _connect(endpoint: IStreamClientEndpoint, most: int = MAX_REPLY) -> Wire:
        factory = Factory.forProtocol(lambda: Wire(most))
        factory.noisy = False
        connecting: Deferred[Any] = endpoint.connect(factory)
        wire: Wire = await connecting
        return wire


def in_words(failure: Failure) -> str:
    """Return what has become of a connection, for a sentence about the store."""
    for kinds, words in _WORDS:
        if failure.check(*kinds):
            return words
    return said(failure.value or Exception()).rstrip(".")


_WORDS = (
    ((ConnectionDone, ConnectionLost, ConnectionAborted), "the connection was lost"),
    ((ConnectionRefusedError,), "it refuses the connection"),
)


def _as_away(failure: Failure, seconds: float) -> Any:
    """Return what went wrong on the way as an AwayError."""
    if failure.check(AwayError):
        return failure
    if failure.check(TimeoutError):
        raise AwayError(f"no answer within {seconds:g} s")
    raise AwayError(in_words(failure))
