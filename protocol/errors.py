"""Every error the protocol raises, in one tree, each saying when."""

from __future__ import annotations

from enum import StrEnum


class ProtocolError(Exception):
    """Root of the tree. Catch this to catch anything the protocol room raises on purpose."""


class RunError(ProtocolError):
    """`run.toml` holds an unknown key or an impossible value. The message names the key and what is allowed."""


class DocumentError(ProtocolError):
    """A signed document is not valid JSON of the right shape, or its signature does not verify."""


class LayoutError(ProtocolError):
    """A tensor does not have the shape or the size the layout says."""


class NotFinite(ProtocolError):
    """A pseudo-gradient holds NaN or infinity. Raised at its owner, before anything is sent."""


class LedgerError(ProtocolError):
    """A manifest breaks a rule of the ledger: wrong signer, broken hash chain, or a root that differs."""


class Divergence(LedgerError):
    """A manifest follows this node's ledger but names another root of θ: one of the two states is wrong."""


class ChainError(ProtocolError):
    """Root of what a chain can refuse. The message says what to do."""


class ChainUnreachable(ChainError):
    """Nothing answers at the chain's endpoint, or the file of a local chain is missing."""


class BadExtrinsic(ChainError):
    """An extrinsic has a wrong signature, a wrong nonce or values that make no sense."""


class NotRegistered(ChainError):
    """The hotkey holds no uid on this subnet."""


class AlreadyRegistered(ChainError):
    """The hotkey holds a uid already."""


class SubnetFull(ChainError):
    """Every uid is taken and no neuron may be replaced now."""


class InsufficientBalance(ChainError):
    """The coldkey cannot pay for what it asked."""


class CommitmentTooLong(ChainError):
    """A commitment is longer than 128 bytes."""


class RateLimited(ChainError):
    """The same call came too soon after the last one; the message names the first block at which it will pass."""


class NoPermit(ChainError):
    """Weights for other neurons may only be set with a validator permit and the stake that the subnet asks for."""


class NoSubnet(ChainError):
    """The chain has no subnet of this number."""


class RegistrationClosed(ChainError):
    """The subnet takes no registrations now."""


class WrongColdkey(ChainError):
    """The hotkey belongs to another coldkey than the one that signed."""


class OutdatedVersion(ChainError):
    """The subnet asks for a newer version of its validators than this one."""


class RuntimeDiffers(ChainError):
    """The chain's runtime lacks something that this version reads or calls, or has it in another shape."""


class Pruned(ChainError):
    """The block is older than what the chain's node keeps."""


class Reason(StrEnum):
    """Why a contribution does not count, in the order in which the checks run (protocol §11)."""

    NO_SEAL = "no_seal"
    LATE_SEAL = "late_seal"
    BAD_SIGNATURE = "bad_signature"
    WRONG_RUN = "wrong_run"
    WRONG_WINDOW = "wrong_window"
    WRONG_LAYOUT = "wrong_layout"
    NO_REVEAL = "no_reveal"
    WRONG_KEY = "wrong_key"
    NO_SHARD = "no_shard"
    SHARD_SIZE = "shard_size"
    SHARD_DIGEST = "shard_digest"
    NOT_CANONICAL = "not_canonical"
    BAD_LEVEL = "bad_level"
    STALE_BASE = "stale_base"
    BAD_SYNC_PROOF = "bad_sync_proof"
    NORM = "norm"
    DUPLICATE = "duplicate"
    OVERLAP = "overlap"
    UNREACHABLE = "unreachable"


class Rejected(ProtocolError):
    """One peer's contribution fails a check. Never escapes the judgement of that one peer."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
