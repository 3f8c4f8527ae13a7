"""The sections of the config file: a value in, what it stands for out.

A reader returns None, or a part of what was asked for, only when it has noted a problem; it never raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar, get_args

from policyd.actions import Action, parse_action
from policyd.durations import parse_duration
from policyd.endpoints import parse_endpoint
from policyd.limits import (
    HOUSE_RULES,
    IDENTITY_ATTRIBUTES,
    MAX_PERIOD,
    MIN_PERIOD,
    UNTIL_UNLOCKED,
    Count,
    Limit,
    Override,
)
from policyd.maxima import Kind, check_minimum, maximum, maximum_or_unlimited, wanted_of
from policyd.yamlnodes import Value, clipped

T = TypeVar("T")

EndpointProblem = Callable[[str], "str | None"]
"""Tells what is wrong with an endpoint string; None: nothing."""

MAX_LOCK = 3660 * 86400.0
"""Seconds of the longest lock that ends by itself."""

MAX_SOCKET_PATH = 107
"""Bytes of a unix socket's path: sun_path of unix(7), less its closing NUL."""

MAX_PORT = 65535

MAX_REASON = 200
"""Characters of what Twisted says of an endpoint string, which may repeat the whole of it."""

MESSAGE = "message"
"""The `per` of a limit on a single message."""

DEFAULT_ATTRIBUTES: tuple[str, ...] = ("sasl_username",)
DEFAULT_LOWERCASE = True

DEFAULT_MAX_ACCOUNTS = 1_000_000
LEAST_MAX_ACCOUNTS = 1000
MOST_MAX_ACCOUNTS = 100_000_000

DEFAULT_HISTORY = 7 * 86400.0
LEAST_HISTORY = 60.0
MOST_HISTORY = 366 * 86400.0

DEFAULT_HISTORY_ROWS = 1_000_000
LEAST_HISTORY_ROWS = 1000
MOST_HISTORY_ROWS = 1_000_000_000

_ACCOUNT_KEYS = ("attributes", "lowercase")
_LIMIT_KEYS = ("count", "per", "max", "action", "lock", "observe")
_OVERRIDE_KEYS = ("accounts", "limits")
_COUNTS: dict[str, Count] = {count: count for count in get_args(Count)}
_NOT_PER_MESSAGE: dict[Count, str] = {
    "messages": "a message counts as just 1 message",
    "clients": "a message comes from just 1 client",
    "senders": "a message has just 1 sender",
    "bytes": "for one message there is Postfix's message_size_limit",
}
"""What is not limited in a single message, and why."""
_LIMIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_COUNT = "messages, recipients, clients, senders or bytes"
_PER = "message, or a duration from 1s to 31d such as 45s, 30m, 1h30m or 7d"
_ACTION = "an access(5) action such as 'REJECT 5.7.1 text'"
_LOCK = "until-unlocked, a duration from 1s to 3660d such as 24h, or no"
_ENDPOINT = "an endpoint string such as tcp:10045:interface=127.0.0.1"
_ENDPOINTS = "a list of endpoint strings such as [tcp:10045:interface=127.0.0.1]"
_ATTRIBUTES = "a list of policy attributes such as [sasl_username]"
_MAX_ACCOUNTS = f"a whole number from {LEAST_MAX_ACCOUNTS} to {MOST_MAX_ACCOUNTS}"
_HISTORY = "a duration from 1m to 366d such as 7d, or 0"
_HISTORY_ROWS = f"a whole number from {LEAST_HISTORY_ROWS} to {MOST_HISTORY_ROWS}"
_GLOB = "an account name or shell glob, in quotes"
_GLOBS = 'a list of account names or shell globs such as ["*@lists.example.com"]'
_MAXIMA = "a mapping of limits to their maxima"
_SOCKET = f"an absolute path of at most {MAX_SOCKET_PATH} bytes"


def optional(fields: dict[str, Value], name: str, read: Callable[[Value], T | None], default: T) -> T:
    """Read a key that may be absent or empty."""
    value = fields.get(name)
    if value is None or value.is_empty:
        return default
    found = read(value)
    return default if found is None else found


def required(
    parent: Value, fields: dict[str, Value], name: str, wanted: str, read: Callable[[Value], T | None]
) -> T | None:
    """Read a key that must be there."""
    if name in fields:
        return read(fields[name])
    parent.lacks(name, wanted)
    return None


def listen(value: Value, endpoint_problem: EndpointProblem) -> tuple[str, ...] | None:
    """Read the endpoints: what can be known of them without Twisted, then what `endpoint_problem` knows."""

    def endpoint(item: Value) -> str | None:
        text = item.text(_ENDPOINT)
        if text is None:
            return None
        kind = text.partition(":")[0]
        wanted = _ENDPOINT_WANTED[kind](text) if kind in _ENDPOINT_WANTED else None
        if wanted is None and not text.isprintable():
            wanted = _ENDPOINT
        if wanted is None and (problem := endpoint_problem(text)):
            wanted = f"an endpoint string that Twisted knows ({' '.join(problem.split())[:MAX_REASON]})"
        if wanted:
            item.refuse(wanted)
        return text

    return distinct(value, _ENDPOINTS, endpoint)


def _wanted_of_tcp(endpoint: str) -> str | None:
    port = parse_endpoint(endpoint).first("port")
    fits = re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= MAX_PORT
    return None if fits else f"a TCP port from 1 to {MAX_PORT}"


def _wanted_of_unix(endpoint: str) -> str | None:
    return None if _is_socket_path(parse_endpoint(endpoint).first("address")) else f"unix: and {_SOCKET}"


_ENDPOINT_WANTED = {"tcp": _wanted_of_tcp, "tcp6": _wanted_of_tcp, "ssl": _wanted_of_tcp, "unix": _wanted_of_unix}


def _is_path(text: str) -> bool:
    return text.startswith("/") and not text.endswith("/") and text.isprintable()


def _is_socket_path(text: str) -> bool:
    return _is_path(text) and len(text.encode()) <= MAX_SOCKET_PATH


def control(value: Value) -> str | None:
    """Read the path of the control socket."""
    return _text_that(value, _SOCKET, _is_socket_path)


def database(value: Value) -> str | None:
    """Read the path of the database, or `none`."""
    return _text_that(value, "none, or an absolute path", lambda text: text == "none" or _is_path(text))


def max_accounts(value: Value) -> int | None:
    """Read how many accounts are remembered."""
    number = value.whole_number(_MAX_ACCOUNTS)
    if number is not None and not LEAST_MAX_ACCOUNTS <= number <= MOST_MAX_ACCOUNTS:
        value.refuse(_MAX_ACCOUNTS)
    return number


def history(value: Value) -> float | None:
    """Read for how many seconds the history is kept; 0: there is none."""
    text = value.written or ""
    seconds = 0.0 if text == "0" or value.as_truth() is False else _seconds(text, LEAST_HISTORY, MOST_HISTORY)
    if seconds is None:
        value.refuse(_HISTORY)
    return seconds


def history_rows(value: Value) -> int | None:
    """Read how many messages the history has at the most."""
    number = value.whole_number(_HISTORY_ROWS)
    if number is not None and not LEAST_HISTORY_ROWS <= number <= MOST_HISTORY_ROWS:
        value.refuse(_HISTORY_ROWS)
    return number


def _text_that(value: Value, wanted: str, fits: Callable[[str], bool]) -> str | None:
    text = value.text(wanted)
    if text is not None and not fits(text):
        value.refuse(wanted)
    return text


def distinct(value: Value, wanted: str, read: Callable[[Value], str | None]) -> tuple[str, ...] | None:
    """Read a list that has items, and none twice."""
    items = value.items(wanted)
    if items is None:
        return None
    if not items:
        value.problem(f"want {wanted}, got an empty list")
    lines: dict[str, int] = {}
    for item in items:
        text = read(item)
        if text is None:
            continue
        if text in lines:
            item.problem(f"{clipped(text)} is given twice, first on line {lines[text]}")
        else:
            lines[text] = item.line
    return tuple(lines)


def account(value: Value) -> tuple[tuple[str, ...], bool] | None:
    """Read the attributes that name an account, and whether its name is lower-cased."""
    fields = value.fields(_ACCOUNT_KEYS)
    if fields is None:
        return None
    return (
        optional(fields, "attributes", _attributes, DEFAULT_ATTRIBUTES),
        optional(fields, "lowercase", Value.truth, DEFAULT_LOWERCASE),
    )


def _attributes(value: Value) -> tuple[str, ...] | None:
    def attribute(item: Value) -> str | None:
        name = item.text("the name of a policy attribute")
        if name is not None and name not in IDENTITY_ATTRIBUTES:
            item.unknown("attribute", name, IDENTITY_ATTRIBUTES)
        return name

    return distinct(value, _ATTRIBUTES, attribute)


def limits(value: Value | None) -> tuple[tuple[Limit, ...], dict[str, Kind] | None]:
    """Read the limits, and of each name its kind; None in place of names that cannot be known."""
    if value is None:
        return HOUSE_RULES, {limit.name: Kind(limit.count, limit.period is None) for limit in HOUSE_RULES}
    if value.is_empty:
        value.problem("empty: leave it out for the house rules, or write {} for no limits")
        return (), None
    entries = value.entries("a mapping of names to limits")
    if entries is None:
        return (), None
    found = []
    kinds = {}
    for name, entry in entries.items():
        if not _LIMIT_NAME.fullmatch(name):
            entry.problems.note(
                entry.key_line, entry.key, "want a name of at most 64 letters, digits, '.', '_' and '-'"
            )
        limit, kinds[name] = _limit(name, entry)
        if limit:
            found.append(limit)
    return tuple(found), kinds


def _limit(name: str, value: Value) -> tuple[Limit | None, Kind]:
    """Return a limit, and its kind."""
    fields = value.fields(_LIMIT_KEYS, f"a mapping with {', '.join(_LIMIT_KEYS[:4])}")
    if fields is None:
        return None, Kind()
    count: Count | None = required(value, fields, "count", _COUNT, _count)
    per = required(value, fields, "per", _PER, _per)
    kind = Kind(count, per == (MESSAGE, None))
    most = required(value, fields, "max", wanted_of(kind), lambda given: maximum(given, kind))
    action = required(value, fields, "action", _ACTION, _action)
    lock_for = optional(fields, "lock", _lock, None)
    observe = optional(fields, "observe", Value.truth, False)
    if kind.per_message and count in _NOT_PER_MESSAGE:
        fields["per"].refuse(f"a duration such as 30m ({_NOT_PER_MESSAGE[count]})")
    elif kind.per_message and most is not None:
        check_minimum(fields["max"], most)
    if lock_for is not None and action and not action.stops:
        fields["lock"].problem(f"a lock must refuse or hold, and {action.word} lets the mail pass")
    if count is None or per is None or most is None or action is None:
        return None, kind
    return Limit(name, count, *per, most, action, lock_for, observe), kind


def _count(value: Value) -> Count | None:
    found = _COUNTS.get(value.written or "")
    if found is None:
        value.refuse(_COUNT)
    return found


def _per(value: Value) -> tuple[str, float | None] | None:
    text = value.text(_PER)
    if text is None:
        return None
    if text == MESSAGE:
        return MESSAGE, None
    period = _seconds(text, MIN_PERIOD, MAX_PERIOD)
    if period is None:
        value.refuse(_PER)
    return text, period


def _seconds(text: str, least: float, most: float) -> float | None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return None
    return seconds if least <= seconds <= most else None


def _lock(value: Value) -> float | None:
    text = value.written
    if text == "no" or value.as_truth() is False:
        return None
    found = UNTIL_UNLOCKED if text == "until-unlocked" else _seconds(text or "", 1.0, MAX_LOCK)
    if found is None:
        value.refuse(_LOCK)
    return found


def _action(value: Value) -> Action | None:
    # An action without text, `450` or `no`, is no text to YAML; what is wrong with it is for parse_action to say.
    text = value.written
    if text is None:
        value.refuse(_ACTION)
        return None
    try:
        return parse_action(text)
    except ValueError as error:
        value.refuse(str(error).removeprefix("want "))
        return None


def overrides(value: Value, kinds: dict[str, Kind] | None) -> tuple[Override, ...]:
    """Read the overrides of limits of these kinds; None: nothing is known of them."""
    found = []
    for item in value.items("a list of overrides, each with accounts and limits") or ():
        fields = item.fields(_OVERRIDE_KEYS, "a mapping with accounts and limits")
        if fields is None:
            continue
        accounts = required(item, fields, "accounts", _GLOBS, _globs)
        maxima = required(item, fields, "limits", _MAXIMA, lambda limits: _maxima(limits, kinds))
        if accounts and maxima:
            found.append(Override(accounts, maxima))
    return tuple(found)


def _globs(value: Value) -> tuple[str, ...] | None:
    items = value.items(_GLOBS)
    if items is None:
        return None
    if not items:
        value.problem(f"want {_GLOBS}, got an empty list")
    return tuple(item.text(_GLOB) or "" for item in items)


def _maxima(value: Value, kinds: dict[str, Kind] | None) -> tuple[tuple[str, int | None], ...] | None:
    entries = value.entries(_MAXIMA)
    if entries is None:
        return None
    if not value.node.value:
        value.problem(f"want {_MAXIMA}, got an empty mapping")
    maxima = []
    for name, entry in entries.items():
        if kinds is not None and name not in kinds:
            entry.unknown("limit", name, kinds)
        maxima.append((name, maximum_or_unlimited(entry, (kinds or {}).get(name, Kind()))))
    return tuple(maxima)
