"""What is limited, and for whom: windows, overrides, and the names of accounts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.actions import parse_action
from policyd.limits import (
    EXACT_MAX,
    HOUSE_RULES,
    IDENTITY_ATTRIBUTES,
    UNTIL_UNLOCKED,
    Limit,
    Override,
    Rules,
)
from policyd.wire import key

WITHOUT_COLON = st.text(st.characters(exclude_characters=":", codec="utf-8"))
BOTH = ("sasl_username", "client_address")
RECIPIENTS, MESSAGES = (limit.name for limit in HOUSE_RULES)


def account(rules: Rules, **attributes: str | bytes) -> str:
    """Name the account of a request with these attributes."""
    found = {key(name): value.encode() if isinstance(value, str) else value for name, value in attributes.items()}
    return rules.account_of(lambda wanted: found.get(wanted, b""))


def maxima(rules: Rules, name: str) -> tuple[int | None, ...]:
    """Return the maxima of the two house rules for an account."""
    return tuple(limit.max for limit in rules.limits_for(name))


def test_the_house_rules_are_the_published_ones() -> None:
    """5000 recipients in one message; 500 messages in half an hour, and a lock."""
    recipients, messages = HOUSE_RULES
    assert (recipients.count, recipients.period, recipients.max, recipients.lock_for) == (
        "recipients",
        None,
        5000,
        None,
    )
    assert (messages.count, messages.period, messages.max) == ("messages", 1800.0, 500)
    assert messages.lock_for == UNTIL_UNLOCKED
    assert not recipients.observe
    assert not messages.observe


def test_the_reason_of_a_limit_is_for_a_person_to_read() -> None:
    """The desk reads why an account is locked."""
    assert [limit.reason for limit in HOUSE_RULES] == [
        "more than 5000 recipients in one message",
        "more than 500 messages in 30m",
    ]


@pytest.mark.parametrize(
    ("period", "maximum", "size"),
    [(None, 5000, 0.0), (1800.0, EXACT_MAX, 0.0), (1800.0, EXACT_MAX + 1, 30.0), (1800.0, None, 30.0)],
)
def test_a_window_with_a_large_maximum_is_remembered_in_slices(
    period: float | None, maximum: int | None, size: float
) -> None:
    """Memory is bounded, and a window is stretched by a sixtieth at the most."""
    assert Limit("foo", "messages", "30m", period, maximum, parse_action("HOLD")).slice == size


@pytest.mark.parametrize(
    ("action", "may"),
    [("REJECT x", True), ("452 x", True), ("HOLD", True), ("DISCARD", True), ("WARN", False), ("DUNNO", False)],
)
def test_an_action_stops_mail_or_lets_it_pass(action: str, may: bool) -> None:
    """A lock that lets mail pass is none."""
    assert parse_action(action).stops is may


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("anna", "anna"),
        ("Anna@Example.COM", "anna@example.com"),
        ("JÜRGEN@example.com", "jürgen@example.com"),
        (b"J\xdcRGEN", r"j\xdcrgen"),
        (b"j\xfcrgen", r"j\xfcrgen"),
        (b"\xed\xa0\x80", r"\xed\xa0\x80"),
        ("a=b", "a=b"),
        ("CN=anna, O=Example", "cn=anna, o=example"),
        (" ", " "),
    ],
)
def test_an_account_is_named_by_its_login_in_lower_case(value: str | bytes, name: str) -> None:
    """Dovecot and Cyrus take both spellings; bytes that are no UTF-8 stay apart, and can be typed."""
    assert account(Rules(), sasl_username=value) == name


def test_a_login_keeps_its_case_where_the_config_says_so() -> None:
    """Some login servers tell Anna from anna."""
    rules = Rules(lowercase=False)
    assert account(rules, sasl_username="Anna") == "Anna"
    assert rules.named("Anna") == "Anna"


def test_a_request_without_the_attributes_names_no_account() -> None:
    """An unauthenticated client is not this daemon's business."""
    assert account(Rules(), sasl_username="", client_address="192.0.2.7", sender="a@b") == ""


def test_the_first_attribute_that_is_not_empty_names_the_account() -> None:
    """A login counts before an address, in the config's order."""
    rules = Rules(attributes=BOTH)
    assert account(rules, sasl_username="anna", client_address="192.0.2.7") == "anna"
    assert account(rules, sasl_username="", client_address="192.0.2.7") == "client_address=192.0.2.7"
    assert account(Rules(attributes=BOTH[::-1]), sasl_username="anna", client_address="::1") == "client_address=::/64"


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:c000:207", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
        ("2001:db8::/64", "2001:db8::/64"),
    ],
)
def test_a_client_is_counted_by_its_address_or_its_64(address: str, name: str) -> None:
    """An IPv6 host has 2 to the 64 addresses; an IPv4 one is the same in both notations."""
    rules = Rules(attributes=BOTH)
    assert account(rules, client_address=address) == f"client_address={name}"
    assert rules.named(f"client_address={address}") == f"client_address={name}"


@pytest.mark.parametrize(
    ("login", "name"),
    [
        ("client_address=192.0.2.7", "sasl_username=client_address=192.0.2.7"),
        ("Client_Address=192.0.2.7", "sasl_username=client_address=192.0.2.7"),
        ("sasl_username=anna", "sasl_username=sasl_username=anna"),
        ("sender=a@b", "sender=a@b"),
    ],
)
def test_a_login_cannot_pass_for_a_client(login: str, name: str) -> None:
    """Nobody can have another account locked by the name he logs in with."""
    assert account(Rules(attributes=BOTH), sasl_username=login) == name


@given(
    st.lists(
        st.tuples(
            st.sampled_from(BOTH), st.sampled_from(["", "sasl_username=", "client_address=", "x="]), WITHOUT_COLON
        ),
        min_size=2,
        max_size=2,
        unique_by=lambda item: (item[0], item[1] + item[2]),
    )
)
def test_two_values_are_two_accounts(pair: list[tuple[str, str, str]]) -> None:
    """Whatever the values are, no account is taken for another; IPv6 clients, which have colons, are tested above."""
    rules = Rules(attributes=BOTH, lowercase=False)
    names = [account(rules, **{attribute: prefix + value}) for attribute, prefix, value in pair]
    if all(names):
        assert names[0] != names[1]


@given(st.binary(min_size=1), st.sampled_from(IDENTITY_ATTRIBUTES))
def test_any_bytes_name_an_account(value: bytes, attribute: str) -> None:
    """A name is valid Unicode, and stays what it is when a person gives it back."""
    rules = Rules(attributes=(attribute,))
    name = account(rules, **{attribute: value})
    assert name
    assert name.encode().decode() == name
    assert rules.named(name) == name


def test_an_account_has_the_limits_in_the_order_of_the_config() -> None:
    """The first limit exceeded gives the verdict."""
    assert Rules().limits_for("anna") == HOUSE_RULES
    assert Rules().limits_for("anna") is Rules().limits_for("otto")


def test_the_first_override_that_matches_wins() -> None:
    """Later ones are not looked at, not even for limits that the first does not name."""
    rules = Rules(
        overrides=(
            Override(("news@example.com",), ((MESSAGES, 9000),)),
            Override(("*@example.com",), ((MESSAGES, 600), (RECIPIENTS, None))),
        )
    )
    assert maxima(rules, "news@example.com") == (5000, 9000)
    assert maxima(rules, "anna@example.com") == (None, 600)
    assert maxima(rules, "anna@example.org") == (5000, 500)
    assert rules.limits_for("a@example.com") is rules.limits_for("b@example.com")


@pytest.mark.parametrize(
    ("glob", "name", "matches"),
    [
        ("anna", "anna", True),
        ("anna", "anna2", False),
        ("anna", "joanna", False),
        ("anna", "anna\n", False),
        ("*@example.com", "a@example.com", True),
        ("*@example.com", "a@example.com.evil.test", False),
        ("*@example.com", "a\nb@example.com", True),
        ("a.b", "axb", False),
        ("a+b@x", "a+b@x", True),
        ("user[0-9]", "user7", True),
        ("user[!0-9]", "user7", False),
        ("user?", "user", False),
        ("[", "[", True),
        ("a|b", "a", False),
        ("*@Lists.Example.COM", "x@lists.example.com", True),
        ("[z-a]", "m", False),
    ],
)
def test_a_glob_matches_a_whole_name(glob: str, name: str, matches: bool) -> None:
    """An exception for one domain is none for another that begins or ends alike."""
    rules = Rules(overrides=(Override(("nobody", glob), ((MESSAGES, 9),)),))
    assert (maxima(rules, name) == (5000, 9)) is matches


def test_a_glob_heeds_case_where_the_config_does() -> None:
    """Where Anna and anna are two accounts, an override means one of them."""
    rules = Rules(overrides=(Override(("Anna",), ((MESSAGES, 9),)),), lowercase=False)
    assert maxima(rules, "Anna") == (5000, 9)
    assert maxima(rules, "anna") == (5000, 500)


@pytest.mark.parametrize(
    ("globs", "maximum"),
    [
        ([["a@x"], ["*@x"]], 1),
        ([["*@x"], ["a@x"]], 1),
        ([["b@x"], ["a@x"], ["*@x"]], 2),
        ([["*@y"], ["*@x", "a@x"], ["a@x"]], 2),
        ([["a@x", "b@x"], ["a@x"]], 1),
        ([["[a]@x"], ["*"]], 1),
        ([["[b]@x"], ["b@x"]], 500),
    ],
)
def test_names_and_globs_are_tried_in_one_order(globs: list[list[str]], maximum: int) -> None:
    """The first override that matches wins, whether it names the account or a pattern of it."""
    overrides = [
        Override(tuple(accounts), (("messages-per-half-hour", place),)) for place, accounts in enumerate(globs, 1)
    ]
    (_, messages) = Rules(overrides=tuple(overrides)).limits_for("a@x")
    assert messages.max == maximum


def test_a_glob_is_no_name() -> None:
    """An account whose name is written like a pattern is not the pattern."""
    rules = Rules(overrides=(Override(("[a]@x",), (("messages-per-half-hour", 1),)),))
    assert rules.limits_for("[a]@x") == HOUSE_RULES
