"""A connection to a subtensor node: time-outs, retries and one kind of error for everything that can go wrong on it.

The SDK reconnects by itself and asks again what it had asked; what is here decides how long that may take and what
happens then. Reads are simply asked again. A write is not: whether it took effect is for its caller to look up.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from bittensor import (
    Client,
    ConnectionNotReady,
    ExtrinsicResult,
    RpcConnectionError,
    RpcPolicyError,
    RpcSubstrate,
    Substrate,
)
from bittensor.result import BittensorError
from bittensor.result import ChainError as SdkError
from bittensor.settings import NETWORKS, default_archive_endpoints, default_fallback_endpoints

from protocol.chain.refusals import refusal, shown
from protocol.errors import BadExtrinsic, ChainError, ChainUnreachable, Pruned, RuntimeDiffers

T = TypeVar("T")

LOST = (RpcConnectionError, ConnectionNotReady, SdkError, OSError)
"""What a call over a broken connection raises. `TimeoutError` is an `OSError`; the SDK's `ChainError` is also what
it makes of a node's own failures."""

# The codec of the SDK raises these for an item, a call or a type that the chain's metadata do not have; `TypeError`
# is what its intents raise over the None that such a chain gives for a constant.
_MISMATCH = (KeyError, ValueError, TypeError)

# The SDK keeps no class for it at its surface (bittensor/_transport/errors.py, StateDiscardedError).
_DISCARDED = "State discarded"

_LOCAL = "ws://127.0.0.1:9944"
"""Where a subtensor node on this machine answers, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long this node waits for the chain. `*_seconds` are upper bounds of one step; a read is tried
    `read_attempts` times in all, after pauses that start around `pause_seconds` and double each time, a write that
    did not take effect `write_attempts` times; `settle_blocks` is for how many blocks the chain is asked whether a
    write took effect."""

    connect_seconds: float = 45.0
    read_seconds: float = 30.0
    write_seconds: float = 120.0
    read_attempts: int = 4
    write_attempts: int = 2
    pause_seconds: float = 0.5
    settle_blocks: int = 3

    def pause(self, failures: int) -> float:
        """Seconds to wait after this many failures in a row, jittered so that peers do not come back together."""
        return float(self.pause_seconds * 2 ** min(failures - 1, 6) * random.uniform(0.5, 1.5))


class Link:
    """One connection, through the SDK's `Substrate`. Make it with `to`, or over any `Substrate`; then `open` it.

    `name` is how errors call the node."""

    def __init__(self, substrate: Substrate, name: str, patience: Patience) -> None:
        self.name = name
        self.patience = patience
        self._substrate = substrate
        self._client = Client(substrate=substrate)
        self._closed = False

    @classmethod
    def to(cls, network: str, patience: Patience) -> Link:
        """A link to a network by name (`finney`, `test`, `local`, …) or to the node at a ws:// or wss:// URL.

        Raises `ChainError` for anything else."""
        endpoint = _LOCAL if network == "local" else NETWORKS.get(network, network)
        parts = urlsplit(endpoint)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ChainError(
                f"{network[:80]!r} is no network; give finney, test, local, or the ws:// or wss:// address of a node"
            )
        substrate = RpcSubstrate(
            endpoint,
            fallback_endpoints=default_fallback_endpoints(network),
            archive_endpoints=default_archive_endpoints(network),
        )
        # Providers put access keys into user, path and query: errors and logs name only the host.
        where = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
        return cls(substrate, where if endpoint == network else f"{where} ({network})", patience)

    async def open(self) -> None:
        """Connect; raises `ChainUnreachable` when nobody answers. Once: a connection that is lost comes back."""
        try:
            await _within(self.patience.connect_seconds, self._substrate.connect())
        except (*LOST, *_MISMATCH) as error:
            await self._substrate.close()
            raise ChainUnreachable(
                f"no subtensor node answers at {self.name} ({shown(error)}); start one there, check the network "
                "of this machine, or name another network or endpoint"
            ) from error

    async def close(self) -> None:
        """Disconnect. Idempotent."""
        if not self._closed:
            self._closed = True
            await self._substrate.close()

    def raise_if_closed(self) -> None:
        """Raise `ChainUnreachable` after `close`."""
        if self._closed:
            raise ChainUnreachable(f"the connection to {self.name} is closed; connect again")

    async def read(self, ask: Callable[[Substrate], Coroutine[Any, Any, T]]) -> T:
        """What `ask` answers; asked again when the connection fails under it.

        Raises `ChainUnreachable` when the node does not answer, `Pruned` when it no longer has the state, and
        `RuntimeDiffers` when its runtime lacks what is asked for."""
        failures = 0
        while True:
            self.raise_if_closed()
            try:
                return await _within(self.patience.read_seconds, ask(self._substrate))
            except RpcPolicyError as error:
                raise self._refused(error) from error
            except LOST as error:
                if isinstance(error, SdkError) and _DISCARDED in str(error):
                    raise Pruned(
                        f"{self.name} has dropped the state of that block; name an archive node as the endpoint"
                    ) from error
                failures += 1
                if failures >= self.patience.read_attempts:
                    raise self._silent(error) from error
            except _MISMATCH as error:
                raise self._differs(error) from error
            await asyncio.sleep(self.patience.pause(failures))

    async def write(self, send: Callable[[Client], Coroutine[Any, Any, ExtrinsicResult]]) -> ExtrinsicResult:
        """Send one call, once, and return what the chain made of it.

        Raises `ChainUnreachable` when that is not known: the call may have taken effect or may still do so. Else
        the `ChainError` of what refused it: `RuntimeDiffers` when the SDK could not make, sign or follow the call on
        this chain."""
        self.raise_if_closed()
        try:
            result = await _within(self.patience.write_seconds, send(self._client))
        except RpcPolicyError as error:
            raise self._refused(error) from error
        except SdkError as error:
            # The SDK wraps whatever went wrong in its own code between signing a call and reading its block.
            raise (self._differs(error) if isinstance(error.__cause__, _MISMATCH) else refusal(error)) from error
        except LOST as error:
            raise self._silent(error) from error
        except BittensorError as error:
            raise BadExtrinsic(f"the call cannot be made: {shown(error)}") from error
        except _MISMATCH as error:
            raise self._differs(error) from error
        if not result.success:
            raise refusal(result.error or SdkError(result.message))
        return result

    async def new_blocks(self) -> AsyncGenerator[int, None]:
        """The number of the newest block, now and whenever there is a newer one.

        Raises `ChainUnreachable` when the connection breaks: a subscription does not survive that."""
        self.raise_if_closed()
        try:
            async for block in self._substrate.blocks():
                yield int(block["header"]["number"])
        except LOST as error:
            raise self._silent(error) from error
        except _MISMATCH as error:
            raise self._differs(error) from error

    def _silent(self, error: BaseException) -> ChainUnreachable:
        return ChainUnreachable(
            f"{self.name} does not answer ({shown(error)}); check the network of this machine, or name another endpoint"
        )

    def _refused(self, error: RpcPolicyError) -> ChainUnreachable:
        wait = f" for {error.retry_after} s" if error.retry_after else ""
        return ChainUnreachable(
            f"{self.name} refuses this machine ({shown(error)}); wait{wait}, or name an endpoint of your own"
        )

    def _differs(self, error: BaseException) -> RuntimeDiffers:
        return RuntimeDiffers(
            f"the runtime of {self.name} is not the one this version was made for ({shown(error)}); update Windrow "
            "and its bittensor package, or name a node of the current runtime"
        )


async def _within(seconds: float, call: Coroutine[Any, Any, T]) -> T:
    """What `call` returns; `TimeoutError` when it takes longer.

    It runs in a task of its own: the SDK can cancel callers that wait for the same answer as one that timed out, and
    that must not look like an order to this task to end."""
    task = asyncio.ensure_future(call)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
    if not done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    if task.cancelled():
        raise ConnectionError("the call was given up with another one")
    return task.result()
