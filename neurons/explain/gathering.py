"""Reading what `windrow explain` explains: the chain, the validators' buckets and the peer's own. Reads only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from neurons.documents import Documents, Source
from neurons.errors import NotJudged
from neurons.explain.evidence import Bucketful, Evidence, Stored
from neurons.leaderboard.words import plain
from neurons.onlooker import Onlooker
from protocol.chain.port import Neuron
from protocol.errors import ChainError, DocumentError
from protocol.gauntlet.receipts import Receipts
from protocol.identity import Document, SignedDocument
from protocol.ledger.manifest import Manifest
from protocol.sealing import SEAL_LIMIT_BYTES, Reveal, Seal
from protocol.window import Window, deadlines, window_of
from storage.bucket import Bucket
from storage.errors import NotFound, StorageError, TooLarge
from storage.keys import Keys

_Found = TypeVar("_Found", bound=SignedDocument)

_PAST_WINDOWS = 24
"""How far back is looked for what a standing still suffers from: a share of a tenth a window comes back by default."""

_SHARDS_LOOKED_AT = 64
"""A seal may name many shards, also ones that are not there: more than these are not asked for."""


async def gather(look: Onlooker, uid: int, window: int | None) -> Evidence:
    """Everything public about slot `uid` in `window`, the newest judged one for None. Raises `NotJudged` for a window
    of which there is nothing, and `ChainUnreachable`."""
    run, chain = look.run, look.chain
    documents = Documents(run, chain, look.open_bucket)
    neurons = await chain.neurons()
    head = await chain.head()
    sources, troubles = await documents.sources(neurons)
    number = await _window(documents, sources, window, head.number, troubles)
    judge, receipts = await _first(documents.receipts, number, sources)
    keeper, manifest = await _first(documents.manifest, number, sources)
    if receipts is None and manifest is None:
        raise NotJudged(_unjudged(documents, number, head.number, troubles))
    limits = deadlines(number, run.time)
    neuron = next((n for n in neurons if n.uid == uid), None)
    hotkey = _hotkey(uid, receipts, manifest, neuron)
    past, times = await asyncio.gather(_past(documents, judge, number), _block_times(look, limits))
    return Evidence(
        run=run,
        uid=uid,
        window=number,
        head_block=head.number,
        block_seconds=chain.block_seconds,
        hotkey=hotkey,
        block_times=times,
        neuron=neuron,
        manifest=manifest,
        receipts=receipts,
        past=past,
        bucketful=await _bucketful(look, documents.keys, number, uid, hotkey, manifest),
        manifest_stored=await _stored(keeper, "manifest", documents.keys.manifest(number)),
        receipts_stored=await _stored(judge, "receipts", documents.keys.receipts(number)),
    )


# --- what validators say ----------------------------------------------------------------------------------


async def _window(
    documents: Documents, sources: Sequence[Source], window: int | None, head: int, troubles: list[str]
) -> int:
    if window is not None:
        if not documents.run.time.first_window <= window < window_of(head, documents.run.time):
            raise NotJudged(_unjudged(documents, window, head, troubles))
        return window
    for source in sources:
        if (newest := await documents.newest_judged(source)) is not None:
            return newest
    raise NotJudged("; ".join(["no window of this run has been judged yet: wait for the first receipts", *troubles]))


def _unjudged(documents: Documents, window: int, head: int, troubles: Iterable[str]) -> str:
    times = documents.run.time
    if window < times.first_window:
        return f"there are no receipts of window {window}: the run begins with window {times.first_window}"
    limits = deadlines(window, times)
    if head < limits.start_block:
        return f"window {window} has not begun: it begins with block {limits.start_block}, the chain is at {head}"
    if head < limits.close_block:
        return f"window {window} is open until block {limits.close_block}, the chain is at {head}: it is judged then"
    wait = f"there are no receipts of window {window}, and no manifest: no validator has judged it"
    return "; ".join([wait, *troubles])


async def _first(
    read: Callable[[int, Source], Awaitable[_Found | None]], window: int, sources: Sequence[Source]
) -> tuple[Source | None, _Found | None]:
    """The document of the first validator that has one that counts."""
    for source in sources:
        try:
            found = await read(window, source)
        except (StorageError, DocumentError):
            continue
        if found is not None:
            return source, found
    return None, None


async def _past(documents: Documents, judge: Source | None, window: int) -> tuple[Receipts, ...]:
    """Receipts of the windows before, by the same validator, without a gap."""
    if judge is None:
        return ()
    first = max(documents.run.time.first_window, window - _PAST_WINDOWS)

    async def read(number: int) -> Receipts | None:
        try:
            return await documents.receipts(number, judge)
        except (StorageError, DocumentError):
            return None

    found: list[Receipts] = []
    for receipts in reversed(await asyncio.gather(*(read(number) for number in range(first, window)))):
        if receipts is None:
            break
        found.append(receipts)
    return tuple(reversed(found))


def _hotkey(uid: int, receipts: Receipts | None, manifest: Manifest | None, neuron: Neuron | None) -> str | None:
    """Who held the slot: by the receipt, else by the manifest, else whoever holds it now."""
    named = [r.hotkey for r in (receipts.receipts if receipts else ()) if r.uid == uid]
    if manifest is not None:
        named += [entry.hotkey for entry in (*manifest.contributions, *manifest.rejected) if entry.uid == uid]
    return (named + ([neuron.hotkey] if neuron else []) + [None])[0]


# --- the chain, and the peer's own bucket -----------------------------------------------------------------


async def _block_times(look: Onlooker, limits: Window) -> dict[int, float]:
    """Times of the blocks that matter, without those that are still to come or that the chain's node has forgotten."""

    async def read(number: int) -> float | None:
        try:
            return (await look.chain.block(number)).timestamp
        except ChainError:
            return None

    numbers = (
        limits.start_block,
        limits.close_block,
        limits.seal_block,
        limits.key_block,
        limits.reveal_block,
        limits.manifest_block,
    )
    times = await asyncio.gather(*(read(number) for number in numbers))
    return {number: at for number, at in zip(numbers, times, strict=True) if at is not None}


async def _bucketful(
    look: Onlooker, keys: Keys, window: int, uid: int, hotkey: str | None, manifest: Manifest | None
) -> Bucketful | None:
    """What lies in the bucket of `hotkey`: where the manifest read it, else where its commitment says now."""
    if hotkey is None:
        return None
    named = [c.location for c in (manifest.contributions if manifest else ()) if c.uid == uid]
    commitment = bytes.fromhex(named[0]) if named else (await look.chain.commitments()).get(hotkey)
    if commitment is None:
        return Bucketful(trouble="this hotkey has committed no bucket on chain")
    try:
        bucket = look.open_bucket(commitment)
    except StorageError as error:
        return Bucketful(trouble=plain(f"its commitment names no bucket that could be read: {error}"))
    try:
        return await _look_into(bucket, keys, window, hotkey)
    except StorageError as error:
        return Bucketful(trouble=plain(f"its bucket cannot be read: {error}")[:200])


async def _look_into(bucket: Bucket, keys: Keys, window: int, hotkey: str) -> Bucketful:
    seal_key, reveal_key = keys.seal(window, hotkey), keys.key(window, hotkey)
    seal = await _read(bucket, seal_key, Seal)
    reveal = await _read(bucket, reveal_key, Reveal)
    holds = None if seal is None else isinstance(seal, Seal) and seal.window == window and _is_signed(seal, hotkey)
    shards = len(seal.shards) if isinstance(seal, Seal) else 0
    looked = range(min(shards, _SHARDS_LOOKED_AT))
    names = [(f"shard {i}", keys.shard(window, hotkey, i)) for i in looked]
    stored = await asyncio.gather(
        _head(bucket, "seal", seal_key),
        _head(bucket, "key", reveal_key),
        *(_head(bucket, name, key) for name, key in names),
    )
    return Bucketful(
        seal=stored[0],
        key=stored[1],
        shards=tuple(stored[2:]),
        shards_named=shards,
        payload_digest=seal.payload_digest if isinstance(seal, Seal) else None,
        seal_holds=holds,
        key_opens=isinstance(reveal, Reveal) and reveal.opens(seal)
        if reveal is not None and isinstance(seal, Seal)
        else None,
    )


async def _read(bucket: Bucket, key: str, kind: type[Document]) -> Document | bytes | None:
    """The document there, its bytes if it is none, None if there is nothing."""
    try:
        data = await bucket.get(key, limit_bytes=SEAL_LIMIT_BYTES)
    except NotFound:
        return None
    except TooLarge:
        return b""
    try:
        return kind.parse(data)
    except DocumentError:
        return data


def _is_signed(seal: Seal, hotkey: str) -> bool:
    try:
        seal.verify(hotkey)
    except DocumentError:
        return False
    return True


async def _stored(source: Source | None, name: str, key: str) -> Stored:
    """What a validator's bucket says of an object; nothing, if it does not answer."""
    if source is None:
        return Stored(name)
    try:
        return await _head(source.bucket, name, key)
    except StorageError:
        return Stored(name)


async def _head(bucket: Bucket, name: str, key: str) -> Stored:
    try:
        info = await bucket.head(key)
    except NotFound:
        return Stored(name)
    return Stored(name, info.size_bytes, info.last_modified)
