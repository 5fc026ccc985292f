"""A pseudo-gradient becomes records, and records become a sparse update (protocol §8)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from protocol.errors import NotFinite, Reason, Rejected
from protocol.run import SparseLoCo
from protocol.sparseloco import kernels
from protocol.sparseloco.kernels import Elements
from protocol.sparseloco.kernels.reference import norm_of_counts, norm_of_values
from protocol.sparseloco.layout import CHUNK, Layout
from protocol.sparseloco.records import Flaw, RecordFormat, refusal, unpack

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]


_INSPECTED_RUNS = 64
"""Runs that are inspected in one call, which is little work for their elements."""
_INSPECTED_SHARE = 32
"""Inspecting one payload is about so much less work for its elements than encoding it."""


@dataclass(frozen=True, slots=True)
class Group:
    """`count` consecutive chunks of one parameter with the same format: from element `offset` in the flat array,
    and from byte `start` among the records."""

    parameter: int
    offset: int
    start: int
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

    def chunks(self, flat: Elements) -> Elements:
        """Its elements of the flat array, as a view [count, length]."""
        return flat[self.offset : self.end].reshape(self.count, self.format.length)

    def records(self, body: U8) -> U8:
        """Its records of a body, as a view uint8 [count, size_bytes]."""
        return body[self.start : self.start + self.size_bytes].reshape(self.count, self.format.size_bytes)

    def runs(self, elements: int) -> Iterator[Group]:
        """The group cut into groups of about `elements` elements."""
        step = max(1, elements // self.format.length)
        if step >= self.count:
            yield self
            return
        for first in range(0, self.count, step):
            yield replace(
                self,
                offset=self.offset + first * self.format.length,
                start=self.start + first * self.format.size_bytes,
                count=min(step, self.count - first),
            )


def groups(layout: Layout, scheme: SparseLoCo) -> tuple[Group, ...]:
    """The groups in wire order: for each parameter its full chunks, then its tail."""
    return _groups(layout, scheme.k, scheme.value_bits)


@lru_cache(maxsize=8)
def _groups(layout: Layout, k: int, value_bits: int) -> tuple[Group, ...]:
    found: list[Group] = []
    start = 0
    for number, p in enumerate(layout.parameters):
        tail_offset = p.offset + p.chunks * CHUNK
        for offset, count, length in ((p.offset, p.chunks, CHUNK), (tail_offset, 1, p.tail)):
            if count and length:
                group = Group(number, offset, start, count, RecordFormat.of_chunk(length, k, value_bits))
                found.append(group)
                start += group.size_bytes
    return tuple(found)


def body_bytes(layout: Layout, scheme: SparseLoCo) -> int:
    """Exact size of the records of one payload, known from the run alone."""
    last = groups(layout, scheme)[-1]
    return last.start + last.size_bytes


def runs(cut: Iterable[Group], elements: int) -> list[Group]:
    """All groups cut into runs of about `elements` elements."""
    return [run for group in cut for run in group.runs(elements)]


@dataclass(frozen=True, slots=True, eq=False)
class SparseUpdate:
    """ŝ of one peer, as its records: uint8 [body bytes], checked by `decompress`, which alone makes it. `norms` are
    the 2-norms of the parameters."""

    groups: tuple[Group, ...]
    records: U8
    norms: tuple[float, ...]

    @property
    def indices(self) -> I64:
        """int64 [m], strictly ascending in the flat array: what is sent. Unpacked anew at each call."""
        return self.entries()[0]

    @property
    def values(self) -> F32:
        """fp32 [m], at `indices`. Unpacked anew at each call."""
        return self.entries()[1]

    def entries(self) -> tuple[I64, F32]:
        """`indices` and `values`, for those who want to look; the kernels work on the records."""
        indices, values = [], []
        for group in self.groups:
            positions, codes = unpack(group.format, group.records(self.records))
            origins = group.offset + np.arange(group.count)[:, None] * group.format.length
            indices.append((positions + origins).reshape(-1))
            values.append(codes.values().reshape(-1))
        return np.concatenate(indices), np.concatenate(values)


def compress(layout: Layout, scheme: SparseLoCo, error: Elements, delta: Elements) -> bytes:
    """Records of top-k(β·e + Δ), quantised. `error` becomes a − ŝ in place, ready for the next window.

    `error` and `delta` are flat fp32 arrays of the layout, in the host's memory or both on one GPU. Raises
    `NotFinite`, with `error` all zero as after a window in which nothing was sent, when Δ or the sum holds NaN or
    infinity: that must be the owner's error, never the network's.
    """
    layout.check(error)
    layout.check(delta)
    kernel = kernels.of(error)
    body = np.empty(body_bytes(layout, scheme), np.uint8)

    def encode(run: Group) -> bool:
        return kernel.encode(run.format, scheme.error_feedback, run.chunks(error), run.chunks(delta), run.records(body))

    if not all(kernel.each(encode, runs(groups(layout, scheme), kernel.RUN_ELEMENTS), layout.size)):
        error[:] = 0
        raise NotFinite("the pseudo-gradient holds NaN or infinity; lower the learning rate or check the data")
    return body.tobytes()


def decompress(layout: Layout, scheme: SparseLoCo, body: bytes | memoryview) -> SparseUpdate:
    """Check records and take their norms; raises `Rejected` for anything that is not canonical. `body` is
    untrusted, and stays as it is: what is kept of a peer is what it sent, 0.02 bytes a parameter."""
    if len(body) != body_bytes(layout, scheme):
        raise Rejected(Reason.NOT_CANONICAL, f"{len(body)} bytes of records, expected {body_bytes(layout, scheme)}")
    # The kernels trust what was checked, so it must not be able to change.
    data = np.frombuffer(body if memoryview(body).readonly else bytes(body), np.uint8)
    kernel = kernels.of(data)
    every = groups(layout, scheme)
    cut = runs(every, _INSPECTED_RUNS * kernel.RUN_ELEMENTS)
    found = kernel.each(lambda run: kernel.inspect(run.format, run.records(data)), cut, layout.size // _INSPECTED_SHARE)
    for run, inspection in zip(cut, found, strict=True):
        if inspection.flaw is not Flaw.NONE:
            raise refusal(run.format, inspection.flaw)
    if scheme.value_bits == 32:
        return SparseUpdate(every, data, _norms_of_values(every, data))
    counts = np.zeros((len(layout.parameters), 256), np.int64)
    for run, inspection in zip(cut, found, strict=True):
        counts[run.parameter] += inspection.counts
    return SparseUpdate(every, data, tuple(norm_of_counts(row) for row in counts))


def _norms_of_values(every: Sequence[Group], data: U8) -> tuple[float, ...]:
    parts: dict[int, list[F32]] = {}
    for group in every:
        _, codes = unpack(group.format, group.records(data))
        parts.setdefault(group.parameter, []).append(codes.raw.reshape(-1))
    return tuple(norm_of_values(np.concatenate(values)) for values in parts.values())
