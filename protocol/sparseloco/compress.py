"""A pseudo-gradient becomes records, and records become a sparse update (protocol §8)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.errors import NotFinite, Reason, Rejected
from protocol.run import SparseLoCo
from protocol.sparseloco.kernels import reference as kernel
from protocol.sparseloco.layout import CHUNK, Layout
from protocol.sparseloco.records import RecordFormat, pack, unpack

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Group:
    """`count` consecutive chunks of one parameter with the same format, from `offset` in the flat array."""

    parameter: int
    offset: int
    count: int
    format: RecordFormat

    @property
    def end(self) -> int:
        """First element after the group."""
        return self.offset + self.count * self.format.length

    @property
    def size_bytes(self) -> int:
        """Bytes of all its records."""
        return self.count * self.format.size_bytes


@dataclass(frozen=True, slots=True, eq=False)
class SparseUpdate:
    """ŝ of one peer: `indices` int64 [m], strictly ascending in the flat array, `values` fp32 [m].
    `norms` are the 2-norms of the parameters, and `counts` how many of the m entries each one has."""

    indices: I64
    values: F32
    norms: tuple[float, ...]
    counts: tuple[int, ...]


def groups(layout: Layout, scheme: SparseLoCo) -> Iterator[Group]:
    """The groups in wire order: for each parameter its full chunks, then its tail."""
    for number, p in enumerate(layout.parameters):
        if p.chunks:
            yield Group(number, p.offset, p.chunks, RecordFormat.of_chunk(CHUNK, scheme.k, scheme.value_bits))
        if p.tail:
            tail = RecordFormat.of_chunk(p.tail, scheme.k, scheme.value_bits)
            yield Group(number, p.offset + p.chunks * CHUNK, 1, tail)


def compress(layout: Layout, scheme: SparseLoCo, error: F32, delta: F32) -> bytes:
    """Records of top-k(β·e + Δ), quantised. `error` becomes a − ŝ in place, ready for the next window.

    `error` and `delta` are flat fp32 arrays of the layout. Raises `NotFinite` before anything is changed
    when Δ or the sum holds NaN or infinity: that must be the owner's error, never the network's.
    """
    layout.check(error)
    layout.check(delta)
    with np.errstate(over="ignore", invalid="ignore"):
        a = kernel.accumulate(error, delta, scheme.error_feedback)
    if not np.isfinite(a).all():
        raise NotFinite("the pseudo-gradient holds NaN or infinity; lower the learning rate or check the data")
    error[:] = a
    parts = []
    for group in groups(layout, scheme):
        shape = (group.count, group.format.length)
        chunks = a[group.offset : group.end].reshape(shape)
        positions = kernel.select(chunks, group.format.k)
        kept = np.take_along_axis(chunks, positions, axis=1)
        codes = kernel.quantise(kept, scheme.value_bits)
        np.put_along_axis(error[group.offset : group.end].reshape(shape), positions, kept - codes.values(), axis=1)
        parts.append(pack(group.format, positions, codes).tobytes())
    return b"".join(parts)


def decompress(layout: Layout, scheme: SparseLoCo, body: bytes) -> SparseUpdate:
    """Read records back; raises `Rejected` for anything that is not canonical. `body` is untrusted."""
    data = np.frombuffer(body, np.uint8)
    if len(data) != body_bytes(layout, scheme):
        raise Rejected(Reason.NOT_CANONICAL, f"{len(data)} bytes of records, expected {body_bytes(layout, scheme)}")
    indices, values, start = [], [], 0
    norms: dict[int, list[npt.NDArray[np.generic]]] = {}
    for group in groups(layout, scheme):
        records = data[start : start + group.size_bytes].reshape(group.count, group.format.size_bytes)
        start += group.size_bytes
        positions, codes = unpack(group.format, records)
        origins = group.offset + np.arange(group.count)[:, None] * group.format.length
        indices.append((positions + origins).reshape(-1))
        values.append(codes.values().reshape(-1))
        levels = codes.raw if scheme.value_bits == 32 else codes.used()
        norms.setdefault(group.parameter, []).append(levels.reshape(-1))
    norm = kernel.norm_of_values if scheme.value_bits == 32 else kernel.norm_of_codes
    whole = [np.concatenate(norms[number]) for number in range(len(layout.parameters))]
    return SparseUpdate(
        indices=np.concatenate(indices),
        values=np.concatenate(values),
        norms=tuple(norm(part) for part in whole),
        counts=tuple(len(part) for part in whole),
    )


def body_bytes(layout: Layout, scheme: SparseLoCo) -> int:
    """Exact size of the records of one payload, known from the run alone."""
    return sum(group.size_bytes for group in groups(layout, scheme))
