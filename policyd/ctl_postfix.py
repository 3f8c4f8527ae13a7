"""Postfix's own commands: what is in the queue, what a queue file says of itself, and orders to postsuper.

There is no shell, no text from outside is an argument but queue ids that look like some, and what is read of one
message is bounded. What cannot be done ends in a CtlError that says so in a sentence.
"""

from __future__ import annotations

import calendar
import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple

from policyd.ctl_client import REFUSED, CtlError
from policyd.ctl_history import QUEUE_ID
from policyd.ctl_join import Envelope, Queued
from policyd.ctl_layout import Json

MAX_LINE = 64 * 1024 * 1024
"""Bytes of one message in the queue's list: some 100,000 recipients, each with the reason why it was deferred."""

MAX_SAID = 200
"""Characters of a line of a command's own words that are repeated."""

MAX_TOLD = 10
"""Lines of a command's own words, the last ones, that are repeated where it has failed."""

PATIENCE = 300.0
"""Seconds within which a command has done what it was asked to: postsuper takes some 3 s for 10,000 messages."""

SYSTEM_PATH = "/usr/sbin:/sbin:/usr/lib/postfix/sbin"
"""Where Postfix's commands are when they are not in PATH."""

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

HEADER = b"*** ENVELOPE RECORDS "
RECIPIENTS = (b"named_attribute: dsn_orig_rcpt=", b"original_recipient: ", b"recipient: ", b"done_recipient: ")
"""What lines of postcat begin with: those of a file, and those of its recipients."""

_HEADER = re.compile(r"\*\*\* ENVELOPE RECORDS \w+/(?:\w/)*(\w+) \*\*\*")
_VANISHED = re.compile(r"open queue file (\w+): No such file or directory")
_CLOSED = re.compile(r"open queue file \w+: Permission denied")
_DONE = re.compile(r"postsuper: (\w+): (removed|placed on hold|released from hold)")


class Order(NamedTuple):
    """Something that postsuper can do to messages."""

    option: str
    queues: Sequence[str]
    """The only queues in which it looks for them."""
    done: str
    """What it says of each message when it is done."""


ORDERS: Mapping[str, Order] = {
    "hold": Order("-h", ("incoming", "active", "deferred"), "placed on hold"),
    "release": Order("-H", ("hold",), "released from hold"),
    "delete": Order("-d", ("hold", "incoming", "active", "deferred"), "removed"),
}


class Envelopes(NamedTuple):
    """What the files of some messages say; those that are in neither part have left the queue, or were just moving."""

    known: dict[str, Envelope]
    unreadable: list[str]


class Postfix:
    """One Postfix instance of this host: that of `folder` with main.cf, or the one that its commands think of."""

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._options = [] if folder is None else ["-c", folder]

    def queue(self, wanted: Callable[[str], bool], seen: Callable[[int], None]) -> tuple[dict[str, Queued], int]:
        """Return the messages whose queue ids are wanted, and how many could not be read.

        `seen` is told how many messages have been looked at. What is listed twice, because it was moved from queue to
        queue meanwhile, is there once. Raises CtlError.
        """
        found: dict[str, Queued] = {}
        unreadable = 0
        with self._started("postqueue", "-j") as listing:
            for number, line in enumerate(_lines(_pipe(listing)), 1):
                try:
                    message = _queued(json.loads((line or b"").decode(errors="surrogateescape")))
                except (ValueError, LookupError, TypeError, RecursionError):
                    unreadable += 1
                    continue
                if wanted(message.queue_id):
                    found[message.queue_id] = message
                seen(number)
            said = listing.stderr.read(MAX_LINE) if listing.stderr else b""
        if listing.returncode:
            raise self._failed("postqueue", said.decode(errors="backslashreplace"))
        return found, unreadable

    def envelopes(self, queue_ids: Sequence[str]) -> Envelopes:
        """Return what the queue files of these messages say; raises CtlError where they are closed to us."""
        known: dict[str, Envelope] = {}
        unreadable: list[str] = []
        rest = list(queue_ids)
        while rest:
            status, shown, said = self._shown(rest)
            if status and _CLOSED.search(said):
                raise self._failed("postcat", said)
            vanished = _VANISHED.search(said) if status else None
            expected = rest[: len(shown)] + ([vanished[1]] if vanished else [])
            if rest[: len(expected)] != [queue_id for queue_id, _ in shown] + expected[len(shown) :] or not expected:
                # A client can make its message look like several (a line end in ORCPT): each is looked at by itself.
                unreadable += self._alone(rest, known)
                break
            known.update(shown)
            del rest[: len(expected)]
        return Envelopes(known, unreadable)

    def _alone(self, queue_ids: Sequence[str], known: dict[str, Envelope]) -> list[str]:
        """Look at each file by itself, where only what comes first counts; return those that cannot be read."""
        unreadable = []
        for queue_id in queue_ids:
            status, shown, said = self._shown([queue_id])
            if not status and shown and shown[0][0] == queue_id:
                known[queue_id] = shown[0][1]
            elif not _VANISHED.search(said):
                unreadable.append(queue_id)
        return unreadable

    def _shown(self, queue_ids: Sequence[str]) -> tuple[int, list[tuple[str, Envelope]], str]:
        """Run postcat; return its exit status, what it shows, and what it complains of."""
        with self._started("postcat", "-eq", *queue_ids) as showing:
            shown = _envelopes(_lines(_pipe(showing)))
            said = showing.stderr.read(MAX_LINE) if showing.stderr else b""
        return showing.returncode, shown, said.decode(errors="backslashreplace")

    def give(self, order: Order, queue_ids: Sequence[str]) -> tuple[set[str], str]:
        """Have postsuper do this to messages; return those of which it says that it is done, and what else it said."""
        status, said = self._run("postsuper", order.option, "-", *order.queues, given="\n".join(queue_ids) + "\n")
        done = {match[1] for match in map(_DONE.fullmatch, said.splitlines()) if match and match[2] == order.done}
        return done, _word(said) if status else ""

    def flush(self, queue_id: str) -> str:
        """Have one deferred message tried now; return what Postfix says where it cannot."""
        status, said = self._run("postqueue", "-i", queue_id)
        return _word(said) if status else ""

    def _started(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        # what they complain of is few lines, which the pipe holds while the rest is read
        path = command_path(command)
        try:
            return subprocess.Popen(  # noqa: S603 -- a command of Postfix by its path, without a shell
                [path, *self._options, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(),
            )
        except (OSError, ValueError) as error:
            raise _not_run(path, error) from None

    def _run(self, command: str, *arguments: str, given: str = "") -> tuple[int, str]:
        path = command_path(command)
        try:
            done = subprocess.run(  # noqa: S603 -- a command of Postfix by its path, without a shell
                [path, *self._options, *arguments],
                input=given.encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=PATIENCE,
                env=_environment(),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CtlError(REFUSED, f"{command} has not come to an end within {PATIENCE:g} s") from None
        except (OSError, ValueError) as error:
            raise _not_run(path, error) from None
        return done.returncode, done.stderr.decode(errors="backslashreplace")

    def _failed(self, command: str, said: str) -> CtlError:
        """Return the error of a command: its last word, of which Postfix it speaks, and all it said if that is more."""
        lines = [line[:MAX_SAID] for line in said.split("\n") if line.strip()]
        told = [f"  {line}" for line in lines[-MAX_TOLD:]] if len(lines) > 1 else []
        if self._folder is None:
            read = f"the folder read is {self._default_folder()} (another instance: --postfix-config DIR)"
        else:
            read = f"the folder read is {self._folder}"
        advice = "" if os.geteuid() == 0 else "; only root may do this"
        return CtlError(REFUSED, f"{command} failed: {_word(said) or 'it did not say why'}{advice}; {read}", told)

    def _default_folder(self) -> str:
        """Return the folder that Postfix's commands think of, as far as postconf knows."""
        said = b""
        with contextlib.suppress(CtlError), self._started("postconf", "-h", "config_directory") as telling:
            said = _pipe(telling).readline(MAX_SAID)
        return said.decode(errors="backslashreplace").strip() or "Postfix's own"


def command_path(command: str) -> str:
    """Return where a command of Postfix is; raises CtlError."""
    path = f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATH}"
    found = shutil.which(command, path=path)
    if found is None:
        raise CtlError(REFUSED, f"there is no {command} here: run this where Postfix is installed, as root")
    return found


def _environment() -> dict[str, str]:
    """Have times told in UTC and errors in English."""
    return {**os.environ, "TZ": "UTC", "LC_ALL": "C"}


def _not_run(path: str, error: OSError | ValueError) -> CtlError:
    return CtlError(REFUSED, f"cannot run {path}: {getattr(error, 'strerror', None) or error}")


def _word(said: str) -> str:
    """Return the last line of what a command said, without its own name: that is where it gives up."""
    lines = said.split("\n")
    last = next((line for line in reversed(lines) if line), "")
    return re.sub(r"^\S+: ", "", last)[:MAX_SAID]


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdout is None:
        raise TypeError("a process without a pipe")
    return process.stdout


def _lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Yield one line after the other, None in place of one that is too long."""
    while line := stream.readline(MAX_LINE):
        whole = line.endswith(b"\n")
        while not whole and (more := stream.readline(MAX_LINE)):
            whole, line = more.endswith(b"\n"), b""
        yield line or None


def _queued(value: Json) -> Queued:
    """Take what is needed from one object of `postqueue -j`; raises LookupError, TypeError or ValueError.

    Postfix 3.7 shows bytes that are no UTF-8 as question marks; should it not, they are shown as policyd shows them.
    """
    queue_id, queue, sender = value["queue_id"], value["queue_name"], value["sender"]
    if not QUEUE_ID.fullmatch(queue_id) or not isinstance(sender, str) or not isinstance(queue, str):
        raise ValueError("no queue id")
    sender = sender.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return Queued(
        queue_id, queue, int(value["arrival_time"]), int(value["message_size"]), sender, len(value["recipients"])
    )


def _envelopes(lines: Iterable[bytes | None]) -> list[tuple[str, Envelope]]:
    """Read what postcat shows of several files, and keep of each what Postfix wrote without a word of the recipients'.

    What a client can say in words of its own comes after that: the ORCPT of a recipient may even hold a line end.
    """
    files: list[tuple[str, list[bytes]]] = []
    reading = False
    for line in lines:
        if line is None:
            reading = False
        elif line.startswith(HEADER) and (header := _HEADER.fullmatch(_text(line))):
            files.append((header[1], []))
            reading = True
        elif reading and line.startswith(RECIPIENTS):
            reading = False
        elif reading:
            files[-1][1].append(line)
    return [(queue_id, envelope) for queue_id, kept in files if (envelope := _envelope(kept)) is not None]


def _text(line: bytes) -> str:
    return line.decode(errors="backslashreplace").rstrip("\n")


def _envelope(lines: Iterable[bytes]) -> Envelope | None:
    """Take from the lines of one file what is needed; the first of its kind counts."""
    fields: dict[str, str] = {}
    named: dict[str, str] = {}
    for line in _text(b"".join(lines)).split("\n"):
        kind, _, value = line.partition(": ")
        if kind == "named_attribute":
            name, _, content = value.partition("=")
            named.setdefault(name, content)
        fields.setdefault(kind, value)
    try:
        arrived, created = _time(fields["message_arrival_time"]), _time(fields["create_time"])
        return Envelope(arrived, created, fields["sender"], named)
    except (LookupError, ValueError):
        return None


def _time(text: str) -> int:
    """Return the seconds since the epoch of a time such as `Mon Nov 23 13:57:32 2026`."""
    _, month, day, clock, year = text.split()
    hour, minute, second = clock.split(":")
    return calendar.timegm((int(year), MONTHS.index(month) + 1, int(day), int(hour), int(minute), int(second)))
