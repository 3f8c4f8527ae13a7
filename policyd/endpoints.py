"""Twisted's endpoint strings, `tcp:10045:interface=127.0.0.1`, taken apart without Twisted."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ARGUMENT = re.compile(r":((?:[^:\\]|\\.?)*)", re.DOTALL)
_EQUALS = re.compile(r"(?<!\\)=")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The kind of an endpoint, and its arguments: those without a name in order, and those with one."""

    kind: str
    unnamed: tuple[str, ...]
    named: dict[str, str]

    def first(self, name: str) -> str:
        """Return the argument that comes first or has this name, "" where there is none."""
        return self.unnamed[0] if self.unnamed else self.named.get(name, "")


def parse_endpoint(text: str) -> Endpoint:
    """Take an endpoint string apart; a backslash takes the meaning from a colon, an equals sign and a backslash."""
    unnamed: list[str] = []
    named: dict[str, str] = {}
    for argument in _ARGUMENT.findall(text):
        name, *value = (_ESCAPE.sub(r"\1", part) for part in _EQUALS.split(argument, maxsplit=1))
        if value:
            named[name] = value[0]
        else:
            unnamed.append(name)
    return Endpoint(text.partition(":")[0], tuple(unnamed), named)
