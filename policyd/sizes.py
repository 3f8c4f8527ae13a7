"""Numbers of bytes as people write them: `10k`, `500M`, `2G`. A k is 1024 bytes, an M 1024 k, and so on."""

from __future__ import annotations

import re

UNITS = {"k": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}

_SIZE = re.compile(r"([0-9]{1,18})([kKmMgGtT]?)")
_UNIT_OF = {letter: size for unit, size in UNITS.items() for letter in (unit.lower(), unit.upper())}


def parse_size(text: str) -> int:
    """Return the bytes that `text` names: a whole number, with k, M, G or T behind it, in either case, or without.

    Raises ValueError, whose message says what is wanted, when the text is none.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError("want a size such as 500M")
    return int(found[1]) * _UNIT_OF.get(found[2], 1)


def exact_size(size: int) -> str:
    """Return bytes as `parse_size` reads them, in the largest unit that goes: `524288000` is `500M`."""
    unit = max((unit for unit, one in UNITS.items() if size and not size % one), key=UNITS.__getitem__, default="")
    return f"{size // UNITS.get(unit, 1)}{unit}"


def short_size(size: int) -> str:
    """Return bytes for a person to read, rounded down to a tenth: `3355443` is `3.1M`."""
    unit = max((unit for unit, one in UNITS.items() if size >= one), key=UNITS.__getitem__, default="")
    if not unit:
        return str(size)
    tenths = 10 * size // UNITS[unit]
    return f"{tenths // 10}{unit}" if not tenths % 10 else f"{tenths // 10}.{tenths % 10}{unit}"
