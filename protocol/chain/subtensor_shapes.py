"""What the SDK decodes of a subtensor chain, as values of this project.

The node is this peer's own choice, but commitments are other people's bytes: whatever is odd about one makes it
absent and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from protocol.chain.extrinsic import RAO_PER_TAO, WEIGHT_LIMIT
from protocol.chain.port import COMMITMENT_LIMIT_BYTES, Neuron
from protocol.errors import RuntimeDiffers

_RAW_FIELD = re.compile(r"Raw([0-9]{1,3})", re.ASCII)
_UNEXPECTED = (AttributeError, IndexError, KeyError, TypeError, ValueError)


def from_metagraph(graph: Mapping[str, Any]) -> tuple[Neuron, ...]:
    """Neurons of one `SubnetInfoRuntimeApi.get_metagraph`: a column per field, the uid being the row.

    Raises `RuntimeDiffers` when a column is missing or of another length."""
    try:
        rows = zip(
            *(
                graph[column]
                for column in (
                    "hotkeys",
                    "coldkeys",
                    "total_stake",
                    "validator_permit",
                    "incentives",
                    "dividends",
                    "emission",
                    "last_update",
                    "block_at_registration",
                )
            ),
            strict=True,
        )
        return tuple(_neuron(uid, *row) for uid, row in enumerate(rows))
    except _UNEXPECTED as error:
        raise _differs("metagraph", error) from error


def from_neurons_lite(records: Iterable[Mapping[str, Any]], registered_at: Mapping[Any, Any]) -> tuple[Neuron, ...]:
    """Neurons of one `NeuronInfoRuntimeApi.get_neurons_lite` with the map `BlockAtRegistration` of the same block.

    `stake` there is the subnet's own token only. Raises `RuntimeDiffers` when a field is missing."""
    try:
        neurons = [
            _neuron(
                int(record["uid"]),
                record["hotkey"],
                record["coldkey"],
                sum(int(amount) for _, amount in record["stake"]),
                record["validator_permit"],
                record["incentive"],
                record["dividends"],
                record["emission"],
                record["last_update"],
                registered_at[record["uid"]],
            )
            for record in records
        ]
    except _UNEXPECTED as error:
        raise _differs("list of neurons", error) from error
    return tuple(sorted(neurons, key=lambda neuron: neuron.uid))


def raw_commitment(record: Any) -> bytes | None:
    """What a `Commitments.CommitmentOf` record holds, if that is one raw field of at most 128 bytes; else None."""
    try:
        (entry,) = record["info"]["fields"]
        ((variant, value),) = entry.items()
        found = _RAW_FIELD.fullmatch(variant)
        if value == []:  # how the SDK decodes no bytes
            value = "0x"
        if found is None or not isinstance(value, str) or not value.startswith("0x"):
            return None
        data = bytes.fromhex(value[2:])
    except _UNEXPECTED:
        return None
    # The variant's number is the length: what contradicts itself was not written by this chain.
    return data if len(data) == int(found[1]) <= COMMITMENT_LIMIT_BYTES else None


def row_shares(row: Iterable[tuple[Any, Any]]) -> dict[int, float]:
    """One row of `SubtensorModule.Weights`, (uid, u16) pairs, as shares that sum to 1; zeros left out."""
    kept = {int(uid): int(value) for uid, value in row if int(value) > 0}
    total = sum(kept.values())
    return {uid: value / total for uid, value in kept.items()}


def _neuron(
    uid: int,
    hotkey: Any,
    coldkey: Any,
    stake_rao: Any,
    permit: Any,
    incentive: Any,
    dividends: Any,
    emission_rao: Any,
    last_update: Any,
    registered_at: Any,
) -> Neuron:
    return Neuron(
        uid=uid,
        hotkey=str(hotkey),
        coldkey=str(coldkey),
        stake=int(stake_rao) / RAO_PER_TAO,
        validator_permit=bool(permit),
        incentive=int(incentive) / WEIGHT_LIMIT,
        dividends=int(dividends) / WEIGHT_LIMIT,
        emission=int(emission_rao) / RAO_PER_TAO,
        last_update=int(last_update),
        registered_at=int(registered_at),
    )


def _differs(what: str, error: Exception) -> RuntimeDiffers:
    return RuntimeDiffers(
        f"the chain's {what} has another shape than this version knows ({type(error).__name__}: {error}); "
        "update Windrow and its bittensor package"
    )
