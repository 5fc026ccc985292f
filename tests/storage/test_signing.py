"""Signatures: those that AWS's own library makes."""

from __future__ import annotations

import datetime
import hashlib
from typing import Any

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.credentials import Credentials, Secret
from storage.signing import encode_path, encode_query, sign

PARTS = st.text(alphabet="aB0.-+=_", min_size=1, max_size=5)
VALUES = st.text(alphabet="aB0 /+=&%~*-_.:é", max_size=8)
NOW = 1_795_000_000.0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    method=st.sampled_from(["GET", "PUT", "HEAD", "DELETE", "POST"]),
    path=st.lists(PARTS, min_size=1, max_size=4).map("/".join),
    query=st.dictionaries(st.text(alphabet="abz-", min_size=1, max_size=6), VALUES, max_size=4),
    headers=st.dictionaries(
        st.sampled_from(["range", "if-match", "If-None-Match", "content-type"]),
        st.sampled_from(["*", '"a"', "bytes=0-1", "a  b "]),
    ),
    secret=st.text(alphabet="aB0/+=", min_size=1, max_size=40),
    body=st.binary(max_size=10),
)
def test_a_signature_is_the_one_that_aws_makes(
    method: str, path: str, query: dict[str, str], headers: dict[str, str], secret: str, body: bytes
) -> None:
    digest = hashlib.sha256(body).hexdigest()
    url = f"https://s3.example:9000/{encode_path(path)}" + (f"?{encode_query(query)}" if query else "")
    ours = sign(Credentials("KEYID", Secret(secret)), "eu-x-1", method, url, headers, body_digest=digest, now=NOW)
    request = AWSRequest(method, url, headers=dict(headers), data=body)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(botocore.auth, "get_current_datetime", lambda *_: _datetime(NOW))
        botocore.auth.S3SigV4Auth(ReadOnlyCredentials("KEYID", secret, None), "s3", "eu-x-1").add_auth(request)
    theirs: dict[str, Any] = {name.lower(): value for name, value in request.headers.items()}
    assert {name.lower(): value for name, value in ours.items()} == theirs | {"host": "s3.example:9000"}


def test_no_secret_is_in_what_is_sent() -> None:
    secret = "SECRET0123456789"
    signed = sign(
        Credentials("KEYID", Secret(secret)), "auto", "GET", "https://s3.example/b/k", {}, body_digest="0" * 64, now=NOW
    )
    assert "KEYID" in signed["authorization"]
    assert secret not in repr(signed)


def _datetime(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
