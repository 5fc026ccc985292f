from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bittensor_core import Keypair
from rich.console import Console

from neurons.errors import NotJudged
from neurons.explain.course import Course
from neurons.explain.evidence import Bucketful, Evidence, Stored
from neurons.explain.explanation import Explanation, explain
from neurons.explain.reasons import MEANINGS, passed_checks
from neurons.explain.repairs import Repair
from neurons.explain.timeline import Moment
from neurons.leaderboard.words import number
from protocol.chain.port import Neuron
from protocol.errors import Reason
from protocol.gauntlet.receipts import Judgement, Receipt, Receipts, Resemblance, Standing, Submission
from protocol.gauntlet.scorebook import Scorebook, update
from protocol.gauntlet.selection import select
from protocol.gauntlet.verdict import Outcome, event_of, standing_of
from protocol.gauntlet.weights import weights_of
from protocol.ledger.manifest import Manifest, Refusal
from protocol.run import Run, preset_table, run_from_table
from protocol.window import deadlines

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
        manifest="cd" * 32,
        held_out_loss_before=5.0,
        held_out_loss_after=4.9,
        random_pages=(1,),
        scorebook_digest="ef" * 32,
        receipts=(peer, Receipt(**(values | {"uid": 3, "hotkey": HOTKEYS[3]}))),  # type: ignore[arg-type]
    ).signed(ALICE)
    return explain(evidence_of(receipts, incentive))


def evidence_of(receipts: Receipts, incentive: float | None) -> Evidence:
    """What is known of uid 2, whose slot another hotkey holds when `incentive` is None."""
    return Evidence(
        run=RUN,
        uid=2,
        window=7,
        head_block=100,
        block_seconds=12.0,
        hotkey=HOTKEYS[2],
        block_times={},
        neuron=neuron(2, HOTKEYS[2] if incentive is not None else HOTKEYS[3], incentive or 0.0),
        receipts=receipts,
    )


def neuron(uid: int, hotkey: str, incentive: float = 0.0, permit: bool = False, registered_at: int = 0) -> Neuron:
    return Neuron(
        uid=uid,
        hotkey=hotkey,
        coldkey=ALICE.ss58_address,
        stake=7.0,
        validator_permit=permit,
        incentive=incentive,
        dividends=0.0,
        emission=0.0,
        last_update=0,
        registered_at=registered_at,
    )


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
        "its payload of window 10 is applied if valid",
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
    assert explanation.judged is not None
    receipt = json.loads(explanation.judged.receipt.canonical())
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
    assert "on no list for window 10" in text


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


# --- the timeline -------------------------------------------------------------------------------------------

BLOCK_SECONDS = 12.0
LIMITS = deadlines(7, RUN.time)


def at(block: int, seconds: float = 0.0) -> float:
    """When a block was made, and some seconds later."""
    return 1_700_000_000.0 + BLOCK_SECONDS * block + seconds


def timed(reason: Reason | None, **objects: object) -> Evidence:
    """Uid 2 judged with `reason`, with these objects in its bucket, and all deadlines passed."""
    explanation = explained() if reason is None else rejected(reason)
    times = {
        block: at(block)
        for block in (LIMITS.start_block, LIMITS.close_block, LIMITS.seal_block, LIMITS.key_block, LIMITS.reveal_block)
    }
    found = Bucketful(
        **({"seal_holds": True, "key_opens": True, "payload_digest": SUBMISSION.payload_digest} | objects)  # type: ignore[arg-type]
    )
    return replace(
        explanation.evidence, block_seconds=BLOCK_SECONDS, head_block=10**6, block_times=times, bucketful=found
    )


def seal(seconds: float) -> Stored:
    """A seal stored so long after the snapshot."""
    return Stored("seal", 729, at(LIMITS.seal_block, seconds))


def moment(evidence: Evidence, what: str) -> Moment:
    return next(each for each in explain(evidence).timeline if each.what.startswith(what))


def said(evidence: Evidence) -> dict[str, Repair]:
    return {repair.what: repair for repair in explain(evidence).repairs}


def test_the_timeline_has_every_deadline_and_object_in_order_with_how_they_lie_to_each_other() -> None:
    evidence = timed(
        None,
        seal=seal(-30.0),
        key=Stored("key", 85, at(LIMITS.key_block, 3.0)),
        shards=(
            Stored("shard 0", 100, at(LIMITS.seal_block, -31.0)),
            Stored("shard 1", 50, at(LIMITS.seal_block, -30.5)),
        ),
        shards_named=2,
    )
    explanation = explain(evidence)
    whats = [each.what for each in explanation.timeline]
    assert whats == [
        "the window opens",
        "shards, 2 stored",
        "seal stored",
        "the window closes",
        "snapshot of all seals",
        "keys may come out",
        "key stored",
        "keys and shards are due",
        "the manifest is due",
        "receipts stored",
    ]
    assert moment(evidence, "seal").note == "30.0 s (2.5 blocks) before the snapshot"
    assert moment(evidence, "key stored").good
    assert moment(evidence, "shards").size_bytes == 150
    shown = json.loads(json.dumps(explanation.to_json()))["timeline"]
    assert [each["what"] for each in shown] == whats
    assert shown[0]["block"] == LIMITS.start_block
    assert "✓ 22:27:26  seal stored: 729 bytes, 30.0 s (2.5 blocks) before the snapshot" in explanation.text()


def test_a_late_seal_says_by_how_much_and_how_many_blocks_earlier_to_stop() -> None:
    evidence = timed(Reason.LATE_SEAL, seal=seal(16.0))
    assert moment(evidence, "seal").good is False
    assert moment(evidence, "seal").note == "16.0 s (1.3 blocks) after the snapshot"
    late = said(evidence)["late_seal"]
    assert late.words == "sealed 16.0 s too late: stop the inner steps 2 blocks earlier"
    assert late.figures == {"seconds": 16.0, "blocks": 16.0 / BLOCK_SECONDS}


def test_a_seal_that_its_bucket_dates_before_the_snapshot_and_nobody_saw_is_told_so() -> None:
    assert "no validator saw it then" in said(timed(Reason.LATE_SEAL, seal=seal(-2.0)))["seal_not_seen"].words


def test_a_late_key_says_by_how_many_blocks_and_a_missing_one_that_it_never_came() -> None:
    key = Stored("key", 85, at(LIMITS.reveal_block, 24.0))
    evidence = timed(Reason.NO_REVEAL, seal=seal(-5.0), key=key)
    assert said(evidence)["late_key"].words.startswith("the key came 2.0 blocks (24.0 s) after the deadline")
    assert moment(evidence, "key stored").good is False
    assert "the key never came" in said(timed(Reason.NO_REVEAL, seal=seal(-5.0)))["no_key"].words


@pytest.mark.parametrize(
    ("objects", "what", "note"),
    [
        ({"seal": seal(-5.0), "payload_digest": "11" * 32}, "seal", "it was replaced"),
        ({"seal": seal(-5.0), "seal_holds": False}, "seal", "it is no seal of this hotkey and window"),
        ({"key": Stored("key", 85, at(LIMITS.key_block, -60.0))}, "key stored", "before it may come out"),
        (
            {"key": Stored("key", 85, at(LIMITS.key_block, 1.0)), "key_opens": False},
            "key stored",
            "not the key that the seal",
        ),
        ({"shards": (Stored("shard 0"),), "shards_named": 1}, "1 shard", "not in its bucket now"),
        ({"trouble": "its bucket cannot be read"}, "its bucket", "cannot be read"),
    ],
)
def test_what_is_wrong_with_an_object_is_said_beside_it(objects: dict[str, object], what: str, note: str) -> None:
    found = moment(timed(None, **objects), what)
    assert note in found.note
    assert found.good is False


@pytest.mark.parametrize("stored_at", [1e300, -1e300, float("nan")])
def test_a_bucket_that_reports_a_time_that_is_none_does_no_harm(stored_at: float) -> None:
    evidence = timed(Reason.LATE_SEAL, seal=Stored("seal", 1, stored_at))
    assert "at a time that is none" in explain(evidence).text()
    json.loads(json.dumps(explain(evidence).to_json()))


def test_a_block_that_the_chain_has_forgotten_leaves_its_row_without_a_time() -> None:
    evidence = replace(timed(None, seal=seal(-5.0)), block_times={})
    assert moment(evidence, "snapshot").at is None
    assert moment(evidence, "seal").note == ""


# --- slots without a receipt ----------------------------------------------------------------------------------


def unjudged(**changes: object) -> Evidence:
    """Uid 9, of which the receipts of window 7 say nothing."""
    evidence = evidence_of(explained().evidence.receipts, 0.0)  # type: ignore[arg-type]
    values: dict[str, object] = {"uid": 9, "hotkey": HOTKEYS[3], "neuron": neuron(9, HOTKEYS[3])}
    return replace(evidence, **(values | changes))  # type: ignore[arg-type]


def manifest(*rejected: Refusal) -> Manifest:
    return Manifest(
        signer=ALICE.ss58_address,
        run_digest=RUN.digest(),
        window=7,
        previous="0" * 64,
        root="1" * 64,
        alpha=1.0,
        contributions=(),
        rejected=rejected,
        gather=(),
        reserve=(),
    ).signed(ALICE)


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        (unjudged(), "no validator has ever seen a seal of this hotkey in time"),
        (unjudged(neuron=neuron(9, HOTKEYS[3], permit=True)), "this slot is a validator's, with a stake of 7.00"),
        (unjudged(neuron=neuron(9, HOTKEYS[3], registered_at=999)), "registered in block 999, after the seals"),
        (unjudged(receipts=None, manifest=manifest()), "its manifest does not name this peer"),
    ],
)
def test_a_slot_without_a_receipt_is_told_what_it_is(evidence: Evidence, words: str) -> None:
    explanation = explain(evidence)
    assert words in explanation.text()
    shown = json.loads(json.dumps(explanation.to_json()))
    assert (shown["judged"], shown["uid"], shown["window"], shown["reason"]) == (False, 9, 7, None)
    assert "rating" not in shown


def test_a_peer_that_only_the_manifest_names_is_told_its_reason() -> None:
    refusal = Refusal(uid=9, hotkey=HOTKEYS[3], reason=Reason.WRONG_KEY, detail="\x1b[2Ja shard does not open")
    explanation = explain(unjudged(receipts=None, manifest=manifest(refusal)))
    text = explanation.text()
    assert "rejected in manifest 7: wrong_key: ?[2Ja shard does not open; its receipt is still to come" in text
    assert MEANINGS[Reason.WRONG_KEY][1] in text
    assert explanation.to_json()["manifest"] == {
        "contributed": False,
        "reason": "wrong_key",
        "detail": "\x1b[2Ja shard does not open",
    }


def test_a_slot_that_nobody_holds_or_held_is_a_sentence() -> None:
    with pytest.raises(NotJudged, match=r"uid 9 has no receipt in window 7, and nobody holds that slot now: .* 2, 3"):
        explain(unjudged(neuron=None, hotkey=None))


# --- what would have changed it -------------------------------------------------------------------------------


def judgement(place: int, gain: float, **changes: object) -> Judgement:
    values: dict[str, object] = {"gain": gain, "rank": place, "places": (place, place), "gain_error": 0.0005}
    return JUDGEMENT.model_copy(update=values | changes)


def history(*windows: dict[int, Judgement | Reason]) -> Evidence:
    """Uid 2 after these windows, each of which has a judgement or a reason for every peer; by the real scorebook."""
    book = Scorebook(run_digest=RUN.digest(), window=0)
    written: list[Receipts] = []
    for window, said_of in enumerate(windows):
        outcomes = {
            uid: Outcome(uid, HOTKEYS[uid], said if isinstance(said, Reason) else None) for uid, said in said_of.items()
        }
        judged = {uid: said for uid, said in said_of.items() if isinstance(said, Judgement)}
        after = update(book, window, [event_of(o, judged.get(uid)) for uid, o in outcomes.items()], RUN)
        gather, reserve = select(after, RUN)
        weights = weights_of(after, gather, reserve, RUN)
        receipts = tuple(
            Receipt(
                uid=uid,
                hotkey=outcome.hotkey,
                reason=outcome.reason,
                detail="",
                steps_behind=0,
                contributed=outcome.reason is None,
                submission=SUBMISSION,
                judgement=judged.get(uid),
                before=standing_of(book.of(uid, outcome.hotkey), RUN),
                after=standing_of(after.of(uid, outcome.hotkey), RUN),
                list_next="gather" if uid in gather else "reserve" if uid in reserve else "none",
                weight=weights.get(uid, 0.0),
            )
            for uid, outcome in outcomes.items()
        )
        written.append(
            Receipts(
                signer=ALICE.ss58_address,
                run_digest=RUN.digest(),
                window=window,
                manifest="cd" * 32,
                held_out_loss_before=5.0,
                held_out_loss_after=4.9,
                random_pages=(1, 2),
                scorebook_digest=after.digest(),
                receipts=receipts,
            )
        )
        book = after
    evidence = evidence_of(written[-1], 0.1)
    return replace(evidence, window=len(windows) - 1, past=tuple(written[:-1]))


BEST, SECOND = judgement(0, 0.02, unique_work=0.9), judgement(1, 0.0199, unique_work=0.8)
GOOD = {2: SECOND, 3: BEST}


def test_a_rejection_of_an_earlier_window_is_priced_in_standing_rating_and_weight() -> None:
    first = {2: BEST, 3: SECOND}
    evidence = history(*[first] * 6, {2: Reason.OVERLAP, 3: BEST}, GOOD)
    found = said(evidence)["rejections"]
    assert "without the rejection of window 6 (overlap) the standing would be 1.00 instead of 0.60" in found.words
    real = evidence.receipt
    assert real is not None
    clean = history(*[first] * 6, {3: BEST}, GOOD).receipt
    assert clean is not None
    assert found.figures["standing"] == 1.0
    assert found.figures["rating"] == pytest.approx(clean.after.rating)
    assert found.figures["weight"] >= real.weight > 0
    assert f"instead of {number(real.after.rating)}" in found.words


def test_windows_in_a_row_with_one_reason_are_named_as_one() -> None:
    bad = {2: Reason.NO_REVEAL, 3: BEST}
    words = said(history(GOOD, bad, bad, {2: Reason.OVERLAP, 3: BEST}))["rejections"].words
    assert "the rejections of windows 1-2 (no_reveal), 3 (overlap)" in words


def test_a_peer_that_lost_nothing_is_told_so() -> None:
    first = {2: BEST, 3: SECOND}
    assert explain(history(*[first] * 8)).repairs == ()
    assert "nothing cost this peer anything" in explain(history(*[first] * 8)).text()


def test_the_next_place_is_measured_against_the_noise() -> None:
    inside = said(history(GOOD, GOOD))["place"]
    assert inside.words.startswith(
        "measured gain 0.010 % below that of uid 3 on place 1, inside the noise of ± 0.071 %"
    )
    assert inside.figures["next_uid"] == 3.0
    far = {2: judgement(1, 0.01), 3: judgement(0, 0.02)}
    assert "outside the noise" in said(history(far, far))["place"].words


def test_the_first_place_is_priced_by_playing_the_window_again() -> None:
    evidence = history(*[GOOD] * 4)
    found = said(evidence)["first_place"]
    assert evidence.receipt is not None
    assert found.figures["rating"] > evidence.receipt.after.rating


def test_unique_work_below_its_threshold_says_by_how_much_and_for_how_long() -> None:
    idle = {2: judgement(1, 0.01, unique_work=-0.5), 3: BEST}
    lasting = said(history(*[idle] * 3))["unique_work"]
    assert "below the threshold of" in lasting.words
    assert "more window" not in lasting.words  # with windows like these it never ends
    mending = history(*[idle] * 3, GOOD)
    words = said(mending)["unique_work"].words
    assert "with windows like this one it takes" in words


def test_whose_work_it_repeats_is_named_and_priced() -> None:
    twin = judgement(1, 0.0199, unique_work=0.8, resembles=Resemblance(uid=3, correlation=0.93))
    evidence = history(*[GOOD] * 5, {2: twin, 3: BEST})
    assert "does page for page what that of uid 3 does (correlation 0.93)" in said(evidence)["resembles"].words
    assert "what uid 3 does, correlation 0.93: counted as −1" in explain(evidence).text()


def test_a_rating_below_zero_says_how_far_it_has_to_rise() -> None:
    evidence = history({2: judgement(1, 0.001), 3: judgement(0, 0.02)})
    assert evidence.receipt is not None
    rating = evidence.receipt.after.rating
    assert rating < 0
    assert said(evidence)["rating"].figures["short"] == -rating
    assert f"must rise by {number(-rating)} before anything is paid" in said(evidence)["rating"].words


def test_a_full_gather_list_says_what_its_last_member_has() -> None:
    run = RUN.model_copy(update={"gauntlet": RUN.gauntlet.model_copy(update={"gather_size": 1})})
    evidence = history(*[GOOD] * 4)
    assert evidence.receipts is not None
    course = Course((*evidence.past, evidence.receipts), run, 2, HOTKEYS[2])
    last = course.last_of("gather")
    assert last is not None
    assert last.uid == 3
    assert course.real.on_list == "reserve"


def test_receipts_that_do_not_give_their_own_scores_say_nothing_about_what_would_have_been() -> None:
    evidence = history(*[GOOD] * 3)
    assert evidence.receipts is not None
    lied = tuple(r.model_copy(update={"weight": 0.9}) for r in evidence.receipts.receipts)
    found = said(replace(evidence, receipts=evidence.receipts.model_copy(update={"receipts": lied})))
    assert set(found) == {"place", "not_faithful"}


def test_a_history_that_begins_in_the_middle_of_a_run_gives_the_same_answers() -> None:
    whole = history(*[GOOD] * 4, {2: Reason.OVERLAP, 3: BEST}, GOOD)
    assert said(replace(whole, past=whole.past[3:])) == said(whole)
