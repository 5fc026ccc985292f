"""Pages are dealt out without overlap, and nobody knows them before their window."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from protocol.assignment import Assignment, Permutation
from protocol.run import Run

KEY = bytes(range(32))
SIZES = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 63, 64, 65, 100, 255, 256, 257, 1000, 4095, 4096, 4097]


@pytest.mark.parametrize("size", SIZES)
def test_a_permutation_visits_every_number_once(size: int) -> None:
    permutation = Permutation(KEY, size)
    assert sorted(permutation(position) for position in range(size)) == list(range(size))


def second_permutation(key: bytes, size: int, position: int) -> int:
    """docs/protocol.md, section 7, "Permutation", word for word."""
    h = max(1, math.ceil(len(f"{size - 1:b}") / 2))
    value = position
    while True:
        left, right = value >> h, value % 2**h
        for i in range(4):
            f = int.from_bytes(blake3(bytes([i]) + right.to_bytes(8, "little"), key=key).digest()[:8], "little")
            left, right = right, left ^ (f % 2**h)
        value = left * 2**h + right
        if value < size:
            return value


@given(st.binary(min_size=32, max_size=32), st.integers(1, 2**50), st.data())
def test_a_second_implementation_gives_the_same_permutation(key: bytes, size: int, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, size - 1))
    assert Permutation(key, size)(position) == second_permutation(key, size, position)


@given(st.binary(min_size=32, max_size=32), st.integers(1, 300))
def test_every_key_gives_a_permutation(key: bytes, size: int) -> None:
    permutation = Permutation(key, size)
    assert sorted(permutation(position) for position in range(size)) == list(range(size))


@pytest.mark.parametrize("size", [2**40 + 1, 2**63 - 1, 2**64])
def test_a_huge_domain_costs_no_memory_and_stays_within_bounds(size: int) -> None:
    permutation = Permutation(KEY, size)
    outputs = [permutation(position) for position in (0, 1, 2, size // 2, size - 1)]
    assert len(set(outputs)) == 5
    assert all(0 <= output < size for output in outputs)


@pytest.mark.parametrize("position", [-1, 5, 100])
def test_a_position_outside_the_domain_is_refused(position: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        Permutation(KEY, 5)(position)


def test_another_key_gives_another_order() -> None:
    orders = {tuple(Permutation(bytes([i]) * 32, 100)(p) for p in range(100)) for i in range(50)}
    assert len(orders) == 50


def test_the_order_looks_like_chance() -> None:
    """With 4,096 numbers, neighbours end up near each other no more often than chance would have it."""
    size = 4096
    outputs = [Permutation(KEY, size)(position) for position in range(size)]
    near = sum(abs(a - b) <= 16 for a, b in itertools.pairwise(outputs))
    expected = size * 32 / size
    assert expected / 3 < near < expected * 3
    assert sum(a == b for a, b in enumerate(outputs)) < 10


@pytest.fixture
def assignment(run: Run, window_hash: bytes) -> Assignment:
    return Assignment(run, window_hash, 101)


def test_distinct_miners_never_share_a_page(assignment: Assignment, run: Run) -> None:
    pages = [page for uid in range(run.dataset.slots) for page in assignment.own(uid)]
    assert len(pages) == len(set(pages)) == 4 * 6
    assert all(0 <= page < 101 for page in pages)


def test_random_pages_belong_to_no_slot(assignment: Assignment, run: Run) -> None:
    assigned = {page for uid in range(run.dataset.slots) for page in assignment.own(uid)}
    for seed in range(30):
        drawn = assignment.scored_random(bytes([seed]) * 32)
        assert len(set(drawn)) == run.gauntlet.random_pages
        assert assigned.isdisjoint(drawn)


def test_the_first_random_pages_stay_the_same_however_many_more_may_follow(
    run: Run, make_run: Callable[..., Run], window_hash: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the digest of the run, which is in every key."""
    more = make_run(gauntlet__random_pages_most=9)
    assert run.gauntlet.random_pages_most == run.gauntlet.random_pages == more.gauntlet.random_pages == 3
    monkeypatch.setitem(more.__dict__, "digest_bytes", run.digest_bytes)
    few, many = (Assignment(r, window_hash, 101).scored_random(b"\x05" * 32) for r in (run, more))
    assert (len(few), len(many), len(set(many))) == (3, 9, 9)
    assert many[:3] == few


def test_scored_own_pages_are_distinct_ones_of_the_miners_own(assignment: Assignment, run: Run) -> None:
    for uid in range(run.dataset.slots):
        drawn = assignment.scored_own(uid, b"\x05" * 32)
        assert len(set(drawn)) == run.gauntlet.own_pages
        assert set(drawn) <= set(assignment.own(uid))


def test_what_is_scored_depends_on_a_block_after_the_seals(assignment: Assignment) -> None:
    assert len({assignment.scored_random(bytes([i]) * 32) for i in range(20)}) > 15
    assert len({frozenset(assignment.scored_own(0, bytes([i]) * 32)) for i in range(20)}) > 5


def test_miners_are_not_scored_at_the_same_places(assignment: Assignment) -> None:
    places = set()
    for uid in range(4):
        own = assignment.own(uid)
        places.add(tuple(own.index(page) for page in assignment.scored_own(uid, b"\x05" * 32)))
    assert len(places) > 1


def test_pages_change_with_the_window_and_with_the_run(run: Run, make_run: Callable[..., Run]) -> None:
    first = Assignment(run, b"\x00" * 32, 101).own(0)
    assert Assignment(run, b"\x01" * 32, 101).own(0) != first
    assert Assignment(make_run(name="other"), b"\x00" * 32, 101).own(0) != first


@pytest.mark.parametrize("uid", [-1, 4, 65535])
def test_a_uid_beyond_the_slots_has_no_pages(assignment: Assignment, uid: int) -> None:
    with pytest.raises(ValueError, match="has no slot"):
        assignment.own(uid)


def test_the_smallest_sufficient_dataset_serves_everyone(run: Run, window_hash: bytes) -> None:
    assignment = Assignment(run, window_hash, run.pages_needed)
    pages = [page for uid in range(4) for page in assignment.own(uid)] + list(assignment.scored_random(b"\x01" * 32))
    assert sorted(pages) == list(range(run.pages_needed))


def test_one_page_too_few_is_noticed(run: Run, window_hash: bytes) -> None:
    with pytest.raises(ValueError, match="outside"):
        Assignment(run, window_hash, run.pages_needed - 1).scored_random(b"\x01" * 32)
