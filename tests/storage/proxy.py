"""A loopback HTTP proxy that misbehaves on purpose: `FAULTS` is the table of what it can do to a request.

It stands in front of a real S3 server, or of a function that answers. Nothing in it is random but what is drawn from
a seed, and a draw depends on the request, not on the order in which requests arrive: a run with many requests at a
time is disturbed in the same way each time.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from random import Random
from typing import Self
from urllib.parse import urlsplit

_LINE_LIMIT_BYTES = 1 << 16
_PIECE_BYTES = 1 << 16
_DRIPS_PER_SECOND = 20
# A reset instead of an ordinary end: close at once and throw away what is not sent.
_LINGER_NOT = struct.pack("ii", 1, 0)


class Reaches(Enum):
    """How far a request comes."""

    NOWHERE = "the proxy does not read on after the head"
    HALF = "the proxy reads half of the body"
    PROXY = "the proxy reads it and does not pass it on"
    SERVER = "the server carries it out"


class Then(Enum):
    """What follows the answer, or the part of it that is sent."""

    GO_ON = "the connection stays open for the next request"
    CLOSE = "the connection is closed"
    RESET = "the connection is reset"
    STALL = "nothing, until the client goes away"


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for. Header names are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = field(default=b"", repr=False)

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return int(self.headers.get("content-length", "0"))


@dataclass(frozen=True, slots=True)
class Response:
    """What is answered. A `content-length` that is not given is that of the body."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)

    def head(self) -> bytes:
        """Status line and headers as they are sent."""
        headers = self.headers
        if not headers.keys() & {"content-length", "transfer-encoding"} and self.status not in (204, 304):
            headers = headers | {"content-length": str(len(self.body))}
        lines = [f"HTTP/1.1 {self.status} -", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


Server = Callable[[Request], Response]
"""What stands behind the proxy where no real server is needed."""


# --- what is answered instead -------------------------------------------------------------------------------

Answer = Callable[[Request, Response, Random], Response | bytes]
"""From the request and the honest response (an empty one, if the server was not asked) to the response, or the bytes,
that the client gets."""


def _honest(request: Request, honest: Response, random: Random) -> Response:
    return honest


def _error(status: int, code: str, **headers: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>on purpose</Message></Error>'
    answer = Response(status, {"content-type": "application/xml", **headers}, body.encode())
    return lambda request, honest, random: answer


def _redirect(status: int, location: str) -> Answer:
    return lambda request, honest, random: Response(
        status, {"location": location.format(host=request.headers.get("host", ""))}
    )


def _with_length(change: Callable[[int], int]) -> Answer:
    return lambda request, honest, random: replace(
        honest, headers=honest.headers | {"content-length": str(change(len(honest.body)))}
    )


def _with_range(change: Callable[[int, int, int], tuple[int, int, int]]) -> Answer:
    def answer(request: Request, honest: Response, random: Random) -> Response:
        told = honest.headers.get("content-range", "")
        if not told.startswith("bytes "):
            return honest
        span, _, size = told.removeprefix("bytes ").partition("/")
        first, _, last = span.partition("-")
        start, end, total = change(int(first), int(last), int(size))
        return replace(honest, headers=honest.headers | {"content-range": f"bytes {start}-{end}/{total}"})

    return answer


def _range_shifted(request: Request, honest: Response, random: Random) -> Response:
    """The right headers with the bytes of another place."""
    return replace(honest, body=honest.body[1:] + honest.body[:1])


def _flipped(request: Request, honest: Response, random: Random) -> Response:
    body = bytearray(honest.body)
    if body:
        body[random.randrange(len(body))] ^= 1 << random.randrange(8)
    return replace(honest, body=bytes(body))


def _chunked(request: Request, honest: Response, random: Random) -> Response:
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(honest.body), honest.body) if honest.body else b"0\r\n\r\n"
    return replace(honest, headers=_unmeasured(honest) | {"transfer-encoding": "chunked"}, body=body)


def _swollen(request: Request, honest: Response, random: Random) -> Response:
    """64 MiB of nothing, compressed to 64 KiB, for a client that unpacks what it did not ask to be packed."""
    return replace(
        honest, headers=_unmeasured(honest) | {"content-encoding": "gzip"}, body=gzip.compress(bytes(1 << 26))
    )


def _unmeasured(response: Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name != "content-length"}


_ENDLESS = b"HTTP/1.1 200 -\r\ntransfer-encoding: chunked\r\n\r\n"


def _raw(text: bytes) -> Answer:
    return lambda request, honest, random: text


# --- the table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to misbehave. `sent` is the share of the body that leaves, None when not even the head does;
    `bytes_per_second` is the pace of the body; `repeat` follows it again and again until the client goes away."""

    name: str
    answer: Answer = _honest
    sent: float | None = 1.0
    bytes_per_second: float | None = None
    repeat: bytes = b""
    reaches: Reaches = Reaches.SERVER
    then: Then = Then.GO_ON


FAULTS = {
    fault.name: fault
    for fault in (
        # The connection breaks.
        Fault("reset at once", sent=None, reaches=Reaches.NOWHERE, then=Then.RESET),
        Fault("reset in the request", sent=None, reaches=Reaches.HALF, then=Then.RESET),
        Fault("reset unanswered", sent=None, then=Then.RESET),
        Fault("closed unanswered", sent=None, then=Then.CLOSE),
        Fault("reset after the head", sent=0.0, then=Then.RESET),
        Fault("reset in the body", sent=0.5, then=Then.RESET),
        Fault("truncated", sent=0.5, then=Then.CLOSE),
        Fault("closed in a chunk", _chunked, sent=0.5, then=Then.CLOSE),
        # Time passes.
        Fault("stall at once", sent=None, reaches=Reaches.NOWHERE, then=Then.STALL),
        Fault("stall unanswered", sent=None, then=Then.STALL),
        Fault("stall in the body", sent=0.5, then=Then.STALL),
        Fault("drip", bytes_per_second=20),
        # The server has trouble.
        Fault("slow down", _error(503, "SlowDown"), reaches=Reaches.PROXY),
        Fault("slow down, later", _error(503, "SlowDown", **{"retry-after": "86400"}), reaches=Reaches.PROXY),
        Fault("internal error", _error(500, "InternalError"), reaches=Reaches.PROXY),
        Fault("internal error, but done", _error(500, "InternalError")),
        Fault("bad gateway", lambda *_: Response(502, body=b"<html>bad gateway</html>"), reaches=Reaches.PROXY),
        Fault("an error with status 200", _error(200, "InternalError"), reaches=Reaches.PROXY),
        # It lies.
        Fault("longer than sent", _with_length(lambda length: length + 1), then=Then.CLOSE),
        Fault("shorter than sent", _with_length(lambda length: max(0, length - 1))),
        Fault("negative length", _with_length(lambda length: -1), then=Then.CLOSE),
        Fault("immense length", _with_length(lambda length: 1 << 60), then=Then.STALL),
        Fault("another range", _with_range(lambda start, end, size: (start + 1, end + 1, size + 1))),
        Fault("another size", _with_range(lambda start, end, size: (start, end, size + 1))),
        Fault("shifted bytes", _range_shifted),
        Fault("flipped bit", _flipped),
        Fault("swollen", _swollen),
        # It sends the client elsewhere.
        Fault("redirect here", _redirect(307, "http://{host}/redirected"), reaches=Reaches.PROXY),
        Fault("redirect to a path", _redirect(301, "/redirected"), reaches=Reaches.PROXY),
        Fault("redirect to a file", _redirect(302, "file:///etc/passwd"), reaches=Reaches.PROXY),
        Fault("redirect to metadata", _redirect(308, "http://169.254.169.254/latest/"), reaches=Reaches.PROXY),
        Fault("redirect to a stranger", _redirect(301, "https://bucket.example/object"), reaches=Reaches.PROXY),
        # It never ends, or is no HTTP at all.
        Fault("endless headers", _raw(b"HTTP/1.1 200 -\r\n"), repeat=b"x-hay: hay\r\n", reaches=Reaches.PROXY),
        Fault("endless line", _raw(b"HTTP/1.1 200 -\r\nx-hay: "), repeat=b"hay", reaches=Reaches.PROXY),
        Fault("endless body", _raw(_ENDLESS), repeat=b"8\r\nhay hay \r\n", reaches=Reaches.PROXY),
        Fault("garbage", _raw(b"\x16\x03\x01 hay\r\n\r\n"), reaches=Reaches.PROXY, then=Then.CLOSE),
        Fault("garbage status", _raw(b"HTTP/1.1 hay OK\r\n\r\n"), reaches=Reaches.PROXY, then=Then.CLOSE),
    )
}


# --- when which ---------------------------------------------------------------------------------------------

Plan = Callable[[Request], Fault | None]
"""Which fault a request gets; None lets it pass."""


def honest(request: Request) -> None:
    """Let everything pass."""


def script(*faults: str | None) -> Plan:
    """These, one after the other; then everything passes."""
    rest = iter(faults)

    def plan(request: Request) -> Fault | None:
        name = next(rest, None)
        return None if name is None else FAULTS[name]

    return plan


def always(fault: str | Fault) -> Plan:
    """The same for every request."""
    chosen = FAULTS[fault] if isinstance(fault, str) else fault
    return lambda request: chosen


def drawn(seed: int, share: float, faults: Sequence[str] = tuple(FAULTS)) -> Plan:
    """A share of all requests gets one of these faults. The draw depends on the seed, on what is asked for, and on
    how often that was asked for before."""
    asked: Counter[str] = Counter()

    def plan(request: Request) -> Fault | None:
        what = f"{request.method} {request.target} {request.headers.get('range', '')}"
        asked[what] += 1
        random = Random(f"{seed} {what} {asked[what]}")
        return FAULTS[random.choice(faults)] if random.random() < share else None

    return plan


# --- the proxy ----------------------------------------------------------------------------------------------


class Proxy:
    """Serves at `url` while its block runs, in front of `server`: the http url of a real one, or a function.

    `injected` counts the faults that a client could notice, by name; `requests` are all that came, without bodies.
    """

    def __init__(
        self, server: str | Server, plan: Plan = honest, *, seed: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.plan = plan
        self.url = ""
        self.injected: Counter[str] = Counter()
        self.requests: list[Request] = []
        self._server = server
        self._random = Random(seed)
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(
            self._accept, "127.0.0.1", 0, limit=_LINE_LIMIT_BYTES, ssl=self._tls
        )
        port = self._listener.sockets[0].getsockname()[1]
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that goes away, for whatever reason, is none of our business.
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                while await self._exchange(reader, writer):
                    pass
            finally:
                writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and what becomes of it. Returns whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        request = _parse_request(head)
        self.requests.append(request)
        fault = self.plan(request) or Fault("none")
        if request.headers.get("expect") == "100-continue" and fault.reaches is not Reaches.NOWHERE:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        answer = Response()
        match fault.reaches:
            case Reaches.HALF:
                await reader.readexactly(request.length // 2)
            case Reaches.PROXY:
                await reader.readexactly(request.length)
            case Reaches.SERVER:
                request = replace(request, body=await reader.readexactly(request.length))
                answer = await self._ask(request)
        honest, said = answer.head(), answer.body
        told = fault.answer(request, answer, self._random)
        head, body = (told, b"") if isinstance(told, bytes) else (told.head(), told.body)
        if request.method == "HEAD":
            said = body = b""
        if fault.sent is None:
            head = body = b""
        else:
            body = body[: int(fault.sent * len(body))]
        slow = bool(body) and fault.bytes_per_second is not None
        if head + body != honest + said or slow or fault.reaches is not Reaches.SERVER:
            self.injected[fault.name] += 1
        writer.write(head)
        for piece in _pieces(body, fault.bytes_per_second):
            writer.write(piece)
            await writer.drain()
            if slow:
                await asyncio.sleep(1 / _DRIPS_PER_SECOND)
        await writer.drain()
        while fault.repeat:
            writer.write(fault.repeat * 1000)
            await writer.drain()
        return await self._end(fault.then, reader, writer)

    async def _end(self, then: Then, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if then is Then.STALL:
            while await reader.read(_PIECE_BYTES):
                pass
        if then is Then.RESET:
            connection: socket.socket = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            writer.transport.abort()
        return then is Then.GO_ON

    async def _ask(self, request: Request) -> Response:
        if not isinstance(self._server, str):
            return self._server(request)
        where = urlsplit(self._server)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        try:
            kept = {name: value for name, value in request.headers.items() if name not in ("connection", "expect")}
            lines = [f"{request.method} {request.target} HTTP/1.1"]
            lines += [f"{name}: {value}" for name, value in (kept | {"connection": "close"}).items()]
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + request.body)
            return _parse_response(await reader.read(), request.method)
        finally:
            writer.close()


def _pieces(body: bytes, bytes_per_second: float | None) -> Iterator[bytes]:
    size = _PIECE_BYTES if bytes_per_second is None else max(1, int(bytes_per_second / _DRIPS_PER_SECOND))
    for start in range(0, len(body), size):
        yield body[start : start + size]


def _parse_head(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return first, headers


def _parse_request(head: bytes) -> Request:
    line, headers = _parse_head(head)
    method, target, _ = line.split(" ")
    return Request(method, target, headers)


def _parse_response(message: bytes, method: str) -> Response:
    """What a server sent on a connection that it closed afterwards. A body in chunks is put together."""
    head, _, body = message.partition(b"\r\n\r\n")
    line, headers = _parse_head(head)
    headers.pop("connection", None)
    if headers.pop("transfer-encoding", None) == "chunked":
        body, rest = b"", body
        while True:
            size, _, rest = rest.partition(b"\r\n")
            if not int(size, 16):
                break
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    status = int(line.split(" ")[1])
    return Response(status, headers, b"" if method == "HEAD" else body)
