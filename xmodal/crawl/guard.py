"""Which addresses may be connected to: the public internet, and networks that the config lists.

URLs come from posts, that is from strangers. What is judged is the address that the socket is about to connect to, on
every redirect too: a name that resolves to something else a moment later gains nothing.
"""

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_IN_THE_LOW_BITS = (
    IPv6Network("::/96"),  # IPv4-compatible; :: and ::1 are among them, as 0.0.0.0 and 0.0.0.1
    IPv6Network("::ffff:0:0/96"),  # IPv4-mapped
    IPv6Network("64:ff9b::/96"),  # NAT64
)
_6TO4 = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
_GLOBAL_UNICAST = IPv6Network("2000::/3")
# What Python, or an older one, takes for global although it is not: protocol assignments (with Oracle's metadata), the
# relays of 6to4, Azure's host agent, and documentation.
_INTERNAL = (
    *(IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"), IPv4Network("168.63.129.16/32")),
    IPv6Network("3fff::/20"),
)


class ForbiddenAddressError(OSError):
    """An address that we do not connect to."""


def embedded_ipv4(address: IPv6Address) -> list[IPv4Address]:
    """The IPv4 addresses that packets to this one may end at; empty for an address of IPv6 alone."""
    value = int(address)
    if any(address in network for network in _IN_THE_LOW_BITS):
        return [IPv4Address(value & 0xFFFFFFFF)]
    if address in _6TO4:
        return [IPv4Address(value >> 80 & 0xFFFFFFFF)]
    if address in _TEREDO:
        return [IPv4Address(value >> 64 & 0xFFFFFFFF), IPv4Address(~value & 0xFFFFFFFF)]
    return []


def is_public(address: Address) -> bool:
    """Whether an address is one host of the public internet; one that embeds others is what they are."""
    if address.is_multicast or any(address in network for network in _INTERNAL if network.version == address.version):
        return False
    if isinstance(address, IPv4Address):
        return address.is_global
    embedded = embedded_ipv4(address)
    if embedded:
        return all(is_public(one) for one in embedded)
    # Of the rest of IPv6, Python calls global whatever is in no list, such as the old site-local addresses.
    return address in _GLOBAL_UNICAST and address.is_global


def literal_address(host: str) -> Address | None:
    """The address that a URL's host is, if it is none to be looked up: also `2130706433`, `0x7f.1` and their like."""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def parse_networks(networks: Sequence[str]) -> list[Network]:
    """Networks in CIDR notation. Raises ValueError."""
    return [ip_network(network) for network in networks]


class AddressGuard:
    """Judges addresses: public ones, and those in `networks`, may be connected to."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks

    def allows(self, address: Address) -> bool:
        """Whether one may connect to it."""
        return is_public(address) or self.lists(address)

    def lists(self, address: Address) -> bool:
        """Whether it, or what it embeds, is in the networks that were listed."""
        embedded = embedded_ipv4(address) if isinstance(address, IPv6Address) else []
        return self._in_networks(address) or (bool(embedded) and all(self._in_networks(one) for one in embedded))

    def check(self, numeric: str) -> Address:
        """The address that a socket is about to connect to. Raises ForbiddenAddressError; also for what is no address.

        `connect` itself would read `127.1` or a name as an address, which nobody has judged.
        """
        try:
            address = ip_address(numeric.partition("%")[0])
        except ValueError:
            raise ForbiddenAddressError(f"{numeric}: not an address") from None
        if not self.allows(address):
            raise ForbiddenAddressError(f"{numeric}: not a public address")
        return address

    def _in_networks(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


class GuardedResolver(ThreadedResolver):
    """Looks names up, and leaves out the addresses that are not allowed.

    The socket is guarded anyhow. But a name that also has an internal address stays fetchable so, and one that has no
    other is told from a host that is down.
    """

    def __init__(self, guard: AddressGuard) -> None:
        super().__init__()
        self._guard = guard

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The allowed addresses of a name. Raises ForbiddenAddressError where it has others only."""
        found = await super().resolve(host, port, family)
        allowed = [one for one in found if self._guard.allows(ip_address(one["host"].partition("%")[0]))]
        if found and not allowed:
            raise ForbiddenAddressError(f"{host}: no public address")
        return allowed
