"""Ten thousand hostile commitments: each is refused with `BadLocation` or leads to the public internet, nowhere else.

A node's own code takes them from the bytes on chain to a read of an object. What would leave this machine is stopped
after the last check and noted; whatever reached an address of this machine would be heard by the canary.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import AddrInfoType

import storage.transfer
from storage.addresses import public_socket
from storage.credentials import Credentials, Secret
from storage.directory import DirectoryBucket
from storage.errors import BadLocation, ForbiddenAddress, NotFound, StorageError, Unavailable
from storage.https import HttpsBucket
from storage.location import HttpsLocation, LocalLocation, R2Location, S3Location, decode, encode, open_bucket
from storage.retries import Retries
from storage.s3 import S3Bucket, S3Endpoint
from storage.transfer import Limits, Reach, Transport
from tests.canary import Canary
from tests.hosts import FORBIDDEN, INNER_NAMES, NAMES, NOT_HOSTS, ODD_LITERALS, PUBLIC, Answers

COUNT = 10_000
SEED = 20_261_124
HOSTS = [
    *(host for group in FORBIDDEN.values() for host in group),
    *(f"[{host}]" for group in FORBIDDEN.values() for host in group if ":" in host),
    *PUBLIC,
    *(f"[{host}]" for host in PUBLIC if ":" in host),
    *ODD_LITERALS,
    *NAMES,
    *NOT_HOSTS,
    *INNER_NAMES,
    "user:password@127.0.0.1",
    "example.com@127.0.0.1",
    "127.0.0.1#@example.com",
    "127.0.0.1\\@example.com",
    "example.com%2f@127.0.0.1",
    "[::1]@example.com",
    "[127.0.0.1]",
    "[v1.127]",
    "127.0.0.1%09",
    "\u202e1.0.0.721",
]
SCHEMES = [
    *["https://"] * 8,
    *["http://"] * 3,
    "file://",
    "file:///",
    "ftp://",
    "gopher://",
    "unix://",
    "data:",
    "HTTPS://",
    "https:/",
    "https:///",
    "https:\\\\",
    "//",
    "",
    "https://https://",
    " https://",
    "\nhttps://",
    "\0https://",
    "javascript:",
]
PATHS = [
    *[""] * 6,
    "/",
    "/a/b",
    "/../../etc/passwd",
    "/a/../../b",
    "/%2e%2e/etc/passwd",
    "/..%2f..%2fetc",
    "//evil.example.com",
    "/\\127.0.0.1",
    "/a\r\nHost: 127.0.0.1\r\n\r\nGET / HTTP/1.1",
    "/a\nX-Injected: 1",
    "/a\0b",
    "/\u2025/",
    "/a?b=c",
    "/a#b",
    "/a;b",
    "/a b",
    "/" + "a" * 128,
    "/.",
    "/..",
    "/...",
]
ALPHABET = " +-./0123456789:=ABCDEFGHIJKLMNOPQRSTUVWXYZ[]_abcdefghijklmnopqrstuvwxyz"


def packed(text: str) -> bytes:
    """As docs/protocol.md §6 says: the sum of places times powers of 72. Characters that have no place are left out."""
    places = [ALPHABET.index(character) + 1 for character in text if character in ALPHABET]
    number = sum(place * 72**power for power, place in enumerate(reversed(places)))
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def valid(draw: random.Random) -> bytes:
    """The commitment of an honest peer."""
    digits = f"{draw.getrandbits(128):032x}"
    keys = Credentials("AKIA" + digits[:16].upper(), Secret(digits + "/+"))
    return encode(
        draw.choice(
            [
                LocalLocation(draw.choice(["a", "peer-1", "b" * 63])),
                HttpsLocation(f"https://{draw.choice(NAMES[:5])}{draw.choice(['', ':8443', '/a', ':9000/a/b'])}"),
                R2Location(digits, draw.choice(["bucket", digits]), Credentials(digits, Secret(digits * 2))),
                S3Location(
                    S3Endpoint(
                        draw.choice(["https://s3.example.com:9000", "https://s3.us-west-2.amazonaws.com"]),
                        "us-west-2",
                        draw.choice(["bucket", "a.b"]),
                        draw.choice(["", "pre/fix"]),
                        draw.random() < 0.5,
                    ),
                    keys,
                ),
            ]
        )
    )


def mutated(draw: random.Random) -> bytes:
    """Such a commitment, damaged on purpose in up to three places."""
    commitment = bytearray(valid(draw))
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(commitment) + 1)
        match draw.randrange(6):
            case 0:
                commitment[place : place + 1] = draw.randbytes(1)
            case 1:
                commitment[place:place] = draw.randbytes(draw.randint(1, 4))
            case 2:
                del commitment[place:]
            case 3:
                commitment[place:place] = draw.choice([b"\0", b"\r\n", b"/../", b"@", b"%00", b"\xff", "é".encode()])
            case 4:
                commitment[:1] = bytes([draw.randrange(6)])
            case _:
                commitment += commitment[place:]
    return bytes(commitment)


def crafted(draw: random.Random, port: int) -> bytes:
    """A commitment that somebody thought about. `port` is where the canary listens."""
    host = draw.choice(HOSTS)
    netloc = host + draw.choice([f":{port}"] * 6 + ["", ":443", ":80", ":22", ":0", ":65536", ":1e3", ":０"])
    kind = draw.randrange(8)
    if kind < 4:
        return b"\1" + (draw.choice(SCHEMES) + netloc + draw.choice(PATHS)).encode("utf-8", "surrogatepass")
    if kind == 4:
        names = ["../etc", "..", ".", "/etc/passwd", "a/../b", "C:\\", "a\0b", "a" * 64, "~", "ａ", "a\n", "peer", "-"]
        return b"\0" + draw.choice(names).encode()
    if kind == 5:
        bucket = draw.choice([host, netloc, "../x", "a/b", "a?b", "a#b", "a@b", "a\r\nb", "", "x" * 63])
        return b"\2" + draw.randbytes(64) + bucket.encode("utf-8", "surrogatepass")
    buckets = ["bucket"] * 3 + ["..", ".", "a/b", "a@b", "127.0.0", "localhost", "169.254.169", "a..b", "xn--a", ""]
    prefixes = [""] * 4 + ["a", "a/b", "..", "../..", "/", "a//b", "a/..", "."]
    fields = [netloc, draw.choice(["us-east-1", "auto", "", "-", "../", "@", ":"]), draw.choice(buckets)]
    fields += [draw.choice(prefixes), draw.choice(["KEY", "a/b", ""]), draw.choice(["secret", ""])]
    if draw.random() < 0.1:
        fields = fields[: draw.randrange(6)] + ["more"] * draw.randrange(4)
    return bytes([3, draw.choice([0, 1, 2, 2, 2, 3, 4, 255])]) + packed(" ".join(fields))


def plausible(draw: random.Random, port: int) -> bytes:
    """A commitment that is canonical as far as its host is, wherever that leads."""
    addresses = [host for group in FORBIDDEN.values() for host in group] + PUBLIC
    hosts = [f"[{host}]" if ":" in host else host for host in addresses] + NAMES + INNER_NAMES
    netloc = draw.choice(hosts) + draw.choice([f":{port}"] * 8 + ["", ":22", ":8443"])
    if draw.random() < 0.5:
        return b"\1" + f"{draw.choice(['https', 'https', 'http'])}://{netloc}{draw.choice(['', '/a'])}".encode()
    flags = draw.choice([2, 2, 2, 3, 0])
    return bytes([3, flags]) + packed(f"{netloc} us-east-1 {draw.choice(['bucket', 'a.b'])}  KEY secret")


def hostile(port: int) -> Iterator[bytes]:
    """The same ten thousand commitments at every run, but for the port."""
    draw = random.Random(SEED)
    for _ in range(COUNT):
        match draw.randrange(8):
            case 0:
                yield draw.randbytes(draw.randint(0, 140))
            case 1:
                yield bytes([draw.randrange(5)]) + draw.randbytes(draw.randint(0, 127))
            case 2:
                yield mutated(draw)
            case 3 | 4:
                yield plausible(draw, port)
            case _:
                yield crafted(draw, port)


_opened: list[str] | None = None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], (str, bytes)):
        _opened.append(str(arguments[0]))


sys.addaudithook(_watch)  # does nothing but while `opened_files` is in use


@contextlib.contextmanager
def opened_files() -> Iterator[list[str]]:
    """The paths of all files that Python code opens during the block."""
    global _opened
    _opened = seen = []
    try:
        yield seen
    finally:
        _opened = None


@pytest.fixture
def outbound(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses outside that would have been connected to: each passed the real check, then the network fails."""
    seen: list[str] = []

    def unreachable(info: AddrInfoType) -> socket.socket:
        public_socket(info).close()
        seen.append(str(info[4][0]))
        raise OSError(errno.ENETUNREACH, "no network in this test")

    monkeypatch.setattr(storage.transfer, "public_socket", unreachable)
    return seen


def public_transport() -> Transport:
    return Transport(Reach.PUBLIC, limits=Limits(connect_seconds=2.0), retries=Retries(attempts=1))


async def follow(commitment: bytes, transport: Transport, local_root: Path | None) -> str:
    """What a node does with a peer's commitment; says how far it came."""
    try:
        location = decode(commitment)
    except BadLocation:
        return "refused"
    assert encode(location) == commitment
    try:
        bucket = open_bucket(location, transport, local_root)
    except BadLocation:
        return "not opened"
    if isinstance(bucket, DirectoryBucket):
        assert local_root is not None
        assert bucket.root.parent == local_root
    else:
        url = location.url if isinstance(location, HttpsLocation) else location.endpoint.url  # type: ignore[union-attr]
        assert local_root is not None or urlsplit(url).scheme == "https"
    try:
        await bucket.get("RUN/seal.json", limit_bytes=1000)
    except ForbiddenAddress:
        return "not connected"
    except Unavailable:
        return "unreachable"
    except NotFound:
        return "nothing there"
    raise AssertionError(f"{location} was read")


def test_ten_thousand_hostile_commitments_lead_nowhere_but_to_the_public_internet(
    canary: Canary, outbound: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every public-looking name leads inside, one in three to a mixture that changes.
    inside = ["127.0.0.1", "127.0.0.2", "::1", "10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "fd00::1"]
    answers = Answers(*[[address] for address in inside], inside, ["1.1.1.1", *inside], [*inside, "2606:4700::1111"])
    monkeypatch.setattr("storage.transfer.Lookups", lambda: answers)

    async def campaign() -> dict[str, int]:
        transport = public_transport()
        ends: dict[str, int] = {}
        try:
            await follow(b"\1https://example.com", transport, None)  # what is loaded once
            with opened_files() as files:
                for commitment in hostile(canary.port):
                    end = await follow(commitment, transport, None)
                    ends[end] = ends.get(end, 0) + 1
            assert files == []
        finally:
            await transport.close()
        return ends

    ends = asyncio.run(campaign())
    assert sum(ends.values()) == COUNT
    assert canary.visits() == []
    assert {"refused", "not opened", "not connected", "unreachable"} == set(ends), "the campaign reaches every check"
    assert min(ends.values()) > COUNT / 100
    for address in outbound:
        assert ipaddress.ip_address(address).is_global
        assert not ipaddress.ip_address(address).is_multicast


def test_on_the_local_chain_they_open_no_file_outside_the_folder_of_buckets(canary: Canary, tmp_path: Path) -> None:
    """There a peer may name any host: it can write to this machine's folders anyway. Files are another matter."""
    root = tmp_path / "buckets"
    root.mkdir()
    (tmp_path / "secret").write_text("secret")
    (root / "peer").symlink_to(tmp_path)

    async def campaign() -> list[str]:
        transport = public_transport()
        assert await follow(b"\0nobody", transport, root) == "nothing there"  # what is loaded once
        with opened_files() as files:
            for commitment in hostile(canary.port):
                if commitment[:1] == b"\0":
                    await follow(commitment, transport, root)
        return files

    files = asyncio.run(campaign())
    assert str(root / "peer") in files
    assert [path for path in files if Path(path).is_absolute() and Path(path).parent != root] == []


def test_the_canary_hears_what_the_rules_would_have_let_through(canary: Canary, tmp_path: Path) -> None:
    """The same way without the rules, as on the local chain: so the silence above means something."""

    async def scenario() -> None:
        transport = Transport(
            Reach.ANY, limits=Limits(connect_seconds=1.0, window_seconds=0.1), retries=Retries(attempts=1)
        )
        for host in ("127.0.0.1", "127.0.0.2"):
            for location in (
                HttpsLocation(f"http://{host}:{canary.port}"),
                S3Location(S3Endpoint(f"http://{host}:{canary.port}", "a", "bucket"), Credentials("k", Secret("s"))),
            ):
                assert await follow(encode(location), transport, tmp_path) == "unreachable"
        await transport.close()

    asyncio.run(scenario())
    assert canary.visits() == ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"]


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
def test_no_redirect_is_followed(canary: Canary, status: int) -> None:
    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        to = f"http://127.0.0.1:{canary.port}/"
        writer.write(
            f"HTTP/1.1 {status} X\r\nlocation: {to}\r\nrefresh: 0; url={to}\r\nlink: <{to}>; rel=alternate\r\n"
            f'alt-svc: http="127.0.0.1:{canary.port}"\r\ncontent-length: 0\r\n\r\n'.encode()
        )
        writer.close()

    async def scenario() -> None:
        async with await asyncio.start_server(redirect, "127.0.0.1") as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            transport = Transport(
                Reach.ANY, limits=Limits(window_seconds=0.3), retries=Retries(attempts=2, first_seconds=0.0)
            )
            keys = Credentials("k", Secret("s"))
            try:
                for bucket in (HttpsBucket(url, transport), S3Bucket(S3Endpoint(url, "a", "bucket"), keys, transport)):
                    for _ in range(2):
                        with pytest.raises(StorageError):
                            await bucket.get("a", limit_bytes=10)
            finally:
                await transport.close()

    asyncio.run(scenario())
    assert canary.visits() == []
