"""Checkpoints of the state: safetensors shards, an index, and a pointer that is written last (protocol §15).

Who reads a checkpoint from another peer must compare its `root`, and the state root of its tensors, with the
ledger: that is the protocol room's work. Here is checked that the objects are whole, belong together and hold
exactly the tensors asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from storage.bucket import Bucket
from storage.documents import Digest, StoredDocument, digest_of
from storage.errors import CheckpointError, NotFound, TooLarge
from storage.keys import WINDOW_LIMIT, Keys

INDEX_NAME = "index.json"
INDEX_LIMIT_BYTES = 4 << 20
POINTER_LIMIT_BYTES = 4 << 10
SHARD_HEADER_LIMIT_BYTES = 1 << 20
"""What a shard may have beyond its tensors' bytes."""

_FLOAT_BYTES = 4
# The library leaves this function untyped.
_deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = deserialize

Window = Annotated[int, Field(ge=0, lt=WINDOW_LIMIT)]


class CheckpointShard(StoredDocument):
    """One safetensors object: its name, size, BLAKE3, and the tensors in it."""

    name: str
    size_bytes: Annotated[int, Field(ge=0)]
    digest: Digest
    tensors: Annotated[tuple[str, ...], Field(min_length=1)]


class CheckpointIndex(StoredDocument):
    """All of `index.json`. `run` is the first 16 digits of the run digest, as in every key; `root` is the state root
    that the tensors should have."""

    version: Literal[1] = 1
    run: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    window: Window
    root: Digest
    shards: tuple[CheckpointShard, ...]


class CheckpointPointer(StoredDocument):
    """All of `latest.json`: the newest complete checkpoint, by window and BLAKE3 of its index."""

    version: Literal[1] = 1
    window: Window
    index_digest: Digest


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state at the start of `window`. `root` is what the checkpoint claims, not yet compared with the ledger;
    `tensors` are fp32 arrays that the caller owns, in the order of the shapes asked for."""

    window: int
    root: str
    tensors: dict[str, NDArray[np.float32]]


async def latest_window(bucket: Bucket, keys: Keys) -> int | None:
    """The window of the newest complete checkpoint, None when there is none. Raises `CheckpointError` when the
    pointer is malformed."""
    try:
        return (await _read_pointer(bucket, keys)).window
    except NotFound:
        return None


async def complete_windows(bucket: Bucket, keys: Keys, *, before_window: int) -> list[int]:
    """Windows below `before_window` whose checkpoint has its index, hence all its shards; ascending."""
    return [
        window
        async for info in bucket.list(keys.checkpoint_prefix())
        if (window := keys.checkpoint_window_of(info.key)) is not None
        and window < before_window
        and info.key == keys.checkpoint(window, INDEX_NAME)
    ]


async def write_checkpoint(
    bucket: Bucket,
    keys: Keys,
    *,
    window: int,
    root: str,
    tensors: Mapping[str, NDArray[np.float32]],
    shard_bytes: int = 1 << 30,
) -> None:
    """Store `tensors` (fp32), the state at the start of `window` with state root `root` (64 hexadecimal digits), in
    shards of about `shard_bytes`; a tensor is never cut. `CheckpointError` when a tensor is not fp32.

    The pointer moves last. Wherever a crash falls, the pointer leads to a complete checkpoint, also when a node
    that went back and replayed writes the very window that the pointer names.
    """
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise CheckpointError(f"tensor {name} is {tensor.dtype}: a checkpoint holds float32")
    groups = list(_groups({name: tensor.nbytes for name, tensor in tensors.items()}, shard_bytes))
    await _step_back(bucket, keys, window)
    await bucket.delete(keys.checkpoint(window, INDEX_NAME))  # an index is there only while its shards are
    shards = []
    for number, names in enumerate(groups):
        data, digest = await asyncio.to_thread(_pack, {name: tensors[name] for name in names})
        shards.append(CheckpointShard(name=_shard_name(number), size_bytes=len(data), digest=digest, tensors=names))
        await bucket.put(keys.checkpoint(window, shards[-1].name), data)
    index = CheckpointIndex(run=keys.run, window=window, root=root, shards=tuple(shards)).to_bytes()
    await bucket.put(keys.checkpoint(window, INDEX_NAME), index)
    await _point(bucket, keys, window, index)


async def read_checkpoint(
    bucket: Bucket, keys: Keys, *, window: int | None, shapes: Mapping[str, tuple[int, ...]]
) -> Checkpoint:
    """The checkpoint of `window`, or the newest for None. `shapes` names every expected tensor and its shape: all
    size limits follow from it before a byte is requested.

    Raises `NotFound` when there is no such checkpoint, and `CheckpointError` when it is incomplete, oversize, fails
    a digest, or does not hold exactly these tensors in fp32. The caller compares the root with the ledger.
    """
    index = await _read_index(bucket, keys, window)
    _check_index(index, shapes)
    tensors: dict[str, NDArray[np.float32]] = {}
    for shard in index.shards:
        key = keys.checkpoint(index.window, shard.name)
        data = await _get_listed(bucket, key, shard.size_bytes)
        expected = {name: shapes[name] for name in shard.tensors}
        tensors.update(await asyncio.to_thread(_unpack, key, data, shard.digest, expected))
    return Checkpoint(index.window, index.root, {name: tensors[name] for name in shapes})


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _groups(sizes: Mapping[str, int], shard_bytes: int) -> Iterator[tuple[str, ...]]:
    """Names in order, cut where the next tensor would exceed `shard_bytes`."""
    group: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if group and filled + size > shard_bytes:
            yield tuple(group)
            group, filled = [], 0
        group.append(name)
        filled += size
    if group:
        yield tuple(group)


def _pack(tensors: Mapping[str, NDArray[np.float32]]) -> tuple[bytes, str]:
    # safetensors writes an array's memory as it lies, so a transposed view would come out silently wrong.
    data = save({name: np.asarray(tensor, dtype="<f4", order="C") for name, tensor in tensors.items()})
    return data, digest_of(data)


async def _step_back(bucket: Bucket, keys: Keys, window: int) -> None:
    """Before the checkpoint that the pointer names is overwritten, move the pointer to the one below, or away."""
    try:
        pointer = await _read_pointer(bucket, keys)
    except (NotFound, CheckpointError):
        return  # nothing readable to protect
    if pointer.window != window:
        return
    below = await complete_windows(bucket, keys, before_window=window)
    if below:
        index = await _get_listed(bucket, keys.checkpoint(below[-1], INDEX_NAME), INDEX_LIMIT_BYTES)
        await _point(bucket, keys, below[-1], index)
    else:
        await bucket.delete(keys.checkpoint_latest())


async def _point(bucket: Bucket, keys: Keys, window: int, index: bytes) -> None:
    pointer = CheckpointPointer(window=window, index_digest=digest_of(index))
    await bucket.put(keys.checkpoint_latest(), pointer.to_bytes())


async def _read_pointer(bucket: Bucket, keys: Keys) -> CheckpointPointer:
    key = keys.checkpoint_latest()
    return CheckpointPointer.from_bytes(await _get(bucket, key, POINTER_LIMIT_BYTES), key, CheckpointError)


async def _read_index(bucket: Bucket, keys: Keys, window: int | None) -> CheckpointIndex:
    """The index of `window`, or of the one the pointer names; an index the pointer names must be there."""
    if window is not None:
        key = keys.checkpoint(window, INDEX_NAME)
        data = await _get(bucket, key, INDEX_LIMIT_BYTES)
    else:
        pointer = await _read_pointer(bucket, keys)
        window = pointer.window
        key = keys.checkpoint(window, INDEX_NAME)
        data = await _get_listed(bucket, key, INDEX_LIMIT_BYTES)
        if digest_of(data) != pointer.index_digest:
            raise CheckpointError(f"{key} is not the index that {keys.checkpoint_latest()} names")
    index = CheckpointIndex.from_bytes(data, key, CheckpointError)
    if (index.run, index.window) != (keys.run, window):
        raise CheckpointError(f"{key} is of run {index.run} and window {index.window}, not of where it lies")
    return index


def _check_index(index: CheckpointIndex, shapes: Mapping[str, tuple[int, ...]]) -> None:
    names: list[str] = []
    for number, shard in enumerate(index.shards):
        if shard.name != _shard_name(number):
            raise CheckpointError(f"shard {number} is named {shard.name!r}, it must be {_shard_name(number)}")
        names.extend(shard.tensors)
    if sorted(names) != sorted(shapes):
        raise CheckpointError(f"the checkpoint lists {len(names)} tensors, not exactly the {len(shapes)} expected")
    for shard in index.shards:
        tensor_bytes = _FLOAT_BYTES * sum(prod(shapes[name]) for name in shard.tensors)
        if not tensor_bytes <= shard.size_bytes <= tensor_bytes + SHARD_HEADER_LIMIT_BYTES:
            raise CheckpointError(f"{shard.name} has {shard.size_bytes} bytes for {tensor_bytes} bytes of tensors")


def _unpack(
    key: str, data: bytes, digest: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float32]]:
    if digest_of(data) != digest:
        raise CheckpointError(f"{key} does not have the digest that {INDEX_NAME} names")
    try:
        found = dict(_deserialize(data))
    except SafetensorError as error:
        raise CheckpointError(f"{key} is not a safetensors file: {error}") from error
    if found.keys() != shapes.keys():
        raise CheckpointError(f"{key} does not hold exactly the tensors that {INDEX_NAME} lists")
    for name, shape in shapes.items():
        if found[name]["dtype"] != "F32" or tuple(found[name]["shape"]) != shape:
            raise CheckpointError(f"{key}: tensor {name} is not float32 of shape {shape}")
    return {name: np.frombuffer(found[name]["data"], "<f4").reshape(shape) for name, shape in shapes.items()}


async def _get(bucket: Bucket, key: str, limit_bytes: int) -> bytes:
    try:
        return await bucket.get(key, limit_bytes=limit_bytes)
    except TooLarge as error:
        raise CheckpointError(f"{key} is larger than the {limit_bytes} bytes it may have") from error


async def _get_listed(bucket: Bucket, key: str, limit_bytes: int) -> bytes:
    """An object that another one promises: here its absence is the checkpoint's fault."""
    try:
        return await _get(bucket, key, limit_bytes)
    except NotFound as error:
        raise CheckpointError(f"the checkpoint is incomplete: {key} is missing") from error
