"""The judge leaves θ as it was, and whoever is left out when time runs out comes first the next time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neurons.judge import Judge
from neurons.pace import Budget, Pace
from neurons.training.model import bind, build_model, initial_parameters, parameter_shapes
from protocol.gauntlet.evaluation import first_order_gain
from protocol.run import Run, preset_table, run_from_table
from protocol.sparseloco.compress import SparseUpdate, compress, decompress
from protocol.sparseloco.layout import Layout

UIDS = (1, 2, 3)


@pytest.fixture(scope="module")
def run() -> Run:
    table = preset_table("demo")
    table["genesis_root"] = table["dataset"]["index_digest"] = "0" * 64
    table["model"] |= {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    return run_from_table(table)


@pytest.fixture(scope="module")
def updates(run: Run) -> dict[int, SparseUpdate]:
    layout = Layout.from_shapes(parameter_shapes(build_model(run.model)))
    draw = np.random.default_rng(0)

    def one() -> SparseUpdate:
        delta = (draw.standard_normal(layout.size) * 1e-2).astype(np.float32)
        return decompress(layout, run.sparseloco, compress(layout, run.sparseloco, np.zeros_like(delta), delta))

    return {uid: one() for uid in UIDS}


def pages(count: int) -> list[np.ndarray]:
    draw = np.random.default_rng(1)
    return [draw.integers(300, size=(4, 16)).astype(np.int64) for _ in range(count)]


class Clock:
    """Seconds that pass only when somebody works."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class SlowJudge(Judge):
    """Takes 3 s for the gradient of a page and 1 s for its loss."""

    clock: Clock

    def gradient(self, page: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.clock.seconds += 3
        return super().gradient(page)

    def losses(self, sequences: np.ndarray) -> np.ndarray:
        self.clock.seconds += 1
        return super().losses(sequences)


@pytest.fixture
def judge(run: Run) -> SlowJudge:
    model = build_model(run.model)
    theta = initial_parameters(run.model, seed=0)
    bind(model, theta)
    slow = SlowJudge(model, theta, run, torch.float32)
    slow.clock = Clock()
    return slow


KNOWN = Pace(3.0, 1.0)


def within(judge: SlowJudge, seconds: float, remembered: Pace = KNOWN) -> Budget:
    """So much time for everything."""
    return Budget(judge.clock, judge.clock() + seconds, lambda: False, remembered)


def test_judging_leaves_every_parameter_as_it_was_to_the_bit(
    judge: SlowJudge, updates: dict[int, SparseUpdate]
) -> None:
    before = judge.theta.tobytes()
    own = {uid: pages(2) for uid in UIDS}
    found = judge.evaluate(0, updates, UIDS, pages(6), own, Budget.unlimited(), at_once=4)
    assert judge.theta.tobytes() == before
    assert all(found[uid].own_after is not None and found[uid].unique_work is not None for uid in UIDS)


def test_the_measured_gain_is_the_fall_of_the_loss_under_the_trial_step(
    judge: SlowJudge, updates: dict[int, SparseUpdate]
) -> None:
    shared = pages(2)
    found = judge.evaluate(0, updates, UIDS, shared, {uid: pages(1) for uid in UIDS}, Budget.unlimited(), at_once=4)
    judge.trials(0, updates)[2].apply(judge.theta)
    np.testing.assert_array_equal(found[2].after, np.concatenate([judge.losses(page) for page in shared]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_that_changes_nothing_gains_nothing_to_the_bit(
    judge: SlowJudge, updates: dict[int, SparseUpdate], run: Run, dtype: torch.dtype
) -> None:
    """So that no rounding, which differs from batch to batch and with a gradient, is mistaken for a gain."""
    judge.dtype = dtype
    layout = Layout.from_shapes(parameter_shapes(judge.model))
    nothing = np.zeros(layout.size, np.float32)
    zeros = decompress(layout, run.sparseloco, compress(layout, run.sparseloco, nothing.copy(), nothing))
    found = judge.evaluate(0, updates | {7: zeros}, (7,), pages(3), {7: pages(2)}, Budget.unlimited(), at_once=4)[7]
    np.testing.assert_array_equal(found.after, found.before)
    np.testing.assert_array_equal(found.own_after, found.own_before)


def test_when_time_runs_out_those_named_first_are_measured_and_the_rest_still_ranked(
    judge: SlowJudge, updates: dict[int, SparseUpdate]
) -> None:
    own = {uid: pages(2) for uid in UIDS}
    # Two random pages take 6 s, a peer 2 x 3 + 4 x 1 s, which must fit 1.2 times.
    found = judge.evaluate(0, updates, (3, 1, 2), pages(2), own, within(judge, 6 + 12 + 9), at_once=4)
    assert judge.clock.seconds == 6 + 10
    assert found[3].after is not None
    assert found[3].unique_work is not None
    for uid in (1, 2):
        assert found[uid].after is None
        assert found[uid].unique_work is None
        assert len(found[uid].shared) == 2
        assert first_order_gain(found[uid].shared).value != 0.0


def test_a_machine_of_unknown_pace_tries_and_then_begins_only_what_it_can_finish(
    judge: SlowJudge, updates: dict[int, SparseUpdate]
) -> None:
    """After the random pages a loss might take as long as a gradient: a peer is expected to take 18 s, 21.6 with the
    reserve, and takes 10."""
    own = {uid: pages(2) for uid in UIDS}
    found = judge.evaluate(0, updates, UIDS, pages(2), own, within(judge, 6 + 21, Pace()), at_once=4)
    assert [found[uid].after is not None for uid in UIDS] == [False, False, False]
    judge.clock.seconds = 0.0
    budget = within(judge, 6 + 22, Pace())
    found = judge.evaluate(0, updates, UIDS, pages(2), own, budget, at_once=4)
    assert [found[uid].after is not None for uid in UIDS] == [True, True, False]
    assert budget.seen == KNOWN


def test_what_is_begun_is_broken_off_after_the_page_at_which_time_is_over(
    judge: SlowJudge, updates: dict[int, SparseUpdate]
) -> None:
    """Blocks may come faster than expected. θ is as it was, and the half measured peer counts as not measured."""
    before = judge.theta.tobytes()
    over = Budget(judge.clock, 1e9, lambda: judge.clock.seconds > 6 + 6 + 2, KNOWN)
    found = judge.evaluate(0, updates, UIDS, pages(2), {uid: pages(2) for uid in UIDS}, over, at_once=4)
    assert judge.clock.seconds == 6 + 6 + 3
    assert judge.theta.tobytes() == before
    assert all(found[uid].after is None and found[uid].unique_work is None for uid in UIDS)


def test_a_slow_machine_judges_on_fewer_random_pages_but_not_on_one(
    judge: SlowJudge, updates: dict[int, SparseUpdate]
) -> None:
    own = {uid: pages(1) for uid in UIDS}
    assert judge.evaluate(0, updates, UIDS, pages(4), own, within(judge, 5), at_once=4) == {}
    judge.clock.seconds = 0.0
    found = judge.evaluate(0, updates, UIDS, pages(4), own, within(judge, 7), at_once=4)
    assert {uid: (f.pages, f.after) for uid, f in found.items()} == dict.fromkeys(UIDS, (2, None))


def test_random_pages_are_added_for_all_until_the_most_while_the_order_is_open(
    judge: SlowJudge, updates: dict[int, SparseUpdate], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, own = run.gauntlet.random_pages, {uid: pages(2) for uid in UIDS}
    many = pages(2 * step + 3)
    monkeypatch.setattr("neurons.judge.is_settled", lambda gains, errors: False)
    found = judge.evaluate(0, updates, (1, 2), many, own, Budget.unlimited(), at_once=step)
    assert {f.pages for f in found.values()} == {2 * step + 3}
    assert found[1].after is not None
    assert found[1].after.shape == found[1].before.shape == (4 * (2 * step + 3),)
    whole = judge.evaluate(0, updates, (1, 2), many[:step], own, Budget.unlimited(), at_once=step)
    np.testing.assert_array_equal(found[3].shared[:step], whole[3].shared)
    monkeypatch.setattr("neurons.judge.is_settled", lambda gains, errors: True)
    assert judge.evaluate(0, updates, (1, 2), many, own, Budget.unlimited(), at_once=step)[3].pages == step


def test_pages_for_which_there_is_no_time_for_all_are_left_out_for_all(
    judge: SlowJudge, updates: dict[int, SparseUpdate], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neurons.judge.is_settled", lambda gains, errors: False)
    step, own = run.gauntlet.random_pages, {uid: pages(2) for uid in UIDS}
    first = 3 * step + 2 * (6 + 2 + step)
    over = Budget(judge.clock, 1e9, lambda: judge.clock.seconds >= first + 3 * step + step + 1, KNOWN)
    found = judge.evaluate(0, updates, (1, 2), pages(2 * step), own, over, at_once=step)
    assert judge.clock.seconds == first + 3 * step + step + 1
    assert {(f.pages, len(f.before)) for f in found.values()} == {(step, 4 * step)}
    assert {len(found[uid].after) for uid in (1, 2)} == {4 * step}


def test_a_machine_that_became_slower_is_believed_at_once_and_a_faster_one_by_half() -> None:
    assert Pace().after(Pace(4.0, None)) == Pace(4.0, None)
    assert Pace(4.0, 1.0).after(Pace(6.0, 0.5)) == Pace(6.0, 0.75)
    assert Pace(4.0, 1.0).after(Pace(4.0, None)) == Pace(4.0, 0.75)  # not begun: it may have become faster
