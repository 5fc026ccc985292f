"""Reading records and doing what they say, compiled by numba (see `kernels.cpu`).

Records are read where their owner keeps them. `bodies` has for each peer the address of its body, and `ends` an address
from which the records from byte `last` on can be read with `SLACK_BYTES` behind them; those before have other records
there. `scratch` has room for the places of ones, int64 [k + 8], the positions,
uint64 [k + 8], the values, fp32 [k + 8], and the low bits, uint8 [k + 72], of one record. But for `inspect`, everything
here trusts records that `inspect` found no flaw in.
"""

from __future__ import annotations

import numpy as np

from protocol.sparseloco.kernels.bits import (
    bits_of_float,
    extract,
    float_of_bits,
    leading_zeros,
    load8,
    load64,
    magnitude_bits,
    not_rising,
    ones,
    prefetch128,
    prefetch256,
    put_fields,
    put_ones,
    put_positions,
)
from protocol.sparseloco.kernels.jit import INFINITY, kernel, lowest, part, row_of
from protocol.sparseloco.records import LEVELS, Flaw

_PADDING, _COUNT, _BEYOND, _ORDER = int(Flaw.PADDING), int(Flaw.COUNT), int(Flaw.BEYOND), int(Flaw.ORDER)
_NOT_FINITE, _SWAPPED = int(Flaw.NOT_FINITE), int(Flaw.SWAPPED)
_LEVEL_BITS, _UNUSED, _SIGNED_ZERO = int(Flaw.LEVEL_BITS), int(Flaw.UNUSED), int(Flaw.SIGNED_ZERO)

SLACK_BYTES = 8
"""`load64` may read so far over the end."""

_AHEAD_BYTES = 256
"""How far ahead records are asked for: every peer's lie elsewhere, too many streams for the machine to foresee."""

_SET_BITS = [[bit for bit in range(8) if byte >> bit & 1] for byte in range(256)]
_ONES = np.array([len(bits) for bits in _SET_BITS], np.int64)
"""How many bits of each byte are set, and which ones, from the lowest, a byte each."""
_ONES_AT = np.array([sum(bit << 8 * i for i, bit in enumerate(bits)) for bits in _SET_BITS], np.uint64)


@kernel
def inspect(table, bodies, ends, last, counts, scratch):
    """The `Flaw` of the first record that has one, or 0, and the number of its group. Adds to `counts` how often each
    level code is used, int64 [parameters from that of the first group on, 256]."""
    for number in range(len(table)):
        row = row_of(table, number)
        found = counts[row.parameter - table[0, 0]]
        for j in range(row.chunks):
            at = row.start + j * row.size_bytes
            flaw = _flaw(row, ends[0] if at >= last else bodies[0], at, scratch, found)
            if flaw:
                return flaw, number
    return 0, 0


@kernel
def norms(counts, squares, found):
    """`Kernels.norms` into `found`, binary64 [parameters]. `squares` are those of the levels' mantissas, int64 [32, 8];
    the sum is kept in 128 bits."""
    for p in range(len(counts)):
        low = high = np.uint64(0)
        for exponent in range(32):
            addend = np.uint64(0)
            for mantissa in range(8):
                addend += np.uint64(counts[p, 8 * exponent + mantissa] * squares[exponent, mantissa])
            shift = np.uint64(2 * exponent)
            before = low
            low += addend << shift
            high += np.uint64(low < before)
            if exponent:
                high += addend >> (np.uint64(64) - shift)
        if high == 0:
            found[p] = np.sqrt(np.float64(low)) * 2.0**-30
            continue
        # The upper 64 bits, of which the lowest also stands for all that is left out: rounding sees no difference.
        zeros = np.uint64(leading_zeros(high))
        upper = high << zeros | (low >> (np.uint64(64) - zeros) if zeros else np.uint64(0))
        upper |= np.uint64((low << zeros) != 0)
        found[p] = np.sqrt(np.float64(upper) * 2.0 ** (64.0 - np.float64(zeros))) * 2.0**-30


@kernel
def aggregate(table, theta, bodies, ends, last, clips, scale, contributors, scratch, sums):
    """`Kernels.aggregate`; `sums` is fp32 [2, length]."""
    for number in range(len(table)):
        row = row_of(table, number)
        for j in range(row.chunks):
            at = row.offset + j * row.length
            chunk, record = theta[at : at + row.length], row.start + j * row.size_bytes
            _aggregate_chunk(row, chunk, record, bodies, ends, last, clips, scale, contributors, scratch, sums)


@part
def _aggregate_chunk(row, chunk, at, bodies, ends, last, clips, scale, contributors, scratch, sums):
    length, k, peers = row.length, row.k, len(bodies)
    places, positions, values, _ = scratch
    total, senders = sums[0], sums[1]
    total[0:length] = 0
    if contributors:
        senders[0:length] = 0
    fetched = 0
    for p in range(peers):
        while fetched * peers < length * (p + 1):  # θ arrives while the records are read
            prefetch256(chunk, fetched)
            fetched += 64
        source = ends[p] if at >= last else bodies[p]
        prefetch128(source, at + _AHEAD_BYTES)
        end = _positions(row, source, at, places, positions)
        _values(row, source, end, clips[p, row.parameter], values)
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
def apply(table, theta, bodies, ends, last, clips, share, saved, scratch):
    """`Kernels.apply`, with the originals in `saved`."""
    places, positions, values, _ = scratch
    for number in range(len(table)):
        row = row_of(table, number)
        for j in range(row.chunks):
            at = row.start + j * row.size_bytes
            source = ends[0] if at >= last else bodies[0]
            end = _positions(row, source, at, places, positions)
            _values(row, source, end, clips[row.parameter], values)
            chunk = theta[row.offset + j * row.length : row.offset + (j + 1) * row.length]
            originals = saved[row.first + j * row.k : row.first + (j + 1) * row.k]
            for i in range(row.k):
                originals[i] = chunk[positions[i]]
            for i in range(row.k):
                chunk[positions[i]] = originals[i] - share * values[i]


@kernel
def revert(table, theta, bodies, ends, last, saved, scratch):
    """`Kernels.revert`."""
    places, positions, _, _ = scratch
    for number in range(len(table)):
        row = row_of(table, number)
        for j in range(row.chunks):
            at = row.start + j * row.size_bytes
            _positions(row, ends[0] if at >= last else bodies[0], at, places, positions)
            chunk = theta[row.offset + j * row.length : row.offset + (j + 1) * row.length]
            originals = saved[row.first + j * row.k : row.first + (j + 1) * row.k]
            for i in range(row.k):
                chunk[positions[i]] = originals[i]


@kernel
def dot(table, gradient, bodies, ends, last, clips, share, scratch, found):
    """`Kernels.dot`, added to `found`, binary64 [peers]."""
    places, positions, values, _ = scratch
    for number in range(len(table)):
        row = row_of(table, number)
        for j in range(row.chunks):
            at = row.start + j * row.size_bytes
            chunk = gradient[row.offset + j * row.length : row.offset + (j + 1) * row.length]
            for p in range(len(bodies)):
                source = ends[p] if at >= last else bodies[p]
                prefetch128(source, at + _AHEAD_BYTES)
                end = _positions(row, source, at, places, positions)
                _values(row, source, end, clips[p, row.parameter], values)
                total = found[p]
                for i in range(row.k):
                    total += np.float64(chunk[positions[i]]) * np.float64(share * values[i])
                found[p] = total


@kernel
def shared(table, bodies, ends, last, found, scratch, maps):
    """`Kernels.shared`, added to `found`; `maps` is uint64 [peers, ⌈length / 64⌉]."""
    places, positions, values, _ = scratch
    for number in range(len(table)):
        row = row_of(table, number)
        for j in range(row.chunks):
            at = row.start + j * row.size_bytes
            maps[:] = 0
            for p in range(len(bodies)):
                source = ends[p] if at >= last else bodies[p]
                prefetch128(source, at + _AHEAD_BYTES)
                end = _positions(row, source, at, places, positions)
                _values(row, source, end, np.float32(1), values)
                for i in range(row.k):
                    sent = np.uint64(values[i] != 0)
                    maps[p, positions[i] >> np.uint64(6)] |= sent << (positions[i] & np.uint64(63))
            _count_common(maps, (row.length + 63) // 64, found)


@part
def _count_common(maps, words, found):
    for p in range(len(found)):
        for q in range(p, len(maps)):
            both, mine, theirs = 0, maps[p], maps[q]
            for w in range(words):
                both += ones(mine[w] & theirs[w])
            found[p, q] += both
            if p < q < len(found):
                found[q, p] += both


@part
def _positions(row, source, at, places, positions):
    """Positions of the record at byte `at`, whose upper map must hold k ones; returns the first byte of its values.
    `places` and `positions` are int64 and uint64 [k + 8]: eight are written at a time."""
    k, low_width = row.k, row.low_width
    lows = at + (row.upper_bits + 7) // 8
    i = 0
    for byte in range(lows - at):
        pattern = load8(source, at + byte)
        put_ones(places, i, _ONES_AT[pattern], 8 * byte)
        i += _ONES[pattern]
    if low_width <= 8:
        for start in range(0, k, 8):
            put_positions(positions, start, places, load64(source, lows + (start >> 3) * low_width), low_width)
    else:
        mask = np.int64((1 << low_width) - 1)
        for i in range(k):
            bit = i * low_width
            low = np.int64(load64(source, lows + (bit >> 3)) >> np.uint64(bit & 7)) & mask
            positions[i] = np.uint64((places[i] - i) << low_width | low)
    return lows + (k * low_width + 7) // 8


@part
def _values(row, source, at, clip, values):
    """clip · ŝ, fp32 [k], of the values whose section starts at byte `at`."""
    k, value_bits = row.k, row.value_bits
    if value_bits == 32:
        for i in range(k):
            values[i] = clip * float_of_bits(np.uint32(load64(source, at + 4 * i)))
        return
    mask = (k + 7) // 8
    two = value_bits == 2
    codes = at + 2 * mask if two else at + mask
    # Sign and clip commute, so two products serve all values.
    lower = bits_of_float(clip * LEVELS[load8(source, codes)])
    change = bits_of_float(clip * LEVELS[load8(source, codes + 1)]) ^ lower if two else np.uint32(0)
    for start in range(0, k, 32):
        signs = np.uint32(load64(source, at + (start >> 3)))
        highs = np.uint32(load64(source, at + mask + (start >> 3))) if two else np.uint32(0)
        block = values[start : min(k, start + 32)]
        for t in range(len(block)):
            high = np.uint32(0) - (highs >> np.uint32(t) & np.uint32(1))
            sign = (signs >> np.uint32(t)) << np.uint32(31)
            block[t] = float_of_bits(np.uint32(lower ^ (change & high) ^ sign))


@part
def _flaw(row, source, at, scratch, counts):
    """The first flaw of the record at byte `at`, in the order of `Flaw`, or 0."""
    length, k, low_width, upper_bits, value_bits = row.length, row.k, row.low_width, row.upper_bits, row.value_bits
    places, positions, _, fields = scratch
    lows = at + (upper_bits + 7) // 8
    values = lows + (k * low_width + 7) // 8
    mask = (k + 7) // 8
    padding = _padding(source, at, upper_bits) | _padding(source, lows, k * low_width)
    if value_bits < 32:
        padding |= _padding(source, values, k)
    if value_bits == 2:
        padding |= _padding(source, values + mask, k)
    if padding:
        return _PADDING
    count = 0
    for base in range(0, upper_bits, 64):
        count += ones(load64(source, at + (base >> 3)) & lowest(upper_bits - base))
    if count != k:
        return _COUNT
    if _may_be_out_of_order(row, source, at, lows, fields):
        _positions(row, source, at, places, positions)
        if _largest(positions, k) >= np.uint64(length):
            return _BEYOND
        for i in range(k - 1):
            if positions[i + 1] <= positions[i]:
                return _ORDER
    if value_bits == 32:
        for i in range(k):
            if magnitude_bits(float_of_bits(np.uint32(load64(source, values + 4 * i)))) >= INFINITY:
                return _NOT_FINITE
        return 0
    return _flaw_of_levels(source, values, k, value_bits == 2, counts)


@part
def _may_be_out_of_order(row, source, at, lows, fields):
    """Whether the positions, of which the upper map has k, need a closer look. The high parts never fall; where two
    ones are neighbours in the map the high part is the same, and the low bits must rise. So no position need be put
    together but the last."""
    k, low_width, upper_bits = row.k, row.low_width, row.upper_bits
    if low_width > 8:  # few values far apart
        return True
    for start in range(0, k, 8):
        put_fields(fields, start, load64(source, lows + (start >> 3) * low_width), low_width)
    rank, place, wrong = 0, 0, np.uint64(0)
    word = load64(source, at) & lowest(upper_bits)
    for base in range(0, upper_bits, 64):
        following = np.uint64(0)
        if base + 64 < upper_bits:
            following = load64(source, at + ((base + 64) >> 3)) & lowest(upper_bits - base - 64)
        neighbours = word & (word >> np.uint64(1) | following << np.uint64(63))
        wrong |= extract(neighbours, word) & not_rising(fields, rank)
        rank += ones(word)
        if word:
            place = base + 63 - leading_zeros(word)
        word = following
    position = (place - (k - 1)) << low_width | np.int64(fields[k - 1])
    return wrong != 0 or position >= row.length


@part
def _largest(positions, k):
    most = positions[0]
    for i in range(1, k):
        most = max(most, positions[i])
    return most


@part
def _flaw_of_levels(source, at, k, two, counts):
    mask = (k + 7) // 8
    codes = at + 2 * mask if two else at + mask
    lower = np.int64(load8(source, codes))
    upper = np.int64(load8(source, codes + 1)) if two else lower
    uppers, signed_lower = 0, False
    for start in range(0, k, 64):
        signs = load64(source, at + (start >> 3)) & lowest(k - start)
        highs = load64(source, at + mask + (start >> 3)) & lowest(k - start) if two else np.uint64(0)
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
def _padding(source, at, bits):
    """Whether a section of so many bits has others set in its last byte."""
    return bits & 7 != 0 and load8(source, at + (bits >> 3)) >> (bits & 7) != 0
