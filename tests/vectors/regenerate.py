"""Write the golden files beside this script: python tests/vectors/regenerate.py

Only for a change of the protocol, with its reason in CHANGELOG.md. A golden file that changes means that this version
and the last one no longer agree, and that every run in progress would split.

`yuma.json` is worked out by hand, `dataset.json` and `seal.json` belong to the storage room: none is written here.
sr25519 signatures are randomised, so a signed document that still verifies and says the same is kept as it is.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from bittensor_core import Keypair
from blake3 import blake3

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from protocol.assignment import Assignment, Permutation  # noqa: E402
from protocol.chain.port import Neuron  # noqa: E402
from protocol.errors import DocumentError, Reason  # noqa: E402
from protocol.gauntlet.scorebook import Event, Scorebook, update  # noqa: E402
from protocol.gauntlet.selection import select  # noqa: E402
from protocol.gauntlet.weights import weights_of  # noqa: E402
from protocol.identity import SignedDocument, canonical_json  # noqa: E402
from protocol.ledger.attestation import Attestation, Step  # noqa: E402
from protocol.ledger.ballot import Ballot, Phase, due_block, rounds  # noqa: E402
from protocol.ledger.electorate import ballot_leader, electorate_of  # noqa: E402
from protocol.ledger.manifest import Contribution, Manifest, Refusal, Seat  # noqa: E402
from protocol.ledger.state import leaf_digests, state_root  # noqa: E402
from protocol.run import Run, Time, run_from_table  # noqa: E402
from protocol.sealing import Reveal, Seal, SealedShard  # noqa: E402
from protocol.sparseloco.aggregate import clip_factors, outer_step  # noqa: E402
from protocol.sparseloco.compress import compress, decompress  # noqa: E402
from protocol.sparseloco.kernels.reference import quantise  # noqa: E402
from protocol.sparseloco.layout import Layout  # noqa: E402
from protocol.sparseloco.payload import Header, shard_sizes, sync_proof  # noqa: E402
from protocol.sparseloco.plan import plan_of  # noqa: E402
from protocol.sparseloco.records import LEVELS, RecordFormat, pack  # noqa: E402
from storage.credentials import Credentials, Secret  # noqa: E402
from storage.location import HttpsLocation, LocalLocation, Location, R2Location, S3Location, encode  # noqa: E402
from storage.s3 import S3Endpoint  # noqa: E402

TABLE: dict[str, Any] = {
    "name": "vectors",
    "genesis_root": "00" * 32,
    "time": {"window_blocks": 10},
    "model": {"model_type": "llama", "hidden_size": 8, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    "dataset": {"index_digest": "11" * 32, "sequence_tokens": 16, "page_sequences": 2, "slots": 4},
    "inner": {"steps": 3, "pages_per_step": 2, "learning_rate": 0.003},
    "sparseloco": {"outer_learning_rate": [[0, 1.0], [100, 0.9]]},
    "gauntlet": {"random_pages": 3, "own_pages": 2, "held_out_pages": 1},
}
SHAPES: list[tuple[str, tuple[int, ...]]] = [("embed", (3, 1400)), ("norm", (5,)), ("scale", (1,))]
HASH = bytes(range(32)).hex()
FORMULA = (
    "Element i of a fp32 array with (seed, exponent) is ((((i + 1) * 2654435761 + seed * 40503) mod 2^32) >> 8) "
    "- 2^23, times 2^exponent: exact in fp32"
)


def formula(size: int, seed: int, exponent: int) -> np.ndarray:
    """The array that FORMULA describes, fp32 [size]."""
    mixed = (np.arange(1, size + 1, dtype=np.uint64) * 2654435761 + seed * 40503) % 2**32
    return np.ldexp((mixed >> np.uint64(8)).astype(np.int64) - 2**23, exponent).astype(np.float32)


def key(name: str) -> Keypair:
    return Keypair.create_from_uri(name)


def run_vectors() -> dict[str, Any]:
    run = run_from_table(TABLE)
    return {
        "about": "A run table, its canonical JSON with every default filled in, and the run digest.",
        "table": TABLE,
        "canonical": run.canonical().decode(),
        "digest": run.digest(),
    }


def assignment_vectors(run: Run) -> dict[str, Any]:
    seed = bytes(range(32))
    cases = [
        {"size": size, "outputs": [Permutation(seed, size)(p) for p in positions]}
        | ({} if size <= 10 else {"positions": positions})
        for size, positions in (
            *((n, list(range(n))) for n in (1, 2, 3, 5, 10)),
            (1000, [0, 1, 2, 499, 999]),
            (2**40 + 1, [0, 1, 2**39, 2**40]),
        )
    ]
    judge = blake3(b"judge").hexdigest()
    assignment = Assignment(run, bytes.fromhex(HASH), 101)
    return {
        "about": "permutations: outputs for the positions (all of them in order where none are listed) under one key. "
        "assignment: pages of the run in run.json with 101 assignable pages.",
        "permutation_key": seed.hex(),
        "permutations": cases,
        "assignment": {
            "pages": 101,
            "window_hash": HASH,
            "judge_hash": judge,
            "own": {str(uid): assignment.own(uid) for uid in range(4)},
            "scored_own": {str(uid): assignment.scored_own(uid, bytes.fromhex(judge)) for uid in range(4)},
            "scored_random": assignment.scored_random(bytes.fromhex(judge)),
        },
    }


def level_vectors() -> dict[str, Any]:
    return {
        "about": "The 256 levels. digest is BLAKE3 of the 1024 little-endian fp32 bytes; entries are code: fp32 bits.",
        "digest": blake3(LEVELS.astype("<f4").tobytes()).hexdigest(),
        "entries": {str(c): f"{int(LEVELS.view(np.uint32)[c]):08x}" for c in (0, 1, 7, 8, 9, 100, 216, 247, 248, 255)},
    }


def record_vectors() -> dict[str, Any]:
    cases = []
    for length, sent, bits, positions, values in (
        (16, 1024, 2, [0, 5, 10, 15], [2.0**-22, -(2.0**-22), 2.0**-21, 2.0**-21]),
        (16, 1024, 2, [1, 2, 3, 4], [0.0, 0.0, 0.0, 0.0]),
        (16, 1024, 2, [12, 13, 14, 15], [-1.25, 1.25, -1.25, -1.25]),
        (16, 1024, 1, [0, 1, 8, 9], [0.5, -0.5, 0.5, -0.5]),
        (16, 1024, 32, [3, 4, 5, 6], [0.1, -0.0, 1e-45, 3e38]),
        (1, 64, 2, [0], [-30.0]),
        (5, 64, 1, [4], [1.125]),
        (104, 64, 2, [50, 103], [-0.25, 1.0]),
        (8, 4096, 1, list(range(8)), [2.0, -2.0] * 4),
    ):
        fmt = RecordFormat.of_chunk(length, sent, bits)
        codes = quantise(np.array([values], np.float32), bits)
        assert codes.values().tobytes() == np.array(values, np.float32).tobytes()
        case = {"length": length, "run_k": sent, "value_bits": bits, "positions": positions}
        case["values"] = [f"{int(word):08x}" for word in np.array(values, np.float32).view(np.uint32)]
        cases.append(case | {"record": pack(fmt, np.array([positions]), codes).tobytes().hex()})
    good = cases[0]["record"]
    refused = [
        {"why": why, "record": good[: 2 * at] + new + good[2 * at + 2 :], "reason": reason}
        for at, new, reason, why in (
            (0, "54", Reason.NOT_CANONICAL, "three ones in the upper map"),
            (0, "57", Reason.NOT_CANONICAL, "five ones in the upper map"),
            (0, "95", Reason.NOT_CANONICAL, "a position beyond the chunk"),
            (2, "12", Reason.NOT_CANONICAL, "padding after the signs"),
            (3, "0f", Reason.BAD_LEVEL, "the lower level is not used"),
            (3, "00", Reason.BAD_LEVEL, "the upper level is not used"),
            (4, "30", Reason.BAD_LEVEL, "equal levels with level bits"),
            (4, "31", Reason.BAD_LEVEL, "the lower level exceeds the upper one"),
            (4, "00", Reason.BAD_LEVEL, "a zero with a sign"),
        )
    ]
    refused.append({"why": "equal positions", "record": "0fe500082830", "reason": Reason.NOT_CANONICAL})
    return {
        "about": "One record a case: `length` elements in a run that sends `run_k` of 4096; values are fp32 bits. "
        "refused: records of length 16, run_k 1024, 2 bits.",
        "cases": cases,
        "refused": refused,
    }


def payload_vectors(run: Run, layout: Layout) -> dict[str, Any]:
    theta, hotkey = formula(layout.size, 1, -24), key("//Alice").ss58_address
    error = np.zeros(layout.size, np.float32)
    body = compress(layout, run.sparseloco, error, formula(layout.size, 2, -30))
    header = Header(
        run_digest=run.digest(),
        window=7,
        hotkey=hotkey,
        layout_digest=layout.digest,
        base_root=state_root(theta),
        sync_proof=sync_proof(theta, hotkey, bytes.fromhex(HASH)),
        inner_steps=3,
        tokens=192,
    )
    payload = header.pack() + body
    drawn = np.frombuffer(blake3(bytes.fromhex(HASH)).digest(64), "<u8") % np.uint64(layout.size)
    return {
        "about": "A whole payload of the run in run.json. " + FORMULA + ". payload: 192 bytes of header, then records. "
        "The encoder's choices (two-level fit) are those of the reference; a decoder needs only `payload`.",
        "shapes": SHAPES,
        "layout_digest": layout.digest,
        "record_bytes": [
            [g.count, g.format.length, g.format.k, g.format.size_bytes] for g in plan_of(layout, run.sparseloco).groups
        ],
        "shard_sizes": shard_sizes(layout, run),
        "theta": {"seed": 1, "exponent": -24},
        "delta": {"seed": 2, "exponent": -30},
        "window": 7,
        "window_hash": HASH,
        "hotkey": hotkey,
        "inner_steps": 3,
        "tokens": 192,
        "sync_positions_first": drawn.tolist(),
        "sync_proof": header.sync_proof,
        "payload": payload.hex(),
        "digest": blake3(payload).hexdigest(),
        "body_digest": blake3(body).hexdigest(),
        "error_digest": blake3(error.astype("<f4").tobytes()).hexdigest(),
    }


def outer_vectors() -> dict[str, Any]:
    layout = Layout.from_shapes([("a", (20,)), ("b", (3,))])
    cases = []
    for average, bits, alpha in (("all", 2, 1.0), ("contributors", 2, 1.0), ("all", 32, 0.9), ("contributors", 1, 0.9)):
        table = TABLE | {
            "sparseloco": {"k": 1024, "value_bits": bits, "average": average, "outer_learning_rate": [[0, alpha]]}
        }
        scheme = run_from_table(table).sparseloco
        bodies = [
            compress(layout, scheme, np.zeros(23, np.float32), formula(23, seed, exponent))
            for seed, exponent in ((1, -30), (2, -30), (3, -26))
        ]
        updates = [decompress(layout, scheme, body) for body in bodies]
        theta = formula(23, 9, -24)
        outer_step(theta, updates, scheme, 0)
        cases.append(
            {
                "sparseloco": table["sparseloco"],
                "bodies": [body.hex() for body in bodies],
                "norms": [[norm.hex() for norm in update.norms] for update in updates],
                "clip_factors": [f.astype("<f4").tobytes().hex() for f in clip_factors(updates)],
                "result": theta.astype("<f4").tobytes().hex(),
            }
        )
    return {
        "about": "theta less the outer step of three peers in this order. "
        + FORMULA
        + ". norms are binary64 in C99 hex, "
        "one a parameter; clip_factors and result are little-endian fp32.",
        "shapes": [["a", [20]], ["b", [3]]],
        "theta": {"seed": 9, "exponent": -24},
        "cases": cases,
    }


def state_vectors() -> dict[str, Any]:
    cases = []
    for size in (1, 4206, 2**22, 2**22 + 1, 10_000_000):
        theta = formula(size, 5, -20)
        leaves = [leaf.hex() for leaf in leaf_digests(theta)]
        cases.append({"size": size, "seed": 5, "exponent": -20, "leaves": leaves, "root": state_root(theta)})
    return {"about": "State roots. " + FORMULA + ".", "cases": cases}


def document_vectors(run: Run, layout: Layout) -> dict[str, Any]:
    alice, bob = key("//Alice"), key("//Bob")
    shard = SealedShard(size_bytes=308, digest="dd" * 32)
    secret = bytes(range(32))
    seal = Seal(
        signer=alice.ss58_address,
        run_digest=run.digest(),
        window=7,
        layout_digest=layout.digest,
        base_root="cc" * 32,
        shards=(shard,),
        payload_digest="ee" * 32,
        key_digest=blake3(secret).hexdigest(),
    )
    manifest = Manifest(
        signer=bob.ss58_address,
        run_digest=run.digest(),
        window=7,
        previous="77" * 32,
        root="cc" * 32,
        alpha=run.sparseloco.alpha(7),
        contributions=(
            Contribution(
                uid=2,
                hotkey=alice.ss58_address,
                payload_digest="ee" * 32,
                key=secret.hex(),
                shards=(shard,),
                location="00616c696365",
            ),
        ),
        rejected=(Refusal(uid=3, hotkey=bob.ss58_address, reason=Reason.NO_REVEAL, detail="θ is late"),),
        gather=(Seat(uid=2, hotkey=alice.ss58_address),),
        reserve=(),
    )
    attestation = Attestation(
        signer=bob.ss58_address,
        run_digest=run.digest(),
        window=8,
        round=0,
        step=Step.ATTEST,
        head=manifest.digest(),
        head_window=7,
    )
    return {
        "about": "published is the text in the bucket; digest is BLAKE3 of its canonical form without the signature, "
        "and what the signature covers. canonical: values and their one form.",
        "canonical": [
            {"value": value, "text": canonical_json(value).decode()}
            for value in (
                *(0.0, -0.0, 1.0, 0.1, 1e-4, 1e-5, 1e15, 1e16, 1e22, 123456789.125, 5e-324, 1.7976931348623157e308),
                *(0, -1, 2**64, None, True, 'θ\n"\\/\u007f\u001f', [1, [2.5]], {"b": 1, "a": {"é": 2, "z": 3}}),
            )
        ],
        "seal": signed(seal, alice, "seal"),
        "reveal": {"published": Reveal(window=7, key=secret.hex()).canonical().decode(), "opens": "seal"},
        "manifest": signed(manifest, bob, "manifest"),
        "attestation": signed(attestation, bob, "attestation"),
    }


def signed(document: SignedDocument, signer: Keypair, name: str) -> dict[str, Any]:
    """The published text and digest of a document; its old signature if that still holds."""
    fresh = document.signed(signer)
    path = HERE / "documents.json"
    written = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if name in written:
        with suppress(DocumentError):  # of another format
            old = type(document).parse(written[name]["published"].encode())
            fresh = old if old.digest() == fresh.digest() else fresh
    return {"published": fresh.canonical().decode(), "digest": fresh.digest()}


def ballot_vectors(run: Run) -> dict[str, Any]:
    def blocks(time: Time) -> dict[str, Any]:
        span, count = rounds(time)
        ballots = [Ballot(window, number) for window in (0, span) for number in range(count)]
        named = {f"{b.window}.{b.round}": [due_block(b, phase, time) for phase in Phase] for b in ballots}
        return {"time": time.model_dump(mode="json"), "windows": span, "rounds": count, "blocks": named}

    stakes = [
        (0, 10.0, True),
        (1, 2.5, True),
        (2, 99.0, False),
        (3, 1.000000001, True),
        (4, 10.0, True),
        (5, 0.0, True),
    ]
    neurons = [Neuron(u, key(f"//peer-{u}").ss58_address, "", s, p, 0.0, 0.0, 0.0, 0, 0) for u, s, p in stakes]
    electorate = electorate_of(neurons)
    return {
        "about": "times: blocks of the four steps (lock, nominate, attest, confirm) of ballots, by window.round. "
        "neurons: uid, hotkey, stake, permit. members: those that count, with their stake in rao. leaders: of rounds 0 "
        "to 7 of a window with this judge hash, as places among the members.",
        "times": [blocks(run.time), blocks(Time(window_blocks=56)), blocks(Time(window_blocks=12, failover_blocks=1))],
        "neurons": [[n.uid, n.hotkey, n.stake, n.validator_permit] for n in neurons],
        "members": electorate.members,
        "judge_hash": HASH,
        "leaders": [
            [name for name, _ in electorate.members].index(
                ballot_leader(electorate, run, bytes.fromhex(HASH), Ballot(0, number))
            )
            for number in range(8)
        ],
    }


def scorebook_vectors(run: Run) -> dict[str, Any]:
    hotkeys = [key(f"//peer-{i}").ss58_address for i in range(5)]

    def judged(uid: int, rank: int, gain: float, work: float | None = None, error: float = 0.002) -> Event:
        values = {"gain": gain, "gain_error": error, "places": (rank, 0), "measured": True, "unique_work": work}
        return Event(uid=uid, hotkey=hotkeys[uid], reason=None, unique_work_error=0.3, **values)

    def failed(uid: int, reason: Reason, steps: int = 0) -> Event:
        return Event(uid=uid, hotkey=hotkeys[uid], reason=reason, steps_behind=steps)

    windows = [
        [judged(0, 0, 0.02, 0.9), judged(1, 0, 0.019, 0.8), judged(2, 2, -0.01, -0.5), failed(3, Reason.DUPLICATE)],
        [judged(0, 0, 0.02, 0.7), judged(1, 1, 0.01, 0.9), judged(2, 2, 0.001, 0.1), failed(3, Reason.NO_REVEAL)],
        [judged(1, 0, 0.03, 0.9), judged(0, 1, 0.02, 0.9), failed(2, Reason.STALE_BASE, 1), failed(3, Reason.NO_SEAL)],
        [judged(0, 0, 0.02, 0.8), judged(1, 1, 0.01, 0.6), failed(4, Reason.BAD_LEVEL)],
        [judged(0, 0, 0.02, 0.8), judged(1, 0, 0.02, 0.6), judged(2, 2, 0.01, 0.9), judged(4, 3, 0.001, 0.9)],
    ]
    book, books = Scorebook(run_digest=run.digest(), window=0), []
    for number, events in enumerate(windows):
        book = update(book, number, events, run)
        gather, reserve = select(book, run)
        books.append(
            {
                "events": [e.model_dump(mode="json") for e in events],
                "peers": [r.model_dump(mode="json") | {"final": r.final(run)} for r in book.peers],
                "gather": gather,
                "reserve": reserve,
                "weights": weights_of(book, gather, reserve, run),
            }
        )
    return {
        "about": "A scorebook of the run in run.json, window by window from an empty one. Ratings go through exp and "
        "pow: compare floats to 12 digits.",
        "windows": books,
    }


def location_vectors() -> dict[str, Any]:
    account, aws_keys = "00112233445566778899aabbccddeeff", ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG+EXAMPLE")
    r2_keys = ("ffeeddccbbaa99887766554433221100", "0123456789abcdef" * 4)

    def r2(bucket: str) -> tuple[Location, dict[str, Any]]:
        fields = {"account": account, "bucket": bucket, "key_id": r2_keys[0], "secret": r2_keys[1]}
        return R2Location(account, bucket, Credentials(r2_keys[0], Secret(r2_keys[1]))), fields

    def s3(url: str, region: str, bucket: str, prefix: str, path_style: bool) -> tuple[Location, dict[str, Any]]:
        fields = {"url": url, "region": region, "bucket": bucket, "prefix": prefix, "path_style": path_style}
        keys = Credentials(aws_keys[0], Secret(aws_keys[1]))
        return S3Location(S3Endpoint(**fields), keys), fields | {"key_id": aws_keys[0], "secret": aws_keys[1]}

    aws, example = "https://s3.eu-central-1.amazonaws.com", "https://s3.example.com"
    shown: dict[str, tuple[Location, dict[str, Any]]] = {
        "local": (LocalLocation("miner-3"), {"name": "miner-3"}),
        "https": (HttpsLocation(f"{example}/a/b"), {"url": f"{example}/a/b"}),
        "https, a port and no path": (HttpsLocation(f"{example}:8443"), {"url": f"{example}:8443"}),
        "R2": r2("bucket"),
        "R2, the bucket is called like the account": r2(account),
        "S3, the host follows from the region": s3(aws, "eu-central-1", "bucket", "", False),
        "S3, path style, a prefix": s3(f"{example}:9000", "us-east-1", "bucket", "a/b", True),
        "S3, plain http": s3("http://[::1]:9000", "us-east-1", "bucket", "", True),
    }
    one = encode(shown["S3, path style, a prefix"][0])
    refused = {
        "empty": b"",
        "a kind nobody knows": b"\x04",
        "a local name that is a path": b"\0../etc",
        "not https": b"\1ftp://example.com",
        "the usual port named": b"\1https://example.com:443",
        "a slash at the end": b"\1https://example.com/",
        "a user": b"\1https://user@example.com",
        "a zero before the number": one[:2] + b"\0" + one[2:],
        "a flag nobody knows": b"\3\6" + one[2:],
        "too few fields": one[:-10],
        "a host that follows from the region": bytes.fromhex(
            "0300012a4ee62d743208cdeba3b6dbbe8503d7325e939bac6a0ea4805513cb3982a68fd1b5b2f350ee1673bda1bbfc45e09a"
        ),
        "an R2 bucket's name that should be left out": encode(r2(account)[0]) + account.encode(),
        "R2, too short": encode(r2(account)[0])[:-1],
        "too long": encode(r2("b" * 63)[0]) + b"b",
    }
    return {
        "about": "Locations and their commitments in hexadecimal, and commitments that are refused.",
        "locations": [
            {"about": about, "location": fields, "commitment": encode(location).hex()}
            for about, (location, fields) in shown.items()
        ],
        "refused": [{"why": why, "commitment": commitment.hex()} for why, commitment in refused.items()],
    }


def build() -> dict[str, dict[str, Any]]:
    """All golden files by name, as they should be."""
    run, layout = run_from_table(TABLE), Layout.from_shapes(SHAPES)
    return {
        "run": run_vectors(),
        "assignment": assignment_vectors(run),
        "levels": level_vectors(),
        "records": record_vectors(),
        "payload": payload_vectors(run, layout),
        "outer_step": outer_vectors(),
        "state": state_vectors(),
        "documents": document_vectors(run, layout),
        "ballots": ballot_vectors(run),
        "scorebook": scorebook_vectors(run),
        "locations": location_vectors(),
    }


def lines(value: Any, indent: str = "") -> str:
    """JSON with one line for each list or table that fits one."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(flat) <= 118 or not isinstance(value, (dict, list, tuple)) or not value:
        return flat
    inner = indent + "  "
    if isinstance(value, dict):
        parts = [f"{inner}{json.dumps(str(k))}: {lines(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + lines(v, inner) for v in value) + f"\n{indent}]"


def main() -> None:
    """Write every golden file."""
    for name, content in build().items():
        (HERE / f"{name}.json").write_text(lines(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
