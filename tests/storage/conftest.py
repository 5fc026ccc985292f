"""Buckets for tests of what is built upon buckets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from neurons.radosgw import Radosgw
from storage.bucket import ObjectInfo, Writer
from storage.directory import DirectoryBucket
from storage.errors import Unavailable
from tests.canary import Canary, listening
from tests.storage import tls as certificates
from tests.storage.stores import S3


class WatchedBucket:
    """A directory bucket that notes every call and can fail: from change number `fail_from` on (puts and deletes
    counted together, from 0) nothing is changed any more, as after a crash."""

    def __init__(self, root: Path) -> None:
        self.inner = DirectoryBucket(root)
        self.calls: list[tuple[str, ...] | tuple[str, str, int, int]] = []
        self.changes = 0
        self.fail_from: int | None = None

    def _change(self) -> None:
        if self.fail_from is not None and self.changes >= self.fail_from:
            raise Unavailable("this bucket fails on purpose")
        self.changes += 1

    async def put(self, key: str, data: bytes) -> None:
        self._change()
        self.calls.append(("put", key))
        await self.inner.put(key, data)

    async def put_if_absent(self, key: str, data: bytes) -> None:
        self._change()
        await self.inner.put_if_absent(key, data)

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        self.calls.append(("get", key, limit_bytes))
        return await self.inner.get(key, limit_bytes=limit_bytes)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        self.calls.append(("get_range", key, start, length))
        return await self.inner.get_range(key, start, length)

    async def copy_range(self, key: str, start: int, length: int, writer: Writer, *, size_bytes: int) -> None:
        self.calls.append(("copy_range", key, start, length))
        await self.inner.copy_range(key, start, length, writer, size_bytes=size_bytes)

    async def head(self, key: str) -> ObjectInfo:
        return await self.inner.head(key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        self.calls.append(("list", prefix))
        async for info in self.inner.list(prefix):
            yield info

    async def delete(self, key: str) -> None:
        self._change()
        await self.inner.delete(key)


@pytest.fixture
def bucket(tmp_path: Path) -> WatchedBucket:
    return WatchedBucket(tmp_path / "bucket")


@pytest.fixture
def canary() -> Iterator[Canary]:
    """Sockets on loopback addresses that nobody may connect to: ask `visits` at the end."""
    with listening() as canary:
        yield canary


@pytest.fixture(scope="session")
def s3(radosgw: Radosgw) -> S3:
    """A bucket of a real S3 server."""
    return S3.made(radosgw, "contract")


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> certificates.Tls:
    """For servers on the loopback interface."""
    return certificates.self_made(tmp_path_factory.mktemp("tls"))
