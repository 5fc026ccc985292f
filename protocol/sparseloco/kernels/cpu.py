"""The kernels for the host's memory: each passes once over its chunks, which stay in the cache meanwhile.

numba compiles them for the machine at hand, without fast-math: every fp32 operation is rounded on its own, as in
`reference`. Runs are independent of each other, so the number of threads cannot change a bit. What each function
promises is said at `Kernels`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from protocol.sparseloco.kernels import F32, I64, U8, Inspection, R, T, cpu_decode, cpu_encode
from protocol.sparseloco.kernels.jit import Sizes
from protocol.sparseloco.records import Flaw, RecordFormat

U64 = npt.NDArray[np.uint64]

RUN_ELEMENTS = 1 << 20
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


def encode(fmt: RecordFormat, beta: float, error: F32, delta: F32, records: U8) -> bool:
    """Error feedback, exact top-k, level fit, packing and subtraction, chunk by chunk."""
    # More columns give a tighter bound and cost more to search; at twice k some 1.4 k candidates are left.
    columns = 128
    while columns < 2 * fmt.k:
        columns *= 2
    if 2 * columns > fmt.length:
        columns = 0
    spare, k = fmt.length + 64, fmt.k
    maxima, values = np.empty(columns + 64, np.int32), np.empty(spare, np.float32)
    places = np.empty(fmt.length, np.int64)
    ordered, sums, explained = np.empty(k, np.float32), np.empty(k), np.empty(k)
    words = np.empty(fmt.upper_bits // 64 + 1, np.uint64)
    positions, codes = np.empty(k, np.uint64), np.empty(2, np.int64)
    scratch = (maxima, values, places, positions, ordered, sums, explained, codes, words)
    return bool(cpu_encode.encode(_sizes(fmt), np.float32(beta), error, delta, records, columns, scratch))


def inspect(fmt: RecordFormat, records: U8) -> Inspection:
    """The first flaw, and how often each level is used."""
    counts = np.zeros(256, np.int64)
    flaw = cpu_decode.inspect(_sizes(fmt), _side_by_side([records]), len(records), counts, _scratch(fmt))
    return Inspection(Flaw(flaw), counts)


def aggregate(
    fmt: RecordFormat, theta: F32, records: Sequence[U8], clips: F32, scale: np.float32, contributors: bool
) -> None:
    """Sum up a chunk of all peers in the cache, then touch θ once."""
    sums = np.empty((2, fmt.length), np.float32)
    clips = np.ascontiguousarray(clips)
    cpu_decode.aggregate(_sizes(fmt), theta, _side_by_side(records), clips, scale, contributors, _scratch(fmt), sums)


def apply(fmt: RecordFormat, theta: F32, records: U8, clip: np.float32, share: np.float32) -> F32:
    """Subtract in place; the originals are returned."""
    saved = np.empty((len(theta), fmt.k), np.float32)
    cpu_decode.apply(_sizes(fmt), theta, _side_by_side([records]), clip, share, saved, _scratch(fmt))
    return saved


def revert(fmt: RecordFormat, theta: F32, records: U8, saved: F32) -> None:
    """Originals back in place."""
    cpu_decode.revert(_sizes(fmt), theta, _side_by_side([records]), saved, _scratch(fmt))


def dot(fmt: RecordFormat, gradient: F32, records: U8, clip: np.float32, share: np.float32) -> float:
    """The inner product, summed in wire order."""
    return float(cpu_decode.dot(_sizes(fmt), gradient, _side_by_side([records]), clip, share, _scratch(fmt)))


def shared(fmt: RecordFormat, records: Sequence[U8]) -> I64:
    """Common positions of every pair, by bitmaps of one chunk at a time."""
    found = np.zeros((len(records), len(records)), np.int64)
    maps = np.empty((len(records), (fmt.length + 63) // 64), np.uint64)
    cpu_decode.shared(_sizes(fmt), _side_by_side(records), len(records[0]), found, _scratch(fmt), maps)
    return found


def _sizes(fmt: RecordFormat) -> Sizes:
    return Sizes(fmt.length, fmt.k, fmt.low_width, fmt.upper_bits, fmt.value_bits, fmt.size_bytes)


def _scratch(fmt: RecordFormat) -> tuple[I64, U64, F32]:
    """Room for the places of ones, the positions and the values of a record; eight are written at a time. Positions
    are unsigned, or each access would first look whether it counts from the end."""
    return np.empty(fmt.k + 8, np.int64), np.empty(fmt.k + 8, np.uint64), np.empty(fmt.k + 8, np.float32)


def _side_by_side(records: Sequence[U8]) -> U8:
    """The records of all peers in one array, peer after peer, with slack behind them."""
    size = records[0].size
    whole = np.empty(len(records) * size + cpu_decode.SLACK_BYTES, np.uint8)
    whole[-cpu_decode.SLACK_BYTES :] = 0
    for number, peer in enumerate(records):
        whole[number * size : (number + 1) * size] = peer.reshape(-1)
    return whole
