"""What happened since the start, in plain numbers."""

from __future__ import annotations

from collections import Counter

OTHER_STATES = "other"

STATES = ("CONNECT", "EHLO", "HELO", "MAIL", "RCPT", "DATA", "END-OF-MESSAGE", "VRFY", "ETRN")
"""The protocol states that Postfix names; whatever else a peer names is tallied as one."""

HOOKS = ("RCPT", "DATA", "END-OF-MESSAGE")
"""The states that are asked for each message, where Postfix is told to ask there."""


class Tally:
    """Requests by state, answers by their word, and errors."""

    __slots__ = ("answers", "connections", "data_seen", "hooks", "internal_errors", "protocol_errors", "requests")

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.hooks: set[str] = set()
        """The HOOKS at which a request was ever made, also before the start where that is stored."""
        self.data_seen = False
        """Whether a request was ever made that says how many recipients a message really has."""
        self.connections = 0
        """Policy connections that are open now."""
        self.protocol_errors = 0
        self.internal_errors = 0
