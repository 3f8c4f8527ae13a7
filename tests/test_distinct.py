"""A window of values alone, against a list of all their sightings."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.distinct import DIGEST, MAX_VALUES, SIGHTINGS, Distinct, digest
from tests.asking import seeded

PERIOD = 100.0
STEPS = (0.0, 0.0, 0.125, 1.0, 7.5, 33.0, 99.875, 100.0, 100.125)

Sighting = tuple[bytes, float]


def value(number: int) -> bytes:
    """Return one of the values."""
    return digest(b"%d" % number)


def inside(sightings: list[Sighting], now: float, period: float = PERIOD) -> dict[bytes, float]:
    """Return the values that a list of sightings has in the window, and when each was seen last."""
    return {seen: time for seen, time in sorted(sightings, key=lambda one: one[1]) if now < time + period}


def assert_same(window: Distinct, sightings: list[Sighting], now: float) -> None:
    """Compare a window with a list."""
    expected = inside(sightings, now)
    assert window.count(now, PERIOD) == len(expected)
    assert window.resets_in(now, PERIOD) == (min(expected.values()) + PERIOD - now if expected else None)
    for number in range(12):
        assert window.holds(value(number), now, PERIOD) == (value(number) in expected)
    stamps, events = window.runs()
    assert sum(events) == len(window._values)
    assert stamps == sorted({seen[-1] for seen in window._values.values()})


def play(chance: random.Random, length: int, maximum: int) -> None:
    """See values, give some back, and wait, as a limit with a maximum does; compare with a list all the while."""
    window = Distinct()
    sightings: list[Sighting] = []
    standing: dict[bytes, list[float]] = {}
    """Of each value, the sightings that can be taken back."""
    now = 0.0
    for _ in range(length):
        now += chance.choice(STEPS)
        if chance.randrange(4):
            seen = value(chance.randrange(12))
            new = not window.holds(seen, now, PERIOD)
            known = inside(sightings, now)
            assert new == (seen not in known)
            if window.count(now, PERIOD) + new > maximum:
                assert len(known) + (seen not in known) > maximum
                continue
            assert window.see(seen, now) == now
            sightings.append((seen, now))
            standing[seen] = [*standing.get(seen, []), now][-SIGHTINGS:]
        elif backs := [(seen, time) for seen, times in standing.items() for time in times]:
            seen, time = chance.choice(backs)
            window.take_back(seen, time)
            sightings.remove((seen, time))
            standing[seen].remove(time)
        assert_same(window, sightings, now)
        assert len(window._values) <= maximum + 12, "before those that have left are removed"


@given(st.randoms(use_true_random=False), st.integers(1, 60), st.integers(1, 13))
def test_values_count_as_in_a_list_of_all_sightings(chance: random.Random, length: int, maximum: int) -> None:
    """Whatever is seen, given back and waited for, one time a value tells what a list of all sightings tells."""
    play(chance, length, maximum)


@given(st.integers(0, 2**32))
def test_values_count_as_in_a_list_of_all_sightings_for_long(seed: int) -> None:
    """The same over hundreds of events."""
    play(seeded(seed), 500, 5)


@given(st.integers(0, 2**32))
def test_no_value_is_forgotten_for_what_is_given_back(seed: int) -> None:
    """Whichever of all sightings are given back, each value that stands in the list is counted."""
    chance = seeded(seed)
    window = Distinct()
    sightings: list[Sighting] = []
    now = 0.0
    for _ in range(300):
        now += chance.choice(STEPS)
        if chance.randrange(3):
            sightings.append((value(chance.randrange(3)), now))
            window.see(*sightings[-1])
        elif sightings:
            window.take_back(*sightings.pop(chance.randrange(len(sightings))))
        held = [seen for seen in inside(sightings, now) if window.holds(seen, now, PERIOD)]
        assert len(held) == len(inside(sightings, now)) <= window.count(now, PERIOD) <= 3


def test_a_value_that_is_seen_again_leaves_later() -> None:
    """It counts once, and leaves a window's length after it was seen last, to the point."""
    window = Distinct()
    window.see(value(1), 0.0)
    window.see(value(2), 10.0)
    window.see(value(1), 50.0)
    assert window.count(50.0, PERIOD) == 2
    assert window.resets_in(50.0, PERIOD) == 60.0
    assert window.count(110.0, PERIOD) == 1
    assert window.count(149.875, PERIOD) == 1
    assert window.count(150.0, PERIOD) == 0


def test_two_messages_of_the_same_moment_are_given_back_one_by_one() -> None:
    """A value stays for as long as one of them has brought it."""
    window = Distinct()
    stamps = [window.see(value(1), 5.0) for _ in range(2)]
    window.take_back(value(1), stamps[0])
    assert window.count(5.0, PERIOD) == 1
    window.take_back(value(1), stamps[1])
    assert window.count(5.0, PERIOD) == 0


def test_what_is_given_back_brings_the_earlier_sighting_back() -> None:
    """A value leaves when it would have left without the message that is given back."""
    window = Distinct()
    window.see(value(1), 0.0)
    window.see(value(2), 20.0)
    window.take_back(value(1), window.see(value(1), 60.0))
    assert window.resets_in(60.0, PERIOD) == 40.0
    assert window.count(100.0, PERIOD) == 1


def test_giving_back_what_is_not_there_changes_nothing() -> None:
    """Another value, another time, or one whose windows were reset."""
    window = Distinct()
    window.see(value(1), 5.0)
    window.take_back(value(2), 5.0)
    window.take_back(value(1), 6.0)
    assert window.count(6.0, PERIOD) == 1


def test_of_an_account_without_a_maximum_the_latest_values_are_kept() -> None:
    """However many there are, memory is bounded; those that were seen last are known."""
    window = Distinct()
    for number in range(3 * MAX_VALUES):
        window.see(value(number), float(number))
        assert window.count(float(number), 1e6) == min(number + 1, MAX_VALUES)
    assert len(window._values) == MAX_VALUES
    assert window.holds(value(2 * MAX_VALUES), 3000.0, 1e6)
    assert not window.holds(value(2 * MAX_VALUES - 1), 3000.0, 1e6)


def test_a_value_that_comes_for_ever_takes_no_more_memory() -> None:
    """Of each value some sightings are kept, however often it is seen."""
    window = Distinct()
    for number in range(1000):
        window.see(value(1), float(number))
    assert len(window._values[value(1)]) == SIGHTINGS + 1
    assert len(window._stamps) - window._head == 1


@pytest.mark.parametrize("text", [b"", b"x" * 100_000, bytes(range(256))])
def test_a_value_of_any_length_takes_as_much_memory(text: bytes) -> None:
    """A sender of 10 KB is known by as many bytes as any other."""
    assert len(digest(text)) == DIGEST


@given(st.integers(0, 2**32), st.sampled_from((0.0, 50.0)))
def test_values_come_back_as_they_were_packed(seed: int, wait: float) -> None:
    """At every later moment the same values count, also when some were seen again before they came back."""
    chance = seeded(seed)
    window = Distinct()
    again = Distinct()
    now = 0.0
    for _ in range(30):
        now += chance.choice(STEPS[:6])
        window.see(value(chance.randrange(8)), now)
    values, stamps = window.packed_values()
    times = [seen[-1] for seen in window._values.values()]
    now += wait
    for _ in range(chance.randrange(4)):
        seen = value(chance.randrange(12))
        assert window.see(seen, now) == again.see(seen, now)
    again.put_values_before(values, times)
    assert len(stamps) == 8 * len(times)
    for step in STEPS:
        now += step
        assert again.count(now, PERIOD) == window.count(now, PERIOD)
        assert again.resets_in(now, PERIOD) == window.resets_in(now, PERIOD)
        assert [again.holds(value(n), now, PERIOD) for n in range(12)] == [
            window.holds(value(n), now, PERIOD) for n in range(12)
        ]


def test_what_came_back_is_bounded() -> None:
    """Of too many values that were stored, the latest are kept."""
    window = Distinct()
    numbers = range(2 * MAX_VALUES)
    window.put_values_before(b"".join(map(value, numbers)), [float(number) for number in numbers])
    assert window.count(2000.0, 1e6) == MAX_VALUES
    assert window.holds(value(numbers[-1]), 2000.0, 1e6)


def test_values_without_stamps_do_not_come_back() -> None:
    """What cannot have been stored is refused."""
    with pytest.raises(ValueError, match="zip"):
        Distinct().put_values_before(value(1) + value(2), [1.0])
