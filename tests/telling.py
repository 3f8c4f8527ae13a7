"""Notices in memory, and a clock that a test moves by hand: what would be sent, when, and by which channel."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policyd.config import Config, parse_config
from policyd.notices import Notice, Notices
from policyd.supplies import SUPPLIES
from tests.asking import ANNA, EPOCH, Event

MAIL_CONFIG = "mail: {from: policyd@example.com, to: [abuse@example.com]}"
WEBHOOK_CONFIG = "webhook: {url: 'http://127.0.0.1:1/'}"


def config(*parts: str, limits: str = "") -> Config:
    """Return the config with these parts of the section."""
    return parse_config(f"notify: {{{', '.join(parts)}}}\n{limits}", "policyd.yaml", supplies=SUPPLIES)


class Telling:
    """Notices, and what becomes of them. Time stands still until a test moves it."""

    def __init__(self, *parts: str) -> None:
        self.now = 10_000.0
        self.events: list[Event] = []
        self.woken = 0
        self._ids = (f"id-{number}" for number in itertools.count(1))
        self.notices = self.fresh(*(parts or (MAIL_CONFIG,)))

    def fresh(self, *parts: str) -> Notices:
        """Return the notices of a daemon that has just started."""
        notices = Notices(self._report, lambda: next(self._ids), lambda now: now - 10_000 + EPOCH, self._wake)
        notices.apply(config(*parts).notify, self.now)
        return notices

    def lock(self, account: str = ANNA, **fields: object) -> None:
        """Report that an account is locked."""
        told = {"account": account, "by": "policyd", "uid": None, "reason": "spam", "until": "unlocked", **fields}
        self.notices.tell("lock", told, self.now)

    def due(self, channel: str = "mail") -> list[Notice]:
        """Return what a channel is given now, and have it taken."""
        given = []
        while notice := self.notices.next_for(channel, self.now):
            given.append(notice)
            self.notices.took(channel, notice.id, self.now)
        return given

    def told(self, word: str) -> list[Mapping[str, Any]]:
        """Return the fields of all events of this word."""
        return [event.fields for event in self.events if event.word == word]

    def _report(self, word: str, fields: Mapping[str, object]) -> None:
        self.events.append(Event(word, fields))

    def _wake(self) -> None:
        self.woken += 1


def template_folder(folder: Path, **texts: str) -> Path:
    """Write templates: `desk_lock` is desk-lock.txt."""
    for name, text in texts.items():
        (folder / f"{name.replace('_', '-')}.txt").write_text(text)
    return folder
