"""Starting one neuron as a process: from settings to a running node, and a clean end."""

from __future__ import annotations

import asyncio
import logging
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import torch
import uvloop
from bittensor.wallet import Wallet
from bittensor_core import KeyfileError, Keypair

from neurons.doctor.stores import OwnStore, require_store
from neurons.errors import FolderError, WalletError
from neurons.folder import bucket_name, held
from neurons.node import Node, Parts
from neurons.onlooker import open_chain
from neurons.precompile import precompile
from neurons.publication import Published, read_published
from neurons.settings import BuiltInChain, NodeSettings
from neurons.training.model import build_model
from neurons.training.precision import fastest_dtype
from protocol.chain.port import Chain
from protocol.errors import AlreadyRegistered
from protocol.run import Run
from storage.bucket import Bucket
from storage.location import LocalLocation, Location, decode, encode, open_bucket
from storage.s3 import S3Bucket
from storage.transfer import Limits, Reach, Transport

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""What a model may compute in, by the name in the settings."""

PEERS = Limits(connections=512, connections_per_host=512)
"""Twice as many as there are slots, each of whose holders can keep one: silent ones must not make others wait, not even
those whose buckets are on the same host."""

_PREDECESSOR_SECONDS = 5.0
"""How long a new process waits for an ending one of the same neuron: longer than that takes to end."""


def run_neuron(kind: type[Node], settings: NodeSettings) -> None:
    """Run one neuron in this process until SIGINT or SIGTERM, then return."""
    torch.set_num_threads(settings.threads)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # What is not there must be found before anything is made for this neuron.
    published, hotkey = uvloop.run(_find_run(settings)), open_hotkey(settings)
    try:
        settings.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(f"{settings.folder} cannot be made ({error.strerror}); choose another --state") from error
    busy = f"{settings.name} is running already, in another process; stop that one or use another wallet"
    # Two processes with one hotkey would overwrite each other's seals and state.
    with held(settings.folder, busy, _PREDECESSOR_SECONDS):
        uvloop.run(_live(kind, settings, published, hotkey))


async def _find_run(settings: NodeSettings) -> Published:
    async with transports(settings) as ways:
        return await read_published(settings.run, ways.own)


async def _live(kind: type[Node], settings: NodeSettings, published: Published, hotkey: Keypair) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await asyncio.to_thread(precompile)
        async with transports(settings) as ways:
            parts = await open_parts(settings, published, hotkey, ways)
            try:
                await kind(parts).run_forever()
            finally:
                await parts.chain.close()
    except asyncio.CancelledError:
        logging.getLogger(__name__).info("stopped")


@dataclass(frozen=True, slots=True)
class Ways:
    """How this process reaches stores: `own` those that its owner named, `peers` those that peers committed."""

    own: Transport
    peers: Transport


@asynccontextmanager
async def transports(settings: NodeSettings | None) -> AsyncIterator[Ways]:
    """Connections to stores for the block. Off the built-in chain what a peer names must be public."""
    built_in = settings is not None and isinstance(settings.chain, BuiltInChain)
    ways = Ways(Transport(Reach.ANY), Transport(Reach.ANY if built_in else Reach.PUBLIC, limits=PEERS))
    try:
        yield ways
    finally:
        await ways.own.close()
        await ways.peers.close()


async def open_parts(settings: NodeSettings, published: Published, hotkey: Keypair, ways: Ways) -> Parts:
    """Open everything else that the settings name. Each thing that is missing is its own error."""
    chain = await open_chain(settings.chain, published.publication)
    try:
        if settings.register_hotkey:
            await _register(chain, settings, hotkey.ss58_address)
        own = own_store(settings, hotkey.ss58_address, ways)
        await require_store(own)
        return Parts(
            name=settings.name,
            run=published.run,
            chain=chain,
            dataset=await published.open_dataset(settings.dataset, ways.own, ways.peers, settings.buckets),
            hotkey=hotkey,
            bucket=own.bucket,
            location=encode(own.location),
            open_bucket=lambda commitment: open_bucket(decode(commitment), ways.peers, settings.buckets),
            folder=settings.folder,
            dtype=DTYPES[probe_dtype(published.run) if settings.dtype == "auto" else settings.dtype],
            publisher=published.bucket(ways.own),
        )
    except BaseException:
        await chain.close()
        raise


def own_store(settings: NodeSettings, hotkey: str, ways: Ways) -> OwnStore:
    """The own bucket of `hotkey`, as it writes it and as its peers will read it."""
    if settings.own is not None:
        bucket: Bucket = S3Bucket(settings.own.endpoint, settings.own.write, ways.own)
        location: Location = settings.own.location
    else:
        location = LocalLocation(bucket_name(hotkey))
        bucket = open_bucket(location, ways.own, settings.buckets)
    return OwnStore(location, bucket, open_bucket(decode(encode(location)), ways.peers, settings.buckets))


def probe_dtype(run: Run) -> str:
    """`bf16` or `fp32`, whichever trains this run's model faster on this machine: a probe of a second."""
    sequences = run.dataset.page_sequences * run.inner.pages_per_step
    fastest = fastest_dtype(build_model(run.model), run.dataset.sequence_tokens, sequences)
    return next(name for name, dtype in DTYPES.items() if dtype == fastest)


def open_hotkey(settings: NodeSettings) -> Keypair:
    """The hotkey of the wallet in the settings; `WalletError` says how to make one."""
    wallet = _wallet(settings)
    if not wallet.hotkey_file.exists_on_device():
        raise WalletError(
            f"there is no hotkey {settings.wallet_hotkey!r} in wallet {settings.wallet_name!r} under "
            f"{settings.wallet_path}; make one with: btcli wallet create --wallet {shlex.quote(settings.wallet_name)} "
            f"--wallet-hotkey {shlex.quote(settings.wallet_hotkey)} "
            f"--wallet-path {shlex.quote(str(settings.wallet_path))} --no-password"
        )
    try:
        return wallet.hotkey
    except (KeyfileError, OSError) as error:
        raise WalletError(f"the hotkey in {wallet.hotkey_file.path} cannot be opened: {error}; restore it") from error


def coldkey_address(settings: NodeSettings) -> str | None:
    """The ss58 address of the wallet's coldkey; None when neither it nor its public half is on this machine."""
    wallet = _wallet(settings)
    file = wallet.coldkeypub_file
    try:
        address: str | None = wallet.coldkeypub.ss58_address if file.exists_on_device() else None
        return address
    except (KeyfileError, OSError) as error:
        raise WalletError(f"{file.path} cannot be opened: {error}; restore it") from error


def _wallet(settings: NodeSettings) -> Wallet:
    return Wallet(settings.wallet_name, settings.wallet_hotkey, str(settings.wallet_path.expanduser()))


async def _register(chain: Chain, settings: NodeSettings, hotkey: str) -> None:
    if any(neuron.hotkey == hotkey for neuron in await chain.neurons()):
        return
    wallet = _wallet(settings)
    try:
        coldkey = wallet.coldkey
    except (KeyfileError, OSError, EOFError) as error:  # EOFError: it asks for a password and there is no terminal
        raise WalletError(
            f"--register needs the coldkey {wallet.coldkey_file.path}, which cannot be opened: {error}"
        ) from error
    try:
        await chain.register(coldkey, hotkey)
    except AlreadyRegistered:
        return
