"""The ways that benchmarks/validator.py compares do the same work, and it gives what it promises."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import validator
from benchmarks.cases import run_of
from protocol.run import Run


@pytest.fixture(scope="module")
def run() -> Run:
    run = run_of("demo")
    small = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 300, "num_attention_heads": 2}
    shape = run.dataset.model_copy(update={"sequence_tokens": 16})
    return run.model_copy(update={"model": dict(run.model) | small, "dataset": shape})


def test_in_place_and_on_a_copy_the_same_losses_are_found(run: Run) -> None:
    bench = validator.Bench(run, validator.QUICK)
    before = bench.theta.tobytes()
    ours, copied = (bench.measuring(way) for way in (bench.in_place, bench.on_a_copy))
    np.testing.assert_allclose(ours, copied, rtol=1e-2)
    assert bench.theta.tobytes() == before


def test_all_payloads_are_ranked_and_as_many_measured_as_said(run: Run) -> None:
    bench, scale = validator.Bench(run, validator.QUICK), validator.QUICK
    found = bench.window(scale.payloads)
    assert len(found) == scale.payloads
    assert sum(each.after is not None for each in found.values()) == scale.measured
    random, *own = bench.ranking()
    assert len(random.gains) == scale.payloads
    np.testing.assert_array_equal(random.gains[5], found[5].shared)
    assert len(own) == scale.measured


def test_every_ratio_is_there_with_its_quartiles(run: Run) -> None:
    measured = validator.measure_run("small", run, validator.QUICK)
    assert (measured["payloads"], measured["measured"]) == (6, 2)
    assert len(measured["ratios"]) == 6
    assert all(0 < low <= middle <= high for low, middle, high in measured["ratios"].values())
