"""A dataset in a bucket of its own, read page by page (protocol §7). Nobody downloads it.

`dataset.json` describes shard objects of little-endian token ids and `tokenizer.json`. A sequence is L tokens, a
page P sequences, a shard a run of whole pages. Page numbers run through the shards in order; the assignable pages
come first, the held-out ones are the tail.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Literal, Self

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from pydantic import Field, model_validator

from storage.bucket import Bucket, check_key
from storage.documents import Digest, StoredDocument, digest_of
from storage.errors import BadKey, DatasetError, NotFound, TooLarge

INDEX_KEY = "dataset.json"
TOKENIZER_KEY = "tokenizer.json"
INDEX_LIMIT_BYTES = 16 << 20
TOKENIZER_LIMIT_BYTES = 64 << 20
PAGE_LIMIT_BYTES = 64 << 20
"""Largest page: what one read may bring into memory."""

SHARDS_LIMIT = 100_000
"""Most shards of one dataset: so many are described in less than `INDEX_LIMIT_BYTES`."""

_VERIFY_BYTES = 8 << 20

Count = Annotated[int, Field(ge=1, lt=2**48)]


class DatasetShard(StoredDocument):
    """One shard object: its key, how many whole pages it holds, its size and the BLAKE3 of its bytes."""

    name: str
    pages: Count
    size_bytes: Count
    digest: Digest


class DatasetIndex(StoredDocument):
    """All of `dataset.json`. `token_bytes` is 2 (uint16) up to a vocabulary of 65,536 and 4 (uint32) above;
    `pages` counts the assignable pages, `held_out_pages` the tail after them. Of the L = `sequence_tokens` tokens
    of a sequence the model predicts 1 … L−1 from 0 … L−2."""

    version: Literal[1] = 1
    vocab_size: Annotated[int, Field(ge=2, le=2**32)]
    token_bytes: Literal[2, 4]
    sequence_tokens: Annotated[int, Field(ge=2, le=PAGE_LIMIT_BYTES)]
    page_sequences: Annotated[int, Field(ge=1, le=PAGE_LIMIT_BYTES)]
    pages: Count
    held_out_pages: Annotated[int, Field(ge=0, lt=2**48)]
    tokenizer_digest: Digest
    shards: Annotated[tuple[DatasetShard, ...], Field(min_length=1)]

    @property
    def page_tokens(self) -> int:
        """Tokens of one page: P · L."""
        return self.page_sequences * self.sequence_tokens

    @property
    def page_bytes(self) -> int:
        """Stored bytes of one page."""
        return self.page_tokens * self.token_bytes

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.token_bytes != token_bytes_for(self.vocab_size):
            raise ValueError(f"token_bytes must be {token_bytes_for(self.vocab_size)} for this vocab_size")
        if self.page_bytes > PAGE_LIMIT_BYTES:
            raise ValueError(f"a page has {self.page_bytes} bytes, at most {PAGE_LIMIT_BYTES} are allowed")
        names = {INDEX_KEY, TOKENIZER_KEY}
        for shard in self.shards:
            _check_name(shard.name, names)
            names.add(shard.name)
            if shard.size_bytes != shard.pages * self.page_bytes:
                raise ValueError(f"{shard.name} must have {shard.pages * self.page_bytes} bytes for its pages")
        if sum(shard.pages for shard in self.shards) != self.pages + self.held_out_pages:
            raise ValueError("the pages of the shards must add up to pages + held_out_pages")
        return self


def _check_name(name: str, taken: set[str]) -> None:
    if name in taken:
        raise ValueError(f"{name} is named twice")
    try:
        check_key(name)
    except BadKey as error:
        raise ValueError(str(error)) from error


def token_bytes_for(vocab_size: int) -> Literal[2, 4]:
    """Stored bytes of one token id."""
    return 2 if vocab_size <= 1 << 16 else 4


@dataclass(frozen=True, slots=True)
class Dataset:
    """An opened dataset. `digest` is the BLAKE3 of the exact bytes of `dataset.json`; `shard_ends` are running
    page counts, one a shard.

    A page read is checked for length and for token ids inside the vocabulary, not against a digest: digests are of
    whole shards. `verify` checks those. Every method may also raise what `Bucket.get_range` raises.
    """

    bucket: Bucket
    digest: str
    index: DatasetIndex
    shard_ends: tuple[int, ...]

    async def read_page(self, number: int) -> NDArray[np.int64]:
        """Assignable page `number`, 0 … pages−1: token ids, int64 [P, L], by one range request. Raises
        `DatasetError` when there is no such page or a token id is outside the vocabulary."""
        if not 0 <= number < self.index.pages:
            raise DatasetError(f"page {number} is not assignable: pages are 0 to {self.index.pages - 1}")
        return await self._read(number)

    async def read_held_out(self, number: int) -> NDArray[np.int64]:
        """Held-out page `number`, 0 … held_out_pages−1, as `read_page`."""
        if not 0 <= number < self.index.held_out_pages:
            raise DatasetError(f"there is no held-out page {number}: there are {self.index.held_out_pages}")
        return await self._read(self.index.pages + number)

    async def read_tokenizer(self) -> bytes:
        """The bytes of a Hugging Face tokenizers file; `DatasetError` unless they have the digest in the index."""
        data = await _get(self.bucket, TOKENIZER_KEY, TOKENIZER_LIMIT_BYTES)
        if digest_of(data) != self.index.tokenizer_digest:
            raise DatasetError(f"{TOKENIZER_KEY} is not the one that the dataset was made with")
        return data

    async def verify(self) -> None:
        """Read the whole dataset once, in ranges of at most 8 MiB, and raise `DatasetError` at the first object
        whose size or digest is not the one in the index."""
        await self.read_tokenizer()
        for shard in self.index.shards:
            info = await self.bucket.head(shard.name)
            if info.size_bytes != shard.size_bytes:
                raise DatasetError(f"{shard.name} has {info.size_bytes} bytes, it must have {shard.size_bytes}")
            hasher = blake3()
            for start in range(0, shard.size_bytes, _VERIFY_BYTES):
                length = min(_VERIFY_BYTES, shard.size_bytes - start)
                hasher.update(await self.bucket.get_range(shard.name, start, length))
            if hasher.hexdigest() != shard.digest:
                raise DatasetError(f"{shard.name} does not have the digest that {INDEX_KEY} names")

    async def _read(self, page: int) -> NDArray[np.int64]:
        shard = bisect_right(self.shard_ends, page)
        first = self.shard_ends[shard - 1] if shard else 0
        size = self.index.page_bytes
        data = await self.bucket.get_range(self.index.shards[shard].name, (page - first) * size, size)
        tokens = np.frombuffer(data, dtype=f"<u{self.index.token_bytes}").astype(np.int64)
        if tokens.max() >= self.index.vocab_size:
            raise DatasetError(f"page {page} holds token {tokens.max()}, beyond {self.index.vocab_size} tokens")
        return tokens.reshape(self.index.page_sequences, self.index.sequence_tokens)


async def open_dataset(bucket: Bucket, digest: str) -> Dataset:
    """The dataset whose `dataset.json` has BLAKE3 `digest` (64 hexadecimal digits). Raises `DatasetError` when the
    one in the bucket is another or malformed."""
    data = await _get(bucket, INDEX_KEY, INDEX_LIMIT_BYTES)
    if digest_of(data) != digest:
        raise DatasetError(f"the bucket holds dataset {digest_of(data)[:16]}…, the run is on {digest[:16]}…")
    index = DatasetIndex.from_bytes(data, INDEX_KEY, DatasetError)
    return Dataset(bucket, digest, index, tuple(accumulate(shard.pages for shard in index.shards)))


async def write_dataset(
    bucket: Bucket,
    tokens: NDArray[np.uint32],
    *,
    vocab_size: int,
    sequence_tokens: int,
    page_sequences: int,
    held_out_pages: int,
    tokenizer: bytes,
    shard_pages: int,
) -> str:
    """Cut `tokens` (uint32, 1-D) into pages, the last `held_out_pages` of them held out, and store them in shards
    of at most `shard_pages` pages; a remainder shorter than a page is dropped. Returns the dataset's digest.

    Shards come first and `dataset.json` last, so a dataset that can be opened is complete. Raises `DatasetError`
    when there are too few tokens, a token id is outside the vocabulary, or a size makes no sense.
    """
    if len(tokenizer) > TOKENIZER_LIMIT_BYTES:
        raise DatasetError(f"the tokenizer has {len(tokenizer)} bytes, at most {TOKENIZER_LIMIT_BYTES} fit")
    _check_tokens(tokens, vocab_size)
    _check_sizes(vocab_size, sequence_tokens, page_sequences, held_out_pages, shard_pages)
    page_tokens = page_sequences * sequence_tokens
    pages = tokens.size // page_tokens - held_out_pages
    if pages < 1:
        needed = (held_out_pages + 1) * page_tokens
        raise DatasetError(f"there are {tokens.size} tokens and {needed} are needed: give more text")
    if (pages + held_out_pages) > shard_pages * SHARDS_LIMIT:
        raise DatasetError(f"there would be more than {SHARDS_LIMIT} shards: raise shard_pages")
    token_bytes = token_bytes_for(vocab_size)
    shards = []
    stop = (pages + held_out_pages) * page_tokens
    for number, piece in enumerate(_pieces(tokens[:stop], shard_pages * page_tokens)):
        data, digest = await asyncio.to_thread(_shard, piece, token_bytes)
        name = f"tokens-{number:05d}"
        await bucket.put(name, data)
        shards.append(DatasetShard(name=name, pages=piece.size // page_tokens, size_bytes=len(data), digest=digest))
    await bucket.put(TOKENIZER_KEY, tokenizer)
    index = DatasetIndex(
        vocab_size=vocab_size,
        token_bytes=token_bytes,
        sequence_tokens=sequence_tokens,
        page_sequences=page_sequences,
        pages=pages,
        held_out_pages=held_out_pages,
        tokenizer_digest=digest_of(tokenizer),
        shards=tuple(shards),
    ).to_bytes()
    await bucket.put(INDEX_KEY, index)
    return digest_of(index)


def _check_tokens(tokens: NDArray[np.uint32], vocab_size: int) -> None:
    if not 2 <= vocab_size <= 1 << 32:
        raise DatasetError(f"a vocabulary has 2 to {1 << 32} tokens, not {vocab_size}")
    if tokens.dtype != np.uint32 or tokens.ndim != 1:
        raise DatasetError(f"tokens must be a 1-D uint32 array, not {tokens.ndim}-D {tokens.dtype}")
    if tokens.size and int(tokens.max()) >= vocab_size:
        raise DatasetError(f"token {tokens.max()} is outside the vocabulary of {vocab_size}")


def _check_sizes(
    vocab_size: int, sequence_tokens: int, page_sequences: int, held_out_pages: int, shard_pages: int
) -> None:
    if sequence_tokens < 2 or page_sequences < 1 or shard_pages < 1 or held_out_pages < 0:
        raise DatasetError(
            "sequence_tokens must be at least 2, page_sequences and shard_pages at least 1, held_out_pages at least 0"
        )
    page_bytes = sequence_tokens * page_sequences * token_bytes_for(vocab_size)
    if page_bytes > PAGE_LIMIT_BYTES:
        raise DatasetError(f"a page would have {page_bytes} bytes, at most {PAGE_LIMIT_BYTES} are allowed")


def _pieces(tokens: NDArray[np.uint32], length: int) -> Iterator[NDArray[np.uint32]]:
    for start in range(0, tokens.size, length):
        yield tokens[start : start + length]


def _shard(tokens: NDArray[np.uint32], token_bytes: int) -> tuple[bytes, str]:
    data = tokens.astype(f"<u{token_bytes}").tobytes()
    return data, digest_of(data)


async def _get(bucket: Bucket, key: str, limit_bytes: int) -> bytes:
    try:
        return await bucket.get(key, limit_bytes=limit_bytes)
    except NotFound as error:
        raise DatasetError(f"the bucket holds no {key}: it is not a dataset's bucket, or not written yet") from error
    except TooLarge as error:
        raise DatasetError(f"{key} is larger than the {limit_bytes} bytes one may have") from error
