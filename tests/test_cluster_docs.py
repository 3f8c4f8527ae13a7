"""What docs/cluster.md says is so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from policyd.config import parse_config
from policyd.nodes import COUNTED, FORGOTTEN, SILENT
from policyd.sections_cluster import DEFAULT_PATIENCE, DEFAULT_PREFIX, parse_store
from policyd.shared_calls import SCRIPT
from policyd.shares import MAX_WAITING
from tests.daemon import REPOSITORY, Policyd
from tests.stores import Store, running
from tests.waiting import until

DOCS = (REPOSITORY / "docs" / "cluster.md").read_text(encoding="utf-8")
(USER,) = re.findall(r"(?m)^ *user policyd on #THE-DIGEST (.+)$", DOCS)
KINDS = ("messages", "recipients", "clients", "senders", "bytes")


@pytest.fixture
def store() -> Iterator[Store]:
    """Return a store with the user of the docs."""
    with running() as found:
        found.cli("ACL", "SETUSER", "policyd", "on", ">the-password", *USER.split())
        yield found


def granted() -> set[str]:
    """Return the commands that the user of the docs may use."""
    return {word[1:].upper() for word in USER.split() if word.startswith("+")}


def test_the_configs_in_the_docs_are_read() -> None:
    """Without an error, but for files that are not here; so are all addresses of the table."""
    texts = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    assert len(texts) > 1
    for text in texts:
        indent = len(text) - len(text.lstrip())
        parse_config("".join(f"{line[indent:]}\n" for line in text.splitlines()), "docs")
    urls = re.findall(r"(?m)^\| `(\w+://[^`]+)` \|", DOCS)
    assert {parse_store(url).kind for url in urls} == {"tcp", "tls", "unix", "sentinel", "sentinel-tls"}


def test_the_user_in_the_docs_may_do_what_policyd_does_and_no_more() -> None:
    """The commands of the script, and those of the rooms that speak to the store."""
    lua = set(re.findall(r'call\("([A-Z]+)"', SCRIPT.decode()))
    rooms = "".join(path.read_text() for path in (REPOSITORY / "policyd").glob("*.py"))
    python = set(re.findall(r'(?:\.command|\.execute_command|\.tell|\._ask)\((?:wire, )?"([A-Z]+)"', rooms))
    assert len(lua) > 20
    assert len(python) > 10
    assert granted() == (lua | python | {"EVALSHA"}) - {"AUTH"}


def test_the_user_in_the_docs_suffices(store: Store, tmp_path: Path) -> None:
    """For messages under limits of all kinds, orders, questions, and a store that has lost its data."""
    password = tmp_path / "password"
    password.write_text("the-password\n")
    password.chmod(0o600)
    limits = {
        kind: {"count": kind, "per": "1h", "max": "1M" if kind == "bytes" else 500, "action": "REJECT"}
        for kind in KINDS
    }
    url = f"redis://policyd@127.0.0.1:{store.port}/0"
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(
                Policyd(
                    {"limits": limits, "cluster": {"url": url, "password_file": str(password), "node": f"mail{place}"}}
                )
            )
            for place in range(2)
        )
        until(lambda: all(len(daemon.ctl_json("status")["cluster"]["nodes"]) == 2 for daemon in (one, two)))
        for daemon in (one, two):
            daemon.message("anna@example.com", 2, size=1000)
        until(lambda: one.counts("anna@example.com")["messages"] == 2)
        assert one.ctl("lock", "bert@example.com", "--reason", "phished", "--for", "1h").returncode == 0
        until(lambda: len(two.ctl_json("locked")) == 1)
        assert two.ctl("unlock", "bert@example.com").returncode == 0
        until(lambda: not one.ctl_json("locked"))
        assert one.ctl("allow", "anna@example.com", "messages", "900", "--for", "1h").returncode == 0
        assert two.ctl("disallow", "anna@example.com").returncode == 0
        assert one.ctl_json("accounts")[0]["account"] == "anna@example.com"
        store.forget()
        until(lambda: "lost its data" in one.stderr and "lost its data" in two.stderr)
        until(lambda: one.counts("anna@example.com") == dict(zip(KINDS, (2, 4, 1, 1, 2000), strict=True)))
        assert two.ctl("reset", "anna@example.com").returncode == 0
        assert "cluster-away" not in one.stderr + two.stderr
    assert store.cli("ACL", "LOG") == []


def test_the_numbers_in_the_docs_are_those_of_the_code() -> None:
    """Who changes one changes the other."""
    for said in (
        f"within `patience` ({DEFAULT_PATIENCE * 1000:g} ms)",
        f"Up to {MAX_WAITING:,} messages wait",
        f"~{DEFAULT_PREFIX}:* &{DEFAULT_PREFIX}:*",
    ):
        assert said in DOCS
    assert (COUNTED, SILENT, FORGOTTEN) == (10, 5, 3600)
    for said in ("heard in the ten seconds before", "not heard for five seconds", "after an hour it is forgotten"):
        assert said in " ".join(DOCS.split())
