"""Records: one encoding for each update, nothing else accepted, whatever the bytes."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import Reason, Rejected
from protocol.sparseloco.kernels.reference import quantise, select
from protocol.sparseloco.records import LEVELS, Codes, RecordFormat, pack, unpack

MODES = [1, 2, 32]
lengths = st.one_of(st.integers(1, 40), st.integers(1, 4096))
ks = st.one_of(st.integers(1, 4096), st.sampled_from([1, 2, 63, 64, 65, 2048, 4095, 4096]))
magnitudes = st.sampled_from(["normal", "equal", "zero", "denormal", "huge", "midpoint", "two", "mixed"])


def chunk(length: int, kind: str, seed: int) -> np.ndarray:
    """fp32 [1, length] values of one kind, chosen to sit where rounding is delicate."""
    random = np.random.default_rng(seed)
    signs = random.choice(np.array([-1, 1], np.float32), length)
    values = {
        "normal": lambda: random.standard_normal(length) * 1e-3,
        "equal": lambda: np.full(length, random.random()),
        "zero": lambda: np.zeros(length),
        "denormal": lambda: random.integers(1, 100, length) * 2.0**-149,
        "huge": lambda: random.random(length) * 3e38,
        "midpoint": lambda: (LEVELS[:-1] / 2 + LEVELS[1:] / 2)[random.integers(0, 255, length)],
        "two": lambda: LEVELS[random.choice(np.array([40, 41]), length)],
        "mixed": lambda: 10.0 ** random.uniform(-45, 38, length),
    }[kind]()
    return (signs * values.astype(np.float32)).reshape(1, length)


def encode(fmt: RecordFormat, values: np.ndarray) -> tuple[np.ndarray, Codes, np.ndarray]:
    positions = select(values, fmt.k)
    codes = quantise(np.take_along_axis(values, positions, axis=1), fmt.value_bits)
    return positions, codes, pack(fmt, positions, codes)


def record_reader(fmt: RecordFormat, record: bytes) -> tuple[list[int], list[float]]:
    """Positions and values by a second decoder, bit by bit, from the text of docs/protocol.md."""
    k, low_width = fmt.k, int(math.log2(fmt.length // fmt.k))
    bits = [byte >> bit & 1 for byte in record for bit in range(8)]
    upper_bits = k + ((fmt.length - 1) >> low_width) + 1
    upper, rest = bits[:upper_bits], bits[-(-upper_bits // 8) * 8 :]
    low, rest = rest[: k * low_width], rest[-(-k * low_width // 8) * 8 :]
    highs = [place - rank for rank, place in enumerate(p for p, bit in enumerate(upper) if bit)]
    lows = [sum(low[i * low_width + j] << j for j in range(low_width)) for i in range(k)]
    positions = [high << low_width | low for high, low in zip(highs, lows, strict=True)]
    if fmt.value_bits == 32:
        raw = record[-4 * k :]
        return positions, [float(np.frombuffer(raw[4 * i : 4 * i + 4], "<f4")[0]) for i in range(k)]
    mask = -(-k // 8) * 8
    signs = rest[:k]
    if fmt.value_bits == 2:
        uppers, codes = rest[mask : mask + k], record[-2:]
        levels = [level(codes[bit]) for bit in uppers]
    else:
        levels = [level(record[-1])] * k
    return positions, [-value if sign else value for sign, value in zip(signs, levels, strict=True)]


def level(code: int) -> float:
    return float((1 + Fraction(code % 8, 8)) * Fraction(2) ** (code // 8 - 27)) if code else 0.0


def test_the_level_table_is_exact_and_ascends() -> None:
    assert LEVELS.dtype == np.float32
    assert [float(value) for value in LEVELS] == [level(code) for code in range(256)]
    assert (np.diff(LEVELS.astype(np.float64)) > 0).all()
    assert (LEVELS[0], LEVELS[255]) == (0.0, 30.0)
    with pytest.raises(ValueError, match="read-only"):
        LEVELS[3] = 1


@pytest.mark.parametrize(
    ("k", "bits", "size"), [(64, 2, 82), (64, 1, 73), (64, 32, 320), (4096, 32, 1024 + 4 * 4096), (1, 2, 1 + 2 + 4)]
)
def test_a_full_chunk_has_the_promised_size(k: int, bits: int, size: int) -> None:
    assert RecordFormat.of_chunk(4096, k, bits).size_bytes == size


@given(lengths, ks)
def test_a_tail_sends_its_share_rounded_half_up_and_at_least_one(length: int, k: int) -> None:
    expected = max(1, math.floor(Fraction(k * length, 4096) + Fraction(1, 2)))
    assert RecordFormat.of_chunk(length, k, 2).k == expected <= length


@given(lengths, ks)
def test_low_bits_are_the_floor_of_the_logarithm(length: int, k: int) -> None:
    fmt = RecordFormat.of_chunk(length, k, 2)
    assert 2**fmt.low_width <= Fraction(length, fmt.k) < 2 ** (fmt.low_width + 1)


@settings(max_examples=300)
@given(lengths, ks, st.sampled_from(MODES), magnitudes, st.integers(0, 2**32 - 1))
def test_records_come_back_to_the_bit(length: int, k: int, bits: int, kind: str, seed: int) -> None:
    fmt = RecordFormat.of_chunk(length, k, bits)
    positions, codes, record = encode(fmt, chunk(length, kind, seed))
    assert record.shape == (1, fmt.size_bytes)
    read_positions, read = unpack(fmt, record)
    assert (read_positions == positions).all()
    assert read.values().tobytes() == codes.values().tobytes()
    assert pack(fmt, read_positions, read).tobytes() == record.tobytes()


@settings(max_examples=60)
@given(st.integers(1, 300), ks, st.sampled_from(MODES), magnitudes, st.integers(0, 2**32 - 1))
def test_a_second_decoder_reads_the_same(length: int, k: int, bits: int, kind: str, seed: int) -> None:
    fmt = RecordFormat.of_chunk(length, k, bits)
    positions, codes, record = encode(fmt, chunk(length, kind, seed))
    slow_positions, slow_values = record_reader(fmt, record.tobytes())
    assert slow_positions == positions[0].tolist()
    assert np.array(slow_values, np.float32).tobytes() == codes.values()[0].tobytes()


def read_or_refuse(fmt: RecordFormat, records: np.ndarray) -> tuple[np.ndarray, Codes] | None:
    """What `unpack` reads; None when it refuses for one of its two reasons."""
    try:
        return unpack(fmt, records)
    except Rejected as refusal:
        if refusal.reason not in (Reason.NOT_CANONICAL, Reason.BAD_LEVEL):
            raise
        return None


def flips(fmt: RecordFormat, record: np.ndarray, bits: range) -> tuple[int, int]:
    """Flip each of these bits on its own; returns how many changed the update and how many were rejected."""
    positions, codes = unpack(fmt, record)
    before = (positions.tobytes(), codes.values().tobytes())
    changed = rejected = 0
    for bit in bits:
        flipped = record.copy()
        flipped[0, bit // 8] ^= 1 << bit % 8
        read = read_or_refuse(fmt, flipped)
        if read is None:
            rejected += 1
            continue
        after, values = read
        assert (after.tobytes(), values.values().tobytes()) != before, f"bit {bit} means nothing"
        assert pack(fmt, after, values).tobytes() == flipped.tobytes()
        changed += 1
    return changed, rejected


@pytest.mark.parametrize("bits", MODES)
@pytest.mark.parametrize("kind", ["normal", "equal", "zero", "two", "denormal", "huge"])
@pytest.mark.parametrize(("length", "k"), [(4096, 64), (104, 64), (1, 64), (5, 4096), (33, 500)])
def test_every_single_bit_changes_the_update_or_is_refused(length: int, k: int, kind: str, bits: int) -> None:
    fmt = RecordFormat.of_chunk(length, k, bits)
    _, _, record = encode(fmt, chunk(length, kind, 11))
    changed, rejected = flips(fmt, record, range(8 * fmt.size_bytes))
    assert changed + rejected == 8 * fmt.size_bytes
    assert rejected > 0


@settings(max_examples=40)
@given(lengths, ks, st.sampled_from(MODES), magnitudes, st.integers(0, 2**32 - 1), st.data())
def test_a_random_bit_of_a_random_record_matters(
    length: int, k: int, bits: int, kind: str, seed: int, data: st.DataObject
) -> None:
    fmt = RecordFormat.of_chunk(length, k, bits)
    _, _, record = encode(fmt, chunk(length, kind, seed))
    bit = data.draw(st.integers(0, 8 * fmt.size_bytes - 1))
    flips(fmt, record, range(bit, bit + 1))


@settings(max_examples=300)
@given(st.integers(1, 64), ks, st.sampled_from(MODES), st.data())
def test_random_bytes_are_refused_or_are_the_one_encoding_of_what_they_say(
    length: int, k: int, bits: int, data: st.DataObject
) -> None:
    fmt = RecordFormat.of_chunk(length, k, bits)
    raw = data.draw(st.binary(min_size=fmt.size_bytes, max_size=fmt.size_bytes))
    read = read_or_refuse(fmt, np.frombuffer(raw, np.uint8).reshape(1, -1))
    assert read is None or pack(fmt, *read).tobytes() == raw


FMT = RecordFormat(16, 4, 2)
"""l = 2: an upper map of 8 bits (1 byte), 8 low bits (1), 4 signs (1), 4 level bits (1), 2 codes."""

GOOD = bytes([0b01010101, 0b11100100, 0b0010, 0b1100, 40, 48])
"""Positions 0, 5, 10, 15; the third is negative; the last two have the upper level."""


def test_a_record_worked_out_by_hand_is_read() -> None:
    positions, codes = unpack(FMT, np.frombuffer(GOOD, np.uint8).reshape(1, -1))
    assert positions.tolist() == [[0, 5, 10, 15]]
    assert codes.values().tolist() == [[2.0**-22, -(2.0**-22), 2.0**-21, 2.0**-21]]
    assert FMT.sections == (1, 1, 1, 1, 2)


@pytest.mark.parametrize(
    ("place", "byte", "reason", "why"),
    [
        (0, 0b01010100, Reason.NOT_CANONICAL, "exactly 4 ones"),
        (0, 0b01010111, Reason.NOT_CANONICAL, "exactly 4 ones"),
        (0, 0b00000000, Reason.NOT_CANONICAL, "exactly 4 ones"),
        (0, 0b11111111, Reason.NOT_CANONICAL, "exactly 4 ones"),
        (0, 0b10010101, Reason.NOT_CANONICAL, "beyond the 16 elements"),
        (2, 0b00010010, Reason.NOT_CANONICAL, "padding"),
        (3, 0b10001100, Reason.NOT_CANONICAL, "padding"),
        (3, 0b0000, Reason.BAD_LEVEL, "only one is used"),
        (3, 0b1111, Reason.BAD_LEVEL, "only one is used"),
        (4, 48, Reason.BAD_LEVEL, "both levels are equal"),
        (4, 49, Reason.BAD_LEVEL, "exceeds"),
        (4, 0, Reason.BAD_LEVEL, "a zero carries a sign"),
        (5, 39, Reason.BAD_LEVEL, "exceeds"),
    ],
)
def test_a_malformed_record_is_refused_with_its_reason(place: int, byte: int, reason: Reason, why: str) -> None:
    raw = bytearray(GOOD)
    raw[place] = byte
    records = np.frombuffer(bytes(raw), np.uint8).reshape(1, -1)
    with pytest.raises(Rejected, match=why) as caught:
        unpack(FMT, records)
    assert caught.value.reason is reason


def test_equal_positions_cannot_be_written() -> None:
    """Two ones side by side share their upper part: equal or descending low bits are then refused."""
    for low in (0b00, 0b01):
        raw = bytes([0b00001111, 0b11100000 | low << 2 | 0b01, 0, 0b1000, 40, 48])
        with pytest.raises(Rejected, match="ascend strictly"):
            unpack(FMT, np.frombuffer(raw, np.uint8).reshape(1, -1))


def test_a_position_beyond_a_tail_is_refused() -> None:
    fmt = RecordFormat(5, 1, 1)  # l = 2, upper map of 3 bits: position 5 would fit the bits
    record = np.array([[0b010, 0b01, 0, 9]], np.uint8)
    with pytest.raises(Rejected, match="beyond the 5 elements"):
        unpack(fmt, record)
    record[0, 1] = 0
    assert unpack(fmt, record)[0].tolist() == [[4]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_raw_value_is_finite(value: float) -> None:
    fmt = RecordFormat(4, 1, 32)
    record = np.concatenate([[0b1, 0b0], np.array([value], "<f4").view(np.uint8)]).astype(np.uint8)[None]
    with pytest.raises(Rejected) as caught:
        unpack(fmt, record)
    assert caught.value.reason is Reason.BAD_LEVEL


def test_a_zero_with_a_sign_is_refused_in_one_bit_mode() -> None:
    with pytest.raises(Rejected, match="a zero carries a sign"):
        unpack(RecordFormat(4, 1, 1), np.array([[0b1, 0b0, 0b1, 0]], np.uint8))


@pytest.mark.parametrize("shape", [(1, 5), (1, 7), (6,), (0, 0)])
def test_records_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(Rejected) as caught:
        unpack(FMT, np.zeros(shape, np.uint8))
    assert caught.value.reason is Reason.NOT_CANONICAL


def test_one_bad_record_among_many_is_found() -> None:
    records = np.tile(np.frombuffer(GOOD, np.uint8), (50, 1))
    unpack(FMT, records)
    records[37, 0] = 0
    with pytest.raises(Rejected, match="exactly 4 ones"):
        unpack(FMT, records)
