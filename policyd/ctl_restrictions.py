"""What Postfix's settings say: `$name` expanded, restriction lists in steps, policy services with their options.

Without I/O. Whatever stands in a setting, each function ends soon and raises nothing: what Postfix itself would refuse
is read as far as it makes sense.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

MAX_NESTING = 20
"""Parameters in parameters, and restriction classes in restriction classes, that are followed."""

MAX_VALUE = 20_000
"""Characters that are expanded for one value, those of what it refers to included; what is beyond is not looked at."""

MAX_REFERENCES = 300
"""Pieces that are expanded for one value: each may refer to others twice."""

MAX_STEPS = 1_000
"""Restrictions of one list that are looked at, those of its restriction classes and their names included."""

MAX_DIGITS = 20
"""A number of more digits is compared as a text."""

ASK = "check_policy_service"
WARN = "warn_if_reject"

_SEPARATORS = ", \t\r\n"
_REFERENCE = re.compile(r"\$(?:\$|(\w+)|([{(]))", re.ASCII)
_ALONE = re.compile(r"\$(?:(\w+)|\{(\w+)\}|\((\w+)\))", re.ASCII)
_CONDITION = re.compile(r"(\w+)([?:])(.*)", re.ASCII | re.DOTALL)
_COMPARISON = re.compile(r"(==|!=|<=|>=|<|>)(level)?")
_TAKES_ARGUMENT = re.compile(
    r"check_\w+_access|check_policy_service|reject_rbl_client|reject_rhsbl_\w+|permit_dnswl_client|permit_rhswl_client"
    r"|sleep"
)
_TIME = re.compile(r"([0-9]{1,9})([smhdw]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_CLOSING = {"{": "}", "(": ")"}
_ORDERS = {"==": (0,), "!=": (-1, 1), "<": (-1,), "<=": (-1, 0), ">": (1,), ">=": (0, 1)}


def words(text: str, separators: str = _SEPARATORS) -> list[str]:
    """Return the words of a list; what stands in braces is one word, its separators and braces included."""
    found, word, depth = [], "", 0
    for character in text:
        if not depth and character in separators:
            if word:
                found.append(word)
            word = ""
            continue
        depth = max(0, depth + (character == "{") - (character == "}"))
        word += character
    return [*found, word] if word else found


def expand(text: str, raw: Callable[[str], str]) -> str:
    """Return a value with each `$name`, `${name}`, `$(name)`, `${name?then}` and `${{a} == {b} ? {c} : {d}}` expanded.

    `raw` returns the value of a parameter as it is written, "" where there is none.
    """
    return _Expansion(raw).of(text)


def alone(text: str) -> str:
    """Return the name of the parameter where a value is nothing but a reference to it, else ""."""
    found = _ALONE.fullmatch(text.strip())
    return next(filter(None, found.groups())) if found else ""


def seconds(text: str) -> int | None:
    """Return a time of Postfix's, such as `100s`, in seconds; None where it is none."""
    found = _TIME.fullmatch(text.strip())
    return int(found[1]) * _SECONDS[found[2]] if found else None


def level(text: str) -> tuple[int, ...]:
    """Return a compatibility level, `3.6`, as numbers that can be compared."""
    return tuple(int(part) for part in re.findall(r"[0-9]{1,9}", text)) or (0,)


@dataclass(frozen=True, slots=True)
class PolicyService:
    """What check_policy_service is told: a server, and its options where it stands in braces."""

    server: str
    """`inet:host:port` or `unix:path`."""
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """`inet` or `unix`; anything else is a mistake."""
        kind = self.server.partition(":")[0]
        return "unix" if kind == "local" else kind

    @property
    def host_and_port(self) -> tuple[str, str]:
        """Where an `inet` server listens."""
        host, _, port = self.server.partition(":")[2].rpartition(":")
        return host.strip("[]") or "localhost", port

    @property
    def path(self) -> str:
        """Where a `unix` server listens, as it is written."""
        return self.server.partition(":")[2]

    def written(self) -> str:
        """Return it as one word of a restriction list."""
        if not self.options:
            return self.server
        options = (
            f"{{ {name} = {value} }}" if re.search(r"[\s,{}]", value) else f"{name}={value}"
            for name, value in self.options.items()
        )
        return "{ " + ", ".join((self.server, *options)) + " }"


def parse_policy_service(argument: str) -> PolicyService:
    """Take the argument of check_policy_service apart, its parameters expanded."""
    if not argument.startswith("{"):
        return PolicyService(argument)
    server, *rest = words(_unbraced(argument)) or [""]
    options = {}
    for word in rest:
        name, equals, value = _unbraced(word).partition("=")
        if equals:
            options[name.strip()] = value.strip()
    return PolicyService(server, options)


@dataclass(frozen=True, slots=True)
class Step:
    """One restriction of a list, in lower case, and its argument."""

    word: str
    argument: str = ""
    warned: bool = False
    """Whether warn_if_reject stands before it."""


def steps(text: str, raw: Callable[[str], str], classes: Iterable[str]) -> list[Step]:
    """Return the restrictions of a list in order, those of restriction classes in the place of their class."""
    known = frozenset(classes)
    found: list[Step] = []
    expansion = _Expansion(raw)
    begun = [iter(words(expansion.of(text)))]
    warned = False
    for _ in range(MAX_STEPS):
        restriction = None
        while begun and (restriction := next(begun[-1], None)) is None:
            begun.pop()
        if restriction is None:
            break
        word = restriction.lower()
        if restriction in known:
            if len(begun) <= MAX_NESTING:
                begun.append(iter(words(expansion.of(raw(restriction)))))
        elif word != WARN:
            argument = next(begun[-1], "") if _TAKES_ARGUMENT.fullmatch(word) else ""
            found.append(Step(word, argument, warned))
        warned = word == WARN
    return found


def joined(restrictions: Iterable[str]) -> str:
    """Write words as a list again: each restriction with its argument, and a comma between two."""
    text, separator = "", ""
    for word in restrictions:
        text += separator + word
        separator = " " if word.lower() == WARN or _TAKES_ARGUMENT.fullmatch(word.lower()) else ", "
    return text


def _unbraced(word: str) -> str:
    return word[1:-1].strip() if word.startswith("{") and word.endswith("}") else word


class _Expansion:
    """The expansion of one value, or of some that belong together, with bounds on all that is done for it."""

    def __init__(self, raw: Callable[[str], str]) -> None:
        self._raw = raw
        self._pieces = MAX_REFERENCES
        self._characters = MAX_VALUE

    def of(self, text: str, nesting: int = MAX_NESTING) -> str:
        """Return a text with what it refers to."""
        self._pieces -= 1
        text = text[: max(0, self._characters)]
        self._characters -= len(text)
        if nesting <= 0 or self._pieces <= 0:
            return ""
        parts: list[str] = []
        at = 0
        while (found := _REFERENCE.search(text, at)) and self._pieces > 0:
            name, bracket = found.groups()
            before, at = text[at : found.start()], found.end()
            if name:
                meaning = self._value(name, nesting)
            elif bracket:
                inside = _bracketed(text, at, bracket)
                at += len(inside) + 1
                meaning = self._meaning(inside.strip(), nesting - 1)
            else:
                meaning = "$"
            parts += (before, meaning)
        return "".join((*parts, text[at:]))

    def _value(self, name: str, nesting: int) -> str:
        return self.of(self._raw(name), nesting - 1)

    def _meaning(self, inside: str, nesting: int) -> str:
        """Return what stands for the inside of `${…}`."""
        if inside.startswith("{"):
            return self._compared(inside, nesting)
        condition = _CONDITION.fullmatch(inside)
        if condition is None:
            return self._value(inside, nesting)
        name, mark, rest = condition.groups()
        return self._chosen(mark, rest, nesting, is_true=self._value(name, nesting) != "")

    def _chosen(self, mark: str, rest: str, nesting: int, *, is_true: bool) -> str:
        then, otherwise = rest.strip(), ""
        if then.startswith("{"):
            first = "{" + _bracketed(then, 1, "{") + "}"
            otherwise = then[len(first) :].strip().removeprefix(":")
            then = first
        if mark == ":":
            then, otherwise = otherwise, then
        return self.of(_unbraced((then if is_true else otherwise).strip()), nesting - 1)

    def _compared(self, inside: str, nesting: int) -> str:
        left = _bracketed(inside, 1, "{")
        rest = inside[len(left) + 2 :].strip()
        operator = _COMPARISON.match(rest)
        if operator is None:
            return ""
        rest = rest[operator.end() :].strip()
        right = _bracketed(rest, 1, "{")
        rest = rest[len(right) + 2 :].strip()
        if not rest.startswith("?"):
            return ""
        values = [self.of(side.strip(), nesting - 1) for side in (left, right)]
        is_true = _holds(values[0], operator[1], values[1], levels=bool(operator[2]))
        return self._chosen("?", rest[1:], nesting, is_true=is_true)


def _bracketed(text: str, start: int, bracket: str) -> str:
    """Return what stands between a bracket and the one that closes it; all there is where none does."""
    depth = 1
    for at in range(start, len(text)):
        depth += (text[at] == bracket) - (text[at] == _CLOSING[bracket])
        if not depth:
            return text[start:at]
    return text[start:]


def _holds(left: str, operator: str, right: str, *, levels: bool) -> bool:
    one: tuple[int, ...] | str = left
    other: tuple[int, ...] | str = right
    if levels:
        one, other = level(left), level(right)
    elif all(side.isascii() and side.isdigit() and len(side) < MAX_DIGITS for side in (left, right)):
        one, other = (int(left),), (int(right),)
    order = (one > other) - (one < other)  # type: ignore[operator]
    return order in _ORDERS[operator]
