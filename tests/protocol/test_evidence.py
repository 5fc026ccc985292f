"""Evidence: what proves that a validator broke the rule, and what does not."""

from __future__ import annotations

from typing import Any

import pytest
from bittensor_core import Keypair

from protocol.errors import DocumentError, LedgerError
from protocol.ledger.attestation import Attestation, Step
from protocol.ledger.evidence import Evidence, check_evidence
from protocol.ledger.manifest import Manifest
from protocol.run import Run

KEY, OTHER = Keypair.create_from_uri("//v"), Keypair.create_from_uri("//w")


def vote(run: Run, head: str, key: Keypair = KEY, **changes: Any) -> Attestation:
    fields = {"run_digest": run.digest(), "window": 3, "round": 0, "step": Step.ATTEST, "head_window": 3} | changes
    return Attestation(signer=key.ss58_address, head=head * 32, **fields).signed(key)


def manifest(run: Run, previous: str, alpha: float) -> Manifest:
    return Manifest(
        signer=KEY.ss58_address,
        run_digest=run.digest(),
        window=3,
        previous=previous * 32,
        root="ab" * 32,
        alpha=alpha,
        contributions=(),
        rejected=(),
        gather=(),
        reserve=(),
    ).signed(KEY)


def test_two_heads_or_two_manifests_of_one_key_prove_it_and_say_so(run: Run) -> None:
    votes = Evidence(votes=(vote(run, "aa"), vote(run, "bb")))
    manifests = Evidence(manifests=(manifest(run, "00", 1.0), manifest(run, "00", 0.5)))
    for evidence, kind in ((votes, "votes"), (manifests, "manifests")):
        check_evidence(Evidence.parse(evidence.canonical()), run)
        assert (evidence.signer, evidence.window, evidence.kind) == (KEY.ss58_address, 3, kind)
    assert "signed attest twice in ballot 3.0" in votes.sentence()
    assert "signed two manifests of window 3" in manifests.sentence()


def test_what_proves_nothing_is_refused(run: Run) -> None:
    other = run.model_copy(update={"name": "other"})
    twice = vote(run, "aa"), vote(run, "bb")
    for evidence in (
        Evidence(votes=(vote(run, "aa"), vote(run, "aa"))),
        Evidence(votes=(vote(run, "aa"), vote(run, "bb", OTHER))),
        Evidence(votes=(vote(run, "aa"), vote(run, "bb", round=1))),
        Evidence(manifests=(manifest(run, "00", 1.0), manifest(run, "11", 0.5))),
        Evidence(votes=(vote(other, "aa"), vote(other, "bb"))),
    ):
        with pytest.raises(LedgerError):
            check_evidence(evidence, run)
    forged = twice[1].model_copy(update={"head": "cc" * 32})
    for evidence in (Evidence(), Evidence(votes=twice[:1]), Evidence(votes=(twice[0], forged))):
        with pytest.raises(DocumentError):
            check_evidence(evidence, run)
