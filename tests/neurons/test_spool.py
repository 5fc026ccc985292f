"""Sealed shards on a node's own disk: fetched once, checked, and gone with their window."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from blake3 import blake3

from neurons.spool import Spool
from protocol.errors import Reason, Rejected
from protocol.sealing import SealedShard
from storage.directory import DirectoryBucket
from storage.errors import DamagedFile, DiskUnusable, NotFound

DATA = bytes(range(256)) * 40_000  # more than what a directory gives at a time
SHARD = SealedShard(size_bytes=len(DATA), digest=blake3(DATA).hexdigest())


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(tmp_path / "sealed")
    made.clear()
    return made


@pytest.fixture
def bucket(tmp_path: Path) -> DirectoryBucket:
    return DirectoryBucket(tmp_path / "bucket")


def test_a_shard_is_fetched_once_and_forgotten_with_its_window(spool: Spool, bucket: DirectoryBucket) -> None:
    async def scenario() -> None:
        await bucket.put("shard", DATA)
        path = await spool.fetch(bucket, "shard", SHARD)
        assert path.read_bytes() == DATA
        await bucket.delete("shard")
        assert await spool.fetch(bucket, "shard", SHARD) == path
        spool.clear()
        assert list(spool.folder.iterdir()) == []
        with pytest.raises(NotFound):
            await spool.fetch(bucket, "shard", SHARD)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (DATA[:-1], Reason.SHARD_SIZE),
        (DATA + b"x", Reason.SHARD_SIZE),
        (b"x" + DATA[1:], Reason.SHARD_DIGEST),
        (DATA[:-1] + b"x", Reason.SHARD_DIGEST),
    ],
)
def test_what_was_not_sealed_is_rejected_and_not_kept(
    spool: Spool, bucket: DirectoryBucket, stored: bytes, reason: Reason
) -> None:
    async def scenario() -> Rejected:
        await bucket.put("shard", stored)
        with pytest.raises(Rejected) as caught:
            await spool.fetch(bucket, "shard", SHARD)
        return caught.value

    assert asyncio.run(scenario()).reason is reason
    assert list(spool.folder.iterdir()) == []


def test_a_disk_that_takes_nothing_is_no_peers_fault(spool: Spool, bucket: DirectoryBucket) -> None:
    async def scenario() -> None:
        await bucket.put("shard", DATA)
        spool.folder.rmdir()
        spool.folder.touch()  # a file where the folder was
        with pytest.raises(DiskUnusable, match="cannot be written"):
            await spool.fetch(bucket, "shard", SHARD)
        with pytest.raises(DiskUnusable, match="cannot be made"):
            spool.clear()

    asyncio.run(scenario())


def test_what_one_peer_gives_neither_replaces_nor_removes_what_another_gave(
    spool: Spool, bucket: DirectoryBucket, tmp_path: Path
) -> None:
    """Digests are public in a seal, so a stranger may seal the same one and serve junk of the right size."""
    stranger = DirectoryBucket(tmp_path / "stranger")

    async def scenario() -> None:
        await bucket.put("shard", DATA)
        await stranger.put("shard", b"x" + DATA[1:])
        both = (spool.fetch(bucket, "shard", SHARD), spool.fetch(stranger, "shard", SHARD))
        path, refused = await asyncio.gather(*both, return_exceptions=True)
        assert isinstance(path, Path)
        assert isinstance(refused, Rejected)
        assert spool.read(path) == DATA
        assert list(spool.folder.iterdir()) == [path]

    asyncio.run(scenario())


def test_a_fetched_file_that_is_gone_is_no_peers_fault(spool: Spool) -> None:
    with pytest.raises(DiskUnusable, match="cannot be read"):
        spool.read(spool.path(SHARD))


def test_a_shard_that_rots_on_the_own_disk_is_fetched_again(spool: Spool, bucket: DirectoryBucket) -> None:
    async def scenario() -> None:
        await bucket.put("shard", DATA)
        path = await spool.fetch(bucket, "shard", SHARD)
        path.write_bytes(DATA[:-1] + b"?")
        with pytest.raises(DamagedFile, match="was damaged on this machine's disk"):
            spool.read(path)
        assert spool.read(await spool.fetch(bucket, "shard", SHARD)) == DATA

    asyncio.run(scenario())


def test_what_is_on_its_way_stays_when_the_rest_is_dropped(spool: Spool) -> None:
    under_way, other = spool.folder / f"~{SHARD.digest}.0123.4567", spool.folder / f"{'0' * 64}.0123"
    for path in (under_way, other):
        path.write_bytes(b"half")
    spool.clear([SHARD])
    assert list(spool.folder.iterdir()) == [under_way]
    spool.recover([SHARD])
    assert list(spool.folder.iterdir()) == []
