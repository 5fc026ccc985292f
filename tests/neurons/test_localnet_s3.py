"""A network of real processes whose buckets are in a real S3 server, each with a key to write it and one to read it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from neurons import cli, radosgw
from neurons.folder import Places, require_network
from neurons.settings import load_settings
from protocol.chain.local import LocalChain
from storage.location import S3Location, decode
from tests.neurons.processes import Process, wait_for
from tests.secrets import found

pytestmark = pytest.mark.usefixtures("no_process_survives")

MEMBERS = {"validator-1", "miner-1", "miner-2", "copycat"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if absent := radosgw.missing():
        pytest.skip(f"{', '.join(absent)} not found: `make radosgw` installs the S3 server")
    return tmp_path_factory.mktemp("localnet-s3") / "net"


@pytest.fixture(scope="module")
def first(folder: Path, tiny: Path, text: Path, no_process_survives: None) -> Process:
    own = ["--miners", 2, "--validators", 1, "--cheats", "copycat", "--preset", tiny, "--text", text]
    # What a shell may hold for another node: it must not reach these.
    shell = {
        "WINDROW_BUCKET": "https://store.example/elsewhere",
        "WINDROW_WALLET_PATH": "/nowhere",
        "AWS_PROFILE": "none",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in shell.items():
            patch.setenv(name, value)
        own += ["--block-seconds", 0.5, "--json", "--windows", 3]
        process = Process("up", "--dir", folder, "--storage", "s3", *own)
    assert process.end() == 0, "".join(process.err)
    return process


def locations(folder: Path) -> dict[str, S3Location]:
    """What each member has committed on chain."""

    async def read() -> dict[str, bytes]:
        chain = LocalChain.open(Places(folder).chain)
        try:
            return await chain.commitments()
        finally:
            await chain.close()

    called, found = require_network(folder).names(), {}
    for hotkey, commitment in asyncio.run(read()).items():
        location = decode(commitment)
        assert isinstance(location, S3Location)
        found[called[hotkey]] = location
    return found


def serves(url: str) -> bool:
    parts = urlsplit(url)
    with socket.socket() as client:
        return client.connect_ex((parts.hostname, parts.port)) == 0


def test_it_ends_like_one_whose_buckets_are_folders(first: Process, folder: Path) -> None:
    table = first.table()
    before, after = table["held_out_loss"]
    assert table["windows"] == 3
    assert after < before
    assert table["accepted"] > 0
    assert table["roots"].keys() == MEMBERS
    assert len(set(table["roots"].values())) == 1
    rejected = {peer["name"] for peer in table["peers"] if peer["incentive"] == 0}
    assert "copycat" in rejected
    assert not Places(folder).buckets.exists()


def test_each_neuron_has_a_bucket_and_publishes_only_the_key_that_reads_it(first: Process, folder: Path) -> None:
    found = locations(folder)
    assert found.keys() == MEMBERS
    assert {name: location.endpoint.bucket for name, location in found.items()} == {name: name for name in MEMBERS}
    keys = set()
    for name, location in found.items():
        own = load_settings({"dir": folder, "wallet_name": name}, {}, Places(folder).keys(name)).own
        assert own is not None
        assert own.location == location
        keys |= {location.credentials.key_id, own.write.key_id}
        assert stat.S_IMODE(Places(folder).keys(name).stat().st_mode) == 0o600
    assert len(keys) == 2 * len(MEMBERS)


def test_no_key_is_in_anything_that_the_neurons_wrote(first: Process, folder: Path) -> None:
    """Write keys are in the file of their owner alone, and read keys, by design, on chain."""
    planted, pages = dict[str, bytes](), dict[str, bytes]()
    for name in MEMBERS:
        own = load_settings({"dir": folder, "wallet_name": name}, {}, Places(folder).keys(name)).own
        assert own is not None
        assert isinstance(own.location, S3Location)
        planted[f"{name} write"] = own.write.secret.reveal().encode()
        planted[f"{name} read"] = own.location.credentials.secret.reveal().encode()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        if not path.is_relative_to(Places(folder).store) and path != Places(folder).keys(path.parent.name):
            pages[str(path.relative_to(folder))] = path.read_bytes()
    pages["what `windrow up` said"] = "".join(first.out + first.err).encode()
    assert {"nodes/miner-1/log", "nodes/validator-1/status.json", "chain.sqlite"} <= pages.keys()
    assert {where: leaked for where, data in pages.items() if (leaked := found(data, planted))} == {}
    assert found(Places(folder).keys("miner-1").read_bytes(), planted)  # what is there would be found


def test_the_server_ends_with_the_network_and_any_later_look_finds_everything(
    first: Process, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = locations(folder)["miner-1"].endpoint.url
    assert not serves(url)
    assert cli.main(["leaderboard", "--dir", str(folder), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert not serves(url)
    assert [peer["final"] for peer in seen["peers"]] == [peer["final"] for peer in first.table()["peers"]]


def test_it_goes_on_from_where_it_stopped_also_after_its_death(first: Process, folder: Path) -> None:
    again = Process("up", "--dir", folder, "--json", "--windows", 1)
    assert again.end() == 0, "".join(again.err)
    assert again.table()["windows"] == 4
    killed = Process("up", "--dir", folder, "--json")
    killed.says("held-out loss")
    url = locations(folder)["miner-1"].endpoint.url
    assert serves(url)
    os.kill(killed.popen.pid, signal.SIGKILL)
    assert killed.end() == -signal.SIGKILL
    wait_for(lambda: not serves(url), "the server to end with its network")
    last = Process("up", "--dir", folder, "--json", "--windows", 1)
    assert last.end() == 0, "".join(last.err)
    assert last.table()["windows"] > 4
    assert len(set(last.table()["roots"].values())) == 1
