"""What this node of a cluster has to know again after a restart: small texts, which the database keeps.

That is which life of the store it knew last, how many nodes there were, and what it has still to tell the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

Key = tuple[str, str]
"""A kind, and a name among those of the kind."""


def _nobody(_stored: Mapping[Key, str]) -> None:
    """Tell nobody."""


class Facts:
    """The facts; without a database they last as long as the daemon."""

    def __init__(self) -> None:
        self.on_restored: Callable[[Mapping[Key, str]], None] = _nobody
        """Is told of what the database had, when that is known."""
        self._values: dict[Key, str] = {}
        self._changed: dict[Key, str | None] = {}
        """What has changed since it was handed over last; None: it is gone."""

    def get(self, kind: str, name: str = "") -> str | None:
        """Return a fact; None: it is not known."""
        return self._values.get((kind, name))

    def of(self, kind: str) -> Iterator[str]:
        """Yield all facts of a kind."""
        yield from [text for (found, _), text in self._values.items() if found == kind]

    def put(self, kind: str, name: str, text: str | None) -> None:
        """Note a fact; None: it is one no more."""
        key = (kind, name)
        if self._values.get(key) == text:
            return
        self._changed[key] = text
        if text is None:
            del self._values[key]
        else:
            self._values[key] = text

    def restore(self, stored: Iterable[tuple[str, str, str]]) -> None:
        """Go on from what was stored; what has changed since the start is newer."""
        found = {(kind, name): text for kind, name, text in stored}
        self._values = {key: text for key, text in found.items() if key not in self._changed} | self._values
        self.on_restored(found)

    def take_changed(self) -> dict[Key, str | None]:
        """Return what is to be stored."""
        changed, self._changed = self._changed, {}
        return changed

    def note_all(self) -> None:
        """Have all stored again."""
        self._changed |= self._values
