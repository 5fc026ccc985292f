"""Repeated work is seen in what payloads do, page for page, and independent work is not taken for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.gauntlet.resemblance import LEAST_Z, Pair, find_pairs, name_originals

PAGES = 60


def honest(rng: np.random.Generator, peers: int, pages: int = PAGES) -> dict[int, np.ndarray]:
    """Rows of peers that learn the same things in their own ways: pages differ in how much there is to gain, peers in
    how large their steps are, and each has four pages of its own."""
    common = rng.normal(1.0, 0.3, pages)
    rows = {}
    for uid in range(peers):
        row = common + rng.normal(0, 0.2, pages)
        row[4 * uid : 4 * uid + 4] += 1.0
        rows[uid] = row * rng.uniform(0.2, 5.0) + rng.normal(0, 0.01)
    return rows


def test_independent_work_is_hardly_ever_taken_for_repeated_work() -> None:
    rng = np.random.default_rng(1)
    accused = sum(len(find_pairs(honest(rng, 8))) for _ in range(300))
    assert accused <= 300 * 28 * 0.001


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1])
def test_a_repeated_computation_is_named_with_the_one_it_repeats(noise: float) -> None:
    rng = np.random.default_rng(2)
    named = 0
    for _ in range(100):
        rows = honest(rng, 8)
        rows[8] = 0.3 * (rows[5] + rng.normal(0, noise, PAGES) * rows[5].std())
        work = {uid: 0.8 for uid in range(8)} | {8: 0.1}
        named += {uid: pair.first for uid, pair in name_originals(find_pairs(rows), work).items()} == {8: 5}
    assert named >= 90


def test_who_shows_less_work_of_its_own_is_the_one_that_repeats() -> None:
    pair = Pair(2, 7, 0.9)
    assert name_originals((pair,), {2: 0.1, 7: 0.9}) == {2: pair}
    assert name_originals((pair,), {2: 0.9, 7: 0.1}) == {7: pair}
    assert name_originals((pair,), {2: 0.5, 7: 0.5}) == {7: pair}
    assert name_originals((pair,), {2: -0.5}) == {2: pair}


def test_of_several_the_closest_is_named() -> None:
    pairs = (Pair(1, 3, 0.9), Pair(2, 3, 0.95), Pair(1, 2, 0.7))
    assert name_originals(pairs, {1: 0.9, 2: 0.5, 3: 0.0}) == {3: pairs[1], 2: pairs[2]}


def test_too_little_to_tell_accuses_nobody() -> None:
    row = np.arange(5.0)
    assert find_pairs({}) == find_pairs({1: row, 2: row}) == ()
    assert find_pairs({uid: row[:3] for uid in range(5)}) == ()
    rng = np.random.default_rng(3)
    few = {uid: rng.normal(size=8) for uid in range(6)}
    few[6] = few[5] + rng.normal(0, 0.5, 8)  # ρ near 0.9 is not LEAST_Z errors from 0 on eight pages
    assert LEAST_Z > 3
    assert find_pairs(few) == ()


def test_rows_that_are_no_numbers_or_have_no_spread_are_left_out() -> None:
    rng = np.random.default_rng(4)
    rows = honest(rng, 6)
    broken = rows | {6: np.full(PAGES, np.nan), 7: np.zeros(PAGES), 8: np.zeros(PAGES), 9: np.full(PAGES, np.inf)}
    assert find_pairs(broken) == ()
    with np.errstate(all="raise"):
        assert find_pairs({uid: np.zeros(PAGES) for uid in range(4)}) == ()


@given(st.permutations(range(6)), st.floats(0.01, 100))
def test_neither_the_order_of_rows_counts_nor_much_their_size(order: list[int], factor: float) -> None:
    rng = np.random.default_rng(5)
    rows = honest(rng, 5)
    rows[5] = rows[2] + rng.normal(0, 0.02, PAGES)
    pairs = find_pairs(rows)
    assert [(pair.first, pair.second) for pair in pairs] == [(2, 5)]
    again = find_pairs({uid: rows[uid] * (factor if uid == 5 else 1.0) for uid in order})
    assert [(pair.first, pair.second) for pair in again] == [(2, 5)]
    assert again[0].correlation == pytest.approx(pairs[0].correlation, abs=0.02)
