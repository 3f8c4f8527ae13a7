"""policyctl status --nagios: the daemon's state as a monitoring plugin tells it, by the Nagios plugin guidelines.

One line on stdout, whatever happens: the state, why, and after a `|` the figures. A daemon that does not run or does
not answer is CRITICAL, for then mail is not limited; UNKNOWN is said where the question could not be put, such as for
lack of permission on the socket.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from policyd.ctl_client import REFUSED, USAGE, Ask, ClosedToUsError, CtlError, Question, Told
from policyd.ctl_layout import Json
from policyd.words import printable

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3
"""Exit statuses of a plugin."""

STATES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")

MAX_TEXT = 500
"""Characters before the figures: NRPE passes on 1 KB of older plugins' output, and figures cut in two are none."""


def run(args: argparse.Namespace, asked: Ask) -> Told:
    """Return the line, and the plugin's exit status."""
    state, line = _judged(args, asked)
    return Told([line], state)


def wrong_usage() -> int:
    """Print the line of a check that is configured wrongly, and return its exit status."""
    print(_line(UNKNOWN, "wrong usage, see policyctl status --help"))
    return UNKNOWN


def _judged(args: argparse.Namespace, asked: Ask) -> tuple[int, str]:
    if args.account is not None or args.json:
        return UNKNOWN, _line(UNKNOWN, "--nagios takes no ACCOUNT and no --json")
    try:
        return judged(asked(Question("/status")), args.warning_locked, args.critical_locked)
    except CtlError as error:
        unknown = isinstance(error, ClosedToUsError) or error.status in (USAGE, REFUSED)
        state, reason = UNKNOWN if unknown else CRITICAL, " ".join(error.lines).removeprefix("policyctl: ")
    except (LookupError, TypeError, ValueError, AttributeError):
        state, reason = UNKNOWN, "the daemon's answer is not what policyctl expects: is policyd of the same version?"
    return state, _line(state, reason)


def judged(status: Json, warning: int | None, critical: int | None) -> tuple[int, str]:
    """Return the plugin's exit status and line for a daemon's state, and the locks that are just not too many."""
    locked, problems = status["locked"], status["problems"]
    reasons = []
    state = OK
    if problems:
        state = WARNING
    for at, most in ((WARNING, warning), (CRITICAL, critical)):
        if most is not None and locked > most:
            state = at
            reasons = [f"{locked} locked, more than {most}"]
    reasons += problems or ([] if reasons else [f"{locked or 'none'} locked of {_accounts(status['accounts'])}"])
    figures = " ".join(_figures(status, warning, critical))
    return state, f"{_line(state, '; '.join(reasons))}| {figures}"


def _accounts(number: int) -> str:
    return f"{number} account" if number == 1 else f"{number} accounts"


def _line(state: int, text: str) -> str:
    """Return what stands before the figures, which begin at the first `|`."""
    text = printable(text).replace("|", "/")
    if len(text) > MAX_TEXT:
        text = text[: MAX_TEXT - 1] + "…"
    return f"POLICYD {STATES[state]} - {text}"


def _figures(status: Json, warning: int | None, critical: int | None) -> Iterator[str]:
    """Yield 'label'=value[UOM];[warn];[crit];[min];[max]; counters, which a restart sets to 0, are marked with `c`."""
    yield f"locked={int(status['locked'])};{_threshold(warning)};{_threshold(critical)};0;"
    yield f"accounts={int(status['accounts'])};;;0;"
    yield f"connections={int(status['connections'])};;;0;"
    yield f"problems={len(status['problems'])};;;0;"
    yield f"uptime={int(status['uptime'])}s;;;0;"
    yield f"requests={sum(status['requests'].values())}c;;;0;"
    for word, number in status["answers"].items():
        yield f"answers_{_label(word)}={int(number)}c;;;0;"
    for kind in ("protocol_errors", "internal_errors"):
        yield f"{kind}={int(status[kind])}c;;;0;"


def _threshold(most: int | None) -> str:
    return "" if most is None else str(most)


def _label(word: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", word)
