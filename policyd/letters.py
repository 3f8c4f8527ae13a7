"""Notices as mails, from templates."""

from __future__ import annotations

from datetime import datetime, timezone
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any, NamedTuple

from policyd.notices import ACCOUNT, DIGEST, Notice
from policyd.sections_notify import MailNotices, address_of
from policyd.templates import FIELDS, MAX_FILLED
from policyd.words import printable, shell_word

UNTIL_UNLOCKED = {"en": "a person unlocks it", "sv": "någon häver spärren"}


class Letter(NamedTuple):
    """A mail, and its envelope."""

    sender: str
    to: tuple[str, ...]
    data: bytes
    """Lines that end in CR LF, 7 bits each byte."""


def letter(notice: Notice, channel: str, mail: MailNotices, host: str) -> Letter | None:
    """Return the mail of a notice to the desk, or to the account; None where nobody is to get one."""
    event, to = notice.event, mail.to
    if channel == ACCOUNT:
        whose = address_of(str(notice.fields.get("account", "")))
        if whose is None or f"account-{event}" not in mail.texts:
            return None
        to = (whose,)
    text = mail.texts[f"{'account' if channel == ACCOUNT else 'desk'}-{event}"]
    values = _values(notice, mail.language, host)
    message = EmailMessage(SMTP)
    message["From"] = mail.sender
    message["To"] = ", ".join(to)
    message["Subject"] = text.subject_with(values).replace("=?", "= ?")  # which would be read as other text
    message["Date"] = datetime.fromtimestamp(notice.at, timezone.utc)
    message["Message-ID"] = f"<{notice.id}.{channel}@{mail.sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    message["X-Policyd-Event"] = event
    message.set_content(text.body_with(values), cte="quoted-printable")
    message["Content-Language"] = mail.language
    return Letter(mail.sender, to, message.as_bytes())


def _values(notice: Notice, language: str, host: str) -> dict[str, Any]:
    """Return what can be filled in."""
    fields = notice.fields
    values = {name: fields.get(name) for name in FIELDS[notice.event]}
    values.update(event=notice.event, time=_time(notice.at), host=host, id=notice.id)
    if "account" in fields:
        word = shell_word(str(fields["account"]))
        values["account_word"] = word if len(word) <= MAX_FILLED else "ACCOUNT"
    if "until" in fields:
        until = fields["until"]
        values["until"] = (
            UNTIL_UNLOCKED[language] if until is None else _time(datetime.fromisoformat(until).timestamp())
        )
    if notice.event == DIGEST:
        values["accounts"] = [f"  {printable(str(name)[:MAX_FILLED])}" for name in fields["accounts"]]
        values["others"] = fields["number"] - len(fields["accounts"])
    return values


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
