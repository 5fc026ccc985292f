"""Where a peer's bucket is read, in the bytes it commits on chain (protocol §6): a kind byte, then the location.

Everybody can read a commitment, so it holds read credentials only. And everybody writes his own, so nothing in it is
taken as it is: every field has a small set of characters, and every location one encoding. What it leads to is
checked when a bucket is opened: public https, or a folder below the reader's own, never a path or an inner address.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from storage.addresses import HTTPS_PORT, check_host, is_host
from storage.bucket import Bucket, check_key
from storage.credentials import Credentials, Secret
from storage.directory import DirectoryBucket
from storage.errors import BadCredentials, BadKey, BadLocation, ForbiddenAddress
from storage.https import HttpsBucket
from storage.s3 import S3Bucket, S3Endpoint
from storage.transfer import Transport

LOCATION_LIMIT_BYTES = 128
"""What fits into one commitment."""

_LOCAL, _HTTPS, _R2, _S3 = range(4)

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

_URL = re.compile(r"(https?)://([^/:\[\]@?#]+|\[[0-9a-f:]+\])(?::([1-9][0-9]{0,4}))?(?:/([^?#]+))?")
_PORTS = {"http": 80, "https": HTTPS_PORT}
_PORT_LIMIT = 1 << 16

_R2_KEY_ID = re.compile(r"[0-9a-f]{32}")
_R2_SECRET = re.compile(r"[0-9a-f]{64}")
_R2_BYTES = 64  # of account (16), key id (16) and secret (32): what their hexadecimal digits stand for

_KEY_TEXT = re.compile(r"[A-Za-z0-9+./:=_-]+")
_PLAIN_HTTP, _PATH_STYLE = 1, 2
_FIELDS = 6  # host, region, bucket, prefix, key id, secret
_SEPARATOR = " "
# Every character that a field of an S3 location may have, and the separator, in ASCII order.
_ALPHABET = " +-./0123456789:=ABCDEFGHIJKLMNOPQRSTUVWXYZ[]_abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class LocalLocation:
    """A bucket of the built-in chain, by name: the reader resolves it below a folder of its own choice. Raises
    `BadLocation` when `name` is not plain."""

    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BadLocation(
                f"{self.name!r} is not a bucket name: use 1-63 of a-z 0-9 -, beginning with a letter or digit"
            )


@dataclass(frozen=True, slots=True)
class HttpsLocation:
    """A bucket whose objects anyone may read at `url`/KEY. Raises `BadLocation` unless `url` is canonical: scheme,
    host, a port only if it is not the scheme's own, and a path of plain parts without a final slash."""

    url: str

    def __post_init__(self) -> None:
        _check_url(self.url)


@dataclass(frozen=True, slots=True)
class R2Location:
    """A bucket at Cloudflare R2. `account` and the key id are 32 hexadecimal digits, the secret 64. Raises
    `BadLocation` when a field is not one."""

    account: str
    bucket: str
    credentials: Credentials

    def __post_init__(self) -> None:
        S3Endpoint.r2(self.account, self.bucket)  # which checks both
        if not _R2_KEY_ID.fullmatch(self.credentials.key_id):
            raise BadLocation("an access key id of R2 is 32 lower-case hexadecimal digits: see the R2 API token")
        if not _R2_SECRET.fullmatch(self.credentials.secret.reveal()):
            raise BadLocation("a secret access key of R2 is 64 lower-case hexadecimal digits: see the R2 API token")

    @property
    def endpoint(self) -> S3Endpoint:
        """The same bucket as any S3 client names it."""
        return S3Endpoint.r2(self.account, self.bucket)


@dataclass(frozen=True, slots=True)
class S3Location:
    """A bucket at any S3 endpoint. Raises `BadLocation` when a field holds what no location may."""

    endpoint: S3Endpoint
    credentials: Credentials

    def __post_init__(self) -> None:
        host = _check_url(self.endpoint.url).host
        if not self.endpoint.path_style and not is_host(f"{self.endpoint.bucket}.{host}"):
            raise BadLocation(f"{self.endpoint.bucket!r} cannot stand in a host name: use path style")
        # Neither is shown: people paste the two keys in the wrong order.
        if not _KEY_TEXT.fullmatch(self.credentials.key_id):
            raise BadLocation("the access key id holds a character that no commitment has: make a plain one")
        if not _KEY_TEXT.fullmatch(self.credentials.secret.reveal()):
            raise BadLocation("the secret access key holds a character that no commitment has: make a plain one")


Location = LocalLocation | HttpsLocation | R2Location | S3Location


def encode(location: Location) -> bytes:
    """The commitment that says where the bucket is. Raises `BadLocation` when it has more than `LOCATION_LIMIT_BYTES`
    bytes, with what to shorten."""
    match location:
        case LocalLocation():
            return bytes([_LOCAL]) + location.name.encode("ascii")
        case HttpsLocation():
            commitment = bytes([_HTTPS]) + location.url.encode("ascii")
        case R2Location():
            digits = location.account + location.credentials.key_id + location.credentials.secret.reveal()
            name = "" if location.bucket == location.account else location.bucket
            return bytes([_R2]) + bytes.fromhex(digits) + name.encode("ascii")
        case S3Location():
            commitment = _encode_s3(location)
    if len(commitment) > LOCATION_LIMIT_BYTES:
        _too_long(location, len(commitment))
    return commitment


def decode(commitment: bytes) -> Location:
    """The inverse of `encode`; raises `BadLocation` for every other byte string."""
    if not commitment:
        raise BadLocation("the commitment is empty: it must begin with the kind of location")
    if len(commitment) > LOCATION_LIMIT_BYTES:
        raise BadLocation(f"the commitment has {len(commitment)} bytes, at most {LOCATION_LIMIT_BYTES} are allowed")
    kind, rest = commitment[0], commitment[1:]
    location: Location
    try:
        if kind == _LOCAL:
            # Latin-1 takes every byte; the checks then refuse all but the allowed ones.
            location = LocalLocation(rest.decode("latin-1"))
        elif kind == _HTTPS:
            location = HttpsLocation(rest.decode("latin-1"))
        elif kind == _R2:
            location = _decode_r2(rest)
        elif kind == _S3:
            location = _decode_s3(rest)
        else:
            raise BadLocation(f"the commitment is of kind {kind}, this version reads the kinds 0 to {_S3}")
    except BadCredentials as error:
        raise BadLocation(f"the credentials in the commitment are none: {error}") from error
    if encode(location) != commitment:
        raise BadLocation("the commitment is not canonical: the same location has another encoding")
    return location


def open_bucket(location: Location, transport: Transport, local_root: Path | None) -> Bucket:
    """The bucket at `location`. `local_root` is this node's folder of buckets, None when it follows no built-in chain:
    then only public https is opened, and `BadLocation` is raised for everything else.

    Names are checked here; what they resolve to, whenever `transport` connects. It must be one of `Reach.PUBLIC` where
    `local_root` is None.
    """
    if isinstance(location, LocalLocation):
        if local_root is None:
            raise BadLocation(
                f"bucket {location.name!r} is local to another machine: this node is not on a local chain"
            )
        return DirectoryBucket(local_root / location.name)
    if isinstance(location, HttpsLocation):
        if local_root is None:
            _check_public(location.url)
        return HttpsBucket(location.url, transport)
    if local_root is None:
        _check_public(location.endpoint.url, "" if location.endpoint.path_style else f"{location.endpoint.bucket}.")
    return S3Bucket(location.endpoint, location.credentials, transport)


@dataclass(frozen=True, slots=True)
class _Address:
    """What a canonical URL connects to; `host` is without brackets."""

    scheme: str
    host: str
    port: int


def _check_url(url: str) -> _Address:
    found = _URL.fullmatch(url)
    if not found:
        # Not shown: it may hold a password, or be a URL that somebody signed.
        raise BadLocation("the URL of a bucket is https://HOST or https://HOST:PORT, and perhaps a path, no more")
    scheme, host, port, path = found[1], found[2].strip("[]"), found[3], found[4]
    if not is_host(host) or (":" in host) != found[2].startswith("["):
        raise BadLocation(f"{host!r} is not a host: write it in lower-case ASCII, without a final dot")
    if port is not None and (int(port) == _PORTS[scheme] or int(port) >= _PORT_LIMIT):
        raise BadLocation(f"port {port} of {host}: leave out the usual one, others go up to {_PORT_LIMIT - 1}")
    if path is not None:
        _check_path(path)
    return _Address(scheme, host, int(port or _PORTS[scheme]))


def _check_path(path: str) -> None:
    try:
        check_key(path)
    except BadKey as error:
        raise BadLocation(str(error)) from error


def _check_public(url: str, label: str = "") -> None:
    """`label` is what stands before the host in virtual style."""
    address = _check_url(url)
    if address.scheme != "https":
        raise BadLocation(f"the bucket at {address.host} is not read by https: others are for the built-in chain only")
    try:
        check_host(label + address.host, address.port)
    except ForbiddenAddress as error:
        raise BadLocation(f"no peer's bucket can be there: {error}") from error


def _decode_r2(rest: bytes) -> R2Location:
    if len(rest) < _R2_BYTES:
        raise BadLocation(f"an R2 location has at least {_R2_BYTES} bytes after its kind, not {len(rest)}")
    account, key_id = rest[:16].hex(), rest[16:32].hex()
    name = rest[_R2_BYTES:].decode("latin-1")
    return R2Location(account, name or account, Credentials(key_id, Secret(rest[32:_R2_BYTES].hex())))


def _encode_s3(location: S3Location) -> bytes:
    endpoint, credentials = location.endpoint, location.credentials
    scheme, _, netloc = endpoint.url.partition("://")
    flags = _PLAIN_HTTP * (scheme == "http") | _PATH_STYLE * endpoint.path_style
    host = "" if netloc == _aws_host(endpoint.region) else netloc
    fields = (host, endpoint.region, endpoint.bucket, endpoint.prefix, credentials.key_id)
    return bytes([_S3, flags]) + _pack(_SEPARATOR.join((*fields, credentials.secret.reveal())))


def _decode_s3(rest: bytes) -> S3Location:
    if not rest or rest[0] & ~(_PLAIN_HTTP | _PATH_STYLE):
        raise BadLocation("the flags of the S3 location are none that this version knows")
    fields = _unpack(rest[1:]).split(_SEPARATOR)
    if len(fields) != _FIELDS:
        raise BadLocation(f"the S3 location has {len(fields)} fields instead of {_FIELDS}")
    host, region, bucket, prefix, key_id, _ = fields
    scheme = "http" if rest[0] & _PLAIN_HTTP else "https"
    endpoint = S3Endpoint(
        f"{scheme}://{host or _aws_host(region)}", region, bucket, prefix, bool(rest[0] & _PATH_STYLE)
    )
    return S3Location(endpoint, Credentials(key_id, Secret(fields[-1])))


def _aws_host(region: str) -> str:
    return f"s3.{region}.amazonaws.com"


def _pack(text: str) -> bytes:
    """`text` as a number whose digits, from 1 on, are the places of its characters in the alphabet; big-endian. So 126
    bytes hold 163 characters, and every text has one form."""
    number = 0
    for character in text:
        number = number * len(_ALPHABET) + _ALPHABET.index(character) + 1
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _unpack(data: bytes) -> str:
    """The text that `_pack` made `data` of; also of a number with zeros before it, which is not canonical."""
    number, characters = int.from_bytes(data, "big"), []
    while number:
        number, place = divmod(number - 1, len(_ALPHABET))
        characters.append(_ALPHABET[place])
    return "".join(reversed(characters))


def _too_long(location: HttpsLocation | S3Location, size_bytes: int) -> NoReturn:
    if isinstance(location, HttpsLocation):
        hint = "use a shorter host or path"
    else:
        endpoint = location.endpoint
        hint = (
            f"shorten the prefix ({len(endpoint.prefix)} characters) or the name of the bucket "
            f"({len(endpoint.bucket)}), or use a shorter name of the host, a shorter access key, or public https"
        )
    raise BadLocation(
        f"this location takes {size_bytes} bytes and a commitment has room for {LOCATION_LIMIT_BYTES}: {hint}"
    )
