"""The calls of the control socket: what each takes and gives, whoever carries it.

It is documented in docs/control.md. What may take long comes as text in pieces, with a bounded piece of work for each.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, NamedTuple, Protocol, TypeVar, get_args

from policyd.allowing import Wanted as WantedAllowance
from policyd.config import ConfigError
from policyd.desk import Desk
from policyd.durations import format_duration, parse_duration
from policyd.history import VERDICTS, Message, NoHistoryError, Wanted
from policyd.limits import UNTIL_UNLOCKED
from policyd.locks import utc
from policyd.maxima import MAX_MAX, UNLIMITED
from policyd.sections import MAX_LOCK
from policyd.sizes import parse_size
from policyd.survey import Json, Sort

MAX_NAME = 64 * 1024
"""Characters of an account's name: a line of the policy protocol, each byte of it written as `\\xNN`."""

MAX_REASON = 300
"""Characters of a person's reason for a lock or an allowance."""

MAX_ACCOUNTS = 100_000
"""Accounts that are listed at most, by what they send."""

MAX_LOCKED = 10**9
"""Locks that are listed where nobody says how many: all."""

MAX_DATE = 64
"""Characters of a date that are looked at."""

UNLOCKS = 10
"""Accounts that are freed in one piece: each is a line of the log."""

MAX_MESSAGES = 100_000
"""Messages of the history in one answer."""

MAX_QUEUE_IDS = 100
"""Queue ids in one question."""

QUEUE_ORDERS = ("hold", "release", "delete")
"""What can be done to messages in Postfix's queue."""

MAX_QUEUED = 10**9
"""Messages, or recipients of them, of which one order is told at most."""

MAX_SINCE = 1e9
"""Seconds."""

MESSAGES = 100
"""Messages of the history in one piece of an answer's text."""

NAMES = 1000
"""Names in one piece of an answer's text."""

PROBLEMS = 200
"""Problems of a config in one piece of an answer's text."""

T = TypeVar("T")

_SORTS: tuple[Sort, ...] = get_args(Sort)

Find = Callable[[Wanted], Awaitable[list[Message]]]
"""Finds messages of the history; raises NoHistoryError, and OSError where it cannot be read."""

Reload = Callable[[str, "int | None"], Awaitable[tuple[list[str], list[str]]]]
"""Reads the config anew, for a user of this name and id; tells what changed and what takes a restart to change.

Raises ConfigError.
"""


class NotifyDesk(Protocol):
    """What there is to ask of notices."""

    def shown(self) -> list[Json]:
        """Return how each channel does."""

    def test(self, by: str) -> Awaitable[list[Json]]:
        """Send a test by each channel; return what came of it."""


class RefusedError(Exception):
    """The daemon says no; the message says why in plain words."""

    def __init__(self, message: str, status: int = 400, problems: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.problems = problems

    def text(self) -> Iterator[str]:
        """Yield the text of the answer, in pieces."""
        yield json.dumps({"error": str(self)})[:-1]
        if self.problems:
            yield ', "problems": '
            yield from list_text([str(problem) for problem in part] for part in _parts(self.problems, PROBLEMS))
        yield "}"


class Caller(NamedTuple):
    """Who gives an order: the name and the id of a user of this machine."""

    name: str
    uid: int | None


NOBODY = Caller("", None)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the API: what was given, by whom, when."""

    values: Json
    caller: Caller
    """Who gives an order; a question may be anybody's."""
    now: float

    def text(self, name: str, most: int = MAX_NAME) -> str:
        """Return a value that must be a text with something in it."""
        value = self.values.get(name)
        if not isinstance(value, str) or not value:
            raise RefusedError(f"{name} is missing")
        if len(value) > most:
            raise RefusedError(f"{name} is longer than {most} characters")
        return value

    def number(self, name: str, default: float | None, most: float) -> float | None:
        """Return a value that may be a number."""
        value = self.values.get(name)
        if value is None:
            return default
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1
        if not 0 <= number <= most:
            raise RefusedError(f"{name}: want a number from 0 to {most:g}")
        return number

    def whole_number(self, name: str, default: int, most: int) -> int:
        """Return a value that may be a whole number."""
        number = self.number(name, default, most)
        if number is None or number != int(number):
            raise RefusedError(f"{name}: want a whole number")
        return int(number)


class Api:
    """The calls, and what each does at the desk."""

    def __init__(self, desk: Desk, reload: Reload, find: Find | None = None, notify: NotifyDesk | None = None) -> None:
        self._desk = desk
        self._reload = reload
        self._find = find
        self._notify = notify
        self._calls: dict[tuple[bytes, bytes], Callable[[Call], Any]] = {
            (b"GET", b"/status"): self._status,
            (b"GET", b"/accounts"): self._accounts,
            (b"GET", b"/locked"): self._locked,
            (b"GET", b"/history"): self._history,
            (b"POST", b"/lock"): self._lock,
            (b"POST", b"/unlock"): self._unlock,
            (b"POST", b"/reset"): self._reset,
            (b"POST", b"/queue-order"): self._queue_order,
            (b"POST", b"/reload"): self._reload_config,
            (b"GET", b"/allowances"): self._allowances,
            (b"POST", b"/allow"): self._allow,
            (b"POST", b"/disallow"): self._disallow,
            (b"GET", b"/notify"): self._notices,
            (b"POST", b"/notify-test"): self._test_notices,
        }

    def answer(self, method: bytes, path: bytes, call: Call) -> Any:
        """Return what a call comes to: a JSON value, or the text of one in pieces, or an awaitable of either.

        Raises RefusedError, as awaiting it may.
        """
        do = self._calls.get((method, path))
        if do is None:
            raise RefusedError("there is no such call", 404)
        return do(call)

    def _status(self, call: Call) -> Json:
        if "account" in call.values:
            return self._desk.account(call.text("account"), call.now)
        return self._desk.status(call.now)

    def _accounts(self, call: Call) -> Iterator[str]:
        sort = call.values.get("sort", "messages")
        if sort not in _SORTS:
            raise RefusedError(f"sort: want one of {', '.join(_SORTS)}")
        most = call.whole_number("n", 20, MAX_ACCOUNTS)
        return list_text(self._desk.survey(call.now, sort, most, call.number("over", None, 1e6)))

    def _locked(self, call: Call) -> Iterator[str]:
        return list_text(self._desk.locks(call.now, call.whole_number("n", MAX_LOCKED, MAX_LOCKED)))

    async def _history(self, call: Call) -> Iterator[str]:
        wanted, most = self._wanted(call)
        if self._find is None:
            raise RefusedError("no history is kept")
        try:
            found = await self._find(wanted)
        except NoHistoryError as error:
            raise RefusedError(str(error)) from error
        except OSError as error:
            raise RefusedError(f"the history cannot be read: {error}", 503) from error
        return _messages_text(found[:most], more=len(found) > most)

    def _wanted(self, call: Call) -> tuple[Wanted, int]:
        """Return which messages are asked for, one more than are to be shown."""
        values = call.values
        most, since = call.whole_number("n", 1000, MAX_MESSAGES), call.number("since", None, MAX_SINCE)
        ids, verdict = values.get("queue_id", []), values.get("verdict")
        if verdict is not None and verdict not in VERDICTS:
            raise RefusedError(f"verdict: want one of {', '.join(VERDICTS)}")
        if len(ids) > MAX_QUEUE_IDS:
            raise RefusedError(f"queue_id: want at most {MAX_QUEUE_IDS} of them")
        if not ids and "account" not in values:
            raise RefusedError("account is missing")
        account = self._desk.known(call.text("account"), call.now) if "account" in values else None
        earliest = 0.0 if since is None else self._desk.wall(call.now) - since
        return Wanted(account, tuple(ids), earliest, verdict, most + 1), most

    def _lock(self, call: Call) -> Json:
        account, reason = call.text("account"), call.text("reason", MAX_REASON)
        if not reason.strip():
            raise RefusedError("reason is missing")
        duration, hold = call.values.get("for"), call.values.get("hold", False)
        if not isinstance(hold, bool):
            raise RefusedError("hold: want true or false")
        seconds = UNTIL_UNLOCKED
        if duration is not None:
            try:
                seconds = parse_duration(str(duration))
            except ValueError as error:
                raise RefusedError(f"for: {error}") from error
            if seconds > MAX_LOCK:
                raise RefusedError(f"for: want at most {format_duration(MAX_LOCK)}")
        return self._desk.lock(account, reason, seconds, call.caller.name, call.now, hold=hold, uid=call.caller.uid)

    def _unlock(self, call: Call) -> Iterator[str]:
        names = call.values.get("accounts")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise RefusedError("accounts: want a list of names")
        return self._unlocking(names, call)

    def _unlocking(self, names: list[str], call: Call) -> Iterator[str]:
        unlocked: list[str] = []
        free: list[str] = []
        held: list[str] = []
        for part in _parts(names, UNLOCKS):
            done = self._desk.unlock(part, call.caller.name, call.now, call.caller.uid)
            unlocked += done["unlocked"]
            free += done["free"]
            held += done["held"]
            yield ""
        yield '{"unlocked": '
        yield from list_text(_parts(unlocked, NAMES))
        yield ', "free": '
        yield from list_text(_parts(free, NAMES))
        yield ', "held": '
        yield from list_text(_parts(held, NAMES))
        yield "}"

    def _reset(self, call: Call) -> Json:
        return self._desk.reset(call.text("account"), call.caller.name, call.now, call.caller.uid)

    def _queue_order(self, call: Call) -> Json:
        account, order = call.text("account"), call.values.get("order")
        if order not in QUEUE_ORDERS:
            raise RefusedError(f"order: want one of {', '.join(QUEUE_ORDERS)}")
        done = {"order": order, **{name: call.values.get(name) for name in ("messages", "recipients")}}
        for name in ("messages", "recipients"):
            if type(done[name]) is not int or not 0 <= done[name] <= MAX_QUEUED:
                raise RefusedError(f"{name}: want a whole number from 0 to {MAX_QUEUED}")
        return self._desk.queue_ordered(account, done, call.caller.name, call.now, call.caller.uid)

    def _allowances(self, call: Call) -> Iterator[str]:
        return list_text(self._desk.allowances.listed(call.now))

    def _allow(self, call: Call) -> Json:
        desk, wanted = self._desk.allowances, _allowance(call)
        wanted = replace(wanted, account=desk.name(wanted.account, call.now))
        if problem := desk.objection(wanted, call.now):
            raise RefusedError(problem)
        return desk.allow(wanted, call.caller.name, call.caller.uid, call.now)

    def _disallow(self, call: Call) -> Json:
        desk = self._desk.allowances
        name = desk.name(call.text("account"), call.now)
        limit = None if call.values.get("limit") is None else call.text("limit")
        if limit is not None and (problem := desk.unknown_limit(name, limit)):
            raise RefusedError(problem)
        return desk.disallow(name, limit, call.caller.name, call.caller.uid, call.now)

    def _notices(self, _call: Call) -> Json:
        return {"channels": self._notify.shown() if self._notify else []}

    async def _test_notices(self, call: Call) -> Json:
        return {"channels": await self._notify.test(call.caller.name) if self._notify else []}

    async def _reload_config(self, call: Call) -> Json:
        try:
            changed, restart = await self._reload(call.caller.name, call.caller.uid)
        except ConfigError as error:
            raise RefusedError("the config has errors; the old one stays in force", 422, error.problems) from error
        return {"changed": changed, "needs_restart": restart}


def _messages_text(messages: Sequence[Message], *, more: bool) -> Iterator[str]:
    yield '{"messages": '
    yield from list_text([message_shown(message) for message in part] for part in _parts(messages, MESSAGES))
    yield f', "more": {json.dumps(more)}}}'


def message_shown(message: Message) -> Json:
    """Return a message of the history for the desk."""
    times = {name: utc(getattr(message, name), "microseconds") for name in ("began", "at")}
    return {**message._asdict(), **times}


def _allowance(call: Call) -> WantedAllowance:
    """Return what a person wants to allow."""
    account, limit = call.text("account"), call.text("limit")
    most = call.values.get("max")
    size = _size(most)
    if most == UNLIMITED:
        most = None
    elif size:
        most = size
    elif type(most) is not int or not 1 <= most <= MAX_MAX:
        raise RefusedError(f"max: want a whole number from 1 to {MAX_MAX}, or {UNLIMITED}")
    duration, date = call.values.get("for"), call.values.get("until")
    if (duration is None) == (date is None):
        raise RefusedError("want either for or until; what is permanent is an override in the config")
    reason = call.text("reason", MAX_REASON).strip() if call.values.get("reason") else None
    seconds = None if duration is None else _seconds(duration)
    until = None if date is None else _date(date)
    return WantedAllowance(account, limit, most, seconds, until, reason or None, in_bytes=bool(size))


def _size(text: Any) -> int | None:
    """Return the bytes of a size with a unit."""
    try:
        return parse_size(text) if isinstance(text, str) and not text.isdigit() else None
    except ValueError:
        return None


def _seconds(duration: Any) -> float:
    try:
        return parse_duration(str(duration))
    except ValueError as error:
        raise RefusedError(f"for: {error}") from error


def _date(text: Any) -> float:
    """Return a date of ISO 8601 in seconds since the epoch."""
    try:
        date = datetime.fromisoformat(str(text)[:MAX_DATE].replace("Z", "+00:00"))
        if date.tzinfo is not None:
            return date.astimezone(timezone.utc).timestamp()
    except (ValueError, OverflowError):
        pass
    raise RefusedError("until: want a date with its offset such as 2026-12-01T17:00:00+00:00")


def list_text(parts: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Yield the text of a JSON list that comes in parts."""
    before = "["
    for part in parts:
        text = json.dumps(part)[1:-1]
        yield before + text if text else ""
        before = ", " if text else before
    yield "[]" if before == "[" else "]"


def _parts(whole: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (whole[start : start + size] for start in range(0, len(whole), size))
