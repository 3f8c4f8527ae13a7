"""A window alone, against a list of its events."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.window import Window
from tests.asking import seeded

PERIOD = 1800.0
SLICE = PERIOD / 60
MAX_RUNS = 62
"""Sixty slices of the window, the one that has begun, and one that is about to leave."""


def runs(window: Window) -> int:
    """Return how many numbers of events a window holds."""
    return len(window._stamps)


def test_an_event_leaves_at_the_end_of_the_window_to_the_point() -> None:
    """An event at time t is in a window of 30 minutes until just before t + 30 minutes, and not at t + 30 minutes."""
    window = Window()
    window.add(0.0, 1, 0.0)
    assert window.count(1799.999, PERIOD) == 1
    assert window.count(1800.0, PERIOD) == 0


def test_a_new_window_holds_nothing() -> None:
    """Before the first event the count is 0, and there is nothing to wait for."""
    window = Window()
    assert window.count(5.0, PERIOD) == 0
    assert window.resets_in(5.0, PERIOD) is None


def test_resets_in_tells_when_the_oldest_event_leaves() -> None:
    """The desk sees the seconds until the first of the counted events leaves, and then those until the next."""
    window = Window()
    window.add(100.0, 2, 0.0)
    window.add(160.0, 1, 0.0)
    assert window.resets_in(160.0, PERIOD) == 1740.0
    assert window.resets_in(1900.0, PERIOD) == 60.0
    assert window.resets_in(1960.0, PERIOD) is None


def test_what_is_given_back_is_not_counted() -> None:
    """Events given back leave at once; the others of that moment stay."""
    window = Window()
    stamp = window.add(100.0, 5, 0.0)
    window.give_back(stamp, 2)
    assert window.count(100.0, PERIOD) == 3
    window.give_back(stamp, 3)
    assert window.count(100.0, PERIOD) == 0
    assert window.resets_in(100.0, PERIOD) is None


def test_giving_back_what_has_left_changes_nothing() -> None:
    """Events that have left the window cannot be taken from those that came later."""
    window = Window()
    stamp = window.add(100.0, 5, 0.0)
    assert window.count(1900.0, PERIOD) == 0
    window.add(1900.0, 1, 0.0)
    window.give_back(stamp, 5)
    assert window.count(1900.0, PERIOD) == 1


def test_giving_back_too_much_takes_no_other_moments_events() -> None:
    """No more is taken back than was counted at that moment, and a count never falls below 0."""
    window = Window()
    window.add(100.0, 3, 0.0)
    stamp = window.add(101.0, 1, 0.0)
    window.give_back(stamp, 9)
    assert window.count(101.0, PERIOD) == 3


def test_giving_back_what_left_unnoticed_changes_nothing_later() -> None:
    """Whether or not anybody looked when the events left, the count afterwards is the same."""
    window = Window()
    stamp = window.add(100.0, 5, 0.0)
    window.add(200.0, 1, 0.0)
    window.give_back(stamp, 5)
    assert window.count(1950.0, PERIOD) == 1
    assert window.count(2000.0, PERIOD) == 0


def test_a_shorter_window_forgets_at_once() -> None:
    """A window that is asked for fewer seconds holds only the events of those."""
    window = Window()
    for now in (0.0, 600.0, 1200.0):
        window.add(now, 1, 0.0)
    assert window.count(1200.0, PERIOD) == 3
    assert window.count(1200.0, 600.0) == 1


def test_an_exact_window_forgets_what_has_left() -> None:
    """However long an account goes on, its window's memory holds little more than the events of one window."""
    window = Window()
    for now in range(100_000):
        assert window.count(float(now), 100.0) == min(now, 99)
        window.add(float(now), 1, 0.0)
        assert runs(window) <= 100 + 64


@pytest.mark.parametrize("step", [0.25, 1.0, 29.75, 30.0, 31.0, 47.125, 1800.0, 5000.0])
def test_a_coarse_windows_memory_is_bounded(step: float) -> None:
    """However many events a coarse window counts, its memory is that of its slices."""
    window = Window()
    now = 12_345.625
    for _ in range(12_000):
        window.count(now, PERIOD)
        window.add(now, 3, SLICE)
        assert runs(window) <= MAX_RUNS + 64, "before those that have left are removed"
        assert runs(window) - window._head <= MAX_RUNS
        now += step


@given(st.randoms(use_true_random=False), st.integers(1, 60))
def test_an_exact_window_counts_as_a_list_does(chance: random.Random, length: int) -> None:
    """Whatever is counted, given back and waited for, the window holds what a list of all events holds."""
    check_exact(chance, length)


@given(st.integers(0, 2**32))
def test_an_exact_window_counts_as_a_list_does_for_long(seed: int) -> None:
    """The same over thousands of events."""
    check_exact(seeded(seed), 1000)


def check_exact(chance: random.Random, length: int) -> None:
    """Do as chance says to a window and to a list, and compare them."""
    window = Window()
    times: list[float] = []
    now = 0.0
    for _ in range(length):
        now += chance.choice([0.0, 0.0, 0.125, 1.0, 7.5, 99.875, 100.0, 100.125])
        if chance.randrange(3):
            events = chance.randint(1, 4)
            window.count(now, 100.0)
            assert window.add(now, events, 0.0) == now
            times += [now] * events
        elif times:
            time = chance.choice(times)
            events = chance.randint(1, times.count(time))
            window.give_back(time, events)
            for _ in range(events):
                times.remove(time)
        inside = [time for time in times if now < time + 100.0]
        assert window.count(now, 100.0) == len(inside)
        assert window.resets_in(now, 100.0) == (min(inside) + 100.0 - now if inside else None)


@given(st.integers(0, 2**32), st.sampled_from([1.0, 60.0, 100.0, 1800.0, 604_800.0, 2_678_400.0]))
def test_a_coarse_window_never_counts_too_few_and_hardly_too_many(seed: int, period: float) -> None:
    """A coarse window holds all events of the last W, and none that is older than W and a sixtieth of it."""
    chance = seeded(seed)
    window = Window()
    slice_ = period / 60
    events: list[tuple[float, float, int]] = []
    now = chance.random() * 1e6
    for _ in range(300):
        now += period * chance.choice([0.0, 0.001, 0.01, 1 / 60, 0.03, 0.9, 1.0])
        if events and not chance.randrange(4):
            at = chance.randrange(len(events))
            _, stamp, number = events.pop(at)
            window.give_back(stamp, number)
        else:
            number = chance.randint(1, 900)
            window.count(now, period)
            events.append((now, window.add(now, number, slice_), number))
        least = sum(number for time, _, number in events if now < time + period)
        most = sum(number for time, _, number in events if now < time + period + slice_ + 1e-6 * slice_)
        assert least <= window.count(now, period) <= most
