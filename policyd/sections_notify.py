"""The `notify` section of the config file: whom to tell of what, and how.

What it names outside of the config file (templates, a secret, whether TLS is there) is asked of `Supplies`, so that
this room reads no other file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from policyd.limits import IDENTITY_ATTRIBUTES
from policyd.sections import MAX_PORT, distinct, optional, required
from policyd.templates import Texts, read_texts
from policyd.yamlnodes import ConfigProblem, Value, clipped, suggestion

LOCK, UNLOCK, EXPIRY, WARNING = EVENTS = ("lock", "unlock", "expiry", "warning")
"""What people can be told of."""

DEFAULT_EVENTS = frozenset((LOCK, UNLOCK, EXPIRY))
DEFAULT_WARN_AT = 80
LANGUAGES = ("en", "sv")
DEFAULT_RELAY = "127.0.0.1:25"

MAX_ADDRESS = 254
"""Bytes of a mail address: RFC 5321 4.5.3.1.3, without its angle brackets."""

MAX_TO = 20
"""Addresses of the desk."""

MAX_URL = 2000
"""Characters of the address that notices are posted to."""

MAX_ARGUMENTS = 50
"""Words of the command, the program's path included."""

_KEYS = ("events", "warn_at", "mail", "webhook", "command")
_MAIL_KEYS = ("relay", "from", "to", "account", "language", "templates")
_WEBHOOK_KEYS = ("url", "secret_file")

_EVENTS = f"a list of events such as [{', '.join(EVENTS)}]"
_PERCENT = "a percentage from 1% to 100% such as 80%"
_ADDRESS = "a mail address such as policyd@example.com"
_TO = "a list of mail addresses such as [abuse@example.com]"
_RELAY = "a host and its port such as 127.0.0.1:25"
_URL = "an address such as https://desk.example.com/policyd"
_PATH = "an absolute path"
_COMMAND = "a list of a program's absolute path and its arguments such as [/usr/local/bin/on-policyd, --now]"

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_MAIL_ADDRESS = re.compile(rf"(?!-){_ATEXT}(?:\.{_ATEXT})*@{_LABEL}(?:\.{_LABEL})*")
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_NAMED_BY = tuple(f"{name}=" for name in IDENTITY_ATTRIBUTES)


@dataclass(frozen=True, slots=True)
class MailNotices:
    """How notices go by mail."""

    relay: tuple[str, int]
    sender: str
    to: tuple[str, ...]
    account: bool
    """Whether the account gets a mail, too."""
    language: str
    texts: Texts


@dataclass(frozen=True, slots=True)
class WebhookNotices:
    """Where notices are posted."""

    url: str
    secret: bytes | None = field(repr=False)
    """What they are signed with."""


@dataclass(frozen=True, slots=True)
class Notify:
    """Whom to tell of what."""

    events: frozenset[str] = DEFAULT_EVENTS
    warn_at: int | None = None
    """The percentage of a maximum at which to warn; None: there are no warnings."""
    mail: MailNotices | None = None
    webhook: WebhookNotices | None = None
    command: tuple[str, ...] = ()


NOBODY_TOLD = Notify(frozenset())


class Supplies(NamedTuple):
    """What the section names that is not in the config file; each raises ValueError or OSError for what is wrong."""

    secret: Callable[[str], bytes]
    """Reads a secret."""
    templates: Callable[[str, str | None], Mapping[str, tuple[str, str]]]
    """Returns the templates of a language, and in their place those of a folder: by name, their file and text."""
    use_url: Callable[[str], None]
    """Raises ValueError where there is no way to post to this address."""
    password: Callable[[str], bytes] = lambda _path: b""
    """Reads the password of the store that nodes share."""
    use_store: Callable[[], None] = lambda: None
    """Raises ValueError where there is no way to speak to such a store."""


NOT_LOOKED_AT = Supplies(lambda _path: b"", lambda _language, _folder: {}, lambda _url: None)
"""For who wants to know what the config says about something else."""


def is_mail_address(text: str) -> bool:
    """Tell whether mail can be sent to this text as it is, and no header reads it as something else."""
    return len(text) <= MAX_ADDRESS and "=?" not in text and _MAIL_ADDRESS.fullmatch(text) is not None


def is_host(text: str) -> bool:
    """Tell whether a host can be called this."""
    return _HOST.fullmatch(text) is not None


def address_of(account: str) -> str | None:
    """Return the mail address that an account is named by; None where it is named by something else."""
    return account if is_mail_address(account) and not account.startswith(_NAMED_BY) else None


def notify(value: Value, supplies: Supplies) -> Notify | None:
    """Read the section."""
    fields = value.fields(_KEYS, f"a mapping with {', '.join(_KEYS)}")
    if fields is None:
        return None
    events = optional(fields, "events", _events, DEFAULT_EVENTS)
    warn_at = optional(fields, "warn_at", _percent, DEFAULT_WARN_AT)
    if "warn_at" in fields and WARNING not in events:
        fields["warn_at"].problem("nobody is warned: want warning among the events, too")
    if not any(name in fields and not fields[name].is_empty for name in ("mail", "webhook", "command")):
        value.problem("nobody is told: want mail, webhook or command")
    return Notify(
        events,
        warn_at if WARNING in events else None,
        optional(fields, "mail", lambda mail: _mail(mail, supplies), None),
        optional(fields, "webhook", lambda webhook: _webhook(webhook, supplies), None),
        optional(fields, "command", _command, ()),
    )


def _events(value: Value) -> frozenset[str] | None:
    def event(item: Value) -> str | None:
        name = item.text(_EVENTS)
        if name is not None and name not in EVENTS:
            item.problem(f"unknown event {clipped(name)}, {suggestion(name, EVENTS)}")
        return name

    found = distinct(value, _EVENTS, event)
    return None if found is None else frozenset(found)


def _percent(value: Value) -> int | None:
    found = re.fullmatch(r"([0-9]{1,3})%", value.written or "")
    percent = int(found[1]) if found else 0
    if not 1 <= percent <= 100:  # noqa: PLR2004 -- percent
        value.refuse(_PERCENT)
        return None
    return percent


def _mail(value: Value, supplies: Supplies) -> MailNotices | None:
    fields = value.fields(_MAIL_KEYS, f"a mapping with {', '.join(_MAIL_KEYS)}")
    if fields is None:
        return None
    relay = optional(fields, "relay", _relay, _host_and_port(DEFAULT_RELAY))
    sender = required(value, fields, "from", _ADDRESS, _address)
    to = required(value, fields, "to", _TO, _addresses)
    account = optional(fields, "account", Value.truth, False)
    language = optional(fields, "language", _language, LANGUAGES[0])
    folder = optional(fields, "templates", _path, None)
    texts = _texts(fields.get("templates", value), language, folder, supplies)
    if relay is None or sender is None or to is None or texts is None:
        return None
    return MailNotices(relay, sender, to, account, language, texts)


def _texts(value: Value, language: str, folder: str | None, supplies: Supplies) -> Texts | None:
    try:
        templates = supplies.templates(language, folder)
    except (OSError, ValueError) as error:
        value.problem(_said(error))
        return None
    texts, problems = read_texts(templates)
    value.problems.found += [ConfigProblem(*problem) for problem in problems]
    return texts


def _webhook(value: Value, supplies: Supplies) -> WebhookNotices | None:
    fields = value.fields(_WEBHOOK_KEYS, f"a mapping with {', '.join(_WEBHOOK_KEYS)}")
    if fields is None:
        return None
    url = required(value, fields, "url", _URL, lambda url: _url(url, supplies))
    secret = optional(fields, "secret_file", lambda path: _secret(path, supplies), None)
    return None if url is None else WebhookNotices(url, secret)


def _secret(value: Value, supplies: Supplies) -> bytes | None:
    path = _path(value)
    try:
        return None if path is None else supplies.secret(path)
    except (OSError, ValueError) as error:
        value.problem(_said(error))
        return None


def _said(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return f"cannot be read: {error.filename}: {error.strerror}"
    return str(error)


def _url(value: Value, supplies: Supplies) -> str | None:
    url = value.text(_URL)
    if url is None:
        return None
    if not _is_url(url):
        value.refuse(_URL)
        return None
    try:
        supplies.use_url(url)
    except ValueError as error:
        value.problem(str(error))
    return url


def _is_url(url: str) -> bool:
    if len(url) > MAX_URL or not re.fullmatch(r"[!-~]+", url) or set(url) & set('"<>\\^`{|}'):
        return False
    try:
        parts = urlsplit(url)
        fits = parts.port is None or parts.port > 0
    except ValueError:
        return False
    host = parts.hostname or ""
    named = is_host(host) or _is_ip(host)
    return bool(fits and named and parts.scheme in ("http", "https") and "@" not in parts.netloc and not parts.fragment)


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _command(value: Value) -> tuple[str, ...] | None:
    items = value.items(_COMMAND)
    if items is None:
        return None
    found = [item.written for item in items]
    if not found or not (found[0] or "").startswith("/") or len(found) > MAX_ARGUMENTS:
        value.problem(f"want {_COMMAND}")
    for item, text in zip(items, found, strict=True):
        if text is None or "\0" in text:
            item.refuse("a text")
    return tuple(text or "" for text in found)


def _relay(value: Value) -> tuple[str, int] | None:
    found = _host_and_port(value.written or "")
    if found is None:
        value.refuse(_RELAY)
    return found


def _host_and_port(text: str) -> tuple[str, int] | None:
    host, _, port = text.rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= MAX_PORT:
        return None
    if host.startswith("[") and host.endswith("]") and ":" in host and _is_ip(host[1:-1]):
        return host[1:-1], int(port)
    return (host, int(port)) if is_host(host) else None


def _language(value: Value) -> str | None:
    name = value.written or ""
    if name not in LANGUAGES:
        value.problem(f"unknown language {clipped(name)}, want one of {', '.join(LANGUAGES)}; or write templates")
        return None
    return name


def _path(value: Value) -> str | None:
    text = value.text(_PATH)
    if text is not None and not (text.startswith("/") and text.isprintable()):
        value.refuse(_PATH)
        return None
    return text


def _address(value: Value) -> str | None:
    text = value.text(_ADDRESS)
    if text is not None and not is_mail_address(text):
        value.refuse(_ADDRESS)
        return None
    return text


def _addresses(value: Value) -> tuple[str, ...] | None:
    found = distinct(value, _TO, _address)
    if found is not None and len(found) > MAX_TO:
        value.problem(f"want at most {MAX_TO} addresses")
    return found
