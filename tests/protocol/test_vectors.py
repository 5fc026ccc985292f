"""The golden files: what this version computes is what was published, byte for byte.

A test that fails here says that the protocol has changed. That splits every run in progress, so it is never repaired by
writing the files anew without a decision: see tests/vectors/regenerate.py.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from protocol.assignment import Assignment, Permutation
from protocol.chain.port import Neuron
from protocol.errors import DocumentError, Rejected
from protocol.gauntlet.scorebook import Event, Scorebook, update
from protocol.gauntlet.selection import select
from protocol.gauntlet.weights import weights_of
from protocol.identity import SignedDocument, canonical_json
from protocol.ledger.attestation import Attestation
from protocol.ledger.ballot import Ballot, Phase, due_block, rounds
from protocol.ledger.electorate import ballot_leader, electorate_of
from protocol.ledger.manifest import Manifest
from protocol.ledger.state import leaf_digests, state_root
from protocol.run import Run, Time, run_from_table
from protocol.sealing import Reveal, Seal
from protocol.sparseloco.aggregate import clip_factors, outer_step
from protocol.sparseloco.compress import compress, decompress
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.payload import read_payload, shard_sizes, sync_proof
from protocol.sparseloco.plan import plan_of
from protocol.sparseloco.records import LEVELS, RecordFormat, pack, unpack

FOLDER = Path(__file__).parents[1] / "vectors"


def load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def array(size: int, seed: int, exponent: int) -> np.ndarray:
    """The formula of the golden files, in Python's integers."""
    numbers = [((((i + 1) * 2654435761 + seed * 40503) % 2**32) >> 8) - 2**23 for i in range(size)]
    return np.array([n * 2.0**exponent for n in numbers], np.float32)


def layout_of(shapes: list[tuple[str, list[int]]]) -> Layout:
    return Layout.from_shapes([(name, tuple(shape)) for name, shape in shapes])


@pytest.fixture(scope="module")
def vector_run() -> Run:
    return run_from_table(load("run")["table"])


def test_the_run_digest_is_that_of_the_canonical_form(vector_run: Run) -> None:
    vectors = load("run")
    assert vector_run.canonical().decode() == vectors["canonical"]
    assert vector_run.digest() == blake3(vectors["canonical"].encode()).hexdigest() == vectors["digest"]


@pytest.mark.parametrize("case", load("assignment")["permutations"], ids=lambda case: str(case["size"]))
def test_a_permutation_gives_these_numbers(case: dict[str, Any]) -> None:
    permutation = Permutation(bytes.fromhex(load("assignment")["permutation_key"]), case["size"])
    positions = case.get("positions", range(case["size"]))
    assert [permutation(position) for position in positions] == case["outputs"]


def test_pages_are_assigned_and_drawn_like_this(vector_run: Run) -> None:
    vectors = load("assignment")["assignment"]
    judge = bytes.fromhex(vectors["judge_hash"])
    assignment = Assignment(vector_run, bytes.fromhex(vectors["window_hash"]), vectors["pages"])
    assert {uid: list(assignment.own(int(uid))) for uid in vectors["own"]} == vectors["own"]
    assert {uid: list(assignment.scored_own(int(uid), judge)) for uid in vectors["own"]} == vectors["scored_own"]
    assert list(assignment.scored_random(judge)) == vectors["scored_random"]


def test_the_level_table_has_these_bits() -> None:
    vectors = load("levels")
    assert blake3(LEVELS.astype("<f4").tobytes()).hexdigest() == vectors["digest"]
    bits = LEVELS.view(np.uint32)
    assert {code: f"{int(bits[int(code)]):08x}" for code in vectors["entries"]} == vectors["entries"]


@pytest.mark.parametrize("case", load("records")["cases"], ids=lambda case: case["record"])
def test_a_record_is_read_and_written_like_this(case: dict[str, Any]) -> None:
    fmt = RecordFormat.of_chunk(case["length"], case["run_k"], case["value_bits"])
    positions, codes = unpack(fmt, np.frombuffer(bytes.fromhex(case["record"]), np.uint8).reshape(1, -1))
    assert positions[0].tolist() == case["positions"]
    assert [f"{int(word):08x}" for word in codes.values()[0].view(np.uint32)] == case["values"]
    assert pack(fmt, positions, codes).tobytes().hex() == case["record"]


@pytest.mark.parametrize("case", load("records")["refused"], ids=lambda case: case["why"])
def test_a_record_is_refused_for_this_reason(case: dict[str, Any]) -> None:
    record = np.frombuffer(bytes.fromhex(case["record"]), np.uint8).reshape(1, -1)
    with pytest.raises(Rejected) as caught:
        unpack(RecordFormat.of_chunk(16, 1024, 2), record)
    assert caught.value.reason == case["reason"]


def test_a_whole_payload_is_read_and_written_like_this(vector_run: Run) -> None:
    v = load("payload")
    layout = layout_of(v["shapes"])
    assert layout.digest == v["layout_digest"]
    groups = plan_of(layout, vector_run.sparseloco).groups
    found = [[g.count, g.format.length, g.format.k, g.format.size_bytes] for g in groups]
    assert found == v["record_bytes"]
    assert list(shard_sizes(layout, vector_run)) == v["shard_sizes"]
    data = bytes.fromhex(v["payload"])
    payload = read_payload(data, vector_run, layout, v["hotkey"], v["window"])
    assert (payload.digest, payload.body_digest) == (v["digest"], v["body_digest"])
    assert (payload.header.inner_steps, payload.header.tokens) == (v["inner_steps"], v["tokens"])
    theta = array(layout.size, **v["theta"])
    assert payload.header.base_root == state_root(theta)
    assert payload.header.sync_proof == v["sync_proof"]
    assert sync_proof(theta, v["hotkey"], bytes.fromhex(v["window_hash"])) == v["sync_proof"]
    error = np.zeros(layout.size, np.float32)
    body = compress(layout, vector_run.sparseloco, error, array(layout.size, **v["delta"]))
    assert payload.header.pack() + body == data
    assert blake3(error.astype("<f4").tobytes()).hexdigest() == v["error_digest"]


def test_sync_positions_are_drawn_like_this() -> None:
    v = load("payload")
    drawn = blake3(bytes.fromhex(v["window_hash"])).digest(64)
    size = layout_of(v["shapes"]).size
    places = [int.from_bytes(drawn[i : i + 8], "little") % size for i in range(0, 64, 8)]
    assert places == v["sync_positions_first"]


@pytest.mark.parametrize("number", range(len(load("outer_step")["cases"])))
def test_an_outer_step_gives_these_bits(number: int) -> None:
    vectors = load("outer_step")
    case, layout = vectors["cases"][number], layout_of(vectors["shapes"])
    scheme = run_from_table(load("run")["table"] | {"sparseloco": case["sparseloco"]}).sparseloco
    updates = [decompress(layout, scheme, bytes.fromhex(body)) for body in case["bodies"]]
    assert [[norm.hex() for norm in update.norms] for update in updates] == case["norms"]
    assert [f.astype("<f4").tobytes().hex() for f in clip_factors(updates)] == case["clip_factors"]
    theta = array(layout.size, **vectors["theta"])
    outer_step(theta, updates, scheme, 0)
    assert theta.astype("<f4").tobytes().hex() == case["result"]


@pytest.mark.parametrize("case", load("state")["cases"][:2], ids=lambda case: str(case["size"]))
def test_a_small_state_has_this_root(case: dict[str, Any]) -> None:
    theta = array(case["size"], case["seed"], case["exponent"])
    assert [leaf.hex() for leaf in leaf_digests(theta)] == case["leaves"]
    assert state_root(theta) == case["root"]


@pytest.mark.parametrize("case", load("state")["cases"][2:], ids=lambda case: str(case["size"]))
def test_a_state_of_several_leaves_has_this_root(case: dict[str, Any]) -> None:
    """The same formula in NumPy, for ten million elements."""
    mixed = np.arange(1, case["size"] + 1, dtype=np.uint64) * np.uint64(2654435761)
    numbers = ((mixed + np.uint64(case["seed"] * 40503)) % np.uint64(2**32) >> np.uint64(8)).astype(np.int64) - 2**23
    theta = np.ldexp(numbers, case["exponent"]).astype(np.float32)
    assert theta[:100].tobytes() == array(100, case["seed"], case["exponent"]).tobytes()
    assert [leaf.hex() for leaf in leaf_digests(theta)] == case["leaves"]
    assert state_root(theta) == case["root"]


@pytest.mark.parametrize("case", load("documents")["canonical"], ids=lambda case: case["text"])
def test_a_value_has_this_canonical_form(case: dict[str, Any]) -> None:
    assert canonical_json(case["value"]).decode() == case["text"]


@pytest.mark.parametrize(("name", "kind"), [("seal", Seal), ("manifest", Manifest), ("attestation", Attestation)])
def test_a_signed_document_verifies_and_has_this_digest(name: str, kind: type[SignedDocument]) -> None:
    vectors = load("documents")[name]
    document = kind.parse(vectors["published"].encode())
    document.verify()
    assert document.digest() == vectors["digest"]
    assert document.canonical().decode() == vectors["published"]
    with pytest.raises(DocumentError, match="does not verify"):
        document.model_copy(update={"run_digest": "00" * 32}).verify()


def test_the_reveal_opens_the_seal() -> None:
    vectors = load("documents")
    reveal = Reveal.parse(vectors["reveal"]["published"].encode())
    assert reveal.opens(Seal.parse(vectors["seal"]["published"].encode()))


@pytest.mark.parametrize("case", load("ballots")["times"], ids=lambda case: f"B={case['time']['window_blocks']}")
def test_a_ballot_has_these_blocks(case: dict[str, Any]) -> None:
    time = Time(**case["time"])
    assert rounds(time) == (case["windows"], case["rounds"])
    for name, blocks in case["blocks"].items():
        window, number = map(int, name.split("."))
        assert [due_block(Ballot(window, number), phase, time) for phase in Phase] == blocks


def test_these_members_lead_these_ballots(vector_run: Run) -> None:
    vectors = load("ballots")
    neurons = [
        Neuron(u, hotkey, "", stake, permit, 0.0, 0.0, 0.0, 0, 0) for u, hotkey, stake, permit in vectors["neurons"]
    ]
    electorate = electorate_of(neurons)
    assert [list(member) for member in electorate.members] == vectors["members"]
    for number, place in enumerate(vectors["leaders"]):
        judge_hash = bytes.fromhex(vectors["judge_hash"])
        assert ballot_leader(electorate, vector_run, judge_hash, Ballot(0, number)) == vectors["members"][place][0]


def test_a_scorebook_comes_out_like_this(vector_run: Run) -> None:
    book = Scorebook(run_digest=vector_run.digest(), window=0)
    for number, window in enumerate(load("scorebook")["windows"]):
        events = [Event.parse(json.dumps(event).encode()) for event in window["events"]]
        book = update(book, number, events, vector_run)
        assert len(book.peers) == len(window["peers"])
        for record, expected in zip(book.peers, window["peers"], strict=True):
            found = record.model_dump(mode="json") | {"final": record.final(vector_run)}
            assert found.keys() == expected.keys()
            assert {k: pytest.approx(v, rel=1e-12) if isinstance(v, float) else v for k, v in expected.items()} == found
        gather, reserve = select(book, vector_run)
        assert [list(gather), list(reserve)] == [window["gather"], window["reserve"]]
        shares = {str(uid): share for uid, share in weights_of(book, gather, reserve, vector_run).items()}
        assert shares == pytest.approx(window["weights"], rel=1e-12)


def test_the_script_that_wrote_the_files_would_write_them_again() -> None:
    script = runpy.run_path(str(FOLDER / "regenerate.py"))
    for name, content in script["build"]().items():
        again = json.loads(script["lines"](content))
        if name == "scorebook":
            assert len(again["windows"]) == len(load(name)["windows"])
        else:
            assert again == load(name), name
