"""The config file: YAML in, a Config out, or every problem with the line where it stands.

A config is read whole or not at all, and what reads it starts nothing: no clock, no network, no log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from policyd import sections
from policyd.durations import format_duration
from policyd.limits import HOUSE_RULES, UNTIL_UNLOCKED, Limit, Override, Rules
from policyd.sections import (
    DEFAULT_ATTRIBUTES,
    DEFAULT_HISTORY,
    DEFAULT_HISTORY_ROWS,
    DEFAULT_LOWERCASE,
    DEFAULT_MAX_ACCOUNTS,
    EndpointProblem,
    optional,
)
from policyd.sections_cluster import ClusterConfig, cluster
from policyd.sections_notify import NOBODY_TOLD, NOT_LOOKED_AT, Notify, Supplies, notify
from policyd.yamlnodes import ConfigProblem, NotYamlError, Problems, Value, compose

__all__ = ["Config", "ConfigError", "ConfigProblem", "changes", "needs_restart", "parse_config", "read_config"]

MAX_CONFIG = 1024 * 1024
"""Bytes of a config file."""

DEFAULT_LISTEN: tuple[str, ...] = ("tcp:10045:interface=127.0.0.1",)

_SECTIONS = (
    "listen",
    "control",
    "database",
    "history",
    "history_rows",
    "max_accounts",
    "account",
    "limits",
    "overrides",
    "observe",
    "notify",
    "cluster",
)


def _accept_all(_endpoint: str) -> None:
    """Find nothing wrong."""


@dataclass(frozen=True, slots=True)
class Config:
    """All that the config file decides; without arguments, what holds where there is no file."""

    listen: tuple[str, ...] = DEFAULT_LISTEN
    control: str | None = None
    """Path of the control socket; None: the default place."""
    database: str | None = None
    """Path of the database; `none`: there is none; None: the default place."""
    history: float = DEFAULT_HISTORY
    """Seconds for which messages are remembered; 0: none is."""
    history_rows: int = DEFAULT_HISTORY_ROWS
    """Messages that are remembered at the most."""
    max_accounts: int = DEFAULT_MAX_ACCOUNTS
    """Accounts that are remembered."""
    attributes: tuple[str, ...] = DEFAULT_ATTRIBUTES
    lowercase: bool = DEFAULT_LOWERCASE
    observe: bool = False
    """No limit refuses, holds or locks, nor does a lock that a limit has made; each of the limits says so, too."""
    limits: tuple[Limit, ...] = HOUSE_RULES
    overrides: tuple[Override, ...] = ()
    notify: Notify = NOBODY_TOLD
    cluster: ClusterConfig | None = None
    """The store that nodes share; None: this one counts for itself."""

    def rules(self) -> Rules:
        """Return the limits in force, and whom they concern."""
        return Rules(self.limits, self.overrides, self.attributes, self.lowercase, self.observe, self.notify.warn_at)

    def summary(self) -> str:
        """Return what the config amounts to, in one line."""
        counted = f"{_number(len(self.limits), 'limit')}, {_number(len(self.overrides), 'override')}"
        observed = ", observing only" if self.observe else ""
        return f"{counted}, listening on {', '.join(self.listen)}{observed}"


class ConfigError(Exception):
    """A config file cannot be used; `problems` are all the reasons, in the order of their lines."""

    def __init__(self, problems: Iterable[ConfigProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def read_config(
    path: str | Path, endpoint_problem: EndpointProblem = _accept_all, supplies: Supplies = NOT_LOOKED_AT
) -> Config:
    """Read a config file of at most MAX_CONFIG bytes.

    Raises ConfigError, for a file that cannot be read as well.
    """
    file = str(path)
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MAX_CONFIG + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise ConfigError([ConfigProblem(file, None, "", f"cannot be read: {why or error}")]) from error
    if len(data) > MAX_CONFIG:
        raise ConfigError([ConfigProblem(file, None, "", f"want a file of at most {MAX_CONFIG} bytes")])
    return parse_config(data, file, endpoint_problem, supplies)


def parse_config(
    text: str | bytes,
    file: str,
    endpoint_problem: EndpointProblem = _accept_all,
    supplies: Supplies = NOT_LOOKED_AT,
) -> Config:
    """Read a config; `file` is its name in the problems.

    Raises ConfigError with all problems, or with the first one of a text that is no YAML.
    """
    problems = Problems(file)
    try:
        root = compose(_decoded(text), problems)
    except NotYamlError as error:
        raise ConfigError([ConfigProblem(file, error.line, "", f"not YAML: {error.text}")]) from error
    if root is None or root.is_empty:
        return Config()
    try:
        config = _config(root, endpoint_problem, supplies)
    finally:
        _take_apart(root)
    if problems.found:
        raise ConfigError(problems.in_order())
    return config


def changes(old: Config, new: Config) -> list[str]:
    """Return what differs between two configs, a line for each key: `limits.foo.max: 500 -> 600`."""
    told = [f"{key}: {before} -> {after}" for key, show in _SHOWN_KEYS if (before := show(old)) != (after := show(new))]
    olds = {limit.name: limit for limit in old.limits}
    news = {limit.name: limit for limit in new.limits}
    for name, limit in news.items():
        if name in olds:
            told += _limit_changes(olds[name], limit, observe=old.observe == new.observe)
        else:
            told.append(f"limits.{name}: new")
    told += [f"limits.{name}: removed" for name in olds if name not in news]
    if [name for name in olds if name in news] != [name for name in news if name in olds]:
        told.append("limits: order changed")
    if old.overrides != new.overrides:
        told.append("overrides: changed")
    if old.notify != new.notify:
        told.append("notify: changed")
    return told + list(_cluster_changes(old.cluster, new.cluster))


def needs_restart(old: Config, new: Config) -> list[str]:
    """Return the keys that differ and that a reload cannot change."""
    return [key for key in ("listen", "control", "database", "cluster") if getattr(old, key) != getattr(new, key)]


_SHOWN_KEYS: tuple[tuple[str, Callable[[Config], str]], ...] = (
    ("listen", lambda config: ", ".join(config.listen)),
    ("control", lambda config: config.control or "the default place"),
    ("database", lambda config: config.database or "the default place"),
    ("history", lambda config: format_duration(config.history) if config.history else "0"),
    ("history_rows", lambda config: str(config.history_rows)),
    ("max_accounts", lambda config: str(config.max_accounts)),
    ("account.attributes", lambda config: ", ".join(config.attributes)),
    ("account.lowercase", lambda config: str(config.lowercase).lower()),
    ("observe", lambda config: str(config.observe).lower()),
)

_SHOWN_LIMIT_KEYS: tuple[tuple[str, Callable[[Limit], str]], ...] = (
    ("count", lambda limit: limit.count),
    ("per", lambda limit: limit.per),
    ("max", lambda limit: limit.shown_max),
    ("action", lambda limit: limit.action.template),
    ("lock", lambda limit: _lock_shown(limit.lock_for)),
    ("observe", lambda limit: str(limit.observe).lower()),
)


def _limit_changes(old: Limit, new: Limit, *, observe: bool) -> Iterable[str]:
    """Say how a limit changed; its `observe` only where it did not follow the top-level one."""
    for key, show in _SHOWN_LIMIT_KEYS:
        before, after = show(old), show(new)
        if before != after and (observe or key != "observe"):
            yield f"limits.{new.name}.{key}: {before} -> {after}"


def _cluster_changes(old: ClusterConfig | None, new: ClusterConfig | None) -> Iterable[str]:
    if old is None or new is None:
        if old != new:
            yield f"cluster: {old.store.url if old else 'none'} -> {new.store.url if new else 'none'}"
        return
    for (key, before), after in zip(old.shown().items(), new.shown().values(), strict=True):
        if before != after:
            yield f"cluster.{key}: {before} -> {after}"


def _lock_shown(seconds: float | None) -> str:
    if seconds is None:
        return "no"
    return "until-unlocked" if seconds == UNTIL_UNLOCKED else format_duration(seconds)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _decoded(text: str | bytes) -> str:
    if isinstance(text, str):
        return text
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise NotYamlError(line, f"want UTF-8, got the byte 0x{text[error.start]:02x}") from error


def _take_apart(root: Value) -> None:
    """Free the nodes of a file one by one: all at once, those of a large one would stop all threads for 60 ms."""
    nodes = [root.node]
    while nodes:
        inner, nodes[-1].value = nodes[-1].value, []
        nodes.pop()
        if isinstance(inner, list):
            for child in inner:
                nodes.extend(child if isinstance(child, tuple) else (child,))


def _config(root: Value, endpoint_problem: EndpointProblem, supplies: Supplies) -> Config:
    """Read the sections; where problems were noted, what is returned means nothing."""
    fields = root.fields(_SECTIONS, "a mapping of sections such as 'limits:'") or {}
    attributes, lowercase = optional(fields, "account", sections.account, (DEFAULT_ATTRIBUTES, DEFAULT_LOWERCASE))
    observe = optional(fields, "observe", Value.truth, False)
    limits, kinds = sections.limits(fields.get("limits"))
    return Config(
        listen=optional(fields, "listen", lambda value: sections.listen(value, endpoint_problem), DEFAULT_LISTEN),
        control=optional(fields, "control", sections.control, None),
        database=optional(fields, "database", sections.database, None),
        history=optional(fields, "history", sections.history, DEFAULT_HISTORY),
        history_rows=optional(fields, "history_rows", sections.history_rows, DEFAULT_HISTORY_ROWS),
        max_accounts=optional(fields, "max_accounts", sections.max_accounts, DEFAULT_MAX_ACCOUNTS),
        attributes=attributes,
        lowercase=lowercase,
        observe=observe,
        limits=tuple(replace(limit, observe=True) for limit in limits) if observe else limits,
        overrides=optional(fields, "overrides", lambda value: sections.overrides(value, kinds), ()),
        notify=optional(fields, "notify", lambda value: notify(value, supplies), NOBODY_TOLD),
        cluster=optional(fields, "cluster", lambda value: cluster(value, supplies), None),
    )
