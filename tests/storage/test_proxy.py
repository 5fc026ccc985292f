"""The proxy that misbehaves on purpose does so: a fault that nobody could notice would prove nothing."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from neurons.radosgw import REGION, Radosgw
from storage.credentials import Credentials
from tests.storage.proxy import FAULTS, Fault, Proxy, Request, Response, always, drawn, script

_BODY = bytes(range(64, 128))
_READ_LIMIT_BYTES = 1 << 20
_HASTY = aiohttp.ClientTimeout(total=0.5)


def _store(request: Request) -> Response:
    """Answers a range of one object."""
    if request.method == "PUT":
        return Response(200, {"etag": '"hay"'})
    return Response(206, {"content-range": f"bytes 0-{len(_BODY) - 1}/1000"}, _BODY)


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[int, str | None, bytes]:
    """Status, Content-Range and body of an answer."""
    async with session.get(url, allow_redirects=False) as answer:
        body = b""
        while piece := await answer.content.read(_READ_LIMIT_BYTES):
            body += piece
            if len(body) > _READ_LIMIT_BYTES:
                break
        return answer.status, answer.headers.get("content-range"), body


def test_what_is_honest_passes_unchanged_and_is_not_counted() -> None:
    async def scenario() -> None:
        async with Proxy(_store) as proxy, aiohttp.ClientSession() as session:
            for _ in range(3):
                assert await _get(session, proxy.url) == (206, "bytes 0-63/1000", _BODY)
            assert not proxy.injected
            assert len(proxy.requests) == 3

    asyncio.run(scenario())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_client_can_notice_each_fault(fault: str) -> None:
    async def scenario() -> None:
        async with Proxy(_store, always(fault)) as proxy, aiohttp.ClientSession(timeout=_HASTY) as session:
            try:
                first = await _get(session, f"{proxy.url}/object")
                second = await _get(session, f"{proxy.url}/object")  # one that gets the rest of the first
            except (aiohttp.ClientError, ValueError, TimeoutError):
                pass
            else:
                assert (first, second) != ((206, "bytes 0-63/1000", _BODY),) * 2
            assert proxy.injected[fault] >= 1

    asyncio.run(scenario())


def test_a_script_is_followed_and_then_everything_passes() -> None:
    async def scenario() -> None:
        plan = script("slow down", None, "internal error")
        async with Proxy(_store, plan) as proxy, aiohttp.ClientSession() as session:
            assert [(await _get(session, proxy.url))[0] for _ in range(5)] == [503, 206, 500, 206, 206]
            assert proxy.injected == {"slow down": 1, "internal error": 1}

    asyncio.run(scenario())


def test_a_fault_that_changes_nothing_is_not_counted() -> None:
    async def scenario() -> None:
        async with Proxy(_store, always("flipped bit")) as proxy, aiohttp.ClientSession() as session:
            async with session.put(proxy.url, data=b"hay") as answer:
                assert answer.status == 200
            assert not proxy.injected

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("fault", "carried_out"), [("slow down", 0), ("reset in the request", 0), ("internal error, but done", 1)]
)
def test_a_fault_says_whether_the_server_has_carried_out_the_request(fault: str, carried_out: int) -> None:
    bodies = []

    def server(request: Request) -> Response:
        bodies.append(request.body)
        return Response()

    async def scenario() -> None:
        async with Proxy(server, always(fault)) as proxy, aiohttp.ClientSession() as session:
            try:
                async with session.put(proxy.url, data=b"hay" * 1000) as answer:
                    assert answer.status >= 500
            except aiohttp.ClientError:
                assert fault == "reset in the request"

    asyncio.run(scenario())
    assert bodies == [b"hay" * 1000] * carried_out


def test_draws_depend_on_the_request_and_not_on_the_order() -> None:
    requests = [Request("GET", f"/{number % 50}", {}) for number in range(500)]

    def draw(order: list[Request], seed: int = 1) -> list[tuple[str, Fault | None]]:
        plan = drawn(seed, 0.3)
        return sorted(((request.target, plan(request)) for request in order), key=str)

    assert draw(requests) == draw(requests[::-1]) != draw(requests, seed=2)
    assert 100 < sum(fault is not None for _, fault in draw(requests)) < 200


def test_a_real_server_stands_behind_it(radosgw: Radosgw) -> None:
    """Signatures hold, because the client's own `Host` is passed on."""
    key = radosgw.create_bucket("behind-the-proxy").write

    async def scenario() -> None:
        plan = script(None, None, None, None, "truncated", "another range")
        async with Proxy(radosgw.url, plan) as proxy, aiohttp.ClientSession() as session:
            url = f"{proxy.url}/behind-the-proxy/object"

            async def ask(method: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
                signed = _sign(key, method, url, body, headers)
                async with session.request(method, url, data=body, headers=signed) as answer:
                    assert method != "HEAD" or answer.headers["content-length"] == str(len(_BODY))
                    return answer.status, await answer.read()

            assert await ask("PUT", _BODY, expect="100-continue") == (200, b"")
            assert await ask("HEAD") == (200, b"")
            assert await ask("GET") == (200, _BODY)
            assert await ask("GET", range="bytes=1-2") == (206, _BODY[1:3])
            with pytest.raises(aiohttp.ClientPayloadError):
                await ask("GET")
            assert await ask("GET", range="bytes=1-2") == (206, _BODY[1:3])
            assert proxy.injected == {"truncated": 1, "another range": 1}

    asyncio.run(scenario())


def _sign(key: Credentials, method: str, url: str, body: bytes, headers: dict[str, str]) -> dict[str, str]:
    request = AWSRequest(method, url, data=body, headers=headers)
    S3SigV4Auth(ReadOnlyCredentials(key.key_id, key.secret.reveal(), None), "s3", REGION).add_auth(request)
    return dict(request.headers)
