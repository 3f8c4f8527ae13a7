"""What `policyctl queue` has found and done, told to a person or as JSON: without I/O."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone

from policyd.ctl_history import MAX_MESSAGES
from policyd.ctl_join import Envelope, Past, Queued
from policyd.ctl_layout import Column, Screen, account_word, counted, moment, table
from policyd.words import printable, shell_word

MAX_FLUSHED = 1000
"""Released messages that are tried at once: each takes a command of some 3 ms. Postfix tries others within minutes."""

DOING = {"hold": ("held", "hold"), "release": ("released", "release"), "delete": ("deleted", "delete")}
"""What each order is called when it is done, and when it is not."""

FILTERS = ("since", "verdict", "client", "except_client", "sender", "except_sender", "queue")
"""What narrows down which of an account's messages are asked for."""


@dataclass(frozen=True, slots=True)
class Found:
    """One message in the queue, and the message of the history that it is."""

    queued: Queued
    past: Past
    envelope: Envelope


@dataclass(slots=True)
class Report:
    """All that there is to tell; the lists stay empty where nothing was found or done."""

    account: str
    order: str | None
    dry_run: bool
    more: bool = False
    """Whether the history has more messages of the account than the daemon gives: those are not looked for."""
    heard_of: bool = True
    """Whether the history has any message of the account's."""
    others: int = 0
    """Messages of the account in the queue that are not what was asked for; counted only where none is that."""
    unreadable: int = 0
    """Messages that Postfix lists in a form that cannot be read."""
    found: list[Found] = field(default_factory=list)
    left_alone: list[tuple[Queued, str]] = field(default_factory=list)
    """Messages that may be the account's, and why that is not sure."""
    done: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    """Queue ids of messages that had left the queue before the order."""
    failed: list[str] = field(default_factory=list)
    """Queue ids of messages of which it is not known that the order was done."""
    problems: list[str] = field(default_factory=list)


def as_json(report: Report) -> dict[str, object]:
    """Return the report as docs/queue.md tells its shape."""
    return {
        "account": report.account,
        "order": report.order,
        "dry_run": report.dry_run,
        "messages": [
            {
                **_queued_json(one.queued),
                "size": one.queued.size,
                "recipients": one.queued.recipients,
                "began": _iso(one.past.began),
                "at": _iso(one.past.at),
                "client": one.past.client,
                "verdict": one.past.verdict,
            }
            for one in report.found
        ],
        "left_alone": [{**_queued_json(message), "why": why} for message, why in report.left_alone],
        "done": report.done,
        "gone": report.gone,
        "failed": report.failed,
        "problems": report.problems,
        "unreadable": report.unreadable,
        "more": report.more,
        "others": report.others,
    }


def _queued_json(message: Queued) -> dict[str, object]:
    return {
        "queue_id": message.queue_id,
        "queue": message.queue,
        "arrived": _iso(message.arrived),
        "sender": "" if message.sender == NULL_SENDER else message.sender,
    }


NULL_SENDER = "MAILER-DAEMON"
"""What `postqueue` calls the null sender."""


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def as_text(report: Report, args: argparse.Namespace, screen: Screen) -> list[str]:
    """Tell the report: the messages, what was left alone, and last what was done, or how to do it."""
    lines: list[str] = []
    if report.found:
        columns = [
            Column("arrived"),
            Column("queue id"),
            Column("queue"),
            Column("verdict"),
            Column("to go", right=True),
            Column("size", right=True),
            Column("client"),
            Column("sender", least=16),
        ]
        lines += [*table(columns, [_row(one, screen) for one in report.found], screen), ""]
    if report.left_alone:
        rows = [(message.queue_id, message.queue, why) for message, why in report.left_alone]
        lines += [f"left alone, for it is not sure that it is {report.account}'s:"]
        lines += [*table([Column(""), Column(""), Column("")], rows, screen)[1:], ""]
    return [*map(printable, lines), *map(printable, _summary(report, args))]


def _row(one: Found, screen: Screen) -> tuple[object, ...]:
    queued = one.queued
    sender = "<>" if queued.sender == NULL_SENDER else queued.sender
    arrived = moment(_iso(queued.arrived), screen)
    return (
        arrived,
        queued.queue_id,
        queued.queue,
        one.past.verdict,
        queued.recipients,
        queued.size,
        one.past.client,
        sender,
    )


def _summary(report: Report, args: argparse.Namespace) -> Iterable[str]:
    if report.unreadable:
        yield f"{counted(report.unreadable, 'message')} of the queue could not be read"
    if report.more:
        yield f"the history has more than {MAX_MESSAGES} messages of this account: older ones were not looked for"
    if not report.found:
        yield (f"there is nothing to {DOING[report.order][1]}: " if report.order else "") + _nothing(report, args)
        return
    recipients = sum(one.queued.recipients for one in report.found)
    total = f"{counted(len(report.found), 'message')} of {report.account}, to {counted(recipients, 'recipient')}"
    if report.order is None:
        yield f"{total}, in the queue"
        return
    done, do = DOING[report.order]
    if report.dry_run:
        yield f"nothing is done yet: to {do} {total}, add --yes:"
        yield f"  {_command(args)}"
        return
    yield f"{done}: {len(report.done)} of {total}"
    if report.gone:
        yield f"not {done}, because they had left the queue: {len(report.gone)}"
    if report.failed:
        yield f"NOT {done}: {len(report.failed)}: {' '.join(report.failed[:10])}{' …' if report.failed[10:] else ''}"
    yield from report.problems
    if report.order == "release" and len(report.done) > MAX_FLUSHED:
        yield f"the first {MAX_FLUSHED} are tried at once, the others when Postfix runs its queue (queue_run_delay)"


def _nothing(report: Report, args: argparse.Namespace) -> str:
    """Say why nothing was found: the account has nothing in the queue, or nothing of what was asked for."""
    if not report.others:
        whose = f"that is certainly {report.account}'s" if report.left_alone else f"of {report.account}"
        unheard = "" if report.heard_of else "; policyd knows of none it has sent"
        return f"no message {whose} is in the queue{unheard}"
    is_one = report.others == 1
    those = f"{'the one message' if is_one else counted(report.others, 'message')} of {report.account} in the queue"
    is_filtered = any(getattr(args, name) for name in FILTERS)
    if report.order == "hold" and not is_filtered:
        return f"{those} is on hold" if is_one else f"all {those} are on hold"
    wanted = "on hold" if report.order == "release" and not is_filtered else "what was asked for"
    return f"{those} is not {wanted}" if is_one else f"none of the {those} is {wanted}"


def _command(args: argparse.Namespace) -> str:
    """Return the command that does what was only listed."""
    options = [("--socket", args.socket), ("-c", args.config), ("--postfix-config", args.postfix_config)]
    options += [
        ("--since", args.since),
        ("--verdict", args.verdict),
        *(
            (f"--{name.replace('_', '-')}", value)
            for name in ("client", "except_client", "sender", "except_sender")
            for value in getattr(args, name) or ()
        ),
        ("--queue", args.queue),
    ]
    named = [word for option, value in options if value is not None for word in (option, shell_word(value))]
    return " ".join(["policyctl", "queue", *named, f"--{args.order}", "--yes", account_word(args.account)])
