"""Secrets are planted in settings, environment and commitments; then all that a node's processes wrote is searched.

Real processes against a store that works, then turns rude: it refuses, breaks off, and sends back what it was sent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import pytest
from bittensor.wallet import Wallet

from neurons import founding
from neurons.errors import ConfigError
from neurons.folder import Places, bucket_name
from neurons.founding import Wishes
from neurons.settings import load_settings
from protocol.chain.local import LocalChain
from storage.credentials import Credentials, Secret
from storage.location import LocalLocation, S3Location, encode
from storage.s3 import S3Endpoint
from tests.neurons.founded import found_network
from tests.secrets import Harvest, found, harvest, windrow

WRITE = Credentials("WRITEKEYID7EXAMPLE00", Secret("w7JalrXUtnFEMI/K7MDENG+bPxRfiCYwrite0001"))
READ = Credentials("READKEYID70EXAMPLE00", Secret("r7JalrXUtnFEMI/K7MDENG+bPxRfiCYreads0002"))
PEERS = Credentials("PEERSKEYID0EXAMPLE00", Secret("p7JalrXUtnFEMI/K7MDENG+bPxRfiCYpeers0003"))
PLANTED = {"write secret": WRITE.secret.reveal().encode()}
PUBLIC = {"read secret": READ.secret.reveal().encode(), "a peer's read secret": PEERS.secret.reveal().encode()}
EVERYTHING = PLANTED | PUBLIC


UNTIL_PAYLOAD = -1


class RudeStore(BaseHTTPRequestHandler):
    """As much of S3 as a node needs. Only the write key writes. After `patience` requests, or once a payload comes
    if it has the patience `UNTIL_PAYLOAD`, it answers everything with an error, or not at all; the error repeats all
    that the client sent."""

    objects: ClassVar[dict[str, bytes]] = {}
    requests: ClassVar[int] = 0
    patience: ClassVar[int] = 0

    def _answer(self) -> None:
        kind = type(self)
        kind.requests += 1
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if kind.patience == UNTIL_PAYLOAD and "/shard-" in self.path:
            kind.patience = 0
        if kind.requests > kind.patience >= 0:
            self._be_rude(kind.requests)
        elif self.command in ("PUT", "DELETE") and WRITE.key_id not in self.headers.get("authorization", ""):
            self._say(403, b"<Error><Code>AccessDenied</Code></Error>")
        elif self.command == "PUT":
            kind.objects[self.path] = body
            self._say(200, b"")
        elif self.command == "DELETE":
            kind.objects.pop(self.path, None)
            self._say(204, b"")
        elif self.path in kind.objects:
            self._say(200, kind.objects[self.path])
        else:
            self._say(404, b"<Error><Code>NoSuchKey</Code></Error>")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    def _be_rude(self, number: int) -> None:
        if number % 3 == 0:
            self.close_connection = True  # and not a word
            return
        echo = "".join(f"{name}: {value}\n" for name, value in self.headers.items())
        self._say(403 if number % 3 == 1 else 500, f"<Error><Code>Rude</Code><Sent>{echo}</Sent></Error>".encode())

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("last-modified", self.date_time_string())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def store(patience: int) -> Iterator[str]:
    """The URL of a bucket that works for so many requests."""
    kind = type("Store", (RudeStore,), {"objects": {}, "requests": 0, "patience": patience})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/bucket"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory, tiny: Path, text: Path) -> Path:
    """A network of a validator and two miners that never ran. Not to be changed."""
    folder = tmp_path_factory.mktemp("leaks") / "net"
    found_network(folder, founding.plan(Wishes(2, 1, (), str(tiny), 0.05, text)))
    return folder


class Clock:
    """Lets the chain of `folder` tick while a harvest waits, for at most `blocks` blocks."""

    def __init__(self, folder: Path, blocks: int) -> None:
        self.chain = LocalChain.open(Places(folder).chain)
        self.left = blocks
        self.due = 0.0

    def __call__(self, folder: Path) -> bool:
        if time.monotonic() >= self.due and (Places(folder).node("miner-1") / "status.json").exists():
            self.chain.produce_block(time.time())
            self.left -= 1
            self.due = time.monotonic() + 0.1
        return self.left <= 0


@pytest.fixture
def network(founded: Path, tmp_path: Path) -> Path:
    """A network of one's own. Its validator and its second miner have committed where their buckets are."""
    folder = tmp_path / "net"
    shutil.copytree(founded, folder)
    keys = {name: Wallet(name, "default", str(Places(folder).wallets)).hotkey for name in ("validator-1", "miner-2")}
    nobody = S3Endpoint("http://127.0.0.1:9", "us-east-1", "bucket")

    async def commit() -> None:
        chain = LocalChain.open(Places(folder).chain)
        chain.produce_block(time.time())
        validator = keys["validator-1"]
        await chain.commit(validator, encode(LocalLocation(bucket_name(validator.ss58_address))))
        await chain.commit(keys["miner-2"], encode(S3Location(nobody, PEERS)))
        await chain.close()

    asyncio.run(commit())
    return folder


def environment(bucket: str) -> dict[str, str]:
    """What a careful owner sets."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return inherited | {
        "OMP_NUM_THREADS": "1",
        "PYTHONASYNCIODEBUG": "1",
        "AWS_ACCESS_KEY_ID": WRITE.key_id,
        "AWS_SECRET_ACCESS_KEY": WRITE.secret.reveal(),
        "WINDROW_READ_KEY_ID": READ.key_id,
        "WINDROW_READ_SECRET": READ.secret.reveal(),
        "WINDROW_BUCKET": bucket,
    }


def run(
    network: Path,
    command: str,
    bucket: str,
    level: int,
    *more: str,
    crash_in: str | None = None,
    until: Callable[[Path], bool] = lambda folder: False,
) -> Harvest:
    arguments = [command, "--dir", str(network), "--wallet.name", "miner-1", "--dtype", "fp32", *more]
    return harvest(
        windrow(*arguments),
        folder=network,
        environment=environment(bucket),
        log_level=level,
        crash_in=crash_in,
        until=until,
    )


def test_a_miner_whose_store_turns_rude_shows_no_secret_at_any_level(network: Path) -> None:
    with store(patience=UNTIL_PAYLOAD) as bucket:
        seen = run(network, "miner", bucket, logging.DEBUG, until=Clock(network, 60))
    errors = seen.pieces["stderr"]
    assert b"lost this window" in errors, errors[-3000:].decode(errors="replace")
    assert seen.leaks(PLANTED, public=PUBLIC) == {}
    commitment = encode(S3Location(S3Endpoint(bucket.rpartition("/")[0], "us-east-1", "bucket"), READ))
    assert found(
        b"".join(data for where, data in seen.pieces.items() if where.startswith("chain.sqlite")),
        {"commitment": commitment},
    ), "the read key is where it belongs"


@pytest.mark.parametrize("level", [logging.INFO, logging.ERROR])
def test_a_store_that_is_rude_from_the_start_ends_a_miner_without_a_secret(network: Path, level: int) -> None:
    with store(patience=0) as bucket:
        seen = run(network, "miner", bucket, level)
    assert seen.exit_code == 2, seen.pieces["stderr"][-3000:].decode(errors="replace")
    assert b"cannot be written" in seen.pieces["stderr"]
    assert seen.leaks(PLANTED, public=PUBLIC) == {}


@pytest.mark.parametrize(
    "crash_in", ["botocore.auth:SigV4Auth._sign", "storage.location:encode", "neurons.miner:Miner.window"]
)
def test_a_crash_shows_no_secret(network: Path, crash_in: str) -> None:
    with store(patience=10_000) as bucket:
        seen = run(network, "miner", bucket, logging.DEBUG, crash_in=crash_in, until=Clock(network, 60))
    assert b"injected crash" in seen.pieces["stderr"], seen.pieces["stderr"][-3000:].decode(errors="replace")
    assert seen.leaks(PLANTED, public=PUBLIC) == {}


@pytest.mark.parametrize("patience", [0, 10_000])
def test_the_doctor_shows_no_secret(network: Path, patience: int) -> None:
    with store(patience) as bucket:
        seen = run(network, "doctor", bucket, logging.DEBUG, "--json")
    assert b"bucket" in seen.pieces["stdout"]
    assert seen.leaks(PLANTED, public=PUBLIC) == {}


# --- what people paste into the wrong place ---------------------------------------------------------------

S, K, QUOTED = WRITE.secret.reveal(), WRITE.key_id, quote(WRITE.secret.reveal(), safe="")
RIGHT = {
    "WINDROW_BUCKET": "https://s3.example.com/bucket",
    "AWS_ACCESS_KEY_ID": K,
    "AWS_SECRET_ACCESS_KEY": S,
    "WINDROW_READ_KEY_ID": READ.key_id,
    "WINDROW_READ_SECRET": READ.secret.reveal(),
}
MISPASTED: dict[str, Mapping[str, str]] = {
    "keys swapped": {"AWS_ACCESS_KEY_ID": S, "AWS_SECRET_ACCESS_KEY": K},
    "read keys swapped": {"WINDROW_READ_KEY_ID": READ.secret.reveal(), "WINDROW_READ_SECRET": READ.key_id},
    "a line break": {"AWS_SECRET_ACCESS_KEY": f"{S}\n", "WINDROW_READ_SECRET": f"{READ.secret.reveal()}\n"},
    "the write key for reading": {"WINDROW_READ_KEY_ID": K, "WINDROW_READ_SECRET": S},
    "a user in the URL": {"WINDROW_BUCKET": f"https://{K}:{QUOTED}@s3.example.com/bucket"},
    "a user in a s3 URL": {"WINDROW_BUCKET": f"s3://{K}:{QUOTED}@bucket"},
    "a user without a scheme": {"WINDROW_BUCKET": f"{K}:{QUOTED}@s3.example.com/bucket"},
    "a slash too many": {"WINDROW_BUCKET": f"https:///{K}:{QUOTED}@s3.example.com/bucket"},
    "an endpoint with a user": {"WINDROW_BUCKET": "s3://bucket", "AWS_ENDPOINT_URL": f"https://{K}:{QUOTED}@host"},
    "a query": {"WINDROW_BUCKET": f"https://s3.example.com/bucket?secret={S}"},
    "a public URL that is signed": {
        "WINDROW_READ_KEY_ID": "",
        "WINDROW_READ_SECRET": "",
        "WINDROW_PUBLIC_URL": f"https://s3.example.com/bucket?X-Amz-Signature={S}",
    },
    "the key id of R2": {"WINDROW_BUCKET": f"r2://{'0f' * 16}/bucket"},
    "only a secret": {"AWS_ACCESS_KEY_ID": ""},
    "too long": {"WINDROW_BUCKET": f"https://s3.example.com/bucket/{'p' * 120}"},
    "one setting that is none": {"WINDROW_THREADS": "none"},
    "one setting that is unknown": {"WINDROW_NONE": "x"},
}


@pytest.mark.parametrize("how", MISPASTED)
def test_settings_that_are_refused_show_no_secret(how: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({"run": "https://example.com/run"}, RIGHT | MISPASTED[how])
    report = "".join(traceback.format_exception(caught.value))
    assert found(report.encode("utf-8", "surrogatepass"), EVERYTHING) == []


@pytest.mark.parametrize("mode", [0o644, 0o600])
@pytest.mark.parametrize("line", ["", "threads = 0\n", "threads = \n", "unknown = 1\n"])
def test_a_file_of_settings_that_is_refused_shows_no_secret(tmp_path: Path, mode: int, line: str) -> None:
    path = tmp_path / "windrow.toml"
    path.write_text(f'write_key_id = "{K}"\nwrite_secret = "{S}"\nread_secret = "{READ.secret.reveal()}"\n{line}')
    path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        load_settings({"run": "https://example.com/run", "bucket": "https://s3.example.com/bucket"}, {}, path)
    report = "".join(traceback.format_exception(caught.value))
    assert found(report.encode("utf-8", "surrogatepass"), EVERYTHING) == []
