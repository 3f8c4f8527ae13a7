"""Two submission servers, each a real Postfix with a policyd of its own, and one store that both daemons share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.daemon import Policyd
from tests.postfix import ACCEPTED, PrivatePostfix, asking, queued, require_postfix
from tests.stores import Store, running
from tests.waiting import until

ANNA = "anna@example.com"
LIMIT = {
    "count": "messages",
    "per": "1h",
    "max": 5,
    "action": "REJECT 5.7.1 Account {account} is locked",
    "lock": "until-unlocked",
}
Server = tuple[PrivatePostfix, Policyd]


@pytest.fixture
def store() -> Iterator[Store]:
    """Return a store of the test's own."""
    with running() as found:
        yield found


@pytest.fixture
def servers(store: Store) -> Iterator[list[Server]]:
    """Return two submission servers that know of each other."""
    require_postfix()
    with ExitStack() as stack:
        found = []
        for name in ("mail1", "mail2"):
            cluster = {"url": f"redis://127.0.0.1:{store.port}/0", "node": name}
            daemon = stack.enter_context(Policyd({"limits": {"hourly": LIMIT}, "cluster": cluster}))
            settings = asking(daemon.endpoint, ("RCPT", "DATA"))
            found.append((stack.enter_context(PrivatePostfix(settings)), daemon))
        until(lambda: all(len(daemon.ctl_json("status")["cluster"]["nodes"]) == 2 for _, daemon in found))
        yield found


def passed(server: Server, number: int) -> int:
    """Submit messages to a server; return how many it took."""
    with server[0].smtp(ANNA) as session:
        return sum(1 for _ in range(number) if session.message()[-1].startswith("250 "))


def test_an_account_has_its_limit_once_and_is_locked_everywhere(servers: list[Server]) -> None:
    """What goes through either server counts for both; unlocked at one, it sends through the other."""
    one, two = servers
    assert passed(one, 3) == 3
    assert passed(two, 3) == 2
    with two[0].smtp(ANNA) as session:
        assert any("Account anna@example.com is locked" in reply for reply in session.message())
    until(lambda: [account["account"] for account in one[1].ctl_json("locked")] == [ANNA])
    assert passed(one, 1) == 0
    one[1].ctl("unlock", ANNA)
    until(lambda: two[1].ctl_json("locked") == [])
    assert passed(two, 1) == 1
    assert one[1].counts(ANNA)["hourly"] == 1


def test_no_mail_stops_when_the_store_does(store: Store, servers: list[Server]) -> None:
    """Each server goes by its own counts meanwhile, and what it let through counts for both afterwards."""
    one, two = servers
    assert passed(one, 1) == 1
    store.stop()
    with one[0].smtp(ANNA) as session:
        session.mail()
        assert session.rcpt() == ACCEPTED
        assert queued(session.data())
    assert passed(two, 2) == 2
    store.cont()
    until(lambda: two[1].counts(ANNA)["hourly"] == 4)
    assert passed(two, 2) == 1
