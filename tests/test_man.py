"""The manual pages: well-formed, and complete: what is added to policyd and not to them is named here."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys

import pytest

from policyd.config import parse_config
from policyd.ctl import _parser
from tests.control_socket import environment
from tests.daemon import REPOSITORY

PAGES = {name: REPOSITORY / "man" / name for name in ("policyctl.1", "policyd.yaml.5", "policyd.8")}
READS_ENVIRONMENT = re.compile(
    r'(?:environ\w*(?:\.get\(|\.pop\(|\[)\s*|_systemd_folder\()"([A-Z_]+)"|"([A-Z_]+)" (?:not )?in os.environ'
)


def source(page: str) -> str:
    """Return the mdoc source of a page."""
    return PAGES[page].read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    """Return the source of a section."""
    return source(page).partition(f"\n.Sh {title}\n")[2].partition("\n.Sh ")[0]


def flags(text: str) -> set[str]:
    """Return the options that list items or their head lines name."""
    found = set()
    for line in text.splitlines():
        if line.startswith(".It "):
            found |= {f"-{flag}" for flag in re.findall(r"\bFl ([^\s,]+)", line)}
            if line.startswith(".It Fl ") and " , " in line:
                found |= {f"-{flag}" for flag in line.removeprefix(".It Fl ").split(" Ar ")[0].split(" , ")}
    return found


def described_commands() -> dict[str, str]:
    """Return the source of the description of each command, its options included."""
    parts = re.split(r"^\.It Ic (\S+)", section("policyctl.1", "COMMANDS"), flags=re.MULTILINE)
    described: dict[str, str] = {}
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        described[name] = described.get(name, "") + ".It" + text
    return described


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of policyctl's commands."""
    (found,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def own_options(parser: argparse.ArgumentParser) -> set[str]:
    """Return a command's options, but for those that all have."""
    common = {flag for action in _parser()._actions for flag in action.option_strings}
    return {flag for action in parser._actions for flag in action.option_strings} - common


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_well_formed(page: str) -> None:
    """Mandoc warns of nothing."""
    if shutil.which("mandoc") is None:
        reason = "mandoc not found: apt-get install mandoc"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    command = ["mandoc", "-T", "lint", "-W", "warning", str(PAGES[page])]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (finished.returncode, finished.stdout) == (0, "")


def test_every_command_is_described_and_none_that_is_not_there() -> None:
    """A new command of policyctl has its item in the list of policyctl.1."""
    assert sorted(described_commands()) == sorted(commands())


@pytest.mark.parametrize("command", commands())
def test_every_option_of_a_command_is_described(command: str) -> None:
    """Below its command; none that is not there."""
    assert flags(described_commands().get(command, "")) == own_options(commands()[command])


def test_every_common_option_is_described() -> None:
    """Of policyctl, and of policyd."""
    common = {flag for action in _parser()._actions for flag in action.option_strings}
    assert flags(section("policyctl.1", "DESCRIPTION")) == common
    shown = subprocess.run(
        [sys.executable, "-m", "policyd", "--help"], env=environment(), capture_output=True, text=True, check=True
    ).stdout
    heads = re.findall(r"^  (-.*?)(?:  |$)", shown, re.MULTILINE)
    options = {flag for head in heads for flag in re.findall(r"(?<![-\w])-[-\w]+", head)}
    assert flags(section("policyd.8", "DESCRIPTION")) == options


def test_every_exit_status_of_policyctl_is_described() -> None:
    """As --help has them, and the one of Ctrl-C."""
    told = set(re.findall(r"^  ([0-9])  ", _parser().format_help(), re.MULTILINE))
    assert set(re.findall(r"^\.It ([0-9]+)$", section("policyctl.1", "EXIT STATUS"), re.MULTILINE)) == told | {"130"}


def config_keys() -> set[str]:
    """Return all keys that the readers of the config know: they stand in tuples that are called _SECTIONS or …_KEYS."""
    keys = set()
    for file in sorted((REPOSITORY / "policyd").glob("*.py")):
        if file.stem != "config" and not file.stem.startswith("sections"):
            continue
        room = importlib.import_module(f"policyd.{file.stem}")
        for name, value in vars(room).items():
            if re.fullmatch(r"_?([A-Z]+_)*(KEYS|SECTIONS)", name) and all(isinstance(key, str) for key in value):
                keys |= set(value)
    return keys


def test_every_key_of_the_config_is_described_and_none_that_is_not_there() -> None:
    """A new key has its item in policyd.yaml.5."""
    assert {"listen", "limits", "lowercase", "per", "accounts"} <= config_keys()
    described = re.findall(r"^\.It Cm (\S+)$", section("policyd.yaml.5", "SECTIONS"), re.MULTILINE)
    assert sorted(set(described)) == sorted(config_keys())


def test_the_example_is_a_good_config() -> None:
    """It can be copied."""
    example = source("policyd.yaml.5").partition("\n.Bd -literal -offset indent\n")[2].partition("\n.Ed\n")[0]
    config = parse_config(example, "example")
    assert [limit.name for limit in config.limits] == ["messages-per-half-hour", "recipients-per-day"]
    assert len(config.overrides) == 1


def test_every_variable_that_is_read_is_described() -> None:
    """In the page of the command that reads it."""
    read: dict[str, set[str]] = {"policyctl.1": set(), "policyd.8": set()}
    for file in (REPOSITORY / "policyd").glob("*.py"):
        names = {name for pair in READS_ENVIRONMENT.findall(file.read_text()) for name in pair if name}
        read["policyctl.1" if file.stem.startswith("ctl") else "policyd.8"] |= names
    assert {"POLICYD_CONTROL", "TERM"} <= read["policyctl.1"]
    assert {"NOTIFY_SOCKET", "RUNTIME_DIRECTORY", "HOME"} <= read["policyd.8"]
    for page, names in read.items():
        described = re.findall(r"^\.It Ev (.*)$", section(page, "ENVIRONMENT"), re.MULTILINE)
        assert names - {name for line in described for name in line.split(" , ")} == set()


def test_what_the_readme_installs_is_there() -> None:
    """Pages and completion, by the names under which it installs them."""
    installed = set(re.findall(r" ((?:man|completion)/[\w.-]+)", (REPOSITORY / "README.md").read_text()))
    folders = (REPOSITORY / "man", REPOSITORY / "completion")
    there = {f"{folder.name}/{file.name}" for folder in folders for file in folder.iterdir()}
    assert installed == there


def test_no_line_is_lost() -> None:
    """A line that begins with a stop or an apostrophe by mistake is a command to mdoc, and vanishes."""
    known = {"Dd", "Dt", "Os", "Sh", "Ss", "Nm", "Nd", "Op", "Fl", "Ar", "Xr", "Pp", "Bl", "El", "It", "Dl", "Ev", "Pa"}
    known |= {"Cm", "Ic", "Ql", "Sq", "Pq", "Bd", "Ed", "Sx", "Lk"}
    for page in PAGES:
        for line in source(page).splitlines():
            assert not line.startswith("'")
            assert not line.startswith(".") or line[1:3] in known, line


def test_pages_have_the_name_of_what_they_describe() -> None:
    """`man policyctl` finds them."""
    for name, file in PAGES.items():
        stem, _, number = name.rpartition(".")
        assert f".Dt {stem.upper()} {number}\n" in file.read_text()
