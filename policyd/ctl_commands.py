"""The commands of policyctl: what each takes, what it asks the daemon, and how it tells the answer.

A command that is one question to the daemon has a `question` and a `text`; one that takes several steps has a `run`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlencode

from policyd import ctl_allow, ctl_history, ctl_notify, ctl_text
from policyd.ctl_arguments import duration, most, network, number, path, percent, reason, seconds, typed
from policyd.ctl_client import USAGE, Ask, CtlError, Question, Told
from policyd.ctl_layout import Json, Screen


def _nothing_asked(_args: argparse.Namespace) -> Question:
    raise NotImplementedError("a command without a question has a run")


def _nothing_told(_value: Json, _args: argparse.Namespace, _screen: Screen) -> list[str]:
    raise NotImplementedError("a command without a text has a run")


@dataclass(frozen=True, slots=True)
class Command:
    """A command of policyctl: what it takes, what it asks the daemon, and how it tells the answer."""

    name: str
    does: str
    why: str
    arguments: tuple[tuple[str, dict[str, Any]], ...]
    question: Callable[[argparse.Namespace], Question] = _nothing_asked
    text: Callable[[Json, argparse.Namespace, Screen], list[str]] = _nothing_told
    run: Callable[[argparse.Namespace, Ask, Screen], Told] | None = None
    """Does it all, in place of `question` and `text`: for what is not one question and its answer."""


def _nagios(args: argparse.Namespace, asked: Ask, _screen: Screen) -> Told:
    from policyd import ctl_nagios  # noqa: PLC0415 -- only a monitor needs it

    return ctl_nagios.run(args, asked)


def _top(args: argparse.Namespace, asked: Ask, _screen: Screen) -> Told:
    from policyd import ctl_top  # noqa: PLC0415 -- it needs threads and terminals, which take time to load

    return ctl_top.run(args, asked)


def _doctor(args: argparse.Namespace, asked: Ask, _screen: Screen) -> Told:
    from policyd import ctl_doctor  # noqa: PLC0415 -- no other command needs what it loads

    value = ctl_doctor.examine(args, asked)
    lines = [json.dumps(value, indent=2)] if args.json else ctl_doctor.text(value)
    return Told(lines, ctl_doctor.exit_status(value))


def _notify_question(args: argparse.Namespace) -> Question:
    return Question("/notify-test", {}) if args.test else Question("/notify")


def _status_question(args: argparse.Namespace) -> Question:
    if args.warning_locked is not None or args.critical_locked is not None:
        raise CtlError(USAGE, "--warning-locked and --critical-locked go with --nagios")
    return Question("/status" if args.account is None else "/status?" + urlencode({"account": args.account}))


def _status_text(value: Json, args: argparse.Namespace, screen: Screen) -> list[str]:
    return ctl_text.status(value, screen) if args.account is None else ctl_text.account(value, screen)


def _accounts_question(args: argparse.Namespace) -> Question:
    asked = {"sort": args.sort, "n": args.n, "over": args.over}
    return Question("/accounts?" + urlencode({key: value for key, value in asked.items() if value is not None}))


def _lock_question(args: argparse.Namespace) -> Question:
    wanted = {"account": args.account, "reason": args.reason, "for": args.duration, "hold": args.hold}
    return Question("/lock", wanted)


class _OneOf(argparse.Action):
    """An option that stores its constant, and bears no other option of the same destination beside it."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object) -> None:
        if getattr(namespace, self.dest) not in (None, self.const):
            raise argparse.ArgumentError(self, f"not allowed with --{getattr(namespace, self.dest)}")
        setattr(namespace, self.dest, self.const)


def _queue(args: argparse.Namespace, ask: Ask, screen: Screen) -> Told:
    from policyd import ctl_queue  # noqa: PLC0415 -- what starts processes is slow to load, and seldom needed

    return ctl_queue.run(args, ask, screen)


ACCOUNT = (
    "account",
    {"metavar": "ACCOUNT", "type": typed, "help": "the account's name: the login, as Postfix sees it"},
)

SINCE = (
    "--since",
    {"type": duration, "metavar": "2h", "help": "only messages of the last 45s, 30m, 1h30m, 7d (default: all)"},
)
VERDICT = (
    "--verdict",
    {"choices": ctl_history.VERDICTS, "help": "only messages of which this became"},
)

_CLIENT: dict[str, Any] = {"type": network, "action": "append", "metavar": "ADDRESS"}
CLIENTS = (
    ("--client", {**_CLIENT, "help": "only messages from this address or network (192.0.2.0/24); may be repeated"}),
    ("--except-client", {**_CLIENT, "help": "only messages from elsewhere; may be repeated"}),
)

_SENDER: dict[str, Any] = {"type": typed, "action": "append", "metavar": "SENDER"}
SENDERS = (
    (
        "--sender",
        {
            **_SENDER,
            "help": "only messages of this envelope sender, as the client gave it (<> for none); may be repeated",
        },
    ),
    ("--except-sender", {**_SENDER, "help": "only messages of others; may be repeated"}),
)


def _allow_question(args: argparse.Namespace) -> Question:
    return ctl_allow.question(args, datetime.now(timezone.utc))


_LIMIT: dict[str, Any] = {"metavar": "LIMIT", "type": typed}

COMMANDS = (
    Command(
        "status",
        "how the daemon is, or how one account stands",
        "Run it first when something seems wrong: it says whether Postfix asks policyd at all, what it has answered,\n"
        "and what is not as it should be. With an ACCOUNT: whether and why it is locked, how much it has used of each\n"
        "limit and when that falls, what was refused, and from which addresses it has been sending.",
        (
            ("account", {**ACCOUNT[1], "nargs": "?", "help": "tell about this account; without it, about the daemon"}),
            (
                "--nagios",
                {
                    "dest": "run",
                    "action": "store_const",
                    "const": _nagios,
                    "help": "be a plugin of Nagios, Icinga or the like: one line with figures, and an exit status of\n"
                    "0 OK, 1 WARNING (there are problems), 2 CRITICAL (the daemon does not answer), 3 UNKNOWN",
                },
            ),
            ("--warning-locked", {"type": most, "metavar": "N", "help": "with --nagios: WARNING beyond N locks"}),
            ("--critical-locked", {"type": most, "metavar": "N", "help": "with --nagios: CRITICAL beyond N locks"}),
        ),
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
                    "choices": ("messages", "recipients", "clients", "senders", "bytes", "refused"),
                    "default": "messages",
                    "help": "what to sort by, the most first (default: messages)",
                },
            ),
            ("-n", {"type": number, "default": 20, "metavar": "N", "help": "show so many accounts (default: 20)"}),
            (
                "--over",
                {"type": percent, "metavar": "80%", "help": "only accounts that have used so much of some limit"},
            ),
        ),
        _accounts_question,
        lambda value, args, screen: ctl_text.accounts(value, args.over, screen),
    ),
    Command(
        "top",
        "who sends now, refreshed every second",
        "Run it during an attack, or to watch what a change does: requests and answers a second, the latest locks,\n"
        "and who sends most. s changes what is sorted by, q ends it. With --json: two looks, and the rates between.",
        (
            (
                "--every",
                {"type": seconds, "default": 1.0, "metavar": "S", "help": "seconds between two looks (default: 1)"},
            ),
        ),
        lambda _args: Question("/status"),
        lambda value, _args, screen: ctl_text.status(value, screen),
        _top,
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
                {"required": True, "type": reason, "metavar": "TEXT", "help": "why; who is refused is told this too"},
            ),
            (
                "--for",
                {
                    "dest": "duration",
                    "type": duration,
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
    Command(
        "allow",
        "give an account another maximum for a time",
        "Run it for an exception that ends by itself: a mailing that was announced, or a sender to be slowed down.\n"
        "Until then MAX is the account's maximum, above limits and overrides of the config; what it has sent stays\n"
        "counted, and what it was allowed for this limit before is over. A locked account stays locked: see unlock.\n"
        "What is to be permanent is an override in the config.",
        (
            ACCOUNT,
            ("limit", {**_LIMIT, "help": "a limit of the config: policyctl status ACCOUNT shows them"}),
            (
                "max",
                {
                    "metavar": "MAX",
                    "type": ctl_allow.maximum,
                    "help": "how many may pass: a number, 2G of bytes, or unlimited",
                },
            ),
            ("--for", {"dest": "duration", "type": duration, "metavar": "24h", "help": "for this time: 30m, 24h, 7d"}),
            (
                "--until",
                {
                    "type": ctl_allow.until,
                    "metavar": "DATE",
                    "help": 'until then: "2026-12-01 18:00" by this computer\'s clock, or with Z or +01:00 behind it; '
                    "2026-12-01 is until the end of that day. At most 366 days from now",
                },
            ),
            ("--reason", {"type": reason, "metavar": "TEXT", "help": "why; for the log, and for who asks later"}),
        ),
        _allow_question,
        lambda value, _args, screen: ctl_allow.allowed(value, screen),
    ),
    Command(
        "allowances",
        "every allowance: for whom, how much, until when, by whom and why",
        "Run it to see which exceptions are in force, the one that ends next first.",
        (),
        lambda _args: Question("/allowances"),
        lambda value, _args, screen: ctl_allow.allowances(value, screen),
    ),
    Command(
        "disallow",
        "take back what an account was allowed",
        "Run it when an exception is over before its time: the config's maximum is in force again. What was sent\n"
        "stays counted. To take back what is not allowed is no error.",
        (
            ACCOUNT,
            ("limit", {**_LIMIT, "nargs": "?", "help": "only the allowance for this limit; without it, all it has"}),
        ),
        lambda args: Question("/disallow", {"account": args.account, "limit": args.limit}),
        lambda value, args, screen: ctl_allow.disallowed(value, args.limit, screen),
    ),
    Command(
        "history",
        "the latest messages of one account, and what became of them",
        "Run it to see what an account has sent: when, from where, as whom, to how many, and whether it passed.\n"
        "It reads like a log: the newest message stands last. -0 prints bare queue ids, for xargs -0.",
        (
            ACCOUNT,
            SINCE,
            VERDICT,
            *CLIENTS,
            (
                "-n",
                {
                    "type": number,
                    "metavar": "N",
                    "help": f"the newest so many (default: {ctl_history.SHOWN}; with -0: {ctl_history.MAX_MESSAGES})",
                },
            ),
            (
                "-0",
                {"dest": "nul", "action": "store_true", "help": "print queue ids alone, each once and ended by NUL"},
            ),
        ),
        run=ctl_history.run,
    ),
    Command(
        "queue",
        "an account's messages that still wait in Postfix's queue; hold, release or delete them",
        "Run it on the mail server, as root, when an account has sent spam: it finds the account's messages that are\n"
        "still in the queue of this host's Postfix, also where the sender is forged. What is not certainly its own\n"
        "is left alone. --hold, --release and --delete only list what they would do; with --yes too, they do it.",
        (
            ACCOUNT,
            SINCE,
            VERDICT,
            *CLIENTS,
            *SENDERS,
            ("--queue", {"choices": ("hold", "deferred", "active", "incoming"), "help": "only messages in this queue"}),
            *(
                (f"--{order}", {"dest": "order", "action": _OneOf, "const": order, "nargs": 0, "help": does})
                for order, does in (
                    ("hold", "put what is found on hold: it is kept, and not delivered"),
                    ("release", "release what is found on hold, and deliver it now"),
                    ("delete", "delete what is found, for good"),
                )
            ),
            ("--yes", {"action": "store_true", "help": "do it, instead of listing what would be done"}),
            (
                "--postfix-config",
                {"type": path, "metavar": "DIR", "help": "the Postfix instance: its folder with main.cf"},
            ),
        ),
        run=_queue,
    ),
    Command(
        "doctor",
        "what is wrong between Postfix and policyd, and what mends it",
        "Run it after each change of main.cf or master.cf, and when something is not counted: it reads Postfix's\n"
        "configuration and the daemon's state, and names each fault with the lines that mend it. It changes nothing.\n"
        "Exit status 1 where there are faults. As root it sees more. --json prints the faults for programs.",
        (
            (
                "--postfix-config",
                {"type": path, "metavar": "DIR", "help": "the folder of main.cf (default: what postconf says)"},
            ),
        ),
        run=_doctor,
    ),
    Command(
        "notify",
        "how telling people goes, and whether it works",
        "Run it with --test after a change of `notify:`, and when nobody was told of a lock: it sends a test by mail,\n"
        "webhook and command, at once, and says what came of each. Without, it shows what each has sent, what waits,\n"
        "and why.",
        (("--test", {"action": "store_true", "help": "send a test to the desk by each channel"}),),
        _notify_question,
        lambda value, args, _screen: ctl_notify.tested(value) if args.test else ctl_notify.notices(value),
    ),
)
