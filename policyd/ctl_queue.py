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
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TextIO, TypeVar
from urllib.parse import urlencode

from policyd.ctl_client import DONE, REFUSED, USAGE, Ask, CtlError, Question, Told
from policyd.ctl_clients import chosen
from policyd.ctl_history import MAX_MESSAGES, QUEUE_ID, question
from policyd.ctl_join import Past, Queued, match, objection, past
from policyd.ctl_layout import Screen
from policyd.ctl_postfix import ORDERS, Envelopes, Order, Postfix
from policyd.ctl_queue_report import FILTERS, MAX_FLUSHED, Found, Report, as_json, as_text

MAX_IDS = 100
"""Queue ids that the daemon takes in one question."""

FILES = 500
"""Queue files that are looked at in one go when messages are listed."""

BATCH = 250
"""Messages between the last look at their files and the order: the two commands take less than 0.1 s for so many."""

TRIES = 3
"""So often a batch is looked at and the order given: a message that Postfix just moves between its queues is missed."""

UNTOLD = "policyctl: done, but policyd's log may not tell of it"
"""How a remark begins about an order of which policyd could not be told."""

CALM = 0.1
"""Seconds between two changes of the line that shows how far it is."""

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


def run(args: argparse.Namespace, ask: Ask, screen: Screen) -> Told:
    """Find the account's messages, and do to them what is wanted; raises CtlError."""
    if args.yes and args.order is None:
        raise CtlError(USAGE, "--yes to what? Want one of --hold, --release and --delete with it")
    postfix, progress = Postfix(args.postfix_config), Progress(sys.stderr)
    report = Report(args.account, args.order, dry_run=args.order is not None and not args.yes)
    try:
        search(report, args, ask, postfix, progress)
        if not report.found:
            look_for_others(report, args, lambda every, plain: search(every, plain, ask, postfix, progress))
        if args.yes:
            obey(report, ORDERS[args.order], postfix, progress)
    finally:
        progress.clear()
    status = REFUSED if report.failed or report.problems else DONE
    lines = [json.dumps(as_json(report), indent=2)] if args.json else as_text(report, args, screen)
    return Told(lines, status, log(report, ask))


def log(report: Report, ask: Ask) -> list[str]:
    """Have policyd log what was done, and who did it; return what is to be said where it cannot."""
    done = frozenset(report.done)
    if not done:
        return []
    recipients = sum(one.queued.recipients for one in report.found if one.queued.queue_id in done)
    told = {"account": report.account, "order": report.order, "messages": len(done), "recipients": recipients}
    try:
        ask(Question("/queue-order", told))
    except CtlError as error:
        first, *rest = error.lines
        return [f"{UNTOLD}: {first.removeprefix('policyctl: ')}", *rest]
    except KeyboardInterrupt:
        return [f"{UNTOLD}: interrupted"]
    return []


def _chosen_senders(wanted: Sequence[str] | None, unwanted: Sequence[str] | None) -> Callable[[str], bool]:
    """Return what tells whether an envelope sender is meant, in whatever case: of `wanted`, and not of `unwanted`."""
    inside, outside = [{"" if text == "<>" else text.lower() for text in texts or ()} for texts in (wanted, unwanted)]
    return lambda sender: (not inside or sender.lower() in inside) and sender.lower() not in outside


def search(report: Report, args: argparse.Namespace, ask: Ask, postfix: Postfix, progress: Progress) -> None:
    """Find the account's messages in the queue: in the list, in the history, and in their files."""
    value = ask(question(args.account, n=MAX_MESSAGES, since=args.since, verdict=args.verdict, local=True))
    is_client, is_sender = chosen(args.client, args.except_client), _chosen_senders(args.sender, args.except_sender)
    own = {one for one in map(past, value["messages"]) if is_client(one.client) and is_sender(one.sender)}
    report.heard_of = bool(value["messages"])
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


def look_for_others(
    report: Report, args: argparse.Namespace, look: Callable[[Report, argparse.Namespace], None]
) -> None:
    """Count, where nothing was found of what was asked for, all that the account has in the queue."""
    plain = argparse.Namespace(**{**vars(args), "order": None, **dict.fromkeys(FILTERS)})
    if vars(plain) != vars(args):
        every = Report(args.account, None, dry_run=False)
        look(every, plain)
        report.account, report.others, report.heard_of = every.account, len(every.found), every.heard_of


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
