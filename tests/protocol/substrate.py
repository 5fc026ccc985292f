"""A subtensor chain in memory, behind the SDK's `Substrate` seam: what a node answers, what its pallets refuse.

No real node can be reached where these tests run. Where each shape and rule is from, so that it can be compared again:

- hashes, headers, storage misses, error texts: `bittensor/_substrate.py` and `bittensor/_transport/` (SDK 11.3.0),
  which make what the adapter gets out of a node's JSON: `interface.py` (block hashes as 0x text, header numbers as
  int), `errors.py` (discarded state), `rpc.py` (lost subscriptions), `_substrate.py` (results of calls);
- what the runtime lacks: a storage item is a `StorageFunctionNotFound`, a call and a runtime API (`runtime_api.py`) a
  plain `ValueError`; texts as the codec gives them over the metadata in `tests/protocol/node.py`;
- `get_metagraph`: the columns that `bittensor/metagraph.py` reads; `get_neurons_lite`: the struct `NeuronInfoLite` of
  subtensor and `bittensor/reads/neurons.py`;
- `CommitmentOf`: decoded samples of `pallet_commitments::types::Registration` in the SDK's own shape corpus
  (runtime 438): {"block", "deposit", "info": {"fields": [{"Raw72": "0x…"}]}}, no bytes being [];
- rules and their order: subtensor's `pallets/commitments/src/lib.rs` (`set_commitment`), and
  `pallets/subtensor/src/subnets/weights.rs` (`internal_set_weights`, `internal_commit_timelocked_weights`) and
  `registration.rs` (`do_register`). The limit of registrations in one block is of older runtimes only.
- names of errors: the SDK's catalogue, which is generated from the chain; a name that is not in it fails the test.

Simplified: a call is applied to the head, whose hash changes by that, instead of waiting for the next block; money is
a number per coldkey and fees are nought; a shielded call is not decrypted but remembered.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from bittensor import Balance, ExtrinsicResult, RpcConnectionError
from bittensor._generated.errors import ERRORS
from bittensor._transport.errors import StorageFunctionNotFound
from bittensor.result import ChainError as SdkError
from bittensor_core import Keypair

RAO = 1_000_000_000
U16 = 65_535
LOST_SUBSCRIPTION = (
    "Connection lost while waiting for a subscription response (e.g. extrinsic finalization). "
    "The transaction may already be on chain — verify balances before retrying."
)
LOST_REQUEST = "RPC request failed after exhausting endpoint retries: no close frame received or sent"

_DOCS = {info.name: info.docs for info in ERRORS.values()}
_POOL_NAMES = {"BadProof", "Stale", "Future", "Payment", "Dropped", "Usurped", "Retracted"}

_PARAMETERS = {
    ("System", "Account"): 1,
    ("Timestamp", "Now"): 0,
    ("MevShield", "NextKey"): 0,
    ("Commitments", "CommitmentOf"): 2,
    ("SubtensorModule", "StakeThreshold"): 0,
    ("SubtensorModule", "Uids"): 2,
    ("SubtensorModule", "Weights"): 2,
    ("SubtensorModule", "BlockAtRegistration"): 2,
} | {
    ("SubtensorModule", item): 1
    for item in (
        "NetworksAdded",
        "Burn",
        "CollateralLockShare",
        "LastUpdate",
        "ValidatorPermit",
        "CommitRevealWeightsEnabled",
        "WeightsSetRateLimit",
        "WeightsVersionKey",
        "MinAllowedWeights",
        "MaxWeightsLimit",
        "SubnetOwnerHotkey",
        "SubnetEpochConsensus",
        "Tempo",
        "RevealPeriodEpochs",
        "LastEpochBlock",
        "PendingEpochAt",
        "SubnetEpochIndex",
        "BlocksSinceLastStep",
    )
}
"""How many keys each storage item has; the codec refuses another number of them."""

_NOT_IN_OLD = {
    ("MevShield", "NextKey"),
    ("SubtensorModule", "CollateralLockShare"),
    ("SubtensorModule", "SubnetEpochConsensus"),
    ("SubtensorModule", "LastEpochBlock"),
    ("SubtensorModule", "PendingEpochAt"),
    ("SubtensorModule", "SubnetEpochIndex"),
    ("SubnetInfoRuntimeApi", "get_metagraph"),
    ("SubtensorModule", "set_mechanism_weights"),
    ("SubtensorModule", "commit_timelocked_mechanism_weights"),
    ("MevShield", "submit_encrypted"),
}

_CALLS = {
    ("SubtensorModule", "burned_register"): {"netuid", "hotkey"},
    ("SubtensorModule", "set_weights"): {"netuid", "dests", "weights", "version_key"},
    ("SubtensorModule", "set_mechanism_weights"): {"netuid", "mecid", "dests", "weights", "version_key"},
    ("SubtensorModule", "commit_timelocked_weights"): {"netuid", "commit", "reveal_round", "commit_reveal_version"},
    ("SubtensorModule", "commit_timelocked_mechanism_weights"): {
        "netuid",
        "mecid",
        "commit",
        "reveal_round",
        "commit_reveal_version",
    },
    ("Commitments", "set_commitment"): {"netuid", "info"},
    ("MevShield", "submit_encrypted"): {"ciphertext"},
}


@dataclass
class Rules:
    """Hyper-parameters of the one subnet."""

    netuid: int = 2
    tempo: int = 360
    burn: int = RAO
    max_uids: int = 256
    registration_allowed: bool = True
    registrations_per_block: int | None = None
    max_space: int = 3100
    rate_limit: int = 5
    version_key: int = 0
    min_weights: int = 1
    max_weight: int = U16
    stake_threshold: int = 0
    commit_reveal: bool = False
    commit_reveal_version: int = 4
    slot_millis: int = 12_000
    keeps_blocks: int = 256
    owner_hotkey: str = ""
    epoch_counter: bool = True
    """False: as in older runtimes, epochs follow from the block number."""


@dataclass
class State:
    """All storage at one block. Lists are by uid."""

    number: int = 0
    millis: int = 1_700_000_000_000
    epoch: int = 0
    last_epoch: int = 0
    hotkeys: list[str] = field(default_factory=list)
    owners: dict[str, str] = field(default_factory=dict)
    stakes: dict[str, int] = field(default_factory=dict)
    registered_at: list[int] = field(default_factory=list)
    last_update: list[int] = field(default_factory=list)
    permits: list[bool] = field(default_factory=list)
    incentives: dict[str, int] = field(default_factory=dict)
    balances: dict[str, int] = field(default_factory=dict)
    nonces: dict[str, int] = field(default_factory=dict)
    commitments: dict[str, Any] = field(default_factory=dict)
    used_space: dict[str, tuple[int, int]] = field(default_factory=dict)
    weights: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    sealed: list[tuple[str, int, bytes, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Composed:
    """A call as the SDK passes it around, opaque to everybody but the chain."""

    module: str
    function: str
    params: dict[str, Any]

    @property
    def data(self) -> bytes:
        return repr((self.module, self.function, self.params)).encode()


class Refusal(Exception):
    """A pallet's error, by its name."""


class FakeSubtensor:
    """See the module. `old` makes the runtime one that lacks what the SDK's intents read.

    `cut("query")` lets the next call of that method find the connection broken; `cut("submit", after=True)` breaks it
    when the call is in a block already but its sender does not know. `down` is a node that is away altogether.
    """

    def __init__(self, rules: Rules | None = None, *, old: bool = False) -> None:
        self.rules = rules or Rules()
        self.old = old
        if old:
            self.rules.epoch_counter = False
        self.down = False
        self.connected = 0
        self.closed = 0
        self.token_symbols: dict[int, str] = {}
        self.asked: list[str] = []
        self.sent: list[tuple[str, str]] = []
        """(function, signer) of every call that reached a block."""
        self.final_lag = 0
        self.undecodable: set[str] = set()
        """Hotkeys whose commitment the codec cannot decode."""
        self._cuts: dict[str, list[bool]] = {}
        self._shielded: dict[tuple[str, int], tuple[Composed, str]] = {}
        self._outcomes: dict[str, ExtrinsicResult] = {}
        self._pool_says: list[str] = []
        self._changes = 0
        self._streams: set[asyncio.Event] = set()
        self._generation = 0
        self.state = State()
        self._hashes: list[str] = []
        self._states: dict[str, State] = {}
        self._seal_block()

    # --- what a test does to it ---------------------------------------------------------------------------

    def step(self, count: int = 1) -> None:
        """Let `count` blocks pass; epochs come when they are due."""
        for _ in range(count):
            self.state = copy.deepcopy(self.state)
            self.state.number += 1
            self.state.millis += self.rules.slot_millis
            if self.state.number >= self.next_epoch(self.state.number - 1):
                self.state.epoch += 1
                self.state.last_epoch = self.state.number
            self._seal_block()
        self._wake()

    def next_epoch(self, number: int | None = None) -> int:
        """First block of the epoch after the one of block `number`, by default the head."""
        number = self.state.number if number is None else number
        if self.rules.epoch_counter:
            return self.state.last_epoch + self.rules.tempo
        period = self.rules.tempo + 1
        return number + period - (number + self.rules.netuid + 1) % period

    def endow(self, coldkey: str, tao: float) -> None:
        """Give TAO to a coldkey."""
        self._change(lambda state: state.balances.update({coldkey: int(tao * RAO)}))

    def enrol(self, coldkey: str, hotkey: str) -> None:
        """Register a hotkey in the head."""
        self.state = copy.deepcopy(self.state)
        self._register(coldkey, hotkey)
        self._seal_block(again=True)
        self._wake()

    def grant(self, hotkey: str, stake: float, permit: bool = True) -> None:
        """Give stake to a registered hotkey, and the permit that the next epoch would give."""

        def apply(state: State) -> None:
            state.stakes[hotkey] = int(stake * RAO)
            state.permits[state.hotkeys.index(hotkey)] = permit

        self._change(apply)

    def reveal(self, uid: int, row: list[tuple[int, int]]) -> None:
        """What the chain does with a sealed row when its drand round comes."""
        self._change(lambda state: state.weights.update({uid: row}))

    def put_commitment(self, hotkey: str, record: Any) -> None:
        """A commitment as somebody else wrote it."""
        self._change(lambda state: state.commitments.update({hotkey: record}))

    def cut(self, method: str, *, times: int = 1, after: bool = False) -> None:
        """Break the connection under the next `times` calls of `method`."""
        self._cuts.setdefault(method, []).extend([after] * times)

    def break_streams(self) -> None:
        """Break the connection under every open subscription."""
        self._generation += 1
        self._wake()

    def pool_says(self, name: str) -> None:
        """Let the pool lose the next call, for the reason it gives."""
        assert name in _POOL_NAMES
        self._pool_says.append(name)

    def fork(self) -> None:
        """Replace the head by another block of the same number."""
        self._change(lambda state: None)

    # --- Substrate: reads ---------------------------------------------------------------------------------

    def balance(self, rao: int, netuid: int = 0) -> Balance:
        return Balance(int(rao), netuid, None)

    async def connect(self) -> None:
        await self._line("connect")
        self.connected += 1

    async def close(self) -> None:
        self.closed += 1

    async def block_hash(self, block: int | None = None) -> str:
        await self._line("block_hash")
        number = self.state.number if block is None else block
        if number >= len(self._hashes):
            raise SdkError(f"no block at height {number}")
        return self._hashes[number]

    async def block_number(self) -> int:
        await self._line("block_number")
        return self.state.number

    async def finalized_block_number(self) -> int:
        await self._line("finalized_block_number")
        return max(0, self.state.number - self.final_lag)

    async def block_time(self) -> float:
        return self.rules.slot_millis / 1000

    async def constant(self, module: str, name: str) -> Any:
        await self._line("constant")
        return {("Aura", "SlotDuration"): self.rules.slot_millis}[module, name]

    async def query(
        self, module: str, storage_function: str, params: list[Any] | None = None, block_hash: str | None = None
    ) -> Any:
        await self._line("query")
        keys = list(params or [])
        self._check_item(module, storage_function, len(keys))
        return self._read(self._at(block_hash), module, storage_function, keys)

    async def query_map(
        self, module: str, storage_function: str, params: list[Any] | None = None, block_hash: str | None = None
    ) -> list[tuple[Any, Any]]:
        await self._line("query_map")
        self._check_item(module, storage_function, len(params or []) + 1)
        state = self._at(block_hash)
        if (params or [None])[0] != self.rules.netuid:
            return []
        match storage_function:
            case "Weights":
                return [(uid, list(row)) for uid, row in state.weights.items()]
            case "BlockAtRegistration":
                return list(enumerate(state.registered_at))
        raise AssertionError(f"this fake has no map {storage_function}")

    async def query_batch(
        self, module: str, storage_function: str, param_sets: list[list[Any]], block_hash: str | None = None
    ) -> list[Any]:
        await self._line("query_batch")
        state = self._at(block_hash)
        for keys in param_sets:
            self._check_item(module, storage_function, len(keys))
        return [self._read(state, module, storage_function, keys) for keys in param_sets]

    async def runtime_call(self, api: str, method: str, params: list[Any], block_hash: str | None = None) -> Any:
        await self._line("runtime_call")
        if self.old and (api, method) in _NOT_IN_OLD:
            raise ValueError(f"Runtime API Call '{api}.{method}' not found in registry")
        state = self._at(block_hash)
        if params != [self.rules.netuid]:
            return None if method == "get_metagraph" else []
        return self._metagraph(state) if method == "get_metagraph" else self._neurons_lite(state)

    async def blocks(self, *, finalized: bool = False) -> AsyncIterator[dict[str, Any]]:
        await self._line("blocks")
        waker, generation, told = asyncio.Event(), self._generation, -1
        self._streams.add(waker)
        try:
            while True:
                if generation != self._generation or self.down:
                    raise SdkError(LOST_SUBSCRIPTION)
                if self.state.number != told:
                    told = self.state.number
                    yield {"header": {"number": told, "parentHash": self._hashes[max(0, told - 1)]}}
                    continue
                waker.clear()
                await waker.wait()
        finally:
            self._streams.discard(waker)

    # --- Substrate: calls ---------------------------------------------------------------------------------

    async def compose(self, call: Any) -> Composed:
        await self._line("compose")
        module, function, params = call
        if (module, function) not in _CALLS or (self.old and (module, function) in _NOT_IN_OLD):
            raise ValueError(f"call {module}.{function} not found")
        if params.keys() != _CALLS[module, function]:
            raise ValueError(f"{module}.{function} takes {_CALLS[module, function]}, not {sorted(params)}")
        if function == "set_commitment":
            for entry in params["info"]["fields"][0]:
                ((variant, data),) = entry.items()
                if variant != f"Raw{len(data)}" or len(data) > 128:
                    raise ValueError(f"cannot encode {len(data)} bytes as {variant}")
        return Composed(module, function, params)

    async def estimate_fee(self, call: Any, keypair: Any) -> Balance:
        return Balance.from_rao(0)

    async def account_next_index(self, address: str) -> int:
        await self._line("account_next_index")
        return self.state.nonces.get(address, 0)

    async def mev_next_key(self) -> bytes:
        await self._line("mev_next_key")
        self._check_item("MevShield", "NextKey", 0)
        return bytes(1184)

    async def sign_extrinsic(self, call: Composed, keypair: Any, *, nonce: int, period: int) -> tuple[bytes, str]:
        signature = keypair.sign(call.data)
        name = hashlib.blake2b(call.data + bytes(signature), digest_size=32).hexdigest()
        self._shielded[keypair.ss58_address, nonce] = (call, f"0x{name}")
        return call.data + bytes(signature), f"0x{name}"

    async def find_extrinsic(self, extrinsic_hash: str, block_hash: str) -> ExtrinsicResult | None:
        await self._line("find_extrinsic")
        return self._outcomes.get(extrinsic_hash)

    async def submit(
        self,
        call: Composed,
        keypair: Any,
        *,
        nonce: int | None = None,
        period: int | None = None,
        wait_for_inclusion: bool = True,
        wait_for_finalization: bool = True,
    ) -> ExtrinsicResult:
        cut_after = (self._cuts.get("submit") or [False])[0]
        if not cut_after:
            await self._line("submit")
        signer = keypair.ss58_address
        try:
            signature = keypair.sign(call.data)
        except ValueError as error:
            raise SdkError(str(error)) from error
        if not Keypair(ss58_address=signer).verify(call.data, signature):
            return _failed("BadProof")
        due = self.state.nonces.get(signer, 0)
        nonce = due if nonce is None else nonce
        if nonce != due:
            return _failed("Stale" if nonce < due else "Future")
        if self._pool_says:
            return _failed(self._pool_says.pop(0))
        outcome = self._include(call, signer)
        if call.function == "submit_encrypted":
            inner, name = self._shielded.pop((signer, nonce + 1))
            self._outcomes[name] = self._include(inner, signer)
        if cut_after:
            self._cuts["submit"].pop(0)
            return ExtrinsicResult(False, LOST_SUBSCRIPTION, error=SdkError(LOST_SUBSCRIPTION))
        return outcome

    # --- the runtime --------------------------------------------------------------------------------------

    def _include(self, call: Composed, signer: str) -> ExtrinsicResult:
        """Dispatch a call in the head. A call that a pallet refuses changes nothing but uses its nonce."""
        before = copy.deepcopy(self.state)
        refused = None
        try:
            self._dispatch(call, signer)
        except Refusal as refusal:
            self.state, refused = before, str(refusal)
        self.state.nonces[signer] = self.state.nonces.get(signer, 0) + 1
        self._seal_block(again=True)
        self._wake()
        self.sent.append((call.function, signer))
        where = {"block_hash": self._hashes[-1], "extrinsic_id": f"{self.state.number}-0001"}
        if refused is not None:
            return _failed(refused, **where)
        return ExtrinsicResult(True, "Success", fee=Balance.from_rao(0), **where)

    def _dispatch(self, call: Composed, signer: str) -> None:
        params = call.params
        if call.function != "submit_encrypted" and params["netuid"] != self.rules.netuid:
            raise Refusal("SubnetNotExists")
        match call.function:
            case "burned_register":
                self._register(signer, params["hotkey"])
            case "set_commitment":
                self._commit(signer, params["info"]["fields"][0])
            case "set_weights" | "set_mechanism_weights":
                if self.rules.commit_reveal:
                    raise Refusal("CommitRevealEnabled")
                self._set_weights(signer, params["dests"], params["weights"], params["version_key"])
            case "commit_timelocked_weights" | "commit_timelocked_mechanism_weights":
                self._commit_weights(signer, params)

    def _register(self, coldkey: str, hotkey: str) -> None:
        state, rules = self.state, self.rules
        if not rules.registration_allowed:
            raise Refusal("SubNetRegistrationDisabled")
        limit = rules.registrations_per_block
        if limit is not None and sum(block == state.number for block in state.registered_at) >= limit:
            raise Refusal("TooManyRegistrationsThisBlock")
        if hotkey in state.hotkeys:
            raise Refusal("HotKeyAlreadyRegisteredInSubNet")
        if state.balances.get(coldkey, 0) < rules.burn:
            raise Refusal("NotEnoughBalanceToStake")
        if state.owners.setdefault(hotkey, coldkey) != coldkey:
            raise Refusal("NonAssociatedColdKey")
        if len(state.hotkeys) >= rules.max_uids:
            raise Refusal("NoNeuronIdAvailable")
        state.balances[coldkey] -= rules.burn
        state.hotkeys.append(hotkey)
        state.registered_at.append(state.number)
        state.last_update.append(state.number)
        state.permits.append(False)

    def _commit(self, hotkey: str, fields: list[dict[str, bytes]]) -> None:
        state = self.state
        if hotkey not in state.hotkeys:
            raise Refusal("AccountNotAllowedCommit")
        if len(fields) > 1:
            raise Refusal("TooManyFieldsInCommitmentInfo")
        period = self.rules.tempo + 1
        epoch = state.epoch if self.rules.epoch_counter else (state.number + self.rules.netuid + 1) // period
        last, used = state.used_space.get(hotkey, (epoch, 0))
        used = used if last == epoch else 0
        required = max(100, sum(len(data) for entry in fields for data in entry.values()))
        if used + required > self.rules.max_space:
            raise Refusal("SpaceLimitExceeded")
        state.used_space[hotkey] = (epoch, used + required)
        decoded = [
            {variant: f"0x{bytes(data).hex()}" if data else [] for variant, data in entry.items()} for entry in fields
        ]
        state.commitments[hotkey] = {"block": state.number, "deposit": 0, "info": {"fields": decoded}}

    def _set_weights(self, hotkey: str, uids: list[int], values: list[int], version_key: int) -> None:
        state, rules = self.state, self.rules
        if len(uids) != len(values):
            raise Refusal("WeightVecNotEqualSize")
        if len(uids) > len(state.hotkeys):
            raise Refusal("UidsLengthExceedUidsInSubNet")
        uid = self._validator(hotkey)
        if rules.version_key and version_key < rules.version_key:
            raise Refusal("IncorrectWeightVersionKey")
        if self._too_fast(uid):
            raise Refusal("SettingWeightsTooFast")
        alone = uids == [uid]
        if not alone and not state.permits[uid] and hotkey != rules.owner_hotkey:
            raise Refusal("NeuronNoValidatorPermit")
        if len(set(uids)) != len(uids):
            raise Refusal("DuplicateUids")
        if any(target >= len(state.hotkeys) for target in uids):
            raise Refusal("UidVecContainInvalidOne")
        if not alone and len(uids) < min(rules.min_weights, len(state.hotkeys)):
            raise Refusal("WeightVecLengthIsLow")
        top = max(values)
        upscaled = [value * U16 // top for value in values]
        # One value of rounding is what the quantisation to u16 itself can cost.
        if not alone and rules.max_weight < U16 and top * U16 > (rules.max_weight + 1) * sum(values):
            raise Refusal("MaxWeightExceeded")
        state.weights[uid] = list(zip(uids, upscaled, strict=True))
        state.last_update[uid] = state.number

    def _commit_weights(self, hotkey: str, params: dict[str, Any]) -> None:
        state, rules = self.state, self.rules
        if not rules.commit_reveal:
            raise Refusal("CommitRevealDisabled")
        if params["commit_reveal_version"] != rules.commit_reveal_version:
            raise Refusal("IncorrectCommitRevealVersion")
        if hotkey not in state.hotkeys:
            raise Refusal("HotKeyNotRegisteredInSubNet")
        uid = state.hotkeys.index(hotkey)
        if self._too_fast(uid):
            raise Refusal("CommittingWeightsTooFast")
        if sum(who == hotkey for who, *_ in state.sealed) >= 10:
            raise Refusal("TooManyUnrevealedCommits")
        state.sealed.append((hotkey, state.number, bytes(params["commit"]), params["reveal_round"]))
        state.last_update[uid] = state.number

    def _validator(self, hotkey: str) -> int:
        if hotkey not in self.state.hotkeys:
            raise Refusal("HotKeyNotRegisteredInSubNet")
        if self.state.stakes.get(hotkey, 0) < self.rules.stake_threshold:
            raise Refusal("NotEnoughStakeToSetWeights")
        return self.state.hotkeys.index(hotkey)

    def _too_fast(self, uid: int) -> bool:
        last = self.state.last_update[uid]
        return last > 0 and self.state.number - last < self.rules.rate_limit

    # --- storage ------------------------------------------------------------------------------------------

    def _read(self, state: State, module: str, item: str, keys: list[Any]) -> Any:
        rules = self.rules
        here = not keys or keys[0] == rules.netuid
        match item:
            case "Now":
                return state.millis
            case "Account":
                return {"nonce": state.nonces.get(keys[0], 0), "data": {"free": state.balances.get(keys[0], 0)}}
            case "NetworksAdded":
                return here
            case "Uids":
                return state.hotkeys.index(keys[1]) if here and keys[1] in state.hotkeys else None
            case "Weights":
                return list(state.weights.get(keys[1], []))
            case "LastUpdate":
                return list(state.last_update)
            case "ValidatorPermit":
                return list(state.permits)
            case "CommitmentOf":
                if keys[1] in self.undecodable:
                    raise ValueError("unexpected end of SCALE data")
                return copy.deepcopy(state.commitments.get(keys[1]))
            case "SubnetEpochConsensus":
                return "Yuma"
        return {
            "Burn": rules.burn,
            "CollateralLockShare": 0,
            "CommitRevealWeightsEnabled": rules.commit_reveal,
            "WeightsSetRateLimit": rules.rate_limit,
            "WeightsVersionKey": rules.version_key,
            "MinAllowedWeights": rules.min_weights,
            "MaxWeightsLimit": rules.max_weight,
            "StakeThreshold": rules.stake_threshold,
            "SubnetOwnerHotkey": rules.owner_hotkey,
            "Tempo": rules.tempo,
            "RevealPeriodEpochs": 1,
            "LastEpochBlock": state.last_epoch,
            "PendingEpochAt": 0,
            "SubnetEpochIndex": state.epoch,
            "BlocksSinceLastStep": state.number - state.last_epoch,
        }[item]

    def _metagraph(self, state: State) -> dict[str, Any]:
        n = len(state.hotkeys)
        stakes = [state.stakes.get(hotkey, 0) for hotkey in state.hotkeys]
        return {
            "netuid": self.rules.netuid,
            "name": "0x77",
            "symbol": "0xceb2",
            "identity": None,
            "network_registered_at": 0,
            "owner_hotkey": self.rules.owner_hotkey,
            "owner_coldkey": "",
            "block": state.number,
            "tempo": self.rules.tempo,
            "last_step": state.last_epoch,
            "blocks_since_last_step": state.number - state.last_epoch,
            "num_uids": n,
            "max_uids": self.rules.max_uids,
            "hotkeys": list(state.hotkeys),
            "coldkeys": [state.owners[hotkey] for hotkey in state.hotkeys],
            "active": [True] * n,
            "validator_permit": list(state.permits),
            "last_update": list(state.last_update),
            "block_at_registration": list(state.registered_at),
            "incentives": [state.incentives.get(hotkey, 0) for hotkey in state.hotkeys],
            "dividends": [0] * n,
            "emission": [0] * n,
            "alpha_stake": stakes,
            "tao_stake": [0] * n,
            "total_stake": stakes,
        }

    def _neurons_lite(self, state: State) -> list[dict[str, Any]]:
        return [
            {
                "hotkey": hotkey,
                "coldkey": state.owners[hotkey],
                "uid": uid,
                "netuid": self.rules.netuid,
                "active": True,
                "stake": [(state.owners[hotkey], state.stakes.get(hotkey, 0))],
                "rank": 0,
                "emission": 0,
                "incentive": state.incentives.get(hotkey, 0),
                "consensus": 0,
                "trust": 0,
                "validator_trust": 0,
                "dividends": 0,
                "last_update": state.last_update[uid],
                "validator_permit": state.permits[uid],
                "pruning_score": 0,
            }
            for uid, hotkey in enumerate(state.hotkeys)
        ]

    def _check_item(self, module: str, item: str, keys: int) -> None:
        assert (module, item) in _PARAMETERS, f"this fake has no storage {module}.{item}"
        if self.old and (module, item) in _NOT_IN_OLD:
            raise StorageFunctionNotFound(f"storage function {module}.{item} not found")
        if keys != _PARAMETERS[module, item]:
            raise ValueError(f"Storage function requires {_PARAMETERS[module, item]} parameters, {keys} given")

    # --- blocks and the line ------------------------------------------------------------------------------

    def _at(self, block_hash: str | None) -> State:
        if block_hash is None:
            return self.state
        state = self._states.get(block_hash)
        if state is None:
            raise SdkError(f'Block not found for "{block_hash}"')
        if state.number < self.state.number - self.rules.keeps_blocks:
            raise SdkError(
                f"State discarded for {block_hash}. This indicates the block is too old, and you "
                "should instead make this request using an archive node."
            )
        return state

    def _change(self, change: Callable[[State], Any]) -> None:
        self.state = copy.deepcopy(self.state)
        change(self.state)
        self._seal_block(again=True)
        self._wake()

    def _seal_block(self, *, again: bool = False) -> None:
        self._changes += 1
        name = hashlib.blake2b(f"{self.state.number}/{self._changes}".encode(), digest_size=32).hexdigest()
        if again:
            self._hashes.pop()
        self._hashes.append(f"0x{name}")
        self._states[f"0x{name}"] = copy.deepcopy(self.state)

    def _wake(self) -> None:
        for waker in self._streams:
            waker.set()

    async def _line(self, method: str) -> None:
        """What every call goes through on its way to the node."""
        self.asked.append(method)
        await asyncio.sleep(0)
        if self._cuts.get(method):
            self._cuts[method].pop(0)
            raise RpcConnectionError(LOST_REQUEST)
        if self.down:
            raise RpcConnectionError("could not connect to any endpoint: [Errno 111] Connect call failed")


def _failed(name: str, **where: Any) -> ExtrinsicResult:
    """A failed result as `RpcSubstrate` makes it: the docs of the error and its name."""
    assert name in _DOCS or name in _POOL_NAMES, f"the SDK knows no error {name}"
    text = _DOCS.get(name) or name
    return ExtrinsicResult(False, text, error=SdkError(text, name), **where)
