"""What waits to be told: storms, retries, bounds, and what outlives the daemon."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.notices import (
    AT_ONCE,
    GIVE_UP,
    MAX_NAMED,
    MAX_TEXT,
    MAX_WAITING,
    MINUTE,
    NAMED,
    RETRIES,
    STORM,
    Notice,
)
from policyd.sections_notify import NOBODY_TOLD
from tests.asking import ANNA, BERT, EPOCH
from tests.telling import MAIL_CONFIG, WEBHOOK_CONFIG, Telling, config

COMMAND_CONFIG = "command: [/bin/true]"
BOTH_MAILS = "mail: {from: policyd@example.com, to: [abuse@example.com], account: true}"


def test_a_lock_is_told_of_once_by_each_channel() -> None:
    """Each channel that the config names is given the notice, and not again once it has taken it."""
    telling = Telling(MAIL_CONFIG, WEBHOOK_CONFIG, COMMAND_CONFIG)
    telling.lock(limit="messages", count=501)
    for channel in ("mail", "webhook", "command"):
        (notice,) = telling.due(channel)
        assert (notice.event, notice.at, notice.fields["account"]) == ("lock", EPOCH, ANNA)
        assert (notice.fields["count"], notice.fields["until"]) == (501, None)
        assert telling.due(channel) == []
    assert len(telling.notices) == 0
    assert telling.due("account") == []


@pytest.mark.parametrize(
    ("word", "by", "uid", "event"),
    [
        ("unlock", "policyd", None, "expiry"),
        ("unlock", "root", 0, "unlock"),
        ("unlock", "policyd", 991, "unlock"),
    ],
)
def test_a_lock_that_ends_by_itself_is_told_apart(word: str, by: str, uid: int | None, event: str) -> None:
    """A person may be called policyd, and has a user id."""
    telling = Telling()
    telling.notices.tell(word, {"account": ANNA, "by": by, "uid": uid, "attempts": 3}, telling.now)
    assert [notice.event for notice in telling.due()] == [event]


def test_what_nobody_wants_to_know_is_not_told() -> None:
    """Events that the config does not name, and what is no event for people."""
    telling = Telling("events: [unlock]", MAIL_CONFIG)
    telling.lock()
    telling.notices.tell("near-limit", {"account": ANNA, "count": 8, "max": 10}, telling.now)
    telling.notices.tell("refused", {"account": ANNA}, telling.now)
    assert (len(telling.notices), telling.woken) == (0, 1)


def test_without_a_section_nothing_is_kept() -> None:
    """Nobody is told, and nothing waits."""
    telling = Telling()
    telling.notices.apply(NOBODY_TOLD, telling.now)
    telling.lock()
    assert len(telling.notices) == 0
    assert telling.notices.take_unsaved() == {}


def test_a_warning_has_its_percentage() -> None:
    """Rounded down: 100% is the maximum."""
    telling = Telling("events: [warning]", MAIL_CONFIG)
    telling.notices.tell("near-limit", {"account": ANNA, "limit": "m", "count": 999, "max": 1000}, telling.now)
    (notice,) = telling.due()
    assert (notice.event, notice.fields["percent"]) == ("warning", 99)


@pytest.mark.parametrize("name", ["anna", "client_address=192.0.2.7", "sender=anna@example.com", "a b@c.d", "-x@c.d"])
def test_an_account_that_is_no_mail_address_gets_no_mail(name: str) -> None:
    """Nor does one that is known by something else than its login."""
    telling = Telling(BOTH_MAILS)
    telling.lock(name)
    telling.lock()
    assert [notice.fields["account"] for notice in telling.due("account")] == [ANNA]
    assert len(telling.due()) == 2


def test_a_storm_becomes_a_digest_when_the_minute_is_over() -> None:
    """The first ten are told of at once; the others in one notice, with how many and the first twenty."""
    telling = Telling(BOTH_MAILS)
    for number in range(100):
        telling.lock(f"u{number}@example.com")
        telling.now += 0.1
    assert [notice.fields["account"] for notice in telling.due()] == [f"u{n}@example.com" for n in range(STORM)]
    telling.now = 10_000.0 + MINUTE - 0.1
    assert telling.due() == []
    telling.now += 0.1
    (digest,) = telling.due()
    assert (digest.event, digest.fields["of"], digest.fields["number"]) == ("digest", "lock", 100 - STORM)
    assert digest.fields["accounts"] == [f"u{n}@example.com" for n in range(STORM, STORM + NAMED)]
    assert len(telling.due("account")) == STORM
    assert len(telling.notices) == 0


def test_a_storm_that_goes_on_is_one_digest_a_minute() -> None:
    """None is told of by itself before a quiet minute has passed."""
    telling = Telling()
    told = []
    for second in range(600):
        telling.now = 10_000.0 + second
        telling.lock(f"u{second}@example.com")
        told += [(notice.event, second) for notice in telling.due()]
    assert told == [("lock", n) for n in range(STORM)] + [("digest", 60 * n) for n in range(1, 10)]
    telling.now += 2 * MINUTE
    assert [notice.event for notice in telling.due()] == ["digest"]
    telling.lock()
    assert [notice.event for notice in telling.due()] == ["lock"]


def test_kinds_have_storms_of_their_own() -> None:
    """A thousand locks that end do not keep a lock from being told of."""
    telling = Telling()
    for number in range(50):
        telling.notices.tell("unlock", {"account": f"u{number}", "by": "policyd", "uid": None}, telling.now)
    telling.lock()
    assert Counter(notice.event for notice in telling.due()) == {"expiry": STORM, "lock": 1}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 25)), max_size=30))
def test_every_lock_is_told_of_exactly_once(bursts: list[tuple[int, int]]) -> None:
    """Whatever comes when: by itself or in a digest, never late by more than a minute, and never too many at once."""
    telling = Telling()
    told: list[tuple[float, Notice]] = []
    locked: dict[str, float] = {}
    number = 0

    def pass_time(seconds: float) -> None:
        for _ in range(int(seconds)):
            told.extend((telling.now, notice) for notice in telling.due())
            telling.now += 1

    for pause, burst in bursts:
        pass_time(pause)
        for _ in range(burst):
            locked[f"u{number}"] = telling.now
            telling.lock(f"u{number}")
            number += 1
    pass_time(2 * MINUTE)
    single = {notice.fields["account"]: when for when, notice in told if notice.event == "lock"}
    digests = [(when, notice) for when, notice in told if notice.event == "digest"]
    assert len(single) + sum(notice.fields["number"] for _, notice in digests) == number
    assert all(when == locked[account] for account, when in single.items())
    for when, notice in digests:
        assert all(when - MINUTE <= locked[account] <= when for account in notice.fields["accounts"])
        assert not single.keys() & set(notice.fields["accounts"])
    times = sorted(when for when, _ in told)
    assert all(sum(t <= other < t + MINUTE for other in times) <= 2 * STORM + 2 for t in times)
    assert all(after - before >= MINUTE for (before, _), (after, _) in itertools.pairwise(digests))


def test_what_fails_is_tried_again_later_and_later() -> None:
    """After a second, five, thirty, two minutes, and then every ten."""
    telling = Telling()
    telling.lock()
    begun, tries = telling.now, []
    while telling.now < begun + 2000:
        if notice := telling.notices.next_for("mail", telling.now):
            tries.append(telling.now - begun)
            telling.notices.failed("mail", notice.id, "no", telling.now)
        telling.now += 1
    pauses = [after - before for before, after in itertools.pairwise(tries)]
    assert pauses == [*RETRIES, RETRIES[-1], RETRIES[-1]]


def test_what_fails_for_a_day_is_given_up_and_told() -> None:
    """It is lost to this channel alone."""
    telling = Telling(MAIL_CONFIG, WEBHOOK_CONFIG)
    telling.lock()
    while telling.now < 10_000 + 2 * GIVE_UP:
        if notice := telling.notices.next_for("mail", telling.now):
            telling.notices.failed("mail", notice.id, "550 no", telling.now)
        telling.now += 60
    (lost,) = telling.told("notices-lost")
    assert (lost["channel"], lost["account"], lost["reason"]) == ("mail", ANNA, "550 no")
    assert (telling.notices.waiting("mail"), telling.notices.waiting("webhook")) == (0, 1)
    assert "0 waiting, 1 lost" in telling.notices.problems()[0]


def test_a_channel_that_fails_is_a_problem_until_it_works_again() -> None:
    """It is told once in the log, and in status with since when, why, and how many wait."""
    telling = Telling(MAIL_CONFIG, WEBHOOK_CONFIG)
    for name in (ANNA, BERT):
        telling.lock(name)
        (notice,) = [telling.notices.next_for("mail", telling.now)]
        assert notice is not None
        telling.notices.failed("mail", notice.id, "connection refused", telling.now)
    assert telling.notices.problems() == [
        "notices by mail are not sent since 2026-11-23T08:00:00+00:00: connection refused; 2 waiting, 0 lost"
    ]
    assert len(telling.told("notify-problem")) == 1
    assert len(telling.due("webhook")) == 2
    telling.now += 1
    assert len(telling.due()) == 2
    assert telling.notices.problems() == []
    assert len(telling.told("notify-well")) == 1
    assert len(telling.told("notice-sent")) == 4


def test_when_a_channel_works_again_the_others_do_not_wait_out_their_pauses() -> None:
    """What was tried often is sent along with what comes first."""
    telling = Telling()
    telling.lock()
    for pause in RETRIES:
        notice = telling.notices.next_for("mail", telling.now)
        assert notice is not None
        telling.notices.failed("mail", notice.id, "no", telling.now)
        telling.now += pause
    telling.now -= 300
    assert telling.due() == []
    telling.lock(BERT)
    assert [notice.fields["account"] for notice in telling.due()] == [BERT, ANNA]


def test_one_that_is_refused_does_not_hold_up_the_others() -> None:
    """It waits for its own next try, and they go."""
    telling = Telling()
    telling.lock()
    poison = telling.notices.next_for("mail", telling.now)
    assert poison is not None
    telling.notices.failed("mail", poison.id, "no", telling.now)
    telling.lock(BERT)
    notice = telling.notices.next_for("mail", telling.now)
    assert notice is not None
    assert notice.fields["account"] == BERT


def test_a_final_no_is_not_asked_again() -> None:
    """Nor is it a problem of the channel: an account's mailbox may be gone."""
    telling = Telling(BOTH_MAILS)
    telling.lock()
    notice = telling.notices.next_for("account", telling.now)
    assert notice is not None
    telling.notices.failed("account", notice.id, "550 unknown", telling.now, final=True)
    assert telling.notices.problems() == []
    assert telling.notices.waiting("account") == 0
    assert telling.told("notices-lost")[0]["reason"] == "550 unknown"


@pytest.mark.parametrize("channel", ["mail", "command"])
def test_a_channel_is_given_so_many_at_once_and_no_more(channel: str) -> None:
    """And there is nothing to wake up for before one is done with."""
    telling = Telling(MAIL_CONFIG if channel == "mail" else COMMAND_CONFIG)
    for number in range(STORM):
        telling.lock(f"u{number}")
    given = [telling.notices.next_for(channel, telling.now) for _ in range(STORM)]
    assert sum(notice is not None for notice in given) == AT_ONCE[channel]
    assert telling.notices.wakes_at() is None
    assert given[0] is not None
    telling.notices.took(channel, given[0].id, telling.now)
    assert telling.notices.wakes_at() == telling.now


def test_too_many_lose_the_oldest() -> None:
    """What is lost is counted and told, and is gone from the database too."""
    telling = Telling("events: [lock]", MAIL_CONFIG)
    for number in range(MAX_WAITING + 3):
        telling.lock(f"u{number}")
        telling.now += 2 * MINUTE
    assert len(telling.notices) == MAX_WAITING
    assert [lost["account"] for lost in telling.told("notices-lost")] == ["u0", "u1", "u2"]
    saved = telling.notices.take_unsaved()
    assert [id_ for id_, record in saved.items() if record is None] == ["id-1", "id-2", "id-3"]
    telling.notices.took("mail", "id-1", telling.now)
    telling.notices.failed("mail", "id-2", "no", telling.now)
    assert telling.notices.take_unsaved() == {}


def test_what_waits_outlives_the_daemon() -> None:
    """With its id, and for the channels that have not taken it yet."""
    telling = Telling(MAIL_CONFIG, WEBHOOK_CONFIG)
    telling.lock("a\n\ud800")
    before = telling.due("webhook")
    saved = telling.notices.take_unsaved()
    telling.notices = telling.fresh(MAIL_CONFIG, WEBHOOK_CONFIG)
    telling.notices.restore([(id_, text) for id_, text in saved.items() if text], telling.now)
    assert telling.due("webhook") == []
    assert telling.due() == before
    assert telling.notices.take_unsaved() == {before[0].id: None}


def test_what_is_taken_in_goes_in_the_order_in_which_it_happened() -> None:
    """However the database has it."""
    telling = Telling()
    for number in range(5):
        telling.lock(f"u{number}")
        telling.now += 1
    stored = [(id_, text) for id_, text in telling.notices.take_unsaved().items() if text]
    telling.notices = telling.fresh(MAIL_CONFIG)
    telling.notices.restore(stored[::-1], telling.now)
    telling.notices.restore(stored, telling.now)
    assert [notice.fields["account"] for notice in telling.due()] == [f"u{number}" for number in range(5)]


def test_a_digest_that_was_begun_outlives_the_daemon() -> None:
    """It is sent as far as it was stored, and each change of it is stored."""
    telling = Telling()
    for number in range(STORM + 5):
        telling.lock(f"u{number}")
    telling.due()
    stored = {id_: text for id_, text in telling.notices.take_unsaved().items() if text}
    telling.lock("late")
    stored.update((id_, text) for id_, text in telling.notices.take_unsaved().items() if text)
    telling.notices = telling.fresh(MAIL_CONFIG)
    telling.notices.restore(stored.items(), telling.now)
    (digest,) = telling.due()
    assert (digest.event, digest.fields["number"], digest.fields["accounts"][-1]) == ("digest", 6, "late")


@pytest.mark.parametrize(
    "text",
    [
        '{"event": "oops", "at": 1, "fields": {}, "left": ["mail"]}',
        "",
        "{",
        "[]",
        "1",
        "{}",
        '{"event": "lock", "at": "x", "fields": {}, "left": ["mail"]}',
        '{"event": 1, "at": 1}',
    ],
)
def test_what_makes_no_sense_is_done_with(text: str) -> None:
    """It is removed, and the others are told."""
    telling = Telling()
    good = json.dumps({"event": "lock", "at": EPOCH, "fields": {"account": ANNA}, "left": ["mail", "oops"]})
    telling.notices.restore([("bad", text), ("good", good)], telling.now)
    assert [notice.id for notice in telling.due()] == ["good"]
    assert telling.notices.take_unsaved() == {"bad": None, "good": None}


def test_a_reload_loses_nothing_and_drops_channels_that_are_gone() -> None:
    """What waited out a pause is tried by the new config at once."""
    telling = Telling(MAIL_CONFIG, COMMAND_CONFIG)
    telling.lock()
    notice = telling.notices.next_for("mail", telling.now)
    assert notice is not None
    telling.notices.failed("mail", notice.id, "no", telling.now)
    telling.notices.apply(config(MAIL_CONFIG, WEBHOOK_CONFIG).notify, telling.now)
    assert telling.notices.waiting("command") == 0
    assert telling.due() == [notice]
    assert telling.due("webhook") == []
    assert telling.notices.take_unsaved() == {notice.id: None}


def test_a_notice_is_bounded_whatever_an_account_is_called() -> None:
    """A thousand of them fit into the memory."""
    telling = Telling()
    for _ in range(STORM + 2):
        telling.lock("x" * 100_000, reason="y" * 100_000)
    first = telling.due()[0]
    assert (len(first.fields["account"]), len(first.fields["reason"])) == (MAX_TEXT, MAX_TEXT)
    telling.now += MINUTE
    (digest,) = telling.due()
    assert [len(name) for name in digest.fields["accounts"]] == [MAX_NAMED, MAX_NAMED]


def test_fields_that_come_later_are_told_too() -> None:
    """Whatever else is known of a lock reaches programs."""
    telling = Telling()
    telling.lock(evidence={"clients": ("192.0.2.7", b"\xff", 1.5, None)})
    assert telling.due()[0].value()["evidence"] == {"clients": ["192.0.2.7", "b'\\xff'", 1.5, None]}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(("lock", "give", "take", "fail", "wait", "reload", "kill")), st.integers(0, 9)))
)
def test_whatever_happens_every_channel_takes_every_notice(steps: list[tuple[str, int]]) -> None:  # noqa: C901 -- steps
    """Through failures, reloads and kills: at least once, and only once where nobody was killed."""
    parts = (MAIL_CONFIG, COMMAND_CONFIG)
    telling = Telling(*parts)
    taken: Counter[tuple[str, str]] = Counter()
    made: set[str] = set()
    given_out: list[tuple[str, Notice]] = []
    disk: dict[str, str | None] = {}
    killed = False
    for what, number in steps:
        channel = ("mail", "command")[number % 2]
        if what == "lock":
            telling.lock(f"u{len(made)}")
            telling.now += 2 * MINUTE
            disk.update(telling.notices.take_unsaved())
            made = {*made, *disk}
        elif what == "give" and (notice := telling.notices.next_for(channel, telling.now)):
            given_out.append((channel, notice))
            assert sum(name == channel for name, _ in given_out) <= AT_ONCE[channel]
        elif what in ("take", "fail") and given_out:
            channel, notice = given_out.pop(number % len(given_out))
            if what == "take":
                telling.notices.took(channel, notice.id, telling.now)
                taken[channel, notice.id] += 1
            else:
                telling.notices.failed(channel, notice.id, "no", telling.now)
        elif what == "wait":
            telling.now += 10.0**number / 1000
        elif what == "reload":
            telling.notices.apply(config(*parts).notify, telling.now)
        elif what == "kill":
            telling.notices = telling.fresh(*parts)
            telling.notices.restore([(id_, text) for id_, text in disk.items() if text], telling.now)
            given_out.clear()
            killed = True
    lost = {(told["channel"], told["id"]) for told in telling.told("notices-lost")}
    for channel, notice in given_out:
        telling.notices.took(channel, notice.id, telling.now)
        taken[channel, notice.id] += 1
    telling.now += 1000
    for channel in ("mail", "command"):
        taken.update((channel, notice.id) for notice in telling.due(channel))
    assert len(telling.notices) == 0
    assert telling.notices.wakes_at() is None
    assert taken.keys() | lost == {(channel, id_) for channel in ("mail", "command") for id_ in made}
    assert killed or set(taken.values()) <= {1}
