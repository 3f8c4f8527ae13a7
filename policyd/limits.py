"""What is limited, and for whom: limits, overrides, and the name of the account that a request belongs to."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Literal

from policyd.actions import Action, parse_action
from policyd.sizes import exact_size, short_size
from policyd.wire import key

Count = Literal["messages", "recipients", "clients", "senders", "bytes"]

DISTINCT: tuple[Count, ...] = ("clients", "senders")
"""What is counted by how many different ones there are."""

OF_A_MESSAGE: tuple[Count, ...] = (*DISTINCT, "bytes")
"""What a message is looked at for when it is counted."""

MIN_PER_MESSAGE = 100
"""The least maximum of recipients in one message: RFC 5321 4.5.3.1.8 obliges a server to accept at least 100."""

MIN_PERIOD = 1.0
MAX_PERIOD = 31 * 86400.0

EXACT_MAX = 1000
"""Up to this maximum each event's time is kept; above it, events share slices of the window."""

SLICES = 60
"""A coarse window consists of this many slices, so that it is stretched by at most 1/60, and never shrunk."""

UNTIL_UNLOCKED = math.inf

_GLOB = re.compile(r"[*?\[]")

IDENTITY_ATTRIBUTES = (
    "sasl_username",
    "sasl_sender",
    "client_address",
    "client_name",
    "reverse_client_name",
    "helo_name",
    "sender",
    "server_address",
    "server_port",
    "ccert_subject",
    "ccert_issuer",
    "ccert_fingerprint",
    "ccert_pubkey_fingerprint",
    "policy_context",
)
"""Policy attributes that can tell who is sending: the same in all requests of one transaction."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A named maximum of recipients, messages or what messages have, in one message or in a sliding window."""

    name: str
    count: Count
    per: str
    """The window as the config writes it, `30m`; or `message`."""
    period: float | None
    """The window in seconds; None where the limit is per message."""
    max: int | None
    """The last number that passes; None: unlimited."""
    action: Action
    lock_for: float | None = None
    """Seconds for which exceeding it locks the account; UNTIL_UNLOCKED; None: it does not lock."""
    observe: bool = False
    """Only tell what would have been done."""

    @property
    def stops(self) -> bool:
        """Whether exceeding it keeps mail from its recipients."""
        return not self.observe and self.action.stops

    @property
    def slice(self) -> float:
        """Seconds of a window's memory that are told apart by nothing; 0.0 where each event keeps its own time."""
        if self.period is None or self.count in DISTINCT:
            return 0.0
        if self.max is not None and self.max <= EXACT_MAX and self.count != "bytes":
            return 0.0
        return self.period / SLICES

    def near(self, percent: int | None) -> int | None:
        """Return the least count that is so near to the maximum that somebody is to be warned.

        None where nobody is: a limit that keeps no mail back does no harm when it is exceeded.
        """
        if percent is None or self.max is None or self.period is None or not self.stops:
            return None
        return -(-self.max * percent // 100)

    @property
    def shown_max(self) -> str:
        """The maximum, as the config writes it; `None` where it is unlimited."""
        return str(self.max) if self.max is None or self.count != "bytes" else exact_size(self.max)

    def shown(self, count: int) -> str:
        """Return a count for a person to read."""
        return short_size(count) if self.count == "bytes" else str(count)

    @property
    def reason(self) -> str:
        """What exceeding this limit means, in words for a person."""
        where = "one message" if self.period is None else self.per
        return f"more than {self.shown_max} {self.count} in {where}"


Concerned = tuple[int, float, float, float]
"""What has to be known of a limit to count one more event in its window: the limit's place, which is the window's too,
the period, the last count of which nothing has to be said, the slice."""


class Maxima:
    """What each request wants to know of an account's limits, found out once."""

    __slots__ = ("bytes", "distinct", "looked_at", "messages", "recipients", "recipients_per_message")

    def __init__(self, limits: Sequence[Limit], warn_at: int | None = None) -> None:
        """`warn_at` is the percentage of a maximum at which a window's count is to be looked at more closely.

        It is put in the maximum's place, so that who sends little pays nothing for it.
        """
        maxima = [math.inf if limit.max is None else limit.max for limit in limits]
        self.recipients_per_message: float = min(
            (most for limit, most in zip(limits, maxima, strict=True) if limit.period is None), default=math.inf
        )
        """The least maximum of recipients in one message; infinite where there is none."""
        windows: list[tuple[Concerned, ...]] = [
            tuple(
                (index, limit.period, most if (near := limit.near(warn_at)) is None else near - 1, limit.slice)
                for index, (limit, most) in enumerate(zip(limits, maxima, strict=True))
                if limit.count in counts and limit.period is not None
            )
            for counts in (("recipients",), ("messages",), ("bytes",), DISTINCT)
        ]
        self.recipients, self.messages, self.bytes, self.distinct = windows
        """The windows of each."""
        counted = {limit.count for limit in limits}
        self.looked_at: tuple[Count, ...] = tuple(count for count in OF_A_MESSAGE if count in counted)
        """What a message is looked at for when it is counted; mostly empty."""


class Limits(tuple[Limit, ...]):
    """An account's limits in the config's order, and their maxima."""

    maxima: Maxima
    warn_at: int | None = None
    """The percentage of the maxima at which to warn; None: nobody is warned."""

    def __init__(self, limits: Iterable[Limit]) -> None:
        self.maxima = Maxima(self)

    @cached_property
    def of_windows(self) -> Limits:
        """The same limits in the same places, without a maximum of those that look at one message alone."""
        limits = Limits(replace(limit, max=None) if limit.period is None else limit for limit in self)
        return limits.warned_at(self.warn_at)

    def warned_at(self, percent: int | None) -> Limits:
        """Return the same limits, with a warning at so many percent of their maxima."""
        if percent is None:
            return self
        limits = Limits(self)
        limits.maxima, limits.warn_at = Maxima(limits, percent), percent
        return limits


HOUSE_RULES = Limits(
    (
        Limit(
            "recipients-per-message",
            "recipients",
            "message",
            None,
            5000,
            parse_action("REJECT 5.5.3 Too many recipients: at most {max} in one message"),
        ),
        Limit(
            "messages-per-half-hour",
            "messages",
            "30m",
            1800.0,
            500,
            parse_action(
                "REJECT 5.7.1 Account {account} is locked: more than {max} messages in {per}. Contact your provider"
            ),
            UNTIL_UNLOCKED,
        ),
    )
)
"""The limits that are in force where the config names none."""


@dataclass(frozen=True, slots=True)
class Override:
    """Other maxima for the accounts that match one of the shell globs."""

    accounts: tuple[str, ...]
    maxima: tuple[tuple[str, int | None], ...]
    """Pairs of a limit's name and its maximum; None: unlimited."""


class Rules:
    """The limits in force, and whom they concern.

    `limits_for` answers with the very same tuple for all accounts with the same limits.
    """

    def __init__(
        self,
        limits: tuple[Limit, ...] = HOUSE_RULES,
        overrides: tuple[Override, ...] = (),
        attributes: tuple[str, ...] = ("sasl_username",),
        lowercase: bool = True,
        observe: bool = False,
        warn_at: int | None = None,
    ) -> None:
        self.observe = observe
        """Locks that limits have made are not in force."""
        self.warn_at = warn_at
        """The percentage of a maximum at which to warn; None: nobody is warned."""
        known = limits if isinstance(limits, Limits) else Limits(limits)
        self.count_bytes = bool(known.maxima.bytes)
        """Whether there is a limit of bytes."""
        self._default = (len(overrides), known.warned_at(warn_at))
        self._by_name: dict[str, tuple[int, Limits]] = {}
        """For accounts that overrides name in full: the first such override's place, and the limits."""
        self._by_glob: list[tuple[int, Callable[[str], object], Limits]] = []
        for place, override in enumerate(overrides):
            overridden = _overridden(known, dict(override.maxima)).warned_at(warn_at)
            globs = []
            for name in (name.lower() if lowercase else name for name in override.accounts):
                if _GLOB.search(name):
                    globs.append(name)
                else:
                    self._by_name.setdefault(name, (place, overridden))
            if globs:
                self._by_glob.append((place, _matcher(globs), overridden))
        self.limits = known
        """The limits of accounts that no override names."""
        self.attributes = attributes
        """The attributes by which accounts are known."""
        self._attributes = tuple((name, key(name)) for name in attributes)
        self._lowercase = lowercase
        self.login_decides = attributes[:1] == ("sasl_username",)
        """Whether an account is known by the SASL user where there is one, and nothing else has a say."""

    def limits_for(self, account: str) -> Limits:
        """Return the limits of an account, in the config's order; the first override that matches wins."""
        place_by_name, limits = self._by_name.get(account, self._default)
        for place, matches, overridden in self._by_glob:
            if place > place_by_name:
                break
            if matches(account):
                return overridden
        return limits

    def account_of(self, attribute: Callable[[bytes], bytes]) -> str:
        r"""Name the account a request belongs to, or "" where it names none.

        `attribute` returns the value of the policy attribute with this key, b"" where there is none. Bytes that are no
        UTF-8 appear as `\xNN`, so that two different logins stay two accounts, and both can be typed at a terminal.
        """
        for name, wanted in self._attributes:
            value = attribute(wanted)
            if value:
                return self.account_known_by(name, value)
        return ""

    def account_known_by(self, attribute: str, value: bytes) -> str:
        """Name the account that is known by this value of an attribute."""
        text = value.decode(errors="backslashreplace")
        if self._lowercase:
            text = text.lower()
        if attribute == "sasl_username":
            if "=" not in text or not text.startswith(tuple(f"{name}=" for name, _ in self._attributes)):
                return text
        elif attribute == "client_address":
            text = client_network(text)
        return f"{attribute}={text}"

    def named(self, account: str) -> str:
        """Return an account's name as it is counted, from the name that a person gave."""
        name = account.lower() if self._lowercase else account
        attribute, _, address = name.partition("=")
        if attribute == "client_address" and attribute in (known for known, _ in self._attributes):
            return f"{attribute}={client_network(address)}"
        return name


def _overridden(limits: Limits, maxima: Mapping[str, int | None]) -> Limits:
    return Limits(replace(limit, max=maxima.get(limit.name, limit.max)) for limit in limits)


def _matcher(globs: list[str]) -> Callable[[str], object]:
    return re.compile("|".join(f"(?:{fnmatch.translate(glob)})" for glob in globs)).match


def client_network(address: str) -> str:
    """Return the address to count a client by: IPv6 hosts own a whole /64 and change within it at will."""
    try:
        client = ip_address(address)
    except ValueError:
        return address
    if isinstance(client, IPv6Address):
        if client.ipv4_mapped:
            return str(client.ipv4_mapped)
        return str(ip_network((int(client), 64), strict=False))
    return str(client)
