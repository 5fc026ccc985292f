"""Where a peer may send a node: tables of hosts, and real connections that must never be opened."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.addresses import PublicResolver, check_address, check_host, is_host, public_socket
from storage.errors import ForbiddenAddress, StorageError, Unavailable
from tests.canary import Canary
from tests.hosts import FORBIDDEN, INNER_NAMES, NAMES, NOT_HOSTS, ODD_LITERALS, PUBLIC, Answers


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_connected_to(address: str) -> None:
    check_address(address)
    check_host(address, 443)


@pytest.mark.parametrize(("kind", "address"), [(kind, a) for kind, group in FORBIDDEN.items() for a in group])
def test_no_other_address_may_be_connected_to(kind: str, address: str) -> None:
    with pytest.raises(ForbiddenAddress):
        check_address(address)
    with pytest.raises(ForbiddenAddress):
        check_host(address, 443)


@pytest.mark.parametrize("literal", ODD_LITERALS)
def test_an_odd_way_of_writing_an_address_is_refused(literal: str) -> None:
    assert not is_host(literal)
    with pytest.raises(ForbiddenAddress):
        check_address(literal)
    with pytest.raises(ForbiddenAddress):
        check_host(literal, 443)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_may_be_asked_for(name: str) -> None:
    assert is_host(name)
    check_host(name, 443)


@pytest.mark.parametrize("name", NOT_HOSTS)
def test_what_is_no_host_name_is_refused(name: str) -> None:
    assert not is_host(name)
    with pytest.raises(ForbiddenAddress, match="is not a host"):
        check_host(name, 443)


@pytest.mark.parametrize("name", INNER_NAMES)
def test_a_name_of_a_local_network_is_a_host_but_no_peer_may_name_it(name: str) -> None:
    assert is_host(name)
    with pytest.raises(ForbiddenAddress, match="public internet"):
        check_host(name, 443)


@pytest.mark.parametrize("port", [443, 1024, 7480, 8443, 9000, 65535])
def test_a_bucket_may_listen_on_these_ports(port: int) -> None:
    check_host("example.com", port)


@pytest.mark.parametrize("port", [-1, 0, 1, 22, 25, 53, 80, 110, 444, 1023, 65536, 10**9])
def test_nobody_is_sent_to_knock_at_other_ports(port: int) -> None:
    with pytest.raises(ForbiddenAddress, match="port"):
        check_host("example.com", port)


def test_only_the_canonical_form_of_an_address_is_a_host() -> None:
    assert [is_host(text) for text in ("127.0.0.1", "::1", "2001:db8::1")] == [True] * 3
    assert [is_host(text) for text in ("2001:DB8::1", "2001:db8:0:0::1", "::ffff:7f00:1", "::ffff:127.0.0.1")] == [
        False
    ] * 4


# Written independently of the table in the code, from the flags in Python's own ipaddress module.
def _python_says_public(address: IPv4Address | IPv6Address) -> bool:
    return address.is_global and not address.is_multicast and not address.is_reserved


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.ip_addresses()
    | st.sampled_from(["10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"]).flatmap(
        lambda network: st.ip_addresses(network=IPv4Network(network))
    )
    | st.sampled_from(["::/96", "::ffff:0:0/96", "fe80::/10", "fc00::/7", "2001::/23", "2002::/16"]).flatmap(
        lambda network: st.ip_addresses(network=IPv6Network(network))
    )
)
def test_nothing_passes_that_the_standard_library_holds_for_special(address: IPv4Address | IPv6Address) -> None:
    try:
        check_address(str(address))
    except ForbiddenAddress:
        return
    assert _python_says_public(address)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.text(max_size=80), st.integers())
def test_any_text_is_a_host_or_refused_and_nothing_else_happens(text: str, port: int) -> None:
    try:
        check_host(text, port)
    except ForbiddenAddress:
        return
    assert is_host(text)
    assert text.isascii()


def resolved(*answers: list[str]) -> list[str]:
    found = asyncio.run(PublicResolver(Answers(*answers)).resolve("bucket.example.com", 443))
    return [result["host"] for result in found]


def test_the_resolver_leaves_out_what_is_not_public() -> None:
    assert resolved(["127.0.0.1", "1.1.1.1", "::1", "2606:4700::1", "fe80::1%2", "10.0.0.1"]) == [
        "1.1.1.1",
        "2606:4700::1",
    ]


def test_a_name_with_no_public_address_is_refused() -> None:
    with pytest.raises(ForbiddenAddress, match="not on the public internet") as refused:
        resolved(["127.0.0.1", "::1"])
    assert "127.0.0.1" not in str(refused.value)  # a peer must not learn from it what names of our network stand for


def test_a_name_with_a_thousand_addresses_is_not_tried_a_thousand_times() -> None:
    assert resolved([f"1.1.{i // 250}.{i % 250 + 1}" for i in range(1000)]) == [f"1.1.0.{i}" for i in range(1, 9)]


def test_the_resolver_is_not_asked_for_a_name_that_is_refused() -> None:
    answers = Answers(["1.1.1.1"])
    with pytest.raises(ForbiddenAddress):
        asyncio.run(PublicResolver(answers).resolve("localhost", 443))
    assert answers.asked == []


def test_a_socket_is_made_for_public_addresses_only() -> None:
    public_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("1.1.1.1", 443))).close()
    for address in (("127.0.0.1", 443), ("::1", 443, 0, 0), ("fe80::1", 443, 0, 2), ("localhost", 443)):
        with pytest.raises(PermissionError):
            public_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", address))


# --- real sessions ----------------------------------------------------------------------------------------

Guard = Callable[[AbstractResolver], aiohttp.TCPConnector]


def guarded(inner: AbstractResolver) -> aiohttp.TCPConnector:
    """As storage/addresses.py says a session for peers is made."""
    return aiohttp.TCPConnector(resolver=PublicResolver(inner), socket_factory=public_socket)


async def request(connector: aiohttp.TCPConnector, url: str) -> None:
    timeout = aiohttp.ClientTimeout(total=2.0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, session.get(url):
        pass


def refused(work: Awaitable[None]) -> None:
    async def scenario() -> None:
        with pytest.raises((StorageError, aiohttp.ClientError, ValueError, TimeoutError)):
            await work

    asyncio.run(scenario())


def test_the_canary_sings_when_nothing_guards_the_session(canary: Canary) -> None:
    async def scenario() -> None:
        for host in ("127.0.0.1", "127.0.0.2", "localhost.example.com"):
            connector = aiohttp.TCPConnector(resolver=Answers(["127.0.0.1"]))
            async with aiohttp.ClientSession(connector=connector) as session:
                with pytest.raises(TimeoutError):
                    await session.get(f"http://{host}:{canary.port}/", timeout=aiohttp.ClientTimeout(sock_read=0.05))

    asyncio.run(scenario())
    assert canary.visits() == ["127.0.0.1", "127.0.0.1", "127.0.0.2"]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.2",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "[::]",
        "[::ffff:7f00:1]",
        "2130706433",
        "127.1",
        "localhost",
        "0x7f000001",
        "0177.0.0.1",
        "[::1%25lo]",
        "[64:ff9b::7f00:1]",
        "127.0.0.1.",
        "LOCALHOST",
        "①②⑦.0.0.1",
    ],
)
def test_a_literal_that_aiohttp_does_not_resolve_is_stopped_at_the_socket(
    canary: Canary, host: str, scheme: str
) -> None:
    async def scenario() -> None:
        await request(guarded(Answers(["127.0.0.1"])), f"{scheme}://{host}:{canary.port}/")

    refused(scenario())
    assert canary.visits() == []


def test_aiohttp_asks_no_resolver_for_a_literal(canary: Canary) -> None:
    """Why the socket factory is needed: should this fail one day, it still does no harm."""
    answers = Answers(["1.1.1.1"])

    async def scenario() -> None:
        await request(guarded(answers), f"http://127.0.0.1:{canary.port}/")

    refused(scenario())
    assert answers.asked == []


def test_a_public_name_with_an_inner_address_is_not_connected_to(canary: Canary) -> None:
    for answer in (["127.0.0.1"], ["::1"], ["127.0.0.2", "::1", "0.0.0.0"], ["::ffff:127.0.0.1"]):

        async def scenario(answer: list[str] = answer) -> None:
            await request(guarded(Answers(answer)), f"http://bucket.example.com:{canary.port}/")

        refused(scenario())
    assert canary.visits() == []


def test_a_name_that_is_rebound_after_the_check_is_not_connected_to(canary: Canary) -> None:
    """The first answer is public, all later ones are not: who checks one and connects to another is caught."""

    async def scenario() -> None:
        answers = Answers(["2606:4700::1", "192.0.2.1"], ["127.0.0.1"], ["::1"])
        connector = aiohttp.TCPConnector(
            resolver=PublicResolver(answers), socket_factory=public_socket, use_dns_cache=False
        )
        async with aiohttp.ClientSession(connector=connector) as session:
            for _ in range(3):
                with pytest.raises((Unavailable, aiohttp.ClientError, TimeoutError)):
                    await session.get(
                        f"http://bucket.example.com:{canary.port}/", timeout=aiohttp.ClientTimeout(total=0.2)
                    )
        assert len(answers.asked) == 3

    asyncio.run(scenario())
    assert canary.visits() == []


def test_a_resolver_that_escapes_the_filter_is_stopped_at_the_socket(canary: Canary) -> None:
    async def scenario() -> None:
        connector = aiohttp.TCPConnector(resolver=Answers(["127.0.0.1", "::1"]), socket_factory=public_socket)
        await request(connector, f"http://bucket.example.com:{canary.port}/")

    refused(scenario())
    assert canary.visits() == []
