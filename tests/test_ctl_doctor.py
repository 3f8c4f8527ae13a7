"""policyctl doctor as a process: against prepared daemons, and against a real Postfix and a real policyd."""

from __future__ import annotations

import json
import os
import pwd
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policyd.ctl_client import CtlError
from policyd.ctl_postconf import World, parse_postfix, read_postfix
from tests.control_socket import ControlSocket, environment, line_of, listening, policyctl, run, said
from tests.daemon import Policyd
from tests.doctoring import LOGIN, MAIN, POLICYD, STATUS, aged, require_postconf, write
from tests.postfix import PrivatePostfix, queued, require_postfix

NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ControlSocket]:
    """Run a daemon that is well, and does not really listen for Postfix."""
    with socket.create_server(("127.0.0.1", 0)) as asked:
        status = {**STATUS, "listen": [f"tcp:{asked.getsockname()[1]}:interface=127.0.0.1"]}
        with listening(tmp_path / "control.sock", {"/status": (200, status)}) as server:
            yield server


@pytest.fixture
def conf(tmp_path: Path, daemon: ControlSocket) -> Path:
    """Write a configuration that asks that daemon as it should."""
    require_postconf()
    (tmp_path / "conf").mkdir()
    return write(tmp_path / "conf", {**MAIN, "policyd": POLICYD.replace("10045", port(daemon))})


def port(daemon: ControlSocket) -> str:
    """Return the port on which a prepared daemon says that it listens."""
    listen: str = daemon.answers["/status"][1]["listen"][0]
    return listen.split(":")[1]


def test_wiring_that_is_well_is_exit_status_0(daemon: ControlSocket, conf: Path) -> None:
    """One line says so."""
    finished = run(daemon, "doctor", "--postfix-config", str(conf))
    assert said(finished) == (0, f"no fault found: Postfix ({conf}) asks policyd as it should\n", "")
    assert daemon.requests == [("GET", "/status", None)]


def test_fault_is_told_with_its_place_its_reason_and_its_cure(daemon: ControlSocket, conf: Path) -> None:
    """A person sees what is wrong, where and why, and can paste the line; the exit status is 1."""
    main = (conf / "main.cf").read_text().replace("smtpd_recipient_limit = 5100", "smtpd_recipient_limit = 1000")
    (conf / "main.cf").write_text(main)
    finished = run(daemon, "doctor", "--postfix-config", str(aged(conf)))
    assert said(finished) == (
        1,
        "1. smtpd_recipient_limit is 1000, and policyd allows 5000 recipients in a message\n"
        "   main.cf: smtpd_recipient_limit (submission/inet)\n"
        "   Postfix itself answers 452 to the recipients beyond, and policyd is never asked about them.\n"
        f"     postconf -c {conf} -e 'smtpd_recipient_limit = 5100'\n"
        "\n"
        f"1 fault; Postfix was read from {conf}. Lines that begin with # are for you to do. After each mending: "
        "postfix reload, and policyctl doctor again\n",
        "",
    )


def test_lines_that_mend_two_faults_are_told_once(daemon: ControlSocket, conf: Path) -> None:
    """The second time it is said that they do; programs get them with each fault."""
    write(conf, {**MAIN, "policyd": f"inet:127.0.0.1:{port(daemon)}"})
    given = ("doctor", "--postfix-config", str(conf))
    faults = json.loads(run(daemon, *given, "--json").stdout)["faults"]
    assert [fault["code"] for fault in faults] == ["default-action-unset", "timeout-too-long"]
    assert faults[0]["mend"] == faults[1]["mend"]
    lines = run(daemon, *given).stdout.splitlines()
    assert [lines.count(f"     {line}") for line in faults[0]["mend"]] == [1] * len(faults[0]["mend"])
    assert lines[-3].endswith("above mends this, too: see 1.")


def test_json_has_its_documented_shape(daemon: ControlSocket, conf: Path) -> None:
    """The keys are those of docs/control.md, with the same exit status."""
    write(conf, {**MAIN, "policyd": POLICYD.replace("10045", port(daemon)), "smtpd_recipient_limit": "1"})
    finished = run(daemon, "--json", "doctor", "--postfix-config", str(conf))
    value = json.loads(finished.stdout)
    assert (finished.returncode, finished.stderr) == (1, "")
    assert set(value) == {"postfix", "running", "faults", "notes"}
    assert (value["postfix"], value["running"], value["notes"]) == (str(conf), True, [])
    (fault,) = value["faults"]
    assert set(fault) == {"code", "what", "why", "mend", "parameter", "file", "services"}
    assert (fault["code"], fault["file"], fault["services"]) == ("recipient-limit", "main.cf", ["submission/inet"])


def test_daemon_that_is_not_running_is_a_fault(conf: Path, tmp_path: Path) -> None:
    """Postfix is looked at all the same, and the exit status is 1."""
    finished = policyctl("--socket", str(tmp_path / "none"), "doctor", "--json", "--postfix-config", str(conf))
    value = json.loads(finished.stdout)
    assert (finished.returncode, finished.stderr, value["running"]) == (1, "", False)
    first = value["faults"][0]
    assert (first["code"], first["mend"]) == ("not-running", ["systemctl start policyd.socket policyd"])


def test_config_tells_where_a_daemon_that_is_away_listens(conf: Path, tmp_path: Path, daemon: ControlSocket) -> None:
    """With -c, `listen:` is known without the daemon."""
    config = tmp_path / "policyd.yaml"
    config.write_text(f"listen: [tcp:{port(daemon)}:interface=127.0.0.1]\ncontrol: {tmp_path}/none\n")
    finished = policyctl("-c", str(config), "doctor", "--json", "--postfix-config", str(conf))
    assert [fault["code"] for fault in json.loads(finished.stdout)["faults"]] == ["not-running"]


def test_folder_without_main_cf_is_wrong_usage(daemon: ControlSocket, tmp_path: Path) -> None:
    """One sentence names the folder."""
    line = line_of(run(daemon, "doctor", "--postfix-config", str(tmp_path)), 2)
    assert line == f"policyctl: {tmp_path} has no main.cf: name the folder of Postfix's configuration"


def test_configuration_that_postconf_cannot_read_is_one_sentence(daemon: ControlSocket, tmp_path: Path) -> None:
    """Postfix's own complaint is passed on."""
    require_postconf()
    write(tmp_path, MAIN, "submission inet n\n")
    line = line_of(run(daemon, "doctor", "--postfix-config", str(tmp_path)), 1)
    assert line.startswith("policyctl: ")
    assert "postconf -c" in line
    assert "fatal" in line


def test_machine_without_postfix_is_one_sentence(tmp_path: Path) -> None:
    """Where there is no postconf, there is nothing to look at."""
    with pytest.raises(CtlError, match=r"postconf is not found: is Postfix installed on this machine\?") as caught:
        read_postfix(None, str(tmp_path))
    assert caught.value.status == 1


@pytest.mark.parametrize(
    "status", [[], {"hooks": {}}, {**STATUS, "limits": [3]}, {**STATUS, "requests": "x"}, {**STATUS, "listen": 3}]
)
def test_strange_daemon_is_one_sentence(daemon: ControlSocket, conf: Path, status: Any) -> None:
    """An answer of another shape is no traceback."""
    daemon.answers = {"/status": (200, status)}
    line = line_of(run(daemon, "doctor", "--postfix-config", str(conf)), 1)
    assert line == (
        "policyctl: the daemon's answer is not what this policyctl expects: is policyd of the same version?"
    )


def test_older_daemon_is_no_fault(daemon: ControlSocket, conf: Path) -> None:
    """One that does not say where it listens is told apart from one that is wired wrongly."""
    status = dict(daemon.answers["/status"][1])
    daemon.answers = {"/status": (200, {name: value for name, value in status.items() if name != "listen"})}
    finished = run(daemon, "doctor", "--json", "--postfix-config", str(conf))
    assert json.loads(finished.stdout)["notes"] == [
        "policyd does not say where it listens: it is of an older version than policyctl"
    ]


def test_chroot_that_nobody_names_follows_the_compatibility_level() -> None:
    """`-` in master.cf means a chroot in configurations as old as Postfix 2, and none since 3.0."""
    for main, chroot in (("", True), ("compatibility_level = 3.6\n", False), ("compatibility_level = 0\n", True)):
        (smtpd,) = parse_postfix(main, "", "", "submission inet n - - - - smtpd\n").smtpds
        assert smtpd.chroot == chroot


def test_world_sees_users_files_and_who_listens(tmp_path: Path) -> None:
    """What the made-up world of other tests stands for."""
    world = World()
    root = world.user("root")
    assert root is not None
    assert root.uid == 0
    assert world.user("no such user\0") is None
    (tmp_path / "a").mkdir(mode=0o750)
    path = tmp_path / "a" / "sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert world.connects("unix", str(path)) == "Connection refused"
        server.listen()
        assert world.connects("unix", str(path)) is None
    nodes, ends = world.nodes(str(tmp_path), "a/sock")
    assert [(node.path, stat.S_IMODE(node.mode)) for node in nodes][1] == (str(tmp_path / "a"), 0o750)
    assert (nodes[-1].path, ends) == (str(path), None)
    assert world.nodes(str(tmp_path), "b/sock")[1] == f"{tmp_path}/b is not there"
    assert world.connects("unix", str(tmp_path / "b")) == "No such file or directory"
    assert world.connects("unix", "x" * 200)
    assert world.connects("inet", ("127.0.0.1", "no such service"))
    (tmp_path / "link").symlink_to("a")
    assert world.real(str(tmp_path / "link" / "sock")) == str(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_what_is_closed_to_the_caller_is_said_to_be(tmp_path: Path) -> None:
    """Without root's rights, what cannot be seen is no fault."""
    os.chown(tmp_path, 0, 0)
    (tmp_path / "closed").mkdir(mode=0o700)
    code = (
        "import os; from policyd.ctl_postconf import World\n"
        "os.setgroups([]); os.setgid({g}); os.setuid({u})\n"
        "print([World().nodes('/', '{p}/sock')[1], World().connects('unix', '{p}/sock')])"
    ).format(g=NOBODY.pw_gid, u=NOBODY.pw_uid, p=tmp_path / "closed")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout == "['', '']\n"


@pytest.mark.parametrize("kind", ["inet", "unix"])
def test_real_postfix_that_asks_a_real_policyd_is_well(kind: str) -> None:
    """With the lines of README.md, a chroot and one message sent, doctor finds nothing; without DATA it finds that."""
    require_postfix()
    lines = {name: value for name, value in MAIN.items() if name not in ("queue_directory", "policyd")}
    lines |= {
        "smtpd_recipient_restrictions": "$mua_recipient_restrictions",
        "smtpd_data_restrictions": "$mua_data_restrictions",
    }
    with PrivatePostfix(chroot=True) as postfix, Policyd(listen=[f"unix:{postfix.policy_socket}:mode=660"]) as daemon:
        server = daemon.endpoint if kind == "inet" else "unix:policyd/policy.sock"
        lines["policyd"] = POLICYD.replace("inet:127.0.0.1:10045", server)
        postfix.reload(lines)
        with postfix.smtp("anna@example.com") as session:
            assert queued(session.message(2)[-1])
        conf = str(postfix.folder / "conf")
        done = daemon.ctl("doctor", "--postfix-config", conf)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert done.stdout.splitlines()[-1] == f"no fault found: Postfix ({conf}) asks policyd as it should"
        postfix.reload({**lines, "smtpd_data_restrictions": ""})
        done = daemon.ctl("doctor", "--json", "--postfix-config", conf)
        assert [fault["code"] for fault in json.loads(done.stdout)["faults"]] == ["no-data-hook"]
        assert done.returncode == 1
        if kind == "unix":
            postfix.reload(lines)
            postfix.policy_socket.chmod(0o600)
            done = daemon.ctl("doctor", "--json", "--postfix-config", conf)
            assert [fault["code"] for fault in json.loads(done.stdout)["faults"]] == ["closed-socket"]


def test_doctor_needs_no_config_of_the_machine(daemon: ControlSocket) -> None:
    """Without --postfix-config it looks at what postconf takes for Postfix's configuration, or says that it cannot."""
    finished = run(daemon, "doctor", "--json")
    assert finished.returncode in (0, 1)
    assert bool(finished.stdout) != bool(finished.stderr)


def test_many_services_are_looked_at_together(daemon: ControlSocket, conf: Path) -> None:
    """A hundred services with one fault are one fault."""
    master = "".join(LOGIN.format(chroot="n").replace("submission", f"127.0.0.1:{n}") for n in range(2000, 2100))
    write(conf, {"compatibility_level": "3.6", "smtpd_recipient_limit": "5100"}, master)
    finished = run(daemon, "doctor", "--json", "--postfix-config", str(conf))
    faults = json.loads(finished.stdout)["faults"]
    assert [(fault["code"], len(fault["services"])) for fault in faults] == [
        ("no-rcpt-hook", 100),
        ("no-data-hook", 100),
    ]
