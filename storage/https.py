"""The bucket port over plain https: what anyone may read, at URLs below one base."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import NoReturn
from urllib.parse import urlsplit

from storage.bucket import ObjectInfo, Writer
from storage.errors import BadLocation, NotSupported
from storage.objects import Objects
from storage.signing import encode_path
from storage.transfer import Request, Transport

_BASE = re.compile(r"https?://[a-z0-9.\[\]:-]{1,259}(/[A-Za-z0-9._~%+=-]{1,128}){0,16}/?")


class HttpsBucket:
    """A `Bucket` whose objects are at `base_url`/KEY, for reading only: writing, deleting and listing raise
    `NotSupported`. Raises `BadLocation` when `base_url` is not one."""

    def __init__(self, base_url: str, transport: Transport) -> None:
        if not _BASE.fullmatch(base_url) or not _has_host(base_url):
            raise BadLocation("a public bucket is https://HOST or https://HOST/FOLDER, without user, ? and #")
        self._base = base_url.rstrip("/")
        self._objects = Objects(transport, self._request)

    async def put(self, key: str, data: bytes) -> None:
        """Not supported."""
        self._read_only()

    async def put_if_absent(self, key: str, data: bytes) -> None:
        """Not supported."""
        self._read_only()

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
        """See `Bucket.head`. The time is in whole seconds."""
        return await self._objects.head(key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Not supported."""
        raise NotSupported(f"{self._base} is plain https, which cannot list: read objects by their names")
        yield  # what makes this an iterator that raises when it is used, as the port's is

    async def delete(self, key: str) -> None:
        """Not supported."""
        self._read_only()

    def _read_only(self) -> NoReturn:
        raise NotSupported(f"{self._base} is read over plain https: to write, use its S3 endpoint and an access key")

    def _request(self, method: str, key: str, headers: Mapping[str, str]) -> Request:
        return Request(method, f"{self._base}/{encode_path(key)}", f"read {key}", headers)


def _has_host(url: str) -> bool:
    """Whether `url`, which matches `_BASE`, names a host and a port that there can be, and no folder above another."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and not {".", ".."} & set(parts.path.split("/"))
    except ValueError:  # half a bracket, or a port above all others
        return False
