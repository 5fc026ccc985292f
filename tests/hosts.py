"""Hosts of every sort, and a name server that lies: what a peer may point a node at."""

from __future__ import annotations

import itertools
import socket

from aiohttp.abc import AbstractResolver, ResolveResult

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2001:200::1",
    "2a00:1450:4001:830::200e",
    "2400:cb00:2048:1::c629:d7a2",
]

FORBIDDEN = {
    "unspecified": ["0.0.0.0", "0.1.2.3", "::"],
    "loopback": ["127.0.0.1", "127.0.0.2", "127.255.255.255", "::1"],
    "private": ["10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "fc00::1", "fd12::1"],
    "metadata of clouds": ["169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"],
    "link-local": ["169.254.0.1", "fe80::1", "febf::1"],
    "site-local": ["fec0::1", "feff::1"],
    "shared": ["100.64.0.1", "100.127.255.255"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"],
    "broadcast": ["255.255.255.255"],
    "reserved": ["192.0.0.1", "192.0.0.192", "240.0.0.1", "254.1.1.1", "4000::1", "e000::1", "100::1", "2001:1ff::1"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "benchmarks": ["198.18.0.1", "198.19.255.255", "2001:2::1"],
    "IPv4 mapped": ["::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:8.8.8.8", "0:0:0:0:0:ffff:a00:1", "::FFFF:127.0.0.1"],
    "IPv4 compatible": ["::127.0.0.1", "::7f00:1", "::8.8.8.8"],
    "IPv4 translated": ["::ffff:0:127.0.0.1", "::ffff:0:7f00:1"],
    "6to4": ["2002:7f00:1::", "2002:a00:1::1", "2002:808:808::1", "192.88.99.1"],
    "Teredo": ["2001::1", "2001:0:53aa:64c::1"],
    "NAT64": ["64:ff9b::7f00:1", "64:ff9b::127.0.0.1", "64:ff9b::808:808", "64:ff9b:1::a00:1"],
    "ISATAP": ["2a00:1450::5efe:7f00:1", "2a00:1450::200:5efe:10.0.0.1"],
    "zones": ["fe80::1%eth0", "fe80::1%1", "::1%lo", "2606:4700:4700::1111%eth0"],
}

ODD_LITERALS = [
    "2130706433",
    "0x7f000001",
    "0x7f.0.0.1",
    "0x7f.1",
    "017700000001",
    "0177.0.0.1",
    "127.1",
    "127.0.1",
    "127.0.0.1.",
    "127.0.0.01",
    "127.000.000.001",
    "127.0.0.1.0",
    "1.1.1.256",
    "1.1.1",
    "8.8.8.8.",
    "08.8.8.8",
    "134744072",
    "0",
    "1.2.3.0x4",
    "１２７.0.0.1",
    "127。0。0。1",
    "①②⑦.⓪.⓪.①",
    "[::1]",
    "[127.0.0.1]",
    "::1]",
    "::ffff:127.0.0.1.",
    "0:0:0:0:0:0:0:1:",
    "::g",
    "1:2:3",
    "%31%32%37.0.0.1",
    "127.0.0.1%00",
    "127.0.0.1\0",
    "127.0.0.1\n",
    "127.0.0.1 ",
    " 127.0.0.1",
    "127.0.0.1:80",
    "127.0.0.1#",
    "127.0.0.1/",
    "-127.0.0.1",
    "+8.8.8.8",
]

NAMES = [
    "example.com",
    "a.io",
    "s3.eu-central-1.amazonaws.com",
    "0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com",
    "my-bucket.fra1.digitaloceanspaces.com",
    "1.2.3.4.example.com",
    "127.0.0.1.nip.io",  # refused when it is resolved
    "a" * 63 + ".com",
    ".".join(["a" * 49] * 5) + ".io",
    "foo--bar.com",
]

NOT_HOSTS = [
    "",
    ".",
    "..",
    "a..com",
    ".com",
    "example.com.",
    "Example.com",
    "EXAMPLE.COM",
    "exa mple.com",
    "example.com\r\nHost: x",
    "example.com\n",
    "example.com\0",
    "\0",
    "example.com:443",
    "user@example.com",
    "user:pass@example.com",
    "example.com/path",
    "example.com?x",
    "example.com#x",
    "example.com\\x",
    "exam%70le.com",
    "example.com%00.evil.com",
    "_dmarc.example.com",
    "-a.com",
    "a-.com",
    "a.-com",
    "a.com-",
    "xn--80ak6aa92e.com",
    "a.xn--p1ai",
    "xn--a.b.com",
    "аpple.com",  # a Cyrillic letter
    "ⓔxample.com",
    "ｅxample.com",
    "exampl\u00ade.com",
    "example\u3002com",
    "ex\u200dample.com",
    "K.com",  # the Kelvin sign
    "ß.com",
    "a" * 64 + ".com",
    ".".join(["a" * 50] * 5) + ".com",
    "a.1",
    "example.123",
    "example.0x7f",
]

INNER_NAMES = [
    "localhost",
    "foo.localhost",
    "localhost.localdomain",
    "printer",
    "minio",
    "printer.local",
    "db.internal",
    "metadata.google.internal",
    "instance-data.ec2.internal",
    "router.lan",
    "nas.home",
    "x.home.arpa",
    "1.0.0.127.in-addr.arpa",
    "mail.corp",
    "x.intranet",
    "x.private",
    "hidden.onion",
    "x.test",
    "x.example",
    "x.invalid",
    "x.alt",
]


class Answers(AbstractResolver):
    """A resolver that a hostile DNS server speaks through: it gives the next answer at every question, and
    begins again after the last one."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = itertools.cycle(answers)
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in next(self.answers)
        ]

    async def close(self) -> None:
        pass
