"""Addresses and networks that --client and --except-client name."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.ctl_clients import chosen, network


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("192.0.2.7", "192.0.2.7/32"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::/0", "::/0"),
    ],
)
def test_addresses_and_networks_are_read(text: str, same: str) -> None:
    """An address is a network of one, and one that is mapped into IPv6 is what it is."""
    assert network(text) == ip_network(same)


@pytest.mark.parametrize("text", ["", "x", "192.0.2.7/24", "192.0.2.0/33", "192.0.2", "1", " 192.0.2.1", "::/129"])
def test_what_is_neither_is_refused(text: str) -> None:
    """A network whose address has bits beyond its mask may be a slip: nothing is guessed."""
    with pytest.raises(ValueError, match=r"."):
        network(text)


@pytest.mark.parametrize("client", ["", "unknown", "x\n", "\udc80"])
def test_a_client_without_an_address_is_nowhere(client: str) -> None:
    """It is asked for only where no network is."""
    assert not chosen(["0.0.0.0/0", "::/0"], None)(client)
    assert chosen(None, ["0.0.0.0/0", "::/0"])(client)
    assert chosen(None, None)(client)


SMALL = st.integers(0, 15).map(lambda low: f"192.0.2.{low}")
NETWORKS = st.lists(
    SMALL | st.sampled_from(["192.0.2.0/29", "192.0.2.8/30", "::ffff:192.0.2.12/126", "::1"]), max_size=3
)


@given(SMALL, st.booleans(), NETWORKS, NETWORKS)
def test_one_of_those_wanted_and_none_of_the_others(
    client: str, mapped: bool, wanted: list[str], unwanted: list[str]
) -> None:
    """As a person would go through the lists, address for address."""
    plain = {"::ffff:192.0.2.12/126": "192.0.2.12/30", "::1": "127.0.0.1"}

    def listed(names: list[str]) -> bool:
        return any(IPv4Address(client) in list(IPv4Network(plain.get(name, name))) for name in names)

    expected = (listed(wanted) or not wanted) and not listed(unwanted)
    assert chosen(wanted, unwanted)(f"::ffff:{client}" if mapped else client) == expected
