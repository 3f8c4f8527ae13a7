"""What the shells' completion asks: `policyctl __complete WORD...` prints what the last word may become.

The words are those after `policyctl`, up to the cursor and without their quotes. The first line says what follows:
`words`, or `files` where the shell is to complete a path. Then a candidate a line, as it is, with a tab and what it
means where that is to be told. All that completes is found in policyctl's own parser; names are asked of the daemon,
and where that does not answer there are none. Nothing is ever said on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import urlencode

from policyd.ctl_client import DONE, Ask, CtlError, Question, ask

PATIENCE = 2.0
"""Seconds after which whoever has typed a tab would rather type on."""

MOST = 1000
"""Candidates that are shown at most, and accounts that are looked through."""

LOCKS = 10_000
"""Locks, the latest, that are looked through for one to unlock."""

FILES = ("PATH", "FILE")
"""What arguments are called that are files."""


class _Place(NamedTuple):
    """Where in a command line a word stands."""

    parser: argparse.ArgumentParser
    takes: argparse.Action | None
    """What the word is for; None: nothing can be said here, or only an option."""
    options: bool
    """Whether an option may stand here."""
    words: tuple[str, ...]
    """The values given for ACCOUNT and the like before."""


def run(
    parser: argparse.ArgumentParser, words: Sequence[str], places: Callable[[argparse.Namespace], list[str]]
) -> int:
    """Print the candidates for the last of `words`; returns the exit status."""
    *before, typed = [os.fsencode(word).decode(errors="backslashreplace") for word in words] or [""]
    place, given = _found(parser, before)
    if place.takes is not None and _called(place.takes) in FILES:
        print("files")
        return DONE
    print("words")
    with contextlib.suppress(CtlError, LookupError, TypeError, ValueError, AttributeError, OSError):
        candidates = _candidates(place, typed, lambda question: ask(places(given), question, PATIENCE))
        wanted = dict.fromkeys(line for line in candidates if line.startswith(typed))
        sys.stdout.write("".join(f"{line}\n" for line in list(wanted)[:MOST]))
    return DONE


def _found(parser: argparse.ArgumentParser, before: Sequence[str]) -> tuple[_Place, argparse.Namespace]:
    """Walk through the words before the one to complete, as the parser would."""
    given = argparse.Namespace(socket=None, config=None)
    waiting: argparse.Action | None = None
    options = True
    values: list[str] = []
    for word in before:
        if waiting is not None:
            setattr(given, waiting.dest, word)
            waiting = None
        elif options and word == "--":
            options = False
        elif options and word.startswith("-") and word != "-":
            waiting = _option(parser, word, given)
        elif (commands := _commands(parser)) is not None:
            parser = commands.choices.get(word) or argparse.ArgumentParser(add_help=False)  # type: ignore[union-attr]
        else:
            values.append(word)
    if waiting is not None:
        return _Place(parser, waiting, False, tuple(values)), given
    return _Place(parser, _positional(parser, len(values)), options, tuple(values)), given


def _option(parser: argparse.ArgumentParser, word: str, given: argparse.Namespace) -> argparse.Action | None:
    """Return the option that waits for its value after this word."""
    name, separator, value = word.partition("=")
    action = _options(parser).get(name)
    if action is None or action.nargs == 0:
        return None
    if separator:
        setattr(given, action.dest, value)
        return None
    return action


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {flag: action for action in parser._actions for flag in action.option_strings}


def _commands(parser: argparse.ArgumentParser) -> argparse.Action | None:
    return next((action for action in parser._actions if isinstance(action, argparse._SubParsersAction)), None)


def _positional(parser: argparse.ArgumentParser, number: int) -> argparse.Action | None:
    """Return what the next word is for that is no option, after so many of them."""
    actions = [action for action in parser._actions if not action.option_strings]
    for action in actions:
        if action.nargs in ("+", "*") or number == 0:
            return action
        number -= 1
    return None


def _called(action: argparse.Action) -> str:
    return action.metavar if isinstance(action.metavar, str) else action.dest


def _candidates(place: _Place, typed: str, asked: Ask) -> Iterator[str]:
    if place.options and typed.startswith("-"):
        for flag, option in _options(place.parser).items():
            yield f"{flag}\t{_meaning(option.help)}"
        return
    action = place.takes
    if action is None:
        return
    if isinstance(action, argparse._SubParsersAction):
        yield from (f"{choice.dest}\t{_meaning(choice.help)}" for choice in action._choices_actions)
    elif action.choices is not None:
        yield from map(str, action.choices)
    elif (names := SOURCES.get(_called(action))) is not None:
        for name in names(place, asked):
            if name and name.isprintable() and not (place.options and name.startswith("-")):
                yield name


def _meaning(text: str | None) -> str:
    return " ".join((text or "").split()).replace("%%", "%")


def _accounts(place: _Place, asked: Ask) -> Iterator[str]:
    """Yield the accounts that a command may be about: the locked ones, and those that send most."""
    if place.parser.prog.endswith(" unlock"):
        found = asked(Question("/locked?" + urlencode({"n": LOCKS})))
    else:
        query = urlencode({"n": MOST})
        found = asked(Question(f"/locked?{query}")) + asked(Question(f"/accounts?{query}"))
    return (each["account"] for each in found if each["account"] not in place.words)


def _limits(place: _Place, asked: Ask) -> Iterator[str]:
    """Yield the limits of the account that is named before, or of any."""
    account = asked(Question("/status?" + urlencode({"account": place.words[0] if place.words else "-"})))
    return (limit["name"] for limit in account["limits"])


SOURCES: dict[str, Callable[[_Place, Ask], Iterator[str]]] = {
    "ACCOUNT": _accounts,
    "LIMIT": _limits,
}
"""Where the names come from that arguments stand for, by what the arguments are called."""
