"""Checkpoints of the state: safetensors shards, an index, and a pointer that is written last (protocol §15).

The bytes of all tensors, one after the other, are cut into *leaves*, and the index holds the digest of each: so a
reader can check what it has of a checkpoint while the rest still comes, and take each leaf from another bucket. Who
reads a checkpoint from a peer must compare what its leaves give with the ledger: that is the protocol room's work. Here
is checked that the objects belong together and hold exactly the tensors asked for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Literal

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from pydantic import Field, StringConstraints

from storage.bucket import Bucket
from storage.documents import Digest, StoredDocument, digest_of
from storage.errors import CheckpointError, NotFound, TooLarge, WrongSize
from storage.keys import WINDOW_LIMIT, Keys

INDEX_NAME = "index.json"
INDEX_LIMIT_BYTES = 4 << 20
POINTER_LIMIT_BYTES = 4 << 10
LEAF_BYTES = 16 << 20

_FLOAT_BYTES = 4

Window = Annotated[int, Field(ge=0, lt=WINDOW_LIMIT)]


class CheckpointShard(StoredDocument):
    """One safetensors object: its name, size, and the tensors in it, in the order in which they lie there."""

    name: str
    size_bytes: Annotated[int, Field(ge=0)]
    tensors: Annotated[tuple[str, ...], Field(min_length=1)]


class CheckpointIndex(StoredDocument):
    """All of `index.json`. `run` is the first 16 digits of the run digest, as in every key; `root` is the state root
    that the tensors should have; `leaves` is the BLAKE3 of every `leaf_bytes` of them, the last may be shorter."""

    version: Literal[2] = 2
    run: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    window: Window
    root: Digest
    leaf_bytes: Annotated[int, Field(ge=1)]
    leaves: tuple[Digest, ...]
    shards: tuple[CheckpointShard, ...]


class CheckpointPointer(StoredDocument):
    """All of `latest.json`: the newest complete checkpoint, by window and BLAKE3 of its index."""

    version: Literal[1] = 1
    window: Window
    index_digest: Digest


@dataclass(frozen=True, slots=True)
class _Part:
    """A shard in its bucket: `header` is what it begins with, then come bytes `begin` to `end` of the state."""

    key: str
    header: bytes
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state at the start of `index.window` as it lies in a bucket. Its index is read and adds up; that its root is
    the ledger's is not known, nor what its leaves are."""

    bucket: Bucket
    index: CheckpointIndex
    size_bytes: int
    _parts: tuple[_Part, ...] = field(repr=False)

    def extent(self, leaf: int) -> tuple[int, int]:
        """Where in the bytes of the state a leaf begins and ends."""
        start = leaf * self.index.leaf_bytes
        return start, min(start + self.index.leaf_bytes, self.size_bytes)

    async def read_leaf(self, leaf: int) -> bytes:
        """The bytes of a leaf, once they have the digest that the index names. Raises `CheckpointError` for what is
        not what the index says, and what the bucket raises."""
        start, end = self.extent(leaf)
        parts = [part for part in self._parts if part.begin < end and start < part.end]
        read = [await self._read(part, max(start, part.begin), min(end, part.end)) for part in parts]
        data, digest = await asyncio.to_thread(_joined, read)
        if digest != self.index.leaves[leaf]:
            keys = ", ".join(part.key for part in parts)
            raise CheckpointError(f"leaf {leaf}, in {keys}, does not have the digest that {INDEX_NAME} names")
        return data

    async def _read(self, part: _Part, begin: int, end: int) -> memoryview:
        """Bytes `begin` to `end` of the state, which lie in `part`. Its header is read along with what follows it."""
        skipped = len(part.header) if begin == part.begin else 0
        start = len(part.header) + begin - part.begin - skipped
        memory = _Memory(skipped + end - begin)
        size = len(part.header) + part.end - part.begin
        try:
            await self.bucket.copy_range(part.key, start, len(memory.data), memory, size_bytes=size)
        except NotFound as error:
            raise CheckpointError(f"the checkpoint is incomplete: {part.key} is missing") from error
        except WrongSize as error:
            raise CheckpointError(str(error)) from error
        if memory.data[:skipped] != part.header[:skipped]:
            raise CheckpointError(f"{part.key} does not begin as a safetensors file of its tensors does")
        return memoryview(memory.data)[skipped:]


class _Memory:
    """A `Writer` that holds what it is given."""

    def __init__(self, size_bytes: int) -> None:
        self.data = bytearray(size_bytes)

    async def write(self, at: int, piece: bytes) -> None:
        """See `Writer.write`."""
        self.data[at : at + len(piece)] = piece


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
    leaf_bytes: int = LEAF_BYTES,
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
    shards, leaves = [], _Leaves(leaf_bytes)
    for number, names in enumerate(groups):
        data = await asyncio.to_thread(_pack, {name: tensors[name] for name in names}, leaves)
        shards.append(CheckpointShard(name=_shard_name(number), size_bytes=len(data), tensors=names))
        await bucket.put(keys.checkpoint(window, shards[-1].name), data)
    index = CheckpointIndex(
        run=keys.run, window=window, root=root, leaf_bytes=leaf_bytes, leaves=leaves.digests(), shards=tuple(shards)
    ).to_bytes()
    await bucket.put(keys.checkpoint(window, INDEX_NAME), index)
    await _point(bucket, keys, window, index)


async def open_checkpoint(
    bucket: Bucket, keys: Keys, *, window: int | None, shapes: Mapping[str, tuple[int, ...]]
) -> Checkpoint:
    """The checkpoint of `window`, or the newest for None. `shapes` names every expected tensor and its shape, in the
    order of the state: the size of every object and the place of every byte follow from it.

    Raises `NotFound` when there is no such checkpoint, and `CheckpointError` when its index is missing, oversize, or
    not one of exactly these tensors. The caller compares the root with the ledger.
    """
    index = await _read_index(bucket, keys, window)
    parts = tuple(_parts_of(keys, index, shapes))
    size_bytes = parts[-1].end if parts else 0
    if len(index.leaves) != -(-size_bytes // index.leaf_bytes):
        raise CheckpointError(f"the checkpoint lists {len(index.leaves)} leaves for {size_bytes} bytes of tensors")
    return Checkpoint(bucket, index, size_bytes, parts)


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


def _header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """What a safetensors file of these fp32 tensors begins with. The library would put them in an order of its own;
    with this one the bytes of the state lie in a row, and every reader knows them before it has read any."""
    table, at = {}, 0
    for name, shape in shapes.items():
        end = at + _FLOAT_BYTES * prod(shape)
        table[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)  # so that the numbers after it are aligned
    return len(text).to_bytes(8, "little") + text


class _Leaves:
    """Digests of every `leaf_bytes` of what is added."""

    def __init__(self, leaf_bytes: int) -> None:
        self._leaf_bytes = leaf_bytes
        self._hasher, self._hashed = blake3(), 0
        self._whole: list[str] = []

    def add(self, data: memoryview) -> None:
        """Go on with these bytes."""
        while data:
            piece = data[: self._leaf_bytes - self._hashed]
            self._hasher.update(piece)
            self._hashed += len(piece)
            data = data[len(piece) :]
            if self._hashed == self._leaf_bytes:
                self._whole.append(self._hasher.hexdigest())
                self._hasher, self._hashed = blake3(), 0

    def digests(self) -> tuple[str, ...]:
        """Of all leaves; the last one is over when nothing more comes."""
        return (*self._whole, self._hasher.hexdigest()) if self._hashed else tuple(self._whole)


def _pack(tensors: Mapping[str, NDArray[np.float32]], leaves: _Leaves) -> bytes:
    arrays = [np.ascontiguousarray(tensor, "<f4").reshape(-1).view(np.uint8).data for tensor in tensors.values()]
    for array in arrays:
        leaves.add(array)
    return b"".join([_header({name: tensor.shape for name, tensor in tensors.items()}), *arrays])


def _joined(parts: list[memoryview]) -> tuple[bytes, str]:
    data = b"".join(parts)
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


def _parts_of(keys: Keys, index: CheckpointIndex, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[_Part]:
    """Where the bytes of the state lie; `CheckpointError` unless the shards hold these tensors in this order."""
    names: list[str] = []
    for number, shard in enumerate(index.shards):
        if shard.name != _shard_name(number):
            raise CheckpointError(f"shard {number} is named {shard.name!r}, it must be {_shard_name(number)}")
        names.extend(shard.tensors)
    if names != list(shapes):
        raise CheckpointError(f"the checkpoint lists {len(names)} tensors, not exactly the {len(shapes)} expected")
    at = 0
    for shard in index.shards:
        header = _header({name: shapes[name] for name in shard.tensors})
        end = at + _FLOAT_BYTES * sum(prod(shapes[name]) for name in shard.tensors)
        if shard.size_bytes != len(header) + end - at:
            raise CheckpointError(f"{shard.name} has {shard.size_bytes} bytes for {end - at} bytes of tensors")
        yield _Part(keys.checkpoint(index.window, shard.name), header, at, end)
        at = end


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
