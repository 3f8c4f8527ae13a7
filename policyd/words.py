"""Text from outside as it can be shown: to a person, a log, a terminal, a shell."""

from __future__ import annotations

import shlex


def printable(text: str) -> str:
    r"""Return `text` with control characters, line ends, bidi overrides and the like as `\x1b`, `\n`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shell_word(text: str) -> str:
    """Return `text` as one printable word that bash reads as `text`, in any locale."""
    if text.isprintable():
        return shlex.quote(text)
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else _as_bytes(c) for c in quoted) + "'"


def _as_bytes(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogatepass"))
