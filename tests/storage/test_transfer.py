"""The transport between us and a server that misbehaves: every request ends, in the right bytes or a clear error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from storage.errors import AccessRefused, ForbiddenAddress, NotFound, StorageError, Unavailable
from storage.https import HttpsBucket
from storage.retries import Retries
from storage.transfer import Limits, Reach, Transport
from tests.storage.proxy import FAULTS, Fault, Plan, Proxy, Request, Response, Server, always, script
from tests.storage.tls import Tls

DATA = bytes(range(256)) * 2000
"""Half a megabyte: several pieces."""

SHORT = Limits(connect_seconds=0.5, window_seconds=0.5, window_bytes=1 << 16)
"""Waits so long that an honest server on this machine is never taken for a slow one, and a test is not slow either."""

FOUR = Retries(attempts=4, first_seconds=0.0)

MENDED = (
    *("reset at once", "reset in the request", "reset unanswered", "closed unanswered", "reset after the head"),
    *("reset in the body", "truncated", "closed in a chunk", "stall at once", "stall unanswered", "stall in the body"),
    *("drip", "slow down", "slow down, later", "internal error", "internal error, but done", "bad gateway"),
    *("negative length", "endless headers", "endless line", "garbage", "garbage status"),
)
"""What the next attempt may be spared."""

SAID = {
    "reset unanswered": "the connection was closed before the answer came",
    "truncated": "the answer broke off",
    "stall unanswered": "fewer than 65536 bytes in 0.5 s",
    "drip": "fewer than 65536 bytes in 0.5 s",
    "slow down": "the store answered 503 SlowDown",
    "bad gateway": "the store answered 502",
    "garbage": "what came back is not HTTP",
}


def whole(request: Request) -> Response:
    """`DATA` under every name, by ranges too."""
    headers = {"etag": '"one"'}
    asked = request.headers.get("range", "").removeprefix("bytes=").split("-")
    if asked == [""]:
        return Response(200, headers, DATA)
    start, end = int(asked[0]), int(asked[1] or len(DATA) - 1) + 1
    return Response(206, headers | {"content-range": f"bytes {start}-{end - 1}/{len(DATA)}"}, DATA[start:end])


def read(
    plan: Plan,
    *,
    server: Server = whole,
    retries: Retries = FOUR,
    limits: Limits = SHORT,
    steps: Callable[[HttpsBucket], Awaitable[object]] = lambda bucket: bucket.get("a", limit_bytes=len(DATA)),
) -> tuple[object, Proxy]:
    """What `steps` return, and the proxy that stood in between."""

    async def scenario() -> tuple[object, Proxy]:
        async with Proxy(server, plan) as proxy:
            transport = Transport(Reach.ANY, limits=limits, retries=retries)
            try:
                return await steps(HttpsBucket(proxy.url, transport)), proxy
            finally:
                await transport.close()

    return asyncio.run(scenario())


@pytest.mark.parametrize("fault", MENDED)
def test_what_the_next_attempt_may_be_spared_is_tried_again(fault: str) -> None:
    data, proxy = read(script(fault, fault))
    assert data == DATA
    assert proxy.injected == {fault: 2}


@pytest.mark.parametrize("fault", SAID)
def test_after_the_last_attempt_the_error_says_what_happened_then(fault: str) -> None:
    said = f"cannot read a: {SAID[fault]}, at the last of 2 attempts"
    with pytest.raises(Unavailable, match=said):
        read(script("garbage", fault), retries=Retries(attempts=2, first_seconds=0.0))


def test_pauses_double_up_to_the_longest_and_are_drawn_evenly_from_zero() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    retries = Retries(7, first_seconds=0.25, longest_seconds=2.0, sleep=sleep, draw=iter([1, 1, 1, 1, 0.5, 0]).__next__)
    data, _ = read(script(*["slow down"] * 6), retries=retries)
    assert data == DATA
    assert slept == [0.25, 0.5, 1.0, 2.0, 1.0, 0.0]


def test_a_read_goes_on_where_it_broke_off() -> None:
    data, proxy = read(script("truncated", "truncated"))
    assert data == DATA
    assert [request.headers.get("range") for request in proxy.requests] == [
        None,
        f"bytes={len(DATA) // 2}-",
        f"bytes={len(DATA) // 2 + len(DATA) // 4}-",
    ]
    assert [request.headers.get("if-match") for request in proxy.requests] == [None, '"one"', '"one"']


def test_without_a_strong_tag_a_read_begins_again() -> None:
    def untagged(request: Request) -> Response:
        return Response(200, {"etag": 'W/"weak"'}, DATA)

    data, proxy = read(script("truncated"), server=untagged)
    assert data == DATA
    assert [request.headers.get("range") for request in proxy.requests] == [None, None]


@pytest.mark.parametrize("told", ["bytes 0-999/{size}", "bytes 0-999/*"])
def test_a_part_is_not_taken_for_the_whole(told: str) -> None:
    def partly(request: Request) -> Response:
        return Response(206, {"content-range": told.format(size=len(DATA))}, DATA[:1000])

    with pytest.raises(Unavailable, match="answered a read of the whole object with a part of it"):
        read(script(), server=partly)


def test_a_part_that_is_the_whole_and_ends_early_is_not_taken_either() -> None:
    def short(request: Request) -> Response:
        return Response(206, {"content-range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}"}, DATA[:1000])

    with pytest.raises(Unavailable, match="shorter than what it announced"):
        read(script(), server=short)


def test_an_object_replaced_between_two_attempts_is_read_anew() -> None:
    tags = iter("12")

    def changing(request: Request) -> Response:
        if "if-match" in request.headers:
            return Response(412)
        tag = next(tags)
        return Response(200, {"etag": f'"{tag}"'}, tag.encode() * 1000)

    data, proxy = read(script("truncated"), server=changing)
    assert data == b"2" * 1000
    assert len(proxy.requests) == 3


def test_who_changes_an_object_all_the_time_does_not_keep_us_for_ever() -> None:
    def changing(request: Request) -> Response:
        return Response(412) if "if-match" in request.headers else Response(200, {"etag": '"x"'}, DATA)

    with pytest.raises(Unavailable, match="broke off, at the last of 4"):
        read(lambda request: None if "if-match" in request.headers else FAULTS["truncated"], server=changing)


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, Unavailable), (401, AccessRefused), (403, AccessRefused), (404, NotFound), (412, Unavailable)],
)
def test_a_refusal_is_final(status: int, error: type[StorageError]) -> None:
    asked: list[Request] = []

    def refusing(request: Request) -> Response:
        asked.append(request)
        return Response(status, body=b"<Error><Code>Whatever</Code></Error>")

    with pytest.raises(error):
        read(script(), server=refusing)
    assert len(asked) == 1


@pytest.mark.parametrize("fault", [name for name in FAULTS if name.startswith("redirect")])
def test_a_redirect_is_not_followed(fault: str) -> None:
    asked: list[str] = []

    def noting(request: Request) -> Fault:
        asked.append(request.target)
        return FAULTS[fault]

    with pytest.raises(Unavailable, match="sends us elsewhere"):
        read(noting)
    assert asked == ["/a"]


def test_what_the_server_says_is_not_repeated() -> None:
    def talking(request: Request) -> Response:
        return Response(400, body=b"<Error><Code>Odd</Code><Message>\x1b[31mhay</Message></Error>")

    with pytest.raises(Unavailable, match=r"the store answered 400 Odd$"):
        read(script(), server=talking)


def test_a_slow_transfer_that_goes_on_may_take_longer_than_the_time_out() -> None:
    pace = Fault("steady", bytes_per_second=200_000)
    limits = Limits(window_seconds=0.6, window_bytes=50_000)
    data, proxy = read(always(pace), limits=limits)
    assert data == DATA  # which took some 2.5 s, in one attempt
    assert len(proxy.requests) == 1


def test_no_more_connections_are_open_than_are_allowed() -> None:
    limits = Limits(connections=5, connections_per_host=3)
    now = most = 0

    async def scenario() -> None:
        async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.01)
            now -= 1
            writer.write(b"HTTP/1.1 200 -\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx")
            writer.close()

        servers = [await asyncio.start_server(count, "127.0.0.1", 0) for _ in range(3)]
        transport = Transport(Reach.ANY, limits=limits)
        buckets = [HttpsBucket(f"http://127.0.0.1:{s.sockets[0].getsockname()[1]}", transport) for s in servers]
        try:
            await asyncio.gather(*(buckets[0].get("a", limit_bytes=1) for _ in range(10)))
            assert most == 3
            await asyncio.gather(*(bucket.get("a", limit_bytes=1) for bucket in buckets for _ in range(10)))
            assert most == 5
        finally:
            await transport.close()
            for server in servers:
                server.close()

    asyncio.run(scenario())


def test_nobody_there_is_said() -> None:
    async def scenario() -> None:
        transport = Transport(Reach.ANY, retries=Retries(attempts=2, first_seconds=0.0))
        with pytest.raises(Unavailable, match="cannot be connected to"):
            await HttpsBucket("http://127.0.0.1:1", transport).get("a", limit_bytes=1)
        await transport.close()

    asyncio.run(scenario())


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(tls: Tls) -> None:
    async def scenario() -> None:
        async with Proxy(whole, tls=tls.server) as proxy:
            transport = Transport(Reach.ANY, retries=Retries(attempts=9, first_seconds=1e9))
            with pytest.raises(Unavailable, match="certificate is not valid"):
                await HttpsBucket(proxy.url, transport).get("a", limit_bytes=1)
            await transport.close()
            assert proxy.requests == []

    asyncio.run(scenario())


def test_what_a_peer_names_is_reached_over_public_https_only() -> None:
    async def scenario() -> None:
        transport = Transport(Reach.PUBLIC)
        for url in ("http://one.one.one.one", "https://127.0.0.1", "https://127.0.0.1:8443", "https://[::1]"):
            with pytest.raises(ForbiddenAddress):
                await HttpsBucket(url, transport).get("a", limit_bytes=1)
        await transport.close()

    asyncio.run(scenario())
