"""What happened since the start, in plain numbers."""

from __future__ import annotations

from collections import Counter

from policyd.actions import DUNNO

OTHER_STATES = "other"

STATES = ("CONNECT", "EHLO", "HELO", "MAIL", "RCPT", "DATA", "END-OF-MESSAGE", "VRFY", "ETRN")
"""The protocol states that Postfix names; whatever else a peer names is tallied as one."""

END_OF_MESSAGE = "END-OF-MESSAGE"

HOOKS = ("RCPT", "DATA", END_OF_MESSAGE)
"""The states that are asked for each message, where Postfix is told to ask there."""


class Tally:
    """Requests by state, answers by their word, and errors."""

    __slots__ = (
        "connections",
        "data_seen",
        "hooks",
        "internal_errors",
        "others",
        "protocol_errors",
        "requests",
        "unnamed",
    )

    def __init__(self) -> None:
        self.requests = dict.fromkeys((*STATES, OTHER_STATES), 0)
        self.others: Counter[str] = Counter()
        """Answers by their word, but for the plain pass: nearly all are that, and need no counting."""
        self.hooks: set[str] = set()
        """The HOOKS at which a request was ever made, also before the start where that is stored."""
        self.data_seen = False
        """Whether a request was ever made that says how many recipients a message really has."""
        self.connections = 0
        """Policy connections that are open now."""
        self.unnamed = 0
        """Requests that name no account."""
        self.protocol_errors = 0
        self.internal_errors = 0

    @property
    def total(self) -> int:
        """The number of requests; each has an answer."""
        return sum(self.requests.values())

    @property
    def answers(self) -> dict[str, int]:
        """The number of answers by their word."""
        passed = self.total - self.others.total()
        return {word: number for word, number in (self.others + Counter({DUNNO: passed})).items() if number}
