"""Sockets to listen on, and the folders they lie in: made with their final mode, and never taken from another.

A unix socket that a killed daemon left behind is replaced; one that somebody answers at is not.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import Any, cast

from twisted.internet import error as twisted_error
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IReactorUNIX
from twisted.internet.protocol import Factory

from policyd.endpoints import parse_endpoint

BACKLOG = 1024
"""Connections that may wait to be accepted: a non-blocking connect to a full unix backlog fails at once."""

SOCKET_MODE = 0o660


class CannotListenError(Exception):
    """A socket cannot be listened on; the message names it and the cause in one line."""


class AlreadyRunningError(CannotListenError):
    """Another daemon has what this one wants to have alone."""


def endpoint_problem(description: str) -> str | None:
    """Return what is wrong with an endpoint string, None where it can be listened on as far as can be told."""
    from twisted.internet import reactor  # noqa: PLC0415 -- the daemon has chosen it by now

    try:
        if _is_unix(description):
            _unix_arguments(description)
        elif not _is_systemd(description):
            serverFromString(reactor, description)
    except Exception as error:  # Twisted's parsers raise whatever a wrong string leads them to
        return f"{type(error).__name__}: {error}"
    return None


async def listen(reactor: IReactorUNIX, description: str, factory: Factory[Any]) -> IListeningPort:
    """Listen on an endpoint string of Twisted's; a unix socket gets mode 660 unless the string says another.

    Raises CannotListenError.
    """
    if _is_systemd(description):
        raise CannotListenError(f"cannot listen on {description}: systemd has passed no socket")
    try:
        if _is_unix(description):
            path, mode, backlog = _unix_arguments(description)
            return listen_unix(reactor, path, factory, mode, backlog)
        is_tcp = description.startswith(("tcp:", "tcp6:"))
        longer = f":backlog={BACKLOG}" if is_tcp and ":backlog=" not in description else ""
        return cast(IListeningPort, await serverFromString(reactor, description + longer).listen(factory))
    except twisted_error.CannotListenError as error:
        cause = error.socketError
        raise CannotListenError(
            f"cannot listen on {description}: {getattr(cause, 'strerror', None) or cause}"
        ) from error
    except (OSError, OverflowError) as error:
        raise CannotListenError(f"cannot listen on {description}: {error}") from error


def listen_unix(
    reactor: IReactorUNIX, path: str, factory: Factory[Any], mode: int = SOCKET_MODE, backlog: int = BACKLOG
) -> IListeningPort:
    """Listen on a unix socket that has its final mode from the start.

    Raises CannotListenError.
    """
    before = os.umask(0o777 & ~mode)
    try:
        _remove_stale(path)
        return reactor.listenUNIX(path, factory, backlog=backlog, mode=mode, wantPID=False)
    except (OSError, twisted_error.CannotListenError) as error:
        cause = getattr(error, "socketError", error)
        raise CannotListenError(f"cannot listen on {path}: {getattr(cause, 'strerror', None) or cause}") from error
    finally:
        os.umask(before)


def hold_alone(path: Path) -> int:
    """Make sure that no other daemon has this socket or file, for as long as the returned descriptor is open.

    The lock is the kernel's, and ends with the process however that ends. Raises CannotListenError.
    """
    lock = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CannotListenError(f"cannot make {lock}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        pid = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        raise AlreadyRunningError(f"another policyd (pid {pid or 'unknown'}) already runs with {path}") from error
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def make_folder(folder: Path, *, private: bool) -> None:
    """Make a folder if it is missing; a private one must be ours alone. Raises CannotListenError."""
    try:
        folder.mkdir(mode=0o700 if private else 0o755, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise CannotListenError(f"cannot make the folder {folder}: {error.strerror}") from error
    if private and (not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022):
        raise CannotListenError(f"the folder {folder} is not this user's alone")


def _remove_stale(path: str) -> None:
    """Remove a unix socket that nobody listens on any more."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise CannotListenError(f"cannot listen on {path}: it is there and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        found = probe.connect_ex(path)
    if found != errno.ECONNREFUSED:
        raise CannotListenError(f"cannot listen on {path}: another process already does")
    os.unlink(path)


def _is_unix(description: str) -> bool:
    return description.startswith("unix:")


def _is_systemd(description: str) -> bool:
    """Tell whether an endpoint stands for whatever systemd passes, which only the daemon itself is told."""
    return description.startswith("systemd:")


def _unix_arguments(description: str) -> tuple[str, int, int]:
    """Return path, mode and backlog of a `unix:` endpoint string."""
    endpoint = parse_endpoint(description)
    if len(endpoint.unnamed) > 1 or endpoint.named.keys() - {"address", "mode", "backlog", "lockfile"}:
        raise ValueError("want only mode= and backlog= after the path")
    mode = int(endpoint.named.get("mode", f"{SOCKET_MODE:o}"), 8)
    backlog = int(endpoint.named.get("backlog", BACKLOG))
    if not 0 <= mode <= 0o777:  # noqa: PLR2004 -- the permission bits
        raise ValueError("want a mode of three octal digits")
    return endpoint.first("address"), mode, backlog
