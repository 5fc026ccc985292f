"""What a subtensor chain says when it refuses, as errors of this project with a sentence that says what to do.

The names are those of the pallets' own error lists and of the transaction pool, as the Bittensor SDK gives them
(`bittensor._generated.errors`, `bittensor.error_map`).
"""

from __future__ import annotations

from collections.abc import Mapping

from bittensor import ErrorCode
from bittensor.result import ChainError as SdkError

from protocol.errors import (
    AlreadyRegistered,
    BadExtrinsic,
    ChainError,
    ChainUnreachable,
    CommitmentTooLong,
    InsufficientBalance,
    NoPermit,
    NoSubnet,
    NotRegistered,
    OutdatedVersion,
    RateLimited,
    RegistrationClosed,
    SubnetFull,
    WrongColdkey,
)

_Refusal = tuple[type[ChainError], str]

_FUND = "the coldkey cannot pay; send TAO to it"
_NOT_HERE = "the hotkey holds no uid on this subnet; register it first"
_AGAIN_SOON = "the chain takes no more of these calls now; try again some blocks later"
_BAD_ROW = "the subnet does not take weights of this shape"
_SEND_AGAIN = "the node dropped the call; send it again"

REFUSALS: Mapping[str, _Refusal] = {
    # registration
    "HotKeyAlreadyRegisteredInSubNet": (AlreadyRegistered, "the hotkey holds a uid already; go on with it"),
    "NotEnoughBalanceToStake": (InsufficientBalance, _FUND),
    "BalanceWithdrawalError": (InsufficientBalance, _FUND),
    "ZeroBalanceAfterWithdrawn": (InsufficientBalance, _FUND),
    "InsufficientBalance": (InsufficientBalance, _FUND),
    "InsufficientTaoBalance": (InsufficientBalance, _FUND),
    "FundsUnavailable": (InsufficientBalance, _FUND),
    "NotExpendable": (InsufficientBalance, _FUND),
    "Expendability": (InsufficientBalance, _FUND),
    "ExistentialDeposit": (InsufficientBalance, _FUND),
    "Payment": (InsufficientBalance, "the coldkey cannot pay the fee of the call; send TAO to it"),
    "TooManyRegistrationsThisBlock": (RateLimited, "this block takes no more registrations; try again in the next"),
    "TooManyRegistrationsThisInterval": (
        RateLimited,
        "the subnet has taken its registrations of this interval; try again in the next, within hours",
    ),
    "SubNetRegistrationDisabled": (RegistrationClosed, "the subnet takes no registrations now; ask its owner"),
    "NoNeuronIdAvailable": (SubnetFull, "every uid is taken and none may be replaced now; try again later"),
    "NonAssociatedColdKey": (
        WrongColdkey,
        "the hotkey belongs to another coldkey; sign with that one or make a new hotkey",
    ),
    "SubnetNotExists": (NoSubnet, "there is no such subnet on this network; correct the netuid"),
    "MechanismDoesNotExist": (NoSubnet, "there is no such subnet on this network; correct the netuid"),
    "RegistrationNotPermittedOnRootSubnet": (NoSubnet, "netuid 0 is no training subnet; correct the netuid"),
    # commitments
    "AccountNotAllowedCommit": (NotRegistered, _NOT_HERE),
    "SpaceLimitExceeded": (RateLimited, "the hotkey has committed as much as it may in this epoch"),
    "TooManyFieldsInCommitmentInfo": (CommitmentTooLong, "the commitment has too many fields; shorten it"),
    # weights
    "HotKeyNotRegisteredInSubNet": (NotRegistered, _NOT_HERE),
    "HotKeyNotRegisteredInNetwork": (NotRegistered, _NOT_HERE),
    "HotKeyAccountNotExists": (NotRegistered, _NOT_HERE),
    "NeuronNoValidatorPermit": (
        NoPermit,
        "the hotkey has no validator permit; add stake to it and wait for the next epoch",
    ),
    "NotEnoughStakeToSetWeights": (NoPermit, "the hotkey has less stake than validators need here; add stake to it"),
    "StakeAmountTooLow": (NoPermit, "the hotkey has less stake than validators need here; add stake to it"),
    "SettingWeightsTooFast": (RateLimited, "weights were set some blocks ago; try again later"),
    "CommittingWeightsTooFast": (RateLimited, "weights were committed some blocks ago; try again later"),
    "TooManyUnrevealedCommits": (
        RateLimited,
        "ten commits of weights wait to be revealed; try again in the next epoch",
    ),
    "CommitQueueFull": (RateLimited, "the subnet's queue of committed weights is full; try again in the next epoch"),
    "IncorrectWeightVersionKey": (OutdatedVersion, "the subnet asks for newer validators; update Windrow"),
    "IncorrectCommitRevealVersion": (
        OutdatedVersion,
        "the chain wants another form of sealed weights; update Windrow and its bittensor package",
    ),
    "InvalidRevealRound": (BadExtrinsic, "the round at which the weights open has passed; correct the clock"),
    "WeightVecLengthIsLow": (
        BadExtrinsic,
        "the subnet wants weights for more uids; ask its owner to lower min_allowed_weights",
    ),
    "MaxWeightExceeded": (
        BadExtrinsic,
        "a weight is above the subnet's limit; ask its owner to raise max_weights_limit",
    ),
    "UidVecContainInvalidOne": (BadExtrinsic, "a uid is not registered; set weights for registered uids only"),
    "UidsLengthExceedUidsInSubNet": (BadExtrinsic, "there are more weights than uids; set each uid once"),
    "WeightVecNotEqualSize": (BadExtrinsic, _BAD_ROW),
    "DuplicateUids": (BadExtrinsic, _BAD_ROW),
    "InputLengthsUnequal": (BadExtrinsic, _BAD_ROW),
    # any call
    "TxRateLimitExceeded": (RateLimited, _AGAIN_SOON),
    "NetworkTxRateLimitExceeded": (RateLimited, _AGAIN_SOON),
    "RateLimitExceeded": (RateLimited, _AGAIN_SOON),
    "ExhaustsResources": (RateLimited, "the block is full; try again in the next"),
    "BadProof": (BadExtrinsic, "the signature is not the signer's; check the wallet and that the clock is right"),
    "BadSigner": (BadExtrinsic, "the chain does not take calls of this account; use another wallet"),
    "BadOrigin": (BadExtrinsic, "this key may not make this call; sign with the other key of the wallet"),
    "ColdkeySwapAnnounced": (
        WrongColdkey,
        "the coldkey is about to be swapped and may not call; finish the swap first",
    ),
    "ColdkeySwapDisputed": (WrongColdkey, "the coldkey's swap is under dispute and it may not call; use another"),
    # What the pool says about a call whose fate is open: it may still take effect, or have done so already.
    "Usurped": (ChainUnreachable, _SEND_AGAIN),
    "Dropped": (ChainUnreachable, _SEND_AGAIN),
    "Retracted": (ChainUnreachable, _SEND_AGAIN),
    "Invalid": (ChainUnreachable, _SEND_AGAIN),
    "FinalityTimeout": (ChainUnreachable, "the block of the call was not made final in time; see whether it counts"),
    "AlreadyImported": (ChainUnreachable, "the node has the call already; wait for it"),
    "PriorityTooLow": (ChainUnreachable, "another call of this key is on its way; wait for it"),
    "Stale": (ChainUnreachable, "another call of this key took its place; send it again"),
    "Future": (ChainUnreachable, "the node does not know an earlier call of this key; send it again"),
    "AncientBirthBlock": (ChainUnreachable, "the call came too late; send it again"),
    "ExtrinsicExpired": (ChainUnreachable, "the call was not taken in time; send it again"),
    "ExtrinsicDecodeFailed": (ChainUnreachable, "the block's author could not open the call; send it again"),
    "DecryptionFailed": (ChainUnreachable, "the block's author could not open the call; send it again"),
}
"""Name → our error and its sentence. A `ChainUnreachable` says that the outcome is open."""

# What the SDK itself refuses before it signs carries a kind but no name.
_BY_CODE: Mapping[ErrorCode, type[ChainError]] = {
    ErrorCode.RATE_LIMITED: RateLimited,
    ErrorCode.NOT_REGISTERED: NotRegistered,
    ErrorCode.INSUFFICIENT_BALANCE: InsufficientBalance,
    ErrorCode.SUBNET_NOT_EXISTS: NoSubnet,
    ErrorCode.NOT_AUTHORIZED: NoPermit,
    ErrorCode.INVALID_ARGUMENT: BadExtrinsic,
}

_SHOWN_CHARACTERS = 300


def refusal(error: SdkError) -> ChainError:
    """The error of this project for what the chain, its pool or the SDK refused.

    `ChainUnreachable` where the outcome is open: the pool lost the call, or the connection ended before the answer
    (the SDK gives that neither name nor kind)."""
    if error.name is not None and error.name in REFUSALS:
        kind, sentence = REFUSALS[error.name]
        return kind(f"{sentence} (the chain says {error.name})")
    said = _plain(error.message)
    if error.name is not None:
        return ChainError(f"the chain refused the call: {error.name} ({said})")
    if error.code is ErrorCode.UNKNOWN:
        return ChainUnreachable(f"what became of the call is not known ({said}); see on chain whether it counts")
    return _BY_CODE.get(error.code, ChainError)(f"the call was refused: {said}")


def shown(error: BaseException) -> str:
    """What an error of the SDK or of the network says, as one short line; its type where it says nothing."""
    return _plain(str(error)) or type(error).__name__


def _plain(text: str) -> str:
    # It may hold what a server sent: no control characters, no novel.
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_SHOWN_CHARACTERS]
