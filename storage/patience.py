"""A bucket whose owner may be slow or silent on purpose: every request ends, with bytes or with an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import TypeVar

from storage.bucket import Bucket, ObjectInfo, Writer
from storage.errors import Unavailable

_SLOWEST_BYTES_PER_SECOND = 2**20
"""What a bucket must manage beyond `seconds`: a large object may take longer than a small one."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class PatientBucket:
    """`inner`, where a request that takes longer than `seconds`, and one more for each MiB that may come, raises
    `Unavailable`."""

    inner: Bucket
    seconds: float

    async def put(self, key: str, data: bytes) -> None:
        """See `Bucket.put`."""
        await self._within(self.inner.put(key, data), len(data))

    async def put_if_absent(self, key: str, data: bytes) -> None:
        """See `Bucket.put_if_absent`."""
        await self._within(self.inner.put_if_absent(key, data), len(data))

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        """See `Bucket.get`."""
        return await self._within(self.inner.get(key, limit_bytes=limit_bytes), limit_bytes)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """See `Bucket.get_range`."""
        return await self._within(self.inner.get_range(key, start, length), length)

    async def copy_range(self, key: str, start: int, length: int, writer: Writer, *, size_bytes: int) -> None:
        """See `Bucket.copy_range`."""
        await self._within(self.inner.copy_range(key, start, length, writer, size_bytes=size_bytes), length)

    async def head(self, key: str) -> ObjectInfo:
        """See `Bucket.head`."""
        return await self._within(self.inner.head(key), 0)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `Bucket.list`; each object must come in time."""
        objects = aiter(self.inner.list(prefix))
        while (info := await self._within(anext(objects, None), 0)) is not None:
            yield info

    async def delete(self, key: str) -> None:
        """See `Bucket.delete`."""
        await self._within(self.inner.delete(key), 0)

    async def _within(self, request: Awaitable[_T], size_bytes: int) -> _T:
        seconds = self.seconds + size_bytes / _SLOWEST_BYTES_PER_SECOND
        try:
            async with asyncio.timeout(seconds):
                return await request
        except TimeoutError as error:
            raise Unavailable(f"no answer within {seconds:.0f} s") from error
