"""The wire: bytes in, requests out, and what is refused on the way; each promise holds however the bytes are cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policyd.wire import (
    ATTRIBUTES,
    MAX_ATTRIBUTES,
    MAX_LAYOUTS,
    MAX_LINE,
    MAX_REQUEST,
    RECIPIENT_COUNT,
    REQUEST,
    Layouts,
    ProtocolError,
    Request,
    RequestReader,
    key,
    reply,
)
from tests.daemon import request as asked

KIND = b"request=smtpd_access_policy\n"
GOOD = KIND + b"protocol_state=RCPT\n\n"

Feed = Callable[[bytes], Iterable[bytes]]


def whole(data: bytes) -> Iterable[bytes]:
    """Cut nothing."""
    return (data,)


def trickled(data: bytes) -> Iterable[bytes]:
    """Cut between any two bytes; of what is very long, between the last ones."""
    head = max(0, len(data) - 20_000)
    yield data[:head]
    yield from (data[n : n + 1] for n in range(head, len(data)))


def read(packets: Iterable[bytes]) -> tuple[list[bytes], str | None]:
    """Return the requests that come out, as the bytes that went in, and the reason of the error that ends them."""
    reader, found = RequestReader(), []
    try:
        for packet in packets:
            reader.receive(packet)
            while (request := reader.next_request()) is not None:
                found.append(lines_of(request))
    except ProtocolError as error:
        return found, str(error)
    return found, None


def lines_of(request: Request) -> bytes:
    """Return all of a request as it stood on the wire."""
    return request.lines[1:] + b"\n"


def error(data: bytes, feed: Feed = whole) -> str | None:
    """Return why the bytes are refused; they hold no request before that."""
    found, why = read(feed(data))
    assert found == []
    return why


def one(data: bytes) -> Request:
    """Return the only request that the bytes hold."""
    reader = RequestReader()
    reader.receive(data)
    request = reader.next_request()
    assert request is not None
    assert reader.next_request() is None
    assert not reader.unfinished
    return request


def filled(size: int) -> bytes:
    """Return a good request of `size` bytes, in lines of at most 16384."""
    lines, rest = KIND, size - len(KIND) - 1
    while rest:
        length = min(rest, 10_000)
        lines += b"x=" + b"y" * (length - 3) + b"\n"
        rest -= length
    return lines + b"\n"


def counted(attributes: int) -> bytes:
    """Return a good request of so many attributes."""
    return KIND + b"x=\n" * (attributes - 1) + b"\n"


def shown(value: object) -> str:
    """Return a parameter's name in the list of tests: no test is called by 16 KiB."""
    return repr(value)[:40]


both = pytest.mark.parametrize("feed", [whole, trickled], ids=["whole", "trickled"])


def test_a_request_gives_its_attributes() -> None:
    """An attribute is found by its name wherever it stands; an absent one, and an empty one, is empty."""
    request = one(b"first=1\n" + KIND + b"empty=\nlast=z\n\n")
    assert [request.get(key(name)) for name in ("first", "request", "empty", "last", "absent")] == [
        b"1", b"smtpd_access_policy", b"", b"z", b"",
    ]  # fmt: skip


def test_an_attribute_is_not_found_inside_of_another() -> None:
    """Neither a name that ends in the wanted one nor a value that looks like an attribute answers for it."""
    request = one(b"xsender=a\nhelo_name=sender=b\n" + KIND + b"senders=c\n\n")
    assert request.get(key("sender")) == b""


@pytest.mark.parametrize(
    "value",
    [
        b"a=b==c",
        "Jürgen".encode(),
        b"J\xfcrgen",
        b"\x01\x1b[31m\x7f\t",
        b"\r",
        b" blanks ",
        b'"quotes"',
        b"=",
        b"\xff\xfe",
    ],
)
@both
def test_a_value_comes_out_as_it_went_in(value: bytes, feed: Feed) -> None:
    """Equals signs, UTF-8, Latin-1 and control bytes are all a value's own."""
    data = KIND + b"sasl_username=" + value + b"\nlast=1\n\n"
    assert read(feed(data)) == ([data], None)
    assert one(data).get(key("sasl_username")) == value


def test_a_repeated_attribute_keeps_its_first_value() -> None:
    """SMTPD_POLICY_README leaves open which one counts; it is always the first."""
    request = one(KIND + b"sender=one\nsender=two\nrecipient_count=3\nrecipient_count=x\n\n")
    assert request.get(key("sender")) == b"one"
    assert request.recipient_count == 3


@both
def test_long_names_do_not_hide_the_account(feed: Feed) -> None:
    """2 kB of HELO, 2 kB of sender and a login of 9 kB are all read to their end."""
    login = b"u" * 9216
    data = KIND + b"helo_name=" + b"h" * 2048 + b"\nsender=" + b"s" * 2048 + b"\nsasl_username=" + login + b"\n\n"
    assert read(feed(data)) == ([data], None)
    assert one(data).get(key("sasl_username")) == login


@both
def test_requests_come_out_in_order(feed: Feed) -> None:
    """Several requests in one packet are several requests."""
    requests = [KIND + b"n=%d\n\n" % n for n in range(50)]
    assert read(feed(b"".join(requests))) == (requests, None)


@pytest.mark.parametrize("bad", [b"nonsense\n", b"\n", b"request=x\n\n", b"\0", KIND + b"recipient_count=x\n\n"])
@both
def test_good_requests_before_a_bad_one_are_given_out(bad: bytes, feed: Feed) -> None:
    """What was asked well is answered, whatever comes behind it in the same packet."""
    found, why = read(feed(GOOD + GOOD + bad))
    assert found == [GOOD, GOOD]
    assert why


@pytest.mark.parametrize("digits", [b"0", b"1", b"50000", b"007", b"9" * 18])
@both
def test_recipient_count_is_a_number(digits: bytes, feed: Feed) -> None:
    """Up to 18 digits are a number."""
    data = KIND + b"recipient_count=" + digits + b"\n\n"
    assert read(feed(data)) == ([data], None)
    assert one(data).recipient_count == int(digits)


def test_recipient_count_may_be_absent() -> None:
    """An absent recipient_count is None, not 0."""
    assert one(GOOD).recipient_count is None


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b" ", b"x", b"-1", b"+1", b"1 ", b" 1", b"0x10", b"1_0", b"1.0", b"1e3", b"\xb2"),
        *("²".encode(), "٣".encode(), b"9" * 19, b"1" + b"0" * 30, b"9" * 5000),
    ],
    ids=shown,
)
@both
def test_a_recipient_count_that_is_no_number_is_refused(text: bytes, feed: Feed) -> None:
    """Only ASCII digits are a number, and no more of them than any message has recipients."""
    assert error(KIND + b"recipient_count=" + text + b"\n\n", feed) == "recipient_count is no number"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"nonsense\n", "line 1 has no '='"),
        (KIND + b"nonsense\n", "line 2 has no '='"),
        (KIND + b"a=1\nb\nc=2\n\n", "line 3 has no '='"),
        (KIND + b"a=1\nb\n", "line 3 has no '='"),
        (b"GET / HTTP/1.1\r\n", "line 1 has no '='"),
        (b"request=smtpd_access_policy\r\n\r\n", "line 2 has no '='"),
        (b"\n", "no request attribute"),
        (b"sender=a\n\n", "no request attribute"),
        (b"sender=request=smtpd_access_policy\n\n", "no request attribute"),
        (b"xrequest=smtpd_access_policy\n\n", "no request attribute"),
        (b"REQUEST=smtpd_access_policy\n\n", "no request attribute"),
        (b"request=\n\n", "no request attribute"),
        (b"request=junk\n\n", "request=junk, want smtpd_access_policy"),
        (b"request=smtpd_access_policy \n\n", "request=smtpd_access_policy , want smtpd_access_policy"),
        (b"request=SMTPD_ACCESS_POLICY\n\n", "request=SMTPD_ACCESS_POLICY, want smtpd_access_policy"),
        (b"request=" + b"x" * 1000 + b"\n\n", f"request={'x' * 40}, want smtpd_access_policy"),
        (b"request=\xff\n\n", "request=\\xff, want smtpd_access_policy"),
        (b"request=junk\n" + KIND + b"\n", "request=junk, want smtpd_access_policy"),
        (b"\0", "a NUL byte"),
        (KIND + b"sender=a\0b", "a NUL byte"),
        (KIND + b"sender=a\0b\n\n", "a NUL byte"),
    ],
    ids=shown,
)
@both
def test_what_is_not_the_protocol_is_refused(data: bytes, why: str, feed: Feed) -> None:
    """The reason is told in words, the same whether the bytes come at once or one by one."""
    assert error(data, feed) == why


@pytest.mark.parametrize(
    ("accepted", "refused", "why"),
    [
        pytest.param(filled(MAX_REQUEST), filled(MAX_REQUEST + 1), "a request of over 65536 bytes", id="request"),
        pytest.param(counted(MAX_ATTRIBUTES), counted(MAX_ATTRIBUTES + 1), "over 100 attributes", id="attributes"),
        pytest.param(
            KIND + b"x=" + b"y" * (MAX_LINE - 2) + b"\n\n",
            KIND + b"x=" + b"y" * (MAX_LINE - 1) + b"\n\n",
            "a line of over 16384 bytes",
            id="line",
        ),
        pytest.param(
            b"x=" + b"y" * (MAX_LINE - 2) + b"\n" + KIND + b"\n",
            b"x=" + b"y" * (MAX_LINE - 1) + b"\n" + KIND + b"\n",
            "a line of over 16384 bytes",
            id="first line",
        ),
    ],
)
@both
def test_limits_are_exact(accepted: bytes, refused: bytes, why: str, feed: Feed) -> None:
    """What just fits is a request, and one more is not."""
    assert read(feed(accepted)) == ([accepted], None)
    assert error(refused, feed) == why


@pytest.mark.parametrize(
    ("before", "at", "why"),
    [
        pytest.param(KIND + b"nonsense", b"\n", "line 2 has no '='", id="no equals sign"),
        pytest.param(KIND + b"x=" + b"y" * (MAX_LINE - 2), b"y", "a line of over 16384 bytes", id="line"),
        pytest.param(b"y" * MAX_LINE, b"y", "a line of over 16384 bytes", id="first line"),
        pytest.param(filled(MAX_REQUEST + 1)[:-2], b"y", "a request of over 65536 bytes", id="request"),
        pytest.param(counted(MAX_ATTRIBUTES)[:-1] + b"x=", b"\n", "over 100 attributes", id="attributes"),
        pytest.param(KIND + b"x=", b"\0", "a NUL byte", id="NUL"),
    ],
)
@both
def test_an_error_is_seen_with_the_first_byte_that_shows_it(before: bytes, at: bytes, why: str, feed: Feed) -> None:
    """Nobody waits for the end of a request that is already wrong, and nobody is refused a byte too soon."""
    assert read(feed(before)) == ([], None)
    assert error(before + at, feed) == why


def test_a_long_line_is_seen_in_a_request_without_an_end() -> None:
    """A line over the maximum is refused though its end, but not the request's, has come in the same packet."""
    assert error(KIND + b"x=" + b"y" * MAX_LINE + b"\nz=") == "a line of over 16384 bytes"


@both
def test_an_error_behind_a_good_request_is_counted_from_its_own_first_line(feed: Feed) -> None:
    """The line named in the reason is a line of the bad request."""
    assert read(feed(GOOD + KIND + b"nonsense\n"))[1] == "line 2 has no '='"


@pytest.mark.parametrize(
    ("data", "unfinished"), [(b"", False), (b"r", True), (GOOD, False), (GOOD + b"r", True), (GOOD[:-1], True)]
)
@both
def test_a_request_is_unfinished_from_its_first_byte_to_its_end(data: bytes, unfinished: bool, feed: Feed) -> None:
    """Between two requests nothing is awaited."""
    reader = RequestReader()
    assert not reader.unfinished
    for packet in feed(data):
        reader.receive(packet)
        while reader.next_request():
            pass
    assert reader.unfinished is unfinished


def test_nothing_is_asked_of_a_reader_that_received_nothing() -> None:
    """A new connection has no request."""
    assert RequestReader().next_request() is None


def test_a_reply_is_one_action_and_an_empty_line() -> None:
    """The reply is what SMTPD_POLICY_README asks for, in UTF-8."""
    assert reply("REJECT 5.7.1 zu viel für heute") == "action=REJECT 5.7.1 zu viel für heute\n\n".encode()


def test_the_keys_of_a_request_can_not_be_met_in_a_value() -> None:
    """A key begins with the line end that no value has."""
    assert (REQUEST, RECIPIENT_COUNT) == (b"\nrequest=", b"\nrecipient_count=")


names = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12).map(str.encode)
values = st.binary(max_size=60).map(lambda value: value.replace(b"\n", b"").replace(b"\0", b""))
attributes = st.tuples(names, values).filter(lambda pair: pair[0] not in (b"request", b"recipient_count"))
requests = st.lists(attributes, max_size=12).map(
    lambda pairs: KIND + b"".join(name + b"=" + value + b"\n" for name, value in pairs) + b"\n"
)

FRAGMENTS = {
    "kind": KIND,
    "good": GOOD,
    "count": b"recipient_count=",
    "60 lines": b"x=\n" * 60,
    "9000 bytes": b"y" * 9000,
    "line that fits": b"z=" + b"z" * 16382,
}
pieces = st.lists(
    st.sampled_from([*FRAGMENTS, b"\n", b"=", b"\0", b"\r\n", b"a=b\n", b"a\n", b"request=x\n", b"12\n"])
    | st.binary(max_size=20),
    max_size=25,
)
places = st.lists(st.floats(0, 1), max_size=12)


def joined(parts: Iterable[str | bytes]) -> bytes:
    """Join pieces, of which some are named so that a failing example can be read."""
    return b"".join(FRAGMENTS[part] if isinstance(part, str) else part for part in parts)


def cut(data: bytes, where: Iterable[float]) -> list[bytes]:
    """Cut bytes at some places, each a part of the whole length; the same place twice makes an empty packet."""
    ends = sorted(int(place * len(data)) for place in where)
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


@given(st.lists(requests, max_size=8), places)
def test_good_requests_come_out_however_they_are_cut(good: list[bytes], where: list[float]) -> None:
    """Any list of requests, cut anywhere, gives the same requests and no error."""
    assert read(cut(b"".join(good), where)) == (good, None)


@given(pieces, places)
@example(["kind", "line that fits", b"z\nx="], [0.99985])
def test_any_bytes_mean_the_same_however_they_are_cut(parts: list[str | bytes], where: list[float]) -> None:
    """Cut or not, the same requests come out, and then an error or none.

    Where one request has several faults, packets that show one of them sooner may give that as the reason. Nothing is
    ever raised but ProtocolError.
    """
    stream = joined(parts)
    found, why = read(whole(stream))
    found_cut, why_cut = read(cut(stream, where))
    assert found_cut == found
    assert bool(why_cut) == bool(why)


POSTFIX = asked()
"""A request as Postfix 3.7 sends it: what comes in the same order of names is read as a whole."""

mutations = st.lists(
    st.tuples(
        st.integers(0, len(POSTFIX)),
        st.integers(0, 40),
        st.sampled_from([b"", b"\n", b"=", b"\0", b"x", b"\n\n", b"x=\n"]),
    ),
    max_size=3,
)
like_postfix = st.lists(
    st.tuples(st.sampled_from(ATTRIBUTES), values | st.sampled_from([b"", b"7", b"0012", b"a=b", b"\xff"])), max_size=3
).map(lambda pairs: asked(**dict(pairs)))


def mutated(request: bytes, changes: Iterable[tuple[int, int, bytes]]) -> bytes:
    """Return a request with parts of it replaced."""
    for start, length, instead in changes:
        request = request[:start] + instead + request[start + length :]
    return request


def read_promptly(packets: Iterable[bytes]) -> tuple[list[tuple[bytes, ...]], str | None]:
    """Return all that is known of the requests that come out, as the server asks for them, and why they end."""
    by_patterns, found = _known(packets, RequestReader(Layouts(None))), _known(packets, RequestReader(Layouts()))
    assert by_patterns == found, "what is compiled reads them otherwise"
    return found


def _known(packets: Iterable[bytes], reader: RequestReader) -> tuple[list[tuple[bytes, ...]], str | None]:
    found = []
    try:
        for packet in packets:
            request = reader.only_request(packet)
            if request is None:
                reader.receive(packet)
                request = reader.next_request()
            while request is not None:
                looked_up = (request.get(key(name)) for name in (*ATTRIBUTES, "queue_id", "policy_context"))
                found.append((*request.values, *looked_up))
                request = reader.next_request()
    except ProtocolError as error:
        return found, str(error)
    return found, None


@given(st.lists(like_postfix | st.builds(mutated, like_postfix, mutations) | requests, max_size=6), places)
@example([POSTFIX, POSTFIX, POSTFIX[:-1] + b"policy_context=\n\n", POSTFIX], [])
@example([POSTFIX, asked(sasl_username="a\nsasl_sender="), POSTFIX], [])
@example([POSTFIX, POSTFIX.replace(b"\nstress=", b"\nstress\0="), POSTFIX], [])
@example([POSTFIX, asked(sender=b"x" * MAX_LINE)], [])
def test_to_know_a_request_by_its_layout_changes_nothing(packets: list[bytes], where: list[float]) -> None:
    """Whole requests, one a packet, are read faster; what is read, and what is refused, is the same."""
    for cut_packets in (packets, cut(b"".join(packets), where)):
        assert read_promptly(cut_packets) == _known(cut_packets, RequestReader())


def test_a_request_like_the_first_is_read_at_once() -> None:
    """Other values make no difference, a different tail neither; a name more or less does."""
    reader = RequestReader(Layouts())
    assert reader.only_request(POSTFIX) is None
    reader.receive(POSTFIX)
    assert reader.next_request() is not None
    for other in (
        {},
        {"sasl_username": "otto"},
        {"encryption_cipher": "none"},
        {"recipient_count": 7, "instance": "i"},
    ):
        request = reader.only_request(asked(**other))
        assert request is not None
        assert request.sasl_username == str(other.get("sasl_username", "anna@example.com")).encode()
    assert reader.only_request(asked(more="x")) is None
    assert reader.only_request(POSTFIX + POSTFIX) is None
    assert reader.only_request(POSTFIX[:-1]) is None


def test_a_request_behind_the_beginning_of_another_is_not_read_at_once() -> None:
    """What has come in before belongs to it."""
    reader = RequestReader(Layouts())
    reader.receive(POSTFIX + b"x=")
    assert reader.next_request() is not None
    assert reader.next_request() is None
    assert reader.only_request(POSTFIX) is None


def test_layouts_are_bounded() -> None:
    """However many orders of names peers think of, so many are remembered; all others are read the slower way."""
    layouts = Layouts()
    for number in range(2 * MAX_LAYOUTS):
        layouts.of(b"\n" + asked(**{f"x{number}": ""})[:-1])
    assert len(layouts._known) == MAX_LAYOUTS
    assert layouts.of(b"\n" + asked(x0="")[:-1]) is not None
    assert layouts.of(b"\n" + asked(y="")[:-1]) is None


@given(pieces, places)
def test_the_buffer_is_bounded(parts: list[str | bytes], where: list[float]) -> None:
    """No more is kept than one request may have and one packet."""
    reader = RequestReader()
    for packet in cut(joined(parts), where):
        reader.receive(packet)
        assert len(reader._buffer) <= MAX_REQUEST + len(packet)
        try:
            while reader.next_request():
                pass
        except ProtocolError:
            return


def test_nothing_is_kept_of_requests_that_are_done() -> None:
    """After a thousand requests, the last one begun, the buffer holds the part that has begun."""
    reader = RequestReader()
    reader.receive(GOOD * 1000 + b"req")
    while reader.next_request():
        pass
    assert reader._buffer == b"\nreq"


@pytest.mark.parametrize("end", [b"\n", b""], ids=["whole", "unfinished"])
def test_long_lines_that_fit_cost_no_more_than_short_ones(end: bytes) -> None:
    """Each byte is looked at once: a request of three lines at their limit takes microseconds."""
    line = b"x=" + b"y" * (MAX_LINE - 2) + b"\n"
    fastest = 1.0
    for _ in range(3):
        reader = RequestReader()
        began = time.thread_time()
        reader.receive(KIND + line * 3 + end)
        assert bool(reader.next_request()) == bool(end)
        fastest = min(fastest, time.thread_time() - began)
    assert fastest < 0.03
