"""The bucket port over an S3 store: AWS, R2, MinIO, Ceph, and whatever else speaks it.

Signing is local and takes some microseconds, so the event loop waits for nothing. All requests go through the
`Transport`: no second library talks to the network, with rules of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from storage.bucket import ObjectInfo, Writer, check_key, check_prefix
from storage.credentials import Credentials
from storage.errors import AlreadyExists, NotFound, TooLarge, Unavailable
from storage.multipart import PARTS_FROM_BYTES, MemorySource, Source, Uploads
from storage.objects import Objects, refuse
from storage.s3_answers import objects_of, parse
from storage.s3_requests import S3Endpoint as S3Endpoint  # half of what is needed to make a bucket
from storage.s3_requests import S3Requests
from storage.transfer import Gathered, Transport

_PAGE_KEYS = 1000
_PAGE_LIMIT_BYTES = 8 << 20
"""A thousand keys of the greatest length, every character escaped, and what is said about them."""

_PAGES_LIMIT = 10_000


class S3Bucket:
    """A `Bucket` at `endpoint`, with an access key. All methods may raise `AccessRefused` too."""

    def __init__(self, endpoint: S3Endpoint, credentials: Credentials, transport: Transport) -> None:
        self.endpoint = endpoint
        self._requests = S3Requests(endpoint, credentials, transport)
        self._objects = Objects(transport, self._requests.reading)
        self._uploads = Uploads(self._requests)

    async def put(self, key: str, data: bytes) -> None:
        """See `Bucket.put`. The store has compared a digest of what it got when this returns."""
        await self.put_from(key, MemorySource(data))

    async def put_from(self, key: str, source: Source) -> None:
        """Like `put`, from a source that is read part by part: memory stays bounded whatever its size."""
        check_key(key)
        if source.size_bytes >= PARTS_FROM_BYTES:
            await self._uploads.upload(key, source)
            return
        what = f"write {key}"
        answer = await self._requests.send("PUT", key, what, body=await source.read(0, source.size_bytes))
        if answer.status != 200:
            refuse(answer, what, key)

    async def put_if_absent(self, key: str, data: bytes) -> None:
        """See `Bucket.put_if_absent`."""
        check_key(key)
        what = f"write {key}"
        answer = await self._requests.send("PUT", key, what, headers={"if-none-match": "*"}, body=data)
        if answer.status == 412:
            # If this was sent twice, the first one may have been obeyed and its answer lost.
            if answer.attempts > 1 and await self._holds(key, data):
                return
            raise AlreadyExists(f"there is an object {key} already")
        if answer.status != 200:
            refuse(answer, what, key)

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        """See `Bucket.get`."""
        return await self._objects.get(key, limit_bytes=limit_bytes)

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """See `Bucket.get_range`. `start` ≥ 0 and `length` ≥ 1, else `ValueError`."""
        return await self._objects.get_range(key, start, length)

    async def copy_range(self, key: str, start: int, length: int, writer: Writer, *, size_bytes: int) -> None:
        """See `Bucket.copy_range`."""
        await self._objects.copy_range(key, start, length, writer, size_bytes=size_bytes)

    async def head(self, key: str) -> ObjectInfo:
        """See `Bucket.head`. The time is in whole seconds, here and in a list."""
        return await self._objects.head(key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `Bucket.list`. Keys that are none of ours are left out: anything may lie in another's bucket."""
        check_prefix(prefix)
        folder, what = self.endpoint.folder, f"list {prefix or 'the bucket'}"
        query = {"list-type": "2", "encoding-type": "url", "max-keys": str(_PAGE_KEYS), "prefix": folder + prefix}
        last = ""
        for _ in range(_PAGES_LIMIT):
            page = Gathered(_PAGE_LIMIT_BYTES)
            answer = await self._requests.send("GET", "", what, query=query, sink=page)
            if answer.status != 200:
                refuse(answer, what, prefix)
            found = parse(bytes(page.body), "Contents")
            for info in objects_of(found, folder):
                if not info.key.startswith(prefix) or info.key <= last:
                    raise Unavailable(f"cannot {what}: the store does not list what was asked for in order of keys")
                last = info.key
                yield info
            if found.fields.get("IsTruncated") != "true":
                return
            token = found.fields.get("NextContinuationToken", "")
            if not token or query.get("continuation-token") == token:
                raise Unavailable(f"cannot {what}: the store does not say where its next page begins")
            query = {**query, "continuation-token": token}
        raise Unavailable(f"cannot {what}: it has more than {_PAGES_LIMIT} pages")

    async def delete(self, key: str) -> None:
        """See `Bucket.delete`."""
        check_key(key)
        what = f"delete {key}"
        answer = await self._requests.send("DELETE", key, what)
        if not 200 <= answer.status < 300 and (answer.status != 404 or answer.code == "NoSuchBucket"):
            refuse(answer, what, key)

    async def abort_uploads(self, prefix: str, *, older_than_seconds: float) -> int:
        """Remove what uploads of objects below `prefix` left behind that were never completed, such as when a node
        lost its power; returns how many. Their age is by the store's own clock."""
        check_prefix(prefix)
        return await self._uploads.abort_all(prefix, older_than_seconds)

    async def _holds(self, key: str, data: bytes) -> bool:
        try:
            return await self.get(key, limit_bytes=len(data)) == data
        except (NotFound, TooLarge):
            return False
