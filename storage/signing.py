"""Signing of requests to an S3 store: AWS Signature Version 4, in the headers, by AWS's own library.

The signature travels in a header and never in a URL, so a URL can be shown and logged. The SHA-256 of the body is
signed too: every S3 server compares it with what arrived, so damage on the way to it is an error and not an object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from urllib.parse import quote

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from storage.credentials import Credentials

EMPTY_BODY_DIGEST = hashlib.sha256().hexdigest()


def encode_path(path: str) -> str:
    """`path` as it stands in a URL and in what is signed: everything but letters, digits and `-_.~/` is escaped."""
    return quote(path, safe="-_.~/")


def encode_query(fields: Mapping[str, str]) -> str:
    """The query string of `fields`, in the order in which it is signed."""
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in fields.items())
    return "&".join(f"{name}={value}" for name, value in pairs)


def sign(
    credentials: Credentials, region: str, method: str, url: str, headers: Mapping[str, str], *, body_digest: str
) -> dict[str, str]:
    """`headers` with those added that prove the request comes from who holds `credentials`.

    `url` has its path and query as `encode_path` and `encode_query` make them; `body_digest` is the SHA-256 of the
    body in hexadecimal. It is dated by this machine's clock, which must be within 15 minutes of the store's.
    """
    request = AWSRequest(method, url, headers=dict(headers))
    signer = S3SigV4Auth(ReadOnlyCredentials(credentials.key_id, credentials.secret.reveal(), None), "s3", region)
    signer.payload = lambda _: body_digest  # the library would hash the body anew at every attempt, on this thread
    signer.add_auth(request)
    return dict(request.headers)
