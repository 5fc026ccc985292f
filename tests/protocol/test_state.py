"""The state root sees every bit, and its leaves can be checked one by one."""

from __future__ import annotations

import numpy as np
import pytest
from blake3 import blake3

from protocol.ledger.state import LEAF_BYTES, State, leaf_digests, state_root
from protocol.sparseloco.layout import Layout


def test_the_root_is_derived_from_the_leaf_digests() -> None:
    theta = np.arange(5, dtype=np.float32)
    leaf = blake3(theta.astype("<f4").tobytes()).digest()
    assert leaf_digests(theta) == (leaf,)
    assert state_root(theta) == blake3(leaf, derive_key_context="windrow 1 state root").hexdigest()


def test_one_flipped_bit_changes_the_root() -> None:
    theta = np.random.default_rng(1).standard_normal(4206).astype(np.float32)
    root = state_root(theta)
    for place in (0, 1, 4205):
        for bit in range(32):
            flipped = theta.copy()
            flipped.view(np.uint32)[place] ^= np.uint32(1 << bit)
            assert state_root(flipped) != root


def test_both_zeros_and_the_length_count() -> None:
    roots = {
        state_root(np.array(values, np.float32)) for values in ([0.0], [-0.0], [0.0, 0.0], [0.0, -0.0], [2.0**-149])
    }
    assert len(roots) == 5


@pytest.mark.parametrize(("extra", "leaves"), [(-1, 1), (0, 1), (1, 2)])
def test_a_leaf_holds_16_mib(extra: int, leaves: int) -> None:
    theta = np.zeros(LEAF_BYTES // 4 + extra, np.float32)
    assert len(leaf_digests(theta)) == leaves
    before = state_root(theta)
    theta[-1] = 1
    assert state_root(theta) != before


def test_leaves_are_bound_to_their_order() -> None:
    half = LEAF_BYTES // 4
    theta = np.zeros(2 * half, np.float32)
    theta[0] = 1
    swapped = np.concatenate([theta[half:], theta[:half]])
    assert set(leaf_digests(theta)) == set(leaf_digests(swapped))
    assert state_root(theta) != state_root(swapped)


def test_how_an_array_lies_in_memory_does_not_count() -> None:
    theta = np.arange(10, dtype=np.float32)
    assert state_root(np.repeat(theta, 2)[::2]) == state_root(theta)
    assert state_root(theta.astype(">f4")) == state_root(theta)


def test_a_state_has_the_root_of_its_parameters(layout: Layout, theta: np.ndarray) -> None:
    assert State(layout, theta, 0, "00" * 32).root() == state_root(theta)
