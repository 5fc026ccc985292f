"""Encoding one chunk after the other, compiled by numba (see `kernels.cpu`).

Scratch arrays are the caller's. Those that `at_least` reads have 64 elements to spare.
"""

from __future__ import annotations

import numpy as np

from protocol.sparseloco.kernels.bits import (
    accumulate64,
    at_least,
    bits_of_float,
    magnitude_bits,
    negative,
    ones,
    prefetch256,
    take_fields,
    trailing_zeros,
)
from protocol.sparseloco.kernels.jit import INFINITY, kernel, lowest, part, row_of
from protocol.sparseloco.records import LEVELS, MIDPOINTS

_BOUND_STEPS = 8
_SHELL_GAPS = (1750, 701, 301, 132, 57, 23, 10, 4, 1)
"""Ciura, "Best increments for the average case of Shellsort", 2001."""


@kernel
def encode(table, beta, error, delta, body, scratch):
    """False if a sum is not finite. Each array of `scratch` has room for the largest chunk of the table."""
    good = True
    for number in range(len(table)):
        good = good and _encode_group(row_of(table, number), beta, error, delta, body, scratch)
    return good


@part
def _encode_group(row, beta, error, delta, body, scratch):
    """The largest magnitudes of some columns of a chunk give a bound that at least k elements reach, and only about
    1.4 k do: the exact choice is made among those."""
    length, k, value_bits, columns = row.length, row.k, row.value_bits, _columns(row.length, row.k)
    values, places, ordered, sums, explained, codes, words = scratch[1:8]
    maxima, positions = scratch[0][: columns + 64], scratch[8][:k]
    for j in range(row.chunks):
        at, record = row.offset + j * length, body[row.start + j * row.size_bytes :]
        following = min(at + length, len(error) - length)
        chunk = error[at : at + length]
        top = _accumulate(chunk, delta[at : at + length], beta, maxima, columns, delta[following : following + length])
        if top >= INFINITY:
            return False
        bound = _bound(maxima, columns, k, top) if columns else 0
        count = _candidates(chunk, error[following : following + length], bound, values, places)
        threshold = _kth_at_least(values, count, k, bound, top, 32)
        _choose(values, places, count, k, threshold, positions)
        end = _write_positions(row, positions, words, record)
        for i in range(k):
            values[i] = chunk[positions[i]]
        if value_bits == 32:
            _send_values(chunk, positions, values, record, end)
        else:
            _fit(values, k, value_bits, ordered, sums, explained, codes)
            _send_levels(value_bits, chunk, positions, values, codes, record, end)
    return True


@part
def _columns(length, k):
    """How many columns to take the maxima of; 0 if the choice is made among all elements. More give a tighter bound
    and cost more to search; at twice k some 1.4 k candidates are left."""
    columns = 128
    while columns < 2 * k:
        columns *= 2
    return 0 if 2 * columns > length else columns


@part
def _accumulate(error, delta, beta, maxima, columns, following):
    """error = β·error + delta. Leaves in `maxima` the largest magnitude of each column, as bits, if the chunk is laid
    out in rows of `columns`; returns the largest of all. Fetches the `following` delta meanwhile."""
    top = np.int32(0)
    if columns == 0:
        for i in range(len(error)):
            error[i] = beta * error[i] + delta[i]
            top = max(top, magnitude_bits(error[i]))
        return top
    maxima[:] = 0
    for start in range(0, len(error), columns):
        row, change = error[start : start + columns], delta[start : start + columns]
        whole = len(row) // 64 * 64
        for c in range(0, whole, 64):
            accumulate64(row, change, c, beta, maxima, c)
            prefetch256(following, start + c)
        for c in range(whole, len(row)):
            row[c] = beta * row[c] + change[c]
            maxima[c] = max(maxima[c], magnitude_bits(row[c]))
    for c in range(columns):
        top = max(top, maxima[c])
    return top


@part
def _bound(maxima, columns, k, top):
    """A threshold that at least k columns reach, and not many more."""
    low = top
    for c in range(columns):
        low = min(low, maxima[c])
    return _kth_at_least(maxima, columns, k, low, top, _BOUND_STEPS)


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
def _candidates(chunk, following, bound, values, places):
    """All elements of a chunk whose magnitude reaches `bound`, in order, and where they are. Fetches the `following`
    chunk meanwhile: the search leaves the memory idle."""
    count = 0
    whole = len(chunk) // 64 * 64
    for start in range(0, whole, 64):
        prefetch256(following, start)
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
    """Places of the k largest candidates, in order. Of those that equal the threshold the first ones are taken: they
    have the lowest places."""
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
    middle = (np.float64(LEVELS[codes[0]]) + np.float64(LEVELS[codes[1]])) / 2
    if np.float64(ordered[0]) > middle:
        codes[0] = codes[1]
    if np.float64(ordered[k - 1]) <= middle:
        codes[1] = codes[0]


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
    low, high = 0, len(MIDPOINTS)
    while low < high:
        middle = (low + high) // 2
        if MIDPOINTS[middle] < level:
            low = middle + 1
        else:
            high = middle
    return low


@part
def _send_levels(value_bits, chunk, positions, values, codes, record, at):
    """Subtract what is sent, and write signs, level bits and codes from byte `at` on."""
    k = len(positions)
    lower, upper = LEVELS[codes[0]], LEVELS[codes[1]]
    mask = (k + 7) // 8
    above = _above((np.float64(lower) + np.float64(upper)) / 2) if lower < upper else INFINITY
    for start in range(0, k, 64):
        highs = at_least(values, start, np.int32(above)) & lowest(k - start)
        signs = negative(values, start) & lowest(k - start)
        if lower == 0:  # zeros carry no sign
            signs &= highs if upper > 0 else np.uint64(0)
        for i in range(start, min(k, start + 64)):
            bit = np.uint64(i - start)
            level = upper if highs >> bit & np.uint64(1) else lower
            chunk[positions[i]] = values[i] + level if signs >> bit & np.uint64(1) else values[i] - level
        _write(signs, min(8, mask - start // 8), record, at + start // 8)
        if value_bits == 2:
            _write(highs, min(8, mask - start // 8), record, at + mask + start // 8)
    if value_bits == 2:
        record[at + 2 * mask] = codes[0]
        record[at + 2 * mask + 1] = codes[1]
    else:
        record[at + mask] = codes[0]


@part
def _above(limit):
    """Bits of the smallest fp32 number above `limit` ≥ 0."""
    rounded = np.float32(limit)
    return np.int64(magnitude_bits(rounded)) + (1 if np.float64(rounded) <= limit else 0)


@part
def _send_values(chunk, positions, values, record, at):
    """Values as they are, from byte `at` on; nothing of them is left."""
    for i in range(len(positions)):
        chunk[positions[i]] = np.float32(0)
        _write(np.uint64(bits_of_float(values[i])), 4, record, at + 4 * i)


@part
def _write_positions(fmt, positions, words, record):
    """Upper map and low bits; returns the byte behind them. `words` is uint64, with room for the upper map."""
    k, low_width = fmt.k, fmt.low_width
    size = (fmt.upper_bits + 7) // 8
    for w in range((size + 7) // 8):
        words[w] = 0
    word, index = np.uint64(0), 0
    for i in range(k):
        bit = np.int64(positions[i] >> np.uint64(low_width)) + i
        if bit >> 6 != index:
            words[index] = word
            word, index = np.uint64(0), bit >> 6
        word |= np.uint64(1) << np.uint64(bit & 63)
    words[index] = word
    for w in range((size + 7) // 8):
        _write(words[w], min(8, size - 8 * w), record, 8 * w)
    at, whole = size, k // 8 * 8 if low_width <= 8 else 0
    for start in range(0, whole, 8):
        _write(take_fields(positions, start, low_width), low_width, record, at)
        at += low_width
    mask = np.uint64((1 << low_width) - 1)
    word, filled = np.uint64(0), 0
    for i in range(whole, k):
        word |= (positions[i] & mask) << np.uint64(filled)
        filled += low_width
        while filled >= 8:
            record[at] = np.uint8(word & np.uint64(255))
            word >>= np.uint64(8)
            filled -= 8
            at += 1
    if filled:
        record[at] = np.uint8(word & np.uint64(255))
        at += 1
    return at


@part
def _write(word, size, record, at):
    """The lowest `size` bytes of a uint64."""
    for b in range(size):
        record[at + b] = np.uint8(word >> np.uint64(8 * b) & np.uint64(255))
