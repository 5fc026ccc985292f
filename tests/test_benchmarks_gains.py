"""The benchmark of gains: its peers, its detectors and its sums. No figure of a trained model is asserted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gains
from benchmarks.gains import Bench, Results, quick, scales
from benchmarks.gains_copies import (
    BOTH,
    COSINE,
    HONEST,
    HONEST_LAST,
    OVERLAP,
    PEAK,
    RING,
    ROBBED,
    ROWS,
    Likeness,
    Tally,
    look_for,
)
from benchmarks.gains_peers import Cheats, Codec, Copies, Pages, Traits
from neurons.training.model import sequence_losses
from protocol.sparseloco.aggregate import Trial

SCALE = quick(scales()[0])
PEERS = SCALE.peers


def _text(seed: int = 0) -> np.ndarray:
    shape = SCALE.run().dataset
    draw = np.random.default_rng(seed)
    return draw.integers(512, size=(300, shape.page_sequences, shape.sequence_tokens))


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(SCALE.run())


def _delta(codec: Codec, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(codec.layout.size, dtype=np.float32) * np.float32(1e-2)


# --- peers


def test_slots_have_pages_of_their_own_and_random_ones_are_nobodys() -> None:
    pages = Pages(SCALE.run(), _text(), window=3)
    own = [{page.tobytes() for page in pages.own(slot)} for slot in range(3)]
    assert all(len(pages_of) == pages.run.pages_per_window for pages_of in own)
    assert not own[0] & own[1]
    assert not own[1] & own[2]
    assert {page.tobytes() for page in pages.scored(1)} <= own[1]
    assert not {page.tobytes() for page in [*pages.random(), *pages.pool()]} & set().union(*own)
    assert len(pages.pool()) == pages.run.pages_per_window
    assert [batch.shape for batch in pages.batches(pages.own(0))] == [(2, 32)] * 3
    assert not np.array_equal(Pages(pages.run, pages.text, 4).own(0), pages.own(0))


def test_altered_payloads_keep_the_rest_in_place(codec: Codec) -> None:
    update = codec.send(_delta(codec, 1))
    draw = np.random.default_rng(0)
    likeness = Likeness.of([update] + [codec.altered(update, 0.3, draw, moved) for moved in (False, True)])
    assert likeness.overlap[0, 0] == 1
    assert likeness.overlap[0, 1] == 1, "what is left of it lies where it lay"
    assert likeness.overlap[0, 2] == pytest.approx(0.7, abs=0.05)
    assert likeness.cosine[0, 1] == pytest.approx(0.7**0.5, abs=0.03)
    assert likeness.cosine[0, 2] == pytest.approx(0.7, abs=0.03)


def test_halves_of_one_computation_have_no_position_in_common(codec: Codec) -> None:
    copies = Copies(codec, 2).share([_delta(codec, 1), _delta(codec, 2)])
    half = next(copy for copy in copies if copy.other_half is not None)
    assert half.other_half is not None
    assert not np.isin(half.update.indices[half.update.values != 0], half.other_half.indices).any()
    near = Likeness.of([copy.update for copy in copies if copy.traits.original == 0])
    assert near.cosine[0, 1] > near.cosine[0, 2], "less noise, more in common"


def test_cheats_send_what_their_names_say(codec: Codec) -> None:
    cheats = Cheats(codec, PEERS, torch.float32)
    deltas = [_delta(codec, 1), _delta(codec, 2)]
    honest = [codec.send(delta) for delta in deltas]
    bench = Bench(SCALE, _text())
    sent = cheats.work(Pages(SCALE.run(), _text(), 1), bench.theta, deltas, honest, honest[::-1])
    near = Likeness.of([honest[0], sent["sign flip"], sent["scaled ×100"], sent["shared work"]])
    assert near.cosine[0, 1] < -0.9
    assert near.cosine[0, 2] > 0.9
    assert near.cosine[0, 3] > 0.9
    assert np.linalg.norm(sent["scaled ×100"].norms) > 50 * np.linalg.norm(honest[0].norms)
    assert not np.any(sent["zeros"].values)
    assert sent["copy of the last window"] is honest[0]
    trained = [sent[name] for name in ("one step of H", "few pages", "random pool", "private corpus", "overshoots ×3")]
    assert len({update.records.tobytes() for update in trained}) == len(trained)


# --- who copied whom


def _rows(draw: np.random.Generator, owners: np.ndarray) -> np.ndarray:
    """Gains of the honest peers, now and in the last window: one course over the pages that all share, each better on
    its own pages, and what nobody knows about the last payloads' own pages."""
    pages = len(owners)
    this = draw.standard_normal((PEERS, pages)) + 3.0 * (owners == np.arange(PEERS)[:, None])
    return np.vstack([this, draw.standard_normal((PEERS, pages))]) + 10 * draw.standard_normal(pages)


def _look(copies: list[tuple[Traits, np.ndarray]], honest: np.ndarray, owners: np.ndarray) -> dict[str, Any]:
    rows = np.vstack([honest, *(row[None] for _, row in copies)])
    far = np.eye(len(rows))
    tally = Tally()
    look_for(tally, rows, owners, [copy for copy, _ in copies], Likeness(far, far), PEERS)
    return tally.counts


def test_each_way_names_the_original_where_it_can() -> None:
    owners = np.array([slot for slot in range(PEERS + 1) for _ in range(12)] + [-1] * 24)
    draw = np.random.default_rng(1)
    honest = _rows(draw, owners)
    noise = 0.3 * draw.standard_normal((3, len(owners)))
    honest[PEERS] = honest[0] + noise[2]  # what an honest peer could not send then, it sends now: no accusation
    found = _look(
        [
            (Traits("now", 2), honest[2] + noise[0]),
            (Traits("before", 1, last=True), honest[PEERS + 1] + noise[1]),
            (Traits("none", 1), _rows(draw, owners)[0] + honest.mean(axis=0)),
        ],
        honest,
        owners,
    )
    assert found["now"][ROWS] == found["now"][BOTH] == found["now"][PEAK] == [1, 1]
    assert found["before"][ROWS] == [1, 0], "its original is not among the rows"
    assert found["before"][BOTH] == [1, 1]
    assert PEAK not in found["before"]
    assert found["none"][ROWS] == found["none"][BOTH] == [1, 0]
    pairs = PEERS * (PEERS - 1) // 2
    assert found[HONEST][ROWS] == [3 * pairs, 0]
    assert found[HONEST_LAST][BOTH] == [6 * pairs, 0]
    assert found["now"][COSINE] == found["now"][OVERLAP] == [1, 0], "these look at the payloads alone"


def test_hotkeys_that_share_a_computation_are_counted_together() -> None:
    owners = np.array([slot for slot in range(PEERS + 1) for _ in range(12)] + [-1] * 24)
    draw = np.random.default_rng(2)
    honest = np.vstack([_rows(draw, owners)])
    ring = [(Traits("shared", 3, shared=True), honest[3] + 0.2 * draw.standard_normal(len(owners))) for _ in range(2)]
    found = _look(ring, honest, owners)
    assert found[RING][ROWS][0] == found[RING][BOTH][0] == 2
    assert found[RING][BOTH][1] == 2
    assert found[ROBBED][BOTH] == [1, 0]


# --- a run


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return list(Bench(SCALE, _text()).windows())


def test_judging_leaves_the_model_as_it_is_and_applies_the_honest_alone(records: list[dict[str, Any]]) -> None:
    unjudged = Bench(replace(SCALE, early=0, late=SCALE.windows), _text())
    assert list(unjudged.windows()) == []
    judged = Bench(SCALE, _text())
    again = list(judged.windows())
    assert np.array_equal(judged.theta, unjudged.theta)
    assert [record["window"] for record in again] == [record["window"] for record in records] == [0, 2]
    assert again[1]["gains"] == records[1]["gains"], "the same bits from the same seeds"


def test_gains_are_those_of_the_trial_step(codec: Codec) -> None:
    bench = Bench(SCALE, _text())
    pages = Pages(bench.run, bench.text, 0)
    update = codec.send(_delta(codec, 4))
    cells, seconds = bench._gains(pages, {"honest 0": update})
    random = pages.random()[: SCALE.page_sets[0][1]]
    ones = np.ones(len(update.norms), np.float32)
    trial = Trial(update, ones, np.float32(SCALE.shares[0]))
    before = np.concatenate([bench.judge.losses(page) for page in random])
    saved = trial.apply(bench.theta)
    after = np.concatenate(
        [sequence_losses(bench.judge.model, page, dtype=gains.DTYPE, batch_sequences=16) for page in random]
    )
    trial.revert(bench.theta, saved)
    for cell in cells:
        first, measured = cell["of"]["honest 0"]
        assert measured == pytest.approx((before.mean() - after.mean()) / before.mean(), rel=2e-2)
        assert first == pytest.approx(measured, rel=0.5), "a small step is nearly straight"
    assert all(value > 0 for value in seconds.values())


def test_what_the_file_holds_is_not_run_again_unless_its_settings_changed(
    tmp_path: Path, records: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []

    class Pretence:
        def __init__(self, scale: gains.Scale, text: np.ndarray) -> None:
            runs.append(scale.name)

        def windows(self) -> list[dict[str, Any]]:
            return records

    monkeypatch.setattr(gains, "Bench", Pretence)
    monkeypatch.setattr(gains, "read_pages", lambda run: _text())
    file = tmp_path / "results.jsonl"

    def run(scale: gains.Scale) -> int:
        runs.clear()
        gains.run_all([scale], Results(file, [scale]), lambda line: None)
        return len(runs)

    assert [run(SCALE), run(SCALE), run(replace(SCALE, shares=(0.5,)))] == [1, 0, 1]
    for line in file.read_text(encoding="utf-8").splitlines():
        json.loads(line)


# --- sums


def test_ranks_share_places_and_spearman_is_the_correlation_of_ranks() -> None:
    assert gains.ranks([5.0, 1.0, 5.0, 9.0]).tolist() == [1.5, 0.0, 1.5, 3.0]
    assert gains.spearman([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(0.8207826816681233)
    assert gains.spearman([1.0, 2.0, 3.0], [30.0, 20.0, 10.0]) == pytest.approx(-1.0)


def _record(of: dict[str, list[float]], **seconds: float) -> dict[str, Any]:
    return {"gains": [{"clip": True, "c": 0.2, "of": of}], "seconds": seconds}


def test_agreement_is_taken_per_window_and_the_bias_from_honest_payloads() -> None:
    honest = {"honest 0": [0.4, 0.2], "honest 1": [0.2, 0.16], "honest 2": [0.1, 0.09]}
    good, bad = _record(honest | {"liar": [0.3, 0.15]}), _record(honest | {"liar": [0.5, -0.1]})
    entry = gains.agreement([good, bad])[0]
    assert entry["honest"] == [1.0, 1.0, 1.0]
    assert entry["all"][1] == pytest.approx((gains.spearman([3, 2, 1, 2.5], [4, 3, 1, 2]) + -0.2) / 2)
    assert entry["bias"][1] == pytest.approx(0.8)


def test_a_cheat_fools_first_order_gains_when_they_place_it_much_higher() -> None:
    honest = {"honest 0": [0.4, 0.2], "honest 1": [0.2, 0.16], "honest 2": [0.1, 0.09]}
    entries = gains.cheats([_record(honest | {"liar": [0.3, -0.1], "other": [0.3, 0.1]})])
    assert [(entry["cheat"], entry["places"], entry["fools"]) for entry in entries] == [
        ("liar", [1, 3], True),
        ("other", [1, 2], False),
    ]


def test_costs_are_of_all_pages_and_shares_of_all_counts() -> None:
    costs = gains.cost([_record({}, gradient=2.0, product=0.01, measured=0.5)], pages=4)
    assert costs == {"gradients": 8.0, "first_order": 0.04, "measured": 2.0, "64_over_20": (8 + 64 * 0.04) / 40}
    tally = Tally({"kind": {"rows": [4, 3]}})
    tally.add("kind", "rows", 4, False)
    assert tally.shares() == {"kind": {"rows": 0.375}}


def test_a_smaller_set_of_pages_is_the_beginning_of_the_larger() -> None:
    slots = PEERS + 1
    rows = np.array([*np.repeat(np.arange(slots), 3), -1, -1, -1, -1])[None]
    kept, owners = gains._on_pages(SCALE, rows, 2, 3)
    assert np.array_equal(kept[0], owners)
    assert np.array_equal(owners, [*np.repeat(np.arange(slots), 2), -1, -1, -1])


def test_a_summary_can_be_printed_and_is_json(
    records: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(None, [SCALE])
    results.add(SCALE, records)
    entries = gains.summary(SCALE, results)
    assert [entry["stretch"] for entry in entries] == ["early", "late"]
    json.dumps(entries)
    for entry in entries:
        gains.print_table(entry)
    assert "overshoots ×10" in capsys.readouterr().out
