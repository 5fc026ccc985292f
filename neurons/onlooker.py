"""What somebody needs who only looks at a run: its constants, its chain, and the buckets that its peers commit.

No wallet, no bucket of one's own, no local state: whatever is said from here, anybody can say.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from neurons import store
from neurons.errors import ConfigError
from neurons.folder import founded_run, require_network
from neurons.publication import Publication, Published, read_published
from neurons.settings import BittensorChain, BuiltInChain, Viewpoint
from protocol.chain.local import LocalChain
from protocol.chain.port import Chain
from protocol.run import Run
from storage.bucket import Bucket
from storage.dataset import Dataset
from storage.location import decode, open_bucket
from storage.patience import PatientBucket
from storage.transfer import Reach, Transport

_PATIENCE_SECONDS = 10.0
"""How long a request to somebody's bucket may take: who looks at a run must not wait for one that is silent."""


@dataclass(frozen=True, slots=True)
class Onlooker:
    """A run as anybody sees it. `open_bucket` opens a peer's bucket from its commitment and may raise `BadLocation`;
    `open_dataset` raises `ConfigError`; `publisher` is the bucket in which the run was published, if it was."""

    run: Run
    chain: Chain
    open_bucket: Callable[[bytes], Bucket]
    open_dataset: Callable[[], Awaitable[Dataset]]
    publisher: Bucket | None = None


@asynccontextmanager
async def onlooker(view: Viewpoint) -> AsyncIterator[Onlooker]:
    """The run that `view` names, during the block."""
    built_in = isinstance(view.chain, BuiltInChain)
    own, peers = Transport(Reach.ANY), Transport(Reach.ANY if built_in else Reach.PUBLIC)
    with contextlib.ExitStack() as stack:
        if view.folder is not None:
            charter = require_network(view.folder)
            founded_run(view.folder, charter)
            stack.enter_context(store.serving(view.folder.absolute(), charter))
        try:
            published = await read_published(view.run, own)
            chain = await open_chain(view.chain, published.publication)
            try:
                yield _onlooker(view, published, chain, own, peers)
            finally:
                await chain.close()
        finally:
            await own.close()
            await peers.close()


def _onlooker(view: Viewpoint, published: Published, chain: Chain, own: Transport, peers: Transport) -> Onlooker:
    def opened(commitment: bytes) -> Bucket:
        return PatientBucket(open_bucket(decode(commitment), peers, view.buckets), _PATIENCE_SECONDS)

    return Onlooker(
        run=published.run,
        chain=chain,
        open_bucket=opened,
        open_dataset=lambda: published.open_dataset(view.dataset, own, peers, view.buckets),
        publisher=published.bucket(own),
    )


async def open_chain(chosen: BuiltInChain | BittensorChain, publication: Publication) -> Chain:
    """The chain of the settings, or else of the publication. Raises `ConfigError` when neither names one."""
    if isinstance(chosen, BuiltInChain):
        return LocalChain.open(chosen.file)
    network, netuid = chosen.network or publication.network, chosen.netuid or publication.netuid
    if network is None or netuid is None:
        raise ConfigError(
            "neither the settings nor the publication of the run name the subnet: give --subtensor.network and --netuid"
        )
    # Only here: the Bittensor SDK takes a second to import, and a network on this machine needs none of it.
    from protocol.chain.subtensor import SubtensorChain

    return await SubtensorChain.connect(network, netuid)
