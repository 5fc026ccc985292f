from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bittensor_core import Keypair
from rich.console import Console

from neurons.errors import NotJudged
from neurons.explain import MEANINGS, Explanation, explain, passed_checks
from protocol.errors import Reason
from protocol.gauntlet.receipts import Judgement, Receipt, Receipts, Standing, Submission
from protocol.run import Run, preset_table, run_from_table

ALICE = Keypair.create_from_uri("//Alice")
HOTKEYS = {uid: Keypair.create_from_uri(f"//miner{uid}").ss58_address for uid in (2, 3)}


def make_run() -> Run:
    table = preset_table("demo")
    table["genesis_root"] = "ab" * 32
    table["dataset"]["index_digest"] = "cd" * 32
    return run_from_table(table)


RUN = make_run()

SUBMISSION = Submission(size_bytes=20142, payload_digest="3fa9" * 16, inner_steps=10, tokens=10240, stored_at=0.0)
JUDGEMENT = Judgement(
    gain=0.01234,
    gain_error=0.001,
    first_order_gain=0.0121,
    rank=0,
    places=(0, 1, 0),
    overstates=False,
    loss_before=4.8012,
    loss_after=4.7423,
    own_loss_before=4.9,
    own_loss_after=4.802,
    unique_work=0.62,
    unique_work_error=0.4,
    resembles=None,
)
_RECORD: dict[str, Any] = {"judged": 9, "signs": (1, 1), "absent": 0, "last_measured": 6, "overstates": False}
BEFORE = Standing(
    rating=12.0,
    mu=27.0,
    sigma=5.0,
    unique_work=0.4,
    unique_work_error=0.1,
    sync=1.0,
    standing=0.9,
    final=4.32,
    **_RECORD,
)
AFTER = Standing(
    rating=13.0,
    mu=27.4,
    sigma=4.8,
    unique_work=0.45,
    unique_work_error=0.1,
    sync=1.0,
    standing=1.0,
    final=5.85,
    **_RECORD,
)


def explained(incentive: float | None = 0.25, **changes: object) -> Explanation:
    """The explanation of uid 2, a flawless peer but for `changes`; uid 3 draws with it."""
    values: dict[str, object] = {
        "uid": 2,
        "hotkey": HOTKEYS[2],
        "reason": None,
        "detail": "",
        "steps_behind": 0,
        "contributed": True,
        "submission": SUBMISSION,
        "judgement": JUDGEMENT,
        "before": BEFORE,
        "after": AFTER,
        "list_next": "gather",
        "weight": 0.3125,
    }
    peer = Receipt(**(values | changes))  # type: ignore[arg-type]
    receipts = Receipts(
        signer=ALICE.ss58_address,
        run_digest=RUN.digest(),
        window=7,
        held_out_loss_before=5.0,
        held_out_loss_after=4.9,
        random_pages=(1,),
        scorebook_digest="ef" * 32,
        receipts=(peer, Receipt(**(values | {"uid": 3, "hotkey": HOTKEYS[3]}))),  # type: ignore[arg-type]
    ).signed(ALICE)
    return explain(receipts, 2, RUN, incentive)


def rejected(reason: Reason, **changes: object) -> Explanation:
    after = AFTER.model_copy(update={"standing": 0.45, "final": 2.6325})
    return explained(**({"reason": reason, "contributed": False, "judgement": None, "after": after} | changes))  # type: ignore[arg-type]


def test_the_words_of_a_good_window_hold_every_number() -> None:
    text = explained().text()
    for fact in (
        "uid 2",
        "in window 7 of demo",
        "20,142 bytes, payload 3fa93fa93fa93fa9…, stored 1970-01-01 00:00:00 UTC",
        "10 inner steps on 10,240 tokens",
        "✓ all 19 passed",
        "in manifest 7",
        "+1.234 % of the loss on random pages, ± 0.100 % (measured): place 1 of 2, a draw with 1 other",
        "4.8012 → 4.7423 nats",
        "first-order estimate +1.210 %",
        "4.9000 → 4.8020 nats: +2.000 %, on random pages +1.234 %",
        "0.620 in [−1, 1]; average 0.400 → 0.450",
        "12.00 → 13.00  = μ 27.40 − 3 × σ 4.80",
        "0.90 → 1.00: a clean window gives 0.10 back",
        "13.000 × 0.450 × 1.000 × 1.000 = 5.850",
        "its payload of window 9 is applied if valid",
        "weight 31.25 %",
        "incentive 25.00 %",
    ):
        assert fact in text


def test_the_json_holds_the_scores_by_the_leaderboards_names_and_the_whole_receipt() -> None:
    explanation = explained()
    shown = json.loads(json.dumps(explanation.to_json()))
    expected = AFTER.model_dump() | {"weight": 0.3125, "incentive": 0.25, "uid": 2, "hotkey": HOTKEYS[2], "window": 7}
    for name in ("mu", "sigma", *_RECORD):
        del expected[name]
    assert {name: shown[name] for name in expected} == expected
    receipt = json.loads(explanation.receipt.canonical())
    assert {name: shown[name] for name in receipt} == receipt


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_named_explained_and_has_a_remedy(reason: Reason) -> None:
    explanation = rejected(reason, detail="what the validator saw")
    text = explanation.text()
    meaning, remedy = MEANINGS[reason]
    assert f"✕ {reason}: what the validator saw" in text
    assert meaning in text
    assert f"→ {remedy}" in text
    assert explanation.to_json()["reason"] == reason.value


def test_only_checks_that_surely_came_before_the_failed_one_are_called_passed() -> None:
    assert passed_checks(None) == tuple(Reason)
    assert passed_checks(Reason.NO_SEAL) == ()
    assert passed_checks(Reason.WRONG_RUN) == (Reason.NO_SEAL, Reason.LATE_SEAL, Reason.BAD_SIGNATURE)
    assert Reason.NO_REVEAL not in passed_checks(Reason.SHARD_SIZE)  # a seal that declares wrong sizes
    assert passed_checks(Reason.UNREACHABLE) == ()
    for reason in Reason:
        assert reason not in passed_checks(reason)


def test_the_penalty_is_the_one_the_scorebook_applies() -> None:
    assert "× 0.75 for a missing contribution" in rejected(Reason.NO_REVEAL).text()
    assert "× 0.50 for a rejected contribution" in rejected(Reason.WRONG_KEY).text()
    lower = AFTER.model_copy(update={"standing": 0.675, "final": 3.94875})
    assert "× 0.75, its latest gains are mostly negative" in explained(after=lower).text()
    same = BEFORE.model_copy(update={"standing": 1.0, "final": 4.8})
    assert "1.00 → 1.00: no penalty" in explained(before=same, after=same).text()


def test_a_negative_rating_shows_as_nothing_and_not_as_a_product_of_negatives() -> None:
    after = AFTER.model_copy(update={"rating": -2.5, "unique_work": -0.5, "final": 0.0})
    assert "max(0, −2.500) × max(0, −0.500) × 1.000 × 1.000 = 0.000" in explained(after=after).text()


def test_a_final_score_of_zero_against_the_product_is_explained_by_its_rule() -> None:
    doubtful = AFTER.model_copy(update={"unique_work": 0.05, "final": 0.0})
    assert (
        "but 0: unique work is not evident: it would have to be 0.250, beyond what chance gives"
        in explained(after=doubtful).text()
    )
    silent = AFTER.model_copy(update={"final": 0.0})
    text = rejected(Reason.NO_SEAL, after=silent, submission=None).text()
    assert "but 0: inactive, with no seal for 4 windows or more" in text
    assert "unique work in doubt" not in text


def test_a_final_score_that_is_not_the_product_is_called_out() -> None:
    wrong = AFTER.model_copy(update={"final": 99.0})
    assert "the receipt says 99.000, which this product is not" in explained(after=wrong).text()


def test_a_valid_payload_that_was_not_applied_is_told_why() -> None:
    text = explained(contributed=False, list_next="none").text()
    assert "not on the gather list" in text
    assert "on no list for window 9" in text


def test_a_peer_without_seal_judgement_or_slot_is_explained_too() -> None:
    text = rejected(Reason.NO_SEAL, submission=None, incentive=None).text()
    assert "nothing that a validator could read as a seal" in text
    assert "not judged" in text
    assert "average stays 0.450" in text
    assert "incentive not known" in text


def test_a_first_order_gain_is_called_one() -> None:
    judgement = JUDGEMENT.model_copy(
        update={"loss_after": None, "own_loss_before": None, "own_loss_after": None, "unique_work": None}
    )
    text = explained(judgement=judgement).text()
    assert "(first-order)" in text
    assert "own pages not evaluated" in text


def test_how_far_behind_a_stale_peer_was_is_said() -> None:
    assert "2 windows behind" in rejected(Reason.STALE_BASE, steps_behind=2).text()


@pytest.mark.parametrize("stored_at", [1e300, -1e300])
def test_an_impossible_time_of_a_bucket_does_no_harm(stored_at: float) -> None:
    submission = SUBMISSION.model_copy(update={"stored_at": stored_at})
    assert "stored at a time that is none" in explained(submission=submission).text()


def test_nothing_in_a_receipt_can_command_the_terminal() -> None:
    explanation = rejected(Reason.WRONG_KEY, detail="\x1b[2J[bold]\u202e")
    assert "\x1b" not in explanation.text()
    assert "?[2J[bold]?" in explanation.text()


@pytest.mark.parametrize("width", [80, 140])
def test_on_a_screen_it_says_the_same_and_keeps_the_width(width: int) -> None:
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=width, file=nowhere, force_terminal=False)
        console.print(rejected(Reason.OVERLAP))
        text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= width
    for fact in ("uid 2", "✕ overlap", "13.000 × 0.450 × 1.000 × 0.450", "incentive 25.00 %"):
        assert fact in text


def test_a_peer_without_a_receipt_is_a_sentence() -> None:
    with pytest.raises(NotJudged, match="uid 9 has no receipt in window 7: judged were 2, 3"):
        explain(explained().receipts, 9, RUN, None)
