"""Triton code that writes records. `gpu` starts it.

A program selects from a few chunks, one after the other, each with all elements in registers; then it quantises and
packs what they send as one tile, while the chunks are still in the L2 cache.
"""

from __future__ import annotations

import triton.language as tl

from protocol.sparseloco.kernels.gpu_decode import jit, level_bits


@jit
def _select(
    error: tl.tensor,
    delta: tl.tensor,
    beta: tl.tensor,
    places: tl.tensor,
    finite: tl.tensor,
    LENGTH: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
) -> None:
    """Write a = β·e + Δ of one chunk over e, the ascending positions of its top k to `places`, and whether all
    elements are finite."""
    index = tl.arange(0, BLOCK)
    inside = index < LENGTH
    total = beta * tl.load(error + index, mask=inside, other=0.0) + tl.load(delta + index, mask=inside, other=0.0)
    tl.store(error + index, total, mask=inside)
    # Without their sign, the bits of floats are ordered as their magnitudes; −1 is below them all.
    bits = tl.where(inside, total.to(tl.int32, bitcast=True) & 0x7FFFFFFF, -1)
    beyond = tl.max(bits, 0) + 1
    tl.store(finite, (beyond <= 0x7F800000).to(tl.int8))
    # At least k groups reach the smallest of the groups' maxima, so at least k elements do. From there the search takes
    # about 9 steps where values are of one distribution, and 31 at most: it ends where exactly k elements are left.
    least = tl.maximum(tl.min(tl.max(tl.reshape(bits, (GROUPS, BLOCK // GROUPS)), 1), 0), 0)
    reached = tl.sum((bits >= least).to(tl.int32), 0)
    while (reached != K) & (beyond - least > 1):
        middle = least + (beyond - least) // 2
        count = tl.sum((bits >= middle).to(tl.int32), 0)
        least = tl.where(count >= K, middle, least)
        beyond = tl.where(count >= K, beyond, middle)
        reached = tl.where(count >= K, count, reached)
    # What is above `edge` is chosen; what equals it, up to the index `last`.
    edge, last = least - 1, -1
    if reached != K:
        edge = least
        tied = (bits == edge).to(tl.int32)
        left = K - reached + tl.sum(tied, 0)
        last = tl.max(tl.where((tied == 1) & (tl.cumsum(tied, 0) <= left), index, -1), 0)
    chosen = ((bits > edge) | ((bits == edge) & (index <= last))).to(tl.int32)
    tl.store(places + tl.cumsum(chosen, 0) - 1, index.to(tl.int16), mask=chosen == 1)


@jit
def _sorted(keys: tl.tensor, ROWS: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr) -> tl.tensor:
    """Each row ascending: a bitonic network over LANES = 2^STEPS integers. In two dimensions of 64 at most, each lane
    finds its partner within its warp."""
    inner: tl.constexpr = min(LANES, 64)
    outer: tl.constexpr = LANES // inner
    grid = tl.reshape(keys, (ROWS, outer, inner))
    column = tl.broadcast_to(tl.arange(0, inner)[None, None, :], (ROWS, outer, inner))
    row = tl.broadcast_to(tl.arange(0, outer)[None, :, None], (ROWS, outer, inner))
    lane = row * inner + column
    for i in range(1, STEPS + 1):
        for j in range(1, i + 1):
            distance = 1 << (i - j)
            other = tl.gather(grid, column ^ (distance % inner), 2)
            if outer > 1:
                other = tl.gather(other, row ^ (distance // inner), 1)
            first = (lane & distance) == 0
            ascending = (lane & (1 << i)) == 0
            grid = tl.where(first == ascending, tl.minimum(grid, other), tl.maximum(grid, other))
    return tl.reshape(grid, (ROWS, LANES))


@jit
def _nearest(level: tl.tensor) -> tl.tensor:
    """Code of the level nearest to a binary64 number; half way goes to the smaller.

    Between levels of the table, numbers round to three bits behind the leading one. The table has no levels below
    the one of code 1 but 0, and none above 30.
    """
    rounded = (level.to(tl.int64, bitcast=True) + ((1 << 48) - 1)) >> 49
    code = tl.minimum(tl.maximum(rounded - ((1023 - 27) << 3), 1), 255).to(tl.int32)
    return tl.where(level > 1.125 * 2.0**-28, code, 0)


@jit
def _mean_levels(
    bits: tl.tensor,
    K: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    STEPS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Lower and upper level code, int32 [ROWS, 1], of fp32 magnitudes given as bits; see `reference.quantise`."""
    lane = tl.arange(0, LANES)[None, :]
    if (VALUE_BITS == 1) | (K == 1):
        lower = _nearest(tl.sum(bits.to(tl.float32, bitcast=True).to(tl.float64), 1) / K)
        upper = lower
    else:
        ordered = _sorted(tl.where(lane < K, bits, 0x7FFFFFFF), ROWS, LANES, STEPS)
        magnitudes = tl.where(lane < K, ordered, 0).to(tl.float32, bitcast=True).to(tl.float64)
        below = tl.cumsum(magnitudes, 1)
        above = tl.sum(magnitudes, 1)[:, None] - below
        count = (lane + 1).to(tl.float64)
        rest = tl.where(lane < K - 1, K - 1 - lane, 1).to(tl.float64)
        explained = tl.where(lane < K - 1, below * below / count + above * above / rest, -1.0)
        split = tl.argmax(explained, 1)
        here = lane == split[:, None]
        lower = _nearest(tl.sum(tl.where(here, below, 0.0), 1) / (split + 1).to(tl.float64))
        upper = _nearest(tl.sum(tl.where(here, above, 0.0), 1) / (K - 1 - split).to(tl.float64))
    return lower[:, None], upper[:, None]


@jit
def _store_mask(
    section: tl.tensor, bits: tl.tensor, rows: tl.tensor, K: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr
) -> None:
    """Write one bit for each of k values."""
    byte = tl.arange(0, LANES // 8)[None, :]
    packed = tl.sum(tl.reshape(bits, (ROWS, LANES // 8, 8)) << tl.arange(0, 8)[None, None, :], 2)
    tl.store(section + byte, packed.to(tl.uint8), mask=rows & (byte < (K + 7) // 8))


@jit
def _store_positions(
    record: tl.tensor,
    position: tl.tensor,
    rows: tl.tensor,
    K: tl.constexpr,
    LOW: tl.constexpr,
    UPPER_BITS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    BYTES: tl.constexpr,
) -> None:
    """Write the upper map, BYTES at a time, and the low bits."""
    upper_bytes: tl.constexpr = (UPPER_BITS + 7) // 8
    lane = tl.arange(0, LANES)[None, :]
    bit = tl.where(lane < K, (position >> LOW) + lane, -1)
    for first in range(0, upper_bytes, BYTES):
        byte = first + tl.arange(0, BYTES)
        here = (bit >> 3)[:, None, :] == byte[None, :, None]
        packed = tl.sum(tl.where(here, (1 << (bit & 7))[:, None, :], 0), 2)
        tl.store(record + byte[None, :], packed.to(tl.uint8), mask=rows & (byte < upper_bytes)[None, :])
    # Eight values of LOW bits fill LOW bytes.
    low = tl.where(lane < K, position & ((1 << LOW) - 1), 0)
    eight = tl.reshape(low, (ROWS, LANES // 8, 8))
    group = tl.arange(0, LANES // 8)[None, :]
    for i in tl.static_range(LOW):
        shift = (tl.arange(0, 8) * LOW - 8 * i)[None, None, :]
        left = eight << tl.minimum(tl.maximum(shift, 0), 8)
        packed = tl.sum((left >> tl.minimum(tl.maximum(-shift, 0), 31)) & 255, 2)
        byte = group * LOW + i
        tl.store(record + upper_bytes + byte, packed.to(tl.uint8), mask=rows & (byte < (K * LOW + 7) // 8))


@jit
def encode_chunks(
    error: tl.tensor,
    delta: tl.tensor,
    records: tl.tensor,
    places: tl.tensor,
    finite: tl.tensor,
    factors: tl.tensor,
    n: tl.tensor,
    LENGTH: tl.constexpr,
    K: tl.constexpr,
    LOW: tl.constexpr,
    UPPER_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    STEPS: tl.constexpr,
    BYTES: tl.constexpr,
) -> None:
    first = tl.program_id(0).to(tl.int64) * ROWS
    beta = tl.load(factors)
    for number in range(first, tl.minimum(first + ROWS, n)):
        at = number * LENGTH
        _select(error + at, delta + at, beta, places + number * K, finite + number, LENGTH, K, BLOCK, GROUPS)
    tl.debug_barrier()
    chunk = first + tl.arange(0, ROWS)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    rows = chunk < n
    real = rows & (lane < K)
    position = tl.load(places + chunk * K + lane, mask=real, other=0).to(tl.int32)
    kept = tl.load(error + chunk * LENGTH + position, mask=real, other=0.0)
    record = records + chunk * SIZE
    _store_positions(record, position, rows, K, LOW, UPPER_BITS, ROWS, LANES, BYTES)
    values = record + ((UPPER_BITS + 7) // 8 + (K * LOW + 7) // 8)
    bits = kept.to(tl.int32, bitcast=True)
    sent = kept
    if VALUE_BITS == 32:
        for i in tl.static_range(4):
            tl.store(values + 4 * lane + i, ((bits >> (8 * i)) & 255).to(tl.uint8), mask=real)
    else:
        mask_bytes: tl.constexpr = (K + 7) // 8
        lower, upper = _mean_levels(bits & 0x7FFFFFFF, K, VALUE_BITS, ROWS, LANES, STEPS)
        magnitude = tl.abs(kept).to(tl.float64)
        least = level_bits(lower).to(tl.float32, bitcast=True).to(tl.float64)
        most = level_bits(upper).to(tl.float32, bitcast=True).to(tl.float64)
        middle = (least + most) / 2
        above = (magnitude > middle) & (lane < K)
        some = tl.max(above.to(tl.int32), 1)[:, None] > 0
        all_of_them = tl.min((above | (lane >= K)).to(tl.int32), 1)[:, None] > 0
        lower = tl.where(all_of_them, upper, lower)  # a level that no value takes is not sent
        upper = tl.where(some, upper, lower)
        high = above & (lower < upper)
        code = tl.where(high, upper, lower)
        negative = ((bits < 0) & (code > 0)).to(tl.int32)
        sent = (level_bits(code) | (negative << 31)).to(tl.float32, bitcast=True)
        _store_mask(values, negative, rows, K, ROWS, LANES)
        if VALUE_BITS == 2:
            _store_mask(values + mask_bytes, high.to(tl.int32), rows, K, ROWS, LANES)
            tl.store(values + 2 * mask_bytes, lower.to(tl.uint8), mask=rows)
            tl.store(values + 2 * mask_bytes + 1, upper.to(tl.uint8), mask=rows)
        else:
            tl.store(values + mask_bytes, lower.to(tl.uint8), mask=rows)
    # A small tile lies on several threads at once, and each of them has to read what was kept before one changes it.
    tl.debug_barrier()
    tl.store(error + chunk * LENGTH + position, kept - sent, mask=real)
