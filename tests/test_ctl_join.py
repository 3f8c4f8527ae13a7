"""Whose message is this in the queue: the rule against a simulated Postfix that gives its queue ids again."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.ctl_join import LATER, SEVERAL, SLOWEST, Envelope, Past, Queued, match, objection, past
from tests.test_ctl_history import MESSAGE

ID = "7E249230754"
BEGAN = 1_795_442_254.5

QUEUED = Queued(ID, "deferred", 1_795_442_252, 331, "anna@example.com", 1)
PAST = Past("anna@example.com", ID, BEGAN, BEGAN + 1.5, "192.0.2.7", "anna@example.com", "passed")
NAMED = {"log_ident": ID, "sasl_username": "Anna@Example.com", "client_address": "192.0.2.7", "client_name": "unknown"}
ENVELOPE = Envelope(1_795_442_252, 1_795_442_254, "anna@example.com", NAMED)


def named(**attributes: str) -> Envelope:
    """Return the envelope with other attributes; one that is "" is not there."""
    both = {**NAMED, **attributes}
    return ENVELOPE._replace(named={name: value for name, value in both.items() if value})


def test_a_message_alone_with_its_queue_id_is_found() -> None:
    """The usual case: one message in the history has this id, at this time, and the file says the same."""
    assert match(QUEUED, [PAST]) == PAST
    assert objection(QUEUED, PAST, ENVELOPE) == ""


@pytest.mark.parametrize(
    ("began", "found"),
    [
        (QUEUED.arrived - 1.01, False),
        (QUEUED.arrived - 1.0, True),
        (float(QUEUED.arrived), True),
        (QUEUED.arrived + 1 + SLOWEST + 1.0, True),
        (QUEUED.arrived + 1 + SLOWEST + 1.01, False),
    ],
)
def test_a_message_is_asked_about_after_it_arrived(began: float, found: bool) -> None:
    """The policy daemon is asked at RCPT, after MAIL FROM, at which the message arrived; an hour after is too late."""
    assert (match(QUEUED, [PAST._replace(began=began)]) is not None) == found


def test_the_message_that_had_the_id_before_is_not_the_one() -> None:
    """An id that was used yesterday, by whomever, says nothing about the message that has it now."""
    yesterday = PAST._replace(account="bert@example.com", began=BEGAN - 86400)
    assert match(QUEUED, [yesterday]) is None
    assert match(QUEUED, [yesterday, PAST]) == PAST


def test_two_messages_that_can_both_be_it_are_told_apart_by_nobody() -> None:
    """A client that was slow between MAIL and RCPT may have arrived before the message that had its id before."""
    before = PAST._replace(account="bert@example.com", began=BEGAN - 1)
    assert match(QUEUED, [PAST, before]) == SEVERAL
    assert match(QUEUED, [PAST, PAST._replace(at=BEGAN + 2)]) == SEVERAL


def test_an_id_that_was_given_again_since_is_not_trusted() -> None:
    """A file in the queue keeps its id to itself: if the history says otherwise, something is not as it seems."""
    since = PAST._replace(account="bert@example.com", began=BEGAN + 2 * SLOWEST)
    assert match(QUEUED, [PAST, since]) == LATER


@pytest.mark.parametrize(
    ("envelope", "wrong"),
    [
        (ENVELOPE._replace(arrived=QUEUED.arrived + 1), "its queue id has been given to another message"),
        (named(log_ident="4Bc"), "its queue file was made under another queue id (postsuper -r?)"),
        (named(log_ident=""), "its queue file was made under another queue id (postsuper -r?)"),
        (
            ENVELOPE._replace(created=ENVELOPE.created + 5),
            "its queue file was made after the message of the history was received",
        ),
        (named(client_address="192.0.2.8"), "its queue file names another client than the history"),
        (named(client_address=""), "its queue file names another client than the history"),
        (named(sasl_username="bert@example.com"), "its queue file names another login than the history"),
        (named(sasl_username=""), "its queue file does not say who the account is"),
    ],
)
def test_the_queue_file_has_the_last_word(envelope: Envelope, wrong: str) -> None:
    """Whatever in the file does not agree with the history, the message is not the account's."""
    assert objection(QUEUED, PAST, envelope) == wrong


def test_where_policyd_is_asked_at_data_alone_the_file_is_older() -> None:
    """The file is there since the first RCPT, of which policyd was not told."""
    late = PAST._replace(began=BEGAN + 300, at=BEGAN + 300)
    assert match(QUEUED, [late]) == late
    assert objection(QUEUED, late, ENVELOPE) == ""


def test_a_sender_that_postfix_rewrote_does_not_hide_a_message() -> None:
    """Canonical maps and masquerading change the sender in the file; the login tells whose it is."""
    assert objection(QUEUED, PAST, ENVELOPE._replace(sender="canon@y.example")) == ""


def test_logins_that_differ_in_case_are_two_where_policyd_says_so() -> None:
    """An account that is not named in lower case is its login to the letter."""
    message = PAST._replace(account="Anna@Example.com")
    assert objection(QUEUED, message, ENVELOPE) == ""
    assert objection(QUEUED, message, named(sasl_username="anna@example.com")) != ""


@pytest.mark.parametrize(
    ("account", "attributes", "wrong"),
    [
        ("client_address=192.0.2.7", {}, ""),
        ("client_address=192.0.2.7", {"sasl_username": ""}, ""),
        ("client_address=192.0.2.8", {}, "its queue file names another client_address than the history"),
        ("client_name=unknown", {"client_name": ""}, "its queue file names another client_name than the history"),
        ("sender=anna@example.com", {"sasl_username": ""}, ""),
        ("sasl_username=anna@example.com", {}, ""),
        ("ccert_fingerprint=ab:cd", {"sasl_username": ""}, "its queue file does not say who the account is"),
        ("ccert_fingerprint=ab:cd", {}, "its queue file names another login than the history"),
        ("=", {"sasl_username": ""}, "its queue file does not say who the account is"),
    ],
)
def test_accounts_that_are_not_named_by_their_login(account: str, attributes: dict[str, str], wrong: str) -> None:
    """An account of another attribute is known by that attribute in the file, and by its sender."""
    assert objection(QUEUED, PAST._replace(account=account), named(**attributes)) == wrong


def test_an_account_without_a_login_is_known_by_its_sender_too() -> None:
    """Where Postfix has no word of its own about who it was, the sender has to be the history's."""
    message = PAST._replace(account="client_address=192.0.2.7", sender="else@example.com")
    assert objection(QUEUED, message, ENVELOPE) == "its sender is not that of the history"


def test_an_ipv6_client_is_known_by_its_network() -> None:
    """Policyd counts IPv6 clients by their /64."""
    message = PAST._replace(account="client_address=2001:db8::/64", client="2001:db8::7")
    assert objection(QUEUED, message, named(client_address="2001:db8::7", sasl_username="")) == ""
    other = message._replace(account="client_address=2001:db8:0:1::/64")
    assert objection(QUEUED, other, named(client_address="2001:db8::7", sasl_username="")) != ""


def test_a_message_of_the_history_is_read() -> None:
    """The daemon's JSON has what decides."""
    assert past({**MESSAGE, "began": "2026-11-23T03:12:40.120000Z"}) == Past(
        "anna@example.com", "4bCdEf1gHz", 1795403560.12, 1795403561.513, "192.0.2.7", "anna@example.com", "passed"
    )


@pytest.mark.parametrize(
    "change", [{"began": "2026-11-23T03:12:40"}, {"began": None}, {"at": "soon"}, {"client": 7}, {"queue_id": None}]
)
def test_what_is_no_message_of_the_history_is_an_error(change: dict[str, Any]) -> None:
    """A daemon of another version is noticed, and not guessed at."""
    with pytest.raises((TypeError, ValueError, AttributeError)):
        past({**MESSAGE, **change})


class Real(NamedTuple):
    """One message as it really was: its times are not known to anybody as a whole."""

    account: str
    login: str
    """The login in the file; "" where it came by sendmail(1)."""
    arrived: float
    began: float
    created: float
    at: float
    known: bool
    """Whether the history has it."""


GAPS = st.one_of(st.floats(0, 3), st.floats(0, 2 * SLOWEST))
STEPS = st.tuples(GAPS, GAPS, st.floats(0, 2), st.floats(0, 400), GAPS)
PEOPLE = st.sampled_from(["anna", "anna", "bert", "carl"])


@st.composite
def lives_of_one_queue_id(draw: st.DrawFn) -> list[Real]:
    """One queue id, given to one message after the other: each file is made after the one before was removed."""
    removed = float(QUEUED.arrived)
    lives: list[Real] = []
    for slow, before, fast, receiving, staying in draw(st.lists(STEPS, min_size=1, max_size=4)):
        created = removed + before
        arrived = created - fast - slow
        at = created + receiving
        began = draw(st.sampled_from([created - fast, created - fast, at]))
        who = draw(PEOPLE)
        by_smtp = draw(st.sampled_from([True, True, True, False]))
        known = by_smtp and draw(st.sampled_from([True, True, True, False]))
        lives.append(Real(who, who if by_smtp else "", arrived, began, created, at, known))
        removed = at + staying
    return lives


@given(lives_of_one_queue_id())
def test_no_message_is_ever_taken_for_another_accounts(lives: list[Real]) -> None:
    """Whatever became of an id before, however slow clients were, and whatever the history has lost."""
    last = lives[-1]
    queued = QUEUED._replace(arrived=int(last.arrived))
    told = {"log_ident": ID, "client_address": "192.0.2.7", "sasl_username": last.login}
    envelope = Envelope(int(last.arrived), int(last.created), "s", {name: text for name, text in told.items() if text})
    history = {
        Past(one.account, ID, one.began, one.at, "192.0.2.7", "s", str(number)): one
        for number, one in enumerate(lives)
        if one.known
    }
    found = match(queued, list(history))
    if isinstance(found, Past) and not objection(queued, found, envelope):
        assert history[found].account == last.login
    if last.known and last.began - last.arrived < SLOWEST:
        assert found in (SEVERAL, LATER) or (isinstance(found, Past) and history[found] is last)
    if len(lives) == 1 and last.known and last.began - last.arrived < SLOWEST:
        assert isinstance(found, Past)
        assert objection(queued, found, envelope) == ""
