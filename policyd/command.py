"""Running a command for a notice: no shell, an environment of its own, and an end in any case."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, NamedTuple

from policyd.notices import Notice
from policyd.relay import NotSentError
from policyd.templates import filled
from policyd.words import printable

TIMEOUT = 30.0
"""Seconds after which a command is told to end (SIGTERM), with all that it has started in its process group."""

GRACE = 2.0
"""Seconds after which it is killed."""

MAX_OUTPUT = 2000
"""Bytes of its output that are kept; the rest is read and forgotten."""

MAX_SHOWN = 200
"""Characters of its output that are shown, the last ones."""

MAX_LATER = 100
"""Times that is read what comes after a command has ended."""

_LOOK = 0.02
"""Seconds between two looks at whether it has ended."""

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
VARIABLES = ("account", "limit", "count", "max", "per", "until", "reason", "by", "action", "percent", "of", "number")
"""The fields of a notice that are in the environment, too; all of them are in the JSON on stdin."""


class Ended(NamedTuple):
    """How a command has ended."""

    status: int
    """As subprocess tells it: negative for a signal."""
    output: str
    late: bool
    """Whether it had to be ended."""


def environment(notice: Notice, host: str) -> Mapping[str, str]:
    """Return the command's environment; each value is on one line, short, and without control characters."""
    told: dict[str, object] = {"event": notice.event, "id": notice.id, "at": notice.value()["at"], "host": host}
    told |= {name: notice.fields[name] for name in VARIABLES if notice.fields.get(name) is not None}
    return {**ENVIRONMENT, **{f"POLICYD_{name.upper()}": filled(value) for name, value in told.items()}}


class Commands:
    """Runs commands, each for `timeout` seconds at the most, and `grace` more to end in."""

    def __init__(self, timeout: float = TIMEOUT, grace: float = GRACE) -> None:
        self._timeout, self._grace = timeout, grace
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Have all that is running killed soon."""
        self._stopped.set()

    def run(self, argv: Sequence[str], variables: Mapping[str, str], stdin: bytes) -> str:
        """Run a command, and return what to say of it; this is a thread of its own.

        Raises NotSentError where it cannot be started, does not end in time, or ends with another status than 0.
        """
        try:
            ended = self._ended(argv, variables, stdin)
        except OSError as error:
            raise NotSentError(f"{argv[0]} cannot be run: {error.strerror}") from error
        output = printable(" ".join(ended.output.split()))[-MAX_SHOWN:]
        more = f": {output}" if output else ""
        if ended.late:
            raise NotSentError(f"{argv[0]} did not end within {self._timeout:g} s and was killed{more}")
        if ended.status:
            how = f"was ended by signal {-ended.status}" if ended.status < 0 else f"ended with status {ended.status}"
            raise NotSentError(f"{argv[0]} {how}{more}")
        return "status 0"

    def _ended(self, argv: Sequence[str], variables: Mapping[str, str], stdin: bytes) -> Ended:
        descriptor = os.memfd_create("notice")
        with os.fdopen(descriptor, "w+b") as file:
            file.write(stdin)
            file.seek(0)
            process = subprocess.Popen(  # noqa: S603 -- the argv of the config; nothing of it comes from elsewhere
                argv,
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=dict(variables),
                start_new_session=True,
            )
        kept: list[bytes] = []
        over = threading.Event()
        reading = threading.Thread(target=_read, args=(process.stdout, kept, over), name="output", daemon=True)
        reading.start()
        late = not self._ends(process.pid, self._timeout)
        if late:
            self._signal(process.pid, signal.SIGTERM)
            self._ends(process.pid, self._grace)
            self._signal(process.pid, signal.SIGKILL)  # before it is reaped: till then the group is its own
        status = process.wait()
        over.set()
        reading.join(self._grace)
        return Ended(status, b"".join(kept).decode(errors="backslashreplace"), late)

    def _ends(self, pid: int, seconds: float) -> bool:
        """Wait until a process has ended, without reaping it, or for so long."""
        for _ in range(max(int(seconds / _LOOK), 1)):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return True
            if self._stopped.wait(_LOOK):
                break
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _signal(self, pid: int, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)


def _read(pipe: IO[bytes], kept: list[bytes], over: threading.Event) -> None:
    """Keep the end of what a command writes, and let it write on; what it leaves behind may hold the pipe for ever."""
    last, more = b"", MAX_LATER
    with pipe, suppress(OSError, ValueError):
        ready = select.poll()
        ready.register(pipe.fileno(), select.POLLIN)
        while more and (ready.poll(_LOOK * 1000) or not over.is_set()):
            if ready.poll(0):
                data = os.read(pipe.fileno(), 65536)
                if not data:
                    break
                last = (last + data)[-MAX_OUTPUT:]
                kept[:] = [last]
            more -= over.is_set()
