"""Gains, ranks, draws and unique work, on numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.gauntlet.evaluation import (
    LOSS_CEILING,
    Gain,
    bounded_losses,
    first_order_gain,
    is_bad_window,
    measured_gain,
    rank_by_gain,
    standard_error,
    sync_score,
    unique_work,
)


def gain(*samples: float, measured: bool = True) -> Gain:
    return Gain(np.array(samples, np.float64), measured)


def test_a_measured_gain_is_the_share_of_the_loss_that_went() -> None:
    found = measured_gain(np.array([4.0, 6.0]), np.array([3.0, 6.0]))
    assert found.samples.tolist() == [0.2, 0.0]
    assert (found.value, found.measured) == (0.1, True)
    assert found.error == pytest.approx(0.1)


def test_the_standard_error_divides_by_n_less_one() -> None:
    assert standard_error(np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(math.sqrt(5 / 3) / 2)
    assert standard_error(np.array([7.0])) == 0.0


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e300])
def test_a_payload_that_breaks_the_model_comes_last_and_breaks_nothing_else(broken: float) -> None:
    before = np.array([5.0, 5.0])
    gains = {
        1: measured_gain(before, np.array([4.0, broken])),
        2: measured_gain(before, np.array([9.0, 9.0])),
        3: measured_gain(before, np.array([4.0, 4.0])),
    }
    assert math.isfinite(gains[1].value)
    assert rank_by_gain(gains, 0.0) == {3: 0, 2: 1, 1: 2}


def test_losses_have_a_ceiling_and_keep_their_bits_below_it() -> None:
    losses = np.array([0.1, LOSS_CEILING, float("nan"), float("inf"), 2000.0])
    assert bounded_losses(losses).tolist() == [0.1, 1000.0, 1000.0, 1000.0, 1000.0]


def test_a_first_order_gain_that_is_not_finite_counts_nothing() -> None:
    found = first_order_gain(np.array([0.2, float("nan"), float("-inf"), 0.2]))
    assert (found.value, found.measured) == (0.1, False)


# --- ranks ------------------------------------------------------------------------------------------------


def test_better_gains_rank_first_when_no_draws_are_allowed() -> None:
    gains = {3: gain(0.1, 0.2), 1: gain(0.3, 0.5), 2: gain(-0.1, 0.0)}
    assert rank_by_gain(gains, 0.0) == {1: 0, 3: 1, 2: 2}


def test_equal_gains_draw_and_the_next_rank_counts_them_all() -> None:
    gains = {1: gain(0.1, 0.2), 2: gain(0.1, 0.2), 3: gain(0.0, 0.0)}
    assert rank_by_gain(gains, 0.0) == {1: 0, 2: 0, 3: 2}


def test_a_difference_inside_its_noise_is_a_draw() -> None:
    gains = {1: gain(0.3, 0.1), 2: gain(0.1, 0.2)}  # paired difference 0.2, −0.1: mean 0.05, error 0.15
    assert rank_by_gain(gains, 1.0) == {1: 0, 2: 0}
    assert rank_by_gain(gains, 0.3) == {1: 0, 2: 1}


def test_noise_that_all_sequences_share_cancels() -> None:
    gains = {1: gain(1.1, -0.9, 0.1), 2: gain(1.0, -1.0, 0.0)}
    assert rank_by_gain(gains, 1.0) == {1: 0, 2: 1}


def test_measured_and_first_order_gains_are_compared_by_their_own_errors() -> None:
    measured, estimate = gain(1.1, -0.9, 0.1), gain(1.0, -1.0, 0.0, measured=False)
    assert rank_by_gain({1: measured, 2: estimate}, 1.0) == {1: 0, 2: 0}
    assert rank_by_gain({1: measured, 2: estimate}, 0.01) == {1: 0, 2: 1}


def test_draws_are_with_the_best_of_a_group_so_they_do_not_chain() -> None:
    """1 draws with 2 and 2 would with 3, but 3 is too far from 1."""
    gains = {1: gain(1.2, 0.8), 2: gain(0.5, 0.9), 3: gain(0.4, 0.3)}
    assert rank_by_gain(gains, 1.0) == {1: 0, 2: 0, 3: 2}


@given(st.dictionaries(st.integers(0, 50), st.floats(-1, 1), max_size=12))
def test_ranks_do_not_depend_on_the_order_of_peers(values: dict[int, float]) -> None:
    gains = {uid: gain(v, v / 2) for uid, v in values.items()}
    ranks = rank_by_gain(gains, 0.5)
    assert rank_by_gain(dict(reversed(gains.items())), 0.5) == ranks
    assert all(gains[a].value >= gains[b].value for a in ranks for b in ranks if ranks[a] < ranks[b])
    assert not ranks or min(ranks.values()) == 0


def test_no_peers_no_ranks() -> None:
    assert rank_by_gain({}, 1.0) == {}


# --- unique work ------------------------------------------------------------------------------------------

OWN, SHARED = slice(0, 2), slice(2, 5)


def pages(own: float, shared: float, spread: float = 0.01) -> np.ndarray:
    return np.array([own - spread, own + spread, shared - spread, shared, shared + spread])


def test_who_alone_gains_on_its_own_pages_did_its_own_work() -> None:
    gains = {1: pages(0.5, 0.1), 2: pages(0.1, 0.1), 3: pages(0.1, 0.1)}
    assert unique_work(gains, OWN, SHARED, 1) == pytest.approx(1.0, abs=1e-3)


def test_who_gains_no_more_there_than_the_others_did_not() -> None:
    gains = {1: pages(0.5, 0.1), 2: pages(0.5, 0.1), 3: pages(0.5, 0.1)}
    assert unique_work(gains, OWN, SHARED, 1) == 0.0


def test_who_gains_less_there_than_the_others_is_negative() -> None:
    gains = {1: pages(0.1, 0.2), 2: pages(0.5, 0.2), 3: pages(0.5, 0.2)}
    found = unique_work(gains, OWN, SHARED, 1)
    assert found is not None
    assert -1 <= found < -0.99


def test_easy_pages_are_no_merit() -> None:
    """A page on which everyone gains a lot says nothing about its owner."""
    noise = np.array([0.01, -0.02, 0.005, 0.0, -0.01])
    gains = {1: pages(0.9, 0.1) + noise, 2: pages(0.9, 0.1), 3: pages(0.9, 0.1)}
    found = unique_work(gains, OWN, SHARED, 1)
    assert found is not None
    assert abs(found) < 0.3


def test_the_value_is_tanh_of_half_a_welch_z() -> None:
    gains = {1: np.array([0.2, 0.4, 0.1, 0.0, 0.2]), 2: np.zeros(5)}
    error = math.hypot(math.sqrt(0.02) / math.sqrt(2), 0.1 / math.sqrt(3))
    assert unique_work(gains, OWN, SHARED, 1) == pytest.approx(math.tanh(0.2 / error / 2))


def test_the_median_of_the_others_cannot_be_moved_by_one_liar() -> None:
    honest = {uid: pages(0.1, 0.1) for uid in (2, 3, 4)}
    gains = {1: pages(0.5, 0.1)} | honest
    lied = gains | {4: np.full(5, -1e9)}
    first, second = unique_work(gains, OWN, SHARED, 1), unique_work(lied, OWN, SHARED, 1)
    assert first is not None
    assert second is not None
    assert second == pytest.approx(first, abs=1e-3)


def test_a_lone_peer_is_compared_with_nothing() -> None:
    assert unique_work({1: np.array([1.0, 1.0, 0.0, 0.0, 0.0])}, OWN, SHARED, 1) == 1.0
    assert unique_work({1: np.zeros(5)}, OWN, SHARED, 1) == 0.0


def test_who_was_not_judged_or_not_in_numbers_has_no_value() -> None:
    assert unique_work({1: pages(0.5, 0.1)}, OWN, SHARED, 2) is None
    assert unique_work({1: np.array([float("nan"), 0, 0, 0, 0])}, OWN, SHARED, 1) is None


# --- sync and amnesty -------------------------------------------------------------------------------------


def test_sync_falls_from_one_to_zero() -> None:
    assert [sync_score(steps, 3) for steps in (0, 3, 4, 1000)] == [1.0, 0.0, 0.0, 0.0]
    assert sync_score(1, 3) == pytest.approx((2 / 3) ** 2.5)
    assert sync_score(2, 3) == pytest.approx((1 / 3) ** 2.5)


@pytest.mark.parametrize(
    ("gains", "bad"),
    [
        ([], True),
        ([0.1], False),
        ([-0.1], True),
        ([0.0], False),
        ([0.1, -0.1, -0.2], True),
        ([0.2, 0.1, -0.2], False),
        ([0.5, 0.4, 0.3, 0.2, -0.1, -0.2], True),
        ([0.5, 0.4, 0.3, 0.2, 0.1, -0.2, -0.3, -0.4, -0.5, -0.6, -0.7], False),
        ([-0.2, 0.5, 0.2, 0.3, 0.4, -0.1], True),
    ],
)
def test_a_window_is_bad_when_the_fifth_best_gain_is_negative(gains: list[float], bad: bool) -> None:
    assert is_bad_window(gains, 5) is bad
