from __future__ import annotations

import asyncio
import os
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from bittensor.wallet import Wallet

from neurons import founding
from neurons.adversaries import ADVERSARIES
from neurons.errors import ConfigError, FolderError, TextError
from neurons.folder import CHEATS, Charter, Places, bucket_name, founded_run, require_network
from neurons.founding import Wishes
from neurons.training.model import build_model, parameter_shapes
from protocol.chain.local import LocalChain
from protocol.chain.port import Neuron
from protocol.run import Run
from storage.checkpoint import open_checkpoint
from storage.dataset import open_dataset
from storage.directory import DirectoryBucket
from storage.keys import Keys
from tests.neurons.founded import found_network


@pytest.fixture(scope="module")
def wishes(tiny: Path, text: Path) -> Wishes:
    return Wishes(2, 2, ("freerider",), str(tiny), 0.4, text)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, wishes: Wishes) -> Path:
    """A network that was founded and never ran. Not to be changed."""
    folder = tmp_path_factory.mktemp("founding") / "net"
    said = found_network(folder, founding.plan(wishes))
    assert [line.split()[0] for line in said] == [
        "reading",
        "training",
        "cutting",
        "initialising",
        "making",
        "publishing",
    ]
    return folder


@pytest.fixture(scope="module")
def charter(network: Path) -> Charter:
    return require_network(network)


@pytest.fixture(scope="module")
def run(network: Path, charter: Charter) -> Run:
    return founded_run(network, charter)


# --- plans ------------------------------------------------------------------------------------------------


def test_wishes_that_say_nothing_give_the_demo() -> None:
    plan = founding.plan(Wishes())
    roles = [role for _, role in plan.members]
    assert roles == ["validator", *["miner"] * 4, "copycat", "freerider"]
    assert (plan.draft.name, plan.block_seconds, plan.text) == ("demo", 1.0, None)


def test_validators_get_the_first_slots_and_names_differ() -> None:
    plan = founding.plan(Wishes(2, 2, ("freerider", "copycat", "freerider")))
    assert [name for name, _ in plan.members] == [
        "validator-1",
        "validator-2",
        "miner-1",
        "miner-2",
        "copycat",
        "freerider-1",
        "freerider-2",
    ]


def test_every_cheat_there_is_can_be_wished_for() -> None:
    assert CHEATS.keys() == ADVERSARIES.keys()


@pytest.mark.parametrize(
    ("impossible", "words"),
    [
        (Wishes(cheats=("burglar",)), "no cheat 'burglar'; choose from copycat, freerider, zeros"),
        (Wishes(miners=0, cheats=()), "at least one validator and one miner"),
        (Wishes(validators=0), "at least one validator"),
        (Wishes(validators=9), "8 validators"),
        (Wishes(miners=30), "slots"),
        (Wishes(preset="huge"), "neither a preset"),
        (Wishes(preset="/dev/null/x"), "neither a preset"),
    ],
)
def test_an_impossible_wish_is_one_sentence(impossible: Wishes, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        founding.plan(impossible)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps = 3", "stepps = 3", "inner.stepps: unknown key"),
        ("steps = 3", "steps = 0", "inner.steps"),
        ("vocab_size = 512", "vocab_size = 256", "vocab_size must be"),
        ("vocab_size = 512", "", "vocab_size must be"),
        ("[dataset]", "[dataset", "neither a preset"),
        ("[dataset]", "[data]", "data: unknown key"),
        ('version = 1\nname = "tiny"', "dataset = 3", "neither a preset|dataset"),
    ],
)
def test_a_preset_file_that_cannot_work_is_named_before_anything_is_made(
    tmp_path: Path, tiny: Path, old: str, new: str, words: str
) -> None:
    path = tmp_path / "own.toml"
    path.write_text(tiny.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=words) as caught:
        founding.plan(Wishes(preset=str(path)))
    assert str(path) in str(caught.value) or "[model]" in str(caught.value)


# --- resuming ---------------------------------------------------------------------------------------------


def test_flags_that_agree_with_the_network_or_say_nothing_resume_it(
    network: Path, charter: Charter, run: Run, wishes: Wishes
) -> None:
    founding.require_same(network, charter, run, 0.4, Wishes())
    founding.require_same(network, charter, run, 0.4, wishes)


@pytest.mark.parametrize(
    ("other", "flag"),
    [
        (Wishes(miners=9), "--miners 2, not 9"),
        (Wishes(validators=1), "--validators 2, not 1"),
        (Wishes(cheats=()), "--cheats freerider, not ''"),
        (Wishes(cheats=("copycat", "freerider")), "--cheats freerider, not copycat,freerider"),
        (Wishes(block_seconds=2.0), "--block-seconds 0.4, not 2.0"),
        (Wishes(text=Path("/elsewhere")), "not /elsewhere"),
        (Wishes(preset="demo"), "--preset demo"),
    ],
)
def test_a_flag_that_asks_for_another_network_is_refused(
    network: Path, charter: Charter, run: Run, other: Wishes, flag: str
) -> None:
    with pytest.raises(FolderError, match="leave that flag out") as caught:
        founding.require_same(network, charter, run, 0.4, other)
    assert flag in str(caught.value)


def test_a_preset_counts_by_its_constants_not_by_its_name(
    tmp_path: Path, network: Path, charter: Charter, run: Run, tiny: Path
) -> None:
    copy = tmp_path / "copy.toml"
    shutil.copy(tiny, copy)
    founding.require_same(network, charter, run, 0.4, Wishes(preset=str(copy)))
    copy.write_text(tiny.read_text().replace("steps = 3", "steps = 4"))
    with pytest.raises(FolderError, match="other constants"):
        founding.require_same(network, charter, run, 0.4, Wishes(preset=str(copy)))


def test_a_run_that_was_changed_after_the_founding_is_noticed(tmp_path: Path, network: Path, charter: Charter) -> None:
    run = (network / "run.toml").read_text()
    (tmp_path / "run.toml").write_text(run.replace("learning_rate = 0.006", "learning_rate = 0.007"))
    with pytest.raises(FolderError, match=r"run\.toml was changed"):
        founded_run(tmp_path, charter)


# --- what lies in the folder ------------------------------------------------------------------------------


def test_the_run_names_the_dataset_and_the_genesis_that_were_made(network: Path, charter: Charter, run: Run) -> None:
    async def read(hotkey: str) -> str:
        dataset = await open_dataset(DirectoryBucket(Places(network).dataset), run.dataset.index_digest)
        await dataset.verify()
        assert dataset.index.pages >= run.pages_needed
        bucket = DirectoryBucket(Places(network).buckets / bucket_name(hotkey))
        shapes = dict(parameter_shapes(build_model(run.model)))
        return (await open_checkpoint(bucket, Keys(run.digest()[:16]), window=None, shapes=shapes)).index.root

    for member in charter.members:
        if member.role == "validator":
            assert asyncio.run(read(member.hotkey)) == run.genesis_root


def test_everybody_is_registered_in_order_and_the_first_validator_leads(network: Path, charter: Charter) -> None:
    async def read() -> tuple[Neuron, ...]:
        chain = LocalChain.open(Places(network).chain)
        try:
            assert (await chain.head()).number == 0
            assert chain.block_seconds == 0.4
            return await chain.neurons()
        finally:
            await chain.close()

    neurons = asyncio.run(read())
    assert [neuron.hotkey for neuron in neurons] == [member.hotkey for member in charter.members]
    assert [neuron.validator_permit for neuron in neurons] == [m.role == "validator" for m in charter.members]
    assert neurons[0].stake > neurons[1].stake > 0


def test_each_member_has_a_wallet_that_opens_without_a_password(network: Path, charter: Charter) -> None:
    for member in charter.members:
        wallet = Wallet(member.name, "default", str(Places(network).wallets))
        assert wallet.hotkey.ss58_address == member.hotkey
        assert wallet.coldkey.ss58_address


def test_the_charter_remembers_the_folder_of_text(charter: Charter, text: Path) -> None:
    assert charter.text == str(text)


def test_nothing_but_the_network_is_left_in_the_folder(network: Path) -> None:
    made = {"buckets", "chain.sqlite", "dataset", "network.json", "run.toml", "wallets"}
    assert set(os.listdir(network)) - {"chain.sqlite-shm", "chain.sqlite-wal"} == made
    assert tomllib.loads((network / "run.toml").read_text())["name"] == "tiny"


# --- what cannot be founded -------------------------------------------------------------------------------


def test_too_little_text_leaves_an_empty_folder(tmp_path: Path, wishes: Wishes) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "one").write_text("a line\n")
    plan = founding.plan(replace(wishes, text=tmp_path / "text"))
    with pytest.raises(TextError, match="add text"):
        found_network(tmp_path / "net", plan)
    assert os.listdir(tmp_path / "net") == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("max_position_embeddings = 64", "max_position_embeddings = 32", "32 positions"),
        ("num_attention_heads = 2", "num_attention_heads = 5", "cannot build"),
        ("hidden_size", "hiden_size", "did you mean hidden_size"),
    ],
)
def test_a_model_that_cannot_be_trained_leaves_an_empty_folder(
    tmp_path: Path, tiny: Path, wishes: Wishes, old: str, new: str, words: str
) -> None:
    path = tmp_path / "own.toml"
    path.write_text(tiny.read_text().replace(old, new))
    plan = founding.plan(replace(wishes, preset=str(path)))
    with pytest.raises(ConfigError, match=words):
        found_network(tmp_path / "net", plan)
    assert os.listdir(tmp_path / "net") == []
