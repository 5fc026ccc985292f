"""Where sealed shards wait until their key is out: on this node's disk, so that memory does not grow with the peers."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from protocol.errors import Reason, Rejected
from protocol.sealing import SealedShard
from storage.bucket import Bucket
from storage.errors import DamagedFile, DiskUnusable, WrongSize
from storage.large import digest_of_file, download

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Spool:
    """Sealed shards by digest, in a folder of its own. What a predecessor left there may be broken: call `recover`."""

    folder: Path

    async def fetch(self, bucket: Bucket, key: str, shard: SealedShard) -> Path:
        """The file with this shard, from `bucket` unless it is here. Raises `Rejected` for what is not what was
        sealed, and `StorageError`."""
        path = self.path(shard)
        if not path.exists():
            # Under a name of its own until it is checked: another peer may have sealed the same digest, and what it
            # gives must neither replace nor remove what an honest one gave.
            unchecked = path.with_name(f"{shard.digest}.{secrets.token_hex(8)}")
            try:
                # One connection a peer: all are read side by side, and a silent one must not hold many.
                if await download(bucket, key, shard.size_bytes, unchecked, ranges_at_once=1) != shard.digest:
                    raise Rejected(Reason.SHARD_DIGEST, "a shard is not the one that was sealed")
                unchecked.replace(path)
            except WrongSize as error:
                raise Rejected(Reason.SHARD_SIZE, str(error)) from error
            except OSError as error:
                raise DiskUnusable(f"{path} cannot be written: {error.strerror}") from error
            finally:
                with suppress(OSError):
                    unchecked.unlink(missing_ok=True)
        return path

    def read(self, path: Path) -> bytes:
        """What a fetched file holds. Raises `DiskUnusable`; `DamagedFile` when it is not what was fetched any more, and
        then it is gone, to be fetched again: no peer is to blame for this disk."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DiskUnusable(f"{path} cannot be read: {error.strerror}") from error
        if blake3(data).hexdigest() != path.name:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise DamagedFile(f"{path} was damaged on this machine's disk and is fetched again")
        return data

    def clear(self, keep: Collection[SealedShard] = ()) -> None:
        """Drop everything but these shards, and make room for the next window's. Raises `DiskUnusable`."""
        # What is still on its way has a name that begins with the digest.
        self._drop(keep, lambda name: name.removeprefix("~").partition(".")[0])

    def _drop(self, keep: Collection[SealedShard], digest_of_name: Callable[[str], str]) -> None:
        digests = {shard.digest for shard in keep}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.iterdir():
                if digest_of_name(path.name) not in digests:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise DiskUnusable(f"{self.folder} cannot be made or emptied: {error.strerror}") from error

    def recover(self, keep: Collection[SealedShard]) -> None:
        """As `clear`, of what a process before this one left, which after a power cut may be broken: that goes too.
        Reads all that is kept. Raises `DiskUnusable`."""
        self._drop(keep, lambda name: name)
        for shard in keep:
            path = self.path(shard)
            if path.exists() and digest_of_file(path) != shard.digest:
                log.warning("%s was damaged on this machine's disk and is fetched again when it is needed", path)
                path.unlink(missing_ok=True)

    def path(self, shard: SealedShard) -> Path:
        """Where this shard lies once it has been fetched. Its digest is one: seals and manifests are checked."""
        return self.folder / shard.digest
