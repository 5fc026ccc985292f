"""A node's own bucket: from a URL and two keys to where it is written, and to the location that it commits on chain.

The write key never leaves this process. The read key does: everybody reads it on chain, so it must be another one,
which may only read. A bucket that anybody may read under an https URL needs none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlsplit

from neurons.errors import ConfigError
from storage.credentials import Credentials
from storage.errors import StorageError
from storage.location import HttpsLocation, Location, R2Location, S3Location, encode, open_bucket
from storage.profiles import Profile
from storage.s3 import S3Endpoint
from storage.transfer import Reach, Transport

BUCKET_FORMS = (
    "s3://BUCKET (AWS), r2://ACCOUNT/BUCKET (Cloudflare R2) or https://HOST/BUCKET (any other store); a prefix may "
    "follow the bucket, and then ?region=REGION or ?style=virtual"
)

_R2 = re.compile(r"([^.]+)\.r2\.cloudflarestorage\.com")
_AWS = re.compile(r"(?:(.+)\.)?s3[.-]([a-z0-9-]+)\.amazonaws\.com")
_DEFAULT_REGION = "us-east-1"
"""What stores without regions take."""


@dataclass(frozen=True, slots=True)
class OwnBucket:
    """Where a node writes and with which key, and what it commits: where, and with which key, others read."""

    endpoint: S3Endpoint
    write: Credentials
    location: Location


def endpoint_of(url: str, aws: Profile) -> S3Endpoint:
    """The bucket that `url` names, in one of `BUCKET_FORMS`. Raises `ConfigError`."""
    if "@" in url:  # however else the rest is malformed: it would be shown
        raise ConfigError("the bucket's URL holds a key: take it out, keys come from the environment or a file")
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        raise ConfigError(f"a bucket is {BUCKET_FORMS}") from None
    path = parts.path.strip("/")
    if (
        parts.fragment
        or options.keys() - {"region", "style"}
        or options.get("style", "path") not in ("path", "virtual")
    ):
        raise ConfigError(f"a bucket is {BUCKET_FORMS}")
    try:
        if parts.scheme == "s3":
            return _at_aws(parts.netloc, path, options, aws)
        if parts.scheme == "r2" or _R2.fullmatch(parts.netloc):
            found = _R2.fullmatch(parts.netloc)
            bucket, _, prefix = path.partition("/")
            return replace(S3Endpoint.r2(found[1] if found else parts.netloc, bucket), prefix=prefix)
        if parts.scheme in ("https", "http"):
            return _anywhere(f"{parts.scheme}://{parts.netloc}", path, options, aws)
    except StorageError as error:
        raise ConfigError(f"{url}: {error}") from error
    raise ConfigError(f"{url!r} names no bucket: it must be {BUCKET_FORMS}")


def check_readers(write: Credentials | None, read: Credentials | None, public_url: str | None) -> None:
    """Raise `ConfigError` unless others get a way to read, one that does not let them write."""
    if (read is None) == (public_url is None):
        raise ConfigError(
            "others must be able to read the bucket: set WINDROW_READ_KEY_ID and WINDROW_READ_SECRET, a key that may "
            "only read and is published on chain, or give --public-url, under which anybody can read it; not both"
        )
    if read and write and (read.key_id == write.key_id or read.secret == write.secret):
        raise ConfigError("the read key is the write key, and it is published on chain: make one that may only read")


def own_location(endpoint: S3Endpoint, read: Credentials | None, public_url: str | None, anywhere: bool) -> Location:
    """What to commit, so that others read the bucket at `endpoint`. `anywhere` is true on the built-in chain, where a
    bucket need not be on the public internet. Raises `ConfigError` for what no node would accept."""
    try:
        location: Location
        if read is None:
            location = HttpsLocation((public_url or "").rstrip("/"))
        elif not endpoint.prefix and (found := _R2.fullmatch(endpoint.url.removeprefix("https://"))):
            location = R2Location(found[1], endpoint.bucket, read)
        else:
            location = S3Location(endpoint, read)
        encode(location)
        if not anywhere:
            open_bucket(location, Transport(Reach.PUBLIC), None)  # opens no connection, but checks as others will
    except StorageError as error:
        raise ConfigError(f"others could not read the bucket: {error}") from error
    return location


def _at_aws(bucket: str, prefix: str, options: Mapping[str, str], aws: Profile) -> S3Endpoint:
    region = options.get("region") or aws.region
    if aws.endpoint_url:
        path_style = options.get("style", "path") == "path"
        return S3Endpoint(aws.endpoint_url.rstrip("/"), region or _DEFAULT_REGION, bucket, prefix, path_style)
    if not region:
        raise ConfigError(f"the region of s3://{bucket} is not known: write s3://{bucket}?region=REGION")
    # A dot in the name of the bucket would not be covered by the certificate in virtual style.
    return S3Endpoint(f"https://s3.{region}.amazonaws.com", region, bucket, prefix, path_style="." in bucket)


def _anywhere(base: str, path: str, options: Mapping[str, str], aws: Profile) -> S3Endpoint:
    found = _AWS.fullmatch(base.partition("://")[2])
    bucket, prefix = path.partition("/")[::2]
    if found and found[1]:
        return _at_aws(found[1], path, {"region": found[2]}, Profile())
    if found:
        return _at_aws(bucket, prefix, {"region": found[2]}, Profile())
    region = options.get("region") or aws.region or _DEFAULT_REGION
    return S3Endpoint(base, region, bucket, prefix, path_style=options.get("style", "path") == "path")
