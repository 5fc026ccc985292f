"""Signing of requests to an S3 store: AWS Signature Version 4, in the headers.

The signature travels in a header and never in a URL, so a URL can be shown and logged. The SHA-256 of the body is
signed too: every S3 server compares it with what arrived, so damage on the way to it is an error and not an object.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from functools import reduce
from time import gmtime, strftime
from urllib.parse import quote, urlsplit

from storage.credentials import Credentials

_SERVICE = "s3"
_SCHEME = "AWS4-HMAC-SHA256"
EMPTY_BODY_DIGEST = hashlib.sha256().hexdigest()


def encode_path(path: str) -> str:
    """`path` as it stands in a URL and in what is signed: everything but letters, digits and `-_.~/` is escaped."""
    return quote(path, safe="-_.~/")


def encode_query(fields: Mapping[str, str]) -> str:
    """The query string of `fields`, in the order in which it is signed."""
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in fields.items())
    return "&".join(f"{name}={value}" for name, value in pairs)


def sign(
    credentials: Credentials,
    region: str,
    method: str,
    url: str,
    headers: Mapping[str, str],
    *,
    body_digest: str,
    now: float,
) -> dict[str, str]:
    """`headers` with those added that prove the request comes from who holds `credentials`.

    `url` has its path and query as `encode_path` and `encode_query` make them; `body_digest` is the SHA-256 of the
    body in hexadecimal; `now` is in Unix seconds and must be within 15 minutes of the store's clock.
    """
    parts = urlsplit(url)
    time = strftime("%Y%m%dT%H%M%SZ", gmtime(now))
    scope = (time[:8], region, _SERVICE, "aws4_request")
    signed = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
    signed |= {"host": parts.netloc, "x-amz-content-sha256": body_digest, "x-amz-date": time}
    names = ";".join(sorted(signed))
    canonical = "\n".join(
        (
            method,
            parts.path or "/",
            parts.query,
            *(f"{name}:{signed[name]}" for name in sorted(signed)),
            "",
            names,
            body_digest,
        )
    )
    text = "\n".join((_SCHEME, time, "/".join(scope), hashlib.sha256(canonical.encode()).hexdigest()))
    signature = hmac.new(_key(credentials, scope), text.encode(), "sha256").hexdigest()
    proof = f"{_SCHEME} Credential={credentials.key_id}/{'/'.join(scope)}, SignedHeaders={names}, Signature={signature}"
    added = {"host": parts.netloc, "x-amz-content-sha256": body_digest, "x-amz-date": time, "authorization": proof}
    return {**headers, **added}


def _key(credentials: Credentials, scope: Iterable[str]) -> bytes:
    """What signs on this day, in this region. Made anew for each request and bound to no name: whoever has it can
    sign until the day is over."""
    return reduce(
        lambda key, part: hmac.digest(key, part.encode(), "sha256"),
        scope,
        b"AWS4" + credentials.secret.reveal().encode(),
    )
