"""What every adapter of the bucket port must do. A new adapter is one more name in `ADAPTERS`, or in `READERS` if it
can only read."""

from __future__ import annotations

import asyncio
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.bucket import Bucket
from storage.errors import AlreadyExists, BadKey, NotFound, StorageError, TooLarge, WrongSize
from tests.storage.stores import S3, Opened, Store, in_directory, over_https
from tests.storage.tls import Tls

ADAPTERS = ("directory", "s3")
READERS = (*ADAPTERS, "https")

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


def opened(adapter: str, request: pytest.FixtureRequest) -> Store:
    if adapter == "directory":
        return Store(in_directory)
    if adapter == "s3":
        s3: S3 = request.getfixturevalue("s3")
        return Store(s3.open)
    tls: Tls = request.getfixturevalue("tls")
    return Store(over_https(tls))


@pytest.fixture(params=ADAPTERS)
def store(request: pytest.FixtureRequest) -> Store:
    return opened(request.param, request)


@pytest.fixture(params=READERS)
def readable(request: pytest.FixtureRequest) -> Store:
    return opened(request.param, request)


async def keys_under(bucket: Bucket, prefix: str) -> list[str]:
    return [info.key async for info in bucket.list(prefix)]


def test_an_object_is_read_back_whole(readable: Store) -> None:
    async def scenario(store: Opened) -> None:
        for data in (b"", b"x", bytes(range(256)) * 5000):
            await store.writer.put("a/b/c", data)
            assert await store.reader.get("a/b/c", limit_bytes=len(data)) == data

    readable.run_both(scenario)


def test_a_get_refuses_one_byte_more_than_its_limit(readable: Store) -> None:
    async def scenario(store: Opened) -> None:
        await store.writer.put("a", b"12345")
        assert await store.reader.get("a", limit_bytes=5) == b"12345"
        with pytest.raises(TooLarge):
            await store.reader.get("a", limit_bytes=4)

    readable.run_both(scenario)


def test_a_conditional_put_keeps_the_first_object(store: Store) -> None:
    async def scenario(bucket: Bucket) -> None:
        await bucket.put_if_absent("a/b", b"first")
        with pytest.raises(AlreadyExists):
            await bucket.put_if_absent("a/b", b"second")
        assert await bucket.get("a/b", limit_bytes=10) == b"first"
        await bucket.delete("a/b")
        await bucket.put_if_absent("a/b", b"third")
        assert await bucket.get("a/b", limit_bytes=10) == b"third"

    store.run(scenario)


class Pieces:
    """A writer that keeps what it gets where it belongs."""

    def __init__(self) -> None:
        self.found = bytearray()

    async def write(self, at: int, piece: bytes) -> None:
        del self.found[at:]
        assert len(self.found) == at
        self.found += piece


def test_a_range_is_copied_piece_by_piece_from_an_object_of_known_size(readable: Store) -> None:
    data = bytes(range(256)) * 40_000

    async def scenario(store: Opened) -> None:
        await store.writer.put("a", data)
        for start, length in ((0, len(data)), (1, 5_000_000), (len(data) - 1, 1)):
            pieces = Pieces()
            await store.reader.copy_range("a", start, length, pieces, size_bytes=len(data))
            assert pieces.found == data[start : start + length]
        for size_bytes in (len(data) - 1, len(data) + 1):
            with pytest.raises(WrongSize):
                await store.reader.copy_range("a", 0, 10, Pieces(), size_bytes=size_bytes)
        with pytest.raises(NotFound):
            await store.reader.copy_range("b", 0, 10, Pieces(), size_bytes=10)

    readable.run_both(scenario)


def test_of_many_conditional_puts_at_once_exactly_one_succeeds(store: Store) -> None:
    async def attempt(bucket: Bucket, number: int) -> int | None:
        try:
            await bucket.put_if_absent("window/head", b"%d" % number)
        except AlreadyExists:
            return None
        return number

    async def scenario(bucket: Bucket) -> None:
        attempts = await asyncio.gather(*(attempt(bucket, number) for number in range(16)))
        winners = [won for won in attempts if won is not None]
        assert len(winners) == 1
        assert await bucket.get("window/head", limit_bytes=10) == b"%d" % winners[0]

    store.run(scenario)


def test_readers_of_an_object_being_replaced_see_the_old_or_the_new_one_whole(store: Store) -> None:
    versions = [bytes([number]) * (40_000 + number) for number in range(20)]

    async def write(bucket: Bucket) -> None:
        for version in versions:
            await bucket.put("a/b", version)

    async def read(bucket: Bucket) -> None:
        for _ in range(60):
            assert await bucket.get("a/b", limit_bytes=100_000) in versions

    async def scenario(bucket: Bucket) -> None:
        await bucket.put("a/b", versions[0])
        await asyncio.gather(write(bucket), read(bucket), read(bucket))

    store.run(scenario)


@pytest.mark.parametrize(("start", "length"), [(0, 1), (0, 10), (3, 4), (9, 1)])
def test_a_range_is_exact(readable: Store, start: int, length: int) -> None:
    async def scenario(store: Opened) -> None:
        await store.writer.put("a", b"0123456789")
        assert await store.reader.get_range("a", start, length) == b"0123456789"[start : start + length]

    readable.run_both(scenario)


@pytest.mark.parametrize(("start", "length"), [(0, 11), (9, 2), (10, 1), (2**40, 1), (0, 2**40)])
def test_a_range_beyond_the_end_is_an_error_and_never_short(readable: Store, start: int, length: int) -> None:
    async def scenario(store: Opened) -> None:
        await store.writer.put("a", b"0123456789")
        with pytest.raises(StorageError, match="ends"):
            await store.reader.get_range("a", start, length)

    readable.run_both(scenario)


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, 0), (0, -1)])
def test_a_range_that_makes_no_sense_is_the_callers_error(readable: Store, start: int, length: int) -> None:
    async def scenario(store: Opened) -> None:
        with pytest.raises(ValueError, match="range"):
            await store.reader.get_range("a", start, length)

    readable.run_both(scenario)


def test_a_missing_object_is_not_found_by_every_reader(readable: Store) -> None:
    async def scenario(store: Opened) -> None:
        for _ in range(2):  # in a bucket never written to, and in one that holds something else
            for key in ("a", "a/b", "other/x/y"):
                with pytest.raises(NotFound):
                    await store.reader.get(key, limit_bytes=10)
                with pytest.raises(NotFound):
                    await store.reader.get_range(key, 0, 1)
                with pytest.raises(NotFound):
                    await store.reader.head(key)
            await store.writer.put("other/x/z", b"")

    readable.run_both(scenario)


def test_the_head_of_an_object_tells_its_size_and_a_time_that_can_be(readable: Store) -> None:
    async def scenario(store: Opened) -> None:
        for data in (b"", b"12345"):
            await store.writer.put("a/b", data)
            head = await store.reader.head("a/b")
            assert (head.key, head.size_bytes) == ("a/b", len(data))
            assert head.last_modified > 1_000_000_000

    readable.run_both(scenario)


def test_head_and_list_tell_the_same_size_and_time(store: Store) -> None:
    async def scenario(bucket: Bucket) -> None:
        await bucket.put("a/b", b"12345")
        head = await bucket.head("a/b")
        assert [info async for info in bucket.list("a/")] == [head]

    store.run(scenario)


def test_a_list_is_in_the_order_of_whole_keys(store: Store) -> None:
    async def scenario(bucket: Bucket) -> None:
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

    store.run(scenario)


PARTS = st.text(alphabet="aB0.-+=_", min_size=1, max_size=3).filter(lambda part: part not in (".", ".."))


@pytest.mark.parametrize("adapter", ADAPTERS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(paths=st.sets(st.lists(PARTS, min_size=1, max_size=3).map(tuple), max_size=8), data=st.data())
def test_a_list_is_the_sorted_keys_with_the_prefix(
    adapter: str, request: pytest.FixtureRequest, paths: set[tuple[str, ...]], data: st.DataObject
) -> None:
    # An object and a folder of one name can stand together in no adapter that is a file system.
    keys = sorted("/".join(path) for path in paths if not any(path == other[: len(path)] for other in paths - {path}))
    whole = data.draw(st.sampled_from(keys)) if keys else ""
    prefix = whole[: data.draw(st.integers(0, len(whole)))]

    async def scenario(bucket: Bucket) -> None:
        for key in keys:
            await bucket.put(key, b"")
        assert await keys_under(bucket, prefix) == [key for key in keys if key.startswith(prefix)]

    opened(adapter, request).run(scenario)


def test_objects_may_be_deleted_while_they_are_listed(store: Store) -> None:
    async def scenario(bucket: Bucket) -> None:
        keys = [f"a/{number:02d}/b" for number in range(30)]
        for key in keys:
            await bucket.put(key, b"")
        seen = []
        async for info in bucket.list("a/"):
            seen.append(info.key)
            await asyncio.gather(bucket.delete(info.key), bucket.delete("a/29/b"))
        assert seen[:29] == keys[:29]
        assert await keys_under(bucket, "") == []

    store.run(scenario)


def test_a_delete_is_idempotent_and_takes_nothing_else(store: Store) -> None:
    async def scenario(bucket: Bucket) -> None:
        await bucket.put("a/b/c", b"c")
        await bucket.put("a/d", b"d")
        for _ in range(2):
            await bucket.delete("a/b/c")
        await bucket.delete("a")
        await bucket.delete("never/there")
        assert await keys_under(bucket, "") == ["a/d"]

    store.run(scenario)


def test_puts_and_deletes_side_by_side_lose_nothing(store: Store) -> None:
    async def come_and_go(bucket: Bucket, name: str) -> None:
        for _ in range(25):
            await bucket.put(f"w/peer/{name}", b"")
            await bucket.delete(f"w/peer/{name}")
        await bucket.put(f"w/peer/{name}", b"last")

    async def scenario(bucket: Bucket) -> None:
        await asyncio.gather(*(come_and_go(bucket, name) for name in "abcd"))
        assert await keys_under(bucket, "w/") == [f"w/peer/{name}" for name in "abcd"]

    store.run(scenario)


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_is_not_plain_is_refused_by_every_verb(store: Store, key: str) -> None:
    async def scenario(bucket: Bucket) -> None:
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

    store.run(scenario)


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_is_not_plain_is_refused_by_every_reader(readable: Store, key: str) -> None:
    async def scenario(store: Opened) -> None:
        for call in (store.reader.get(key, limit_bytes=1), store.reader.get_range(key, 0, 1), store.reader.head(key)):
            with pytest.raises(BadKey):
                await call

    readable.run_both(scenario)


@pytest.mark.parametrize("prefix", ["/", "/a", "../", "a/../", "a//", "a/../b", "~", "a/~", "a b", "a" * 129])
def test_a_prefix_no_key_can_begin_with_is_refused(store: Store, prefix: str) -> None:
    async def scenario(bucket: Bucket) -> None:
        with pytest.raises(BadKey):
            await keys_under(bucket, prefix)

    store.run(scenario)


def test_a_list_goes_on_beyond_a_thousand_objects(store: Store) -> None:
    async def scenario(bucket: Bucket) -> None:
        keys = [f"a/{number:04d}" for number in range(2005)]
        for start in range(0, len(keys), 50):
            await asyncio.gather(*(bucket.put(key, b"") for key in keys[start : start + 50]))
        assert await keys_under(bucket, "a/") == keys

    store.run(scenario)


def test_every_allowed_character_can_be_in_a_key(store: Store) -> None:
    async def scenario(bucket: Bucket) -> None:
        key = f"{string.ascii_letters}/{string.digits}_.=+-"
        await bucket.put(key, b"data")
        assert await keys_under(bucket, "") == [key]
        assert await bucket.get(key, limit_bytes=4) == b"data"

    store.run(scenario)
