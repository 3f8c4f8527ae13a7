"""The daemon under the restrictions of its unit, one by one and all together: it starts, answers and can be asked."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import PATIENCE, REPOSITORY, DaemonFailedError, Policyd, free_port
from tests.desks import Listener, Smtp, Web
from tests.sandbox import NOBODY, NOT_HERE, PARTS
from tests.stores import require_store, running
from tests.test_activation import address_of, tcp_socket, unix_socket
from tests.test_notifying import make_certificate, require_tls
from tests.waiting import until

SERVICE = REPOSITORY / "systemd" / "policyd.service"
NOTIFY = REPOSITORY / "systemd" / "notify" / "policyd.service.d" / "notify.conf"
CLUSTER = REPOSITORY / "systemd" / "cluster" / "policyd.service.d" / "cluster.conf"
UNIX_ONLY = REPOSITORY / "systemd" / "unix-only" / "policyd.service.d" / "unix-only.conf"
WITH_A_NETWORK = [part for part in PARTS if part != "no network"]
CONFIG = """\
database:
limits:
  messages: {count: messages, per: 1h, max: 10, action: REJECT 5.7.1 enough, lock: until-unlocked}
"""


def setting(unit: Path, name: str) -> list[str]:
    """Return what a unit says of a setting, line by line."""
    return re.findall(rf"(?m)^{name}=(.+)$", unit.read_text())


def system_calls() -> list[str]:
    """Return the system calls that the service is left with."""
    if shutil.which("systemd-analyze") is None:
        reason = "systemd-analyze not found: it knows what @system-service is"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    left = syscall_set("@default")
    for line in setting(SERVICE, "SystemCallFilter"):
        named = set().union(*(syscall_set(name) for name in line.removeprefix("~").split()))
        left = left - named if line.startswith("~") else left | named
    return sorted(left)


def syscall_set(name: str) -> set[str]:
    """Return the system calls of which a set of systemd's consists."""
    command = ["systemd-analyze", "--no-pager", "syscall-filter", name]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE, check=True).stdout.splitlines()
    names = {line.strip() for line in lines[1:] if not line.strip().startswith("#")} - {""}
    return {call for name in names for call in (syscall_set(name) if name.startswith("@") else {name})}


def sandbox(parts: list[str], unit: Path = SERVICE) -> list[str]:
    """Return the command that puts the command after it under these parts of a unit's restrictions."""
    given = {
        "parts": parts,
        "syscalls": system_calls() if "system calls" in parts else [],
        "families": setting(unit, "RestrictAddressFamilies")[-1].split(),
    }
    return [sys.executable, str(REPOSITORY / "tests" / "sandbox.py"), json.dumps(given)]


def permitted(parts: list[str], folder: Path) -> list[str]:
    """Return those parts that this host permits."""

    def works(part: str) -> bool:
        done = subprocess.run(
            [*sandbox([part]), shutil.which("true") or "true"], cwd=folder, timeout=PATIENCE, check=False
        )
        assert done.returncode in (0, NOT_HERE)
        return done.returncode == 0

    return [part for part in parts if works(part)]


def works_as_ever(daemon: Policyd, *listening: socket.socket) -> None:
    """Make sure that Postfix and a person get what they ask for."""
    for address in [address_of(passed) for passed in listening] or [daemon.address]:
        with daemon.connect(address) as connection:
            assert connection.ask() == "DUNNO"
    assert daemon.ctl("lock", "anna@example.com", "--reason", "test").returncode == 0
    assert daemon.ctl_json("status", "anna@example.com")["lock"]["reason"] == "test"
    assert [lock["account"] for lock in daemon.ctl_json("locked")] == ["anna@example.com"]
    assert stat.S_IMODE(daemon.control.stat().st_mode) == 0o660
    daemon.reload(CONFIG.replace("max: 10", "max: 20"))
    assert daemon.ctl_json("reload") == {"changed": [], "needs_restart": []}
    assert "internal-error" not in daemon.stderr
    assert daemon.stop() == 0


def status_of(process: int) -> dict[str, str]:
    """Return what the kernel tells of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Hold a TCP and a unix socket, as systemd does."""
    with tcp_socket() as tcp, unix_socket(tmp_path / "policy.sock") as unix:
        yield tcp, unix


@pytest.mark.parametrize("part", PARTS)
def test_a_restriction_hinders_nothing(part: str, sockets: tuple[socket.socket, socket.socket]) -> None:
    """Each by itself; what this host does not permit is skipped with the reason."""
    unit = UNIX_ONLY if part == "no network" else SERVICE
    try:
        with Policyd(CONFIG, sockets=sockets, prefix=sandbox([part], unit)) as daemon:
            works_as_ever(daemon, *sockets)
    except DaemonFailedError as error:
        if f"exit status {NOT_HERE}" not in str(error):
            raise
        pytest.skip(str(error).splitlines()[-1])


@pytest.mark.parametrize("opens", ["systemd", "policyd"])
def test_all_restrictions_together_hinder_nothing(
    opens: str, sockets: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    """With systemd's sockets it needs no network, and without them the unit as shipped lets it open its own."""
    by_systemd = opens == "systemd"
    parts = permitted(list(PARTS) if by_systemd else WITH_A_NETWORK, tmp_path)
    given = sockets if by_systemd else ()
    prefix = sandbox(parts, UNIX_ONLY if by_systemd else SERVICE)
    with Policyd(CONFIG, sockets=given, prefix=prefix) as daemon:
        status = status_of(daemon.pid)
        if "no capabilities" in parts:
            assert status["Uid"].split() == status["Gid"].split() == [str(NOBODY)] * 4
            assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
        if "no new privileges" in parts:
            assert status["NoNewPrivs"] == "1"
        if "system calls" in parts:
            assert status["Seccomp"] == "2"
        works_as_ever(daemon, *given)


def test_notices_are_sent_under_all_restrictions(tmp_path: Path) -> None:
    """To a relay and a web server on this host, and by a command, with the unit as shipped."""
    smtp, web = Smtp(), Web()
    with Listener(smtp) as relay, Listener(web) as server:
        config = f"""\
notify:
  mail: {{relay: '127.0.0.1:{relay.port}', from: policyd@example.com, to: [abuse@example.com]}}
  webhook: {{url: 'http://127.0.0.1:{server.port}/'}}
  command: [/bin/sh, -c, 'test "$POLICYD_EVENT" = test && cat']
"""
        with Policyd(config, prefix=sandbox(permitted(WITH_A_NETWORK, tmp_path))) as daemon:
            tests = daemon.ctl_json("notify", "--test")["channels"]
            assert [(test["channel"], test["sent"]) for test in tests] == [
                ("mail", True),
                ("webhook", True),
                ("command", True),
            ], tests
    assert len(smtp.mails) == len(web.posted) == 1


def test_https_works_with_the_drop_in(tmp_path: Path) -> None:
    """What policyd has for TLS makes code at run time, which the unit forbids where the drop-in is not installed."""
    require_tls()
    left_out = {"no capabilities"}  # nobody cannot read the test's certificate
    if setting(NOTIFY, "MemoryDenyWriteExecute") == ["no"]:
        left_out.add("no written code")
    parts = permitted([part for part in WITH_A_NETWORK if part not in left_out], tmp_path)
    web = Web()
    with Listener(web, make_certificate(tmp_path)) as server:
        config = f"notify: {{webhook: {{url: 'https://localhost:{server.port}/'}}}}"
        environment = {"SSL_CERT_FILE": str(tmp_path / "cert.pem")}
        with Policyd(config, prefix=sandbox(parts), environment=environment) as daemon:
            (told,) = daemon.ctl_json("notify", "--test")["channels"]
            assert told["sent"], told
    assert len(web.posted) == 1


def test_a_store_is_reached_by_tls_with_the_drop_in(tmp_path: Path) -> None:
    """As above: without what the drop-in takes away, the store would stay away."""
    require_tls()
    require_store()
    left_out = {"no capabilities"}  # nobody cannot read the test's certificate
    if setting(CLUSTER, "MemoryDenyWriteExecute") == ["no"]:
        left_out.add("no written code")
    parts = permitted([part for part in WITH_A_NETWORK if part not in left_out], tmp_path)
    make_certificate(tmp_path)
    key, certificate, port = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem"), free_port()
    files = ("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate)
    with running("--tls-port", str(port), *files, "--tls-auth-clients", "no"):
        config = f"cluster: rediss://localhost:{port}/0"
        with Policyd(config, prefix=sandbox(parts), environment={"SSL_CERT_FILE": certificate}) as daemon:
            until(lambda: daemon.ctl_json("status")["cluster"]["here"])
            assert daemon.ask() == "DUNNO"
            assert "internal-error" not in daemon.stderr


def test_the_check_before_the_start_works_under_them_too(tmp_path: Path) -> None:
    """ExecStartPre= is restricted like the daemon, and has no sockets."""
    prefix = sandbox(permitted(list(PARTS), tmp_path), UNIX_ONLY)
    config = REPOSITORY / "etc" / "policyd.yaml"
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "policyd", "-c", str(config), "--check"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "is good" in done.stdout
