"""What Postfix is told, as postconf prints it, and what can be seen of the sockets that it is to ask.

Nothing is ever modified, and nothing is sent to anybody: a connection is made, and closed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from policyd.ctl_client import REFUSED, USAGE, CtlError
from policyd.ctl_restrictions import expand, level, words
from policyd.words import printable

PATIENCE = 20.0
"""Seconds that postconf may take."""

CONNECTING = 2.0
"""Seconds that a policy service may take to accept a connection."""

MAX_WARNINGS = 10
"""Warnings of postconf's that are passed on."""

MAX_CLASSES = 100
"""Restriction classes of one service that are looked at."""

SEARCHED = "/usr/sbin:/usr/local/sbin:/sbin"
"""Administrators' commands are not in everybody's PATH."""


@dataclass(frozen=True, slots=True)
class Smtpd:
    """A service of master.cf that runs smtpd, and the parameters that are in force for it."""

    name: str
    """`submission/inet`, as postconf names it."""
    chroot: bool
    overrides: Mapping[str, str]
    """What its `-o` say."""
    main: Mapping[str, str]
    """What main.cf says, and the built-in defaults."""

    classes: tuple[str, ...] = ()
    """Its restriction classes."""

    def raw(self, name: str) -> str:
        """Return a parameter as it is written."""
        return self.overrides.get(name, self.main.get(name, ""))

    def value(self, name: str) -> str:
        """Return a parameter as smtpd understands it."""
        return expand(self.raw(name), self.raw).strip()

    def is_on(self, name: str) -> bool:
        """Return what a parameter says that is yes or no."""
        return self.value(name).lower() == "yes"


@dataclass(frozen=True, slots=True)
class Postfix:
    """One Postfix's configuration."""

    folder: str
    """Where main.cf is."""
    main: Mapping[str, str]
    given: frozenset[str]
    """The parameters that main.cf names, even if only to say what is the default."""
    smtpds: tuple[Smtpd, ...]
    warnings: tuple[str, ...] = ()
    """What postconf itself complains of."""

    def value(self, name: str) -> str:
        """Return a parameter of main.cf, expanded."""
        return expand(self.main.get(name, ""), lambda wanted: self.main.get(wanted, "")).strip()


def read_postfix(folder: str | None, searched: str | None = None) -> Postfix:
    """Read a configuration, Postfix's default one where no folder is named; raises CtlError.

    `searched` are the folders in which postconf is looked for, instead of $PATH and SEARCHED.
    """
    if folder is not None and not Path(folder, "main.cf").exists():
        raise CtlError(USAGE, f"{folder} has no main.cf: name the folder of Postfix's configuration")
    chosen = [] if folder is None else ["-c", os.path.abspath(folder)]
    command = [_postconf(searched or f"{os.environ.get('PATH', os.defpath)}:{SEARCHED}"), *chosen]
    main, warnings = _printed(*command)
    given, overrides, services = (_printed(*command, option)[0] for option in ("-n", "-P", "-M"))
    return parse_postfix(main, given, overrides, services, warnings)


def parse_postfix(main: str, given: str, overrides: str, services: str, warnings: str = "") -> Postfix:
    """Make a configuration of what postconf prints: without an option, and with -n, -P and -M."""
    parameters = dict(_pairs(main))
    by_service: dict[str, dict[str, str]] = {}
    for name, value in _pairs(overrides):
        service, _, parameter = name.rpartition("/")
        by_service.setdefault(service, {})[parameter] = value
    chroot_by_default = level(parameters.get("compatibility_level", "0")) < (1,)
    smtpds = []
    for line in services.split("\n"):
        fields = line.split(None, 8)
        if len(fields) < 8 or fields[7] != "smtpd":  # noqa: PLR2004 -- the columns of master.cf
            continue
        name = f"{fields[0]}/{fields[1]}"
        chroot = chroot_by_default if fields[4] == "-" else fields[4] == "y"
        smtpd = Smtpd(name, chroot, by_service.get(name, {}), parameters)
        classes = dict.fromkeys(words(smtpd.value("smtpd_restriction_classes")))
        smtpds.append(replace(smtpd, classes=tuple(classes)[:MAX_CLASSES]))
    told = dict.fromkeys(printable(line.strip()) for line in warnings.splitlines() if line.strip())
    return Postfix(
        parameters.get("config_directory", ""),
        parameters,
        frozenset(name for name, _ in _pairs(given)),
        tuple(smtpds),
        tuple(told)[:MAX_WARNINGS],
    )


@dataclass(frozen=True, slots=True)
class Node:
    """A file, and who may do what with it."""

    path: str
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class User:
    """Whom smtpd runs as."""

    name: str
    uid: int
    groups: frozenset[int]

    def may(self, node: Node, right: int) -> bool:
        """Return whether the mode grants a right: 1 enter, 2 write, 4 read."""
        if self.uid == 0:
            return True
        shift = 6 if node.uid == self.uid else 3 if node.gid in self.groups else 0
        return bool(node.mode >> shift & right)


class World:
    """What is outside of the configuration: users, files, and who listens."""

    def user(self, name: str) -> User | None:
        """Return a user of this machine."""
        import pwd  # noqa: PLC0415 -- needed for this command alone

        try:
            found = pwd.getpwnam(name)
            return User(name, found.pw_uid, frozenset(os.getgrouplist(name, found.pw_gid)))
        except (KeyError, ValueError, OSError):
            return None

    def real(self, path: str) -> str:
        """Return a path without links, as far as it is there."""
        try:
            return os.path.realpath(path)
        except (OSError, ValueError):
            return path

    def nodes(self, folder: str, path: str) -> tuple[list[Node], str | None]:
        """Return what is passed on the way from a folder to a path below it, and why the way ends before, if it does.

        "" where it is we who may not look on.
        """
        found: list[Node] = []
        at = folder
        for part in ("", *(part for part in path.split("/") if part)):
            at = os.path.join(at, part) if part else at
            try:
                seen = os.stat(at)
            except PermissionError:
                return found, ""
            except (OSError, ValueError):
                return found, f"{at} is not there"
            found.append(Node(at, seen.st_mode, seen.st_uid, seen.st_gid))
        return found, None

    def connects(self, kind: str, where: tuple[str, str] | str) -> str | None:
        """Connect to a policy service: return None where somebody listens, why not, or "" where we may not know."""
        try:
            if isinstance(where, tuple):
                socket.create_connection(where, CONNECTING).close()
                return None
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(CONNECTING)
                connection.connect(where)
        except PermissionError:
            return ""
        except (OSError, ValueError, OverflowError, UnicodeError) as error:
            return getattr(error, "strerror", None) or str(error) or "no answer"
        return None


def _pairs(text: str) -> Iterable[tuple[str, str]]:
    for line in text.split("\n"):
        name, equals, value = line.partition("=")
        if equals:
            yield name.strip(), value.strip()


def _postconf(searched: str) -> str:
    import shutil  # noqa: PLC0415 -- slow to load, and needed for this command alone

    command = shutil.which("postconf", path=searched)
    if command is None:
        raise CtlError(REFUSED, "postconf is not found: is Postfix installed on this machine?")
    return command


def _printed(*command: str) -> tuple[str, str]:
    """Run a command, and return what it prints on stdout and stderr."""
    import subprocess  # noqa: PLC0415 -- slow to load, and needed for this command alone

    try:
        done = subprocess.run(  # noqa: S603 -- a command of the system, without a shell
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False
        )
    except (OSError, ValueError) as error:
        raise CtlError(REFUSED, f"cannot run {command[0]}: {getattr(error, 'strerror', None) or error}") from None
    except subprocess.TimeoutExpired:
        raise CtlError(REFUSED, f"{command[0]} has not ended within {PATIENCE:g} s") from None
    out, complaint = (text.decode(errors="backslashreplace") for text in (done.stdout, done.stderr))
    if done.returncode:
        last = complaint.strip().rpartition("\n")[2]
        raise CtlError(REFUSED, f"{' '.join(command)} fails: {last or f'exit status {done.returncode}'}")
    return out, complaint
