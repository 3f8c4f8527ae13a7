"""Calls of the shared script as bytes, and its replies as values; no store is needed for that."""

from __future__ import annotations

import io
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.limits import HOUSE_RULES, Limits
from policyd.shared_calls import CHARGED, SCRIPT, Calls, Outcome, Over, Shown, Target, lock_text, outcome, shown
from tests.asking import ANNA, limit

CALLS = Calls("policyd", "mail1")
LETTER = Target(1, 3)
ODD = ("", "{}", "}{", "a b", "a\nb\r\n$3\r\n", "anna%40", "\udc80", "\ud800x", "ä@example.com", "\0", "%", "%25")
LONG = ("x" * 65_536, "ü" * 65_536)


def words(command: bytes) -> list[bytes]:
    """Read a command as a store does."""
    source = io.BytesIO(command)

    def number(mark: bytes) -> int:
        line = source.readline()
        assert line.startswith(mark)
        assert line.endswith(b"\r\n")
        return int(line[1:])

    parts = []
    for _ in range(number(b"*")):
        length = number(b"$")
        parts.append(source.read(length))
        assert source.read(2) == b"\r\n"
    assert not source.read()
    return parts


def keys(command: bytes) -> list[bytes]:
    """Return the keys of a call."""
    parts = words(command)
    return parts[3 : 3 + int(parts[2])]


def test_a_call_names_the_script_its_keys_and_its_arguments() -> None:
    """What a DATA request by the house rules asks the store, word by word."""
    packed = words(CALLS.settle(ANNA, HOUSE_RULES, b"5d7e.1", Target(1, 3, 1200)))
    assert packed[0] == b"EVALSHA"
    assert packed[2:7] == [
        b"4",
        b"policyd:{anna@example.com}:a",
        b"policyd:{anna@example.com}:l",
        b"policyd:{anna@example.com}:w:messages-per-half-hour:messages",
        b"policyd:{anna@example.com}:t:mail1:5d7e.1",
    ]
    assert packed[7:16] == [b"settle", b"", b"0", b"0", b"1", b"3", b"1200", b"", b""]
    assert packed[16:] == [
        b"r1 0 5000 9007199254740991 0 recipients-per-message:recipients",
        b"m1 1800000000 500 9007199254740991 0 messages-per-half-hour:messages",
    ]


def test_a_limit_is_told_with_all_that_the_script_has_to_know() -> None:
    """Its kind, whether it stops mail, the window in microseconds, the maximum, what is near to it, the slices."""
    limits = Limits(
        (
            limit("bytes", 1000, "1h"),
            limit("clients", None, "1h", name="several"),
            limit("senders", 9, "1h", observe=True),
            limit("recipients", 1001, "1h", "WARN {count}"),
        )
    ).warned_at(90)
    assert words(CALLS.show(ANNA, limits))[-4:] == [
        b"b1 3600000000 1000 900 60 bytes:bytes",
        b"c1 3600000000 9007199254740991 9007199254740991 0 several:clients",
        b"s0 3600000000 9 9007199254740991 0 senders:senders",
        b"r0 3600000000 1001 9007199254740991 60 recipients:recipients",
    ]


@given(
    st.text(max_size=300) | st.sampled_from(ODD),
    st.binary(max_size=80),
    st.builds(
        Target,
        st.integers(0, 1),
        st.integers(0, 10**6),
        st.integers(0, 10**18),
        st.binary(max_size=16),
        st.binary(max_size=16),
    ),
    st.text(max_size=20),
    st.booleans(),
    st.floats(0, 10**6),
)
def test_the_usual_calls_and_any_other_are_packed_alike(
    account: str, instance: bytes, target: Target, node: str, force: bool, ago: float
) -> None:
    """The usual calls, which have to be packed quickly, differ from one with a time only in that time."""
    calls = Calls("policyd", node)
    ago *= force
    usual = words(calls.settle(account, HOUSE_RULES, instance, target, force=force, ago=ago))
    other = words(calls.settle(account, HOUSE_RULES, instance, target, force=force, ago=ago, now=7.0))
    at = other.index(b"settle") + 1
    assert other[at] == b"7000000"
    assert usual == [*other[:at], b"", *other[at + 1 :]]


@given(st.lists(st.text(max_size=250) | st.sampled_from((*ODD, *LONG)), min_size=2, max_size=20, unique=True))
def test_no_two_accounts_share_a_key(names: list[str]) -> None:
    """Whatever accounts are called, each has keys of its own, and none has a brace or a blank within the braces."""
    found = [CALLS.key(name) for name in names]
    assert len(set(found)) == len(names)
    for key in found:
        name = key.removeprefix(b"policyd:{").removesuffix(b"}")
        assert name
        assert set(name) <= set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789@._+=-%")
        assert len(name) <= 3 * 200


@given(st.text() | st.sampled_from((*ODD, *LONG)))
def test_all_keys_of_a_call_bear_the_account(account: str) -> None:
    """A cluster of stores has all keys of a call in one place: what stands in the first braces is the same."""
    for command in (
        CALLS.settle(account, HOUSE_RULES, b"a}{b", LETTER),
        CALLS.settle(account, HOUSE_RULES, b"", LETTER),
        CALLS.show(account, HOUSE_RULES),
        CALLS.lock(account, "{}", None),
        CALLS.unlock(account),
        CALLS.reset(account),
        CALLS.refill(account, HOUSE_RULES, [(1, [1.0], [1])]),
    ):
        for key in keys(command):
            assert key.startswith(CALLS.key(account) + b":")
            assert key[key.index(b"{") + 1 : key.index(b"}")] == CALLS.key(account)[len("policyd:{") : -1]


def test_a_long_name_is_known_by_its_digest() -> None:
    """Keys do not grow with what a client logs in as."""
    assert CALLS.key("x" * 200) == b"policyd:{" + b"x" * 200 + b"}"
    digest = blake2b(b"x" * 201, digest_size=16).hexdigest()
    assert CALLS.key("x" * 201) == b"policyd:{%%" + digest.encode() + b"}"
    assert len(CALLS.settle(LONG[0], HOUSE_RULES, b"1", LETTER)) < 1000


def test_a_node_may_have_any_name() -> None:
    """A node's name adds no brace and no colon to a key."""
    (*_, record) = keys(Calls("policyd", "mail:1{ä}").settle(ANNA, HOUSE_RULES, b"1", LETTER))
    assert record == b"policyd:{anna@example.com}:t:mail%3A1%7B%C3%A4%7D:1"


def test_two_prefixes_have_nothing_in_common() -> None:
    """Two installations can share one store."""
    assert Calls("other", "mail1").key(ANNA) == b"other:{anna@example.com}"


def test_the_same_call_can_be_made_with_the_scripts_text() -> None:
    """A store that has forgotten the script is told it, with the same keys and arguments."""
    command = CALLS.settle(ANNA, HOUSE_RULES, b"1", LETTER)
    assert words(CALLS.evaluated(command)) == [b"EVAL", SCRIPT, *words(command)[2:]]


def test_limits_that_are_gone_are_not_taken_for_others() -> None:
    """However many limits come and go, a call has its own."""
    for most in range(3000):
        limits = Limits((limit("messages", most),))
        assert words(CALLS.show(ANNA, limits))[-1] == b"m1 1800000000 %d 9007199254740991 %d messages:messages" % (
            most,
            60 if most > 1000 else 0,
        )


def test_a_reply_of_nothing_to_tell() -> None:
    """Mostly the reply is 0: no lock, nothing exceeded, nothing near."""
    assert outcome(0) is CHARGED
    assert Outcome(None, None, (), ()) == CHARGED


def test_a_reply_with_all_that_can_be_told() -> None:
    """Times are seconds; what has no window has no time."""
    reply = b'{"lock":"{\\"by\\": 1}","stop":[1,501,1500000],"passing":[[0,7,-1]],"near":[[2,90]]}'
    assert outcome(reply) == Outcome('{"by": 1}', Over(1, 501, 1.5), (Over(0, 7, None),), ((2, 90),))


@pytest.mark.parametrize(
    "reply",
    [1, None, b"", b"0", b"[]", b"{", b'{"stop":[1]}', b'{"near":[[1,2,3]]}', b'{"stop":["x",1,1]}', [0], b"\xff"],
)
def test_a_reply_that_the_script_cannot_have_made(reply: object) -> None:
    """What is no reply of ours is told, and not taken for a pass."""
    with pytest.raises(ValueError, match="the store's reply to settle is"):
        outcome(reply)


def test_what_is_shown() -> None:
    """Of each limit the count and when it resets."""
    assert shown([None, -1, -1, 3, 1_500_000, 0, -1]) == Shown(None, (None, (3, 1.5), (0, None)))
    assert shown([b'{"a": 1}']) == Shown('{"a": 1}', ())


@pytest.mark.parametrize("reply", [0, None, [], [None, 1], [None, 1, b"x"], [7, 1, 1], b"x"])
def test_a_show_that_the_script_cannot_have_made(reply: object) -> None:
    """The same for what is shown."""
    with pytest.raises(ValueError, match="the store's"):
        shown(reply)


def test_the_text_of_a_lock() -> None:
    """It comes back as it was given, or None."""
    assert lock_text(None) is None
    assert lock_text(b'{"a": "x"}') == '{"a": "x"}'
    with pytest.raises(ValueError, match="the store's lock is 7"):
        lock_text(7)
