"""Sweeping: old windows and old checkpoints go, the ledger and what the pointer names never do."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from storage.checkpoint import latest_window, write_checkpoint
from storage.errors import Unavailable
from storage.keys import Keys
from storage.retention import sweep

KEYS = Keys("0123456789abcdef")
OTHER = Keys("f" * 16)
HOTKEYS = ("5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY", "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty")


def sweep_now(bucket: Any, before_window: int, keep_checkpoints: int) -> None:
    asyncio.run(sweep(bucket, KEYS, before_window=before_window, keep_checkpoints=keep_checkpoints))


def checkpoint(bucket: Any, window: int) -> None:
    tensors = {"a": np.zeros(3, np.float32)}
    asyncio.run(write_checkpoint(bucket, KEYS, window=window, root="0" * 64, tensors=tensors))


def keys_in(bucket: Any) -> set[str]:
    async def collect() -> set[str]:
        return {info.key async for info in bucket.inner.list("")}

    return asyncio.run(collect())


def checkpoints_in(bucket: Any) -> list[int]:
    return sorted({w for key in keys_in(bucket) if (w := KEYS.checkpoint_window_of(key)) is not None})


def put_all(bucket: Any, keys: set[str]) -> None:
    async def put() -> None:
        for key in keys:
            await bucket.put(key, b"x")

    asyncio.run(put())


def test_old_seals_shards_and_reveals_go_and_everything_else_stays(bucket: Any) -> None:
    def of_window(window: int) -> set[str]:
        return {
            key
            for hotkey in HOTKEYS
            for key in (KEYS.seal(window, hotkey), KEYS.key(window, hotkey), KEYS.shard(window, hotkey, 0))
        }

    always = {KEYS.run_toml(), KEYS.ledger_head(), KEYS.receipts_head(), OTHER.seal(3, HOTKEYS[0])}
    always |= {f"{KEYS.run}/+note", f"{KEYS.run}/0/x"}  # sort before the windows, belong to none
    always |= {name(window) for window in range(12) for name in (KEYS.manifest, KEYS.receipts)}
    put_all(bucket, always.union(*(of_window(window) for window in range(12))))
    sweep_now(bucket, before_window=10, keep_checkpoints=1)
    assert keys_in(bucket) == always | of_window(10) | of_window(11)
    sweep_now(bucket, before_window=0, keep_checkpoints=1)
    sweep_now(bucket, before_window=-5, keep_checkpoints=1)
    assert keys_in(bucket) == always | of_window(10) | of_window(11)


@pytest.mark.parametrize(("keep", "left"), [(1, [40]), (2, [30, 40]), (4, [10, 20, 30, 40]), (9, [10, 20, 30, 40])])
def test_the_newest_checkpoints_are_kept(bucket: Any, keep: int, left: list[int]) -> None:
    for window in (10, 20, 30, 40):
        checkpoint(bucket, window)
    sweep_now(bucket, before_window=100, keep_checkpoints=keep)
    assert checkpoints_in(bucket) == left
    assert asyncio.run(latest_window(bucket, KEYS)) == 40


@pytest.mark.parametrize("step", range(4))
def test_a_checkpoint_being_written_neither_goes_nor_pushes_out_the_one_in_force(bucket: Any, step: int) -> None:
    checkpoint(bucket, 10)
    checkpoint(bucket, 20)
    bucket.fail_from = bucket.changes + step
    with pytest.raises(Unavailable):
        checkpoint(bucket, 30)
    bucket.fail_from = None
    half_written = {key for key in keys_in(bucket) if KEYS.checkpoint_window_of(key) == 30}
    sweep_now(bucket, before_window=100, keep_checkpoints=1)
    assert asyncio.run(latest_window(bucket, KEYS)) == 20
    assert checkpoints_in(bucket) == ([20, 30] if half_written else [20])
    assert half_written <= keys_in(bucket)


def test_an_incomplete_old_checkpoint_goes_and_does_not_count(bucket: Any) -> None:
    for window in (10, 20, 30):
        checkpoint(bucket, window)
    (bucket.inner.root / KEYS.checkpoint(20, "index.json")).unlink()
    sweep_now(bucket, before_window=0, keep_checkpoints=2)
    assert checkpoints_in(bucket) == [10, 30]


def test_without_a_pointer_no_checkpoint_is_deleted(bucket: Any) -> None:
    put_all(bucket, {KEYS.checkpoint(10, "index.json"), KEYS.checkpoint(20, "index.json")})
    sweep_now(bucket, before_window=0, keep_checkpoints=1)
    assert checkpoints_in(bucket) == [10, 20]


def test_keeping_no_checkpoint_at_all_is_the_callers_error(bucket: Any) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        sweep_now(bucket, before_window=0, keep_checkpoints=0)


def test_manifests_by_digest_go_with_their_windows_and_ballots_and_evidence_stay(bucket: Any) -> None:
    always = {KEYS.ballots(), *(KEYS.evidence(window, HOTKEYS[0], "votes") for window in range(4))}
    named = {window: {KEYS.manifest_of(window, digest * 32) for digest in ("0a", "0b")} for window in range(4)}
    put_all(bucket, always.union(*named.values()))
    sweep_now(bucket, before_window=2, keep_checkpoints=1)
    assert keys_in(bucket) == always | named[2] | named[3]


@pytest.mark.parametrize(("needed", "left"), [(0, [10, 20, 30, 40]), (20, [20, 30, 40]), (35, [40]), (90, [40])])
def test_checkpoints_from_the_needed_window_on_are_kept(bucket: Any, needed: int, left: list[int]) -> None:
    for window in (10, 20, 30, 40):
        checkpoint(bucket, window)
    asyncio.run(sweep(bucket, KEYS, before_window=0, keep_checkpoints=1, needed_window=needed))
    assert checkpoints_in(bucket) == left
