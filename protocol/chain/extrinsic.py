"""Signed calls of the local chain: what they hold, how they are signed, and how they are verified.

An extrinsic is a call (its name and its arguments as canonical JSON) with the ss58 address of its signer, a
nonce that counts the signer's extrinsics, and an sr25519 signature over all of that and the chain's seed. The
seed ties it to one chain, the nonce to one place in the signer's history.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from bittensor_core import Keypair
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import BadExtrinsic

RAO_PER_TAO = 1_000_000_000
SUPPLY_LIMIT_TAO = 21_000_000
"""No amount may be larger: the cap of TAO itself, and sums of amounts fit SQLite's integers."""
WEIGHT_LIMIT = 65_535
"""Weights and uids are u16, as on Bittensor."""

_ARGS_LIMIT_BYTES = 1 << 20
_ADDRESS_LIMIT_CHARACTERS = 64
_SIGNATURE_BYTES = 64
_NONCE_LIMIT = 1 << 62
_DOMAIN = b"windrow local chain extrinsic 1"

U16 = Annotated[int, Field(ge=0, le=WEIGHT_LIMIT)]


class _Arguments(BaseModel):
    """Arguments of one call, as anybody may have written them: hence pydantic, strict and closed."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, ser_json_bytes="hex", val_json_bytes="hex")
    name: ClassVar[str]

    def encode(self) -> bytes:
        """Canonical JSON: sorted keys, no white space, bytes in lower-case hexadecimal."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()


class Register(_Arguments):
    """Signed by a coldkey: give `hotkey` (ss58) a uid."""

    name: ClassVar[str] = "register"
    hotkey: str


class Commit(_Arguments):
    """Signed by a hotkey: replace its commitment."""

    name: ClassVar[str] = "commit"
    data: bytes


class SetWeights(_Arguments):
    """Signed by a hotkey: replace its weights; `values[i]` is for the neuron `uids[i]`."""

    name: ClassVar[str] = "set_weights"
    uids: tuple[U16, ...]
    values: tuple[U16, ...]


class AddStake(_Arguments):
    """Signed by a coldkey: move `amount_rao` from its balance to the stake of `hotkey`."""

    name: ClassVar[str] = "add_stake"
    hotkey: str
    amount_rao: Annotated[int, Field(gt=0, le=SUPPLY_LIMIT_TAO * RAO_PER_TAO)]


Call = Register | Commit | SetWeights | AddStake

_CALLS: Mapping[str, type[Call]] = {call.name: call for call in (Register, Commit, SetWeights, AddStake)}


@dataclass(frozen=True, slots=True)
class Extrinsic:
    """One signed call. `args` is the call's canonical JSON; `signer` is ss58; `signature` has 64 bytes."""

    call: str
    args: bytes
    signer: str
    nonce: int
    signature: bytes

    def message(self, seed: bytes) -> bytes:
        """The bytes that are signed on the chain with this 32-byte seed; fields carry their length (u32,
        little endian), so that no two extrinsics share a message."""
        fields = (self.call.encode(), self.args, self.signer.encode())
        joined = b"".join(len(field).to_bytes(4, "little") + field for field in fields)
        return _DOMAIN + seed + joined + self.nonce.to_bytes(8, "little")


def sign(keypair: Keypair, seed: bytes, call: Call, nonce: int) -> Extrinsic:
    """`call` signed by `keypair` as its extrinsic number `nonce` on the chain with this seed.

    Raises `BadExtrinsic` when `keypair` is only an address."""
    unsigned = Extrinsic(call.name, call.encode(), keypair.ss58_address, nonce, b"")
    try:
        signature = keypair.sign(unsigned.message(seed))
    except ValueError as error:
        raise BadExtrinsic(f"{unsigned.signer} cannot sign ({error}); unlock its wallet first") from error
    return Extrinsic(unsigned.call, unsigned.args, unsigned.signer, nonce, signature)


def verify(extrinsic: Extrinsic, seed: bytes) -> Call:
    """The call inside, once its signature verifies and its arguments have the right shape.

    Raises `BadExtrinsic` otherwise. The nonce is compared by the chain, which knows the one that is due."""
    if len(extrinsic.args) > _ARGS_LIMIT_BYTES or not 0 <= extrinsic.nonce < _NONCE_LIMIT:
        raise BadExtrinsic("the extrinsic is larger than any the chain takes; make it with `sign`")
    check_address(extrinsic.signer)
    signer = Keypair(ss58_address=extrinsic.signer)
    if len(extrinsic.signature) != _SIGNATURE_BYTES or not signer.verify(extrinsic.message(seed), extrinsic.signature):
        raise BadExtrinsic(f"the signature is not by {extrinsic.signer} for this chain; sign it again")
    model = _CALLS.get(extrinsic.call)
    if model is None:
        raise BadExtrinsic(f"the chain has no call {extrinsic.call!r}; it has {', '.join(_CALLS)}")
    try:
        call = model.model_validate_json(extrinsic.args)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "args"
        raise BadExtrinsic(f"{extrinsic.call} cannot take this {field}: {first['msg']}") from error
    if call.encode() != extrinsic.args:
        raise BadExtrinsic(f"the arguments of {extrinsic.call} are not canonical JSON; make them with `sign`")
    return call


def check_address(address: str) -> None:
    """Raise `BadExtrinsic` unless `address` is the ss58 form of a key that Bittensor itself would write."""
    try:
        known = len(address) <= _ADDRESS_LIMIT_CHARACTERS and Keypair(ss58_address=address).ss58_address == address
    except ValueError:
        known = False
    if not known:
        shown = address[:_ADDRESS_LIMIT_CHARACTERS]
        raise BadExtrinsic(f"{shown!r} is not an ss58 address of Bittensor; copy it from the wallet")


def quantise_weights(weights: Mapping[int, float]) -> SetWeights:
    """Weights as the chain takes them: u16, the largest one 65535, each rounded, zeros left out.

    Raises `BadExtrinsic` for a uid or a weight that makes no sense, and when no weight is positive."""
    for uid, weight in weights.items():
        if not 0 <= uid <= WEIGHT_LIMIT:
            raise BadExtrinsic(f"uid {uid} cannot exist; uids go from 0 to {WEIGHT_LIMIT}")
        if not math.isfinite(weight) or weight < 0.0:
            raise BadExtrinsic(f"the weight of uid {uid} is {weight}; weights must be finite and non-negative")
    largest = max(weights.values(), default=0.0)
    if largest == 0.0:
        raise BadExtrinsic("no weight is positive; set at least one")
    scaled = {uid: round(weights[uid] / largest * WEIGHT_LIMIT) for uid in sorted(weights)}
    kept = {uid: value for uid, value in scaled.items() if value > 0}
    return SetWeights(uids=tuple(kept), values=tuple(kept.values()))


def tao_to_rao(amount: float, what: str) -> int:
    """`amount` in TAO as whole rao (10⁻⁹ TAO), rounded; raises `BadExtrinsic`, naming `what`, if it is none."""
    if not 0.0 <= amount <= SUPPLY_LIMIT_TAO:  # NaN fails too
        raise BadExtrinsic(f"{what} of {amount} TAO makes no sense; give 0 to {SUPPLY_LIMIT_TAO:,} TAO")
    return round(amount * RAO_PER_TAO)
