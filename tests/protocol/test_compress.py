"""Top-k, quantiser and error feedback, on the values where arithmetic is delicate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import LayoutError, NotFinite, Reason, Rejected
from protocol.run import SparseLoCo
from protocol.sparseloco.compress import SparseUpdate, compress, decompress
from protocol.sparseloco.kernels import reference as kernel
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.plan import plan_of
from protocol.sparseloco.records import LEVELS

SCHEMES = [SparseLoCo(k=k, value_bits=bits) for k in (1, 64, 4096) for bits in (1, 2, 32)]
one_chunk = Layout.from_shapes([("w", (4096,))])


def sparse(layout: Layout, update: SparseUpdate) -> np.ndarray:
    """ŝ as a flat array."""
    flat = np.zeros(layout.size, np.float32)
    flat[update.indices] = update.values
    return flat


def send(layout: Layout, scheme: SparseLoCo, delta: np.ndarray) -> tuple[SparseUpdate, np.ndarray]:
    error = np.zeros_like(delta)
    return decompress(layout, scheme, compress(layout, scheme, error, delta)), error


def test_equal_magnitudes_go_to_the_lowest_index() -> None:
    delta = np.full(4096, 0.5, np.float32)
    delta[::2] *= -1
    update, _ = send(one_chunk, SparseLoCo(), delta)
    assert update.indices.tolist() == list(range(64))


def test_a_tie_at_the_edge_goes_to_the_lowest_index() -> None:
    delta = np.zeros(4096, np.float32)
    delta[[9, 4000]] = 2.0
    delta[[3000, 5, 1000]] = [1.0, -1.0, 1.0]
    update, _ = send(one_chunk, SparseLoCo(k=3, value_bits=32), delta)
    assert update.indices.tolist() == [5, 9, 4000]
    assert update.values.tolist() == [-1.0, 2.0, 2.0]


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_of_either_sign_are_sent_as_plain_zeros_from_the_lowest_indices(zero: float) -> None:
    update, error = send(one_chunk, SparseLoCo(), np.full(4096, zero, np.float32))
    assert update.indices.tolist() == list(range(64))
    assert update.values.tobytes() == bytes(4 * 64)
    assert not error.any()


def test_zeros_of_both_signs_tie() -> None:
    delta = np.zeros(4096, np.float32)
    delta[:2048] = -0.0
    update, _ = send(one_chunk, SparseLoCo(k=2, value_bits=32), delta)
    assert update.indices.tolist() == [0, 1]


def test_values_below_the_table_are_sent_as_zero_and_kept_whole_in_the_buffer() -> None:
    delta = np.zeros(4096, np.float32)
    delta[[7, 8]] = np.array([2.0**-149, -(2.0**-140)], np.float32)
    update, error = send(one_chunk, SparseLoCo(k=2), delta)
    assert update.indices.tolist() == [7, 8]
    assert update.values.tobytes() == bytes(8)
    assert error.tobytes() == delta.tobytes()


def test_values_above_the_table_saturate_and_leave_the_rest_in_the_buffer() -> None:
    delta = np.zeros(4096, np.float32)
    delta[3] = -100.0
    update, error = send(one_chunk, SparseLoCo(k=1), delta)
    assert update.values.tolist() == [-30.0]
    assert error[3] == -70.0


def test_denormals_are_told_apart_by_size() -> None:
    delta = (np.arange(4096, dtype=np.float64) * 2.0**-149).astype(np.float32)
    update, _ = send(one_chunk, SparseLoCo(k=3, value_bits=32), delta)
    assert update.indices.tolist() == [4093, 4094, 4095]
    assert update.values.tobytes() == delta[4093:].tobytes()


def test_every_parameter_sends_at_least_one_value_and_its_tail_apart(layout: Layout) -> None:
    delta = np.arange(1, layout.size + 1, dtype=np.float32)
    update, _ = send(layout, SparseLoCo(), delta)
    assert update.indices.tolist() == [*range(4096 - 64, 4096), 4198, 4199, 4204, 4205]


def test_the_size_of_a_body_follows_from_the_run_alone(layout: Layout) -> None:
    for scheme in SCHEMES:
        body = compress(layout, scheme, np.zeros(layout.size, np.float32), np.ones(layout.size, np.float32))
        assert len(body) == plan_of(layout, scheme).body_bytes


@settings(max_examples=60)
@given(st.sampled_from(SCHEMES), st.integers(0, 2**32 - 1), st.floats(-44, 30), st.floats(0, 1))
def test_the_buffer_is_what_was_not_said_to_the_bit(
    layout: Layout, scheme: SparseLoCo, seed: int, exponent: float, beta: float
) -> None:
    """Over two windows: e = a − ŝ where something was sent, a elsewhere, with a = fl(fl(β·e) + Δ)."""
    scheme = scheme.model_copy(update={"error_feedback": beta})
    random = np.random.default_rng(seed)
    error = np.zeros(layout.size, np.float32)
    for _ in range(2):
        scale = 10.0 ** (exponent + random.uniform(-4, 4, layout.size))
        delta = (random.standard_normal(layout.size) * scale).astype(np.float32)
        a = np.array(
            [np.float32(np.float32(beta) * e) + d for e, d in zip(error, delta, strict=True)], dtype=np.float32
        )
        update = decompress(layout, scheme, compress(layout, scheme, error, delta))
        expected = a.copy()
        for index, value in zip(update.indices, update.values, strict=True):
            expected[index] = np.float32(a[index] - value)
        assert error.tobytes() == expected.tobytes()


@settings(max_examples=30)
@given(st.sampled_from([1, 2, 7, 64, 4096]), st.integers(0, 2**32 - 1))
def test_the_k_largest_magnitudes_are_sent(k: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(-40, 41, 4096).astype(np.float32)
    update, _ = send(one_chunk, SparseLoCo(k=k, value_bits=32), values)
    expected = sorted(sorted(range(4096), key=lambda i: (-abs(values[i]), i))[:k])
    assert update.indices.tolist() == expected
    assert update.values.tolist() == values[expected].tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["delta", "error"])
def test_nan_and_infinity_are_the_owners_error_and_leave_no_error_feedback(
    layout: Layout, bad: float, where: str
) -> None:
    error, delta = np.full(layout.size, 0.25, np.float32), np.full(layout.size, 0.5, np.float32)
    {"delta": delta, "error": error}[where][layout.size - 1] = bad
    with pytest.raises(NotFinite, match="lower the learning rate"):
        compress(layout, SparseLoCo(), error, delta)
    assert error.tobytes() == bytes(4 * layout.size)


def test_a_sum_that_overflows_is_not_finite(layout: Layout) -> None:
    error, delta = (np.full(layout.size, 3e38, np.float32) for _ in range(2))
    with pytest.raises(NotFinite):
        compress(layout, SparseLoCo(), error, delta)
    assert not error.any()


@pytest.mark.parametrize(
    "wrong",
    [np.zeros(5, np.float32), np.zeros(4206, np.float64), np.zeros((4206, 1), np.float32), np.zeros(8412, "f4")[::2]],
    ids=["size", "type", "shape", "stride"],
)
def test_an_array_of_another_form_is_refused(layout: Layout, wrong: np.ndarray) -> None:
    good = np.zeros(layout.size, np.float32)
    for error, delta in ((wrong, good), (good, wrong)):
        with pytest.raises(LayoutError):
            compress(layout, SparseLoCo(), error, delta)


def test_two_levels_are_the_split_with_the_least_error() -> None:
    codes = kernel.quantise(np.array([[1.0, -1.0, 1.0, 4.0, -4.0, 4.0]], np.float32), 2)
    assert codes.values().tolist() == [[1.0, -1.0, 1.0, 4.0, -4.0, 4.0]]
    codes = kernel.quantise(np.array([[0.0, 0.0, 0.0, 0.0, 3.0]], np.float32), 2)
    assert codes.values().tolist() == [[0.0, 0.0, 0.0, 0.0, 3.0]]


def test_one_level_is_the_mean_magnitude() -> None:
    codes = kernel.quantise(np.array([[1.0, -2.0, 3.0, -2.0]], np.float32), 1)
    assert codes.values().tolist() == [[2.0, -2.0, 2.0, -2.0]]


def test_a_level_half_way_between_two_codes_goes_to_the_smaller() -> None:
    middle = (float(LEVELS[100]) + float(LEVELS[101])) / 2
    assert kernel.quantise(np.array([[middle]], np.float32), 1).codes[0, 0] == 100
    above = np.nextafter(np.float32(middle), np.float32(np.inf))
    assert kernel.quantise(np.array([[above]], np.float32), 1).codes[0, 0] == 101


def test_more_bits_lose_less() -> None:
    delta = np.random.default_rng(5).standard_normal(4096).astype(np.float32)
    losses = {}
    for bits in (1, 2, 32):
        update, _ = send(one_chunk, SparseLoCo(value_bits=bits), delta)
        losses[bits] = float(np.linalg.norm(update.values - delta[update.indices]))
    assert 0 == losses[32] < losses[2] < losses[1]


@pytest.mark.parametrize("change", [-1, 1])
def test_missing_and_trailing_bytes_are_refused(layout: Layout, make_body: Callable[[int], bytes], change: int) -> None:
    body = make_body(1)
    with pytest.raises(Rejected) as caught:
        decompress(layout, SparseLoCo(), body[:-1] if change < 0 else body + b"\0")
    assert caught.value.reason is Reason.NOT_CANONICAL


@given(st.data())
def test_random_bodies_never_raise_anything_but_rejected(layout: Layout, data: st.DataObject) -> None:
    scheme = data.draw(st.sampled_from(SCHEMES[:6]))
    size = plan_of(layout, scheme).body_bytes
    seed = data.draw(st.integers(0, 2**32 - 1))
    with pytest.raises(Rejected):
        decompress(layout, scheme, np.random.default_rng(seed).bytes(size))


def test_a_layout_names_what_it_refuses() -> None:
    for shapes in ([], [("a", (0,))], [("a", (2, 0, 3))], [("a", (1,)), ("a", (2,))]):
        with pytest.raises(LayoutError):
            Layout.from_shapes(shapes)


def test_a_scalar_is_a_parameter_of_one_element() -> None:
    layout = Layout.from_shapes([("scalar", ()), ("row", (2,))])
    assert (layout.size, layout.parameters[1].offset) == (3, 1)
    assert layout.tensors(np.arange(3, dtype=np.float32))["scalar"].shape == ()


def test_order_name_and_shape_are_part_of_the_layout_digest() -> None:
    shapes: list[list[tuple[str, tuple[int, ...]]]] = [
        [("a", (2, 3)), ("b", (4,))],
        [("b", (4,)), ("a", (2, 3))],
        [("a", (3, 2)), ("b", (4,))],
        [("c", (2, 3)), ("b", (4,))],
        [("a", (6,)), ("b", (4,))],
    ]
    assert len({Layout.from_shapes(s).digest for s in shapes}) == len(shapes)


def test_tensors_are_views_of_the_flat_array(layout: Layout) -> None:
    flat = np.zeros(layout.size, np.float32)
    layout.tensors(flat)["embed"][2, 1399] = 7
    assert flat[4199] == 7
