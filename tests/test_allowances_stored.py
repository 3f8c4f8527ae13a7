"""Allowances that outlive the daemon: on the disk before the order is answered, and over when they were to be."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.allowances import Allowance
from policyd.records import AllowanceRecord, Span, allowance_records, restore_allowance
from policyd.storage import COLLECT
from tests.allowing import allow, disallow, listed, maximum, tick
from tests.asking import ANNA, BERT, EPOCH, Mail, limit
from tests.test_storage import BOOT, HOUR, Run, damaged, locked_by_another, sql

LIMITS = (limit("messages", 3, "30m", lock="until-unlocked"), limit("recipients", 1000, "1d"))
OTHER_BOOT = "boot-2"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the database is to be."""
    return tmp_path / "policyd.sqlite"


def stored(path: Path) -> set[tuple[str, str, int | None]]:
    """Return which maxima of whom the file itself names."""
    return set(sql(path, "SELECT account, limit_name, max FROM allowances"))


def test_allowances_are_there_again_as_they_were(path: Path) -> None:
    """All that the desk sees of them outlives a restart."""
    with Run(path, *LIMITS) as before:
        allow(before.mail, 2000, seconds=HOUR, reason="mailing")
        allow(before.mail, None, "recipients", until=EPOCH + 2 * HOUR)
        allow(before.mail, 5, user=BERT, reason="'; DROP TABLE allowances; --\ud800\0")
        shown = listed(before.mail)
    with Run(path, *LIMITS) as after:
        assert listed(after.mail) == shown
        assert (maximum(after.mail), maximum(after.mail, "recipients"), maximum(after.mail, user=BERT)) == (
            2000,
            None,
            5,
        )
        assert after.mail.events == []


def test_an_allowance_is_on_the_disk_when_the_answer_may_leave(path: Path) -> None:
    """So is that it was replaced, and that it was taken back."""
    with Run(path, *LIMITS) as run:
        for most in (5, 6, None):
            allow(run.mail, most)
            assert run.durable()
            assert stored(path) == {(ANNA, "messages", most)}
        disallow(run.mail)
        assert run.durable()
        assert stored(path) == set()
        assert run.storage.durable() is None


def test_one_that_is_over_leaves_the_disk(path: Path) -> None:
    """And does not come back."""
    with Run(path, *LIMITS) as run:
        allow(run.mail, 5, seconds=60.0)
        assert run.durable()
        run.advance(60)
        tick(run.mail)
        run.advance(COLLECT)
        run.wait(lambda: not stored(path))


def test_an_account_goes_by_its_allowance_from_the_first_request_on(path: Path) -> None:
    """Its counts come back by and by, and it is not locked for what it was allowed."""
    with Run(path, *LIMITS) as before:
        allow(before.mail, 10)
        before.mail.send(8)
    with Run(path, *LIMITS) as after:
        assert after.mail.send(2) == "DUNNO"
        assert not after.mail.locked()
        assert after.mail.send() == "REJECT messages 11"


def test_counts_beyond_the_maximum_come_back_after_an_allowance(path: Path) -> None:
    """One that has ended while the daemon was down leaves what was sent counted, and its line in the log."""
    with Run(path, *LIMITS) as before:
        allow(before.mail, 5000, "recipients", until=EPOCH + 60)
        allow(before.mail, None)
        for _ in range(3):
            before.mail.connection().data(1000)
    with Run(path, *LIMITS, now=10_100.0, wall=EPOCH + 100) as after:
        tick(after.mail)
        assert (after.mail.counts(), maximum(after.mail, "recipients")) == ([3, 3000], 1000)
        assert [told["limit"] for told in after.mail.told("allowance-over")] == ["recipients"]


@pytest.mark.parametrize("boot", [BOOT, OTHER_BOOT])
@pytest.mark.parametrize("dated", [False, True])
def test_an_allowance_ends_when_it_was_to_end(path: Path, boot: str, dated: bool) -> None:
    """In an hour less what has passed, over a restart and over a reboot."""
    with Run(path) as before:
        ends: dict[str, Any] = {"until": EPOCH + HOUR} if dated else {"seconds": HOUR}
        allow(before.mail, 5, **ends)
    now = 11_000.0 if boot == BOOT else 60.0
    with Run(path, now=now, wall=EPOCH + 1000, boot=boot) as after:
        after.advance(2599.5)
        tick(after.mail)
        assert maximum(after.mail) == 5
        after.advance(1.0)
        tick(after.mail)
        assert maximum(after.mail) == 500


@pytest.mark.parametrize("step", [HOUR / 2, -HOUR, 1e8])
@pytest.mark.parametrize("boot", [BOOT, OTHER_BOOT])
def test_a_length_of_time_is_the_same_whatever_the_clock_was_set_to(path: Path, boot: str, step: float) -> None:
    """Set while the daemon runs, and right from then on: over a restart and over a reboot."""
    with Run(path) as before:
        allow(before.mail, 5, seconds=HOUR)
        before.settle()
        before.mail.wall_offset += step
        before.advance(COLLECT)
        before.settle()
    now = 11_000.0 if boot == BOOT else 60.0
    with Run(path, now=now, wall=EPOCH + step + 1000, boot=boot) as after:
        after.advance(2598)
        tick(after.mail)
        assert maximum(after.mail) == 5
        after.advance(3)
        tick(after.mail)
        assert maximum(after.mail) == 500


@pytest.mark.parametrize("step", [HOUR / 2, -HOUR])
@pytest.mark.parametrize("boot", [BOOT, OTHER_BOOT])
def test_a_date_is_the_date_that_the_clock_shows(path: Path, boot: str, step: float) -> None:
    """However it was set meanwhile."""
    with Run(path) as before:
        allow(before.mail, 5, until=EPOCH + 2 * HOUR)
    now = 11_000.0 if boot == BOOT else 60.0
    with Run(path, now=now, wall=EPOCH + step + 1000, boot=boot) as after:
        after.advance(2 * HOUR - step - 1000 - 1)
        tick(after.mail)
        assert maximum(after.mail) == 5
        assert listed(after.mail)[0]["until"] == "2026-11-23T10:00:00+00:00"
        after.advance(2)
        tick(after.mail)
        assert maximum(after.mail) == 500


def test_what_was_ordered_while_the_database_could_not_be_read_is_newer(path: Path) -> None:
    """What is stored is taken in when that can be done, but where somebody has decided since."""
    with Run(path, *LIMITS) as before:
        for user in (ANNA, BERT, "carl"):
            allow(before.mail, 10, user=user)
    with locked_by_another(path) as free, Run(path, *LIMITS) as run:
        run.wait(lambda: run.storage.problem)
        allow(run.mail, 20)
        allow(run.mail, 20, user=BERT)
        disallow(run.mail, user=BERT)
        run.mail.send(1, user="carl")
        assert maximum(run.mail, user="carl") == 3
        free()
        run.wait(lambda: not run.storage.problem)
        assert [maximum(run.mail, user=user) for user in (ANNA, BERT, "carl")] == [20, 3, 10]
        assert run.mail.send(8, user="carl") == "DUNNO"
        run.settle()
        run.wait(lambda: stored(path) == {(ANNA, "messages", 20), ("carl", "messages", 10)})


@pytest.mark.parametrize("what", [damaged, os.unlink])
def test_a_damaged_database_is_written_anew_with_all_allowances(path: Path, what: Callable[[Path], None]) -> None:
    """They are known in memory; who gives one just then waits until it is in the new file."""
    with Run(path, *LIMITS) as run:
        allow(run.mail, 10)
        run.settle()
        what(path)
        allow(run.mail, 20, user=BERT)
        assert run.durable()
        run.settle()
        assert run.storage.damage
        assert stored(path) == {(ANNA, "messages", 10), (BERT, "messages", 20)}


def test_without_a_database_they_are_in_memory() -> None:
    """Nothing waits to be stored."""
    mail = Mail(*LIMITS)
    allow(mail, 5)
    assert mail.policy.accounts.allowances.changed is None
    assert maximum(mail) == 5


TIMES = st.floats(0, 1e6)
STEPS = st.floats(-1e6, 1e6)


@settings(max_examples=300)
@given(st.booleans(), TIMES, TIMES, TIMES, STEPS)
def test_no_more_is_left_of_a_length_of_time_than_when_it_was_stored(
    dated: bool, given_at: float, left: float, passed: float, step: float
) -> None:
    """In the same boot just what was left less what has passed; a date stays what it was."""
    offset = EPOCH - given_at
    until, ends = EPOCH + left, float("inf") if dated else given_at + left
    allowance = Allowance(ANNA, "messages", "messages", 5, EPOCH, until, ends, "desk", 0, None)
    (record,) = allowance_records({(ANNA, "messages"): allowance}, Span(offset), given_at).values()
    assert record is not None
    now = given_at + passed
    found = restore_allowance(record, Span(offset), now, offset + step)
    if dated:
        assert found == allowance
    else:
        assert found.ends == pytest.approx(given_at + left, abs=1e-3)
        assert found.ends <= now + left + 1e-3
        assert found.until == pytest.approx(found.ends + offset + step, abs=1e-3)


def test_after_a_reboot_with_a_clock_that_is_behind_no_time_is_won() -> None:
    """A day that was left is at most a day."""
    record = AllowanceRecord(ANNA, "messages", "messages", 5, EPOCH, EPOCH, EPOCH + 86400, False, "desk", 0, None)
    behind = Span(EPOCH - 10 * 86400 - 30.0)
    found = restore_allowance(record, behind, 30.0, behind.offset)
    assert found.ends == 30.0 + 86400


def test_nothing_changed_is_nothing_to_store() -> None:
    """And what was taken back is stored as such."""
    nothing: dict[tuple[str, str], Any] = {}
    assert allowance_records(nothing, Span(0.0), 0.0) == {}
    assert allowance_records({(ANNA, "messages"): None}, Span(0.0), 0.0) == {(ANNA, "messages"): None}
