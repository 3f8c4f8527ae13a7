"""What docs/notices.md says is so."""

from __future__ import annotations

import re
from typing import Any

import pytest

from policyd.command import GRACE, TIMEOUT, VARIABLES
from policyd.config import parse_config
from policyd.notices import MAX_WAITING, NAMED, Notice
from policyd.templates import FIELDS, TEXTS
from policyd.webhook import MAX_ANSWER, body, signature
from policyd.webhook import TIMEOUT as WEBHOOK_TIMEOUT
from tests.asking import EPOCH
from tests.daemon import REPOSITORY, SHIPPED_CONFIG

DOCS = (REPOSITORY / "docs" / "notices.md").read_text()
SECRET = b"0123456789abcdef"


def blocks(language: str) -> list[str]:
    """Return the examples in a language."""
    return re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)


def test_a_receiver_that_does_as_the_docs_say_is_right() -> None:
    """It takes what policyd has signed once, and nothing else."""
    room: dict[str, Any] = {}
    exec(blocks("python")[0], room)  # noqa: S102 -- it is ours
    verified, now = room["verified"], int(room["time"].time())
    data = body(Notice("1", "lock", EPOCH, {"account": "a\n\ud800"}), "mx1", now)
    assert verified(SECRET, signature(b"another secret.", data), data) is None
    assert verified(SECRET, signature(SECRET, data), data.replace(b"lock", b"test")) is None
    assert verified(SECRET, "å", data) is None
    assert verified(SECRET, signature(SECRET, data), data)["account"] == "a\n\ud800"
    assert verified(SECRET, signature(SECRET, data), data) is None
    old = body(Notice("2", "lock", EPOCH, {}), "mx1", now - 301)
    assert verified(SECRET, signature(SECRET, old), old) is None


def test_the_configs_in_the_docs_are_read() -> None:
    """Without an error, but for files that are not here; so is what the shipped config has commented out."""
    for text in blocks("yaml"):
        parse_config(text, "docs")
    commented = SHIPPED_CONFIG.read_text().partition("\n# notify:\n")[2].partition("\n\n")[0]
    assert commented
    parse_config("notify:\n" + "".join(line[2:] + "\n" for line in commented.splitlines()), "policyd.yaml")


@pytest.mark.parametrize("name", TEXTS)
def test_the_fields_of_a_text_are_those_in_the_docs(name: str) -> None:
    """In the table, and those that all have below it."""
    (row,) = [line for line in DOCS.splitlines() if f"`{name}.txt`" in line]
    assert {*re.findall(r"\{(\w+)\}", row), "event", "time", "host", "id"} == set(FIELDS[name.partition("-")[2]])


def test_the_variables_of_a_command_are_those_in_the_docs() -> None:
    """All of them, and no other."""
    named = {name.lower() for name in re.findall(r"`POLICYD_([A-Z]+)`", DOCS)}
    assert named == {*VARIABLES, "event", "id", "at", "host"}


def test_the_numbers_in_the_docs_are_those_of_the_code() -> None:
    """Who changes one changes the other."""
    for said in (
        f"{MAX_WAITING} notices wait at the most",
        f"the first {NAMED} accounts",
        f"no more than {MAX_ANSWER // 1024} KiB",
        f"2xx within {WEBHOOK_TIMEOUT:g} seconds",
        f"longer than {TIMEOUT:g} seconds\ngets SIGTERM, and after {GRACE:g} more SIGKILL",
    ):
        assert said in DOCS
