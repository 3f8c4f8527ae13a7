"""Completion: what policyctl says may stand in a word, and what real shells make of it."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from policyd.ctl import COMPLETE, _parser
from tests.control_socket import (
    ANSWERS,
    LIMIT,
    LOCK,
    REPOSITORY,
    ControlSocket,
    environment,
    listening,
    policyctl,
)
from tests.terminals import Terminal
from tests.waiting import until

SHELLS = ("bash", "zsh")
SETUP = {
    "bash": ["--norc", "--noprofile", "-i"],
    "zsh": ["-f", "-i"],
}
LOADING = {
    "bash": f"bind 'set enable-bracketed-paste off'; source {REPOSITORY}/completion/policyctl.bash",
    "zsh": f"unset zle_bracketed_paste; fpath=({REPOSITORY}/completion $fpath); autoload -Uz compinit; compinit -u -D",
}

HOSTILE = [
    "anna@example.com",
    "$(touch pwned)",
    "`touch pwned`",
    "a;touch pwned",
    "${x:=$(touch pwned)}",
    "a&b|c>d<e",
    "a b  c",
    "it's",
    'say "hello"',
    "back\\slash\\",
    "*",
    "[ab]?",
    "{a,b}",
    "~root",
    "#hash",
    "x!y",
    "x!!",
    "a:b=c@d",
    "%s%n",
    "jürgen李@example.com",
    "=ls",
]
"""Accounts that mean something to a shell."""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ControlSocket]:
    """Run a daemon with two accounts, one of which is locked."""
    answers = {**ANSWERS, "/locked": (200, [LOCK]), "/status": (200, {"limits": [LIMIT]})}
    with listening(tmp_path / "control.sock", answers) as server:
        yield server


def completed(*words: str, control: Path | str = "/nowhere") -> tuple[str, dict[str, str]]:
    """Return what policyctl says may stand in the last word: the kind, and each candidate with its meaning."""
    finished = policyctl(COMPLETE, *words, env={"POLICYD_CONTROL": str(control)})
    assert (finished.returncode, finished.stderr) == (0, "")
    kind, *lines = finished.stdout.splitlines()
    return kind, {value: meaning for value, _, meaning in (line.partition("\t") for line in lines)}


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of all commands."""
    (found,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def test_every_command_is_completed() -> None:
    """With what it does."""
    kind, candidates = completed("")
    assert (kind, list(candidates)) == ("words", list(commands()))
    assert all(candidates.values())
    assert list(completed("unl")[1]) == ["unlock"]


@pytest.mark.parametrize("command", [*commands(), None])
def test_every_option_is_completed(command: str | None) -> None:
    """After its command, with what it does; after `--` there are none."""
    parser = commands()[command] if command else _parser()
    before = [command] if command else []
    flags = [flag for action in parser._actions for flag in action.option_strings]
    kind, candidates = completed(*before, "-")
    assert (kind, list(candidates)) == ("words", flags)
    assert all(candidates.values())
    assert completed(*before, "--", "-") == ("words", {})


def test_accounts_are_those_of_the_daemon(daemon: ControlSocket) -> None:
    """Locked ones for unlock; for others, those that are locked and those that send, each once."""
    assert completed("unlock", "", control=daemon.path) == ("words", {"bert@example.com": ""})
    both = {"bert@example.com": "", "anna@example.com": ""}
    for command in ("status", "lock", "reset"):
        assert completed(command, "", control=daemon.path) == ("words", both)
    assert completed("--json", "reset", "an", control=daemon.path) == ("words", {"anna@example.com": ""})
    assert completed("unlock", "bert@example.com", "", control=daemon.path) == ("words", {})
    assert completed("reset", "bert@example.com", "", control=daemon.path) == ("words", {})
    assert {method for method, *_ in daemon.requests} == {"GET"}


def test_the_socket_that_is_named_is_asked(daemon: ControlSocket, tmp_path: Path) -> None:
    """By --socket, or by the config of -c, before or after the command."""
    config = tmp_path / "policyd.yaml"
    config.write_text(f"control: {daemon.path}\n")
    for words in (
        ["--socket", str(daemon.path), "unlock", ""],
        ["unlock", f"--socket={daemon.path}", ""],
        ["unlock", "-c", str(config), ""],
    ):
        finished = policyctl(COMPLETE, *words)
        assert (finished.stdout, finished.stderr) == ("words\nbert@example.com\n", "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["accounts", "--sort", ""], ["messages", "recipients", "clients", "senders", "bytes", "refused"]),
        (["accounts", "--sort", "rec"], ["recipients"]),
        (["accounts", "-n", ""], []),
        (["lock", "--reason", ""], []),
        (["no-such-command", ""], []),
        (["no-such-command", "-"], []),
        (["locked", ""], []),
    ],
)
def test_values_of_options(words: list[str], expected: list[str]) -> None:
    """Where there is a choice it is offered, and nothing where anything may stand."""
    assert completed(*words) == ("words", dict.fromkeys(expected, ""))


def test_files_are_the_shells_business() -> None:
    """It is told that a path is wanted."""
    assert completed("--socket", "") == ("files", {})
    assert completed("status", "-c", "/et") == ("files", {})


@pytest.mark.parametrize("answer", [(404, {}), (200, {}), (200, [1]), (200, b"x"), (200, [{"account": 1}])])
def test_a_daemon_that_says_something_strange_makes_no_noise(daemon: ControlSocket, answer: tuple[int, object]) -> None:
    """And so does one that is not there: no candidates, nothing on stderr."""
    daemon.answers = {"/locked": answer, "/accounts": answer}
    assert completed("unlock", "", control=daemon.path) == ("words", {})
    assert completed("status", "") == ("words", {})


def test_a_name_that_cannot_be_typed_is_not_offered(daemon: ControlSocket) -> None:
    """Line ends and control characters, which would forge candidates; and options only behind `--`."""
    names = ["a\nb", "\x1b[2J", "a\tb", "\u202e", "\ud800", "", "-n", "good"]
    daemon.answers = {"/locked": (200, [{**LOCK, "account": name} for name in names])}
    assert completed("unlock", "", control=daemon.path) == ("words", {"good": ""})
    assert completed("unlock", "--", "-", control=daemon.path) == ("words", {"-n": ""})


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    """Return the name of a shell; under CI it has to be there."""
    name = str(request.param)
    if shutil.which(name) is None:
        reason = f"{name} not found: apt-get install {name}"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return name


@contextlib.contextmanager
def sitting_at(shell: str, folder: Path) -> Iterator[Terminal]:
    """Run an interactive shell with the completion loaded, and policyctl in its PATH."""
    (folder / "bin").mkdir()
    script = folder / "bin" / "policyctl"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m policyd.ctl "$@"\n')
    script.chmod(0o755)
    (folder / "home").mkdir()
    settings = environment(
        PATH=f"{folder}/bin:{os.environ['PATH']}",
        POLICYD_CONTROL=str(folder / "control.sock"),
        HOME=str(folder / "home"),
        PS1="ready> ",
        LC_ALL="C.UTF-8",
    )
    with Terminal([shell, *SETUP[shell]], settings, folder, columns=300) as terminal:
        terminal.wait_for_text("ready> ")
        terminal.type(f"{LOADING[shell]}; PS1='go''> '\n")
        terminal.wait_for_text("go> ")
        yield terminal


def unlocked_by(terminal: Terminal, daemon: ControlSocket, typed: str) -> list[str]:
    """Type a command with a tab in it, and return which accounts it has unlocked."""
    daemon.requests.clear()
    terminal.type(typed + "\n")
    (body,) = until(lambda: [body for method, _, body in daemon.requests if method == "POST"])
    terminal.wait_for_text("go> ")
    accounts: list[str] = body["accounts"]
    return accounts


def test_a_shell_completes_any_name_and_executes_none(daemon: ControlSocket, shell: str, tmp_path: Path) -> None:
    """What arrives is the account's name, whatever it means to a shell; nothing else happens."""
    with sitting_at(shell, tmp_path) as terminal:
        for name in HOSTILE:
            daemon.answers = {**ANSWERS, "/locked": (200, [{**LOCK, "account": name}])}
            assert unlocked_by(terminal, daemon, "policyctl unlock \t") == [name]
        daemon.answers = {**ANSWERS, "/locked": (200, [{**LOCK, "account": "-x y"}])}
        assert unlocked_by(terminal, daemon, "policyctl unlock -- -\t") == ["-x y"]
    assert not (tmp_path / "pwned").exists()


TYPED = [
    ("ann", "anna@example.com"),
    ("anna@exa", "anna@example.com"),
    ("anna@", "anna@example.com"),
    ("anna\\@ex", "anna@example.com"),
    ("'ann", "anna@example.com"),
    ('"anna@e', "anna@example.com"),
    ("a\\ ", "a b c"),
    ("a\\ b\\ ", "a b c"),
    ("'a ", "a b c"),
    ('"a b', "a b c"),
    ("\\$", "$(touch pwned)"),
    ("\\$\\(touch\\ pw", "$(touch pwned)"),
    ("'$(", "$(touch pwned)"),
    ("it\\'", "it's"),
    ('"it', "it's"),
    ("x@y:", "x@y:z=1"),
    ("x@y:z=", "x@y:z=1"),
    ("jü", "jürgen"),
]
"""What stands before a tab, and the account that it leads to."""


def test_a_shell_goes_on_from_what_was_typed(daemon: ControlSocket, shell: str, tmp_path: Path) -> None:
    """With backslashes, within quotes, and behind characters at which readline breaks words."""
    names = sorted({name for _, name in TYPED})
    daemon.answers = {**ANSWERS, "/locked": (200, [{**LOCK, "account": each} for each in names])}
    with sitting_at(shell, tmp_path) as terminal:
        led = [(typed, unlocked_by(terminal, daemon, f"policyctl unlock {typed}\t")) for typed, _ in TYPED]
    assert led == [(typed, [name]) for typed, name in TYPED]
    assert not (tmp_path / "pwned").exists()


def test_a_shell_lists_the_commands(daemon: ControlSocket, shell: str, tmp_path: Path) -> None:
    """All of them, and completes one from its beginning."""
    with sitting_at(shell, tmp_path) as terminal:
        terminal.type("policyctl \t\t")
        terminal.wait_for(lambda here: all(f"{name}" in here.output.partition("policyctl")[2] for name in commands()))
        terminal.type("\x15")
        assert unlocked_by(terminal, daemon, "policyctl unlo\tbert") == ["bert"]
        terminal.type("policyctl reset anna --jso\t\n")
        terminal.wait_for_text('"seen": true')
        terminal.wait_for_text("go> ")
        (tmp_path / "a config.yaml").write_text("nonsense: 1\n")
        terminal.type("policyctl -c a\\ con\tlocked\n")
        terminal.wait_for_text("a\\ config.yaml")
        terminal.wait_for_text("bert@example.com")


def test_without_a_daemon_a_tab_makes_no_noise(shell: str, tmp_path: Path) -> None:
    """The line stays as it was typed."""
    with sitting_at(shell, tmp_path) as terminal:
        terminal.type("policyctl unlock \tX\n")
        terminal.wait_for_text("policyctl unlock ")
        terminal.wait_for_text("policyctl: policyd is not running")
        terminal.wait_for_text("go> ")
        assert "Traceback" not in terminal.output


@pytest.mark.parametrize(
    "line", ["policyctl 'unlock", "policyctl un'lo'", 'policyctl "a\\', "policyctl \\", "policyctl $("]
)
def test_bash_bears_any_line(daemon: ControlSocket, line: str) -> None:
    """Half a quote, a backslash at the end: no candidates or some, and no noise."""
    script = f"""
        set -u
        source {REPOSITORY}/completion/policyctl.bash
        policyctl() {{ :; }}
        COMP_LINE={shlex.quote(line)} COMP_POINT=${{#COMP_LINE}}
        COMP_LINE={shlex.quote(line)}; COMP_POINT=${{#COMP_LINE}}
        _policyctl
    """
    settings = environment(POLICYD_CONTROL=str(daemon.path))
    finished = subprocess.run(
        ["bash", "-c", script], env=settings, capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.stderr == ""


def test_starting_for_a_tab_loads_nothing_slow() -> None:
    """A tab costs one start of policyctl, without YAML, threads and Twisted."""
    code = f"""
import sys
sys.argv = ["policyctl", "{COMPLETE}", "unlock", ""]
from policyd.ctl import main
main()
print(*({{"twisted", "yaml", "threading", "asyncio", "termios", "subprocess"}} & set(sys.modules)))
"""
    settings = environment(POLICYD_CONTROL="/nowhere")
    finished = subprocess.run(
        [sys.executable, "-c", code], env=settings, cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert (finished.stdout, finished.stderr) == ("words\n\n", "")


def test_both_shells_name_what_they_complete() -> None:
    """The files say it where the shells look for it."""
    assert (REPOSITORY / "completion/policyctl.bash").read_text().endswith("\ncomplete -F _policyctl policyctl\n")
    assert (REPOSITORY / "completion/_policyctl").read_text().startswith("#compdef policyctl\n")
