"""What is signed: the URLs that we make, and a body by its digest."""

from __future__ import annotations

import datetime
import hashlib

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
NOW = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)


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
def test_a_signature_covers_the_body_by_its_digest_alone(
    method: str, path: str, query: dict[str, str], headers: dict[str, str], secret: str, body: bytes
) -> None:
    """What AWS's library makes of the whole body, in the URLs that we make."""
    url = f"https://s3.example:9000/{encode_path(path)}" + (f"?{encode_query(query)}" if query else "")
    request = AWSRequest(method, url, headers=dict(headers), data=body)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(botocore.auth, "get_current_datetime", lambda **_: NOW)
        digest = hashlib.sha256(body).hexdigest()
        ours = sign(Credentials("KEYID", Secret(secret)), "eu-x-1", method, url, headers, body_digest=digest)
        botocore.auth.S3SigV4Auth(ReadOnlyCredentials("KEYID", secret, None), "s3", "eu-x-1").add_auth(request)
    assert ours == dict(request.headers)


def test_no_secret_is_in_what_is_sent() -> None:
    secret = "SECRET0123456789"
    key = Credentials("KEYID", Secret(secret))
    signed = sign(key, "auto", "GET", "https://s3.example/b/k", {}, body_digest="0" * 64)
    assert "KEYID" in signed["Authorization"]
    assert secret not in repr(signed)
