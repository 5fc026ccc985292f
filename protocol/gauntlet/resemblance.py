"""Whose work a payload repeats, seen in what it does (protocol §14): the rows of the cross-gain matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

LEAST_CORRELATION = 0.55
LEAST_Z = 3.5
"""Both are needed: with few pages the noise correlates by chance, with many even independent work does a little."""

_SPREAD_FLOOR = 0.3
_NORMAL = 1.4826  # standard deviation over median absolute deviation of a normal distribution
_ALMOST_ONE = 1 - 1e-12


@dataclass(frozen=True, slots=True)
class Pair:
    """Two uids of which one repeats the other's work, `first` the lower one, and the correlation of their rows."""

    first: int
    second: int
    correlation: float


def find_pairs(rows: Mapping[int, F64]) -> tuple[Pair, ...]:
    """The pairs of payloads that do alike, page for page, after what every payload does is taken away.

    `rows` holds the first-order gains of each payload, float64 [pages], in the same order of pages for all: its own
    ones, those of the others and the random ones. A row is regressed on a constant and the median row, so that
    neither its size nor the common descent counts; what remains is brought to one length, and each page to one
    spread, for on some pages everybody differs. Independent work then correlates as noise does: artanh(ρ) is normal
    with a deviation of 1/√(pages − 3), or more where the pairs of this window say so. A row without spread, as zeros
    have it, says nothing.
    """
    uids = sorted(uid for uid, row in rows.items() if np.isfinite(row).all() and np.ptp(row) > 0)
    if len(uids) < 3 or len(rows[uids[0]]) < 4:
        return ()
    left = _residuals(np.stack([rows[uid] for uid in uids]))
    correlations = _correlations(left)
    above = np.arctanh(np.clip(correlations[np.triu_indices(len(uids), 1)], -_ALMOST_ONE, _ALMOST_ONE))
    # Peers that share a fault, such as steps too large, do correlate: the spread of all pairs is the measure then.
    spread = max(1 / math.sqrt(left.shape[1] - 3), _NORMAL * float(np.median(np.abs(above))))
    least = max(LEAST_CORRELATION, math.tanh(LEAST_Z * spread))
    firsts, seconds = np.nonzero(np.triu(correlations >= least, 1))
    return tuple(
        Pair(uids[i], uids[j], float(correlations[i, j]))
        for i, j in zip(firsts.tolist(), seconds.tolist(), strict=True)
    )


def _residuals(gains: F64) -> F64:
    """What is left of rows, float64 [n, pages], brought to one scale per row and per page."""
    common = np.median(gains, axis=0)
    basis = np.stack([np.ones_like(common), common], axis=1)
    fitted, *_ = np.linalg.lstsq(basis, gains.T, rcond=None)
    left = gains - (basis @ fitted).T
    lengths = np.linalg.norm(left, axis=1, keepdims=True)
    left = np.divide(left, lengths, out=np.zeros_like(left), where=lengths > 0)
    centre = np.median(left, axis=0)
    spread = np.median(np.abs(left - centre), axis=0)
    floor = spread + _SPREAD_FLOOR * np.median(spread)
    scaled: F64 = np.divide(left - centre, floor, out=np.zeros_like(left), where=floor > 0)
    return scaled


def _correlations(rows: F64) -> F64:
    """Pearson's ρ of every two rows, float64 [n, n]; 0 for a row without spread."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return np.asarray(rows @ rows.T)


def name_originals(pairs: tuple[Pair, ...], unique_work: Mapping[int, float]) -> dict[int, Pair]:
    """Who of each pair repeats the other: the one that shows less work on its own pages, for a repeated computation
    was made on the pages of one of them; with equal evidence the higher uid. A uid without a value counts as 0. The
    pair with the highest correlation stands for a uid in several."""
    found: dict[int, Pair] = {}
    for pair in sorted(pairs, key=lambda p: (p.correlation, -p.first, -p.second)):
        second_is_better = unique_work.get(pair.second, 0.0) > unique_work.get(pair.first, 0.0)
        found[pair.first if second_is_better else pair.second] = pair
    return found
