"""Configs for tests, and what is wrong with them."""

from __future__ import annotations

import re

import pytest

from policyd.config import ConfigError, parse_config

Rows = list[tuple[str, "str | list[str]"]]
"""Configs, each with what is wrong with it."""

MESSAGES = "limits:\n  foo:\n    count: messages\n    per: 30m\n    max: 500\n    action: HOLD\n"
RECIPIENTS = "limits:\n  foo:\n    count: recipients\n    per: message\n    max: 500\n    action: HOLD\n"
GOOD = "{count: messages, per: 1h, max: 5, action: HOLD}"
LONG = "x" * 64


def limit(base: str = MESSAGES, **values: object) -> str:
    """Return a good limit with other values: `count` stands on line 3, and what is added on line 7."""
    for key, value in values.items():
        line = "" if value is None else f"    {key}: {value}\n"
        base, found = re.subn(rf"    {key}: .*\n", lambda _, line=line: line, base)  # type: ignore[misc]
        base += "" if found else line
    return base


def override(item: str) -> str:
    """Return a config with one override."""
    return f"overrides:\n  - {item}"


def problems(text: str) -> list[str]:
    """Return what is wrong with a config, without the name of its file."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "policyd.yaml")
    lines = [str(problem) for problem in caught.value.problems]
    assert str(caught.value) == "\n".join(lines)
    assert all(line.startswith("policyd.yaml:") for line in lines)
    return [line.removeprefix("policyd.yaml:") for line in lines]


def expected(told: str | list[str]) -> list[str]:
    """Return a row's problems as a list."""
    return [told] if isinstance(told, str) else told
