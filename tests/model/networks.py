"""The networks that are searched: in every test run, in `make model`, and those in which a promise must break."""

from __future__ import annotations

from tests.model import rules
from tests.model.search import Network, Rule, fork

# Just under half of the stake is faulty. One faulty validator is the worst case of several with the same stake.
TWO, TWO_FAULTY = {"A": 30, "B": 30}, {"F": 40}
THREE, THREE_FAULTY = {"A": 20, "B": 20, "C": 15}, {"F": 45}
FOUR, FOUR_FAULTY = {"A": 15, "B": 14, "C": 13, "D": 11}, {"F": 47}
EQUAL = {"A": 1, "B": 1, "C": 1}
MOVED = {1: {"A": 10, "B": 10, "C": 40, "F": 40}}

QUICK = {
    "two honest, three ballots": Network(TWO, TWO_FAULTY, 3),
    "three honest, three ballots": Network(THREE, THREE_FAULTY, 3),
    "four honest, two ballots": Network(FOUR, FOUR_FAULTY, 2),
    "two faulty that share the stake": Network(TWO, {"F": 20, "G": 20}, 2),
    "three rival manifests": Network(THREE, THREE_FAULTY, 2, tree=fork(1, width=3)),
    "two windows": Network(TWO, TWO_FAULTY, 3, tree=fork(2)),
    "honest validators sleep": Network(TWO, TWO_FAULTY, 2, sleepy=True),
    "three of which any may sleep": Network(THREE, THREE_FAULTY, 2, sleepy=True),
    "nobody is faulty and nothing is in time": Network(EQUAL, {}, 2, late=True),
    "four, nobody is faulty and nothing is in time": Network(EQUAL | {"D": 1}, {}, 2, late=True),
}
LONG = {
    "two honest, five ballots": Network(TWO, TWO_FAULTY, 5),
    "three honest, four ballots": Network(THREE, THREE_FAULTY, 4),
    "four honest, three ballots": Network(FOUR, FOUR_FAULTY, 3),
    "two faulty that share the stake, three ballots": Network(TWO, {"F": 20, "G": 20}, 3),
    "three honest, two faulty that share the stake": Network(THREE, {"F": 25, "G": 20}, 3),
    "two windows, four ballots": Network(TWO, TWO_FAULTY, 4, tree=fork(2)),
    "three honest, two windows": Network(THREE, THREE_FAULTY, 3, tree=fork(2)),
    "stake moves between windows": Network(THREE, THREE_FAULTY, 3, tree=fork(2), moved=MOVED),
    "three windows": Network(TWO, TWO_FAULTY, 5, tree=fork(3), leaders=("F", "A", "F", "F", "B")),
    "two that sleep, three ballots": Network(TWO, TWO_FAULTY, 3, sleepy=True),
    "nothing is in time, three ballots": Network(EQUAL, {}, 3, late=True),
    "large certificates in a network that is late": Network(
        {"A": 30, "B": 25, "C": 20}, {"F": 25}, 2, late=True, strong=True
    ),
}
BROKEN: dict[str, tuple[Network, Rule]] = {
    "no quorum, only most of what was seen": (Network(TWO, TWO_FAULTY, 1), rules.Plurality()),
    "exactly half is a quorum": (Network(EQUAL | {"D": 1}, {}, 2, late=True), rules.HalfIsEnough()),
    "final as soon as more than half has attested": (Network(TWO, TWO_FAULTY, 1), rules.AttestedIsFinal()),
    "two attestations in one ballot": (Network(TWO, TWO_FAULTY, 2), rules.TwoAttestations()),
    "an attestation after its block": (Network(TWO, TWO_FAULTY, 2), rules.LateAttestation()),
    "confirming in spite of a second nomination": (Network(TWO, TWO_FAULTY, 1), rules.BlindToTwins()),
    "no locks": (Network(TWO, TWO_FAULTY, 2), rules.NoLocks()),
    "a lock on nothing but what one has confirmed": (Network(TWO, TWO_FAULTY, 2), rules.LocksOnlyWhatItConfirms()),
    "publishing one's own votes only": (Network(TWO, TWO_FAULTY, 2), rules.NoRelay()),
    "voting after sleeping through the locks": (Network(TWO, TWO_FAULTY, 2, sleepy=True), rules.SleepWalker()),
    "a lock lost over a restart": (Network(EQUAL, {}, 2, late=True), rules.Forgetful()),
    # Where the promise ends: none of these is a fault of the rule.
    "half of the stake is faulty": (Network({"A": 25, "B": 25}, {"F": 50}, 1), Rule()),
    "more than half of the stake is faulty": (Network({"A": 25, "B": 24}, {"F": 51}, 1), Rule()),
    "a faulty validator in a network that is late": (Network(TWO, TWO_FAULTY, 2, late=True), Rule()),
}
