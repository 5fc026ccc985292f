"""Starting one neuron as a process: from settings to a running node, and a clean end."""

from __future__ import annotations

import asyncio
import logging
import shlex
import signal
import sys

import torch
import uvloop
from bittensor.wallet import Wallet
from bittensor_core import KeyfileError, Keypair

from neurons.errors import ConfigError, FolderError, WalletError
from neurons.folder import bucket_name, held, read_run
from neurons.node import Node, Parts
from neurons.precompile import precompile
from neurons.settings import NodeSettings
from neurons.training.model import build_model
from neurons.training.precision import fastest_dtype
from protocol.chain.local import LocalChain
from protocol.chain.port import Chain
from protocol.errors import AlreadyRegistered
from protocol.run import Run
from storage.dataset import open_dataset
from storage.directory import DirectoryBucket
from storage.errors import DatasetError
from storage.location import LocalLocation, decode, encode, open_bucket
from storage.transfer import Reach, Transport

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

_PREDECESSOR_SECONDS = 5.0
"""How long a new process waits for an ending one of the same neuron: longer than that takes to end."""


def run_neuron(kind: type[Node], settings: NodeSettings) -> None:
    """Run one neuron in this process until SIGINT or SIGTERM, then return."""
    torch.set_num_threads(settings.threads)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # What is not there must be found before anything is made for this neuron.
    run, hotkey = read_run(settings.run), open_hotkey(settings)
    try:
        settings.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(f"{settings.folder} cannot be made ({error.strerror}); choose another --state") from error
    busy = f"{settings.name} is running already, in another process; stop that one or use another wallet"
    # Two processes with one hotkey would overwrite each other's seals and state.
    with held(settings.folder, busy, _PREDECESSOR_SECONDS):
        uvloop.run(_live(kind, settings, run, hotkey))


async def _live(kind: type[Node], settings: NodeSettings, run: Run, hotkey: Keypair) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await asyncio.to_thread(precompile)
        # The built-in chain is of one machine: its neighbours' buckets may be on it.
        transport = Transport(Reach.ANY)
        try:
            parts = await open_parts(settings, run, hotkey, transport)
            try:
                await kind(parts).run_forever()
            finally:
                await parts.chain.close()
        finally:
            await transport.close()
    except asyncio.CancelledError:
        logging.getLogger(__name__).info("stopped")


async def open_parts(settings: NodeSettings, run: Run, hotkey: Keypair, transport: Transport) -> Parts:
    """Open everything else that the settings name. Each thing that is missing is its own error."""
    chain = LocalChain.open(settings.chain_file)
    if settings.register_hotkey:
        await _register(chain, settings, hotkey.ss58_address)
    try:
        dataset = await open_dataset(DirectoryBucket(settings.dataset), run.dataset.index_digest)
    except DatasetError as error:
        raise ConfigError(f"{settings.dataset} is not the run's dataset: {error}; correct --dataset") from error
    location = LocalLocation(bucket_name(hotkey.ss58_address))
    return Parts(
        name=settings.name,
        run=run,
        chain=chain,
        dataset=dataset,
        hotkey=hotkey,
        bucket=open_bucket(location, transport, settings.buckets),
        location=encode(location),
        open_bucket=lambda commitment: open_bucket(decode(commitment), transport, settings.buckets),
        folder=settings.folder,
        dtype=_DTYPES[probe_dtype(run) if settings.dtype == "auto" else settings.dtype],
    )


def probe_dtype(run: Run) -> str:
    """`bf16` or `fp32`, whichever trains this run's model faster on this machine: a probe of a second."""
    sequences = run.dataset.page_sequences * run.inner.pages_per_step
    fastest = fastest_dtype(build_model(run.model), run.dataset.sequence_tokens, sequences)
    return next(name for name, dtype in _DTYPES.items() if dtype == fastest)


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
