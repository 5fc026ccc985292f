"""A payload: a header that says what it is, then the records, cut into shards (protocol §9).

    magic "WNDR" | version u16 | 0 u16 | window u64 | run digest 32 | hotkey 32 | layout digest 32
    | base root 32 | sync proof 32 | inner steps u64 | tokens u64

All integers are little-endian; the header has 192 bytes. Shard 0 starts with the header. Shards end at the
record boundary at or before `SHARD_BYTES` of records, so every size is known from the run alone.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from protocol.errors import Reason, Rejected
from protocol.identity import public_key
from protocol.run import Run
from protocol.sparseloco.compress import SparseUpdate, decompress
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.plan import plan_of

SHARD_BYTES = 64 * 2**20
SYNC_POSITIONS = 4096

_MAGIC = b"WNDR"
_VERSION = 1
HEADER = struct.Struct("<4sHHQ32s32s32s32s32sQQ")
HEADER_BYTES = HEADER.size


@dataclass(frozen=True, slots=True)
class Header:
    """What a payload says of itself. Digests and roots are 64 hexadecimal digits, `hotkey` is an ss58 address."""

    run_digest: str
    window: int
    hotkey: str
    layout_digest: str
    base_root: str
    sync_proof: str
    inner_steps: int
    tokens: int

    def pack(self) -> bytes:
        """The header's bytes."""
        return HEADER.pack(
            _MAGIC,
            _VERSION,
            0,
            self.window,
            bytes.fromhex(self.run_digest),
            public_key(self.hotkey),
            bytes.fromhex(self.layout_digest),
            bytes.fromhex(self.base_root),
            bytes.fromhex(self.sync_proof),
            self.inner_steps,
            self.tokens,
        )


def shard_sizes(layout: Layout, run: Run, shard_bytes: int = SHARD_BYTES) -> tuple[int, ...]:
    """Plain size of every shard of a payload, in order."""
    sizes, current = [], 0
    for group in plan_of(layout, run.sparseloco).groups:
        left, record = group.count, group.format.size_bytes
        while left:
            fit = (shard_bytes - current) // record
            if fit < 1 and current:
                sizes.append(current)
                current = 0
                continue
            taken = min(left, max(1, fit))
            current += taken * record
            left -= taken
    sizes.append(current)
    sizes[0] += HEADER_BYTES
    return tuple(sizes)


def split(payload: bytes, sizes: tuple[int, ...]) -> list[bytes]:
    """The payload's shards; `sizes` as `shard_sizes` gives them."""
    ends = np.cumsum(sizes).tolist()
    return [payload[end - size : end] for end, size in zip(ends, sizes, strict=True)]


@dataclass(frozen=True, eq=False)
class Payload:
    """A decoded contribution. `digest` covers header and records."""

    header: Header
    update: SparseUpdate
    digest: str

    @cached_property
    def body_digest(self) -> str:
        """Digest of the records alone, by which copies are found; only those who judge need it."""
        return blake3(self.update.records.data).hexdigest()


def read_payload(data: bytes, run: Run, layout: Layout, hotkey: str, window: int) -> Payload:
    """Decode an untrusted payload of `hotkey` for `window`; raises `Rejected`.

    Checked here is what the bytes alone can show; `stale_base` and `bad_sync_proof` need the state.
    """
    if len(data) < HEADER_BYTES:
        raise Rejected(Reason.NOT_CANONICAL, f"{len(data)} bytes are too few for a header")
    fields = HEADER.unpack_from(data)
    (
        magic,
        version,
        reserved,
        window_named,
        run_digest,
        key,
        layout_digest,
        base_root,
        proof,
        steps,
        tokens,
    ) = fields
    if (magic, version, reserved) != (_MAGIC, _VERSION, 0):
        raise Rejected(Reason.NOT_CANONICAL, "not a version 1 payload")
    if run_digest != run.digest_bytes:
        raise Rejected(Reason.WRONG_RUN, "the payload names another run")
    if window_named != window:
        raise Rejected(Reason.WRONG_WINDOW, f"the payload is for window {window_named}")
    if layout_digest.hex() != layout.digest:
        raise Rejected(Reason.WRONG_LAYOUT, "the payload is for another model")
    if key != public_key(hotkey):
        raise Rejected(Reason.BAD_SIGNATURE, "the payload names another hotkey")
    body = memoryview(data)[HEADER_BYTES:]
    header = Header(
        run_digest=run_digest.hex(),
        window=window,
        hotkey=hotkey,
        layout_digest=layout_digest.hex(),
        base_root=base_root.hex(),
        sync_proof=proof.hex(),
        inner_steps=steps,
        tokens=tokens,
    )
    update = decompress(layout, run.sparseloco, body)
    return Payload(header, update, blake3(data).hexdigest())


def sync_proof(theta: npt.NDArray[np.float32], hotkey: str, window_hash: bytes) -> str:
    """Proof that its maker held θ_W (§11): BLAKE3, keyed with the hotkey's public key, over the bytes of θ at
    4096 positions drawn from the hash of the window's first block."""
    draw = np.frombuffer(blake3(window_hash).digest(SYNC_POSITIONS * 8), "<u8")
    chosen = theta[(draw % np.uint64(len(theta))).astype(np.int64)]
    return blake3(chosen.astype("<f4").tobytes(), key=public_key(hotkey)).hexdigest()
