"""From scores to shares: they sum to one, and only earners are paid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bittensor_core import Keypair
from hypothesis import given
from hypothesis import strategies as st

from protocol.gauntlet.scorebook import PeerRecord, Scorebook
from protocol.gauntlet.selection import select
from protocol.gauntlet.weights import weights_of
from protocol.run import Run

HOTKEY = Keypair.create_from_uri("//Alice").ss58_address


def book(*mus: float) -> Scorebook:
    """Peers 0, 1, … with rating μ − 3 and final score half of that, where positive."""
    records = [PeerRecord(uid=i, hotkey=HOTKEY, mu=mu, sigma=1.0, unique_work=0.5) for i, mu in enumerate(mus)]
    return Scorebook(run_digest="00" * 32, window=1, peers=tuple(records))


def test_gather_peers_share_a_ramp_and_reserves_halve_the_rest(run: Run) -> None:
    weights = weights_of(book(40, 30, 20, 10, 9), (0, 1, 2), (3, 4), run)
    ramp = [0.75 * value / 4.5 for value in (2.0, 1.5, 1.0)]
    assert weights == pytest.approx(dict(enumerate([*ramp, 0.25 * 2 / 3, 0.25 / 3])))


def test_the_best_gather_peer_gets_so_many_times_the_worst(make_run: Callable[..., Run]) -> None:
    for ratio in (1.0, 2.0, 7.5):
        run = make_run(weights__best_to_worst=ratio)
        weights = weights_of(book(*range(50, 10, -5)), tuple(range(8)), (), run)
        assert weights[0] / weights[7] == pytest.approx(ratio)
        steps = [weights[i] - weights[i + 1] for i in range(7)]
        assert steps == pytest.approx([steps[0]] * 7)


def test_without_reserves_the_gather_peers_share_everything(run: Run) -> None:
    assert weights_of(book(40, 30), (0, 1), (), run) == pytest.approx({0: 2 / 3, 1: 1 / 3})
    assert weights_of(book(40), (0,), (), run) == {0: 1.0}


def test_without_earners_on_the_gather_list_the_reserves_share_everything(run: Run) -> None:
    assert weights_of(book(1, 30, 20), (0,), (1, 2), run) == pytest.approx({1: 2 / 3, 2: 1 / 3})


def test_a_listed_peer_that_earned_nothing_is_passed_over(run: Run) -> None:
    assert weights_of(book(40, 3, 20), (0, 1, 2), (), run) == pytest.approx({0: 2 / 3, 2: 1 / 3})


def test_nobody_is_paid_when_nobody_has_earned(make_run: Callable[..., Run]) -> None:
    for rule in ("tiers", "power"):
        run = make_run(weights__rule=rule, weights__burn_share=0.5)
        assert weights_of(book(), (), (), run) == {}
        assert weights_of(book(3, 1, -50), (0, 1, 2), (), run) == {}


def test_who_is_on_no_list_gets_no_tier(run: Run) -> None:
    assert set(weights_of(book(40, 30, 20), (0,), (), run)) == {0}


def test_power_pays_the_square_of_the_score(make_run: Callable[..., Run]) -> None:
    weights = weights_of(book(43, 23, 3, 13), (), (), make_run(weights__rule="power"))
    assert weights == pytest.approx({0: 16 / 21, 1: 4 / 21, 3: 1 / 21})


def test_the_burn_share_comes_off_the_top(make_run: Callable[..., Run]) -> None:
    run = make_run(weights__burn_share=0.5, weights__burn_uid=9)
    assert weights_of(book(40, 30), (0, 1), (), run) == pytest.approx({0: 1 / 3, 1: 1 / 6, 9: 0.5})
    own = make_run(weights__burn_share=0.25, weights__burn_uid=0)
    assert weights_of(book(40), (0,), (), own) == {0: 1.0}


@given(
    st.lists(st.floats(-20, 60), max_size=40),
    st.sampled_from(["tiers", "power"]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.75, 1.0]),
)
def test_weights_sum_to_one_and_none_is_negative(
    make_run: Callable[..., Run], mus: list[float], rule: str, burn: float, gather_share: float
) -> None:
    changes: dict[str, Any] = {"weights__rule": rule, "weights__burn_share": burn, "weights__burn_uid": 77}
    run = make_run(**changes, weights__gather_share=gather_share)
    full = book(*mus)
    weights = weights_of(full, *select(full, run), run)
    assert not weights or sum(weights.values()) == pytest.approx(1.0)
    assert all(share >= 0 for share in weights.values())
    assert bool(weights) == any(record.final(run) > 0 for record in full.peers)
    assert all(uid == 77 or full.peers[uid].rating > 0 for uid in weights)
