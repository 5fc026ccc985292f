"""Aggregation to the bit, against a second implementation of explicit loops over fp32 scalars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.run import SparseLoCo
from protocol.sparseloco.aggregate import Trial, clip_factors, descents, outer_step, shared_positions
from protocol.sparseloco.compress import SparseUpdate, compress, decompress
from protocol.sparseloco.kernels import reference as kernel
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.plan import Plan
from protocol.sparseloco.records import LEVELS

Shapes = Sequence[tuple[str, tuple[int, ...]]]
SHAPES: Shapes = [("a", (300,)), ("b", (7, 5)), ("c", (1,)), ("d", (4100,))]


def update_of(layout: Layout, scheme: SparseLoCo, seed: int, scale: float) -> SparseUpdate:
    random = np.random.default_rng(seed)
    delta = (random.standard_normal(layout.size) * scale).astype(np.float32)
    return decompress(layout, scheme, compress(layout, scheme, np.zeros_like(delta), delta))


def scaled(layout: Layout, update: SparseUpdate, factors: np.ndarray) -> np.ndarray:
    """c_p · ŝ_p, dense fp32 [layout.size]."""
    dense = np.zeros(layout.size, np.float32)
    dense[update.indices] = update.values
    return np.repeat(factors, [p.size for p in layout.parameters]) * dense


def exact_norm(values: Sequence[float]) -> float:
    """√ of the exact sum of squares, rounded before and after the root."""
    return math.sqrt(float(sum(Fraction(float(v)) ** 2 for v in values)))


def slow_outer_step(theta: np.ndarray, updates: list[SparseUpdate], layout: Layout, scheme: SparseLoCo) -> np.ndarray:
    """docs/protocol.md, "Outer step", one scalar at a time."""
    alpha, n = scheme.alpha(0), len(updates)
    by_peer = [dict(zip(u.indices.tolist(), u.values, strict=True)) for u in updates]
    result = theta.copy()
    for p in layout.parameters:
        span = range(p.offset, p.offset + p.size)
        norms = [exact_norm([float(peer[i]) for i in span if i in peer]) for peer in by_peer]
        ordered = sorted(norms)
        median = ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2
        clips = [np.float32(min(1.0, median / norm)) if norm else np.float32(1) for norm in norms]
        for i in span:
            total, senders = np.float32(0), 0
            for peer, clip in zip(by_peer, clips, strict=True):
                if i in peer:
                    total = np.float32(total + np.float32(clip * peer[i]))
                    senders += 1
            if scheme.average == "all":
                step = np.float32(np.float32(alpha / n) * total)
            else:
                step = np.float32(np.float32(alpha) * np.float32(total / np.float32(max(senders, 1))))
            result[i] = np.float32(theta[i] - step)
    return result


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6),
    st.sampled_from(["all", "contributors"]),
    st.sampled_from([1, 2, 32]),
    st.sampled_from([64, 512]),
    st.sampled_from([1.0, 0.9, 0.6]),
    st.integers(0, 2**32 - 1),
)
def test_the_outer_step_equals_scalar_loops_to_the_bit(
    n: int, average: str, bits: int, k: int, alpha: float, seed: int
) -> None:
    layout = Layout.from_shapes(SHAPES)
    scheme = SparseLoCo.model_validate(
        {"k": k, "value_bits": bits, "average": average, "outer_learning_rate": ((0, alpha),)}
    )
    random = np.random.default_rng(seed)
    updates = [update_of(layout, scheme, seed + i, 10.0 ** random.uniform(-6, 1)) for i in range(n)]
    theta = random.standard_normal(layout.size).astype(np.float32)
    expected = slow_outer_step(theta, updates, layout, scheme)
    outer_step(theta, updates, scheme, 0)
    assert theta.tobytes() == expected.tobytes()


def test_one_rounding_more_or_less_would_be_seen() -> None:
    """The scalar loops are a sharp test: α·(total/n) and (fl(α)/n)·total give other bits than fl(α/n)·total."""
    layout, scheme = Layout.from_shapes(SHAPES), SparseLoCo(k=512, outer_learning_rate=((0, 0.9),))
    updates = [update_of(layout, scheme, i, 0.1) for i in range(3)]
    theta = np.ones(layout.size, np.float32)
    expected = slow_outer_step(theta, updates, layout, scheme)
    total = np.zeros_like(theta)
    for update, factors in zip(updates, clip_factors(updates), strict=True):
        total += scaled(layout, update, factors)
    alpha, n = np.float32(0.9), np.float32(3)
    assert (theta - alpha * (total / n)).tobytes() != expected.tobytes()
    assert (theta - alpha / n * total).tobytes() != expected.tobytes()
    outer_step(theta, updates, scheme, 0)
    assert theta.tobytes() == expected.tobytes()


def test_the_order_of_peers_is_part_of_the_result() -> None:
    layout, scheme = Layout.from_shapes([("a", (64,))]), SparseLoCo(k=4096)
    updates = [update_of(layout, scheme, i, 0.1) for i in range(5)]
    results = []
    for order in (updates, updates[::-1]):
        theta = np.zeros(layout.size, np.float32)
        outer_step(theta, order, scheme, 0)
        results.append(theta.tobytes())
    assert results[0] != results[1]


def test_dense_unquantised_and_without_memory_it_is_diloco_averaging() -> None:
    """k = 4096, 32 bits, β = 0: θ − (1/n)·ΣΔ, bit for bit, for peers that the norm clip leaves alone."""
    layout = Layout.from_shapes(SHAPES)
    scheme = SparseLoCo(k=4096, value_bits=32, error_feedback=0.0)
    random = np.random.default_rng(1)
    first = random.standard_normal(layout.size).astype(np.float32)
    deltas = []
    for _ in range(4):  # equal norms: the same values at other places and with other signs
        delta = first.copy()
        for p in layout.parameters:
            random.shuffle(delta[p.offset : p.offset + p.size])
        deltas.append(delta * random.choice(np.array([-1, 1], np.float32), layout.size))
    old_errors = [random.standard_normal(layout.size).astype(np.float32) for _ in deltas]
    updates = [
        decompress(layout, scheme, compress(layout, scheme, e, d)) for e, d in zip(old_errors, deltas, strict=True)
    ]
    assert not any(error.any() for error in old_errors)
    theta = random.standard_normal(layout.size).astype(np.float32)
    total = np.zeros_like(theta)
    for delta in deltas:
        total = total + delta
    expected = theta - np.float32(1 / 4) * total
    outer_step(theta, updates, scheme, 0)
    assert theta.tobytes() == expected.tobytes()


@pytest.mark.parametrize("average", ["all", "contributors"])
def test_without_contributions_nothing_moves(average: str) -> None:
    theta = np.array([1.0, -0.0, 2.0**-149, 3e38], np.float32)
    before = theta.tobytes()
    outer_step(theta, [], SparseLoCo.model_validate({"average": average}), 0)
    assert theta.tobytes() == before


@pytest.mark.parametrize("average", ["all", "contributors"])
def test_what_nobody_sent_keeps_its_bits(average: str) -> None:
    layout = Layout.from_shapes([("a", (4096,))])
    scheme = SparseLoCo.model_validate({"average": average})
    theta = np.zeros(4096, np.float32)
    theta[::2], theta[1::4] = -0.0, 2.0**-149
    update = update_of(layout, scheme, 1, 0.1)
    before = theta.copy()
    outer_step(theta, [update], scheme, 0)
    untouched = np.ones(4096, bool)
    untouched[update.indices] = False
    assert theta[untouched].tobytes() == before[untouched].tobytes()
    assert (theta[update.indices] != before[update.indices]).all()


def test_the_outer_learning_rate_is_that_of_the_window_and_applied_once() -> None:
    layout = Layout.from_shapes([("a", (1,))])
    scheme = SparseLoCo(value_bits=32, outer_learning_rate=((0, 1.0), (5, 0.25)))
    update = decompress(layout, scheme, np.array([0b1], np.uint8).tobytes() + np.float32(8).tobytes())
    for window, expected in ((4, 92.0), (5, 98.0)):
        theta = np.full(1, 100, np.float32)
        outer_step(theta, [update], scheme, window)
        assert theta.tolist() == [expected]


@given(st.lists(st.integers(0, 255), min_size=1, max_size=300))
def test_norms_of_counts_are_exact(codes: list[int]) -> None:
    counts = np.bincount(codes, minlength=256)
    assert kernel.norm_of_counts(counts) == exact_norm([float(LEVELS[c]) for c in codes])


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_norms_of_values_are_exact(values: list[float]) -> None:
    assert kernel.norm_of_values(np.array(values, np.float32)) == exact_norm(values)


def test_a_norm_does_not_depend_on_how_many_values_there_are_before_it_is_rounded() -> None:
    """Ten million equal levels: a float sum would have drifted."""
    counts = np.zeros(256, np.int64)
    counts[101] = 10_000_000
    assert kernel.norm_of_counts(counts) == math.sqrt(float(10_000_000 * Fraction(float(LEVELS[101])) ** 2))


def with_norms(*norms: float) -> SparseUpdate:
    return SparseUpdate(Plan(()), np.empty(0, np.uint8), norms)


def test_a_norm_above_the_median_is_clipped_to_it_and_none_is_raised() -> None:
    factors = clip_factors([with_norms(1.0, 2.0), with_norms(2.0, 2.0), with_norms(8.0, 2.0)])
    assert [f.tolist() for f in factors] == [[1.0, 1.0], [1.0, 1.0], [0.25, 1.0]]
    assert all(f.dtype == np.float32 for f in factors)


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two() -> None:
    factors = clip_factors([with_norms(norm) for norm in (1.0, 2.0, 4.0, 12.0)])
    assert [f.tolist() for f in factors] == [[1.0], [1.0], [0.75], [0.25]]


def test_a_factor_is_rounded_to_fp32_once() -> None:
    assert clip_factors([with_norms(1.0), with_norms(1.0), with_norms(3.0)])[2][0] == np.float32(1 / 3)


def test_who_sends_nothing_for_a_parameter_does_not_silence_those_who_do() -> None:
    factors = clip_factors([with_norms(0.0), with_norms(0.0), with_norms(0.0), with_norms(4.0), with_norms(12.0)])
    assert [f.tolist() for f in factors] == [[1.0], [1.0], [1.0], [1.0], [np.float32(8 / 12)]]
    assert [f.tolist() for f in clip_factors([with_norms(0.0), with_norms(0.0)])] == [[1.0], [1.0]]
    assert clip_factors([]) == []


def test_an_outsized_payload_moves_the_state_no_further_than_the_median_one() -> None:
    layout, scheme = Layout.from_shapes([("a", (4096,))]), SparseLoCo()
    updates = [update_of(layout, scheme, i, 1e-3) for i in range(2)] + [update_of(layout, scheme, 9, 1e3)]
    norms = [float(np.linalg.norm(scaled(layout, u, f))) for u, f in zip(updates, clip_factors(updates), strict=True)]
    assert norms[2] == pytest.approx(max(norms[:2]), rel=1e-6)


def test_a_trial_step_is_taken_back_to_the_bit() -> None:
    layout, scheme = Layout.from_shapes([("a", (6,)), ("b", (5000,))]), SparseLoCo(k=4096, value_bits=32)
    theta = np.resize(np.array([1.0, -0.0, 0.0, 2.0**-149, 1e-30, 3e38], np.float32), layout.size)
    before = theta.copy()
    delta = np.resize(np.array([0.1, 0.0, 7.0, 1e30, -1e31], np.float32), layout.size)
    update = decompress(layout, scheme, compress(layout, scheme, np.zeros_like(theta), delta))
    trial = Trial(update, np.array([0.5, 1.0], np.float32), np.float32(0.3))
    saved = trial.apply(theta)
    steps = np.float32(0.3) * (np.repeat(trial.clips, (6, 5000)) * delta)
    assert theta.tobytes() == (before - steps).tobytes() != before.tobytes()
    trial.revert(theta, saved)
    assert theta.tobytes() == before.tobytes()


def test_the_product_of_a_gradient_with_a_trial_step_is_that_of_its_entries(
    make_body: Callable[[int], bytes], layout: Layout
) -> None:
    trial = Trial(
        decompress(layout, SparseLoCo(), make_body(1)), np.array([0.5, 1.0, 0.7], np.float32), np.float32(0.2)
    )
    gradient = np.random.default_rng(3).standard_normal(layout.size).astype(np.float32)
    step = np.float32(0.2) * scaled(layout, trial.update, trial.clips)
    assert descents(gradient, [trial])[0] == pytest.approx(float(gradient.astype(np.float64) @ step), rel=1e-12)


def test_shared_positions_are_those_at_which_both_send_something(
    make_body: Callable[[int], bytes], layout: Layout
) -> None:
    updates = [decompress(layout, SparseLoCo(), make_body(seed)) for seed in (1, 2)]
    shared = len(set(updates[0].indices.tolist()) & set(updates[1].indices.tolist()))
    assert shared_positions(updates).tolist() == [[68, shared], [shared, 68]]
    nothing = np.zeros(layout.size, np.float32)
    zeros = decompress(layout, SparseLoCo(), compress(layout, SparseLoCo(), nothing.copy(), nothing))
    assert shared_positions([zeros, zeros, updates[0]]).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 68]]
    assert shared_positions([]).shape == (0, 0)
