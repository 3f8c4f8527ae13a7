"""The daemon as systemd, Postfix and a person at a terminal meet it: a process, its exit status, and what it says."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from policyd import __version__, paths
from tests.daemon import (
    PATIENCE,
    REPOSITORY,
    SHIPPED_CONFIG,
    Connection,
    DaemonFailedError,
    Policyd,
    free_port,
    listens,
    request,
)
from tests.waiting import until

LIMITS = "limits:\n  messages: {count: messages, per: 1h, max: 2, action: REJECT 5.7.1 enough}\n"
WATCHDOG = 1.0

BAD_CONFIG = """\
listen: [tcp:notaport, "foo:1"]
limits:
  messages:
    count: messages
    per: 30m
    max: five
    action: REJEKT
    lok: no
observe: maybe
"""


def environment(**settings: str) -> dict[str, str]:
    """Return an environment that says nothing of systemd or of folders."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "NOTIFY_", "WATCHDOG_"))}
    kept.pop("RUNTIME_DIRECTORY", None)
    return {**kept, "PYTHONPATH": str(REPOSITORY), **settings}


def policyd(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the daemon to an end that is to come by itself."""
    return subprocess.run(
        [sys.executable, "-m", "policyd", *map(str, arguments)],
        env=environment(**settings),
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def config_file(folder: Path, **settings: object) -> Path:
    """Write a config that listens on a free port and in the folder, and on nothing else."""
    values = {"listen": f"[tcp:{free_port()}:interface=127.0.0.1]", "control": folder / "control.sock", **settings}
    file = folder / "policyd.yaml"
    file.write_text("".join(f"{key}: {value}\n" for key, value in {**values, "database": "none"}.items()))
    return file


def failure(done: subprocess.CompletedProcess[str], status: int) -> str:
    """Return the one line for a person with which a command has failed; before it the log may tell of the start."""
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    (line,) = [line for line in done.stderr.splitlines() if " INFO start " not in line]
    return line


@contextmanager
def default_port_alone() -> Iterator[None]:
    """Be the only test on this host that uses the default port."""
    with (Path(tempfile.gettempdir()) / "policyd-test-10045.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def events(daemon: Policyd, *words: str) -> list[str]:
    """Return the events of these words that were logged, in order."""
    return [found for found in re.findall(r"(?m)^\S+ \S+ [A-Z]+ (\S+)", daemon.stderr) if found in words]


def states(daemon: Policyd) -> list[str]:
    """Return what systemd was told, without status texts and signs of life."""
    return [notice for notice in daemon.notices if not notice.startswith(("STATUS=", "WATCHDOG=", "MONOTONIC_USEC="))]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Policyd]:
    """Run one daemon, with a small limit, for all tests that do not stop it."""
    with Policyd(LIMITS) as running:
        running.message("somebody@example.com")
        yield running


@pytest.mark.skipif(paths.CONFIG.exists(), reason="this host has a config of its own")
def test_without_a_config_it_enforces_the_house_rules_on_the_default_port() -> None:
    """Nothing need be configured: 127.0.0.1:10045, 500 messages in half an hour, 5000 recipients."""
    with default_port_alone(), Policyd(None) as running:
        assert running.port == 10045
        assert running.message("anna@example.com") == ["DUNNO", "DUNNO"]
        limits = running.ctl_json("status", "anna@example.com")["limits"]
        assert [(limit["name"], limit["max"], limit["per"]) for limit in limits] == [
            ("recipients-per-message", 5000, "message"),
            ("messages-per-half-hour", 500, "30m"),
        ]
        assert 'config="built in"' in running.stderr


def test_version_is_told() -> None:
    """`--version` prints the version and nothing else."""
    done = policyd("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"policyd {__version__}\n", "")


def test_help_names_the_options_and_the_exit_statuses() -> None:
    """`--help` is enough to get along with."""
    done = policyd("--help")
    assert done.returncode == 0
    for word in ("-c FILE", "--check", "--version", "SIGHUP", "policyctl", "78", str(paths.CONFIG)):
        assert word in done.stdout


def test_wrong_usage_is_told() -> None:
    """An unknown option exits 2."""
    done = policyd("--chek")
    assert (done.returncode, done.stdout) == (2, "")
    assert "unrecognized arguments: --chek" in done.stderr


def test_the_shipped_config_is_good() -> None:
    """`--check` exits 0 with one line of summary."""
    done = policyd("--check", "-c", SHIPPED_CONFIG)
    assert (done.returncode, done.stderr) == (0, "")
    summary = "2 limits, 0 overrides, listening on tcp:10045:interface=127.0.0.1"
    assert done.stdout == f"{SHIPPED_CONFIG} is good: {summary}\n"


@pytest.mark.parametrize("arguments", [["--check"], []])
def test_a_bad_config_is_refused_with_all_its_errors(tmp_path: Path, arguments: list[str]) -> None:
    """`--check`, and a start as well, prints every error and exits 78."""
    file = tmp_path / "policyd.yaml"
    file.write_text(BAD_CONFIG)
    done = policyd(*arguments, "-c", file)
    assert (done.returncode, done.stdout) == (os.EX_CONFIG, "")
    places = [line.removeprefix(f"{file}:").split(": ")[:2] for line in done.stderr.splitlines()]
    assert places == [
        ["1", "listen[0]"],
        ["1", "listen[1]"],
        ["6", "limits.messages.max"],
        ["7", "limits.messages.action"],
        ["8", "limits.messages.lok"],
        ["9", "observe"],
    ]
    assert "Unknown endpoint type: 'foo'" in done.stderr


@pytest.mark.parametrize("arguments", [["--check"], []])
def test_a_config_that_is_not_there_is_a_config_error(tmp_path: Path, arguments: list[str]) -> None:
    """A mistyped `-c` does not start a daemon with other rules."""
    line = failure(policyd(*arguments, "-c", tmp_path / "nope.yaml"), os.EX_CONFIG)
    assert line == f"{tmp_path}/nope.yaml: cannot be read: No such file or directory"


def test_a_port_that_is_taken_is_told_in_one_line(tmp_path: Path) -> None:
    """It exits 1 at once, and says which port and why."""
    port = free_port()
    with closing(socket.create_server(("127.0.0.1", port))):
        done = policyd("-c", config_file(tmp_path, listen=f"[tcp:{port}:interface=127.0.0.1]"))
    assert re.fullmatch(rf"policyd: cannot listen on tcp:{port}\S*: Address already in use", failure(done, 1))


def test_a_missing_folder_for_the_control_socket_is_told_in_one_line(tmp_path: Path) -> None:
    """It exits 1 and names the place."""
    line = failure(policyd("-c", config_file(tmp_path, control=tmp_path / "missing" / "c.sock")), 1)
    assert re.fullmatch(rf"policyd: cannot make {tmp_path}/missing/c\.sock\S*: No such file or directory", line)


def test_a_control_socket_with_too_long_a_path_is_told_in_one_line(tmp_path: Path) -> None:
    """A folder that systemd names can be too deep; that is no bug of ours, and looks like none."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    file = tmp_path / "policyd.yaml"
    file.write_text(f"listen: [tcp:{free_port()}:interface=127.0.0.1]\ndatabase: none\n")
    line = failure(policyd("-c", file, RUNTIME_DIRECTORY=str(folder)), 1)
    assert re.fullmatch(rf"policyd: cannot listen on {folder}/control\.sock: .*too long", line)


def test_a_file_in_place_of_the_control_socket_is_left_alone(tmp_path: Path) -> None:
    """It exits 1, and the file is as it was."""
    (tmp_path / "control.sock").write_text("precious")
    line = failure(policyd("-c", config_file(tmp_path)), 1)
    assert line == f"policyd: cannot listen on {tmp_path}/control.sock: it is there and is no socket"
    assert (tmp_path / "control.sock").read_text() == "precious"


def test_a_second_daemon_does_not_start(daemon: Policyd) -> None:
    """It exits 1 and names the first, which goes on undisturbed."""
    line = failure(policyd("-c", daemon.config_file), 1)
    assert line == f"policyd: another policyd (pid {daemon.pid}) already runs with {daemon.control}"
    assert daemon.ask() == "DUNNO"
    assert daemon.ctl("status").returncode == 0


def test_sigterm_ends_it_within_two_seconds() -> None:
    """A request in flight is answered first, idle connections are closed, and no socket is left behind."""
    with Policyd(LIMITS) as running:
        idle, busy = running.connect(), running.connect()
        data = request(sasl_username="bert@example.com")
        busy.send(data + data[:200])
        assert busy.replies() == ["DUNNO"]
        began = time.monotonic()
        os.kill(running.pid, signal.SIGTERM)
        until(lambda: "STOPPING=1" in running.notices)
        busy.send(data[200:])
        assert busy.replies() == ["DUNNO"]
        assert busy.closed()
        assert idle.closed()
        assert running.wait() == 0
        assert time.monotonic() - began < 2
        assert not running.control.exists()
        assert events(running, "start", "ready", "stop") == ["start", "ready", "stop"]
        assert states(running) == ["READY=1", "STOPPING=1"]


def test_a_closed_stderr_stops_nothing(tmp_path: Path) -> None:
    """Who wants no log gets none; the daemon answers, and no socket is mistaken for stderr."""
    port = free_port()
    file = config_file(tmp_path, listen=f"[tcp:{port}:interface=127.0.0.1]")
    command = ["bash", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "bash", sys.executable, "-m", "policyd", "-c", str(file)]
    with subprocess.Popen(command, env=environment()) as process:
        try:
            until(lambda: listens(port))
            with Connection(("127.0.0.1", port)) as connection:
                connection.send(b"garbage\n")
                assert connection.closed()
            with Connection(("127.0.0.1", port)) as connection:
                assert connection.ask() == "DUNNO"
        finally:
            process.terminate()
    assert process.returncode == 0


def test_one_sigterm_is_as_good_as_three() -> None:
    """Who is impatient while requests are waited for changes nothing, and gets no traceback."""
    with Policyd(LIMITS) as running:
        half = running.connect()
        half.send(request() + b"request=")
        assert half.replies() == ["DUNNO"]
        os.kill(running.pid, signal.SIGTERM)
        until(lambda: "STOPPING=1" in running.notices)
        for _ in range(2):
            os.kill(running.pid, signal.SIGTERM)
        assert running.wait() == 0
        assert events(running, "stop") == ["stop"]


def test_sigterm_does_not_wait_for_ever() -> None:
    """A request that never ends, and a policyctl that never asks, delay the end by less than two seconds."""
    with Policyd(LIMITS) as running, socket.socket(socket.AF_UNIX) as ctl:
        half = running.connect()
        half.send(request() + b"request=")
        assert half.replies() == ["DUNNO"]
        ctl.connect(str(running.control))
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began < 2


def test_a_reload_changes_the_rules_and_keeps_counts_and_connections() -> None:
    """SIGHUP reads the config anew; systemd is told before and after."""
    with Policyd(LIMITS) as running:
        connection = running.connect()
        data: dict[str, str | bytes | int] = {"protocol_state": "DATA", "recipient_count": 1}
        assert [connection.ask(**data) for _ in range(3)] == ["DUNNO", "DUNNO", "REJECT 5.7.1 enough"]
        running.reload(LIMITS.replace("max: 2", "max: 3"))
        assert [connection.ask(**data) for _ in range(2)] == ["DUNNO", "REJECT 5.7.1 enough"]
        assert states(running) == ["READY=1", "RELOADING=1", "READY=1"]
        told = [notice for notice in running.notices if notice.startswith("MONOTONIC_USEC=")]
        assert 0 <= time.monotonic_ns() // 1000 - int(told[0].partition("=")[2]) < PATIENCE * 1e6
        assert re.search(r'NOTICE reload by=SIGHUP changed="limits.messages.max: 2 -> 3"', running.stderr)


def test_a_reload_of_a_bad_config_changes_nothing() -> None:
    """It is logged, shown in the status until it is mended, and systemd is told that the daemon is ready again."""
    with Policyd(LIMITS) as running:
        running.reload(LIMITS.replace("max: 2", "max: two"))
        assert states(running) == ["READY=1", "RELOADING=1", "READY=1"]
        assert re.search(r"ERROR reload-failed by=SIGHUP problem=.*:2: limits\.messages\.max: want", running.stderr)
        (problem,) = running.ctl_json("status")["problems"]
        assert "limits.messages.max" in problem
        assert [running.message("anna@example.com")[-1] for _ in range(3)] == ["DUNNO", "DUNNO", "REJECT 5.7.1 enough"]
        running.config_file.unlink()
        running.reload()
        assert "cannot be read" in running.ctl_json("status")["problems"][0]
        running.reload(LIMITS)
        assert running.ctl_json("status")["problems"] == []


def large(maximum: int, overrides: int) -> str:
    """Return a config that takes a while to read."""
    lines = (f"  - {{accounts: ['user{n}*@example.com'], limits: {{messages: {n + 5}}}}}\n" for n in range(overrides))
    return LIMITS.replace("max: 2", f"max: {maximum}") + "overrides:\n" + "".join(lines)


def call(daemon: Policyd, method: str, path: str) -> socket.socket:
    """Make a call, and return the connection over which the answer will come."""
    control = socket.socket(socket.AF_UNIX)
    control.settimeout(PATIENCE)
    control.connect(str(daemon.control))
    control.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    return control


def has_come(answer: socket.socket) -> bool:
    """Tell whether something has come."""
    return bool(select.select([answer], [], [], 0)[0])


def the_rest(answer: socket.socket) -> str:
    """Return all that comes."""
    with answer:
        return b"".join(iter(lambda: answer.recv(65536), b"")).decode()


def test_requests_are_answered_while_a_large_config_is_read() -> None:
    """Reading it takes a second; what counts meanwhile is what was in force."""
    with Policyd(LIMITS) as running, running.connect() as connection:
        running.write_config(large(9, 1000))
        order = call(running, "POST", "/reload")
        answered = 0
        while not has_come(order):
            assert connection.ask(sasl_username="", protocol_state="MAIL") == "DUNNO"
            answered += 1
        assert "limits.messages.max: 2 -> 9" in the_rest(order)
        assert answered > 10
        assert states(running) == ["READY=1", "RELOADING=1", "READY=1"]


def test_requests_are_answered_while_accounts_are_listed() -> None:
    """Whoever wants to see thousands keeps no mail waiting."""
    everybody = {f"user{n}" for n in range(4000)}
    with Policyd(LIMITS) as running, running.connect() as connection:
        for user in everybody:
            connection.send(request(sasl_username=user, protocol_state="MAIL", instance=""))
        connection.replies(len(everybody))

        def several_were_answered() -> bool:
            question = call(running, "GET", "/accounts?n=100000")
            answered = 0
            while not has_come(question):
                assert connection.ask(sasl_username="", protocol_state="MAIL") == "DUNNO"
                answered += 1
            _, _, shown = the_rest(question).partition("\r\n\r\n")
            assert {account["account"] for account in json.loads(shown)} == everybody
            return answered > 3

        until(several_were_answered)  # once is enough: this process may have to wait for a processor


def test_an_order_to_reload_is_answered_about_the_file_as_it_was_then() -> None:
    """Though the daemon is just reading the config, as it was before: two more orders share the next reading."""
    with Policyd(LIMITS) as running:
        running.write_config(large(3, 1000))
        first = call(running, "POST", "/reload")
        until(lambda: "RELOADING=1" in running.notices)
        running.write_config(LIMITS.replace("max: 2", "max: 4"))
        second, third = call(running, "POST", "/reload"), call(running, "POST", "/reload")
        assert "limits.messages.max: 2 -> 3" in the_rest(first)
        for order in (second, third):
            assert "limits.messages.max: 3 -> 4" in the_rest(order)
        assert running.ctl_json("status", "x")["limits"][0]["max"] == 4
        assert states(running) == ["READY=1", *["RELOADING=1", "READY=1"] * 2]
        assert events(running, "reload") == ["reload"] * 3


def test_a_storm_of_sighups_leaves_the_newest_config_in_force() -> None:
    """Whenever they come: the last is about the last file, and systemd is told of the end of each reload."""
    with Policyd(LIMITS) as running:
        running.write_config(large(3, 500))
        for _ in range(20):
            os.kill(running.pid, signal.SIGHUP)
            running.ask(sasl_username="")
        running.write_config(LIMITS.replace("max: 2", "max: 7"))
        os.kill(running.pid, signal.SIGHUP)
        until(lambda: running.ctl_json("status", "x")["limits"][0]["max"] == 7)
        until(lambda: states(running)[-1] == "READY=1")
        told = states(running)
        assert told == ["READY=1", *["RELOADING=1", "READY=1"] * (len(told) // 2)]
        assert len(told) // 2 < 21


def test_a_daemon_that_reads_its_config_can_be_stopped() -> None:
    """It does not wait for the reading, says nothing of it any more, and leaves no traceback."""
    with Policyd(LIMITS) as running:
        running.write_config(large(3, 8000))
        order = call(running, "POST", "/reload")
        until(lambda: "RELOADING=1" in running.notices)
        os.kill(running.pid, signal.SIGHUP)
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began < 2
        assert the_rest(order) == ""
        assert states(running) == ["READY=1", "RELOADING=1", "STOPPING=1"]
        assert events(running, "reload", "reload-failed", "internal-error", "stop") == ["stop"]


def test_the_watchdog_gets_its_sign_of_life_in_time() -> None:
    """$WATCHDOG_USEC apart, at the most, from the start on."""
    with Policyd(LIMITS, environment={"WATCHDOG_USEC": str(int(WATCHDOG * 1e6))}) as running:
        began = time.monotonic()
        until(lambda: running.notices.count("WATCHDOG=1") >= 4)
        assert time.monotonic() - began < 3 * WATCHDOG


def test_a_unix_listener_is_for_owner_and_group_and_survives_a_kill(tmp_path: Path) -> None:
    """Its mode is 660 unless the config says otherwise; what kill -9 leaves behind is replaced at the next start."""
    policy, control = tmp_path / "policy.sock", tmp_path / "control.sock"
    with Policyd(f"control: {control}\n{LIMITS}", listen=[f"unix:{policy}"]) as running:
        for kill in (running.kill, running.stop):
            assert stat.S_IMODE(policy.stat().st_mode) == stat.S_IMODE(control.stat().st_mode) == 0o660
            with running.connect(str(policy)) as connection:
                assert connection.ask() == "DUNNO"
            kill()
            assert policy.exists() == control.exists() == (kill == running.kill)
            running.start()


def test_a_peer_that_never_reads_is_cut_off() -> None:
    """The daemon's memory is not its mailbox: it hangs up, logs it once, and goes on."""
    with tempfile.TemporaryDirectory() as folder:
        policy = f"{folder}/policy.sock"
        with Policyd(LIMITS, listen=[f"unix:{policy}"]) as running, socket.socket(socket.AF_UNIX) as deaf:
            deaf.settimeout(PATIENCE)
            deaf.connect(policy)
            requests = b"request=smtpd_access_policy\n\n" * 2_000_000
            with pytest.raises(ConnectionError):
                deaf.sendall(requests)
            assert running.ask() == "DUNNO"
            assert running.ctl_json("status")["protocol_errors"] == 1
            assert running.stderr.count('protocol-error peer=unix reason="does not read its replies"') == 1


def test_a_runtime_folder_of_systemds_is_used(daemon: Policyd, tmp_path: Path) -> None:
    """Of several, separated by colons, the first; and there the daemon holds itself alone."""
    folders = f"{daemon.folder / 'run'}:{tmp_path}"
    file = tmp_path / "policyd.yaml"
    file.write_text(f"listen: [tcp:{free_port()}:interface=127.0.0.1]\n")
    line = failure(policyd("-c", file, RUNTIME_DIRECTORY=folders), 1)
    assert line == f"policyd: another policyd (pid {daemon.pid}) already runs with {daemon.control}"


AS_USER = """
import os, sys
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.plugin import getPlugins
from policyd.start import main
list(getPlugins(IStreamServerEndpointStringParser))
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({uid})
    os.setuid({uid})
main()
"""
"""Becomes another user once all is imported: root's Python may lie where nobody else can read it."""


class User:
    """Somebody who is not root, with a home and a runtime folder."""

    def __init__(self, folder: Path) -> None:
        self.uid = os.geteuid() or 65534
        self.home, self.runtime = folder / "home", folder / "runtime"
        for path in (self.home, self.runtime):
            path.mkdir(mode=0o700)
            os.chown(path, self.uid, -1)
        self.config = folder / "policyd.yaml"
        self.config.write_text(f"listen: [tcp:{free_port()}:interface=127.0.0.1]\n")

    def start(self) -> subprocess.Popen[str]:
        """Start the daemon as this user."""
        return subprocess.Popen(
            [sys.executable, "-c", AS_USER.format(uid=self.uid), "-c", str(self.config)],
            env=environment(HOME=str(self.home), XDG_RUNTIME_DIR=str(self.runtime)),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def user() -> Iterator[User]:
    """Be a user with folders of their own, in one that all may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield User(Path(folder))


def started(process: subprocess.Popen[str]) -> str:
    """Return the line with which the daemon says that it is ready; it has to come."""
    assert process.stderr is not None
    for line in process.stderr:
        if " ready " in line:
            return line
    raise DaemonFailedError("it ended before it was ready")


def test_a_user_has_a_daemon_of_their_own(user: User) -> None:
    """Without systemd and root, the control socket lies in the XDG runtime folder, in a folder that is theirs alone."""
    with user.start() as process:
        try:
            control = user.runtime / "policyd" / "control.sock"
            assert f"control={control}\n" in started(process)
            assert stat.S_IMODE(control.parent.stat().st_mode) == 0o700
            assert stat.S_IMODE(control.stat().st_mode) == 0o660
        finally:
            process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_folder_that_others_may_write_to_is_not_used(user: User) -> None:
    """Nobody else can put a control socket where policyctl looks for it."""
    folder = user.runtime / "policyd"
    folder.mkdir()
    os.chown(folder, user.uid, -1)
    folder.chmod(0o770)
    with user.start() as process:
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert said.splitlines()[-1] == f"policyd: the folder {folder} is not this user's alone"


def test_a_request_may_be_cut_anywhere(daemon: Policyd) -> None:
    """Every cut of one request, inside of a UTF-8 sequence too, gives one answer."""
    data = request(sasl_username="jürgen@exämple.com", protocol_state="MAIL", helo_name="a=b", policy_context="ü")
    with daemon.connect() as connection:
        for cut in range(1, len(data)):
            connection.send(data[:cut])
            connection.send(data[cut:])
            assert connection.replies() == ["DUNNO"], cut
    assert daemon.ctl_json("status")["protocol_errors"] == 0


def test_three_requests_in_a_packet_get_three_answers_in_order(daemon: Policyd) -> None:
    """The refused one is the one in the middle."""
    for _ in range(2):
        daemon.message("full@example.com")
    names = ("a@example.com", "full@example.com", "b@example.com")
    packet = (request(sasl_username=name, protocol_state="DATA", instance=name, recipient_count=1) for name in names)
    with daemon.connect() as connection:
        connection.send(b"".join(packet))
        assert connection.replies(3) == ["DUNNO", "REJECT 5.7.1 enough", "DUNNO"]


LOGINS: Mapping[str, bytes] = {
    "equals": b"a=b=c",
    "a login that looks like an attribute": b"client_address=192.0.2.1",
    "quotes": b"\"'`",
    "blanks": b" anna  smith ",
    "escape": b"\x1b[31mred\x07",
    "carriage return": b"a\rb",
    "UTF-8": "jürgen😀@exämple.com".encode(),
    "Latin-1": b"j\xfcrgen@ex\xe4mple.com",
    "broken UTF-8": b"\xe2\x82",
    "line separator": "a\u2028b".encode(),
    "template": b"{account}{max}%s%n$(id)",
    "9 kB": b"x" * 9216,
}


@pytest.mark.parametrize("login", LOGINS.values(), ids=LOGINS)
def test_a_hostile_login_is_an_account_like_any_other(daemon: Policyd, login: bytes) -> None:
    """Behind 2 kB of HELO and sender, it is counted, refused beyond the maximum, and one line of the log."""
    lines = len(daemon.stderr.split("\n"))
    given: dict[str, bytes | str | int] = {"sasl_username": login, "helo_name": b"h" * 2048, "sender": b"s" * 2048}
    given |= {"protocol_state": "DATA", "recipient_count": 1}
    assert [daemon.ask(**given) for _ in range(3)] == ["DUNNO", "DUNNO", "REJECT 5.7.1 enough"]
    assert len(daemon.stderr.split("\n")) - lines == 1
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\x85\u2028]", daemon.stderr)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\n", b"\n", b"EHLO x\r\n"])
def test_who_does_not_speak_the_protocol_is_hung_up_on(data: bytes) -> None:
    """No reply, one warning with the peer and the reason, and it is counted."""
    with Policyd(LIMITS) as running:
        other = running.connect()
        with running.connect() as connection:
            connection.send(data)
            assert connection.closed()
        assert re.findall(r"WARNING protocol-error peer=(\S+) reason=", running.stderr) == ["127.0.0.1"]
        assert running.ctl_json("status")["protocol_errors"] == 1
        assert other.ask() == "DUNNO"
