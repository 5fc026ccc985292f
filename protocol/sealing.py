"""Seal and reveal: a commitment nobody can profit from reading (protocol §10)."""

from __future__ import annotations

from typing import Annotated

from blake3 import blake3
from pydantic import Field

from protocol.identity import Digest, Document, SignedDocument
from protocol.window import WindowNumber

SEAL_LIMIT_BYTES = 64 * 1024
"""Largest seal or reveal anyone reads; a seal with 400 shards fits."""


class SealedShard(Document):
    """One encrypted shard: its size and BLAKE3 digest as it lies in the bucket."""

    size_bytes: Annotated[int, Field(ge=1, lt=2**48)]
    digest: Digest


class Seal(SignedDocument):
    """What a miner commits to before the close: the encrypted payload and the digest of the key that opens it."""

    run_digest: Digest
    window: WindowNumber
    layout_digest: Digest
    base_root: Digest
    shards: tuple[SealedShard, ...]
    payload_digest: Digest
    key_digest: Digest

    def is_opened_by(self, key: bytes) -> bool:
        """Whether this is the key that the seal commits to."""
        return blake3(key).hexdigest() == self.key_digest


class Reveal(Document):
    """The key, published when every seal is fixed. It needs no signature: the seal names its digest."""

    window: WindowNumber
    key: Digest

    def opens(self, seal: Seal) -> bool:
        """Whether this is the key the seal committed to."""
        return self.window == seal.window and seal.is_opened_by(bytes.fromhex(self.key))
