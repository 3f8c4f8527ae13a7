"""What the store answers: the same values in whatever pieces they come, and nothing that has no end."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.shared_replies import MAX_DEPTH, MAX_LINE, GarbageError, Refusal, Replies

STREAM = (
    b":0\r\n:0\r\n+OK\r\n$5\r\nhel\r\n\r\n$-1\r\n*-1\r\n*0\r\n:-17\r\n-OOM command not allowed\r\n"
    b"*3\r\n$7\r\nmessage\r\n*2\r\n:1\r\n*0\r\n-ERR inner\r\n$0\r\n\r\n:0\r\n"
)
VALUES = [
    *(0, 0, b"OK", b"hel\r\n", None, None, [], -17),
    Refusal("OOM command not allowed"),
    [b"message", [1, []], Refusal("ERR inner")],
    *(b"", 0),
]

Value = int | bytes | list["Value"] | None
VALUE: st.SearchStrategy[Value] = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=20,
)


def encoded(value: Value) -> bytes:
    """Return a value as the store sends it."""
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    return b"*%d\r\n" % len(value) + b"".join(map(encoded, value))


def depth(value: Value) -> int:
    """Return how many lists lie in each other."""
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def test_replies_are_read() -> None:
    """Of all kinds."""
    assert Replies().feed(STREAM) == VALUES


@pytest.mark.parametrize("size", range(1, len(STREAM)))
def test_replies_come_in_pieces(size: int) -> None:
    """The network cuts where it likes."""
    replies = Replies()
    found = [reply for at in range(0, len(STREAM), size) for reply in replies.feed(STREAM[at : at + size])]
    assert found == VALUES


@given(st.lists(VALUE.filter(lambda value: depth(value) <= MAX_DEPTH), max_size=6), st.lists(st.integers(1, 30)))
def test_what_was_sent_is_what_is_read(values: list[Value], cuts: list[int]) -> None:
    """Whatever it is, and wherever it is cut."""
    data = b"".join(map(encoded, values))
    replies = Replies()
    found: list[object] = []
    for size in cuts:
        found += replies.feed(data[:size])
        data = data[size:]
    assert found + replies.feed(data) == values


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\r\n",
        b"\x15\x03\x01\x00\x02\x02\x28\r\n",
        b":\r\n",
        b":1x\r\n",
        b":" + b"1" * 20 + b"\r\n",
        b"$-2\r\n",
        b"$x\r\n",
        b"$1\r\nabc\r\n",
        b"*-2\r\n",
        b"*1\r\n" * (MAX_DEPTH + 1),
        b"+" + b"x" * (MAX_LINE + 1),
        b"x" * (MAX_LINE + 2) + b"\r\n",
    ],
)
def test_garbage_is_no_reply(data: bytes) -> None:
    """Nor is what never ends."""
    with pytest.raises(GarbageError):
        Replies().feed(data)


@pytest.mark.parametrize(
    "data", [b"$1001\r\n", b"*1001\r\n", b"*600\r\n" + b":0\r\n" * 300, b"*2\r\n$990\r\n" + b"x" * 990 + b"\r\n"]
)
@pytest.mark.parametrize("size", [1, 7, 2000])
def test_a_reply_has_a_maximum(data: bytes, size: int) -> None:
    """Of bytes, as a whole."""
    replies = Replies(most=1000)
    pieces = (data[at : at + size] for at in range(0, len(data), size))
    with pytest.raises(GarbageError):
        deque(map(replies.feed, pieces))


def test_many_small_replies_are_not_a_large_one() -> None:
    """The maximum is of each."""
    replies = Replies(most=1000)
    data = encoded([1, b"x" * 900]) * 50
    assert sum(len(replies.feed(data[at : at + 100])) for at in range(0, len(data), 100)) == 50


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "OOM"),
        ("ERR unknown command", "ERR"),
        (
            "WRONGTYPE Operation against a key holding the wrong kind of value script: 3f, on @user_script:1.",
            "WRONGTYPE",
        ),
        (
            "ERR Error running script (call to f_3f): @user_script:1: @user_script: 1: -READONLY You can't write",
            "READONLY",
        ),
        ("ERR Error running script (call to f_3f): @user_script:1: @user_script: 1: Wrong number of args", "ERR"),
        ("ERR Error running script (call to f_3f): @user_script:156: WRONGTYPE Operation against a key", "WRONGTYPE"),
        ("what is this", "ERR"),
        ("", "ERR"),
    ],
)
def test_an_error_has_a_code(text: str, code: str) -> None:
    """Of an error within a script it is that of the error, also where an older server wraps it."""
    assert Refusal(text).code == code


def test_an_error_is_shown_without_what_an_older_server_wraps_it_in() -> None:
    """Who reads it wants to know what is the matter, and not where in the script that was found."""
    wrapped = "ERR Error running script (call to f_3f): @user_script:1: @user_script: 1: -READONLY You can't write"
    assert str(Refusal(wrapped)) == "READONLY You can't write"


def test_an_error_is_shown_in_one_printable_line() -> None:
    """It comes from outside."""
    (refusal,) = Replies().feed(b"-ERR a\x1b[31m \xff\n" + b"x" * 300 + b"\r\n")
    shown = str(refusal)
    assert shown.startswith("ERR a\\x1b[31m \\xff xxx")
    assert len(shown) == 200
