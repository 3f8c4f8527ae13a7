"""What people are to be told, and who has not been told yet.

A notice waits until every channel that wants it has taken it, however often that has to be tried, and is kept in the
database as long. It has an id, by which a receiver knows one that comes twice. Many of one kind within a minute become
one, the digest. Every method takes `now`, in seconds of a clock that never steps back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, NamedTuple

from policyd.locks import DAEMON, Report, utc
from policyd.sections_notify import EVENTS, EXPIRY, LOCK, NOBODY_TOLD, UNLOCK, WARNING, Notify, address_of

DIGEST, TEST = "digest", "test"

MAIL, ACCOUNT, WEBHOOK, COMMAND = CHANNELS = ("mail", "account", "webhook", "command")
"""The ways to tell people: the desk's mail, the account's, and the others."""

AT_ONCE = {MAIL: 1, ACCOUNT: 1, WEBHOOK: 1, COMMAND: 4}
"""Notices that a channel is given at the same time."""

MAX_WAITING = 1000
"""Notices that wait at the most; for one more the oldest is lost."""

MINUTE = 60.0
"""Seconds for which notices of one kind are counted, and for which a digest gathers those beyond STORM."""

STORM = 10
"""Notices of one kind that are told of one by one in a minute; those beyond are in a digest."""

NAMED = 20
"""Accounts that a digest names."""

RETRIES = (1.0, 5.0, 30.0, 120.0, 600.0)
"""Seconds until the second try, the third, …; the last one is repeated."""

MAX_TEXT = 10_000
"""Characters of a text in a notice, such as an account's name; none that is real is longer."""

GIVE_UP = 86400.0
"""Seconds after which a notice that cannot be sent is not tried again."""

MAX_NAMED = 1000
"""Characters of an account's name in a digest."""

MAX_REASON = 300
"""Characters of why a notice cannot be sent."""

_WORDS = {"lock": LOCK, "unlock": UNLOCK, "near-limit": WARNING}
"""The events of the log that people can be told of."""

_KINDS = {event: event for event in (*EVENTS, DIGEST)}
"""What can have been stored."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that people are told."""

    id: str
    event: str
    at: float
    """Wall clock, seconds since the epoch."""
    fields: Mapping[str, Any]
    """JSON values. New ones may come."""

    def value(self) -> dict[str, Any]:
        """Return what programs are told."""
        return {"id": self.id, "event": self.event, "at": utc(self.at), **self.fields}


@dataclass(slots=True)
class _Try:
    """What became of telling one channel."""

    due: float
    number: int = 0
    under_way: bool = False


@dataclass(slots=True)
class _Waiting:
    notice: Notice
    left: dict[str, _Try]
    """The channels that have not taken it yet."""


@dataclass(slots=True)
class _Minute:
    """The notices of one kind in a minute."""

    ends: float = -inf
    number: int = 0
    storm: bool = False
    """Whether the minute before was one, too: then none is told of by itself."""
    digest: str = ""
    """The id of the digest of this minute."""

    def is_over_many(self, now: float) -> bool:
        """Count a notice; tell whether it belongs into the digest."""
        if now >= self.ends:
            self.storm = self.number > STORM and now < self.ends + MINUTE
            self.ends = (self.ends if self.storm else now) + MINUTE
            self.number, self.digest = 0, ""
        self.number += 1
        return self.storm or self.number > STORM


class Failing(NamedTuple):
    """A channel that does not take notices."""

    since: float
    """Wall clock."""
    reason: str


@dataclass(slots=True)
class Channel:
    """How a channel does."""

    sent: int = 0
    lost: int = 0
    failing: Failing | None = None
    tries: dict[str, _Try] = field(default_factory=dict)
    """By the ids of the notices that it has not taken yet, the oldest first."""
    under_way: int = 0


@dataclass(slots=True)
class Notices:
    """The notices that wait.

    `new_id` returns an id that no other notice has; `to_wall` turns `now` into seconds since the epoch; `wake` is
    called when there is something to send.
    """

    report: Report
    new_id: Callable[[], str]
    to_wall: Callable[[float], float]
    wake: Callable[[], None] = lambda: None
    notify: Notify = NOBODY_TOLD
    channels: dict[str, Channel] = field(default_factory=dict)
    """Those of the config."""
    _waiting: dict[str, _Waiting] = field(default_factory=dict)
    """By id, the oldest first."""
    _minutes: dict[str, _Minute] = field(default_factory=dict)
    _unsaved: dict[str, None] = field(default_factory=dict)
    """The ids of what is different in the database."""

    def __len__(self) -> int:
        return len(self._waiting)

    def apply(self, notify: Notify, now: float) -> None:
        """Go by another config: what waits is tried again, without the channels that are gone."""
        self.notify = notify
        wanted = {MAIL: notify.mail, ACCOUNT: notify.mail and notify.mail.account, WEBHOOK: notify.webhook}
        names = [name for name in CHANNELS if wanted.get(name, notify.command if name == COMMAND else None)]
        self.channels = {name: self.channels.get(name) or Channel() for name in names}
        for waiting in list(self._waiting.values()):
            for name in [name for name in waiting.left if name not in self.channels]:
                self._done_with(waiting, name)
            for attempt in waiting.left.values():
                if attempt.number:
                    attempt.due = min(attempt.due, now)
        self.wake()

    def tell(self, word: str, fields: Mapping[str, object], now: float) -> None:
        """Take in an event of the log, if it is one that people want to know of."""
        if not self.channels or (event := _WORDS.get(word)) is None:
            return
        if event == UNLOCK and fields.get("by") == DAEMON and fields.get("uid") is None:
            event = EXPIRY
        if event not in self.notify.events:
            return
        minute = self._minutes.setdefault(event, _Minute())
        if minute.is_over_many(now):
            self._gather(minute, event, fields, now)
        else:
            notice = Notice(self.new_id(), event, self.to_wall(now), _told(event, fields))
            self._add(notice, self._wanted_by(notice), now)
        self.wake()

    def _gather(self, minute: _Minute, event: str, fields: Mapping[str, object], now: float) -> None:
        """Have an event told of in the minute's digest."""
        name, at = str(fields["account"])[:MAX_NAMED], self.to_wall(now)
        waiting = self._waiting.get(minute.digest)
        if waiting is None:
            minute.digest = self.new_id()
            first = {"of": event, "number": 1, "accounts": [name], "since": utc(at)}
            self._add(Notice(minute.digest, DIGEST, at, first), [c for c in self.channels if c != ACCOUNT], minute.ends)
            return
        told: dict[str, Any] = {**waiting.notice.fields, "number": waiting.notice.fields["number"] + 1}
        if len(told["accounts"]) < NAMED:
            told["accounts"] = [*told["accounts"], name]
        waiting.notice = replace(waiting.notice, at=at, fields=told)
        self._unsaved[minute.digest] = None

    def _wanted_by(self, notice: Notice) -> list[str]:
        whose = address_of(str(notice.fields.get("account", "")))
        return [name for name in self.channels if name != ACCOUNT or whose]

    def _add(self, notice: Notice, channels: Iterable[str], due: float) -> None:
        if len(self._waiting) >= MAX_WAITING:
            oldest = next(iter(self._waiting.values()))
            for name in list(oldest.left):
                self._lose(oldest, name, f"more than {MAX_WAITING} wait")
        left = {name: _Try(due) for name in channels}
        for name, attempt in left.items():
            self.channels[name].tries[notice.id] = attempt
        self._waiting[notice.id] = _Waiting(notice, left)
        self._unsaved[notice.id] = None

    def next_for(self, name: str, now: float) -> Notice | None:
        """Return what a channel is to be told next, which is then under way; None where there is nothing to do yet."""
        channel = self.channels.get(name)
        if channel is None or channel.under_way >= AT_ONCE[name] or (found := _first(channel)) is None:
            return None
        id_, attempt = found
        if attempt.due > now:
            return None
        attempt.under_way = True
        channel.under_way += 1
        return self._waiting[id_].notice

    def wakes_at(self) -> float | None:
        """Return when there is something to do next for a channel that is not at work already; None: never."""
        idle = (channel for name, channel in self.channels.items() if channel.under_way < AT_ONCE[name])
        return min((found[1].due for channel in idle if (found := _first(channel)) is not None), default=None)

    def took(self, name: str, id_: str, now: float) -> None:
        """Note that a channel has taken a notice; what it did not take before is tried at once."""
        waiting, channel = self._waiting.get(id_), self.channels.get(name)
        if channel is None:
            return
        channel.sent += 1
        if waiting is not None and name in waiting.left:
            told = {"channel": name, "event": waiting.notice.event, "account": waiting.notice.fields.get("account")}
            self.report("notice-sent", {**told, "id": id_})
            self._done_with(waiting, name)
        if channel.failing:
            channel.failing = None
            self.report("notify-well", {"channel": name, "waiting": self.waiting(name)})
            for attempt in channel.tries.values():
                if attempt.number:
                    attempt.due = min(attempt.due, now)

    def failed(self, name: str, id_: str, reason: str, now: float, *, final: bool = False) -> None:
        """Note that a channel has not taken a notice; unless it is `final`, it is tried again later."""
        waiting, channel = self._waiting.get(id_), self.channels.get(name)
        reason = reason[:MAX_REASON]
        if waiting is None or channel is None or (attempt := waiting.left.get(name)) is None:
            return
        channel.under_way -= attempt.under_way
        attempt.under_way = False
        if final:
            self._lose(waiting, name, reason)
            return
        if channel.failing is None:
            self.report("notify-problem", {"channel": name, "reason": reason, "id": id_})
            channel.failing = Failing(self.to_wall(now), reason)
        channel.failing = channel.failing._replace(reason=reason)
        if self.to_wall(now) - waiting.notice.at >= GIVE_UP:
            self._lose(waiting, name, reason)
            return
        attempt.due = now + RETRIES[min(attempt.number, len(RETRIES) - 1)]
        attempt.number += 1

    def _lose(self, waiting: _Waiting, name: str, reason: str) -> None:
        notice = waiting.notice
        if name in self.channels:
            self.channels[name].lost += 1
        told = {"channel": name, "event": notice.event, "account": notice.fields.get("account")}
        self.report("notices-lost", {**told, "id": notice.id, "reason": reason})
        self._done_with(waiting, name)

    def _done_with(self, waiting: _Waiting, name: str) -> None:
        attempt = waiting.left.pop(name)
        if (channel := self.channels.get(name)) is not None:
            channel.tries.pop(waiting.notice.id, None)
            channel.under_way -= attempt.under_way
        self._unsaved[waiting.notice.id] = None
        if not waiting.left:
            del self._waiting[waiting.notice.id]

    def waiting(self, name: str) -> int:
        """Return how many notices a channel has not taken yet."""
        return len(self.channels[name].tries) if name in self.channels else 0

    def problems(self) -> list[str]:
        """Return a sentence for each channel that does not take notices."""
        return [
            f"notices by {name} are not sent since {utc(channel.failing.since)}: {channel.failing.reason};"
            f" {self.waiting(name)} waiting, {channel.lost} lost"
            for name, channel in self.channels.items()
            if channel.failing
        ]

    def shown(self) -> list[dict[str, Any]]:
        """Return how each channel does, as JSON values."""
        return [
            {
                "channel": name,
                "waiting": self.waiting(name),
                "sent": channel.sent,
                "lost": channel.lost,
                "failing_since": channel.failing and utc(channel.failing.since),
                "reason": channel.failing and channel.failing.reason,
            }
            for name, channel in self.channels.items()
        ]

    def take_unsaved(self) -> dict[str, str | None]:
        """Return what has to be stored of each notice that has changed; None: it is done with."""
        found = {id_: _stored(self._waiting.get(id_)) for id_ in self._unsaved} if self._unsaved else {}
        self._unsaved.clear()
        return found

    def note_all_unsaved(self) -> None:
        """Have all that waits stored once more."""
        self._unsaved.update(dict.fromkeys(self._waiting))

    def restore(self, stored: Iterable[tuple[str, str]], now: float) -> None:
        """Take in what was stored: it is due. What makes no sense is done with."""
        found = []
        for id_, text in stored:
            self._unsaved[id_] = None
            try:
                value = json.loads(text)
                notice = Notice(id_, _KINDS[value["event"]], float(value["at"]), dict(value["fields"]))
                found.append((notice, [name for name in value["left"] if name in self.channels]))
            except (ValueError, LookupError, TypeError, AttributeError):
                continue
        for notice, left in sorted(found, key=lambda one: one[0].at):
            if left and notice.id not in self._waiting:
                self._add(notice, left, now)
        self.wake()


def _first(channel: Channel) -> tuple[str, _Try] | None:
    """Return what a channel is to be given first, the oldest of what is due at the same time; None: nothing."""
    idle = ((id_, attempt) for id_, attempt in channel.tries.items() if not attempt.under_way)
    return min(idle, key=lambda one: one[1].due, default=None)


def _stored(waiting: _Waiting | None) -> str | None:
    if waiting is None:
        return None
    notice = waiting.notice
    return json.dumps({"event": notice.event, "at": notice.at, "fields": notice.fields, "left": list(waiting.left)})


def _told(event: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event's fields as JSON values: `until` is null where a person has to unlock the account."""
    told: dict[str, Any] = {
        name: value[:MAX_TEXT] if isinstance(value, str) else value for name, value in fields.items()
    }
    if event == LOCK and told.get("until") == "unlocked":
        told["until"] = None
    if event == WARNING:
        told["percent"] = 100 * told["count"] // told["max"]
    as_json: dict[str, Any] = json.loads(json.dumps(told, default=str))  # whatever is told of a lock can be stored
    return as_json
