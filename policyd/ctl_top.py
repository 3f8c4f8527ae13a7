"""policyctl top: a live view of the daemon on a terminal, with plain ANSI escape sequences.

However it ends, by a key, a signal or a mistake of its own, the terminal is left as it was found. One question at a
time is put to the daemon, and it rests between two looks for thrice the time that the answers took: looking costs it
little, however many accounts there are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from types import FrameType
from typing import Any

from policyd import ctl_look
from policyd.ctl_client import DONE, REFUSED, USAGE, Ask, CtlError, Question, Told
from policyd.ctl_layout import Screen
from policyd.ctl_look import SORTS, STRANGE, Look, Rates, Size

MOST_ROWS = 200
"""Accounts and locks that are asked for at most, however high the terminal is."""

SHOW = b"\x1b[?1049h\x1b[?25l\x1b[?7l"
"""To another screen, without a cursor, and without going on in the next row where a row is too long."""

LEAVE = b"\x1b[?7h\x1b[?25h\x1b[?1049l"
"""Back again."""

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
BY_SIGNAL = 128
"""An exit status, less the signal's number, as shells tell it."""

TOLD = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)
"""Signals that the loop is told of, by their number in the pipe; 0 there says that a look has come."""

STRANGE_ANSWER = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What comes of an answer that is not what it should be."""


def run(args: argparse.Namespace, asked: Ask) -> Told:
    """Show the daemon until somebody ends it; with --json return two looks' worth of figures."""
    if args.json:
        return Told([json.dumps(_figures(asked, args.every), indent=2)])
    if not (os.isatty(0) and os.isatty(1)):
        raise CtlError(USAGE, "top needs a terminal; for a pipe there are status, accounts, locked, and top --json")
    if os.environ.get("TERM", "dumb") == "dumb":
        raise CtlError(USAGE, "top needs a terminal that can place its cursor, and $TERM does not name one")
    return Told([], _Top(asked, args.every).run())


def _figures(asked: Ask, every: float) -> dict[str, Any]:
    before = asked(Question("/status"))
    time.sleep(every)
    after = ctl_look.look(asked, SORTS[0], ctl_look.LISTED)
    return ctl_look.as_json(after, ctl_look.rates(before, after.status))


class _EndedError(BaseException):
    """A signal says that it is over; no `except Exception` is to stop that."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Terminal:
    """The terminal on stdin and stdout, and how it was when we came."""

    def __init__(self) -> None:
        self._before = termios.tcgetattr(0)

    def take(self) -> None:
        """Take the screen, and keys one by one, unseen; signals by keys stay."""
        mode = termios.tcgetattr(0)
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        mode[6] = [*mode[6]]
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(0, termios.TCSANOW, mode)
        self.write(SHOW)

    def give_back(self) -> None:
        """Leave the terminal as it was, where it is still there; what was typed ahead is no command for the shell."""
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(0, termios.TCSANOW, self._before)
            termios.tcflush(0, termios.TCIFLUSH)
        with contextlib.suppress(OSError):
            self.write(LEAVE)

    def show(self, lines: Sequence[str]) -> None:
        """Show lines that are no wider and no more than there is room for; the first one stands out."""
        rows = [line.encode(sys.stdout.encoding or "ascii", "backslashreplace") + b"\x1b[K" for line in lines]
        rows[0] = b"\x1b[1m" + rows[0] + b"\x1b[m"
        self.write(b"\x1b[H" + b"\r\n".join(rows) + b"\x1b[J")

    def write(self, data: bytes) -> None:
        """Write all of it."""
        while data:
            data = data[os.write(1, data) :]

    @property
    def size(self) -> Size:
        """How large it is now; one that does not know is as the first ones were."""
        columns, rows = os.get_terminal_size(1)
        return Size(columns or 80, rows or 24)


class _Top:
    """The loop: a look, a rest, another look; and keys and signals meanwhile."""

    def __init__(self, asked: Ask, every: float) -> None:
        self._asked = asked
        self._every = self._interval = every
        self._terminal = _Terminal()
        self._sort = SORTS[0]
        self._look: Look | None = None
        self._rates: Rates | None = None
        self._trouble: tuple[str, ...] = ()
        self._answer: Look | CtlError | None = None
        """What the thread that asks has brought; it is written before the pipe says so."""
        self._asking = False
        self._asked_at = self._next = time.monotonic()
        self._told, self._tell = os.pipe()

    def run(self) -> int:
        """Show the daemon until somebody ends it; returns the exit status."""
        try:
            with self._signals():
                try:
                    self._terminal.take()
                    self._show()
                    self._loop()
                finally:
                    try:
                        for number in (*ENDING, *TOLD):
                            signal.signal(number, signal.SIG_IGN)
                    finally:  # a second Ctrl-C must not stop this half-way
                        self._terminal.give_back()
        except _EndedError as ended:
            return DONE if ended.number == signal.SIGINT else BY_SIGNAL + ended.number
        except (OSError, termios.error):
            raise CtlError(REFUSED, "the terminal has gone") from None
        return DONE

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        os.set_blocking(self._tell, False)
        woken = signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False)
        before = {number: signal.signal(number, _end) for number in ENDING}
        before |= {number: signal.signal(number, _note) for number in TOLD}
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken)
            for number, what in before.items():
                signal.signal(number, what)

    def _loop(self) -> None:
        while True:
            now = time.monotonic()
            if not self._asking and now >= self._next:
                self._ask()
            patience = None if self._asking else max(self._next - now, 0)
            ready, _, _ = select.select([0, self._told], [], [], patience)
            if 0 in ready and not self._keys(os.read(0, 1024)):
                return
            if self._told in ready:
                for number in os.read(self._told, 1024):
                    self._hear(number)
                self._take_answer()
                self._show()

    def _keys(self, typed: bytes) -> bool:
        """Do what was typed; tell whether to go on."""
        for key in typed:
            if key in b"qQ":
                return False
            if key in b"sS":
                self._sort = ctl_look.following(self._sort)
                self._next = time.monotonic()
        return bool(typed)

    def _hear(self, number: int) -> None:
        if number == signal.SIGTSTP:
            self._terminal.give_back()
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTSTP)  # here we stand until somebody says fg
            signal.signal(signal.SIGTSTP, _note)
            self._terminal.take()
        elif number == signal.SIGCONT:
            self._terminal.take()

    def _ask(self) -> None:
        """Ask in a thread: keys are heard while the daemon thinks."""
        self._asking = True
        self._asked_at = time.monotonic()
        most = min(self._terminal.size.height, MOST_ROWS)
        threading.Thread(target=self._bring, args=(self._sort, most), daemon=True).start()

    def _bring(self, sort: str, most: int) -> None:
        try:
            self._answer = ctl_look.look(self._asked, sort, most)
        except CtlError as error:
            self._answer = error
        except STRANGE_ANSWER:
            self._answer = CtlError(REFUSED, STRANGE)
        with contextlib.suppress(OSError):  # full: then there is enough to wake up for
            os.write(self._tell, b"\0")

    def _take_answer(self) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if isinstance(answer, CtlError) and answer.status == USAGE:
            raise answer  # a config with mistakes does not mend itself
        now = time.monotonic()
        took = now - self._asked_at
        self._asking = False
        self._interval = ctl_look.interval(self._every, took)
        self._next = self._asked_at + self._interval
        try:
            if isinstance(answer, CtlError):
                raise answer
            self._rates = ctl_look.rates(self._look.status, answer.status) if self._look else None
            self._look, self._trouble = answer, ()
            if answer.sort != self._sort:
                self._next = now
        except CtlError as error:
            self._trouble = tuple(line.removeprefix("policyctl: ") for line in error.lines)
        except STRANGE_ANSWER:
            self._look, self._trouble = None, (STRANGE,)

    def _show(self) -> None:
        size, now = self._terminal.size, datetime.now(timezone.utc)
        screen = Screen(now, width=size.width)
        if self._look is not None:
            try:
                lines = ctl_look.lines(self._look, self._rates, self._trouble, screen, size, self._interval)
            except STRANGE_ANSWER:
                self._look, self._trouble = None, (STRANGE,)
        if self._look is None:
            lines = ctl_look.away(self._trouble, screen, size)
        self._terminal.show(lines)


def _end(number: int, _frame: FrameType | None) -> None:
    raise _EndedError(number)


def _note(_number: int, _frame: FrameType | None) -> None:
    """Leave it to the pipe."""
