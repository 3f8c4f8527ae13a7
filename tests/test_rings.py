"""The rings of the house: an import points inwards only, and only the outermost room reads a clock."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import policyd

FOLDER = Path(policyd.__file__).parent

RINGS: tuple[tuple[str, ...], ...] = (
    (
        "__init__",
        "compiled",
        "wire",
        "endpoints",
        "window",
        "distinct",
        "durations",
        "words",
        "sizes",
        "actions",
        "limits",
        "verdict",
        "yamlnodes",
        "maxima",
        "sections",
        "templates",
        "sections_notify",
        "sections_cluster",
        "shared_replies",
        "config",
        "shared_calls",
        "paths",
        "shared_calls",
    ),
    (
        "accounts",
        "allowances",
        "allowing",
        "allowance_desk",
        "envelope",
        "transactions",
        "history",
        "charges",
        "locks",
        "nearing",
        "tally",
        "answering",
        "policy",
        "away_rules",
        "shares",
        "catching_up",
        "sharing",
        "survey",
        "desk",
        "calls",
        "records",
        "facts",
        "decisions",
        "notices",
        "letters",
    ),
    (
        "server",
        "shared_server",
        "prompt",
        "accepting",
        "turns",
        "control",
        "reloading",
        "listening",
        "activation",
        "log",
        "systemd",
        "database",
        "history_table",
        "patience",
        "chores",
        "outbox",
        "registry",
        "shared_node",
        "grants",
        "resync",
        "nodes",
        "gathering",
        "shared_answers",
        "shared_top",
        "shared_desk",
        "questions",
        "storage",
        "archive",
        "supplies",
        "notifying",
        "relay",
        "webhook",
        "command",
        "shared_store",
        "shared_news",
        "shared_link",
    ),
    ("cluster", "daemon", "start", "__main__"),
)
"""The rooms from the innermost ring to the outermost: values, state, I/O, joins."""

APART = (
    "ctl",
    "ctl_allow",
    "ctl_arguments",
    "ctl_client",
    "ctl_clients",
    "ctl_cluster",
    "ctl_commands",
    "ctl_complete",
    "ctl_doctor",
    "ctl_history",
    "ctl_join",
    "ctl_layout",
    "ctl_look",
    "ctl_mending",
    "ctl_nagios",
    "ctl_notify",
    "ctl_postconf",
    "ctl_postfix",
    "ctl_queue",
    "ctl_queue_report",
    "ctl_restrictions",
    "ctl_sockets",
    "ctl_text",
    "ctl_top",
    "ctl_wiring",
)
"""The rooms of policyctl: they know values only, and nobody in the rings knows them."""

FORBIDDEN: dict[int, frozenset[str]] = {
    0: frozenset({"twisted", "zope", "socket", "time", "logging", "asyncio", "select", "threading", "subprocess"}),
    1: frozenset(
        {"twisted", "zope", "socket", "time", "logging", "asyncio", "select", "threading", "subprocess", "os"}
    ),
    2: frozenset({"time"}),
}
"""Packages that a ring does not know."""

CLOCKS = ("daemon", "systemd")
"""The rooms that may read a clock; systemd wants to be told CLOCK_MONOTONIC."""

MAX_LINES = 400

RING_OF = {room: number for number, rooms in enumerate(RINGS) for room in rooms}
ROOMS = sorted(path.stem for path in FOLDER.glob("*.py"))


def tree(room: str) -> ast.Module:
    """Return the room's source as a tree."""
    return ast.parse((FOLDER / f"{room}.py").read_text(encoding="utf-8"))


def imported(room: str) -> Iterator[str]:
    """Yield the full names of all modules that a room imports, wherever in it."""
    for node in ast.walk(tree(room)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room} imports relative to itself"
            if node.module == "policyd":
                yield from (f"policyd.{alias.name}" if alias.name in ROOMS else "policyd" for alias in node.names)
            else:
                yield node.module or ""


def packages(room: str) -> set[str]:
    """Return the packages that a room imports from outside."""
    return {name.partition(".")[0] for name in imported(room)} - {"policyd"}


def rooms_known_to(room: str) -> set[str]:
    """Return the rooms that a room imports."""
    own = (name.split(".") for name in imported(room) if name.partition(".")[0] == "policyd")
    return {parts[1] if len(parts) > 1 else "__init__" for parts in own}


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_in_one_ring(room: str) -> None:
    """A new module has its place in the table above before it is merged."""
    assert [*RING_OF, *APART].count(room) == 1


def test_every_room_of_the_table_is_there() -> None:
    """The table names no room that was torn down."""
    assert sorted([*RING_OF, *APART]) == ROOMS


def test_the_house_has_no_cellar() -> None:
    """All modules lie in one folder, where the table sees them."""
    assert sorted(FOLDER.rglob("*.py")) == sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("room", sorted(RING_OF))
def test_an_import_points_inwards(room: str) -> None:
    """A room knows rooms of its own ring and of those inside, and none of policyctl's."""
    outwards = {known for known in rooms_known_to(room) if RING_OF.get(known, len(RINGS)) > RING_OF[room]}
    assert outwards == set()


@pytest.mark.parametrize("room", [room for room in sorted(RING_OF) if RING_OF[room] in FORBIDDEN])
def test_an_inner_ring_knows_no_clock_and_no_network(room: str) -> None:
    """What decides can be tested without Twisted, sockets, clocks and logs."""
    allowed = {"time"} if room in CLOCKS else set()
    assert packages(room) & FORBIDDEN[RING_OF[room]] <= allowed


@pytest.mark.parametrize("room", APART)
def test_policyctl_knows_values_only(room: str) -> None:
    """The tool starts quickly: it knows no Twisted, and of the daemon's rooms those that hold plain values."""
    assert packages(room) & {"twisted", "zope", "yaml", "cachetools", "attr", "attrs"} == set()
    assert {known for known in rooms_known_to(room) if known not in APART} <= set(RINGS[0])


@pytest.mark.parametrize("room", sorted(set(RING_OF) - set(CLOCKS)))
def test_only_the_daemon_reads_a_clock(room: str) -> None:
    """Everything else is handed the time."""
    assert "time" not in packages(room)
    called = {
        node.func.attr
        for node in ast.walk(tree(room))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert called & {"now", "utcnow", "today", "monotonic", "clock_gettime"} == set()


def test_rooms_do_not_lean_on_each_other_in_a_circle() -> None:
    """The rooms can be put in an order in which each is understood before the next."""
    order = list(TopologicalSorter({room: rooms_known_to(room) for room in ROOMS}).static_order())
    assert sorted(order) == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_small(room: str) -> None:
    """A room that outgrows 400 lines is two."""
    assert len((FOLDER / f"{room}.py").read_text(encoding="utf-8").splitlines()) <= MAX_LINES
