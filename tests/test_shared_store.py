"""The link and real stores: what becomes of calls when the store, the network or the rights to it fail."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import DefaultOpenSSLContextFactory

from policyd.actions import parse_action
from policyd.limits import Limit, Limits
from policyd.shared_calls import Target
from policyd.shared_store import AT_ONCE
from tests.daemon import Policyd, free_port
from tests.linking import CALL_PATIENCE, Linked, linked, linked_through_network
from tests.stores import Sentinel, Store, running
from tests.test_notifying import make_certificate, require_tls

LIMITS = Limits((Limit("foo", "messages", "1h", 3600.0, 5, parse_action("HOLD")),))

SLACK = 0.15
"""Seconds that a busy machine takes longer than it should."""


@pytest.fixture
def store() -> Iterator[Store]:
    """Return a store that the test may break."""
    with running() as found:
        yield found


def url(store: Store) -> str:
    """Return its address."""
    return f"redis://127.0.0.1:{store.port}/0"


def settle(linked: Linked) -> object:
    """Charge a message to Anna, and return the reply."""
    return linked.reply(linked.link.call(linked.calls.settle("anna", LIMITS, b"", Target(1, 1))))


def gives_up_in_time(linked: Linked) -> str:
    """Return why a call was given up, which it has to be in time."""
    begun = time.monotonic()
    found = linked.ask("GET", "x")
    assert time.monotonic() - begun < CALL_PATIENCE + SLACK
    assert isinstance(found, str)
    return found


def test_without_a_cluster_nothing_of_it_is_loaded() -> None:
    """A daemon that counts for itself pays nothing for those that share; Python tells what it loads."""
    with Policyd(environment={"PYTHONPROFILEIMPORTTIME": "1"}) as daemon:
        assert daemon.ask() == "DUNNO"
        loaded = set(re.findall(r"^import time:[^|]*\|[^|]*\| *(\S+)$", daemon.stderr, re.MULTILINE))
    assert {"policyd.policy", "policyd.config"} <= loaded
    assert {name for name in loaded if name.startswith(("policyd.shared", "txredisapi", "hiredis"))} == set()


def test_calls_are_answered(store: Store) -> None:
    """Many at a time, over one connection, each with its own reply."""
    with linked(url(store)) as far:
        far.connect()
        assert far.told == ["here"]
        replies: list[object] = []
        for number in range(500):
            far.link.command("ECHO", f"number {number}").addCallback(replies.append)
        far.turned.until(lambda: len(replies) == 500)
        assert replies == [b"number %d" % number for number in range(500)]
        assert [settle(far) for _ in range(5)] == [0] * 5
        assert settle(far) != 0


def test_large_replies_are_read(store: Store) -> None:
    """In the time that a call has."""
    with linked(url(store)) as far:
        far.connect()
        store.cli("EVAL", "for i = 1, 5000 do redis.call('HSET', 'h', i, string.rep('x', 50)) end", 0)
        found = far.ask("HGETALL", "h")
        assert isinstance(found, list)
        assert len(found) == 10_000


def test_another_database_is_used(store: Store) -> None:
    """The one that the address says."""
    with linked(f"redis://127.0.0.1:{store.port}/3") as far:
        far.connect()
        assert far.ask("SET", "x", "y") == b"OK"
    assert store.cli("GET", "x") is None


def test_a_unix_socket_is_used(store: Store) -> None:
    """As the address says."""
    with linked(f"unix://{store.socket}?db=1") as far:
        far.connect()
        assert far.ask("PING") == b"PONG"


def test_a_store_that_hangs_is_away_until_it_goes_on(store: Store) -> None:
    """Calls fail in time, and then at once; each side is told once."""
    with linked(url(store)) as far:
        far.connect()
        store.stop()
        assert gives_up_in_time(far) == "away: no answer within 100 ms"
        begun = time.monotonic()
        for _ in range(100):
            assert far.ask("GET", "x") == "away: no answer within 100 ms"
        assert time.monotonic() - begun < 1
        store.cont()
        far.until_here()
        assert far.told == ["here", "away: no answer within 100 ms", "here"]
        assert far.ask("PING") == b"PONG"


def test_a_store_that_hangs_for_long_is_connected_to_anew(store: Store) -> None:
    """A new connection, which it accepts without a word, is none before it has answered."""
    with linked(url(store)) as far:
        far.connect()
        store.stop()
        gives_up_in_time(far)
        far.turned.until(lambda: far.link._wire is None)
        assert not far.link.here
        store.cont()
        far.until_here()


def test_a_store_that_is_gone_is_away_until_it_is_back(store: Store) -> None:
    """What waits fails when it goes."""
    with linked(url(store)) as far:
        far.connect()
        store.stop()
        call = far.link.call(far.calls.settle("anna", LIMITS, b"", Target(1, 1)))
        store.kill()
        assert far.reply(call) == "away: the connection was lost"
        far.until_away("it refuses the connection")
        store.start()
        far.until_here()
        assert settle(far) == 0
        assert far.told == ["here", "away: the connection was lost", "here"]


def test_a_store_that_is_not_there_at_the_start_is_waited_for(store: Store) -> None:
    """Nothing else waits."""
    store.kill()
    with linked(url(store)) as far:
        far.link.start()
        far.until_away("it refuses the connection")
        assert gives_up_in_time(far) == "away: it refuses the connection"
        store.start()
        far.until_here()
        assert far.told == ["away: it refuses the connection", "here"]


def test_a_name_that_nobody_knows_is_looked_up_again_and_again() -> None:
    """What is wrong is said."""
    with linked("redis://store.invalid:6379") as far:
        far.link.start()
        far.until_away("store.invalid")


def test_a_password_is_read_anew_for_each_connection(store: Store, tmp_path: Path) -> None:
    """Who mends it has to restart nothing."""
    store.cli("CONFIG", "SET", "requirepass", "right")
    password = tmp_path / "password"
    with linked(url(store), password.read_bytes) as far:
        far.link.start()
        far.until_away("the password cannot be read: [Errno 2] No such file or directory")
        password.write_bytes(b"wrong")
        far.until_away("it says WRONGPASS")
        password.write_bytes(b"right")
        far.until_here()


def test_a_store_that_wants_a_password_is_away_without_one(store: Store) -> None:
    """Also where it begins to want one."""
    with linked(url(store)) as far:
        far.connect()
        store.cli("CONFIG", "SET", "requirepass", "right")
        store.cli("CLIENT", "KILL", "TYPE", "normal")
        far.until_away("it says NOAUTH")
        store.cli("CONFIG", "SET", "requirepass", "")
        far.until_here()


def test_a_user_without_rights_is_away(store: Store) -> None:
    """Until it has them."""
    store.cli("ACL", "SETUSER", "anna", "on", ">secret", "~policyd:*", "+@all", "-eval", "-evalsha")
    with linked(url(store).replace("//", "//anna@"), lambda: b"secret") as far:
        far.link.start()
        far.until_away("it says NOPERM")
        store.cli("ACL", "SETUSER", "anna", "+@all")
        far.until_here()
        assert settle(far) == 0


def test_a_store_that_reads_its_data_is_away() -> None:
    """It has all of it or none."""
    slow = (
        "--key-load-delay",
        "5000",
        "--loading-process-events-interval-bytes",
        "1024",
        "--enable-debug-command",
        "yes",
    )
    with running(*slow) as store, linked(url(store)) as far:
        store.cli("EVAL", "for i = 1, 300 do redis.call('SET', i, string.rep(i, 1000)) end", 0)
        far.connect()
        client = store.client()
        reload = threading.Thread(target=client.ask, args=("DEBUG", "RELOAD"))
        reload.start()
        far.turned.until(lambda: "LOADING" in str(far.ask("GET", "x")))
        assert not far.link.here
        far.until_here()
        reload.join()
        client.close()


def test_a_replica_is_away(store: Store) -> None:
    """It takes no counts; where it becomes the master, it is here."""
    with linked(url(store)) as far:
        far.connect()
        store.cli("REPLICAOF", "127.0.0.1", free_port())
        assert "away: it says READONLY" in str(settle(far))
        far.until_away("it says READONLY")
        store.cli("REPLICAOF", "NO", "ONE")
        far.until_here()
        assert settle(far) == 0


def test_a_full_store_is_away(store: Store) -> None:
    """Until there is room."""
    with linked(url(store)) as far:
        far.connect()
        store.cli("CONFIG", "SET", "maxmemory", "1")
        # A script may finish what it has begun.
        far.turned.until(lambda: "away: it says OOM" in str(settle(far)))
        far.turned.until(lambda: far.link._again is None)
        far.until_away("it says OOM")
        store.cli("CONFIG", "SET", "maxmemory", "0")
        far.until_here()
        assert far.told[-1] == "here"
        assert len(far.told) == 3


def test_a_script_that_the_store_has_forgotten_is_brought_along(store: Store) -> None:
    """Nobody notices."""
    with linked(url(store)) as far:
        far.connect()
        assert settle(far) == 0
        store.cli("SCRIPT", "FLUSH")
        assert settle(far) == 0
        assert far.told == ["here"]


def test_wrong_data_under_our_keys_is_one_accounts_trouble(store: Store) -> None:
    """Others are answered."""
    with linked(url(store)) as far:
        far.connect()
        settle(far)
        store.cli("DEL", "policyd:{anna}:w:foo:messages")
        store.cli("SET", "policyd:{anna}:w:foo:messages", "what is this")
        assert "away: it says WRONGTYPE" in str(settle(far))
        assert far.link.here
        assert "WRONGTYPE" in far.link.problem


def test_a_slow_network_is_waited_for_no_longer_than_is_said(store: Store) -> None:
    """What comes too late is dropped, and who asks later gets the own reply."""
    with linked_through_network(store) as (far, network):
        network.delay = 0.25
        assert gives_up_in_time(far) == "away: no answer within 100 ms"
        far.turned.until(lambda: far.link._again is None)
        network.delay = 0.0
        far.until_here()
        assert far.ask("ECHO", "mine") == b"mine"


def test_a_network_that_loses_all_is_noticed(store: Store) -> None:
    """The connection looks open, and is replaced."""
    with linked_through_network(store) as (far, network):
        network.silent = True
        assert gives_up_in_time(far) == "away: no answer within 100 ms"
        wire = far.link._wire
        far.turned.until(lambda: far.link._wire is not wire)
        network.silent = False
        far.until_here()


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 100_000, b"$99999999999\r\n"])
def test_garbage_is_hung_up_on(store: Store, garbage: bytes) -> None:
    """Whatever it is, in time."""
    with linked_through_network(store) as (far, network):
        network.garbage = garbage
        assert gives_up_in_time(far).startswith("away: what came from it is no reply: ")
        network.garbage = b""
        far.until_here()


def test_a_reply_may_be_cut_anywhere(store: Store) -> None:
    """The call fails at once, and no other gets the rest."""
    with linked_through_network(store) as (far, network):
        for cut in (0, 1, 9):
            far.until_here()
            network.cut = cut
            assert far.ask("ECHO", "nothing") == "away: the connection was lost"
        far.until_here()
        assert far.ask("ECHO", "mine") == b"mine"


def secured(store_port: int, folder: Path) -> Store:
    """Return a store that speaks TLS, too, as localhost."""
    files = ("--tls-cert-file", str(folder / "cert.pem"), "--tls-key-file", str(folder / "key.pem"))
    return Store("--tls-port", str(store_port), *files, "--tls-auth-clients", "no")


@pytest.mark.parametrize(
    ("trusted", "host", "told"),
    [
        (True, "localhost", ""),
        (False, "localhost", "certificate verify failed"),
        (True, "127.0.0.1", "127.0.0.1"),
    ],
)
def test_a_certificate_has_to_be_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, trusted: bool, host: str, told: str
) -> None:
    """Signed by someone whom the system knows, for the host of the address."""
    require_tls()
    make_certificate(tmp_path)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    port = free_port()
    store = secured(port, tmp_path)
    try:
        with linked(f"rediss://{host}:{port}/0") as far:
            if told:
                far.link.start()
                far.until_away(told)
            else:
                far.connect()
                assert far.ask("PING") == b"PONG"
                many = [far.link.command("ECHO", number) for number in range(3 * AT_ONCE)]
                assert [far.reply(call) for call in many] == [b"%d" % number for number in range(3 * AT_ONCE)]
                store.kill()
                far.until_away("")
                store.start()
                far.until_here()
    finally:
        store.close()


def test_sentinel_says_where_the_store_is() -> None:
    """And after a failover, where it is then."""
    with running() as first, running("--replicaof", "127.0.0.1", str(first.port)) as second:
        watch = Sentinel(first)
        try:
            nowhere = free_port()
            with linked(f"sentinel://127.0.0.1:{nowhere},127.0.0.1:{watch.port}/mymaster/0") as far:
                far.connect()
                assert settle(far) == 0
                far.turned.until(lambda: "slave0:" in str(first.cli("INFO", "replication")))
                first.kill()
                far.until_away("")
                far.until_here()
                assert watch.master() == second.port
                assert settle(far) == 0
        finally:
            watch.close()


def test_a_sentinel_that_does_not_know_the_store_says_so(store: Store) -> None:
    """With its name."""
    watch = Sentinel(store)
    try:
        with linked(f"sentinel://127.0.0.1:{watch.port}/another") as far:
            far.link.start()
            far.until_away(f"no Sentinel knows where it is: 127.0.0.1:{watch.port}: it knows no another")
    finally:
        watch.close()


def test_a_sentinel_may_want_the_password_as_well(store: Store) -> None:
    """The store's own; without it the Sentinel's refusal is told."""
    watch = Sentinel(store)
    place = f"sentinel://127.0.0.1:{watch.port}/mymaster"
    try:
        for process in (store, watch):
            process.cli("ACL", "SETUSER", "default", "resetpass", ">right")
        with linked(place) as far:
            far.link.start()
            far.until_away("it says NOAUTH")
        with linked(place, lambda: b"right") as far:
            far.connect()
            assert settle(far) == 0
    finally:
        watch.close()


class _Watch(Protocol):
    """A Sentinel that knows one store, to all who ask anything."""

    transport: Any

    def __init__(self, port: int) -> None:
        self._reply = b"*2\r\n$9\r\nlocalhost\r\n$%d\r\n%d\r\n" % (len(str(port)), port)

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(self._reply)


def test_sentinel_and_the_store_are_spoken_to_by_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Sentinel calls the store by the name in its certificate."""
    require_tls()
    make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    port, watch_port = free_port(), free_port()
    store = secured(port, tmp_path)
    try:
        with linked(f"sentinels://localhost:{watch_port}/mymaster") as far:
            context = DefaultOpenSSLContextFactory(str(tmp_path / "key.pem"), str(tmp_path / "cert.pem"))
            factory = Factory.forProtocol(lambda: _Watch(port))
            far.turned.reactor.listenSSL(watch_port, factory, context, interface="127.0.0.1")
            far.connect()
            assert settle(far) == 0
    finally:
        store.close()


def test_news_are_heard_again_after_the_store_was_gone(store: Store) -> None:
    """Who listens is told, to ask for what it has missed."""
    with linked(url(store)) as far:
        news: list[tuple[bytes, bytes]] = []
        subscribed: list[bool] = []
        far.link.subscribe(["news"], lambda *message: news.append(message), lambda: subscribed.append(True))
        far.connect()
        far.turned.until(lambda: subscribed)
        assert far.ask("PUBLISH", "news", "a") == 1
        far.turned.until(lambda: news)
        store.restart(keep=False)
        far.turned.until(lambda: len(subscribed) == 2)
        far.until_here()
        assert far.ask("PUBLISH", "news", "b") == 1
        far.turned.until(lambda: len(news) == 2)
        assert news == [(b"news", b"a"), (b"news", b"b")]


def test_a_store_that_hangs_is_noticed_by_who_listens(store: Store) -> None:
    """Without a call that would notice."""
    with linked(url(store)) as far:
        subscribed: list[bool] = []
        far.link.subscribe(["news"], lambda *_: None, lambda: subscribed.append(True))
        far.connect()
        far.turned.until(lambda: subscribed)
        store.stop()
        far.turned.until(lambda: far.link._news[0]._wire is None)
        store.cont()
        far.turned.until(lambda: len(subscribed) == 2)
