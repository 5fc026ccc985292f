"""Starting one neuron as a process: from settings to a running node, and a clean end."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

import torch
import uvloop
from bittensor.wallet import Wallet
from bittensor_core import Keypair

from neurons.errors import ConfigError, WalletError
from neurons.node import Node, Parts
from neurons.settings import NodeSettings
from neurons.training.model import build_model
from neurons.training.precision import fastest_dtype
from protocol.chain.local import LocalChain
from protocol.chain.port import Chain
from protocol.errors import AlreadyRegistered
from protocol.run import Run, parse_run
from storage.dataset import open_dataset
from storage.directory import DirectoryBucket
from storage.location import LocalLocation, decode, encode, open_bucket

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def run_neuron(kind: type[Node], settings: NodeSettings) -> None:
    """Run one neuron in this process until SIGINT or SIGTERM, then return."""
    torch.set_num_threads(settings.threads)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    uvloop.run(_live(kind, settings))


async def _live(kind: type[Node], settings: NodeSettings) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        parts = await open_parts(settings)
        try:
            await kind(parts).run_forever()
        finally:
            await parts.chain.close()
    except asyncio.CancelledError:
        logging.getLogger(__name__).info("stopped")


async def open_parts(settings: NodeSettings) -> Parts:
    """Open everything the settings name. Each thing that is missing is its own error."""
    run = read_run(settings.run)
    hotkey = open_hotkey(settings)
    chain = LocalChain.open(settings.chain_file)
    if settings.register_hotkey:
        await _register(chain, settings, hotkey.ss58_address)
    dataset = await open_dataset(DirectoryBucket(settings.dataset), run.dataset.index_digest)
    location = LocalLocation(bucket_name(hotkey.ss58_address))
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    return Parts(
        name=settings.name,
        run=run,
        chain=chain,
        dataset=dataset,
        hotkey=hotkey,
        bucket=open_bucket(location, settings.buckets),
        location=encode(location),
        open_bucket=lambda commitment: open_bucket(decode(commitment), settings.buckets),
        folder=folder,
        dtype=_DTYPES.get(settings.dtype) or probe_dtype(run),
    )


def read_run(path: Path) -> Run:
    """The run in the file at `path`."""
    try:
        return parse_run(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}; give --run or --dir") from error


def probe_dtype(run: Run) -> torch.dtype:
    """Whichever of bf16 and fp32 trains this run's model faster on this machine."""
    sequences = run.dataset.page_sequences * run.inner.pages_per_step
    return fastest_dtype(build_model(run.model), run.dataset.sequence_tokens, sequences)


def open_hotkey(settings: NodeSettings) -> Keypair:
    """The hotkey of the wallet in the settings; `WalletError` says how to make one."""
    wallet = _wallet(settings)
    if not wallet.hotkey_file.exists_on_device():
        raise WalletError(
            f"there is no hotkey {settings.wallet_hotkey!r} in wallet {settings.wallet_name!r} under "
            f"{settings.wallet_path}; make one with: btcli wallet create --wallet {settings.wallet_name} "
            f"--hotkey {settings.wallet_hotkey} --wallet-path {settings.wallet_path}"
        )
    return wallet.hotkey


def bucket_name(hotkey: str) -> str:
    """Name of the local bucket of a hotkey. Bucket names are lower case, so the address is spelled in hexadecimal."""
    return Keypair(ss58_address=hotkey).public_key.hex()[:40]


def _wallet(settings: NodeSettings) -> Wallet:
    return Wallet(settings.wallet_name, settings.wallet_hotkey, str(settings.wallet_path.expanduser()))


async def _register(chain: Chain, settings: NodeSettings, hotkey: str) -> None:
    if any(neuron.hotkey == hotkey for neuron in await chain.neurons()):
        return
    try:
        await chain.register(_wallet(settings).coldkey, hotkey)
    except AlreadyRegistered:
        return
