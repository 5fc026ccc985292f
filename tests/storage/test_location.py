"""Commitments: what a peer writes on chain must never lead a reader anywhere but to a bucket of the public internet."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.credentials import Credentials, Secret
from storage.directory import DirectoryBucket
from storage.errors import BadLocation, Unavailable
from storage.https import HttpsBucket
from storage.location import (
    LOCATION_LIMIT_BYTES,
    HttpsLocation,
    LocalLocation,
    Location,
    R2Location,
    S3Location,
    decode,
    encode,
    open_bucket,
)
from storage.s3 import S3Bucket, S3Endpoint
from storage.transfer import Reach, Transport
from tests.secrets import found

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "locations.json").read_text(encoding="utf-8"))

KEYS = Credentials("AKIAIOSFODNN7EXAMPLE", Secret("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"))
R2_KEYS = Credentials("0f" * 16, Secret("a1" * 32))
AWS = S3Endpoint("https://s3.eu-central-1.amazonaws.com", "eu-central-1", "my-bucket", "a/b", path_style=False)
MINIO = S3Endpoint("http://minio:9000", "us-east-1", "bucket")


def opened(location: Location, local_root: Path | None = None) -> object:
    """The bucket, opened with what a node on the public or the local chain has."""
    return open_bucket(location, Transport(Reach.PUBLIC if local_root is None else Reach.ANY), local_root)


def location_of(case: dict[str, Any]) -> Location:
    """The location that a golden vector describes."""
    match case:
        case {"name": name}:
            return LocalLocation(name)
        case {"account": account, "bucket": bucket, "key_id": key_id, "secret": secret}:
            return R2Location(account, bucket, Credentials(key_id, Secret(secret)))
        case {"region": region, "bucket": bucket, "prefix": prefix, "key_id": key_id, "secret": secret}:
            endpoint = S3Endpoint(case["url"], region, bucket, prefix, case["path_style"])
            return S3Location(endpoint, Credentials(key_id, Secret(secret)))
        case {"url": url}:
            return HttpsLocation(url)
    raise AssertionError(case)


# --- one encoding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS["locations"], ids=lambda case: case["about"])
def test_a_location_is_read_and_written_like_this(case: dict[str, Any]) -> None:
    location = location_of(case["location"])
    assert encode(location).hex() == case["commitment"]
    assert decode(bytes.fromhex(case["commitment"])) == location


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: case["why"])
def test_a_commitment_is_refused_for_this_reason(case: dict[str, Any]) -> None:
    with pytest.raises(BadLocation):
        decode(bytes.fromhex(case["commitment"]))


def _words(first: str, inner: str, last: str, most: int) -> st.SearchStrategy[str]:
    return st.builds("{}{}{}".format, st.sampled_from(first), st.text(inner, max_size=most), st.sampled_from(last))


_DIGITS = [f"{number:032x}" for number in (0, 7, 2**127 + 9, 2**128 - 1)]
_name = st.lists(_words("ab01", "a0-", "ab01", 5), max_size=2).flatmap(
    lambda labels: _words("ab", "a0-", "a0", 3).map(lambda top: ".".join([*labels, top]))
)
_literal = st.sampled_from(["127.0.0.1", "255.255.255.255", "[::1]", "[2001:db8::1]"])
_port = st.just("") | st.sampled_from([":1", ":9000", ":65535"])
_url = st.builds("{}://{}{}".format, st.sampled_from(["http", "https"]), _name | _literal, _port)
_path = st.lists(_words("aZ9_", "a.=+-", "bY_", 6), max_size=3).map("/".join)
_bucket_name = _words("a0", "b1-", "c2", 12).filter(lambda name: len(name) >= 3)
_key_text = st.text("aZ9+.=_-", min_size=1, max_size=20)
_digits = st.sampled_from(_DIGITS)


@st.composite
def _s3(draw: st.DrawFn) -> Location:
    region = draw(_words("a0", "b-", "c1", 8))
    url = draw(_url | st.just(f"https://s3.{region}.amazonaws.com"))
    path_style = draw(st.booleans()) or any(host in url for host in ("[", "127.0.0.1", "255.255.255.255"))
    endpoint = S3Endpoint(url, region, draw(_bucket_name), draw(_path), path_style)
    return S3Location(endpoint, Credentials(draw(_key_text), Secret(draw(_key_text | st.just("+/" * 20)))))


LOCATIONS: st.SearchStrategy[Location] = (
    _words("a0", "b-", "c-", 61).map(LocalLocation)
    | st.builds("{}/{}".format, _url, _path).map(lambda url: HttpsLocation(url.rstrip("/")))
    | st.builds(
        lambda account, bucket, key_id, secret: R2Location(account, bucket, Credentials(key_id, Secret(secret * 2))),
        st.just(_DIGITS[1]),
        _bucket_name | st.just(_DIGITS[1]),
        _digits,
        _digits,
    )
    | _s3()
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(LOCATIONS)
def test_every_location_is_read_back_the_same(location: Location) -> None:
    commitment = encode(location)
    assert len(commitment) <= LOCATION_LIMIT_BYTES
    assert decode(commitment) == location


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    st.binary(max_size=140)
    | st.builds(lambda kind, rest: bytes([kind]) + rest, st.integers(0, 4), st.binary(max_size=127))
    | st.builds(
        lambda location, place, byte: encode(location)[:place] + bytes([byte]) + encode(location)[place + 1 :],
        LOCATIONS,
        st.integers(0, 127),
        st.integers(0, 255),
    )
)
def test_any_bytes_are_either_refused_or_read_back_the_same(commitment: bytes) -> None:
    try:
        location = decode(commitment)
    except BadLocation:
        return
    assert encode(location) == commitment


# --- each kind --------------------------------------------------------------------------------------------


def test_an_unknown_kind_is_refused_by_its_number() -> None:
    with pytest.raises(BadLocation, match="kind 7,"):
        decode(b"\x07name")


def test_an_empty_and_a_too_long_commitment_are_refused() -> None:
    with pytest.raises(BadLocation, match="empty"):
        decode(b"")
    with pytest.raises(BadLocation, match="129 bytes"):
        decode(b"\0" + b"a" * 128)


@pytest.mark.parametrize(
    "name", ["", "-a", "A", "a" * 64, ".", "..", "../a", "a/b", "/etc", "a\n", "a\0", "ü", "a.b", "~"]
)
def test_a_name_that_is_not_plain_is_refused(name: str) -> None:
    with pytest.raises(BadLocation):
        LocalLocation(name)
    with pytest.raises(BadLocation):
        decode(b"\0" + name.encode())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://",
        "https:///x",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "ftp://example.com",
        "gopher://example.com",
        "HTTPS://example.com",
        "https:/example.com",
        "https:example.com",
        "//example.com",
        "example.com",
        " https://example.com",
        "https://example.com ",
        "https://example.com/",
        "https://example.com//a",
        "https://example.com/a/",
        "https://example.com/a//b",
        "https://example.com/../a",
        "https://example.com/a/..",
        "https://example.com/a/./b",
        "https://example.com/%2e%2e/a",
        "https://example.com/a%00",
        "https://example.com/a b",
        "https://example.com/a\\b",
        "https://example.com/a\r\nHost: evil",
        "https://example.com\r\nHost: evil",
        "https://example.com\n",
        "https://example.com/a\n",
        "https://example.com\0",
        "https://example.com/a\0",
        "https://example.com?a=b",
        "https://example.com/a?b",
        "https://example.com/a#b",
        "https://example.com#a",
        "https://user@example.com",
        "https://user:password@example.com",
        "https://example.com@evil.com",
        "https://example.com:443",
        "http://example.com:80",
        "https://example.com:0",
        "https://example.com:0443",
        "https://example.com:65536",
        "https://example.com:99999",
        "https://example.com:-1",
        "https://example.com:",
        "https://example.com:a",
        "https://example.com:1:2",
        "https://Example.com",
        "https://example.com.",
        "https://exämple.com",
        "https://example。com",
        "https://xn--exmple-cua.com",
        "https://[::1",
        "https://::1",
        "https://[127.0.0.1]",
        "https://[example.com]",
        "https://[0:0:0:0:0:0:0:1]",
        "https://[::ffff:127.0.0.1]",
        "https://[fe80::1%25eth0]",
        "https://0x7f.1",
        "https://2130706433",
        "https://127.1",
        "https://[::1]/",
        "https://" + "a" * 300 + ".com",
        "https://example.com/" + "a" * 200,
    ],
)
def test_a_url_that_is_not_canonical_is_refused(url: str) -> None:
    with pytest.raises(BadLocation):
        HttpsLocation(url)
    with pytest.raises(BadLocation):
        decode(b"\1" + url.encode())


@pytest.mark.parametrize(
    "url", ["https://user:hunter22@example.com", "https://hunter22@example.com/", "https://a.com/b?sig=hunter22"]
)
def test_a_password_in_a_url_is_not_shown(url: str) -> None:
    with pytest.raises(BadLocation) as caught:
        HttpsLocation(url)
    assert "hunter22" not in str(caught.value)


def test_the_bucket_of_r2_that_is_called_like_the_account_takes_no_room() -> None:
    location = R2Location("ab" * 16, "ab" * 16, R2_KEYS)
    assert len(encode(location)) == 65
    with pytest.raises(BadLocation, match="not canonical"):
        decode(encode(location) + b"ab" * 16)


def test_the_longest_names_fit_a_commitment() -> None:
    assert len(encode(LocalLocation("a" * 63))) == 64
    assert len(encode(R2Location("ab" * 16, "a" * 63, R2_KEYS))) == LOCATION_LIMIT_BYTES
    assert len(encode(HttpsLocation("https://example.com/" + "a" * 107))) == LOCATION_LIMIT_BYTES


@pytest.mark.parametrize(
    ("host", "region", "key_id", "secret", "room"),
    [
        ("s3.ap-southeast-1.amazonaws.com", "ap-southeast-1", 20, 40, 84),
        ("s3.us-west-004.backblazeb2.com", "us-west-004", 25, 31, 60),
        ("s3.eu-central-1.wasabisys.com", "eu-central-1", 20, 40, 57),
        ("storage.googleapis.com", "auto", 61, 40, 31),
        ("fsn1.your-objectstorage.com", "fsn1", 20, 40, 67),
        ("s3.fr-par.scw.cloud", "fr-par", 20, 36, 77),
    ],
)
def test_the_keys_of_well_known_stores_leave_room_for_bucket_and_prefix(
    host: str, region: str, key_id: int, secret: int, room: int
) -> None:
    """`room`: how many characters the name of the bucket and the prefix may have together, at least."""
    keys = Credentials("Z" * key_id, Secret("z" * secret))
    bucket = "z" * min(room, 40)
    prefix = "z" * (room - len(bucket))
    location = S3Location(S3Endpoint(f"https://{host}", region, bucket, prefix), keys)
    assert decode(encode(location)) == location


def test_what_does_not_fit_says_what_to_shorten() -> None:
    long = S3Endpoint("https://storage.of-a-company.example.com", "us-east-1", "b" * 40, "p" * 70)
    with pytest.raises(BadLocation, match=r"takes 1\d\d bytes .* room for 128: shorten the prefix \(70 characters\)"):
        encode(S3Location(long, KEYS))
    with pytest.raises(BadLocation, match="shorter host or path"):
        encode(HttpsLocation("https://example.com/" + "a" * 108))


@pytest.mark.parametrize(
    "credentials",
    [
        Credentials("has!mark", Secret("x")),
        Credentials("key", Secret("has space")),
        Credentials("key", Secret("line\nbreak")),
        Credentials("key", Secret("ünicode")),
        Credentials("key", Secret("nul\0")),
    ],
)
def test_access_keys_with_characters_that_no_commitment_has_are_refused(credentials: Credentials) -> None:
    with pytest.raises(BadLocation, match="make a plain one"):
        S3Location(AWS, credentials)
    with pytest.raises(BadLocation, match="hexadecimal"):
        R2Location("ab" * 16, "bucket", credentials)


def test_no_error_about_a_location_shows_its_secret() -> None:
    plant = {"secret": b"hunter22hunter22hunter22"}
    secret = Secret(plant["secret"].decode())
    attempts: list[Any] = [
        lambda: R2Location("ab" * 16, "bucket", Credentials("0f" * 16, secret)),
        lambda: S3Location(AWS, Credentials("key!", secret)),
        lambda: S3Location(AWS, Credentials("key", Secret(secret.reveal() + "\n"))),
        lambda: encode(S3Location(S3Endpoint(AWS.url, AWS.region, "b" * 63, "p" * 80), Credentials("key", secret))),
        lambda: opened(S3Location(MINIO, Credentials("key", secret))),
    ]
    for attempt in attempts:
        with pytest.raises(BadLocation) as caught:
            attempt()
        assert found(str(caught.value).encode(), plant) == []
    assert found(repr(S3Location(MINIO, Credentials("key", secret))).encode(), plant) == []


# --- opening ----------------------------------------------------------------------------------------------


def test_a_bucket_is_opened_below_the_readers_own_folder(tmp_path: Path) -> None:
    async def scenario() -> None:
        bucket = opened(LocalLocation("peer"), tmp_path)
        assert isinstance(bucket, DirectoryBucket)
        await bucket.put("a/b", b"data")
        assert (tmp_path / "peer" / "a" / "b").read_bytes() == b"data"

    asyncio.run(scenario())


def test_a_bucket_that_was_made_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "peer").symlink_to("/", target_is_directory=True)
    bucket = opened(LocalLocation("peer"), tmp_path)
    assert isinstance(bucket, DirectoryBucket)
    with pytest.raises(Unavailable):
        asyncio.run(bucket.get("etc/passwd", limit_bytes=1 << 20))


def test_a_local_name_leads_nowhere_on_another_chain() -> None:
    with pytest.raises(BadLocation, match="not on a local chain"):
        opened(LocalLocation("peer"))


def test_public_https_is_opened_on_every_chain(tmp_path: Path) -> None:
    for root in (None, tmp_path):
        assert isinstance(opened(HttpsLocation("https://example.com/a"), root), HttpsBucket)
        assert isinstance(opened(HttpsLocation("https://[2606:4700::1111]:8443"), root), HttpsBucket)
        assert isinstance(opened(R2Location("ab" * 16, "bucket", R2_KEYS), root), S3Bucket)
        assert isinstance(opened(S3Location(AWS, KEYS), root), S3Bucket)


INNER_URLS = [
    "http://example.com",
    "http://1.1.1.1:9000",
    "https://127.0.0.1",
    "https://127.0.0.1:9000",
    "https://10.0.0.1",
    "https://169.254.169.254",
    "https://[::1]",
    "https://[fd00:ec2::254]",
    "https://[64:ff9b::7f00:1]",
    "https://[2002:7f00:1::1]",
    "https://localhost",
    "https://minio:9000",
    "https://nas.local",
    "https://metadata.google.internal",
    "https://example.com:22",
    "http://minio:9000",
]


@pytest.mark.parametrize("url", INNER_URLS)
def test_what_is_not_public_https_is_opened_on_the_local_chain_only(url: str, tmp_path: Path) -> None:
    for location in (HttpsLocation(url), S3Location(S3Endpoint(url, "us-east-1", "bucket"), KEYS)):
        assert decode(encode(location)) == location
        assert isinstance(opened(location, tmp_path), HttpsBucket | S3Bucket)
        with pytest.raises(BadLocation, match=r"no peer's bucket can be there|not read by https"):
            opened(location)


def test_the_bucket_in_front_of_the_host_is_checked_with_it() -> None:
    assert isinstance(opened(S3Location(S3Endpoint("https://example.com", "auto", "a.b", "", False), KEYS)), S3Bucket)
    with pytest.raises(BadLocation, match="path style"):
        S3Location(S3Endpoint("https://example.com", "auto", "a..b", "", False), KEYS)
    with pytest.raises(BadLocation, match="path style"):
        S3Location(S3Endpoint("https://1.2.3.4", "auto", "bucket", "", False), KEYS)
