"""Accounts and locks as values that can be stored: what goes out comes back, also under other limits."""

from __future__ import annotations

import json
import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.accounts import Account, Lock
from policyd.actions import Effect
from policyd.distinct import Distinct, digest
from policyd.limits import UNTIL_UNLOCKED, Count, Limit, Rules
from policyd.records import TALLIES, Span, account_record, lock_record, restore_account, restore_lock
from policyd.verdict import verdict
from tests.asking import limit

AHEAD = 1_795_420_800.25
NOW = 100_000.0
NAME = "anna@example.com"

HALF_HOUR = limit("messages", 500, "30m", name="half-hour")
DAY = limit("recipients", 10_000, "1d", name="day")
MESSAGE = limit("recipients", 100, "message", name="message")
CLIENTS = limit("clients", 20, "1h")
LIMITS = (MESSAGE, HALF_HOUR, DAY)

SPAN = Span(AHEAD)

events = st.lists(st.tuples(st.floats(0.0, 90_000.0), st.integers(1, 9)), max_size=30)
maxima = st.sampled_from([None, 1, 500, 1000, 1001, 100_000])
periods = st.sampled_from(["message", "1s", "30m", "1h", "1d", "31d"])
any_limit = st.builds(limit, st.sampled_from(get_args(Count)), maxima, periods, name=st.sampled_from(["a", "b", "c"]))
limits = st.lists(any_limit, min_size=1, max_size=3, unique_by=lambda one: one.name).map(tuple)


def account(*of: Limit) -> Account:
    """Return an account that these limits apply to."""
    return Account(NAME, Rules(of or LIMITS), NOW)


def send(sender: Account, at: float, number: int = 1) -> None:
    """Count events in all windows, as `charges` does."""
    for one, window in zip(sender.limits, sender.windows, strict=True):
        if window is not None:
            window.count(at, one.period or 0.0)
            if isinstance(window, Distinct):
                window.see(digest(b"%d" % number), at)
            else:
                window.add(at, number, one.slice)


def counts(sender: Account, now: float) -> list[int | None]:
    """Return what lies in each of the account's windows."""
    return [
        None if window is None else window.count(now, one.period or 0.0)
        for one, window in zip(sender.limits, sender.windows, strict=True)
    ]


def brought_back(stored: Account, *of: Limit, now: float = NOW, span: Span = SPAN, then: float = NOW) -> Account:
    """Return the account that comes of what was stored at `then` by a clock of `span`, at `now`."""
    found = Account(NAME, Rules(of or LIMITS), now)
    restore_account(found, account_record(stored, SPAN, then).text, span, now)
    return found


@given(limits, events, st.lists(st.floats(0.0, 3e6), max_size=10))
def test_windows_count_the_same_at_every_later_instant(
    of: tuple[Limit, ...], sent: list[tuple[float, int]], laters: list[float]
) -> None:
    """A restart is not to be seen in any count, to the point where an event leaves."""
    sender = account(*of)
    for at, number in sorted(sent):
        send(sender, NOW + at, number)
    stored_at = NOW + max((at for at, _ in sent), default=0.0)
    found = brought_back(sender, *of, now=stored_at, then=stored_at)
    for later in sorted(laters):
        # what a float of wall clock rounds off is below a microsecond: stay clear of the very instant of leaving
        if all(abs(at + (one.period or 0.0) - later) > 1e-5 for at, _ in sent for one in of):
            assert counts(found, stored_at + later) == counts(sender, stored_at + later)


@given(limits, limits, events)
def test_what_belongs_to_a_limit_that_is_gone_is_left_out(
    before: tuple[Limit, ...], after: tuple[Limit, ...], sent: list[tuple[float, int]]
) -> None:
    """Counts belong to a limit's name and to what it counts; the others start at 0, and none is made up."""
    sender = account(*before)
    for at, number in sorted(sent):
        send(sender, NOW + at, number)
    now = NOW + 90_000.0
    known = {(one.name, one.count): (one, n) for one, n in zip(before, counts(sender, now), strict=True)}
    found = brought_back(sender, *after, now=now, then=now)
    for one, counted in zip(after, counts(found, now), strict=True):
        if one.period is None:
            assert counted is None
        elif (one.name, one.count) not in known or known[one.name, one.count][1] is None:
            assert counted == 0
        else:
            old, had = known[one.name, one.count]
            assert had is not None
            assert counted is not None
            assert counted <= had
            if one.period == old.period and one.slice >= old.slice:
                assert counted == had


@given(limits, events)
def test_a_record_is_json_of_plain_characters(of: tuple[Limit, ...], sent: list[tuple[float, int]]) -> None:
    """It can be read by a person and by any program, whatever the account holds."""
    sender = account(*of)
    for at, number in sorted(sent):
        send(sender, NOW + at, number)
    sender.note_client(bytes(range(256)), NOW)
    text = account_record(sender, SPAN, NOW + 90_000.0).text
    assert text.isascii()
    assert set(json.loads(text)) - {"distinct"} == {"windows", "tallies", "clients", "seen"}


@given(limits, events, limits)
def test_what_came_back_can_be_stored_again(
    of: tuple[Limit, ...], sent: list[tuple[float, int]], then: tuple[Limit, ...]
) -> None:
    """Nothing is lost or gained over many restarts."""
    sender = account(*of)
    for at, number in sorted(sent):
        send(sender, NOW + at, number)
    now = NOW + 90_000.0
    once = brought_back(sender, *then, now=now, then=now)
    twice = brought_back(once, *then, now=now, then=now)
    assert counts(twice, now) == counts(once, now)
    assert [getattr(twice, name) for name in TALLIES] == [getattr(once, name) for name in TALLIES]


def test_a_renamed_limit_starts_anew() -> None:
    """A limit is known by its name."""
    sender = account(HALF_HOUR)
    send(sender, NOW, 7)
    renamed = limit("messages", 500, "30m", name="thirty-minutes")
    assert counts(brought_back(sender, renamed), NOW) == [0]


def test_a_limit_that_counts_something_else_starts_anew() -> None:
    """Seven messages are not seven recipients."""
    sender = account(HALF_HOUR)
    send(sender, NOW, 7)
    assert counts(brought_back(sender, limit("recipients", 500, "30m", name="half-hour")), NOW) == [0]


def test_a_shorter_window_forgets_what_lies_before_it() -> None:
    """The stored events keep their times."""
    sender = account(HALF_HOUR)
    send(sender, NOW, 3)
    send(sender, NOW + 1000, 4)
    found = brought_back(sender, limit("messages", 500, "10m", name="half-hour"), now=NOW + 1001, then=NOW + 1001)
    assert counts(found, NOW + 1001) == [4]


def test_a_longer_window_keeps_what_was_known() -> None:
    """It knows what the shorter one remembered, and keeps it for its own time."""
    sender = account(HALF_HOUR)
    send(sender, NOW, 3)
    longer = limit("messages", 500, "1h", name="half-hour")
    assert counts(brought_back(sender, longer), NOW + 3599) == [3]
    assert counts(brought_back(sender, longer), NOW + 3600) == [0]


@pytest.mark.parametrize("period", ["message", "30m"])
def test_a_limit_may_change_to_and_from_per_message(period: str) -> None:
    """A limit per message has no window, and one that had none starts at 0."""
    changing = {per: limit("recipients", 100, per, name="changing") for per in ("message", "30m")}
    sender = account(changing[period])
    send(sender, NOW, 3)
    (other,) = [one for per, one in changing.items() if per != period]
    assert counts(brought_back(sender, other), NOW) == [None if period == "30m" else 0]


@pytest.mark.parametrize("maximum", [500, 100_000])
def test_an_event_stored_ahead_of_the_clock_is_taken_for_one_of_now(maximum: int) -> None:
    """A clock that was wrong makes no event of the future: it leaves a window's length after the start."""
    one = limit("messages", maximum, "30m", name="half-hour")
    sender = account(one)
    send(sender, NOW, 5)
    start = 50.0
    found = brought_back(sender, one, now=start, span=Span(AHEAD + NOW - 86_400))
    assert counts(found, start + 1799) == [5]
    assert counts(found, start + 1800 + one.slice) == [0]


def test_a_record_of_schema_1_is_read() -> None:
    """There the stamps were written out, by the wall clock, with the number of events of each."""
    windows = [
        ["half-hour", "messages", [SPAN.wall(NOW - 1801), SPAN.wall(NOW - 10)], [3, 1]],
        ["day", "recipients", [SPAN.wall(NOW - 10)], [5]],
    ]
    text = json.dumps({"windows": windows, "tallies": {"refused": 2}, "clients": [], "seen": True})
    found = account()
    restore_account(found, text, SPAN, NOW)
    assert counts(found, NOW) == [None, 1, 5]
    assert (found.refused, found.seen) == (2, True)


def test_values_come_back_as_the_same_values() -> None:
    """A client that was seen before the restart is no new one after it, and leaves when it would have left."""
    sender = account(CLIENTS)
    send(sender, NOW, 1)
    send(sender, NOW + 10, 2)
    send(sender, NOW + 20, 1)
    found = brought_back(sender, CLIENTS, now=NOW + 30, then=NOW + 30)
    (window,) = found.windows
    assert isinstance(window, Distinct)
    assert [window.holds(digest(b"%d" % number), NOW + 30, 3600.0) for number in (1, 2, 3)] == [True, True, False]
    window.see(digest(b"2"), NOW + 40)
    assert counts(found, NOW + 3619) == [2]
    assert counts(found, NOW + 3621) == [1]
    assert account_record(sender, SPAN, NOW + 30).keep_until == SPAN.wall(NOW + 3620)


def test_a_value_stored_ahead_of_the_clock_was_seen_now() -> None:
    """A clock that was wrong lets no client stay for longer than the window."""
    sender = account(CLIENTS)
    send(sender, NOW, 1)
    found = brought_back(sender, CLIENTS, now=50.0, span=Span(AHEAD + NOW - 86_400))
    assert counts(found, 50.0 + 3599) == [1]
    assert counts(found, 50.0 + 3600) == [0]


def test_a_record_without_values_is_read() -> None:
    """One that was written before clients were counted; and one that has what nobody counts any more."""
    text = account_record(account(HALF_HOUR), SPAN, NOW).text
    assert "distinct" not in json.loads(text)
    found = account(CLIENTS)
    restore_account(found, text, SPAN, NOW)
    assert counts(found, NOW) == [0]
    sender = account(CLIENTS)
    send(sender, NOW, 1)
    assert counts(brought_back(sender, HALF_HOUR), NOW) == [0]
    later = json.dumps({**json.loads(text), "distinct": [["clients", "colours", "AAAA", "AAAA", 0.0, "x"]], "more": 5})
    restore_account(found, later, SPAN, NOW)
    assert counts(found, NOW) == [0]


@pytest.mark.parametrize("rest", [[], ["AAAA"], ["AAAA", "AAAA", 0.0], ["AAAA", "", 0.0], [5, 5, 5], [None, None, 0.0]])
def test_values_that_cannot_have_been_stored_are_an_error(rest: list[object]) -> None:
    """The storage sets such a record aside, and goes on."""
    text = account_record(account(CLIENTS), SPAN, NOW).text
    broken = json.dumps({**json.loads(text), "distinct": [["clients", "clients", *rest]]})
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError)):
        restore_account(account(CLIENTS), broken, SPAN, NOW)


def test_a_client_seen_ahead_of_the_clock_was_seen_now() -> None:
    """Nobody reads of a client that will have been seen tomorrow."""
    sender = account()
    sender.note_client(b"192.0.2.7", NOW)
    found = brought_back(sender, now=50.0, span=Span(AHEAD + NOW - 86_400))
    assert found.clients == [(b"192.0.2.7", 50.0)]


@given(st.lists(st.integers(0, 2**40), min_size=len(TALLIES), max_size=len(TALLIES)), st.booleans())
def test_tallies_come_back(tallies: list[int], seen: bool) -> None:
    """What was refused, held, warned of, observed, and tried while locked is shown on after a restart."""
    sender = account()
    sender.seen = seen
    for name, number in zip(TALLIES, tallies, strict=True):
        setattr(sender, name, number)
    found = brought_back(sender)
    assert [getattr(found, name) for name in TALLIES] == tallies
    assert found.seen is seen


@given(st.lists(st.tuples(st.binary(max_size=40), st.floats(0.0, 1e6)), max_size=8))
def test_clients_come_back(clients: list[tuple[bytes, float]]) -> None:
    """Addresses are bytes that a peer has named, and come back as they were, in their order, with their times."""
    sender = account()
    for address, at in sorted(clients, key=lambda client: client[1]):
        sender.note_client(address, NOW + at)
    found = brought_back(sender, now=NOW + 1e6)
    assert [address for address, _ in found.clients] == [address for address, _ in sender.clients]
    for (_, at), (_, was) in zip(found.clients, sender.clients, strict=True):
        assert at == pytest.approx(was, abs=1e-5)


def test_an_account_is_kept_until_its_last_event_has_left() -> None:
    """A row is of no use when the windows are empty, and of use until then."""
    sender = account(HALF_HOUR, DAY)
    send(sender, NOW)
    assert account_record(sender, SPAN, NOW + 10).keep_until == pytest.approx(
        SPAN.wall(NOW + 86_400 + DAY.slice), abs=DAY.slice
    )
    sender = account(HALF_HOUR)
    send(sender, NOW)
    assert account_record(sender, SPAN, NOW + 10).keep_until == SPAN.wall(NOW + 1800)


@pytest.mark.parametrize("tally", TALLIES)
def test_an_account_with_tallies_is_kept_though_its_windows_are_empty(tally: str) -> None:
    """Of an account that is locked nothing lies in a window; its tallies are of interest all the same."""
    sender = account()
    setattr(sender, tally, 3)
    assert account_record(sender, SPAN, NOW).keep_until > SPAN.wall(NOW) + 86_400


def lock(seconds: float = UNTIL_UNLOCKED, *, hold: bool = False, uid: int | None = None) -> Lock:
    """Return a lock that lasts for so long."""
    until = None if math.isinf(seconds) else AHEAD + NOW + seconds
    told = (
        verdict("HOLD for now", Effect.HELD, by_lock=True)
        if hold
        else verdict("REJECT no", Effect.REFUSED, by_lock=True)
    )
    return Lock(AHEAD + NOW, until, NOW + seconds, None, None, "desk", "spam", told, uid)


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("seconds", [UNTIL_UNLOCKED, 60.0, 86_400.0])
def test_a_lock_comes_back_as_it_was(seconds: float, hold: bool) -> None:
    """Its answer, its reason, by whom and until when."""
    before = lock(seconds, hold=hold, uid=1000)
    after = restore_lock(lock_record(account(), before, SPAN, NOW), SPAN, NOW, AHEAD)
    assert after == before


@given(st.floats(0.0, 1e8), st.floats(-1e9, 1e9), st.floats(0.0, 1e8))
def test_no_more_of_a_locks_time_is_left_than_when_it_was_stored(seconds: float, step: float, now: float) -> None:
    """However wrong a clock was or is."""
    record = lock_record(account(), lock(seconds), SPAN, NOW)
    found = restore_lock(record, Span(AHEAD + step), now, AHEAD + step)
    assert found.ends - now <= seconds + 1e-5


@given(st.floats(-1e9, 1e9), st.floats(0.0, 1e8))
def test_a_lock_until_unlocked_stays_so(step: float, now: float) -> None:
    """Only a person ends it."""
    found = restore_lock(lock_record(account(), lock(), SPAN, NOW), Span(AHEAD + step), now, AHEAD + step)
    assert (found.until, found.ends) == (None, math.inf)


@given(st.floats(0.0, 1e9))
def test_a_span_goes_both_ways(now: float) -> None:
    """To the wall clock and back is where it began."""
    assert SPAN.boot(SPAN.wall(now)) == pytest.approx(now, abs=1e-6)
