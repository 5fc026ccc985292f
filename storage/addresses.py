"""Which hosts a node may connect to because a peer said so: only names and addresses of the public internet.

A peer chooses the host name, the DNS server that answers for it, and what that answers at any moment. So a name is
checked when it is read (`check_host`), and every address once more when a socket is made for it (`public_socket`):
what is checked there is what is connected to. A session for peers' hosts needs all three:

    TCPConnector(resolver=PublicResolver(ThreadedResolver()), socket_factory=public_socket)

and `check_host` before each request. aiohttp asks no resolver for a literal address, and follows redirects unless told
not to; the socket factory holds in those cases too.
"""

from __future__ import annotations

import errno
import re
import socket
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network

from aiohttp import AddrInfoType
from aiohttp.abc import AbstractResolver, ResolveResult

from storage.errors import ForbiddenAddress

HTTPS_PORT = 443
_FIRST_FREE_PORT = 1024
_LAST_PORT = 65535

_MOST_ADDRESSES = 8
"""How many addresses of one name are tried: each may be a connection that never opens."""

# The IANA registries of special-purpose addresses, and what clouds answer on only from inside. A table of our own,
# because that of the standard library differs from one version of Python to the next.
_FORBIDDEN_4 = tuple(
    (IPv4Network(network), what)
    for network, what in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by the customers of a carrier"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "a cloud's inner service"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "for documentation"),
        ("192.88.99.0/24", "a relay to other addresses"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "for benchmarks"),
        ("198.51.100.0/24", "for documentation"),
        ("203.0.113.0/24", "for documentation"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("240.0.0.0/4", "reserved"),
    )
)

_GLOBAL_UNICAST_6 = IPv6Network("2000::/3")
# Outside 2000::/3 the table only gives the reason: everything there is forbidden.
_FORBIDDEN_6 = tuple(
    (IPv6Network(network), what)
    for network, what in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::ffff:0:0/96", "an IPv4 address in disguise"),
        ("::ffff:0:0:0/96", "an IPv4 address in disguise"),
        ("::/96", "an IPv4 address in disguise"),
        ("64:ff9b::/96", "a translation to IPv4"),
        ("64:ff9b:1::/48", "a translation to IPv4"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "private"),
        ("ff00::/8", "multicast"),
        ("2001::/32", "a tunnel to IPv4"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "for documentation"),
        ("2002::/16", "a tunnel to IPv4"),
        ("3ffe::/16", "reserved"),
        ("3fff::/20", "for documentation"),
    )
)
_TUNNEL_INTERFACES = (0x0000_5EFE, 0x0200_5EFE)
"""Upper half of an interface id that holds an IPv4 address (ISATAP, RFC 5214)."""

# No punycode: nobody needs a bucket under a name that looks like another one.
_LABEL = re.compile(r"(?!xn--)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_TOP_LABEL = re.compile(r"(?!xn--)[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
"""Begins with a letter: what ends in a number is read as an IPv4 address by many (`1.2.3.0x4`)."""

_NAME_LIMIT_CHARACTERS = 253
_INNER_NAMES = re.compile(
    "alt|arpa|corp|domain|example|home|internal|intranet|invalid|lan|local|localdomain|localhost|mail|onion|private|test"
)
"""Top labels that no public name has: RFC 6761 and 8375, `internal`, and what local networks use."""


def check_address(text: str) -> None:
    """Raise `ForbiddenAddress` unless `text` is one canonical IPv4 or IPv6 address of the public internet."""
    reason = _forbidden(_parsed(text))
    if reason is not None:
        raise ForbiddenAddress(f"{text} is {reason}: only addresses of the public internet may be connected to")


def is_host(text: str) -> bool:
    """Whether `text` is a host in the one form that is accepted here: a lower-case ASCII name without a final dot,
    whose last label begins with a letter, or a canonical IPv4 or IPv6 address (without brackets). It need not be
    public."""
    if _is_literal(text):
        try:
            address = _parsed(text)
        except ForbiddenAddress:
            return False
        return address.compressed == text and (address.version == 4 or address.ipv4_mapped is None)
    *others, top = text.split(".")
    plain = all(map(_LABEL.fullmatch, others)) and _TOP_LABEL.fullmatch(top) is not None
    return plain and len(text) <= _NAME_LIMIT_CHARACTERS


def check_host(host: str, port: int) -> None:
    """Raise `ForbiddenAddress` unless `host` may stand in a URL of a peer: a name of the public DNS or a public
    address, in the form of `is_host`, and a port that is 443 or from 1024 on.

    A name that passes may still resolve to any address: `PublicResolver` and `public_socket` see to that.
    """
    # Below 1024 are the ports of mail, shells and name servers: nobody may be sent to knock there.
    if port != HTTPS_PORT and not _FIRST_FREE_PORT <= port <= _LAST_PORT:
        raise ForbiddenAddress(f"port {port} is not one for a bucket: use {HTTPS_PORT}, or one from {_FIRST_FREE_PORT}")
    if not is_host(host):
        raise ForbiddenAddress(
            f"{host[:_NAME_LIMIT_CHARACTERS]!r} is not a host: write it in lower-case ASCII, without a final dot"
        )
    if _is_literal(host):
        check_address(host)
    elif "." not in host or _INNER_NAMES.fullmatch(host.rpartition(".")[2]):
        raise ForbiddenAddress(f"{host!r} is not a name of the public internet")


class PublicResolver(AbstractResolver):
    """`inner`, which may answer anything, without the addresses that are not public; at most eight of the rest."""

    def __init__(self, inner: AbstractResolver) -> None:
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of `host`; raises `ForbiddenAddress` when none is public, and what `inner` raises."""
        check_host(host, port)
        found = await self._inner.resolve(host, port, family)
        public = [result for result in found if _is_public(result["host"])]
        if found and not public:
            # Which address is not said: the sentence is published, and a peer could ask for names of this network.
            raise ForbiddenAddress(f"{host} resolves to an address that is not on the public internet")
        return public[:_MOST_ADDRESSES]

    async def close(self) -> None:
        """Release `inner`."""
        await self._inner.close()


def public_socket(info: AddrInfoType) -> socket.socket:
    """An unconnected socket for `info`, the very address that is connected to next. `PermissionError` when that is
    not public: an `OSError`, because that is what the caller of a socket factory expects."""
    family, kind, protocol, _, address = info
    try:
        check_address(str(address[0]))
    except ForbiddenAddress as error:
        raise PermissionError(errno.EACCES, str(error)) from error
    return socket.socket(family, kind, protocol)


def _is_literal(host: str) -> bool:
    """Whether aiohttp takes `host` for an address and asks no resolver."""
    return ":" in host or host.replace(".", "").isdigit()


def _is_public(text: str) -> bool:
    try:
        check_address(text)
    except ForbiddenAddress:
        return False
    return True


def _parsed(text: str) -> IPv4Address | IPv6Address:
    try:
        address = IPv6Address(text) if ":" in text else IPv4Address(text)
    except AddressValueError as error:
        raise ForbiddenAddress(f"{text[:_NAME_LIMIT_CHARACTERS]!r} is not an address") from error
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ForbiddenAddress(f"{text[:_NAME_LIMIT_CHARACTERS]!r} names a network interface of this machine")
    return address


def _forbidden(address: IPv4Address | IPv6Address) -> str | None:
    """Why nothing may be connected to `address`, None when it is public."""
    if isinstance(address, IPv4Address):
        return next((what for network, what in _FORBIDDEN_4 if address in network), None)
    for network, what in _FORBIDDEN_6:
        if address in network:
            return what
    if address not in _GLOBAL_UNICAST_6:
        return "reserved"
    return "a tunnel to IPv4" if int(address) >> 32 & 0xFFFF_FFFF in _TUNNEL_INTERFACES else None
