"""Where things are when nobody says where: the daemon and policyctl look in the same places. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path

CONFIG = Path("/etc/policyd/policyd.yaml")
SYSTEM_RUNTIME = Path("/run/policyd")
SYSTEM_STATE = Path("/var/lib/policyd")
CONTROL_SOCKET = "control.sock"
DATABASE = "policyd.sqlite"


def runtime_folder() -> Path:
    """Return the folder of the control socket: `$RUNTIME_DIRECTORY` (systemd sets it), /run/policyd, or the user's."""
    if folder := _systemd_folder("RUNTIME_DIRECTORY"):
        return folder
    if os.geteuid() == 0:
        return SYSTEM_RUNTIME
    if xdg := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(xdg) / "policyd"
    return Path(f"/tmp/policyd-{os.geteuid()}")  # noqa: S108 -- made with mode 0700, refused where another owns it


def state_folder() -> Path:
    """Return the folder of the database: `$STATE_DIRECTORY` (systemd sets it), /var/lib/policyd, or the user's."""
    if folder := _systemd_folder("STATE_DIRECTORY"):
        return folder
    if os.geteuid() == 0:
        return SYSTEM_STATE
    home = os.environ.get("HOME") or "/"
    return Path(os.environ.get("XDG_STATE_HOME") or Path(home) / ".local/state") / "policyd"


def control_sockets() -> list[Path]:
    """Return the places where policyctl looks for a control socket: the daemon's own first, then the system's."""
    places = [runtime_folder() / CONTROL_SOCKET, SYSTEM_RUNTIME / CONTROL_SOCKET]
    return list(dict.fromkeys(places))


def _systemd_folder(variable: str) -> Path | None:
    """Return the first of the folders that systemd names, separated by colons."""
    first = os.environ.get(variable, "").split(":")[0]
    return Path(first) if first else None
