"""The kernels for the host do what the definition does, to the bit, on every input (protocol §8, §9, §13).

A value that is not a number has many bit patterns, and a machine may choose among them: two of them are equal here.
They can only appear in θ after it has overflowed, and no honest run gets there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.errors import NotFinite, Rejected
from protocol.ledger.state import state_root
from protocol.run import SparseLoCo
from protocol.sparseloco import kernels
from protocol.sparseloco.aggregate import Trial, descents, outer_step, shared_positions
from protocol.sparseloco.compress import SparseUpdate, compress, decompress
from protocol.sparseloco.kernels import bits as machine
from protocol.sparseloco.kernels import cpu, reference
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.records import LEVELS, Codes, Flaw, RecordFormat, pack, parse, unpack
from tests.protocol.one_format import OneFormat

REFERENCE, CPU = OneFormat(reference), OneFormat(cpu)
EXTRACT = numba.njit(lambda word, mask: machine.extract(word, mask))
MODES = (1, 2, 32)
EDGES = [1, 2, 7, 8, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 1023, 1024, 2048, 4095, 4096]
lengths = st.one_of(st.sampled_from(EDGES), st.integers(1, 4096))
ks = st.one_of(st.just(64), st.sampled_from(EDGES), st.integers(1, 4096))
few = st.sampled_from([1, 2, 4, 5, 7, 8, 9, 12, 15, 16, 17, 31, 32])  # many low bits for each
modes = st.sampled_from(MODES)
formats = st.one_of(
    st.builds(RecordFormat.of_chunk, lengths, ks, modes), st.builds(RecordFormat.of_chunk, st.just(4096), few, modes)
)
seeds = st.integers(0, 2**32 - 1)
factors = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1, width=32)).map(np.float32)
COMMON = ["normal", "equal", "zeros", "few", "integers", "denormal", "huge", "beyond"]
KINDS = [*COMMON, "midpoints", "levels", "mixed", "ascending", "column", "repeated"]
kinds = st.sampled_from(KINDS)
quick = settings(derandomize=True, deadline=None, max_examples=120)


def rows(n: int, length: int, kind: str, seed: int) -> np.ndarray:
    """fp32 [n, length] of one kind, each chosen to be awkward for a selection, a sum or a level."""
    random = np.random.default_rng(seed)
    shape = (n, length)
    normal = random.standard_normal(shape)
    made = {
        "normal": lambda: normal * 10.0 ** random.uniform(-9, 1),
        "equal": lambda: np.full(shape, random.random()),
        "zeros": lambda: np.zeros(shape),
        "few": lambda: np.where(random.random(shape) < 2 / length, normal, 0),
        "integers": lambda: random.integers(-3, 4, shape),
        "denormal": lambda: random.integers(0, 100, shape) * 2.0**-149,
        "huge": lambda: random.random(shape) * 3e38,
        "beyond": lambda: random.uniform(25, 1e6, shape),
        "midpoints": lambda: (LEVELS[:-1] / 2 + LEVELS[1:] / 2)[random.integers(0, 255, shape)],
        "levels": lambda: LEVELS[random.integers(80, 88, shape)],
        "mixed": lambda: 10.0 ** random.uniform(-45, 38, shape),
        "ascending": lambda: np.sort(np.abs(normal), axis=1),
        "column": lambda: normal * np.where(np.arange(length) % 128 == random.integers(128), 1, 1e-3),
        "repeated": lambda: random.choice(np.array([1e-3, 1e-3 + 1e-9, 2e-3]), shape),
    }[kind]()
    return (made.astype(np.float32) * random.choice(np.array([-1, 1], np.float32), shape)).astype(np.float32)


def sent(fmt: RecordFormat, n: int, kind: str, seed: int) -> np.ndarray:
    """Good records uint8 [n, size] such as no encoder need ever write: any positions, any two levels."""
    random = np.random.default_rng(seed)
    places = random.permuted(np.tile(np.arange(fmt.length), (n, 1)), axis=1)[:, : fmt.k]
    places = {"ascending": np.tile(np.arange(fmt.k), (n, 1)), "column": fmt.length - 1 - places}.get(kind, places)
    positions = np.sort(places, axis=1)
    if fmt.value_bits == 32:
        none = np.empty((n, 0), bool)
        return pack(fmt, positions, Codes(none, none, np.empty((n, 0), np.uint8), rows(n, fmt.k, kind, seed)))
    codes = random.choice(np.array([0, 0, 1, 2, 254, 255, *range(3, 254)], np.uint8), (n, 2))
    codes = np.sort(codes if kind != "equal" else codes // 200, axis=1)
    if fmt.value_bits == 1 or fmt.k == 1:
        codes[:, 1] = codes[:, 0]
    high = random.random((n, fmt.k)) < random.random()
    high[:, 0], high[:, -1] = True, False
    high &= (codes[:, :1] != codes[:, 1:]).reshape(n, 1)
    used = np.where(high, codes[:, 1:], codes[:, :1])
    negative = (random.random((n, fmt.k)) < 0.5) & (used > 0)
    return pack(fmt, positions, Codes(negative, high, codes, np.empty((n, 0), np.float32)))


def bits(values: np.ndarray) -> bytes:
    """The bytes of an fp32 array; all that is not a number alike."""
    return np.where(np.isnan(values), np.float32(np.nan), values).tobytes()


def encoded(kernel: Any, fmt: RecordFormat, beta: float, error: np.ndarray, delta: np.ndarray) -> tuple[Any, ...]:
    """Whether `kernel` encoded, what it left in the buffer, and the records."""
    error, records = error.copy(), np.full((len(error), fmt.size_bytes), 0xA5, np.uint8)
    return kernel.encode(fmt, beta, error, delta, records), error, records


# Encoding


@settings(quick, max_examples=250)
@given(formats, st.integers(1, 3), kinds, kinds, seeds, st.one_of(st.just(0.0), st.floats(0, 1)))
@example(RecordFormat(4096, 64, 2), 3, "normal", "normal", 1, 0.95)
@example(RecordFormat(4096, 64, 2), 2, "column", "zeros", 1, 0.0)
@example(RecordFormat(4096, 4096, 32), 2, "normal", "mixed", 1, 0.0)
@example(RecordFormat(4095, 300, 2), 2, "ascending", "equal", 1, 0.0)
def test_encoding_writes_the_same_bytes_and_leaves_the_same_buffer(
    fmt: RecordFormat, n: int, kind: str, old: str, seed: int, beta: float
) -> None:
    delta, error = rows(n, fmt.length, kind, seed), rows(n, fmt.length, old, seed + 1)
    good, buffer, records = encoded(REFERENCE, fmt, beta, error, delta)
    found, left, written = encoded(CPU, fmt, beta, error, delta)
    assert found == good
    if good:
        assert written.tobytes() == records.tobytes()
        assert left.tobytes() == buffer.tobytes()
        assert REFERENCE.inspect(fmt, written).flaw is Flaw.NONE


@quick
@given(st.lists(st.floats(width=32), min_size=1, max_size=40), st.integers(1, 4096), modes)
@example([2.0**-149, -(2.0**-149), 0.0, -0.0], 2048, 2)
@example([30.0, 30.1, 31.9, -32.0, 3.4e38, 1e-45], 4096, 2)
@example([*20 * [1.0], 1.5, *20 * [-2.0]], 4096, 2)  # half way between the two levels
@example([1.0, 2.0, 3.0], 4096, 2)  # two splits explain the same
@example([17 / 16, -17 / 16], 4096, 1)  # half way between two levels
@example([17 / 16, -17 / 16, 2.0], 4096, 2)
def test_any_few_values_are_encoded_alike(values: list[float], k: int, value_bits: int) -> None:
    delta = np.array([values], np.float32)
    fmt = RecordFormat.of_chunk(len(values), k, value_bits)
    good, buffer, records = encoded(REFERENCE, fmt, 1.0, np.zeros_like(delta), delta)
    found, left, written = encoded(CPU, fmt, 1.0, np.zeros_like(delta), delta)
    assert found == good == bool(np.isfinite(delta).all())
    if good:
        assert (written.tobytes(), left.tobytes()) == (records.tobytes(), buffer.tobytes())


@quick
@given(formats, st.integers(1, 3), st.sampled_from([np.nan, -np.nan, np.inf, -np.inf, 3.4e38]), st.booleans(), seeds)
def test_a_sum_that_is_not_finite_is_never_encoded(
    fmt: RecordFormat, n: int, bad: float, in_error: bool, seed: int
) -> None:
    error, delta = (rows(n, fmt.length, "normal", seed + i) for i in range(2))
    place = np.random.default_rng(seed).integers(error.size)
    (error if in_error else delta).reshape(-1)[place] = bad
    if np.isfinite(bad):
        error.reshape(-1)[place] = delta.reshape(-1)[place] = bad  # only their sum is infinite
    assert not encoded(REFERENCE, fmt, 1.0, error, delta)[0]
    assert not encoded(CPU, fmt, 1.0, error, delta)[0]


@quick
@given(formats, kinds, seeds, st.floats(0, 1))
def test_the_buffer_is_the_sum_less_what_was_sent_and_untouched_elsewhere(
    fmt: RecordFormat, kind: str, seed: int, beta: float
) -> None:
    """One IEEE subtraction where something was sent: with NumPy's scalars, one element at a time."""
    delta, error = rows(1, fmt.length, kind, seed), rows(1, fmt.length, "normal", seed + 1)
    expected = np.float32(beta) * error + delta
    good, left, records = encoded(CPU, fmt, beta, error, delta)
    assert good
    positions, codes = unpack(fmt, records)
    for position, value in zip(positions[0], codes.values()[0], strict=True):
        expected[0, position] = np.float32(expected[0, position]) - np.float32(value)
    assert left.tobytes() == expected.tobytes()


@quick
@given(lengths, ks, st.sampled_from(["integers", "equal", "zeros", "repeated", "denormal", "mixed"]), seeds)
def test_of_equal_magnitudes_the_lowest_positions_are_sent(length: int, k: int, kind: str, seed: int) -> None:
    """By a selection that sorts pairs and knows nothing of thresholds."""
    fmt = RecordFormat.of_chunk(length, k, 32)
    delta = rows(1, length, kind, seed)
    _, _, records = encoded(CPU, fmt, 0.0, np.zeros_like(delta), delta)
    magnitudes = np.abs(delta[0]).tolist()
    expected = sorted(sorted(range(length), key=lambda i: (-magnitudes[i], i))[: fmt.k])
    assert unpack(fmt, records)[0][0].tolist() == expected


def test_what_is_encoded_is_accepted_even_where_a_mean_is_rounded_across_the_middle_of_two_levels() -> None:
    """The two large magnitudes are half way between codes 0 and 1, so they go to code 0. Their mean, taken as the
    difference of two rounded sums, is one bit above the middle and would be given code 1, which nobody then uses."""
    middle = LEVELS[1] / np.float32(2)
    delta = np.array([[2.7 * 2.0**-80, middle, middle]], np.float32)
    fmt = RecordFormat(3, 3, 2)
    for kernel in (REFERENCE, CPU):
        good, _, records = encoded(kernel, fmt, 0.0, np.zeros_like(delta), delta)
        assert good
        assert REFERENCE.inspect(fmt, records).flaw is Flaw.NONE


# Checking


@quick
@given(formats, st.integers(1, 4), kinds, seeds)
def test_good_records_pass_and_their_levels_are_counted_alike(fmt: RecordFormat, n: int, kind: str, seed: int) -> None:
    records = sent(fmt, n, kind, seed)
    expected, found = REFERENCE.inspect(fmt, records), CPU.inspect(fmt, records)
    assert expected.flaw is found.flaw is Flaw.NONE
    assert found.counts.tolist() == expected.counts.tolist()
    assert int(found.counts.sum()) == (n * fmt.k if fmt.value_bits < 32 else 0)


def spoilt(fmt: RecordFormat, seed: int, most_flips: int = 2000) -> np.ndarray:
    """Records uint8 [m, size], most of them bad: every single bit of a good one flipped, a one of the map moved,
    low bits, masks or levels drawn anew, padding set, and bytes that mean nothing."""
    random = np.random.default_rng(seed)
    good = sent(fmt, 1, KINDS[seed % len(KINDS)], seed)[0]
    flipped = random.permutation(8 * fmt.size_bytes)[:most_flips]
    made = []
    for bit in flipped:
        made.append(good.copy())
        made[-1][bit // 8] ^= 1 << bit % 8
    ends = np.cumsum(fmt.sections)
    for _ in range(30):
        moved = good.copy()
        upper = np.unpackbits(moved[: ends[0]], bitorder="little")
        upper[: fmt.upper_bits] = random.permuted(upper[: fmt.upper_bits])
        moved[: ends[0]] = np.packbits(upper, bitorder="little")
        section = random.integers(len(ends))
        redrawn = (good if random.random() < 0.5 else moved).copy()
        part = redrawn[ends[section] - fmt.sections[section] : ends[section]]
        part[:] = random.integers(0, 256, len(part))
        leveled = good.copy()
        leveled[-2:] = random.integers(0, 3, 2) if fmt.value_bits < 32 else random.integers(0x7F, 0x81, 2)
        made += [moved, redrawn, leveled, random.integers(0, 256, fmt.size_bytes).astype(np.uint8)]
    return np.array([*made, np.zeros_like(good), np.full_like(good, 255)])


def flaws_alike(fmt: RecordFormat, records: np.ndarray) -> set[Flaw]:
    """Check each record alone, and those before it stay what they are; returns what was found."""
    expected = parse(fmt, records)[2]
    found = np.array([CPU.inspect(fmt, record[None]).flaw for record in records], np.uint8)
    assert found.tolist() == expected.tolist()
    return {Flaw(int(flaw)) for flaw in expected}


@pytest.mark.parametrize("value_bits", MODES)
@pytest.mark.parametrize(("length", "k"), [(4096, 64), (104, 64), (1, 64), (5, 4096), (33, 500), (64, 4096), (300, 1)])
def test_every_flipped_bit_has_the_same_flaw(length: int, k: int, value_bits: int) -> None:
    fmt = RecordFormat.of_chunk(length, k, value_bits)
    for seed in range(2):
        flaws_alike(fmt, spoilt(fmt, seed, most_flips=8 * fmt.size_bytes))


@settings(quick, max_examples=40)
@given(formats, seeds)
def test_whatever_the_bytes_the_flaw_is_the_same(fmt: RecordFormat, seed: int) -> None:
    flaws_alike(fmt, spoilt(fmt, seed, most_flips=50))


def test_every_flaw_there_is_was_among_those_compared() -> None:
    found = {bits: set[Flaw]() for bits in MODES}
    for value_bits in MODES:
        for length, k in ((104, 400), (33, 4096), (4000, 64)):
            for seed in range(3):
                fmt = RecordFormat.of_chunk(length, k, value_bits)
                found[value_bits] |= flaws_alike(fmt, spoilt(fmt, seed))
    positions = {Flaw.NONE, Flaw.PADDING, Flaw.COUNT, Flaw.BEYOND, Flaw.ORDER}
    assert found[1] == positions | {Flaw.SIGNED_ZERO}
    assert found[2] == positions | {Flaw.SWAPPED, Flaw.LEVEL_BITS, Flaw.UNUSED, Flaw.SIGNED_ZERO}
    assert found[32] == positions | {Flaw.NOT_FINITE}


@settings(quick, max_examples=60)
@given(formats, seeds, st.data())
def test_the_first_bad_record_of_a_run_decides(fmt: RecordFormat, seed: int, data: st.DataObject) -> None:
    bad = spoilt(fmt, seed, most_flips=20)
    records = sent(fmt, 6, "normal", seed)
    for place in data.draw(st.lists(st.integers(0, 5), max_size=3)):
        records[place] = bad[data.draw(st.integers(0, len(bad) - 1))]
    assert CPU.inspect(fmt, records).flaw is REFERENCE.inspect(fmt, records).flaw


@quick
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@example(2**64 - 1, 2**64 - 1)
@example(2**63, 2**63)
def test_bits_are_put_side_by_side_alike_on_machines_that_have_no_operation_for_it(word: int, mask: int) -> None:
    chosen = [word >> place & 1 for place in range(64) if mask >> place & 1]
    expected = sum(bit << place for place, bit in enumerate(chosen))
    arguments = np.uint64(word), np.uint64(mask)
    assert int(machine.extract_bit_by_bit(*arguments)) == expected
    assert int(EXTRACT(*arguments)) == expected


@quick
@given(
    st.dictionaries(st.integers(0, 255), st.integers(0, 2**40), max_size=6),
    st.dictionaries(st.integers(0, 255), st.integers(0, 2**40), max_size=6),
)
@example({255: 2**40}, {0: 2**40})
@example({8: 1}, {8: 1, 255: 2**40})
@example({248: 2**40 - 1, 7: 1}, {16: 2**40 - 1, 1: 3})
@example({248: 2**20 + 1, 112: 2, 1: 1}, {})  # half way between two binary64, but for a bit far below
def test_norms_are_rounded_as_in_the_definition(first: dict[int, int], second: dict[int, int]) -> None:
    counts = np.zeros((2, 256), np.int64)
    for row, codes in zip(counts, (first, second), strict=True):
        row[list(codes)] = list(codes.values())
    assert cpu.norms(counts) == reference.norms(counts)


# Using


@settings(quick, max_examples=200)
@given(formats, st.integers(1, 3), st.integers(1, 7), kinds, kinds, seeds, st.booleans(), st.data())
@example(RecordFormat(4096, 64, 2), 2, 20, "normal", "normal", 1, True, None)
@example(RecordFormat(4096, 64, 2), 2, 20, "normal", "normal", 1, False, None)
@example(RecordFormat(64, 64, 32), 1, 5, "huge", "huge", 1, False, None)
def test_aggregating_gives_the_same_parameters(
    fmt: RecordFormat,
    n: int,
    peers: int,
    kind: str,
    start: str,
    seed: int,
    contributors: bool,
    data: st.DataObject | None,
) -> None:
    random = np.random.default_rng(seed)
    theta = rows(n, fmt.length, start, seed)
    records = [sent(fmt, n, kind, seed + p) for p in range(peers)]
    clips = random.random(peers).astype(np.float32)
    scale = np.float32(0.9 / peers)
    if data is not None:
        clips = np.array(data.draw(st.lists(factors, min_size=peers, max_size=peers)), np.float32)
        scale = data.draw(factors)
    expected, found = theta.copy(), theta.copy()
    with np.errstate(over="ignore", invalid="ignore"):  # raw values near the largest may overflow
        REFERENCE.aggregate(fmt, expected, records, clips, scale, contributors)
    CPU.aggregate(fmt, found, records, clips, scale, contributors)
    assert bits(found) == bits(expected)


@quick
@given(formats, st.integers(1, 3), kinds, kinds, seeds, factors, factors)
def test_a_trial_is_applied_alike_and_reverted_to_the_bit(
    fmt: RecordFormat, n: int, kind: str, start: str, seed: int, clip: np.float32, share: np.float32
) -> None:
    theta, records = rows(n, fmt.length, start, seed), sent(fmt, n, kind, seed)
    expected, found = theta.copy(), theta.copy()
    with np.errstate(over="ignore"):
        originals = REFERENCE.apply(fmt, expected, records, clip, share)
    saved = CPU.apply(fmt, found, records, clip, share)
    assert found.tobytes() == expected.tobytes()
    assert saved.tobytes() == originals.tobytes()
    CPU.revert(fmt, found, records, saved)
    REFERENCE.revert(fmt, expected, records, originals)
    assert found.tobytes() == expected.tobytes() == theta.tobytes()


@quick
@given(formats, st.integers(1, 3), st.lists(st.tuples(kinds, factors), min_size=1, max_size=4), kinds, seeds, factors)
def test_products_with_a_gradient_are_the_same_but_for_the_order_of_the_sum(
    fmt: RecordFormat, n: int, each: list[tuple[str, np.float32]], other: str, seed: int, share: np.float32
) -> None:
    gradient, records = (
        rows(n, fmt.length, other, seed),
        [sent(fmt, n, kind, seed + p) for p, (kind, _) in enumerate(each)],
    )
    clips = np.array([clip for _, clip in each], np.float32)
    found, expected = (kernel.dot(fmt, gradient, records, clips, share) for kernel in (CPU, REFERENCE))
    for p, (record, clip) in enumerate(zip(records, clips, strict=True)):
        positions, codes = unpack(fmt, record)
        terms = np.take_along_axis(gradient, positions, axis=1).astype(np.float64) * (share * (clip * codes.values()))
        assert abs(found[p] - expected[p]) <= 1e-12 * np.abs(terms).sum()
        assert found[p] == sum(terms.reshape(-1).tolist())  # here: exactly wire order


@quick
@given(formats, st.integers(1, 3), st.lists(kinds, min_size=1, max_size=5), st.integers(1, 5), seeds)
def test_shared_positions_are_counted_alike(
    fmt: RecordFormat, n: int, each: list[str], compared: int, seed: int
) -> None:
    records = [sent(fmt, n, kind, seed + p // 2) for p, kind in enumerate(each)]
    compared = min(compared, len(records))
    found = CPU.shared(fmt, records, compared)
    assert found.tolist() == REFERENCE.shared(fmt, records, compared).tolist()
    assert found.tolist() == REFERENCE.shared(fmt, records, len(records))[:compared].tolist()


# Bodies, threads and cuts

LAYOUT = Layout.from_shapes([("a", (5, 4096)), ("b", (3, 1400)), ("c", (5,)), ("d", (1,)), ("e", (2, 9000))])
CUTS = [(1, 1, 1), (1, 3, 1), (4096, 2, 9000), (3 * 4096, 5, 1), (10_000, 4, 5000), (1 << 21, 3, 1)]
"""Elements of a run, cores, elements for a thread."""


def everything(layout: Layout, scheme: SparseLoCo) -> Iterator[object]:
    """All that comes out of two windows of three miners, to the last bit."""
    random = np.random.default_rng(5)
    errors = [np.zeros(layout.size, np.float32) for _ in range(3)]
    theta = random.standard_normal(layout.size).astype(np.float32)
    for window in range(2):
        deltas = [(random.standard_normal(layout.size) ** 3 * 1e-3).astype(np.float32) for _ in errors]
        bodies = [compress(layout, scheme, error, delta) for error, delta in zip(errors, deltas, strict=True)]
        yield from bodies
        yield from (error.tobytes() for error in errors)
        updates = [decompress(layout, scheme, body) for body in bodies]
        yield from (update.norms for update in updates)
        yield shared_positions(updates).tolist()
        trial = Trial(updates[0], np.linspace(0.25, 1, len(layout.parameters), dtype=np.float32), np.float32(0.3))
        saved = trial.apply(theta)
        yield state_root(theta)
        yield float(f"{descents(deltas[1], [trial])[0]:.10g}")  # its last bits may differ
        trial.revert(theta, saved)
        yield state_root(theta)
        outer_step(theta, updates, scheme, window)
        yield state_root(theta)


def settle(patch: pytest.MonkeyPatch, elements: int, cores: int, per_thread: int) -> None:
    patch.setattr(cpu, "RUN_ELEMENTS", elements)
    patch.setattr(cpu, "_cores", lambda: cores)
    patch.setattr(cpu, "_ELEMENTS_PER_THREAD", per_thread)


@pytest.mark.parametrize("average", ["all", "contributors"])
@pytest.mark.parametrize(("k", "value_bits"), [(64, 2), (64, 1), (700, 2), (64, 32)])
def test_neither_the_cut_nor_the_number_of_threads_changes_a_bit(
    k: int, value_bits: int, average: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = SparseLoCo.model_validate({"k": k, "value_bits": value_bits, "average": average})
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "of", lambda _: reference)
        expected = list(everything(LAYOUT, scheme))
    for cut in CUTS:
        with monkeypatch.context() as patch:
            settle(patch, *cut)
            assert list(everything(LAYOUT, scheme)) == expected


@pytest.mark.parametrize("cut", CUTS)
def test_of_several_bad_records_the_first_is_named_whatever_the_cut(
    cut: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = SparseLoCo()
    delta = np.random.default_rng(3).standard_normal(LAYOUT.size).astype(np.float32)
    body = bytearray(compress(LAYOUT, scheme, np.zeros_like(delta), delta))
    body[2 * 82 + 80] = 255  # of the third record, the lower level
    body[4 * 82] ^= 1  # of the fifth, the upper map
    body[-1] ^= 1
    settle(monkeypatch, *cut)
    with pytest.raises(Rejected, match="lower level exceeds"):
        decompress(LAYOUT, scheme, bytes(body))


@pytest.mark.parametrize("cut", CUTS)
def test_a_value_that_is_not_finite_is_found_in_any_run(
    cut: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch, *cut)
    for place in (0, 4096 * 3, LAYOUT.parameters[3].offset, LAYOUT.size - 1):
        error, delta = (np.ones(LAYOUT.size, np.float32) for _ in range(2))
        delta[place] = np.nan
        with pytest.raises(NotFinite):
            compress(LAYOUT, SparseLoCo(), error, delta)
        assert error.tobytes() == bytes(4 * LAYOUT.size)


def test_work_is_done_once_each_and_comes_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_cores", lambda: 3)
    together, threads, done = threading.Barrier(3), set[int](), []

    def work(run: int) -> int:
        if run < 3:
            together.wait(10)  # passes only if three threads work at the same time
        threads.add(threading.get_ident())
        done.append(run)
        return run * run

    assert cpu.each(work, range(50), 1 << 30) == [run * run for run in range(50)]
    assert sorted(done) == list(range(50))
    assert len(threads) == 3
    with pytest.raises(ZeroDivisionError):
        cpu.each(lambda run: 1 // (run - 40), range(50), 1 << 30)


def test_an_array_in_the_hosts_memory_goes_to_these_kernels() -> None:
    """So whatever else the tests say of `compress`, `decompress` and steps, they say of them."""
    assert kernels.of(np.zeros(1, np.float32)) is cpu


def test_an_update_keeps_the_bytes_that_were_sent() -> None:
    delta = np.random.default_rng(3).standard_normal(LAYOUT.size).astype(np.float32)
    body = compress(LAYOUT, SparseLoCo(), np.zeros_like(delta), delta)
    update: SparseUpdate = decompress(LAYOUT, SparseLoCo(), body)
    assert update.records.tobytes() == body
