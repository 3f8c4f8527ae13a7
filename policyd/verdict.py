"""The answer to a request, and why."""

from __future__ import annotations

from dataclasses import dataclass

from policyd.actions import DUNNO, Effect
from policyd.wire import reply


@dataclass(frozen=True, slots=True)
class Verdict:
    """What Postfix is told, and what it follows from."""

    action: str
    """The whole action: `REJECT 5.7.1 …`."""
    word: str
    """The action without its text: `REJECT`, or `452`."""
    effect: Effect
    reply: bytes
    """The action as it goes over the wire."""
    limit: str | None = None
    """The limit that was exceeded, None for a lock and where nothing is."""
    count: int | None = None
    """What would have been counted."""
    max: int | None = None
    by_lock: bool = False


def verdict(
    action: str,
    effect: Effect,
    *,
    limit: str | None = None,
    count: int | None = None,
    maximum: int | None = None,
    by_lock: bool = False,
) -> Verdict:
    """Make a verdict of an action."""
    return Verdict(action, action.partition(" ")[0], effect, reply(action), limit, count, maximum, by_lock)


PASS = verdict(DUNNO, Effect.PASSED)
"""Nothing is exceeded."""
