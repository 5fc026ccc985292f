"""Checkpoints: whole or not there, whatever a crash or a hostile bucket does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from safetensors.numpy import load

from storage.checkpoint import Checkpoint, latest_window, open_checkpoint, write_checkpoint
from storage.errors import CheckpointError, NotFound, Unavailable
from storage.keys import Keys

KEYS = Keys("0123456789abcdef")
SHAPES: dict[str, tuple[int, ...]] = {"embed": (5, 4), "bias": (), "empty": (0, 3), "head": (7,)}
SHARD_BYTES = 100  # embed 80, bias 4 and empty 0 | head 28
LEAF_BYTES = 48  # 48 | 36 and 12 of the second shard | 16
SHARDS = ("shard-00000.safetensors", "shard-00001.safetensors")


def state(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {name: np.asarray(draw.standard_normal(shape), dtype=np.float32) for name, shape in SHAPES.items()}


def root_of(seed: int) -> str:
    return f"{seed:064x}"


def write(bucket: Any, window: int, seed: int) -> None:
    asyncio.run(
        write_checkpoint(
            bucket,
            KEYS,
            window=window,
            root=root_of(seed),
            tensors=state(seed),
            shard_bytes=SHARD_BYTES,
            leaf_bytes=LEAF_BYTES,
        )
    )


def opened(bucket: Any, window: int | None = None, shapes: dict[str, tuple[int, ...]] | None = None) -> Checkpoint:
    return asyncio.run(open_checkpoint(bucket, KEYS, window=window, shapes=shapes or SHAPES))


def read(
    bucket: Any, window: int | None = None, shapes: dict[str, tuple[int, ...]] | None = None
) -> tuple[int, str, bytes]:
    """Window, root and bytes of a checkpoint, all leaves read."""
    checkpoint = opened(bucket, window, shapes)
    leaves = [asyncio.run(checkpoint.read_leaf(leaf)) for leaf in range(len(checkpoint.index.leaves))]
    return checkpoint.index.window, checkpoint.index.root, b"".join(leaves)


def assert_holds(found: tuple[int, str, bytes], window: int, seed: int) -> None:
    assert found == (window, root_of(seed), b"".join(tensor.tobytes() for tensor in state(seed).values()))


def folder(bucket: Any, window: int) -> Path:
    return bucket.inner.root / KEYS.run / "checkpoints" / f"{window:08d}"


def repoint(bucket: Any, window: int) -> None:
    """Let the pointer name whatever index lies there now: a hostile bucket is consistent with itself."""
    digest = blake3((folder(bucket, window) / "index.json").read_bytes()).hexdigest()
    pointer = {"version": 1, "window": window, "index_digest": digest}
    (bucket.inner.root / KEYS.checkpoint_latest()).write_text(json.dumps(pointer))


def change_index(bucket: Any, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder(bucket, 10) / "index.json"
    index = json.loads(path.read_bytes())
    change(index)
    path.write_text(json.dumps(index))
    repoint(bucket, 10)


def test_a_checkpoint_comes_back_to_the_bit(bucket: Any) -> None:
    write(bucket, 10, seed=1)
    assert_holds(read(bucket), 10, seed=1)
    assert_holds(read(bucket, window=10), 10, seed=1)
    assert sorted(path.name for path in folder(bucket, 10).iterdir()) == [
        "index.json",
        "shard-00000.safetensors",
        "shard-00001.safetensors",
    ]


def test_shards_are_safetensors_files(bucket: Any) -> None:
    write(bucket, 10, seed=1)
    found = {
        name: tensor for shard in SHARDS for name, tensor in load((folder(bucket, 10) / shard).read_bytes()).items()
    }
    assert {name: tensor.shape for name, tensor in found.items()} == SHAPES
    assert all(found[name].tobytes() == tensor.tobytes() for name, tensor in state(1).items())


def test_special_values_and_strided_views_are_kept_to_the_bit(bucket: Any) -> None:
    odd = np.array([[np.nan, -0.0, np.inf], [1e-45, -np.inf, 3.4e38]], dtype=np.float32).T
    asyncio.run(write_checkpoint(bucket, KEYS, window=0, root=root_of(1), tensors={"odd": odd}))
    assert read(bucket, shapes={"odd": (3, 2)})[2] == odd.tobytes()


def test_a_leaf_can_be_read_alone_and_every_byte_once(bucket: Any) -> None:
    write(bucket, 10, seed=1)
    checkpoint = opened(bucket)
    whole = read(bucket)[2]
    sizes = {shard: (folder(bucket, 10) / shard).stat().st_size for shard in SHARDS}
    for leaf in (2, 0, 1):
        bucket.calls.clear()
        start, end = checkpoint.extent(leaf)
        assert asyncio.run(checkpoint.read_leaf(leaf)) == whole[start:end]
        for call in bucket.calls:
            sizes[call[1].rpartition("/")[2]] -= call[3]
    assert set(sizes.values()) == {0}


def test_the_newest_checkpoint_is_the_latest_and_older_ones_stay_readable(bucket: Any) -> None:
    assert asyncio.run(latest_window(bucket, KEYS)) is None
    write(bucket, 10, seed=1)
    write(bucket, 20, seed=2)
    assert asyncio.run(latest_window(bucket, KEYS)) == 20
    assert_holds(read(bucket), 20, seed=2)
    assert_holds(read(bucket, window=10), 10, seed=1)


def test_no_checkpoint_is_not_found(bucket: Any) -> None:
    for window in (None, 10):
        with pytest.raises(NotFound):
            read(bucket, window=window)


def test_the_pointer_is_written_last_and_the_index_before_it(bucket: Any) -> None:
    write(bucket, 10, seed=1)
    puts = [call[1].rpartition("/")[2] for call in bucket.calls if call[0] == "put"]
    assert puts == ["shard-00000.safetensors", "shard-00001.safetensors", "index.json", "latest.json"]


@pytest.mark.parametrize("step", range(5))
def test_a_crash_at_any_write_leaves_the_previous_checkpoint_readable(bucket: Any, step: int) -> None:
    write(bucket, 10, seed=1)
    bucket.fail_from = bucket.changes + step
    with pytest.raises(Unavailable):
        write(bucket, 20, seed=2)
    assert_holds(read(bucket), 10, seed=1)
    bucket.fail_from = None
    write(bucket, 20, seed=2)
    assert_holds(read(bucket), 20, seed=2)


def test_five_changes_make_a_checkpoint(bucket: Any) -> None:
    # So that the steps of the test above are all there are: the old index, two shards, index, pointer.
    write(bucket, 10, seed=1)
    assert bucket.changes == 5


@pytest.mark.parametrize("step", range(6))
def test_a_crash_while_the_latest_is_replaced_by_another_branch_leaves_a_readable_one(bucket: Any, step: int) -> None:
    write(bucket, 10, seed=1)
    write(bucket, 20, seed=2)
    bucket.fail_from = bucket.changes + step
    with pytest.raises(Unavailable):
        write(bucket, 20, seed=3)
    found = read(bucket)
    assert_holds(found, found[0], seed={10: 1, 20: 2}[found[0]])
    bucket.fail_from = None
    write(bucket, 20, seed=3)
    assert_holds(read(bucket), 20, seed=3)


@pytest.mark.parametrize("step", range(6))
def test_a_crash_while_the_only_checkpoint_is_replaced_leaves_the_old_one_or_none(bucket: Any, step: int) -> None:
    write(bucket, 10, seed=1)
    bucket.fail_from = bucket.changes + step
    with pytest.raises(Unavailable):
        write(bucket, 10, seed=2)
    if step == 0:
        assert_holds(read(bucket), 10, seed=1)
    else:
        with pytest.raises(NotFound):
            read(bucket)
        assert asyncio.run(latest_window(bucket, KEYS)) is None


def test_a_checkpoint_half_overwritten_is_not_stepped_back_to(bucket: Any) -> None:
    write(bucket, 10, seed=1)
    write(bucket, 20, seed=2)
    write(bucket, 30, seed=3)
    bucket.fail_from = bucket.changes + 2
    with pytest.raises(Unavailable):
        write(bucket, 20, seed=4)
    bucket.fail_from = bucket.changes + 1
    with pytest.raises(Unavailable):
        write(bucket, 30, seed=5)
    assert_holds(read(bucket), 10, seed=1)


def test_every_request_has_its_limit(bucket: Any) -> None:
    write(bucket, 10, seed=1)
    bucket.calls.clear()
    opened(bucket)
    limits = [(call[1].rpartition("/")[2], call[2]) for call in bucket.calls]
    assert limits == [("latest.json", 4 << 10), ("index.json", 4 << 20)]


@pytest.mark.parametrize("name", ["latest.json", "00000010/index.json"])
def test_an_oversize_document_is_refused(bucket: Any, name: str) -> None:
    write(bucket, 10, seed=1)
    with (bucket.inner.root / KEYS.run / "checkpoints" / name).open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="larger"):
        read(bucket)


@pytest.mark.parametrize("size_bytes", [1 << 40, 99])
@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_of_another_size_is_refused(bucket: Any, name: str, size_bytes: int) -> None:
    write(bucket, 10, seed=1)
    with (folder(bucket, 10) / name).open("r+b") as file:
        file.truncate(size_bytes)
    with pytest.raises(CheckpointError, match="bytes, not the"):
        read(bucket)


@pytest.mark.parametrize("name", ["index.json", *SHARDS])
def test_a_missing_object_makes_it_incomplete(bucket: Any, name: str) -> None:
    write(bucket, 10, seed=1)
    (folder(bucket, 10) / name).unlink()
    with pytest.raises(CheckpointError, match="incomplete"):
        read(bucket)


@pytest.mark.parametrize("place", [0, 8, 20, -100, -1])
@pytest.mark.parametrize("name", SHARDS)
def test_one_flipped_bit_in_a_shard_is_found_and_costs_one_leaf(bucket: Any, name: str, place: int) -> None:
    write(bucket, 10, seed=1)
    data = bytearray((folder(bucket, 10) / name).read_bytes())
    data[place] ^= 1
    (folder(bucket, 10) / name).write_bytes(data)
    checkpoint, wrong = opened(bucket), []
    for leaf in range(3):
        try:
            asyncio.run(checkpoint.read_leaf(leaf))
        except CheckpointError as error:
            wrong.append(str(error))
    assert len(wrong) == 1
    assert name in wrong[0]


def test_a_shard_of_another_checkpoint_is_refused(bucket: Any) -> None:
    write(bucket, 10, seed=1)
    write(bucket, 20, seed=2)
    (folder(bucket, 20) / SHARDS[0]).write_bytes((folder(bucket, 10) / SHARDS[0]).read_bytes())
    with pytest.raises(CheckpointError, match="digest"):
        read(bucket)


def test_an_index_of_another_window_or_run_is_refused(bucket: Any) -> None:
    write(bucket, 10, seed=1)
    write(bucket, 20, seed=2)
    (folder(bucket, 20) / "index.json").write_bytes((folder(bucket, 10) / "index.json").read_bytes())
    with pytest.raises(CheckpointError, match="names"):
        read(bucket)
    with pytest.raises(CheckpointError, match="not of where it lies"):
        read(bucket, window=20)
    repoint(bucket, 20)
    with pytest.raises(CheckpointError, match="not of where it lies"):
        read(bucket)
    change_index(bucket, lambda index: index.update(run="f" * 16))
    with pytest.raises(CheckpointError, match="not of where it lies"):
        read(bucket, window=10)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(surprise=1),
        lambda index: index.update(version=1),
        lambda index: index.update(leaf_bytes=0),
        lambda index: index.update(leaf_bytes=32),
        lambda index: index["leaves"].pop(),
        lambda index: index["leaves"].append("0" * 64),
        lambda index: index["leaves"].__setitem__(0, "0"),
        lambda index: index.update(root="0" * 63),
        lambda index: index.update(window="10"),
        lambda index: index.update(shards=[]),
        lambda index: index["shards"].reverse(),
        lambda index: index["shards"].pop(),
        lambda index: index["shards"].append(index["shards"][1]),
        lambda index: index["shards"][0].update(name="../../../secret"),
        lambda index: index["shards"][0].update(name="latest.json"),
        lambda index: index["shards"][0].update(size_bytes=1 << 40),
        lambda index: index["shards"][0].update(size_bytes=83),
        lambda index: index["shards"][0].update(size_bytes=-1),
        lambda index: index["shards"][1].update(tensors=["head", "head"]),
        lambda index: index["shards"][1].update(tensors=["tail"]),
        lambda index: index["shards"][1].update(tensors=[]),
        lambda index: index["shards"][1].update(tensors=["bias"]),
        lambda index: index["shards"][0].update(tensors=["bias", "embed", "empty"]),
    ],
)
def test_an_index_that_does_not_add_up_is_refused(bucket: Any, change: Callable[[dict[str, Any]], None]) -> None:
    write(bucket, 10, seed=1)
    change_index(bucket, lambda index: None)
    read(bucket)
    change_index(bucket, change)
    bucket.calls.clear()
    with pytest.raises(CheckpointError):
        read(bucket)
    assert not any("safetensors" in call[1] for call in bucket.calls), "a shard was requested all the same"


def test_other_shapes_than_those_stored_are_refused(bucket: Any) -> None:
    write(bucket, 10, seed=1)
    for shapes in (SHAPES | {"head": (6,)}, SHAPES | {"more": (1,)}, {"embed": (5, 4)}, SHAPES | {"embed": (4, 5)}):
        with pytest.raises(CheckpointError):
            read(bucket, shapes=shapes)


@pytest.mark.parametrize("pointer", [b"", b"{}", b"null", b'{"version":1,"window":-1,"index_digest":""}'])
def test_a_malformed_pointer_is_refused_and_mended_by_the_next_write(bucket: Any, pointer: bytes) -> None:
    write(bucket, 10, seed=1)
    (bucket.inner.root / KEYS.checkpoint_latest()).write_bytes(pointer)
    with pytest.raises(CheckpointError, match=r"latest\.json is malformed"):
        read(bucket)
    with pytest.raises(CheckpointError):
        asyncio.run(latest_window(bucket, KEYS))
    write(bucket, 10, seed=1)
    assert_holds(read(bucket), 10, seed=1)


def test_only_float32_is_written(bucket: Any) -> None:
    tensors = {"a": np.zeros(3, np.float64)}
    with pytest.raises(CheckpointError, match="float64"):
        asyncio.run(write_checkpoint(bucket, KEYS, window=0, root=root_of(0), tensors=tensors))
    assert bucket.changes == 0
