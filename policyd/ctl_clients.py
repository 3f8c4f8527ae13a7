"""Which clients are meant: addresses and networks as `--client` and `--except-client` name them, without I/O.

An IPv4 address that is written as IPv6 (`::ffff:192.0.2.7`) is the IPv4 address, and so is a network of such.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

Network = IPv4Network | IPv6Network

_MAPPED = IPv6Network("::ffff:0:0/96")


def network(text: str) -> Network:
    """Return the network that a text names, or the one of a single address; raises ValueError for what is neither."""
    found = ip_network(text)
    if isinstance(found, IPv6Network) and found.prefixlen >= _MAPPED.prefixlen and found.subnet_of(_MAPPED):
        address = int(found.network_address) - int(_MAPPED.network_address)
        return IPv4Network((address, found.prefixlen - _MAPPED.prefixlen))
    return found


def chosen(wanted: Sequence[str] | None, unwanted: Sequence[str] | None) -> Callable[[str], bool]:
    """Return what tells whether a client is meant: one of `wanted`, or any where there are none, and not `unwanted`.

    A client whose address is not known is in no network. Raises ValueError for what is neither address nor network.
    """
    inside, outside = [network(text) for text in wanted or ()], [network(text) for text in unwanted or ()]
    known: dict[str, bool] = {}

    def is_meant(client: str) -> bool:
        if client not in known:
            known[client] = (not inside or _within(client, inside)) and not _within(client, outside)
        return known[client]

    return is_meant


def _within(client: str, networks: Sequence[Network]) -> bool:
    try:
        address = network(client)
    except ValueError:
        return False
    return any(address.network_address in one for one in networks)
