"""Requests to one bucket of an S3 store: where it is, how its URLs look, and the signature on each request."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Self

from storage.bucket import check_key
from storage.credentials import Credentials
from storage.errors import BadKey, BadLocation
from storage.signing import EMPTY_BODY_DIGEST, encode_path, encode_query, sign
from storage.transfer import Answer, Gathered, Request, Sink, Transport

_HOST = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])(:[0-9]{1,5})?")
_REGION = re.compile(r"[a-z0-9-]{1,32}")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_R2_ACCOUNT = re.compile(r"[0-9a-f]{32}")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

_HASH_IN_THREAD_BYTES = 256 << 10
"""The digest of fewer bytes takes less time than asking a thread for it."""

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class S3Endpoint:
    """One bucket of a store. `url` is `https://HOST` or `https://HOST:PORT`; objects lie below `prefix`, which is
    empty or a key. Path style puts the bucket into the path, virtual style in front of the host. Raises
    `BadLocation`."""

    url: str
    region: str
    bucket: str
    prefix: str = ""
    path_style: bool = True

    def __post_init__(self) -> None:
        scheme, separator, host = self.url.partition("://")
        if scheme not in _DEFAULT_PORTS or not separator or not _HOST.fullmatch(host):
            raise BadLocation("the endpoint of a store is https://HOST or https://HOST:PORT, in lower case, no path")
        if host.endswith(_DEFAULT_PORTS[scheme]):
            raise BadLocation(f"leave {_DEFAULT_PORTS[scheme]} away from the endpoint: it goes without saying")
        if not _REGION.fullmatch(self.region):
            raise BadLocation(f"{self.region!r} is not a region: most stores that have none take us-east-1 or auto")
        if not _BUCKET.fullmatch(self.bucket):
            raise BadLocation(f"{self.bucket!r} is not a bucket name: 3-63 of A-Z a-z 0-9 . _ -")
        if self.prefix:
            try:
                check_key(self.prefix)
            except BadKey as error:
                raise BadLocation(f"the prefix must be like a key: {error}") from error

    @classmethod
    def r2(cls, account: str, bucket: str) -> Self:
        """A bucket of Cloudflare R2. `account` is its 32 hexadecimal digits."""
        if not _R2_ACCOUNT.fullmatch(account):
            raise BadLocation("an R2 account is 32 hexadecimal digits in lower case: see the R2 page of the dashboard")
        return cls(f"https://{account}.r2.cloudflarestorage.com", "auto", bucket)

    @property
    def folder(self) -> str:
        """What stands in front of each key."""
        return f"{self.prefix}/" if self.prefix else ""

    def url_of(self, name: str, query: Mapping[str, str]) -> str:
        """The URL of the object `name`, whose prefix is in it already, or of the bucket for an empty name."""
        scheme, host = self.url.split("://")
        base = f"{scheme}://{host}/{self.bucket}" if self.path_style else f"{scheme}://{self.bucket}.{host}"
        path = f"/{encode_path(name)}" if name or not self.path_style else ""
        return f"{base}{path}?{encode_query(query)}" if query else f"{base}{path}"


class S3Requests:
    """Signed requests to the bucket at `endpoint`."""

    def __init__(self, endpoint: S3Endpoint, credentials: Credentials, transport: Transport) -> None:
        self.endpoint, self.transport = endpoint, transport
        self._credentials = credentials

    async def send(
        self,
        method: str,
        key: str,
        what: str,
        *,
        headers: Mapping[str, str] = _NOTHING,
        query: Mapping[str, str] = _NOTHING,
        body: bytes | memoryview = b"",
        sink: Sink | None = None,
        alive_seconds: float | None = None,
    ) -> Answer:
        """One request about the object `key`, or about the bucket for an empty key; `what` is how messages call it and
        `alive_seconds` as in `Request`. Raises like `Transport.exchange`."""
        digest = await _digest(body)

        def build() -> Request:
            signed = self._signed(method, key, what, headers, query, body, digest)
            return replace(signed, alive_seconds=alive_seconds)

        return await self.transport.exchange(build, sink or Gathered(0))

    def reading(self, method: str, key: str, headers: Mapping[str, str]) -> Request:
        """One attempt at reading an object."""
        return self._signed(method, key, f"read {key}", headers, _NOTHING, b"", EMPTY_BODY_DIGEST)

    def _signed(
        self,
        method: str,
        key: str,
        what: str,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        body: bytes | memoryview,
        digest: str,
    ) -> Request:
        url = self.endpoint.url_of(self.endpoint.folder + key if key else "", query)
        signed = sign(self._credentials, self.endpoint.region, method, url, headers, body_digest=digest)
        return Request(method, url, what, signed, body)


async def _digest(body: bytes | memoryview) -> str:
    """SHA-256 of a body, in hexadecimal."""
    if len(body) < _HASH_IN_THREAD_BYTES:
        return hashlib.sha256(body).hexdigest() if body else EMPTY_BODY_DIGEST
    return await asyncio.to_thread(lambda: hashlib.sha256(body).hexdigest())
