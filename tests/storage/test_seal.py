"""Sealed shards: what opens them, and that nothing else does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import SealError
from storage.seal import SEAL_OVERHEAD_BYTES, associated_data, decrypt_shard, encrypt_shard

ALICE = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
BOB = "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty"
KEY = bytes(range(32))
RUN = bytes(range(32, 64))
BOUND = associated_data(RUN, 7, ALICE)
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "seal.json").read_text())


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_golden_vectors_hold(vector: dict[str, str | int]) -> None:
    bound = associated_data(bytes.fromhex(vector["run_digest"]), vector["window"], vector["hotkey"])
    assert bound.hex() == vector["associated_data"]
    sealed = bytes.fromhex(vector["sealed"])
    key, plain = bytes.fromhex(vector["key"]), bytes.fromhex(vector["plain"])
    assert encrypt_shard(key, vector["index"], bound, plain) == sealed
    assert decrypt_shard(key, vector["index"], bound, sealed) == plain


@settings(max_examples=30, deadline=None, derandomize=True)
@given(plain=st.binary(max_size=300), index=st.integers(0, 99_999))
def test_a_shard_opens_to_what_was_sealed_and_is_a_tag_longer(plain: bytes, index: int) -> None:
    sealed = encrypt_shard(KEY, index, BOUND, plain)
    assert len(sealed) == len(plain) + SEAL_OVERHEAD_BYTES
    assert decrypt_shard(KEY, index, BOUND, sealed) == plain


def test_no_flipped_bit_goes_unnoticed() -> None:
    sealed = encrypt_shard(KEY, 3, BOUND, b"payload")
    for bit in range(8 * len(sealed)):
        tampered = bytearray(sealed)
        tampered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealError):
            decrypt_shard(KEY, 3, BOUND, bytes(tampered))


@pytest.mark.parametrize(
    ("key", "index", "bound"),
    [
        (bytes(32), 3, BOUND),
        (KEY, 4, BOUND),
        (KEY, 3, associated_data(RUN, 7, BOB)),
        (KEY, 3, associated_data(RUN, 8, ALICE)),
        (KEY, 3, associated_data(bytes(32), 7, ALICE)),
        (KEY, 3, b""),
    ],
    ids=["key", "index", "hotkey", "window", "run", "nothing"],
)
def test_a_shard_opens_only_where_it_belongs(key: bytes, index: int, bound: bytes) -> None:
    sealed = encrypt_shard(KEY, 3, BOUND, b"payload")
    with pytest.raises(SealError, match="does not open"):
        decrypt_shard(key, index, bound, sealed)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 20])
def test_a_truncated_shard_is_refused(length: int) -> None:
    sealed = encrypt_shard(KEY, 0, BOUND, b"payload")
    with pytest.raises(SealError):
        decrypt_shard(KEY, 0, BOUND, sealed[:length])


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(31), bytes(33)])
def test_a_key_of_another_length_is_refused(key: bytes) -> None:
    with pytest.raises(SealError, match="32 bytes"):
        encrypt_shard(key, 0, BOUND, b"")
    with pytest.raises(SealError, match="32 bytes"):
        decrypt_shard(key, 0, BOUND, bytes(16))


@pytest.mark.parametrize("index", [-1, 100_000, 2**96])
def test_a_shard_number_out_of_bounds_is_refused(index: int) -> None:
    with pytest.raises(SealError, match="numbered"):
        encrypt_shard(KEY, index, BOUND, b"")
    with pytest.raises(SealError, match="numbered"):
        decrypt_shard(KEY, index, BOUND, bytes(16))


@pytest.mark.parametrize(
    ("run", "window", "hotkey"),
    [(bytes(31), 7, ALICE), (RUN, -1, ALICE), (RUN, 2**64, ALICE), (RUN, 7, ""), (RUN, 7, ALICE[:-1] + "é")],
)
def test_associated_data_of_impossible_fields_is_refused(run: bytes, window: int, hotkey: str) -> None:
    with pytest.raises(SealError):
        associated_data(run, window, hotkey)
