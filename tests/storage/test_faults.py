"""A thousand faults between us and a real S3 server: every operation ends in the right bytes or in a clear error,
what was said to be stored is stored, nothing half is left, and no secret is shown."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from storage.errors import AlreadyExists, NotFound, StorageError
from storage.large import download, upload
from storage.retries import Retries
from storage.s3 import S3Bucket
from storage.together import together
from storage.transfer import Limits, Reach, Transport
from tests.secrets import found
from tests.storage.proxy import FAULTS, Proxy, drawn
from tests.storage.stores import S3, transport
from tests.storage.test_transfer import MENDED

SEED = 4
AT_ONCE = 24
PART_BYTES = 5 << 20

LIMITS = Limits(connect_seconds=1.0, window_seconds=0.4, window_bytes=1 << 14)

OF_TRANSPORT = (*MENDED, *(name for name in FAULTS if name.startswith("redirect")))
"""Faults that leave the bytes alone. The others are lies, which only a digest finds: that is for who asked."""


class Campaign:
    """Operations with keys of their own through `bucket`, each checked through `direct`."""

    def __init__(self, bucket: S3Bucket, direct: S3Bucket, folder: Path, honest: bool) -> None:
        self.bucket, self.direct, self.folder, self.honest = bucket, direct, folder, honest
        self.outcomes: Counter[str] = Counter()
        self.shown: list[str] = []

    async def one(self, number: int) -> None:
        """The operation with this number, and what must be so afterwards whatever happened."""
        kinds = (self.put, self.put_if_absent, self.get, self.get_range, self.head, self.list, self.delete)
        kind = self.copy if number % 50 == 0 else kinds[number % len(kinds)]
        try:
            await kind(f"{kind.__name__}/{number:05d}", os.urandom(1000 + 37 * number))
            self.outcomes[f"{kind.__name__} done"] += 1
        except StorageError as error:
            self.outcomes[f"{kind.__name__} failed"] += 1
            self.shown += traceback.format_exception(error)

    async def put(self, key: str, data: bytes) -> None:
        try:
            await self.bucket.put(key, data)
        except StorageError:
            assert await self._stored(key) in (None, data)
            raise
        assert await self._stored(key) == data

    async def put_if_absent(self, key: str, data: bytes) -> None:
        try:
            await self.bucket.put_if_absent(key, data)
        except AlreadyExists:
            assert not self.honest  # it was our own object
        except StorageError:
            assert await self._stored(key) in (None, data)
            raise
        assert await self._stored(key) == data

    async def get(self, key: str, data: bytes) -> None:
        await self.direct.put(key, data)
        told = await self.bucket.get(key, limit_bytes=len(data))
        assert len(told) <= len(data)
        assert told == data or not self.honest

    async def get_range(self, key: str, data: bytes) -> None:
        await self.direct.put(key, data)
        told = await self.bucket.get_range(key, 100, 500)
        assert len(told) == 500
        assert told == data[100:600] or not self.honest

    async def head(self, key: str, data: bytes) -> None:
        await self.direct.put(key, data)
        info = await self.bucket.head(key)
        assert info.size_bytes == len(data) or not self.honest

    async def list(self, key: str, data: bytes) -> None:
        keys = [f"{key}/{number}" for number in range(3)]
        for name in keys:
            await self.direct.put(name, b"")
        told = [info.key async for info in self.bucket.list(f"{key}/")]
        assert told == keys or not self.honest

    async def delete(self, key: str, data: bytes) -> None:
        await self.direct.put(key, data)
        try:
            await self.bucket.delete(key)
        except StorageError:
            assert await self._stored(key) in (None, data)
            raise
        assert await self._stored(key) is None or not self.honest

    async def copy(self, key: str, data: bytes) -> None:
        """A file to the bucket, in parts, and back."""
        data = data * (PART_BYTES // len(data) + 1)
        there, back = self.folder / key.replace("/", "-"), self.folder / f"{key.replace('/', '-')}.back"
        there.write_bytes(data)
        try:
            await upload(self.bucket, key, there)
        except StorageError:
            assert await self._stored(key) in (None, data)
            raise
        finally:
            there.unlink()
        assert await self._stored(key) == data or not self.honest
        try:
            await download(self.bucket, key, len(data), back)
            assert back.read_bytes() == data or not self.honest
        finally:
            back.unlink(missing_ok=True)
        await self.direct.delete(key)

    async def _stored(self, key: str) -> bytes | None:
        try:
            return await self.direct.get(key, limit_bytes=1 << 30)
        except NotFound:
            return None


@pytest.mark.parametrize(
    ("honest", "count"), [(True, 1000), (False, 300)], ids=["the bytes are left alone", "lies too"]
)
def test_faults_by_the_thousand_lose_nothing_and_show_nothing(
    s3: S3,
    honest: bool,
    count: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("storage.multipart.PART_BYTES", PART_BYTES)
    monkeypatch.setattr("storage.s3.PARTS_FROM_BYTES", PART_BYTES)
    caplog.set_level(logging.DEBUG)
    faults = OF_TRANSPORT if honest else tuple(FAULTS)

    async def scenario() -> Campaign:
        # Redirects are final; were there more of them, few operations would get to an end.
        async with Proxy(s3.url, drawn(SEED, 0.35, faults), seed=SEED) as between, transport() as direct:
            through = Transport(Reach.ANY, limits=LIMITS, retries=Retries(attempts=6, first_seconds=0.0))
            endpoint = s3.endpoint()
            campaign = Campaign(
                S3Bucket(replace(endpoint, url=between.url), s3.keys.write, through),
                S3Bucket(endpoint, s3.keys.write, direct),
                tmp_path,
                honest,
            )
            numbers = itertools.count()

            async def work() -> None:
                while between.injected.total() < count:
                    await campaign.one(next(numbers))

            await together(work() for _ in range(AT_ONCE))
            assert set(between.injected) > set(MENDED) or not honest
            await through.close()
            assert await campaign.direct.abort_uploads("", older_than_seconds=0) == 0
            return campaign

    campaign = asyncio.run(scenario())
    kinds = {outcome.split()[0] for outcome in campaign.outcomes}
    assert len(kinds) == 8
    assert all(campaign.outcomes[f"{kind} done"] for kind in kinds), campaign.outcomes
    assert any(campaign.outcomes[f"{kind} failed"] for kind in kinds), campaign.outcomes
    assert list(tmp_path.iterdir()) == []
    planted = {name: key.secret.reveal().encode() for name, key in (("write", s3.keys.write), ("read", s3.keys.read))}
    seen = "\n".join((*campaign.shown, caplog.text, *capfd.readouterr()))
    assert found(seen.encode(), planted) == []
