"""The client of the control socket: one question over HTTP, one JSON answer.

Whatever goes wrong ends in a CtlError, whose lines say in plain words what is the matter and where.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policyd.ctl_text import Json

DONE, REFUSED, USAGE, NOT_RUNNING, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit statuses of policyctl."""

PATIENCE = 10.0
"""Seconds within which a daemon that is alive has answered, to the last byte."""


class CtlError(Exception):
    """A command that was not done: the exit status, and the lines that tell why."""

    def __init__(self, status: int, reason: str, details: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.status = status
        self.lines = [f"policyctl: {reason}", *details]


@dataclass(frozen=True, slots=True)
class Question:
    """One HTTP request to the daemon; with a body it asks for a change."""

    path: str
    body: dict[str, Any] | None = None


class PatientSocket(socket.socket):
    """A unix stream socket on which all that is read and written takes no longer than `patience` seconds together."""

    def __init__(self, patience: float) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._deadline = time.monotonic() + patience
        self._patient()

    def recv_into(self, *arguments: Any) -> int:
        """Read into a buffer, as http.client does; raises TimeoutError when time is over."""
        self._patient()
        return super().recv_into(*arguments)

    def sendall(self, *arguments: Any) -> None:
        """Write it all; raises TimeoutError when time is over."""
        self._patient()
        super().sendall(*arguments)

    def _patient(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix stream socket."""

    def __init__(self, path: str, patience: float) -> None:
        super().__init__("localhost")
        self._path = path
        self._patience = patience

    def connect(self) -> None:
        """Connect to the socket's path; raises OSError."""
        self.sock = PatientSocket(self._patience)
        try:
            self.sock.connect(self._path)
        except BaseException:
            self.close()
            raise


def ask(places: Sequence[str], question: Question, patience: float = PATIENCE) -> Json:
    """Return the answer of the daemon that listens at the first of `places` where one does; raises CtlError."""
    path, connection = _connected(places, patience)
    with contextlib.closing(connection):
        status, reason, content = _exchange(connection, path, question, patience)
    try:
        value = json.loads(content, parse_constant=_no_json)
    except (ValueError, RecursionError):
        what = "the answer" if status < http.client.BAD_REQUEST else f"the answer, {status} {reason},"
        raise CtlError(REFUSED, f"{what} on {path} is no JSON: is this policyd's control socket?") from None
    if status < http.client.BAD_REQUEST:
        return value
    refusal = value if isinstance(value, dict) else {}
    problems = refusal.get("problems")
    details = [str(problem) for problem in problems] if isinstance(problems, list) else []
    raise CtlError(REFUSED, str(refusal.get("error") or f"policyd answered {status} {reason}, and no reason"), details)


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _connected(places: Sequence[str], patience: float) -> tuple[str, UnixConnection]:
    closed_to_us = None
    for path in places:
        connection = UnixConnection(path, patience)
        try:
            connection.connect()
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
        else:
            return path, connection
    if closed_to_us:
        raise CtlError(NOT_RUNNING, _permission_denied(Path(closed_to_us)))
    raise CtlError(
        NOT_RUNNING,
        f"policyd is not running: nothing listens on {' or '.join(places)}. "
        "Check that it is started (systemctl status policyd), and that this is its socket (see policyctl --help)",
    )


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


def _exchange(connection: UnixConnection, path: str, question: Question, patience: float) -> tuple[int, str, bytes]:
    method, body, headers, doubt = "GET", None, {"Accept": "application/json"}, ""
    if question.body is not None:
        method, body, doubt = "POST", json.dumps(question.body).encode(), "; whether it has done it is not known"
        headers["Content-Type"] = "application/json"
    try:
        connection.request(method, question.path, body, headers)
        response = connection.getresponse()
        return response.status, response.reason, response.read()
    except TimeoutError:
        problem = f"policyd has not answered on {path} within {patience:g} s: it hangs, see its log{doubt}"
        raise CtlError(NOT_RUNNING, problem) from None
    except (OSError, http.client.IncompleteRead):
        problem = f"policyd broke off on {path} before it had answered: it was stopped or died, see its log{doubt}"
        raise CtlError(NOT_RUNNING, problem) from None
    except (http.client.HTTPException, ValueError):
        raise CtlError(REFUSED, f"the answer on {path} is no HTTP: is this policyd's control socket?") from None
