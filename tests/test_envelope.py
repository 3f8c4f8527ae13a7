"""Limits of clients, senders and bytes: what a message has, where that counts, and what is given back."""

from __future__ import annotations

import pytest

from policyd.limits import Limits, Rules
from policyd.wire import MAX_LINE
from tests.asking import ANNA, Connection, Mail, limit, override

MEBI = 1024**2


def send(mail: Mail, client: str = "192.0.2.7", sender: str | bytes = "anna@example.com", size: int | str = 0) -> str:
    """Send a message of one recipient; return the answer at DATA."""
    connection = mail.connection()
    connection.rcpt()
    answer = data(connection, client, sender, size)
    connection.close()
    return answer


def data(connection: Connection, client: str = "192.0.2.7", sender: str | bytes = "", size: int | str = 0) -> str:
    """Ask at DATA."""
    return connection.ask(protocol_state="DATA", client_address=client, sender=sender, size=size, recipient_count=1)


def eom(connection: Connection, size: int) -> str:
    """Ask at END-OF-MESSAGE."""
    return connection.ask(protocol_state="END-OF-MESSAGE", size=size, recipient_count=1, queue_id="4Xyz")


# --- clients


def test_one_client_too_many_is_refused() -> None:
    """Three addresses may send, and the fourth may not, while the three go on."""
    mail = Mail(limit("clients", 3, "1h"))
    for number in (1, 2, 3, 1, 2):
        assert send(mail, f"192.0.2.{number}") == "DUNNO"
    assert send(mail, "192.0.2.4") == "REJECT clients 4"
    assert send(mail, "192.0.2.3") == "DUNNO"
    assert mail.count() == 3


def test_a_client_that_is_refused_is_not_counted() -> None:
    """One who tries again every minute does not keep others out."""
    mail = Mail(limit("clients", 1, "1h"))
    send(mail, "192.0.2.1")
    for _ in range(59):
        mail.now += 60
        assert send(mail, "192.0.2.2").startswith("REJECT")
    mail.now += 60
    assert send(mail, "192.0.2.2") == "DUNNO"
    assert mail.count() == 1


def test_a_client_that_goes_on_sending_stays_in_the_window() -> None:
    """Each message renews its time."""
    mail = Mail(limit("clients", 1, "1h"))
    for _ in range(10):
        assert send(mail, "192.0.2.1") == "DUNNO"
        mail.now += 3599
        assert send(mail, "192.0.2.2") == "REJECT clients 2"
        assert send(mail, "192.0.2.1") == "DUNNO"


def test_a_client_counts_only_when_it_sends() -> None:
    """To log in, and to name recipients, is not to send."""
    mail = Mail(limit("clients", 1, "1h"))
    for number in range(5):
        connection = mail.connection()
        connection.ask(protocol_state="RCPT", client_address=f"192.0.2.{number}", recipient="r@remote.example")
        connection.close()
    assert mail.count() == 0


@pytest.mark.parametrize(
    "same",
    [
        ("192.0.2.7", "::ffff:192.0.2.7", "::FFFF:c000:0207"),
        ("2001:db8:1:2::3", "2001:db8:1:2:ffff::1", "2001:0DB8:1:2::3"),
        ("unknown", "UNKNOWN"),
    ],
)
def test_a_client_is_the_same_however_its_address_is_written(same: tuple[str, ...]) -> None:
    """IPv6 hosts count by /64, and IPv4 in IPv6 is IPv4."""
    mail = Mail(limit("clients", 1, "1h"))
    assert [send(mail, address) for address in same] == ["DUNNO"] * len(same)
    assert send(mail, "2001:db8:1:3::3") == "REJECT clients 2"


def test_no_client_is_none() -> None:
    """A request without an address counts for nothing, and passes."""
    mail = Mail(limit("clients", 1, "1h"))
    send(mail)
    assert send(mail, "") == "DUNNO"
    assert mail.count() == 1


# --- senders


def test_one_sender_too_many_is_refused() -> None:
    """Whoever sends under ever new addresses is stopped."""
    mail = Mail(limit("senders", 2, "1h"))
    assert [send(mail, sender=f"s{number}@example.com") for number in (1, 2, 3, 1)] == [
        *("DUNNO", "DUNNO", "REJECT senders 3", "DUNNO")
    ]


def test_senders_are_told_apart_without_regard_to_case() -> None:
    """Anna and anna are one, also where the name is no ASCII; two that are no UTF-8 are two."""
    mail = Mail(limit("senders", 9, "1h"))
    for sender in ("Anna@Example.com", "anna@example.com", "JÜRGEN@example.com", "jürgen@example.com"):
        send(mail, sender=sender)
    assert mail.count() == 2
    send(mail, sender=b"\xff@example.com")
    send(mail, sender=b"\xfe@example.com")
    assert mail.count() == 4


def test_the_null_sender_is_one_sender() -> None:
    """An account that returns mail uses it, and it is counted like any other."""
    mail = Mail(limit("senders", 1, "1h"))
    assert [send(mail, sender="") for _ in range(2)] == ["DUNNO"] * 2
    assert send(mail, sender="anna@example.com") == "REJECT senders 2"


@pytest.mark.parametrize("sender", ["x" * (MAX_LINE - 100), "{account}", "a=b\x1b[2J", "\ufeff", "-x"])
def test_any_sender_is_counted(sender: str) -> None:
    """However long or strange: it takes no more room than others, and is shown nowhere."""
    mail = Mail(limit("senders", 1, "1h", "REJECT {account} {limit} {count}"))
    assert send(mail, sender=sender) == "DUNNO"
    assert send(mail, sender=f"{sender}x") == f"REJECT {ANNA} senders 2"
    assert sender not in str(mail.account())


# --- both


def test_where_only_rcpt_is_wired_the_first_one_counts() -> None:
    """A message is looked at where messages are counted."""
    mail = Mail(limit("clients", 1, "1h"), limit("senders", 1, "1h"), data_seen=False)
    for client, answer in (("192.0.2.1", "DUNNO"), ("192.0.2.2", "REJECT clients 2"), ("192.0.2.1", "DUNNO")):
        connection = mail.connection()
        for _ in range(2):
            assert (
                connection.ask(
                    protocol_state="RCPT", client_address=client, sender="s@example.com", recipient=mail.new_recipient()
                )
                == answer
            )
    assert mail.counts() == [1, 1]


def test_what_another_limit_refuses_is_counted_in_none() -> None:
    """All limits are checked before anything is counted."""
    mail = Mail(limit("clients", 9, "1h"), limit("senders", 1, "1h"), limit("bytes", 1000, "1h"), limit("messages", 3))
    send(mail, "192.0.2.1", "a@example.com", 300)
    send(mail, "192.0.2.2", "b@example.com", 300)
    assert mail.counts() == [1, 1, 300, 1]
    send(mail, "192.0.2.3", "a@example.com", 701)
    assert mail.counts() == [1, 1, 300, 1]


def test_an_observed_limit_lets_more_pass_and_counts_none_of_them() -> None:
    """It reports what it would have done, each time."""
    mail = Mail(limit("clients", 1, "1h", observe=True), limit("messages", 9))
    for number in range(3):
        assert send(mail, f"192.0.2.{number}") == "DUNNO"
    assert mail.counts() == [1, 3]
    assert [fields["count"] for fields in mail.told("observed")] == [2, 2]


def test_an_override_frees_from_a_limit_and_counts_on() -> None:
    """The desk sees the number all the same."""
    mail = Mail(rules=Rules((limit("clients", 1, "1h"),), (override([ANNA], clients=None),)))
    assert [send(mail, f"192.0.2.{number}") for number in range(5)] == ["DUNNO"] * 5
    assert mail.count() == 5


def test_a_lower_maximum_lets_known_clients_go_on() -> None:
    """After a reload those in the window may send, and no new one until enough of them have left."""
    mail = Mail(limit("clients", 5, "1h"))
    for number in range(5):
        send(mail, f"192.0.2.{number}")
    mail.reload(limit("clients", 2, "1h"))
    assert send(mail, "192.0.2.4") == "DUNNO"
    assert send(mail, "192.0.2.9") == "REJECT clients 6"


def test_a_limit_that_locks_says_why() -> None:
    """The reason is for a person to read, and so are the numbers in the answer."""
    text = "REJECT 5.7.1 {account}: over {max} in {per}, at {count}"
    mail = Mail(
        limit("clients", 1, "1h", text, lock="24h"), limit("bytes", 2 * MEBI, "1d", text, name="size", lock="24h")
    )
    send(mail, "192.0.2.1")
    assert send(mail, "192.0.2.2") == f"REJECT 5.7.1 {ANNA}: over 1 in 1h, at 2"
    assert mail.account()["lock"]["reason"] == "more than 1 clients in 1h"
    assert mail.account()["lock"]["counts"] == "clients"
    mail.unlock()
    assert send(mail, "192.0.2.2", size=2 * MEBI + 120_000) == f"REJECT 5.7.1 {ANNA}: over 2M in 1d, at 2.1M"
    lock = mail.account()["lock"]
    assert (lock["reason"], lock["counts"], lock["count"]) == ("more than 2M bytes in 1d", "bytes", 2 * MEBI + 120_000)


def test_counts_start_anew_with_unlock_and_reset() -> None:
    """What was seen before is forgotten."""
    mail = Mail(limit("clients", 1, "1h"), limit("bytes", 100, "1h"))
    send(mail, "192.0.2.1", size=100)
    mail.reset()
    assert mail.counts() == [0, 0]
    assert send(mail, "192.0.2.2", size=100) == "DUNNO"


def test_a_message_that_ends_with_a_lock_gives_back_what_it_has() -> None:
    """The client of a message that is refused at END-OF-MESSAGE is not counted, unless another message has it."""
    mail = Mail(limit("clients", 9, "1h"), limit("senders", 9, "1h"), limit("bytes", 1000, "1h"))
    other, connection = mail.connection(), mail.connection()
    data(other, "192.0.2.1", "a@example.com", 10)
    data(connection, "192.0.2.2", "a@example.com", 100)
    assert mail.counts() == [2, 1, 110]
    mail.lock()
    assert eom(connection, 100).startswith("REJECT")
    assert mail.counts() == [1, 1, 10]


# --- bytes


def test_bytes_count_as_declared_at_data() -> None:
    """Without an END-OF-MESSAGE hook the declared size is all there is; undeclared, it is nothing."""
    mail = Mail(limit("bytes", 1000, "1h"))
    assert [send(mail, size=size) for size in (600, 0, 401, 400, 1)] == [
        *("DUNNO", "DUNNO", "REJECT bytes 1001", "DUNNO", "REJECT bytes 1001")
    ]
    assert mail.count() == 1000


@pytest.mark.parametrize("declared", [0, 1, 400, 999])
def test_the_true_size_takes_the_place_of_the_declared_one(declared: int) -> None:
    """More is counted, and less is given back."""
    mail = Mail(limit("bytes", 1000, "1h"), limit("messages", 9))
    connection = mail.connection()
    data(connection, size=declared)
    assert eom(connection, 500) == "DUNNO"
    assert mail.counts() == [500, 1]


def test_what_is_too_large_in_truth_is_refused_at_the_end() -> None:
    """Then all of the message is given back, and the next one has the room."""
    mail = Mail(limit("messages", 9), limit("clients", 9, "1h"), limit("bytes", 1000, "1h"), limit("recipients", 9))
    connection = mail.connection()
    connection.rcpt()
    assert data(connection, size=10) == "DUNNO"
    assert mail.counts() == [1, 1, 10, 1]
    assert eom(connection, 1001) == "REJECT bytes 1001"
    assert mail.counts() == [0, 0, 0, 0]
    assert mail.tallies() == {"refused": 1}
    assert send(mail, size=1000) == "DUNNO"


def test_what_is_too_large_in_truth_is_held_at_the_end() -> None:
    """An action that holds says so at END-OF-MESSAGE, and nothing is counted."""
    mail = Mail(limit("bytes", 1000, "1h", "HOLD {count}"))
    connection = mail.connection()
    data(connection)
    assert eom(connection, 1001) == "HOLD 1001"
    assert (mail.count(), mail.tallies()) == (0, {"held": 1})


def test_what_is_too_large_in_truth_locks() -> None:
    """A limit that locks does so at END-OF-MESSAGE, too."""
    mail = Mail(limit("bytes", 1000, "1h", lock="until-unlocked"))
    connection = mail.connection()
    data(connection)
    eom(connection, 1001)
    assert mail.locked()
    assert send(mail).startswith("REJECT")


def test_what_is_too_large_in_truth_is_only_warned_of() -> None:
    """Limits that let mail pass say so once: at DATA, or at END-OF-MESSAGE where it could not be known before."""
    mail = Mail(limit("bytes", 1000, "1h", "WARN {count}"), limit("bytes", 500, "1h", name="tried", observe=True))
    connection = mail.connection()
    assert data(connection, size=2000) == "WARN 1.9k"
    assert eom(connection, 2001) == "DUNNO"
    connection.rset()
    assert data(connection) == "DUNNO"
    assert eom(connection, 2049) == "WARN 2k"
    assert [fields["count"] for fields in mail.told("observed")] == [2000, 2049]
    assert mail.counts() == [0, 0]


def test_what_was_declared_too_large_counts_when_it_is_not() -> None:
    """An observed limit that had no room for what was declared has it for what came."""
    mail = Mail(limit("bytes", 1000, "1h", observe=True))
    connection = mail.connection()
    data(connection, size=2000)
    assert mail.count() == 0
    eom(connection, 300)
    assert mail.count() == 300


def test_where_only_end_of_message_is_wired_the_true_size_counts() -> None:
    """There is one size, and it is counted once."""
    mail = Mail(limit("bytes", 1000, "1h"))
    assert [eom(mail.connection(), size) for size in (700, 301, 300)] == ["DUNNO", "REJECT bytes 1001", "DUNNO"]
    assert mail.count() == 1000


def test_a_message_counted_at_rcpt_gets_its_true_size_at_the_end() -> None:
    """The first message of all is counted at RCPT, before it is known that END-OF-MESSAGE will be asked."""
    mail = Mail(limit("bytes", 1000, "1h"), data_seen=False)
    connection = mail.connection()
    connection.ask(protocol_state="RCPT", recipient="r@remote.example", size=100)
    assert mail.count() == 100
    assert eom(connection, 250) == "DUNNO"
    assert mail.count() == 250


def test_a_size_that_is_less_is_given_back_under_a_lowered_maximum() -> None:
    """Nobody is refused for sending less than was counted."""
    mail = Mail(limit("bytes", 1000, "1h"))
    connection = mail.connection()
    data(connection, size=900)
    mail.reload(limit("bytes", 100, "1h"))
    assert eom(connection, 800) == "DUNNO"
    assert mail.count() == 800


def test_end_of_message_that_comes_twice_counts_once() -> None:
    """A repeated request changes nothing."""
    mail = Mail(limit("bytes", 1000, "1h"))
    connection = mail.connection()
    data(connection, size=10)
    eom(connection, 600)
    assert connection.again() == "DUNNO"
    assert connection.resend().again() == "DUNNO"
    assert mail.count() == 600


@pytest.mark.parametrize("size", ["", "-5", "1e9", "9" * 19, "0x10", "५", " 5", "5 "])
def test_a_size_that_is_no_number_counts_nothing(size: str) -> None:
    """Postfix sends no such thing; whoever does has the mail that it declares nothing for."""
    mail = Mail(limit("bytes", 1000, "1h"))
    assert send(mail, size=size) == "DUNNO"
    assert mail.count() == 0


def test_it_is_told_that_true_sizes_are_not_known() -> None:
    """The desk sees that a hook is missing, where bytes are counted, until it is asked at that hook."""
    problem = "no END-OF-MESSAGE requests seen: bytes are counted as clients declare them, if they do"
    mail = Mail(limit("bytes", 1000, "1h"))
    send(mail)
    assert mail.desk.status(mail.now)["problems"] == [problem]
    mail.reload(limit("messages", 9))
    assert mail.desk.status(mail.now)["problems"] == []
    mail.reload(limit("bytes", 1000, "1h"))
    eom(mail.connection(), 10)
    assert mail.desk.status(mail.now)["problems"] == []


def test_bytes_leave_with_their_slice() -> None:
    """A message counts for the window, and up to a sixtieth of it longer; memory is that of the slices."""
    mail = Mail(limit("bytes", 10**9, "1h"))
    for _ in range(3600):
        send(mail, size=1000)
        mail.now += 1
    assert (mail.count() or 0) + 1000 >= 3_600_000
    account = mail.policy.accounts.get(ANNA, mail.now)
    (window,) = account.windows
    assert window is not None
    assert len(window.runs()[0]) <= 62
    mail.now += 3600 + 60
    assert mail.count() == 0


def test_accounts_are_sorted_by_what_they_have() -> None:
    """Who sends from most addresses, under most names, or most bytes, is asked for in the same way."""
    mail = Mail(limit("clients", 9, "1h"), limit("senders", 9, "1h"), limit("bytes", 10**6, "1h"))
    for user, number, size in (("anna", 2, 10), ("bert", 3, 0), ("cleo", 1, 99)):
        for place in range(number):
            connection = mail.connection(user)
            data(connection, f"192.0.2.{place}", f"s{5 - place * number}@example.com", size)
    assert [each["account"] for each in mail.desk.accounts(mail.now, "clients", 9)] == ["bert", "anna", "cleo"]
    assert [each["account"] for each in mail.desk.accounts(mail.now, "bytes", 2)] == ["cleo", "anna"]
    assert [each["account"] for each in mail.desk.accounts(mail.now, "senders", 9, 30.0)] == ["bert"]


def test_who_comes_near_to_a_maximum_is_warned_of() -> None:
    """By another client, another sender, or by the true size, which may be known only at the end."""
    rules = Rules(
        Limits([limit("clients", 5, "1h"), limit("senders", 5, "1h"), limit("bytes", 1000, "1h")]), warn_at=80
    )
    mail = Mail(rules=rules)
    for number in range(4):
        assert mail.told("near-limit") == []
        send(mail, f"192.0.2.{number}", f"s{number % 2}@example.com")
    assert [(told["limit"], told["count"]) for told in mail.told("near-limit")] == [("clients", 4)]
    connection = mail.connection()
    data(connection, "192.0.2.1", "s1@example.com")
    assert eom(connection, 800) == "DUNNO"
    assert [(told["limit"], told["count"]) for told in mail.told("near-limit")] == [("clients", 4), ("bytes", 800)]
