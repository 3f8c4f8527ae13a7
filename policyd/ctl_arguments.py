"""What is typed behind a command of policyctl: text in, its value out, or what would have been wanted."""

from __future__ import annotations

import argparse
import os
import re

from policyd.durations import parse_duration

LEAST_EVERY, MOST_EVERY = 0.1, 3600
"""Seconds between two looks of `top`."""


def path(text: str) -> str:
    """Return a path as it was typed; raises ArgumentTypeError for an empty one."""
    if not text:
        raise argparse.ArgumentTypeError("want a path that is not empty")
    return text


def typed(text: str) -> str:
    r"""Return what was typed as the daemon names it: bytes that are no UTF-8 appear as `\xNN`."""
    typed = os.fsencode(text).decode(errors="backslashreplace")
    if not typed:
        raise argparse.ArgumentTypeError("want a text that is not empty")
    return typed


def reason(text: str) -> str:
    """Return a text that says something, as `typed` does. Raises ArgumentTypeError."""
    if not text.strip():
        raise argparse.ArgumentTypeError("want a text that is not empty")
    return typed(text)


def percent(text: str) -> int:
    """Return a percentage, with or without its sign. Raises ArgumentTypeError."""
    if not re.fullmatch(r"[0-9]{1,3}%?", text) or (share := int(text.rstrip("%"))) > 100:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"want a percentage from 0 to 100 such as 80%, got {text!r}")
    return share


def number(text: str) -> int:
    """Return a whole number above 0. Raises ArgumentTypeError."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"want a whole number above 0, got {text!r}")
    return int(text)


def duration(text: str) -> str:
    """Return a length of time as it was typed, if it is one. Raises ArgumentTypeError."""
    try:
        parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, got {text!r}") from None
    return text


def network(text: str) -> str:
    """Return an address or a network as it was typed, if it is one. Raises ArgumentTypeError."""
    from policyd import ctl_clients  # noqa: PLC0415 -- ipaddress is slow to load, and seldom needed

    try:
        ctl_clients.network(text)
    except ValueError:
        problem = f"want an address or network such as 192.0.2.7 or 192.0.2.0/24, got {text!r}"
        raise argparse.ArgumentTypeError(problem) from None
    return text


def seconds(text: str) -> float:
    """Return the seconds between two looks of `top`. Raises ArgumentTypeError."""
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", text) or not LEAST_EVERY <= float(text) <= MOST_EVERY:
        raise argparse.ArgumentTypeError(f"want seconds from {LEAST_EVERY} to {MOST_EVERY} such as 2, got {text!r}")
    return float(text)


def most(text: str) -> int:
    """Return a whole number, 0 included. Raises ArgumentTypeError."""
    return 0 if text == "0" else number(text)
