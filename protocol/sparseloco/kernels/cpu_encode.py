"""Encoding one chunk after the other, compiled by numba (see `kernels.cpu`).

Scratch arrays are the caller's. Those that `at_least` reads have 64 elements to spare.
"""

from __future__ import annotations

import numpy as np

from protocol.sparseloco.kernels.bits import (
    at_least,
    bits_of_float,
    magnitude_bits,
    ones,
    prefetch256,
    trailing_zeros,
)
from protocol.sparseloco.kernels.jit import INFINITY, kernel, lowest, part
from protocol.sparseloco.records import LEVELS

_MIDPOINTS = (LEVELS[:-1].astype(np.float64) + LEVELS[1:]) / 2
_BOUND_STEPS = 10
_SHELL_GAPS = (1750, 701, 301, 132, 57, 23, 10, 4, 1)
"""Ciura, "Best increments for the average case of Shellsort", 2001."""


@kernel
def encode(fmt, beta, error, delta, records, columns, scratch):
    """False if a sum is not finite. The largest magnitudes of `columns` ≥ k columns of a chunk give a bound that at
    least k elements reach, and only about 1.5 k do: the exact choice is made among those. 0 columns: among all."""
    k, value_bits = fmt.k, fmt.value_bits
    maxima, values, places, positions, ordered, sums, explained, codes, words = scratch
    for j in range(len(error)):
        chunk = error[j]
        top = _accumulate(chunk, delta[j], beta, maxima, columns)
        if top >= INFINITY:
            return False
        bound = _kth_at_least(maxima, columns, k, 0, top, _BOUND_STEPS) if columns else 0
        count = _candidates(error, delta, j, bound, values, places)
        threshold = _kth_at_least(values, count, k, bound, top, 32)
        _choose(values, places, count, k, threshold, positions)
        words[:] = 0
        if value_bits < 32:
            for i in range(k):
                values[i] = chunk[positions[i]]
            _fit(values, k, value_bits, ordered, sums, explained, codes)
            _send(chunk, positions, codes, words)
        _pack(fmt, chunk, positions, codes, words, records[j])
    return True


@part
def _accumulate(error, delta, beta, maxima, columns):
    """error = β·error + delta. Leaves in `maxima` the largest magnitude of each column, as bits, if the chunk is laid
    out in rows of `columns`; returns the largest of all."""
    for i in range(len(error)):
        error[i] = beta * error[i] + delta[i]
    top = np.int32(0)
    if columns == 0:
        for i in range(len(error)):
            top = max(top, magnitude_bits(error[i]))
        return top
    maxima[:] = 0
    for start in range(0, len(error), columns):
        row = error[start : start + columns]
        for c in range(len(row)):
            maxima[c] = max(maxima[c], magnitude_bits(row[c]))
    for c in range(columns):
        top = max(top, maxima[c])
    return top


@part
def _reach(values, count, threshold):
    """How many of values[:count] reach the threshold."""
    reach = 0
    for start in range(0, count, 64):
        reach += ones(at_least(values, start, threshold) & lowest(count - start))
    return reach


@part
def _kth_at_least(values, count, k, low, top, steps):
    """A threshold in [low, top] that at least k of values[:count] reach: the largest, if `steps` suffice, or one
    that exactly k reach. At least k must reach `low`."""
    high = np.int64(top) + 1
    low = np.int64(low)
    while high - low > 1 and steps > 0:
        steps -= 1
        middle = low + (high - low) // 2
        reach = _reach(values, count, np.int32(middle))
        if reach >= k:
            low = middle
            if reach == k:
                break
        else:
            high = middle
    return low


@part
def _candidates(error, delta, j, bound, values, places):
    """All elements of chunk j whose magnitude reaches `bound`, in order, and where they are. Fetches the next chunk
    meanwhile: the search leaves the memory idle."""
    chunk = error[j]
    following = min(j + 1, len(error) - 1)
    count = 0
    whole = len(chunk) // 64 * 64
    for start in range(0, whole, 64):
        prefetch256(error[following], start)
        prefetch256(delta[following], start)
        word = at_least(chunk, start, np.int32(bound))
        while word:
            place = start + trailing_zeros(word)
            word &= word - np.uint64(1)
            values[count] = chunk[place]
            places[count] = place
            count += 1
    for place in range(whole, len(chunk)):
        if magnitude_bits(chunk[place]) >= bound:
            values[count] = chunk[place]
            places[count] = place
            count += 1
    return count


@part
def _choose(values, places, count, k, threshold, positions):
    """Places of the k largest candidates, in order. Of those that equal the threshold the first ones are taken."""
    equal = k - _reach(values, count, np.int32(threshold + 1))
    sent = 0
    for start in range(0, count, 64):
        word = at_least(values, start, np.int32(threshold)) & lowest(count - start)
        while word:
            i = start + trailing_zeros(word)
            word &= word - np.uint64(1)
            if magnitude_bits(values[i]) == threshold:
                if equal == 0:
                    continue
                equal -= 1
            positions[sent] = places[i]
            sent += 1


@part
def _fit(values, k, value_bits, ordered, sums, explained, codes):
    """Codes of the levels: the mean (1 bit), or the means of the split with the least squared error (2 bits)."""
    if value_bits == 2 and k > 1:
        _sort_magnitudes(values, k, ordered)
    else:
        for i in range(k):
            ordered[i] = abs(values[i])
    total = 0.0
    for i in range(k):
        total += np.float64(ordered[i])
        sums[i] = total
    if value_bits == 1 or k == 1:
        codes[0] = codes[1] = _nearest(total / k)
        return
    for i in range(k - 1):
        below, above = sums[i], total - sums[i]
        explained[i] = below * below / np.float64(i + 1) + above * above / np.float64(k - 1 - i)
    best = 0
    for i in range(k - 1):
        if explained[i] > explained[best]:
            best = i
    codes[0] = _nearest(sums[best] / (best + 1))
    codes[1] = _nearest((total - sums[best]) / (k - 1 - best))


@part
def _sort_magnitudes(values, k, ordered):
    if k > 256:
        for i in range(k):
            ordered[i] = abs(values[i])
        for gap in _SHELL_GAPS:
            for i in range(gap, k):
                moved, at = ordered[i], i
                while at >= gap and ordered[at - gap] > moved:
                    ordered[at] = ordered[at - gap]
                    at -= gap
                ordered[at] = moved
        return
    # Counting who is smaller takes k² comparisons, but 64 at a time and without a branch.
    ordered[:k] = 0
    for i in range(k):
        smaller = k - _reach(values, k, magnitude_bits(values[i]))
        ordered[smaller] = abs(values[i])
    for i in range(1, k):  # equal ones all went to the place of the first of them
        ordered[i] = max(ordered[i], ordered[i - 1])


@part
def _nearest(level):
    """Code of the nearest level; half way goes to the smaller."""
    low, high = 0, len(_MIDPOINTS)
    while low < high:
        middle = (low + high) // 2
        if _MIDPOINTS[middle] < level:
            low = middle + 1
        else:
            high = middle
    return low


@part
def _send(chunk, positions, codes, words):
    """Subtract what is sent; sign and level bits go to words[2] and words[3]."""
    lower, upper = LEVELS[codes[0]], LEVELS[codes[1]]
    for i in range(len(positions)):
        value = chunk[positions[i]]
        magnitude = np.float64(abs(value))
        high = abs(magnitude - np.float64(upper)) < abs(magnitude - np.float64(lower))
        level = upper if high else lower
        negative = bits_of_float(value) >> np.uint32(31) and level > 0
        chunk[positions[i]] = value + level if negative else value - level
        words[2, i >> 6] |= np.uint64(negative) << np.uint64(i & 63)
        words[3, i >> 6] |= np.uint64(high) << np.uint64(i & 63)


@part
def _pack(fmt, chunk, positions, codes, words, record):
    k, low_width, value_bits = fmt.k, fmt.low_width, fmt.value_bits
    mask = np.int64((1 << low_width) - 1)
    for i in range(k):
        at = (positions[i] >> low_width) + i
        words[0, at >> 6] |= np.uint64(1) << np.uint64(at & 63)
        at = i * low_width
        low, shift = np.uint64(positions[i] & mask), at & 63
        words[1, at >> 6] |= low << np.uint64(shift)
        if shift + low_width > 64:
            words[1, (at >> 6) + 1] |= low >> np.uint64(64 - shift)
    at = _write(words[0], fmt.upper_bits, record, 0)
    at = _write(words[1], k * low_width, record, at)
    if value_bits == 32:
        for i in range(k):
            bits = bits_of_float(chunk[positions[i]])
            chunk[positions[i]] = np.float32(0)
            for b in range(4):
                record[at + 4 * i + b] = np.uint8(bits >> np.uint32(8 * b) & np.uint32(255))
        return
    at = _write(words[2], k, record, at)
    if value_bits == 2:
        at = _write(words[3], k, record, at)
        record[at + 1] = codes[1]
    record[at] = codes[0]


@part
def _write(words, bits, record, at):
    size = (bits + 7) // 8
    for b in range(size):
        record[at + b] = np.uint8(words[b >> 3] >> np.uint64(8 * (b & 7)) & np.uint64(255))
    return at + size
