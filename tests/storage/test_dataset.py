"""Datasets: pages cut and read back exactly, and every way in which one can be wrong."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.dataset import DatasetIndex, open_dataset, write_dataset
from storage.directory import DirectoryBucket
from storage.errors import DatasetError, NotFound, StorageError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "dataset.json").read_text())
TOKENIZER = b'{"a tokenizer": true}'


def write(bucket: Any, tokens: np.ndarray, **changes: Any) -> str:
    sizes = {"vocab_size": 1000, "sequence_tokens": 4, "page_sequences": 3, "held_out_pages": 2, "shard_pages": 3}
    return asyncio.run(write_dataset(bucket, tokens, tokenizer=TOKENIZER, **(sizes | changes)))


def tokens_up_to(count: int, vocab_size: int = 1000) -> np.ndarray:
    return (np.arange(count) * 7 % vocab_size).astype(np.uint32)


def rewrite_index(bucket: Any, **changes: Any) -> str:
    """Put a changed dataset.json in place and return its true digest: hostile, but well signed."""
    path = bucket.inner.root / "dataset.json"
    data = json.dumps(json.loads(path.read_bytes()) | changes).encode()
    path.write_bytes(data)
    return blake3(data).hexdigest()


def test_pages_come_back_as_they_were_cut(bucket: Any) -> None:
    tokens = tokens_up_to(8 * 12 + 11)  # eight pages of 3 x 4 tokens and a remainder

    async def scenario() -> None:
        dataset = await open_dataset(bucket, digest)
        assert (dataset.index.pages, dataset.index.held_out_pages, dataset.index.token_bytes) == (6, 2, 2)
        assert [shard.pages for shard in dataset.index.shards] == [3, 3, 2]
        pages = tokens[: 8 * 12].astype(np.int64).reshape(8, 3, 4)
        for number in range(6):
            page = await dataset.read_page(number)
            assert page.dtype == np.int64
            np.testing.assert_array_equal(page, pages[number])
        for number in range(2):
            np.testing.assert_array_equal(await dataset.read_held_out(number), pages[6 + number])
        assert await dataset.read_tokenizer() == TOKENIZER
        await dataset.verify()

    digest = write(bucket, tokens)
    asyncio.run(scenario())


def test_a_page_is_one_range_request_of_its_own_bytes(bucket: Any) -> None:
    dataset = asyncio.run(open_dataset(bucket, write(bucket, tokens_up_to(96))))
    bucket.calls.clear()
    asyncio.run(dataset.read_page(4))
    assert bucket.calls == [("get_range", "tokens-00001", 24, 24)]


@pytest.mark.parametrize(("vocab_size", "token_bytes"), [(2, 2), (65_536, 2), (65_537, 4), (2**32, 4)])
def test_token_ids_take_two_bytes_until_the_vocabulary_needs_four(
    bucket: Any, vocab_size: int, token_bytes: int
) -> None:
    tokens = np.full(36, vocab_size - 1, dtype=np.uint32)
    dataset = asyncio.run(open_dataset(bucket, write(bucket, tokens, vocab_size=vocab_size)))
    assert dataset.index.token_bytes == token_bytes
    np.testing.assert_array_equal(asyncio.run(dataset.read_page(0)), np.full((3, 4), vocab_size - 1))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_golden_vectors_hold(bucket: Any, vector: dict[str, Any]) -> None:
    digest = asyncio.run(
        write_dataset(
            bucket,
            np.array(vector["tokens"], dtype=np.uint32),
            tokenizer=bytes.fromhex(vector["tokenizer"]),
            **vector["sizes"],
        )
    )
    found = {path.name: path.read_bytes() for path in bucket.inner.root.iterdir()}
    assert found == {name: bytes.fromhex(data) for name, data in vector["objects"].items()}
    assert digest == vector["digest"]


def test_the_index_is_written_last(bucket: Any) -> None:
    write(bucket, tokens_up_to(96))
    assert [call[1] for call in bucket.calls] == [
        "tokens-00000",
        "tokens-00001",
        "tokens-00002",
        "tokenizer.json",
        "dataset.json",
    ]


def test_too_few_tokens_are_counted_in_the_error_and_nothing_is_written(bucket: Any) -> None:
    with pytest.raises(DatasetError, match="there are 35 tokens and 36 are needed"):
        write(bucket, tokens_up_to(35))
    assert bucket.calls == []
    write(bucket, tokens_up_to(36))


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence_tokens": 1},
        {"page_sequences": 0},
        {"held_out_pages": -1},
        {"shard_pages": 0},
        {"vocab_size": 1},
        {"vocab_size": 2**32 + 1},
        {"vocab_size": 999},
        {"sequence_tokens": 2**20, "page_sequences": 2**10},
    ],
)
def test_sizes_that_make_no_sense_are_refused_before_anything_is_written(bucket: Any, changes: Any) -> None:
    tokens = np.full(96, 999, dtype=np.uint32)
    with pytest.raises(DatasetError):
        write(bucket, tokens, **changes)
    assert bucket.calls == []


@pytest.mark.parametrize("tokens", [np.zeros(96, np.int64), np.zeros((2, 48), np.uint32)])
def test_only_a_flat_array_of_uint32_is_taken(bucket: Any, tokens: np.ndarray) -> None:
    with pytest.raises(DatasetError, match="1-D uint32"):
        write(bucket, tokens)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    length=st.integers(2, 5),
    sequences=st.integers(1, 3),
    held_out=st.integers(0, 3),
    shard_pages=st.integers(1, 4),
    count=st.integers(0, 90),
)
def test_any_cut_keeps_every_page_and_its_order(
    tmp_path_factory: Any, length: int, sequences: int, held_out: int, shard_pages: int, count: int
) -> None:
    bucket = DirectoryBucket(tmp_path_factory.mktemp("cut"))
    sizes = {
        "sequence_tokens": length,
        "page_sequences": sequences,
        "held_out_pages": held_out,
        "shard_pages": shard_pages,
    }
    total = count // (length * sequences)
    tokens = tokens_up_to(count)
    if total < held_out + 1:
        with pytest.raises(DatasetError, match="are needed"):
            write(bucket, tokens, **sizes)
        return
    digest = write(bucket, tokens, **sizes)

    async def scenario() -> list[np.ndarray]:
        dataset = await open_dataset(bucket, digest)
        await dataset.verify()
        return [await dataset.read_page(number) for number in range(dataset.index.pages)] + [
            await dataset.read_held_out(number) for number in range(held_out)
        ]

    pages = asyncio.run(scenario())
    assert len(pages) == total
    np.testing.assert_array_equal(np.concatenate(pages).reshape(-1), tokens[: total * length * sequences])


def test_a_page_that_does_not_exist_is_refused_without_a_request(bucket: Any) -> None:
    dataset = asyncio.run(open_dataset(bucket, write(bucket, tokens_up_to(96))))
    bucket.calls.clear()
    for read, numbers in ((dataset.read_page, (-1, 6, 7)), (dataset.read_held_out, (-1, 2))):
        for number in numbers:
            with pytest.raises(DatasetError):
                asyncio.run(read(number))
    assert bucket.calls == []


def test_a_dataset_with_another_digest_is_not_opened(bucket: Any) -> None:
    digest = write(bucket, tokens_up_to(96))
    with pytest.raises(DatasetError, match="the bucket holds dataset"):
        asyncio.run(open_dataset(bucket, "0" * 64))
    (bucket.inner.root / "dataset.json").write_bytes((bucket.inner.root / "dataset.json").read_bytes() + b" ")
    with pytest.raises(DatasetError, match="the bucket holds dataset"):
        asyncio.run(open_dataset(bucket, digest))


def test_a_bucket_without_a_dataset_says_so(bucket: Any) -> None:
    with pytest.raises(DatasetError, match=r"holds no dataset\.json"):
        asyncio.run(open_dataset(bucket, "0" * 64))


def test_an_oversize_index_is_refused(bucket: Any) -> None:
    write(bucket, tokens_up_to(96))
    with (bucket.inner.root / "dataset.json").open("r+b") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(DatasetError, match="larger"):
        asyncio.run(open_dataset(bucket, "0" * 64))


SHARD = {"name": "tokens-00000", "pages": 8, "size_bytes": 192, "digest": "0" * 64}


@pytest.mark.parametrize(
    "changes",
    [
        {"surprise": 1},
        {"version": 2},
        {"version": "1"},
        {"pages": 7},
        {"pages": 0},
        {"pages": 6.0},
        {"held_out_pages": -1},
        {"token_bytes": 4},
        {"token_bytes": 3},
        {"vocab_size": 65_537},
        {"vocab_size": 10**30},
        {"sequence_tokens": 1},
        {"sequence_tokens": 2**26, "page_sequences": 2**26},
        {"tokenizer_digest": "0" * 63},
        {"tokenizer_digest": "A" * 64},
        {"shards": []},
        {"shards": [SHARD | {"name": "../secret"}]},
        {"shards": [SHARD | {"name": "dataset.json"}]},
        {"shards": [SHARD | {"name": ""}]},
        {"shards": [SHARD | {"size_bytes": 191}]},
        {"shards": [SHARD | {"pages": 9, "size_bytes": 216}]},
        {"shards": [SHARD | {"pages": 4, "size_bytes": 96}] * 2},
        {"shards": [SHARD | {"extra": 0}]},
    ],
)
def test_an_index_that_does_not_add_up_is_refused(bucket: Any, changes: dict[str, Any]) -> None:
    write(bucket, tokens_up_to(96))
    asyncio.run(open_dataset(bucket, rewrite_index(bucket, shards=[SHARD])))  # so far it does
    with pytest.raises(DatasetError, match=r"dataset\.json is malformed"):
        asyncio.run(open_dataset(bucket, rewrite_index(bucket, **changes)))


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"version":NaN}'])
def test_an_index_that_is_not_json_of_the_right_shape_is_refused(data: bytes) -> None:
    with pytest.raises(DatasetError, match="malformed"):
        DatasetIndex.from_bytes(data, "dataset.json", DatasetError)


def test_a_token_outside_the_vocabulary_is_refused_when_its_page_is_read(bucket: Any) -> None:
    dataset = asyncio.run(open_dataset(bucket, write(bucket, tokens_up_to(96))))
    path = bucket.inner.root / "tokens-00000"
    path.write_bytes(path.read_bytes()[:46] + (1000).to_bytes(2, "little") + path.read_bytes()[48:])
    asyncio.run(dataset.read_page(0))
    with pytest.raises(DatasetError, match="page 1 holds token 1000"):
        asyncio.run(dataset.read_page(1))


def test_verify_finds_one_flipped_bit(bucket: Any) -> None:
    dataset = asyncio.run(open_dataset(bucket, write(bucket, tokens_up_to(96))))
    path = bucket.inner.root / "tokens-00001"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(DatasetError, match="tokens-00001"):
        asyncio.run(dataset.verify())


def test_verify_finds_swapped_shards(bucket: Any) -> None:
    dataset = asyncio.run(open_dataset(bucket, write(bucket, tokens_up_to(96))))
    first, second = bucket.inner.root / "tokens-00000", bucket.inner.root / "tokens-00001"
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    with pytest.raises(DatasetError, match="tokens-00000"):
        asyncio.run(dataset.verify())


@pytest.mark.parametrize("change", [-1, 1])
def test_verify_finds_a_shard_of_another_length(bucket: Any, change: int) -> None:
    dataset = asyncio.run(open_dataset(bucket, write(bucket, tokens_up_to(96))))
    with (bucket.inner.root / "tokens-00000").open("r+b") as file:
        file.truncate(72 + change)
    with pytest.raises(DatasetError, match=f"has {72 + change} bytes"):
        asyncio.run(dataset.verify())


def test_verify_reads_in_bounded_ranges(bucket: Any) -> None:
    tokens = np.zeros(5 << 20, dtype=np.uint32)
    digest = write(bucket, tokens, sequence_tokens=1 << 18, page_sequences=1, held_out_pages=0, shard_pages=100)
    dataset = asyncio.run(open_dataset(bucket, digest))
    bucket.calls.clear()
    asyncio.run(dataset.verify())
    assert [call[2:] for call in bucket.calls if call[0] == "get_range"] == [(0, 8 << 20), (8 << 20, 2 << 20)]


def test_a_truncated_shard_or_a_missing_one_is_an_error_at_the_page(bucket: Any) -> None:
    dataset = asyncio.run(open_dataset(bucket, write(bucket, tokens_up_to(96))))
    with (bucket.inner.root / "tokens-00000").open("r+b") as file:
        file.truncate(71)
    asyncio.run(dataset.read_page(1))
    with pytest.raises(StorageError, match="ends at 71"):
        asyncio.run(dataset.read_page(2))
    (bucket.inner.root / "tokens-00000").unlink()
    with pytest.raises(NotFound):
        asyncio.run(dataset.read_page(1))


def test_another_tokenizer_is_refused(bucket: Any) -> None:
    dataset = asyncio.run(open_dataset(bucket, write(bucket, tokens_up_to(96))))
    (bucket.inner.root / "tokenizer.json").write_bytes(b"another")
    for call in (dataset.read_tokenizer(), dataset.verify()):
        with pytest.raises(DatasetError, match=r"tokenizer\.json is not the one"):
            asyncio.run(call)
