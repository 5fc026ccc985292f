"""Commitments: what a peer writes on chain must never lead a reader out of its folder of buckets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import BadLocation, Unavailable
from storage.location import LOCATION_LIMIT_BYTES, LocalLocation, decode, encode, open_bucket


def test_a_local_location_is_a_zero_byte_and_the_name() -> None:
    assert encode(LocalLocation("miner-3")) == b"\0miner-3"
    assert decode(b"\0miner-3") == LocalLocation("miner-3")


def test_the_longest_name_fits_a_commitment() -> None:
    assert len(encode(LocalLocation("a" * 63))) <= LOCATION_LIMIT_BYTES


@pytest.mark.parametrize(
    "name", ["", "-a", "A", "a" * 64, ".", "..", "../a", "a/b", "/etc", "a\n", "a\0", "ü", "a.b", "~"]
)
def test_a_name_that_is_not_plain_is_refused(name: str) -> None:
    with pytest.raises(BadLocation):
        LocalLocation(name)
    with pytest.raises(BadLocation):
        decode(b"\0" + name.encode())


def test_an_unknown_kind_is_refused_by_its_number() -> None:
    with pytest.raises(BadLocation, match="kind 7,"):
        decode(b"\x07name")


def test_an_empty_and_a_too_long_commitment_are_refused() -> None:
    with pytest.raises(BadLocation, match="empty"):
        decode(b"")
    with pytest.raises(BadLocation, match="129 bytes"):
        decode(b"\0" + b"a" * 128)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=140) | st.binary(max_size=70).map(lambda tail: b"\0" + tail))
def test_any_bytes_are_either_refused_or_read_back_the_same(commitment: bytes) -> None:
    try:
        location = decode(commitment)
    except BadLocation:
        return
    assert encode(location) == commitment


def test_a_bucket_is_opened_below_the_readers_own_folder(tmp_path: Path) -> None:
    async def scenario() -> None:
        await open_bucket(LocalLocation("peer"), tmp_path).put("a/b", b"data")
        assert (tmp_path / "peer" / "a" / "b").read_bytes() == b"data"

    asyncio.run(scenario())


def test_a_bucket_that_was_made_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "peer").symlink_to("/", target_is_directory=True)
    with pytest.raises(Unavailable):
        asyncio.run(open_bucket(LocalLocation("peer"), tmp_path).get("etc/passwd", limit_bytes=1 << 20))


def test_a_local_name_leads_nowhere_on_another_chain() -> None:
    with pytest.raises(BadLocation, match="not on a local chain"):
        open_bucket(LocalLocation("peer"), None)
