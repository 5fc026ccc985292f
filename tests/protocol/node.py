"""A subtensor node's JSON-RPC on a loopback websocket, for what the SDK's own transport and codec do.

`FakeSubtensor` stands in for everything above them. Here the SDK dials, sends, reconnects, subscribes, encodes and
decodes for real; only the chain is small: `metadata` describes, in the format V14 that every Substrate node has
(frame-metadata's `RuntimeMetadataV14`), the few items that the tests read, with the types that subtensor gives them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from websockets.asyncio.server import ServerConnection, serve

GENESIS_MILLIS = 1_700_000_000_000

_U8, _U16, _U32, _U64, _BOOL = 3, 4, 5, 6, 0  # codes of primitive types in scale-info
_IDENTITY, _TWOX_CONCAT = 6, 5  # codes of storage hashers in frame-metadata
_OPTIONAL, _DEFAULT = 0, 1


def compact(value: int) -> bytes:
    """SCALE's compact integer, below 2³⁰."""
    if value < 1 << 6:
        return bytes([value << 2])
    if value < 1 << 14:
        return (value << 2 | 1).to_bytes(2, "little")
    return (value << 2 | 2).to_bytes(4, "little")


def text(value: str) -> bytes:
    return compact(len(value.encode())) + value.encode()


def vector(items: list[bytes]) -> bytes:
    return compact(len(items)) + b"".join(items)


class _Registry:
    """scale-info's portable registry: types by number."""

    def __init__(self) -> None:
        self._types: list[bytes] = []

    def add(self, definition: bytes, *path: str, parameters: dict[str, int] | None = None) -> int:
        number = len(self._types)
        names = vector([text(part) for part in path])
        given = vector([text(name) + b"\x01" + compact(kind) for name, kind in (parameters or {}).items()])
        self._types.append(compact(number) + names + given + definition + vector([]))
        return number

    def primitive(self, code: int) -> int:
        return self.add(bytes([5, code]))

    def composite(self, fields: list[tuple[str | None, int]], *path: str) -> int:
        return self.add(b"\x00" + vector([_field(name, kind) for name, kind in fields]), *path)

    def variants(self, variants: list[tuple[str, int, list[tuple[str | None, int]]]], *path: str) -> int:
        coded = [
            text(name) + vector([_field(label, kind) for label, kind in fields]) + bytes([index]) + vector([])
            for name, index, fields in variants
        ]
        return self.add(b"\x01" + vector(coded), *path)

    def sequence(self, kind: int) -> int:
        return self.add(b"\x02" + compact(kind))

    def array(self, length: int, kind: int) -> int:
        return self.add(b"\x03" + length.to_bytes(4, "little") + compact(kind))

    def pair(self, *kinds: int) -> int:
        return self.add(b"\x04" + vector([compact(kind) for kind in kinds]))

    def encode(self) -> bytes:
        return vector(self._types)


def _field(name: str | None, kind: int) -> bytes:
    return (b"\x00" if name is None else b"\x01" + text(name)) + compact(kind) + b"\x00" + vector([])


def _item(name: str, modifier: int, keys: list[int], key: int | None, value: int, default: bytes) -> bytes:
    kind = (
        b"\x00" + compact(value)
        if key is None
        else b"\x01" + vector([bytes([k]) for k in keys]) + compact(key) + compact(value)
    )
    return text(name) + bytes([modifier]) + kind + compact(len(default)) + default + vector([])


def _pallet(
    name: str, index: int, items: list[bytes], constants: list[bytes] | None = None, calls: int | None = None
) -> bytes:
    storage = b"\x01" + text(name) + vector(items) if items else b"\x00"
    coded_calls = b"\x00" if calls is None else b"\x01" + compact(calls)
    return text(name) + storage + coded_calls + b"\x00" + vector(constants or []) + b"\x00" + bytes([index])


def metadata() -> bytes:
    """The chain's description of itself."""
    types = _Registry()
    u8, u16, u32 = types.primitive(_U8), types.primitive(_U16), types.primitive(_U32)
    u64, boolean = types.primitive(_U64), types.primitive(_BOOL)
    account = types.composite([(None, types.array(32, u8))], "sp_core", "crypto", "AccountId32")
    raws = [(f"Raw{length}", length + 1, [(None, types.array(length, u8))]) for length in range(129)]
    data = types.variants([("None", 0, []), *raws], "pallet_commitments", "types", "Data")
    fields = types.composite([(None, types.sequence(data))], "bounded_collections", "bounded_vec", "BoundedVec")
    info = types.composite([("fields", fields)], "pallet_commitments", "types", "CommitmentInfo")
    registration = types.composite(
        [("deposit", u64), ("block", u32), ("info", info)], "pallet_commitments", "types", "Registration"
    )
    calls = types.variants(
        [("set_commitment", 0, [("netuid", u16), ("info", info)])], "pallet_commitments", "pallet", "Call"
    )
    runtime_call = types.variants([("Commitments", 18, [(None, calls)])], "node_subtensor_runtime", "RuntimeCall")
    nothing = types.pair()
    address = types.variants([("Id", 0, [(None, account)])], "sp_runtime", "multiaddress", "MultiAddress")
    signature = types.variants([("Sr25519", 1, [(None, types.array(64, u8))])], "sp_runtime", "MultiSignature")
    extrinsic = types.add(
        b"\x00" + vector([_field(None, types.sequence(u8))]),
        *("sp_runtime", "generic", "unchecked_extrinsic", "UncheckedExtrinsic"),
        parameters={"Address": address, "Call": runtime_call, "Signature": signature, "Extra": nothing},
    )
    slot = text("SlotDuration") + compact(u64) + compact(8) + (12_000).to_bytes(8, "little") + vector([])
    pallets = [
        _pallet("Timestamp", 2, [_item("Now", _DEFAULT, [], None, u64, bytes(8))]),
        _pallet("Aura", 3, [], [slot]),
        _pallet(
            "SubtensorModule",
            7,
            [_item("NetworksAdded", _DEFAULT, [_IDENTITY], u16, boolean, b"\x00")],
        ),
        _pallet(
            "Commitments",
            18,
            [
                _item(
                    "CommitmentOf",
                    _OPTIONAL,
                    [_IDENTITY, _TWOX_CONCAT],
                    types.pair(u16, account),
                    registration,
                    b"\x00",
                )
            ],
            calls=calls,
        ),
    ]
    extrinsics = compact(extrinsic) + b"\x04" + vector([])
    return b"meta\x0e" + types.encode() + vector(pallets) + extrinsics + compact(nothing)


class Node:
    """Blocks and storage, answered to whoever connects. `break_connections` drops them all; `mute` swallows requests
    of a method, so that they are open when the connection breaks."""

    def __init__(self) -> None:
        self.number = 5
        self.url = ""
        self.dialled = 0
        self.asked: list[str] = []
        self.muted: set[str] = set()
        self.storage: dict[str, str] = {}
        self.timestamp_key = ""
        self.submitted: list[bytes] = []
        self.on_submit: Callable[[bytes], Awaitable[None]] | None = None
        self._open: set[ServerConnection] = set()
        self._subscribers: set[ServerConnection] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Node]:
        async with serve(self._serve, "127.0.0.1", 0) as server:
            self.url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
            yield self

    async def step(self) -> None:
        """One block more, told to all subscribers."""
        self.number += 1
        for connection in self._subscribers & self._open:
            await self._tell(connection)

    async def break_connections(self) -> None:
        for connection in list(self._open):
            connection.transport.abort()

    async def _serve(self, connection: ServerConnection) -> None:
        self.dialled += 1
        self._open.add(connection)
        try:
            async for frame in connection:
                await self._answer(connection, json.loads(frame))
        finally:
            self._open.discard(connection)
            self._subscribers.discard(connection)

    async def _answer(self, connection: ServerConnection, request: dict[str, Any]) -> None:
        method, params = request["method"], request["params"]
        self.asked.append(method)
        if method in self.muted:
            return
        if method == "author_submitAndWatchExtrinsic" and self.on_submit is not None:
            self.submitted.append(bytes.fromhex(params[0][2:]))
            await self.on_submit(self.submitted[-1])
            return
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
        answers: dict[str, Callable[[], Any]] = {
            "account_nextIndex": lambda: len(self.submitted),
            "chain_getBlockHash": lambda: self.hash(params[0]) if params[0] <= self.number else None,
            "chain_getFinalizedHead": lambda: self.hash(self.number - 2),
            "chain_getHead": lambda: self.hash(self.number),
            "chain_getHeader": lambda: self._header(self.number if params[0] is None else int(params[0][-8:], 16)),
            "chain_subscribeNewHeads": lambda: "heads",
            "chain_unsubscribeNewHeads": lambda: True,
            "state_getRuntimeVersion": lambda: {
                "specName": "node-subtensor",
                "specVersion": 438,
                "transactionVersion": 1,
            },
            "state_getMetadata": lambda: f"0x{metadata().hex()}",
            "state_getStorageAt": lambda: self._stored(*params),
        }
        if method == "state_call":
            missing = "Exported method Metadata_metadata_at_version is not found"
            reply["error"] = {"code": -32603, "message": "Client error", "data": f"Execution failed: {missing}"}
        else:
            reply["result"] = answers[method]()
        await connection.send(json.dumps(reply))
        if method == "chain_subscribeNewHeads":
            self._subscribers.add(connection)
            await self._tell(connection)

    async def _tell(self, connection: ServerConnection) -> None:
        params = {"subscription": "heads", "result": self._header(self.number)}
        await connection.send(json.dumps({"jsonrpc": "2.0", "method": "chain_newHead", "params": params}))

    def _stored(self, key: str, block_hash: str) -> str | None:
        if key == self.timestamp_key:
            return f"0x{(GENESIS_MILLIS + 12_000 * int(block_hash[-8:], 16)).to_bytes(8, 'little').hex()}"
        return self.storage.get(key)

    def _header(self, number: int) -> dict[str, Any]:
        return {"number": hex(number), "parentHash": self.hash(number - 1), "digest": {"logs": []}}

    @staticmethod
    def hash(number: int) -> str:
        """The hash of a block holds its number."""
        return f"0x{'ab' * 28}{max(0, number):08x}"
