"""What validators publish, read by anybody: receipts and manifests, taken only from who may sign them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from neurons.leaderboard.words import plain
from protocol.chain.port import Chain, Neuron
from protocol.errors import DocumentError
from protocol.gauntlet.receipts import RECEIPTS_LIMIT_BYTES, Receipts
from protocol.identity import SignedDocument
from protocol.ledger.manifest import MANIFEST_LIMIT_BYTES, Manifest, leader_order
from protocol.run import Run
from storage.bucket import Bucket
from storage.errors import NotFound, StorageError, TooLarge
from storage.keys import Keys

_POINTER_LIMIT_BYTES = 1 << 10
_WINDOW_DIGITS = 8


class UnknownSigner(DocumentError):
    """A document is signed by somebody who is no validator now. He may have been one."""


@dataclass(frozen=True, slots=True)
class Source:
    """A validator and its bucket."""

    uid: int
    hotkey: str
    bucket: Bucket


class Documents:
    """The signed documents of one run. `open_bucket` opens a bucket from a commitment and may raise `BadLocation`.

    A document counts when its signature holds, its signer is a validator now, and it is of this run and window.
    """

    def __init__(self, run: Run, chain: Chain, open_bucket: Callable[[bytes], Bucket]) -> None:
        self.run, self.chain = run, chain
        self.keys = Keys(run.digest()[:16])
        self.validators: frozenset[str] = frozenset()
        self._open_bucket = open_bucket

    async def sources(self, neurons: Sequence[Neuron]) -> tuple[list[Source], list[str]]:
        """The validators' buckets in leader order, and a sentence for each that cannot be opened."""
        commitments = await self.chain.commitments()
        sources: list[Source] = []
        troubles: list[str] = []
        validators = leader_order(neurons)
        self.validators = frozenset(validator.hotkey for validator in validators)
        for validator in validators:
            if validator.hotkey not in commitments:
                continue
            try:
                bucket = self._open_bucket(commitments[validator.hotkey])
            except StorageError as error:
                troubles.append(plain(f"the bucket of validator {validator.uid} cannot be opened: {error}"))
                continue
            sources.append(Source(validator.uid, validator.hotkey, bucket))
        return sources, troubles

    async def newest_judged(self, source: Source) -> int | None:
        """The newest window of which this validator says that it has receipts; None if it says nothing of use."""
        try:
            return await _pointed_at(source.bucket, self.keys.receipts_head(), self.keys.receipts)
        except (StorageError, DocumentError):
            return None

    async def newest_manifest(self, source: Source) -> int | None:
        """The newest window of which this validator says that it has a manifest; None if it says nothing of use. Raises
        `StorageError` when the bucket does not answer, `DocumentError` when what lies there is too large."""
        return await _pointed_at(source.bucket, self.keys.ledger_head(), self.keys.manifest)

    async def receipts(self, window: int, source: Source) -> Receipts | None:
        """The receipts of `window` by this validator, None when there are none. Raises `DocumentError` for what is
        there and does not count, and `StorageError` when the bucket does not answer."""
        data = await _get(source.bucket, self.keys.receipts(window), RECEIPTS_LIMIT_BYTES)
        return None if data is None else self.parse_receipts(data, window, source)

    async def manifest(self, window: int, source: Source) -> Manifest | None:
        """The manifest of `window` in this validator's bucket, by whomever; as `receipts`."""
        data = await _get(source.bucket, self.keys.manifest(window), MANIFEST_LIMIT_BYTES)
        return None if data is None else self.parse_manifest(data, window, source)

    def parse_receipts(self, data: bytes, window: int, source: Source) -> Receipts:
        """The receipts in `data`, or `DocumentError`."""
        receipts = Receipts.parse(data)
        receipts.verify(source.hotkey)
        self._check(receipts, receipts.run_digest, receipts.window, window)
        return receipts

    def parse_manifest(self, data: bytes, window: int, source: Source) -> Manifest:
        """The manifest in `data`, or `DocumentError`."""
        manifest = Manifest.parse(data)
        # A validator also keeps the manifests of the others that it followed, so the signer may be any of them.
        if manifest.signer not in self.validators:
            raise UnknownSigner(f"signed by {manifest.signer}, which is no validator with a permit")
        manifest.verify()
        self._check(manifest, manifest.run_digest, manifest.window, window)
        return manifest

    def _check(self, document: SignedDocument, run_digest: str, named: int, window: int) -> None:
        kind = type(document).__name__
        if run_digest != self.run.digest():
            raise DocumentError(f"{kind}: they are of another run")
        if named != window:
            raise DocumentError(f"{kind}: they are of window {named}")


async def _get(bucket: Bucket, key: str, limit_bytes: int) -> bytes | None:
    try:
        return await bucket.get(key, limit_bytes=limit_bytes)
    except NotFound:
        return None
    except TooLarge as error:
        raise DocumentError(str(error)) from error


async def _pointed_at(bucket: Bucket, pointer: str, key_of: Callable[[int], str]) -> int | None:
    """The window whose key, one that `key_of` gives, is what lies at `pointer`; None for whatever else lies there."""
    data = await _get(bucket, pointer, _POINTER_LIMIT_BYTES) or b""
    name = data.decode("ascii", "replace").rpartition("/")[2].removesuffix(".json")
    window = int(name) if name.isascii() and name.isdigit() and len(name) == _WINDOW_DIGITS else None
    return window if window is not None and key_of(window).encode() == data else None
