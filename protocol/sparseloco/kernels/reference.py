"""The definition of SparseLoCo's arithmetic, in plain NumPy: clear first, fast second (protocol §8, §13).

Every fp32 operation below is one IEEE operation on its own: NumPy neither fuses nor reorders element-wise
arithmetic. Other kernels must agree with this module to the bit.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from protocol.sparseloco.records import LEVELS, Codes

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

_MIDPOINTS = (LEVELS[:-1].astype(np.float64) + LEVELS[1:]) / 2


def accumulate(error: F32, delta: F32, beta: float) -> F32:
    """a = β·e + Δ, each product and sum rounded to fp32."""
    return np.float32(beta) * error + delta


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
        codes = np.repeat(_nearest(magnitudes.mean(axis=1))[:, None], 2, axis=1)
    else:
        codes = _two_levels(magnitudes)
    lower, upper = (LEVELS[codes[:, i : i + 1]].astype(np.float64) for i in (0, 1))
    high = np.abs(magnitudes - upper) < np.abs(magnitudes - lower)
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
    return np.stack([_nearest(low), _nearest(high)], axis=1)


def _nearest(levels: npt.NDArray[np.float64]) -> U8:
    """Code of the nearest level; half way goes to the smaller."""
    return np.searchsorted(_MIDPOINTS, levels, side="left").astype(np.uint8)


def norm_of_codes(used: U8) -> float:
    """‖ŝ‖₂ of values with these level codes, exact up to two roundings: the sum of squares is an integer
    multiple of 2⁻⁶⁰, rounded once to binary64, then its square root."""
    counts = np.bincount(used.reshape(-1), minlength=256)
    total = sum(int(counts[c]) * ((8 + (c & 7)) ** 2 << 2 * (c >> 3)) for c in range(1, 256))
    return math.sqrt(total) * 2.0**-30


def norm_of_values(values: F32) -> float:
    """‖v‖₂ of unquantised fp32 values: squares are exact in binary64, `fsum` rounds their sum once."""
    return math.sqrt(math.fsum((values.astype(np.float64) ** 2).reshape(-1).tolist()))


def add_scaled(total: F32, indices: I64, values: F32, scales: F32) -> None:
    """total[indices] += scales · values in place; one product and one sum, each rounded. Indices are distinct."""
    total[indices] += scales * values


def subtract_scaled(theta: F32, total: F32, scale: np.float32) -> None:
    """θ ← θ − scale · total in place; one product and one difference, each rounded."""
    theta -= scale * total


def subtract_sparse(theta: F32, indices: I64, values: F32) -> F32:
    """θ[indices] −= values in place; returns the saved originals."""
    saved = theta[indices]
    theta[indices] = saved - values
    return saved


def restore(theta: F32, indices: I64, saved: F32) -> None:
    """Put saved originals back, to the bit."""
    theta[indices] = saved
