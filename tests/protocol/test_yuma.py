"""Yuma consensus against values worked out by hand, and against the published formulas in exact fractions.

The arithmetic behind tests/vectors/yuma.json (S = stake shares, W = row shares, C = consensus, W̄ = clipped, R = rank,
P = prerank, I = incentive, ΔB = instant bonds, D = dividends):

a dissenting validator is clipped.  S = .4 .4 .2. W = (.6 .4) (.6 .4) (0 1) on the two miners.
  C3: weights .6 .6 0 gather stake .4 .8 1; the first sum ≥ .5 is at .6.  C4: 1 .4 .4 gather .2 .6 1: .4.
  W̄ of the third validator: (0, .4). R3 = .4·.6·2 = .48; R4 = .4·.4·2 + .2·.4 = .4; sum .88: I = 6/11, 5/11.
  P3 = .48, P4 = .32 + .2 = .52: trust 1 and .4/.52 = 10/13. Validator trust 1, 1, .4.
  ΔB3 = (.24 .24 0)/.48 = ½ ½ 0; ΔB4 = (.16 .16 .08)/.4 = .4 .4 .2; B = ΔB, as there was none before.
  D0 = ½·6/11 + 2/5·5/11 = 5/11, D1 the same, D2 = 1/5·5/11 = 1/11.
a dissenter who comes round.  All rows are (.6 .4) now, so C = W̄ = R = I = .6 .4, ΔB = .4 .4 .2 in both columns.
  B3 = .1·(.4 .4 .2) + .9·(.5 .5 0) = .49 .49 .02; B4 = .4 .4 .2. Both sum to 1.
  D0 = .49·.6 + .4·.4 = .454 = 227/500; D2 = .02·.6 + .2·.4 = .092 = 23/250, though its stake is .2.
one validator alone.  The 5 for itself is struck, (3 1) becomes ¾ ¼, which all stake supports; all bonds are its own.
a silent minority.  S = .3 .3 .4; ½ ½ 0 gather .3 .6: C = ½. R = .3·½·2 = .3 each, P the same. ΔB = ½ ½ 0.
a silent majority.  S = .2 .2 .6; ½ gathers only .4 < κ, the next weight is 0: C = 0, so nothing is left.
stake without a permit.  S = 1 for the only permit; the other row and its bonds (¾, 1) are struck, ¼ becomes 1.
stake of exactly κ.  1 + 2 + 2 + 2 = 7 of 14 for the one miner, 2 + 5 = 7 of 14 for the other. In float64
  1/14 + 2/14 + 2/14 + 2/14 is 0.49999999999999994. R = ½ ½; ΔB = (1 2 2 2)/7 and (2 5)/7; D = half of those.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.chain.yuma import YumaResult, epoch
from protocol.errors import ChainError

CASES = json.loads((Path(__file__).parents[1] / "vectors" / "yuma.json").read_text())["cases"]
OUTPUTS = ("consensus", "ranks", "trust", "validator_trust", "incentive", "dividends")


def floats(values: Any) -> np.ndarray:
    if isinstance(values, list):
        return np.array([floats(value) for value in values], dtype=np.float64)
    return np.float64(float(Fraction(values)))


def run(stakes: Any, weights: Any, bonds: Any, active: Any, kappa: float = 0.5, alpha: float = 0.1) -> YumaResult:
    return epoch(
        floats(stakes), floats(weights), floats(bonds), np.array(active, dtype=bool), kappa=kappa, bond_alpha=alpha
    )


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_an_epoch_gives_the_values_worked_out_by_hand(case: dict[str, Any]) -> None:
    n = len(case["stakes"])
    result = run(case["stakes"], case["weights"], case.get("bonds", [["0"] * n] * n), case["active"])
    for name in OUTPUTS:
        np.testing.assert_allclose(getattr(result, name), floats(case[name]), rtol=0, atol=1e-15, err_msg=name)
    np.testing.assert_allclose(result.bonds, floats(case["bonds_after"]), rtol=0, atol=1e-15)


def exact_epoch(
    stakes: list[int],
    weights: list[list[int]],
    bonds: list[list[int]],
    active: list[bool],
    kappa: Fraction,
    alpha: Fraction,
) -> dict[str, list[Fraction]]:
    """The published formulas, written out literally."""
    n = range(len(stakes))

    def share(value: Fraction | int, total: Fraction | int) -> Fraction:
        return Fraction(value) / total if total else Fraction(0)

    total_stake = sum(stakes[i] for i in n if active[i])
    s = [share(stakes[i], total_stake) if active[i] else Fraction(0) for i in n]
    raw = [[weights[i][j] if active[i] and i != j else 0 for j in n] for i in n]
    w = [[share(raw[i][j], sum(raw[i])) for j in n] for i in n]
    c = [
        max((x for x in {w[i][j] for i in n} if sum(s[i] for i in n if w[i][j] >= x) >= kappa), default=Fraction(0))
        for j in n
    ]
    clipped = [[min(w[i][j], c[j]) for j in n] for i in n]
    r = [sum((s[i] * clipped[i][j] for i in n), Fraction(0)) for j in n]
    incentive = [share(r[j], sum(r)) for j in n]
    b = [[Fraction(0) for _ in n] for _ in n]
    for j in n:
        old = [bonds[i][j] if active[i] else 0 for i in n]
        column = [alpha * share(s[i] * clipped[i][j], r[j]) + (1 - alpha) * share(old[i], sum(old)) for i in n]
        for i in n:
            b[i][j] = share(column[i], sum(column))
    d = [sum((b[i][j] * incentive[j] for j in n), Fraction(0)) for i in n]
    return {"consensus": c, "ranks": r, "incentive": incentive, "dividends": [share(x, sum(d)) for x in d]}


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[int], list[list[int]], list[list[int]], list[bool]]:
    n = draw(st.integers(0, 6))
    numbers = st.lists(st.integers(0, 9), min_size=n, max_size=n)
    matrix = st.lists(numbers, min_size=n, max_size=n)
    flags = st.lists(st.booleans(), min_size=n, max_size=n)
    return draw(numbers), draw(matrix), draw(matrix), draw(flags)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(networks(), st.sampled_from([Fraction(1, 2), Fraction(2, 3), Fraction(1)]))
def test_every_network_gets_what_the_published_formulas_say_in_exact_fractions(
    network: tuple[list[int], list[list[int]], list[list[int]], list[bool]], kappa: Fraction
) -> None:
    stakes, weights, bonds, active = network
    n = len(stakes)
    expected = exact_epoch(stakes, weights, bonds, active, kappa, Fraction(1, 10))
    result = epoch(
        np.array(stakes, dtype=np.float64),
        np.array(weights, dtype=np.float64).reshape(n, n),
        np.array(bonds, dtype=np.float64).reshape(n, n),
        np.array(active, dtype=bool),
        kappa=float(kappa),
        bond_alpha=0.1,
    )
    for name, values in expected.items():
        np.testing.assert_allclose(
            getattr(result, name), [float(value) for value in values], rtol=0, atol=1e-12, err_msg=name
        )


def test_the_scale_of_stake_and_of_each_row_of_weights_does_not_matter() -> None:
    case = CASES[0]
    n = len(case["stakes"])
    weights = floats(case["weights"])
    weights[2] *= 1e300
    small = epoch(
        floats(case["stakes"]) * 1e-9, weights, np.zeros((n, n)), np.array(case["active"]), kappa=0.5, bond_alpha=0.1
    )
    np.testing.assert_allclose(small.incentive, floats(case["incentive"]), atol=1e-15)
    np.testing.assert_allclose(small.dividends, floats(case["dividends"]), atol=1e-15)


def test_an_epoch_leaves_its_arguments_as_they_were() -> None:
    stakes, weights, bonds = np.array([1.0, 0.0]), np.array([[4.0, 2.0], [0.0, 0.0]]), np.ones((2, 2))
    epoch(stakes, weights, bonds, np.array([True, False]), kappa=0.5, bond_alpha=0.1)
    assert stakes.tolist() == [1.0, 0.0]
    assert weights.tolist() == [[4.0, 2.0], [0.0, 0.0]]
    assert bonds.tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("stakes", "weights", "word"),
    [
        ([1.0], [[0.0, 1.0], [0.0, 0.0]], "shape"),
        ([1.0, -1.0], [[0.0, 1.0], [0.0, 0.0]], "stakes"),
        ([1.0, 0.0], [[0.0, float("nan")], [0.0, 0.0]], "weights"),
        ([1.0, float("inf")], [[0.0, 1.0], [0.0, 0.0]], "finite"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(
    stakes: list[float], weights: list[list[float]], word: str
) -> None:
    n = len(stakes)
    with pytest.raises(ChainError, match=word):
        epoch(np.array(stakes), np.array(weights), np.zeros((n, n)), np.ones(n, dtype=bool), kappa=0.5, bond_alpha=0.1)
