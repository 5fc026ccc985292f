"""Lists, contributors, and who is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bittensor_core import Keypair

from protocol.gauntlet.scorebook import PeerRecord, Scorebook
from protocol.gauntlet.selection import contributors, sample, select
from protocol.run import Run

HOTKEY = Keypair.create_from_uri("//Alice").ss58_address


def record(uid: int, mu: float = 40.0, **fields: Any) -> PeerRecord:
    return PeerRecord(**({"uid": uid, "hotkey": HOTKEY, "mu": mu, "sigma": 1.0, "unique_work": 0.5} | fields))


def book(*records: PeerRecord) -> Scorebook:
    return Scorebook(run_digest="00" * 32, window=1, peers=records)


@pytest.fixture
def small(make_run: Callable[..., Run]) -> Run:
    return make_run(gauntlet__gather_size=2, gauntlet__reserve_size=1, gauntlet__sample=3)


def test_the_best_are_listed_best_first_then_the_reserves(small: Run) -> None:
    assert select(book(record(0, 10), record(1, 40), record(2, 20), record(3, 30)), small) == ((1, 3), (2,))


def test_equal_scores_go_by_rating_and_then_by_the_lowest_uid(small: Run) -> None:
    peers = (record(0), record(1, 43, sigma=2.0), record(2, 50, unique_work=0.0, judged=0))
    assert select(book(*peers), small) == ((0, 1), (2,))
    assert select(book(record(4, 30, unique_work=0.0), record(5, 40, unique_work=0.0)), small) == ((5, 4), ())


@pytest.mark.parametrize(
    "unfit",
    [{"mu": 3.0}, {"mu": 1.0}, {"absent": 4}, {"judged": 10, "unique_work": 0.09, "unique_work_error": 0.1}],
    ids=str,
)
def test_the_unfit_are_not_listed(small: Run, unfit: dict[str, Any]) -> None:
    assert select(book(record(0, **unfit), record(1)), small) == ((1,), ())


def test_who_lowers_the_loss_more_often_than_it_raises_it_is_listed_whatever_its_rating(small: Run) -> None:
    """Ratings are relative: in a small network the least of the helpful is rated below zero."""
    least = record(0, 1.0, signs=(1, 0, 1, 1))
    assert select(book(least, record(1, 40)), small) == ((1, 0), ())
    for signs in ((), (0,), (1, -1), (0, 0, 0, 1), (1, 0, -1, 1), (-1, 1, -1)):
        assert select(book(record(0, 1.0, signs=signs), record(1, 40)), small) == ((1,), ())


def test_who_helps_but_copies_or_left_is_not_listed(small: Run) -> None:
    for fault in ({"absent": 4}, {"judged": 10, "unique_work": 0.09, "unique_work_error": 0.1}):
        assert select(book(record(0, 40, signs=(1, 1), **fault)), small) == ((), ())


def test_an_empty_book_lists_nobody(small: Run) -> None:
    assert select(book(), small) == ((), ())


def test_reserves_step_in_for_missing_gather_peers_in_their_order(run: Run) -> None:
    assert contributors((5, 1, 3), (9, 2, 7), {1, 3, 5, 2, 7, 9}, run) == (1, 3, 5)
    assert contributors((5, 1, 3), (9, 2, 7), {1, 3, 2, 7}, run) == (1, 2, 3)
    assert contributors((5, 1, 3), (9, 2, 7), {1, 2, 7}, run) == (1, 2, 7)
    assert contributors((5, 1, 3), (9, 2, 7), set(), run) == ()


def test_a_stranger_does_not_contribute_once_there_is_a_list(run: Run) -> None:
    assert contributors((5,), (), {1, 2, 5}, run) == (5,)
    assert contributors((5,), (), {1, 2}, run) == ()


def test_without_a_list_all_valid_peers_contribute_up_to_the_size_of_one(small: Run) -> None:
    assert contributors((), (), {9, 4, 7}, small) == (4, 7)


def test_those_who_waited_longest_are_measured_and_first(small: Run) -> None:
    waited = {1: 5, 2: 3, 3: 4, 4: 6}
    assert sample({1, 2, 3, 4}, (), waited, small) == (2, 3, 1)
    assert sample({1, 2, 3, 4, 8}, (), waited, small) == (8, 2, 3)


def test_among_equals_gather_peers_are_measured_first_then_low_uids(small: Run) -> None:
    assert sample({1, 2, 3, 4, 5}, {5}, {}, small) == (5, 1, 2)


def test_everyone_is_measured_in_turn(small: Run) -> None:
    last: dict[int, int] = {}
    for window in range(3):
        for uid in sample(set(range(7)), {6}, last, small):
            last[uid] = window
    assert set(last) == set(range(7))


def test_with_few_peers_all_are_measured(small: Run) -> None:
    assert sample({3, 1}, (), {}, small) == (1, 3)
