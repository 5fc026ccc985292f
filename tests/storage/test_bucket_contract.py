"""What every adapter of the bucket port must do. A new adapter is one more name in `ADAPTERS`."""

from __future__ import annotations

import asyncio
import string
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.bucket import Bucket
from storage.directory import DirectoryBucket
from storage.errors import AlreadyExists, BadKey, NotFound, StorageError, TooLarge

ADAPTERS = ("directory",)

BAD_KEYS = (
    "",
    "/",
    "/etc/passwd",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/./b",
    "a\\b",
    "a\0b",
    "a\n",
    "a b",
    "~a",
    "a/~b",
    "ключ",
    "a" * 129,
    "a/" * 256 + "a",
)


@contextmanager
def empty_bucket(adapter: str) -> Iterator[Bucket]:
    assert adapter == "directory"
    with tempfile.TemporaryDirectory() as folder:
        yield DirectoryBucket(Path(folder) / "bucket")


@pytest.fixture(params=ADAPTERS)
def bucket(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    with empty_bucket(request.param) as made:
        yield made


async def keys_under(bucket: Bucket, prefix: str) -> list[str]:
    return [info.key async for info in bucket.list(prefix)]


def test_an_object_is_read_back_whole(bucket: Bucket) -> None:
    async def scenario() -> None:
        for data in (b"", b"x", bytes(range(256)) * 5000):
            await bucket.put("a/b/c", data)
            assert await bucket.get("a/b/c", limit_bytes=len(data)) == data

    asyncio.run(scenario())


def test_a_get_refuses_one_byte_more_than_its_limit(bucket: Bucket) -> None:
    async def scenario() -> None:
        await bucket.put("a", b"12345")
        assert await bucket.get("a", limit_bytes=5) == b"12345"
        with pytest.raises(TooLarge):
            await bucket.get("a", limit_bytes=4)

    asyncio.run(scenario())


def test_a_conditional_put_keeps_the_first_object(bucket: Bucket) -> None:
    async def scenario() -> None:
        await bucket.put_if_absent("a/b", b"first")
        with pytest.raises(AlreadyExists):
            await bucket.put_if_absent("a/b", b"second")
        assert await bucket.get("a/b", limit_bytes=10) == b"first"
        await bucket.delete("a/b")
        await bucket.put_if_absent("a/b", b"third")
        assert await bucket.get("a/b", limit_bytes=10) == b"third"

    asyncio.run(scenario())


def test_of_many_conditional_puts_at_once_exactly_one_succeeds(bucket: Bucket) -> None:
    async def attempt(number: int) -> int | None:
        try:
            await bucket.put_if_absent("window/head", b"%d" % number)
        except AlreadyExists:
            return None
        return number

    async def scenario() -> None:
        winners = [won for won in await asyncio.gather(*map(attempt, range(16))) if won is not None]
        assert len(winners) == 1
        assert await bucket.get("window/head", limit_bytes=10) == b"%d" % winners[0]

    asyncio.run(scenario())


def test_readers_of_an_object_being_replaced_see_the_old_or_the_new_one_whole(bucket: Bucket) -> None:
    versions = [bytes([number]) * (40_000 + number) for number in range(20)]

    async def write() -> None:
        for version in versions:
            await bucket.put("a/b", version)

    async def read() -> None:
        for _ in range(60):
            assert await bucket.get("a/b", limit_bytes=100_000) in versions

    async def scenario() -> None:
        await bucket.put("a/b", versions[0])
        await asyncio.gather(write(), read(), read())

    asyncio.run(scenario())


@pytest.mark.parametrize(("start", "length"), [(0, 1), (0, 10), (3, 4), (9, 1)])
def test_a_range_is_exact(bucket: Bucket, start: int, length: int) -> None:
    async def scenario() -> None:
        await bucket.put("a", b"0123456789")
        assert await bucket.get_range("a", start, length) == b"0123456789"[start : start + length]

    asyncio.run(scenario())


@pytest.mark.parametrize(("start", "length"), [(0, 11), (9, 2), (10, 1), (2**40, 1), (0, 2**40)])
def test_a_range_beyond_the_end_is_an_error_and_never_short(bucket: Bucket, start: int, length: int) -> None:
    async def scenario() -> None:
        await bucket.put("a", b"0123456789")
        with pytest.raises(StorageError):
            await bucket.get_range("a", start, length)

    asyncio.run(scenario())


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, 0), (0, -1)])
def test_a_range_that_makes_no_sense_is_the_callers_error(bucket: Bucket, start: int, length: int) -> None:
    with pytest.raises(ValueError, match="range"):
        asyncio.run(bucket.get_range("a", start, length))


def test_a_missing_object_is_not_found_by_every_reader(bucket: Bucket) -> None:
    async def scenario() -> None:
        for _ in range(2):  # in a bucket never written to, and in one that holds something else
            for key in ("a", "a/b", "other/x/y"):
                with pytest.raises(NotFound):
                    await bucket.get(key, limit_bytes=10)
                with pytest.raises(NotFound):
                    await bucket.get_range(key, 0, 1)
                with pytest.raises(NotFound):
                    await bucket.head(key)
            await bucket.put("other/x/z", b"")

    asyncio.run(scenario())


def test_head_and_list_tell_the_same_size_and_time(bucket: Bucket) -> None:
    async def scenario() -> None:
        await bucket.put("a/b", b"12345")
        head = await bucket.head("a/b")
        assert (head.key, head.size_bytes) == ("a/b", 5)
        assert head.last_modified > 1_000_000_000
        assert [info async for info in bucket.list("a/")] == [head]

    asyncio.run(scenario())


def test_a_list_is_in_the_order_of_whole_keys(bucket: Bucket) -> None:
    async def scenario() -> None:
        keys = ["a-b", "a.b/c", "a/b", "a/c/d", "a0", "ab", "b/a", "b/a.json"]
        for key in reversed(keys):
            await bucket.put(key, b"")
        assert await keys_under(bucket, "") == sorted(keys) == keys
        assert await keys_under(bucket, "a/") == ["a/b", "a/c/d"]
        assert await keys_under(bucket, "a") == keys[:6]
        assert await keys_under(bucket, "b/a.") == ["b/a.json"]
        assert await keys_under(bucket, "a/b") == ["a/b"]
        assert await keys_under(bucket, "c/d/") == []
        assert await keys_under(bucket, "a/b/") == []

    asyncio.run(scenario())


PARTS = st.text(alphabet="aB0.-+=_", min_size=1, max_size=3).filter(lambda part: part not in (".", ".."))


@pytest.mark.parametrize("adapter", ADAPTERS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(paths=st.sets(st.lists(PARTS, min_size=1, max_size=3).map(tuple), max_size=8), data=st.data())
def test_a_list_is_the_sorted_keys_with_the_prefix(
    adapter: str, paths: set[tuple[str, ...]], data: st.DataObject
) -> None:
    # An object and a folder of one name can stand together in no adapter that is a file system.
    keys = sorted("/".join(path) for path in paths if not any(path == other[: len(path)] for other in paths - {path}))
    whole = data.draw(st.sampled_from(keys)) if keys else ""
    prefix = whole[: data.draw(st.integers(0, len(whole)))]

    async def scenario(bucket: Bucket) -> None:
        for key in keys:
            await bucket.put(key, b"")
        assert await keys_under(bucket, prefix) == [key for key in keys if key.startswith(prefix)]

    with empty_bucket(adapter) as bucket:
        asyncio.run(scenario(bucket))


def test_objects_may_be_deleted_while_they_are_listed(bucket: Bucket) -> None:
    async def scenario() -> None:
        keys = [f"a/{number:02d}/b" for number in range(30)]
        for key in keys:
            await bucket.put(key, b"")
        seen = []
        async for info in bucket.list("a/"):
            seen.append(info.key)
            await asyncio.gather(bucket.delete(info.key), bucket.delete("a/29/b"))
        assert seen[:29] == keys[:29]
        assert await keys_under(bucket, "") == []

    asyncio.run(scenario())


def test_a_delete_is_idempotent_and_takes_nothing_else(bucket: Bucket) -> None:
    async def scenario() -> None:
        await bucket.put("a/b/c", b"c")
        await bucket.put("a/d", b"d")
        for _ in range(2):
            await bucket.delete("a/b/c")
        await bucket.delete("a")
        await bucket.delete("never/there")
        assert await keys_under(bucket, "") == ["a/d"]

    asyncio.run(scenario())


def test_puts_and_deletes_side_by_side_lose_nothing(bucket: Bucket) -> None:
    async def come_and_go(name: str) -> None:
        for _ in range(25):
            await bucket.put(f"w/peer/{name}", b"")
            await bucket.delete(f"w/peer/{name}")
        await bucket.put(f"w/peer/{name}", b"last")

    async def scenario() -> None:
        await asyncio.gather(*(come_and_go(name) for name in "abcd"))
        assert await keys_under(bucket, "w/") == [f"w/peer/{name}" for name in "abcd"]

    asyncio.run(scenario())


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_is_not_plain_is_refused_by_every_verb(bucket: Bucket, key: str) -> None:
    async def scenario() -> None:
        for call in (
            bucket.put(key, b""),
            bucket.put_if_absent(key, b""),
            bucket.get(key, limit_bytes=1),
            bucket.get_range(key, 0, 1),
            bucket.head(key),
            bucket.delete(key),
        ):
            with pytest.raises(BadKey):
                await call

    asyncio.run(scenario())


@pytest.mark.parametrize("prefix", ["/", "/a", "../", "a/../", "a//", "a/../b", "~", "a/~", "a b", "a" * 129])
def test_a_prefix_no_key_can_begin_with_is_refused(bucket: Bucket, prefix: str) -> None:
    with pytest.raises(BadKey):
        asyncio.run(keys_under(bucket, prefix))


def test_every_allowed_character_can_be_in_a_key(bucket: Bucket) -> None:
    async def scenario() -> None:
        key = f"{string.ascii_letters}/{string.digits}_.=+-"
        await bucket.put(key, b"data")
        assert await keys_under(bucket, "") == [key]
        assert await bucket.get(key, limit_bytes=4) == b"data"

    asyncio.run(scenario())
