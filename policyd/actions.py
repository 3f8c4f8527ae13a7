"""What Postfix is told: access(5) actions, and the texts that are filled in.

Whatever is filled into a template, an action stays one line of valid UTF-8 of at most 400 bytes: it can neither end
the line nor start another attribute of the reply.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass

MAX_ACTION = 400
"""Bytes of an action on the wire; Postfix itself cuts an SMTP reply at 510 bytes."""

PLACEHOLDERS = ("account", "limit", "max", "per", "count", "until")

DUNNO = "DUNNO"
"""The answer when nothing is exceeded; never OK, which would skip all later Postfix restrictions."""


class Effect(enum.Enum):
    """What an action does to the mail."""

    REFUSED = "refused"
    """The client is told no: the recipient, or at DATA the message, is not accepted."""
    HELD = "held"
    """Postfix accepts the whole message, and keeps it from its recipients."""
    PASSED = "passed"
    """The mail goes its way."""


EFFECTS = {
    "REJECT": Effect.REFUSED,
    "DEFER": Effect.REFUSED,
    "DEFER_IF_PERMIT": Effect.REFUSED,
    "HANGUP": Effect.REFUSED,
    "HOLD": Effect.HELD,
    "DISCARD": Effect.HELD,
    "REDIRECT": Effect.HELD,
    "DUNNO": Effect.PASSED,
    "OK": Effect.PASSED,
    "WARN": Effect.PASSED,
    "INFO": Effect.PASSED,
    "PREPEND": Effect.PASSED,
    "BCC": Effect.PASSED,
    "FILTER": Effect.PASSED,
    "DEFER_IF_REJECT": Effect.PASSED,
}
"""The actions of access(5), and what each does."""

_NEED_TEXT = {"REDIRECT", "PREPEND", "BCC", "FILTER"}
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Action:
    """An access(5) action with its text, as the config gives it."""

    word: str
    """`REJECT`, `HOLD`, … in capitals, or the SMTP code: `452`."""
    effect: Effect
    template: str
    """The whole action, with placeholders."""

    @property
    def stops(self) -> bool:
        """Whether it keeps mail from its recipients, as a lock must."""
        return self.effect is not Effect.PASSED

    def render(self, values: Mapping[str, object]) -> str:
        """Return the action for the wire, with `values` in place of its placeholders."""
        return one_line(_PLACEHOLDER.sub(lambda found: str(values.get(found[1], "")), self.template))


def one_line(text: str) -> str:
    """Return `text` as one printable line of at most MAX_ACTION bytes of UTF-8."""
    encoded = _UNPRINTABLE.sub("?", text).encode()
    return encoded[:MAX_ACTION].decode(errors="ignore").rstrip()


def parse_action(text: str) -> Action:
    """Read an action from the config.

    Raises ValueError, whose message says what is wanted, for what Postfix would take for a permit (no action, digits
    alone), for a server configuration error (an unknown word), and for what would break the reply (a line end).
    """
    if _UNPRINTABLE.search(text):
        raise ValueError("want an action on one line, without control characters")
    word, _, rest = text.strip().partition(" ")
    word, rest = word.upper(), rest.strip()
    if not word:
        raise ValueError("want an access(5) action such as 'REJECT 5.7.1 text': to Postfix an empty one means permit")
    if word.isdigit():
        effect = _reply_code(word, rest)
    elif word in EFFECTS:
        effect = EFFECTS[word]
        if word in _NEED_TEXT and not rest:
            raise ValueError(f"want an argument after {word}")
    else:
        raise ValueError(f"want an access(5) action ({', '.join(EFFECTS)}, or a 4xx or 5xx code with a text)")
    for name in _PLACEHOLDER.findall(text):
        if name not in PLACEHOLDERS:
            raise ValueError(f"want one of {' '.join('{' + known + '}' for known in PLACEHOLDERS)} in braces")
    template = f"{word} {rest}" if rest else word
    if len(template.encode()) > MAX_ACTION:
        raise ValueError(f"want an action of at most {MAX_ACTION} bytes")
    return Action(word, effect, template)


def _reply_code(code: str, text: str) -> Effect:
    # A placeholder may come to nothing: {until} of a lock without end.
    if not _PLACEHOLDER.sub("", text).strip():
        raise ValueError(f"want a text after {code}: to Postfix digits alone mean permit")
    if not re.fullmatch(r"[45][0-9][0-9]", code):
        raise ValueError("want a reply code from 400 to 599")
    return Effect.REFUSED
