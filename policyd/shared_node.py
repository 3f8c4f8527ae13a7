"""What the rooms of a node have in common: the store, this node's name in it, and the store's clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from policyd.facts import Facts
from policyd.locks import Report
from policyd.policy import Policy
from policyd.records import Span
from policyd.shared_calls import Calls


class Store(Protocol):
    """The server that the nodes share."""

    @property
    def here(self) -> bool:
        """Whether calls are tried."""

    def call(self, command: bytes) -> Deferred[object]:
        """Return what fires with the reply to a call of the script; it fails with AwayError, soon."""

    def command(self, *words: bytes | str | float) -> Deferred[object]:
        """Return the same of any other command."""


class StoreClock:
    """How far the store's clock is ahead of the one here that never steps back; the wall clock, until it is known."""

    def __init__(self, to_wall: Callable[[float], float]) -> None:
        self._to_wall = to_wall
        self._ahead: float | None = None

    def learn(self, told: float, now: float) -> None:
        """Take in what the store's clock has told."""
        self._ahead = told - now

    def span(self, now: float) -> Span:
        """Return it as a span."""
        return Span(self.wall_ahead(now) if self._ahead is None else self._ahead)

    def at(self, now: float) -> float:
        """Return the store's time."""
        return self.span(now).wall(now)

    def wall_ahead(self, now: float) -> float:
        """Return how far this node's wall clock is ahead of the one that never steps back."""
        return self._to_wall(now) - now


class Node(NamedTuple):
    """This node: what its rooms share."""

    prefix: str
    """The beginning of the store's keys."""
    name: str
    run: str
    """What names this run of the daemon."""
    policy: Policy
    store: Store
    calls: Calls
    clock: StoreClock
    reactor: IReactorTime
    log: Report
    """Writes a line to the log, and tells nobody else."""
    bug: Callable[[], None]
    """Is called while an exception of ours is handled."""
    facts: Facts
    """What is known again after a restart."""
    db: int = 0
    """The number of the store's database."""

    def key(self, name: str) -> str:
        """Return the key of what is shared: `locks`, `allowances`, `nodes`."""
        return f"{self.prefix}:{name}"

    def channel(self, name: str) -> str:
        """Return the channel of `news`, `ask` or an answer: a store has the same channels in all its databases."""
        return f"{self.key(name)}@{self.db}" if self.db else self.key(name)

    def own_lock(self, account: str) -> bytes:
        """Return the key of an account's lock."""
        return self.calls.key(account) + b":l"

    def field(self, account: str) -> str:
        """Return an account's name as it stands in keys and fields."""
        return self.calls.key(account).decode(errors="replace")[len(self.prefix) + 2 : -1]

    def tell(self, what: str, text: str) -> Deferred[object]:
        """Tell the other nodes of something; `text` is a JSON object."""
        message = f'{{"what": "{what}", "run": "{self.run}", {text[1:]}'
        return self.store.command("PUBLISH", self.channel("news"), message)
