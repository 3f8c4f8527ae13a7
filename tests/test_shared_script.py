"""The script in a real store: what it counts, gives back, locks and forgets, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.distinct import digest
from policyd.limits import HOUSE_RULES, Limit, Limits
from policyd.shared_calls import CHARGED, Outcome, Over, Target, lock_text, outcome, shown
from tests.asking import ANNA, BERT, limit
from tests.stores import Shared, Store, StoreError, running
from tests.waiting import until

NOTHING = Target(0, 0)
LOCK = '{"account": "anna@example.com"}'


@pytest.fixture(scope="module", name="store")
def _store() -> Iterator[Store]:
    with running() as store:
        yield store


class Table:
    """The counts in a store, and the time."""

    def __init__(self, store: Store, limits: Sequence[Limit] = HOUSE_RULES, warn_at: int | None = None) -> None:
        store.forget()
        self.store = store
        self.now = 1_795_420_800.0
        self.limits = Limits(limits).warned_at(warn_at)
        self.shared = Shared(store)
        self.calls = self.shared.calls

    def settle(
        self, instance: str, target: Target, *, account: str = ANNA, force: bool = False, ago: float = 0.0
    ) -> Outcome:
        """Have a transaction stand at a target."""
        packed = self.calls.settle(account, self.limits, instance.encode(), target, force=force, ago=ago, now=self.now)
        return outcome(self.shared.say(packed))

    def send(self, instance: str, recipients: int = 1, size: int = 0, client: str = "", sender: str = "") -> Outcome:
        """Charge a message."""
        values = [digest(text.encode()) if text else b"" for text in (client, sender)]
        return self.settle(instance, Target(1, recipients, size, *values))

    def windows(self, account: str = ANNA) -> tuple[tuple[int, float | None] | None, ...]:
        """Return the counts, and when they reset."""
        return shown(self.shared.say(self.calls.show(account, self.limits, now=self.now))).windows

    def counts(self, account: str = ANNA) -> list[int]:
        """Return the counts of the windows."""
        return [window[0] for window in self.windows(account) if window is not None]

    def lock(self, seconds: float | None = None, text: str = LOCK) -> str | None:
        """Lock the account; return the lock that was there."""
        return lock_text(self.shared.say(self.calls.lock(ANNA, text, seconds)))

    def unlock(self) -> str | None:
        """Free the account; return the lock that was there."""
        return lock_text(self.shared.say(self.calls.unlock(ANNA)))

    def reset(self) -> None:
        """Forget the account's counts."""
        assert self.shared.say(self.calls.reset(ANNA)) == 0

    def list_of(self, limit_name: str) -> object:
        """Return the runs of a window."""
        return self.store.cli("LRANGE", self.calls.key(ANNA) + f":w:{limit_name}".encode(), 0, -1)


def test_an_event_leaves_an_exact_window_to_the_point(store: Store) -> None:
    """An event at time t is in a window of 30 minutes until just before t + 30 minutes, and not at t + 30 minutes."""
    table = Table(store)
    table.send("a")
    table.now += 1799.999999
    assert table.windows() == (None, (1, 0.000001))
    table.now += 0.000001
    assert table.windows() == (None, (0, None))


def test_the_maximum_is_the_last_number_that_passes(store: Store) -> None:
    """The message after the maximum is told what it would have reached, and when the first one leaves."""
    table = Table(store, [limit("messages", 2)])
    assert table.send("a") == CHARGED
    table.now += 60
    assert table.send("b") == CHARGED
    assert table.send("c") == Outcome(None, Over(0, 3, 1740.0), (), ())
    assert table.counts() == [2]
    table.now += 1740
    assert table.send("c") == CHARGED
    assert table.counts() == [2]


def test_a_coarse_window_stamps_events_with_the_end_of_their_slice(store: Store) -> None:
    """Events of one slice share a run; they leave together, up to a slice later and never earlier."""
    table = Table(store, [limit("messages", 5000, "1h")])
    table.now += 1
    table.send("a")
    table.now += 58
    table.send("b")
    end = round((table.now + 1) * 1_000_000)
    assert table.list_of("messages:messages") == [b"%d" % end, b"-2"]
    table.now += 3600.999999
    assert table.counts() == [2]
    table.now += 0.000001
    assert table.counts() == [0]


def test_a_window_of_recipients_counts_each(store: Store) -> None:
    """Five recipients are five events; those above the maximum are not counted, nor is the message elsewhere."""
    table = Table(store, [limit("recipients", 8), limit("messages", 100)])
    assert table.send("a", 5) == CHARGED
    assert table.send("b", 4) == Outcome(None, Over(0, 9, 1800.0), (), ())
    assert table.counts() == [5, 1]
    assert table.send("b", 3) == CHARGED
    assert table.counts() == [8, 2]


def test_the_recipients_of_one_message(store: Store) -> None:
    """A limit per message knows what the message stands at, and no window."""
    table = Table(store, [limit("recipients", 3, "message"), limit("messages", 100)])
    assert table.settle("a", Target(0, 2)) == CHARGED
    assert table.settle("a", Target(0, 3)) == CHARGED
    assert table.settle("a", Target(0, 4)) == Outcome(None, Over(0, 4, None), (), ())
    assert table.send("a", 3) == CHARGED
    assert table.windows() == (None, (1, 1800.0))


def test_a_recipient_by_the_house_rules_leaves_no_trace_but_its_message(store: Store) -> None:
    """At RCPT there is no window to be counted in: there is nothing to be read or written but the record."""
    table = Table(store)
    table.settle("a", Target(0, 1))
    assert store.cli("KEYS", "*") == [table.calls.key(ANNA) + b":t:mail1:a"]


def test_bytes_are_counted_as_declared_and_then_as_they_are(store: Store) -> None:
    """The true size takes the declared one's place; where it is too much, nothing changes."""
    table = Table(store, [limit("bytes", 1000)])
    table.send("a", size=400)
    assert table.counts() == [400]
    table.now += 100
    table.send("a", size=500)
    assert table.counts() == [500]
    assert table.send("a", size=1001).stop == Over(0, 1001, 1700.0)
    assert table.counts() == [500]
    table.send("a", size=100)
    assert table.counts() == [100]
    table.send("a")
    assert table.counts() == [100], "where the size is not told, it stays what it was"
    table.settle("a", NOTHING)
    assert table.counts() == [0]


def test_of_bytes_the_latest_are_given_back_first(store: Store) -> None:
    """A size that turns out smaller takes back what was counted last."""
    table = Table(store, [limit("bytes", 1000)])
    table.send("a", size=100)
    table.now += 60
    table.send("a", size=300)
    table.send("a", size=150)
    assert table.windows() == ((150, 1740.0),)
    table.now += 1740
    assert table.counts() == [50]


def test_a_size_that_was_told_as_too_much_is_not_told_again(store: Store) -> None:
    """As in memory: a WARN about the declared size is enough; one that was not declared is told when it is known."""
    table = Table(store, [limit("bytes", 100, "30m", "WARN {count}")])
    assert table.send("a", size=200).passing == (Over(0, 200, None),)
    assert table.send("a", size=150) == CHARGED
    table.send("b")
    assert table.send("b", size=150).passing == (Over(0, 150, None),)
    table.send("c", size=60)
    assert table.send("c", size=150).passing == (Over(0, 150, 1800.0),)
    assert table.counts() == [60]


def test_clients_and_senders_count_once_each(store: Store) -> None:
    """The same one again adds nothing; a new one beyond the maximum is stopped."""
    table = Table(store, [limit("clients", 2), limit("senders", 2)])
    table.send("a", client="192.0.2.1", sender="one")
    table.now += 60
    table.send("b", client="192.0.2.2", sender="one")
    table.send("c", client="192.0.2.1", sender="one")
    assert table.windows() == ((2, 1800.0), (1, 1800.0))
    assert table.send("d", client="192.0.2.3", sender="two") == Outcome(None, Over(0, 3, 1800.0), (), ())
    assert table.counts() == [2, 1]
    table.send("e", sender="two")
    assert table.counts() == [2, 2], "a message without a client counts as none"


def test_a_client_that_is_given_back_counts_from_the_time_before(store: Store) -> None:
    """Whichever of its sightings are taken back, the others stand."""
    table = Table(store, [limit("clients", 9)])
    for instance in "abc":
        table.send(instance, client="192.0.2.1")
        table.now += 10
    table.settle("b", NOTHING)
    table.settle("c", NOTHING)
    assert table.windows() == ((1, 1770.0),)
    table.settle("a", NOTHING)
    assert table.counts() == [0]


def test_of_many_sightings_the_oldest_stand_for_good(store: Store) -> None:
    """A value may be counted longer than what was given back explains, and never shorter."""
    table = Table(store, [limit("clients", 9)])
    for instance in "abcdefg":
        table.send(instance, client="192.0.2.1")
        table.now += 10
    for instance in "gfedba":
        table.settle(instance, NOTHING)
    assert table.windows() == ((1, 1750.0),)
    table.now += 1750
    assert table.counts() == [0]


def test_no_more_values_are_remembered_than_can_be_a_maximum(store: Store) -> None:
    """Without a maximum, those that were seen last are kept."""
    table = Table(store, [limit("clients", None)])
    for number in range(1005):
        table.now += 0.001
        table.send(f"m{number}", client=f"c{number}")
    assert table.counts() == [1000]
    table.send("again", client="c5")
    assert table.counts() == [1000], "it is one of those that were kept"
    assert store.cli("ZSCORE", table.calls.key(ANNA) + b":d:clients:clients", digest(b"c4")) is None


def test_a_target_counts_against_all_limits_or_none(store: Store) -> None:
    """Where the last of the limits stops it, the others have not counted it."""
    limits = [limit("messages", 9), limit("recipients", 9), limit("clients", 9), limit("bytes", 100)]
    table = Table(store, limits)
    assert table.send("a", 3, 101, "192.0.2.1").stop == Over(3, 101, None)
    assert table.counts() == [0, 0, 0, 0]
    assert table.send("a", 3, 100, "192.0.2.1") == CHARGED
    assert table.counts() == [1, 3, 1, 100]


def test_what_does_not_stop_is_told_and_not_counted_where_it_exceeds(store: Store) -> None:
    """An observed limit and a WARN let the message pass; the other windows count it."""
    limits = [
        limit("messages", 1, name="observed", observe=True),
        limit("messages", 1, "1h", "WARN {count}", name="warned"),
        limit("messages", 2, "2h", name="stops"),
    ]
    table = Table(store, limits)
    assert table.send("a") == CHARGED
    passing = (Over(0, 2, 1800.0), Over(1, 2, 3600.0))
    assert table.send("b") == Outcome(None, None, passing, ())
    assert table.counts() == [1, 1, 2]
    assert table.send("c") == Outcome(None, Over(2, 3, 7200.0), passing, ())
    table.settle("b", NOTHING)
    assert table.counts() == [1, 1, 1], "what was not counted is not given back"


def test_a_target_that_is_lowered_gives_back_the_oldest_first(store: Store) -> None:
    """Nobody tells which recipients Postfix refused: the latest ones are kept, so that no window counts too few."""
    table = Table(store, [limit("recipients", 100)])
    for recipients in (2, 4, 6):
        table.settle("a", Target(0, recipients))
        table.now += 10
    table.settle("a", Target(0, 3))
    assert table.windows() == ((3, 1780.0),)
    table.settle("a", Target(1, 4))
    assert table.counts() == [4]


def test_recipients_that_were_refused_are_given_back_even_where_the_message_is_stopped(store: Store) -> None:
    """As in memory: first the surplus is given back, then the message is judged."""
    table = Table(store, [limit("recipients", 100), limit("messages", 0)])
    table.settle("a", Target(0, 5))
    assert table.send("a", 2).stop == Over(1, 1, None)
    assert table.counts() == [2, 0]


def test_a_target_of_nothing_gives_all_back(store: Store) -> None:
    """After that nothing is left of the transaction, and the same once more changes nothing."""
    limits = [limit("messages", 9), limit("recipients", 9), limit("clients", 9), limit("bytes", 100)]
    table = Table(store, limits)
    table.send("a", 3, 100, "192.0.2.1")
    table.send("b", 1, 0, "192.0.2.1")
    for _ in range(2):
        assert table.settle("a", NOTHING) == CHARGED
        assert table.counts() == [1, 1, 1, 0]
    assert store.cli("EXISTS", table.calls.key(ANNA) + b":t:mail1:a") == 0


def test_the_same_call_come_twice_counts_once(store: Store) -> None:
    """A resend, or a call repeated after its reply was lost, changes nothing; even where there is no room left."""
    table = Table(store, [limit("messages", 1), limit("recipients", 3), limit("bytes", 9), limit("clients", 1)])
    for _ in range(3):
        assert table.send("a", 3, 9, "192.0.2.1") == CHARGED
        table.now += 1
    assert table.windows() == ((1, 1797.0), (3, 1797.0), (9, 1797.0), (1, 1797.0))


def test_two_nodes_have_transactions_of_their_own(store: Store) -> None:
    """The same instance of two servers is two messages of one account."""
    table = Table(store)
    other = Shared(store, "mail2")
    table.send("a")
    packed = other.calls.settle(ANNA, table.limits, b"a", Target(1, 1), now=table.now)
    assert outcome(other.say(packed)) == CHARGED
    assert table.counts() == [2]
    table.settle("a", NOTHING)
    assert table.counts() == [1]


def test_two_accounts_have_nothing_in_common(store: Store) -> None:
    """One account's message, lock and reset are no other's, though the instance is the same."""
    table = Table(store)
    table.send("a")
    table.settle("a", Target(1, 1), account=BERT)
    table.lock()
    assert table.settle("b", Target(1, 1), account=BERT) == CHARGED
    table.unlock()
    assert (table.counts(), table.counts(BERT)) == ([0], [2])


def test_without_an_instance_each_call_counts(store: Store) -> None:
    """Nothing is known of what was charged before, and no record is kept."""
    table = Table(store)
    table.send("")
    table.send("")
    assert table.counts() == [2]
    assert store.cli("KEYS", "*:t:*") == []


def test_force_counts_whatever_is_exceeded(store: Store) -> None:
    """What was let through while the store was away has happened: it counts, once."""
    table = Table(store, [limit("messages", 1), limit("clients", 1), limit("bytes", 1)], warn_at=50)
    for instance in ("a", "b", "b"):
        target = Target(1, 1, 100, digest(instance.encode()))
        assert table.settle(instance, target, force=True) == CHARGED
    assert table.counts() == [2, 2, 200]
    assert table.send("c").stop == Over(0, 3, 1800.0)


def test_what_happened_a_while_ago_leaves_when_it_should(store: Store) -> None:
    """Merged events take their places among those that were counted meanwhile, in whatever order they come."""
    table = Table(store, [limit("messages", 9), limit("recipients", 2000, "1h"), limit("clients", 9)])
    table.now += 30
    for instance, ago, client in (("a", 0.0, "one"), ("b", 600.0, "two"), ("c", 300.0, "one"), ("d", 600.0, "three")):
        target = Target(1, 2, 0, digest(client.encode()))
        assert table.settle(instance, target, force=True, ago=ago) == CHARGED
    now = round(table.now * 1_000_000)
    stamps = [now - 600_000_000, now - 300_000_000, now]
    assert table.list_of("messages:messages") == [b"%d" % stamps[0], b"-2", *(b"%d" % stamp for stamp in stamps[1:])]
    ends = [stamp + 30_000_000 for stamp in stamps]
    coarse = [text for end, number in zip(ends, (4, 2, 2), strict=True) for text in (b"%d" % end, b"-%d" % number)]
    assert table.list_of("recipients:recipients") == coarse
    assert table.windows() == ((4, 1200.0), (8, 3030.0), (3, 1200.0))
    table.settle("c", NOTHING)
    table.settle("b", NOTHING)
    assert table.counts() == [2, 4, 2]
    table.settle("e", Target(1, 1), force=True, ago=1800.0)
    assert table.counts() == [2, 5, 2], "it has left the shorter window already"


def test_a_lock_in_force_is_told_and_nothing_is_counted(store: Store) -> None:
    """Whoever asks is told the lock; what is given back is, and what is counted by force is counted."""
    table = Table(store)
    table.send("a")
    assert table.lock() is None
    assert table.send("b") == Outcome(LOCK, None, (), ())
    assert table.send("a") == Outcome(LOCK, None, (), ())
    assert table.counts() == [1]
    assert table.settle("a", NOTHING) == Outcome(LOCK, None, (), ())
    assert table.counts() == [0]
    assert table.settle("c", Target(1, 1), force=True) == Outcome(LOCK, None, (), ())
    assert table.counts() == [1]
    shows = shown(table.shared.say(table.calls.show(ANNA, table.limits, now=table.now)))
    assert shows.lock == LOCK


def test_a_lock_takes_the_place_of_another(store: Store) -> None:
    """Who locks, and who frees, is told what was there."""
    table = Table(store)
    assert table.lock(60) is None
    assert table.lock(None, "{}") == LOCK
    assert store.cli("PTTL", table.calls.key(ANNA) + b":l") == -1
    assert table.unlock() == "{}"
    assert table.unlock() is None


def test_unlocking_forgets_the_counts(store: Store) -> None:
    """An account that is freed does not relock at once; what is given back later was counted before."""
    table = Table(store, [limit("messages", 2), limit("bytes", 5000), limit("clients", 9)])
    table.send("a", size=100, client="192.0.2.1")
    table.lock()
    table.unlock()
    assert table.windows() == ((0, None), (0, None), (0, None))
    table.send("b", size=300, client="192.0.2.1")
    table.settle("a", NOTHING)
    assert table.counts() == [1, 300, 1], "the stamps are the same, for the clock has stood still"
    table.send("a", size=100)
    assert table.counts() == [2, 400, 1]


def test_a_message_that_was_counted_before_a_reset_is_not_counted_again(store: Store) -> None:
    """As in memory: what a transaction was charged stands; only the difference is charged."""
    table = Table(store, [limit("messages", 9), limit("recipients", 9)])
    table.send("a", 2)
    table.reset()
    assert table.counts() == [0, 0]
    table.send("a", 3)
    assert table.counts() == [0, 1]
    table.settle("a", NOTHING)
    assert table.counts() == [0, 0]


def test_a_lock_that_is_over_forgets_the_counts(store: Store) -> None:
    """Nobody has to be there when it ends: whoever asks next finds the account free, and its windows empty."""
    table = Table(store, [limit("messages", 2)])
    table.send("a")
    table.send("b")
    table.lock(0.001)
    until(lambda: store.cli("GET", table.calls.key(ANNA) + b":l") is None)
    assert table.send("c") == CHARGED
    assert table.counts() == [1]


def test_what_is_near_to_its_maximum_is_told(store: Store) -> None:
    """From so many percent on, each call that counts there tells the place and the count."""
    table = Table(store, [limit("recipients", 5, "message"), limit("messages", 4), limit("clients", 2)], warn_at=75)
    assert table.send("a") == CHARGED
    assert table.send("b", client="192.0.2.1") == CHARGED
    assert table.send("c", client="192.0.2.2").near == ((1, 3), (2, 2))
    assert table.send("d", client="192.0.2.2").near == ((1, 4),)
    assert table.send("e") == Outcome(None, Over(1, 5, 1800.0), (), ())


def test_other_maxima_hold_at_once(store: Store) -> None:
    """The store holds no config: a call brings its own limits, and what was counted for one of that name stays."""
    table = Table(store, [limit("messages", 2)])
    table.send("a")
    table.limits = Limits([limit("recipients", 9), limit("messages", 1)])
    assert table.send("b").stop == Over(1, 2, 1800.0)
    table.limits = Limits([limit("messages", 5000, "2h")])
    assert table.send("b") == CHARGED
    assert table.windows() == ((2, 7200.0),)


def test_a_store_that_lost_its_data_is_told_what_a_node_has_counted(store: Store) -> None:
    """Each node's runs are put together, once, however often a node tells them; coarse windows stay bounded."""
    limits = [limit("messages", 9), limit("recipients", 5000, "1h"), limit("clients", 9)]
    table = Table(store, limits)
    table.settle("a", Target(1, 3, 0, b"c" * 16))
    runs: list[tuple[int, list[float], list[int] | list[bytes]]] = [
        (0, [1799.0, 60.0, 5.0], [1, 2, 1]),
        (1, [60.0, -30.0], [7, 2]),
        (2, [90.0, 80.0], [b"c" * 16, b"d" * 16]),
    ]
    for _ in range(2):
        assert table.shared.say(table.calls.refill(ANNA, table.limits, runs, now=table.now)) == 0
        assert table.windows() == ((5, 1.0), (12, 3540.0), (2, 1720.0))
    other = Shared(store, "mail2")
    assert other.say(other.calls.refill(ANNA, table.limits, [(0, [1800.0, 7.0, 5.0], [1, 1, 1])], now=table.now)) == 0
    assert table.counts() == [7, 12, 2]
    table.now += 1
    assert table.counts() == [6, 12, 2]


def test_a_refill_of_a_full_window(store: Store) -> None:
    """A thousand runs of each of two nodes are put together."""
    table = Table(store, [limit("messages", 1000)])
    for node in range(2):
        calls = Shared(store, f"mail{node}")
        agos = [1500.0 - number - node / 2 for number in range(1000)]
        assert calls.say(calls.calls.refill(ANNA, table.limits, [(0, agos, [1] * 1000)], now=table.now)) == 0
    assert table.counts() == [2000]
    table.now += 300.0
    assert table.counts() == [1999]
    table.now += 0.5
    assert table.counts() == [1998]


def test_keys_do_not_outlive_what_they_tell(store: Store) -> None:
    """Every key of an account ends by itself, but for a lock without an end."""
    table = Table(store, [limit("messages", 9), limit("recipients", 5000, "1h"), limit("clients", 9, "2h")])
    table.send("a", client="192.0.2.1")
    table.lock(60)
    key = table.calls.key(ANNA)
    left = {}
    for name in store.cli("KEYS", "*"):  # type: ignore[attr-defined]
        left[name.removeprefix(key).decode()] = store.cli("PTTL", name)
    bounds = {
        ":a": (7_200_000, 7_321_000),
        ":w:messages:messages": (1_800_000, 1_831_000),
        ":w:recipients:recipients": (3_660_000, 3_661_000),
        ":d:clients:clients": (7_200_000, 7_321_000),
        ":t:mail1:a": (0, 300_000),
        ":l": (0, 60_000),
    }
    assert left.keys() == bounds.keys()
    for name, (least, most) in bounds.items():
        assert least - 20_000 < left[name] <= most, name  # type: ignore[operator]


def test_a_record_is_kept_for_as_long_as_its_message_goes_on(store: Store) -> None:
    """A call that changes nothing renews the 300 seconds."""
    table = Table(store)
    table.send("a")
    record = table.calls.key(ANNA) + b":t:mail1:a"
    store.cli("PEXPIRE", record, 5000)
    table.send("a")
    left = store.cli("PTTL", record)
    assert isinstance(left, int)
    assert left > 200_000


@pytest.mark.parametrize("end", [":a", ":l", ":w:messages-per-half-hour:messages", ":t:mail1:a"])
def test_a_key_of_ours_that_holds_something_else_is_told(store: Store, end: str) -> None:
    """The reply is an error that says so; other accounts are none the worse for it."""
    table = Table(store)
    if end.startswith(":w"):
        table.send("b")
    store.cli("DEL", table.calls.key(ANNA) + end.encode())
    store.cli("SADD", table.calls.key(ANNA) + end.encode(), "x")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        table.send("a")
    assert table.settle("a", Target(1, 1), account=BERT) == CHARGED


def test_a_store_that_has_forgotten_the_script(store: Store) -> None:
    """The call is made again with the script's text, and then the script is known again."""
    table = Table(store)
    table.send("a")
    store.cli("SCRIPT", "FLUSH")
    with pytest.raises(StoreError, match="NOSCRIPT"):
        store.client().say(table.calls.settle(ANNA, table.limits, b"b", Target(1, 1), now=table.now))
    assert table.send("b") == CHARGED
    assert store.client().say(table.calls.settle(ANNA, table.limits, b"b", Target(1, 1), now=table.now)) == 0
    assert table.counts() == [2]


def test_a_window_that_the_store_has_evicted_is_empty(store: Store) -> None:
    """Where a store that is full has dropped one of the keys, no count is left that nothing explains."""
    table = Table(store)
    for instance in "abc":
        table.send(instance)
    store.cli("DEL", table.calls.key(ANNA) + b":w:messages-per-half-hour:messages")
    assert table.counts() == [0]
    table.settle("a", NOTHING)
    table.send("d")
    assert table.counts() == [1]
    store.cli("DEL", table.calls.key(ANNA) + b":a")
    assert table.counts() == [0]


def test_a_clock_that_steps_back_a_little_keeps_the_order(store: Store) -> None:
    """After a failover the new store's clock may be behind: the runs stay in order, and every event counts."""
    table = Table(store, [limit("messages", 9), limit("recipients", 5000)])
    for step in (10.0, -2.0, 0.5, -0.25):
        table.now += step
        table.send(f"m{step}")
    runs = table.list_of("messages:messages")
    assert isinstance(runs, list)
    assert runs == sorted(runs)
    assert table.counts() == [4, 4]
    table.settle("m-2.0", NOTHING)
    assert table.counts() == [3, 3]


def test_a_clock_that_steps_back_far_locks_nobody_out(store: Store) -> None:
    """Events of a time that has not come yet are taken for events of now: they leave within one window."""
    table = Table(store, [limit("messages", 2), limit("recipients", 5000), limit("clients", 2)])
    table.send("a", client="192.0.2.1")
    table.now += 1
    table.send("b", client="192.0.2.2")
    table.now -= 365 * 86400
    assert table.counts() == [2, 2, 2]
    table.now += 1829
    assert table.send("c", client="192.0.2.3") == CHARGED
    table.now += 1
    assert table.counts() == [1, 1, 1]


def test_a_clock_that_steps_forward_empties_the_windows(store: Store) -> None:
    """Nothing else can be known then; the account goes on."""
    table = Table(store)
    table.send("a")
    table.now += 365 * 86400
    assert table.counts() == [0]
    assert table.send("b") == CHARGED


def test_by_the_stores_own_clock(store: Store) -> None:
    """Without a time in the call, it is the store that tells it: nodes' clocks do not matter."""
    table = Table(store)
    assert outcome(table.shared.say(table.calls.settle(ANNA, table.limits, b"a", Target(1, 1)))) == CHARGED
    seconds, micros = (int(part) for part in store.cli("TIME"))  # type: ignore[attr-defined]
    (stamp,) = (int(text) for text in table.list_of("messages-per-half-hour:messages"))  # type: ignore[attr-defined]
    assert 0 <= seconds * 1_000_000 + micros - stamp < 20_000_000


def test_sizes_beyond_all_reason(store: Store) -> None:
    """A size of 18 digits is told as too much, and nothing is counted."""
    table = Table(store, [limit("bytes", 2**50, "31d")])
    table.send("a", size=2**50)
    stop = table.send("b", size=10**18 - 1).stop
    assert stop is not None
    assert stop.reached > 2**50
    assert table.counts() == [2**50]


@settings(max_examples=50)
@given(account=st.text(min_size=1) | st.sampled_from(("{}", "}{", "a b\r\n", "\udc80", "\0", "%", "x" * 65_536)))
def test_an_account_may_be_called_anything(store: Store, account: str) -> None:
    """Blanks, braces, line ends, lone surrogates and 64 KB: what is counted is found again, and is nobody else's."""
    table = Table(store)
    table.settle("a b{}\n", Target(1, 1), account=account)
    table.settle("b", Target(1, 1), account=account)
    table.settle("a b{}\n", NOTHING, account=account)
    assert (table.counts(account), table.counts(account + "x")) == ([1], [0])


def test_an_error_in_the_script_is_told(store: Store) -> None:
    """Whatever is wrong with it, or with what our keys hold, the reply says so."""
    table = Table(store)
    broken = table.calls.evaluated(table.calls.reset(ANNA)).replace(b"$5\r\nreset", b"$5\r\nresex")
    with pytest.raises(StoreError, match="attempt to call"):
        store.client().say(broken)
    store.cli("SET", table.calls.key(ANNA) + b":t:mail1:a", "no record")
    with pytest.raises(StoreError, match="ERR"):
        table.send("a")
