"""Whose message is this in Postfix's queue? The queue, its files and the history, joined: without I/O.

The law is that no message is ever taken for an account's that is not its own. Queue ids are used again: a short one is
made of the microsecond and of the number of an inode, and where several Postfix instances ask one policyd their ids may
meet. So an id alone says nothing. Two things have to be true, each by itself:

1. Of all messages with this queue id in the history, of whatever account, exactly one can be the one in the queue by
   its time, and none came after it (`match`).
2. The queue file itself says the same: it was made under this id and not under another, before the verdict on this
   message, for its client, and for the login that the account is named by (`objection`).

What Postfix does (seen with 3.7): `arrival_time` is when smtpd got MAIL FROM, in whole seconds, rounded down. Then
the policy daemon is asked, at RCPT; then the first recipient that is accepted makes the queue file (`create_time`) and
its id, and then comes DATA. So arrival <= began <= creation <= at. Where policyd is not asked at RCPT, the
creation is before began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from policyd.ctl_layout import Json

TOLERANCE = 1.0
"""Seconds by which two clocks of one computer may differ: policyd's is read once for all that arrived together."""

SECOND = 1.0
"""Postfix tells times in whole seconds, rounded down: what it tells may have been so much later."""

SLOWEST = 3600.0
"""Seconds that a client may spend between MAIL FROM and what policyd is asked first: RCPT, or DATA.

smtpd waits 300 s for each command (smtpd_timeout), and a client can put others in between. One that takes longer than
an hour is not recognized, and its message is left alone.
"""

LATER = "a later message has had the same queue id: did the clock go back, or does another Postfix ask policyd, too?"
SEVERAL = "several messages of the history can be this one"


class Queued(NamedTuple):
    """One message in the queue, as `postqueue -j` lists it."""

    queue_id: str
    queue: str
    arrived: int
    """Seconds since the epoch."""
    size: int
    """Bytes."""
    sender: str
    """Quoted as in SMTP, after rewriting; MAILER-DAEMON is the null sender."""
    recipients: int
    """Those to whom it has still to be delivered."""


class Envelope(NamedTuple):
    """What a queue file says of itself, as `postcat -e` shows it."""

    arrived: int
    """Seconds since the epoch."""
    created: int
    """Seconds since the epoch."""
    sender: str
    """Without quotes, after rewriting; "" is the null sender."""
    named: Mapping[str, str]
    """Named attributes: `log_ident`, `client_address`, `sasl_username` where there is one, and more."""


class Past(NamedTuple):
    """One message of the history."""

    account: str
    queue_id: str
    began: float
    """Seconds since the epoch, like `at`."""
    at: float
    client: str
    sender: str
    verdict: str


def past(message: Json) -> Past:
    """Take from a message of the history what decides; raises LookupError, TypeError or ValueError for what is none."""
    texts = [message[key] for key in ("account", "queue_id", "client", "sender", "verdict")]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("want texts")
    account, queue_id, client, sender, verdict = texts
    return Past(account, queue_id, _seconds(message["began"]), _seconds(message["at"]), client, sender, verdict)


def _seconds(text: str) -> float:
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        raise ValueError(f"want a time with its offset, got {text!r}")
    return moment.timestamp()


def can_be(queued: Queued, message: Past) -> bool:
    """Tell whether a message of the history can be this one by its time."""
    return queued.arrived - TOLERANCE <= message.began <= queued.arrived + SECOND + SLOWEST + TOLERANCE


def match(queued: Queued, history: Iterable[Past]) -> Past | str | None:
    """Return the message of the history that this one in the queue is.

    `history` is all that had this queue id, of all accounts. The answer is a text that says why where it is not sure,
    and None where none of them can be it: then the id has been given to another message since.
    """
    known = list(history)
    possible = [message for message in known if can_be(queued, message)]
    if not possible:
        return None
    if len(possible) > 1:
        return SEVERAL
    # A queue file keeps its id to itself as long as it is there: whoever got the same id later is not of this queue.
    if any(message.began > possible[0].began for message in known):
        return LATER
    return possible[0]


def objection(queued: Queued, message: Past, envelope: Envelope) -> str:
    """Return what in the queue file speaks against its being this message, "" where all of it says that it is."""
    named = envelope.named
    later = envelope.created > message.at + TOLERANCE
    objections: Sequence[tuple[bool, str]] = (
        (envelope.arrived != queued.arrived, "its queue id has been given to another message"),
        (named.get("log_ident") != queued.queue_id, "its queue file was made under another queue id (postsuper -r?)"),
        (later, "its queue file was made after the message of the history was received"),
        (named.get("client_address") != message.client, "its queue file names another client than the history"),
    )
    return next((text for holds, text in objections if holds), "") or _stranger(message, envelope)


def _stranger(message: Past, envelope: Envelope) -> str:
    """Return what speaks against the file's being of the message's account.

    An account is known by its login, or as `attribute=value`. The login is Postfix's own word for who it was: then the
    sender may have been rewritten (canonical_maps, masquerade_domains). Else it has to be that of the history.
    """
    attribute, equals, value = message.account.partition("=")
    login = envelope.named.get("sasl_username", "")
    named = (login, f"sasl_username={login}")
    if login and message.account in (*named, *map(str.lower, named)):
        return ""
    if login and not (equals and attribute in ATTRIBUTES):
        return "its queue file names another login than the history"
    same: Callable[[str, str], bool] | None = ATTRIBUTES.get(attribute) if equals else None
    if same is None:
        return "its queue file does not say who the account is"
    if not same(value, envelope.sender if attribute == "sender" else envelope.named.get(attribute, "")):
        return f"its queue file names another {attribute} than the history"
    return "" if envelope.sender == message.sender else "its sender is not that of the history"


def _same(value: str, found: str) -> bool:
    return bool(found) and value.lower() == found.lower()


def _same_client(value: str, found: str) -> bool:
    """Compare as policyd counts: an IPv6 client by its /64."""
    try:
        return ip_address(found) in ip_network(value)
    except ValueError:
        return _same(value, found)


ATTRIBUTES: Mapping[str, Callable[[str, str], bool]] = {
    "client_address": _same_client,
    "client_name": _same,
    "reverse_client_name": _same,
    "helo_name": _same,
    "sasl_sender": _same,
    "sender": _same,
}
"""The attributes that may name an account and stand in a queue file, too."""
