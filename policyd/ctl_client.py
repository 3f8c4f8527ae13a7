"""The client of the control socket: one question over HTTP, one JSON answer.

Whatever goes wrong ends in a CtlError, whose lines say in plain words what is the matter and where.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from policyd.ctl_layout import Json

DONE, REFUSED, USAGE, NOT_RUNNING, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit statuses of policyctl."""

BAD_REQUEST = 400
"""The first HTTP status that tells of an error."""

RECEIVED = 256 * 1024
"""Bytes that are read at once."""

PATIENCE = 10.0
"""Seconds within which a daemon that is alive has answered, to the last byte."""


class CtlError(Exception):
    """A command that was not done: the exit status, and the lines that tell why."""

    def __init__(self, status: int, reason: str, details: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.status = status
        self.lines = [f"policyctl: {reason}", *details]


class ClosedToUsError(CtlError):
    """The daemon may be well, but its socket is not for us."""


@dataclass(frozen=True, slots=True)
class Question:
    """One HTTP request to the daemon; with a body it asks for a change."""

    path: str
    body: dict[str, Any] | None = None


Ask = Callable[[Question], Json]
"""Asks the daemon one thing, and returns its answer; raises CtlError."""


class Told(NamedTuple):
    """What a command prints, and its exit status."""

    lines: Sequence[str]
    status: int = DONE
    remarks: Sequence[str] = ()
    """Lines for stderr, after all that goes to stdout."""
    end: str = "\n"
    """What ends each of `lines`."""


class PatientSocket(socket.socket):
    """A unix stream socket on which all that is read and written takes no longer than `patience` seconds together."""

    def __init__(self, patience: float) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._deadline = time.monotonic() + patience
        self._patient()

    def receive(self) -> bytes:
        """Read some bytes, none when the other side has hung up; raises TimeoutError when time is over."""
        self._patient()
        return self.recv(RECEIVED)

    def _patient(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)


def ask(places: Sequence[str], question: Question, patience: float = PATIENCE) -> Json:
    """Return the answer of the daemon that listens at the first of `places` where one does; raises CtlError."""
    path, connection = _connected(places, patience)
    with connection:
        status, reason, content = _exchange(connection, path, question, patience)
    try:
        value = json.loads(content, parse_constant=_no_json)
    except (ValueError, RecursionError):
        what = "the answer" if status < BAD_REQUEST else f"the answer, {status} {reason},"
        raise CtlError(REFUSED, f"{what} on {path} is no JSON: is this policyd's control socket?") from None
    if status < BAD_REQUEST:
        return value
    refusal = value if isinstance(value, dict) else {}
    problems = refusal.get("problems")
    details = [str(problem) for problem in problems] if isinstance(problems, list) else []
    raise CtlError(REFUSED, str(refusal.get("error") or f"policyd answered {status} {reason}, and no reason"), details)


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _connected(places: Sequence[str], patience: float) -> tuple[str, PatientSocket]:
    closed_to_us = None
    for path in places:
        try:
            return path, _connect(path, patience)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            continue
        except PermissionError:
            closed_to_us = closed_to_us or path
        except (BlockingIOError, TimeoutError):
            raise CtlError(
                NOT_RUNNING, f"policyd does not accept connections on {path}: it hangs, see its log"
            ) from None
        except OSError as error:
            raise CtlError(NOT_RUNNING, f"cannot connect to {path}: {error.strerror or error}") from None
    if closed_to_us:
        raise ClosedToUsError(NOT_RUNNING, _permission_denied(Path(closed_to_us)))
    raise CtlError(
        NOT_RUNNING,
        f"policyd is not running: nothing listens on {' or '.join(places)}. "
        "Check that it is started (systemctl status policyd), and that this is its socket (see policyctl --help)",
    )


def _connect(path: str, patience: float) -> PatientSocket:
    connection = PatientSocket(patience)
    try:
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _permission_denied(path: Path) -> str:
    """Say who may use a socket that is closed to us: its group, or that of the first folder we may not enter."""
    folder = next((folder for folder in reversed(path.parents) if not os.access(folder, os.X_OK)), None)
    barrier = folder or path
    try:
        found = barrier.stat()
    except OSError:
        return f"permission denied on {path}"
    import grp  # noqa: PLC0415 -- needed for this message alone

    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    kind, mode = "folder" if folder else "socket", f"{found.st_mode & 0o777:04o}"
    return (
        f"permission denied on {path}: the {kind} {barrier} belongs to group {group}, mode {mode}; "
        "run policyctl as root or as a member of that group"
    )


def _exchange(connection: PatientSocket, path: str, question: Question, patience: float) -> tuple[int, str, bytes]:
    """Ask by HTTP/1.0, and return the answer's status, reason and body: all that comes until the daemon hangs up.

    http.client does more, and takes longer to import than all else that policyctl does.
    """
    head, body, doubt = f"GET {question.path} HTTP/1.0", b"", ""
    if question.body is not None:
        body, doubt = json.dumps(question.body).encode(), "; whether it has done it is not known"
        head = f"POST {question.path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    try:
        connection.sendall(f"{head}\r\nHost: localhost\r\nAccept: application/json\r\n\r\n".encode() + body)
        answer = b"".join(iter(connection.receive, b""))
    except TimeoutError:
        problem = f"policyd has not answered on {path} within {patience:g} s: it hangs, see its log{doubt}"
        raise CtlError(NOT_RUNNING, problem) from None
    except OSError:
        answer = b""
    told, end, content = answer.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: ([^\r\n]*))?(?:\r\n|$)", told)
    length = re.search(rb"(?im)^content-length: *([0-9]{1,18})\r?$", told)
    if answer and not status:
        raise CtlError(REFUSED, f"the answer on {path} is no HTTP: is this policyd's control socket?")
    if not status or not end or (length and len(content) < int(length[1])):
        problem = f"policyd broke off on {path} before it had answered: it was stopped or died, see its log{doubt}"
        raise CtlError(NOT_RUNNING, problem)
    return int(status[1]), (status[2] or b"").decode("latin-1"), content
