"""The definition of SparseLoCo's arithmetic, in plain NumPy: clear first, fast second (protocol §8, §13).

Every fp32 operation below is one IEEE operation on its own: NumPy neither fuses nor reorders element-wise
arithmetic. The other kernels must agree with this module to the bit. What each function promises is said at
`Kernels`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from protocol.sparseloco.kernels import F32, F64, I64, U8, Inspection
from protocol.sparseloco.plan import Plan
from protocol.sparseloco.records import LEVELS, MIDPOINTS, Codes, Flaw, pack, parse, unpack

SQUARES = np.tile(np.arange(8, 16) ** 2, (32, 1))
SQUARES[0, 0] = 0
"""Squares of the levels' mantissas, int64 [32, 8], in units of 4^(exponent − 30); code 0 is the value 0."""


def encode(plan: Plan, beta: float, error: F32, delta: F32, body: U8) -> bool:
    """Top-k of β·e + Δ, each product and sum rounded to fp32; what is not sent stays in `error`."""
    with np.errstate(over="ignore", invalid="ignore"):
        error[:] = np.float32(beta) * error + delta
    if not np.isfinite(error).all():
        return False
    for group in plan.groups:
        chunks, k = group.chunks(error), group.format.k
        positions = select(chunks, k)
        kept = np.take_along_axis(chunks, positions, axis=1)
        codes = quantise(kept, group.format.value_bits)
        np.put_along_axis(chunks, positions, kept - codes.values(), axis=1)
        group.records(body)[:] = pack(group.format, positions, codes)
    return True


def inspect(plan: Plan, body: U8) -> Inspection:
    """The first flaw, and how often each level is used."""
    counts = np.zeros((plan.parameters, 256), np.int64)
    for group in plan.groups:
        _, codes, flaws = parse(group.format, group.records(body))
        wrong = flaws[flaws > 0]
        if len(wrong):
            return Inspection(Flaw(int(wrong[0])), group.format, counts)
        if group.format.value_bits < 32:
            counts[group.parameter] += np.bincount(codes.used().reshape(-1), minlength=256)
    return Inspection(Flaw.NONE, plan.groups[-1].format, counts)


def norms(counts: I64) -> tuple[float, ...]:
    """Sums of squares in Python's integers."""
    return tuple(norm_of_counts(row) for row in counts)


def aggregate(plan: Plan, theta: F32, bodies: Sequence[U8], clips: F32, scale: np.float32, contributors: bool) -> None:
    """One product and one sum for each value, one product and one difference for each element, all rounded."""
    for group in plan.groups:
        chunks = group.chunks(theta)
        total, senders = np.zeros_like(chunks), np.zeros_like(chunks)
        rows = np.arange(group.count)[:, None]
        for body, clip in zip(bodies, clips[:, group.parameter], strict=True):
            positions, codes = unpack(group.format, group.records(body))
            total[rows, positions] += clip * codes.values()
            senders[rows, positions] += np.float32(1)
        if contributors:
            total /= np.maximum(senders, np.float32(1))
        chunks -= scale * total


def apply(plan: Plan, theta: F32, body: U8, clips: F32, share: np.float32) -> F32:
    """Two products and one difference for each value, all rounded."""
    saved = np.empty(plan.values, np.float32)
    for group in plan.groups:
        chunks, originals = group.chunks(theta), group.sent(saved)
        positions, codes = unpack(group.format, group.records(body))
        originals[:] = np.take_along_axis(chunks, positions, axis=1)
        step = share * (clips[group.parameter] * codes.values())
        np.put_along_axis(chunks, positions, originals - step, axis=1)
    return saved


def revert(plan: Plan, theta: F32, body: U8, saved: F32) -> None:
    """Originals back in place."""
    for group in plan.groups:
        positions, _ = unpack(group.format, group.records(body))
        np.put_along_axis(group.chunks(theta), positions, group.sent(saved), axis=1)


def dot(plan: Plan, gradient: F32, bodies: Sequence[U8], clips: F32, share: np.float32) -> F64:
    """The inner products over the positions that were sent."""
    totals = np.zeros(len(bodies))
    for peer, body in enumerate(bodies):
        for group in plan.groups:
            positions, codes = unpack(group.format, group.records(body))
            met = np.take_along_axis(group.chunks(gradient), positions, axis=1).astype(np.float64)
            totals[peer] += (met * (share * (clips[peer, group.parameter] * codes.values()))).sum()
    return totals


def shared(plan: Plan, bodies: Sequence[U8], rows: int) -> I64:
    """Common positions of pairs, counted chunk by chunk."""
    total = np.zeros((rows, len(bodies)), np.int64)
    for group in plan.groups:
        sent = np.zeros((len(bodies), group.count, group.format.length), bool)
        for row, body in zip(sent, bodies, strict=True):
            positions, codes = unpack(group.format, group.records(body))
            np.put_along_axis(row, positions, codes.values() != 0, axis=1)
        flat = sent.reshape(len(bodies), -1).astype(np.int64)
        total += flat[:rows] @ flat.T
    return total


def select(chunks: F32, k: int) -> I64:
    """Positions int64 [n, k], ascending, of the k largest magnitudes of each row of fp32 [n, length].
    Equal magnitudes go to the lowest index."""
    order = np.argsort(-np.abs(chunks), axis=1, kind="stable")
    return np.sort(order[:, :k], axis=1)


def quantise(values: F32, value_bits: int) -> Codes:
    """Codes of fp32 [n, k] values: sign and one of two levels (2 bits), sign and one level (1 bit), or the
    values as they are (32)."""
    n, k = values.shape
    if value_bits == 32:
        none = np.empty((n, 0), bool)
        return Codes(none, none, np.empty((n, 0), np.uint8), values)
    magnitudes = np.abs(values).astype(np.float64)
    if value_bits == 1 or k == 1:
        mean = np.cumsum(magnitudes, axis=1)[:, -1] / k
        codes = np.repeat(_nearest(mean)[:, None], 2, axis=1)
    else:
        codes = _two_levels(magnitudes)
    lower, upper = (LEVELS[codes[:, i : i + 1]].astype(np.float64) for i in (0, 1))
    # Halfway between two levels is exact in binary64; distances would be rounded, and equal, far above both.
    high = (magnitudes > (lower + upper) / 2) & (lower < upper)
    codes_used = np.where(high, codes[:, 1:2], codes[:, 0:1])
    return Codes(np.signbit(values) & (codes_used > 0), high, codes, np.empty((n, 0), np.float32))


def _two_levels(magnitudes: npt.NDArray[np.float64]) -> U8:
    """Level codes uint8 [n, 2] from the split of the sorted magnitudes with the least squared error: the
    optimum that Lloyd's iteration looks for, found exactly because in one dimension only k − 1 splits exist."""
    ordered = np.sort(magnitudes, axis=1)
    k = ordered.shape[1]
    sums = np.cumsum(ordered, axis=1)
    total, counts = sums[:, -1:], np.arange(1, k)
    below, above = sums[:, :-1], total - sums[:, :-1]
    # The sum of squares is the same for every split, so the best one maximises what the means explain.
    explained = below**2 / counts + above**2 / (k - counts)
    split = np.argmax(explained, axis=1)[:, None]
    low = np.take_along_axis(below, split, axis=1)[:, 0] / (split[:, 0] + 1)
    high = np.take_along_axis(above, split, axis=1)[:, 0] / (k - 1 - split[:, 0])
    lower, upper = _nearest(low), _nearest(high)
    # Where a mean is rounded across the middle of two levels, one level may be left with no value: it is not sent.
    middle = (LEVELS[lower].astype(np.float64) + LEVELS[upper]) / 2
    lower = np.where(ordered[:, 0] > middle, upper, lower)
    upper = np.where(ordered[:, -1] <= middle, lower, upper)
    return np.stack([lower, upper], axis=1)


def _nearest(levels: npt.NDArray[np.float64]) -> U8:
    """Code of the nearest level; half way goes to the smaller."""
    return np.searchsorted(MIDPOINTS, levels, side="left").astype(np.uint8)


def norm_of_counts(counts: I64) -> float:
    """‖ŝ‖₂ of quantised values from how often each level code is used, int64 [256]. Exact up to two roundings: the
    sum of squares is an integer multiple of 2⁻⁶⁰, rounded once to binary64, then its square root."""
    squares = counts.reshape(32, 8) * SQUARES
    total = sum(part << 2 * exponent for exponent, part in enumerate(squares.sum(axis=1).tolist()) if part)
    return math.sqrt(total) * 2.0**-30


def norm_of_values(values: F32) -> float:
    """‖v‖₂ of unquantised fp32 values: squares are exact in binary64, `fsum` rounds their sum once."""
    return math.sqrt(math.fsum((values.astype(np.float64) ** 2).reshape(-1).tolist()))
