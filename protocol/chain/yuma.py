"""Yuma consensus: from weights and stake to incentive and dividends, as one pure function.

Definition: Bittensor, "Yuma Consensus" (subtensor, docs/consensus.md, equations 3 to 7), with the bonds
penalty β = 1, which is what subtensor's own epoch listing in that document computes. For n neurons, with
validators i and the neurons j they judge:

    S_i   = s_i / Σ_k s_k                     stake of active validators only; 0 for everyone else
    W_ij  = w_ij / Σ_k w_ik                   after w_ii = 0 and w_i = 0 for inactive i; empty rows stay 0
    P_j   = Σ_i S_i W_ij                      prerank
    C_j   = max { w : Σ_i S_i [W_ij ≥ w] ≥ κ }  consensus: the largest weight that a κ share of stake supports
    W̄_ij  = min(W_ij, C_j)                    clipped weight
    R_j   = Σ_i S_i W̄_ij                      rank
    T_j   = R_j / P_j                         trust
    V_i   = Σ_j W̄_ij                          validator trust
    I_j   = R_j / Σ_k R_k                     incentive
    ΔB_ij = S_i W̄_ij / Σ_k S_k W̄_kj           bonds of this epoch; unjudged columns stay 0
    B_ij  = α ΔB_ij + (1 − α) B'_ij           moving average over the last bonds B' (columns scaled to sum 1,
                                              rows of inactive validators cleared); columns scaled to sum 1
    D_i   = Σ_j B_ij I_j, scaled to sum 1     dividends

Whatever has a zero denominator is 0. Subtensor computes all this in 32-bit fixed point, this module in
float64: the two agree closely, not to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ChainError

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

# Shares of stake are rounded, so validators who hold exactly κ may add up to one ulp less.
_TIE_TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True)
class YumaResult:
    """What one epoch decides. Vectors have shape [n], float64, all in [0, 1]; `incentive` and `dividends`
    each sum to 1, or are all 0 when no active validator with stake judged anybody. `bonds` has shape [n, n],
    validator by neuron, every column summing to 1 or 0; it goes into the next epoch."""

    consensus: Vector
    ranks: Vector
    trust: Vector
    validator_trust: Vector
    incentive: Vector
    dividends: Vector
    bonds: Matrix


def epoch(
    stakes: Vector,
    weights: Matrix,
    bonds: Matrix,
    active: NDArray[np.bool_],
    *,
    kappa: float,
    bond_alpha: float,
) -> YumaResult:
    """One epoch over n neurons (the module's docstring has the formulas).

    `stakes` [n] and `weights` [n, n] (row = who judges, column = who is judged) are float64, finite and
    non-negative, in any scale; `bonds` [n, n] is the result of the last epoch, zeros at first; `active` [n],
    bool, marks those whose stake and weights count: the holders of a validator permit. `kappa` and
    `bond_alpha` are in (0, 1]. No argument is changed. Raises `ChainError` for wrong shapes and for negative
    or not finite values.
    """
    _check(stakes, weights, bonds, active)
    stake = _shares(np.where(active, stakes, 0.0), axis=0)
    judged = np.where(active[:, None], weights, 0.0)
    # Nobody is paid for praising itself: without this a lone validator would give itself all incentive.
    np.fill_diagonal(judged, 0.0)
    judged = _shares(judged, axis=1)

    consensus = _consensus(stake, judged, kappa)
    clipped = np.minimum(judged, consensus[None, :])
    preranks = _column_sums(stake, judged)
    ranks = _column_sums(stake, clipped)
    incentive = _shares(ranks, axis=0)

    instant = _shares(stake[:, None] * clipped, axis=0)
    previous = _shares(np.where(active[:, None], bonds, 0.0), axis=0)
    averaged = _shares(bond_alpha * instant + (1.0 - bond_alpha) * previous, axis=0)
    return YumaResult(
        consensus=consensus,
        ranks=ranks,
        trust=np.divide(ranks, preranks, out=np.zeros_like(ranks), where=preranks > 0.0),
        validator_trust=clipped.sum(axis=1),
        incentive=incentive,
        dividends=_shares((averaged * incentive[None, :]).sum(axis=1), axis=0),
        bonds=averaged,
    )


def _consensus(stake: Vector, weights: Matrix, kappa: float) -> Vector:
    """The stake-weighted median of each column: [n]. `stake` sums to 1 or 0, rows of `weights` to 1 or 0."""
    order = np.argsort(-weights, axis=0, kind="stable")
    descending = np.take_along_axis(weights, order, axis=0)
    support = np.cumsum(stake[order], axis=0)
    # Support only grows downwards, so the largest supported weight is the first one that reaches κ.
    supported = np.where(support >= kappa - _TIE_TOLERANCE, descending, 0.0)
    consensus: Vector = np.max(supported, axis=0, initial=0.0)
    return consensus


def _column_sums(stake: Vector, weights: Matrix) -> Vector:
    """Σ_i S_i W_ij: [n]. Not a BLAS product, whose last bit may differ from machine to machine."""
    sums: Vector = (stake[:, None] * weights).sum(axis=0)
    return sums


def _shares(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """`values` scaled to sum 1 along `axis`; lanes that sum to 0 stay 0."""
    total = np.broadcast_to(values.sum(axis=axis, keepdims=True), values.shape)
    shares = np.zeros_like(values)
    np.divide(values, total, out=shares, where=total > 0.0)
    return shares


def _check(stakes: Vector, weights: Matrix, bonds: Matrix, active: NDArray[np.bool_]) -> None:
    n = len(stakes)
    for name, array, shape in (
        ("stakes", stakes, (n,)),
        ("weights", weights, (n, n)),
        ("bonds", bonds, (n, n)),
        ("active", active, (n,)),
    ):
        if array.shape != shape:
            raise ChainError(f"{name} of a Yuma epoch must have the shape {shape}, not {array.shape}")
        if not np.all(np.isfinite(array)) or np.any(array < 0):
            raise ChainError(f"{name} of a Yuma epoch must be finite and non-negative")
