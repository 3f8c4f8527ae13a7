"""policyctl: ask the running daemon how things stand, and tell it what to do.

Each command is one request over the daemon's control socket. The standard library only, so that it starts at once; a
traceback is never an answer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlencode

from policyd import __version__, ctl_text
from policyd.ctl_client import DONE, INTERRUPTED, REFUSED, USAGE, CtlError, Question, ask
from policyd.ctl_text import Json, Screen
from policyd.durations import parse_duration
from policyd.paths import control_sockets


@dataclass(frozen=True, slots=True)
class Command:
    """A command of policyctl: what it takes, what it asks the daemon, and how it tells the answer."""

    name: str
    does: str
    why: str
    arguments: tuple[tuple[str, dict[str, Any]], ...]
    question: Callable[[argparse.Namespace], Question]
    text: Callable[[Json, argparse.Namespace, Screen], list[str]]


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("want a path that is not empty")
    return text


def _typed(text: str) -> str:
    r"""Return what was typed as the daemon names it: bytes that are no UTF-8 appear as `\xNN`."""
    typed = os.fsencode(text).decode(errors="backslashreplace")
    if not typed:
        raise argparse.ArgumentTypeError("want a text that is not empty")
    return typed


def _reason(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("want a text that is not empty")
    return _typed(text)


def _percent(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}%?", text) or (percent := int(text.rstrip("%"))) > 100:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"want a percentage from 0 to 100 such as 80%, got {text!r}")
    return percent


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"want a whole number above 0, got {text!r}")
    return int(text)


def _duration(text: str) -> str:
    try:
        parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, got {text!r}") from None
    return text


def _status_question(args: argparse.Namespace) -> Question:
    return Question("/status" if args.account is None else "/status?" + urlencode({"account": args.account}))


def _status_text(value: Json, args: argparse.Namespace, screen: Screen) -> list[str]:
    return ctl_text.status(value, screen) if args.account is None else ctl_text.account(value, screen)


def _accounts_question(args: argparse.Namespace) -> Question:
    asked = {"sort": args.sort, "n": args.n, "over": args.over}
    return Question("/accounts?" + urlencode({key: value for key, value in asked.items() if value is not None}))


def _lock_question(args: argparse.Namespace) -> Question:
    wanted = {"account": args.account, "reason": args.reason, "for": args.duration, "hold": args.hold}
    return Question("/lock", wanted)


ACCOUNT = (
    "account",
    {"metavar": "ACCOUNT", "type": _typed, "help": "the account's name: the login, as Postfix sees it"},
)

COMMANDS = (
    Command(
        "status",
        "how the daemon is, or how one account stands",
        "Run it first when something seems wrong: it says whether Postfix asks policyd at all, what it has answered,\n"
        "and what is not as it should be. With an ACCOUNT: whether and why it is locked, how much it has used of each\n"
        "limit and when that falls, what was refused, and from which addresses it has been sending.",
        (("account", {**ACCOUNT[1], "nargs": "?", "help": "tell about this account; without it, about the daemon"}),),
        _status_question,
        _status_text,
    ),
    Command(
        "accounts",
        "who sends most now",
        "Run it to see who is about to reach a limit, or to find the account behind a burst of mail.",
        (
            (
                "--sort",
                {
                    "choices": ("messages", "recipients", "refused"),
                    "default": "messages",
                    "help": "what to sort by, the most first (default: messages)",
                },
            ),
            ("-n", {"type": _number, "default": 20, "metavar": "N", "help": "show so many accounts (default: 20)"}),
            (
                "--over",
                {"type": _percent, "metavar": "80%", "help": "only accounts that have used so much of some limit"},
            ),
        ),
        _accounts_question,
        lambda value, args, screen: ctl_text.accounts(value, args.over, screen),
    ),
    Command(
        "locked",
        "every lock: since when, until when, by whom and why",
        "Run it at the start of a shift: each of these accounts cannot send, and its owner may call.",
        (),
        lambda _args: Question("/locked"),
        lambda value, _args, screen: ctl_text.locked(value, screen),
    ),
    Command(
        "lock",
        "stop an account from sending, now",
        "Run it for an account that you know to be hijacked, before it reaches a limit. An account that is locked\n"
        "already gets the new lock instead.",
        (
            ACCOUNT,
            (
                "--reason",
                {"required": True, "type": _reason, "metavar": "TEXT", "help": "why; who is refused is told this too"},
            ),
            (
                "--for",
                {
                    "dest": "duration",
                    "type": _duration,
                    "metavar": "2h",
                    "help": "free it after this time: 45s, 30m, 1h30m, 7d (default: when somebody unlocks it)",
                },
            ),
            (
                "--hold",
                {"action": "store_true", "help": "accept its mail into Postfix's hold queue, instead of refusing"},
            ),
        ),
        _lock_question,
        lambda value, _args, screen: ctl_text.lock_made(value, screen),
    ),
    Command(
        "unlock",
        "free accounts",
        "Run it once the owner has a new password. The account's windows start anew, so that it is not locked again\n"
        "by what was sent before. To free an account that is not locked is no error.",
        (("account", {**ACCOUNT[1], "nargs": "+"}),),
        lambda args: Question("/unlock", {"accounts": args.account}),
        lambda value, _args, _screen: ctl_text.unlocked(value),
    ),
    Command(
        "reset",
        "forget an account's counts",
        "Run it for an account that has reached a limit for a good reason and has to send on.\n"
        "A lock stays: unlock undoes it.",
        (ACCOUNT,),
        lambda args: Question("/reset", {"account": args.account}),
        lambda value, _args, _screen: ctl_text.counts_reset(value),
    ),
    Command(
        "reload",
        "read the config file again",
        "Run it after a change of the config: it says what has changed, or what is wrong with the file. A file with a\n"
        "mistake changes nothing. No connection is dropped, no count and no lock is lost.",
        (),
        lambda _args: Question("/reload", {}),
        lambda value, _args, _screen: ctl_text.reloaded(value),
    ),
)

DESCRIPTION = """\
Ask the running policyd who sends how much, who is locked and why; lock and free accounts.
policyd answers Postfix's policy requests and keeps each account within its limits."""

EPILOG = """\
examples:
  policyctl status                          is all well?
  policyctl status anna@example.com         why can Anna not send?
  policyctl unlock anna@example.com         Anna has a new password: let her send
  policyctl lock bert@example.com --reason "password on a phishing site" --for 12h
  policyctl accounts --over 80%             who is close to a limit?
  policyctl locked --json | jq -r '.[].account'

exit status:
  0  done
  1  the daemon said no, and why
  2  the command was not understood
  3  the daemon is not running, does not answer, or its socket is closed to you

the daemon's socket is, in this order:
  --socket PATH; $POLICYD_CONTROL; `control:` in the file named with -c;
  else the first that listens of: {places}"""


def _parser() -> argparse.ArgumentParser:
    style: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    epilog = EPILOG.format(places=", ".join(map(str, control_sockets())))
    parser = argparse.ArgumentParser("policyctl", description=DESCRIPTION, epilog=epilog, **style)
    parser.set_defaults(socket=None, config=None, json=False)
    parser.add_argument("--version", action="version", version=f"policyctl {__version__}")
    _add_common_options(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        child = commands.add_parser(command.name, help=command.does, description=command.why, **style)
        for flag, settings in command.arguments:
            child.add_argument(flag, **settings)
        child.set_defaults(command=command)
        _add_common_options(child)
    return parser


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options that stand before or after the command: a default there would undo what was said before it."""
    common: dict[str, Any] = {"default": argparse.SUPPRESS}
    parser.add_argument("--json", action="store_true", help="print the daemon's answer as JSON, for programs", **common)
    parser.add_argument("--socket", type=_path, metavar="PATH", help="the daemon's control socket", **common)
    parser.add_argument(
        "-c", dest="config", type=_path, metavar="FILE", help="the config that names the control socket", **common
    )


def _places(args: argparse.Namespace) -> list[str]:
    named = args.socket or os.environ.get("POLICYD_CONTROL") or (args.config and _configured(args.config))
    return [named] if named else [str(place) for place in control_sockets()]


def _configured(file: str) -> str | None:
    from policyd.config import ConfigError, read_config  # noqa: PLC0415 -- YAML is slow to load, and seldom needed

    try:
        return read_config(file).control
    except ConfigError as error:
        raise CtlError(USAGE, f"cannot use {file}", str(error).splitlines()) from None


def _answer(args: argparse.Namespace) -> list[str]:
    command: Command = args.command
    value = ask(_places(args), command.question(args))
    if args.json:
        return [json.dumps(value, indent=2)]
    try:
        width = os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):
        width = None
    try:
        return command.text(value, args, Screen(datetime.now(timezone.utc), width=width))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        problem = f"the daemon's answer is not what policyctl {__version__} expects: is policyd of the same version?"
        raise CtlError(REFUSED, problem) from None


def _complain(lines: Sequence[str]) -> None:
    with contextlib.suppress(OSError):
        print("\n".join(map(ctl_text.printable, lines)), file=sys.stderr)


def _run() -> int:
    try:
        lines = _answer(_parser().parse_args())
    except CtlError as error:
        _complain(error.lines)
        return error.status
    print("\n".join(lines))
    return DONE


def _give_up_output(error: OSError) -> int:
    """Turn to nowhere what nobody can take: a reader that has seen enough (`| head`) is no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(error, BrokenPipeError):
        return DONE
    _complain([f"policyctl: cannot write the answer: {error.strerror}"])
    return REFUSED


def main() -> int:
    """Run policyctl and return its exit status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 -- as long as we run
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            status = _run()
        except SystemExit as end:
            status = int(end.code or DONE)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        return _give_up_output(error)
    return status


if __name__ == "__main__":
    sys.exit(main())
