"""Uploads in parts: the parts side by side, memory bounded, and nothing half left behind.

An upload exists in the store from its first request to its last one. What ends it is its completion or an abort, which
is sent after every failure and every cancellation. A node that is killed leaves it behind: `abort_all` is for that.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import unquote

from storage.errors import NotFound, StorageError, Unavailable
from storage.objects import refuse
from storage.s3_answers import S3Answer, parse, time_in
from storage.s3_requests import S3Requests
from storage.together import together
from storage.transfer import Answer, Broken, Gathered

PART_BYTES = 8 << 20
"""An S3 store refuses parts below 5 MiB, except the last one; one that is larger costs more to send again."""

PARTS_FROM_BYTES = 2 * PART_BYTES
"""From this size on an object is sent in parts."""

_PARTS_LIMIT = 10_000
_PARTS_AT_ONCE = 4
_OUTCOME_LIMIT_BYTES = 64 << 10
_PAGE_LIMIT_BYTES = 8 << 20
_PAGES_LIMIT = 1000
_COMPLETING_SECONDS = 600.0
"""A store may take minutes to put a large object together, and sends white space meanwhile."""

_CLEANING_SECONDS = 20.0
_CLEANING_ATTEMPTS = 3

_ETAG = re.compile(r'"?[!#-%\'-;=?-~]{1,256}"?')
"""A tag that can stand in XML as it is."""

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


class Source(Protocol):
    """Bytes to send, of a size that does not change."""

    @property
    def size_bytes(self) -> int:
        """How many they are."""

    async def read(self, start: int, length: int) -> bytes | memoryview:
        """Exactly `length` of them from `start`; raises `StorageError`."""


class MemorySource:
    """What is in memory already; nothing is copied."""

    def __init__(self, data: bytes) -> None:
        self._view = memoryview(data)

    @property
    def size_bytes(self) -> int:
        """See `Source.size_bytes`."""
        return len(self._view)

    async def read(self, start: int, length: int) -> memoryview:
        """See `Source.read`."""
        return self._view[start : start + length]


class Uploads:
    """Uploads in parts to one bucket. Only one at a time may go to one key: each clears what others left there."""

    def __init__(self, requests: S3Requests) -> None:
        self._requests = requests

    async def upload(self, key: str, source: Source) -> None:
        """Store `source` under `key`; readers see the old object or the new one whole. Raises `Unavailable`,
        `AccessRefused`, and what `source` raises; then, and when this is cancelled, nothing of it stays."""
        upload, others = "", True
        try:
            answer, begun = await self._post(key, {"uploads": ""}, "InitiateMultipartUploadResult")
            upload = begun.fields.get("UploadId", "")
            if not upload:
                raise Unavailable(f"cannot write {key}: the store does not name the upload it has begun")
            if answer.attempts > 1:  # one whose answer was lost may have begun another upload
                await self._abort_of(key, keep=upload)
            others = False
            etags = await self._send_parts(key, upload, source)
            await self._complete(key, upload, source.size_bytes, etags)
        except BaseException:
            await _to_its_end(lambda: self._abort_of(key) if others else self._abort(key, upload))
            raise

    async def abort_all(self, prefix: str, older_than_seconds: float) -> int:
        """Abort the uploads whose key begins with `prefix` and that began so long ago; returns how many."""
        stale = [(key, upload) async for key, upload, age in self._begun(prefix) if age >= older_than_seconds]
        for key, upload in stale:
            await self._abort(key, upload)
        return len(stale)

    async def _send_parts(self, key: str, upload: str, source: Source) -> list[str]:
        """Entity tags of all parts, in order."""
        size = source.size_bytes
        part_bytes = max(PART_BYTES, -(-size // _PARTS_LIMIT))
        starts = range(0, size, part_bytes)
        etags = [""] * len(starts)
        numbered = enumerate(starts)

        async def work() -> None:
            for index, start in numbered:  # shared: whoever is free takes the next one
                # Bound to no name: the part that was sent must be gone when the next one is read.
                etags[index] = await self._send_part(
                    key, upload, index + 1, await source.read(start, min(part_bytes, size - start))
                )

        await together(work() for _ in range(_PARTS_AT_ONCE))
        return etags

    async def _send_part(self, key: str, upload: str, number: int, data: bytes | memoryview) -> str:
        what = f"write part {number} of {key}"
        query = {"partNumber": str(number), "uploadId": upload}
        answer = await self._requests.send("PUT", key, what, query=query, body=data)
        if answer.status != 200:
            refuse(answer, what, key)
        etag = answer.headers.get("etag", "")
        if not _ETAG.fullmatch(etag):
            raise Unavailable(f"cannot {what}: the store does not say what it got")
        return etag

    async def _complete(self, key: str, upload: str, size_bytes: int, etags: list[str]) -> None:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>" for number, etag in enumerate(etags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        try:
            await self._post(
                key, {"uploadId": upload}, "CompleteMultipartUploadResult", body, alive_seconds=_COMPLETING_SECONDS
            )
        except NotFound:
            # A completed upload is no more. If an answer was lost, this was us: the object shows it.
            if not await self._is(key, size_bytes, etags):
                raise Unavailable(f"cannot write {key}: its upload is gone from the store") from None

    async def _is(self, key: str, size_bytes: int, etags: list[str]) -> bool:
        """Whether the object is the one made of these parts: the digest of their digests is its tag."""
        digests = [found[1] for etag in etags if (found := _MD5.fullmatch(etag))]
        tag = hashlib.md5(bytes.fromhex("".join(digests)), usedforsecurity=False).hexdigest()
        answer = await self._requests.send("HEAD", key, f"read {key}")
        told = (answer.status, answer.headers.get("content-length"), answer.headers.get("etag", "").strip('"'))
        return told == (200, str(size_bytes), f"{tag}-{len(etags)}")

    async def _post(
        self, key: str, query: Mapping[str, str], root: str, body: bytes = b"", alive_seconds: float | None = None
    ) -> tuple[Answer, S3Answer]:
        """The answer to one step, checked: a store may begin a success and say in its body that there was none."""
        what, sink = f"write {key}", _Outcome(root)
        answer = await self._requests.send(
            "POST", key, what, query=query, body=body, sink=sink, alive_seconds=alive_seconds
        )
        if answer.status != 200:
            refuse(answer, what, key)
        return answer, parse(bytes(sink.body))

    async def _abort(self, key: str, upload: str) -> None:
        what = f"remove an unfinished upload of {key}"
        answer = await self._requests.send("DELETE", key, what, query={"uploadId": upload})
        if answer.status != 404 and not 200 <= answer.status < 300:
            refuse(answer, what, key)

    async def _abort_of(self, key: str, keep: str = "") -> None:
        """Abort all uploads to exactly `key` but `keep`."""
        found = [upload async for name, upload, _ in self._begun(key) if name == key and upload != keep]
        for upload in found:
            await self._abort(key, upload)

    async def _begun(self, prefix: str) -> AsyncIterator[tuple[str, str, float]]:
        """Key, upload id and age in seconds of each upload that has begun and not ended."""
        folder, what = self._requests.endpoint.folder, "list unfinished uploads"
        query = {"uploads": "", "encoding-type": "url", "prefix": folder + prefix}
        for _ in range(_PAGES_LIMIT):
            sink = Gathered(_PAGE_LIMIT_BYTES)
            answer = await self._requests.send("GET", "", what, query=query, sink=sink)
            if answer.status != 200:
                refuse(answer, what, prefix)
            page = parse(bytes(sink.body), "Upload")
            now = _date(answer)
            for entry in page.records:
                key = unquote(entry.get("Key", ""))
                if key.startswith(folder + prefix):
                    # The time of the answer is in whole seconds.
                    age = now - int(time_in(entry, "Initiated"))
                    yield key[len(folder) :], entry.get("UploadId", ""), age
            if page.fields.get("IsTruncated") != "true":
                return
            markers = {"key-marker": "NextKeyMarker", "upload-id-marker": "NextUploadIdMarker"}
            query |= {name: unquote(page.fields.get(field, "")) for name, field in markers.items()}
        raise Unavailable(f"cannot {what}: there are more than {_PAGES_LIMIT} pages")


class _Outcome(Gathered):
    """The body of a success that must be a document with `root`."""

    def __init__(self, root: str) -> None:
        super().__init__(_OUTCOME_LIMIT_BYTES)
        self._root = root

    def end(self) -> None:
        """See `Sink.end`."""
        found = parse(bytes(self.body))
        if found.root != self._root:
            raise Broken(f"the store answered 200 and then {found.root} {found.fields.get('Code', '')[:64]}".rstrip())


def _date(answer: Answer) -> float:
    try:
        return parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except (ValueError, OverflowError) as error:
        raise Unavailable("the store does not tell the time: nothing is known about the age of its uploads") from error


async def _to_its_end(clean: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `clean` to its end, even if the caller is cancelled once more. It is given a few chances and little time, and
    its failure is not the caller's: what it leaves behind, a sweep takes."""

    async def bounded() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLEANING_SECONDS):
                for _ in range(_CLEANING_ATTEMPTS):
                    with suppress(StorageError):
                        return await clean()

    task = asyncio.ensure_future(bounded())
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)
