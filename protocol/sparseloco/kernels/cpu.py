"""The kernels for the host's memory: each passes once over its chunks, which stay in the cache meanwhile.

numba compiles them for the machine at hand, without fast-math: every fp32 operation is rounded on its own, as in
`reference`. Chunks are independent of each other, so the number of threads cannot change a bit. What each function
promises is said at `Kernels`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from protocol.sparseloco.kernels import F32, F64, I64, U8, Inspection, cpu_decode, cpu_encode
from protocol.sparseloco.kernels.jit import Row
from protocol.sparseloco.kernels.reference import SQUARES
from protocol.sparseloco.plan import Plan
from protocol.sparseloco.records import Flaw, RecordFormat

U64 = npt.NDArray[np.uint64]
T = TypeVar("T")
R = TypeVar("R")

RUN_ELEMENTS = 1 << 20
"""About how many elements one call works on: enough to be worth it, few enough to be spread over threads."""
_INSPECTED_RUNS = 64
"""So many times that are inspected in one call, which is little work for their elements."""
_INSPECTED_SHARE = 32
"""Inspecting one payload is about so much less work for its elements than encoding it."""
_ELEMENTS_PER_THREAD = 1 << 21
"""A thread that does less takes about as long to wake as it works."""


def each(work: Callable[[T], R], runs: Sequence[T], elements: int) -> list[R]:
    """On as many threads as there are cores and enough work."""
    threads = min(_cores(), len(runs), elements // _ELEMENTS_PER_THREAD)
    if threads < 2:
        return [work(run) for run in runs]
    results: dict[int, R] = {}
    numbered = iter(enumerate(runs))  # shared: each thread takes the next run when it has finished one

    def drain() -> None:
        for number, run in numbered:
            results[number] = work(run)

    helpers = [_pool(os.getpid()).submit(drain) for _ in range(threads - 1)]
    try:
        drain()
    finally:
        for _ in numbered:  # after an error nobody begins another run
            pass
        # A helper that has not begun, because others keep the pool busy, is not waited for: the work is done.
        begun = [helper for helper in helpers if not helper.cancel()]
        wait(begun)
    for helper in begun:
        helper.result()
    return [results[number] for number in range(len(runs))]


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process, which stay: to start one takes longer than many a call. A fork has none of them, so
    they belong to a process number."""
    return ThreadPoolExecutor(_cores(), thread_name_prefix="kernel")


def _cores() -> int:
    """Cores this process may use; systems that cannot say count all."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def encode(plan: Plan, beta: float, error: F32, delta: F32, body: U8) -> bool:
    """Error feedback, exact top-k, level fit, packing and subtraction, chunk by chunk."""
    length, k = plan.longest, plan.largest_k

    def work(table: I64) -> bool:
        columns, spare = 2 * length + 64, length + 64
        maxima, values = np.empty(columns, np.int32), np.empty(spare, np.float32)
        places, positions = np.empty(length, np.int64), np.empty(k, np.uint64)
        ordered, sums, explained = np.empty(k, np.float32), np.empty(k), np.empty(k)
        codes, words = np.empty(2, np.int64), np.empty((length + k) // 64 + 2, np.uint64)
        scratch = (maxima, values, places, ordered, sums, explained, codes, words, positions)
        return bool(cpu_encode.encode(table, np.float32(beta), error, delta, body, scratch))

    return all(each(work, plan.batches(RUN_ELEMENTS), plan.elements))


def inspect(plan: Plan, body: U8) -> Inspection:
    """The first flaw, and how often each level is used."""
    sources = _sources(plan, [body])

    def work(table: I64) -> tuple[int, int, I64]:
        counts = np.zeros((table[-1, 0] - table[0, 0] + 1, 256), np.int64)
        return *cpu_decode.inspect(table, *sources.addresses, counts, _scratch(plan)), counts

    tables = plan.batches(_INSPECTED_RUNS * RUN_ELEMENTS)
    found = each(work, tables, plan.elements // _INSPECTED_SHARE)
    total = np.zeros((plan.parameters, 256), np.int64)
    for table, (flaw, number, counts) in zip(tables, found, strict=True):
        if flaw:
            row = Row(*table[number].tolist())
            return Inspection(Flaw(flaw), RecordFormat(row.length, row.k, row.value_bits), total)
        total[table[0, 0] : table[-1, 0] + 1] += counts
    return Inspection(Flaw.NONE, plan.groups[-1].format, total)


def norms(counts: I64) -> tuple[float, ...]:
    """Exact sums in 128 bits."""
    found = np.empty(len(counts), np.float64)
    cpu_decode.norms(counts, SQUARES, found)
    return tuple(found.tolist())


def aggregate(plan: Plan, theta: F32, bodies: Sequence[U8], clips: F32, scale: np.float32, contributors: bool) -> None:
    """Sum up a chunk of all peers in the cache, then touch θ once."""
    sources, clips = _sources(plan, bodies), np.ascontiguousarray(clips)

    def work(table: I64) -> None:
        sums = np.empty((2, plan.longest), np.float32)
        cpu_decode.aggregate(table, theta, *sources.addresses, clips, scale, contributors, _scratch(plan), sums)

    each(work, plan.batches(RUN_ELEMENTS), plan.elements)


def apply(plan: Plan, theta: F32, body: U8, clips: F32, share: np.float32) -> F32:
    """Subtract in place; the originals are returned."""
    sources, clips = _sources(plan, [body]), np.ascontiguousarray(clips)
    saved = np.empty(plan.values, np.float32)

    def work(table: I64) -> None:
        cpu_decode.apply(table, theta, *sources.addresses, clips, share, saved, _scratch(plan))

    each(work, plan.batches(RUN_ELEMENTS), plan.elements)
    return saved


def revert(plan: Plan, theta: F32, body: U8, saved: F32) -> None:
    """Originals back in place."""
    sources = _sources(plan, [body])

    def work(table: I64) -> None:
        cpu_decode.revert(table, theta, *sources.addresses, saved, _scratch(plan))

    each(work, plan.batches(RUN_ELEMENTS), plan.elements)


def dot(plan: Plan, gradient: F32, bodies: Sequence[U8], clips: F32, share: np.float32) -> F64:
    """A chunk of the gradient meets all peers in the cache; summed in wire order within each batch."""
    sources, clips = _sources(plan, bodies), np.ascontiguousarray(clips)

    def work(table: I64) -> F64:
        found = np.zeros(len(bodies))
        cpu_decode.dot(table, gradient, *sources.addresses, clips, share, _scratch(plan), found)
        return found

    total: F64 = np.sum(each(work, plan.batches(RUN_ELEMENTS), plan.elements), axis=0)
    return total


def shared(plan: Plan, bodies: Sequence[U8], rows: int) -> I64:
    """Common positions of pairs, by bitmaps of one chunk at a time."""
    sources = _sources(plan, bodies)

    def work(table: I64) -> I64:
        found = np.zeros((rows, len(bodies)), np.int64)
        maps = np.empty((len(bodies), (plan.longest + 63) // 64), np.uint64)
        cpu_decode.shared(table, *sources.addresses, found, _scratch(plan), maps)
        return found

    total: I64 = np.sum(each(work, plan.batches(RUN_ELEMENTS), plan.elements), axis=0)
    return total


def _scratch(plan: Plan) -> tuple[I64, U64, F32, U8]:
    """Room for what is read of one record; eight are written at a time, 64 read. Positions are unsigned, or each access
    would first look whether it counts from the end."""
    k = plan.largest_k
    places, positions = np.empty(k + 8, np.int64), np.empty(k + 8, np.uint64)
    return places, positions, np.empty(k + 8, np.float32), np.empty(k + 72, np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class _Sources:
    """Where compiled code finds bodies: `addresses` are its arguments `bodies`, `ends` and `last`. Holds on to what is
    there."""

    addresses: tuple[U64, U64, int]
    held: tuple[U8, ...]


def _sources(plan: Plan, bodies: Sequence[U8]) -> _Sources:
    """The last records are copied to where slack follows them; all else is read where it lies."""
    last = plan.end(cpu_decode.SLACK_BYTES)
    size = plan.body_bytes - last
    ends = np.zeros((len(bodies), size + cpu_decode.SLACK_BYTES), np.uint8)
    for end, body in zip(ends, bodies, strict=True):
        end[:size] = body[last:]
    addresses = np.array([body.ctypes.data for body in bodies], np.uint64)
    # From there byte `last` is the first of the copy. An address wraps round, as it does in the machine.
    shifted = ends.ctypes.data - last + ends.shape[1] * np.arange(len(bodies))
    return _Sources((addresses, shifted.astype(np.uint64), last), (*bodies, ends))
