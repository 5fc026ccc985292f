"""A checkpoint from several places: every leaf is checked, comes once, and from whoever has it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurons import loading
from neurons.lab.virtual import run_virtually
from neurons.loading import read_state
from neurons.rounds import Place
from protocol.ledger import state
from protocol.ledger.state import state_root
from protocol.sparseloco.layout import Layout
from storage.bucket import Writer
from storage.checkpoint import write_checkpoint
from storage.directory import DirectoryBucket
from storage.errors import Unavailable
from storage.keys import Keys

KEYS = Keys("0123456789abcdef")
LEAF_BYTES = 4096
LAYOUT = Layout.from_shapes([("embed", (40, 64)), ("norm", (64,)), ("head", (64, 40))])
LEAVES = 6
WINDOW = 10


@pytest.fixture(autouse=True)
def _small_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loading, state):
        monkeypatch.setattr(module, "LEAF_BYTES", LEAF_BYTES)


class Watched:
    """A bucket that counts what is read of shards, takes `seconds` for each range, and may fall silent."""

    def __init__(self, root: Path, seconds: float = 0.001) -> None:
        self.inner = DirectoryBucket(root)
        self.seconds, self.silent_from = seconds, 10**9
        self.ranges: Counter[tuple[str, int, int]] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def copy_range(self, key: str, start: int, length: int, writer: Writer, *, size_bytes: int) -> None:
        await asyncio.sleep(self.seconds)
        if len(self.ranges) >= self.silent_from:
            raise Unavailable("no answer within 12 s")
        await self.inner.copy_range(key, start, length, writer, size_bytes=size_bytes)
        self.ranges[key.rpartition("/")[2], start, length] += 1

    def shard(self, number: int) -> Path:
        return self.inner.root / KEYS.checkpoint(WINDOW, f"shard-{number:05d}.safetensors")

    def flip(self, number: int, at: int) -> None:
        data = bytearray(self.shard(number).read_bytes())
        data[at] ^= 1
        self.shard(number).write_bytes(data)


@pytest.fixture
def theta() -> np.ndarray:
    return np.random.default_rng(1).standard_normal(LAYOUT.size).astype(np.float32)


@pytest.fixture
def buckets(tmp_path: Path, theta: np.ndarray) -> list[Watched]:
    """Two that hold the same checkpoint, cut into other shards."""

    async def fill() -> None:
        for bucket, shard_bytes in zip(made, (12_000, 1 << 20), strict=True):
            root, tensors = state_root(theta), LAYOUT.tensors(theta)
            await write_checkpoint(
                bucket.inner,
                KEYS,
                window=WINDOW,
                root=root,
                tensors=tensors,
                shard_bytes=shard_bytes,
                leaf_bytes=LEAF_BYTES,
            )

    made = [Watched(tmp_path / name) for name in "ab"]
    asyncio.run(fill())
    return made


def loaded(buckets: list[Watched], theta: np.ndarray) -> tuple[np.ndarray | None, list[str]]:
    """What comes of reading from these buckets, and what is said meanwhile."""
    said: list[str] = []
    places = [Place(f"uid {number}", bucket) for number, bucket in enumerate(buckets)]
    found = run_virtually(read_state(places, KEYS, LAYOUT, WINDOW, state_root(theta), said.append))
    return found, said


def bytes_read(buckets: list[Watched]) -> int:
    return sum(length * count for bucket in buckets for (_, _, length), count in bucket.ranges.items())


def test_a_checkpoint_is_read_from_both_and_every_byte_once(buckets: list[Watched], theta: np.ndarray) -> None:
    found, said = loaded(buckets, theta)
    assert found is not None
    assert found.tobytes() == theta.tobytes()
    assert all(bucket.ranges for bucket in buckets)
    headers = max(sum(b.shard(n).stat().st_size for n in range(3) if b.shard(n).exists()) for b in buckets)
    assert theta.nbytes <= bytes_read(buckets) <= headers
    assert said == []


def test_a_wrong_leaf_is_taken_from_the_other_and_its_place_is_named(buckets: list[Watched], theta: np.ndarray) -> None:
    for bucket in buckets:  # neither has all of it
        bucket.flip(0, -1)
    found, said = loaded(buckets, theta)
    assert found is not None
    assert found.tobytes() == theta.tobytes()
    assert said
    assert all("does not have the digest" in sentence for sentence in said)
    assert all(sentence.startswith(("checkpoint 10 of uid 0: ", "checkpoint 10 of uid 1: ")) for sentence in said)


def test_a_leaf_that_nobody_has_right_makes_it_none(buckets: list[Watched], theta: np.ndarray) -> None:
    buckets[0].flip(0, -1)
    found, said = loaded(buckets[:1], theta)
    assert found is None
    assert len(said) == 1
    assert said[0].startswith("checkpoint 10 of uid 0: leaf 2, in ")


def test_who_gives_one_wrong_leaf_after_the_other_is_asked_no_more(buckets: list[Watched], theta: np.ndarray) -> None:
    for at in range(-1, -10_000, -LEAF_BYTES // 2):
        buckets[0].flip(0, at)
        buckets[0].flip(1, at)
    found, said = loaded(buckets[:1], theta)
    assert found is None
    assert 3 <= len(said) <= 4


def test_a_slow_leaf_is_read_from_another_place_too(buckets: list[Watched], theta: np.ndarray) -> None:
    buckets[0].seconds = 1000.0

    async def read() -> tuple[Any, float]:
        places = [Place(f"uid {number}", bucket) for number, bucket in enumerate(buckets)]
        found = await read_state(places, KEYS, LAYOUT, WINDOW, state_root(theta), said.append)
        return found, asyncio.get_running_loop().time()

    said: list[str] = []
    found, seconds = run_virtually(read())
    assert found.tobytes() == theta.tobytes()
    assert seconds < 10.0
    assert said[0].endswith("comes slowly from uid 0: it is read from uid 1 too")


def test_who_falls_silent_is_not_waited_for_again(buckets: list[Watched], theta: np.ndarray) -> None:
    buckets[0].silent_from = 1
    found, said = loaded(buckets, theta)
    assert found is not None
    assert found.tobytes() == theta.tobytes()
    assert len(said) <= 2
    assert all("no answer" in sentence for sentence in said)


def test_leaves_that_give_another_root_are_not_read(buckets: list[Watched], theta: np.ndarray) -> None:
    other = theta.copy()
    other[7] += 1
    found, said = loaded(buckets, other)
    assert found is None
    assert len(said) == 2
    assert all(f"the ledger says {state_root(other)}" in sentence for sentence in said)
    assert bytes_read(buckets) == 0
