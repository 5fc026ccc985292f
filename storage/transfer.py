"""The one way of this node to HTTP: connections, their limits, and requests that end with an answer or an error.

A request is sent again when the connection failed, the answer broke off, stood still or said that the store is busy;
never when the store has understood and refused. Redirects are not followed: a peer could point them anywhere.
"""

from __future__ import annotations

import asyncio
import math
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from storage.addresses import HTTPS_PORT, PublicResolver, check_host, public_socket
from storage.errors import ForbiddenAddress, Unavailable
from storage.lookups import Lookups
from storage.retries import Retries

REFUSAL_LIMIT_BYTES = 64 << 10
"""What is read of an answer that is not a success."""

_SEND_BYTES = 256 << 10
_READ_BYTES = 1 << 20
"""How much of an answer may wait for its reader. The library's own default stops and starts the socket too often."""

_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_BUSY_CODES = frozenset(
    {
        "BadDigest",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "SlowDown",
        "XAmzContentSHA256Mismatch",
    }
)
"""What S3 servers say when the same request may succeed the next time. A body damaged on its way is among it."""

_CODE = re.compile(rb"<Error>.{0,256}?<Code>([A-Za-z0-9.]{1,64})</Code>", re.DOTALL)


class Reach(Enum):
    """Whose hosts a transport may connect to."""

    PUBLIC = "public"
    """Hosts that peers name: https to the public internet only (`storage.addresses`)."""

    ANY = "any"
    """Hosts that this node's owner names, and those of a local network."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one transport may use, and how long it waits.

    Every `window_bytes` of a request or an answer must move within `window_seconds`, or all that is left of it: so a
    large object may take long, and one that stands still, or drips, may not. A connection, with name and TLS, must be
    there within `connect_seconds`.
    """

    connections: int = 64
    connections_per_host: int = 16
    connect_seconds: float = 10.0
    window_seconds: float = 20.0
    window_bytes: int = 1 << 20


LIMITS = Limits()
RETRIES = Retries()


@dataclass(frozen=True, slots=True)
class Request:
    """One attempt at a request. `url` is escaped already and shown in no message; `what` is how messages call the
    request, such as `read a/b from HOST`. With `alive_seconds` every byte counts as progress, for as long as that:
    some answers of the own store take minutes and are kept alive by nothing but white space."""

    method: str
    url: str
    what: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""
    alive_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `body` is empty when a sink took it. Header names are in lower case. `attempts` counts the
    sendings: if it is above 1, an earlier one may have been obeyed although its answer was lost."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    attempts: int = 1

    @property
    def code(self) -> str:
        """The code of an S3 error, empty when there is none."""
        found = _CODE.search(self.body)
        return found[1].decode() if found else ""

    def __str__(self) -> str:
        return f"{self.status} {self.code}".rstrip()


class Broken(Exception):
    """Raised within an attempt: it failed in a way that the next one may not. The text says what happened."""


class Sink(Protocol):
    """Takes the body of a success while it comes in."""

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """An answer begins. May raise `Broken` or a `StorageError`, such as `TooLarge` before any of it is read."""

    async def write(self, piece: bytes) -> None:
        """The next bytes of it. May raise like `begin`."""

    def end(self) -> None:
        """All of it came. May raise like `begin`."""


class Gathered:
    """A sink for short answers: the bytes in `body`. Raises `Unavailable` beyond `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self.body = bytearray()
        self._limit_bytes = limit_bytes

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """See `Sink.begin`."""
        self.body.clear()

    async def write(self, piece: bytes) -> None:
        """See `Sink.write`."""
        if len(self.body) + len(piece) > self._limit_bytes:
            raise Unavailable(f"the store answers with more than the {self._limit_bytes} bytes it may")
        self.body += piece

    def end(self) -> None:
        """See `Sink.end`."""


class Transport:
    """One a process and event loop. `reach` says where it may connect to; `tls` is what it trusts, None for the
    certificates of this machine."""

    def __init__(
        self,
        reach: Reach,
        *,
        limits: Limits = LIMITS,
        retries: Retries = RETRIES,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.limits = limits
        self._reach = reach
        self._retries = retries
        self._tls = tls
        self._opened: aiohttp.ClientSession | None = None
        self._all = asyncio.Semaphore(limits.connections)
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def close(self) -> None:
        """Close all connections. A later request opens new ones."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    async def exchange(self, build: Callable[[], Request], sink: Sink) -> Answer:
        """Send what `build` makes, again if need be, until there is an answer that says something about the request:
        a success, whose body went to `sink`, or a refusal, whose beginning is in the answer.

        `build` is called for each attempt: a signature has a date, and a sink may want only what it still lacks.
        Raises `Unavailable` after the last attempt, with what happened at that one, and what `sink` raises.
        """
        attempt = 1
        while True:
            request = build()
            try:
                answer = await self._attempt(request, sink, attempt)
                if answer.status not in _BUSY and answer.code not in _BUSY_CODES:
                    return answer
                trouble = f"the store answered {answer}"
            except Broken as broken:
                trouble = str(broken)
            if attempt >= self._retries.attempts:
                raise Unavailable(f"cannot {request.what}: {trouble}, at the last of {attempt} attempts")
            await self._retries.pause(attempt)
            attempt += 1

    async def _attempt(self, request: Request, sink: Sink, attempt: int) -> Answer:
        parts = urlsplit(request.url)
        if self._reach is Reach.PUBLIC:
            if parts.scheme != "https":
                raise ForbiddenAddress(f"cannot {request.what}: only https may be used to reach what a peer names")
            check_host(parts.hostname or "", parts.port or HTTPS_PORT)
        async with self._slot(parts.netloc):
            try:
                async with asyncio.timeout(self.limits.window_seconds) as deadline:
                    progress = _Progress(deadline, self.limits, request.alive_seconds)
                    return await self._talk(request, sink, attempt, progress)
            except TimeoutError as error:
                if not deadline.expired():
                    raise Broken(f"no connection within {self.limits.connect_seconds:g} s") from error
                limits = self.limits
                raise Broken(f"fewer than {limits.window_bytes} bytes in {limits.window_seconds:g} s") from error
            except aiohttp.ClientConnectorCertificateError as error:
                raise Unavailable(f"cannot {request.what}: its host's certificate is not valid") from error
            except aiohttp.ClientError as error:
                if isinstance(error.__cause__, PermissionError):  # from `public_socket`
                    raise ForbiddenAddress(f"cannot {request.what}: {error.__cause__.strerror}") from error
                raise Broken(_trouble(error)) from error
            except OSError as error:
                raise Broken(error.strerror or type(error).__name__) from error

    async def _talk(self, request: Request, sink: Sink, attempt: int, progress: _Progress) -> Answer:
        headers = {**request.headers, "content-length": str(len(request.body))} if request.body else request.headers
        async with self._session.request(
            request.method,
            URL(request.url, encoded=True),
            headers=headers,
            data=_pieces(request.body, progress) if request.body else None,
            allow_redirects=False,
        ) as response:
            progress.answered()
            found = {name.lower(): value for name, value in response.headers.items()}
            if 200 <= response.status < 300:
                sink.begin(response.status, found)
                while piece := await response.content.readany():
                    progress.moved(len(piece))
                    await sink.write(piece)
                sink.end()
                return Answer(response.status, found, b"", attempt)
            refusal = bytearray()
            while len(refusal) < REFUSAL_LIMIT_BYTES and (piece := await response.content.readany()):
                refusal += piece
            return Answer(response.status, found, bytes(refusal[:REFUSAL_LIMIT_BYTES]), attempt)

    @asynccontextmanager
    async def _slot(self, host: str) -> AsyncIterator[None]:
        # The host first: who waits for a slow host must not hold a connection that another could use.
        of_host = self._hosts.setdefault(host, asyncio.Semaphore(self.limits.connections_per_host))
        async with of_host, self._all:
            yield

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            public = self._reach is Reach.PUBLIC
            resolver: AbstractResolver = Lookups()
            connector = aiohttp.TCPConnector(
                limit=0,  # `_slot` counts: waiting for a connection must not use up the time for its answer
                resolver=PublicResolver(resolver) if public else resolver,
                socket_factory=public_socket if public else None,
                ssl=self._tls or True,
            )
            self._opened = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, connect=self.limits.connect_seconds),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"user-agent": "windrow", "accept-encoding": "identity"},
                auto_decompress=False,  # an answer must not grow after it was counted
                read_bufsize=_READ_BYTES,
                trust_env=False,
            )
            # The library would send most requests once more by itself, and `attempts` must count every sending.
            self._opened._retry_connection = False
        return self._opened


class _Progress:
    """Moves the deadline of an attempt as its bytes do."""

    def __init__(self, deadline: asyncio.Timeout, limits: Limits, alive_seconds: float | None) -> None:
        self._deadline, self._seconds = deadline, limits.window_seconds
        self._loop = asyncio.get_running_loop()
        self._bytes = limits.window_bytes if alive_seconds is None else 1
        self._last = math.inf if alive_seconds is None else self._loop.time() + alive_seconds
        self._moved = 0

    def moved(self, count: int) -> None:
        self._moved += count
        if self._moved >= self._bytes:
            self.answered()

    def answered(self) -> None:
        """A new window begins: the request is out, or its answer is in sight."""
        self._moved = 0
        self._deadline.reschedule(min(self._loop.time() + self._seconds, self._last))


async def _pieces(body: bytes | memoryview, progress: _Progress) -> AsyncIterator[memoryview]:
    view = memoryview(body)
    for start in range(0, len(view), _SEND_BYTES):
        piece = view[start : start + _SEND_BYTES]
        yield piece
        progress.moved(len(piece))  # it is asked for the next one once this one is on its way
    progress.answered()


def _trouble(error: aiohttp.ClientError) -> str:
    """What happened, in words of our own: the library's may repeat what the server sent."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "its name cannot be resolved"
        case aiohttp.ClientConnectorError():
            return f"it cannot be connected to ({error.os_error.strerror or 'no reason given'})"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError():
            return "the connection was closed before the answer came"
        case aiohttp.ClientPayloadError():
            return "the answer broke off"
        case _:
            return "what came back is not HTTP"
