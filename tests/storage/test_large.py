"""Large objects: from a store into a file and back, whole or not at all, in little memory."""

from __future__ import annotations

import asyncio
import errno
import os
import tracemalloc
from pathlib import Path
from threading import Event

import pytest
from blake3 import blake3

from storage.errors import DiskUnusable, NotFound, StorageError, Unavailable
from storage.https import HttpsBucket
from storage.large import download, upload
from storage.together import in_thread
from storage.transfer import Reach, Transport
from tests.storage.proxy import FAULTS, Fault, Proxy, Request, Response
from tests.storage.stores import S3, transport

RANGE = 1 << 20
DATA = os.urandom(5 * RANGE + 77)


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.large.RANGE_BYTES", RANGE)
    monkeypatch.setattr("storage.large._BATCH_BYTES", 1 << 16)  # so that some of a range is written before it breaks


def serve(request: Request, data: bytes = DATA, tag: str = '"one"') -> Response:
    """`data` under every name."""
    headers = {"etag": tag} if tag else {}
    if request.method == "HEAD":
        return Response(200, headers | {"content-length": str(len(data))})
    first, last = request.headers["range"].removeprefix("bytes=").split("-")
    start, end = int(first), int(last) + 1
    return Response(206, headers | {"content-range": f"bytes {start}-{end - 1}/{len(data)}"}, data[start:end])


def test_a_file_comes_back_as_it_went(s3: S3, tmp_path: Path) -> None:
    data = os.urandom((40 << 20) + 5)
    (tmp_path / "there").write_bytes(data)

    async def scenario() -> None:
        async with s3.bucket() as bucket:
            for size in (0, 1, RANGE, len(data)):
                (tmp_path / "there").write_bytes(data[:size])
                await upload(bucket, "a", tmp_path / "there")
                digest = await download(bucket, "a", size, tmp_path / "back")
                assert digest == blake3(data[:size]).hexdigest()
                assert (tmp_path / "back").read_bytes() == data[:size]

    asyncio.run(scenario())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "there"]


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (len(DATA) - 1, f"has {len(DATA)} bytes, not the {len(DATA) - 1}"),
        (len(DATA) + 1, f"has {len(DATA)} bytes, not the {len(DATA) + 1}"),
        (1, f"has {len(DATA)} bytes, not the 1"),
        (0, "is not empty"),
    ],
)
def test_an_object_of_another_size_is_refused(tmp_path: Path, size: int, said: str) -> None:
    async def scenario() -> None:
        async with Proxy(serve) as server, transport() as shared:
            with pytest.raises(StorageError, match=said):
                await download(HttpsBucket(server.url, shared), "a", size, tmp_path / "a")

    asyncio.run(scenario())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tag", ['"one"', ""], ids=["resumed", "begun again"])
@pytest.mark.parametrize("fault", ["truncated", "reset in the body", "closed in a chunk", "slow down"])
def test_ranges_that_break_off_are_mended(tmp_path: Path, fault: str, tag: str) -> None:
    seen: set[str] = set()

    def once(request: Request) -> Fault | None:
        name = request.headers.get("range", "")
        if not name or name in seen or "if-match" in request.headers:
            return None
        seen.add(name)
        return FAULTS[fault]

    async def scenario() -> None:
        async with Proxy(lambda request: serve(request, tag=tag), once) as server, transport() as shared:
            digest = await download(HttpsBucket(server.url, shared), "a", len(DATA), tmp_path / "a")
            assert server.injected.total() == 6
        assert digest == blake3(DATA).hexdigest()
        assert (tmp_path / "a").read_bytes() == DATA

    asyncio.run(scenario())


def test_the_digest_is_that_of_the_file_even_if_the_object_changes_meanwhile(tmp_path: Path) -> None:
    """Each range comes half from one object, and then whole from another."""
    other, broken = DATA[::-1], set[str]()

    def changing(request: Request) -> Response:
        known = request.headers.get("range", "") in broken
        return serve(request, other if known else DATA, tag="")

    def once(request: Request) -> Fault | None:
        name = request.headers.get("range", "")
        if not name or name in broken:
            return None
        broken.add(name)
        return FAULTS["truncated"] if len(broken) % 2 else None

    async def scenario() -> None:
        async with Proxy(changing, once) as server, transport() as shared:
            digest = await download(HttpsBucket(server.url, shared), "a", len(DATA), tmp_path / "a")
        assert digest == blake3((tmp_path / "a").read_bytes()).hexdigest()
        assert digest != blake3(DATA).hexdigest()

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", ["truncated", "internal error", "another range", "redirect to a stranger"])
def test_a_download_that_fails_leaves_what_was_there(tmp_path: Path, fault: str) -> None:
    (tmp_path / "a").write_bytes(b"before")

    def fourth(request: Request) -> Fault | None:
        return FAULTS[fault] if request.headers.get("range", "").startswith(f"bytes={3 * RANGE}") else None

    async def scenario() -> None:
        async with Proxy(lambda request: serve(request, tag=""), fourth) as server, transport() as shared:
            with pytest.raises(Unavailable):
                await download(HttpsBucket(server.url, shared), "a", len(DATA), tmp_path / "a")

    asyncio.run(scenario())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"


def test_a_download_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Proxy(serve, lambda r: FAULTS["stall in the body"] if "range" in r.headers else None) as server:
            own = Transport(Reach.ANY)
            task = asyncio.create_task(download(HttpsBucket(server.url, own), "a", len(DATA), tmp_path / "a"))
            while server.injected.total() < 4:
                await asyncio.sleep(0.01)
            assert len(list(tmp_path.iterdir())) == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await own.close()

    asyncio.run(scenario())
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_an_error_that_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Proxy(serve) as server, transport() as shared:
            with pytest.raises(DiskUnusable, match="cannot be written: No such file or directory"):
                await download(HttpsBucket(server.url, shared), "a", len(DATA), tmp_path / "nowhere" / "a")

    asyncio.run(scenario())


def test_a_disk_that_fills_up_on_the_way_is_not_taken_for_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def scenario() -> int:
        async with Proxy(serve) as server, transport() as shared:
            with pytest.raises(DiskUnusable, match="cannot be written: No space left on device"):
                await download(HttpsBucket(server.url, shared), "a", len(DATA), tmp_path / "a")
            return len(server.requests)

    monkeypatch.setattr("storage.large.os.pwritev", full)
    assert asyncio.run(scenario()) <= -(-len(DATA) // RANGE)  # none was asked for again
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "modified", ["Mon, 01 Jan 99999999999 00:00:00 GMT", "Mon, 01 Jan 2024 00:00:00 +99999999999999", ""]
)
def test_a_store_that_tells_an_impossible_time_tells_none(modified: str) -> None:
    async def scenario() -> float:
        answer = Response(200, {"content-length": "5", "last-modified": modified})
        async with Proxy(lambda _: answer) as server, transport() as shared:
            return (await HttpsBucket(server.url, shared).head("a")).last_modified

    assert asyncio.run(scenario()) == 0.0


def test_a_file_that_becomes_shorter_while_it_is_sent_becomes_no_object(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(40 << 20))

    async def scenario() -> None:
        async with s3.bucket() as bucket:
            send = bucket._uploads._send_part

            async def shrinking(*arguments: object) -> str:
                os.truncate(path, 1000)
                return await send(*arguments)  # type: ignore[arg-type]

            monkeypatch.setattr(bucket._uploads, "_send_part", shrinking)
            with pytest.raises(StorageError, match="became shorter"):
                await upload(bucket, "a", path)
            with pytest.raises(NotFound):
                await bucket.head("a")
            assert await bucket.abort_uploads("", older_than_seconds=0) == 0

    asyncio.run(scenario())


def test_memory_does_not_grow_with_the_object(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.large.RANGE_BYTES", 16 << 20)
    size = 160 << 20
    with (tmp_path / "there").open("wb") as file:
        file.truncate(size)

    async def scenario() -> tuple[int, int]:
        async with s3.bucket() as bucket:
            tracemalloc.start()
            try:
                await upload(bucket, "a", tmp_path / "there")
                up = tracemalloc.get_traced_memory()[1]
                tracemalloc.reset_peak()
                await download(bucket, "a", size, tmp_path / "back")
                return up, tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    up, down = asyncio.run(scenario())
    assert up < 40 << 20
    assert down < 32 << 20


def test_a_cancelled_caller_waits_for_its_thread() -> None:
    """Else the thread would write into whatever file gets the number of the one that was closed."""
    begun, go_on, ended = Event(), Event(), Event()

    def work() -> None:
        begun.set()
        go_on.wait()
        ended.set()

    async def scenario() -> None:
        task = asyncio.create_task(in_thread(work))
        await asyncio.to_thread(begun.wait)
        for _ in range(2):  # even if somebody insists
            task.cancel()
            await asyncio.sleep(0.01)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(scenario())
