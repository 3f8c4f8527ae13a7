"""`policyctl history`: the latest messages of one account, for a person or for `xargs -0`.

People read it as a log: the newest message stands last, right above the shell's prompt. What is printed for xargs is
nothing but queue ids, so that no text from outside ever becomes an argument of another command.
"""

from __future__ import annotations

import argparse
import json
import re
from urllib.parse import urlencode

from policyd import ctl_cluster
from policyd.ctl_client import USAGE, Ask, CtlError, Question, Told
from policyd.ctl_layout import Column, Json, Screen, counted, moment, table
from policyd.durations import parse_duration
from policyd.words import printable

VERDICTS = ("passed", "held", "refused", "warned")
"""What can have become of a message."""

SHOWN = 50
"""Messages that are shown unless told otherwise: what can be taken in at a glance, and scrolled through."""

MAX_MESSAGES = 100_000
"""Messages that the daemon gives at once, at most; and how many queue ids `-0` prints unless told otherwise."""

QUEUE_ID = re.compile(r"[A-Za-z0-9]{1,64}")
"""What Postfix's queue ids are made of, short and long; the longest there are have less than 32 characters."""


def question(account: str, *, n: int, since: str | None, verdict: str | None, local: bool = False) -> Question:
    """Ask for the latest `n` messages of an account; `since` is a length of time such as `2h`.

    With `local`, only for those that came through this machine: another one's queue ids mean nothing here.
    """
    asked: dict[str, object] = {"account": account}
    if local:
        asked["local"] = 1
    if since is not None:
        asked["since"] = int(parse_duration(since))
    if verdict is not None:
        asked["verdict"] = verdict
    return Question("/history?" + urlencode({**asked, "n": n}))


def run(args: argparse.Namespace, ask: Ask, screen: Screen) -> Told:
    """Ask for the history of one account, and tell it in the form wanted; raises CtlError."""
    if args.json and args.nul:
        raise CtlError(USAGE, "--json and -0 are two forms of the same answer: want one of them")
    n = args.n or (MAX_MESSAGES if args.nul else SHOWN)
    if n > MAX_MESSAGES:
        raise CtlError(USAGE, f"argument -n: want at most {MAX_MESSAGES}, got {n}")
    value = _asked(args, n, ask)
    if args.json:
        return Told([json.dumps(value, indent=2)])
    if args.nul:
        return _bare(value)
    return Told(text(value, args, screen))


def _asked(args: argparse.Namespace, n: int, ask: Ask) -> Json:
    """Return the latest `n` messages wanted; those of some clients are picked out of all that the daemon gives."""
    if not (args.client or args.except_client):
        return ask(question(args.account, n=n, since=args.since, verdict=args.verdict, local=args.nul))
    from policyd.ctl_clients import chosen  # noqa: PLC0415 -- ipaddress is slow to load, and seldom needed

    is_meant = chosen(args.client, args.except_client)
    value = ask(question(args.account, n=MAX_MESSAGES, since=args.since, verdict=args.verdict, local=args.nul))
    found = [message for message in value["messages"] if is_meant(message["client"])]
    return {**value, "messages": found[:n], "more": bool(value["more"]) or len(found) > n}


def text(value: Json, args: argparse.Namespace, screen: Screen) -> list[str]:
    """Tell the messages, one a line, the newest last."""
    messages = value["messages"]
    picked = args.client or args.except_client
    if not messages:
        rest = f"; older ones than the newest {MAX_MESSAGES} were not looked at" if picked and value["more"] else ""
        nothing = f"the history has no messages{_wanted(args)} of {args.account}{rest}"
        return [printable(line) for line in [nothing, *ctl_cluster.answered(value)]]
    columns = [
        Column("time"),
        Column("queue id"),
        Column("verdict"),
        Column("recipients", right=True),
        Column("size", right=True),
        Column("client"),
        Column("sender", least=16),
        Column("limit", least=8),
    ]
    cells = [_row(message, screen) for message in reversed(messages)]
    if all("node" in message for message in messages):
        columns.append(Column("node", least=8))
        cells = [(*row, message["node"]) for row, message in zip(cells, reversed(messages), strict=True)]
    lines = table(columns, cells, screen)
    if value["more"]:
        are = "may be" if picked else "are"
        lines += [f"shown are the newest {len(messages)}; there {are} older ones: -n shows more, --since others"]
    return lines + [printable(line) for line in ctl_cluster.answered(value)]


def _row(message: Json, screen: Screen) -> tuple[object, ...]:
    return (
        moment(message["at"], screen),
        message["queue_id"] or "-",
        message["verdict"],
        message["recipients"],
        message["size"] or "-",
        message["client"] or "-",
        message["sender"] or "<>",
        "locked" if message["locked"] else message["limit"] or "-",
    )


def _wanted(args: argparse.Namespace) -> str:
    asked = f" that were {args.verdict}" if args.verdict else ""
    if args.client or args.except_client:
        asked += f" from {' or '.join(args.client or ['anywhere'])}"
    if args.except_client:
        asked += f" except {' or '.join(args.except_client)}"
    return asked + (f" in the last {args.since}" if args.since else "")


def _bare(value: Json) -> Told:
    ids = [message["queue_id"] for message in value["messages"]]
    bare = list(dict.fromkeys(queue_id for queue_id in ids if QUEUE_ID.fullmatch(queue_id)))
    left_out = len([queue_id for queue_id in ids if queue_id and not QUEUE_ID.fullmatch(queue_id)])
    remarks = []
    if left_out:
        remarks.append(f"policyctl: left out {counted(left_out, 'queue id')} that Postfix cannot have given")
    if value["more"]:
        remarks.append(f"policyctl: these are of the newest {len(ids)} messages; there are older ones: see -n, --since")
    return Told(bare, remarks=remarks, end="\0")
