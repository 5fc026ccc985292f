"""Closing a window: receipts carry every number behind a score, and a broken payload breaks only itself."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from bittensor_core import Keypair

from protocol.errors import DocumentError, Reason
from protocol.gauntlet.evaluation import UniqueWork
from protocol.gauntlet.receipts import Receipts
from protocol.gauntlet.scorebook import Event, Scorebook, update
from protocol.gauntlet.verdict import Findings, Outcome, Verdict, close_window, unique_work_of_all
from protocol.run import Run

HOTKEYS = [Keypair.create_from_uri(f"//peer-{i}").ss58_address for i in range(5)]
BEFORE = np.array([5.0, 6.0, 7.0])


def findings(drop: float, measured: bool = True, work: float | None = None) -> Findings:
    """A payload that lowers every loss by `drop` nats."""
    return Findings(
        shared=np.full(3, drop / 6.0),
        before=BEFORE,
        after=BEFORE - drop if measured else None,
        own_before=BEFORE if measured else None,
        own_after=BEFORE - 2 * drop if measured else None,
        unique_work=None if work is None else UniqueWork(work, 0.4),
        row=np.full(3, drop / 6.0),
    )


OUTCOMES = [
    Outcome(2, HOTKEYS[2], Reason.BAD_LEVEL, "a zero carries a sign " * 30),
    Outcome(0, HOTKEYS[0], None),
    Outcome(1, HOTKEYS[1], None),
    Outcome(3, HOTKEYS[3], Reason.STALE_BASE, "old", steps_behind=2),
    Outcome(4, HOTKEYS[4], None),
]
FOUND = {0: findings(0.5, work=0.9), 1: findings(0.1, work=-0.2), 4: findings(0.3, measured=False)}


@pytest.fixture
def book(run: Run) -> Scorebook:
    return Scorebook(run_digest=run.digest(), window=6)


@pytest.fixture
def verdict(book: Scorebook, run: Run) -> Verdict:
    return close_window(book, 6, OUTCOMES, FOUND, {0, 1}, run)


def test_there_is_one_receipt_a_peer_in_ascending_uid(verdict: Verdict) -> None:
    assert [(r.uid, r.hotkey, r.reason) for r in verdict.receipts] == [
        (0, HOTKEYS[0], None),
        (1, HOTKEYS[1], None),
        (2, HOTKEYS[2], Reason.BAD_LEVEL),
        (3, HOTKEYS[3], Reason.STALE_BASE),
        (4, HOTKEYS[4], None),
    ]
    assert [r.contributed for r in verdict.receipts] == [True, True, False, False, False]
    assert [r.steps_behind for r in verdict.receipts] == [0, 0, 0, 2, 0]
    assert len(verdict.receipts[2].detail) == 200


def test_a_receipt_shows_the_numbers_that_went_into_the_score(verdict: Verdict) -> None:
    judged = verdict.receipts[0].judgement
    assert judged is not None
    assert (judged.gain, judged.gain_error) == (pytest.approx(0.5 / 6), pytest.approx(0.0))
    assert (judged.loss_before, judged.loss_after) == (6.0, 5.5)
    assert (judged.own_loss_before, judged.own_loss_after) == (6.0, 5.0)
    assert (judged.rank, judged.unique_work) == (0, 0.9)
    estimated = verdict.receipts[4].judgement
    assert estimated is not None
    assert (estimated.loss_after, estimated.own_loss_before, estimated.unique_work) == (None, None, None)
    assert estimated.gain == pytest.approx(0.05)
    assert estimated.first_order_gain == pytest.approx(0.05)
    assert verdict.receipts[2].judgement is None


def test_anyone_can_replay_the_book_from_the_receipts(verdict: Verdict, book: Scorebook, run: Run) -> None:
    """Goal 3: every payment can be explained and re-computed."""
    events = [
        Event(
            uid=r.uid,
            hotkey=r.hotkey,
            reason=r.reason,
            steps_behind=r.steps_behind,
            gain=r.judgement.gain if r.judgement else None,
            gain_error=r.judgement.gain_error if r.judgement else 0.0,
            places=r.judgement.places if r.judgement else (),
            overstates=bool(r.judgement and r.judgement.overstates),
            measured=r.judgement is not None and r.judgement.own_loss_after is not None,
            unique_work=(-1.0 if r.judgement.resembles else r.judgement.unique_work) if r.judgement else None,
            unique_work_error=(r.judgement.unique_work_error or 0.0) if r.judgement else 0.0,
        )
        for r in verdict.receipts
    ]
    assert update(book, 6, events, run) == verdict.book


def test_standing_before_and_after_is_that_of_the_books(verdict: Verdict, book: Scorebook, run: Run) -> None:
    for receipt in verdict.receipts:
        for standing, source in ((receipt.before, book), (receipt.after, verdict.book)):
            record = source.of(receipt.uid, receipt.hotkey)
            assert (standing.mu, standing.sigma, standing.rating) == (record.mu, record.sigma, record.rating)
            assert standing.final == record.final(run)


def test_lists_and_weights_on_receipts_are_those_of_the_verdict(verdict: Verdict) -> None:
    assert {r.uid: r.weight for r in verdict.receipts if r.weight} == verdict.weights
    for receipt in verdict.receipts:
        assert (receipt.list_next == "gather") == (receipt.uid in verdict.gather)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_one_payload_that_breaks_the_model_changes_no_rank_above_it(book: Scorebook, run: Run, broken: float) -> None:
    bad = Findings(
        np.full(3, broken), BEFORE, np.full(3, abs(broken)), BEFORE, np.full(3, abs(broken)), None, np.full(3, broken)
    )
    found = FOUND | {4: bad}
    verdict = close_window(book, 6, OUTCOMES, found, {0, 1}, run)
    ranks = {r.uid: r.judgement.rank for r in verdict.receipts if r.judgement}
    assert ranks == {0: 0, 1: 1, 4: 2}


def test_a_model_that_is_broken_itself_breaks_no_validator(book: Scorebook, run: Run) -> None:
    nothing = np.full(3, float("nan"))
    found = {
        uid: Findings(nothing, nothing, nothing if uid else None, nothing, nothing, None, nothing) for uid in (0, 1)
    }
    verdict = close_window(book, 6, OUTCOMES, found, set(), run)
    assert [r.judgement.gain for r in verdict.receipts if r.judgement] == [0.0, 0.0]


def test_nothing_found_closes_too(book: Scorebook, run: Run) -> None:
    verdict = close_window(book, 6, [], {}, set(), run)
    assert (verdict.receipts, verdict.weights, verdict.book.window) == ((), {}, 7)


def test_unique_work_is_computed_against_the_columns_of_the_owner() -> None:
    shared = {0: np.array([0.1, 0.11, 0.09]), 1: np.array([0.1, 0.12, 0.1])}
    own = {
        0: {0: np.array([0.5, 0.52]), 1: np.array([0.1, 0.1])},
        1: {0: np.array([0.1, 0.1]), 1: np.array([0.1, 0.1])},
    }
    found = unique_work_of_all(own, shared)
    assert found[0] is not None
    assert found[0].value == 1.0
    assert found[1] is not None
    assert found[1].value < 1.0


@pytest.fixture
def receipts(verdict: Verdict, run: Run, alice: Keypair) -> Receipts:
    return Receipts(
        signer=alice.ss58_address,
        run_digest=run.digest(),
        window=6,
        manifest="cd" * 32,
        held_out_loss_before=6.0,
        held_out_loss_after=5.9,
        random_pages=(3, 1, 2),
        scorebook_digest=verdict.book.digest(),
        receipts=verdict.receipts,
    ).signed(alice)


def test_receipts_survive_a_journey_to_the_bit(receipts: Receipts) -> None:
    arrived = Receipts.parse(receipts.canonical())
    arrived.verify()
    assert arrived == receipts
    assert arrived.of(3) == receipts.receipts[3]
    assert arrived.of(99) is None


@pytest.mark.parametrize(
    "change", [{"weight": 0.9}, {"contributed": True}, {"reason": "no_seal"}, {"list_next": "gather"}]
)
def test_every_number_of_a_receipt_is_signed(receipts: Receipts, change: dict[str, Any]) -> None:
    table = receipts.model_dump(mode="json")
    table["receipts"][3] |= change
    with pytest.raises(DocumentError, match="does not verify"):
        Receipts.parse(json.dumps(table).encode()).verify()


@pytest.mark.parametrize("change", [{"list_next": "best"}, {"weight": None}, {"judgement": {}}, {"mood": 1}])
def test_a_malformed_receipt_is_refused(receipts: Receipts, change: dict[str, Any]) -> None:
    table = receipts.model_dump(mode="json")
    table["receipts"][0] |= change
    with pytest.raises(DocumentError, match=r"receipts\.0"):
        Receipts.parse(json.dumps(table).encode())


def test_the_order_in_which_peers_were_checked_and_judged_does_not_count(
    book: Scorebook, run: Run, verdict: Verdict
) -> None:
    assert close_window(book, 6, OUTCOMES[::-1], dict(reversed(FOUND.items())), {0, 1}, run) == verdict
