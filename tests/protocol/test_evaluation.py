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
    first_order_scale,
    is_bad_window,
    is_settled,
    measured_gain,
    overstates,
    places_by_page,
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


# --- whether more sequences would tell more ---------------------------------------------------------------


def test_an_order_is_settled_where_neighbours_are_apart_beyond_the_noise() -> None:
    apart = [gain(0.5, 0.6), gain(0.1, 0.2), gain(0.3, 0.35)]
    assert is_settled(apart, 1.0)
    assert not is_settled([*apart, gain(0.6, 0.3)], 1.0)
    assert is_settled([gain(0.1, 0.9)], 1.0)


def test_a_draw_is_settled_when_its_difference_is_known_to_a_twentieth_of_the_spread() -> None:
    """A difference of 0.001, give or take 0.002, matters where the best and the last are 0.4 apart, or 0.04."""
    twins = [gain(0.301, 0.299), gain(0.298, 0.3)]
    assert standard_error(twins[0].samples - twins[1].samples) == pytest.approx(0.002)
    assert is_settled([*twins, gain(0.69, 0.71), gain(0.33, 0.34)], 1.0)
    assert not is_settled([*twins, gain(0.32, 0.34)], 1.0)


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


def work(gains: dict[int, np.ndarray], uid: int = 1, own: slice = OWN, shared: slice = SHARED) -> float:
    found = unique_work(gains, own, shared, uid)
    assert found is not None
    return found.value


def test_who_alone_gains_on_its_own_pages_did_its_own_work() -> None:
    assert work({1: pages(0.5, 0.1), 2: pages(0.1, 0.1), 3: pages(0.1, 0.1)}) == 1.0


def test_who_gains_no_more_there_than_the_others_did_not() -> None:
    assert work({1: pages(0.5, 0.1), 2: pages(0.5, 0.1), 3: pages(0.5, 0.1)}) == 0.0


def test_who_gains_less_there_than_the_others_is_negative() -> None:
    assert work({1: pages(0.1, 0.2), 2: pages(0.5, 0.2), 3: pages(0.5, 0.2)}) == -1.0


def test_easy_pages_are_no_merit() -> None:
    """A page on which everyone gains a lot says nothing about its owner."""
    noise = np.array([0.01, -0.02, 0.005, 0.0, -0.01])
    assert abs(work({1: pages(0.9, 0.1) + noise, 2: pages(0.9, 0.1), 3: pages(0.9, 0.1)})) < 0.5


def test_a_few_pages_learned_by_heart_are_no_merit() -> None:
    """Two own pages of six with all the gain there is, against six with a little."""
    rng = np.random.default_rng(3)
    own, shared = slice(0, 6), slice(6, 14)
    values = {"few": np.r_[9.0, 9.0, np.zeros(12)], "all": np.r_[np.full(6, 0.1), np.zeros(8)]}
    means = {}
    for name, gain in values.items():
        drawn = [{1: gain + rng.normal(0, 0.05, 14), 2: rng.normal(0, 0.05, 14)} for _ in range(200)]
        means[name] = np.mean([work(gains, own=own, shared=shared) for gains in drawn])
    assert means["all"] > 0.5
    assert means["few"] < 0.25


def test_one_page_that_went_wrong_does_not_spoil_the_others() -> None:
    gains = {1: np.array([0.5, 0.4, 0.6, -9.0, 0.0, 0.1, 0.2, 0.1]), 2: np.zeros(8)}
    assert work(gains, own=slice(0, 4), shared=slice(4, 8)) > 0.3


@pytest.mark.parametrize(("own", "shared"), [(4, 8), (6, 8), (4, 32), (2, 2)])
def test_the_error_is_the_spread_of_those_without_an_advantage(own: int, shared: int) -> None:
    rng = np.random.default_rng(own)
    values, error = [], 0.0
    for _ in range(3000):
        found = unique_work({1: rng.normal(size=own + shared)}, slice(0, own), slice(own, None), 1)
        assert found is not None
        values.append(found.value)
        error = found.error
    assert -0.3 < np.mean(values) < 0.05  # fewer of the great ones are left out among the random pages
    assert 0.6 < np.std(values) / error < 1.35


def test_the_median_of_the_others_cannot_be_moved_by_one_liar() -> None:
    honest = {uid: pages(0.1, 0.1) for uid in (2, 3, 4)}
    gains = {1: pages(0.5, 0.1)} | honest
    assert work(gains | {4: np.full(5, -1e9)}) == work(gains) == 1.0


def test_a_lone_peer_is_compared_with_nothing() -> None:
    assert work({1: np.array([1.0, 1.0, 0.0, 0.0, 0.0])}) == 1.0
    assert work({1: np.zeros(5)}) == 0.0


def test_who_was_not_judged_or_not_in_numbers_has_no_value() -> None:
    assert unique_work({1: pages(0.5, 0.1)}, OWN, SHARED, 2) is None
    assert unique_work({1: np.array([float("nan"), 0, 0, 0, 0])}, OWN, SHARED, 1) is None


# --- both gains -------------------------------------------------------------------------------------------


def test_places_are_by_page_with_the_noise_of_that_page() -> None:
    gains = {
        1: gain(0.3, 0.3, 0.0, 0.0),
        2: gain(0.1, 0.1, 0.3, 0.1),
        3: first_order_gain(np.array([0.2, 0.2])),
    }
    assert places_by_page(gains, 2, 0.0) == {1: (0, 2), 2: (2, 0), 3: (1, 0)}
    assert places_by_page(gains, 2, 3.0) == {1: (0, 0), 2: (2, 0), 3: (1, 0)}


def test_first_order_gains_are_brought_to_the_scale_of_the_measured_ones() -> None:
    pairs = [(gain(0.8), gain(1.0)), (gain(0.9), gain(1.0)), (gain(-9.0), gain(1.0))]
    assert first_order_scale(pairs) == 0.8
    assert first_order_scale([(gain(5.0), gain(0.1, -0.1))]) == 1.0
    assert first_order_scale([(gain(-1.0), gain(1.0))]) == 0.0
    assert first_order_scale([]) == 1.0
    assert first_order_gain(np.array([1.0, float("inf")]), 0.5).samples.tolist() == [0.5, 0.0]


@pytest.mark.parametrize(
    ("measured", "promised", "does"),
    [
        ((0.9, 1.0), (1.0, 1.0), False),
        ((0.4, 0.3), (1.0, 1.0), True),
        ((-1.0, -1.0), (1.0, 1.0), True),
        ((-1.0, 1.5), (1.0, 1.0), False),
        ((-1.0, -1.0), (-0.5, -0.5), False),
    ],
)
def test_a_step_that_overshoots_overstates(
    measured: tuple[float, float], promised: tuple[float, float], does: bool
) -> None:
    losses = gain(*(m + d for m in measured for d in (0.01, -0.01)))  # two pages of two sequences
    assert overstates(losses, first_order_gain(np.array(promised)), 2) is does


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
