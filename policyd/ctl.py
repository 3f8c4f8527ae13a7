"""policyctl: ask the running daemon how things stand, and tell it what to do.

`ctl_commands` has the commands. The standard library only, so that it starts at once; a traceback is never an answer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

from policyd import __version__
from policyd.ctl_arguments import path
from policyd.ctl_client import DONE, INTERRUPTED, REFUSED, USAGE, Ask, CtlError, Told, ask
from policyd.ctl_commands import COMMANDS, Command
from policyd.ctl_layout import Screen
from policyd.paths import control_sockets
from policyd.words import printable

COMPLETE = "__complete"
"""What the shells' completion begins its question with; no command for people."""

DESCRIPTION = """\
Ask the running policyd who sends how much, who is locked and why; lock and free accounts.
policyd answers Postfix's policy requests and keeps each account within its limits."""

EPILOG = """\
examples:
  policyctl status                          is all well?
  policyctl status anna@example.com         why can Anna not send?
  policyctl unlock anna@example.com         Anna has a new password: let her send
  policyctl lock bert@example.com --reason "password on a phishing site" --for 12h
  policyctl allow news@example.com messages-per-half-hour 5000 --for 24h
  policyctl accounts --over 80%             who is close to a limit?
  policyctl history anna@example.com --since 2h     what has Anna sent?
  policyctl queue anna@example.com          what of it waits in Postfix's queue?
  policyctl locked --json | jq -r '.[].account'
  policyctl doctor                          does Postfix ask as it should?

exit status:
  0  done
  1  the daemon or Postfix said no, and why; a part was not done; a test was not taken;
     doctor has found faults
  2  the command was not understood
  3  the daemon is not running, does not answer, or its socket is closed to you

the daemon's socket is, in this order:
  --socket PATH; $POLICYD_CONTROL; `control:` in the file named with -c;
  else the first that listens of: {places}"""


MAX_COMMAND = 40
"""Characters of an unknown command for which one is looked for that looks like it."""


class _Parser(argparse.ArgumentParser):
    """A parser that names the command which an unknown one looks like, instead of all that there are."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = action.choices
        if not isinstance(action, argparse._SubParsersAction) or choices is None or value in choices:
            super()._check_value(action, value)
            return
        import difflib  # noqa: PLC0415 -- only who has mistyped needs it

        close = difflib.get_close_matches(value, list(choices), 1) if len(value) <= MAX_COMMAND else []
        advice = f"did you mean {close[0]}?" if close else "policyctl --help shows what there is"
        raise argparse.ArgumentError(None, f"there is no command {value[:MAX_COMMAND]!r}: {advice}")


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """Return what was typed; SystemExit, with the usage of the command, where it makes no sense."""
    args, unknown = _parser().parse_known_args(words)
    if unknown:
        parser: argparse.ArgumentParser = args.parser
        parser.error(f"unrecognized arguments: {' '.join(map(printable, unknown))}")
    return args


def _parser() -> argparse.ArgumentParser:
    style: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    epilog = EPILOG.format(places=", ".join(map(str, control_sockets())))
    parser = _Parser("policyctl", description=DESCRIPTION, epilog=epilog, **style)
    parser.set_defaults(socket=None, config=None, json=False)
    parser.add_argument("--version", action="version", version=f"policyctl {__version__}")
    _add_common_options(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        child = commands.add_parser(command.name, help=command.does, description=command.why, **style)
        for flag, settings in command.arguments:
            child.add_argument(flag, **settings)
        child.set_defaults(command=command, run=command.run, parser=child)
        _add_common_options(child)
    return parser


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options that stand before or after the command: a default there would undo what was said before it."""
    common: dict[str, Any] = {"default": argparse.SUPPRESS}
    parser.add_argument("--json", action="store_true", help="print the answer as JSON, for programs", **common)
    parser.add_argument("--socket", type=path, metavar="PATH", help="the daemon's control socket", **common)
    parser.add_argument(
        "-c", dest="config", type=path, metavar="FILE", help="the config that names the control socket", **common
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


def _answer(args: argparse.Namespace) -> Told:
    command: Command = args.command
    try:
        width = os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):
        width = None
    screen = Screen(datetime.now(timezone.utc), width=width)
    run: Callable[[argparse.Namespace, Ask, Screen], Told] | None = args.run
    try:
        if run is not None:
            return run(args, lambda question: ask(_places(args), question), screen)
        value = ask(_places(args), command.question(args))
        return Told([json.dumps(value, indent=2)] if args.json else command.text(value, args, screen))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        problem = f"the daemon's answer is not what policyctl {__version__} expects: is policyd of the same version?"
        raise CtlError(REFUSED, problem) from None


def _complain(lines: Sequence[str]) -> None:
    with contextlib.suppress(OSError):
        print("\n".join(map(printable, lines)), file=sys.stderr)


def _run() -> int:
    if sys.argv[1:2] == [COMPLETE]:
        from policyd import ctl_complete  # noqa: PLC0415 -- only a shell needs it

        return ctl_complete.run(_parser(), sys.argv[2:], _places)
    try:
        told = _answer(_parsed(sys.argv[1:]))
    except CtlError as error:
        _complain(error.lines)
        return error.status
    print(*told.lines, sep=told.end, end=told.end if told.lines else "")
    sys.stdout.flush()
    if told.remarks:
        _complain(told.remarks)
    return told.status


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
            if status and "--nagios" in sys.argv:
                from policyd.ctl_nagios import wrong_usage  # noqa: PLC0415 -- as above

                status = wrong_usage()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        return _give_up_output(error)
    return status


if __name__ == "__main__":
    sys.exit(main())
