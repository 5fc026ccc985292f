"""Seal and reveal: one key opens one seal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from bittensor_core import Keypair
from blake3 import blake3

from protocol.errors import DocumentError
from protocol.sealing import SEAL_LIMIT_BYTES, Reveal, Seal, SealedShard

KEY = bytes(range(32))


@pytest.fixture
def seal(alice: Keypair) -> Seal:
    return Seal(
        signer=alice.ss58_address,
        run_digest="aa" * 32,
        window=3,
        layout_digest="bb" * 32,
        base_root="cc" * 32,
        shards=(SealedShard(size_bytes=300, digest="dd" * 32),),
        payload_digest="ee" * 32,
        key_digest=blake3(KEY).hexdigest(),
    ).signed(alice)


def test_the_right_key_of_the_right_window_opens(seal: Seal) -> None:
    assert Reveal(window=3, key=KEY.hex()).opens(seal)


@pytest.mark.parametrize(("window", "key"), [(2, KEY), (4, KEY), (3, bytes(32)), (3, KEY[:-1] + b"\x00")])
def test_no_other_key_and_no_other_window_opens(seal: Seal, window: int, key: bytes) -> None:
    assert not Reveal(window=window, key=key.hex()).opens(seal)


@pytest.mark.parametrize(
    "change",
    [
        {"run_digest": "00" * 32},
        {"window": 4},
        {"layout_digest": "00" * 32},
        {"base_root": "00" * 32},
        {"payload_digest": "00" * 32},
        {"key_digest": "00" * 32},
        {"shards": ()},
        {"shards": (SealedShard(size_bytes=301, digest="dd" * 32),)},
        {"shards": (SealedShard(size_bytes=300, digest="00" * 32),)},
    ],
)
def test_everything_in_a_seal_is_signed(seal: Seal, change: dict[str, Any]) -> None:
    seal.verify()
    with pytest.raises(DocumentError, match="does not verify"):
        seal.model_copy(update=change).verify()


@pytest.mark.parametrize(
    "change",
    [
        {"window": -1},
        {"window": 10**8},
        {"window": 10**4000},
        {"shards": None},
        {"shards": [{"size_bytes": 0, "digest": "dd" * 32}]},
        {"shards": [{"size_bytes": 2**48, "digest": "dd" * 32}]},
        {"shards": [{"size_bytes": 1, "digest": "dd" * 32, "path": "/etc/passwd"}]},
        {"payload_digest": "EE" * 32},
        {"key_digest": "ee" * 31},
        {"comment": ""},
    ],
    ids=str,
)
def test_a_seal_with_an_impossible_field_is_refused(seal: Seal, change: dict[str, Any]) -> None:
    with pytest.raises(DocumentError, match="Seal: "):
        Seal.parse(json.dumps(seal.model_dump(mode="json") | change).encode())


def test_the_seal_of_the_largest_model_fits_its_limit(seal: Seal) -> None:
    shard = SealedShard(size_bytes=2**48 - 1, digest="dd" * 32)
    assert len(seal.model_copy(update={"shards": (shard,) * 400}).canonical()) <= SEAL_LIMIT_BYTES


def test_a_seal_cannot_be_read_as_a_reveal_nor_the_other_way_round(seal: Seal) -> None:
    with pytest.raises(DocumentError):
        Reveal.parse(seal.canonical())
    with pytest.raises(DocumentError):
        Seal.parse(Reveal(window=3, key=KEY.hex()).canonical())
