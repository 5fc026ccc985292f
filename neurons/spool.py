"""Where sealed shards wait until their key is out: on this node's disk, so that memory does not grow with the peers."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import Reason, Rejected
from protocol.sealing import SealedShard
from storage.bucket import Bucket
from storage.errors import DiskUnusable, WrongSize
from storage.large import download


@dataclass(frozen=True, slots=True)
class Spool:
    """Sealed shards by digest, in a folder of its own. What a predecessor left there is of no use: call `clear`."""

    folder: Path

    async def fetch(self, bucket: Bucket, key: str, shard: SealedShard) -> Path:
        """The file with this shard, from `bucket` unless it is here. Raises `Rejected` for what is not what was
        sealed, and `StorageError`."""
        path = self.path(shard)
        if not path.exists():
            try:
                digest = await download(bucket, key, shard.size_bytes, path)
            except WrongSize as error:
                raise Rejected(Reason.SHARD_SIZE, str(error)) from error
            if digest != shard.digest:
                path.unlink()
                raise Rejected(Reason.SHARD_DIGEST, "a shard is not the one that was sealed")
        return path

    def clear(self) -> None:
        """Drop everything, and make room for the next window's. Raises `DiskUnusable`."""
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskUnusable(f"{self.folder} cannot be made: {error.strerror}") from error

    def path(self, shard: SealedShard) -> Path:
        """Where this shard lies once it has been fetched. Its digest is one: seals and manifests are checked."""
        return self.folder / shard.digest
