"""Configurations of a Postfix that never runs, read by the real postconf, and a world made up around them."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from policyd.ctl_doctor import diagnosis
from policyd.ctl_postconf import Node, User, read_postfix
from tests.postfix import SYSTEM_PATH

QUEUE = "/var/spool/postfix"
LISTEN = "tcp:10045:interface=127.0.0.1"
SOCKET = f"{QUEUE}/policyd/policy.sock"

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "uptime": 1000.0,
    "requests": {"RCPT": 12, "DATA": 4},
    "requests_without_account": 0,
    "protocol_errors": 0,
    "hooks": {"RCPT": True, "DATA": True, "END-OF-MESSAGE": False},
    "listen": [LISTEN, f"unix:{SOCKET}:mode=660"],
    "attributes": ["sasl_username"],
    "observe": False,
    "limits": [
        {"name": "r", "count": "recipients", "per": "message", "max": 5000, "action": "REJECT", "observe": False},
        {"name": "m", "count": "messages", "per": "30m", "max": 500, "action": "REJECT", "observe": False},
    ],
    "problems": [],
}
"""A daemon with which all is well."""

POLICYD = "{ inet:127.0.0.1:10045, timeout=10s, default_action=DUNNO }"
MAIN: Mapping[str, str] = {
    "compatibility_level": "3.6",
    "queue_directory": QUEUE,
    "policyd": POLICYD,
    "mua_recipient_restrictions": "check_policy_service $policyd, permit_sasl_authenticated, reject",
    "mua_data_restrictions": "check_policy_service $policyd, permit",
    "smtpd_recipient_limit": "5100",
}
MASTER = """\
smtp inet n - y - - smtpd
submission inet n - y - - smtpd
  -o smtpd_sasl_auth_enable=yes
  -o smtpd_relay_restrictions=permit_sasl_authenticated,reject
  -o smtpd_recipient_restrictions=$mua_recipient_restrictions
  -o smtpd_data_restrictions=$mua_data_restrictions
cleanup unix n - n - 0 cleanup
"""
"""Together what README.md recommends."""

LOGIN = "submission inet n - {chroot} - - smtpd -o smtpd_sasl_auth_enable=yes\n"
"""A master.cf in which all is said in main.cf."""

USER = User("postfix", 101, frozenset({102}))


@dataclass
class MadeUp:
    """A world of its own: `dead` are the addresses where nobody listens, `modes` what is not 0755 of root's."""

    dead: Collection[object] = ()
    modes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    hidden: bool = False
    connected: list[object] = field(default_factory=list)

    def user(self, name: str) -> User | None:
        """Return the one user that there is."""
        return USER if name == USER.name else None

    def real(self, path: str) -> str:
        """Know one link."""
        return re.sub("^/var/run(?=/|$)", "/run", path)

    def nodes(self, folder: str, path: str) -> tuple[list[Node], str | None]:
        """Tell that all is there."""
        if self.hidden:
            return [], ""
        parts = path.split("/")
        places = [folder, *(os.path.join(folder, *parts[:n]) for n in range(1, len(parts) + 1))]
        kinds = [*[stat.S_IFDIR | 0o755] * len(parts), stat.S_IFSOCK | 0o666]
        return [
            Node(
                place,
                *(
                    (kind & ~0o777 | self.modes[place][0], *self.modes[place][1:])
                    if place in self.modes
                    else (kind, 0, 0)
                ),
            )
            for place, kind in zip(places, kinds, strict=True)
        ], None

    def connects(self, kind: str, where: tuple[str, str] | str) -> str | None:
        """Connect to nobody."""
        assert kind == ("inet" if isinstance(where, tuple) else "unix")
        self.connected.append(where)
        return "Connection refused" if where in self.dead else None


def require_postconf() -> None:
    """Skip the test where there is no postconf; under CI it fails, for there nothing may be left out."""
    if shutil.which("postconf", path=SYSTEM_PATH):
        return
    if os.environ.get("CI"):
        pytest.fail("postconf not found: apt-get install postfix", pytrace=False)
    pytest.skip("needs postconf")


def write(folder: Path, main: Mapping[str, str], master: str = MASTER) -> Path:
    """Write a configuration."""
    (folder / "main.cf").write_text("".join(f"{name} = {value}\n" for name, value in main.items()))
    (folder / "master.cf").write_text(master)
    return aged(folder)


def aged(folder: Path) -> Path:
    """Make a configuration one of yesterday: postconf waits for a main.cf that is only seconds old."""
    yesterday = time.time() - 86400
    for name in ("main.cf", "master.cf"):
        os.utime(folder / name, (yesterday, yesterday))
    return folder


def postconf(folder: Path, *arguments: str) -> str:
    """Return what postconf prints."""
    command = shutil.which("postconf", path=SYSTEM_PATH)
    assert command
    return subprocess.run(
        [command, "-c", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def diagnose(
    folder: Path, status: Mapping[str, Any] | None = None, world: MadeUp | None = None, away: str | None = None
) -> Any:
    """Return what doctor finds in a folder's configuration."""
    require_postconf()
    aged(folder)
    told = {**STATUS, **(status or {})}
    endpoints: Sequence[str] = told["listen"]
    return diagnosis(
        read_postfix(str(folder)), {} if away else told, away, endpoints, world or MadeUp(), f"-c {folder}"
    )


def codes(value: Any) -> list[str]:
    """Return the codes of all faults."""
    return [fault["code"] for fault in value["faults"]]


def mend(lines: Sequence[str]) -> None:
    """Do as the lines say that a root shell understands; what begins with # is for a person."""
    for line in lines:
        if line.startswith("postconf "):
            aged(Path(line.split()[2]))
            subprocess.run(
                ["/bin/bash", "-c", line], check=True, timeout=60, env={**os.environ, "PATH": SYSTEM_PATH}, cwd="/"
            )
