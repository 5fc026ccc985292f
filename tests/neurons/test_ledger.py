"""What one node makes of votes, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bittensor_core import Keypair

from neurons.ledger import Ledger
from protocol.ledger.attestation import Attestation, Step
from protocol.run import Run, preset_table, run_from_table


@pytest.fixture
def run() -> Run:
    table = preset_table("demo")
    table["genesis_root"] = table["dataset"]["index_digest"] = "00" * 32
    return run_from_table(table)


def vote(run: Run, name: str, head: int) -> Attestation:
    key = Keypair.create_from_uri(f"//{name}")
    return Attestation(
        signer=key.ss58_address,
        run_digest=run.digest(),
        window=0,
        round=0,
        step=Step.ATTEST,
        head=f"{head:064x}",
        head_window=0,
    ).signed(key)


def ledger_in(folder: Path, run: Run) -> Ledger:
    unused: Any = None
    return Ledger(run, unused, folder, (), unused, print)


def test_who_votes_many_times_fills_nobodys_memory_and_is_convicted_once(run: Run, tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path, run)
    for head in range(20):
        ledger.count(vote(run, "liar", head))
    assert len(ledger.votes) == 2
    assert len(ledger.evidence) == 1
    ledger.count(vote(run, "honest", 19))
    ledger.count(vote(run, "liar", 19))
    assert len(ledger.votes) == 4, "what somebody else voted for too may make a quorum"
    assert len(ledger.evidence) == 1


def test_evidence_is_there_again_after_a_restart_unless_it_proves_nothing(run: Run, tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path, run)
    for head in range(2):
        ledger.count(vote(run, "liar", head))
    kept = dict(ledger.evidence)
    assert kept
    assert ledger_in(tmp_path, run).evidence == kept
    [file] = (tmp_path / "evidence").iterdir()
    file.write_bytes(file.read_bytes().replace(b'"head":"00', b'"head":"11'))
    assert ledger_in(tmp_path, run).evidence == {}
