"""The judge leaves θ as it was, and whoever is left out when time runs out comes first the next time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from neurons.judge import Judge
from neurons.training.model import bind, build_model, initial_parameters, parameter_shapes
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


@pytest.fixture
def judge(run: Run) -> Judge:
    model = build_model(run.model)
    theta = initial_parameters(run.model, seed=0)
    bind(model, theta)
    return Judge(model, theta, run, torch.float32)


def after(calls: int) -> Callable[[], bool]:
    """Time that runs out when it has been asked for so often."""
    asked = itertools.count()
    return lambda: next(asked) >= calls


def test_judging_leaves_every_parameter_as_it_was_to_the_bit(judge: Judge, updates: dict[int, SparseUpdate]) -> None:
    before = judge.theta.tobytes()
    own = {uid: pages(2) for uid in UIDS}
    found = judge.evaluate(0, updates, UIDS, pages(2), own, lambda: False)
    assert judge.theta.tobytes() == before
    assert all(found[uid].own_after is not None and found[uid].unique_work is not None for uid in UIDS)


def test_the_measured_gain_is_the_fall_of_the_loss_under_the_trial_step(
    judge: Judge, updates: dict[int, SparseUpdate], run: Run
) -> None:
    shared = pages(2)
    found = judge.evaluate(0, updates, UIDS, shared, {uid: pages(1) for uid in UIDS}, lambda: False)
    judge.trials(0, updates)[2].apply(judge.theta)
    np.testing.assert_array_equal(found[2].after, np.concatenate([judge.losses(page) for page in shared]))


def test_when_time_runs_out_those_named_first_are_measured_and_the_rest_still_ranked(
    judge: Judge, updates: dict[int, SparseUpdate]
) -> None:
    own = {uid: pages(2) for uid in UIDS}
    # It is asked before each of the 2 random pages, each of the first peer's 2 own pages, and once after them.
    found = judge.evaluate(0, updates, (3, 1, 2), pages(2), own, after(2 + 3))
    assert found[3].after is not None
    assert found[3].unique_work is not None
    for uid in (1, 2):
        assert found[uid].after is None
        assert found[uid].unique_work is None
        assert found[uid].gain.value != 0.0


def test_without_one_whole_set_of_random_pages_nobody_is_judged(judge: Judge, updates: dict[int, SparseUpdate]) -> None:
    assert judge.evaluate(0, updates, UIDS, pages(2), {uid: pages(1) for uid in UIDS}, after(1)) == {}
