"""Checks of the own bucket. A node makes them too, before it commits where its bucket is."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Awaitable
from dataclasses import dataclass

from neurons.doctor.finding import Finding, State, fail, ok, skipped, warn
from neurons.doctor.words import rate
from neurons.errors import ConfigError
from storage.bucket import Bucket
from storage.errors import AccessRefused, NotFound, NotSupported, StorageError, TooLarge
from storage.location import HttpsLocation, LocalLocation, Location
from storage.retention import UNFINISHED_SECONDS
from storage.s3 import S3Bucket

_PROBE_BYTES = 1 << 10
_PROBE_LIMIT_BYTES = 1 << 26
_CLOCK_SECONDS = 5.0
"""Stores tell their time in whole seconds."""

_FIRST_BYTES = 1 << 20
_LARGEST_BYTES = 64 << 20
_MEASURE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class OwnStore:
    """The own bucket: where it is for others, as its owner writes it, and as others read it."""

    location: Location
    bucket: Bucket
    readers: Bucket

    def probe_key(self) -> str:
        """A key for an object that is removed again."""
        return f"doctor/{os.getpid()}-{secrets.token_hex(8)}"


async def require_store(store: OwnStore) -> None:
    """Raise `ConfigError` with what is wrong with the own bucket, if anything is that would stop a node; another
    `StorageError` if the store is away, which may be over when the node is started again."""
    for check in (write, read, refusal):
        try:
            finding = await check(store)
        except AccessRefused as error:
            raise ConfigError(f"the own bucket: {error}") from error
        if finding.state is State.FAIL:
            raise ConfigError(finding.sentence)


async def write(store: OwnStore) -> Finding:
    """Whether the write key writes and deletes, and may sweep what an upload left half done."""
    key = store.probe_key()
    try:
        await store.bucket.put(key, os.urandom(_PROBE_BYTES))
        await store.bucket.delete(key)
    except (AccessRefused, NotSupported) as error:
        return fail(f"the own bucket cannot be written: {error}")
    if isinstance(store.bucket, S3Bucket):
        try:
            await store.bucket.abort_uploads("doctor/", older_than_seconds=UNFINISHED_SECONDS)
        except StorageError as error:  # a node does without; what is broken off then stays
            return warn(f"written and deleted, but uploads that were broken off cannot be listed and removed: {error}")
    return ok("written and deleted with the write key")


async def seconds_ahead(store: OwnStore) -> float:
    """How far the store's clock is ahead of this machine's; 0 within what whole seconds and the way there explain."""
    key, before = store.probe_key(), time.time()
    await store.bucket.put(key, b"what time is it")
    try:
        stored, after = (await store.bucket.head(key)).last_modified, time.time()
    finally:
        await store.bucket.delete(key)
    if stored < before - _CLOCK_SECONDS:
        return stored - before
    return stored - after if stored > after + _CLOCK_SECONDS else 0.0


async def read(store: OwnStore) -> Finding:
    """Whether others read what is written, and are told what is not there."""
    key, data = store.probe_key(), os.urandom(_PROBE_BYTES)
    await store.bucket.put(key, data)
    try:
        found = await store.readers.get(key, limit_bytes=_PROBE_BYTES)
    except (AccessRefused, NotFound, NotSupported, TooLarge) as error:
        return fail(f"others cannot read the own bucket: {error}")
    finally:
        await store.bucket.delete(key)
    if found != data:
        return fail("others read something else than was written: where they read is not the bucket that is written")
    try:
        await store.readers.get(store.probe_key(), limit_bytes=_PROBE_BYTES)
    except NotFound:
        return ok("others read what is written, in the way that is committed on chain")
    except StorageError as error:
        return warn(
            "others read what is written, but of what is not there yet they are not told that it is not there "
            f"({error}): allow the read key, or the public, to list the bucket",
        )
    return fail("others read an object that does not exist: something else answers there")


async def refusal(store: OwnStore) -> Finding:
    """Whether the read key, which everybody will know, can neither write nor delete."""
    if isinstance(store.location, LocalLocation):
        return skipped("folders of the built-in chain have no keys")
    if isinstance(store.location, HttpsLocation):
        return ok("others read a public URL, with no key")
    key = store.probe_key()
    await store.bucket.put(key, b"delete me")
    try:
        if await _obeyed(store.readers.put(key, b"changed")) or await _obeyed(store.readers.put(f"{key}-new", b"new")):
            return fail(
                "the read key can write, and it is published on chain: anybody could replace what this node publishes; "
                "make a key that may only read"
            )
        if await _obeyed(store.readers.delete(key)):
            return fail(
                "the read key can delete, and it is published on chain: anybody could remove what this node publishes; "
                "make a key that may only read"
            )
    finally:
        await store.bucket.delete(key)
        await store.bucket.delete(f"{key}-new")
    return ok("the read key is refused to write and to delete")


async def speed(store: OwnStore) -> Finding:
    """Bytes per second to the bucket, and back by the way that others read."""
    size, key = _FIRST_BYTES, store.probe_key()
    try:
        while True:
            data = os.urandom(size)
            up = await _timed(store.bucket.put(key, data))
            down = await _timed(store.readers.get(key, limit_bytes=_PROBE_LIMIT_BYTES))
            if size >= _LARGEST_BYTES or max(up, down) * 4 > _MEASURE_SECONDS:
                break
            size *= 4
    finally:
        await store.bucket.delete(key)
    upload, download = size / up, size / down
    return ok(
        f"up {rate(upload)}, down {rate(download)} (an object of {size >> 20} MiB)",
        upload_bytes_per_second=upload,
        download_bytes_per_second=download,
    )


async def _obeyed(request: Awaitable[None]) -> bool:
    try:
        await request
    except (AccessRefused, NotSupported):
        return False
    return True


async def _timed(request: Awaitable[object]) -> float:
    began = time.perf_counter()
    await request
    return max(time.perf_counter() - began, 1e-6)
