"""Triton code that reads records: checking them and applying them. `gpu` starts it.

A program takes one chunk after the other, and mostly is one warp: it can address memory at random, and a GPU holds
thousands of them. A record is read bit by bit: a lane for each bit of the upper map counts the ones before it, and so
knows its rank and its position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from protocol.sparseloco.records import Flaw

jit: Callable[[Callable[..., Any]], Any] = triton.jit

_PADDING = tl.constexpr(int(Flaw.PADDING))
_COUNT = tl.constexpr(int(Flaw.COUNT))
_BEYOND = tl.constexpr(int(Flaw.BEYOND))
_ORDER = tl.constexpr(int(Flaw.ORDER))
_NOT_FINITE = tl.constexpr(int(Flaw.NOT_FINITE))
_SWAPPED = tl.constexpr(int(Flaw.SWAPPED))
_LEVEL_BITS = tl.constexpr(int(Flaw.LEVEL_BITS))
_UNUSED = tl.constexpr(int(Flaw.UNUSED))
_SIGNED_ZERO = tl.constexpr(int(Flaw.SIGNED_ZERO))


# Reading records


@jit
def _bits(section: tl.tensor, index: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Bit `index` of a section, 0 where `mask` is not set."""
    return (tl.load(section + (index >> 3), mask=mask, other=0).to(tl.int32) >> (index & 7)) & 1


@jit
def _low_bits(section: tl.tensor, rank: tl.tensor, mask: tl.tensor, LOW: tl.constexpr) -> tl.tensor:
    """Low bits of the position of this rank."""
    start = rank * LOW
    value = tl.zeros_like(rank)
    for i in tl.static_range((LOW + 14) // 8):
        value |= tl.load(section + (start >> 3) + i, mask=mask, other=0).to(tl.int32) << (8 * i)
    return (value >> (start & 7)) & ((1 << LOW) - 1)


@jit
def _positions(
    record: tl.tensor, K: tl.constexpr, LOW: tl.constexpr, UPPER_BITS: tl.constexpr, LANES: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """For each bit of the upper map: whether it stands for a value, the value's rank, and its position."""
    lane = tl.arange(0, LANES)
    one = _bits(record, lane, lane < UPPER_BITS)
    rank = tl.cumsum(one, 0) - 1
    # A hostile map may have more than K ones; everything behind the map is found by rank, so ranks are bounded.
    sent = (one == 1) & (rank < K)
    low = _low_bits(record + (UPPER_BITS + 7) // 8, rank, sent, LOW)
    return sent, rank, ((lane - rank) << LOW) | low


@jit
def level_bits(code: tl.tensor) -> tl.tensor:
    """Bits of the fp32 level of a code: (1 + (code mod 8)/8) · 2^(code div 8 − 27), exactly; code 0 is 0."""
    return tl.where(code == 0, 0, (((code >> 3) + 100) << 23) | ((code & 7) << 20))


@jit
def _codes(
    values: tl.tensor, rank: tl.tensor, sent: tl.tensor, K: tl.constexpr, VALUE_BITS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Sign bit, level bit and level code of each value, from the sections behind the positions."""
    mask_bytes: tl.constexpr = (K + 7) // 8
    negative = _bits(values, rank, sent)
    if VALUE_BITS == 2:
        high = _bits(values + mask_bytes, rank, sent)
        lower = tl.load(values + 2 * mask_bytes).to(tl.int32)
        upper = tl.load(values + 2 * mask_bytes + 1).to(tl.int32)
        code = tl.where(high == 1, upper, lower)
    else:
        high = tl.zeros_like(rank)
        code = high + tl.load(values + mask_bytes).to(tl.int32)
    return negative, high, code


@jit
def _raw(values: tl.tensor, rank: tl.tensor, sent: tl.tensor) -> tl.tensor:
    """Bits of each fp32 value; records are not aligned, so they are read as bytes."""
    bits = tl.zeros_like(rank)
    for i in tl.static_range(4):
        bits |= tl.load(values + 4 * rank + i, mask=sent, other=0).to(tl.int32) << (8 * i)
    return bits


@jit
def _values(
    record: tl.tensor,
    rank: tl.tensor,
    sent: tl.tensor,
    K: tl.constexpr,
    LOW: tl.constexpr,
    UPPER_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
) -> tl.tensor:
    """fp32 value of each rank."""
    values = record + ((UPPER_BITS + 7) // 8 + (K * LOW + 7) // 8)
    if VALUE_BITS == 32:
        bits = _raw(values, rank, sent)
    else:
        negative, _, code = _codes(values, rank, sent, K, VALUE_BITS)
        bits = level_bits(code) | (negative << 31)
    return bits.to(tl.float32, bitcast=True)


# Checking


@jit
def _any(mask: tl.tensor) -> tl.tensor:
    return tl.max(mask.to(tl.int32), 0) == 1


@jit
def _padded(section: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """Whether a section of this many bits has padding that is not zero."""
    last = 0
    if BITS % 8 != 0:
        last = tl.load(section + BITS // 8).to(tl.int32) >> (BITS % 8)
    return last != 0


@jit
def inspect_chunks(
    records: tl.tensor,
    flaws: tl.tensor,
    counts: tl.tensor,
    LENGTH: tl.constexpr,
    K: tl.constexpr,
    LOW: tl.constexpr,
    UPPER_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    chunk = tl.program_id(0).to(tl.int64)
    record = records + chunk * SIZE
    lows = record + (UPPER_BITS + 7) // 8
    values = lows + (K * LOW + 7) // 8
    sent, rank, position = _positions(record, K, LOW, UPPER_BITS, LANES)
    # From the last flaw to the first, so that the first one stays.
    flaw = 0
    padding = _padded(record, UPPER_BITS) | _padded(lows, K * LOW)
    if VALUE_BITS == 32:
        unbounded = sent & ((_raw(values, rank, sent) & 0x7F800000) == 0x7F800000)
        flaw = tl.where(_any(unbounded), _NOT_FINITE, flaw)
    else:
        mask_bytes: tl.constexpr = (K + 7) // 8
        negative, high, code = _codes(values, rank, sent, K, VALUE_BITS)
        uppers = tl.sum(tl.where(sent, high, 0), 0)
        padding |= _padded(values, K)
        flaw = tl.where(_any(sent & (negative == 1) & (code == 0)), _SIGNED_ZERO, flaw)
        lower = tl.load(values + (VALUE_BITS * mask_bytes)).to(tl.int32)
        tl.atomic_add(counts + lower, (K - uppers).to(tl.int64))
        if VALUE_BITS == 2:
            padding |= _padded(values + mask_bytes, K)
            upper = tl.load(values + 2 * mask_bytes + 1).to(tl.int32)
            tl.atomic_add(counts + upper, uppers.to(tl.int64))
            flaw = tl.where((lower != upper) & ((uppers == 0) | (uppers == K)), _UNUSED, flaw)
            flaw = tl.where((lower == upper) & (uppers != 0), _LEVEL_BITS, flaw)
            flaw = tl.where(lower > upper, _SWAPPED, flaw)
    # Positions of different upper bits ascend by themselves; those of equal ones stand side by side in the map.
    lane = tl.arange(0, LANES)
    together = sent & (_bits(record, lane - 1, (lane > 0) & (lane < UPPER_BITS)) == 1)
    before = _low_bits(lows, rank - 1, together, LOW)
    flaw = tl.where(_any(together & ((position & ((1 << LOW) - 1)) <= before)), _ORDER, flaw)
    flaw = tl.where(_any(sent & (position >= LENGTH)), _BEYOND, flaw)
    ones = tl.sum(_bits(record, lane, lane < UPPER_BITS), 0)
    flaw = tl.where(ones != K, _COUNT, flaw)
    flaw = tl.where(padding, _PADDING, flaw)
    tl.store(flaws + chunk, flaw.to(tl.uint8))


# Applying


@jit
def aggregate_chunks(
    theta: tl.tensor,
    records: tl.tensor,
    factors: tl.tensor,
    sums: tl.tensor,
    senders: tl.tensor,
    n: tl.tensor,
    peers: tl.tensor,
    stride: tl.tensor,
    CONTRIBUTORS: tl.constexpr,
    LENGTH: tl.constexpr,
    K: tl.constexpr,
    LOW: tl.constexpr,
    UPPER_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    sums += row * LENGTH
    senders += row * LENGTH
    scale = tl.load(factors + peers)
    for chunk in range(row, n, tl.num_programs(0)):
        record = records + chunk * SIZE
        for peer in range(peers):
            sent, rank, position = _positions(record, K, LOW, UPPER_BITS, LANES)
            value = tl.load(factors + peer) * _values(record, rank, sent, K, LOW, UPPER_BITS, VALUE_BITS)
            tl.store(sums + position, tl.load(sums + position, mask=sent, other=0.0) + value, mask=sent)
            if CONTRIBUTORS:
                tl.store(senders + position, tl.load(senders + position, mask=sent, other=0.0) + 1.0, mask=sent)
            record += stride
            # The positions of one peer differ; the next peer may meet them on other threads.
            tl.debug_barrier()
        for first in range(0, LENGTH, BLOCK):
            index = first + tl.arange(0, BLOCK)
            inside = index < LENGTH
            total = tl.load(sums + index, mask=inside, other=0.0)
            tl.store(sums + index, tl.zeros((BLOCK,), tl.float32), mask=inside)
            if CONTRIBUTORS:
                count = tl.load(senders + index, mask=inside, other=1.0)
                tl.store(senders + index, tl.zeros((BLOCK,), tl.float32), mask=inside)
                total = tl.div_rn(total, tl.maximum(count, 1.0))
            at = theta + chunk * LENGTH + index
            tl.store(at, tl.load(at, mask=inside, other=0.0) - scale * total, mask=inside)
        tl.debug_barrier()


@jit
def apply_chunks(
    theta: tl.tensor,
    records: tl.tensor,
    factors: tl.tensor,
    saved: tl.tensor,
    LENGTH: tl.constexpr,
    K: tl.constexpr,
    LOW: tl.constexpr,
    UPPER_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    chunk = tl.program_id(0).to(tl.int64)
    record = records + chunk * SIZE
    sent, rank, position = _positions(record, K, LOW, UPPER_BITS, LANES)
    value = tl.load(factors) * _values(record, rank, sent, K, LOW, UPPER_BITS, VALUE_BITS)
    at = theta + chunk * LENGTH + position
    original = tl.load(at, mask=sent, other=0.0)
    tl.store(saved + chunk * K + rank, original, mask=sent)
    tl.store(at, original - tl.load(factors + 1) * value, mask=sent)


@jit
def revert_chunks(
    theta: tl.tensor,
    records: tl.tensor,
    saved: tl.tensor,
    LENGTH: tl.constexpr,
    K: tl.constexpr,
    LOW: tl.constexpr,
    UPPER_BITS: tl.constexpr,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    chunk = tl.program_id(0).to(tl.int64)
    sent, rank, position = _positions(records + chunk * SIZE, K, LOW, UPPER_BITS, LANES)
    original = tl.load(saved + chunk * K + rank, mask=sent, other=0.0)
    tl.store(theta + chunk * LENGTH + position, original, mask=sent)


@jit
def dot_chunks(
    gradient: tl.tensor,
    records: tl.tensor,
    factors: tl.tensor,
    sums: tl.tensor,
    LENGTH: tl.constexpr,
    K: tl.constexpr,
    LOW: tl.constexpr,
    UPPER_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    chunk = tl.program_id(0).to(tl.int64)
    record = records + chunk * SIZE
    sent, rank, position = _positions(record, K, LOW, UPPER_BITS, LANES)
    value = tl.load(factors) * _values(record, rank, sent, K, LOW, UPPER_BITS, VALUE_BITS)
    step = tl.load(factors + 1) * value
    met = tl.load(gradient + chunk * LENGTH + position, mask=sent, other=0.0)
    products = tl.where(sent, met.to(tl.float64) * step.to(tl.float64), 0.0)
    tl.store(sums + chunk, tl.sum(products, 0))


@jit
def shared_chunks(
    records: tl.tensor,
    counts: tl.tensor,
    marks: tl.tensor,
    n: tl.tensor,
    peers: tl.tensor,
    stride: tl.tensor,
    compared: tl.tensor,
    LENGTH: tl.constexpr,
    K: tl.constexpr,
    LOW: tl.constexpr,
    UPPER_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    OTHERS: tl.constexpr,
) -> None:
    """Each peer's values of a chunk are marked in a row of its own; then the positions of each of the first `compared`
    peers are looked up in all rows."""
    row = tl.program_id(0).to(tl.int64)
    marks += row * peers * LENGTH
    for chunk in range(row, n, tl.num_programs(0)):
        for first in range(0, peers * LENGTH, BLOCK):
            index = first + tl.arange(0, BLOCK)
            tl.store(marks + index, tl.zeros((BLOCK,), tl.uint8), mask=index < peers * LENGTH)
        tl.debug_barrier()
        record = records + chunk * SIZE
        for peer in range(peers):
            sent, rank, position = _positions(record, K, LOW, UPPER_BITS, LANES)
            value = _values(record, rank, sent, K, LOW, UPPER_BITS, VALUE_BITS)
            tl.store(marks + peer * LENGTH + position, (value != 0.0).to(tl.uint8), mask=sent)
            record += stride
        tl.debug_barrier()
        record = records + chunk * SIZE
        for peer in range(compared):
            sent, rank, position = _positions(record, K, LOW, UPPER_BITS, LANES)
            sent &= _values(record, rank, sent, K, LOW, UPPER_BITS, VALUE_BITS) != 0.0
            for first in range(0, peers, OTHERS):
                other = first + tl.arange(0, OTHERS)
                at = marks + other[:, None] * LENGTH + position[None, :]
                met = tl.load(at, mask=(other < peers)[:, None] & sent[None, :], other=0).to(tl.int64)
                tl.atomic_add(counts + peer * peers + other, tl.sum(met, 1), mask=other < peers)
            record += stride
        tl.debug_barrier()
