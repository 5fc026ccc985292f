"""What a node removes from its own bucket, and when (protocol §6: old windows are swept by retention)."""

from __future__ import annotations

from storage.bucket import Bucket
from storage.checkpoint import complete_windows, latest_window
from storage.directory import DirectoryBucket
from storage.keys import Keys
from storage.s3 import S3Bucket

UNFINISHED_SECONDS = 86_400.0
"""After which an upload in parts is taken for one that nobody goes on with."""


async def sweep(
    bucket: Bucket, keys: Keys, *, before_window: int, keep_checkpoints: int, needed_window: int | None = None
) -> None:
    """Delete the seals, shards, reveals and manifests by digest of windows below `before_window`, and all checkpoints
    but the newest `keep_checkpoints` (≥ 1, else `ValueError`) and those from `needed_window` on. In an S3 store also
    what unfinished uploads left behind, which is in no list and is paid for.

    The ledger, the receipts and evidence are never touched: they are what an audit walks. A checkpoint counts once the
    pointer has reached it, so one being written is neither deleted nor a reason to delete its predecessor.
    Raises `Unavailable`, and `CheckpointError` when the pointer is malformed; running it again goes on.
    """
    if keep_checkpoints < 1:
        raise ValueError(f"keep_checkpoints must be at least 1, not {keep_checkpoints}")
    await _sweep_windows(bucket, keys, before_window)
    await _sweep_checkpoints(bucket, keys, keep_checkpoints, needed_window)
    if isinstance(bucket, S3Bucket):
        await bucket.abort_uploads(f"{keys.run}/", older_than_seconds=UNFINISHED_SECONDS)


async def recover(bucket: Bucket) -> None:
    """Remove from the own bucket what a process of this node left half-written when it was killed. Nobody else may be
    writing there. Raises `Unavailable`. In an S3 store that is for `sweep`: nobody knows whose an upload is."""
    if isinstance(bucket, DirectoryBucket):
        await bucket.remove_unfinished()


async def _sweep_windows(bucket: Bucket, keys: Keys, before_window: int) -> None:
    if before_window <= 0:
        return
    first_kept = keys.window_prefix(before_window)
    # Digits sort before the letters of `ledger` and `receipts`: old windows are the head of the list, and
    # the rest of a long ledger need not be listed at all.
    async for info in bucket.list(f"{keys.run}/"):
        if info.key >= first_kept:
            break
        if keys.window_of(info.key) is not None:
            await bucket.delete(info.key)
    async for info in bucket.list(keys.manifests_prefix()):
        window = keys.manifest_window_of(info.key)
        if window is None or window >= before_window:
            break
        await bucket.delete(info.key)


async def _sweep_checkpoints(bucket: Bucket, keys: Keys, keep_checkpoints: int, needed_window: int | None) -> None:
    latest = await latest_window(bucket, keys)
    if latest is None:
        return
    limit = latest if needed_window is None else min(latest, needed_window)
    complete = await complete_windows(bucket, keys, before_window=latest)
    # One less: the one that the pointer names is kept in any case.
    kept = complete[len(complete) - min(keep_checkpoints - 1, len(complete)) :]
    # Ascending keys: an index goes before its shards, so what is left midway is seen to be incomplete.
    async for info in bucket.list(keys.checkpoint_prefix()):
        window = keys.checkpoint_window_of(info.key)
        if window is not None and window < limit and window not in kept:
            await bucket.delete(info.key)
