"""One real process of a miner, on the built-in chain with a bucket at a real S3 server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bittensor.wallet import Wallet

from neurons import founding
from neurons.errors import ConfigError
from neurons.folder import Places
from neurons.founding import Wishes
from neurons.onlooker import open_chain
from neurons.publication import Publication
from neurons.radosgw import Keys, Radosgw
from neurons.settings import NodeSettings, load_settings
from neurons.status import STATUS_FILE, read_status
from protocol.chain.local import LocalChain
from protocol.errors import ChainUnreachable
from storage.location import S3Location, decode
from tests.neurons.founded import found_network

PATIENCE_SECONDS = 120.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Path, text: Path) -> Path:
    """A network that was founded and whose chain stands still."""
    folder = tmp_path_factory.mktemp("process") / "net"
    found_network(folder, founding.plan(Wishes(1, 1, (), str(tiny), 1.0, text)))
    return folder


@pytest.fixture(scope="module")
def keys(radosgw: Radosgw) -> Keys:
    return radosgw.create_bucket("process-miner")


@pytest.fixture
def environment(keys: Keys) -> dict[str, str]:
    """Of the miner: its keys are nowhere else."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "WINDROW_"))},
        "AWS_ACCESS_KEY_ID": keys.write.key_id,
        "AWS_SECRET_ACCESS_KEY": keys.write.secret.reveal(),
        "WINDROW_READ_KEY_ID": keys.read.key_id,
        "WINDROW_READ_SECRET": keys.read.secret.reveal(),
    }


def start(folder: Path, url: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    flags = ["--dir", str(folder), "--wallet.name", "miner-1", "--dtype", "fp32", "--bucket", f"{url}/process-miner"]
    command = [sys.executable, "-m", "neurons.cli", "miner", *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture
def running(folder: Path, radosgw: Radosgw, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A miner that has joined, and waits for a checkpoint: nobody else is there."""
    node = Places(folder).node("miner-1")
    (node / STATUS_FILE).unlink(missing_ok=True)
    process = start(folder, radosgw.url, environment)
    try:
        wait_for(lambda: process.poll() is not None or "checkpoint" in activity(node))
        yield process
    finally:
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, said


def activity(node: Path) -> str:
    status = read_status(node)
    return status.activity if status else ""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def read_chain(folder: Path) -> tuple[bytes | None, int]:
    """What the miner has committed, and how many calls it has signed."""

    async def read() -> tuple[bytes | None, int]:
        chain = LocalChain.open(Places(folder).chain)
        hotkey = Wallet("miner-1", "default", str(Places(folder).wallets)).hotkey.ss58_address
        try:
            return (await chain.commitments()).get(hotkey), chain.nonce(hotkey)
        finally:
            await chain.close()

    return asyncio.run(read())


def listening(pid: int) -> set[str]:
    """Addresses on which a process waits for connections, as the kernel writes them."""
    links = (os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink())
    own = {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:[")}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in own:
                found.add(fields[1])
    return found


def test_a_miner_commits_where_its_bucket_is_and_opens_no_port(
    folder: Path, keys: Keys, radosgw: Radosgw, running: subprocess.Popen[str]
) -> None:
    assert running.poll() is None
    commitment, calls = read_chain(folder)
    assert commitment is not None
    location = decode(commitment)
    assert isinstance(location, S3Location)
    assert (location.endpoint.url, location.credentials) == (radosgw.url, keys.read)
    assert calls == 1
    assert listening(running.pid) == set()


def test_a_miner_that_starts_again_commits_nothing_anew(folder: Path, running: subprocess.Popen[str]) -> None:
    assert running.poll() is None
    assert read_chain(folder)[1] == 1


def test_a_miner_whose_keys_are_swapped_does_not_start(
    folder: Path, radosgw: Radosgw, environment: dict[str, str]
) -> None:
    swapped = {
        "AWS_ACCESS_KEY_ID": environment["WINDROW_READ_KEY_ID"],
        "AWS_SECRET_ACCESS_KEY": environment["WINDROW_READ_SECRET"],
        "WINDROW_READ_KEY_ID": environment["AWS_ACCESS_KEY_ID"],
        "WINDROW_READ_SECRET": environment["AWS_SECRET_ACCESS_KEY"],
    }
    process = start(folder, radosgw.url, environment | swapped)
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2
    assert "the own bucket cannot be written" in said


# --- the chain that settings and publication name -----------------------------------------------------------------


def remote(**flags: object) -> NodeSettings:
    given = {"run": "/a/run.toml", "bucket": "https://s3.example.org/name", "public_url": "https://cdn.example.org"}
    variables = {"HOME": "/nobody", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    return load_settings({**given, **flags}, variables)


def test_without_a_subnet_it_is_told_what_to_give() -> None:
    for flags, publication in (
        ({}, Publication()),
        ({"subtensor_network": "test"}, Publication()),
        ({}, Publication(netuid=3)),
    ):
        with pytest.raises(ConfigError, match=r"give --subtensor\.network and --netuid"):
            asyncio.run(open_chain(remote(**flags).chain, publication))


@pytest.mark.parametrize(
    ("flags", "publication", "named"),
    [
        ({}, Publication(network="ws://127.0.0.1:9", netuid=3), "ws://127.0.0.1:9"),
        ({"subtensor_chain_endpoint": "ws://127.0.0.1:7"}, Publication(network="finney", netuid=3), "ws://127.0.0.1:7"),
    ],
)
def test_the_settings_win_over_the_publication(flags: dict[str, object], publication: Publication, named: str) -> None:
    with pytest.raises(ChainUnreachable, match=named):
        asyncio.run(open_chain(remote(**flags).chain, publication))
