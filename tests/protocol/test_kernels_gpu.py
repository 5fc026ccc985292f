"""The GPU's kernels against the reference, bit for bit.

Triton decides between its interpreter and the GPU when it is imported. So the cases run in one process of their own,
on the GPU if there is one and in the interpreter otherwise, and each test here tells how its case went.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from protocol.sparseloco.kernels import reference
from protocol.sparseloco.records import LEVELS, Codes, Flaw, RecordFormat, pack, parse
from tests.protocol.one_format import OneFormat

REFERENCE = OneFormat(reference)
CASES: dict[str, Callable[[OneFormat, str], None]] = {}
FORMATS = [
    RecordFormat.of_chunk(length, k, value_bits)
    for length, k, value_bits in [
        *((4096, k, 2) for k in (1, 7, 64, 100, 512)),
        *((4096, 64, 1), (4096, 64, 32), (4095, 64, 2), (3001, 100, 32)),
        *((700, 4096, 2), (33, 4096, 1), (104, 64, 2), (77, 512, 32)),
        *((5, 64, 1), (1, 64, 1), (1, 64, 2), (1, 4096, 32)),
    ]
]


def case(check: Callable[[OneFormat, str], None]) -> Callable[[OneFormat, str], None]:
    CASES[check.__name__] = check
    return check


def same(found: torch.Tensor, expected: np.ndarray) -> bool:
    return found.cpu().numpy().tobytes() == expected.tobytes()


def elements(fmt: RecordFormat, seed: int) -> np.ndarray:
    """fp32 [6, length]: random numbers, few different ones, zeros of both signs, denormal ones, large ones, and all
    the same but one."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((6, fmt.length)).astype(np.float32)
    rows[1] = np.round(rows[1]) / 2
    rows[2] = np.where(rows[2] > 0, np.float32(0), np.float32(-0.0))
    rows[3] *= np.float32(2.0**-140)
    rows[4] *= np.float32(2.0**60)
    rows[5] = -1
    rows[5, -1] = 40
    return rows


def records_of(fmt: RecordFormat, seed: int) -> np.ndarray:
    """Records that the reference makes of `elements`."""
    rows = elements(fmt, seed)
    records = np.empty((len(rows), fmt.size_bytes), np.uint8)
    assert REFERENCE.encode(fmt, 1.0, rows, np.zeros_like(rows), records)
    return records


def on(device: str, rows: np.ndarray) -> torch.Tensor:
    """A copy of `rows`, as a view into a flat tensor that does not begin at an even address."""
    flat = torch.zeros(rows.size + 3, dtype=torch.float32, device=device)
    view = flat[3:].reshape(rows.shape)
    view.copy_(torch.from_numpy(rows))
    return view


@case
def encode_makes_the_records_of_the_reference_and_leaves_its_rest(gpu: OneFormat, device: str) -> None:
    for fmt in FORMATS:
        error, delta = elements(fmt, 1), elements(fmt, 2)
        error[[1, 2, 5]] = elements(fmt, 1)[[5, 1, 2]]
        error[:3] *= np.float32(0.5)
        mine, records = on(device, error), np.empty((len(error), fmt.size_bytes), np.uint8)
        expected = np.empty_like(records)
        assert gpu.encode(fmt, 0.95, mine, on(device, delta), records)
        assert REFERENCE.encode(fmt, 0.95, error, delta, expected)
        assert records.tobytes() == expected.tobytes(), fmt
        assert same(mine, error), fmt


@case
def encode_selects_and_quantises_each_row_alone(gpu: OneFormat, device: str) -> None:
    for fmt in FORMATS:
        error = elements(fmt, 3)
        mine, records = on(device, error), np.empty((len(error), fmt.size_bytes), np.uint8)
        assert gpu.encode(fmt, 1.0, mine, on(device, np.zeros_like(error)), records)
        assert records.tobytes() == records_of(fmt, 3).tobytes(), fmt
        assert same(mine, error) == (not parse(fmt, records)[1].values().any())


@case
def levels_round_as_in_the_reference(gpu: OneFormat, device: str) -> None:
    """One value a chunk: every level, every midpoint, and the numbers beside them."""
    fmt = RecordFormat.of_chunk(1, 1, 1)
    middles = (LEVELS[1:] + LEVELS[:-1]) / np.float32(2)
    edges = np.concatenate([LEVELS, middles, [np.float32(31), np.float32(3e38), np.float32(2.0**-149)]])
    beside = [np.nextafter(edges, np.float32(to)) for to in (-np.inf, np.inf)]
    values = np.abs(np.concatenate([edges[::3], beside[0][1::3], beside[1][2::3]])).astype(np.float32)[:, None]
    mine, expected = np.empty((2, len(values), fmt.size_bytes), np.uint8)
    assert gpu.encode(fmt, 0.0, on(device, values), on(device, values), mine)
    assert REFERENCE.encode(fmt, 0.0, values.copy(), values, expected)
    assert mine.tobytes() == expected.tobytes()


@case
def encode_refuses_sums_that_are_not_finite(gpu: OneFormat, device: str) -> None:
    fmt = RecordFormat.of_chunk(300, 64, 2)
    for value in (np.nan, np.inf, -np.inf, np.float32(3e38)):
        error = elements(fmt, 1)
        error[4, 299] = value
        records = np.empty((len(error), fmt.size_bytes), np.uint8)
        with np.errstate(all="ignore"):
            assert not gpu.encode(fmt, 1.0, on(device, error), on(device, error), records), value


@case
def records_of_the_reference_are_good_and_their_levels_counted(gpu: OneFormat, device: str) -> None:
    for fmt in FORMATS:
        records = records_of(fmt, 4)
        found, expected = gpu.inspect(fmt, records), REFERENCE.inspect(fmt, records)
        assert found.flaw is Flaw.NONE, fmt
        assert found.counts.dtype == np.int64
        assert found.counts.tolist() == expected.counts.tolist(), fmt


def changed(fmt: RecordFormat, rng: np.random.Generator) -> np.ndarray:
    """Records with every kind of flaw, alone and together; some are still good."""
    good = records_of(fmt, 5)[[0, 5, 1]]
    made = [good.copy() for _ in range(12)]
    ends = np.cumsum(fmt.sections)
    for bits, rows in enumerate(made[1:7], 1):  # some bits anywhere
        for row in rows:
            for bit in rng.integers(0, 8 * fmt.size_bytes, bits):
                row[bit >> 3] ^= 1 << (bit & 7)
    for end, rows in zip([*ends, *ends], made[1:], strict=False):  # the last byte of a section: padding, levels
        rows[0, end - 1] ^= 0x80
        rows[1, end - 1] = 0xFF
    for rows, first in zip(made[7:], range(5), strict=True):  # whole sections
        for start, end in list(zip([0, *ends], ends, strict=False))[first:]:
            rows[1:, start:end] = rng.integers(0, 2) * 255
    made[-1][0, ends[0] :] = 0
    if fmt.value_bits == 2:
        made[-1][1, -2:] = made[-1][1, -2:][::-1]
        made[-1][2] = good[2]
        made[-1][2, -2:] = 0
        made[-2][:3] = good[:3]
        made[-2][0, -1] = made[-2][0, -2]
        made[-2][1, ends[2] : ends[3]] = 0
        made[-2][2, ends[1] :] = [*[0xFF] * (ends[2] - ends[1]), *[0] * (ends[3] - ends[2]), 0, 0]
    return np.unique(np.concatenate(made), axis=0)


@case
def flawed_records_have_the_flaw_that_the_reference_finds(gpu: OneFormat, device: str) -> None:
    seen = set()
    for number, fmt in enumerate(FORMATS):
        records = changed(fmt, np.random.default_rng(number))
        flaws = parse(fmt, records)[2]
        seen |= set(flaws.tolist())
        found = gpu.kernel.inspect_on_device(fmt, torch.from_numpy(records).to(device))[0]
        assert found.tolist() == flaws.tolist(), fmt
    assert seen == set(map(int, Flaw))


@case
def the_first_flawed_record_decides(gpu: OneFormat, device: str) -> None:
    fmt = RecordFormat.of_chunk(104, 64, 2)
    records = records_of(fmt, 6)
    records[4, 0] ^= 1
    records[2, -2:] = [9, 8]
    assert gpu.inspect(fmt, records).flaw is REFERENCE.inspect(fmt, records).flaw is Flaw.SWAPPED


def peers_of(fmt: RecordFormat) -> list[np.ndarray]:
    """Records of four peers: two alike, one that sends zeros, and raw values of every size and sign, where allowed."""
    peers = [records_of(fmt, 7), records_of(fmt, 8), records_of(fmt, 7)[::-1].copy(), records_of(fmt, 9)]
    if fmt.value_bits == 32:
        n = len(peers[3])
        exact = np.random.default_rng(1).integers(0, 2**32, (n, fmt.k), np.uint32) & np.uint32(0xBFFFFFFF)
        exact.reshape(-1)[:3] = [0x80000000, 1, 0x80000001]
        none = np.empty((n, 0), bool)
        positions = parse(fmt, peers[3])[0]
        peers[3] = pack(fmt, positions, Codes(none, none, np.empty((n, 0), np.uint8), exact.view(np.float32)))
    for records in peers:
        records.setflags(write=False)
    return peers


@case
def aggregate_sums_in_order_to_the_bit(gpu: OneFormat, device: str) -> None:
    clips = np.array([1, 1 / 3, 0.7, 2.0**-149], np.float32)
    for fmt in FORMATS:
        for contributors in (False, True):
            theta = elements(fmt, 10)
            mine = on(device, theta)
            gpu.aggregate(fmt, mine, peers_of(fmt), clips, np.float32(0.3), contributors)
            REFERENCE.aggregate(fmt, theta, peers_of(fmt), clips, np.float32(0.3), contributors)
            assert same(mine, theta), (fmt, contributors)


@case
def aggregate_starts_each_chunk_from_zero(gpu: OneFormat, device: str) -> None:
    """Each program sums several chunks, one after the other, in the same memory."""
    fmt = RecordFormat.of_chunk(104, 512, 2)
    for contributors in (False, True):
        theta = elements(fmt, 13)
        mine = on(device, theta)
        with mock.patch.object(gpu.kernel, "_AGGREGATE_ROWS", 2):
            gpu.aggregate(fmt, mine, peers_of(fmt), np.ones(4, np.float32), np.float32(0.3), contributors)
        REFERENCE.aggregate(fmt, theta, peers_of(fmt), np.ones(4, np.float32), np.float32(0.3), contributors)
        assert same(mine, theta), contributors


@case
def apply_and_revert_are_those_of_the_reference(gpu: OneFormat, device: str) -> None:
    for fmt in FORMATS:
        for records in peers_of(fmt)[2:]:
            theta = elements(fmt, 11)
            mine, clip, share = on(device, theta), np.float32(1 / 3), np.float32(0.7)
            saved = gpu.apply(fmt, mine, records, clip, share)
            assert same(saved, REFERENCE.apply(fmt, theta, records, clip, share)), fmt
            assert same(mine, theta), fmt
            gpu.revert(fmt, mine, records, saved)
            assert same(mine, elements(fmt, 11)), fmt


@case
def dot_is_that_of_the_reference_up_to_its_order(gpu: OneFormat, device: str) -> None:
    for fmt in FORMATS:
        peers, gradient = peers_of(fmt)[:3], elements(fmt, 12)
        clips, share = np.array([1 / 3, 1, 0.2], np.float32), np.float32(0.7)
        found = gpu.dot(fmt, on(device, gradient), peers, clips, share)
        expected = REFERENCE.dot(fmt, gradient, peers, clips, share)
        for peer, records in enumerate(peers):
            positions, codes = parse(fmt, records)[:2]
            met = np.take_along_axis(gradient, positions, axis=1).astype(np.float64)
            bound = np.abs(met * codes.values()).sum()  # of the sum of the products' magnitudes
            assert abs(found[peer] - expected[peer]) <= 1e-13 * bound, fmt


@case
def shared_counts_common_positions_but_no_zeros(gpu: OneFormat, device: str) -> None:
    for fmt in FORMATS:
        peers = [records[[2, 5]] for records in peers_of(fmt)]
        for compared in (1, len(peers)):
            found = gpu.shared(fmt, peers, compared)
            assert found.dtype == np.int64
            assert found.tolist() == REFERENCE.shared(fmt, peers, compared).tolist(), fmt


@case
def shared_counts_each_chunk_anew(gpu: OneFormat, device: str) -> None:
    """Each program counts several chunks, one after the other, in the same memory, and looks at many peers."""
    fmt = RecordFormat.of_chunk(33, 512, 1)
    peers = [records for _ in range(5) for records in peers_of(fmt)]
    with mock.patch.object(gpu.kernel, "_SHARED_ROWS", 2):
        assert gpu.shared(fmt, peers, 9).tolist() == REFERENCE.shared(fmt, peers, 9).tolist()


def main() -> None:
    """Run every case; JSON of what went wrong in each, to standard output."""
    from protocol.sparseloco.kernels import gpu

    outcomes = {}
    for name, check in CASES.items():
        try:
            check(OneFormat(gpu), "cuda" if torch.cuda.is_available() else "cpu")
            outcomes[name] = ""
        except Exception:  # noqa: BLE001 - the test that asks for it reports it
            outcomes[name] = traceback.format_exc()
    json.dump(outcomes, sys.stdout)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("the GPU's kernels need Triton, which exists for Linux only: pip install triton")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", CASES)
def test_on_the_gpu(name: str, outcomes: dict[str, str]) -> None:
    assert not outcomes[name], outcomes[name]


if __name__ == "__main__":
    main()
