"""Where a peer's bucket is read, in the bytes it commits on chain (protocol §6): a kind byte, then the location.

Version 1 knows kind 0, a *name* of a bucket on the same machine, for the built-in chain. The reader resolves the
name below a folder of its own choice, so what a peer commits can never become a path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from storage.bucket import Bucket
from storage.directory import DirectoryBucket
from storage.errors import BadLocation

LOCATION_LIMIT_BYTES = 128
"""What fits into one commitment."""

_LOCAL = 0
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True)
class LocalLocation:
    """A bucket of the built-in chain, by name. Raises `BadLocation` when `name` is not plain."""

    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BadLocation(
                f"{self.name!r} is not a bucket name: use 1-63 of a-z 0-9 -, beginning with a letter or digit"
            )


def encode(location: LocalLocation) -> bytes:
    """The commitment that says where the bucket is; at most `LOCATION_LIMIT_BYTES` bytes."""
    return bytes([_LOCAL]) + location.name.encode("ascii")


def decode(commitment: bytes) -> LocalLocation:
    """The inverse of `encode`; raises `BadLocation` for every other byte string."""
    if not commitment:
        raise BadLocation("the commitment is empty: it must begin with the kind of location")
    if len(commitment) > LOCATION_LIMIT_BYTES:
        raise BadLocation(f"the commitment has {len(commitment)} bytes, at most {LOCATION_LIMIT_BYTES} are allowed")
    if commitment[0] != _LOCAL:
        raise BadLocation(f"the commitment is of kind {commitment[0]}, this version reads only kind {_LOCAL}")
    # Latin-1 takes every byte; the name check then refuses all but the allowed ones.
    return LocalLocation(commitment[1:].decode("latin-1"))


def open_bucket(location: LocalLocation, local_root: Path | None) -> Bucket:
    """The bucket at `location`. `local_root` is this node's folder of buckets, None when it follows no built-in
    chain: then a local name leads nowhere and `BadLocation` is raised."""
    if local_root is None:
        raise BadLocation(f"bucket {location.name!r} is local to another machine: this node is not on a local chain")
    return DirectoryBucket(local_root / location.name)
