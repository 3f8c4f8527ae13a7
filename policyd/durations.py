"""Lengths of time as people write them: `45s`, `30m`, `1h30m`, `7d`."""

from __future__ import annotations

import re

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

_DURATION = re.compile(r"(?:[0-9]{1,9}[smhd])+")
_TERM = re.compile(r"([0-9]+)([smhd])")


def parse_duration(text: str) -> float:
    """Return the seconds that `text` names: whole numbers of s, m, h, d, or a sum of them such as `1h30m`.

    Raises ValueError, whose message says what is wanted, when the text is none or comes to nothing.
    """
    if not _DURATION.fullmatch(text) or not (seconds := sum(int(n) * SECONDS[unit] for n, unit in _TERM.findall(text))):
        raise ValueError("want a duration such as 45s, 30m, 1h30m or 7d")
    return float(seconds)


def format_duration(seconds: float) -> str:
    """Return whole seconds as `parse_duration` reads them: `5400.0` is `1h30m`."""
    rest = int(seconds)
    terms = []
    for unit, size in reversed(SECONDS.items()):
        number, rest = divmod(rest, size)
        if number:
            terms.append(f"{number}{unit}")
    return "".join(terms) or "0s"
