"""`policyctl queue`: one account's messages in this host's Postfix queue, and orders to hold, release or delete them.

`ctl_join` says whose a message is, `ctl_postfix` asks Postfix. Nothing is done to a message without two looks at its
queue file: one when it is listed, and one right before the order, a small batch at a time. So a queue id that has been
given to another message meanwhile is noticed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Protocol, TextIO, TypeVar
from urllib.parse import urlencode

from policyd.ctl_client import DONE, REFUSED, USAGE, Ask, CtlError, Question, Told
from policyd.ctl_history import MAX_MESSAGES, QUEUE_ID, question
from policyd.ctl_join import Envelope, Past, Queued, match, objection, past
from policyd.ctl_layout import Column, Screen, counted, moment, printable, shell_word, table
from policyd.ctl_postfix import ORDERS, Envelopes, Order, Postfix

MAX_IDS = 100
"""Queue ids that the daemon takes in one question."""

FILES = 500
"""Queue files that are looked at in one go when messages are listed."""

BATCH = 250
"""Messages between the last look at their files and the order: the two commands take less than 0.1 s for so many."""

TRIES = 3
"""So often a batch is looked at and the order given: a message that Postfix just moves between its queues is missed."""

MAX_FLUSHED = 1000
"""Released messages that are tried at once: each takes a command of some 3 ms. Postfix tries others within minutes."""

CALM = 0.1
"""Seconds between two changes of the line that shows how far it is."""

DOING = {"hold": ("held", "hold"), "release": ("released", "release"), "delete": ("deleted", "delete")}
"""What each order is called when it is done, and when it is not."""

T = TypeVar("T")


class Clerk(Protocol):
    """Looks at queue files and takes orders, as Postfix does."""

    def envelopes(self, queue_ids: Sequence[str]) -> Envelopes:
        """Return what the files of these messages say."""

    def give(self, order: Order, queue_ids: Sequence[str]) -> tuple[set[str], str]:
        """Return the messages to which this was done, and what went wrong."""

    def flush(self, queue_id: str) -> str:
        """Try to deliver a message, and return what went wrong."""


class Progress:
    """One line on a terminal that says how far it is; anything else than a terminal hears nothing of it."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if stream is not None and stream.isatty() else None
        self._next = 0.0

    def show(self, text: str) -> None:
        """Say this in place of what was said before, unless that is too new."""
        if self._stream is not None and (now := time.monotonic()) >= self._next:
            self._next = now + CALM
            self._write(f"\r\x1b[K{text}")

    def clear(self) -> None:
        """Take it all back."""
        if self._stream is not None:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()


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


def run(args: argparse.Namespace, ask: Ask, screen: Screen) -> Told:
    """Find the account's messages, and do to them what is wanted; raises CtlError."""
    if args.yes and args.order is None:
        raise CtlError(USAGE, "--yes to what? Want one of --hold, --release and --delete with it")
    postfix, progress = Postfix(args.postfix_config), Progress(sys.stderr)
    report = Report(args.account, args.order, dry_run=args.order is not None and not args.yes)
    try:
        search(report, args, ask, postfix, progress)
        if args.yes:
            obey(report, ORDERS[args.order], postfix, progress)
    finally:
        progress.clear()
    status = REFUSED if report.failed or report.problems else DONE
    return Told([json.dumps(as_json(report), indent=2)] if args.json else as_text(report, args, screen), status)


def search(report: Report, args: argparse.Namespace, ask: Ask, postfix: Postfix, progress: Progress) -> None:
    """Find the account's messages in the queue: in the list, in the history, and in their files."""
    value = ask(question(args.account, n=MAX_MESSAGES, since=args.since, verdict=args.verdict))
    own = {one for one in map(past, value["messages"]) if _wanted_past(one, args)}
    report.more = bool(value["more"])
    report.account = next((one.account for one in own), args.account)
    ids = {one.queue_id for one in own if QUEUE_ID.fullmatch(one.queue_id)}
    queue, report.unreadable = postfix.queue(ids.__contains__, lambda n: progress.show(f"the queue: {n} messages"))
    wanted = [message for message in queue.values() if _wanted_queued(message, args)]
    candidates: dict[str, tuple[Queued, Past]] = {}
    for message, found in _matched(wanted, ask, progress):
        if isinstance(found, str):
            report.left_alone.append((message, found))
        elif found in own:
            candidates[message.queue_id] = (message, found)
    for batch in _batches(sorted(candidates), FILES):
        progress.show(f"queue files: {len(report.found)} of {len(candidates)}")
        envelopes = postfix.envelopes(batch)
        for queue_id in envelopes.unreadable:
            report.left_alone.append((candidates[queue_id][0], "its queue file cannot be read"))
        for queue_id, envelope in envelopes.known.items():
            message, found = candidates[queue_id]
            if doubt := objection(message, found, envelope):
                report.left_alone.append((message, doubt))
            else:
                report.found.append(Found(message, found, envelope))
    report.found.sort(key=lambda one: (one.past.began, one.queued.queue_id))
    report.left_alone.sort()


def _wanted_past(message: Past, args: argparse.Namespace) -> bool:
    return args.client is None or message.client == args.client


def _wanted_queued(message: Queued, args: argparse.Namespace) -> bool:
    """Tell whether a message is one of those asked for, and in a queue where the order finds something to do."""
    if args.order is not None and message.queue not in ORDERS[args.order].queues:
        return False
    return args.queue is None or message.queue == args.queue


def _matched(queue: Sequence[Queued], ask: Ask, progress: Progress) -> Iterator[tuple[Queued, Past | str | None]]:
    """Yield each message with the one of the history that it is, of all that had its queue id in any account."""
    number = 0
    for batch in _batches(queue, MAX_IDS):
        progress.show(f"the history: {number} of {len(queue)} messages")
        number += len(batch)
        history = _history(ask, [message.queue_id for message in batch])
        for message in batch:
            known = history.get(message.queue_id)
            yield message, "its queue id is too frequent in the history" if known is None else match(message, known)


def _history(ask: Ask, queue_ids: Sequence[str]) -> dict[str, list[Past]]:
    """Return all messages of the history that had these ids; an id that had more than can be told is left out."""
    asked = [("queue_id", queue_id) for queue_id in queue_ids]
    value = ask(Question("/history?" + urlencode(asked)))
    if value["more"]:
        if len(queue_ids) == 1:
            return {}
        half = len(queue_ids) // 2
        return {**_history(ask, queue_ids[:half]), **_history(ask, queue_ids[half:])}
    history: dict[str, list[Past]] = {queue_id: [] for queue_id in queue_ids}
    for message in map(past, value["messages"]):
        history[message.queue_id].append(message)
    return history


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def obey(report: Report, order: Order, postfix: Clerk, progress: Progress) -> None:
    """Give an order for all messages found that are still the same, until all is done or something fails."""
    try:
        _give(report, order, postfix, progress)
        if order is ORDERS["release"] and not report.problems:
            _flush(report, postfix, progress)
    except CtlError as error:
        report.problems += error.lines
    except KeyboardInterrupt:
        report.problems.append("interrupted: what was last being done may be done or not")
    settled = {*report.done, *report.gone, *report.failed}
    report.failed += [one.queued.queue_id for one in report.found if one.queued.queue_id not in settled]


def _give(report: Report, order: Order, postfix: Clerk, progress: Progress) -> None:
    for batch in _batches(report.found, BATCH):
        progress.show(f"{order.done}: {len(report.done)} of {len(report.found)}")
        left = {one.queued.queue_id: one.envelope for one in batch}
        same: list[str] = []
        problem = ""
        for _ in range(TRIES):
            now = postfix.envelopes(list(left)).known
            same = [queue_id for queue_id, envelope in left.items() if now.get(queue_id) == envelope]
            done, problem = postfix.give(order, same) if same else (set[str](), "")
            report.done += [queue_id for queue_id in left if queue_id in done]
            left = {queue_id: envelope for queue_id, envelope in left.items() if queue_id not in done}
            if problem or not left or not same:
                break
        for queue_id in left:
            (report.failed if queue_id in same else report.gone).append(queue_id)
        if problem:
            report.problems.append(f"postsuper failed: {problem}")
            return


def _flush(report: Report, postfix: Clerk, progress: Progress) -> None:
    """Have the released messages tried now, and no others."""
    for number, queue_id in enumerate(report.done[:MAX_FLUSHED]):
        progress.show(f"delivery: {number} of {len(report.done)}")
        if problem := postfix.flush(queue_id):
            report.problems.append(f"released, but not tried at once: {problem}")
            return


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
    recipients = sum(one.queued.recipients for one in report.found)
    total = f"{counted(len(report.found), 'message')} of {report.account}, to {counted(recipients, 'recipient')}"
    if report.order is None:
        yield f"{total}, in the queue"
        return
    done, do = DOING[report.order]
    if report.dry_run:
        yield (
            f"nothing is done yet: to {do} {total}, add --yes:"
            if report.found
            else f"there is nothing to {do}: {total}"
        )
        if report.found:
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


def _command(args: argparse.Namespace) -> str:
    """Return the command that does what was only listed."""
    options = [("--socket", args.socket), ("-c", args.config), ("--postfix-config", args.postfix_config)]
    options += [
        ("--since", args.since),
        ("--verdict", args.verdict),
        ("--client", args.client),
        ("--queue", args.queue),
    ]
    named = [word for option, value in options if value is not None for word in (option, shell_word(value))]
    account = shell_word(args.account)
    words = ["policyctl", "queue", *named, f"--{args.order}", "--yes", *(["--"] if account.startswith("-") else [])]
    return " ".join([*words, account])
