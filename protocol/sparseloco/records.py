"""Fixed-size records, one per chunk: positions by Elias–Fano, then signs and levels (protocol §9).

A record of a chunk of `length` elements with k positions holds, each section padded with zero bits to a byte:

    upper map    k + ((length − 1) >> l) + 1 bits: bit (position >> l) + rank is set for each position
    low bits     k × l bits: position mod 2^l, in order;  l = floor(log2(length / k))
    2-bit mode   k sign bits (1 = negative), k level bits (1 = upper level), lower and upper level code; both
                 levels are used, or they are equal and no level bit is set
    1-bit mode   k sign bits, one level code
    32-bit mode  k little-endian fp32 values

Bits fill a byte from the least significant end. With k = 64 and 2 bits a full chunk takes 82 bytes. The
encoding is canonical: an update has one encoding, and `unpack` refuses every other byte string.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from protocol.errors import Reason, Rejected
from protocol.sparseloco.layout import CHUNK

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Bits = npt.NDArray[np.bool_]


def _level_table() -> F32:
    codes = np.arange(256)
    table = np.ldexp(1 + (codes & 7) / 8, (codes >> 3) - 27)
    table[0] = 0.0
    levels: F32 = table.astype(np.float32)
    return levels


LEVELS: F32 = _level_table()
"""fp32 [256]: code 0 is 0, any other (1 + (code mod 8)/8) · 2^(code div 8 − 27). Exact, ascending, at most 30."""
LEVELS.setflags(write=False)

MIDPOINTS: npt.NDArray[np.float64] = (LEVELS[:-1].astype(np.float64) + LEVELS[1:]) / 2
"""binary64 [255]: halfway between each level and the next, exactly."""
MIDPOINTS.setflags(write=False)


@dataclass(frozen=True)
class RecordFormat:
    """Sizes of one record: `length` elements in the chunk, `k` of them sent, 1, 2 or 32 bits a value."""

    length: int
    k: int
    value_bits: int

    @classmethod
    def of_chunk(cls, length: int, k: int, value_bits: int) -> RecordFormat:
        """Format of a chunk of `length` ≤ 4096 elements in a run that sends `k` of 4096: k·length/4096,
        rounded half up, at least 1."""
        return cls(length, max(1, (2 * k * length + CHUNK) // (2 * CHUNK)), value_bits)

    @cached_property
    def low_width(self) -> int:
        """l: low bits of a position that are stored as they are."""
        return (self.length // self.k).bit_length() - 1

    @cached_property
    def upper_bits(self) -> int:
        """Bits of the upper map."""
        return self.k + ((self.length - 1) >> self.low_width) + 1

    @cached_property
    def sections(self) -> tuple[int, ...]:
        """Bytes of each section, in order."""
        mask = _bytes(self.k)
        values = {1: (mask, 1), 2: (mask, mask, 2), 32: (4 * self.k,)}[self.value_bits]
        return (_bytes(self.upper_bits), _bytes(self.k * self.low_width), *values)

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of one record."""
        return sum(self.sections)


def _bytes(bits: int) -> int:
    return (bits + 7) // 8


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Quantised values of n chunks: `negative` and `high` are bool [n, k], `codes` uint8 [n, 2] (1-bit: both
    columns equal). `raw` is fp32 [n, k] in 32-bit mode, where the other three are empty."""

    negative: Bits
    high: Bits
    codes: U8
    raw: F32

    def used(self) -> U8:
        """uint8 [n, k]: the level code of each value."""
        return np.where(self.high, self.codes[:, 1:2], self.codes[:, 0:1])

    def values(self) -> F32:
        """fp32 [n, k]: the values that are applied."""
        if self.raw.size:
            return self.raw
        magnitudes = LEVELS[self.used()]
        return np.where(self.negative, -magnitudes, magnitudes)


class Flaw(IntEnum):
    """Why a record is refused. A record with several flaws has the first of them; of a body, the first record
    with a flaw decides. Every kernel finds the same one."""

    NONE = 0
    PADDING = 1
    COUNT = 2
    BEYOND = 3
    ORDER = 4
    NOT_FINITE = 5
    SWAPPED = 6
    LEVEL_BITS = 7
    UNUSED = 8
    SIGNED_ZERO = 9


_FLAWS = {
    Flaw.PADDING: (Reason.NOT_CANONICAL, "padding bits are set"),
    Flaw.COUNT: (Reason.NOT_CANONICAL, "an upper map does not hold exactly {0.k} ones"),
    Flaw.BEYOND: (Reason.NOT_CANONICAL, "a position lies beyond the {0.length} elements of its chunk"),
    Flaw.ORDER: (Reason.NOT_CANONICAL, "positions do not ascend strictly"),
    Flaw.NOT_FINITE: (Reason.BAD_LEVEL, "a value is NaN or infinite"),
    Flaw.SWAPPED: (Reason.BAD_LEVEL, "the lower level exceeds the upper one"),
    Flaw.LEVEL_BITS: (Reason.BAD_LEVEL, "level bits are set where both levels are equal"),
    # An unused level would be a byte that anyone can change without changing the update.
    Flaw.UNUSED: (Reason.BAD_LEVEL, "two levels are given and only one is used"),
    Flaw.SIGNED_ZERO: (Reason.BAD_LEVEL, "a zero carries a sign"),
}


def refusal(fmt: RecordFormat, flaw: Flaw) -> Rejected:
    """The error for a record that has this `flaw`."""
    reason, detail = _FLAWS[flaw]
    return Rejected(reason, detail.format(fmt))


def pack(fmt: RecordFormat, positions: I64, codes: Codes) -> U8:
    """Records as uint8 [n, size_bytes] of `positions` int64 [n, k], ascending in each row."""
    n, k = positions.shape
    upper = np.zeros((n, fmt.upper_bits), np.uint8)
    np.put_along_axis(upper, (positions >> fmt.low_width) + np.arange(k), 1, axis=1)
    low = (positions[:, :, None] >> np.arange(fmt.low_width)) & 1
    sections = [_pack_bits(upper), _pack_bits(low.reshape(n, -1))]
    if fmt.value_bits == 32:
        sections.append(np.ascontiguousarray(codes.raw, "<f4").view(np.uint8).reshape(n, 4 * k))
    elif fmt.value_bits == 2:
        sections += [_pack_bits(codes.negative), _pack_bits(codes.high), codes.codes]
    else:
        sections += [_pack_bits(codes.negative), codes.codes[:, :1]]
    return np.concatenate(sections, axis=1)


def unpack(fmt: RecordFormat, records: U8) -> tuple[I64, Codes]:
    """Positions and codes of `records`, uint8 [n, size_bytes].

    Raises `Rejected(not_canonical)` for positions or padding that `pack` never writes and
    `Rejected(bad_level)` for values it never writes. Memory is bounded by the format, not by the content.
    """
    if records.ndim != 2 or records.shape[1] != fmt.size_bytes:
        raise Rejected(Reason.NOT_CANONICAL, f"records of {records.shape[-1]} bytes, expected {fmt.size_bytes}")
    positions, codes, flaws = parse(fmt, records)
    wrong = np.flatnonzero(flaws)
    if len(wrong):
        raise refusal(fmt, Flaw(int(flaws[wrong[0]])))
    return positions, codes


def parse(fmt: RecordFormat, records: U8) -> tuple[I64, Codes, U8]:
    """What `records`, uint8 [n, size_bytes], say, and the `Flaw` of each, uint8 [n]. Rows with a flaw hold
    nothing that may be used."""
    sections = np.split(records, np.cumsum(fmt.sections)[:-1], axis=1)
    k, n = fmt.k, len(records)
    widths = (fmt.upper_bits, k * fmt.low_width, *{1: (k,), 2: (k, k), 32: ()}[fmt.value_bits])
    bits = [np.unpackbits(section, axis=1, bitorder="little").astype(bool) for section in sections[: len(widths)]]
    padding = np.any([part[:, width:].any(axis=1) for part, width in zip(bits, widths, strict=True)], axis=0)
    upper, low, *masks = (part[:, :width] for part, width in zip(bits, widths, strict=True))
    count = upper.sum(axis=1) != k
    upper[count] = np.arange(fmt.upper_bits) < k  # any k ones, so that the rows that are right can be read
    high = np.nonzero(upper)[1].reshape(n, k) - np.arange(k)
    places = (low.reshape(n, k, fmt.low_width).astype(np.int64) << np.arange(fmt.low_width)).sum(axis=2)
    positions: I64 = (high.astype(np.int64) << fmt.low_width) | places
    beyond = (positions >= fmt.length).any(axis=1)
    order = (positions[:, 1:] <= positions[:, :-1]).any(axis=1)
    found = {Flaw.PADDING: padding, Flaw.COUNT: count, Flaw.BEYOND: beyond, Flaw.ORDER: order}
    if fmt.value_bits == 32:
        raw = np.ascontiguousarray(sections[2]).view("<f4").astype(np.float32, copy=False)
        none = np.empty((n, 0), bool)
        codes = Codes(none, none, np.empty((n, 0), np.uint8), raw)
        found[Flaw.NOT_FINITE] = ~np.isfinite(raw).all(axis=1)
    else:
        two = fmt.value_bits == 2
        negative, chosen = masks[0], masks[1] if two else np.zeros((n, k), bool)
        levels = sections[-1] if two else np.repeat(sections[-1], 2, axis=1)
        codes = Codes(negative, chosen, levels, np.empty((n, 0), np.float32))
        one = levels[:, 0] == levels[:, 1]
        found[Flaw.SWAPPED] = levels[:, 0] > levels[:, 1]
        found[Flaw.LEVEL_BITS] = one & chosen.any(axis=1)
        found[Flaw.UNUSED] = ~one & (chosen.all(axis=1) | ~chosen.any(axis=1))
        found[Flaw.SIGNED_ZERO] = (negative & (codes.used() == 0)).any(axis=1)
    flaws: U8 = np.select(list(found.values()), list(found), Flaw.NONE).astype(np.uint8)
    return positions, codes, flaws


def _pack_bits(bits: npt.NDArray[np.generic]) -> U8:
    return np.packbits(bits.astype(bool), axis=1, bitorder="little")
