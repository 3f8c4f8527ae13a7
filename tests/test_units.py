"""The units of systemd's that are shipped: without a mistake, and sandboxed as closely as they can be."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from policyd.config import DEFAULT_LISTEN
from tests.daemon import REPOSITORY

UNITS = REPOSITORY / "systemd"
INSTALLED = "/opt/policyd/bin/policyd"
"""What the service runs, where the README installs it."""


@pytest.fixture(params=["as shipped", "without the socket", "unix only", "notices", "cluster"])
def units(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """Return a folder with the units as one has installed them, and which they are."""
    if shutil.which("systemd-analyze") is None:
        reason = "systemd-analyze not found: apt-get install systemd"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    for name in ("policyd.service", "policyd.socket"):
        shutil.copy(UNITS / name, tmp_path)
    if request.param == "without the socket":
        (tmp_path / "policyd.socket").unlink()
    if request.param == "unix only":
        shutil.copytree(UNITS / "unix-only", tmp_path, dirs_exist_ok=True)
    if request.param == "notices":
        shutil.copytree(UNITS / "notify", tmp_path, dirs_exist_ok=True)
    if request.param == "cluster":
        shutil.copytree(UNITS / "cluster", tmp_path, dirs_exist_ok=True)
    service = tmp_path / "policyd.service"
    service.write_text(service.read_text().replace(INSTALLED, "/bin/true"))
    return tmp_path, request.param


def analyze(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run systemd-analyze on what is in a folder, and return its exit status and all it says."""
    done = subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def test_units_have_no_mistake(units: tuple[Path, str]) -> None:
    """No unknown key, no value that is ignored, no warning."""
    folder, _ = units
    files = sorted(f"./{file.name}" for file in folder.glob("policyd.*") if file.is_file())
    assert analyze(folder, "--man=no", "--recursive-errors=no", "verify", *files) == (0, "")


def test_a_mistake_in_a_unit_would_be_found(units: tuple[Path, str]) -> None:
    """The check above is one."""
    folder, _ = units
    with (folder / "policyd.service").open("a") as service:
        service.write("[Service]\nPrivateTemp=yes\n")
    status, said = analyze(folder, "--man=no", "--recursive-errors=no", "verify", "./policyd.service")
    assert (status, "PrivateTemp" in said) != (0, False)


def test_the_service_is_exposed_to_little(units: tuple[Path, str]) -> None:
    """To at most 1.0 of 10 as systemd counts it, and to at most 0.3 with nothing but a unix socket."""
    folder, which = units
    tenths = 3 if which == "unix only" else 10
    status, said = analyze(folder, "security", "--offline=true", f"--threshold={tenths}", "policyd.service")
    assert status == 0, said
    assert "Overall exposure level" in said


def test_the_socket_is_where_the_daemon_would_listen_itself() -> None:
    """Who adds the socket unit changes nothing in main.cf."""
    assert DEFAULT_LISTEN == ("tcp:10045:interface=127.0.0.1",)
    assert "\nListenStream=127.0.0.1:10045\n" in (UNITS / "policyd.socket").read_text()
