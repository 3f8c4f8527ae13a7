"""Calls of the script that keeps the counts and locks of many daemons in one store, as bytes; and what it replies.

A call names what a transaction shall stand at, never a step, so that it can be repeated: what it says is true once.
All keys of a call bear the account in braces, so that a cluster of stores has them in one place. What counts and when
it leaves is the script's business, in shared_windows.lua and shared.lua.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from hashlib import blake2b, sha1
from pathlib import Path
from typing import NamedTuple

from policyd.limits import DISTINCT, SLICES, Limit, Limits

SCRIPT = b"\n".join((Path(__file__).parent / name).read_bytes() for name in ("shared_windows.lua", "shared.lua"))

MAX_NAME = 200
"""Bytes of an account's name in keys; a longer one is known by its digest."""

MOST = 2**53 - 1
"""The largest whole number that the script counts with."""

MAX_PACKED = 1000
"""Different limits whose part of a call is remembered."""

MAX_LENGTHS = 300
"""Different lengths of an account's keys for which that is remembered."""

_SHA = sha1(SCRIPT).hexdigest().encode()  # noqa: S324 -- it is how the store names a script
_BY_DIGEST = b"$7\r\nEVALSHA\r\n$40\r\n" + _SHA + b"\r\n"
_BY_TEXT = b"$4\r\nEVAL\r\n$%d\r\n%b\r\n" % (len(SCRIPT), SCRIPT)
_PLAIN = re.compile(f"[A-Za-z0-9@._+=-]{{1,{MAX_NAME}}}").fullmatch
_UNSAFE = re.compile(rb"[^A-Za-z0-9@._+=-]")
_MICRO = 1_000_000


class AwayError(Exception):
    """The store has not answered: why, in words."""


class Target(NamedTuple):
    """What a transaction shall stand at."""

    messages: int
    """0 or 1."""
    recipients: int
    size: int = 0
    """Bytes; 0: it is not known."""
    client: bytes = b""
    """What the client is known by, as `distinct.digest` has it; b"" where no limit counts clients."""
    sender: bytes = b""


class Over(NamedTuple):
    """A limit that the target would exceed, by its place among the account's limits."""

    place: int
    reached: int
    resets_in: float | None
    """Seconds until the window's oldest event leaves; None where there is none, or the limit is per message."""


class Outcome(NamedTuple):
    """What has become of a target."""

    lock: str | None
    """The lock in force, as JSON; None: there is none."""
    stop: Over | None
    """What keeps it back; then nothing was charged."""
    passing: tuple[Over, ...]
    """What is exceeded and lets it pass: not counted in its own window, but charged in the others."""
    near: tuple[tuple[int, int], ...]
    """The places and counts of windows that have now come near to their maximum."""


class Shown(NamedTuple):
    """What the store has of an account."""

    lock: str | None
    """As JSON; None: there is none."""
    windows: tuple[tuple[int, float | None] | None, ...]
    """Of each limit the count and the seconds until it resets; None where the limit is per message."""


CHARGED = Outcome(None, None, (), ())
"""Nothing has to be said."""


class Calls:
    """Packs the calls of one daemon. They are bytes as the store's protocol (RESP) has them; times are seconds."""

    def __init__(self, prefix: str, node: str) -> None:
        self._prefix = prefix.encode(errors="surrogatepass")
        self._node = _quoted(node.encode(errors="surrogatepass"))
        self._packed: dict[int, _Packed] = {}

    def key(self, account: str) -> bytes:
        """Return what the keys of an account begin with, whatever its name: no two names have the same."""
        if _PLAIN(account):
            return b"%b:{%b}" % (self._prefix, account.encode())
        name = account.encode(errors="surrogatepass")
        if len(name) > MAX_NAME:
            return b"%b:{%%%%%b}" % (self._prefix, blake2b(name, digest_size=16).hexdigest().encode())
        return b"%b:{%b}" % (self._prefix, _quoted(name) or b"%")

    def settle(
        self,
        account: str,
        limits: Limits,
        instance: bytes,
        target: Target,
        *,
        force: bool = False,
        ago: float = 0.0,
        now: float | None = None,
    ) -> bytes:
        """Have a transaction stand at a target.

        With `force` it is charged whatever it exceeds, and whoever is locked; it happened `ago` seconds before. Without
        an instance nothing is known of what was charged: the target is charged as it is. `now` is for tests alone.
        """
        key, packed = self.key(account), self._packed.get(id(limits)) or self._pack(limits)
        messages, recipients, size, client, sender = target
        counted, length = b"%d" % recipients, b"%d" % min(size, MOST)
        if instance and now is None and (force or not ago):
            when = _micros(ago) if force else b""
            return packed.usual(len(key), force=force) % (
                *packed.repeated * (key,),
                len(key) + len(self._node) + len(instance) + 4,
                key,
                self._node,
                instance,
                *((len(when), when) if force else ()),
                messages,
                len(counted),
                counted,
                len(length),
                length,
                len(client),
                client,
                len(sender),
                sender,
            )
        keys = packed.keys(key)
        if instance:
            keys.append(b"%b:t:%b:%b" % (key, self._node, instance))
        asked = (_micros(ago), b"%d" % force, b"%d" % messages, counted, length, client, sender)
        return _call(b"settle", keys, now, *asked, *packed.limits_told)

    def show(self, account: str, limits: Limits, now: float | None = None) -> bytes:
        """Ask for an account's lock and counts."""
        packed = self._packed.get(id(limits)) or self._pack(limits)
        return _call(b"show", packed.keys(self.key(account)), now, *packed.limits_told)

    def lock(self, account: str, text: str, seconds: float | None) -> bytes:
        """Put a lock in force, for ever where `seconds` is None. The reply is the text of the one before, or None."""
        last = b"" if seconds is None else b"%d" % max(1, math.ceil(seconds * 1000))
        return _call(b"lock", _keys(self.key(account)), None, text.encode(errors="surrogatepass"), last)

    def unlock(self, account: str) -> bytes:
        """Free an account and forget its counts. The reply is the text of the lock that was in force, or None."""
        return _call(b"unlock", _keys(self.key(account)), None)

    def reset(self, account: str) -> bytes:
        """Forget an account's counts."""
        return _call(b"reset", _keys(self.key(account)), None)

    def refill(
        self,
        account: str,
        limits: Limits,
        runs: Sequence[tuple[int, Sequence[float], Sequence[int | bytes]]],
        now: float | None = None,
    ) -> bytes:
        """Tell what this daemon has counted, after the store has lost its data; told again, it counts no more.

        `runs` are a limit's place, for how many seconds each has been there, and the events of each; where a limit
        counts clients or senders, what each is known by.
        """
        packed = self._packed.get(id(limits)) or self._pack(limits)
        told = [_runs(place, agos, events) for place, agos, events in runs]
        return _call(
            b"refill", packed.keys(self.key(account)), now, self._node, b"%d" % len(told), *told, *packed.limits_told
        )

    @staticmethod
    def evaluated(command: bytes) -> bytes:
        """Return the same call with the script's text, for a store that does not know the script yet."""
        return command.replace(_BY_DIGEST, _BY_TEXT, 1)

    def _pack(self, limits: Limits) -> _Packed:
        if len(self._packed) >= MAX_PACKED:
            self._packed.clear()
        packed = self._packed[id(limits)] = _Packed(limits)
        return packed


class _Packed:
    """The part of a call that is the same for all accounts with the same limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        """Kept, so that its id is no other's."""
        self.ends = (b":a", b":l", *(_window(limit) for limit in limits if limit.period is not None))
        """What the keys that all calls have end with."""
        self.repeated = len(self.ends)
        self.limits_told = tuple(_told(limit, limits.warn_at) for limit in limits)
        self._usual: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})

    def keys(self, key: bytes) -> list[bytes]:
        """Return the keys that all calls have."""
        return [key + end for end in self.ends]

    def usual(self, length: int, *, force: bool) -> bytes:
        """Return the usual `settle` of an account whose keys begin with so many bytes, with places for the rest."""
        known = self._usual[force].get(length)
        if known is None:
            if len(self._usual[force]) >= MAX_LENGTHS:
                self._usual[force].clear()
            known = self._usual[force][length] = self._settle(length, force=force)
        return known

    def _settle(self, length: int, *, force: bool) -> bytes:
        keys = [b"$%d\r\n%%b%b\r\n" % (length + len(end), end) for end in self.ends]
        record = b"$%d\r\n%b:t:%b:%b\r\n"
        target = b"$1\r\n%d\r\n" + 4 * b"$%d\r\n%b\r\n"
        fixed = [_bulk(b"settle"), _bulk(b""), b"$%d\r\n%b\r\n" if force else _bulk(b"0"), _bulk(b"%d" % force)]
        last = [_bulk(text) for text in self.limits_told]
        number = 3 + len(keys) + 1 + len(fixed) + 5 + len(last)
        head = b"*%d\r\n%b%b" % (number, _BY_DIGEST, _bulk(b"%d" % (len(keys) + 1)))
        return b"".join((head, *keys, record, *fixed, target, *last))


def outcome(reply: object) -> Outcome:
    """Return what has become of a target. Raises ValueError for what the script cannot have said."""
    if reply == 0:
        return CHARGED
    if not isinstance(reply, bytes):
        raise ValueError(f"the store's reply to settle is {reply!r:.100}")  # noqa: TRY004 -- it is not the caller's
    try:
        told = json.loads(reply)
        lock = told.get("lock")
        stop = _over(*told["stop"]) if "stop" in told else None
        passing = tuple([_over(*over) for over in told.get("passing", ())])
        near = tuple([(int(place), int(count)) for place, count in told.get("near", ())])
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"the store's reply to settle is {reply!r:.100}") from None
    return Outcome(None if lock is None else str(lock), stop, passing, near)


def shown(reply: object) -> Shown:
    """Return what the store has of an account. Raises ValueError for what the script cannot have said."""
    if not isinstance(reply, list) or not len(reply) % 2 or not all(isinstance(part, int) for part in reply[1:]):
        raise ValueError(f"the store's reply to show is {reply!r:.100}")
    pairs = zip(reply[1::2], reply[2::2], strict=True)
    windows = [None if count < 0 else (count, None if resets < 0 else resets / _MICRO) for count, resets in pairs]
    return Shown(lock_text(reply[0]), tuple(windows))


def lock_text(reply: object) -> str | None:
    """Return a lock's text that was replied, None for none. Raises ValueError for what the script cannot have said."""
    if reply is None or isinstance(reply, str):
        return reply
    if isinstance(reply, bytes):
        return reply.decode(errors="surrogatepass")
    raise ValueError(f"the store's lock is {reply!r:.100}")


def _over(place: int, reached: int, resets_in: int) -> Over:
    return Over(int(place), int(reached), None if resets_in < 0 else resets_in / _MICRO)


def _quoted(name: bytes) -> bytes:
    return _UNSAFE.sub(lambda found: b"%%%02X" % found[0][0], name)


def _window(limit: Limit) -> bytes:
    kind = "d" if limit.count in DISTINCT else "w"
    return f":{kind}:{limit.name}:{limit.count}".encode()


def _told(limit: Limit, warn_at: int | None) -> bytes:
    """Return a limit as the script reads it: shared_windows.lua has the order."""
    near = limit.near(warn_at)
    numbers = (
        round((limit.period or 0.0) * _MICRO),
        MOST if limit.max is None else min(limit.max, MOST),
        MOST if near is None else min(near, MOST),
        SLICES if limit.slice else 0,
    )
    told = " ".join(str(number) for number in numbers)
    return f"{limit.count[0]}{limit.stops:d} {told} {limit.name}:{limit.count}".encode()


def _keys(key: bytes) -> list[bytes]:
    return [key + b":a", key + b":l"]


def _micros(seconds: float) -> bytes:
    return b"%d" % round(seconds * _MICRO)


def _runs(place: int, agos: Sequence[float], events: Sequence[int | bytes]) -> bytes:
    pairs = (b"%b %b" % (_micros(ago), _event(what)) for ago, what in zip(agos, events, strict=True))
    return b" ".join((b"%d" % place, *pairs))


def _event(what: int | bytes) -> bytes:
    return what.hex().encode() if isinstance(what, bytes) else b"%d" % what


def _bulk(text: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text)


def _call(operation: bytes, keys: Sequence[bytes], now: float | None, *arguments: bytes) -> bytes:
    """Return a call by the script's digest."""
    parts = (b"%d" % len(keys), *keys, operation, b"" if now is None else _micros(now), *arguments)
    return b"*%d\r\n%b%b" % (2 + len(parts), _BY_DIGEST, b"".join(map(_bulk, parts)))
