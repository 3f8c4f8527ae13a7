"""YAML with line numbers: each value knows its place, and each problem is noted, not only the first.

Nothing is constructed from tags, and nothing raises but `compose`, which refuses what is no YAML at all.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import yaml

T = TypeVar("T")


class Mark(Protocol):
    """A place in the text; its line counts from 0."""

    line: int


MAX_DEPTH = 32
"""Levels of nesting; a config needs six."""

MAX_SHOWN = 64
"""Characters of a value that an error shows."""

MAX_NAMES = 16
"""Known names that an error lists."""

_MAP, _SEQ, _STR, _INT, _BOOL, _NULL, _MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "bool", "null", "merge")
)
_STANDARD_TAG = "tag:yaml.org,2002:"
_BOOLS = {"yes": True, "no": False, "true": True, "false": False, "on": True, "off": False}
_SIMPLE = re.compile(r"[A-Za-z0-9_.:+-]+")

_PLAIN_WORDS = (
    (r"character '\\t'", "a tab, where YAML wants spaces", False),
    (r"character ('.*?'|\".*?\") that cannot start", r"text that begins with \1 needs quotes around it", False),
    (r"scanning an alias", "text that begins with '*' needs quotes around it", False),
    (r"scanning an anchor", "text that begins with '&' needs quotes around it", False),
    (r"undefined alias '(.*)'", r"nothing above is named &\1 (text that begins with '*' needs quotes)", False),
    (r"duplicate anchor '(.*)';", r"the name &\1 is given twice", False),
    (r"mapping values", "a colon where none can be: check the indentation, or put quotes around the text", False),
    (r"quoted scalar: found unexpected end", "a quote is opened here, and never closed", True),
    (r"flow sequence", "a list is opened here with '[', and lacks a comma or its ']'", True),
    (r"flow mapping", "a mapping is opened here with '{', and lacks a comma or its '}'", True),
    (r"'<document start>'", "text goes on after the end of the document", False),
    (r"found '<scalar>'$", "text goes on after a closing quote or bracket: put quotes around all of it", False),
    (r"found '<(?:document|stream) end>'$", "a document without content", False),
    (r"<block end>", "the indentation does not fit the lines above", False),
    (r"single document", "a second document begins here", False),
    (r"could not find expected ':'", "a key without its colon", False),
    (r"node content, but found ('.*')", r"\1 where a value should be", False),
    (r"unknown escape character ('.*')", r"no escape \1 (in single quotes a backslash is only itself)", False),
)
"""What PyYAML says, what a person is told, and whether the place is where the context began."""


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing that is wrong with a config file, and where."""

    file: str
    line: int | None
    """Counts from 1; None where the file as a whole is meant."""
    key: str
    """`limits.messages-per-half-hour.max`; empty where no key is meant."""
    text: str
    """What is wrong: `want a whole number above 0, got 'five'`."""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.key}: {self.text}" if self.key else f"{place}: {self.text}"


@dataclass(slots=True)
class Problems:
    """All that is wrong with one file."""

    file: str
    found: list[ConfigProblem] = field(default_factory=list)

    def note(self, line: int | None, key: str, text: str) -> None:
        """Add a problem."""
        self.found.append(ConfigProblem(self.file, line, key, text))

    def in_order(self) -> tuple[ConfigProblem, ...]:
        """Return the problems in the order of their lines; those of other files that it names come last."""
        return tuple(sorted(self.found, key=lambda problem: (problem.file != self.file, problem.line or 0)))


class NotYamlError(Exception):
    """The text is no YAML document."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the file, and its place.

    Its readers return None for a value of another type, once that is noted.
    """

    node: yaml.Node
    key: str
    key_line: int
    problems: Problems

    @property
    def line(self) -> int:
        """The line where the value begins, which may be below its key."""
        return _line(self.node.start_mark)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was written, or null."""
        return isinstance(self.node, yaml.ScalarNode) and self.node.tag == _NULL

    @property
    def written(self) -> str | None:
        """The characters of a scalar whatever its type, None for a list or a mapping."""
        if isinstance(self.node, yaml.ScalarNode) and self.node.tag.startswith(_STANDARD_TAG):
            return str(self.node.value)
        return None

    def problem(self, text: str) -> None:
        """Note what is wrong with this value."""
        self.problems.note(self.line, self.key, text)

    def refuse(self, wanted: str) -> None:
        """Note what is wanted in place of this value."""
        self.problem(f"want {wanted}, got {shown(self.node)}")

    def lacks(self, name: str, wanted: str) -> None:
        """Note a key that this mapping should have."""
        self.problems.note(self.key_line, _joined(self.key, name), f"missing, want {wanted}")

    def entries(self, wanted: str = "a mapping") -> dict[str, Value] | None:
        """Return the values of a mapping by their keys."""
        if not isinstance(self.node, yaml.MappingNode) or self.node.tag != _MAP:
            self.refuse(wanted)
            return None
        found: dict[str, Value] = {}
        for key, node in self.node.value:
            line = _line(key.start_mark)
            if key.tag == _MERGE:
                self.problems.note(line, self.key, "merge keys (<<) are not read here: write the keys out")
            elif not isinstance(key, yaml.ScalarNode) or key.tag != _STR:
                self.problems.note(line, self.key, f"want a key that is text, in quotes if need be, got {shown(key)}")
            elif key.value in found:
                first = found[key.value]
                self.problems.note(line, first.key, f"duplicate key, first on line {first.key_line}")
            else:
                found[key.value] = Value(node, _joined(self.key, key.value), line, self.problems)
        return found

    def fields(self, known: Collection[str], wanted: str = "a mapping") -> dict[str, Value] | None:
        """Return the values of a mapping whose keys are all known."""
        entries = self.entries(wanted)
        if entries is None:
            return None
        for name in [name for name in entries if name not in known]:
            entries.pop(name).unknown("key", name, known)
        return entries

    def unknown(self, kind: str, name: str, known: Collection[str]) -> None:
        """Note that the key of this value is not among those known."""
        self.problems.note(self.key_line, self.key, f"unknown {kind}, {suggestion(name, known)}")

    def items(self, wanted: str) -> list[Value] | None:
        """Return the values of a list."""
        if not isinstance(self.node, yaml.SequenceNode) or self.node.tag != _SEQ:
            self.refuse(wanted)
            return None
        return [
            Value(node, f"{self.key}[{index}]", _line(node.start_mark), self.problems)
            for index, node in enumerate(self.node.value)
        ]

    def text(self, wanted: str) -> str | None:
        """Return a text that is not empty."""
        return self._or_refuse(self.written if self.node.tag == _STR and self.written else None, wanted)

    def whole_number(self, wanted: str) -> int | None:
        """Return a whole number."""
        return self._or_refuse(_whole_number(self.node), wanted)

    def truth(self, wanted: str = "true or false") -> bool | None:
        """Return true or false."""
        return self._or_refuse(self.as_truth(), wanted)

    def as_truth(self) -> bool | None:
        """Return true or false, or None for anything else, which is not noted."""
        if not isinstance(self.node, yaml.ScalarNode) or self.node.tag != _BOOL:
            return None
        return _BOOLS.get(self.node.value.lower())

    def _or_refuse(self, found: T | None, wanted: str) -> T | None:
        if found is None:
            self.refuse(wanted)
        return found


def shown(node: yaml.Node) -> str:
    """Return a value as an error shows it: short, on one line, numbers as written and text in quotes."""
    if not node.tag.startswith(_STANDARD_TAG):
        return f"a value tagged {clipped(node.tag)}"
    if isinstance(node, yaml.ScalarNode):
        if node.tag == _NULL:
            return "nothing"
        plain = node.tag != _STR and len(node.value) <= MAX_SHOWN and _SIMPLE.fullmatch(node.value)
        return str(node.value) if plain else clipped(node.value)
    return "a mapping" if isinstance(node, yaml.MappingNode) else "a list"


def clipped(text: str) -> str:
    """Return `text` in quotes, on one line, without what is beyond MAX_SHOWN characters."""
    return repr(text) if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]!r}…"


def suggestion(name: str, known: Collection[str]) -> str:
    """Return what the writer of an unknown name may have meant."""
    if len(name) <= MAX_SHOWN and (close := difflib.get_close_matches(name.lower(), known, 1)):
        return f"did you mean {close[0]!r}?"
    names = ", ".join(list(known)[:MAX_NAMES]) + (", …" if len(known) > MAX_NAMES else "")
    return f"want one of {names}" if names else "there are none"


def compose(text: str, problems: Problems) -> Value | None:
    """Return the one document of a YAML text, or None where it is empty.

    Raises NotYamlError when it is no YAML, or more than one document.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise NotYamlError(line, f"the character U+{ord(text[error.position]):04X} cannot stand in YAML") from error
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _in_plain_words(error) from error
    except (ValueError, OverflowError) as error:
        # PyYAML hands an escape such as "\UFFFFFFFF" to chr() as it is.
        raise NotYamlError(_line(loader.get_mark()), "an escape that names no character") from error
    finally:
        loader.dispose()
    return None if node is None else Value(node, "", 1, problems)


class _Loader(yaml.SafeLoader):
    """PyYAML's loader, within MAX_DEPTH, and without values that contain themselves."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._within: list[str | None] = []

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        peek: Callable[[], yaml.NodeEvent] = self.peek_event
        event = peek()
        if isinstance(event, yaml.AliasEvent) and event.anchor in self._within:
            raise NotYamlError(_line(event.start_mark), f"*{event.anchor} contains itself")
        if len(self._within) >= MAX_DEPTH:
            raise NotYamlError(_line(event.start_mark), f"nested more than {MAX_DEPTH} levels deep")
        self._within.append(None if isinstance(event, yaml.AliasEvent) else event.anchor)
        node = super().compose_node(parent, index)
        self._within.pop()
        return node


def _line(mark: Mark | None) -> int:
    return mark.line + 1 if mark else 1


def _in_plain_words(error: yaml.MarkedYAMLError) -> NotYamlError:
    said = ": ".join(part for part in (error.context, error.problem) if part)
    mark = error.problem_mark or error.context_mark
    for pattern, words, at_context in _PLAIN_WORDS:
        if found := re.search(pattern, said):
            if at_context:
                mark = error.context_mark or mark
            said = found.expand(words)
            break
    return NotYamlError(_line(mark), said[:200])


def _whole_number(node: yaml.Node) -> int | None:
    if not isinstance(node, yaml.ScalarNode) or node.tag != _INT or ":" in node.value:
        return None  # to YAML 1.1, 1:30 is 90
    try:
        return int(yaml.SafeLoader("").construct_yaml_int(node))
    except (ValueError, IndexError):
        # An explicit !!int before other text, or more digits than Python reads.
        return None


def _joined(key: str, name: str) -> str:
    part = name if len(name) <= MAX_SHOWN and _SIMPLE.fullmatch(name) else clipped(name)
    return f"{key}.{part}" if key else part
