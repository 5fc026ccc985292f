"""What only a folder can do wrong: links, fifos, races between processes, full disks."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from storage.directory import DirectoryBucket
from storage.errors import AlreadyExists, BadKey, NotFound, StorageError, TooLarge, Unavailable


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "bucket"
    folder.mkdir()
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder no reader of the bucket may reach."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(b"secret")
    return folder


async def keys_of(bucket: DirectoryBucket) -> list[str]:
    return [info.key async for info in bucket.list("")]


def assert_not_found(bucket: DirectoryBucket, key: str) -> None:
    for call in (bucket.get(key, limit_bytes=100), bucket.get_range(key, 0, 1), bucket.head(key)):
        with pytest.raises(NotFound):
            asyncio.run(call)


def test_a_link_to_a_file_is_not_an_object(root: Path, outside: Path) -> None:
    (root / "a").symlink_to(outside / "secret")
    assert_not_found(DirectoryBucket(root), "a")
    assert asyncio.run(keys_of(DirectoryBucket(root))) == []


def test_a_link_to_a_folder_is_not_entered(root: Path, outside: Path) -> None:
    (root / "a").mkdir()
    (root / "a" / "b").symlink_to(outside, target_is_directory=True)
    bucket = DirectoryBucket(root)
    assert_not_found(bucket, "a/b/secret")
    assert asyncio.run(keys_of(bucket)) == []
    for put in (bucket.put, bucket.put_if_absent):
        with pytest.raises(Unavailable, match="stands in the way"):
            asyncio.run(put("a/b/new", b"x"))
    asyncio.run(bucket.delete("a/b/secret"))
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_a_bucket_that_is_itself_a_link_is_refused(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "peer").symlink_to(outside, target_is_directory=True)
    bucket = DirectoryBucket(tmp_path / "peer")
    for call in (bucket.get("secret", limit_bytes=100), keys_of(bucket), bucket.put("a", b"")):
        with pytest.raises(Unavailable, match="only a link"):
            asyncio.run(call)
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_a_put_replaces_a_link_and_never_writes_through_it(root: Path, outside: Path) -> None:
    (root / "a").symlink_to(outside / "secret")
    (root / "b").symlink_to(outside / "secret")
    bucket = DirectoryBucket(root)
    asyncio.run(bucket.put("a", b"mine"))
    with pytest.raises(StorageError):
        asyncio.run(bucket.put_if_absent("b", b"mine"))
    assert (outside / "secret").read_bytes() == b"secret"
    assert asyncio.run(bucket.get("a", limit_bytes=4)) == b"mine"


def test_what_is_not_a_regular_file_is_not_an_object_and_blocks_nobody(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)  # the path of a socket must be short
    os.mkfifo("fifo")
    (root / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        bucket = DirectoryBucket(root)
        for key in ("fifo", "folder", "socket"):
            assert_not_found(bucket, key)
        assert asyncio.run(keys_of(bucket)) == []


def test_a_file_in_place_of_a_folder_is_no_folder(root: Path) -> None:
    bucket = DirectoryBucket(root)
    asyncio.run(bucket.put("a", b"file"))
    assert_not_found(bucket, "a/b")
    with pytest.raises(Unavailable):
        asyncio.run(bucket.put("a/b", b""))
    asyncio.run(bucket.put("c/d", b""))
    for put in (bucket.put, bucket.put_if_absent):
        with pytest.raises(Unavailable):
            asyncio.run(put("c", b""))
    assert asyncio.run(keys_of(bucket)) == ["a", "c/d"]


def test_a_root_that_is_a_file_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="file is not a folder"):
        asyncio.run(DirectoryBucket(tmp_path / "file").get("a", limit_bytes=1))


def test_reading_a_bucket_that_is_not_there_makes_none(tmp_path: Path) -> None:
    bucket = DirectoryBucket(tmp_path / "none")
    assert asyncio.run(keys_of(bucket)) == []
    assert_not_found(bucket, "a")
    asyncio.run(bucket.delete("a/b"))
    assert not bucket.root.exists()


def test_an_oversize_object_is_refused_before_it_is_read(root: Path) -> None:
    with (root / "a").open("wb") as file:
        file.truncate(1 << 40)  # sparse; reading it would end in a MemoryError
    with pytest.raises(TooLarge):
        asyncio.run(DirectoryBucket(root).get("a", limit_bytes=1 << 20))
    assert asyncio.run(DirectoryBucket(root).get_range("a", (1 << 40) - 2, 2)) == b"\0\0"


def test_an_object_that_shrinks_while_it_is_read_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "a").write_bytes(b"12345678")
    true_pread = os.pread

    def shrinking(descriptor: int, length: int, offset: int) -> bytes:
        os.truncate(root / "a", 4)
        return true_pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", shrinking)
    with pytest.raises(StorageError, match="became shorter"):
        asyncio.run(DirectoryBucket(root).get("a", limit_bytes=100))


@pytest.mark.parametrize(
    ("code", "sentence"),
    [(errno.ENOSPC, "full: free some space"), (errno.EROFS, "may not be"), (errno.EIO, "cannot be used")],
)
@pytest.mark.parametrize("verb", ["put", "put_if_absent"])
def test_a_failed_write_leaves_the_old_object_and_no_litter(
    root: Path, monkeypatch: pytest.MonkeyPatch, verb: str, code: int, sentence: str
) -> None:
    bucket = DirectoryBucket(root)
    asyncio.run(bucket.put("old", b"old"))

    def failing(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(Unavailable, match=sentence):
            asyncio.run(getattr(bucket, verb)("old" if verb == "put" else "new", b"new"))
    assert [path.name for path in root.iterdir()] == ["old"]
    assert (root / "old").read_bytes() == b"old"


def test_what_a_killed_writer_left_is_neither_listed_nor_readable(root: Path) -> None:
    (root / "~0123456789abcdef").write_bytes(b"half")
    bucket = DirectoryBucket(root)
    assert asyncio.run(keys_of(bucket)) == []
    with pytest.raises(BadKey):
        asyncio.run(bucket.get("~0123456789abcdef", limit_bytes=100))


def test_files_no_key_can_name_are_not_listed(root: Path) -> None:
    for name in (b"white space", b"\xff\xfe", "ü".encode(), b"a" * 129):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).touch()
    (root / ("d" * 128) / ("e" * 128) / ("f" * 128) / ("g" * 128)).mkdir(parents=True)
    (root / ("d" * 128) / ("e" * 128) / ("f" * 128) / ("g" * 128) / "h").touch()
    assert asyncio.run(keys_of(DirectoryBucket(root))) == []


def test_a_delete_prunes_empty_folders_up_to_the_root(root: Path) -> None:
    bucket = DirectoryBucket(root)
    asyncio.run(bucket.put("a/b/c", b""))
    asyncio.run(bucket.put("a/d", b""))
    asyncio.run(bucket.delete("a/b/c"))
    assert sorted(path.name for path in root.rglob("*")) == ["a", "d"]
    asyncio.run(bucket.delete("a/d"))
    assert root.exists()
    assert list(root.iterdir()) == []


def test_the_event_loop_runs_on_while_a_disk_is_slow(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_fsync = os.fsync

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        turned = asyncio.Event()

        def slow(descriptor: int) -> None:
            # Returns only once the loop has taken a turn: a blocked loop would time out here.
            asyncio.run_coroutine_threadsafe(turned.wait(), loop).result(timeout=30)
            true_fsync(descriptor)

        monkeypatch.setattr(os, "fsync", slow)
        writing = asyncio.create_task(DirectoryBucket(root).put("a", b""))
        await asyncio.sleep(0)
        turned.set()
        await writing

    asyncio.run(scenario())


RACER = """
import asyncio, sys
from pathlib import Path
from storage.directory import DirectoryBucket
from storage.errors import AlreadyExists, NotFound

async def race(bucket, name):
    won = 0
    for number in range(150):
        key, data = f"w/{number:03d}/head", name.encode() * 5000
        try:
            await bucket.put_if_absent(key, data)
            won += 1
        except AlreadyExists:
            found = await bucket.get(key, limit_bytes=5000)
            assert len(found) == 5000 and len(set(found)) == 1, "half an object was seen"
        await bucket.put(f"x/y/{name}", b"")
        await bucket.delete(f"x/y/{name}")
    return won

sys.stdin.readline()
print(asyncio.run(race(DirectoryBucket(Path(sys.argv[1])), sys.argv[2])))
"""


def test_of_two_processes_that_put_if_absent_exactly_one_wins_each_key(tmp_path: Path) -> None:
    root = tmp_path / "bucket"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(root), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        )
        for name in "ab"
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = {name: int(racer.communicate(timeout=60)[0]) for name, racer in zip("ab", racers, strict=True)}
    holders = [path.read_bytes()[:1].decode() for path in root.glob("w/*/head")]
    assert len(holders) == 150
    assert {name: holders.count(name) for name in "ab"} == won


def test_a_conditional_put_that_loses_to_a_delete_still_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "a").touch()
    true_link = os.link

    def link_then_vanish(*arguments: object, **options: object) -> None:
        try:
            true_link(*arguments, **options)  # type: ignore[arg-type]
        finally:
            (root / "a").unlink()

    monkeypatch.setattr(os, "link", link_then_vanish)
    with pytest.raises(AlreadyExists):
        asyncio.run(DirectoryBucket(root).put_if_absent("a", b""))
