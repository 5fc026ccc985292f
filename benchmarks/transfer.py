"""Moving objects between this machine and an S3 server on it, against obstore, which is written in Rust.

    python -m benchmarks.transfer [--quick] [--json]

Needs radosgw (`make radosgw`) and the packages of the extra `bench`. Four works, each with BLAKE3 of every byte but for
the upload, whose bytes both sides sign with SHA-256:

- *files*: 20 objects of 64 MiB, four at a time, each into a file, as a node reads its peers' shards. We `download`;
  obstore streams, in pieces of 1 MiB that a thread writes and hashes.
- *memory*: the same objects, each into `bytes` that are dropped once hashed.
- *one*: one object of 2 GiB into a file.
- *upload*: four objects of 64 MiB from memory, one after the other; both sides choose how to cut them.

Each turn is a process of its own, first obstore's, then ours, then obstore's again: so both meet the same server and
the same machine. Time runs from the first request to the last byte hashed, without starting Python; a ratio is
obstore's time over ours, turn by turn. Memory is the peak of the resident size beyond what it was before the first
request. Server and client share this machine's cores, so times say what both cost together; `cpu_seconds` is the client
alone. What `--json` calls quartiles is first quartile, median, third quartile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import uvloop
from blake3 import blake3

from neurons import radosgw
from storage.credentials import Credentials, Secret
from storage.large import download, upload
from storage.s3 import S3Bucket, S3Endpoint
from storage.transfer import Reach, Transport

BUCKET = "bench"
AT_ONCE = 4
_PIECE_BYTES = 1 << 20
_SERVER_BYTES = 12 << 30
"""What was overwritten leaves the server's memory a minute later."""
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is moved: bytes of an object, how many are read and written, bytes of the one, and turns."""

    object_bytes: int
    read: int
    written: int
    one_bytes: int
    turns: int


FULL = Scale(object_bytes=64 << 20, read=20, written=4, one_bytes=2 << 30, turns=7)
QUICK = Scale(object_bytes=8 << 20, read=8, written=2, one_bytes=64 << 20, turns=3)


@dataclass(frozen=True, slots=True)
class Where:
    """The server, its key as plain text (it is made for this run), and a folder for files."""

    url: str
    key_id: str
    secret: str
    folder: str

    def s3_bucket(self, transport: Transport) -> S3Bucket:
        """Ours."""
        endpoint = S3Endpoint(self.url, radosgw.REGION, BUCKET)
        return S3Bucket(endpoint, Credentials(self.key_id, Secret(self.secret)), transport)

    def obstore(self) -> Any:
        """Theirs."""
        from obstore.store import S3Store

        return S3Store(
            BUCKET,
            endpoint=self.url,
            region=radosgw.REGION,
            access_key_id=self.key_id,
            secret_access_key=self.secret,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )


@dataclass(frozen=True, slots=True)
class Turn:
    """One work done once by one side."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    digests: tuple[str, ...]
    """Of what was read, to see that both sides read the same."""


# --- what is done ---------------------------------------------------------------------------------------------


async def our_turn(where: Where, work: str, scale: Scale, data: bytes) -> tuple[str, ...]:
    """Digests of what was read."""
    transport = Transport(Reach.ANY)
    bucket = where.s3_bucket(transport)

    async def to_file(size_bytes: int, key: str) -> str:
        path = Path(where.folder) / key
        digest = await download(bucket, key, size_bytes, path)
        path.unlink()
        return digest

    async def to_memory(key: str) -> str:
        data = await bucket.get(key, limit_bytes=scale.object_bytes)
        return await asyncio.to_thread(lambda: blake3(data).hexdigest())

    async def from_memory(key: str) -> str:
        await bucket.put(key, data)
        return ""

    try:
        return await _works(work, scale, to_file, to_memory, from_memory)
    finally:
        await transport.close()


async def their_turn(where: Where, work: str, scale: Scale, data: bytes) -> tuple[str, ...]:
    """Digests of what was read."""
    store = where.obstore()

    async def to_file(size_bytes: int, key: str) -> str:
        answer = await store.get_async(key)
        hasher, path = blake3(), Path(where.folder) / key
        with path.open("wb", buffering=0) as file:

            def keep(piece: Any) -> None:
                file.write(piece)
                hasher.update(piece)

            async for piece in answer.stream(min_chunk_size=_PIECE_BYTES):
                await asyncio.to_thread(keep, piece)
        path.unlink()
        return hasher.hexdigest()

    async def to_memory(key: str) -> str:
        data = await (await store.get_async(key)).bytes_async()
        return await asyncio.to_thread(lambda: blake3(data).hexdigest())

    async def from_memory(key: str) -> str:
        await store.put_async(key, data)
        return ""

    return await _works(work, scale, to_file, to_memory, from_memory)


async def _works(
    work: str,
    scale: Scale,
    to_file: Callable[[int, str], Awaitable[str]],
    to_memory: Callable[[str], Awaitable[str]],
    from_memory: Callable[[str], Awaitable[str]],
) -> tuple[str, ...]:
    objects = [f"object-{number:02d}" for number in range(scale.read)]
    match work:
        case "files":
            return await _side_by_side(partial(to_file, scale.object_bytes), objects)
        case "memory":
            return await _side_by_side(to_memory, objects)
        case "upload":
            return tuple([await from_memory(f"new-{number}") for number in range(scale.written)])
        case _:
            return (await to_file(scale.one_bytes, "one"),)


async def _side_by_side(step: Callable[[str], Awaitable[str]], keys: list[str]) -> tuple[str, ...]:
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(key: str) -> str:
        async with turn:
            return await step(key)

    return tuple(await asyncio.gather(*map(one, keys)))


# --- how it is measured ---------------------------------------------------------------------------------------

WORKS = ("files", "memory", "one", "upload")
SIDES = {"obstore": their_turn, "ours": our_turn}


def turn(side: str, where: Where, work: str, scale: Scale) -> Turn:
    """One turn, in the process that calls this."""
    data = os.urandom(scale.object_bytes) if work == "upload" else b""
    reset_peak()
    resident, cpu, started = resident_bytes("VmRSS"), time.process_time(), time.perf_counter()
    digests = uvloop.run(SIDES[side](where, work, scale, data))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return Turn(seconds, cpu, resident_bytes("VmHWM") - resident, digests)


def reset_peak() -> None:
    """Let the peak of this process's resident size begin anew."""
    _CLEAR_REFS.write_text("5")


def resident_bytes(field: str) -> int:
    """A field of this process's status, such as `VmRSS`, or `VmHWM` for the peak, in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def _elsewhere(*arguments: Any) -> Turn:
    """A turn in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(turn, *arguments).result()


async def fill(where: Where, scale: Scale) -> None:
    """Store what is read."""
    transport = Transport(Reach.ANY)
    bucket = where.s3_bucket(transport)
    for number in range(scale.read):
        await bucket.put(f"object-{number:02d}", os.urandom(scale.object_bytes))
    path = Path(where.folder) / "one"
    with path.open("wb") as file:
        for _ in range(scale.one_bytes // _PIECE_BYTES):
            file.write(os.urandom(_PIECE_BYTES))
    await upload(bucket, "one", path)
    path.unlink()
    await transport.close()


def measure(scale: Scale, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that is printed."""
    result: dict[str, Any] = {"scale": asdict(scale), "at_once": AT_ONCE}
    with (
        tempfile.TemporaryDirectory() as folder,
        radosgw.start(Path(folder) / "radosgw", capacity_bytes=_SERVER_BYTES) as server,
    ):
        key = server.create_bucket(BUCKET).write
        where = Where(server.url, key.key_id, key.secret.reveal(), folder)
        say("storing objects")
        asyncio.run(fill(where, scale))
        for work in WORKS:
            say(work)
            turns: dict[str, list[Turn]] = {side: [] for side in SIDES}
            for number in range(-1, scale.turns):  # the first one warms up
                for side, done in turns.items():
                    one = _elsewhere(side, where, work, scale)
                    if number >= 0:
                        done.append(one)
            if len({one.digests for done in turns.values() for one in done}) != 1:
                raise SystemExit(f"{work}: the two sides did not read the same bytes")
            result[work] = _summed_up(turns, _moved(work, scale))
    return result


def _moved(work: str, scale: Scale) -> int:
    count = {"files": scale.read, "memory": scale.read, "upload": scale.written}.get(work)
    return scale.one_bytes if count is None else count * scale.object_bytes


def _summed_up(turns: dict[str, list[Turn]], moved_bytes: int) -> dict[str, Any]:
    pairs = zip(turns["obstore"], turns["ours"], strict=True)
    summed: dict[str, Any] = {
        "moved_bytes": moved_bytes,
        "turns": len(turns["ours"]),
        "ratio": {"quartiles": quartiles([theirs.seconds / ours.seconds for theirs, ours in pairs])},
    }
    for side, done in turns.items():
        summed[side] = {
            "bytes_per_second": quartiles([moved_bytes / one.seconds for one in done]),
            "cpu_seconds": quartiles([one.cpu_seconds for one in done]),
            "peak_bytes": quartiles([one.peak_bytes for one in done]),
        }
    return summed


def quartiles(values: list[float]) -> list[float]:
    """First quartile, median, third quartile."""
    return [round(value, 4) for value in statistics.quantiles(values, n=4, method="inclusive")]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="smaller objects and fewer turns: within a minute")
    options = parser.parse_args()
    result = measure(QUICK if options.quick else FULL, lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(result)) if options.json else show(result)


def show(result: dict[str, Any]) -> None:
    """The result as a table."""
    print(f"{'':8}{'side':10}{'MiB/s':>8}{'spread':>18}{'CPU s':>8}{'peak MiB':>10}   ratio of speeds")
    for work in WORKS:
        found = result[work]
        for side in SIDES:
            row = found[side]
            low, middle, high = (value / (1 << 20) for value in row["bytes_per_second"])
            ratio = _spread(found["ratio"]["quartiles"]) if side == "ours" else ""
            print(
                f"{work if side == 'obstore' else '':8}{side:10}{middle:8.0f}{f'({low:.0f} to {high:.0f})':>18}"
                f"{row['cpu_seconds'][1]:8.2f}{row['peak_bytes'][1] / (1 << 20):10.0f}   {ratio}"
            )


def _spread(values: list[float]) -> str:
    return f"{values[1]:.3f}  ({values[0]:.3f} to {values[2]:.3f})"


if __name__ == "__main__":
    main()
