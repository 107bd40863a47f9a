import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import ConfigError
from xmodal.crawl.config import FetchConfig
from xmodal.crawl.guard import (
    AddressGuard,
    ForbiddenAddressError,
    embedded_ipv4,
    is_public,
    literal_address,
    parse_networks,
)

PUBLIC = [
    *("1.1.1.1", "8.8.8.8", "93.184.216.34", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0"),
    *("2606:4700:4700::1111", "2a00:1450:4001:81b::200e", "2001:4860:4860::8888"),
]
FORBIDDEN_IPV4 = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255"),
    *("127.0.0.1", "127.255.255.254", "169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255"),
    *(
        "192.0.0.1",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
    ),
    *("203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
]
FORBIDDEN_IPV6 = [
    *("::", "::1", "fe80::1", "fe80::1%1", "febf::1", "fec0::1", "fc00::1", "fd00:ec2::254", "fdff::1"),
    *("ff02::1", "ff0e::1", "100::1", "2001:db8::1", "3fff::1", "64:ff9b:1::a00:1", "4000::1", "1::1", "2001:2::1"),
]


def embeddings(address: str) -> list[str]:
    """An IPv4 address in every form of IPv6 that leads to it."""
    number = int(IPv4Address(address))
    inverted = number ^ 0xFFFFFFFF
    server = int(IPv4Address("65.54.227.120"))
    return [
        str(IPv6Address(value))
        for value in (
            number,
            0xFFFF << 32 | number,
            int(IPv6Address("64:ff9b::")) | number,
            0x2002 << 112 | number << 80 | 1,
            0x20010000 << 96 | server << 64 | inverted,
            0x20010000 << 96 | number << 64 | (server ^ 0xFFFFFFFF),
        )
    ]


@pytest.mark.parametrize("address", [*PUBLIC, *embeddings("8.8.8.8")])
def test_public_addresses_are_allowed(address):
    assert is_public(ip_address(address))
    assert AddressGuard([]).check(address) == ip_address(address)


@pytest.mark.parametrize(
    "address",
    [*FORBIDDEN_IPV4, *FORBIDDEN_IPV6, *(form for address in FORBIDDEN_IPV4 for form in embeddings(address))],
)
def test_all_others_are_forbidden_in_every_form(address):
    assert not is_public(ip_address(address.partition("%")[0]))
    with pytest.raises(ForbiddenAddressError):
        AddressGuard([]).check(address)


@given(number=st.integers(0, 2**32 - 1))
def test_an_address_within_another_is_judged_as_itself(number):
    address = IPv4Address(number)
    for form in map(IPv6Address, embeddings(str(address))):
        assert address in embedded_ipv4(form)
        assert is_public(form) == is_public(address)


@given(address=st.ip_addresses())
def test_what_is_public_is_global_and_no_multicast(address):
    if is_public(address):
        assert not address.is_multicast
        assert not address.is_loopback
        assert not address.is_link_local
        assert not address.is_unspecified
        assert not (isinstance(address, IPv6Address) and address.is_site_local)
        assert address.is_global or embedded_ipv4(address)


@pytest.mark.parametrize("text", ["", "localhost", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "8.8.8.8 ", "[::1]"])
def test_a_socket_is_not_given_what_it_would_have_to_read_as_an_address(text):
    with pytest.raises(ForbiddenAddressError):
        AddressGuard([]).check(text)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        *[(host, "127.0.0.1") for host in ("127.0.0.1", "2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "127.1")],
        *[("::ffff:a00:1", "::ffff:10.0.0.1"), ("::1", "::1"), ("134744072", "8.8.8.8")],
        *[(host, None) for host in ("localhost", "example.org", "1.2.3.4.5", "256.1.1.1", "0x7g.1", "a\0b", "")],
    ],
)
def test_a_host_that_is_an_address_in_any_notation_is_known_as_one(host, address):
    assert literal_address(host) == (ip_address(address) if address else None)


@given(number=st.integers(0, 2**32 - 1))
def test_every_notation_of_an_address_means_what_the_system_takes_it_for(number):
    first, rest = number >> 24, number & 0xFFFFFF
    for host in (str(number), hex(number), f"{first:#x}.{rest}", f"0{first:o}.{rest:#x}"):
        assert literal_address(host) == IPv4Address(socket.inet_aton(host)) == IPv4Address(number)


def test_listed_networks_are_allowed_in_every_form_and_no_others():
    guard = AddressGuard(parse_networks(["10.1.0.0/16", "fd00::/8"]))
    for address in ("10.1.2.3", "fd00:ec2::254", "8.8.8.8", *embeddings("10.1.2.3")[:4]):
        assert guard.check(address)
    for address in ("10.2.0.1", "127.0.0.1", "169.254.169.254", "fc00::1", *embeddings("10.2.0.1")):
        with pytest.raises(ForbiddenAddressError):
            guard.check(address)


@pytest.mark.parametrize("network", ["", "localhost", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "::1/8"])
def test_what_is_no_network_is_told_with_its_setting(network):
    with pytest.raises(ConfigError, match=r"allow_networks: ") as caught:
        FetchConfig(allow_networks=["127.0.0.0/8", network])
    assert repr(network) in str(caught.value)
