"""The runbook: its commands are ones that policyctl understands, and its way back works."""

from __future__ import annotations

import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from policyd.ctl import _parser
from policyd.database import SCHEMA_VERSION
from tests.daemon import REPOSITORY, DaemonFailedError, Policyd

RUNBOOK = (REPOSITORY / "docs" / "runbook.md").read_text(encoding="utf-8")


def lines() -> list[str]:
    """Return the command lines of the blocks, those that are continued as one."""
    blocks = re.findall(r"```console\n(.*?)```", RUNBOOK, re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line.strip().removeprefix("# ") for line in joined.splitlines() if line.strip().startswith("# ")]


def test_every_policyctl_of_the_runbook_is_understood() -> None:
    """By the parser itself, wherever in the text it stands."""
    inline = re.findall(r"`(policyctl [^`>]*)", RUNBOOK)
    named = [shlex.split(line)[1:] for line in (*lines(), *inline) if line.startswith("policyctl ")]
    assert len(named) > 20
    for words in named:
        if words != ["--version"]:
            _parser().parse_args(words)


def test_the_way_back_from_an_upgrade(tmp_path: Path) -> None:
    """A copy is made of the running daemon's database; it replaces one that a newer policyd has changed."""
    database, copy = tmp_path / "policyd.sqlite", tmp_path / "before.sqlite"
    (backup,) = (line for line in lines() if "sqlite3.connect" in line)
    _, option, code, *_ = shlex.split(backup)
    assert option == "-c"
    with Policyd({"database": str(database)}) as policyd:
        assert policyd.ctl("lock", "anna@example.com", "--reason", "phished").returncode == 0
        subprocess.run([sys.executable, "-W", "ignore", option, code, str(database), str(copy)], check=True)
        policyd.stop()
        with sqlite3.connect(database) as newer:
            newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        newer.close()
        with pytest.raises(DaemonFailedError, match=refusal(database)):
            policyd.start()
        back = [line for line in lines() if line.startswith(("rm -f /var/lib", "cp /root/policyd-before.sq"))]
        assert len(back) == 2
        for line in back:
            here = line.replace("/var/lib/policyd/policyd.sqlite", str(database))
            subprocess.run(shlex.split(here.replace("/root/policyd-before.sqlite", str(copy))), check=True)
        policyd.start()
        assert [lock["account"] for lock in policyd.ctl_json("locked")] == ["anna@example.com"]


def refusal(database: Path) -> str:
    """Return what the daemon says of a database that is too new, in the words of the runbook, as a pattern."""
    told: str
    (told,) = re.findall(r"^policyd: the database .*$", RUNBOOK, re.MULTILINE)
    return re.escape(told.replace("/var/lib/policyd/policyd.sqlite", str(database)))
