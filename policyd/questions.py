"""Questions to the database, in a thread and over a connection of their own: a long one keeps nobody's lock waiting."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred

MAX_QUESTIONS = 2000
"""Questions that wait: one of each control connection, and those about locks."""

BUSY_SECONDS = 1.0
"""How long another process may keep the file locked before that is a problem."""


class NoAnswerError(OSError):
    """The database could not be asked."""


class Question(NamedTuple):
    """What is to be found out, and who waits for it."""

    ask: Callable[[sqlite3.Connection], Any]
    done: Deferred[Any]


class Questions:
    """Those that wait for their answer, the first come first; `in_reactor` has a function called in its thread."""

    def __init__(self, path: Path, in_reactor: Callable[..., object]) -> None:
        self._path = path
        self._in_reactor = in_reactor
        self._waiting: SimpleQueue[Question] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, question: Question) -> None:
        """Have a question answered; it fails with NoAnswerError."""
        if self._waiting.qsize() >= MAX_QUESTIONS:
            self._in_reactor(question.done.errback, NoAnswerError("too much is asked at a time"))
            return
        self._waiting.put(question)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="questions", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            question = self._waiting.get()
            if not question.done.called:  # else whoever asked has gone
                self._answer(question)

    def _answer(self, question: Question) -> None:
        try:
            where = f"{self._path.absolute().as_uri()}?mode=ro"
            with closing(sqlite3.connect(where, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
                answer = question.ask(connection)
        except Exception as error:  # whatever it is, it must not end the thread
            self._in_reactor(question.done.errback, NoAnswerError(f"the database cannot be read: {error}"))
        else:
            self._in_reactor(question.done.callback, answer)
