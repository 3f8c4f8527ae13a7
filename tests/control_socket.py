"""A control socket with prepared answers, for tests that see policyctl as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from subprocess import PIPE, CompletedProcess
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

REPOSITORY = Path(__file__).resolve().parent.parent
CTL = (sys.executable, "-W", "error", "-m", "policyd.ctl")

LOCK: dict[str, Any] = {
    "account": "bert@example.com",
    "since": "2026-11-23T10:59:30+00:00",
    "until": None,
    "limit": None,
    "count": None,
    "by": "root",
    "reason": "phished",
    "action": "REJECT",
}
STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "started": "2026-01-23T08:00:00+00:00",
    "uptime": 12.5,
    "accounts": 3,
    "locked": 0,
    "connections": 2,
    "requests": {"RCPT": 12},
    "answers": {"DUNNO": 12},
    "protocol_errors": 0,
    "internal_errors": 0,
    "hooks": {"RCPT": True},
    "store": "memory",
    "problems": [],
}
LIMIT = {"name": "messages-per-half-hour", "count": 5, "max": 500, "per": "30m", "resets_in": 60.0}
BUSY = {"account": "anna@example.com", "locked": False, "limits": [LIMIT], "refused": 0, "held": 0}

ANSWERS: dict[str, tuple[int, Any]] = {
    "/status": (200, STATUS),
    "/accounts": (200, [BUSY]),
    "/locked": (200, []),
    "/lock": (200, LOCK),
    "/unlock": (200, {"unlocked": ["anna@example.com"], "free": ["bert@example.com"]}),
    "/reset": (200, {"account": "anna@example.com", "seen": True}),
    "/reload": (200, {"changed": [], "needs_restart": []}),
}
"""What a daemon says with which all is well."""


class Answer(BaseHTTPRequestHandler):
    """Records one request, and answers it from the table.

    Bytes are sent as they are, and end the connection; a function is called with the query's values.
    """

    server: ControlSocket
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a question."""
        length = int(self.headers.get("Content-Length", "0"))
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.requests.append((self.command, self.path, body))
        self.server.asked.set()
        status, value = self.server.answers.get(urlsplit(self.path).path, (404, {"error": "no such thing"}))
        self.close_connection = True
        if callable(value):
            value = value(parse_qs(urlsplit(self.path).query))
        if isinstance(value, bytes):
            self.wfile.write(value)
            return
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)

    do_POST = do_GET  # noqa: N815 -- named by http.server

    def log_message(self, *_args: object) -> None:
        """Say nothing: the test looks at the recorded requests."""


class ControlSocket(socketserver.UnixStreamServer):
    """HTTP on a unix socket: `answers` maps a path to a status and a JSON value."""

    def __init__(self, path: Path, answers: Mapping[str, tuple[int, Any]]) -> None:
        super().__init__(str(path), Answer)
        self.path = path
        self.answers = answers
        self.requests: list[tuple[str, str, Any]] = []
        self.asked = threading.Event()


@contextlib.contextmanager
def listening(path: Path, answers: Mapping[str, tuple[int, Any]]) -> Iterator[ControlSocket]:
    """Serve `answers` at `path` while the block runs."""
    with ControlSocket(path, answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def environment(**settings: str) -> dict[str, str]:
    """Return an environment in which policyctl finds no daemon by chance, one hour east of UTC."""
    chance = ("POLICYD_CONTROL", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "COLUMNS", "PYTHONIOENCODING", "FORCE_COLOR")
    kept = {name: value for name, value in os.environ.items() if name not in chance}
    return {**kept, "TZ": "CET-1", "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1", **settings}


def policyctl(
    *args: str | bytes, env: Mapping[str, str] | None = None, command: Sequence[str] = CTL, stdout: int | IO[str] = PIPE
) -> CompletedProcess[str]:
    """Run policyctl to its end."""
    return subprocess.run(
        [*command, *args],
        env=environment(**(env or {})),
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=PIPE,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def run(daemon: ControlSocket, *args: str | bytes, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run policyctl with the daemon's socket."""
    return policyctl("--socket", str(daemon.path), *args, **options)


def said(finished: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    """Return the exit status, and what was said on stdout and stderr."""
    return finished.returncode, finished.stdout, finished.stderr


def line_of(finished: subprocess.CompletedProcess[str], status: int) -> str:
    """Return the one line on stderr of a command that has failed with this exit status, and said nothing else."""
    assert (finished.returncode, finished.stdout) == (status, ""), finished.stderr
    (line,) = finished.stderr.splitlines()
    return line
