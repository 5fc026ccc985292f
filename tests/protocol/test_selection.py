"""Lists, contributors, and who is measured."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest
from bittensor_core import Keypair
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.gauntlet.scorebook import PeerRecord, Scorebook
from protocol.gauntlet.selection import contributors, sample, select
from protocol.ledger.manifest import Seat
from protocol.run import Run

HOTKEY, OTHER = (Keypair.create_from_uri(uri).ss58_address for uri in ("//Alice", "//Bob"))


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
    [{"mu": 3.0}, {"mu": 1.0}, {"absent": 4}, {"unique_work": 0.09, "unique_work_error": 0.1}],
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
    for fault in ({"absent": 4}, {"unique_work": 0.09, "unique_work_error": 0.1}):
        assert select(book(record(0, 40, signs=(1, 1), **fault)), small) == ((), ())


def test_an_empty_book_lists_nobody(small: Run) -> None:
    assert select(book(), small) == ((), ())


def seated(*uids: int, hotkey: str = HOTKEY) -> tuple[Seat, ...]:
    return tuple(Seat(uid=uid, hotkey=hotkey) for uid in uids)


def test_reserves_step_in_for_missing_gather_peers_in_their_order(run: Run) -> None:
    gather, reserve = seated(5, 1, 3), seated(9, 2, 7)
    assert contributors(gather, reserve, seated(1, 3, 5, 2, 7, 9), run) == (1, 3, 5)
    assert contributors(gather, reserve, seated(1, 3, 2, 7), run) == (1, 2, 3)
    assert contributors(gather, reserve, seated(1, 2, 7), run) == (1, 2, 7)
    assert contributors(gather, reserve, (), run) == ()


def test_a_stranger_does_not_contribute_once_there_is_a_list(run: Run) -> None:
    assert contributors(seated(5), (), seated(1, 2, 5), run) == (5,)
    assert contributors(seated(5), (), seated(1, 2), run) == ()


def test_the_next_holder_of_a_slot_does_not_stand_in_for_the_last_one(run: Run) -> None:
    newcomer = seated(5, 2, hotkey=OTHER)
    assert contributors(seated(5, 1), seated(2, 7), (*newcomer, *seated(1, 7)), run) == (1, 7)


def test_without_a_list_all_valid_peers_contribute_up_to_the_size_of_one(small: Run) -> None:
    assert contributors((), (), seated(9, 4, 7), small) == (4, 7)


HASH = b"\x01" * 32


def others(window: int) -> bytes:
    """Another block hash for each window."""
    return blake3(window.to_bytes(4, "little")).digest()


def play(
    peers: list[PeerRecord], gather: Collection[int], run: Run, windows: int, manages: int
) -> list[dict[int, int]]:
    """Measure `manages` of the sample in each window; for each window, when each uid was last measured after it."""
    last, found = {r.uid: r.last_measured for r in peers}, []
    for window in range(windows):
        records = [r.model_copy(update={"last_measured": last[r.uid]}) for r in peers]
        for uid in sample(records, gather, others(window), run)[:manages]:
            last[uid] = window
        found.append(dict(last))
    return found


def test_every_second_turn_is_the_gather_lists_and_those_who_waited_longest_come_first(
    make_run: Callable[..., Run],
) -> None:
    peers = [record(uid, last_measured=waited) for uid, waited in enumerate((5, 3, 4, 6, 3, 9))]
    drawn = sample(peers, (0, 1, 2), HASH, make_run(gauntlet__sample=6))
    assert drawn[::2] == (1, 2, 0)
    assert set(drawn[1::2]) == {3, 4, 5}


def test_newcomers_have_half_of_the_turns_that_are_not_the_lists(make_run: Callable[..., Run]) -> None:
    peers = [record(uid, last_measured=7 if uid < 20 else -1) for uid in range(30)]
    drawn = sample(peers, range(10), HASH, make_run(gauntlet__sample=16))
    assert drawn[0] >= 20  # it has waited longer than the first of the list
    assert sum(uid < 10 for uid in drawn) == 8
    assert sum(uid >= 20 for uid in drawn) >= 4


def test_a_hotkey_that_took_over_a_slot_is_a_newcomer(small: Run) -> None:
    old = [record(uid, last_measured=uid) for uid in range(6)]
    assert sample([*old, PeerRecord(uid=9, hotkey=HOTKEY)], (0, 1), HASH, small)[0] == 9


def test_whose_first_order_gain_promised_too_much_is_measured_again_after_the_newcomers(small: Run) -> None:
    old = [record(uid, last_measured=3, overstates=uid == 4) for uid in range(6)]
    for window in range(20):
        assert sample(old, (), others(window), small)[0] == 4
        assert sample([*old, record(9)], (), others(window), small)[0] == 9


def test_the_hash_draws_a_band_of_ratings(make_run: Callable[..., Run]) -> None:
    """Forty peers, four bands, ten turns: exactly one band, and each band for some hash."""
    run = make_run(gauntlet__sample=10)
    peers = [record(uid, 25.0 + uid % 40, last_measured=5) for uid in range(40)]
    drawn = {tuple(sorted(sample(peers, (), others(window), run))) for window in range(40)}
    assert drawn == {tuple(range(first, first + 10)) for first in (0, 10, 20, 30)}


def test_everybody_draws_alike_in_whatever_order_the_records_come(small: Run) -> None:
    peers = [record(uid, 25.0 + uid, last_measured=uid % 3) for uid in range(12)]
    assert sample(peers, (3, 4), HASH, small) == sample(peers[::-1], {4, 3}, HASH, small)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    listed=st.integers(0, 12),
    new=st.integers(0, 12),
    veterans=st.integers(0, 12),
    size=st.integers(1, 24),
    manages=st.integers(1, 24),
)
def test_each_has_been_measured_after_as_many_windows_as_promised(
    make_run: Callable[..., Run], listed: int, new: int, veterans: int, size: int, manages: int
) -> None:
    """And a sample has no uid twice, leaves no turn unused, and holds no stranger."""
    run = make_run(gauntlet__sample=size)
    kinds = [0] * listed + [-1] * new + [0] * veterans
    peers = [record(uid, 25.0 + uid * 7 % 11, last_measured=waited) for uid, waited in enumerate(kinds)]
    drawn = sample(peers, range(listed), HASH, run)
    assert len(set(drawn)) == len(drawn) == min(size, len(peers))
    assert set(drawn) <= set(range(len(peers)))
    turns = min(size, manages) // 2
    if not turns:
        return
    bound = -(-listed // turns)
    after = play(peers, range(listed), run, 3 * bound + new, manages)
    for window in range(bound, len(after)):
        assert all(after[window][uid] > window - bound for uid in range(listed))
    newcomers = range(listed, listed + new)
    if new:
        settled = -(-new // -(-turns // 2))
        assert all(after[settled - 1][uid] >= 0 for uid in newcomers)


def test_a_machine_that_measures_one_peer_a_window_reaches_everybody(make_run: Callable[..., Run]) -> None:
    peers = [record(uid, 25.0 + uid, last_measured=-1 if uid % 2 else 0) for uid in range(12)]
    run = make_run(gauntlet__sample=20)
    last = play(peers, (0, 1, 2), run, 120, 1)
    assert all(window > 60 for window in last[-1].values())


def test_with_few_peers_all_are_measured(small: Run) -> None:
    assert set(sample([record(3), record(1)], (), HASH, small)) == {1, 3}
    assert sample([], (1,), HASH, small) == ()
