"""Reading records and doing what they say, compiled by numba (see `kernels.cpu`).

`records` are those of all peers, peer after peer, with `SLACK_BYTES` behind the last one. `scratch` has room for the
places of ones, int64 [k + 8], the positions, uint64 [k + 8], and the values, fp32 [k + 8], of one record. But for
`inspect`, everything here trusts records that `inspect` found no flaw in.
"""

from __future__ import annotations

import numpy as np

from protocol.sparseloco.kernels.bits import (
    bits_of_float,
    float_of_bits,
    load64,
    magnitude_bits,
    ones,
    prefetch256,
    put_ones,
    put_positions,
)
from protocol.sparseloco.kernels.jit import INFINITY, kernel, lowest, part
from protocol.sparseloco.records import LEVELS, Flaw

_PADDING, _COUNT, _BEYOND, _ORDER = int(Flaw.PADDING), int(Flaw.COUNT), int(Flaw.BEYOND), int(Flaw.ORDER)
_NOT_FINITE, _SWAPPED = int(Flaw.NOT_FINITE), int(Flaw.SWAPPED)
_LEVEL_BITS, _UNUSED, _SIGNED_ZERO = int(Flaw.LEVEL_BITS), int(Flaw.UNUSED), int(Flaw.SIGNED_ZERO)

SLACK_BYTES = 8
"""`load64` may read so far over the end."""

_SET_BITS = [[bit for bit in range(8) if byte >> bit & 1] for byte in range(256)]
_ONES = np.array([len(bits) for bits in _SET_BITS], np.int64)
"""How many bits of each byte are set, and which ones, from the lowest, a byte each."""
_ONES_AT = np.array([sum(bit << 8 * i for i, bit in enumerate(bits)) for bits in _SET_BITS], np.uint64)


@kernel
def inspect(fmt, records, n, counts, scratch):
    """The `Flaw` of the first record that has one, or 0. Adds to `counts` how often each level code is used."""
    places, positions, _ = scratch
    for j in range(n):
        flaw = _flaw(fmt, records, j * fmt.size_bytes, places, positions, counts)
        if flaw:
            return flaw
    return 0


@kernel
def aggregate(fmt, theta, records, clips, scale, contributors, scratch, sums):
    """`Kernels.aggregate`; `sums` is fp32 [2, length]."""
    length, k = fmt.length, fmt.k
    places, positions, values = scratch
    total, senders = sums[0], sums[1]
    n = len(theta)
    for j in range(n):
        chunk = theta[j]
        total[:] = 0
        if contributors:
            senders[:] = 0
        fetched = 0
        for p in range(len(clips)):
            while fetched * len(clips) < length * (p + 1):  # θ arrives while the records are read
                prefetch256(chunk, fetched)
                fetched += 64
            at = _positions(fmt, records, (p * n + j) * fmt.size_bytes, places, positions)
            _values(fmt, records, at, clips[p], values)
            for i in range(k):
                total[positions[i]] += values[i]
            if contributors:
                for i in range(k):
                    senders[positions[i]] += np.float32(1)
        if contributors:
            for i in range(length):
                total[i] /= max(senders[i], np.float32(1))
        for i in range(length):
            chunk[i] -= scale * total[i]


@kernel
def apply(fmt, theta, records, clip, share, saved, scratch):
    """`Kernels.apply`, with the originals in `saved`, fp32 [n, k]."""
    k = fmt.k
    places, positions, values = scratch
    for j in range(len(theta)):
        at = _positions(fmt, records, j * fmt.size_bytes, places, positions)
        _values(fmt, records, at, clip, values)
        chunk, originals = theta[j], saved[j]
        for i in range(k):
            originals[i] = chunk[positions[i]]
        for i in range(k):
            chunk[positions[i]] = originals[i] - share * values[i]


@kernel
def revert(fmt, theta, records, saved, scratch):
    """`Kernels.revert`."""
    places, positions, _ = scratch
    for j in range(len(theta)):
        _positions(fmt, records, j * fmt.size_bytes, places, positions)
        chunk, originals = theta[j], saved[j]
        for i in range(fmt.k):
            chunk[positions[i]] = originals[i]


@kernel
def dot(fmt, gradient, records, clip, share, scratch):
    """`Kernels.dot`."""
    places, positions, values = scratch
    total = 0.0
    for j in range(len(gradient)):
        at = _positions(fmt, records, j * fmt.size_bytes, places, positions)
        _values(fmt, records, at, clip, values)
        chunk = gradient[j]
        for i in range(fmt.k):
            total += np.float64(chunk[positions[i]]) * np.float64(share * values[i])
    return total


@kernel
def shared(fmt, records, n, found, scratch, maps):
    """`Kernels.shared`, added to `found`; `maps` is uint64 [peers, ⌈length / 64⌉]."""
    places, positions, values = scratch
    for j in range(n):
        maps[:] = 0
        for p in range(len(found)):
            at = _positions(fmt, records, (p * n + j) * fmt.size_bytes, places, positions)
            _values(fmt, records, at, np.float32(1), values)
            for i in range(fmt.k):
                sent = np.uint64(values[i] != 0)
                maps[p, positions[i] >> np.uint64(6)] |= sent << (positions[i] & np.uint64(63))
        for p in range(len(found)):
            for q in range(p, len(found)):
                both, mine, theirs = 0, maps[p], maps[q]
                for w in range(len(mine)):
                    both += ones(mine[w] & theirs[w])
                found[p, q] += both
                if q != p:
                    found[q, p] += both


@part
def _positions(fmt, records, at, places, positions):
    """Positions of the record at byte `at`, whose upper map must hold k ones; returns the first byte of its values.
    `places` and `positions` are int64 and uint64 [k + 8]: eight are written at a time."""
    k, low_width = fmt.k, fmt.low_width
    lows = at + (fmt.upper_bits + 7) // 8
    i = 0
    for byte in range(lows - at):
        pattern = records[at + byte]
        put_ones(places, i, _ONES_AT[pattern], 8 * byte)
        i += _ONES[pattern]
    if low_width <= 8:
        for start in range(0, k, 8):
            put_positions(positions, start, places, load64(records, lows + (start >> 3) * low_width), low_width)
    else:
        mask = np.int64((1 << low_width) - 1)
        for i in range(k):
            bit = i * low_width
            low = np.int64(load64(records, lows + (bit >> 3)) >> np.uint64(bit & 7)) & mask
            positions[i] = np.uint64((places[i] - i) << low_width | low)
    return lows + (k * low_width + 7) // 8


@part
def _values(fmt, records, at, clip, values):
    """clip · ŝ, fp32 [k], of the values whose section starts at byte `at`."""
    k, value_bits = fmt.k, fmt.value_bits
    if value_bits == 32:
        for i in range(k):
            values[i] = clip * float_of_bits(np.uint32(load64(records, at + 4 * i)))
        return
    mask = (k + 7) // 8
    two = value_bits == 2
    codes = at + 2 * mask if two else at + mask
    # Sign and clip commute, so two products serve all values.
    lower = bits_of_float(clip * LEVELS[records[codes]])
    change = bits_of_float(clip * LEVELS[records[codes + 1]]) ^ lower if two else np.uint32(0)
    for start in range(0, k, 32):
        signs = np.uint32(load64(records, at + (start >> 3)))
        highs = np.uint32(load64(records, at + mask + (start >> 3))) if two else np.uint32(0)
        block = values[start : min(k, start + 32)]
        for t in range(len(block)):
            high = np.uint32(0) - (highs >> np.uint32(t) & np.uint32(1))
            sign = (signs >> np.uint32(t)) << np.uint32(31)
            block[t] = float_of_bits(np.uint32(lower ^ (change & high) ^ sign))


@part
def _flaw(fmt, records, at, places, positions, counts):
    """The first flaw of the record at byte `at`, in the order of `Flaw`, or 0."""
    length, k, low_width, upper_bits, value_bits = fmt.length, fmt.k, fmt.low_width, fmt.upper_bits, fmt.value_bits
    lows = at + (upper_bits + 7) // 8
    values = lows + (k * low_width + 7) // 8
    mask = (k + 7) // 8
    padding = _padding(records, at, upper_bits) | _padding(records, lows, k * low_width)
    if value_bits < 32:
        padding |= _padding(records, values, k)
    if value_bits == 2:
        padding |= _padding(records, values + mask, k)
    if padding:
        return _PADDING
    count = 0
    for base in range(0, upper_bits, 64):
        count += ones(load64(records, at + (base >> 3)) & lowest(upper_bits - base))
    if count != k:
        return _COUNT
    _positions(fmt, records, at, places, positions)
    descents = 0
    for i in range(k - 1):
        descents += positions[i + 1] <= positions[i]
    if descents or positions[k - 1] >= np.uint64(length):
        return _BEYOND if _largest(positions, k) >= np.uint64(length) else _ORDER
    if value_bits == 32:
        for i in range(k):
            if magnitude_bits(float_of_bits(np.uint32(load64(records, values + 4 * i)))) >= INFINITY:
                return _NOT_FINITE
        return 0
    return _flaw_of_levels(records, values, k, value_bits == 2, counts)


@part
def _largest(positions, k):
    most = positions[0]
    for i in range(1, k):
        most = max(most, positions[i])
    return most


@part
def _flaw_of_levels(records, at, k, two, counts):
    mask = (k + 7) // 8
    codes = at + 2 * mask if two else at + mask
    lower = np.int64(records[codes])
    upper = np.int64(records[codes + 1]) if two else lower
    uppers, signed_lower = 0, False
    for start in range(0, k, 64):
        signs = load64(records, at + (start >> 3)) & lowest(k - start)
        highs = load64(records, at + mask + (start >> 3)) & lowest(k - start) if two else np.uint64(0)
        uppers += ones(highs)
        signed_lower |= (signs & ~highs) != 0
    if lower > upper:
        return _SWAPPED
    if lower == upper:
        if uppers:
            return _LEVEL_BITS
    elif uppers == 0 or uppers == k:
        return _UNUSED
    if lower == 0 and signed_lower:
        return _SIGNED_ZERO
    counts[lower] += k - uppers
    counts[upper] += uppers
    return 0


@part
def _padding(records, at, bits):
    """Whether a section of so many bits has others set in its last byte."""
    return bits & 7 != 0 and records[at + (bits >> 3)] >> (bits & 7) != 0
