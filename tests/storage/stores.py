"""Every kind of bucket, empty and open for the length of one scenario."""

from __future__ import annotations

import asyncio
import itertools
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from urllib.parse import unquote

from neurons.radosgw import REGION, Keys, Radosgw
from storage.bucket import Bucket
from storage.credentials import Credentials
from storage.directory import DirectoryBucket
from storage.https import HttpsBucket
from storage.retries import Retries
from storage.s3 import S3Bucket, S3Endpoint
from storage.transfer import Reach, Transport
from tests.storage.proxy import Proxy, Request, Response
from tests.storage.tls import Tls

AT_ONCE = Retries(first_seconds=0.0)
"""Retries without pauses."""

_numbers = itertools.count()


@dataclass(frozen=True)
class Opened:
    """One store seen by its owner and by everybody else. `writer` and `reader` may be the same object."""

    writer: Bucket
    reader: Bucket


@dataclass(frozen=True)
class Store:
    """A kind of store. Each `run` begins with an empty one."""

    open: Callable[[], AbstractAsyncContextManager[Opened]]

    def run(self, scenario: Callable[[Bucket], Awaitable[None]]) -> None:
        """A scenario of the owner alone."""
        self.run_both(lambda opened: scenario(opened.writer))

    def run_both(self, scenario: Callable[[Opened], Awaitable[None]]) -> None:
        """A scenario of the owner and a reader."""

        async def whole() -> None:
            async with self.open() as opened:
                await scenario(opened)

        asyncio.run(whole())


@asynccontextmanager
async def in_directory() -> AsyncIterator[Opened]:
    """A directory."""
    with tempfile.TemporaryDirectory() as folder:
        bucket = DirectoryBucket(Path(folder) / "bucket")
        yield Opened(bucket, bucket)


@dataclass(frozen=True)
class S3:
    """A bucket of a real server, shared by tests: each gets a prefix of its own."""

    url: str
    name: str
    keys: Keys

    @classmethod
    def made(cls, radosgw: Radosgw, name: str) -> S3:
        """A new bucket."""
        return cls(radosgw.url, name, radosgw.create_bucket(name))

    def endpoint(self, prefix: str | None = None, url: str | None = None) -> S3Endpoint:
        """The bucket below a new prefix, or a given one; at `url` if there is something in front of the server."""
        return S3Endpoint(url or self.url, REGION, self.name, f"test-{next(_numbers)}" if prefix is None else prefix)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Opened]:
        """With the write key, and with the read key."""
        endpoint = self.endpoint()
        async with transport() as shared:
            yield Opened(S3Bucket(endpoint, self.keys.write, shared), S3Bucket(endpoint, self.keys.read, shared))

    @asynccontextmanager
    async def bucket(self, credentials: Credentials | None = None) -> AsyncIterator[S3Bucket]:
        """With one key, by default that which may write."""
        async with transport() as own:
            yield S3Bucket(self.endpoint(), credentials or self.keys.write, own)


@asynccontextmanager
async def transport(tls: Tls | None = None, retries: Retries = AT_ONCE) -> AsyncIterator[Transport]:
    """A transport that may connect to this machine, closed at the end."""
    made = Transport(Reach.ANY, retries=retries, tls=tls.client if tls else None)
    try:
        yield made
    finally:
        await made.close()


def over_https(tls: Tls) -> Callable[[], AbstractAsyncContextManager[Opened]]:
    """A directory that a web server shows to everybody."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Opened]:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "public"
            async with Proxy(lambda request: _file(root, request), tls=tls.server) as server, transport(tls) as own:
                yield Opened(DirectoryBucket(root), HttpsBucket(f"{server.url}/some/folder", own))

    return opened


def _file(root: Path, request: Request) -> Response:
    """What an ordinary web server answers."""
    path = root / unquote(request.target).removeprefix("/some/folder/")
    if not path.is_file():
        return Response(404, body=b"<html>there is no such page</html>")
    data = path.read_bytes()
    headers = {"last-modified": formatdate(path.stat().st_mtime, usegmt=True), "etag": f'"{hash(data):x}"'}
    if request.method == "HEAD":
        return Response(200, headers | {"content-length": str(len(data))})
    asked = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", request.headers.get("range", ""))
    if not asked:
        return Response(200, headers, data)
    start, end = int(asked[1]), int(asked[2] or len(data) - 1) + 1
    if start >= len(data):
        return Response(416, {"content-range": f"bytes */{len(data)}"})
    part = data[start:end]
    return Response(206, headers | {"content-range": f"bytes {start}-{start + len(part) - 1}/{len(data)}"}, part)
