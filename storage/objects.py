"""Reading objects over HTTP, with or without keys: what `S3Bucket` and `HttpsBucket` have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import NoReturn

from storage.bucket import ObjectInfo, Writer, check_key
from storage.errors import AccessRefused, NotFound, StorageError, TooLarge, Unavailable, WrongSize
from storage.transfer import Answer, Broken, Gathered, Request, Transport

_LENGTH = re.compile(r"[0-9]{1,24}")
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_STRONG_TAG = re.compile(r'"[!#-~]{1,256}"')

_REFUSALS = {
    "InvalidAccessKeyId": "the store does not know this access key id: check that it was made for this store",
    "SignatureDoesNotMatch": "the secret access key does not belong to this access key id, or the region is another",
    "RequestTimeTooSkewed": "this machine's clock and that of the store are more than 15 minutes apart: set the clock",
    "AccessDenied": "this access key may not do that: use one that may, or change what it is allowed",
    "AuthorizationHeaderMalformed": "the region is another one: name the one that the bucket is in",
}


class Memory:
    """A writer that keeps everything. Memory is taken as bytes arrive, not as a stranger announces them."""

    def __init__(self) -> None:
        self._bytes = BytesIO()

    async def write(self, at: int, piece: bytes) -> None:
        """See `Writer.write`."""
        if at != self._bytes.tell():
            self._bytes.seek(at)
            self._bytes.truncate()
        self._bytes.write(piece)

    def take(self) -> bytes:
        """All of it, without a copy."""
        return self._bytes.getvalue()


@dataclass(slots=True)
class _Reading:
    """The sink of an object, or of `length` bytes from `start`. What one attempt brought is kept when the store can
    promise, by a strong entity tag, that the next one goes on in the same object. `end_bytes` is where the answer says
    that what it gives will end, if it gives a part of the object."""

    key: str
    writer: Writer
    limit_bytes: int
    start: int = 0
    length: int | None = None
    size_bytes: int | None = None
    received: int = 0
    end_bytes: int | None = None
    tag: str = ""
    resumes: bool = True

    def headers(self) -> dict[str, str]:
        """What the next attempt asks for."""
        if not self.tag or not self.resumes:
            self.received = 0
        headers = {"if-match": self.tag} if self.received else {}
        if self.length is not None:
            headers["range"] = f"bytes={self.start + self.received}-{self.start + self.length - 1}"
        elif self.received:
            headers["range"] = f"bytes={self.received}-"
        return headers

    def changed(self, answer: Answer) -> bool:
        """Whether the object is another one than before. It is then read from its beginning, and not by parts any
        more: who changes it all the time must not keep us for ever."""
        another = self.received > 0 and answer.status in (412, 416)
        self.resumes &= not another
        return another

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """See `Sink.begin`."""
        self.end_bytes = None
        if status == 206:
            self._check_range(headers.get("content-range", ""))
        elif status != 200:
            raise Broken(f"the store answered a read with {status}")
        elif self.length is not None:
            raise Unavailable(f"cannot read a part of {self.key}: its store gives whole objects only")
        else:
            self.received = 0
        declared = headers.get("content-length", "")
        if _LENGTH.fullmatch(declared):
            self._check_limit(self.received + int(declared))
        tag = headers.get("etag", "")
        self.tag = tag if _STRONG_TAG.fullmatch(tag) else ""

    async def write(self, piece: bytes) -> None:
        """See `Sink.write`."""
        at = self.received
        self._check_limit(at + len(piece))
        await self.writer.write(at, piece)
        self.received = at + len(piece)

    def end(self) -> None:
        """See `Sink.end`."""
        if self.length not in (None, self.received) or self.end_bytes not in (None, self.start + self.received):
            raise Broken("the answer is shorter than what it announced")

    def _check_range(self, text: str) -> None:
        found = _RANGE.fullmatch(text)
        if not found or int(found[1]) != self.start + self.received:
            raise Broken("the store answered with another range")
        if self.size_bytes is not None and found[3] != str(self.size_bytes):
            raise WrongSize(f"{self.key} has {found[3]} bytes, not the {self.size_bytes} that it should have")
        self.end_bytes = int(found[2]) + 1
        if self.length is not None and self.end_bytes < self.start + self.length:
            raise StorageError(f"{self.key} ends at {self.end_bytes}, before {self.start} + {self.length}")
        if self.length is None and found[3] != str(self.end_bytes):
            raise Broken("the store answered a read of the whole object with a part of it")

    def _check_limit(self, size_bytes: int) -> None:
        if size_bytes > self.limit_bytes:
            if self.length is not None:
                raise Broken("the store answered with another range")
            raise TooLarge(f"{self.key} has {size_bytes} bytes or more, its limit is {self.limit_bytes}")


class Objects:
    """Objects behind URLs. `request` makes one attempt's request from its method, key and headers."""

    def __init__(self, transport: Transport, request: Callable[[str, str, Mapping[str, str]], Request]) -> None:
        self._transport, self._request = transport, request

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        """See `Bucket.get`."""
        memory = Memory()
        await self._read(_Reading(key, memory, limit_bytes))
        return memory.take()

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """See `Bucket.get_range`. `start` ≥ 0 and `length` ≥ 1, else `ValueError`."""
        memory = Memory()
        await self.copy_range(key, start, length, memory)
        return memory.take()

    async def copy_range(
        self, key: str, start: int, length: int, writer: Writer, *, size_bytes: int | None = None
    ) -> None:
        """See `Bucket.copy_range`; the size of the whole object may be unknown here."""
        if start < 0 or length < 1:
            raise ValueError(f"a range needs start >= 0 and length >= 1, not {start} and {length}")
        await self._read(_Reading(key, writer, length, start, length, size_bytes))

    async def head(self, key: str) -> ObjectInfo:
        """See `Bucket.head`. The time is in whole seconds."""
        check_key(key)
        answer = await self._transport.exchange(lambda: self._request("HEAD", key, {}), Gathered(0))
        if answer.status != 200:
            refuse(answer, f"read {key}", key)
        size, modified = answer.headers.get("content-length", ""), answer.headers.get("last-modified", "")
        try:
            time = parsedate_to_datetime(modified).timestamp()
        except (ValueError, OverflowError):  # a year or a zone that no clock has
            time = 0.0  # evidence only: a store that tells none shows just that
        if not _LENGTH.fullmatch(size):
            raise Unavailable(f"cannot read {key}: its store does not tell how long it is")
        return ObjectInfo(key, int(size), time)

    async def _read(self, reading: _Reading) -> None:
        check_key(reading.key)
        while True:
            answer = await self._transport.exchange(
                lambda: self._request("GET", reading.key, reading.headers()), reading
            )
            if not reading.changed(answer):
                break
        if answer.status == 416:
            raise StorageError(f"{reading.key} ends before {reading.start} + {reading.length}")
        if not 200 <= answer.status < 300:
            refuse(answer, f"read {reading.key}", reading.key)


def refuse(answer: Answer, what: str, key: str) -> NoReturn:
    """Raise what the refusal `answer` means for someone who wanted to `what`."""
    code = answer.code
    if code == "NoSuchBucket":
        raise Unavailable(f"cannot {what}: the store has no such bucket: create it, or correct its name")
    if answer.status == 404:
        raise NotFound(f"there is no object {key}")
    if answer.status in (401, 403) or code in _REFUSALS:
        reason = _REFUSALS.get(code, "the store does not accept this access key, or it may not do that")
        raise AccessRefused(f"cannot {what}: {reason} ({answer})")
    if 300 <= answer.status < 400:
        raise Unavailable(
            f"cannot {what}: the store sends us elsewhere ({answer}), which is not followed: "
            "name the endpoint and region that the bucket is in"
        )
    raise Unavailable(f"cannot {what}: the store answered {answer}")
