"""The `cluster` section of the config file: the store that the nodes share, and how to reach it.

Its short form is the store's address alone. What it names outside of the config file (a password, whether txredisapi
is there) is asked of `Supplies`, so that this room reads no other file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Literal, get_args
from urllib.parse import unquote

from policyd.sections import MAX_PORT, MAX_SOCKET_PATH, optional, required
from policyd.sections_notify import Supplies, is_host
from policyd.yamlnodes import Value, clipped

Kind = Literal["tcp", "tls", "unix", "sentinel", "sentinel-tls"]
WhenAway = Literal["full", "share"]

DEFAULT_PREFIX = "policyd"
DEFAULT_PATIENCE = 0.1
LEAST_PATIENCE = 0.01
MOST_PATIENCE = 5.0

PORT = 6379
SENTINEL_PORT = 26379
"""Where they listen when nobody tells them."""

MAX_DB = 65535
MAX_HOSTS = 20
"""Sentinels."""

MAX_URL = 2000
"""Characters of the store's address."""

_KEYS = ("url", "password_file", "prefix", "node", "patience", "when_away")

_CLUSTER = "an address such as redis://valkey.example.net:6379/0, or a mapping with url"
_URL = "an address such as redis://valkey.example.net:6379/0"
_PATH = "an absolute path"
_PREFIX = "a text of at most 64 letters, digits, '.', '_', ':' and '-'"
_NODE = "a name of at most 253 letters, digits, '.', '_' and '-'"
_PATIENCE = "a time from 10ms to 5s such as 100ms"
_WHEN_AWAY = "full or share"

_KINDS: dict[str, Kind] = {
    "redis": "tcp",
    "rediss": "tls",
    "unix": "unix",
    "sentinel": "sentinel",
    "sentinels": "sentinel-tls",
}
_PARTS = re.compile(
    r"(?P<scheme>[a-z]+)://(?:(?P<user>[^@/?#]*)@)?(?P<hosts>[^@/?#]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
_MASTER = re.compile(r"[A-Za-z0-9._-]{1,128}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_PREFIXES = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_TIME = re.compile(r"([0-9]{1,6})(ms|s)")


@dataclass(frozen=True, slots=True)
class Store:
    """Where the store is."""

    url: str
    """As written."""
    kind: Kind
    hosts: tuple[tuple[str, int], ...] = ()
    """Of the store, or of the Sentinels that know where it is."""
    path: str = ""
    """Of its unix socket."""
    master: str = ""
    """What Sentinel calls it."""
    db: int = 0
    user: str | None = None

    @property
    def encrypted(self) -> bool:
        """Whether it is spoken to by TLS."""
        return self.kind in ("tls", "sentinel-tls")


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """The store that the nodes share."""

    store: Store
    password_file: str | None = None
    prefix: str = DEFAULT_PREFIX
    """Of all keys."""
    node: str | None = None
    """How this node is called; None: as its host."""
    patience: float = DEFAULT_PATIENCE
    """Seconds for which a request waits for the store."""
    when_away: WhenAway = "full"
    """Which maxima are in force while the store is away: all of each, or this node's share of it."""

    def shown(self) -> dict[str, str]:
        """Return what each key says, as a person is shown it."""
        return {
            "url": self.store.url,
            "password_file": self.password_file or "none",
            "prefix": self.prefix,
            "node": self.node or "the host's name",
            "patience": f"{self.patience * 1000:.0f}ms",
            "when_away": self.when_away,
        }


def cluster(value: Value, supplies: Supplies) -> ClusterConfig | None:
    """Read the section."""
    try:
        supplies.use_store()
    except ValueError as error:
        value.problem(str(error))
        return None
    if value.written is not None:
        store = _store(value)
        if store is not None and store.user is not None:
            value.problem(f"the user {clipped(store.user)} has a password: want the long form with password_file")
        return None if store is None else ClusterConfig(store)
    fields = value.fields(_KEYS, _CLUSTER)
    if fields is None:
        return None
    store = required(value, fields, "url", _URL, _store)
    password_file = optional(fields, "password_file", lambda path: _password_file(path, supplies), None)
    prefix = optional(fields, "prefix", lambda text: _matching(text, _PREFIX, _PREFIXES), DEFAULT_PREFIX)
    node = optional(fields, "node", lambda text: _matching(text, _NODE, _NAME), None)
    patience = optional(fields, "patience", _patience, DEFAULT_PATIENCE)
    when_away: WhenAway = optional(fields, "when_away", _when_away, "full")
    if store is None:
        return None
    if store.user is not None and "password_file" not in fields:
        value.lacks("password_file", f"the file with the password of the user {clipped(store.user)}")
    return ClusterConfig(store, password_file, prefix, node, patience, when_away)


def _store(value: Value) -> Store | None:
    text = value.text(_URL)
    if text is None:
        return None
    try:
        return parse_store(text)
    except ValueError as error:
        value.problem(str(error))
        return None


def parse_store(url: str) -> Store:
    """Take the store's address apart.

    Raises ValueError, whose message says what is wanted, and never shows a password.
    """
    before, at, _ = url.partition("://")[2].rpartition("@")
    if at and ":" in before and not before.startswith("/"):
        raise ValueError(
            "a password in the address can be read by many: write it into a file, and name that in password_file"
        )
    found = _PARTS.fullmatch(url) if len(url) <= MAX_URL and re.fullmatch("[!-~]+", url) else None
    if found is None:
        raise ValueError(f"want {_URL}, got {clipped(url)}")
    if found["scheme"] not in _KINDS:
        raise ValueError(
            f"want an address that begins with {', '.join(f'{scheme}://' for scheme in _KINDS)}, got {clipped(url)}"
        )
    kind = _KINDS[found["scheme"]]
    path, query = unquote(found["path"] or ""), found["query"]
    known = Store(url, kind, user=unquote(found["user"] or "") or None)
    if kind == "unix":
        return _unix(known, found["hosts"], path, query)
    if query is not None:
        raise ValueError("want an address that ends with the number of the database, and without a '?'")
    if kind in ("tcp", "tls"):
        (host,) = _hosts(found["hosts"], PORT, 1)
        return replace(known, hosts=(host,), db=_db(path.removeprefix("/") or "0"))
    master, _, db = path.removeprefix("/").partition("/")
    if not _MASTER.fullmatch(master):
        raise ValueError(
            "want what Sentinel calls the store and the number of the database behind its addresses,"
            f" such as {found['scheme']}://one.example.net,two.example.net/mymaster/0"
        )
    return replace(known, hosts=_hosts(found["hosts"], SENTINEL_PORT, MAX_HOSTS), master=master, db=_db(db or "0"))


def _unix(known: Store, hosts: str, path: str, query: str | None) -> Store:
    fits = path.startswith("/") and path != "/" and path.isprintable() and len(path.encode()) <= MAX_SOCKET_PATH
    if hosts or not fits:
        raise ValueError(
            f"want the absolute path of a socket of at most {MAX_SOCKET_PATH} bytes,"
            " such as unix:///run/valkey/valkey.sock?db=0"
        )
    if query is not None and not query.startswith("db="):
        raise ValueError(f"want nothing but db= behind the '?', got {clipped(query)}")
    return replace(known, path=path, db=_db("0" if query is None else query.removeprefix("db=")))


def _db(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > MAX_DB:
        raise ValueError(f"want the number of a database from 0 to {MAX_DB}, got {clipped(text)}")
    return int(text)


def _hosts(text: str, port: int, most: int) -> tuple[tuple[str, int], ...]:
    hosts = text.split(",")
    if len(hosts) > most:
        named = "one host: Sentinel looks after several" if most == 1 else f"at most {most} hosts"
        raise ValueError(f"want {named}, got {len(hosts)}")
    return tuple(_host(host, port) for host in hosts)


def _host(text: str, port: int) -> tuple[str, int]:
    """Return a host and its port; an IPv6 address stands in brackets."""
    found = re.fullmatch(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?", text)
    number = int(found["port"] or port) if found else 0
    if (
        not found
        or not 1 <= number <= MAX_PORT
        or not (_is_six(found["six"]) if found["six"] else is_host(found["name"]))
    ):
        raise ValueError(f"want a host, or a host and its port such as valkey.example.net:{port}, got {clipped(text)}")
    return found["six"] or found["name"], number


def _is_six(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def _password_file(value: Value, supplies: Supplies) -> str | None:
    path = value.text(_PATH)
    if path is None:
        return None
    if not (path.startswith("/") and path.isprintable()):
        value.refuse(_PATH)
        return None
    try:
        supplies.password(path)
    except OSError as error:
        value.problem(f"cannot be read: {error.filename}: {error.strerror}")
    except ValueError as error:
        value.problem(str(error))
    return path


def _matching(value: Value, wanted: str, pattern: re.Pattern[str]) -> str | None:
    text = value.text(wanted)
    if text is not None and not pattern.fullmatch(text):
        value.refuse(wanted)
        return None
    return text


def _patience(value: Value) -> float | None:
    found = _TIME.fullmatch(value.written or "")
    seconds = int(found[1]) / (1000 if found[2] == "ms" else 1) if found else 0.0
    if not LEAST_PATIENCE <= seconds <= MOST_PATIENCE:
        value.refuse(_PATIENCE)
        return None
    return seconds


def _when_away(value: Value) -> WhenAway | None:
    for word in get_args(WhenAway):
        if value.written == word:
            found: WhenAway = word
            return found
    value.refuse(_WHEN_AWAY)
    return None
