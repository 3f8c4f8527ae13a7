"""The store that tests run of their own: it hangs, dies and comes back when it is told to."""

from __future__ import annotations

import contextlib

import pytest

from tests.stores import Sentinel, Store, StoreError, running


def test_a_store_comes_back_with_its_data_or_without() -> None:
    """At the same addresses, by the same commands."""
    with running() as store:
        store.cli("SET", "key", "value")
        store.restart(keep=True)
        assert store.cli("GET", "key") == b"value"
        store.restart(keep=False)
        assert store.cli("GET", "key") is None


def test_a_store_that_hangs_answers_when_it_goes_on() -> None:
    """Nothing is lost meanwhile."""
    with running() as store:
        client = store.client()
        store.stop()
        client.send(b"PING\r\n")
        store.cont()
        assert client.reply() == b"PONG"
        with pytest.raises(StoreError, match="unknown command"):
            store.cli("NOTHING")


def test_a_sentinel_names_the_store() -> None:
    """It is asked for the address by a name."""
    store = Store()
    with contextlib.closing(store), contextlib.closing(Sentinel(store)) as sentinel:
        assert sentinel.master() == store.port
