"""Reading the maxima of limits from the config file: whole numbers or sizes, and between which bounds they lie."""

from __future__ import annotations

from dataclasses import dataclass

from policyd.distinct import MAX_VALUES
from policyd.limits import MIN_PER_MESSAGE, Count
from policyd.sizes import parse_size
from policyd.yamlnodes import Value

MAX_MAX = 10**12
"""The largest maximum; whoever means more means unlimited."""

MAX_BYTES = 1024**5
"""The same of bytes."""

UNLIMITED = "unlimited"
"""The maximum of an override that takes a limit away."""

_NUMBER = "a whole number above 0"
_WANTED: dict[Count | None, str] = {"bytes": "a size above 0 such as 500M or 2G"}
_AT_MOST: dict[Count | None, tuple[int, str]] = {
    "bytes": (MAX_BYTES, "a size of at most 1024T"),
    "clients": (MAX_VALUES, f"a whole number of at most {MAX_VALUES} clients"),
    "senders": (MAX_VALUES, f"a whole number of at most {MAX_VALUES} senders"),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """What the maxima of a limit depend on."""

    count: Count | None = None
    """None where that is not known."""
    per_message: bool = False


def wanted_of(kind: Kind) -> str:
    """Return what a maximum has to be, in words."""
    return _WANTED.get(kind.count, _NUMBER)


def maximum(value: Value, kind: Kind) -> int | None:
    """Read the maximum of a limit."""
    return _bounded(value, kind, wanted_of(kind))


def maximum_or_unlimited(value: Value, kind: Kind) -> int | None:
    """Read the maximum of an override; None: unlimited."""
    if value.written == UNLIMITED:
        return None
    most = _bounded(value, kind, f"{wanted_of(kind)}, or {UNLIMITED}")
    if most is not None and kind.per_message:
        check_minimum(value, most)
    return most


def too_much(count: Count | None, most: int) -> str | None:
    """Return what is wanted in place of a maximum that is too large; None: it is not."""
    largest, wanted = _AT_MOST.get(count, (MAX_MAX, f"a whole number of at most {MAX_MAX}"))
    return wanted if most > largest else None


def check_minimum(value: Value, most: int) -> None:
    """Refuse a maximum of recipients in one message that a server must not have."""
    if 0 < most < MIN_PER_MESSAGE:
        value.refuse(f"at least {MIN_PER_MESSAGE} recipients per message (RFC 5321 4.5.3.1.8)")


def _bounded(value: Value, kind: Kind, wanted: str) -> int | None:
    number = _size(value) if kind.count in ("bytes", None) else None
    if number is None:
        number = value.whole_number(wanted)
    if number is not None and number < 1:
        value.refuse(wanted)
    elif number is not None and (at_most := too_much(kind.count, number)):
        value.refuse(at_most)
    return number


def _size(value: Value) -> int | None:
    """Return a size that is more than a number; where it is not known what is counted, it may be one of bytes."""
    text = value.written or ""
    try:
        return None if text.isdigit() else parse_size(text)
    except ValueError:
        return None
