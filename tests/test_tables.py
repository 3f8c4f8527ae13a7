"""Both tables, the one in memory and the one in a store that many daemons share, against lists that forget nothing.

Whatever transactions shall stand at, in whatever order, both charge the same, refuse the same and give the same back.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd import charges
from policyd.accounts import Account
from policyd.charges import Exceeded
from policyd.envelope import Envelope, client_of, sender_of
from policyd.limits import DISTINCT, Count, Limit, Limits, Rules
from policyd.shared_calls import Target, outcome, shown
from policyd.transactions import Transaction
from policyd.wire import Request, RequestReader
from tests.asking import limit, request, seeded
from tests.stores import Shared, Store, running

USERS = ("anna", "bert", "cl{eo}")
PERIODS = ("60s", "30s", "15s")
"""Their sixtieths are exact numbers, so that slices end where no rounding is in the way."""

STEPS = (0.0, 0.0, 0.125, 0.25, 1.0, 2.375, 7.5, 14.875, 15.0, 15.25, 29.875, 30.0, 30.5, 60.0, 61.0)
CLIENTS = ("192.0.2.1", "192.0.2.2", "2001:db8::1", "")
SENDERS = ("anna@example.com", "bert@example.com", "")
SIZES = (0, 0, 1, 50, 99, 100, 250)
RECENT = 3
"""Only the latest messages of an account are given back: no table remembers all sightings of a value."""


@dataclass(frozen=True)
class Letter:
    """What a message shall stand at."""

    messages: int
    recipients: int
    size: int = 0
    client: str = ""
    sender: str = ""

    @property
    def request(self) -> Request:
        """Return a request that tells all that."""
        reader = RequestReader()
        reader.receive(request(client_address=self.client, sender=self.sender, size=self.size))
        asked = reader.next_request()
        assert asked is not None
        return asked


Over = tuple[int, int, "float | None"]
"""A limit's place, the count that would be reached, and when the window resets."""

Told = tuple["Over | None", tuple[Over, ...]]
"""What stops a message, and what is exceeded and lets it pass."""

Shown = list["tuple[int, float | None] | None"]


class Table(Protocol):
    """What keeps counts."""

    def settle(self, user: str, instance: str, letter: Letter, now: float) -> Told:
        """Have a message stand at something."""

    def shown(self, user: str, now: float) -> Shown:
        """Return the counts, and when they reset."""

    def forget(self, user: str) -> None:
        """Forget an account's counts."""


class InMemory:
    """The table of one daemon."""

    def __init__(self, limits: Limits) -> None:
        self._rules = Rules(limits)
        self._accounts: dict[str, Account] = {}
        self._transactions: dict[tuple[str, str], Transaction] = {}

    def settle(self, user: str, instance: str, letter: Letter, now: float) -> Told:
        """Do what the policy does at RCPT, DATA, END-OF-MESSAGE, or when a message is given up."""
        account = self._account(user, now)
        known = self._transactions.setdefault((user, instance), Transaction(instance.encode(), account))
        if known.message_counted and not letter.messages:
            known.give_back()
        elif known.recipients > letter.recipients:
            known.keep_recipients(letter.recipients)
        messages, recipients = letter.messages - known.message_counted, letter.recipients - known.recipients
        if messages and account.maxima.looked_at:
            known.envelope = Envelope(letter.request, account.maxima.looked_at)
        passing: tuple[Exceeded, ...] = ()
        stop: Exceeded | None = None
        if (messages or recipients) and not charges.charge(known, messages, recipients, now):
            stop, passing = charges.check(known, messages, recipients, now)
            if stop is None:
                charges.count(known, messages, recipients, now, passing)
        elif known.message_counted and not messages:
            stop, passing = charges.settle(known, letter.size, now)
        return self._over(account, stop), tuple(over for each in passing if (over := self._over(account, each)))

    def shown(self, user: str, now: float) -> Shown:
        """Look into the windows."""
        account = self._account(user, now)
        return [
            None
            if window is None or limit.period is None
            else (window.count(now, limit.period), window.resets_in(now, limit.period))
            for limit, window in zip(account.limits, account.windows, strict=True)
        ]

    def forget(self, user: str) -> None:
        """Start the windows anew."""
        self._account(user, 0.0).forget_counts()

    def _account(self, user: str, now: float) -> Account:
        return self._accounts.setdefault(user, Account(user, self._rules, now))

    @staticmethod
    def _over(account: Account, found: Exceeded | None) -> Over | None:
        return None if found is None else (account.limits.index(found.limit), found.reached, found.resets_in)


class InStore:
    """The table of many daemons."""

    def __init__(self, store: Store, limits: Limits) -> None:
        store.forget()
        self._shared = Shared(store)
        self._limits = limits

    def settle(self, user: str, instance: str, letter: Letter, now: float) -> Told:
        """Ask the script, and ask once more, as after a reply that was lost."""
        asked = letter.request
        target = Target(letter.messages, letter.recipients, letter.size, client_of(asked), sender_of(asked))
        packed = self._shared.calls.settle(user, self._limits, instance.encode(), target, now=now)
        found = outcome(self._shared.say(packed))
        assert found.lock is None
        assert found.near == ()
        again = outcome(self._shared.say(packed))
        assert again.stop == found.stop
        return found.stop, found.passing

    def shown(self, user: str, now: float) -> Shown:
        """Ask the script."""
        return list(shown(self._shared.say(self._shared.calls.show(user, self._limits, now=now))).windows)

    def forget(self, user: str) -> None:
        """Ask the script."""
        self._shared.say(self._shared.calls.reset(user))


@dataclass(eq=False)
class Entry:
    """Events of one message in one window."""

    user: str
    place: int
    instance: str
    stamp: float
    events: int
    value: str = ""


class Lists:
    """All that was ever counted and not given back, in one list; each count is worked out anew."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._entries: list[Entry] = []
        self._stands: dict[tuple[str, str], Letter] = {}

    def settle(self, user: str, instance: str, letter: Letter, now: float) -> Told:
        """Work out what is exceeded, and write it down or strike it out."""
        before = self._stands.get((user, instance), Letter(0, 0))
        before = self._lower(user, instance, before, letter)
        after = Letter(letter.messages, letter.recipients, letter.size or before.size, letter.client, letter.sender)
        if not letter.messages:
            after = Letter(0, letter.recipients)
        mores = [self._more(user, instance, place, before, after, now) for place in range(len(self._limits))]
        passing: list[Over] = []
        spared: set[int] = set()
        for place, (bound, more) in enumerate(zip(self._limits, mores, strict=True)):
            count = self.shown(user, now)[place]
            reached = more + (before.recipients if count is None else count[0])
            if more <= 0 or bound.max is None or reached <= bound.max:
                continue
            over = (place, reached, count and count[1])
            if bound.stops:
                return over, tuple(passing)
            spared.add(place)
            if bound.count != "bytes" or not before.size or self._of(user, instance, place):
                passing.append(over)
        for place, more in enumerate(mores):
            if place not in spared:
                self._write(user, instance, place, more, after if after.messages > before.messages else None, now)
        self._stands[user, instance] = after
        return None, tuple(passing)

    def shown(self, user: str, now: float) -> Shown:
        """Count what lies in each window."""
        return [
            None if limit.period is None else self._window(user, place, now) for place, limit in enumerate(self._limits)
        ]

    def forget(self, user: str) -> None:
        """Strike all out."""
        self._entries = [entry for entry in self._entries if entry.user != user]

    def _window(self, user: str, place: int, now: float) -> tuple[int, float | None]:
        limit = self._limits[place]
        period = limit.period or 0.0
        inside = [
            entry
            for entry in self._entries
            if (entry.user, entry.place) == (user, place) and entry.events and now < entry.stamp + period
        ]
        if limit.count not in DISTINCT:
            oldest = min((entry.stamp for entry in inside), default=None)
            return sum(entry.events for entry in inside), None if oldest is None else oldest + period - now
        latest: dict[str, float] = {}
        for entry in inside:
            latest[entry.value] = max(entry.stamp, latest.get(entry.value, 0.0))
        return len(latest), min(latest.values()) + period - now if latest else None

    def _more(self, user: str, instance: str, place: int, before: Letter, after: Letter, now: float) -> int:
        """Tell by how much a count grows."""
        count = self._limits[place].count
        if count == "recipients":
            return after.recipients - before.recipients
        if count == "messages":
            return after.messages - before.messages
        if count == "bytes":
            if after.size == before.size:
                return 0
            return after.size - sum(entry.events for entry in self._of(user, instance, place))
        value, period = _value(count, after), self._limits[place].period or 0.0
        seen = any(
            (entry.user, entry.place, entry.value) == (user, place, value)
            and entry.events
            and now < entry.stamp + period
            for entry in self._entries
        )
        return int(after.messages > before.messages and bool(value) and not seen)

    def _of(self, user: str, instance: str, place: int) -> list[Entry]:
        """Return a message's entries in a window, the oldest first."""
        wanted = (user, instance, place)
        own = [entry for entry in self._entries if (entry.user, entry.instance, entry.place) == wanted and entry.events]
        return sorted(own, key=lambda entry: entry.stamp)

    def _write(self, user: str, instance: str, place: int, more: int, new: Letter | None, now: float) -> None:
        limit = self._limits[place]
        if limit.period is None:
            return
        if limit.count in DISTINCT:
            if new is not None and (value := _value(limit.count, new)):
                self._entries.append(Entry(user, place, instance, now, 1, value))
        elif more > 0:
            stamp = math.ceil(now / limit.slice) * limit.slice if limit.slice else now
            self._entries.append(Entry(user, place, instance, stamp, more))
        else:
            self._strike(reversed(self._of(user, instance, place)), -more)

    def _lower(self, user: str, instance: str, before: Letter, letter: Letter) -> Letter:
        """Strike out what was counted above what it shall be; return how it stands then."""
        gone = letter.messages < before.messages
        for place, bound in enumerate(self._limits):
            own = self._of(user, instance, place)
            if bound.count == "recipients":
                self._strike(own, sum(entry.events for entry in own) - letter.recipients)
            elif gone:
                self._strike(own, math.inf)
        recipients = min(before.recipients, letter.recipients)
        lower = Letter(0, recipients) if gone else Letter(before.messages, recipients, before.size)
        self._stands[user, instance] = lower
        return lower

    @staticmethod
    def _strike(entries: Iterator[Entry] | list[Entry], number: float) -> None:
        for entry in entries:
            taken = max(0, min(entry.events, number))
            entry.events -= int(taken)
            number -= taken


def _value(count: Count, letter: Letter) -> str:
    return letter.client if count == "clients" else f"<{letter.sender}>"


def drawn_limits(chance: random.Random) -> Limits:
    """Return one to five limits, exact and coarse ones."""
    found: list[Limit] = []
    for number in range(chance.randint(1, 5)):
        count: Count = chance.choice(("messages", "recipients", "recipients", "clients", "senders", "bytes"))
        per = chance.choice((*PERIODS, "message")) if count == "recipients" else chance.choice(PERIODS)
        maxima: dict[Count, tuple[int | None, ...]] = {
            "messages": (1, 2, 3, 5, 1001, None),
            "recipients": (1, 3, 9, 20, 1001, 1500, None),
            "bytes": (100, 300, 500, None),
        }
        most = chance.choice(maxima.get(count, (1, 2, 3, None)))
        action = chance.choice(("REJECT", "REJECT", "REJECT", "HOLD", "WARN"))
        observe = not chance.randrange(6)
        found.append(limit(count, most, per, action, name=f"{count}-{number}", observe=observe))
    return Limits(found)


class Play:
    """A table and the lists, and messages that come and go."""

    def __init__(self, chance: random.Random, table: Table, lists: Lists) -> None:
        self.chance = chance
        self.table = table
        self.lists = lists
        self.now = 1_795_420_800.0 + chance.randrange(600) / 8
        self.stands: dict[tuple[str, str], Letter] = {}
        self.counted: dict[str, list[str]] = {user: [] for user in USERS}
        """The messages of each that were counted, the latest last."""
        self.number = 0

    def go_on(self) -> None:
        """Let one thing happen, and compare."""
        chance = self.chance
        happens: Callable[[str], None] = chance.choices(
            (self.begin, self.change, self.give_back, self.wait, self.forget), (10, 14, 4, 12, 1)
        )[0]
        user = chance.choice(USERS)
        happens(user)
        assert self.table.shown(user, self.now) == self.lists.shown(user, self.now)

    def begin(self, user: str) -> None:
        """Begin a message: at a recipient, or at DATA."""
        self.number += 1
        self.settle(user, f"m{self.number}", self.drawn(self.chance.randrange(2)))

    def change(self, user: str) -> None:
        """Have a message go on: other recipients, DATA, or its true size."""
        known = [(owner, instance) for owner, instance in self.stands if owner == user]
        if not known:
            return
        _, instance = self.chance.choice(known[-2 * RECENT :])
        stands = self.stands[user, instance]
        letter = self.drawn(1)
        if stands.messages and self.chance.randrange(2):
            letter = Letter(1, stands.recipients, letter.size)
        elif stands.messages:
            letter = Letter(1, letter.recipients, stands.size)
        elif self.chance.randrange(2):
            letter = Letter(0, letter.recipients)
        self.settle(user, instance, letter)

    def give_back(self, user: str) -> None:
        """Give up one of the latest messages."""
        waiting = [instance for owner, instance in self.stands if owner == user]
        recent = [instance for instance in waiting[-RECENT:] if not self.stands[user, instance].messages]
        if instances := self.counted[user][-RECENT:] + recent:
            self.settle(user, self.chance.choice(instances), Letter(0, 0))

    def wait(self, _: str) -> None:
        """Let time go by."""
        self.now += self.chance.choice(STEPS)

    def forget(self, user: str) -> None:
        """Reset an account."""
        self.table.forget(user)
        self.lists.forget(user)

    def drawn(self, messages: int) -> Letter:
        """Return what a message may stand at."""
        chance = self.chance
        recipients = chance.choice((1, 1, 2, 3, 5, 700))
        if not messages:
            return Letter(0, recipients)
        return Letter(1, recipients, chance.choice(SIZES), chance.choice(CLIENTS), chance.choice(SENDERS))

    def settle(self, user: str, instance: str, letter: Letter) -> None:
        """Have a message stand at something in both."""
        told = self.table.settle(user, instance, letter, self.now)
        assert told == self.lists.settle(user, instance, letter, self.now)
        stands = self.stands.get((user, instance), Letter(0, 0))
        if told[0] is not None:
            letter = Letter(stands.messages, min(stands.recipients, letter.recipients), stands.size)
        elif letter.messages and not stands.messages:
            self.counted[user].append(instance)
        self.stands[user, instance] = letter


def play(seed: int, table_of: Callable[[Limits], Table]) -> None:
    """Do as chance says to a table and to lists, and compare them."""
    chance = seeded(seed)
    limits = drawn_limits(chance)
    match = Play(chance, table_of(limits), Lists(limits))
    for _ in range(150):
        match.go_on()


@pytest.fixture(scope="module", name="store")
def _store() -> Iterator[Store]:
    with running() as store:
        yield store


@given(st.integers(0, 2**32))
def test_the_table_in_memory_counts_as_lists_do(seed: int) -> None:
    """Exact and coarse windows, all kinds of counts, messages that change and are given back, and resets."""
    play(seed, InMemory)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_the_table_in_a_store_counts_as_lists_do(store: Store, seed: int) -> None:
    """The very same of the table that many daemons share; and each call is made twice."""
    play(seed, lambda limits: InStore(store, limits))
