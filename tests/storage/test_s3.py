"""What only an S3 store has: keys that are refused, signatures, uploads in parts, lists by strangers."""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import boto3
import botocore.auth
import pytest
from botocore.config import Config

from neurons.radosgw import REGION
from storage import multipart
from storage.bucket import ObjectInfo
from storage.credentials import Credentials, Secret
from storage.errors import (
    AccessRefused,
    AlreadyExists,
    BadLocation,
    NotFound,
    Unavailable,
)
from storage.keys import Keys
from storage.multipart import PART_BYTES, PARTS_FROM_BYTES
from storage.retention import UNFINISHED_SECONDS, sweep
from storage.s3 import S3Bucket, S3Endpoint
from storage.transfer import Gathered, Limits, Reach, Request, Transport
from tests.storage import proxy
from tests.storage.proxy import FAULTS, Fault, Plan, Proxy, Response, script
from tests.storage.stores import AT_ONCE, S3, transport

LARGE = os.urandom(PARTS_FROM_BYTES + 12345)
"""Three parts, the last one short."""


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await scenario()

    asyncio.run(whole())


# --- keys ---------------------------------------------------------------------------------------------------


def test_a_key_that_is_not_accepted_is_an_error_that_says_so(s3: S3) -> None:
    right = s3.keys.write
    unknown = Credentials("NOBODY0000000000", right.secret)
    wrong = Credentials(right.key_id, Secret("not-the-secret"))

    async def scenario() -> None:
        for credentials, said in ((unknown, "does not know this access key id"), (wrong, "secret access key")):
            async with s3.bucket(credentials) as bucket:
                for call in (
                    bucket.get("a", limit_bytes=1),
                    bucket.get_range("a", 0, 1),
                    bucket.put("a", b"x"),
                    bucket.put("a", LARGE),
                    bucket.put_if_absent("a", b"x"),
                    bucket.delete("a"),
                    anext(aiter(bucket.list(""))),
                ):
                    with pytest.raises(AccessRefused, match=said):
                        await call
                with pytest.raises(AccessRefused):  # the answer to a HEAD has no body that could say more
                    await bucket.head("a")

    run(scenario)


def test_a_key_that_may_only_read_can_read_and_list_and_nothing_else(s3: S3) -> None:
    async def scenario() -> None:
        async with s3.open() as opened:
            writer, reader = opened.writer, opened.reader
            await writer.put("a", b"data")
            assert await reader.get("a", limit_bytes=4) == b"data"
            assert [info.key async for info in reader.list("")] == ["a"]
            for call in (
                reader.put("a", b"other"),
                reader.put("b", LARGE),
                reader.put_if_absent("b", b"other"),
                reader.delete("a"),
            ):
                with pytest.raises(AccessRefused, match="may not do that"):
                    await call
            assert await writer.get("a", limit_bytes=4) == b"data"
            assert [info.key async for info in writer.list("")] == ["a"]

    run(scenario)


def test_a_bucket_that_is_not_there_is_an_error_that_says_so(s3: S3) -> None:
    async def scenario() -> None:
        async with transport() as shared:
            bucket = S3Bucket(replace(s3.endpoint(), bucket="nobody-made-this"), s3.keys.write, shared)
            for call in (bucket.get("a", limit_bytes=1), bucket.put("a", b""), bucket.delete("a")):
                with pytest.raises(Unavailable, match="no such bucket: create it"):
                    await call

    run(scenario)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_wrong_is_named(s3: S3, hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda **_: wrong)

    async def scenario() -> None:
        async with transport() as shared:
            bucket = S3Bucket(s3.endpoint(), s3.keys.read, shared)
            with pytest.raises(AccessRefused, match="set the clock"):
                await bucket.get("a", limit_bytes=1)

    run(scenario)


# --- what is signed -----------------------------------------------------------------------------------------


@asynccontextmanager
async def tampering(s3: S3, change: Callable[[Request], Request]) -> AsyncIterator[S3Bucket]:
    """A bucket whose requests are changed after they were signed."""

    class Tampering(Transport):
        async def exchange(self, build, sink):  # type: ignore[no-untyped-def] # noqa: ANN202
            return await super().exchange(lambda: change(build()), sink)

    shared = Tampering(Reach.ANY, retries=AT_ONCE)
    try:
        yield S3Bucket(s3.endpoint(), s3.keys.write, shared)
    finally:
        await shared.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda request: replace(request, url=request.url + "x"),
        lambda request: replace(request, method="DELETE"),
        lambda request: replace(request, headers={**request.headers, "range": "bytes=0-0"}),
        lambda request: replace(request, headers={**request.headers, "x-amz-date": "20200101T000000Z"}),
    ],
    ids=["path", "method", "range", "date"],
)
def test_a_request_that_was_changed_on_its_way_is_refused(s3: S3, change: Callable[[Request], Request]) -> None:
    async def scenario() -> None:
        async with tampering(s3, change) as bucket:
            with pytest.raises(AccessRefused):
                await bucket.get_range("a", 0, 2)

    run(scenario)


@pytest.mark.parametrize("data", [b"some bytes", LARGE], ids=["whole", "in parts"])
def test_bytes_that_were_damaged_on_their_way_become_no_object(s3: S3, data: bytes) -> None:
    def damage(request: Request) -> Request:
        if request.method != "PUT":
            return request
        return replace(request, body=bytes([request.body[0] ^ 1]) + bytes(request.body[1:]))

    async def scenario() -> None:
        async with tampering(s3, damage) as bucket:
            with pytest.raises(Unavailable, match="XAmzContentSHA256Mismatch"):
                await bucket.put("a", data)
            with pytest.raises(NotFound):
                await bucket.head("a")
            assert await bucket.abort_uploads("", older_than_seconds=0) == 0

    run(scenario)


def test_a_presigned_url_is_refused_once_it_is_changed_or_expired(s3: S3) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=s3.url,
        region_name=REGION,
        aws_access_key_id=s3.keys.read.key_id,
        aws_secret_access_key=s3.keys.read.secret.reveal(),
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )

    async def scenario() -> None:
        async with transport() as shared:
            endpoint = s3.endpoint()
            await S3Bucket(endpoint, s3.keys.write, shared).put("a", b"data")

            def url(seconds: int) -> str:
                where = {"Bucket": endpoint.bucket, "Key": f"{endpoint.prefix}/a"}
                return str(client.generate_presigned_url("get_object", Params=where, ExpiresIn=seconds))

            async def status(address: str) -> int:
                answer = await shared.exchange(lambda: Request("GET", address, "read a"), Gathered(10))
                return answer.status

            assert await status(url(60)) == 200
            assert await status(url(60).replace("/a?", "/b?")) == 403
            assert await status(url(60).replace("X-Amz-Expires=60", "X-Amz-Expires=99999")) == 403
            expired = url(1)
            await asyncio.sleep(2.1)
            assert await status(expired) == 403

    run(scenario)


# --- uploads in parts ---------------------------------------------------------------------------------------


@asynccontextmanager
async def behind(s3: S3, plan: Plan, limits: Limits | None = None) -> AsyncIterator[tuple[S3Bucket, S3Bucket, Proxy]]:
    """A bucket behind a proxy that misbehaves, the same one without it, and the proxy."""
    async with Proxy(s3.url, plan) as between, transport() as direct:
        through = Transport(Reach.ANY, retries=AT_ONCE, limits=limits or Limits(window_seconds=2.0))
        endpoint = s3.endpoint()
        try:
            yield (
                S3Bucket(replace(endpoint, url=between.url), s3.keys.write, through),
                S3Bucket(endpoint, s3.keys.write, direct),
                between,
            )
        finally:
            await through.close()


async def nothing_is_left(bucket: S3Bucket) -> None:
    assert [info.key async for info in bucket.list("")] == []
    assert await bucket.abort_uploads("", older_than_seconds=0) == 0


def only(fault: str, when: Callable[[proxy.Request], bool], times: int = 10**9) -> Plan:
    left = [times]

    def plan(request: proxy.Request) -> Fault | None:
        if not when(request) or not left[0]:
            return None
        left[0] -= 1
        return FAULTS[fault]

    return plan


def is_begin(request: proxy.Request) -> bool:
    return request.method == "POST" and request.target.endswith("?uploads=")


def is_part(request: proxy.Request) -> bool:
    return request.method == "PUT" and "partNumber=" in request.target


def is_second_part(request: proxy.Request) -> bool:
    return is_part(request) and "partNumber=2&" in request.target


def is_complete(request: proxy.Request) -> bool:
    return request.method == "POST" and "uploadId=" in request.target


STEPS = {"begin": is_begin, "part": is_second_part, "complete": is_complete}
LOST = ("reset unanswered", "closed unanswered", "internal error, but done")
BROKEN_OFF = ("reset after the head", "truncated")


@pytest.mark.parametrize(
    ("step", "fault"),
    [(step, fault) for step in STEPS for fault in ("reset at once", "slow down", *LOST)]
    # The answer to a part has no body that could break off.
    + [(step, fault) for step in ("begin", "complete") for fault in ("an error with status 200", *BROKEN_OFF)],
)
def test_a_step_of_an_upload_that_fails_once_is_mended(s3: S3, step: str, fault: str) -> None:
    async def scenario() -> None:
        async with behind(s3, only(fault, STEPS[step], 1)) as (bucket, direct, between):
            await bucket.put("a", LARGE)
            assert between.injected.total() == 1
            assert await direct.get("a", limit_bytes=len(LARGE)) == LARGE
            assert await direct.abort_uploads("", older_than_seconds=0) == 0

    run(scenario)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", ["reset at once", "slow down"])
def test_a_step_of_an_upload_that_always_fails_is_an_error_and_leaves_nothing(s3: S3, step: str, fault: str) -> None:
    async def scenario() -> None:
        async with behind(s3, only(fault, STEPS[step])) as (bucket, direct, _):
            with pytest.raises(Unavailable, match="at the last of 6 attempts"):
                await bucket.put("a", LARGE)
            await nothing_is_left(direct)

    run(scenario)


def test_a_completion_that_the_store_takes_back_is_an_error(s3: S3) -> None:
    async def scenario() -> None:
        async with behind(s3, only("an error with status 200", is_complete)) as (bucket, direct, _):
            with pytest.raises(Unavailable, match="answered 200 and then Error InternalError"):
                await bucket.put("a", LARGE)
            await nothing_is_left(direct)

    run(scenario)


def test_an_upload_whose_end_nobody_heard_of_counts_only_if_the_object_is_the_one(s3: S3) -> None:
    async def scenario() -> None:
        async with behind(s3, honest_but_for_completion(s3)) as (bucket, direct, _):
            await direct.put("a", LARGE[::-1])  # of the same size and number of parts
            with pytest.raises(Unavailable, match="its upload is gone"):
                await bucket.put("a", LARGE)
            assert await direct.get("a", limit_bytes=len(LARGE)) == LARGE[::-1]

    run(scenario)


def honest_but_for_completion(s3: S3) -> Plan:
    """The completion is answered as if the upload had never been."""
    gone = Fault("gone", lambda *_: Response(404, body=b"<Error><Code>NoSuchUpload</Code></Error>"))
    gone = replace(gone, reaches=proxy.Reaches.PROXY)
    return lambda request: gone if is_complete(request) else None


def test_a_store_may_take_its_time_to_put_an_object_together_and_send_white_space_meanwhile(s3: S3) -> None:
    def padded(request: proxy.Request, honest: Response, random: object) -> Response:
        prolog, end, rest = honest.body.partition(b"?>")
        length = {"content-length": str(len(honest.body) + 400)}
        return replace(honest, headers=honest.headers | length, body=prolog + end + b" " * 400 + rest)

    slow = Fault("white space", padded, bytes_per_second=200)  # longer than all else may take

    async def scenario() -> None:
        async with behind(s3, lambda request: slow if is_complete(request) else None) as (bucket, direct, between):
            await bucket.put("a", LARGE)
            assert sum(is_complete(request) for request in between.requests) == 1
            assert await direct.get("a", limit_bytes=len(LARGE)) == LARGE

    run(scenario)


@pytest.mark.parametrize("step", STEPS)
def test_a_cancelled_upload_leaves_nothing(s3: S3, step: str) -> None:
    async def scenario() -> None:
        # The server carries it out, but its answer does not come: the moment at which it is easiest to forget.
        async with behind(s3, only("stall unanswered", STEPS[step]), Limits()) as (bucket, direct, between):
            upload = asyncio.create_task(bucket.put("a", LARGE))
            while not between.injected:
                await asyncio.sleep(0.01)
            upload.cancel()
            with pytest.raises(asyncio.CancelledError):
                await upload
            assert await direct.abort_uploads("", older_than_seconds=0) == 0
            if step != "complete":
                await nothing_is_left(direct)

    run(scenario)


def test_parts_are_sent_a_few_at_a_time_and_read_when_they_are_due(s3: S3) -> None:
    held = most = 0

    class Watched:
        size_bytes = 9 * PART_BYTES + 1

        async def read(self, start: int, length: int) -> bytes:
            nonlocal held, most
            held += 1
            most = max(most, held)
            await asyncio.sleep(0)
            held -= 1
            return bytes([start // PART_BYTES]) * length

    async def scenario() -> None:
        async with s3.bucket() as bucket:
            await bucket.put_from("a", Watched())
            assert most <= multipart._PARTS_AT_ONCE
            for part in range(10):
                assert await bucket.get_range("a", part * PART_BYTES, 1) == bytes([part])
            assert (await bucket.head("a")).size_bytes == Watched.size_bytes

    run(scenario)


def test_retention_removes_unfinished_uploads_of_the_run_once_they_are_old(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys("0123456789abcdef")

    async def scenario() -> None:
        async with s3.bucket() as bucket:
            for key in (keys.checkpoint(7, "shard-00000"), "elsewhere/a"):
                await bucket._requests.send("POST", key, "begin", query={"uploads": ""}, sink=Gathered(4096))
            await sweep(bucket, keys, before_window=0, keep_checkpoints=1)
            monkeypatch.setattr("storage.retention.UNFINISHED_SECONDS", 0.0)
            await sweep(bucket, keys, before_window=0, keep_checkpoints=1)
            assert await bucket.abort_uploads("", older_than_seconds=0) == 1  # the one that is not of this run

    assert UNFINISHED_SECONDS > 3600
    run(scenario)


# --- answers that get lost ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["reset unanswered", "closed unanswered", "internal error, but done"])
def test_a_conditional_put_whose_answer_was_lost_is_not_taken_for_someone_elses(s3: S3, fault: str) -> None:
    async def scenario() -> None:
        async with behind(s3, script(fault)) as (bucket, direct, _):
            await bucket.put_if_absent("a", b"ours")
            assert await direct.get("a", limit_bytes=4) == b"ours"
            with pytest.raises(AlreadyExists):
                await bucket.put_if_absent("a", b"ours")

    run(scenario)


def test_a_conditional_put_whose_answer_was_lost_does_not_claim_the_object_of_another(s3: S3) -> None:
    async def scenario() -> None:
        async with behind(s3, script("reset at once")) as (bucket, direct, _):
            await direct.put("a", b"theirs")
            with pytest.raises(AlreadyExists):
                await bucket.put_if_absent("a", b"ours")
            assert await direct.get("a", limit_bytes=9) == b"theirs"

    run(scenario)


# --- lists by strangers -------------------------------------------------------------------------------------


def listed(*answers: str, prefix: str = "") -> list[ObjectInfo]:
    """What a list is if the store answers with these pages, and then with the last one for ever."""
    pages = list(answers)

    def server(request: proxy.Request) -> Response:
        body = pages.pop(0) if len(pages) > 1 else pages[0]
        return Response(200, {"content-type": "application/xml"}, body.encode())

    async def scenario() -> list[ObjectInfo]:
        async with Proxy(server) as stranger, transport() as shared:
            endpoint = S3Endpoint(stranger.url, "auto", "bucket", "folder")
            bucket = S3Bucket(endpoint, Credentials("ID", Secret("secret")), shared)
            return [info async for info in bucket.list(prefix)]

    return asyncio.run(scenario())


def page(*keys: str, more: str = "", size: str = "1", time: str = "2026-11-20T10:00:00.000Z") -> str:
    contents = "".join(
        f"<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>{time}</LastModified>"
        f"<Owner><ID>x</ID><Key>folder/owner</Key></Owner></Contents>"
        for key in keys
    )
    token = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{more}</NextContinuationToken>" if more else ""
    name_space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<?xml version="1.0"?><ListBucketResult xmlns="{name_space}">{token}{contents}</ListBucketResult>'


def test_pages_are_joined() -> None:
    found = listed(page("folder/a", "folder/b", more="1"), page("folder/c"))
    assert [(info.key, info.size_bytes) for info in found] == [("a", 1), ("b", 1), ("c", 1)]
    assert found[0].last_modified == 1795168800.0


def test_what_no_key_can_be_is_left_out() -> None:
    odd = ("elsewhere", "folder/", "folder/../x", "folder/a%20b", "folder/a%00", "folder//x", "folder/%D1%8F", "")
    found = listed(page(*odd, "folder/a%2Bb", f"folder/{'a' * 200}", "folder/z"))
    assert [info.key for info in found] == ["a+b", "z"]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ((page("folder/b", "folder/a"),), "in order of keys"),
        ((page("folder/a", "folder/a"),), "in order of keys"),
        ((page("folder/a", more="1"), page("folder/a", more="2")), "in order of keys"),
        ((page("folder/a", more="1"), page("folder/b", more="1")), "where its next page begins"),
        ((page("folder/a", size="-1"),), "no number Size"),
        ((page("folder/a", size="9" * 5000),), "no number Size"),
        ((page("folder/a", time="yesterday"),), "no time LastModified"),
        (("<ListBucketResult>",), "not XML"),
        (("",), "not XML"),
        (("<a>" * 10_000,), "nested too deeply"),
        (('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',), "document type"),
        (('<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',), "document type"),
        (("<a>" + "x" * (9 << 20) + "</a>",), "more than the 8388608 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_list_that_is_none_is_refused(answers: tuple[str, ...], said: str) -> None:
    with pytest.raises(Unavailable, match=said):
        listed(*answers)


def test_a_list_that_never_ends_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.s3._PAGES_LIMIT", 20)
    pages = [page(f"folder/{number:03d}", more=str(number)) for number in range(100)]
    with pytest.raises(Unavailable, match="more than 20 pages"):
        listed(*pages)


# --- endpoints ----------------------------------------------------------------------------------------------


def test_urls_are_of_either_style() -> None:
    path = S3Endpoint("https://s3.eu-x-1.example", "eu-x-1", "bucket", "some/prefix")
    assert path.url_of("some/prefix/a+b=c", {}) == "https://s3.eu-x-1.example/bucket/some/prefix/a%2Bb%3Dc"
    assert path.url_of("", {"uploads": ""}) == "https://s3.eu-x-1.example/bucket?uploads="
    virtual = replace(path, path_style=False)
    assert virtual.url_of("a", {"x": "1 2"}) == "https://bucket.s3.eu-x-1.example/a?x=1%202"
    assert virtual.url_of("", {"uploads": ""}) == "https://bucket.s3.eu-x-1.example/?uploads="
    r2 = S3Endpoint.r2("0123456789abcdef0123456789abcdef", "bucket")
    assert r2.url_of("a", {}) == "https://0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com/bucket/a"


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "s3.example"},
        {"url": "ftp://s3.example"},
        {"url": "https://s3.example/"},
        {"url": "https://s3.example/path"},
        {"url": "https://user:word@s3.example"},
        {"url": "https://S3.example"},
        {"url": "https://s3.example:443"},
        {"url": "http://s3.example:80"},
        {"url": "https://s3.example?x"},
        {"region": ""},
        {"region": "a/b"},
        {"bucket": "a"},
        {"bucket": "a/b"},
        {"bucket": "-ab"},
        {"prefix": "/a"},
        {"prefix": "a/"},
        {"prefix": "../a"},
    ],
)
def test_an_endpoint_that_is_none_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(BadLocation):
        S3Endpoint(**({"url": "https://s3.example", "region": "r", "bucket": "abc"} | fields))  # type: ignore[arg-type]
