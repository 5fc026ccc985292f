"""Each check where all is well and where it is not: a real network in folders, a real S3 server, and planted faults."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from bittensor.wallet import Wallet

from neurons import cli, founding
from neurons.doctor import machine, network, stores
from neurons.doctor.finding import Check, Finding, Missing, State, fail, ok, skipped, warn
from neurons.doctor.patient import Patient
from neurons.doctor.report import CHECKS, Diagnosis, diagnose
from neurons.doctor.stores import OwnStore, require_store
from neurons.doctor.verdict import verdict
from neurons.doctor.words import duration, rate, size
from neurons.draft import check_draft
from neurons.errors import ConfigError
from neurons.folder import Places
from neurons.founding import Wishes
from neurons.process import transports
from neurons.radosgw import Radosgw
from neurons.settings import Reading, read_settings
from protocol.chain.local import LocalChain
from protocol.errors import ChainUnreachable
from protocol.run import preset_table
from storage.bucket import Bucket, ObjectInfo
from storage.directory import DirectoryBucket
from storage.errors import AccessRefused, NotFound, Unavailable
from storage.location import HttpsLocation, LocalLocation, S3Location
from storage.s3 import S3Bucket, S3Endpoint
from storage.transfer import Reach, Transport
from tests.neurons.founded import found_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Path, text: Path) -> Path:
    """A network that was founded a moment ago and never ran."""
    folder = tmp_path_factory.mktemp("doctor") / "net"
    found_network(folder, founding.plan(Wishes(1, 1, (), str(tiny), 1.0, text)))
    return folder


@pytest.fixture
def tick(folder: Path) -> None:
    """The newest block is of now."""

    async def produce() -> None:
        chain = LocalChain.open(Places(folder).chain)
        chain.produce_block(time.time())
        await chain.close()

    asyncio.run(produce())


def examine(reading: Reading, *examined: Callable[[Patient], Awaitable[Finding]]) -> Finding:
    """What the last of the checks finds, as the doctor would make them."""

    async def run() -> Diagnosis:
        async with transports(reading.settings) as ways:
            checks = [Check(str(number), 60, check) for number, check in enumerate(examined)]
            return await diagnose(Patient(reading, ways), lambda _: None, checks)

    return asyncio.run(run()).findings[str(len(examined) - 1)]


def reading(folder: Path, **flags: object) -> Reading:
    return read_settings({"dir": folder, "wallet_name": "miner-1", **flags}, {"HOME": "/nobody"})


# --- settings, wallet, run, chain ---------------------------------------------------------------------------


def test_settings_that_are_whole_are_fine_and_others_name_every_problem(folder: Path) -> None:
    assert examine(reading(folder), network.settings).state is State.OK
    found = examine(reading(folder, threads=0, netuid=7), network.settings)
    assert found.state is State.FAIL
    assert all(words in found.sentence for words in ("threads: ", "leave out --netuid"))


def test_a_wallet_is_opened_and_a_missing_one_told_how_to_make(folder: Path) -> None:
    found = examine(reading(folder), network.wallet)
    assert found.figures["hotkey"] == Wallet("miner-1", "default", str(Places(folder).wallets)).hotkey.ss58_address
    found = examine(reading(folder, wallet_name="nobody"), network.wallet)
    assert (found.state, "btcli wallet create" in found.sentence) == (State.FAIL, True)


def test_a_run_is_read_and_a_missing_one_named(folder: Path, tmp_path: Path) -> None:
    assert examine(reading(folder), network.run).figures["name"] == "tiny"
    found = examine(reading(folder, run=str(tmp_path / "run.toml")), network.run)
    assert (found.state, "cannot be read" in found.sentence) == (State.FAIL, True)


@pytest.mark.usefixtures("tick")
def test_a_chain_that_goes_on_is_fine(folder: Path) -> None:
    assert examine(reading(folder), network.chain).state is State.OK


def test_a_chain_that_stands_still_is_worth_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = time.time() + 3600
    monkeypatch.setattr(network.time, "time", lambda: later)
    found = examine(reading(folder), network.chain)
    assert found.state is State.WARN
    assert "60 min old" in found.sentence
    assert "start it with `windrow up`" in found.sentence


def test_a_chain_that_is_not_there_fails(folder: Path, tmp_path: Path) -> None:
    elsewhere = reading(folder, subtensor_chain_endpoint=f"sqlite:{tmp_path}/none")
    found = examine(elsewhere, network.chain)
    assert (found.state, "no local chain" in found.sentence) == (State.FAIL, True)
    assert examine(elsewhere, network.chain, network.registration).sentence == "needs the chain"


def test_bittensor_without_a_subnet_is_told_what_to_give(folder: Path) -> None:
    given = {"run": str(Places(folder).run), "wallet_path": Places(folder).wallets, "wallet_name": "miner-1"}
    found = examine(read_settings(given, {"HOME": "/nobody"}), network.run, network.chain)
    assert (found.state, "give --subtensor.network and --netuid" in found.sentence) == (State.FAIL, True)


def test_it_is_told_when_a_window_closes_or_the_run_begins(folder: Path, tmp_path: Path) -> None:
    assert "window 0, which closes in about" in examine(reading(folder), network.window).sentence
    later = tmp_path / "run.toml"
    later.write_text(Places(folder).run.read_text().replace("[time]", "[time]\nfirst_window = 100"))
    found = examine(reading(folder, run=str(later)), network.window)
    assert (found.state, "begins in block 800" in found.sentence) == (State.OK, True)


def stranger(folder: Path, tmp_path: Path) -> dict[str, object]:
    """The flags of a wallet that is not registered."""
    wallet = Wallet("bob", "default", str(tmp_path / "wallets"))
    wallet.create_new_coldkey(use_password=False, suppress=True)
    wallet.create_new_hotkey(use_password=False, suppress=True)
    return {"wallet_name": "bob", "wallet_path": tmp_path / "wallets"}


def test_a_slot_is_found_or_it_is_said_how_to_get_one(folder: Path, tmp_path: Path) -> None:
    assert examine(reading(folder), network.registration).figures["uid"] == 1
    bob = stranger(folder, tmp_path)
    assert examine(reading(folder, **bob), network.registration).state is State.FAIL
    assert examine(reading(folder, register_hotkey=True, **bob), network.registration).state is State.WARN


def test_a_uid_that_the_run_deals_no_pages_to_fails(folder: Path, tmp_path: Path) -> None:
    narrow = tmp_path / "run.toml"
    narrow.write_text(Places(folder).run.read_text().replace("slots = 8", "slots = 1"))
    found = examine(reading(folder, run=str(narrow)), network.registration)
    assert (found.state, "uid 1 has no slot" in found.sentence) == (State.FAIL, True)


def test_a_balance_is_told_and_an_empty_one_of_a_newcomer_is_a_warning(folder: Path, tmp_path: Path) -> None:
    assert examine(reading(folder), network.balance).figures["tao"] == 2000.0
    bob = stranger(folder, tmp_path)
    assert examine(reading(folder, **bob), network.balance).state is State.WARN
    (tmp_path / "wallets" / "bob" / "coldkeypub.txt").unlink()
    assert examine(reading(folder, **bob), network.balance).state is State.SKIPPED


def test_a_commitment_of_another_bucket_is_a_warning(folder: Path) -> None:
    async def commit(data: bytes) -> None:
        chain = LocalChain.open(Places(folder).chain)
        chain.produce_block(time.time())
        await chain.commit(Wallet("miner-1", "default", str(Places(folder).wallets)).hotkey, data)
        await chain.close()

    assert "nothing on chain yet" in examine(reading(folder), network.commitment).sentence
    for data, told in ((b"\0elsewhere", "LocalLocation"), (b"\xff", "what is no location")):
        asyncio.run(commit(data))
        found = examine(reading(folder), network.commitment)
        assert (found.state, told in found.sentence) == (State.WARN, True)


def test_pages_are_read_and_another_dataset_is_refused(folder: Path, tmp_path: Path) -> None:
    found = examine(reading(folder), network.dataset)
    assert found.figures["dataset_bytes_per_second"] > 0  # type: ignore[operator]
    wrong = examine(reading(folder, dataset=str(tmp_path)), network.dataset)
    assert (wrong.state, "is not the run's dataset" in wrong.sentence) == (State.FAIL, True)


# --- the own bucket -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Odd:
    """A bucket with one fault."""

    inner: Bucket
    fault: str
    seconds: float = 0.0

    async def put(self, key: str, data: bytes) -> None:
        if self.fault == "no write":
            raise AccessRefused("this access key may not do that")
        await self.inner.put(key, data)

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        if self.fault == "no read":
            raise AccessRefused("this access key may not do that")
        if self.fault == "away":
            raise Unavailable("no answer")
        if self.fault == "another":
            return b"something else"
        try:
            return await self.inner.get(key, limit_bytes=limit_bytes)
        except NotFound as error:
            if self.fault == "no list":
                raise AccessRefused("this access key may not do that") from error
            if self.fault == "anything":
                return b"a page of errors"
            raise

    async def head(self, key: str) -> ObjectInfo:
        info = await self.inner.head(key)
        return replace(info, last_modified=info.last_modified + self.seconds)

    async def delete(self, key: str) -> None:
        await self.inner.delete(key)


def store_of(root: Path, own: str = "", readers: str = "", seconds: float = 0.0) -> OwnStore:
    bucket = DirectoryBucket(root)
    odd: Any = Odd(bucket, own, seconds)
    others: Any = Odd(bucket, readers)
    return OwnStore(LocalLocation("bucket"), odd, others)


@pytest.mark.parametrize("check", [stores.write, stores.read, stores.speed])
def test_a_good_bucket_is_fine_and_left_as_it_was(tmp_path: Path, check: Callable[[OwnStore], Any]) -> None:
    assert asyncio.run(check(store_of(tmp_path / "b"))).state is State.OK
    assert list((tmp_path / "b").rglob("*")) == []


@pytest.mark.parametrize(
    ("check", "faults", "state", "words"),
    [
        (stores.write, {"own": "no write"}, State.FAIL, "cannot be written"),
        (stores.read, {"readers": "no read"}, State.FAIL, "others cannot read the own bucket"),
        (stores.read, {"readers": "another"}, State.FAIL, "others read something else"),
        (stores.read, {"readers": "anything"}, State.FAIL, "an object that does not exist"),
        (stores.read, {"readers": "no list"}, State.WARN, "to list the bucket"),
    ],
)
def test_a_fault_of_the_bucket_is_told(
    tmp_path: Path, check: Callable[[OwnStore], Any], faults: dict[str, str], state: State, words: str
) -> None:
    found = asyncio.run(check(store_of(tmp_path / "b", **faults)))
    assert (found.state, words in found.sentence) == (state, True)
    assert list((tmp_path / "b").rglob("*")) == []


def test_a_node_does_not_start_with_a_bucket_that_fails(tmp_path: Path) -> None:
    asyncio.run(require_store(store_of(tmp_path / "b")))
    asyncio.run(require_store(store_of(tmp_path / "b", readers="no list")))
    with pytest.raises(ConfigError, match="others cannot read"):
        asyncio.run(require_store(store_of(tmp_path / "b", readers="no read")))
    with pytest.raises(Unavailable, match="no answer"):  # which may be over when it is started again
        asyncio.run(require_store(store_of(tmp_path / "b", readers="away")))


@pytest.mark.parametrize(("seconds", "ahead"), [(0.0, 0.0), (3.0, 0.0), (-3.0, 0.0), (100.0, 100.0), (-100.0, -100.0)])
def test_how_far_the_clock_of_a_store_is_off(tmp_path: Path, seconds: float, ahead: float) -> None:
    assert asyncio.run(stores.seconds_ahead(store_of(tmp_path, seconds=seconds))) == pytest.approx(ahead, abs=30)


@pytest.mark.usefixtures("tick")
def test_a_clock_that_differs_is_told_of_whom(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "agrees with the chain and the store" in examine(reading(folder), network.clock).sentence

    async def behind(store: OwnStore) -> float:
        return 1000.0

    monkeypatch.setattr(stores, "seconds_ahead", behind)
    found = examine(reading(folder), network.clock)
    assert (found.state, "17 min behind that of the store" in found.sentence) == (State.WARN, True)


def test_folders_have_no_keys_and_public_urls_neither(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    assert asyncio.run(stores.refusal(store)).state is State.SKIPPED
    public = replace(store, location=HttpsLocation("https://cdn.example.org"))
    assert asyncio.run(stores.refusal(public)).state is State.OK


# --- the own bucket at a real store --------------------------------------------------------------------------


async def at_store(radosgw: Radosgw, name: str, readers: str) -> AsyncIterator[OwnStore]:
    """A bucket of its own; `readers` says which of its two keys others get."""
    keys = radosgw.create_bucket(name)
    endpoint, transport = S3Endpoint(radosgw.url, "us-east-1", name), Transport(Reach.ANY)
    key = getattr(keys, readers)
    try:
        own = S3Bucket(endpoint, keys.write, transport)
        yield OwnStore(S3Location(endpoint, key), own, S3Bucket(endpoint, key, transport))
    finally:
        await transport.close()


def at_radosgw(radosgw: Radosgw, name: str, readers: str, *checks: Callable[[OwnStore], Any]) -> list[Finding]:
    async def run() -> list[Finding]:
        async for store in at_store(radosgw, name, readers):
            found = [await check(store) for check in checks]
            assert [info.key async for info in store.bucket.list("")] == []
        return found

    return asyncio.run(run())


def test_a_store_with_two_keys_is_fine(radosgw: Radosgw) -> None:
    found = at_radosgw(
        radosgw, "doctor-fine", "read", stores.write, stores.read, stores.refusal, stores.speed, require_store
    )
    assert [finding.state for finding in found[:-1]] == [State.OK] * 4
    assert "refused to write and to delete" in found[2].sentence


def test_a_read_key_that_can_write_is_found_out(radosgw: Radosgw) -> None:
    (found,) = at_radosgw(radosgw, "doctor-open", "write", stores.refusal)
    assert (found.state, "the read key can write" in found.sentence) == (State.FAIL, True)


def test_a_read_key_that_can_only_delete_is_found_out(tmp_path: Path) -> None:
    store = store_of(tmp_path, readers="no write")
    location = S3Location(S3Endpoint("https://s3.example.org", "us-east-1", "bucket"), _credentials())
    found = asyncio.run(stores.refusal(replace(store, location=location)))
    assert (found.state, "the read key can delete" in found.sentence) == (State.FAIL, True)


def _credentials() -> Any:
    from storage.credentials import Credentials, Secret

    return Credentials("reader", Secret("reading"))


def test_a_key_of_another_bucket_can_neither_write_nor_read(radosgw: Radosgw) -> None:
    async def run() -> list[Finding]:
        other = radosgw.create_bucket("doctor-other")
        async for store in at_store(radosgw, "doctor-mine", "read"):
            endpoint, transport = S3Endpoint(radosgw.url, "us-east-1", "doctor-mine"), Transport(Reach.ANY)
            wrong = S3Bucket(endpoint, other.read, transport)
            found = [await stores.write(replace(store, bucket=wrong)), await stores.read(replace(store, readers=wrong))]
            await transport.close()
        return found

    found = asyncio.run(run())
    assert [finding.state for finding in found] == [State.FAIL, State.FAIL]


# --- the machine ---------------------------------------------------------------------------------------------


def fake_smi(folder: Path, text: str, code: int) -> None:
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
    script.chmod(0o755)


@pytest.mark.parametrize(
    ("printed", "code", "state", "words"),
    [
        (None, 0, State.OK, "none that nvidia-smi shows"),
        ("NVIDIA B200, 580.95.05, 183359", 0, State.OK, "NVIDIA B200 (179 GiB), driver 580.95.05"),
        (
            "NVIDIA-SMI has failed because it could not reach the NVIDIA driver",
            9,
            State.WARN,
            "driver again",
        ),
        ("", 0, State.WARN, "driver again"),
    ],
)
def test_gpus_are_told(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    printed: str | None,
    code: int,
    state: State,
    words: str,
) -> None:
    if printed is not None:
        fake_smi(tmp_path, printed, code)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if printed is not None else str(tmp_path))
    found = examine(reading(folder), machine.gpu)
    assert (found.state, words in found.sentence) == (state, True)


@pytest.mark.parametrize(
    ("free", "total", "state"),
    [(1 << 40, 1 << 40, State.OK), (1 << 20, 1 << 40, State.WARN), (1 << 20, 1 << 28, State.FAIL)],
)
def test_memory_is_compared_with_what_the_model_needs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, free: int, total: int, state: State
) -> None:
    monkeypatch.setattr(machine, "_memory", lambda: (free, total))
    assert examine(reading(folder), machine.memory).state is state


def test_memory_and_disk_of_this_machine_are_read(folder: Path) -> None:
    found = examine(reading(folder), machine.memory)
    assert 0 < found.figures["free_bytes"] <= found.figures["total_bytes"]  # type: ignore[operator]
    assert examine(reading(folder, state=folder / "not" / "there"), machine.disk).state is State.OK


def test_a_disk_that_is_full_or_locked_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    assert "may not be written" in examine(reading(folder), machine.disk).sentence
    monkeypatch.undo()
    real = machine.shutil.disk_usage
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: real(place)._replace(free=1))
    assert examine(reading(folder), machine.disk).state is State.FAIL


def test_compute_is_measured_where_that_takes_seconds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_TRIAL_SECONDS", 0.2)
    found = examine(reading(folder), machine.compute)
    assert (found.figures["measured"], found.figures["dtype"] in ("bf16", "fp32")) == (1, True)
    assert examine(reading(folder, dtype="bf16"), machine.compute).figures["dtype"] == "bf16"
    assert examine(reading(folder), machine.compression).figures["compress_seconds"] > 0  # type: ignore[operator]


def test_compute_is_estimated_where_a_step_would_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_TRIAL_SECONDS", 0.2)
    run = check_draft(preset_table("1b"))
    found = machine._compute(run, "auto", 1, 1 << 40)
    assert found.figures["measured"] == 0
    assert found.figures["compute_seconds"] > 3600  # type: ignore[operator]


# --- the verdict ---------------------------------------------------------------------------------------------


def judge(folder: Path, **figures: float) -> Finding:
    measured = {
        "dataset_bytes_per_second": 1e9,
        "compute_seconds": 1.0,
        "compress_seconds": 0.1,
        "upload_bytes_per_second": 1e9,
        "download_bytes_per_second": 1e9,
    } | figures

    async def run() -> Finding:
        found = reading(folder)
        async with transports(found.settings) as ways:
            patient = Patient(found, ways)
            for check in ("dataset", "compute", "compression", "bucket speed"):
                patient.findings[check] = ok("", **measured)
            try:
                return await verdict(patient)
            finally:
                await patient.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("figures", "state", "words"),
    [
        ({}, State.OK, "of the 5.0 s there are"),
        ({"compute_seconds": 6.0}, State.WARN, "2 of 3 steps: first get more --threads"),
        ({"compute_seconds": 60.0}, State.FAIL, "not one step would be sent"),
        ({"upload_bytes_per_second": 250.0}, State.FAIL, "first get a faster connection to the own bucket"),
        ({"upload_bytes_per_second": 400.0}, State.WARN, "first get a faster connection to the own bucket"),
        ({"dataset_bytes_per_second": 300.0}, State.FAIL, "first get a faster connection to the dataset"),
        ({"compress_seconds": 4.5}, State.WARN, "1 of 3 steps: first get more or faster cores"),
        ({"download_bytes_per_second": 1000.0}, State.WARN, "reading what 20 others sent takes"),
    ],
)
def test_the_verdict_names_what_to_mend_first(
    folder: Path, figures: dict[str, float], state: State, words: str
) -> None:
    found = judge(folder, **figures)
    assert (found.state, words in found.sentence) == (state, True), found.sentence


def test_without_a_measurement_there_is_no_verdict(folder: Path) -> None:
    assert examine(reading(folder), verdict).sentence == "needs what 'dataset' measures"


# --- all of them ---------------------------------------------------------------------------------------------


async def _ok(patient: Patient) -> Finding:
    return ok("fine")


async def _hangs(patient: Patient) -> Finding:
    await asyncio.sleep(3600)
    raise AssertionError


def _raises(error: Exception) -> Callable[[Patient], Awaitable[Finding]]:
    async def check(patient: Patient) -> Finding:
        raise error

    return check


@pytest.mark.parametrize(
    ("check", "state", "words"),
    [
        (_raises(ConfigError("correct it")), State.FAIL, "correct it"),
        (_raises(ChainUnreachable("gone")), State.FAIL, "gone"),
        (_raises(Unavailable("away")), State.FAIL, "away"),
        (_raises(PermissionError(13, "Permission denied", "/place")), State.FAIL, "/place: Permission denied"),
        (_raises(Missing("a thing")), State.SKIPPED, "needs a thing"),
        (_hangs, State.FAIL, "nothing came of it in 0.05 s"),
    ],
)
def test_a_check_that_fails_never_stops_the_next(
    folder: Path, check: Callable[[Patient], Awaitable[Finding]], state: State, words: str
) -> None:
    async def run() -> Diagnosis:
        found = reading(folder)
        async with transports(found.settings) as ways:
            checks = [Check("first", 5, _ok), Check("odd", 0.05, check), Check("last", 5, _ok)]
            return await diagnose(Patient(found, ways), lambda _: None, checks)

    diagnosis = asyncio.run(run())
    assert [finding.state for finding in diagnosis.findings.values()] == [State.OK, state, State.OK]
    assert words in diagnosis.findings["odd"].sentence


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([ok("")], 0),
        ([skipped("")], 0),
        ([ok(""), skipped("")], 0),
        ([ok(""), warn(""), skipped("")], 10),
        ([warn(""), fail(""), ok("")], 11),
    ],
)
def test_the_exit_code_is_that_of_the_worst(findings: list[Finding], code: int) -> None:
    assert Diagnosis({str(number): finding for number, finding in enumerate(findings)}).exit_code == code


def test_what_others_said_cannot_steer_the_terminal() -> None:
    diagnosis = Diagnosis({"run": fail("it says \x1b[2J and [red]this[/red]")})
    cells = list(diagnosis.table().columns[2].cells)
    assert str(cells[0]) == "it says ?[2J and [red]this[/red]"


def test_with_settings_that_name_nothing_the_machine_is_looked_at_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nothing")

    async def run() -> Diagnosis:
        async with transports(None) as ways:
            return await diagnose(Patient(read_settings({}, {"HOME": "/nobody"}), ways), lambda _: None)

    diagnosis = asyncio.run(run())
    assert [name for name, found in diagnosis.findings.items() if found.state is State.FAIL] == ["settings"]
    assert diagnosis.findings["gpu"].state is State.OK
    assert list(diagnosis.findings) == [check.name for check in CHECKS]


@pytest.mark.usefixtures("tick")
def test_the_command_prints_one_object_and_ends_by_the_worst(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_TRIAL_SECONDS", 0.1)
    code = cli.main(["doctor", "--dir", str(folder), "--wallet.name", "nobody", "--json"])
    told = json.loads(capsys.readouterr().out)
    states = {check["name"]: check["state"] for check in told["checks"]}
    assert (code, told["state"], states["wallet"], states["run"]) == (11, "fail", "fail", "ok")
    assert states["registration"] == states["bucket write"] == "skipped"
    cli.main(["doctor", "--dir", str(folder), "--wallet.name", "miner-1"])
    assert "a window's work takes" in capsys.readouterr().out


def test_a_store_for_a_bucket_that_was_misspelt_is_never_written(folder: Path) -> None:
    given = reading(folder, bucket="nothing")
    assert examine(given, network.wallet, network.bucket_write).state is State.SKIPPED


def test_lengths_and_sizes_are_written_for_people() -> None:
    lengths = [0.0354, 3.21, 45.0, 600.0, 9000.0, 400_000.0]
    assert [duration(value) for value in lengths] == ["35 ms", "3.2 s", "45 s", "10 min", "2 h", "5 days"]
    assert [size(value) for value in (735, 15_360, 2**31, 2**50)] == ["735 bytes", "15.0 KiB", "2.0 GiB", "1024.0 TiB"]
    assert [rate(value) for value in (2.15e8, 4e5)] == ["215 MB/s", "0.4 MB/s"]
