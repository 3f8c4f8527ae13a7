"""What happened, one line each: an event word, then `key=value` fields.

The words are a closed set (docs/log.md says what each means and when it comes). Whatever a value holds, the line stays
one line and its fields stay apart. The log cannot be flooded with warnings: repeats of one are summed up.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from collections.abc import Callable, Mapping

from twisted.logger import STDLibLogObserver, globalLogBeginner

NOTICE = 25
"""Between INFO and WARNING, as in syslog: normal, and worth a look."""

EVENTS = {
    "start": logging.INFO,
    "ready": NOTICE,
    "listen-ignored": NOTICE,
    "stop": NOTICE,
    "reload": NOTICE,
    "reload-failed": logging.ERROR,
    "refused": logging.INFO,
    "held": logging.INFO,
    "warned": logging.INFO,
    "observed": logging.INFO,
    "lock": NOTICE,
    "unlock": NOTICE,
    "reset": NOTICE,
    "queue": NOTICE,
    "allow": NOTICE,
    "disallow": NOTICE,
    "allowance-over": NOTICE,
    "near-limit": NOTICE,
    "notice-sent": logging.INFO,
    "notices-lost": logging.ERROR,
    "notify-problem": logging.ERROR,
    "notify-well": NOTICE,
    "no-data-seen": NOTICE,
    "data-seen": NOTICE,
    "database-problem": logging.ERROR,
    "database-well": NOTICE,
    "database-damaged": logging.ERROR,
    "cluster-away": logging.ERROR,
    "cluster-here": NOTICE,
    "cluster-problem": logging.ERROR,
    "out-of-descriptors": logging.WARNING,
    "protocol-error": logging.WARNING,
    "internal-error": logging.ERROR,
    "more-warnings": logging.WARNING,
    "lines-lost": logging.WARNING,
}
"""All event words, and the severity of each."""

SUMMED_UP = {"out-of-descriptors", "protocol-error", "internal-error"}
"""The events that a peer, or a bug, can repeat without end."""

SUM_UP = 60.0
"""Seconds for which repeats of one of those are counted, not written."""

MAX_WARNINGS = 100
"""Different warnings that are told apart within that time."""

MAX_VALUE = 1000
"""Characters of a value, but for a traceback's: journald would make two records of a line of 48 KiB."""

_MORE = "more-warnings"
_SYSLOG = ((logging.ERROR, 3), (logging.WARNING, 4), (NOTICE, 5), (logging.INFO, 6))
_PLAIN = re.compile(r"[^\s\"'=\\\x00-\x20\x7f-\x9f\u2028\u2029]+")


class _JournalFormatter(logging.Formatter):
    """Puts the `<N>` priority of sd-daemon(3) before each line."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _SYSLOG if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).split("\n"))


class _StderrLines(logging.Handler):
    """Writes lines to a descriptor, and loses them rather than wait for a reader that has stopped reading."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        lines = self.format(record) + "\n"
        if self._lost:
            told = {"levelno": logging.WARNING, "levelname": "WARNING", "msg": f"lines-lost number={self._lost}"}
            lines = self.format(logging.makeLogRecord(told)) + "\n" + lines
        try:
            os.write(self._descriptor, lines.encode(errors="backslashreplace"))
        except OSError:
            self._lost += 1
        else:
            self._lost = 0


def start_logging(descriptor: int = 2) -> None:
    """Write what is logged from now on to stderr: with priorities when it is the journal, with times when not."""
    logging.addLevelName(NOTICE, "NOTICE")
    handler = _StderrLines(descriptor)
    if _can_stall(descriptor):
        os.set_blocking(descriptor, False)
    if is_journal(descriptor):
        handler.setFormatter(_JournalFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("twisted").setLevel(logging.WARNING)
    globalLogBeginner.beginLoggingTo([STDLibLogObserver("twisted")], redirectStandardIO=False, discardBuffer=True)


def _can_stall(descriptor: int) -> bool:
    """Tell whether a reader decides how fast lines are taken: of a pipe, or of a socket such as the journal's."""
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def is_journal(descriptor: int) -> bool:
    """Tell whether a descriptor leads to the journal: systemd names the journal's device and inode."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def line(event: str, fields: Mapping[str, object]) -> str:
    """Return an event as a line; a value with anything but plain characters is quoted as in JSON."""
    return " ".join([event, *(f"{name}={_quoted(value)}" for name, value in fields.items() if value is not None)])


def _quoted(value: object) -> str:
    text = str(value)
    if len(text) > MAX_VALUE and not text.startswith("Traceback"):
        text = text[:MAX_VALUE] + "…"
    return text if _PLAIN.fullmatch(text) and text.isprintable() else json.dumps(text)


class EventLog:
    """Writes events, and sums up warnings that repeat.

    `clock` gives seconds that never step back.
    """

    def __init__(self, clock: Callable[[], float], write: Callable[[int, str], None] | None = None) -> None:
        self._clock = clock
        self._write = write or logging.getLogger("policyd").log
        self._repeats: dict[str, tuple[float, int, int]] = {}
        """The warnings of late: when each was written, its severity, and how often it has come since."""

    def report(self, event: str, fields: Mapping[str, object]) -> None:
        """Log an event."""
        severity = EVENTS[event]
        text = line(event, fields)
        if event not in SUMMED_UP or self._is_news(text, severity):
            self._write(severity, text)

    def sum_up(self, *, at_end: bool = False) -> None:
        """Write how often each warning has come again, where its time is over, or at the end of all."""
        now = self._clock()
        for text, (written, severity, repeats) in list(self._repeats.items()):
            if at_end or now - written >= SUM_UP:
                del self._repeats[text]
                if repeats:
                    self._write(severity, f"{text} repeated={repeats}")

    def _is_news(self, text: str, severity: int) -> bool:
        self.sum_up()
        if text not in self._repeats and len(self._repeats) >= MAX_WARNINGS:
            text = _MORE
        if text in self._repeats:
            written, severity, repeats = self._repeats[text]
            self._repeats[text] = (written, severity, repeats + 1)
            return False
        self._repeats[text] = (self._clock(), severity, int(text == _MORE))
        return text != _MORE
